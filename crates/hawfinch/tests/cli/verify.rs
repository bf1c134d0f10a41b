//! `verify --against DIR --training`: files of expected values, as they are and with one thing wrong.

use std::path::{Path, PathBuf};

use crate::util::{Place, shared};

/// The committed files of expected values and the data set, without the versions' folders. The loss of a new model, which
/// takes a second, is left out.
fn place() -> Place {
    let place = whole_place();
    let mut init: serde_json::Value = serde_json::from_slice(&place.read("init.json")).unwrap();
    init.as_object_mut().unwrap().remove("initial_loss").expect("the file has it");
    place.write("init.json", init.to_string());
    place
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn whole_place() -> Place {
    let place = Place::new();
    let crates = crates();
    for name in ["init.json", "schedule.json", "sampler.json"] {
        let from = crates.join("hawfinch-model/tests/data/parity").join(name);
        place.write(name, std::fs::read(from).unwrap());
    }
    std::fs::create_dir(place.path("binidx")).unwrap();
    for extension in ["jsonl", "bin", "idx", "json"] {
        let from = crates.join("hawfinch-data/tests/data/demo").with_extension(extension);
        place.write(&format!("binidx/demo.{extension}"), std::fs::read(from).unwrap());
    }
    place
}

const VERIFY: [&str; 4] = ["verify", "--against", ".", "--training"];

#[test]
fn files_of_expected_values_agree() {
    let place = whole_place();
    let run = place.run(&VERIFY).ok();
    let text = run.text();
    for said in [
        "init.json",
        "loss of a new RWKV-7",
        "schedule.json",
        "sampler.json",
        "demo.jsonl",
        "values",
        "demo.idx",
    ] {
        assert!(text.contains(said), "`{said}` in: {text}");
    }
    assert!(!text.contains("FAIL"), "{text}");
    // What a folder has nothing for is said, and is no failure.
    assert_eq!(not_there(&text), ["a model's results", "pth-variants"], "{text}");
    assert!(text.ends_with("; 2 more could not be made (above: not there)\n"), "{text}");
    let values: usize =
        text.split('(').filter_map(|s| s.split_once(" values")?.0.parse::<usize>().ok()).sum();
    assert!(values > 4000, "{values}: {text}");
    assert_eq!(std::fs::read_dir(place.path(".")).unwrap().count(), 4, "nothing is left behind");
    for name in ["init.json", "schedule.json"] {
        std::fs::remove_file(place.path(name)).unwrap();
    }
    let text = place.run(&VERIFY).ok().text();
    assert_eq!(
        not_there(&text),
        ["init.json", "schedule.json", "a model's results", "pth-variants"],
        "{text}"
    );
    let json = place.run(&[&VERIFY[..], &["--json"]].concat()).ok().json();
    assert_eq!(json.as_array().unwrap().len(), 3, "{json}");
    assert_eq!(json[2]["passed"], serde_json::Value::Null, "{json}");
    std::fs::remove_dir_all(place.path("binidx")).unwrap();
    let text = place.run(&VERIFY).ok().text();
    assert!(not_there(&text).contains(&"NAME.jsonl with NAME.bin and NAME.idx"), "{text}");
    std::fs::create_dir(place.path("empty")).unwrap();
    place.run(&["verify", "--against", "empty", "--training"]).fails(2, &["nothing to verify in empty"]);
}

/// What is listed so.
fn not_there(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|l| l.strip_prefix("  not there: "));
    lines.map(|l| l.split(" (").next().unwrap_or(l)).collect()
}

/// A folder that has results and no model is no pass; that nothing was compared is none either.
#[test]
fn a_folder_without_its_model_fails() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("set/v7")).unwrap();
    let fixture = crates().join("hawfinch-model/tests/data/parity/M/v7");
    for name in ["meta.json", "case.safetensors", "model-bf16.pth"] {
        place.write(&format!("set/v7/{name}"), std::fs::read(fixture.join(name)).unwrap());
    }
    let run = place.run(&["verify", "--against", "set"]);
    let text = run.text();
    assert!(run.code == 1 && text.contains("model.pth (it is missing beside the results"), "{text}");
    assert!(text.contains("ok") && text.contains("logits, bf16 weights"), "the rest is compared: {text}");
    assert!(text.ends_with("how models train was not compared (--training)\n"), "{text}");
    place.write("set/v7/model.pth", std::fs::read(fixture.join("model.pth")).unwrap());
    place.run(&["verify", "--against", "set"]).ok();
    // Without tolerances there is a model, and nothing to compare it by.
    std::fs::remove_file(place.path("set/v7/meta.json")).unwrap();
    let run = place.run(&["verify", "--against", "set"]);
    assert!(run.text().contains("not there: meta.json"), "{}", run.text());
    run.fails(2, &["nothing was compared"]);
}

/// Every folder beside the repository, if it is there.
#[test]
fn the_whole_folder_agrees() {
    let Some(dir) = shared("parity") else { return };
    let run =
        Place::new().run(&["verify", "--against", dir.to_str().unwrap(), "--training", "--double"]).ok();
    let text = run.text();
    assert!(text.matches("three steps of AdamW: losses").count() >= 10, "{text}");
    for said in [
        "init.json",
        "schedule.json",
        "sampler.json",
        "binidx/demo.jsonl",
        "pth-variants",
        "views-and-dtypes.pth",
    ] {
        assert!(text.contains(said), "`{said}` in: {text}");
    }
    // Folders of set M have no tuned states and adapters; each kind is there somewhere.
    let names = ["peft.safetensors", "state.pth", "lora.pth"];
    assert!(not_there(&text).iter().all(|what| names.contains(what)), "{text}");
}

/// `.pth` files need no --training; one that reads otherwise fails.
#[test]
fn variants_of_pth_are_compared() {
    let Some(dir) = shared("parity/pth-variants") else { return };
    let place = Place::new();
    std::fs::create_dir(place.path("pth-variants")).unwrap();
    for name in ["dict.pth", "parameters.pth", "expected.safetensors"] {
        place.write(&format!("pth-variants/{name}"), std::fs::read(dir.join(name)).unwrap());
    }
    let text = place.run(&["verify", "--against", "."]).ok().text();
    assert!(text.contains("tensors of dict.pth that differ (4 tensors)"), "{text}");
    assert!(not_there(&text).contains(&"views-and-dtypes.pth"), "{text}");
    place.write("pth-variants/dict.pth", std::fs::read(dir.join("views-and-dtypes.pth")).unwrap());
    let run = place.run(&["verify", "--against", "pth-variants"]);
    assert!(run.code == 1 && run.text().contains("is missing"), "{}", run.text());
    std::fs::remove_file(place.path("pth-variants/expected.safetensors")).unwrap();
    let run = place.run(&["verify", "--against", "."]);
    assert!(run.code == 1 && run.text().contains("expected.safetensors"), "{}", run.text());
}

#[test]
fn one_wrong_value_of_each_kind_fails_and_is_named() {
    for (file, from, to, words) in [
        (
            "init.json",
            "-4.92348",
            "-4.92347",
            "/versions/v4/tensors/att.time_decay/0/f32/1: expected -4.92347",
        ),
        ("schedule.json", "6.539999999999999e-05", "6.54000001e-05", "/cases/0/values/1/lr: expected"),
        ("sampler.json", "2763108", "2763109", "/cases/0/slots_at_ii/2: expected 2763109, got 2763108"),
        (
            "sampler.json",
            "1481354240",
            "1481354241",
            "/multi_rank/values/8/token_offset: expected 1481354241",
        ),
        ("binidx/demo.json", "39418", "39419", "/documents/0/ids/1: expected 39419, got 39418"),
        ("binidx/demo.jsonl", "quick brown", "quick black", "length and bytes of demo.bin"),
    ] {
        let place = place();
        let text = String::from_utf8(place.read(file)).unwrap();
        assert!(text.contains(from), "{file}: {from}");
        place.write(file, text.replacen(from, to, 1));
        let run = place.run(&VERIFY);
        let text = run.text();
        assert_eq!(run.code, 1, "{file}: {text}");
        let mut failed = text.lines().filter(|l| l.contains("FAIL"));
        assert!(failed.any(|l| l.contains(words)), "{file}: `{words}` in {text}");
    }
    for (file, at, words) in [
        ("binidx/demo.bin", 100, "byte 100: expected"),
        ("binidx/demo.idx", 40, "byte 40: expected"),
        ("binidx/demo.idx", 3, "it does not begin with MMIDIDX"),
    ] {
        let place = place();
        let mut bytes = place.read(file);
        bytes[at] ^= 1;
        place.write(file, bytes);
        let run = place.run(&VERIFY);
        assert!(run.code == 1 && run.text().contains(words), "{file}: `{words}` in {}", run.text());
    }
}

#[test]
fn a_missing_or_damaged_file_is_named() {
    for name in ["demo.jsonl", "demo.bin", "demo.idx"] {
        let place = place();
        std::fs::remove_file(place.path(&format!("binidx/{name}"))).unwrap();
        let run = place.run(&VERIFY);
        let line = format!("data set: {name} (it is missing beside the others)");
        assert!(run.code == 1 && run.text().contains(&line), "{}", run.text());
    }
    for (file, content, words) in [
        ("init.json", "{}", "init.json is damaged: at its top there is no `indices`"),
        ("sampler.json", "{\"cases\": [{\"tokens\": 1}]}", "at /cases/0 there is no `ctx`"),
        ("schedule.json", "{\"cases\": []}", "at /cases there is no list, or an empty one"),
        ("schedule.json", "{\"cases\": [", "it is no JSON"),
        ("binidx/demo.json", "[1]", "at its top there is no `documents`"),
        ("binidx/demo.jsonl", "{\"text\": \"cut", "demo.jsonl"),
    ] {
        let place = place();
        place.write(file, content);
        let run = place.run(&VERIFY);
        assert_eq!(run.code, 1, "{}", run.text());
        let failed: String = run.text().lines().filter(|l| l.contains("FAIL")).collect();
        assert!(failed.contains(words), "{file}: `{words}` in {}", run.text());
    }
}
