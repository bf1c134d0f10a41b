//! chat with its lines piped in.

use serde_json::json;

use crate::util::{Place, Run};

fn chat(place: &Place, args: &[&str], lines: &str) -> Run {
    place.run_with(&[&["chat", "untrained", "-n", "12", "--greedy"][..], args].concat(), lines.as_bytes())
}

#[test]
fn each_line_gets_a_reply() {
    let place = Place::new();
    let replies = chat(&place, &["--json"], "one\ntwo\\\nlines\n\n/quit\nnever\n").ok().json_lines();
    assert_eq!(replies.len(), 2);
    for r in &replies {
        assert_eq!((&r["generated_tokens"], &r["finish"]), (&json!(12), &json!("max_tokens")));
        assert!(!r["text"].as_str().unwrap().is_empty());
    }
    assert_eq!(replies[0]["prompt_tokens"], json!(3));
    // Plain: the same texts.
    let text = chat(&place, &[], "one\n").ok().text();
    assert_eq!(text.trim_end(), replies[0]["text"].as_str().unwrap().trim_end());
    // Nothing to say is no failure.
    assert_eq!(chat(&place, &[], "").ok().text(), "");
}

#[test]
fn nothing_is_read_twice() {
    let place = Place::new();
    let stats = |lines: &str| {
        let run = chat(&place, &["--stats", "--template", "world"], lines).ok();
        let read = run.err.lines().filter(|l| l.starts_with("[read "));
        read.map(|l| l[6..].split(' ').next().unwrap().parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    let user = |text: &str| format!("User: {text}\n\nAssistant:").len() as u32;
    let long = "x".repeat(300);
    let read = stats(&format!("{long}\nshort\n/regen\n"));
    assert_eq!(read[0], user(&long));
    // The second turn: end of the reply's turn, the message, the end of the first reply that was still pending.
    assert!(read[1] <= user("short") + 4, "{read:?}");
    assert_eq!(read[2], 0, "a reply drawn again reads nothing");
}

#[test]
fn going_back() {
    let place = Place::new();
    let texts = |lines: &str| -> Vec<String> {
        let all = chat(&place, &["--json"], lines).ok().json_lines();
        all.iter().map(|r| r["text"].as_str().unwrap().to_string()).collect()
    };
    let plain = texts("one\ntwo\n");
    assert_ne!(plain[0], plain[1]);
    // Greedy: the same reply once more.
    assert_eq!(
        texts("one\n/regen\n/retry\ntwo\n"),
        [&plain[0], &plain[0], &plain[0], &plain[1]].map(String::clone)
    );
    assert_eq!(texts("one\nother\n/undo\ntwo\n")[2], plain[1]);
    assert_eq!(texts("one\nmore\n/reset\none\n")[2], plain[0]);
    assert_eq!(texts("one\n/fork\nmore\n/branch main\ntwo\n")[2], plain[1]);
}

#[test]
fn drawing_again_draws_something_else() {
    let place = Place::new();
    let run =
        place.run_with(&["chat", "untrained", "-n", "20", "--seed", "1", "--json"], b"hello\n/regen\n").ok();
    let replies = run.json_lines();
    assert_ne!(replies[0]["text"], replies[1]["text"]);
}

#[test]
fn a_saved_conversation_goes_on_in_another_run() {
    let place = Place::new();
    for template in ["world", "completion", "g1-think"] {
        let args = ["--json", "--template", template];
        let there = chat(&place, &args, "one\n/save talk.st\ntwo\nthree\n").ok().json_lines();
        let back = chat(&place, &args, "/load talk.st\ntwo\nthree\n").ok().json_lines();
        assert_eq!(there[1..], back[..], "{template}");
        let option =
            chat(&place, &[&args[..], &["--load", "talk.st"]].concat(), "two\n/history\n").ok().text();
        assert!(option.starts_with(&there[1].to_string()), "{option}");
        if template == "world" {
            assert!(option.contains("> one\n") && option.contains("> two\n"), "{option}");
        }
    }
    // As a state for others, and refused for another model.
    place.run(&["generate", "untrained", "x", "-n", "3", "--state", "talk.st"]).ok();
    place.model("other.pth", &["--layers", "3", "--width", "128"]);
    let run = place.run_with(&["chat", "other.pth"], b"/load talk.st\n");
    run.fails(1, &["another model"]);
}

#[test]
fn system_text_and_settings() {
    let place = Place::new();
    let lines = "/system\n/system Be brief.\nhi\n/reset\n/system\n/history\n/system -\n/system\n/set max-tokens 5\n/set top_p 0.5\n/set\n/help\n/stats\n/branch\n";
    let run = chat(&place, &["--template", "world", "--system", "Be kind."], lines).ok();
    let text = run.text();
    assert!(text.starts_with("Be kind.\n"), "{text}");
    for words in [
        "\nBe brief.\n",
        "system: Be brief.",
        "(there is no system text)",
        "max-tokens 5",
        "top-p 0.5",
        "/regen",
        "* main",
        "state: ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_state_without_a_conversation_keeps_the_system_text() {
    let place = Place::new();
    place.run(&["generate", "untrained", "x", "-n", "1", "--state-out", "plain.st"]).ok();
    let args = ["--template", "world", "--system", "Be kind."];
    let loaded = chat(&place, &[&args[..], &["--load", "plain.st"]].concat(), "hi\n/history\n").ok().text();
    assert!(loaded.contains("system: Be kind."), "{loaded}");
    // The same as beginning at it, and as loading it in the chat.
    let begun = chat(&place, &[&args[..], &["--state", "plain.st"]].concat(), "hi\n/history\n").ok().text();
    assert_eq!(loaded, begun);
    assert_eq!(loaded, chat(&place, &args, "/load plain.st\nhi\n/history\n").ok().text());
}

/// Replies stop where they should with a template of one's own, and at no byte of a byte-level model.
#[test]
fn stops_belong_to_the_model_whatever_the_template() {
    let place = Place::new();
    place.write("own.jinja", "{% for m in messages %}User: {{ m.content }}\n\nAssistant:{% endfor %}");
    place.model("world.pth", &["--vocab", "65536"]);
    let settings = |template: &str| {
        let args = ["chat", "world.pth", "--template", template, "-n", "1", "--seed", "1"];
        place.run_with(&args, b"/set\n").ok().text()
    };
    assert_eq!(settings("own.jinja"), settings("world"));
    // The byte 0 made certain: a reply of as many tokens as allowed, not an empty one.
    for template in ["world", "own.jinja"] {
        let args =
            ["chat", "untrained", "--template", template, "-n", "5", "--logit-bias", "0=1000", "--json"];
        let reply = place.run_with(&args, b"hi\n").ok().json_lines().remove(0);
        assert_eq!(
            (&reply["generated_tokens"], &reply["finish"]),
            (&json!(5), &json!("max_tokens")),
            "{template}"
        );
    }
}

/// On a terminal, with the keys a person presses.
#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_reply_and_not_the_program() {
    use std::io::{Read, Write};
    use std::process::Stdio;
    let place = Place::new();
    let (theirs, mut ours) = crate::util::terminal();
    // White space for ever, of which nothing is shown: it is held back until text follows.
    let args = [
        "chat",
        "untrained",
        "--template",
        "world",
        "-n",
        "1000000",
        "--logit-bias",
        "32=1000",
        "--presence-penalty",
        "0",
    ];
    let mut command = place.command(&args);
    command.args(["--frequency-penalty", "0"]).env("TERM", "xterm");
    let terminal = || Stdio::from(theirs.try_clone().unwrap());
    command.stdin(terminal()).stdout(terminal()).stderr(terminal());
    // SAFETY: only calls that are safe between fork and exec; the terminal becomes that of a session of its own,
    // so that Ctrl-C reaches the program.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| match libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY as _, 0) == 0 {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    drop((command, theirs));
    let mut keys = ours.try_clone().unwrap();
    let (sender, screen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(n @ 1..) = ours.read(&mut some) {
            let _ = sender.send(String::from_utf8_lossy(&some[..n]).into_owned());
        }
    });
    let (mut seen, mut from) = (String::new(), 0);
    let mut wait_for = |words: &str| {
        while !seen[from..].contains(words) {
            let more = screen.recv_timeout(std::time::Duration::from_secs(30));
            seen += &more.unwrap_or_else(|_| panic!("`{words}` did not come: {seen}"));
        }
        from += seen[from..].find(words).unwrap() + words.len();
    };
    wait_for("> ");
    for _ in 0..2 {
        keys.write_all(b"hello\r").unwrap();
        wait_for("hello");
        std::thread::sleep(std::time::Duration::from_millis(700));
        keys.write_all(b"\x03").unwrap();
        wait_for("(stopped");
        wait_for("> ");
    }
    keys.write_all(b"/history\r").unwrap();
    wait_for("> hello");
    wait_for("> ");
    // What is typed while the terminal changes between its modes may be lost, as a person would see: typed again.
    for _ in 0..30 {
        keys.write_all(b"/quit\r").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        if let Some(ended) = child.try_wait().unwrap() {
            return assert_eq!(ended.code(), Some(0));
        }
    }
    child.kill().unwrap();
    panic!("/quit did not end the chat");
}

#[test]
fn mistakes_are_told_and_the_chat_goes_on() {
    let place = Place::new();
    for (line, words) in [
        ("/nonsense", "/help"),
        ("/load nowhere.st", "nowhere.st"),
        ("/save", "name of a file"),
        ("/save no/such/folder/x", "no/such/folder"),
        ("/regen", "no reply yet"),
        ("/undo", "nothing to take back"),
        ("/branch x", "no branch"),
        ("/fork main", "already"),
        ("/set x 1", "temperature"),
        ("/set top-p 7", "top_p"),
        ("/set temperature", "/set temperature 0.8"),
    ] {
        let run = chat(&place, &["--json"], &format!("{line}\nhello\n"));
        assert_eq!(run.json_lines().len(), 1, "{line}");
        run.fails(1, &[words]);
    }
    chat(&place, &["--template", "nonsense"], "").fails(1, &["nonsense", "world"]);
    place.write("bad.jinja", "{% for x in %}");
    chat(&place, &["--template", "bad.jinja"], "").fails(1, &["bad.jinja"]);
    place.write("good.jinja", "{% for m in messages %}<{{ m.content }}>{% endfor %}");
    assert_eq!(
        chat(&place, &["--template", "good.jinja", "--json"], "hi\n").ok().json_lines()[0]["prompt_tokens"],
        json!(4)
    );
}

#[test]
fn bytes_that_are_not_text_are_replaced() {
    let place = Place::new();
    let run = place.run_with(&["chat", "untrained", "-n", "3", "--json"], b"a\xff\n").ok();
    // U+FFFD is three bytes.
    assert_eq!(run.json_lines()[0]["prompt_tokens"], json!(4));
}

#[test]
fn a_conversation_is_not_saved_over_its_model() {
    let place = Place::new();
    place.model("m.pth", &[]);
    let before = place.read("m.pth");
    let said = place.run_with(&["chat", "m.pth"], b"/save m.pth\n/save talk.st\n");
    assert!(said.err.contains("m.pth is a file to read"), "{said:?}");
    assert!(place.read("m.pth") == before && place.path("talk.st").exists());
}

/// What a saved conversation began at goes with it: going back in it does not go on from another state.
#[test]
fn a_loaded_conversation_goes_back_to_its_own_start() {
    let place = Place::new();
    place.run(&["generate", "untrained", "A beginning. ", "-n", "1", "--state-out", "begin.st"]).ok();
    let texts = |args: &[&str], lines: &str| -> Vec<String> {
        let args = [&["--json", "--template", "world"], args].concat();
        let all = chat(&place, &args, lines).ok().json_lines();
        all.iter().map(|r| r["text"].as_str().unwrap().to_string()).collect()
    };
    let begun = ["--state", "begin.st"];
    for after in ["/regen\n", "/undo\nthree\n", "/reset\nthree\n"] {
        let there = texts(&begun, &format!("one\n/save talk.st\n{after}"));
        assert_ne!(there, texts(&[], &format!("one\n{after}")), "the state makes no difference");
        let plain = texts(&[], &format!("one\n/save plain.st\n{after}"));
        // In a chat that began at nothing, and in one that began elsewhere.
        for args in [&[][..], &begun] {
            assert_eq!(texts(args, &format!("/load talk.st\n{after}")), there[1..], "{args:?} {after}");
            assert_eq!(texts(args, &format!("/load plain.st\n{after}")), plain[1..], "{args:?} {after}");
        }
    }
    // Later turns are read anew from there.
    texts(&begun, "one\ntwo\n/save talk.st\n");
    assert_eq!(texts(&[], "/load talk.st\n/regen\n"), texts(&begun, "/load talk.st\n/regen\n"));
    // Saved again after it was loaded, too.
    let there = texts(&begun, "one\n/save talk.st\n/regen\n");
    texts(&[], "/load talk.st\n/save again.st\n");
    assert_eq!(texts(&[], "/load again.st\n/regen\n"), there[1..]);
    // It stays a state for others.
    place.run(&["generate", "untrained", "x", "-n", "1", "--state", "talk.st"]).ok();
}
