//! Conversations that never re-read themselves, and say what fresh ones say.

use super::client::Server;
use hawfinch_engine::schedule::Limits;
use hawfinch_model::{Checkpoint, FileFormat, StoredTensor, format};
use hawfinch_server::Settings;
use serde_json::{Value, json};
use std::time::Duration;

fn say(server: &Server, messages: &Value, cache: bool) -> (String, u64, u64) {
    let r = json!({"model": "tiny", "messages": messages, "max_tokens": 30, "seed": 4, "cache": cache});
    let reply = server.ok("/v1/chat/completions", &r);
    let usage = &reply["usage"];
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (text, cached, usage["prompt_tokens"].as_u64().unwrap())
}

#[test]
fn turns_edits_and_restarts() {
    let server = Server::plain();
    let mut messages = json!([{"role": "system", "content": "Be kind."}]);
    let mut last = 0;
    for turn in 0..4 {
        let asked = format!("Question {turn}, with some words around it so that it is not short.");
        messages.as_array_mut().unwrap().push(json!({"role": "user", "content": asked}));
        let (text, cached, prompt) = say(&server, &messages, true);
        assert_eq!(say(&server, &messages, false).0, text, "turn {turn}");
        if turn > 0 {
            // All of the earlier turns but for what a reply that was cut off left unread.
            assert!(cached >= last, "turn {turn}: {cached} of {prompt}, {last} before");
        }
        last = prompt;
        messages.as_array_mut().unwrap().push(json!({"role": "assistant", "content": text}));
    }
    // Replies are read as they were written, blank lines and all.
    let written = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "one\n\n\ntwo"}]);
    let count = |m: &Value| {
        server.ok("/tokenize", &json!({"messages": m, "add_generation_prompt": false}))["count"].clone()
    };
    assert_eq!(count(&written), "User: x\n\nAssistant: one\n\n\ntwo\n\n".len());
    // Tokens are counted as a chat reads them, whatever the template puts around messages.
    for template in ["world", "g1", "g1-think", "g1-think-a-bit"] {
        let mut r = json!({"model": "tiny", "messages": messages, "template": template, "max_tokens": 1});
        r["messages"].as_array_mut().unwrap().push(json!({"role": "user", "content": "Why?"}));
        let read = server.ok("/v1/chat/completions", &r)["usage"]["prompt_tokens"].clone();
        assert_eq!(server.ok("/tokenize", &r)["count"], read, "{template}");
    }
    // The second question is asked otherwise: everything before it is known.
    let mut edited = json!(messages.as_array().unwrap()[..3]);
    edited.as_array_mut().unwrap().push(json!({"role": "user", "content": "Something else."}));
    let (text, cached, _) = say(&server, &edited, true);
    let known = "System: Be kind.\n\nUser: Question 0, with some words around it so that it is not short.\n\nAssistant:";
    assert!(cached as usize >= known.len(), "{cached}");
    assert_eq!(say(&server, &edited, false).0, text);
    // Nothing is lost when the server is stopped and started.
    let folder = server.stop(Duration::from_secs(5));
    let server = Server::in_folder(Settings::default(), Limits::default(), folder);
    messages.as_array_mut().unwrap().push(json!({"role": "user", "content": "And now?"}));
    let (text, cached, _) = say(&server, &messages, true);
    assert!(cached >= last, "{cached} after a restart");
    assert_eq!(say(&server, &messages, false).0, text);
}

#[test]
fn adapters_and_states_are_models_of_their_own() {
    let server = Server::plain();
    let hosted = server.app.models.all()[0].clone();
    let folder = tempfile::tempdir().unwrap();
    // A LoRA for one layer.
    let width = hosted.model.config().width;
    let mut file = Checkpoint::new("lora", FileFormat::Memory);
    let values = |n: usize, k: f32| (0..n).map(|i| ((i * 7 % 13) as f32 - 6.0) * k).collect::<Vec<_>>();
    let a = StoredTensor::from_f32(&[4, width], &values(4 * width, 0.05));
    let b = StoredTensor::from_f32(&[width, 4], &values(4 * width, 0.05));
    file.insert("blocks.0.att.key.lora_A".to_owned(), a).unwrap();
    file.insert("blocks.0.att.key.lora_B".to_owned(), b).unwrap();
    file.metadata.insert(hawfinch_model::metadata::LORA_ALPHA.to_owned(), "8".to_owned());
    let lora = folder.path().join("lora.safetensors");
    let options = format::SaveOptions {
        format: format::SaveFormat::Safetensors,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&lora, &file, options).unwrap();
    hosted.add_variant("poet", &lora).unwrap();
    // A state.
    let mut state = hosted.model.new_state();
    let call = hawfinch_model::Sequence {
        tokens: &[72, 105, 33],
        state: &mut state,
        logits: hawfinch_model::Rows::None,
        hidden: hawfinch_model::Rows::None,
    };
    hosted.model.forward(&mut [call]).unwrap();
    let file = folder.path().join("state.safetensors");
    hosted.model.save_state(&state, &file).unwrap();
    hosted.add_variant("mood", &file).unwrap();
    let ids: Vec<Value> =
        server.get("/v1/models").json()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["tiny", "tiny+poet", "tiny+mood"]);
    let ask = |model: &str, cache: bool| {
        let r = json!({"model": model, "prompt": "A text to go on with", "max_tokens": 20, "seed": 1, "cache": cache});
        server.ok("/v1/completions", &r)["choices"][0]["text"].clone()
    };
    let fresh: Vec<Value> = ["tiny", "tiny+poet", "tiny+mood"].map(|m| ask(m, false)).into();
    assert!(fresh[0] != fresh[1] && fresh[0] != fresh[2] && fresh[1] != fresh[2]);
    for _ in 0..2 {
        let got: Vec<Value> = ["tiny", "tiny+poet", "tiny+mood"].map(|m| ask(m, true)).into();
        assert_eq!(got, fresh);
    }
    // The tuned state is where the text begins: the plain model reads its tokens first.
    let r = json!({"model": "tiny", "prompt": "Hi!A text to go on with", "max_tokens": 20, "seed": 1});
    assert_eq!(server.ok("/v1/completions", &r)["choices"][0]["text"], fresh[2]);
    // States of the model with the adapter are its own.
    let saved = server.ok("/v1/states", &json!({"model": "tiny+poet", "prompt": "A text to go"}));
    let ask = |model: &str| {
        let r =
            json!({"model": model, "prompt": " on with", "state": saved["id"], "max_tokens": 20, "seed": 1});
        server.post("/v1/completions", &r)
    };
    assert_eq!(ask("tiny+poet").json()["choices"][0]["text"], fresh[1]);
    assert_eq!(ask("tiny").status, 400);
    let file = server.get(&format!("/v1/states/{}/content", saved["id"].as_str().unwrap())).body;
    assert_eq!(server.send("POST", "/v1/states/import?model=tiny%2Bpoet", &[], &file).status, 200);
    assert_eq!(server.send("POST", "/v1/states/import?model=tiny", &[], &file).status, 400);
    assert!(hosted.add_variant("other", &folder.path().join("nothing")).is_err());
    assert!(hosted.add_variant("poet", &lora).unwrap_err().contains("already"));
}

#[test]
fn models_come_and_go() {
    let server = Server::plain();
    let load = json!({"path": "anything", "name": "second"});
    assert_eq!(server.post("/v1/models/load", &load).status, 403);
    let server = Server::with(Settings { allow_load: true, ..Settings::default() }, Limits::default());
    assert_eq!(server.ok("/v1/models/load", &load)["id"], "second");
    assert!(server.post("/v1/models/load", &load).text().contains("already"));
    let chat = |model: &str| {
        let r = json!({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "seed": 1});
        server.post("/v1/chat/completions", &r)
    };
    assert_eq!(chat("second").json()["choices"], chat("tiny").json()["choices"]);
    assert_eq!(server.ok("/v1/models/unload", &json!({"model": "second"}))["unloaded"], true);
    assert_eq!(chat("second").status, 404);
    assert_eq!(chat("tiny").status, 200);
}
