//! quantize, and verify of what it wrote against what it was made from.

use hawfinch_kernels::DType;
use hawfinch_model::format;

use crate::util::{Place, shared};

const SIZES: [&str; 6] = ["--layers", "2", "--width", "256", "--dtype", "f16"];

/// Plain text, as a test needs it: some thousand bytes.
fn some_text(place: &Place) {
    let line = |n: usize| format!("{n}: the {} of the {} is {}.\n", n * 7 % 19, n * n % 23, n * 5 % 31);
    place.write("text.txt", (0..200).map(line).collect::<String>());
}

#[test]
fn a_model_becomes_smaller_and_stays_itself() {
    let place = Place::new();
    some_text(&place);
    for version in ["4", "5.1", "5.2", "6", "7"] {
        place.model("m.pth", &[&SIZES[..], &["--version", version, "--force"]].concat());
        let args = ["quantize", "m.pth", "-o", "q.gguf", "--text", "text.txt", "--tokens", "128"];
        let said = place.run(&[&args[..], &["--bits", "5.5", "--force", "--json"]].concat()).ok().json();
        let bits = said["bits"].as_f64().unwrap();
        assert!((4.5..=5.501).contains(&bits), "{version}: {bits}");
        let quality = &said["quality"];
        let kl = quality["kl"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < 0.25, "{version}: {quality}");
        assert!(quality["largest_kl"].as_f64().unwrap() >= kl);
        assert_eq!(said["judged_on_other_text"], true);
        let weights = said["weights"].as_array().unwrap();
        let kls: Vec<f64> = weights.iter().map(|w| w["kl"].as_f64().unwrap()).collect();
        assert!(kls.is_sorted_by(|a, b| a >= b), "the most sensitive first: {kls:?}");
        assert!(weights.iter().any(|w| w["type"] == "q8_0") && weights.iter().any(|w| w["type"] == "q4_k"));
        // Each lies in the file in the type that the report says, and the file knows where it comes from.
        let file = format::open(&place.path("q.gguf")).unwrap();
        for w in weights {
            let t = file.get(w["name"].as_str().unwrap()).unwrap();
            assert_eq!(w["type"], t.dtype.name());
            assert_eq!(w["bytes"], t.data.len());
        }
        let source = format::open(&place.path("m.pth")).unwrap();
        let hash = |c| hawfinch_model::hash::identity(c, None).unwrap();
        assert_eq!(hash(&file), hash(&source));
        // Rows of 3.5 × 256 are no blocks of 256.
        let three = matches!(version, "5.2" | "6");
        let types = if three { "mixed of q4_0/q4_k/q8_0" } else { "mixed of q4_k/q8_0" };
        assert_eq!(file.metadata["hawfinch.quantized"], types);
        // What was measured in memory is what the file gives.
        let again = place.run(&["verify", "q.gguf", "--against", "m.pth", "--json"]).ok().json();
        assert_eq!(again[0]["passed"], true, "{again}");
        place.run(&["verify", "q.gguf"]).ok();
        place.run(&["generate", "q.gguf", "ab", "--max-tokens", "3"]).ok();
    }
}

#[test]
fn the_report_is_of_the_file() {
    let place = Place::new();
    place.model("m.pth", &SIZES);
    // With the built-in text both look at the same tokens.
    let args = ["quantize", "m.pth", "-o", "q.gguf", "--to", "int4", "--json"];
    let said = place.run(&args).ok().json();
    assert_eq!(said["predicted_kl"], serde_json::Value::Null);
    let head = said["weights"].as_array().unwrap().iter().find(|w| w["name"] == "head.weight").unwrap();
    assert_eq!(head["type"], "q8_0");
    let again = place.run(&["verify", "q.gguf", "--against", "m.pth", "--json"]).ok().json();
    assert_eq!(again[0]["report"]["checks"][0]["error"], said["quality"]["kl"]);
    // A model is no worse than itself, and a stranger is.
    let same = place.run(&["verify", "m.pth", "--against", "m.pth", "--json"]).ok().json();
    assert_eq!(same[0]["report"]["checks"][0]["error"], 0.0);
    place.model("other.pth", &[&SIZES[..], &["--seed", "9"]].concat());
    let stranger = place.run(&["verify", "m.pth", "--against", "other.pth", "--json"]);
    assert_eq!((stranger.code, &stranger.json()[0]["passed"]), (1, &serde_json::json!(false)));
    place.model("small.pth", &["--vocab", "300"]);
    place
        .run(&["verify", "m.pth", "--against", "small.pth"])
        .fails(2, &["256 tokens", "300", "one vocabulary"]);
    // For people: every weight, the totals.
    let text = place.run(&["quantize", "m.pth", "--to", "int8", "--each"]).ok().text();
    for words in ["blocks.1.ffn.value.weight", "8.500 bits a weight", "mean KL", "perplexity", "judged on"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = place.run(&["quantize", "m.pth", "--evidence"]).ok().text();
    for words in ["att.w2", "low-rank", "att.x_k", "vector", "KL in 4 bits"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// More bits never lose more by the sum that is chosen by; a bound of that sum is kept.
#[test]
fn sizes_and_losses_are_kept() {
    let place = Place::new();
    place.model("m.pth", &SIZES);
    let run = |more: &[&str]| {
        let said =
            place.run(&[&["quantize", "m.pth", "--tokens", "128", "--json"][..], more].concat()).ok().json();
        [&said["bits"], &said["predicted_kl"]].map(|v| v.as_f64().unwrap())
    };
    let mut last = f64::MAX;
    for bits in ["4.5", "5", "6", "8.5"] {
        let [got, kl] = run(&["--bits", bits]);
        assert!(got <= bits.parse::<f64>().unwrap() + 0.001 && kl <= last, "{bits}: {got} {kl} {last}");
        last = kl;
    }
    assert_eq!(last, 0.0);
    let [least, most] = [run(&["--bits", "4.5"]), run(&["--kl", "0"])];
    assert_eq!(most, [8.5, 0.0]);
    let half = least[1] / 2.0;
    let [bits, kl] = run(&["--kl", &half.to_string()]);
    assert!(kl <= half && bits > 4.5 && bits < 8.5, "{bits} {kl}");
}

#[test]
fn what_cannot_be_quantised() {
    let place = Place::new();
    some_text(&place);
    place.model("m.pth", &["--dtype", "f32"]);
    place.write("empty.txt", "");
    place.write("short.txt", "twenty bytes of text");
    let fails = |args: &[&str], code, words: &[&str]| {
        place.run(&[&["quantize"][..], args].concat()).fails(code, words);
    };
    fails(&["m.pth", "-o", "m.gguf", "--text", "empty.txt"], 2, &["text is empty", "--text"]);
    fails(&["m.pth", "--text", "short.txt"], 2, &["only 20 tokens"]);
    fails(&["m.pth", "--text", "none.txt"], 1, &["none.txt"]);
    fails(&["m.pth", "-o", "m.pth"], 2, &["exists"]);
    fails(&["m.pth", "-o", "m.safetensors"], 2, &[".gguf"]);
    fails(&["m.pth", "-o", "no/where.gguf"], 1, &["no folder"]);
    fails(&["m.pth", "--bits", "3"], 2, &["--bits 3", "4.500 to 8.500"]);
    fails(&["m.pth", "--bits", "9"], 2, &["--bits 9", "4.500 to 8.500"]);
    fails(&["m.pth", "--to", "int8", "--bits", "5"], 2, &["--to int8"]);
    place.run(&["quantize", "m.pth", "-o", "q.gguf", "--tokens", "128"]).ok();
    fails(&["q.gguf", "-o", "r.gguf"], 1, &["quantised already", "emb.weight"]);
    fails(&["q.gguf", "-o", "q.gguf", "--force"], 2, &["read"]);
    fails(&["m.pth", "-o", "q.gguf"], 2, &["exists", "--force"]);
    place.write("q.text.gguf", "a text of some words, and of some more words, and again of some words");
    fails(&["m.pth", "-o", "q.text.gguf", "--text", "q.text.gguf", "--force"], 2, &["read"]);
    // Rows of 20 numbers, and of 80.
    place.model("odd.pth", &["--version", "4", "--width", "20"]);
    fails(&["odd.pth"], 1, &["odd.pth", "(20 numbers)"]);
    place.model("large.pth", &["--vocab", "100"]);
    fails(&["large.pth"], 1, &["100"]);
    fails(&["large.pth", "--tokenizer", "world"], 1, &["100"]);
    // NaN in a weight.
    let mut ckpt = format::open(&place.path("m.pth")).unwrap();
    let name = "blocks.1.att.key.weight";
    let t = &ckpt.tensors[name];
    let mut values = t.to_f32();
    values[70] = f32::NAN;
    let bad = hawfinch_model::StoredTensor::from_f32(&t.shape, &values);
    ckpt.tensors.insert(name.into(), bad.converted(DType::F32).unwrap());
    let options = format::SaveOptions {
        format: format::SaveFormat::Pth,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&place.path("nan.pth"), &ckpt, options).unwrap();
    fails(&["nan.pth", "-o", "nan.gguf"], 1, &[name, "NaN"]);
    assert!(!place.path("nan.gguf").exists());
}

/// Real trained models: mixed loses no more than int4, and lies between int4 and int8 in size.
#[test]
fn real_models() {
    let Some(dir) = shared("weights/rwkv.cpp-tiny") else { return };
    let place = Place::new();
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                foolishness, it was the epoch of belief, it was the epoch of incredulity. ";
    place.write("bytes.txt", text.repeat(4));
    place.write("two.txt", text.repeat(2).bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>());
    for (name, text) in [("5v2-730K", "bytes.txt"), ("6v0-1m", "two.txt"), ("7v0-834K", "bytes.txt")] {
        let file = dir.join(format!("tiny-rwkv-{name}-FP32.bin"));
        let file = file.to_str().unwrap();
        let run = |more: &[&str]| {
            let args = [&["quantize", file, "--text", text, "--tokens", "256", "--json"][..], more].concat();
            let said = place.run(&args).ok().json();
            [said["quality"]["kl"].as_f64().unwrap(), said["bits"].as_f64().unwrap()]
        };
        let (int4, int8) = (run(&["--to", "int4"]), run(&["--to", "int8"]));
        let mixed = run(&["--bits", &int4[1].max(5.5).to_string()]);
        eprintln!("{name}: int4 {int4:?} mixed {mixed:?} int8 {int8:?}");
        assert!(int8[0] < mixed[0] && mixed[0] <= int4[0], "{name}");
        assert!(int4[1] <= mixed[1] && mixed[1] < int8[1], "{name}");
    }
    // Its decays are exponentiated in this format: a report, but no file.
    let file = dir.join("tiny-rwkv-5v2-730K-FP32.bin");
    place.run(&["quantize", file.to_str().unwrap(), "-o", "q.gguf"]).fails(1, &["exponentiated", "--out"]);
}
