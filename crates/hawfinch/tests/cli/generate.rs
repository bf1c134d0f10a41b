//! generate, and the program without arguments.

use std::process::Stdio;

use serde_json::json;

use crate::util::{Place, shared};

#[test]
fn without_arguments_the_built_in_model_speaks() {
    let run = Place::new().run(&[]).ok();
    // Each beginning, and at least some words more.
    for beginning in ["Click the button to", "Wenn Sie die Datei", "В этом разделе"] {
        let at = run.text().find(beginning).unwrap_or_else(|| panic!("{beginning}: {}", run.text()));
        assert!(
            run.text()[at + beginning.len()..].chars().take(20).filter(|c| c.is_alphabetic()).count() > 8
        );
    }
    for words in ["built-in model", "hawfinch pull", "hawfinch chat", "hawfinch train"] {
        assert!(run.err.contains(words), "{words}: {}", run.err);
    }
}

#[test]
fn the_built_in_model_is_one_like_any_other() {
    let place = Place::new();
    let shown = place.run(&["inspect", "demo"]).ok().text();
    assert!(shown.contains("RWKV-7") && shown.contains("(in this file)"), "{shown}");
    place.run(&["verify", "demo"]).ok();
    place.run(&["convert", "demo", "demo.gguf"]).ok();
    let text = |model: &str| place.run(&["generate", model, "Die ", "-n", "20", "--greedy"]).ok().text();
    assert_eq!(text("demo"), text("demo.gguf"));
    // It knows languages apart: each is likelier as it is than backwards.
    for sentence in
        ["Click the button to open the file.", "Wählen Sie die Datei aus.", "Выберите файл в списке."]
    {
        place.write("as.txt", sentence);
        place.write("back.txt", sentence.chars().rev().collect::<String>());
        let said = place.run(&["perplexity", "demo", "as.txt", "back.txt", "--json"]).ok().json();
        let bits = |n: usize| said["files"][n]["bits_per_byte"].as_f64().unwrap();
        assert!(bits(0) < 0.7 * bits(1) && bits(0) < 3.0, "{sentence}: {} {}", bits(0), bits(1));
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let place = Place::new();
    place.model("m.pth", &[]);
    let text = |seed: &str| place.run(&["generate", "m.pth", "Hello", "-n", "50", "--seed", seed]).ok().out;
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
    assert_ne!(text("1"), place.run(&["generate", "m.pth", "Hello", "-n", "50"]).ok().out);
    // Not a matter of threads.
    assert_eq!(
        text("1"),
        place.run(&["generate", "m.pth", "Hello", "-n", "50", "--seed", "1", "--threads", "1"]).ok().out
    );
}

#[test]
fn json_tells_everything() {
    let place = Place::new();
    let args = ["generate", "untrained", "ab", "--json", "-n", "5", "--greedy", "--logprobs", "3"];
    let said = place.run(&args).ok().json();
    assert_eq!(said["prompt"], json!("ab"));
    assert_eq!((&said["prompt_tokens"], &said["generated_tokens"]), (&json!(2), &json!(5)));
    assert_eq!((&said["finish"], &said["stopped_by"]), (&json!("max_tokens"), &json!(null)));
    let logprobs = said["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 5);
    for (entry, id) in logprobs.iter().zip(said["tokens"].as_array().unwrap()) {
        let top = entry["top"].as_array().unwrap();
        // Greedy: the token itself is the most probable one.
        assert_eq!((top.len(), &entry["id"], &top[0]["id"]), (3, id, id));
        assert_eq!(entry["logprob"], top[0]["logprob"]);
        assert!(entry["logprob"].as_f64().unwrap() < 0.0);
    }
    // The seed that was drawn gives the same text again.
    let drawn = place.run(&["generate", "untrained", "ab", "--json", "-n", "20"]).ok().json();
    let again = place
        .run(&["generate", "untrained", "ab", "--json", "-n", "20", "--seed", &drawn["seed"].to_string()])
        .ok()
        .json();
    assert_eq!(drawn, again);
}

#[test]
fn stops_where_told() {
    let place = Place::new();
    let base = ["generate", "untrained", "ab", "--json", "-n", "40", "--seed", "3"];
    let run = |more: &[&str]| place.run(&[&base[..], more].concat()).ok().json();
    let free = run(&[]);
    let fifth = free["tokens"][5].to_string();
    let stopped = run(&["--stop-token", &fifth]);
    let first = free["tokens"].as_array().unwrap().iter().position(|t| *t == free["tokens"][5]).unwrap();
    assert_eq!(stopped["generated_tokens"], json!(first));
    assert_eq!((&stopped["finish"], &stopped["stopped_by"]), (&json!("stop"), &free["tokens"][5]));
    let text = free["text"].as_str().unwrap();
    let at = text.char_indices().find(|(i, c)| *i > 0 && c.is_ascii_graphic()).unwrap();
    let stopped = run(&["--stop", &at.1.to_string()]);
    assert_eq!(stopped["text"], json!(text[..text.find(at.1).unwrap()]));
    place.run(&["generate", "untrained", "ab", "--stop", ""]).fails(2, &["--stop"]);
    place.run(&["generate", "untrained", "ab", "--stop-token", "256"]).fails(2, &["256"]);
    place.run(&["generate", "untrained", "ab", "--logit-bias", "256=1"]).fails(2, &["--logit-bias 256"]);
    let out =
        place.command(&["generate", "untrained", "ab"]).env("HAWFINCH_THREADS", "abc").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("HAWFINCH_THREADS must be a number"));
}

#[test]
fn prompts_come_from_arguments_files_and_pipes() {
    let place = Place::new();
    let greedy = ["-n", "12", "--greedy"];
    let run = |args: &[&str], input: &[u8]| {
        place.run_with(&[&["generate", "untrained"][..], args, &greedy].concat(), input).ok().out
    };
    let expected = run(&["some text"], b"");
    place.write("p.txt", "some text");
    assert_eq!(run(&["--prompt-file", "p.txt"], b""), expected);
    assert_eq!(run(&["-"], b"some text"), expected);
    // Byte for byte: a line break at the end is part of it.
    assert_ne!(run(&["-"], b"some text\n"), expected);
    // Not UTF-8: the tokenizers take any bytes.
    let said = place.run_with(&["generate", "untrained", "-", "--json", "-n", "1"], b"a\xff\xfe").ok().json();
    assert_eq!((&said["prompt_tokens"], &said["prompt"]), (&json!(3), &json!("a\u{fffd}\u{fffd}")));
    let echoed = run(&["some text", "--echo"], b"");
    assert_eq!(echoed, [b"some text", &expected[..]].concat());
}

#[test]
fn empty_prompts() {
    let place = Place::new();
    // No prompt at all begins at nothing; a prompt that is empty is a mistake.
    let said = place.run(&["generate", "untrained", "--json", "-n", "3"]).ok().json();
    assert_eq!((&said["prompt_tokens"], &said["generated_tokens"]), (&json!(0), &json!(3)));
    place.run(&["generate", "untrained", ""]).fails(2, &["the prompt is empty"]);
    place.run_with(&["generate", "untrained", "-"], b"").fails(2, &["the prompt is empty"]);
    place.write("empty", "");
    place.run(&["generate", "untrained", "--prompt-file", "empty"]).fails(2, &["the prompt is empty"]);
    place.run(&["generate", "untrained", "--prompt-file", "nowhere"]).fails(1, &["nowhere"]);
}

#[test]
fn a_saved_state_goes_on_as_if_nothing_had_happened() {
    let place = Place::new();
    place.model("m.pth", &["--version", "6"]);
    let greedy = |args: &[&str]| {
        place.run(&[&["generate", "m.pth"][..], args, &["--greedy", "--json"]].concat()).ok().json()
    };
    let whole = greedy(&["one two three", "-n", "20"]);
    greedy(&["one two", "-n", "0", "--state-out", "s.safetensors"]);
    let rest = greedy(&[" three", "-n", "20", "--state", "s.safetensors"]);
    assert_eq!(whole["tokens"], rest["tokens"]);
    // What was generated is in the saved state, its last token too.
    greedy(&["one two", "-n", "6", "--state-out", "t.safetensors"]);
    let file = hawfinch_model::format::open(&place.path("t.safetensors")).unwrap();
    assert_eq!(file.metadata["hawfinch.tokens"], "13");
    place.run(&["generate", "m.pth", "--state", "s.safetensors"]).fails(2, &["needs a prompt"]);
}

#[test]
fn a_batch_gives_each_prompt_what_it_gets_alone() {
    let place = Place::new();
    let lines = [
        json!({"prompt": "short", "id": "a"}),
        json!({"prompt": "a longer prompt ".repeat(20), "max_tokens": 3}),
        json!({"prompt": "seeded", "seed": 77, "temperature": 1.5, "top_p": 0.9}),
        json!({"prompt": "", "greedy": true, "max_tokens": 9}),
        json!({"prompt": "stop", "stop": ["e", "a"], "logit_bias": {"0": "-inf"}}),
        json!({"prompt": "mirostat", "mirostat_tau": 3, "typical": 0.9, "repetition_last_n": 4, "greedy": false}),
    ];
    let text: String = lines.iter().map(|l| format!("{l}\n\n")).collect();
    place.write("in.jsonl", &text);
    let args = ["generate", "untrained", "--input", "in.jsonl", "-n", "15", "--seed", "5"];
    let run = place.run(&args).ok();
    let batch = run.json_lines();
    assert_eq!(batch.len(), lines.len());
    for (i, said) in batch.iter().enumerate() {
        assert_eq!((&said["index"], &said["prompt"]), (&json!(i), &lines[i]["prompt"]));
        let mut alone = vec!["generate", "untrained", "--input", "one.jsonl", "-n", "15", "--seed", "5"];
        place.write("one.jsonl", lines[i].to_string());
        if i == 0 {
            // And the same as without --input.
            alone = vec!["generate", "untrained", "short", "--json", "-n", "15", "--seed", "5"];
        }
        let alone = place.run(&alone).ok().json();
        assert_eq!(said["tokens"], alone["tokens"], "line {i}");
        assert_eq!(said["text"], alone["text"], "line {i}");
    }
    assert_eq!(batch[0]["id"], json!("a"));
    assert_eq!((&batch[1]["generated_tokens"], &batch[3]["generated_tokens"]), (&json!(3), &json!(9)));
    assert_eq!(batch[2]["seed"], json!(77));
    // Narrow batches and a file for the results change nothing.
    place.run(&[&args[..], &["--batch", "2", "-o", "out.jsonl"]].concat()).ok();
    assert_eq!(place.read("out.jsonl"), run.out);
}

#[test]
fn wrong_lines_of_a_batch() {
    let place = Place::new();
    for (line, words) in [
        ("{\"prompt\": 1}", "prompt"),
        ("{\"prompt\": \"a\"", "JSON"),
        ("[]", "object"),
        ("{\"prompt\": \"a\", \"temprature\": 1}", "temprature"),
        ("{\"prompt\": \"a\", \"top_p\": 2}", "top_p"),
        ("{\"prompt\": \"a\", \"max_tokens\": -1}", "max_tokens"),
        ("{\"prompt\": \"a\", \"stop\": 1}", "stop"),
        ("{\"prompt\": \"a\", \"stop\": \"\"}", "\"stop\" must not be empty"),
        ("{\"prompt\": \"a\", \"stop_tokens\": [256]}", "\"stop_tokens\" 256 is out of range"),
        ("{\"prompt\": \"a\", \"stop_tokens\": 5}", "\"stop_tokens\" is a list"),
        ("{\"prompt\": \"a\", \"logit_bias\": {\"256\": 1}}", "\"logit_bias\" 256 is out of range"),
        ("{\"prompt\": \"a\", \"temperature\": \"hot\"}", "\"temperature\" cannot be that"),
        ("{\"prompt\": \"a\", \"mirostat_tau\": []}", "\"mirostat_tau\" cannot be that"),
        ("{\"prompt\": \"a\", \"greedy\": \"yes\"}", "\"greedy\" is true or false"),
    ] {
        place.write("in.jsonl", format!("{{\"prompt\": \"x\"}}\n{line}\n"));
        place.run(&["generate", "untrained", "--input", "in.jsonl"]).fails(1, &["in.jsonl line 2", words]);
    }
    place.write("bad.jsonl", b"{\"prompt\": \"\xff\"}");
    place.run(&["generate", "untrained", "--input", "bad.jsonl"]).fails(1, &["not UTF-8"]);
}

#[test]
fn settings_out_of_range() {
    let place = Place::new();
    for (option, value, words) in [
        ("--temperature", "-1", "temperature"),
        ("--top-p", "1.5", "top_p"),
        ("--min-p", "NaN", "min_p"),
        ("--group-norm-eps", "2", "epsilon"),
    ] {
        let words = if option == "--group-norm-eps" { "--group-norm-eps" } else { words };
        place.run(&["generate", "untrained", "a", &format!("{option}={value}")]).fails(2, &[words]);
    }
    place.run(&["generate", "untrained", "a", "--logprobs", "2"]).fails(2, &["--json"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command(&["generate", "untrained", "a", "-n", "20000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"));
}

#[test]
fn every_sampling_option_is_a_key_of_a_line() {
    let place = Place::new();
    let help = place.run(&["generate", "--help"]).ok().text();
    let section =
        help.split("Sampling options:").nth(1).unwrap().split("Speculation options:").next().unwrap();
    let options =
        section.split_whitespace().filter_map(|w| w.strip_prefix("--")).map(|w| w.replace('-', "_"));
    let options: Vec<String> = options.collect();
    assert!(options.len() >= 14, "{options:?}");
    for key in options {
        let value = match key.as_str() {
            "greedy" => json!(true),
            "logit_bias" => json!({"1": 1}),
            _ => json!(1),
        };
        place.write("in.jsonl", json!({"prompt": "a", "max_tokens": 1, (key): value}).to_string());
        place.run(&["generate", "untrained", "--input", "in.jsonl"]).ok();
    }
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_not_text() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let prompt = std::ffi::OsStr::from_bytes(b"a\xff");
    let said = place.command(&["generate", "untrained", "--json", "-n", "1"]).arg(prompt).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["prompt_tokens"], json!(2));
    let ids = place.command(&["tokenize", "--tokenizer", "bytes", "--text"]).arg(prompt).output().unwrap();
    assert_eq!(ids.stdout, b"97 255\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_with_its_place() {
    let place = Place::new();
    for args in
        [&["generate", "untrained", "a", "-n", "1"][..], &["tokenize", "--text", "a"], &["doctor", "--quick"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run = place.command(args).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(1), "{said}");
        assert!(said.contains("hawfinch: cannot write to standard output: No space left"), "{said}");
    }
}

/// What nobody sees grow shows a bar, on a terminal only, and leaves nothing of it.
#[cfg(unix)]
#[test]
fn what_lasts_shows_a_bar() {
    let place = Place::new();
    let long = "word ".repeat(3000);
    let lines: String = (0..4).map(|_| format!("{}\n", json!({"prompt": long, "max_tokens": 3}))).collect();
    place.write("in.jsonl", lines);
    for (args, words) in [
        (&["generate", "untrained", "a", "-n", "20000", "--json"][..], "writing (tokens at most)"),
        (&["generate", "untrained", "--input", "in.jsonl"], "reading and writing (tokens at most)"),
        (&["doctor"], "measuring"),
    ] {
        let seen = crate::util::at_terminal(place.command(args).stdout(Stdio::null()));
        assert!(seen.contains(words), "{args:?}: {seen}");
        let last = seen.rsplit(words).next().unwrap();
        assert!(last.contains("\x1b[2K"), "the bar is not cleared: {seen:?}");
    }
    // Into a file nobody sees it either.
    let file = std::fs::File::create(place.path("out.txt")).unwrap();
    let seen =
        crate::util::at_terminal(place.command(&["generate", "untrained", "a", "-n", "20000"]).stdout(file));
    assert!(seen.contains("writing (tokens at most)"), "{seen}");
    // The text is seen: no bar beside it. And none where nobody looks.
    let seen = crate::util::at_terminal(
        place.command(&["generate", "untrained", "a", "-n", "20000"]).stdout(Stdio::null()),
    );
    assert!(!seen.contains("tokens at most"), "{seen}");
    let quiet = place.command(&["generate", "untrained", "a", "-n", "20000", "--json"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&quiet.stderr).contains("tokens at most"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_what_there_is() {
    use std::io::Read;
    let place = Place::new();
    let mut child = place
        .command(&["generate", "untrained", "a", "-n", "100000000", "--state-out", "s.safetensors"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first text has come: the handler is there.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    // SAFETY: kill(2) with the id of a child that was not waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130));
    assert!(place.path("s.safetensors").exists());
}

#[test]
fn real_models_write_what_they_learned() {
    let Some(folder) = shared("weights/rwkv.cpp-tiny") else { return };
    let model = folder.join("tiny-rwkv-7v0-834K-FP32.bin");
    let text =
        Place::new().run(&["generate", model.to_str().unwrap(), "It i", "--greedy", "-n", "30"]).ok().text();
    assert!(text.contains(" the the"), "{text}");
}

#[test]
fn a_batch_of_nothing_says_so() {
    let place = Place::new();
    for nothing in ["", "\n  \n"] {
        place.write("in.jsonl", nothing);
        let run = place.run(&["generate", "untrained", "--input", "in.jsonl", "-o", "out.jsonl"]).ok();
        assert!(run.err.contains("in.jsonl holds no prompts"), "{}", run.err);
        assert_eq!(place.read("out.jsonl"), b"");
        std::fs::remove_file(place.path("out.jsonl")).unwrap();
    }
    // A place for results without --input would be forgotten.
    place.run(&["generate", "untrained", "a", "-o", "out.txt"]).fails(2, &["--input", "> FILE"]);
}

/// Short prompts around one that takes for ever.
#[cfg(unix)]
fn endless_batch(place: &Place) {
    let lines = [3, 3, 3, 100_000_000, 1].map(|n| format!("{}\n", json!({"prompt": "a", "max_tokens": n})));
    place.write("in.jsonl", lines.concat());
}

#[cfg(unix)]
fn indices(lines: &[u8]) -> Vec<u64> {
    let lines = std::str::from_utf8(lines).unwrap().lines();
    lines.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["index"].as_u64().unwrap()).collect()
}

#[cfg(unix)]
#[test]
fn a_batch_that_is_ended_keeps_what_is_finished() {
    use std::io::{BufRead, BufReader, Read};
    let place = Place::new();
    endless_batch(&place);
    let mut child = place
        .command(&["generate", "untrained", "--input", "in.jsonl"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Those before the long one come although it goes on.
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut lines = String::new();
    for _ in 0..3 {
        out.read_line(&mut lines).unwrap();
    }
    assert_eq!(indices(lines.as_bytes()), [0, 1, 2]);
    // SAFETY: kill(2) with the id of a child that was not waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!(indices(&rest), [4]);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("interrupted: 4 of 5 results are written"), "{said}");
}

/// The lines of the file that is being written, once there are three.
#[cfg(unix)]
fn three_lines_of_the_unfinished(place: &Place) -> std::path::PathBuf {
    let began = std::time::Instant::now();
    loop {
        let files = std::fs::read_dir(place.path(".")).unwrap().map(|e| e.unwrap().path());
        let part = files.into_iter().find(|p| p.to_string_lossy().ends_with(".part"));
        if let Some(part) = part.filter(|p| indices(&std::fs::read(p).unwrap()).len() == 3) {
            return part;
        }
        assert!(began.elapsed().as_secs() < 60, "no results");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[cfg(unix)]
#[test]
fn results_in_a_file_outlive_ctrl_c_and_a_crash() {
    let place = Place::new();
    endless_batch(&place);
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let mut command = place.command(&["generate", "untrained", "--input", "in.jsonl", "-o", "out.jsonl"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let part = three_lines_of_the_unfinished(&place);
        assert!(!place.path("out.jsonl").exists());
        // SAFETY: kill(2) with the id of a child that was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let ended = child.wait_with_output().unwrap();
        if signal == libc::SIGINT {
            assert_eq!(ended.status.code(), Some(130));
            assert_eq!(indices(&place.read("out.jsonl")), [0, 1, 2, 4]);
            assert!(!part.exists());
            std::fs::remove_file(place.path("out.jsonl")).unwrap();
        } else {
            assert_eq!(indices(&std::fs::read(&part).unwrap()), [0, 1, 2]);
        }
    }
}

/// An error of the model ends all, but not what is finished.
#[test]
fn a_model_that_fails_leaves_the_results_before() {
    let place = Place::new();
    place.model("m.safetensors", &["--dtype", "f32"]);
    let mut bytes = place.read("m.safetensors");
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("nan.safetensors", &bytes);
    place.write("in.jsonl", "{\"prompt\": \"a\", \"max_tokens\": 0}\n{\"prompt\": \"b\"}\n");
    let args = ["generate", "nan.safetensors", "--input", "in.jsonl", "-o", "out.jsonl"];
    place.run(&args).fails(1, &["1 of 2 results are written, then it failed", "not finite"]);
    let said = String::from_utf8(place.read("out.jsonl")).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("\"index\":0"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_written_end_the_batch() {
    let place = Place::new();
    place.write("in.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"max_tokens\": 100000000}\n");
    let args = ["generate", "untrained", "--input", "in.jsonl", "-n", "1", "-o", "/dev/full"];
    place.run(&args).fails(1, &["cannot write the results", "No space left"]);
}
