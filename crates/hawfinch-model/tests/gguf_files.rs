//! GGUF: what llama.cpp's converter wrote is the checkpoint it was made of; what hawfinch writes comes
//! back bit for bit.
//!
//! With the environment variable INTEROP_OUT set to a folder, the files stay there for
//! `interop/check_gguf.py`, which opens them with the `gguf` package and with llama.cpp.

mod common;

use std::path::{Path, PathBuf};

use common::{compare, data, shared};
use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions, gguf};
use hawfinch_model::{Checkpoint, Config, StoredTensor};

/// The numbers that `t`, stored as GGUF stores it in type `dtype`, comes back with.
fn through(t: &StoredTensor, stored: &StoredTensor) -> Vec<f32> {
    // Divided before, multiplied after: exact but for type F16, which no fixture with a scale has.
    let mut t = t.clone();
    t.scale = 1.0 / stored.scale;
    // Blocks lie along the rows as they are stored.
    let swap = |t: &mut StoredTensor| {
        let n = t.shape.len();
        t.shape.swap(n - 2, n - 1);
        t.transposed = !t.transposed;
    };
    if stored.transposed {
        swap(&mut t);
    }
    let mut out = t.converted(stored.dtype).unwrap();
    if stored.transposed {
        swap(&mut out);
    }
    out.scale = stored.scale;
    out.to_f32()
}

#[test]
fn llama_cpp_s_files_are_the_checkpoints_they_were_made_of() {
    for (file, source, scaled) in [
        ("v6-f32", "v6.pth", true),
        ("v6-bf16", "v6.pth", true),
        ("v7-f32", "v7.pth", false),
        ("v7-bf16", "v7.pth", false),
        ("M-v6-q8_0", "parity/M/v6/model.pth", false),
        ("M-v7-q8_0", "parity/M/v7/model.pth", false),
    ] {
        let theirs = format::open(&data(&format!("gguf/{file}.gguf"))).unwrap();
        let source = format::open(&data(source)).unwrap();
        assert_eq!(Config::infer(&theirs).unwrap(), Config::infer(&source).unwrap(), "{file}");
        let mut kinds = std::collections::BTreeSet::new();
        for (key, t) in &source.tensors {
            let Some(stored) = theirs.get(key) else {
                assert!(key.starts_with("blocks.0.att.v"), "{file} lacks {key}");
                continue;
            };
            assert_eq!(stored.shape, t.shape, "{file} {key}");
            assert_eq!(stored.to_f32(), through(t, stored), "{file} {key}");
            kinds.insert(stored.dtype);
        }
        assert!(theirs.tensors.keys().all(|k| source.get(k).is_some()), "{file}");
        assert_eq!(theirs.tensors.values().any(|t| t.scale != 1.0), scaled, "{file}");
        let wanted = match file.rsplit_once('-').unwrap().1 {
            "f32" => &[DType::F32][..],
            "bf16" => &[DType::F32, DType::BF16],
            _ => &[DType::F32, DType::Q8_0],
        };
        assert!(wanted.iter().all(|d| kinds.contains(d)), "{file}: {kinds:?}");
    }
}

#[test]
fn llama_cpp_s_vocabulary_comes_out_as_bytes() {
    let path = data("gguf/v6-f32.gguf");
    let file = format::map_file(&path).unwrap();
    let tokens = gguf::world_vocabulary(&path, &file).unwrap().unwrap();
    assert_eq!(tokens.len(), 11);
    let expected = [&b""[..], b"\0", b"\t", b"\n", b"\r", b"'", b"\\", b"A", b"B", b"", b""];
    assert_eq!(tokens, expected);
    let path = data("gguf/M-v7-q8_0.gguf");
    let tokens = gguf::world_vocabulary(&path, &format::map_file(&path).unwrap()).unwrap().unwrap();
    let expected = ["it's".as_bytes(), b"\"'", "日本".as_bytes(), b"\xe6\x97", b" \\ ", b"w17"];
    assert_eq!(tokens[12..18], expected);
}

fn save(
    path: &Path,
    ckpt: &Checkpoint,
    format: SaveFormat,
    dtype: Option<DType>,
    vocabulary: Option<&[Vec<u8>]>,
) {
    format::save(path, ckpt, SaveOptions { format, dtype, vocabulary, progress: None }).unwrap();
}

/// Checkpoints of every version.
fn sources() -> Vec<(String, PathBuf)> {
    let fixtures = ["v4", "v51", "v51-log", "v52", "v6", "v7", "v7-wide"];
    let mut out: Vec<_> = fixtures.iter().map(|v| (v.to_string(), data(&format!("{v}.pth")))).collect();
    let mut sets = vec![("M", data("parity"))];
    sets.extend(shared("parity").map(|dir| ("A", dir)));
    for (set, dir) in sets {
        for version in ["v4", "v50", "v51", "v52", "v6", "v7"] {
            for file in ["model", "model-bf16"] {
                let path = dir.join(set).join(version).join(format!("{file}.pth"));
                if path.exists() {
                    out.push((format!("{set}-{version}-{file}"), path));
                }
            }
        }
    }
    out
}

/// A vocabulary as large as the embedding, with tokens that are hard to write.
fn vocabulary(rows: usize) -> Vec<Vec<u8>> {
    let odd: [&[u8]; 8] = [b"", b"\0", b"'", b"\"'", b"\\", b"\xff\xfe", "日本".as_bytes(), b"\n"];
    (0..rows).map(|i| odd.get(i).map_or_else(|| format!("t{i}").into_bytes(), |t| t.to_vec())).collect()
}

/// Where to write: a folder that is removed when the second is dropped, or the one asked for.
fn folder() -> (PathBuf, tempfile::TempDir) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("INTEROP_OUT").map_or(temporary.path().to_path_buf(), PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    (dir, temporary)
}

#[test]
fn pth_to_gguf_and_back_is_exact() {
    let (dir, _temporary) = folder();
    for (name, path) in sources() {
        let source = format::open(&path).unwrap();
        let config = Config::infer(&source).unwrap();
        let words = vocabulary(config.vocab);
        let at = |ext: &str| dir.join(format!("{name}.{ext}"));
        save(&at("gguf"), &source, SaveFormat::Gguf, None, Some(&words));
        let middle = format::open(&at("gguf")).unwrap();
        assert_eq!(Config::infer(&middle).unwrap(), config, "{name}");
        let read = gguf::world_vocabulary(&at("gguf"), &format::map_file(&at("gguf")).unwrap()).unwrap();
        assert_eq!(read.unwrap(), words, "{name}");
        // GGUF to GGUF changes nothing but the file's own name for itself.
        save(&at("2.gguf"), &middle, SaveFormat::Gguf, None, Some(&words));
        assert_eq!(std::fs::read(at("gguf")).unwrap(), std::fs::read(at("2.gguf")).unwrap(), "{name}");
        std::fs::remove_file(at("2.gguf")).unwrap();
        save(&at("back.pth"), &middle, SaveFormat::Pth, None, None);
        let back = format::open(&at("back.pth")).unwrap();
        assert_eq!(back.tensors.len(), source.tensors.len(), "{name}");
        for key in source.tensors.keys() {
            compare(&source, key, &back, key);
        }
        let stale = |k: &&String| k.contains("original_types") || k.contains("layer_0");
        assert_eq!(back.metadata.keys().find(stale), None);
        save(&at("direct.pth"), &source, SaveFormat::Pth, None, None);
        assert_eq!(back.metadata, format::open(&at("direct.pth")).unwrap().metadata, "{name}");
        for ext in ["back.pth", "direct.pth"] {
            std::fs::remove_file(at(ext)).unwrap();
        }
    }
}

#[test]
fn quantising_quantises_the_matrices_and_nothing_else() {
    let (dir, _temporary) = folder();
    let source = format::open(&data("parity/M/v7/model-bf16.pth")).unwrap();
    for (dtype, matrix, head) in [
        (DType::F16, DType::F16, DType::F16),
        (DType::Q8_0, DType::Q8_0, DType::Q8_0),
        (DType::Q4_0, DType::Q4_0, DType::Q8_0), // a row of 64 is no block of Q6_K
        (DType::Q4_K, DType::Q5_0, DType::Q8_0),
        (DType::Q5_K, DType::Q5_1, DType::Q8_0),
        (DType::Q6_K, DType::Q8_0, DType::Q8_0),
    ] {
        let path = dir.join(format!("M-v7-{dtype}.gguf"));
        save(&path, &source, SaveFormat::Gguf, Some(dtype), None);
        let made = format::open(&path).unwrap();
        assert_eq!(Config::infer(&made).unwrap(), Config::infer(&source).unwrap());
        for (key, t) in &made.tensors {
            let expected = match key.as_str() {
                "head.weight" => head,
                "emb.weight" => matrix,
                k if k.ends_with(".weight") && t.shape.len() == 2 => matrix,
                _ => DType::F32,
            };
            assert_eq!(t.dtype, expected, "{key} of {dtype}");
            if expected == DType::F32 {
                assert_eq!(t.to_f32(), source.get(key).unwrap().to_f32(), "{key}");
                assert_eq!(gguf::original_type(&made, key), Some(DType::BF16), "{key}");
            }
        }
        assert_eq!(gguf::world_vocabulary(&path, &format::map_file(&path).unwrap()).unwrap(), None);
    }
    let wrong = |dtype, vocabulary| {
        let options = SaveOptions { format: SaveFormat::Gguf, dtype, vocabulary, progress: None };
        format::save(&dir.join("x"), &source, options).unwrap_err().to_string()
    };
    assert!(wrong(Some(DType::Q2_K), None).contains("q2_k"));
    assert!(wrong(Some(DType::I8), None).contains("i8"));
    assert!(wrong(None, Some(&vocabulary(54))).contains("54 entries"));
    let state = format::open(&data("state.pth")).unwrap();
    let options = SaveOptions { format: SaveFormat::Gguf, dtype: None, vocabulary: None, progress: None };
    assert!(format::save(&dir.join("x"), &state, options).is_err());
    assert!(!dir.join("x").exists());
}

#[test]
fn progress_ends_at_its_total() {
    let dir = tempfile::tempdir().unwrap();
    let source = format::open(&data("v6.pth")).unwrap();
    let mut seen = Vec::new();
    let mut tell = |done, total| seen.push((done, total));
    let options =
        SaveOptions { format: SaveFormat::Gguf, dtype: None, vocabulary: None, progress: Some(&mut tell) };
    format::save(&dir.path().join("a.gguf"), &source, options).unwrap();
    let (done, total) = *seen.last().unwrap();
    assert!(done == total && total > 0 && seen.iter().all(|s| s.1 == total), "{seen:?}");
}

/// A file with every prefix cut, and thousands with bytes changed: an answer or a sentence, no panic.
#[test]
fn damaged_files_give_one_sentence() {
    for name in ["v6-bf16", "v7-bf16"] {
        let path = data(&format!("gguf/{name}.gguf"));
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            let message = gguf::read(&path, whole[..end].to_vec().into()).unwrap_err().to_string();
            assert!(!message.contains('\n') && message.len() < 400, "{message}");
        }
        // Where the description ends; damage to the numbers themselves goes unseen.
        let head = whole.len() - 16_000;
        let mut seed = 42u64;
        let mut fine = 0;
        for _ in 0..6000 {
            let mut bytes = whole.clone();
            for _ in 0..=seed % 3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % head;
                // Bits, whole bytes and the ends of the range.
                bytes[at] = match seed % 4 {
                    0 => bytes[at] ^ 1 << (seed >> 8 & 7),
                    1 => 0xff,
                    2 => 0,
                    _ => (seed >> 16) as u8,
                };
            }
            match gguf::read(&path, bytes.into()) {
                Ok(ckpt) => {
                    fine += 1;
                    let _ = Config::infer(&ckpt);
                    for (key, t) in &ckpt.tensors {
                        assert_eq!(t.expected_bytes(), Some(t.data.len()), "{key}");
                        assert_eq!(t.to_f32().len(), t.len(), "{key}");
                    }
                }
                Err(e) => assert!(!e.to_string().is_empty()),
            }
        }
        assert!(fine > 100, "only {fine} were read: the flips test nothing but the header");
    }
}
