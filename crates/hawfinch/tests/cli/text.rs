//! tokenize, detokenize, embed.

use serde_json::json;

use crate::util::{Place, shared};

#[test]
fn any_bytes_go_there_and_back() {
    let place = Place::new();
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.extend("The Eiffel tower 🦜 東京タワー\r\n\n".as_bytes());
    place.write("all.bin", &bytes);
    let run = place.run(&["tokenize", "all.bin", "--json"]).ok();
    let ids = run.json()["ids"].as_array().unwrap().len();
    assert!(ids > 128 && ids < bytes.len());
    assert_eq!(place.run_with(&["detokenize"], &run.out).ok().out, bytes);
    // From standard input, as plain numbers, with another tokenizer.
    let plain = place.run_with(&["tokenize", "-", "--tokenizer", "bytes"], &bytes).ok();
    assert_eq!(place.run_with(&["detokenize", "--tokenizer", "bytes"], &plain.out).ok().out, bytes);
    assert_eq!(place.run(&["tokenize", "all.bin", "--count"]).ok().text().trim(), ids.to_string());
}

#[test]
fn texts_and_ids_in_arguments() {
    let place = Place::new();
    let run = place.run(&["tokenize", "--text", "The Eiffel tower"]).ok();
    assert_eq!(run.text(), "6699 304 25740 109 39990\n");
    for args in [
        &["detokenize", "6699", "304,25740", "109", "39990"][..],
        &["detokenize", "[6699,304,25740,109,39990]"],
    ] {
        assert_eq!(place.run(args).ok().text(), "The Eiffel tower");
    }
    assert_eq!(place.run(&["tokenize", "--text", ""]).ok().text(), "\n");
    assert_eq!(place.run_with(&["detokenize"], b"").ok().text(), "");
    let pieces = place.run(&["tokenize", "--text", "a\n\u{1b}", "--pieces"]).ok().text();
    assert!(pieces.contains("\\n") && pieces.contains("\\u{1b}") && pieces.contains("3 bytes"), "{pieces}");
}

#[test]
fn the_models_tokenizer_is_chosen_by_its_vocabulary() {
    let place = Place::new();
    place.model("bytes.pth", &[]);
    assert_eq!(place.run(&["tokenize", "--text", "ab", "--model", "bytes.pth"]).ok().text(), "97 98\n");
    place.model("odd.pth", &["--vocab", "300"]);
    place.run(&["tokenize", "--text", "ab", "--model", "odd.pth"]).fails(1, &["300", "--tokenizer"]);
}

#[test]
fn ids_that_are_none() {
    let place = Place::new();
    place.run(&["detokenize", "x"]).fails(2, &["`x`"]);
    place.run_with(&["detokenize"], b"{\"ids\": [1,").fails(1, &["JSON"]);
    place.run_with(&["detokenize"], b"\xff\xfe").fails(1, &["not text"]);
    place.run(&["detokenize", "70000"]).fails(1, &["70000", "World"]);
    place.run(&["tokenize", "nowhere.txt"]).fails(1, &["nowhere.txt"]);
    place.run(&["tokenize", "."]).fails(1, &["cannot read ."]);
    place.write("odd.json", "{\"model\": {}}");
    place.run(&["tokenize", "--text", "a", "--tokenizer", "odd.json"]).fails(1, &["odd.json"]);
}

#[test]
fn whole_files_as_another_encoder_has_them() {
    let Some(vectors) = shared("tokenizer/world_vectors.jsonl") else { return };
    let place = Place::new();
    // One case through the binary; all of them are tested beside the tokenizer.
    let line = std::fs::read_to_string(vectors).unwrap().lines().next().unwrap().to_string();
    let case: serde_json::Value = serde_json::from_str(&line).unwrap();
    let ids: Vec<String> = case["tokens"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let bytes = place
        .run(&[&["detokenize"][..], &ids.iter().map(String::as_str).collect::<Vec<_>>()].concat())
        .ok()
        .out;
    let again = place.run_with(&["tokenize", "-"], &bytes).ok().text();
    assert_eq!(again.split_whitespace().collect::<Vec<_>>(), ids);
}

fn vector(v: &serde_json::Value) -> Vec<f64> {
    v["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_the_batch() {
    let place = Place::new();
    let one = place.run(&["embed", "untrained", "The finch"]).ok().json();
    assert_eq!((&one["index"], &one["tokens"]), (&json!(0), &json!(9)));
    let v = vector(&one);
    assert_eq!(v.len(), 128);
    assert!((v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    // In a batch, behind a text that is longer than a step.
    place.write("texts.txt", format!("{}\nThe finch\r\nx\n", "long ".repeat(60)));
    let batch = place.run(&["embed", "untrained", "--input", "texts.txt"]).ok().json_lines();
    assert_eq!(batch.len(), 3);
    assert_eq!(vector(&batch[1]), v);
    place.write("texts.jsonl", "{\"text\": \"The finch\"}\n");
    assert_eq!(vector(&place.run(&["embed", "untrained", "--input", "texts.jsonl"]).ok().json()), v);
    assert_eq!(vector(&place.run_with(&["embed", "untrained", "-"], b"The finch").ok().json()), v);
    // As a tensor.
    place.run(&["embed", "untrained", "--input", "texts.txt", "-o", "v.safetensors"]).ok();
    let file = hawfinch_model::format::open(&place.path("v.safetensors")).unwrap();
    let t = &file.tensors["embeddings"];
    assert_eq!(t.shape, [3, 128]);
    assert_eq!(t.index(1).to_f32().iter().map(|&x| f64::from(x)).collect::<Vec<_>>().len(), v.len());
    assert!(t.index(1).to_f32().iter().zip(&v).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7));
}

#[test]
fn a_layers_state_as_a_vector() {
    let place = Place::new();
    let v = vector(&place.run(&["embed", "untrained", "ab", "--state-layer", "1"]).ok().json());
    place
        .run(&["logits", "untrained", "--ids", "97,98", "--out", "l.st", "--state-out", "s.safetensors"])
        .ok();
    let file = hawfinch_model::format::open(&place.path("s.safetensors")).unwrap();
    let fields = ["att_x", "wkv", "ffn_x"].map(|f| file.tensors[&format!("state.1.{f}")].to_f32());
    let expected: Vec<f32> = fields.concat();
    assert_eq!(v.iter().map(|&x| x as f32).collect::<Vec<_>>(), expected);
}

#[test]
fn nothing_to_embed() {
    let place = Place::new();
    place.run(&["embed", "untrained", ""]).fails(2, &["empty"]);
    place.write("texts.txt", "a\n\nb\n");
    place.run(&["embed", "untrained", "--input", "texts.txt"]).fails(1, &["line 2"]);
    place.write("texts.jsonl", "{\"txt\": 1}\n");
    place.run(&["embed", "untrained", "--input", "texts.jsonl"]).fails(1, &["line 1", "text"]);
    place.run(&["embed", "untrained", "a", "--state-layer", "3"]).fails(2, &["layer 3"]);
}

#[test]
fn embed_takes_json_as_the_other_commands_do() {
    let place = Place::new();
    let plain = place.run(&["embed", "untrained", "some text"]).ok().out;
    assert_eq!(place.run(&["embed", "untrained", "some text", "--json"]).ok().out, plain);
    place
        .run(&["embed", "untrained", "a", "--json", "-o", "v.safetensors"])
        .fails(2, &["v.safetensors", "--json"]);
}

#[test]
fn perplexity_of_files_and_lines() {
    let place = Place::new();
    place.model("m.pth", &["--vocab", "256", "--layers", "1"]);
    place.write("a.txt", "one text\nof two lines\n");
    place.write("b.jsonl", "{\"text\": \"first\"}\n{\"text\": \"second\"}\n");
    let said = place.run(&["perplexity", "m.pth", "a.txt", "b.jsonl", "--json"]).ok().json();
    let (a, b) = (&said["files"][0], &said["files"][1]);
    // With bytes the first one is not foretold, and a token is a byte.
    assert_eq!((&a["texts"], &a["bytes"], &a["tokens"]), (&json!(1), &json!(21), &json!(21)));
    assert_eq!((&b["texts"], &b["bytes"], &b["tokens"]), (&json!(2), &json!(9), &json!(9)));
    let bits = |v: &serde_json::Value| v["bits_per_byte"].as_f64().unwrap();
    assert!((bits(a) - 8.0).abs() < 2.0, "a model of random weights knows nothing: {a}");
    let all = (21.0 * bits(a) + 9.0 * bits(b)) / 30.0;
    assert!((bits(&said["all"]) - all).abs() < 1e-9);
    let lines = place.run(&["perplexity", "m.pth", "a.txt", "--lines"]).ok().text();
    assert!(lines.contains("bits/byte") && lines.contains(" 2 "), "{lines}");
    place.write("empty.txt", "");
    place.run(&["perplexity", "m.pth", "empty.txt"]).fails(1, &["empty.txt is empty"]);
    place.run(&["perplexity", "m.pth", "none.txt"]).fails(1, &["none.txt"]);
}
