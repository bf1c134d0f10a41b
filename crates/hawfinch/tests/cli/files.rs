//! inspect, convert, logits, synthesize.

use hawfinch_kernels::DType;
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::{Checkpoint, Version, format};
use serde_json::json;

use crate::util::{Place, shared};

fn open(place: &Place, name: &str) -> Checkpoint {
    format::open(&place.path(name)).unwrap()
}

/// Same names, shapes, types and bits.
#[track_caller]
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.tensors.len(), b.tensors.len());
    for (name, t) in &a.tensors {
        let u = b.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((t.dtype, &t.shape), (u.dtype, &u.shape), "{name}");
        let bits =
            |t: &hawfinch_model::StoredTensor| t.to_f32().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(t), bits(u), "{name}");
    }
}

#[test]
fn parameter_totals_of_sparse_files() {
    let place = Place::new();
    for (version, layers, width, total) in [
        ("7", "12", "768", 191_084_544u64),
        ("7", "24", "1024", 450_834_432),
        ("6", "24", "2048", 1_599_873_024),
    ] {
        let args = ["--version", version, "--layers", layers, "--width", width, "--sparse", "--force"];
        place.run(&[&["synthesize", "m.safetensors"][..], &args].concat()).ok();
        let said = place.run(&["inspect", "m.safetensors", "--json"]).ok().json();
        assert_eq!(said["parameters"]["with_layer_0_v"], json!(total));
        assert_eq!(said["file_bytes"], json!(std::fs::metadata(place.path("m.safetensors")).unwrap().len()));
        let text = place.run(&["inspect", "m.safetensors"]).ok().text();
        let shown = if version == "7" { "with layer 0's v0, v1, v2" } else { "1,599,873,024" };
        assert!(text.contains(shown), "{text}");
    }
}

#[test]
fn inspect_says_what_a_model_is() {
    let place = Place::new();
    place.model("m.pth", &["--version", "5.2", "--dtype", "f16"]);
    let said = place.run(&["inspect", "m.pth", "--json", "--tensors"]).ok().json();
    for (key, value) in [
        ("kind", json!("model")),
        ("version", json!("5.2")),
        ("nickname", json!("Eagle")),
        ("format", json!("PyTorch .pth")),
        ("layers", json!(2)),
        ("width", json!(64)),
        ("heads", json!(1)),
        ("head_size", json!(64)),
        ("ffn_width", json!(224)),
        ("vocab", json!(256)),
        // Two layers of a 64 × 64 matrix and two rows, in f32.
        ("state_bytes", json!(2 * (64 * 64 + 2 * 64) * 4)),
    ] {
        assert_eq!(said[key], value, "{key}");
    }
    assert_eq!(said["group_norm_eps"]["value"], json!(64e-5));
    assert_eq!(said["dtypes"][0]["dtype"], json!("f16"));
    assert_eq!(said["tensors"][0]["name"], json!("emb.weight"));
    assert_eq!(said["tensors"][0]["shape"], json!([256, 64]));
    assert!(said["memory_bytes"].as_u64() > said["file_bytes"].as_u64());
    // What convert writes into the file is where the epsilon comes from then.
    place.run(&["convert", "m.pth", "m.safetensors"]).ok();
    let text = place.run(&["inspect", "m.safetensors", "--tensors"]).ok().text();
    for words in
        ["RWKV-5.2 \"Eagle\"", "the file's metadata", "hawfinch.version = 5.2", "blocks.1.att.gate.weight"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    // v4 has no group norm and no heads.
    place.model("4.pth", &["--version", "4"]);
    let said = place.run(&["inspect", "4.pth", "--json"]).ok().json();
    assert_eq!((&said["heads"], &said["group_norm_eps"]), (&json!(null), &json!(null)));
}

#[test]
fn inspect_says_what_states_and_loras_are() {
    let place = Place::new();
    place.run(&["logits", "untrained", "--ids", "1", "--out", "l.st", "--state-out", "s.safetensors"]).ok();
    let said = place.run(&["inspect", "s.safetensors", "--json"]).ok().json();
    assert_eq!((&said["kind"], &said["tuned"], &said["layers"]), (&json!("state"), &json!(false), &json!(3)));
    let Some(folder) = shared("parity/A/v7") else { return };
    let said = place.run(&["inspect", folder.join("state.pth").to_str().unwrap(), "--json"]).ok().json();
    assert_eq!((&said["kind"], &said["tuned"], &said["layers"]), (&json!("state"), &json!(true), &json!(3)));
    let said =
        place.run(&["inspect", folder.join("peft.safetensors").to_str().unwrap(), "--json"]).ok().json();
    assert_eq!((&said["kind"], &said["ranks"], &said["alpha"]), (&json!("lora"), &json!([6]), &json!(32.0)));
}

#[test]
fn synthesize_writes_what_the_library_makes() {
    let place = Place::new();
    for (version, number) in [(Version::V4, "4"), (Version::V6, "6"), (Version::V7, "7")] {
        let shape = Shape { version, layers: 2, width: 64, vocab: 256, head_size: 64 };
        for dtype in [DType::F32, DType::BF16] {
            let name = format!("{number}-{dtype}.pth");
            place.model(&name, &["--version", number, "--dtype", dtype.name(), "--seed", "9"]);
            assert_same(&synthetic::checkpoint(&shape.config(), dtype, 9), &open(&place, &name));
        }
    }
    // Zeros, the same size, next to no disk.
    place.model("full.safetensors", &["--vocab", "65536"]);
    place.model("sparse.safetensors", &["--vocab", "65536", "--sparse"]);
    let (full, sparse) = (open(&place, "full.safetensors"), open(&place, "sparse.safetensors"));
    assert_eq!(full.file_bytes, sparse.file_bytes);
    assert!(sparse.tensors.values().all(|t| t.to_f32().iter().all(|&v| v == 0.0)));
    place.run(&["synthesize", "full.safetensors"]).fails(2, &["--force"]);
    place.run(&["synthesize", "x.gguf"]).fails(2, &[".pth or .safetensors"]);
    place.run(&["synthesize", "x.pth", "--width", "100"]).fails(2, &["multiple"]);
    place.run(&["synthesize", "x.pth", "--dtype", "q4_0"]).fails(2, &["q4_0"]);
}

#[test]
fn formats_convert_into_each_other_without_losing_a_bit() {
    let place = Place::new();
    for version in ["4", "5.0", "5.1", "5.2", "6", "7"] {
        for dtype in ["f32", "bf16"] {
            place.model("a.pth", &["--version", version, "--dtype", dtype, "--force"]);
            for (from, to) in [("a.pth", "b.safetensors"), ("b.safetensors", "c.gguf"), ("c.gguf", "d.pth")] {
                place.run(&["convert", from, to, "--force"]).ok();
            }
            assert_same(&open(&place, "a.pth"), &open(&place, "b.safetensors"));
            assert_same(&open(&place, "a.pth"), &open(&place, "d.pth"));
        }
    }
}

#[test]
fn convert_says_what_it_did_and_replaces_nothing_unasked() {
    let place = Place::new();
    place.model("a.pth", &[]);
    let run = place.run(&["convert", "a.pth", "b.safetensors", "--dtype", "f32"]).ok();
    assert!(run.out.is_empty() && run.err.starts_with("wrote b.safetensors: "), "{}", run.err);
    let before = place.read("b.safetensors");
    place.run(&["convert", "a.pth", "b.safetensors"]).fails(2, &["b.safetensors", "--force"]);
    assert_eq!(place.read("b.safetensors"), before);
    place.run(&["convert", "a.pth", "a.pth", "--force"]).fails(2, &["another name"]);
    place.run(&["convert", "a.pth", "b"]).fails(2, &["--to"]);
    place.run(&["convert", "a.pth", "."]).fails(2, &["folder"]);
    place.run(&["convert", "a.pth", "c.pth", "--dtype", "f23"]).fails(2, &["f23", "bf16"]);
    place.run(&["convert", "a.pth", "c.pth", "--dtype", "q8_0"]).fails(2, &["GGUF"]);
    place.run(&["convert", "a.pth", "no/where.pth"]).fails(1, &["no/where.pth"]);
    assert!(!place.path("c.pth").exists());
    let said = place.run(&["convert", "a.pth", "b", "--to", "gguf", "--dtype", "q8_0", "--json"]);
    // 64 is no multiple of nothing smaller than 32: blocks of 32 fit.
    let said = said.ok().json();
    assert_eq!(said["bytes"], json!(std::fs::metadata(place.path("b")).unwrap().len()));
    assert_eq!(open(&place, "b").get("head.weight").unwrap().dtype, DType::Q8_0);
    // No half file is left behind.
    let left: Vec<_> = std::fs::read_dir(place.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".part")), "{left:?}");
}

/// A device or a pipe is written to: as root, a file renamed over `/dev/null` would take its place.
#[cfg(unix)]
#[test]
fn pipes_and_links_stay_what_they_are() {
    use std::os::unix::fs::FileTypeExt;
    let place = Place::new();
    place.model("m.pth", &[]);
    place.run(&["convert", "m.pth", "whole.gguf"]).ok();
    place.run(&["logits", "m.pth", "--ids", "1,2", "--out", "whole.st"]).ok();
    for (args, whole) in [
        (&["convert", "m.pth", "pipe", "--to", "gguf"][..], "whole.gguf"),
        (&["logits", "m.pth", "--ids", "1,2", "--out", "pipe"][..], "whole.st"),
    ] {
        let pipe = place.path("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        place.run(args).ok();
        // Checked before the reader is waited for: it would wait for ever at a pipe nobody wrote to.
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo(), "{args:?}");
        assert!(reader.join().unwrap() == place.read(whole), "{args:?}");
        std::fs::remove_file(pipe).unwrap();
    }
    place.write("real.st", "old");
    std::os::unix::fs::symlink("real.st", place.path("link.st")).unwrap();
    place.run(&["logits", "m.pth", "--ids", "1,2", "--out", "link.st"]).ok();
    assert!(place.path("link.st").is_symlink());
    assert_eq!(place.read("real.st"), place.read("whole.st"));
    // A state takes the place of another, or of nothing, not of logits.
    place.write("real.st", "");
    place.run(&["generate", "m.pth", "a", "-n", "1", "--state-out", "real.st"]).ok();
    place.run(&["generate", "m.pth", "a", "-n", "1", "--state-out", "link.st"]).ok();
    assert!(place.path("link.st").is_symlink());
    // The device stays a device; nothing is asked about replacing it.
    place.run(&["convert", "m.pth", "/dev/null", "--to", "pth"]).ok();
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

/// Ctrl-C while a file is written leaves no half of one, and what was to be replaced stays.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_half_of_a_file() {
    let place = Place::new();
    place.write("ids", "1 ".repeat(400_000));
    let parts = || {
        let names = std::fs::read_dir(place.path(".")).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|n| n.to_string_lossy().ends_with(".part")).count()
    };
    let commands: [&[&str]; 2] = [
        &["synthesize", "old.pth", "--layers", "200", "--width", "2048", "--force"],
        &["logits", "untrained", "--ids-file", "ids", "--out", "old.pth"],
    ];
    for command in commands {
        place.write("old.pth", "old");
        let mut child = place
            .command(command)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while parts() == 0 {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // SAFETY: kill(2) with the id of a child that was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{command:?}");
        assert_eq!(parts(), 0, "{command:?}");
        assert_eq!(place.read("old.pth"), b"old");
    }
}

#[test]
fn ggml_files_are_read_only() {
    let Some(file) = shared("weights/rwkv.cpp-tiny/tiny-rwkv-5v2-730K-FP32.bin") else { return };
    let place = Place::new();
    place.run(&["convert", file.to_str().unwrap(), "x.pth"]).fails(1, &["exponentiated"]);
    assert!(!place.path("x.pth").exists());
}

#[test]
fn logits_do_not_depend_on_the_split() {
    let place = Place::new();
    let ids: Vec<String> = (0..300).map(|i| (i * 7 % 256).to_string()).collect();
    let ids = ids.join(",");
    place.run(&["logits", "untrained", "--ids", &ids, "--out", "a.st", "--state-out", "a.state"]).ok();
    place
        .run(&[
            "logits",
            "untrained",
            "--ids",
            &ids,
            "--split",
            "1,2,250,47",
            "--out",
            "b.st",
            "--state-out",
            "b.state",
        ])
        .ok();
    assert!(place.read("a.st") == place.read("b.st"));
    assert!(place.read("a.state") == place.read("b.state"));
    let file = open(&place, "a.st");
    assert_eq!(file.tensors["logits"].shape, [300, 256]);
    // In two runs with the state between them.
    let all: Vec<&str> = ids.split(',').collect();
    place.write("first.json", format!("{{\"ids\": [{}]}}", all[..200].join(",")));
    place
        .run(&["logits", "untrained", "--ids-file", "first.json", "--out", "c.st", "--state-out", "c.state"])
        .ok();
    let rest = all[200..].join(" ");
    place
        .run(&[
            "logits",
            "untrained",
            "--ids",
            &rest,
            "--out",
            "d.st",
            "--state",
            "c.state",
            "--state-out",
            "d.state",
        ])
        .ok();
    let (whole, last) = (file.tensors["logits"].to_f32(), open(&place, "d.st").tensors["logits"].to_f32());
    assert!(whole[200 * 256..] == last[..]);
    assert!(place.read("a.state") == place.read("d.state"));
    assert_eq!(open(&place, "a.state").metadata["hawfinch.tokens"], "300");
}

#[test]
fn logits_of_a_real_model_are_the_expected_ones() {
    let Some(folder) = shared("weights/rwkv.cpp-tiny") else { return };
    let place = Place::new();
    for name in ["4v0-660K", "5v2-730K", "7v0-834K"] {
        let model = folder.join(format!("tiny-rwkv-{name}-FP32.bin"));
        place.run(&["logits", model.to_str().unwrap(), "--ids", "34,105,110", "--out", "l.st"]).ok();
        let got = open(&place, "l.st").tensors["logits"].to_f32();
        let want = std::fs::read(folder.join(format!("expected-logits-{name}.bin"))).unwrap();
        let want = want.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let worst = got[2 * 256..].iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

/// Neither a model nor anything else that a command reads is lost by naming it as the output.
#[test]
fn what_is_read_is_not_written_over() {
    let place = Place::new();
    place.model("m.pth", &[]);
    std::fs::create_dir(place.path("folder")).unwrap();
    std::fs::copy(place.path("m.pth"), place.path("folder/only.pth")).unwrap();
    place.write("ids.json", "[1,2]");
    place.write("texts.jsonl", "{\"text\":\"a\"}\n");
    place.write("prompts.jsonl", "{\"prompt\":\"a\"}\n");
    place.run(&["logits", "m.pth", "--ids", "1", "--out", "l.st", "--state-out", "s.st"]).ok();
    let kept = ["m.pth", "folder/only.pth", "ids.json", "texts.jsonl", "prompts.jsonl", "s.st"];
    let before = kept.map(|name| place.read(name));
    let logits = ["logits", "m.pth", "--ids", "1", "--out"];
    let mut all: Vec<Vec<&str>> = vec![
        [&logits[..], &["m.pth"]].concat(),
        [&logits[..], &["./folder/../m.pth"]].concat(),
        [&logits[..], &["x.st", "--state-out", "m.pth"]].concat(),
        [&logits[..], &["x.st", "--state-out", "x.st"]].concat(),
        [&logits[..], &["s.st", "--state", "s.st"]].concat(),
        vec!["logits", "folder", "--ids", "1", "--out", "folder/only.pth"],
        vec!["logits", "m.pth", "--ids-file", "ids.json", "--out", "ids.json"],
        vec!["logits", "m.pth", "--ids-file", "ids.json", "--out", "x.st", "--state-out", "ids.json"],
        vec!["embed", "m.pth", "a", "-o", "m.pth"],
        vec!["embed", "m.pth", "--input", "texts.jsonl", "-o", "texts.jsonl"],
        vec!["generate", "m.pth", "a", "-n", "1", "--state-out", "m.pth"],
        vec!["generate", "m.pth", "--input", "prompts.jsonl", "-n", "1", "-o", "prompts.jsonl"],
        vec!["convert", "m.pth", "m.pth", "--force"],
        vec!["convert", "folder", "folder/only.pth", "--force"],
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m.pth", place.path("link.pth")).unwrap();
        all.push([&logits[..], &["link.pth"]].concat());
        all.push(vec!["convert", "link.pth", "m.pth", "--force"]);
    }
    for args in all {
        place.run(&args).fails(2, &["name"]);
    }
    assert!(!place.path("x.st").exists());
    for (name, bytes) in kept.iter().zip(before) {
        assert!(place.read(name) == bytes, "{name}");
    }
    // A state may take the place of the one it began with.
    place.run(&[&logits[..], &["l.st", "--state", "s.st", "--state-out", "s.st"]].concat()).ok();
    assert_eq!(open(&place, "s.st").metadata["hawfinch.tokens"], "2");
}

#[test]
fn convert_notes_another_epsilon() {
    let place = Place::new();
    place.model("m.pth", &["--version", "5.2"]);
    place.run(&["convert", "m.pth", "m.gguf", "--group-norm-eps", "1e-5"]).ok();
    place.run(&["convert", "m.gguf", "m.safetensors"]).ok();
    let said = place.run(&["inspect", "m.safetensors", "--json"]).ok().json();
    assert_eq!(said["group_norm_eps"], json!({"value": 1e-5, "source": "the file's metadata"}));
    let logits = |model: &str, out: &str, more: &[&str]| {
        place.run(&[&["logits", model, "--ids", "1,2", "--out", out][..], more].concat()).ok();
        place.read(out)
    };
    assert!(logits("m.safetensors", "a", &[]) == logits("m.pth", "b", &["--group-norm-eps", "1e-5"]));
    assert!(logits("m.pth", "c", &[]) != logits("m.pth", "d", &["--group-norm-eps", "1e-5"]));
    place.run(&["convert", "m.pth", "n.gguf", "--group-norm-eps", "2"]).fails(2, &["--group-norm-eps"]);
}

#[test]
fn number_types_that_are_not_written_are_wrong_usage() {
    let place = Place::new();
    for (to, dtype, words) in [
        ("x.gguf", "q2_k", "q8_0"),
        ("x.gguf", "iq4_xs", "q4_k"),
        ("x.gguf", "i8", "bf16"),
        ("x.pth", "q4_k", "GGUF"),
        ("x.safetensors", "nothing", "bf16"),
    ] {
        place.run(&["convert", "untrained", to, "--dtype", dtype]).fails(2, &[dtype, words]);
    }
}

#[cfg(unix)]
#[test]
fn verify_without_a_place_for_a_state_tells_the_rest() {
    let place = Place::new();
    place.model("m.pth", &[]);
    let out = place.command(&["verify", "m.pth"]).env("TMPDIR", place.path("nowhere")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("7 of 8 checks passed") && text.contains("nowhere"), "{text}");
}

/// Rows that fit no block take another type, and the metadata tells of that one.
#[test]
fn the_number_type_told_is_the_one_written() {
    let place = Place::new();
    let told = |file: &str| {
        let file = hawfinch_model::format::open(&place.path(file)).unwrap();
        let of = |key: &str| file.metadata.get(key).cloned();
        let most = file.get("blocks.0.ffn.key.weight").unwrap().dtype;
        assert_eq!(of("hawfinch.dtype").as_deref(), Some(most.name()));
        of("hawfinch.quantized")
    };
    // Rows of 128 numbers: half a block of Q4_K.
    place.run(&["convert", "untrained", "fallen.gguf", "--dtype", "q4_k"]).ok();
    assert_eq!(told("fallen.gguf").as_deref(), Some("q5_0"));
    place.run(&["convert", "untrained", "asked.gguf", "--dtype", "q8_0"]).ok();
    assert_eq!(told("asked.gguf").as_deref(), Some("q8_0"));
    place.model("odd.pth", &["--width", "40", "--head-size", "40"]);
    place.run(&["convert", "odd.pth", "odd.gguf", "--dtype", "q8_0"]).ok();
    assert_eq!(told("odd.gguf"), None);
    place.run(&["convert", "asked.gguf", "back.safetensors"]).ok();
    assert_eq!(told("back.safetensors").as_deref(), Some("q8_0"));
}
