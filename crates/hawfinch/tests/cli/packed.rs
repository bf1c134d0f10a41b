//! Packed files: every command takes them, and what they give is what the model they were made from gives.

use crate::util::Place;

const SIZES: [&str; 6] = ["--layers", "2", "--width", "512", "--dtype", "bf16"];

/// A model of blocks as GGUF and packed.
fn both() -> Place {
    let place = Place::new();
    place.model("m.safetensors", &SIZES);
    place.run(&["convert", "m.safetensors", "m.packed.safetensors", "--dtype", "q8_0"]).ok();
    place.run(&["convert", "m.packed.safetensors", "m.gguf"]).ok();
    place
}

fn logits(place: &Place, file: &str) -> Vec<u8> {
    place.run(&["logits", file, "--ids", "1,2,3", "--out", "logits.safetensors"]).ok();
    place.read("logits.safetensors")
}

#[test]
fn every_command_opens_it() {
    let place = both();
    let files = ["m.gguf", "m.packed.safetensors"];
    let same = |args: &dyn Fn(&'static str) -> Vec<&'static str>| {
        let [gguf, packed] = files.map(|file| place.run(&args(file)).ok().text());
        assert_eq!(gguf, packed);
    };
    same(&|f| vec!["generate", f, "ab", "--max-tokens", "12", "--seed", "7", "--json"]);
    let [gguf, packed] = files.map(|file| logits(&place, file));
    assert_eq!(gguf, packed);
    for option in [&[][..], &["--huge-pages"]] {
        let args = ["generate", files[1], "ab", "--max-tokens", "12", "--seed", "7", "--json"];
        assert_eq!(place.run(&[&args[..], option].concat()).ok().text(), place.run(&args).ok().text());
        let args = ["bench", files[1], "--quick", "--json"];
        let said = place.run(&[&args[..], option].concat()).ok().json();
        assert_eq!(said["packed"]["copied_bytes"].as_u64().unwrap() > 0, !option.is_empty(), "{said}");
        assert!(said["packed"]["checked_seconds"].as_f64().unwrap() > 0.0);
        assert!(said["load_seconds"].as_f64() < said["first_token"]["seconds"].as_f64());
    }
    let said = place.run(&["inspect", files[1], "--tensors", "--json"]).ok().json();
    assert_eq!(said["format"], "packed safetensors");
    let layout = |name: &str| {
        let tensors = said["tensors"].as_array().unwrap();
        let t = tensors.iter().find(|t| t["name"] == name).unwrap();
        (t["dtype"].clone(), t["layout"].clone())
    };
    assert_eq!(layout("blocks.1.att.key.weight"), ("q8_0".into(), "panels".into()));
    assert_eq!(layout("blocks.1.ffn.value.weight"), ("q8_0".into(), "strips".into()));
    assert_eq!(layout("blocks.1.att.w1"), ("bf16".into(), "tiles".into()));
    let text = place.run(&["inspect", files[1], "--tensors"]).ok().text();
    assert!(text.contains("packed safetensors") && text.contains("panels"), "{text}");
    place.run(&["verify", files[1], "--tokens", "4"]).ok();
    place.run(&["verify", files[1], "--against", files[0]]).ok();
    // A state of one is a state of the other: they are one model.
    place.run(&["generate", files[1], "ab", "--max-tokens", "3", "--state-out", "s.safetensors"]).ok();
    place.run(&["generate", files[0], "c", "--max-tokens", "3", "--state", "s.safetensors"]).ok();
}

/// `--quant bf16`, and the file that holds what it makes.
#[test]
fn weights_and_activations_in_bf16() {
    let place = Place::new();
    place.model("m.safetensors", &SIZES);
    place.run(&["convert", "m.safetensors", "b.packed.safetensors", "--to", "packed-bf16"]).ok();
    let args = ["generate", "m.safetensors", "ab", "--max-tokens", "12", "--seed", "7", "--json"];
    let on_load = place.run(&[&args[..], &["--quant", "bf16"]].concat()).ok();
    assert!(!on_load.err.contains("warning"), "{}", on_load.err);
    let packed = [&["generate", "b.packed.safetensors"], &args[2..]].concat();
    assert_eq!(place.run(&packed).ok().json()["text"], on_load.json()["text"]);
    assert_ne!(logits(&place, "b.packed.safetensors"), logits(&place, "m.safetensors"));
    let said = place.run(&["inspect", "b.packed.safetensors", "--tensors", "--json"]).ok().json();
    let t = said["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "head.weight").unwrap();
    assert_eq!((&t["dtype"], &t["layout"]), (&"bf16".into(), &"panels".into()));
    place.run(&["verify", "b.packed.safetensors", "--tokens", "4"]).ok();
    place.run(&["verify", "b.packed.safetensors", "--against", "m.safetensors"]).ok();
    place.run(&["bench", "--shape", "goose-0.1b", "--quant", "bf16", "--quick", "--json"]).ok();
    // Blocks are made of its numbers, as of those of the model it was made from.
    let args = ["--tokens", "64", "--to", "int8", "-o", "q.gguf", "-f"];
    let [of_packed, of_rows] = ["b.packed.safetensors", "m.safetensors"].map(|file| {
        place.run(&[&["quantize", file][..], &args].concat()).ok();
        logits(&place, "q.gguf")
    });
    assert_eq!(of_packed, of_rows);
    // Back to rows without loss.
    place.run(&["convert", "b.packed.safetensors", "back.safetensors"]).ok();
    assert_eq!(logits(&place, "back.safetensors"), logits(&place, "m.safetensors"));
    // A program that does not know this layout yet must say so.
    let text = String::from_utf8_lossy(&place.read("b.packed.safetensors")[8..200_000]).into_owned();
    assert!(text.contains("\"hawfinch.packed\":\"2\""));
    place
        .run(&["convert", "m.safetensors", "x.packed.safetensors", "--to", "packed-bf16", "--dtype", "f32"])
        .fails(2, &["`f32` is no number type that is written into this format", "bf16"]);
    let refused = place.run(&["quantize", "m.safetensors", "--to", "bf16"]);
    assert!(refused.err.contains("[possible values: int8, int4, mixed]"), "{}", refused.err);
}

#[test]
fn quantize_writes_it() {
    let place = Place::new();
    place.model("m.safetensors", &SIZES);
    let text: String = (0..300).map(|n| format!("{n} and {}\n", n * n % 23)).collect();
    place.write("text.txt", text);
    let args = ["quantize", "m.safetensors", "--text", "text.txt", "--tokens", "64", "--to", "int4", "-o"];
    place.run(&[&args[..], &["q.packed.safetensors"]].concat()).ok();
    place.run(&[&args[..], &["q.gguf"]].concat()).ok();
    let [gguf, packed] = ["q.gguf", "q.packed.safetensors"].map(|file| logits(&place, file));
    assert_eq!(gguf, packed);
    place
        .run(&[&args[..], &["q.safetensors"]].concat())
        .fails(2, &["q.safetensors must end in .gguf or .packed"]);
}

#[test]
fn damage_is_one_clear_sentence() {
    let place = both();
    let whole = place.read("m.packed.safetensors");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    place.write("short.packed.safetensors", &whole[..whole.len() - 1]);
    place.run(&["generate", "short.packed.safetensors", "a"]).fails(1, &["is damaged", "truncated"]);
    let mut damaged = whole.clone();
    damaged[header + 100_000] ^= 1;
    place.write("flipped.packed.safetensors", &damaged);
    let said = ["`emb.weight` holds other bytes than were written", "pack the model again"];
    place.run(&["convert", "flipped.packed.safetensors", "o.gguf"]).fails(1, &said);
    let run = place.run(&["verify", "flipped.packed.safetensors", "--tokens", "2"]);
    let text = run.text();
    assert!(text.contains("FAIL") && text.contains(said[0]), "{text}");
    let text = String::from_utf8_lossy(&whole[8..header])
        .replace("\"hawfinch.packed\":\"1\"", "\"hawfinch.packed\":\"9\"");
    let mut newer = (text.len() as u64).to_le_bytes().to_vec();
    newer.extend(text.as_bytes());
    newer.extend(&whole[header..]);
    place.write("newer.packed.safetensors", &newer);
    place
        .run(&["chat", "newer.packed.safetensors"])
        .fails(1, &["packed in layout 9", "pack the model again"]);
    place
        .run(&["convert", "m.safetensors", "x.packed.safetensors", "--dtype", "q5_k"])
        .fails(2, &["q8_0, q4"]);
    place.run(&["synthesize", "y.packed.safetensors"]).fails(2, &["must end in .pth or .safetensors"]);
}
