//! `train` with texts and disks as they are: one document of ten million tokens, bytes that are no text, no room left.

use std::path::Path;
use std::process::Stdio;

use crate::util::{Place, TINY};

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--tokenizer", "bytes"][..], &TINY, more].concat()
}

/// Steps in the metrics of a run.
fn steps(place: &Place, run: &str) -> Vec<u64> {
    let lines = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
    let records = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    records.filter(|r| r["kind"] == "train").map(|r| r["step"].as_u64().unwrap()).collect()
}

fn checkpoints(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
    names.retain(|n| n.contains("step-"));
    names.sort();
    names
}

/// Peak of a run's resident memory, bytes; it must succeed.
#[cfg(target_os = "linux")]
#[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
fn peak(place: &Place, args: &[&str]) -> u64 {
    let log = std::fs::File::create(place.path("log")).unwrap();
    let child = place.command(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let mut status = 0;
    // SAFETY: an all-zero rusage is a value of its type.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: wait4(2) with the id of a child that nobody else waits for; both places live until it returns.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(waited, child.id() as i32);
    assert_eq!(status, 0, "{}", String::from_utf8_lossy(&place.read("log")));
    usage.ru_maxrss as u64 * 1024
}

/// One document of ten million tokens: as text, as a line of JSON, as a data set; cut into windows, and whole.
#[cfg(target_os = "linux")]
#[test]
fn a_document_of_ten_million_tokens() {
    let place = Place::new();
    let text = "no line ends in this document, which is long; ".repeat(10_000_000 / 46 + 1);
    assert!(text.len() >= 10_000_000);
    place.write("long.txt", &text);
    place.write("long.jsonl", format!("{{\"text\": \"{text}\"}}\n"));
    place.write("short.txt", "a short text to compare with");
    let run = |texts: &[&str], order: &str, out: &str| {
        let settings = ["--order", order, "--steps", "3", "--held-out", "0", "-o", out];
        peak(&place, &train(&[texts, &settings].concat()))
    };
    let little = run(&["--text", "short.txt"], "shuffle", "short");
    for (n, (texts, order)) in [
        (["--text", "long.txt"], "shuffle"),
        (["--text", "long.jsonl"], "packed"),
        (["--data", "run-0/data/text"], "shuffle"),
        (["--data", "run-1/data/text"], "packed"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("run-{n}");
        let more = run(&texts, order, &name).saturating_sub(little);
        assert_eq!(steps(&place, &name), [1, 2, 3]);
        // Text, its tokens and what they are written through: a few times ten million. Data sets are read where they lie.
        let most = if texts[0] == "--text" { 200 << 20 } else { 40 << 20 };
        assert!(more < most, "{texts:?} {order}: {} MiB more", more >> 20);
        eprintln!("{texts:?} {order}: {} MiB more than {}", more >> 20, little >> 20);
    }
    let bytes = std::fs::metadata(place.path("run-0/data/text.bin")).unwrap().len();
    assert_eq!(bytes, 2 * (text.len() as u64 + 1));
    assert_eq!(std::fs::metadata(place.path("run-1/data/text.bin")).unwrap().len(), bytes);
}

/// As `data build` does it: U+FFFD in place of what is no UTF-8, and it is said; a line that is no document ends it.
#[test]
fn texts_that_are_none() {
    let place = Place::new();
    place.write("good.txt", "a text of letters alone, for the beginning");
    place.write("latin.txt", b"caf\xe9 and na\xefve, in an old encoding, and some more letters");
    let args =
        train(&["--text", "good.txt", "--text", "latin.txt", "--held-out", "0", "--steps", "2", "-o", "run"]);
    let run = place.run(&args).ok();
    assert!(
        run.err.contains("1 document held bytes that are not UTF-8: U+FFFD stands in their place"),
        "{}",
        run.err
    );
    assert!(run.err.contains("--invalid-utf8 fail"), "how to find it: {}", run.err);
    let bin = place.read("run/data/text.bin");
    // Bytes as tokens are bytes: U+FFFD is EF BF BD.
    let bytes: Vec<u8> = bin.chunks(2).map(|b| b[0]).collect();
    assert!(bytes.windows(7).any(|w| w == b"caf\xef\xbf\xbd "), "{bytes:?}");
    // What it tells to do names the file.
    place
        .run(&["data", "build", "good.txt", "latin.txt", "--invalid-utf8", "fail", "-o", "x"])
        .fails(1, &["latin.txt", "UTF-8"]);
    place.write("lines.jsonl", "{\"text\": \"one document\"}\n{\"text\": \"another\n");
    let args = train(&["--text", "lines.jsonl", "--steps", "2", "-o", "lines"]);
    place.run(&args).fails(1, &["lines.jsonl, line 2", "`hawfinch data build --bad-lines skip`"]);
    assert!(!place.path("lines/metrics.jsonl").exists());
    // Not even an old encoding.
    place.write("noise.txt", (0..4000u32).map(|n| ((n * n) >> 3) as u8 | 0x80).collect::<Vec<u8>>());
    place.run(&train(&["--text", "noise.txt", "--held-out", "0", "--steps", "2", "-o", "noise"])).ok();
}

/// A checkpoint that finds no room: what is there stays, the run goes on, and ends with a sentence if the last one is lost;
/// with room the same command goes on to what it would have been.
#[cfg(unix)]
#[test]
fn no_room_for_a_checkpoint() {
    let place = Place::new();
    place.write("text.txt", "a text that says something and then says it again. ".repeat(40));
    let args = |steps, out| {
        train(&[
            "--text",
            "text.txt",
            "--held-out",
            "0",
            "--steps",
            steps,
            "--save-every",
            "2",
            "--keep",
            "9",
            // The same rate however long the run is.
            "--schedule",
            "constant",
            "-o",
            out,
        ])
    };
    place.run(&args("8", "whole")).ok();
    // Not even the beginning: nothing is trained that could not be kept.
    let none = place.run_limited(40, &args("8", "run"));
    assert!(none.err.contains("run/"), "{}", none.err);
    none.fails(1, &["checkpoint of step 0", "File too large", "make room"]);
    assert!(steps(&place, "run").is_empty() && checkpoints(&place.path("run")).is_empty());
    place.run(&args("4", "run")).ok();
    assert_eq!(checkpoints(&place.path("run")), ["step-00000000", "step-00000002", "step-00000004"]);
    let before = place.read("run/step-00000004/model.safetensors");
    let full = place.run_limited(40, &args("8", "run"));
    assert!(
        full.err.contains("step 6: the checkpoint could not be written, the run goes on"),
        "{}",
        full.err
    );
    full.fails(1, &["checkpoint of step 8 (those before it are kept)", "File too large", "make room"]);
    assert_eq!(steps(&place, "run"), [1, 2, 3, 4, 5, 6, 7, 8], "the run went on");
    assert_eq!(checkpoints(&place.path("run")), ["step-00000000", "step-00000002", "step-00000004"]);
    assert!(place.read("run/step-00000004/model.safetensors") == before);
    // Nor is there room for the data set of another run.
    place.run_limited(2, &args("8", "other")).fails(1, &["cannot write", "make room"]);
    let rest = place.run(&args("8", "run")).ok();
    assert!(rest.err.contains("going on from run/step-00000004"), "{}", rest.err);
    assert_eq!(steps(&place, "run"), [1, 2, 3, 4, 5, 6, 7, 8]);
    let model = |run: &str| place.read(&format!("{run}/step-00000008/model.safetensors"));
    assert!(model("run") == model("whole"), "the same bytes");
    // A run that ended before its second checkpoint begins again; what it had written down is kept.
    for step in checkpoints(&place.path("run")).iter().skip(1) {
        std::fs::remove_dir_all(place.path("run").join(step)).unwrap();
    }
    place.run(&args("8", "run")).ok();
    assert!(model("run") == model("whole"), "the same bytes");
    assert_eq!(steps(&place, "run").len(), 8);
    assert!(place.path("run/metrics.jsonl.old").exists());
}

/// Metrics that find no room: said once, and the run goes on to its end; what was written stays whole lines.
#[cfg(unix)]
#[test]
fn no_room_for_metrics() {
    let place = Place::new();
    place.write("text.txt", "a text that says something and then says it again. ".repeat(40));
    let args = |steps| {
        train(&[
            "--text",
            "text.txt",
            "--held-out",
            "0",
            "--steps",
            steps,
            "--save-every",
            "500",
            "-o",
            "run",
        ])
    };
    // Large enough for checkpoints of this model, too small for the lines of so many steps.
    let run = place.run_limited(400, &args("1500"));
    assert!(run.code == 0 && run.err.contains("done: run/step-00001500"), "{}", run.err);
    assert_eq!(run.err.matches("the run goes on, but is not written down").count(), 1, "{}", run.err);
    let written = steps(&place, "run").len();
    assert!((300..1500).contains(&written), "{written}");
    // With room it is written down again.
    place.run(&args("1510")).ok();
    let there = steps(&place, "run");
    assert_eq!((there.len(), there[there.len() - 10..].to_vec()), (written + 10, (1501..=1510).collect()));
}

/// A run that goes back to its beginning goes on being written down, and what it forgot is cut off.
#[test]
fn metrics_of_a_run_that_went_back() {
    let place = Place::new();
    place.write("text.txt", "a text that says something and then says it again. ".repeat(40));
    let wild = ["--lr", "1e30", "--schedule", "constant", "--clip", "0", "--rewind-rate", "1e-17"];
    let args = ["--text", "text.txt", "--held-out", "0", "--steps", "30", "--save-every", "50", "-o", "run"];
    let run = place.run(&train(&[&args[..], &wild].concat())).ok();
    assert!(run.err.contains("diverged"), "{}", run.err);
    let there = steps(&place, "run");
    assert!(there.len() > 10 && there.windows(2).all(|w| w[0] < w[1]) && there.ends_with(&[30]), "{there:?}");
}
