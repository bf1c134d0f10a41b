//! `train` under mpirun: what one process would have learned, in the same files. Built with the feature `mpi` only.
#![cfg(feature = "mpi")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const CONFIG: &str = r#"
version = "7"
layers = 2
width = 128
head-size = 32
tokenizer = "bytes"
text = ["text.jsonl"]
held-out = 0.2
ctx = 32
batch = 2
accumulate = 2
steps = 6
lr = 3e-3
warmup-steps = 2
save-every = 3
eval-every = 3
bucket = 0.1
"#;

/// A folder with a text and a run.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let line =
        |n: usize| format!("{{\"text\": \"the {n}th line of a text that repeats itself {n} times\"}}\n");
    std::fs::write(dir.path().join("text.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    std::fs::write(dir.path().join("run.toml"), CONFIG).unwrap();
    dir
}

fn mpirun(dir: &Path, ranks: usize) -> Command {
    let mut c = Command::new("mpirun");
    c.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
    c.arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_hawfinch"));
    c.current_dir(dir).env("HAWFINCH_THREADS", "1").env("HAWFINCH_MODELS", dir).env("HAWFINCH_CACHE", dir);
    c
}

fn run(mut c: Command, args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = c.args(args).output().expect("mpirun is installed");
    (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
}

fn train(dir: &Path, ranks: usize, out: &str, more: &[&str]) -> String {
    let (code, said) = run(mpirun(dir, ranks), &[&["train", "run.toml", "-o", out], more].concat());
    assert_eq!(code, 0, "{said}");
    said
}

fn file(dir: &Path, out: &str, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(out).join("step-00000006").join(name)).unwrap()
}

/// Weights, moments and losses of one process, in every way of sharing that adds two numbers at most.
#[test]
fn two_processes_are_one_to_the_bit() {
    let dir = place();
    let dir = dir.path();
    train(dir, 1, "one", &[]);
    let losses = |out: &str| -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
        let records = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        records.filter(|r| r["kind"] != "note").map(|r| r["loss"].to_string()).collect()
    };
    for (out, more) in [("two", &[][..]), ("shared", &["--zero", "1"]), ("again", &["--recompute"])] {
        let said = train(dir, 2, out, more);
        assert!(said.contains("of 2 ranks each") && said.contains("GB sent by rank 0"), "{said}");
        assert_eq!(said.matches("step 6/6").count(), 1, "one talks: {said}");
        for name in ["model.safetensors", "optimizer.safetensors"] {
            assert!(file(dir, out, name) == file(dir, "one", name), "{out}: {name}");
        }
        assert_eq!(losses(out), losses("one"), "{out}");
        let metrics = std::fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
        assert!(metrics.contains("\"communication\":{\"seconds\":"), "{metrics}");
    }
    // Rounded gradients are another run, near it.
    train(dir, 2, "rounded", &["--wire", "bf16"]);
    assert!(losses("rounded") != losses("one"));
    let last = |out: &str| losses(out).last().unwrap().parse::<f64>().unwrap();
    assert!((last("rounded") - last("one")).abs() < 0.003, "{} {}", last("rounded"), last("one"));
}

/// Two processes, then one, then four: the same data in the same order.
#[test]
fn a_run_goes_on_with_other_processes() {
    let dir = place();
    let dir = dir.path();
    let more = ["--accumulate", "4", "--batch", "1"];
    for (ranks, steps) in [(2, "2"), (1, "4"), (4, "6")] {
        let said =
            train(dir, ranks, "parts", &[&more[..], &["--steps", steps, "--schedule", "constant"]].concat());
        assert_eq!(said.contains("going on from"), steps != "2", "{said}");
    }
    train(dir, 1, "one", &[&more[..], &["--schedule", "constant"]].concat());
    let (a, b) = (file(dir, "parts", "progress.json"), file(dir, "one", "progress.json"));
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    for key in ["step", "tokens", "sample", "updates"] {
        assert_eq!(read(&a)[key], read(&b)[key], "{key}");
    }
    let near = read(&a)["smooth-loss"].as_f64().unwrap() - read(&b)["smooth-loss"].as_f64().unwrap();
    assert!(near.abs() < 1e-3, "{near}");
}

#[test]
fn what_is_wrong_is_said_once_and_ends_all() {
    let dir = place();
    let dir = dir.path();
    let (code, said) = run(mpirun(dir, 2), &["train", "run.toml", "--accumulate", "3", "--batch", "3"]);
    assert!(code != 0 && said.contains("cannot be shared by 2 ranks"), "{said}");
    assert_eq!(said.matches("hawfinch: ").count(), 1, "{said}");
    // One process with another setting than the other.
    let mut c = mpirun(dir, 1);
    c.args(["train", "run.toml", "-o", "x", ":", "-n", "1", env!("CARGO_BIN_EXE_hawfinch")]);
    let (code, said) = run(c, &["train", "run.toml", "-o", "x", "--lr", "0.5"]);
    assert!(code != 0 && said.contains("`lr` is 0.5 on rank 1 and 0.003 on rank 0"), "{said}");
    // One that fails alone.
    let mut c = mpirun(dir, 1);
    c.args(["train", "run.toml", "-o", "y", ":", "-n", "1", env!("CARGO_BIN_EXE_hawfinch")]);
    let (code, said) = run(c, &["train", "missing.toml"]);
    assert!(code != 0 && said.contains("rank 1: ") && said.contains("missing.toml"), "{said}");
}

/// Waits until a run has made so many steps.
fn wait_for_steps(dir: &Path, out: &str, steps: usize) {
    let began = Instant::now();
    let log = dir.join(out).join("metrics.jsonl");
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    while text().lines().count() < steps {
        assert!(began.elapsed() < Duration::from_secs(120), "it trains");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to the last of mpirun's processes.
fn signal_one(job: &std::process::Child, signal: &str) {
    let children = format!("/proc/{0}/task/{0}/children", job.id());
    let children = std::fs::read_to_string(children).unwrap();
    let last = children.split_whitespace().last().unwrap();
    assert!(Command::new("kill").args([signal, last]).status().unwrap().success());
}

/// Killed without a word: the job ends, and the run goes on from its last checkpoint, by one process to the bits of one that
/// nothing happened to.
#[test]
fn a_killed_process_ends_the_job_and_the_run_goes_on() {
    let dir = place();
    let dir = dir.path();
    let more = ["--steps", "400", "--save-every", "15", "--eval-every", "400"];
    let mut c = mpirun(dir, 2);
    c.args(["train", "run.toml", "-o", "out"]).args(more);
    let job = c.stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for_steps(dir, "out", 40);
    signal_one(&job, "-KILL");
    let Output { status, stderr, .. } = job.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success() && said.contains("signal 9"), "mpirun says who ended: {said}");
    let done = "step-00000400/model.safetensors";
    assert!(!dir.join("out").join(done).exists(), "it was in the middle");
    let said = train(dir, 1, "out", &more);
    assert!(said.contains("going on from"), "{said}");
    train(dir, 1, "one", &more);
    let read = |out: &str| std::fs::read(dir.join(out).join(done)).unwrap();
    assert!(read("out") == read("one"), "the same bits");
}

/// A signal to one process: all stop after the same step, and the run goes on from there.
#[test]
fn asked_to_end_all_save_and_stop() {
    let dir = place();
    let dir = dir.path();
    let mut c = mpirun(dir, 2);
    c.args(["train", "run.toml", "-o", "out", "--steps", "100000", "--save-every", "50000"]);
    let mut job = c.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    wait_for_steps(dir, "out", 5);
    signal_one(&job, "-TERM");
    while job.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "it ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    let found: Vec<String> = std::fs::read_dir(dir.join("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("step-") && n != "step-00000000")
        .collect();
    assert!(!found.is_empty());
    let said = train(dir, 2, "out", &[]);
    assert!(said.contains("going on from"), "{said}");
}
