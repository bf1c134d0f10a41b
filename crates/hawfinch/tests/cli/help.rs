//! Help texts, compared with those kept in `snapshots/`. After a wanted change run the tests once with
//! `HAWFINCH_UPDATE_SNAPSHOTS=1` and read the difference.

use std::path::Path;

use crate::util::Place;

fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("HAWFINCH_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(kept == text, "{} is not what the program says now:\n{text}", path.display());
}

const COMMANDS: &[&str] = &[
    "generate",
    "chat",
    "inspect",
    "convert",
    "quantize",
    "logits",
    "tokenize",
    "detokenize",
    "data",
    "embed",
    "perplexity",
    "synthesize",
    "train",
    "plot",
    "plan",
    "merge",
    "bench",
    #[cfg(feature = "serve")]
    "serve",
];

#[test]
fn help_is_as_kept() {
    let place = Place::new();
    for command in COMMANDS {
        let run = place.run(&[command, "--help"]).ok();
        assert!(run.text().contains("Examples:"), "{command} shows no example");
        snapshot(command, &run.text());
    }
    for command in ["build", "merge", "inspect", "vocab"] {
        let run = place.run(&["data", command, "--help"]).ok();
        assert!(run.text().contains("Examples:"), "data {command} shows no example");
        snapshot(&format!("data-{command}"), &run.text());
    }
}

#[test]
fn the_list_of_commands_names_all() {
    let text = Place::new().run(&["--help"]).ok().text();
    for command in COMMANDS {
        assert!(text.contains(&format!("\n  {command}")), "{command} in {text}");
    }
    // Laid out by the width of the terminal alone.
    assert!(
        text.lines().all(|l| l.trim().is_empty() || l.trim().contains(' ') || l.trim().ends_with(':')),
        "{text}"
    );
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let place = Place::new();
    for args in [
        &["nonsense"][..],
        &["generate", "--nonsense"],
        &["inspect"],
        &["convert", "a.pth"],
        &["logits", "untrained", "--out", "x.safetensors"],
        &["synthesize", "x.pth", "--version", "8"],
        &["synthesize", "x.pth", "--layers", "0"],
        &["tokenize"],
    ] {
        let run = place.run(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.err.contains("error: ") && run.err.contains("--help"), "{}", run.err);
    }
}
