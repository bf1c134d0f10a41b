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
    place.run(&["logits", "untrained", "--ids", "1,256", "--out", "l.st"]).fails(1, &["256", "0 to 255"]);
    assert!(!place.path("l.st").exists());
    place.run(&["logits", "untrained", "--ids", "1,-2", "--out", "l.st"]).fails(2, &["`-2`"]);
    place.run(&["logits", "untrained", "--ids", "4294967296", "--out", "l.st"]).fails(2, &["4294967296"]);
    place.run(&["logits", "untrained", "--ids", "", "--out", "l.st"]).fails(2, &["no ids"]);
    place.run(&["logits", "untrained", "--ids", "1,2", "--split", "3", "--out", "l.st"]).fails(2, &["2 ids"]);
    place.run(&["logits", "untrained", "--ids-file", "nowhere", "--out", "l.st"]).fails(1, &["nowhere"]);
    place.run(&["logits", "untrained", "--ids", "1", "--out", "no/l.st"]).fails(1, &["no/l.st"]);
    // A tokenizer with more ids than the model has rows.
    place.run(&["generate", "untrained", "a", "--tokenizer", "world"]).fails(1, &["256"]);
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
    logits("untrained", &["--state", "7.state"]).fails(1, &["another model"]);
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
    place.run(&["generate", "untrained", "a", "--lora", "nowhere.pth"]).fails(1, &["nowhere.pth"]);
    place.model("m.pth", &[]);
    place.run(&["generate", "untrained", "a", "--lora", "m.pth"]).fails(1, &["m.pth", "lora_A"]);
    place.run(&["generate", "untrained", "a", "--lora", "m.pth:alpha=x"]).fails(1, &["alpha"]);
    let Some(folder) = shared("parity/A/v7") else { return };
    let lora = folder.join("lora.pth");
    place.run(&["generate", "untrained", "a", "--lora", &format!("{}:alpha=12", lora.display())]).ok();
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
            &["generate", "untrained", "a", "-n", "1", "--state-out", out][..],
            &["logits", "untrained", "--ids", "1", "--out", out],
            &["logits", "untrained", "--ids", "1", "--out", "l.st", "--state-out", out],
            &["embed", "untrained", "a", "-o", out],
            &["convert", "untrained", out, "--to", "pth"],
        ] {
            let run = place.run(args);
            assert!(run.out.is_empty(), "{args:?}: {}", run.text());
            let (code, words) = if out == "." { (2, "is a folder") } else { (1, "there is no folder no") };
            run.fails(code, &[words]);
        }
    }
    assert!(!place.path("l.st").exists());
}

/// Raw numbers, a state and a LoRA are named like models; what they hold tells that they are none.
#[test]
fn a_folder_counts_only_models() {
    let place = Place::new();
    std::fs::create_dir(place.path("f")).unwrap();
    let raw: Vec<u8> = (0..256).flat_map(|i| (i as f32 / 100.0).to_le_bytes()).collect();
    place.write("f/expected-logits.bin", &raw);
    place.model("f/a.pth", &[]);
    place.run(&["generate", "f/a.pth", "x", "-n", "1", "--state-out", "f/a-state.st"]).ok();
    // The one model there is.
    place.run(&["generate", "f", "x", "-n", "1"]).ok();
    for n in 0..13 {
        std::fs::copy(place.path("f/a.pth"), place.path(&format!("f/b{n:02}.pth"))).unwrap();
    }
    let run = place.run(&["generate", "f", "x", "-n", "1"]);
    assert!(!run.err.contains("logits.bin") && !run.err.contains("state"), "{}", run.err);
    run.fails(1, &["14 models", "a.pth, b00.pth", "b10.pth and 2 more"]);
    std::fs::create_dir(place.path("g")).unwrap();
    place.write("g/1.bin", &raw);
    place.write("g/2.bin", &raw);
    place.run(&["generate", "g", "x"]).fails(1, &["none of the 2 files", "named like models"]);
    // By the name of a repository, the same.
    let repo = place.path("models/o--r");
    std::fs::create_dir_all(&repo).unwrap();
    place.write("models/o--r/expected.bin", &raw);
    std::fs::copy(place.path("f/a.pth"), repo.join("m.pth")).unwrap();
    place.run(&["generate", "o/r", "x", "-n", "1"]).ok();
    for n in 0..13 {
        std::fs::copy(place.path("f/a.pth"), repo.join(format!("n{n:02}.pth"))).unwrap();
    }
    place.run(&["generate", "o/r", "x", "-n", "1"]).fails(1, &["14 models", "n10.pth and 2 more"]);
}

#[test]
fn what_is_no_state() {
    let place = Place::new();
    place.write("text.st", "This is a text.\n");
    place.write("empty.st", "");
    place.model("6.pth", &["--version", "6"]);
    place.run(&["logits", "untrained", "--ids", "1", "--out", "logits.st"]).ok();
    std::fs::create_dir(place.path("folder")).unwrap();
    for (file, found) in [
        ("text.st", "a text file"),
        ("empty.st", "empty"),
        ("6.pth", "a model, RWKV-6"),
        ("logits.st", "other tensors (logits)"),
        ("folder", "a folder"),
    ] {
        for args in [
            &["generate", "untrained", "a", "--state", file][..],
            &["chat", "untrained", "--state", file],
            &["chat", "untrained", "--load", file],
            &["logits", "untrained", "--ids", "1", "--out", "l.st", "--state", file],
        ] {
            let run = place.run(args);
            assert!(!run.err.contains("not a model file"), "{args:?}: {}", run.err);
            run.fails(1, &[file, "is not a state file", found, "a tuned state"]);
        }
    }
}

/// An option's wrong number: one sentence that says which there are.
#[test]
fn numbers_of_threads() {
    let place = Place::new();
    for number in ["0", "-1", "x", "5000", "99999999999999999999"] {
        for command in [&["generate", "untrained", "a", "-n", "1"][..], &["bench", "untrained", "--quick"]] {
            let run = place.run(&[command, &["--threads", number]].concat());
            assert_eq!(run.code, 2, "{}", run.err);
            let said = format!("invalid value '{number}' for '--threads <N>': give a number from 1 to 4096");
            assert!(run.err.contains(&said), "{}", run.err);
        }
        let run = place
            .command(&["generate", "untrained", "a", "-n", "1"])
            .env("HAWFINCH_THREADS", number)
            .output();
        let run = run.unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{said}");
        let words = format!("hawfinch: HAWFINCH_THREADS must be a number from 1 to 4096, not `{number}`");
        assert_eq!(said.trim_end(), words);
    }
    // More than the machine has are taken, and one line says what they cost.
    let there = std::thread::available_parallelism().unwrap().get();
    let many = (there + 1).to_string();
    let run = place.run(&["generate", "untrained", "a", "-n", "1", "--threads", &many]).ok();
    let warnings: Vec<&str> = run.err.lines().filter(|l| l.contains("warning")).collect();
    assert_eq!(warnings.len(), 1, "{}", run.err);
    let words = format!("warning: {many} threads where {there} can run at once");
    assert!(warnings[0].starts_with(&words), "{}", run.err);
    let all = place.run(&["generate", "untrained", "a", "-n", "1", "--threads", &there.to_string()]).ok();
    assert!(!all.err.contains("warning"), "{}", all.err);
}

#[test]
fn instruction_sets_that_are_none_or_not_here() {
    let place = Place::new();
    let absent = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    for (isa, words) in [("foo", "no instruction set"), (absent, "lacks")] {
        for args in [
            &["generate", "untrained", "a", "-n", "1"][..],
            &["embed", "untrained", "a"],
            &["bench", "untrained", "--quick"],
            &["doctor", "--quick"],
        ] {
            let run = place.command(args).env("HAWFINCH_ISA", isa).output().unwrap();
            let said = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(2), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            for part in ["hawfinch: HAWFINCH_ISA: ", isa, words, "scalar"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_told() {
    let place = Place::new();
    place.model("fits.pth", &[]);
    place.run(&["convert", "fits.pth", "blocks.gguf", "--dtype", "q8_0"]).ok();
    place.model("odd.pth", &["--width", "40", "--head-size", "40"]);
    let warnings = |model: &str| {
        let run = place.run(&["generate", model, "a", "-n", "1", "--quant", "int8"]).ok();
        run.err.lines().filter(|l| l.contains("warning")).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings("fits.pth"), Vec::<String>::new());
    assert_eq!(
        warnings("blocks.gguf"),
        ["warning: --quant int8 changes nothing: the weights are quantised already"]
    );
    // Rows of 40 numbers, but those of ffn.value, which are 160 long.
    let odd = warnings("odd.pth");
    let words = "leaves 11 of 13 weights as they are: their rows divide into no blocks of 32";
    assert_eq!(odd, [format!("warning: --quant int8 {words}")]);
}

/// What a comparison with given results would not heed is refused.
#[test]
fn options_that_given_results_exclude() {
    let place = Place::new();
    // Fixtures of the model crate, as an independent implementation wrote them.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../hawfinch-model/tests/data/parity");
    for option in [
        &["--lora", "x.pth"][..],
        &["--group-norm-eps", "1e-5"],
        &["--quant", "int8"],
        &["--tokens", "30"],
        &["--tolerance", "1"],
        &["--expect", "l.bin", "--ids", "1"],
    ] {
        let run = place.run(&[&["verify", "--against", folder], option].concat());
        assert_eq!(run.code, 2, "{}", run.err);
        assert!(run.err.contains(option[0]) && run.err.contains("cannot be used"), "{}", run.err);
    }
    place.run(&["verify", "untrained", "--double"]).fails(2, &["--double needs --against"]);
    place.run(&["verify", "--against", folder, "--threads", "1"]).ok();
    let run = place.command(&["verify", "--against", folder]).env("HAWFINCH_ISA", "foo").output().unwrap();
    assert_eq!(run.status.code(), Some(2));
}

/// A slip of the finger must not cost a model or a text: states replace states alone, results no model.
#[test]
fn what_is_no_state_is_not_replaced_by_one() {
    let place = Place::new();
    place.write("notes.txt", "precious");
    place.model("other.pth", &[]);
    let other = place.read("other.pth");
    let made = ["generate", "untrained", "a", "-n", "1", "--state-out"];
    for file in ["notes.txt", "other.pth"] {
        place.run(&[&made[..], &[file]].concat()).fails(2, &[file, "something else than a state"]);
        let chat =
            place.run_with(&["chat", "untrained", "-n", "1"], format!("hi\n/save {file}\n").as_bytes());
        chat.fails(1, &[file, "something else than a state"]);
    }
    for args in [
        &["embed", "untrained", "a", "-o", "other.pth"][..],
        &["logits", "untrained", "--ids", "1", "--out", "other.pth"],
    ] {
        place.run(args).fails(2, &["other.pth is a model"]);
    }
    assert_eq!(place.read("notes.txt"), b"precious");
    assert_eq!(place.read("other.pth"), other);
    // A state gives way to the next one, and so does a file that was only made.
    place.write("empty.st", "");
    for file in ["empty.st", "s.st", "s.st"] {
        place.run(&[&made[..], &[file]].concat()).ok();
    }
    let chat =
        place.run_with(&["chat", "untrained", "-n", "1"], b"hi\n/save s.st\n/save s.st\n/save no/s.st\n");
    chat.fails(1, &["there is no folder no"]);
}

/// Lists of prompts and texts as editors of other systems write them.
#[test]
fn marks_of_the_encoding_and_blank_lines() {
    let place = Place::new();
    place.write("p.jsonl", "\u{feff}{\"prompt\": \"a\"}\r\n\r\n{\"prompt\": \"b\"}\r\n");
    let said = place.run(&["generate", "untrained", "--input", "p.jsonl", "-n", "1"]).ok().json_lines();
    assert_eq!(said.len(), 2);
    place.write("t.jsonl", "\u{feff}{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\n\n");
    assert_eq!(place.run(&["embed", "untrained", "--input", "t.jsonl"]).ok().json_lines().len(), 2);
    for empty in ["", "\n\n"] {
        place.write("e.jsonl", empty);
        place.run(&["embed", "untrained", "--input", "e.jsonl"]).fails(1, &["e.jsonl holds no texts"]);
    }
}
