//! Masks: what is learned of conversations, and the same bytes however the work is divided.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hawfinch_data::binidx::Reader;
use hawfinch_data::{Control, Error, LossOn, Mask, Reading, Shard, build, held_out_name};
use hawfinch_tokenizer::Tokenizer;
use tempfile::TempDir;

use crate::way::{Random, Way, bytes, everything, gzip, texts};

/// Conversations of some turns, and texts: plain, gzip, and both in one file.
fn chats() -> (TempDir, Vec<String>) {
    let place = tempfile::tempdir().unwrap();
    let mut random = Random(11);
    // No turn is empty: what the test takes for a border is one.
    let said = |random: &mut Random| format!("x{}", random.text());
    let mut lines = |n: usize, text: u64| {
        let mut out = String::new();
        for _ in 0..n {
            let line = match random.below(10) {
                0 => serde_json::json!({"instruction": said(&mut random), "output": said(&mut random)}),
                // Of nobody who answers.
                1 => serde_json::json!({"messages": [{"role": "user", "content": said(&mut random)}]}),
                k if k < 2 + text => serde_json::json!({"text": random.text()}),
                _ => {
                    let roles = ["system", "user", "assistant", "tool"];
                    let turns = 1 + random.below(6);
                    let turn = |random: &mut Random| {
                        let role = roles[random.below(4) as usize];
                        serde_json::json!({"role": role, "content": said(random)})
                    };
                    let mut turns: Vec<_> = (0..turns).map(|_| turn(&mut random)).collect();
                    turns.push(serde_json::json!({"role": "assistant", "content": said(&mut random)}));
                    serde_json::json!({"messages": turns})
                }
            };
            out += &format!("{line}\n");
        }
        out
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(place.path().join(name), bytes).unwrap();
    write("chats.jsonl", lines(300, 0).as_bytes());
    write("mixed.jsonl.gz", &gzip(lines(200, 4).as_bytes()));
    write("notes.txt", Random(5).text().repeat(3).as_bytes());
    let path = |name: &str| place.path().join(name).display().to_string();
    let sources = vec![path("chats.jsonl"), path("mixed.jsonl.gz"), path("notes.txt")];
    (place, sources)
}

/// Every decision at once, over conversations.
fn masked() -> Way {
    let reading = Reading { loss_on: LossOn::Assistant, part_bytes: 1500, ..everything().reading };
    Way { reading, ..everything() }
}

/// The mask of a text by another way than that of the builder: what stands behind `Assistant:` up to the next blank line.
fn mask_of(text: &str) -> Vec<bool> {
    let world = Tokenizer::world();
    let mut learned = vec![false; text.len() + 1];
    let mut at = 0;
    // The name counts at the start of a paragraph alone.
    for turn in text.split_inclusive("\n\n") {
        if turn.starts_with("Assistant:") {
            learned[at + "Assistant:".len()..at + turn.len()].fill(true);
        }
        at += turn.len();
    }
    // The end of the document is the end of its last turn.
    learned[text.len()] = text.split("\n\n").last().unwrap().starts_with("Assistant:");
    let (mut mask, mut at) = (Vec::new(), 0);
    for id in world.encode(text.as_bytes()) {
        mask.push(learned[at]);
        at += world.token_bytes(id).unwrap().len();
    }
    mask.push(learned[text.len()]);
    mask
}

fn mask(out: &Path) -> Option<Vec<Vec<bool>>> {
    let read = Reader::open(out).unwrap();
    let mask = Mask::open(&read).unwrap()?;
    let document = |n: u64| {
        let ((start, len), mut learned) = (read.span(n).unwrap(), Vec::new());
        mask.read(start, len, &mut learned).unwrap();
        learned
    };
    Some((0..read.documents()).map(document).collect())
}

#[test]
fn masks_say_what_the_assistant_says() {
    let (place, sources) = chats();
    let out = place.path().join("x");
    let way = |loss_on| Way { reading: Reading { loss_on, ..Reading::default() }, ..Way::default() };
    let mut summary = way(LossOn::Assistant).build(&sources, &out).unwrap();
    assert!(summary.masked && summary.nothing_to_learn > 10, "{summary:?}");
    let (written, mask) = (texts(&out), mask(&out).unwrap());
    let (mut chats, mut learned) = (0, 0);
    for (text, mask) in written.iter().zip(&mask) {
        // Plain texts have no names; they are learned whole.
        let chat = text.contains("Assistant: ");
        assert!(if chat { *mask == mask_of(text) } else { mask.iter().all(|l| *l) }, "{text:?} {mask:?}");
        learned += mask.iter().filter(|l| **l).count() as u64;
        chats += usize::from(chat);
    }
    assert!(chats > 300 && chats + 40 < written.len(), "{chats} of {}", written.len());
    assert_eq!(
        (summary.written.learned, learned),
        (learned, summary.labels.iter().map(|l| l.written.learned).sum())
    );
    // Without a mask the same texts, but for the conversations that were left out.
    let plain = place.path().join("plain");
    let all = way(LossOn::All).build(&sources, &plain).unwrap();
    assert!(!all.masked && all.written.learned == all.written.tokens && all.nothing_to_learn == 0);
    assert_eq!(all.written.documents, summary.written.documents + summary.nothing_to_learn);
    assert!(texts(&plain).iter().filter(|t| written.contains(t)).eq(written.iter()));
    // A mask of what was there before does not stay.
    way(LossOn::All).build(&sources, &out).unwrap();
    assert!(bytes(&out) == bytes(&plain) && !out.with_extension("mask.idx").exists());
    // Texts alone need none.
    summary = way(LossOn::Assistant).build(&sources[2..], &out).unwrap();
    assert!(!summary.masked && bytes(&out).len() == 2);
    let users = place.path().join("u.jsonl");
    std::fs::write(&users, "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n").unwrap();
    let said = way(LossOn::Assistant).build(&[users.display().to_string()], &out).unwrap_err().to_string();
    assert!(said.contains("nothing is to be learned") && said.contains("--loss-on all"), "{said}");
}

#[test]
fn masks_are_the_same_bytes_in_parts_shards_and_after_interruptions() {
    let (place, sources) = chats();
    let world = Tokenizer::world();
    let first = place.path().join("first");
    let way = masked();
    let summary = way.build(&sources, &first).unwrap();
    assert_eq!(bytes(&first).len(), 8, "a data set and a held-out one, each with its mask");
    for out in [first.clone(), held_out_name(&first)] {
        for (text, mask) in texts(&out).iter().zip(mask(&out).unwrap()) {
            assert!(!text.contains("Assistant: ") || mask == mask_of(text), "{text:?}");
        }
    }
    for (threads, part_bytes) in [(1, 1 << 26), (3, 700)] {
        let out = place.path().join(format!("{threads}-{part_bytes}"));
        let way = Way { threads, reading: Reading { part_bytes, ..way.reading.clone() }, ..way.clone() };
        assert_eq!(way.build(&sources, &out).unwrap(), summary);
        assert!(bytes(&out) == bytes(&first), "{threads} threads, parts of {part_bytes}");
    }
    let plan = way.plan(&sources).unwrap();
    let folder = |number: u64| place.path().join(format!("shard-{number}"));
    for number in [3, 1, 2] {
        let (shard, control) = (Shard { number, of: 3 }, Control::quiet(2));
        build::tokenise_shard(&plan, &folder(number), shard, way.policy, false, &world, control).unwrap();
    }
    let folders: Vec<PathBuf> = (1..=3).map(|n| build::work_folder(&folder(n))).collect();
    let merged = place.path().join("merged");
    assert_eq!(build::merge(&plan, &folders, &merged, Control::quiet(1)).unwrap(), summary);
    assert!(bytes(&merged) == bytes(&first));
    let out = place.path().join("again");
    for stops in 0.. {
        let looks = AtomicU64::new(0);
        let stop = || looks.fetch_add(1, Ordering::Relaxed) > 20 + 5 * stops;
        let control = Control { threads: 2, progress: &|_, _, _| (), stop: &stop };
        let step = build::tokenise_shard(&plan, &out, Shard::WHOLE, way.policy, false, &world, control)
            .and_then(|()| build::finish(&plan, &out, control));
        match step {
            Ok(done) => {
                assert!(done == summary && stops > 0);
                break;
            }
            Err(Error::Stopped) => assert!(bytes(&out).is_empty(), "half a data set bears the name"),
            Err(e) => panic!("{e}"),
        }
    }
    assert!(bytes(&out) == bytes(&first));
    // Parts of one loss are no parts of another.
    build::tokenise_shard(&plan, &out, Shard::WHOLE, way.policy, false, &world, Control::quiet(1)).unwrap();
    for reading in [
        Reading { loss_on: LossOn::All, ..way.reading.clone() },
        Reading { template: "raven".into(), ..way.reading.clone() },
    ] {
        let plan = Way { reading, ..way.clone() }.plan(&sources).unwrap();
        let made =
            build::tokenise_shard(&plan, &out, Shard::WHOLE, way.policy, false, &world, Control::quiet(1));
        assert!(matches!(made, Err(Error::OtherWork(_))));
    }
}
