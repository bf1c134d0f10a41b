//! `train --method`, `merge`, `adapters`: what is trained beside a model, and what becomes of it.

use hawfinch_model::{Checkpoint, Lora, StoredTensor, format};
use serde_json::json;

use crate::util::{Place, Run};

fn place() -> Place {
    let place = Place::new();
    let line =
        |n: usize| format!("{{\"text\": \"the {n}th line of a text that repeats itself {n} times\"}}\n");
    place.write("text.jsonl", (0..40).map(line).collect::<String>());
    let shape = ["--version", "7", "--layers", "2", "--width", "64", "--vocab", "256"];
    place.run(&[&["synthesize", "m.safetensors", "--seed", "5", "--dtype", "f32"][..], &shape].concat()).ok();
    place
        .run(&[&["synthesize", "other.safetensors", "--seed", "6", "--dtype", "f32"][..], &shape].concat())
        .ok();
    place
}

fn train(place: &Place, from: &str, method: &str, more: &[&str]) -> Run {
    let fixed = [
        "train",
        "--from",
        from,
        "--method",
        method,
        "--text",
        "text.jsonl",
        "--tokenizer",
        "bytes",
        "--held-out",
        "0.2",
        "--ctx",
        "32",
        "--batch",
        "2",
        "--steps",
        "10",
        "--warmup-steps",
        "2",
        "--save-every",
        "5",
    ];
    place.run(&[&fixed[..], more].concat())
}

const PROMPT: [&str; 6] = ["the 7th line", "-n", "12", "--temperature", "0", "--json"];

fn text(place: &Place, model: &str, more: &[&str]) -> String {
    let said = place.run(&[&["generate", model][..], &PROMPT, more].concat()).ok().json();
    said["tokens"].to_string()
}

#[test]
fn a_lora_is_trained_applied_listed_and_merged() {
    let place = place();
    let run = train(
        &place,
        "m.safetensors",
        "lora",
        &["--lr", "2e-2", "-o", "a", "--lora-rank", "4", "--sample-every", "10"],
    )
    .ok();
    for said in
        ["a LoRA of 0.01 M parameters beside 0.1", "step 0: validation loss", "step 10: the best so far"]
    {
        let said = said.split(": ").last().unwrap();
        assert!(run.err.contains(said), "`{said}` in: {}", run.err);
    }
    let adapter = "a/step-00000010/adapter.safetensors";
    let lora = ["--lora", adapter];
    let beside = text(&place, "m.safetensors", &lora);
    assert_ne!(beside, text(&place, "m.safetensors", &[]));
    // The same command goes on, and has nothing left to do.
    train(&place, "m.safetensors", "lora", &["--lr", "2e-2", "-o", "a", "--lora-rank", "4"]).ok();
    train(&place, "m.safetensors", "full", &["-o", "a"]).fails(2, &["is of method lora, not full"]);

    // Another base is refused, whatever is done with the adapter.
    let words = ["trained beside another model", "other.safetensors"];
    place.run(&[&["generate", "other.safetensors"][..], &PROMPT, &lora].concat()).fails(1, &words);
    place.run(&["merge", "other.safetensors", "--lora", adapter, "-o", "x.pth"]).fails(1, &words);
    place.run(&["adapters", "inspect", adapter, "--model", "other.safetensors"]).fails(1, &words);
    assert!(!place.path("x.pth").exists());
    let shown = place.run(&["adapters", "inspect", adapter, "--model", "m.safetensors"]).ok();
    assert!(shown.err.contains("it fits m.safetensors"), "{}", shown.err);
    let list = place.run(&["adapters", "list", "a", "--json"]).ok().json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(
        (&list[0]["kind"], &list[0]["rank"], &list[0]["alpha"]),
        (&json!("lora"), &json!("4"), &json!("4"))
    );
    assert!(place.run(&["adapters", "list", "a"]).ok().text().contains("sha256:"));

    // As .pth, with what the file says of itself, and merged: one model that says the same.
    place.run(&["convert", adapter, "a.pth"]).ok();
    assert_eq!(text(&place, "m.safetensors", &["--lora", "a.pth"]), beside);
    place
        .run(&["generate", "other.safetensors", "a", "--lora", "a.pth"])
        .fails(1, &["trained beside another model"]);
    let merge = ["merge", "m.safetensors", "--lora", "a.pth", "-o", "merged.pth", "--json"];
    let said = place.run(&merge).ok().json();
    assert!(
        said["quality"]["kl"].as_f64().unwrap() < 1e-9 && said["effect"]["kl"].as_f64().unwrap() > 1e-3,
        "{said}"
    );
    assert_eq!(text(&place, "merged.pth", &[]), beside);
    // In bf16, which is rounding; what exists is not replaced.
    place.run(&["merge", "m.safetensors", "--lora", adapter, "-o", "merged.pth"]).fails(2, &["merged.pth"]);
    place.run(&["merge", "m.safetensors", "--lora", adapter, "-o", "b.safetensors", "--dtype", "bf16"]).ok();
    assert!(
        place
            .run(&["inspect", "b.safetensors"])
            .ok()
            .text()
            .contains("hawfinch.merged = lora adapter.safetensors")
    );
    place.run(&["merge", "m.safetensors", "-o", "n.pth"]).fails(2, &["there is nothing to merge"]);
    // A merge that went wrong is not written: here the file is one thing, what is merged another.
    let mut c = format::open(&place.path(adapter)).unwrap();
    let name = "blocks.0.att.key.lora_B";
    let zero = vec![0.0; c.tensors[name].len()];
    let tensors: Vec<String> = c.tensors.keys().filter(|k| k.ends_with("lora_B")).cloned().collect();
    for name in tensors {
        let t = &c.tensors[&name];
        let zeros = StoredTensor::from_f32(&t.shape.clone(), &vec![0.0; t.len()]);
        c.tensors.insert(name, zeros);
    }
    assert!(!zero.is_empty());
    save(&place, "nothing.safetensors", &c);
    let run = place.run(&["merge", "m.safetensors", "--lora", "nothing.safetensors", "-o", "same.pth"]).ok();
    assert!(run.err.contains("changes nothing that the model says"), "{}", run.err);
}

fn save(place: &Place, name: &str, c: &Checkpoint) {
    let options = format::SaveOptions {
        format: format::SaveFormat::Safetensors,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&place.path(name), c, options).unwrap();
}

#[test]
fn a_state_is_trained_and_begins_every_text() {
    let place = place();
    let run = train(&place, "m.safetensors", "state", &["--lr", "0.1", "-o", "s", "--segment", "20"]).ok();
    assert!(run.err.contains("a first state of 0.01 M parameters beside 0.1"), "{}", run.err);
    let state = "s/step-00000010/state.safetensors";
    let tuned = text(&place, "m.safetensors", &["--state", state]);
    assert_ne!(tuned, text(&place, "m.safetensors", &[]));
    let words = ["belongs to another model"];
    place
        .run(&[&["generate", "other.safetensors"][..], &PROMPT, &["--state", state]].concat())
        .fails(1, &words);
    place.run(&["merge", "m.safetensors", "--state", state, "-o", "merged.safetensors"]).ok();
    assert_eq!(text(&place, "merged.safetensors", &[]), tuned);
    let list = place.run(&["adapters", "list", "s", "--json"]).ok().json();
    assert_eq!(list[0]["kind"], json!("state"));
    place.run(&["adapters", "inspect", "m.safetensors"]).fails(1, &["holds neither a LoRA"]);
}

/// The base quantised: trained beside it, used beside it and beside the original, merged into both.
#[test]
fn a_lora_beside_a_quantised_base() {
    let place = place();
    place.run(&["quantize", "m.safetensors", "--to", "int8", "-o", "q.gguf"]).ok();
    train(&place, "q.gguf", "lora", &["--lr", "2e-2", "-o", "a", "--train-parts", "ln"]).ok();
    let adapter = "a/step-00000010/adapter.safetensors";
    let lora = Lora::open(&place.path(adapter), None).unwrap();
    assert!(lora.replacements.keys().all(|k| k.contains("ln")) && !lora.replacements.is_empty());
    text(&place, "q.gguf", &["--lora", adapter]);
    text(&place, "m.safetensors", &["--lora", adapter]);
    let into = |base: &str, out: &str| {
        place.run(&["merge", base, "--lora", adapter, "-o", out, "--json"]).ok().json()["quality"]["kl"]
            .as_f64()
            .unwrap()
    };
    assert!(into("m.safetensors", "full.pth") < 1e-9);
    let again = into("q.gguf", "again.gguf");
    assert!(again > 0.0 && again < 1e-2, "{again}");
    text(&place, "again.gguf", &[]);
    // All of a quantised model can be trained, from the numbers that its blocks hold.
    let run = train(&place, "q.gguf", "full", &["-o", "f"]).ok();
    assert!(run.err.contains("is quantised (q8_0): its numbers are trained as floats"), "{}", run.err);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_computed() {
    let place = place();
    let bad = |more: &[&str], code, words: &[&str]| {
        train(&place, "m.safetensors", "lora", more).fails(code, words);
    };
    bad(&["--lora-modules", "att.kye"], 1, &["`lora-modules` names `att.kye`", "it has att.key"]);
    bad(&["--train-parts", "embedding"], 1, &["there are ln, time, emb, head"]);
    bad(&["--lora-rank", "0"], 2, &["`lora-rank` is 0"]);
    train(&place, "m.safetensors", "qlora", &[]).fails(2, &["`method` is \"qlora\"", "full"]);
    let alone = ["train", "--method", "state", "--text", "text.jsonl", "--steps", "1"];
    place.run(&alone).fails(2, &["say beside which with `from`"]);
}
