//! How fast text becomes a data set: `cargo run --release -p hawfinch-data --example speed -- [MEGABYTES] FILE…`
//!
//! The files' text is divided into documents of about 3000 bytes and repeated up to so many megabytes (default 200),
//! as JSONL, as text with blank lines between documents, and as gzip of the JSONL; each is built from disk to disk in a
//! temporary folder. MB/s counts bytes of text, 10^6 a megabyte.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use hawfinch_data::{Control, Inputs, Mixing, Plan, Policy, Reading, Shard, Source, Split, build};
use hawfinch_tokenizer::Tokenizer;

/// Texts of the files, divided at line breaks after about this many bytes.
const DOCUMENT: usize = 3000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let megabytes = args.first().and_then(|a| a.parse().ok());
    if megabytes.is_some() {
        args.remove(0);
    }
    let megabytes: usize = megabytes.unwrap_or(200);
    if args.is_empty() {
        return Err("name text files to measure with".into());
    }
    let mut documents = vec![String::new()];
    for path in &args {
        for line in String::from_utf8_lossy(&std::fs::read(path)?).split_inclusive('\n') {
            if documents.last().is_some_and(|d| d.len() + line.len() > DOCUMENT && !d.is_empty()) {
                documents.push(String::new());
            }
            if let (Some(last), false) = (documents.last_mut(), line.trim().is_empty()) {
                last.push_str(line);
            }
        }
    }
    documents.retain(|d| !d.is_empty());
    let place = tempfile::tempdir()?;
    let path = |name: &str| place.path().join(name);
    let mut jsonl = std::io::BufWriter::new(std::fs::File::create(path("x.jsonl"))?);
    let mut text = std::io::BufWriter::new(std::fs::File::create(path("x.txt"))?);
    let (mut bytes, mut count) = (0, 0u64);
    for document in documents.iter().cycle().take_while(|d| {
        bytes += d.len();
        bytes <= megabytes * 1_000_000
    }) {
        count += 1;
        serde_json::to_writer(&mut jsonl, &serde_json::json!({"text": document}))?;
        jsonl.write_all(b"\n")?;
        writeln!(text, "{}\n", document.trim_end())?;
    }
    jsonl.flush()?;
    text.flush()?;
    let mut packed = flate2::write::GzEncoder::new(
        std::fs::File::create(path("x.jsonl.gz"))?,
        flate2::Compression::fast(),
    );
    std::io::copy(&mut std::fs::File::open(path("x.jsonl"))?, &mut packed)?;
    packed.finish()?;
    println!("{count} documents, {} MB of text, from {} of {} files", megabytes, documents.len(), args.len());
    let all = std::thread::available_parallelism()?.get();
    for (name, split) in [("x.jsonl", Split::None), ("x.txt", Split::BlankLines), ("x.jsonl.gz", Split::None)]
    {
        for threads in [1, all] {
            let (seconds, tokens, finish) = measure(&path(name), &path("out"), split, threads)?;
            println!(
                "{name:<12} {threads} threads: {:>6.1} MB/s, {:.1} million tokens/s ({seconds:.2} s, {finish:.2} s of it writing the data set from its parts)",
                megabytes as f64 / seconds,
                tokens as f64 / seconds / 1e6,
            );
        }
    }
    Ok(())
}

/// Seconds, tokens, and seconds of the second step.
fn measure(
    source: &Path,
    out: &Path,
    split: Split,
    threads: usize,
) -> Result<(f64, u64, f64), hawfinch_data::Error> {
    let world = Tokenizer::world();
    let source = Source { label: None, path: source.display().to_string(), weight: None };
    let inputs = Inputs::find(&[source], None)?;
    let plan = Plan::new(inputs, &world, Reading { split, ..Reading::default() }, Mixing::default())?;
    let control = Control::quiet(threads);
    let began = Instant::now();
    build::tokenise_shard(&plan, out, Shard::WHOLE, Policy::default(), true, &world, control)?;
    let middle = began.elapsed().as_secs_f64();
    let tokens = build::finish(&plan, out, control)?.written.tokens;
    let seconds = began.elapsed().as_secs_f64();
    Ok((seconds, tokens, seconds - middle))
}
