//! Files and ids that are wrong: each one sentence, the right exit code, never a panic.

use crate::util::{Place, shared};

/// Every command that opens a model, with the place of the model as `MODEL`.
const OPENERS: [&[&str]; 8] = [
    &["inspect", "MODEL"],
    &["generate", "MODEL", "a", "-n", "1"],
    &["chat", "MODEL"],
    &["convert", "MODEL", "out.safetensors"],
    &["logits", "MODEL", "--ids", "1", "--out", "out.st"],
    &["embed", "MODEL", "a"],
    &["tokenize", "--text", "a", "--model", "MODEL"],
    &["bench", "MODEL", "--quick"],
];

fn with_model<'a>(args: &[&'a str], model: &'a str) -> Vec<&'a str> {
    args.iter().map(|a| if *a == "MODEL" { model } else { a }).collect()
}

#[test]
fn every_command_refuses_what_is_no_model() {
    let place = Place::new();
    place.write("text.pth", "This is a text, not a model.\n");
    place.write("empty.pth", "");
    place.write("short.safetensors", [255, 255, 255, 255, 255, 255, 255, 127, b'{']);
    place.write("short.gguf", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    std::fs::create_dir(place.path("folder")).unwrap();
    for model in ["nowhere.pth", "text.pth", "empty.pth", "short.safetensors", "short.gguf", "folder"] {
        for args in OPENERS {
            place.run(&with_model(args, model)).fails(1, &[model]);
        }
    }
    assert!(!place.path("out.safetensors").exists() && !place.path("out.st").exists());
}

#[test]
fn truncated_models() {
    let place = Place::new();
    for name in ["m.pth", "m.safetensors"] {
        place.model(name, &[]);
    }
    place.run(&["convert", "m.pth", "m.gguf"]).ok();
    for name in ["m.pth", "m.safetensors", "m.gguf"] {
        let whole = place.read(name);
        for cut in [1, 7, 64, 1000, whole.len() / 2, whole.len() - 1] {
            let cut_name = format!("cut-{name}");
            place.write(&cut_name, &whole[..cut]);
            place.run(&["generate", &cut_name, "a", "-n", "1"]).fails(1, &[&cut_name]);
        }
    }
}

#[test]
fn ids_out_of_range() {
    let place = Place::new();
    place.run(&["logits", "demo", "--ids", "1,256", "--out", "l.st"]).fails(1, &["256", "0 to 255"]);
    assert!(!place.path("l.st").exists());
    place.run(&["logits", "demo", "--ids", "1,-2", "--out", "l.st"]).fails(2, &["`-2`"]);
    place.run(&["logits", "demo", "--ids", "4294967296", "--out", "l.st"]).fails(2, &["4294967296"]);
    place.run(&["logits", "demo", "--ids", "", "--out", "l.st"]).fails(2, &["no ids"]);
    place.run(&["logits", "demo", "--ids", "1,2", "--split", "3", "--out", "l.st"]).fails(2, &["2 ids"]);
    place.run(&["logits", "demo", "--ids-file", "nowhere", "--out", "l.st"]).fails(1, &["nowhere"]);
    place.run(&["logits", "demo", "--ids", "1", "--out", "no/l.st"]).fails(1, &["no/l.st"]);
    // A tokenizer with more ids than the model has rows.
    place.run(&["generate", "demo", "a", "--tokenizer", "world"]).fails(1, &["256"]);
}

#[test]
fn states_of_other_models() {
    let place = Place::new();
    place.model("6.pth", &["--version", "6"]);
    place.model("7.pth", &[]);
    place.model("7b.pth", &["--seed", "2"]);
    let logits = |model: &str, more: &[&str]| {
        place.run(&[&["logits", model, "--ids", "1", "--out", "l.st"][..], more].concat())
    };
    logits("7.pth", &["--state-out", "7.state"]).ok();
    logits("7.pth", &["--state", "7.state"]).ok();
    logits("6.pth", &["--state", "7.state"]).fails(1, &["RWKV-7", "RWKV-6"]);
    logits("7b.pth", &["--state", "7.state"]).fails(1, &["another model"]);
    logits("demo", &["--state", "7.state"]).fails(1, &["another model"]);
    logits("7.pth", &["--state", "nowhere"]).fails(1, &["nowhere"]);
    std::fs::copy(place.path("l.st"), place.path("logits.st")).unwrap();
    logits("7.pth", &["--state", "logits.st"]).fails(1, &["logits.st"]);
    logits("7.pth", &["--state", "6.pth"]).fails(1, &["6.pth"]);
    // A state or a LoRA is no model, and the sentence says what it is.
    place.run(&["generate", "7.state", "a"]).fails(1, &["7.state"]);
}

#[test]
fn loras_that_do_not_fit() {
    let place = Place::new();
    place.run(&["generate", "demo", "a", "--lora", "nowhere.pth"]).fails(1, &["nowhere.pth"]);
    place.model("m.pth", &[]);
    place.run(&["generate", "demo", "a", "--lora", "m.pth"]).fails(1, &["m.pth", "lora_A"]);
    place.run(&["generate", "demo", "a", "--lora", "m.pth:alpha=x"]).fails(1, &["alpha"]);
    let Some(folder) = shared("parity/A/v7") else { return };
    let lora = folder.join("lora.pth");
    place.run(&["generate", "demo", "a", "--lora", &format!("{}:alpha=12", lora.display())]).ok();
    place.model("small.pth", &[]);
    place
        .run(&["generate", "small.pth", "a", "--lora", &format!("{}:alpha=12", lora.display())])
        .fails(1, &["another model"]);
}

#[test]
fn weights_that_are_not_finite() {
    let place = Place::new();
    place.model("m.safetensors", &["--dtype", "f32"]);
    let mut bytes = place.read("m.safetensors");
    // The last numbers of the file belong to the head.
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("nan.safetensors", &bytes);
    place.run(&["generate", "nan.safetensors", "a", "-n", "2"]).fails(1, &["not finite"]);
    let verified = place.run(&["verify", "nan.safetensors"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(verified.text().contains("`head.weight` holds NaN"), "{verified:?}");
}

/// What was computed must not be lost for want of a place: it is asked for first.
#[test]
fn places_that_cannot_be_written() {
    let place = Place::new();
    for out in ["no/where", "."] {
        for args in [
            &["generate", "demo", "a", "-n", "1", "--state-out", out][..],
            &["logits", "demo", "--ids", "1", "--out", out],
            &["logits", "demo", "--ids", "1", "--out", "l.st", "--state-out", out],
            &["embed", "demo", "a", "-o", out],
            &["convert", "demo", out, "--to", "pth"],
        ] {
            let run = place.run(args);
            assert!(run.out.is_empty(), "{args:?}: {}", run.text());
            let (code, words) = if out == "." { (2, "is a folder") } else { (1, "there is no folder no") };
            run.fails(code, &[words]);
        }
    }
    assert!(!place.path("l.st").exists());
}
