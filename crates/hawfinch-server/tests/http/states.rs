//! Saved states: kept, gone on from, forked, carried away and back.

use super::client::{SAVED, Server};
use hawfinch_engine::schedule::Limits;
use hawfinch_server::Settings;
use serde_json::{Value, json};
use std::time::Duration;

fn complete(server: &Server, prompt: &str, state: Option<&str>) -> Value {
    let r = json!({"model": "tiny", "prompt": prompt, "state": state, "max_tokens": 16, "seed": 2});
    server.ok("/v1/completions", &r)["choices"][0]["text"].clone()
}

#[test]
fn they_are_what_their_text_is() {
    let server = Server::plain();
    let long = "Once upon a time there was a bird with a large bill. ".repeat(3);
    let saved = server.ok("/v1/states", &json!({"model": "tiny", "prompt": long, "name": "bird"}));
    let id = saved["id"].as_str().unwrap().to_owned();
    assert_eq!((saved["tokens"].as_u64(), &saved["name"]), (Some(long.len() as u64), &json!("bird")));
    let want = complete(&server, &format!("{long}It"), None);
    assert_eq!(complete(&server, "It", Some(&id)), want);
    // A fork goes further; the first stays.
    let fork = server.ok("/v1/states", &json!({"model": "tiny", "from": id, "prompt": "It"}));
    let fork = fork["id"].as_str().unwrap().to_owned();
    assert_eq!(complete(&server, " was", Some(&fork)), complete(&server, &format!("{long}It was"), None));
    let copy = server.ok("/v1/states", &json!({"model": "tiny", "from": id}));
    assert_eq!(complete(&server, "It", copy["id"].as_str()), want);
    assert_eq!(server.get("/v1/states").json()["data"].as_array().unwrap().len(), 3);
    // Out and in, here and after a restart.
    let file = server.get(&format!("/v1/states/{id}/content"));
    assert_eq!(file.status, 200);
    let folder = server.stop(Duration::ZERO);
    let server = Server::in_folder(Settings::default(), Limits::default(), folder);
    assert_eq!(server.get(&format!("/v1/states/{id}")).json(), saved);
    assert_eq!(complete(&server, "It", Some(&id)), want);
    let back = server.send("POST", "/v1/states/import?model=tiny&name=back", &[], &file.body);
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(complete(&server, "It", back.json()["id"].as_str()), want);
    // What a file says of the tokens that led to it is not believed: nobody else's text begins with it.
    let number = |c: char| u32::from(c).to_string();
    let said: String = long.chars().map(number).collect::<Vec<_>>().join(" ");
    let other: String = long.replace('O', "U").chars().map(number).collect::<Vec<_>>().join(" ");
    let at = file.body.windows(said.len()).position(|w| w == said.as_bytes()).unwrap();
    let mut forged = file.body.clone();
    forged[at..at + other.len()].copy_from_slice(other.as_bytes());
    let forged = server.send("POST", "/v1/states/import?model=tiny", &[], &forged);
    assert_eq!(complete(&server, "It", forged.json()["id"].as_str()), want);
    let text = format!("{}It", long.replace('O', "U"));
    let fresh = json!({"model": "tiny", "prompt": text, "max_tokens": 16, "seed": 2, "cache": false});
    assert_eq!(complete(&server, &text, None), server.ok("/v1/completions", &fresh)["choices"][0]["text"]);
    // A state of which nobody knows the tokens: those of other programs.
    let hosted = server.app.models.all()[0].clone();
    let mut state = hosted.model.new_state();
    let tokens: Vec<u32> = long.bytes().map(u32::from).collect();
    let rows = hawfinch_model::Rows::None;
    let call = hawfinch_model::Sequence { tokens: &tokens, state: &mut state, logits: rows, hidden: rows };
    hosted.model.forward(&mut [call]).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("s.safetensors");
    hosted.model.save_state(&state, &path).unwrap();
    let foreign = server.send("POST", "/v1/states/import?model=tiny", &[], &std::fs::read(path).unwrap());
    let foreign = foreign.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(complete(&server, "It", Some(&foreign)), want);
    let further = server.ok("/v1/states", &json!({"model": "tiny", "from": foreign, "prompt": "It"}));
    let text = complete(&server, " was", further["id"].as_str());
    assert_eq!(text, complete(&server, &format!("{long}It was"), None));
    for id in [&id, &foreign] {
        assert_eq!(server.send("DELETE", &format!("/v1/states/{id}"), &[], b"").json()["deleted"], true);
        assert_eq!(server.get(&format!("/v1/states/{id}")).status, 404);
    }
}

#[test]
fn what_is_none_is_said() {
    let server = Server::plain();
    let garbage = server.send("POST", "/v1/states/import?model=tiny", &[], b"no state at all");
    assert_eq!(garbage.status, 400, "{}", garbage.text());
    assert!(!garbage.text().contains("incoming"), "{}", garbage.text());
    for id in ["state-0123456789abcdef", "..%2f..%2fetc%2fpasswd", "state-..%2f..%2f..%2fpasswd", "%00", "x"]
    {
        for path in [format!("/v1/states/{id}"), format!("/v1/states/{id}/content")] {
            assert_eq!(server.get(&path).status, 404, "{path}");
        }
        let r = json!({"model": "tiny", "prompt": "x", "state": id.replace("%2f", "/")});
        assert_eq!(server.post("/v1/completions", &r).status, 404);
    }
    assert_eq!(server.post("/v1/states", &json!({"model": "tiny"})).status, 400);
    let both = json!({"model": "tiny", "prompt": "a", "messages": []});
    assert_eq!(server.post("/v1/states", &both).status, 400);
}

#[test]
fn no_more_are_saved_than_there_is_room_for() {
    let server = Server::plain();
    let save = |n: usize| server.post("/v1/states", &json!({"model": "tiny", "prompt": format!("text {n}")}));
    let answers: Vec<_> = (0..=SAVED).map(save).collect();
    let refused = answers.iter().position(|a| a.status != 200).expect("room for more than there is");
    assert!(refused > SAVED / 2, "only {refused} fit");
    let answer = &answers[refused];
    assert_eq!(answer.status, 507, "{}", answer.text());
    assert!(answer.text().contains("--saved-disk"), "{}", answer.text());
    // An imported one is no exception; what is there is unharmed, and gone on from.
    let id = answers[0].json()["id"].as_str().unwrap().to_owned();
    let file = server.get(&format!("/v1/states/{id}/content"));
    assert_eq!(server.send("POST", "/v1/states/import?model=tiny", &[], &file.body).status, 507);
    assert_eq!(server.get("/v1/states").json()["data"].as_array().unwrap().len(), refused);
    complete(&server, "and on", Some(&id));
    assert_eq!(server.send("DELETE", &format!("/v1/states/{id}"), &[], b"").status, 200);
    assert_eq!(save(SAVED).status, 200);
}

/// A state of the same weights in another precision: it goes on from there, but is not what others' texts lead to.
#[test]
fn a_state_that_was_computed_otherwise_is_nobody_elses() {
    let server = Server::plain();
    let text = "Once upon a time there was a bird with a large bill.";
    let saved = server.ok("/v1/states", &json!({"model": "tiny", "prompt": text}));
    let id = saved["id"].as_str().unwrap().to_owned();
    let known = |server: &Server, state: Option<&str>, prompt: &str| {
        let r = json!({"model": "tiny", "prompt": prompt, "state": state, "max_tokens": 1});
        server.ok("/v1/completions", &r)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let forget = |folder: &std::path::Path| std::fs::remove_dir_all(folder.join("tree")).unwrap();
    let folder = server.stop(Duration::ZERO);
    forget(folder.path());
    let server = Server::in_folder(Settings::default(), Limits::default(), folder);
    assert_eq!(known(&server, Some(&id), "It"), text.len() as u64);
    let folder = server.stop(Duration::ZERO);
    forget(folder.path());
    // Its file as another precision would have written it.
    let path = folder.path().join("saved").join(format!("{id}.safetensors"));
    let mut file = std::fs::read(&path).unwrap();
    let mark = b"+computed:";
    let at = file.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    file[at] = if file[at] == b'0' { b'1' } else { b'0' };
    std::fs::write(&path, file).unwrap();
    let server = Server::in_folder(Settings::default(), Limits::default(), folder);
    complete(&server, "It", Some(&id));
    assert_eq!(known(&server, None, &format!("{text}It")), 0);
}
