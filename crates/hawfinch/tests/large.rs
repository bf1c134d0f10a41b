//! A checkpoint of a released size (RWKV-6 1.6B, bf16, 3.2 GB of random weights): how fast it opens, how much
//! memory it takes. Minutes and 3.2 GB of disk, so it runs only when asked for:
//!
//! `cargo test --release -p hawfinch --test large -- --ignored --nocapture`
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn hawfinch(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawfinch"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end; wall seconds and the largest resident set seen (mapped pages of the file count), in bytes.
fn measured(args: &[&str]) -> (f64, u64) {
    let began = Instant::now();
    let mut child = hawfinch(args).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(1024 * kilobytes.unwrap_or(0));
        if let Some(exit) = child.try_wait().unwrap() {
            assert!(exit.success(), "{args:?}");
            return (began.elapsed().as_secs_f64(), peak);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "writes 3.2 GB and takes minutes"]
fn a_released_size_opens_at_once_and_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("finch-1b6.pth");
    let model = path.to_str().unwrap();
    let shape = ["--version", "6", "--layers", "24", "--width", "2048", "--dtype", "bf16"];
    assert!(hawfinch(&["synthesize", model]).args(shape).status().unwrap().success());
    let file = std::fs::metadata(&path).unwrap().len();

    let (opened, _) = measured(&["inspect", model]);
    println!("inspect: {opened:.3} s");
    assert!(opened < 1.0, "opening took {opened} s");

    // Every part of the model: a prompt long enough for a whole step, some tokens after it.
    let prompt = "The finch cracks the seed. ".repeat(20);
    let (wall, peak) = measured(&["generate", model, &prompt, "--max-tokens", "4", "--seed", "1"]);
    println!(
        "generate: {wall:.1} s, peak {:.3} GB of a {:.3} GB file: {:.3} times",
        peak as f64 / 1e9,
        file as f64 / 1e9,
        peak as f64 / file as f64
    );
    assert!((peak as f64) < 1.15 * file as f64);

    // All weights, the embedding's unused rows among them, are read by this one.
    let (_, peak) = measured(&["verify", model, "--tokens", "2"]);
    println!("verify: peak {:.3} times the file", peak as f64 / file as f64);
}
