//! `data`: data sets from text and back.

use std::process::Stdio;

use hawfinch_data::binidx::Reader;

use crate::util::Place;

const LINES: &str = "{\"text\": \"The Eiffel tower\"}\n\n{\"prompt\": \"Why?\", \"completion\": \"So.\"}\n";

fn pair(place: &Place, name: &str) -> [Vec<u8>; 2] {
    [place.read(&format!("{name}.bin")), place.read(&format!("{name}.idx"))]
}

/// A corpus of some thousand lines, and a build of it in many parts.
fn large(place: &Place) -> [&'static str; 7] {
    let line = |i: u64| format!("{{\"text\": \"line {i}: {}\"}}\n", "some words ".repeat((i % 37) as usize));
    place.write("large.jsonl", (0..20_000).map(line).collect::<String>());
    ["data", "build", "large.jsonl", "--part-bytes", "20000", "--dedup", "--held-out=1%"]
}

#[test]
fn what_goes_in_comes_out() {
    let place = Place::new();
    place.write("a.jsonl", LINES);
    place.write("b.txt", "two\n\nparagraphs\n");
    let run =
        place.run(&["data", "build", "a.jsonl", "text=b.txt", "-o", "x", "--split", "blank-lines"]).ok();
    assert!(run.out.is_empty());
    for word in ["label", "characters/token", "\n  text ", "\n  all ", "wrote x.bin and .idx: 4 documents"] {
        assert!(run.err.contains(word), "`{word}` in: {}", run.err);
    }
    let shown = place.run(&["data", "inspect", "x.idx", "--count", "9"]).ok().text();
    let want = [
        "── document 0, 5 tokens\n⟦The Eiffel tower⟧\n",
        "── document 1, 14 tokens\nUser: Why?\n\nAssistant:⟦ So.⟧\n",
        "── document 2, 2 tokens\n⟦two⟧\n",
        "── document 3, 4 tokens\n⟦paragraphs⟧\n",
    ];
    let without_counts = |s: &str| {
        let kept = s.lines().map(|l| l.split(" tokens").next().unwrap().rsplit_once(", ").map_or(l, |p| p.0));
        kept.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without_counts(&shown), without_counts(&want.concat()));
    let json = place.run(&["data", "inspect", "x", "--json", "--context", "4"]).ok().json();
    let read = Reader::open(&place.path("x")).unwrap();
    assert_eq!((json["documents"].as_u64(), json["tokens"].as_u64()), (Some(4), Some(read.tokens())));
    assert_eq!(json["dtype"], "u16");
    assert_eq!(json["magic_prime"].as_u64(), hawfinch_data::sampler::magic_prime(read.tokens(), 4));
    let json = place.run(&["data", "inspect", "x", "--document", "1", "--json"]).ok().json();
    assert_eq!(json[0]["text"], "User: Why?\n\nAssistant: So.");
    place.run(&["data", "inspect", "x", "--document", "4"]).fails(2, &["no document 4", "it has 4"]);
}

#[test]
fn standard_input_packed_or_not() {
    let place = Place::new();
    place.write("a.jsonl", LINES);
    place.run(&["data", "build", "a.jsonl", "-o", "file"]).ok();
    place.run_with(&["data", "build", "-", "-o", "pipe"], LINES.as_bytes()).ok();
    let packed = ruzstd_frame(LINES.as_bytes());
    let json = place.run_with(&["data", "build", "zipped=-", "-o", "zstd", "--json"], &packed).ok().json();
    assert_eq!(json["labels"][0]["label"], "zipped");
    assert!(pair(&place, "file") == pair(&place, "pipe") && pair(&place, "file") == pair(&place, "zstd"));
    place.run_with(&["data", "build", "-", "-o", "y", "--shard", "1/2"], b"x").fails(2, &["shards"]);
    let bad = [LINES, "{\"x\": 1}\n"].concat();
    place
        .run_with(&["data", "build", "-", "-o", "y"], bad.as_bytes())
        .fails(1, &["standard input, line 4", "`x`"]);
    assert!(!place.path("y.parts").exists(), "nothing of standard input is kept");
}

/// A Zstandard frame of one raw block: the header says one segment of one byte's length.
fn ruzstd_frame(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, u8::try_from(text.len()).unwrap()];
    frame.extend(&(1 | (text.len() as u32) << 3).to_le_bytes()[..3]);
    frame.extend(text);
    frame
}

#[test]
fn shards_merge_to_what_one_run_writes() {
    let place = Place::new();
    let build = large(&place);
    place.run(&[&build[..], &["-o", "one", "--threads", "1"]].concat()).ok();
    for (shard, all) in [("3/3", false), ("1/3", false), ("2/3", true), ("1/3", true)] {
        let run = place.run(&[&build[..], &["-o", "many", "--shard", shard]].concat()).ok();
        assert!(run.err.contains("is done"), "{}", run.err);
        assert!(!place.path("many.bin").exists());
        if all {
            continue;
        }
        place.run(&["data", "merge", "many.parts", "-o", "many"]).fails(2, &["let every shard end"]);
    }
    place.run(&["data", "merge", "many.parts", "-o", "many"]).ok();
    assert!(pair(&place, "one") == pair(&place, "many"));
    assert!(pair(&place, "one.held-out") == pair(&place, "many.held-out"));
    place.run(&["data", "merge", "many.parts", "-o", "many"]).fails(2, &["--force"]);
    place.run(&["data", "merge", "nowhere", "-o", "z"]).fails(2, &["no work folder"]);
}

#[test]
fn what_exists_is_not_replaced_unasked() {
    let place = Place::new();
    place.write("a.jsonl", LINES);
    place.run(&["data", "build", "a.jsonl", "-o", "x"]).ok();
    let before = pair(&place, "x");
    place.run(&["data", "build", "a.jsonl", "-o", "x"]).fails(2, &["x.bin exists", "--force"]);
    place.run(&["data", "build", "a.jsonl", "-o", "x", "--force"]).ok();
    assert!(before == pair(&place, "x"));
    place.write("a.bin", "text");
    place.run(&["data", "build", "a.bin", "-o", "a", "--force"]).fails(2, &["a file to read"]);
}

#[test]
fn bad_input_is_one_sentence() {
    let place = Place::new();
    place.write("a.jsonl", LINES);
    place.write("x.zip", "PK\x03\x04");
    place.write("bad.jsonl", "{\"text\": 1}\n");
    place.write("array.json", "[{\"text\": \"a\"}]");
    place.write("short.idx", "MMIDIDX");
    place.write("short.bin", "");
    let fails = |args: &[&str], code, words: &[&str]| {
        place.run(&[&["data"], args].concat()).fails(code, words);
    };
    fails(&["build", "nope.jsonl", "-o", "x"], 1, &["cannot read nope.jsonl"]);
    fails(&["build", "no*pe", "-o", "x"], 2, &["`no*pe` has no file"]);
    fails(&["build", "x.zip", "-o", "x"], 2, &["zip archive"]);
    fails(&["build", "bad.jsonl", "-o", "x"], 1, &["bad.jsonl, line 1", "--bad-lines skip"]);
    fails(&["build", "array.json", "-o", "x"], 2, &["JSON array", "jq"]);
    fails(&["build", "a.jsonl:1", "bad.jsonl", "-o", "x"], 2, &["every source"]);
    fails(&["build", "a.jsonl:0", "-o", "x"], 2, &["weight"]);
    fails(&["build", "a.jsonl", "-o", "no/such/x"], 1, &["no folder no/such"]);
    fails(&["build", "a.jsonl", "-o", "x", "--held-out", "200%"], 2, &["held-out share"]);
    fails(&["inspect", "nope"], 1, &["nope.idx"]);
    fails(&["inspect", "short"], 1, &["no data set"]);
    assert!(!place.path("x.parts").exists() && !place.path("x.bin").exists());
    for wrong in
        [&["build", "a.jsonl"][..], &["build", "-o", "x"], &["build", "a", "-o", "x", "--shard", "3/2"]]
    {
        assert_eq!(place.run(&[&["data"], wrong].concat()).code, 2, "{wrong:?}");
    }
}

#[test]
fn a_list_of_sources() {
    let place = Place::new();
    place.write("a.txt", "one");
    place.write("b.txt", "two");
    place.write("list", "# what to read\na.txt\n\n b=b.txt \n");
    let json = place.run(&["data", "build", "--sources", "list", "-o", "x", "--json"]).ok().json();
    assert_eq!(json["labels"][1]["label"], "b");
    assert_eq!(json["written"]["documents"], 2);
}

/// Ctrl-C keeps what is done, and the same command goes on to the same bytes.
#[cfg(unix)]
#[test]
fn an_interrupted_build_goes_on() {
    let place = Place::new();
    let build = large(&place);
    place.run(&[&build[..], &["-o", "one"]].concat()).ok();
    let again = [&build[..], &["-o", "again"]].concat();
    let mut kept = 0;
    for milliseconds in [20, 40, 80, 160] {
        let mut command = place.command(&again);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        // SAFETY: the child is ours and has not been waited for, so the number is still its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert!(!place.path("again.bin").exists());
        kept += usize::from(place.path("again.parts").exists());
    }
    eprintln!("{kept} of the interruptions left something to go on from");
    if !place.path("again.bin").exists() {
        place.run(&again).ok();
    }
    assert!(pair(&place, "one") == pair(&place, "again"));
    assert!(!place.path("again.parts").exists());
}

/// A full disk: one sentence, what is done is kept, and with room the same command goes on.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let place = Place::new();
    let build = large(&place);
    place.run(&[&build[..], &["-o", "one"]].concat()).ok();
    let args = [&build[..], &["-o", "two"]].concat();
    place.run_limited(200, &args).fails(1, &["cannot write two", "make room"]);
    assert!(!place.path("two.bin").exists() && !place.path("two.idx").exists());
    assert!(place.path("two.parts").exists());
    place.run(&args).ok();
    assert!(pair(&place, "one") == pair(&place, "two"));
    let left: Vec<String> = std::fs::read_dir(place.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n.ends_with(".part") || n.ends_with(".parts"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_references_bytes() {
    let place = Place::new();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../hawfinch-data/tests/data/demo");
    place.run(&["data", "build", &format!("{demo}.jsonl"), "-o", "x"]).ok();
    let want = ["bin", "idx"].map(|e| std::fs::read(format!("{demo}.{e}")).unwrap());
    assert!(pair(&place, "x") == want);
}

#[test]
fn many_sources_are_summed_up() {
    let place = Place::new();
    let sources: Vec<String> = (0..45)
        .map(|n| {
            place.write(&format!("{n}.txt"), format!("text {n} ").repeat(if n < 40 { 20 } else { 4 }));
            format!("l{n}={n}.txt:{}", if n < 40 { 5 } else { 1 })
        })
        .collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let args = [&["data", "build"], &sources[..], &["-o", "set", "--tokenizer", "bytes"]].concat();
    let said = place.run(&args).ok().err;
    assert_eq!(said.matches("  5 others").count(), 2, "labels and sources: {said}");
    assert!(said.contains("39.txt") && !said.contains("44.txt"), "{said}");
}
