//! `verify --against DIR --training`: files of expected values, as they are and with one thing wrong.

use std::path::Path;

use crate::util::{Place, shared};

/// The committed files of expected values and the data set, without the versions' folders.
fn place() -> Place {
    let place = Place::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
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
    let place = place();
    let run = place.run(&VERIFY).ok();
    let text = run.text();
    for said in ["init.json", "schedule.json", "sampler.json", "demo.jsonl", "values", "demo.idx"] {
        assert!(text.contains(said), "`{said}` in: {text}");
    }
    assert!(!text.contains("FAIL") && !text.contains("absent"), "{text}");
    let values: usize =
        text.split('(').filter_map(|s| s.split_once(" values")?.0.parse::<usize>().ok()).sum();
    assert!(values > 4000, "{values}: {text}");
    assert_eq!(std::fs::read_dir(place.path(".")).unwrap().count(), 4, "nothing is left behind");
    // What a folder lacks is said, and is no failure.
    std::fs::remove_file(place.path("schedule.json")).unwrap();
    let text = place.run(&VERIFY).ok().text();
    assert!(text.contains("absent: schedule.json") && text.contains("sampler.json"), "{text}");
    let json = place.run(&[&VERIFY[..], &["--json"]].concat()).ok().json();
    assert_eq!(json.as_array().unwrap().len(), 4, "{json}");
    std::fs::create_dir(place.path("empty")).unwrap();
    place.run(&["verify", "--against", "empty", "--training"]).fails(2, &["nothing to verify in empty"]);
}

/// Every folder beside the repository, if it is there.
#[test]
fn the_whole_folder_agrees() {
    let Some(dir) = shared("parity") else { return };
    let run =
        Place::new().run(&["verify", "--against", dir.to_str().unwrap(), "--training", "--double"]).ok();
    let text = run.text();
    assert!(text.matches("three steps of AdamW: losses").count() >= 10, "{text}");
    for said in ["init.json", "schedule.json", "sampler.json", "binidx/demo.jsonl"] {
        assert!(text.contains(said), "`{said}` in: {text}");
    }
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
