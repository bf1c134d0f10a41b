//! Which tokenizer a model or a file gets, and what is said when there is none.

use std::path::{Path, PathBuf};

use hawfinch_tokenizer::{Error, Tokenizer};

/// A fresh directory, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("hawfinch-tokenizer-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Directory(path)
    }
    fn put(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).expect("a file in it");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SMALL: &[u8] = include_bytes!("data/small_tokenizer.json");
const WORLD: &[u8] = include_bytes!("../data/rwkv_vocab_v20230424.txt");

#[test]
fn by_vocabulary_size() {
    for size in [65_529, 65_530, 65_536] {
        let world = Tokenizer::for_vocab_size(size, None).unwrap();
        assert_eq!((world.name(), world.vocab_size(), world.eos()), ("World", 65_530, Some(0)));
        assert!(world.is_special(0) && !world.is_special(1));
    }
    let bytes = Tokenizer::for_vocab_size(256, Some(Path::new("model.bin"))).unwrap();
    assert_eq!((bytes.name(), bytes.vocab_size(), bytes.eos()), ("bytes", 256, None));
    assert_eq!(bytes.encode(b"\"in"), [34, 105, 110]);
    for size in [0, 128, 255, 257, 50_276, 50_305, 65_528, 65_537, usize::MAX] {
        let message = Tokenizer::for_vocab_size(size, None).unwrap_err().to_string();
        assert!(message.contains(&size.to_string()) && message.contains("--tokenizer"), "{message}");
    }
}

#[test]
fn neox_needs_its_file() {
    let directory = Directory::new("neox");
    let model = directory.put("model.pth", b"");
    for beside in [None, Some(model.as_path()), Some(directory.0.as_path())] {
        let error = Tokenizer::for_vocab_size(50_277, beside).unwrap_err();
        assert!(matches!(error, Error::NeoxTokenizerMissing { vocab_size: 50_277, .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("20B_tokenizer.json") && message.contains("--tokenizer FILE"), "{message}");
        assert_eq!(message.contains(&directory.0.display().to_string()), beside.is_some());
    }
    directory.put("20B_tokenizer.json", SMALL);
    for beside in [model.as_path(), directory.0.as_path()] {
        let bpe = Tokenizer::for_vocab_size(50_304, Some(beside)).unwrap();
        assert_eq!((bpe.vocab_size(), bpe.eos()), (487, Some(0)));
    }
    // tokenizer.json goes before 20B_tokenizer.json; one with more ids than the model is refused.
    directory.put("tokenizer.json", WORLD);
    let error = Tokenizer::for_vocab_size(50_277, Some(&model)).unwrap_err();
    assert!(matches!(error, Error::TooManyIds { highest: 65_529, vocab_size: 50_277, .. }), "{error}");
}

#[test]
fn by_file() {
    let directory = Directory::new("file");
    let small = Tokenizer::from_file(&directory.put("any.name", SMALL)).unwrap();
    assert!(matches!(small, Tokenizer::Bpe(_)));
    let with_mark = [b"\xEF\xBB\xBF\n ", SMALL].concat();
    assert!(matches!(Tokenizer::from_file(&directory.put("mark", &with_mark)).unwrap(), Tokenizer::Bpe(_)));
    let world = Tokenizer::from_file(&directory.put("vocab.txt", WORLD)).unwrap();
    assert_eq!((world.name(), world.vocab_size()), ("World vocabulary file", 65_530));
    assert_eq!(world.encode(b"Hello world"), [33155, 40213]);
    // The last two: how a safetensors file with a header of 1336, or 2848, bytes begins.
    let models = [&b"8\x05\0\0\0\0\0\0{\"a\":"[..], b" \x0b\0\0\0\0\0\0{\"a\":"];
    let others = [&b""[..], b"hello", b"\x80\x02}q\x00", b"\xEF\xBB\xBF"];
    for contents in others.into_iter().chain(models) {
        let error = Tokenizer::from_file(&directory.put("other", contents)).unwrap_err();
        assert!(matches!(error, Error::UnknownFile(_)), "{error}");
    }
    let message = Tokenizer::from_file(&directory.put("bad.txt", b"1 'a' 2\n")).unwrap_err().to_string();
    assert!(message.contains("bad.txt") && message.contains("line 1"), "{message}");
    let message = Tokenizer::from_file(&directory.0.join("absent")).unwrap_err().to_string();
    assert!(message.contains("absent"), "{message}");
    assert!(matches!(Tokenizer::from_file(&directory.0), Err(Error::Io { .. })));
}

#[test]
fn many_documents_keep_their_order() {
    let documents: Vec<String> = (0..500).map(|n| format!("document {n} — 文書 ").repeat(n % 37)).collect();
    let small = Tokenizer::from_bytes(SMALL).unwrap().unwrap();
    for tokenizer in [Tokenizer::world(), small, Tokenizer::bytes()] {
        let expected: Vec<Vec<u32>> = documents.iter().map(|d| tokenizer.encode(d.as_bytes())).collect();
        for threads in [0, 1, 2, 3, 1000] {
            assert_eq!(tokenizer.encode_many(&documents, threads), expected);
        }
        assert!(tokenizer.encode_many::<&[u8]>(&[], 4).is_empty());
        let long = documents.concat();
        assert_eq!(tokenizer.encode_parallel(long.as_bytes(), 3), tokenizer.encode(long.as_bytes()));
    }
}

#[test]
fn lossy_decoding_never_fails() {
    let world = Tokenizer::world();
    assert_eq!(world.decode_lossy(&[33155, 70_000, 0, 40213, 256]), "Hello\u{FFFD} world\u{FFFD}");
    assert!(world.decode(&[33155, 70_000]).is_err());
}
