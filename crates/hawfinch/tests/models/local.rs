//! `models`, `doctor`, `completions` and `man`, run as a user runs them.

use crate::hub_stub::{Room, model};

fn with_models() -> Room {
    let room = Room::new();
    std::fs::create_dir_all(room.file("o--r")).unwrap();
    std::fs::write(room.file("good.st"), model()).unwrap();
    std::fs::write(room.file("broken.pth"), "not a model").unwrap();
    std::fs::write(room.file("o--r/other.st"), model()).unwrap();
    std::fs::write(room.file("notes.txt"), "x").unwrap();
    room
}

#[test]
fn what_is_there_is_listed_and_what_is_broken_says_why() {
    let room = with_models();
    let run = room.run(&["models"]).code(0).says(&["good.st", "o/r:other.st", "broken.pth"]);
    let line = |name: &str| run.out.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert!(line("broken.pth").contains("not a model file"), "{}", run.out);
    assert!(line("good.st").contains(" 7 "), "{}", run.out);
    assert!(!run.out.contains("notes.txt"));
    let json: serde_json::Value = serde_json::from_str(&room.run(&["models", "--json"]).code(0).out).unwrap();
    let rows = json["models"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    let good = rows.iter().find(|r| r["name"] == "good.st").unwrap();
    assert_eq!((good["version"].as_str(), good["error"].as_str()), (Some("7"), None));
    assert!(good["parameters"].as_u64().unwrap() > 100_000);
    assert!(rows.iter().any(|r| r["error"].is_string()));
}

#[test]
fn an_empty_folder_says_how_to_fill_it() {
    let room = Room::new();
    room.run(&["models"]).code(0).says(&["no models in", "hawfinch pull"]);
    let path = room.run(&["models", "path"]).code(0).out;
    assert_eq!(path.trim_end(), room.models().display().to_string());
}

#[test]
fn removing_asks_and_stays_in_the_folder() {
    let room = with_models();
    room.run(&["models", "remove", "good"]).code(2).says(&["add --yes"]);
    assert!(room.file("good.st").exists());
    room.run(&["models", "remove", "good", "none", "--yes"]).code(1).says(&["no model `none`"]);
    assert!(room.file("good.st").exists(), "nothing is removed when one name is wrong");
    for name in ["../models/good.st", "notes.txt", "..", "o--r"] {
        room.run(&["models", "remove", name, "--yes"]).code(1);
    }
    room.run(&["models", "rm", "good", "o/r:other.st", "-y"]).code(0).says(&["deleted"]);
    assert_eq!(room.files(), ["broken.pth", "notes.txt"]);
    assert!(!room.file("o--r").exists());
}

#[test]
fn other_programs_models_are_listed_when_asked_for() {
    let room = Room::new();
    let at = room.models().with_file_name("hub/models--a--b/snapshots/1");
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(at.join("m.st"), model()).unwrap();
    std::fs::write(at.join("bert.bin"), "another kind").unwrap();
    let cache = room.models().with_file_name("hub").display().to_string();
    let room = room.with("HF_HUB_CACHE", cache);
    let run = room.run(&["models", "--cache"]).code(0).says(&["a/b:m.st"]);
    assert!(!run.out.contains("bert"));
    assert!(!room.run(&["models"]).code(0).out.contains("a/b:m.st"));
}

#[test]
fn the_doctor_tells_measured_from_estimated() {
    let room = Room::new().with("HAWFINCH_THREADS", 2);
    let run = room.run(&["doctor"]).code(0);
    run.says(&[
        "processor",
        "HAWFINCH_ISA changes it",
        "2 that hawfinch would use",
        "Measured now",
        "GB/s",
        "Estimates, not measurements",
        "not asked",
    ]);
    let json: serde_json::Value = serde_json::from_str(&room.run(&["doctor", "--json"]).code(0).out).unwrap();
    let measured = &json["measured"];
    let one = measured["read_one_thread_bytes_per_second"].as_f64().unwrap();
    let all = measured["read_all_threads_bytes_per_second"].as_f64().unwrap();
    assert!(one > 1e7 && all >= one);
    assert!(measured["multiply_adds_per_second"].as_f64().unwrap() > 1e6);
    assert!(measured["read_streams"].as_u64().unwrap() >= 1 && json["isa"].is_string());
    let rows = json["estimated"].as_array().unwrap();
    assert_eq!(rows.len(), 15);
    let mut narrower = f64::INFINITY;
    for r in rows {
        let (limit, speed) =
            (r["limit_tokens_per_second"].as_f64().unwrap(), r["tokens_per_second"].as_f64().unwrap());
        assert!(speed > 0.0 && speed <= limit, "{r}");
        let need = r["need_bytes"].as_f64().unwrap();
        assert!(r["weights"] == "bf16" || need < narrower, "fewer bits need less: {r}");
        narrower = need;
        if let Some(available) = json["memory"]["available_bytes"].as_f64() {
            assert_eq!(r["fits"], need <= available);
        }
    }
}

#[test]
fn the_quick_doctor_measures_nothing_and_the_network_is_asked_only_on_request() {
    let room = Room::new();
    let run = room.run(&["doctor", "--quick"]).code(0);
    assert!(!run.out.contains("Measured") && run.out.contains("2.9B"), "{}", run.out);
    Room::new().with("HAWFINCH_ISA", "sse9").run(&["doctor", "--quick"]).code(2).says(&["HAWFINCH_ISA"]);
    Room::new().with("HAWFINCH_THREADS", 0).run(&["doctor", "--quick"]).code(2).says(&["HAWFINCH_THREADS"]);
    #[cfg(feature = "hub")]
    {
        let stub = crate::hub_stub::Stub::new(|_, _| crate::hub_stub::Reply::status(200));
        let room = Room::new().with("HF_ENDPOINT", &stub.address);
        room.run(&["doctor", "--quick"]).code(0);
        assert!(stub.seen().is_empty());
        room.run(&["doctor", "--quick", "--network"]).code(0).says(&["answers"]);
        let silent = Room::new().run(&["doctor", "--quick", "--network", "--json"]).code(0);
        let json: serde_json::Value = serde_json::from_str(&silent.out).unwrap();
        assert_eq!(json["network"]["answers"], false);
    }
}

#[test]
fn shells_get_their_scripts() {
    let room = Room::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = room.run(&["completions", shell]).code(0);
        assert!(
            run.out.contains("hawfinch") && run.out.contains("pull") && run.out.contains("doctor"),
            "{shell}"
        );
    }
    room.run(&["completions", "csh"]).code(2);
}

#[test]
fn manual_pages_for_every_command() {
    let room = Room::new();
    let page = room.run(&["man"]).code(0).out;
    assert!(page.starts_with(".ie") || page.contains(".TH hawfinch 1"), "{page}");
    let dir = room.file("man1");
    room.run(&["man", "--dir", dir.to_str().unwrap()]).code(0);
    for name in [
        "hawfinch.1",
        "hawfinch-pull.1",
        "hawfinch-doctor.1",
        "hawfinch-models.1",
        "hawfinch-models-remove.1",
    ] {
        let page = std::fs::read_to_string(dir.join(name)).unwrap();
        assert!(page.contains(".SH NAME"), "{name}");
    }
    assert!(std::fs::read_to_string(dir.join("hawfinch-pull.1")).unwrap().contains("HF_ENDPOINT"));
}

#[test]
fn help_has_an_example_for_each() {
    let room = Room::new();
    for command in ["pull", "models", "doctor", "completions", "man"] {
        room.run(&[command, "--help"]).code(0).says(&["Examples:"]);
    }
}
