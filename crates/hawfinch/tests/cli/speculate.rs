//! `--speculate`: the same text, the same state, fewer steps.

use serde_json::json;

use crate::util::{Place, shared};

/// Numbers of a `--stats` line: guesses that were right, guesses.
fn guesses(err: &str) -> (u64, u64) {
    let line = err.lines().find(|l| l.starts_with("[read ")).unwrap_or_else(|| panic!("no numbers: {err}"));
    let part = line.split(", ").find(|p| p.ends_with("guesses right")).unwrap_or_else(|| panic!("{line}"));
    let mut numbers = part.split(' ').filter_map(|w| w.replace(',', "").parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn text_and_state_are_the_same() {
    let place = Place::new();
    place.model("m.pth", &["--version", "6"]);
    place.model("small.pth", &["--layers", "1"]);
    // Random weights repeat themselves when greedy: much of it can be looked up.
    for sampling in
        [&["--greedy", "--seed", "1"][..], &["--seed", "3"], &["--seed", "4", "--mirostat-tau", "3"]]
    {
        let run = |more: &[&str], state: &str| {
            let base = [
                "generate",
                "m.pth",
                "one two one two one",
                "-n",
                "150",
                "--stats",
                "--json",
                "--logprobs",
                "2",
            ];
            let run = place.run(&[&base[..], sampling, &["--state-out", state], more].concat()).ok();
            (run.out, place.read(state), run.err)
        };
        let (text, state, stats) = run(&[], "plain.st");
        assert!(!stats.contains("guesses"), "{stats}");
        for (what, tokens) in
            [("ngram", "1"), ("ngram", "16"), ("small.pth", "4"), ("m.pth", "3"), ("m.pth", "200")]
        {
            let got = run(&["--speculate", what, "--draft-tokens", tokens], "other.st");
            assert!(got.0 == text, "{what} {sampling:?}");
            assert!(got.1 == state, "{what} {sampling:?}: the states differ");
            let (right, guessed) = guesses(&got.2);
            assert!(right <= guessed, "{}", got.2);
            assert!(what != "m.pth" || (guessed > 0 && right >= guessed * 4 / 5), "{}", got.2);
            // Tokens that were guessed count as written: all but the last, which nothing reads.
            assert!(got.2.contains(", wrote 149 in "), "{}", got.2);
        }
    }
}

#[test]
fn stops_amid_guesses() {
    let place = Place::new();
    let base = ["generate", "untrained", "ab", "--json", "-n", "60", "--seed", "3"];
    let run = |more: &[&str]| place.run(&[&base[..], more].concat()).ok().json();
    let free = run(&[]);
    let text: Vec<char> = free["text"].as_str().unwrap().chars().collect();
    let string: String = text[20..23].iter().collect();
    let token = free["tokens"][25].to_string();
    for stop in
        [&["--stop", &string][..], &["--stop-token", &token], &["-n", "1"], &["-n", "2"], &["-n", "0"]]
    {
        // The last of an option counts.
        let base: Vec<&str> =
            base.iter().copied().filter(|a| stop[0] != "-n" || !["-n", "60"].contains(a)).collect();
        let run = |more: &[&str], state| {
            let said = place.run(&[&base[..], stop, more, &["--state-out", state]].concat()).ok().json();
            (said, place.read(state))
        };
        let want = run(&[], "a.st");
        assert!(stop[0] == "-n" || want.0["finish"] == json!("stop"), "{stop:?}");
        assert!(run(&["--speculate", "untrained", "--draft-tokens", "50"], "b.st") == want, "{stop:?}");
        assert!(run(&["--speculate", "ngram"], "c.st") == want, "{stop:?}");
    }
    // Without a prompt.
    let nothing = |more: &[&str]| {
        place.run(&[&["generate", "untrained", "-n", "30", "--greedy"][..], more].concat()).ok().out
    };
    assert_eq!(nothing(&["--speculate", "ngram"]), nothing(&[]));
    assert_eq!(nothing(&["--speculate", "untrained"]), nothing(&[]));
}

#[test]
fn chats_say_the_same() {
    let place = Place::new();
    let lines =
        "one\ntwo\n/regen\n/fork\nmore\n/save talk.st\n/branch main\n/undo\nthree\n/load talk.st\nfour\n";
    let chat = |more: &[&str]| {
        let args =
            [&["chat", "untrained", "-n", "40", "--seed", "2", "--json", "--template", "world"][..], more]
                .concat();
        let said = place.run_with(&args, lines.as_bytes()).ok().out;
        (said, place.read("talk.st"))
    };
    let want = chat(&[]);
    for what in ["ngram", "untrained"] {
        assert!(chat(&["--speculate", what]) == want, "{what}");
    }
    let run = place.run_with(
        &["chat", "untrained", "-n", "40", "--speculate", "untrained", "--stats"],
        b"one\n/load talk.st\ntwo\n",
    );
    let (right, guessed) = guesses(&run.ok().err);
    assert!(guessed > 0 && right > 0);
}

#[test]
fn what_cannot_guess_is_said() {
    let place = Place::new();
    place.model("wide.pth", &["--vocab", "300"]);
    let says = |args: &[&str], code, words: &[&str]| {
        place.run(&[&["generate", "untrained", "x", "-n", "3"][..], args].concat()).fails(code, words);
    };
    let other = "the draft model has a vocabulary of 300 tokens, the model one of 256";
    says(&["--speculate", "wide.pth"], 1, &[other, "same family"]);
    says(&["--speculate", "nowhere.pth"], 1, &["nowhere.pth"]);
    place.write("text.pth", "no model");
    says(&["--speculate", "text.pth"], 1, &["text.pth"]);
    place.run_with(&["chat", "untrained", "--speculate", "wide.pth"], b"hi\n").fails(1, &[other]);
    place.write("in.jsonl", "{\"prompt\": \"a\"}\n");
    place
        .run(&["generate", "untrained", "--input", "in.jsonl", "--speculate", "ngram"])
        .fails(2, &["--speculate is for one text"]);
    // What guesses is read while it does: nothing is written over it.
    place.model("small.pth", &["--layers", "1"]);
    let kept = place.read("small.pth");
    says(
        &["--speculate", "small.pth", "--state-out", "small.pth"],
        2,
        &["holds something else than a state"],
    );
    let chat = place.run_with(&["chat", "untrained", "--speculate", "small.pth"], b"/save small.pth\n");
    chat.fails(1, &["holds something else than a state"]);
    assert!(place.read("small.pth") == kept);
    for wrong in [&["--draft-tokens", "3"][..], &["--speculate", "ngram", "--draft-tokens", "0"]] {
        let run = place.run(&[&["generate", "untrained", "x"][..], wrong].concat());
        assert_eq!(run.code, 2, "{}", run.err);
    }
}

#[test]
fn real_models_say_the_same_with_guesses() {
    let Some(folder) = shared("weights/rwkv.cpp-tiny") else { return };
    let place = Place::new();
    let model = |name: &str| folder.join(format!("tiny-rwkv-{name}.bin")).to_str().unwrap().to_string();
    let prompt = "Once upon a time there was a little girl. Once upon a time there was";
    for (large, small) in [
        ("6v0-3m-Q5_1", "6v0-1m-FP32"),
        ("7v0-834K-FP32", "5v2-730K-FP32"),
        ("5v1-730K-FP32", "4v0-660K-FP32"),
    ] {
        let (large, small) = (&model(large), &model(small));
        for sampling in ["0", "0.8"] {
            let run = |more: &[&str]| {
                let base =
                    ["-n", "200", "--seed", "1", "--stats", "--temperature", sampling, "--state-out", "s.st"];
                let args = [&["generate", large, prompt][..], &base, more].concat();
                let run = place.run(&args).ok();
                (run.out, place.read("s.st"), run.err)
            };
            let want = run(&[]);
            for what in ["ngram", small] {
                let got = run(&["--speculate", what]);
                assert!(got.0 == want.0 && got.1 == want.1, "{large} {what} {sampling}");
                eprintln!("{large}, {what}, temperature {sampling}: {}", got.2.trim());
            }
        }
    }
}
