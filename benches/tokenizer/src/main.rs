//! World encode of this project and of the `rwkv-tokenizer` crate, interleaved in one run. See README.md.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use hawfinch_tokenizer::{Tokenizer, World};
use rwkv_tokenizer::WorldTokenizer;

const ROUNDS: usize = 9;

fn main() {
    let (source, documents) = documents();
    let bytes: usize = documents.iter().map(String::len).sum();
    let text = documents.concat();
    let lines: Vec<&str> = documents.iter().flat_map(|d| d.split_inclusive('\n')).collect();
    println!(
        "text: {source}: {} documents, {} lines, {:.1} MB",
        documents.len(),
        lines.len(),
        bytes as f64 / 1e6
    );
    println!("machine: {}", machine());

    let start = Instant::now();
    let ours = Tokenizer::world();
    println!("building the built-in World tokenizer: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let rebuild = || {
        World::from_vocabulary(include_bytes!(
            "../../../crates/hawfinch-tokenizer/data/rwkv_vocab_v20230424.txt"
        ))
    };
    let times = measure(&mut [("", Box::new(|| timed(rebuild)))]);
    println!(
        "the same again: {:.1} ms at best, {:.1} ms median of {ROUNDS}",
        times[0].0 * 1e3,
        times[0].1 * 1e3
    );
    let theirs = WorldTokenizer::new(None).expect("the crate's own vocabulary");

    let same = documents.iter().filter(|d| {
        let theirs: Vec<u32> = theirs.encode(d).into_iter().map(u32::from).collect();
        ours.encode(d.as_bytes()) == theirs
    });
    println!("documents on which both give the same ids: {} of {}\n", same.count(), documents.len());

    let mut reused = Vec::new();
    let mut each_line = || {
        for line in &lines {
            reused.clear();
            ours.encode_into(line.as_bytes(), &mut reused);
            black_box(&reused);
        }
    };
    let mut rows: Vec<Row> = vec![
        (
            "rwkv-tokenizer, documents, 1 thread",
            Box::new(|| timed(|| documents.iter().for_each(|d| drop(black_box(theirs.encode(d)))))),
        ),
        (
            "hawfinch, documents, 1 thread",
            Box::new(|| timed(|| documents.iter().for_each(|d| drop(black_box(ours.encode(d.as_bytes())))))),
        ),
        (
            "rwkv-tokenizer, lines, 1 thread",
            Box::new(|| timed(|| lines.iter().for_each(|l| drop(black_box(theirs.encode(l)))))),
        ),
        ("hawfinch, lines, 1 thread", Box::new(|| timed(&mut each_line))),
        (
            "rwkv-tokenizer, encode_batch",
            Box::new(|| {
                let owned = documents.clone();
                timed(|| theirs.encode_batch(owned))
            }),
        ),
        ("hawfinch, encode_many", Box::new(|| timed(|| ours.encode_many(&documents, 0)))),
        (
            "hawfinch, encode_parallel, one text",
            Box::new(|| timed(|| ours.encode_parallel(text.as_bytes(), 0))),
        ),
    ];
    let times = measure(&mut rows);
    println!("{:38} {:>9} {:>10} {:>9} {:>9}", "", "min ms", "median ms", "MB/s", "ratio");
    let baselines = [0, 0, 2, 2, 4, 4, 4];
    for (row, ((name, _), &(min, median))) in rows.iter().zip(&times).enumerate() {
        let ratio = times[baselines[row]].1 / median;
        println!(
            "{name:38} {:9.1} {:10.1} {:9.1} {ratio:9.2}",
            min * 1e3,
            median * 1e3,
            bytes as f64 / 1e6 / median
        );
    }
}

/// A name, and work that answers how many seconds it took.
type Row<'a> = (&'a str, Box<dyn FnMut() -> f64 + 'a>);

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let result = black_box(work());
    let seconds = start.elapsed().as_secs_f64();
    drop(result);
    seconds
}

/// Minimum and median seconds of each row, the rows taking turns.
fn measure(rows: &mut [Row]) -> Vec<(f64, f64)> {
    let mut times = vec![Vec::new(); rows.len()];
    for round in 0..=ROUNDS {
        for ((_, work), times) in rows.iter_mut().zip(&mut times) {
            let seconds = work();
            if round > 0 {
                times.push(seconds); // round 0 warms up
            }
        }
    }
    times
        .into_iter()
        .map(|mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            (times[0], times[times.len() / 2])
        })
        .collect()
}

/// Where the text comes from, and its documents.
fn documents() -> (String, Vec<String>) {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if !files.is_empty() {
        let read = |f: &String| std::fs::read_to_string(f).unwrap_or_else(|e| panic!("cannot read {f}: {e}"));
        return (files.join(", "), files.iter().map(read).collect());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = here.join("../../../shared/data/corpora/flores200/flores200_dataset.tar.xz");
    let unpacked =
        Command::new("tar").arg("-xOf").arg(&archive).args(["--wildcards", "*/dev/*.dev"]).output();
    if let Ok(output) = unpacked
        && output.status.success()
        && let Ok(text) = String::from_utf8(output.stdout)
    {
        // 204 files of 997 lines.
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        return ("FLORES-200 dev".into(), lines.chunks(997).map(|file| file.concat()).collect());
    }
    let sample =
        std::fs::read_to_string(here.join("sample/udhr.txt")).expect("the sample beside this benchmark");
    let copies = 32_000_000 / sample.len();
    ("sample/udhr.txt, repeated".into(), vec![sample; copies])
}

fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    format!("{}, {threads} threads, {}", model.unwrap_or("unknown processor"), std::env::consts::ARCH)
}
