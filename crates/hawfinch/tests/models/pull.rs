//! `hawfinch pull` against a hub on loopback.

use crate::hub_stub::{Reply, Request, Room, Stub, hash, large_file, model, part_of};

/// A known model whose hash is not in the list, so that a stub can serve it.
const FILE: &str = "rwkv7-g1d-0.1b-20260129-ctx8192.pth";
const AT: &str = "/BlinkDL/rwkv7-g1/resolve/main/rwkv7-g1d-0.1b-20260129-ctx8192.pth";

fn room(stub: &Stub) -> Room {
    Room::new().with("HF_ENDPOINT", &stub.address)
}

/// A hub with that one known file.
fn hub(content: Vec<u8>) -> Stub {
    Stub::new(move |r, _| if r.path == AT { large_file(r, &content) } else { Reply::status(404) })
}

#[test]
fn a_known_model_arrives_whole_and_is_found_by_name() {
    let content = model();
    let stub = hub(content.clone());
    let room = room(&stub);
    let run = room.run(&["pull", "RWKV7-0.1B"]).code(0);
    run.says(&["SHA-256 verified", "RWKV-7", "2 layers of width 128"]);
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
    assert_eq!(room.files(), [FILE], "nothing else is left");
    assert_eq!(stub.seen().len(), 2, "one look, one download");
    // A second time nothing is asked; by force it is fetched again.
    room.run(&["pull", "rwkv7-g1d-0.1b"]).code(0).says(&["is here already"]);
    assert_eq!(stub.seen().len(), 2);
    std::fs::write(room.file(FILE), "spoilt").unwrap();
    room.run(&["pull", "rwkv7-g1d-0.1b", "--force"]).code(0);
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
    room.run(&["models"]).code(0).says(&[FILE]);
    room.run(&["pull", "--list"]).code(0).says(&["BlinkDL/rwkv7-g1  (here)"]);
}

#[test]
fn a_pile_model_brings_its_vocabulary() {
    let content = model();
    let stub = Stub::new(move |r, _| match r.path.as_str() {
        "/BlinkDL/rwkv-7-pile/resolve/main/RWKV-x070-Pile-168M-20241120-ctx4096.pth" => {
            large_file(r, &content)
        }
        // A small file: no redirect, an etag that is no SHA-256.
        "/spaces/BlinkDL/Raven-RWKV-7B/resolve/main/20B_tokenizer.json" => {
            Reply::status(200).header("ETag", "\"0123456789abcdef0123456789abcdef01234567\"").body(b"{}")
        }
        _ => Reply::status(404),
    });
    let room = room(&stub);
    room.run(&["pull", "rwkv7-pile-168m"]).code(0).says(&["the hub gives no hash"]);
    assert_eq!(room.files(), ["20B_tokenizer.json", "RWKV-x070-Pile-168M-20241120-ctx4096.pth"]);
}

#[test]
fn connections_that_break_are_taken_up_where_they_ended() {
    let content = model();
    let (len, served) = (content.len(), content.clone());
    let stub = Stub::new(move |r, before| {
        let mut reply = large_file(r, &served);
        if r.method == "GET" && before < 2 {
            reply.cut = Some(served.len() / 3);
        }
        reply
    });
    let room = room(&stub);
    room.run(&["pull", "rwkv7-0.1b"]).code(0);
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
    assert_eq!(stub.starts(), [0, len as u64 / 3, 2 * (len as u64 / 3)]);
}

#[test]
fn a_download_that_failed_goes_on_in_the_next_run() {
    let content = model();
    let (half, served) = (content.len() / 2, content.clone());
    let stub = Stub::new(move |r, before| match (r.method.as_str(), before) {
        ("GET", 0) => Reply { cut: Some(half), ..large_file(r, &served) },
        ("GET", 1..4) => Reply::status(503),
        _ => large_file(r, &served),
    });
    let room = room(&stub);
    room.run(&["pull", "rwkv7-0.1b"]).code(1).says(&["status 503", "are kept", "put it at"]);
    let parts = room.files();
    assert!(parts.len() == 1 && parts[0].starts_with(FILE) && parts[0].ends_with(".part"), "{parts:?}");
    room.run(&["models"]).code(0).says(&["unfinished download", "hawfinch pull"]);
    let before = stub.starts().len();
    room.run(&["pull", "rwkv7-0.1b"]).code(0).says(&["SHA-256 verified"]);
    assert_eq!(stub.starts()[before..], [half as u64], "only the rest was fetched");
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
    assert_eq!(room.files(), [FILE]);
}

#[test]
fn a_hub_that_knows_no_ranges_starts_over() {
    let content = model();
    let served = content.clone();
    let stub = Stub::new(move |r, before| match r.method.as_str() {
        "HEAD" => large_file(r, &served),
        _ => Reply { cut: (before == 0).then_some(1000), ..Reply::status(200).body(&served) },
    });
    let room = room(&stub);
    room.run(&["pull", "rwkv7-0.1b"]).code(0).says(&["SHA-256 verified"]);
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
}

#[test]
fn what_was_left_of_other_content_is_not_mixed_in() {
    let content = model();
    let stub = hub(content.clone());
    let room = room(&stub);
    std::fs::create_dir_all(room.models()).unwrap();
    // Left by hand or by a file of the same name that has changed since.
    std::fs::write(room.file(format!("{FILE}.0123456789abcdef.part")), "other").unwrap();
    // Right version, wrong bytes: only the hash can tell.
    let version = &hash(&content)[..16];
    let ours = room.file(format!("{FILE}.{version}.part"));
    std::fs::write(&ours, "wrong").unwrap();
    room.run(&["pull", "rwkv7-0.1b"]).code(1).says(&["wrong content", "was deleted"]);
    assert!(!ours.exists() && !room.file(FILE).exists());
    room.run(&["pull", "rwkv7-0.1b"]).code(0);
    assert_eq!(std::fs::read(room.file(FILE)).unwrap(), content);
    // Longer than the file can be: thrown away unasked.
    std::fs::write(&ours, vec![0; content.len() + 1]).unwrap();
    room.run(&["pull", "rwkv7-0.1b", "--force"]).code(0);
}

#[test]
fn content_that_does_not_match_its_hash_never_gets_the_name() {
    let content = model();
    let stub = Stub::new(move |r, _| match r.method.as_str() {
        "HEAD" => large_file(r, &content),
        _ => {
            let mut wrong = content.clone();
            *wrong.last_mut().unwrap() ^= 1;
            part_of(r, &wrong)
        }
    });
    let room = room(&stub);
    room.run(&["pull", "rwkv7-0.1b"]).code(1).says(&["wrong content", "expected"]);
    assert!(room.files().is_empty(), "{:?}", room.files());
}

#[test]
fn a_known_model_with_another_hash_is_not_even_fetched() {
    let content = model();
    let stub = Stub::new(move |r, _| large_file(r, &content));
    let room = room(&stub);
    let run = room.run(&["pull", "rwkv7-world-0.1b"]).code(1);
    run.says(&["another", "than the one hawfinch knows", "BlinkDL/rwkv-7-world:RWKV-x070-World-0.1B"]);
    assert!(stub.starts().is_empty());
}

#[test]
fn more_bytes_than_announced_are_refused() {
    let stub = Stub::new(|r, _| match r.method.as_str() {
        "HEAD" => large_file(r, b"0123456789"),
        _ => Reply::status(200).body(&[7; 5000]),
    });
    let room = room(&stub);
    room.run(&["pull", "o/r:x.pth"]).code(1).says(&["sent more of x.pth than it has"]);
    assert!(!room.file("o--r/x.pth").exists());
}

#[test]
fn every_refusal_says_why_and_what_to_do_by_hand() {
    for (status, why) in [
        (404, "has no x.pth of o/r"),
        (401, "set HF_TOKEN"),
        (403, "asks for a login"),
        (429, "slow down"),
        (500, "failed to give x.pth of o/r (status 500"),
    ] {
        let stub = Stub::new(move |_, _| Reply::status(status));
        let room = room(&stub);
        let at = room.file("o--r/x.pth");
        let address = format!("{}/o/r/resolve/main/x.pth", stub.address);
        let run = room.run(&["pull", "o/r:x.pth"]).code(1);
        run.says(&[why, &address, &format!("put it at {}", at.display())]);
        assert!(room.files().is_empty());
    }
    // The file is there when looked up and gone when fetched.
    let stub = Stub::new(|r, _| if r.method == "HEAD" { large_file(r, b"abc") } else { Reply::status(404) });
    room(&stub).run(&["pull", "o/r:x.pth"]).code(1).says(&["has no x.pth of o/r"]);
    assert_eq!(stub.starts().len(), 1, "what is gone is not asked for again");
}

#[test]
fn without_a_network_it_says_so_and_where_to_put_the_file() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let room = Room::new().with("HF_ENDPOINT", &endpoint);
    let run = room.run(&["pull", "rwkv4-raven-1.5b"]).code(1);
    let at = room.file("RWKV-4-Raven-1B5-v12-Eng98%-Other2%-20230520-ctx4096.pth");
    let address =
        format!("{endpoint}/BlinkDL/rwkv-4-raven/resolve/main/RWKV-4-Raven-1B5-v12-Eng98%25-Other2%25-");
    let run = run.says(&["cannot be reached", &address, &format!("put it at {}", at.display())]);
    assert_eq!(run.err.lines().count(), 1, "one sentence: {}", run.err);
    room.run(&["pull", "o/r"]).code(1).says(&["cannot be reached", &room.file("o--r").display().to_string()]);
    Room::new().with("HF_ENDPOINT", "nonsense").run(&["pull", "o/r"]).code(1).says(&["HF_ENDPOINT"]);
}

#[test]
fn bad_answers_end_in_a_sentence() {
    type Answer = fn(&Request) -> Reply;
    let cases: [(Answer, &str); 5] = [
        (|_| Reply::status(302).header("Location", "/again"), "circles"),
        (|_| Reply::status(302).header("Location", "file:///etc/passwd"), "no address"),
        (|_| Reply::status(302), "status 302"),
        (
            |r| {
                Reply::status(206)
                    .header("Content-Range", "nonsense")
                    .header("X-Linked-Size", "x")
                    .body(&[b'z'; 10][..r.path.len().min(10)])
            },
            "another part",
        ),
        (
            |r| match r.method.as_str() {
                "HEAD" => large_file(r, b"0123456789"),
                _ => Reply::status(206).header("Content-Range", "bytes 3-9/10").body(b"3456789"),
            },
            "another part of x.pth than asked for",
        ),
    ];
    for (answer, why) in cases {
        let stub = Stub::new(move |r, _| answer(r));
        let room = room(&stub);
        room.run(&["pull", "o/r:x.pth"]).code(1).says(&[why]);
        assert!(!room.file("o--r/x.pth").exists());
    }
}

#[test]
fn ways_out_of_the_models_folder_are_refused() {
    let stub = Stub::new(|r, _| large_file(r, b"x"));
    let room = room(&stub);
    for name in
        ["o/r:../../x.pth", "o/r:/etc/x.pth", "../r", "o/..", "o/r:a\\..\\b", "o/r:.bashrc", "nothing"]
    {
        room.run(&["pull", name]).code(2);
    }
    // Nothing is fetched when one of several names is wrong.
    room.run(&["pull", "o/r:good.pth", "o/r:../bad.pth"]).code(2);
    room.run(&["pull"]).code(2);
    room.run(&["pull", "--list", "o/r"]).code(2);
    room.run(&["pull", "--json", "o/r"]).code(2);
    assert!(stub.seen().is_empty() && room.files().is_empty());
}

fn listing(files: &[&str]) -> Reply {
    let files: Vec<_> = files.iter().map(|f| serde_json::json!({ "rfilename": f })).collect();
    Reply::status(200).body(serde_json::json!({ "id": "o/r", "siblings": files }).to_string().as_bytes())
}

#[test]
fn a_repository_with_one_model() {
    let content = model();
    let stub = Stub::new(move |r, _| match r.path.as_str() {
        "/api/models/o/r" => listing(&["README.md", ".gitattributes", "../../evil.pth", "sub/my model.st"]),
        "/o/r/resolve/main/sub/my%20model.st" => large_file(r, &content),
        _ => Reply::status(404),
    });
    let room = room(&stub);
    room.run(&["pull", "o/r"]).code(0).says(&["RWKV-7"]);
    assert_eq!(room.files(), ["o--r/sub/my model.st"]);
}

#[test]
fn a_repository_that_is_no_single_model() {
    for (answer, why) in [
        (listing(&["a.pth", "b.pth"]), "hawfinch pull o/r:a.pth"),
        (listing(&["README.md"]), "holds no model"),
        (Reply::status(200).body(b"<html>"), "not a list of files"),
        (Reply::status(200).body(b"{\"siblings\": 5}"), "not a list of files"),
        (Reply { cut: Some(5), ..listing(&["a.pth"]) }, "broke off"),
        (Reply::status(401), "HF_TOKEN"),
        (Reply::status(404), "has no o/r"),
    ] {
        let stub = Stub::new(move |_, _| answer.clone());
        room(&stub).run(&["pull", "o/r"]).code(1).says(&[why]);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let content = model();
    let served = content.clone();
    let storage = Stub::new(move |r, _| part_of(r, &served));
    let at = storage.address.clone();
    let stub = Stub::new(move |r, _| match r.method.as_str() {
        _ if r.headers.get("authorization").map(String::as_str) != Some("Bearer secret") => {
            Reply::status(401)
        }
        "HEAD" => large_file(r, &content),
        _ => Reply::status(302).header("Location", format!("{at}/signed")),
    });
    // `localhost` and `127.0.0.1` are two hosts to a program, one machine here.
    let room = room(&stub)
        .with("HF_ENDPOINT", stub.address.replace("127.0.0.1", "localhost"))
        .with("HF_TOKEN", "secret\n");
    room.run(&["pull", "o/r:x.pth"]).code(0);
    let asked = storage.seen();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"), "{asked:?}");
    let refused = Stub::new(|_, _| Reply::status(403));
    let room = Room::new().with("HF_ENDPOINT", &refused.address).with("HF_TOKEN", "secret");
    let run = room.run(&["pull", "o/r:x.pth"]).code(1).says(&["does not let this HF_TOKEN"]);
    assert!(!run.err.contains("secret"), "{}", run.err);
}

#[test]
fn a_renamed_repository_is_followed() {
    let content = model();
    let stub = Stub::new(move |r, _| match r.path.strip_prefix("/old/r/") {
        Some(rest) => Reply::status(307).header("Location", format!("/new/r/{rest}")),
        None => large_file(r, &content),
    });
    let room = room(&stub);
    room.run(&["pull", "old/r:x.st"]).code(0).says(&["SHA-256 verified"]);
    assert_eq!(room.files(), ["old--r/x.st"]);
}

#[test]
fn the_list_is_there_without_a_network() {
    let room = Room::new();
    let run =
        room.run(&["pull", "--list"]).code(0).says(&["rwkv7-g1d-0.1b", "rwkv7-0.1b", "Pile", "5.90 GB"]);
    assert!(run.out.lines().count() > 40);
    let json: serde_json::Value =
        serde_json::from_str(&room.run(&["pull", "--list", "--json"]).code(0).out).unwrap();
    let first = &json[0];
    assert_eq!((first["names"][1].as_str(), first["version"].as_str()), (Some("rwkv7-0.1b"), Some("7")));
    assert_eq!(first["here"], false);
}

#[test]
fn a_file_that_is_no_model_is_fetched_and_said_to_be_none() {
    let stub = Stub::new(|r, _| large_file(r, b"just text"));
    room(&stub).run(&["pull", "o/r:x.pth"]).code(0).says(&["hawfinch cannot run this file"]);
}
