//! Whole data sets: the reference's bytes, and the same bytes whatever the threads, parts, shards and interruptions.

mod masks;
mod way;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hawfinch_data::binidx::Reader;
use hawfinch_data::{
    BadLines, Control, Error, HeldOut, Invalid, Mixing, Policy, Reading, Shard, Split, build, held_out_name,
};
use hawfinch_tokenizer::Tokenizer;

use crate::way::{Random, Way, bytes, corpus, everything, gzip, texts};

#[test]
fn the_references_bytes() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/demo");
    let place = tempfile::tempdir().unwrap();
    let source = demo.with_extension("jsonl").display().to_string();
    for (i, split) in [Split::None, Split::BlankLines].into_iter().enumerate() {
        let out = place.path().join(format!("{i}.of.mine"));
        let way = Way { reading: Reading { split, part_bytes: 100, ..Reading::default() }, ..Way::default() };
        let summary = way.build(std::slice::from_ref(&source), &out).unwrap();
        let want = ["bin", "idx"].map(|e| std::fs::read(demo.with_extension(e)).unwrap());
        assert!(bytes(&out) == want);
        assert_eq!((summary.written.documents, summary.written.tokens), (7, 324));
        assert!(!build::work_folder(&out).exists(), "the work folder is removed");
    }
}

#[test]
fn threads_and_parts_change_nothing() {
    let (place, sources) = corpus();
    for (n, way) in [Way::default(), everything()].into_iter().enumerate() {
        let first = place.path().join(format!("{n}-first"));
        let summary = way.build(&sources, &first).unwrap();
        assert!(summary.written.documents > 300, "{summary:?}");
        for (threads, part_bytes) in [(1, 1 << 26), (3, 1000), (2, 4096), (4, 333), (1, 20_000)] {
            let out = place.path().join(format!("{n}-{threads}-{part_bytes}"));
            let way = Way { threads, reading: Reading { part_bytes, ..way.reading.clone() }, ..way.clone() };
            assert_eq!(way.build(&sources, &out).unwrap(), summary);
            assert!(bytes(&out) == bytes(&first), "{threads} threads, parts of {part_bytes}");
        }
    }
}

#[test]
fn shards_merge_to_the_same_bytes_in_any_order_and_twice() {
    let (place, sources) = corpus();
    let world = Tokenizer::world();
    let way = Way { reading: Reading { part_bytes: 1500, ..everything().reading }, ..everything() };
    let first = place.path().join("first");
    let summary = way.build(&sources, &first).unwrap();
    let plan = way.plan(&sources).unwrap();
    for of in [1, 2, 5, 40] {
        let folder = |number: u64| place.path().join(format!("{of}-{number}"));
        let mut order: Vec<u64> = (1..=of).rev().collect();
        order.push(1);
        for number in order {
            let (shard, control) = (Shard { number, of }, Control::quiet(2));
            build::tokenise_shard(&plan, &folder(number), shard, way.policy, false, &world, control).unwrap();
        }
        let folders: Vec<PathBuf> = (1..=of).map(|n| build::work_folder(&folder(n))).collect();
        let out = place.path().join(format!("{of}-merged"));
        let merged = build::plan_of(&folders).unwrap();
        if of > 1 {
            let some = build::merge(&merged, &folders[1..], &out, Control::quiet(1)).unwrap_err();
            assert!(some.to_string().contains("let every shard end"), "{some}");
        }
        assert_eq!(build::merge(&merged, &folders, &out, Control::quiet(1)).unwrap(), summary);
        assert!(bytes(&out) == bytes(&first), "{of} shards");
    }
}

#[test]
fn what_was_stopped_goes_on_to_the_same_bytes() {
    let (place, sources) = corpus();
    let world = Tokenizer::world();
    let way = Way { reading: Reading { part_bytes: 1500, ..everything().reading }, ..everything() };
    let first = place.path().join("first");
    let summary = way.build(&sources, &first).unwrap();
    let plan = way.plan(&sources).unwrap();
    let out = place.path().join("again");
    let mut stops = 0;
    let done = loop {
        // Stopped after so many looks, each time somewhat later.
        let looks = AtomicU64::new(0);
        let stop = || looks.fetch_add(1, Ordering::Relaxed) > 20 + 5 * stops;
        let control = Control { threads: 2, progress: &|_, _, _| (), stop: &stop };
        let step = build::tokenise_shard(&plan, &out, Shard::WHOLE, way.policy, false, &world, control)
            .and_then(|()| build::finish(&plan, &out, control));
        match step {
            Ok(done) => break done,
            Err(Error::Stopped) => stops += 1,
            Err(e) => panic!("{e}"),
        }
        assert!(bytes(&out).is_empty(), "half a data set bears the name");
        assert!(stops < 1000);
    };
    assert!(stops > 2, "{stops}");
    assert_eq!(done, summary);
    assert!(bytes(&out) == bytes(&first));
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains(".part")), "{left:?}");
}

#[test]
fn finished_parts_are_not_made_again_but_changed_files_are_noticed() {
    let (place, sources) = corpus();
    let world = Tokenizer::world();
    let way = Way { reading: Reading { part_bytes: 1500, ..Reading::default() }, ..Way::default() };
    let out = place.path().join("x");
    let make = |way: &Way, anew| {
        let plan = way.plan(&sources).unwrap();
        build::tokenise_shard(&plan, &out, Shard::WHOLE, way.policy, anew, &world, Control::quiet(1))
    };
    make(&way, false).unwrap();
    let times = || {
        let mut all: Vec<_> = std::fs::read_dir(build::work_folder(&out))
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name() != "plan.json")
            .map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap()))
            .collect();
        all.sort();
        all
    };
    let before = times();
    assert!(before.len() > 20);
    make(&way, false).unwrap();
    assert_eq!(times(), before);
    // Decisions that come later do not need new parts.
    make(&Way { mixing: everything().mixing, ..way.clone() }, false).unwrap();
    assert_eq!(times(), before);
    let other = Way { reading: Reading { min_tokens: 9, ..way.reading.clone() }, ..way.clone() };
    assert!(make(&other, false).unwrap_err().to_string().contains("--force"));
    make(&other, true).unwrap();
    assert_ne!(times(), before);
    std::fs::write(&sources[0], "{\"text\": \"new\"}\n").unwrap();
    assert!(matches!(make(&other, false), Err(Error::OtherWork(_))));
    // Where nothing was finished, there is nothing to protect.
    for entry in std::fs::read_dir(build::work_folder(&out)).unwrap().map(|e| e.unwrap()) {
        if entry.file_name() != "plan.json" {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    make(&other, false).unwrap();
    // A folder of somebody else's is left alone.
    std::fs::remove_file(build::work_folder(&out).join("plan.json")).unwrap();
    assert!(make(&other, true).unwrap_err().to_string().contains("in the way"));
}

#[test]
fn duplicates_are_left_out_and_equal_texts_are_held_out_together() {
    let (place, sources) = corpus();
    let plain = place.path().join("plain");
    let all = { Way::default().build(&sources, &plain).unwrap() };
    let all_texts = texts(&plain);
    let mut once = Vec::new();
    all_texts.iter().for_each(|t| {
        if !once.contains(t) {
            once.push(t.clone());
        }
    });
    assert!(once.len() + 50 < all_texts.len());
    let way = Way { mixing: Mixing { dedup: true, ..Mixing::default() }, ..Way::default() };
    let out = place.path().join("once");
    let summary = way.build(&sources, &out).unwrap();
    assert_eq!(texts(&out), once);
    assert_eq!(summary.duplicates, (all_texts.len() - once.len()) as u64);
    assert_eq!(summary.written.documents + summary.duplicates, all.written.documents);
    for held_out in [HeldOut::Texts(40), HeldOut::Share(0.05)] {
        let way = Way { mixing: Mixing { held_out: Some(held_out), ..Mixing::default() }, ..Way::default() };
        let out = place.path().join(format!("{held_out:?}"));
        way.build(&sources, &out).unwrap();
        let (train, held) = (texts(&out), texts(&held_out_name(&out)));
        assert_eq!(train.len() + held.len(), all_texts.len());
        assert!(held.iter().all(|t| !train.contains(t)), "a text is on both sides");
        let mut different = held.clone();
        different.sort();
        different.dedup();
        match held_out {
            HeldOut::Texts(n) => assert_eq!(different.len() as u64, n),
            HeldOut::Share(_) => assert!((20..80).contains(&different.len()), "{}", different.len()),
        }
    }
}

#[test]
fn shares_of_tokens_come_out_as_asked() {
    let (place, sources) = corpus();
    let weights = [70.0, 15.0, 5.0, 10.0];
    let weighted: Vec<String> = sources.iter().zip(weights).map(|(s, w)| format!("{s}:{w}%")).collect();
    for tokens in [None, Some(200_000)] {
        let way = Way { mixing: Mixing { tokens, ..Mixing::default() }, ..Way::default() };
        let out = place.path().join(format!("{tokens:?}"));
        let summary = way.build(&weighted, &out).unwrap();
        let there: u64 = summary.sources.iter().map(|s| s.tokens_there).sum();
        let total = summary.written.tokens as f64;
        assert!((total / tokens.unwrap_or(there) as f64 - 1.0).abs() < 0.02, "{total}");
        for (source, weight) in summary.sources.iter().zip(weights) {
            let share = source.tokens_written as f64 / total;
            assert!((share - weight / 100.0).abs() < 0.01, "{}: {share}, asked {weight}%", source.source);
        }
        assert_eq!(Reader::open(&out).unwrap().tokens(), summary.written.tokens);
    }
}

#[test]
fn a_shuffle_loses_nothing_and_its_seed_decides() {
    let (place, sources) = corpus();
    let make = |seed| {
        let out = place.path().join(format!("{seed:?}"));
        let way = Way { mixing: Mixing { shuffle: seed, ..Mixing::default() }, ..Way::default() };
        way.build(&sources, &out).unwrap();
        texts(&out)
    };
    let (plain, one, two) = (make(None), make(Some(1)), make(Some(2)));
    assert!(plain != one && one != two);
    let sorted = |mut v: Vec<String>| {
        v.sort();
        v
    };
    assert_eq!(sorted(plain.clone()), sorted(one));
    assert_eq!(sorted(plain), sorted(two));
}

#[test]
fn text_is_divided_as_asked() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.txt");
    std::fs::write(&path, "\u{feff}one\r\ntwo\n\n\nthree\n").unwrap();
    let source = [path.display().to_string()];
    for (split, want) in [
        (Split::None, vec!["one\r\ntwo\n\n\nthree\n"]),
        (Split::Lines, vec!["one", "two", "three"]),
        (Split::BlankLines, vec!["one\r\ntwo", "three"]),
    ] {
        for part_bytes in [1, 4, 1 << 20] {
            let out = place.path().join(format!("{split:?}-{part_bytes}"));
            let way = Way { reading: Reading { split, part_bytes, ..Reading::default() }, ..Way::default() };
            way.build(&source, &out).unwrap();
            assert_eq!(texts(&out), want, "{split:?}, parts of {part_bytes}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_told_or_counted() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.jsonl");
    let lines = b"{\"text\": \"good\"}\n\n{\"title\": \"x\"}\n{\"text\": \"caf\xe9\"}\n{\"text\": \"\"}\n";
    std::fs::write(&path, lines).unwrap();
    let source = [path.display().to_string()];
    let out = place.path().join("x");
    let make = |invalid, bad_lines| {
        Way { policy: Policy { invalid, bad_lines }, ..Way::default() }.build(&source, &out)
    };
    let said = make(Invalid::Replace, BadLines::Fail).unwrap_err().to_string();
    assert!(said.contains("a.jsonl, line 3: ") && said.contains("`title`"), "{said}");
    let said = make(Invalid::Fail, BadLines::Skip).unwrap_err().to_string();
    assert!(said.contains("a.jsonl, line 4: ") && said.contains("UTF-8"), "{said}");
    let summary = make(Invalid::Replace, BadLines::Skip).unwrap();
    assert_eq!((summary.bad_lines, summary.replaced_utf8, summary.too_short), (1, 1, 1));
    assert_eq!(texts(&out), ["good", "caf\u{fffd}"]);
    let summary = make(Invalid::Skip, BadLines::Skip).unwrap();
    assert_eq!((summary.bad_lines, summary.invalid_utf8), (1, 1));
    assert_eq!(texts(&out), ["good"]);
    // Parts that were made leniently do not pass for strict ones.
    let plan = Way::default().plan(&source).unwrap();
    let lenient = Policy { invalid: Invalid::Replace, bad_lines: BadLines::Skip };
    let make = |policy| {
        let world = Tokenizer::world();
        build::tokenise_shard(&plan, &out, Shard::WHOLE, policy, false, &world, Control::quiet(1))
    };
    make(lenient).unwrap();
    assert!(make(Policy::default()).is_err());
}

#[test]
fn a_damaged_archive_is_told_and_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    let whole = gzip("{\"text\": \"some text that goes on\"}\n".repeat(100).as_bytes());
    let path = place.path().join("a.jsonl.gz");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let out = place.path().join("x");
    let said = Way::default().build(&[path.display().to_string()], &out).unwrap_err().to_string();
    assert!(said.contains("cannot read") && said.contains("a.jsonl.gz"), "{said}");
    assert!(bytes(&out).is_empty());
}

#[test]
fn empty_files_and_one_line_make_a_data_set() {
    let place = tempfile::tempdir().unwrap();
    let (empty, one) = (place.path().join("e.jsonl"), place.path().join("o.jsonl"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&one, "{\"text\": \"a\"}").unwrap();
    let path = |p: &Path| p.display().to_string();
    let out = place.path().join("x");
    assert_eq!(Way::default().build(&[path(&empty)], &out).unwrap().written.documents, 0);
    assert_eq!(texts(&out), [""; 0]);
    Way::default().build(&[path(&empty), path(&one)], &out).unwrap();
    assert_eq!(texts(&out), ["a"]);
    let way = everything();
    way.build(&[path(&empty)], &out).unwrap();
    assert_eq!(texts(&out), [""; 0]);
}

/// Ten million tokens, on several threads, as on one.
#[test]
fn a_very_long_document() {
    let place = tempfile::tempdir().unwrap();
    let mut random = Random(3);
    let mut text = String::new();
    while text.len() < 34_000_000 {
        text += &random.text();
    }
    let path = place.path().join("long.txt");
    std::fs::write(&path, &text).unwrap();
    let out = place.path().join("x");
    let summary = Way::default().build(&[path.display().to_string()], &out).unwrap();
    assert!(summary.written.documents == 1 && summary.written.tokens > 10_000_000, "{summary:?}");
    let mut want = Tokenizer::world().encode(text.as_bytes());
    want.push(0);
    assert!(Reader::open(&out).unwrap().document(0).unwrap() == want);
}
