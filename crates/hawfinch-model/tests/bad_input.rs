//! Files that are damaged, hostile or something else: each ends in an error with its own sentence,
//! never in a panic, never in an allocation by a length from the file.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::data;
use hawfinch_model::format::{self, ai00, pth, safetensors};
use hawfinch_model::{Checkpoint, Cpu, Model, OpenOptions, Result, Rows, Sequence};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn refused(result: Result<Checkpoint>, what: &str) {
    let error = result.map(|c| c.tensors.len()).unwrap_err().to_string();
    assert!(error.contains(what), "expected {what:?} in: {error}");
    assert!(!error.contains('\n') && error.len() < 600, "no single sentence: {error}");
}

fn read_pth(bytes: Vec<u8>) -> Result<Checkpoint> {
    pth::read(Path::new("test.pth"), bytes.into())
}

fn read_safetensors(bytes: Vec<u8>) -> Result<Checkpoint> {
    safetensors::read(Path::new("test.safetensors"), bytes.into())
}

/// Uses everything that a checkpoint holds.
fn walk(ckpt: Checkpoint) {
    for t in ckpt.tensors.values() {
        assert_eq!(t.expected_bytes(), Some(t.data.len()));
        if t.len() < 1 << 20 {
            assert_eq!(t.to_f32().len(), t.len());
        }
    }
    let Ok(config) = hawfinch_model::Config::infer(&ckpt) else { return };
    // What passes for a model is run; a state beyond a few megabytes would be another test's matter.
    if config.state_len() < 1 << 20
        && let Ok(model) = Model::from_checkpoint(ckpt, OpenOptions::default(), Cpu::new(1))
    {
        let (mut state, tokens) = (model.new_state(), [0, 1.min(config.vocab as u32 - 1)]);
        let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
        let _ = model.forward(&mut [call]);
    }
}

#[test]
fn truncation_at_every_length_is_an_error() {
    for (name, read) in [
        ("state.pth", pth::read as fn(&Path, Bytes) -> Result<Checkpoint>),
        ("state.web-rwkv.st", safetensors::read),
        ("live.state", ai00::read),
    ] {
        let whole = Bytes::from(std::fs::read(data(name)).unwrap());
        assert!(read(Path::new(name), whole.clone()).is_ok());
        for n in 0..whole.len() {
            assert!(read(Path::new(name), whole.slice(..n)).is_err(), "{name} cut at {n} was accepted");
        }
    }
    let whole = std::fs::read(data("state.pth")).unwrap();
    refused(read_pth(whole[..whole.len() / 2].to_vec()), "is truncated");
    let whole = std::fs::read(data("state.web-rwkv.st")).unwrap();
    refused(read_safetensors(whole[..whole.len() - 1].to_vec()), "is truncated");
    refused(read_safetensors(whole[..40].to_vec()), "is truncated");
    refused(read_safetensors([&whole[..], &[0]].concat()), "follow its last tensor");
}

#[test]
fn flipped_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "state.pth",
        "live.state",
        "v4.pth",
        "state.web-rwkv.st",
        "v7.web-rwkv.st",
        "v6.hf/model-00001-of-00002.safetensors",
        "v6.fla/model.safetensors",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        let mut random = Random(whole.len() as u64);
        let path = dir.path().join("x");
        for round in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(4) {
                // Most of the structure is at the two ends.
                let span = bytes.len().min(4096);
                let at = match random.below(3) {
                    0 => random.below(span),
                    1 => bytes.len() - 1 - random.below(span),
                    _ => random.below(bytes.len()),
                };
                bytes[at] = random.next() as u8;
            }
            let file = Bytes::from(bytes);
            let read = match name.rsplit_once('.').unwrap().1 {
                "pth" => pth::read,
                "state" => ai00::read,
                _ => safetensors::read,
            };
            if let Ok(c) = read(Path::new(name), file.clone()) {
                walk(c);
            }
            // Now and then with names translated.
            if round % 20 == 0 {
                std::fs::write(&path, &file).unwrap();
                if let Ok(c) = format::open(&path) {
                    walk(c);
                }
            }
        }
    }
}

#[test]
fn random_pickles_never_panic() {
    let mut random = Random(1);
    let ops = b"}](). (tusa eqrhjcQRbXKMJGN\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x93\x94\x95";
    for _ in 0..20_000 {
        let n = random.below(60);
        let body: Vec<u8> = (0..n)
            .map(|_| if random.below(3) == 0 { random.next() as u8 } else { ops[random.below(ops.len())] })
            .collect();
        if let Ok(c) = read_pth(archive(&body, &[("data/0", b"1234")])) {
            walk(c);
        }
    }
}

/// A zip of stored records, with right checksums, as small as the format allows.
fn zip(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, bytes) in records {
        let offset = out.len() as u32;
        let mut shared = vec![0, 0, 0, 0, 0, 0, 0, 0]; // flags, method, time, date
        shared.extend(rawzip::crc32(bytes).to_le_bytes());
        shared.extend((bytes.len() as u32).to_le_bytes());
        shared.extend((bytes.len() as u32).to_le_bytes());
        shared.extend((name.len() as u16).to_le_bytes());
        shared.extend([0, 0]);
        out.extend(b"PK\x03\x04\x14\x00");
        out.extend(&shared);
        out.extend(name.as_bytes());
        out.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&shared);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((records.len() as u16).to_le_bytes());
    out.extend((records.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A checkpoint of that pickle and these records.
fn archive(pickle: &[u8], records: &[(&str, &[u8])]) -> Vec<u8> {
    let named: Vec<(String, &[u8])> =
        [("data.pkl", pickle)].iter().chain(records).map(|(n, b)| (format!("archive/{n}"), *b)).collect();
    zip(&named.iter().map(|(n, b)| (n.as_str(), *b)).collect::<Vec<_>>())
}

/// The pickle of `{"w": tensor}`, with numbers as the text of the pickle's protocol-2 arguments.
fn tensor(numel: &[u8], offset: &[u8], shape: &[&[u8]], strides: &[&[u8]]) -> Vec<u8> {
    let tuple = |items: &[&[u8]]| [b"(".as_slice(), &items.concat(), b"t"].concat();
    [
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu".as_slice(),
        numel,
        b"tQ",
        offset,
        &tuple(shape),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

const HUGE: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";

#[test]
fn tensors_stay_inside_their_storage() {
    let floats = [0u8; 16];
    let read = |pickle: Vec<u8>| read_pth(archive(&pickle, &[("data/0", &floats)]));
    // The sound one, to be sure that the others fail for their own reason.
    let ok = read(tensor(b"K\x04", b"K\0", &[b"K\x02", b"K\x02"], &[b"K\x02", b"K\x01"])).unwrap();
    assert_eq!(ok.get("w").unwrap().shape, [2, 2]);
    // Transposed, offset, expanded.
    let ok = read(tensor(b"K\x04", b"K\x01", &[b"K\x03", b"K\x02"], &[b"K\x01", b"K\0"])).unwrap();
    assert_eq!(ok.get("w").unwrap().len(), 6);

    refused(read(tensor(b"K\x05", b"K\0", &[b"K\x02"], &[b"K\x01"])), "the record has only 16 bytes");
    refused(read(tensor(HUGE, b"K\0", &[b"K\x02"], &[b"K\x01"])), "the record has only 16 bytes");
    refused(read(tensor(b"K\x04", b"K\x03", &[b"K\x02"], &[b"K\x01"])), "beyond its storage of 4");
    refused(read(tensor(b"K\x04", HUGE, &[b"K\x02"], &[b"K\x01"])), "beyond its storage");
    refused(read(tensor(b"K\x04", b"K\0", &[b"K\x02"], &[HUGE])), "beyond its storage");
    refused(read(tensor(b"K\x04", b"K\0", &[HUGE, HUGE], &[b"K\0", b"K\0"])), "impossible shape");
    refused(read(tensor(b"K\x04", b"K\0", &[HUGE], &[b"K\0"])), "far larger than the file");
    refused(read(tensor(b"K\x04", b"K\0", &[b"J\0\0\x10\0"], &[b"K\0"])), "far larger than the file");
    refused(read(tensor(b"K\x04", b"K\0", &[b"J\xff\xff\xff\xff"], &[b"K\x01"])), "non-negative");
    refused(read(tensor(b"K\x04", b"J\xff\xff\xff\xff", &[b"K\x01"], &[b"K\x01"])), "non-negative");
    refused(read(tensor(b"K\x04", b"K\0", &[b"K\x01"], &[b"J\xff\xff\xff\xff"])), "non-negative");
    refused(read(tensor(b"K\x04", b"K\0", &[b"K\x01"], &[])), "1 axes but 0 strides");
    refused(
        read(tensor(b"K\x04", b"K\0", &[b"K\x01".as_slice(); 17], &[b"K\x01".as_slice(); 17])),
        "up to 16",
    );
    refused(read_pth(archive(&tensor(b"K\x04", b"K\0", &[], &[]), &[])), "data/0, which the file lacks");
    // An empty tensor of absurd other axes is as empty as any.
    let empty = read(tensor(b"K\x04", b"K\0", &[b"K\0", b"K\x04"], &[b"K\x04", b"K\x01"])).unwrap();
    assert!(empty.get("w").unwrap().is_empty());
}

#[test]
fn pickles_that_ask_for_anything_else_are_refused() {
    let read = |pickle: &[u8]| read_pth(archive(pickle, &[]));
    refused(read(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."), "asks for `os.system`");
    refused(read(b"\x80\x02cposix\nsystem\n)R."), "asks for `posix.system`");
    refused(read(b"\x80\x02c__builtin__\neval\n)R."), "asks for `__builtin__.eval`");
    refused(read(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)R."), "asks for `builtins.eval`");
    refused(read(b"\x80\x02ctorch\nload\n)R."), "asks for `torch.load`");
    refused(read(b"\x80\x02cargparse\nNamespace\n)\x81."), "asks for `argparse.Namespace`");
    refused(read(b"\x80\x02X\x02\0\0\0id)R."), "calls a value that is no tensor constructor");
    refused(read(b"\x80\x02ctorch\nFloatStorage\n)R."), "calls Storage");
    refused(read(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."), "no tensor is made from");
    refused(read(b"(S'id'\nios\nsystem\n."), "instruction STRING");
    refused(read(b"(ios\nsystem\n."), "instruction INST");
    refused(read(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "instruction NEWOBJ");
    refused(read(b"\x80\x02K\x01}b."), "sets the attributes");
    refused(read(b"\x80\x02)}b."), "sets the attributes");
    refused(read(b"\x80\x01}."), "protocol 1");
    refused(read(b"\x80\x02h\x00."), "recalls entry 0");
    refused(read(b"\x80\x02."), "takes a value that is not there");
    refused(read(b"\x80\x02}t."), "closes a group");
    refused(read(b"\x80\x02(}0."), "takes a value that is not there");
    refused(read(b"\x80\x02K\x01K\x01K\x01s."), "what is no dictionary");
    refused(read(b"\x80\x02X\xff\xff\xff\xffa."), "ends in the middle");
    refused(read(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa."), "ends in the middle");
    refused(read(b"\x80\x02\x8b\xff\xff\xff\xff."), "ends in the middle");
    refused(read(&[b"\x80\x02c".as_slice(), &[b'a'; 1000]].concat()), "endless name");
    refused(read(b"\x80\x02K\x01Q."), "refers to a storage in an unknown way");
    refused(read(b"\x80\x02K\x01."), "holds a single value");
    refused(read(b"\x80\x02]."), "holds a list");
    refused(read(b"\x80\x02}X\x01\0\0\0aK\x01s."), "no named tensors");
    // A terminal's control sequences do not reach the terminal.
    refused(read(b"\x80\x02c\x1b[2J\nx\n."), "\\u{1b}");
    // A name that Python would read as another line.
    refused(read(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR."), "non-negative");
    // Nesting and memo bombs are only as large as the file.
    let mut deep = b"\x80\x02".to_vec();
    deep.extend([b']'; 100_000]);
    deep.extend([b'a'; 99_999]);
    deep.push(b'.');
    refused(read(&deep), "holds a list");
    let mut bomb = b"\x80\x02)q\0".to_vec();
    for _ in 0..1000 {
        bomb.extend(b"h\0h\0h\0\x87q\0");
    }
    bomb.push(b'.');
    refused(read(&bomb), "holds a list");
    refused(read(&vec![b'N'; (4 << 20) + 1]), "far beyond any checkpoint");
}

#[test]
fn wrappers_are_opened_when_there_is_one_choice() {
    let inner = &tensor(b"K\x04", b"K\0", &[b"K\x04"], &[b"K\x01"])[2..]; // without PROTO
    let inner = &inner[..inner.len() - 1]; // without STOP
    let floats = [0u8; 16];
    let read = |parts: &[&[u8]]| read_pth(archive(&parts.concat(), &[("data/0", &floats)]));
    let state_dict: &[u8] = b"X\x0a\0\0\0state_dict";
    let odd: &[u8] = b"X\x03\0\0\0odd";
    let begin: &[u8] = b"\x80\x02}(X\x05\0\0\0epochK\x07";
    assert!(read(&[begin, state_dict, inner, b"u."]).unwrap().get("w").is_some());
    assert!(read(&[begin, odd, inner, b"u."]).unwrap().get("w").is_some());
    assert!(read(&[begin, odd, inner, state_dict, inner, b"u."]).unwrap().get("w").is_some());
    refused(read(&[begin, odd, inner, b"X\x01\0\0\0b", inner, b"u."]), "several sets of tensors (odd, b)");
    refused(
        read(&[
            b"\x80\x02}(X\x01\0\0\0w",
            &inner[6 + 1..inner.len() - 1],
            b"X\x01\0\0\0w",
            &inner[6 + 1..inner.len() - 1],
            b"u.",
        ]),
        "two tensors named `w`",
    );
}

#[test]
fn odd_archives_are_refused() {
    let good = tensor(b"K\x04", b"K\0", &[b"K\x04"], &[b"K\x01"]);
    let floats = [0u8; 16];
    let sound: Vec<(&str, &[u8])> = vec![("a/data.pkl", &good), ("a/data/0", &floats)];
    assert!(read_pth(zip(&sound)).is_ok());
    let with = |name: &'static str, bytes: &'static [u8]| {
        let mut records = sound.clone();
        records.push((name, bytes));
        read_pth(zip(&records))
    };
    assert!(with("a/byteorder", b"little").is_ok());
    refused(with("a/byteorder", b"big"), "byte order");
    refused(with("a/constants.pkl", b""), "TorchScript program");
    refused(with("a/code/model.py", b""), "TorchScript program");
    refused(with("b/data.pkl", b""), "several folders");
    refused(with("a/data.pkl", b""), "lists `a/data.pkl` twice");
    refused(with("a/hawfinch.json", b"[]"), "not what hawfinch writes");
    refused(read_pth(zip(&[("a.npy", b"x")])), "without the data.pkl");
    refused(read_pth(zip(&[])), "without the data.pkl");
    refused(read_pth(b"PK\x03\x04 no zip at all".to_vec()), "is truncated");
    // Sizes, methods and offsets of the directory, changed by hand.
    let whole = zip(&sound);
    let entry = whole.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap(); // of data/0
    let patch = |at: usize, bytes: &[u8]| {
        let mut w = whole.clone();
        w[entry + at..entry + at + bytes.len()].copy_from_slice(bytes);
        read_pth(w)
    };
    refused(patch(10, &[8, 0]), "is compressed");
    refused(patch(20, &[15, 0, 0, 0]), "two different sizes");
    refused(patch(20, &[0xfe, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff]), "directory is damaged");
    refused(patch(20, &[15, 0, 0, 0, 15, 0, 0, 0]), "the record has only 15 bytes");
    refused(patch(42, &[1, 0, 0, 0]), "directory is damaged");
    refused(patch(42, &[0, 0, 0, 0]), "another name in its own header");
    let mut w = whole.clone();
    let n = w.len();
    w[n - 12] = 3; // records on this disk and in all
    w[n - 14] = 3;
    refused(read_pth(w), "holds 2 records where it promises 3");
    let mut w = whole.clone();
    let at = w.windows(11).position(|w| w == b"OrderedDict").unwrap();
    w[at] = b'o';
    refused(read_pth(w), "checksum of its record `data.pkl`");
}

/// A safetensors file of that header and so many bytes.
fn st(header: &str, bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; bytes]].concat()
}

#[test]
fn safetensors_headers_keep_their_rules() {
    let one = |dtype: &str, shape: &str, range: &str, bytes| {
        read_safetensors(st(
            &format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{range}}}}}"),
            bytes,
        ))
    };
    assert!(one("F32", "[2]", "[0,8]", 8).is_ok());
    assert!(one("F32", "[]", "[0,4]", 4).is_ok());
    assert!(one("F32", "[0,3]", "[0,0]", 0).is_ok());
    assert!(read_safetensors(st("{}  ", 0)).unwrap().tensors.is_empty());
    refused(one("F32", "[2]", "[0,8]", 7), "is truncated");
    refused(one("F32", "[2]", "[0,8]", 9), "follow its last tensor");
    refused(one("F32", "[2]", "[4,12]", 12), "overlap or leave a gap");
    refused(one("F32", "[2]", "[8,0]", 8), "overlap or leave a gap");
    refused(one("F32", "[3]", "[0,8]", 8), "has a range of 8 bytes");
    refused(one("F32", "[4611686018427387904,2]", "[0,8]", 8), "has a range of 8 bytes");
    refused(one("U8", "[18446744073709551600]", "[0,18446744073709551600]", 8), "is truncated");
    refused(one("F8_E4M3", "[8]", "[0,8]", 8), "number type F8_E4M3");
    refused(one("F32", "[-2]", "[0,8]", 8), "does not parse");
    refused(one("F32", "[2.5]", "[0,8]", 8), "does not parse");
    refused(one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]", "[0,8]", 8), "impossible shape");
    refused(one("F32", "[2]", "[0]", 8), "does not parse");
    let entry = |name: &str, range: &str| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{range}}}")
    };
    let two = |a: String, b: String| read_safetensors(st(&format!("{{{a},{b}}}"), 16));
    assert!(two(entry("a", "[8,16]"), entry("b", "[0,8]")).is_ok());
    refused(two(entry("a", "[0,8]"), entry("a", "[8,16]")), "two tensors named `a`");
    refused(two(entry("a", "[0,8]"), entry("b", "[0,8]")), "overlap");
    refused(two(entry("a", "[0,8]"), entry("b", "[4,12]")), "overlap");
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001] {
        refused(read_safetensors([&length.to_le_bytes()[..], b"{}"].concat()), "the format allows");
    }
    refused(read_safetensors([&1000u64.to_le_bytes()[..], b"{}"].concat()), "is truncated");
    refused(read_safetensors(vec![1, 2, 3]), "is truncated");
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    refused(read_safetensors(st(&nested, 0)), "does not parse");
    refused(read_safetensors(st("{\"__metadata__\":{\"a\":1}}", 0)), "does not parse");
}

#[test]
fn other_files_are_told_for_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pth");
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        refused(format::open(&path), what);
    };
    check(b"", "the file is empty");
    check(b"Hello, this is a text file.\n", "is a text file");
    check("R\u{e9}sum\u{e9}, caf\u{e9} \u{4f60}\u{597d}".as_bytes(), "is a text file");
    check(b"<!DOCTYPE html><html>Not found</html>", "is a web page");
    check(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer");
    check(b"{\"architectures\": [\"RwkvForCausalLM\"]}", "is a JSON file");
    check(b"\x1f\x8b\x08\0", "gzip");
    check(b"\x89HDF\r\n\x1a\n", "HDF5");
    check(b"\x80\x04\x95\0\0", "bare pickle");
    check(b"\xa2\x64info\xa0", "Ai00 prefab");
    check(b"\xa4\x64name\x61x", "cut short");
    check(b"\xa1\x64name\x61x", "lacks its shape");
    check(&[0; 100], "of no format hawfinch reads");
    check(&[0xff; 100], "of no format hawfinch reads");
    check(b"PK\x03\x04", "is truncated");
    refused(format::open(&dir.path().join("no such file")), "No such file");
}
