use std::path::{Path, PathBuf};

use super::*;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/demo")
}

#[test]
fn what_is_read_and_written_again_is_the_same() {
    let place = tempfile::tempdir().unwrap();
    let read = Reader::open(&demo()).unwrap();
    assert_eq!((read.documents(), read.tokens(), read.dtype()), (7, 324, Dtype::U16));
    let mut write = Writer::create(&place.path().join("again")).unwrap();
    for i in 0..read.documents() {
        let ids: Vec<u16> = read.document(i).unwrap().iter().map(|&id| id as u16).collect();
        assert_eq!(ids.last(), Some(&0));
        write.push(&ids).unwrap();
    }
    write.finish().unwrap();
    for ending in ["bin", "idx"] {
        let again = std::fs::read(place.path().join("again").with_extension(ending)).unwrap();
        assert!(again == std::fs::read(demo().with_extension(ending)).unwrap(), "{ending}");
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn an_empty_data_set_can_be_read() {
    let place = tempfile::tempdir().unwrap();
    let name = place.path().join("none");
    Writer::create(&name).unwrap().finish().unwrap();
    let read = Reader::open(&name).unwrap();
    assert_eq!((read.documents(), read.tokens()), (0, 0));
    assert!(read.document(0).unwrap_err().to_string().contains("no document 0"));
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut write = Writer::create(&place.path().join("x")).unwrap();
    write.push(&[1, 0]).unwrap();
    drop(write);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn either_file_or_the_name_alone_will_do() {
    for name in ["a.b", "a.b.bin", "a.b.idx"] {
        assert_eq!(paths(Path::new(name)), ("a.b.bin".into(), "a.b.idx".into()));
    }
}

/// A pair of files as given.
fn pair(bin: &[u8], idx: &[u8]) -> (tempfile::TempDir, Result<Reader, crate::Error>) {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("x.bin"), bin).unwrap();
    std::fs::write(place.path().join("x.idx"), idx).unwrap();
    let opened = Reader::open(&place.path().join("x"));
    (place, opened)
}

#[test]
fn damage_is_told() {
    let (bin, idx) = paths(&demo());
    let (bin, idx) = (std::fs::read(bin).unwrap(), std::fs::read(idx).unwrap());
    let says = |bin: &[u8], idx: &[u8], words: &str| {
        let said = pair(bin, idx).1.err().expect(words).to_string();
        assert!(said.contains(words), "`{words}` in: {said}");
    };
    for n in 0..idx.len() {
        assert!(pair(&bin, &idx[..n]).1.is_err(), "an index of {n} bytes");
    }
    for n in 0..bin.len() {
        assert!(pair(&bin[..n], &idx).1.is_err(), "a .bin of {n} bytes");
    }
    let with = |at: usize, byte: u8| {
        let mut changed = idx.clone();
        changed[at] = byte;
        changed
    };
    says(&bin, b"PK\x03\x04", "MMIDIDX");
    says(&bin, &with(9, 2), "version 2");
    says(&bin, &with(17, 7), "floating point");
    says(&bin, &with(17, 99), "number type 99");
    says(&bin, &with(25, 255), "does not go with");
    says(&bin[..2], &idx, "it has 1 tokens");
    says(&bin[..3], &idx, "no whole number");
    // A document in the middle that lies outside is told when it is read.
    let (_place, opened) = pair(&bin, &with(34 + 4 * 7 + 8 + 5, 1));
    assert!(opened.unwrap().document(1).unwrap_err().to_string().contains("outside"));
}

/// No flip of any byte makes the reader panic.
#[test]
fn flips_do_not_panic() {
    let (bin, idx) = paths(&demo());
    let (bin, idx) = (std::fs::read(bin).unwrap(), std::fs::read(idx).unwrap());
    for at in 0..idx.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = idx.clone();
            changed[at] ^= flip;
            if let Ok(read) = pair(&bin, &changed).1 {
                for i in 0..read.documents().min(100) {
                    let _ = read.document(i);
                }
            }
        }
    }
}

#[test]
fn ids_of_other_widths_are_read() {
    let make = |code: u8, bin: &[u8], width: u64| {
        let n = bin.len() as u64 / width;
        let mut idx = MAGIC.to_vec();
        idx.extend(1u64.to_le_bytes());
        idx.push(code);
        idx.extend(1u64.to_le_bytes());
        idx.extend(2u64.to_le_bytes());
        idx.extend((n as i32).to_le_bytes());
        idx.extend(0u64.to_le_bytes());
        idx.extend(0u64.to_le_bytes());
        idx.extend(1u64.to_le_bytes());
        pair(bin, &idx).1.unwrap().document(0)
    };
    assert_eq!(make(1, &[7, 200], 1).unwrap(), [7, 200]);
    assert_eq!(make(3, &[7, 0, 1, 1], 2).unwrap(), [7, 257]);
    assert_eq!(make(4, &[1, 0, 1, 0], 4).unwrap(), [65537]);
    assert_eq!(make(5, &[9, 0, 0, 0, 0, 0, 0, 0], 8).unwrap(), [9]);
    for (code, bin) in [(2, &[0xff][..]), (4, &[0, 0, 0, 0xff])] {
        let said = make(code, bin, bin.len() as u64).unwrap_err().to_string();
        assert!(said.contains("no token id"), "{said}");
    }
}
