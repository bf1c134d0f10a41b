//! Packed files: the bits of the model they were made from, nothing lost on the way back, every damage said.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::logits;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::verify::against_itself;
use hawfinch_model::{
    Background, Checkpoint, Config, Cpu, FileFormat, Layout, Model, OpenOptions, Quant, Rows, Sequence,
    Version,
};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];
const DTYPES: [Option<DType>; 5] =
    [None, Some(DType::Q8_0), Some(DType::Q4_K), Some(DType::Q6_K), Some(DType::F16)];

fn config(version: Version) -> Config {
    Shape { version, layers: 2, width: 256, vocab: 80, head_size: 64 }.config()
}

fn save(path: &Path, ckpt: &Checkpoint, format: SaveFormat, dtype: Option<DType>) {
    format::save(path, ckpt, SaveOptions { format, dtype, vocabulary: None, progress: None }).unwrap();
}

fn model(ckpt: Checkpoint, cpu: Cpu) -> Model {
    Model::from_checkpoint(ckpt, OpenOptions::default(), cpu).unwrap()
}

/// The same numbers in rows: what packing starts from, with the types that the packed file has.
fn in_rows(ckpt: &Checkpoint) -> Checkpoint {
    let mut rows = Checkpoint { packed: None, format: FileFormat::Memory, ..ckpt.clone() };
    rows.tensors.values_mut().for_each(|t| *t = t.unpacked());
    rows
}

#[test]
fn packed_models_give_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..30).map(|n| n * 7 % 80).collect();
    for version in VERSIONS {
        let source = synthetic::checkpoint(&config(version), DType::BF16, 3);
        for dtype in DTYPES {
            let path = dir.path().join("m.packed.safetensors");
            save(&path, &source, SaveFormat::Packed, dtype);
            let packed = format::open(&path).unwrap();
            assert_eq!(packed.format, FileFormat::Packed);
            assert_eq!(Config::infer(&packed).unwrap(), config(version));
            // As another format has it, with the same types.
            let other = dir.path().join("m.gguf");
            save(&other, &packed, SaveFormat::Gguf, None);
            let want = logits(&model(format::open(&other).unwrap(), Cpu::new(2)), &[&tokens]);
            assert!(logits(&model(in_rows(&packed), Cpu::new(1)), &[&tokens]) == want, "{version} {dtype:?}");
            for background in [Background::Nothing, Background::Check, Background::Copy] {
                let m = model(packed.clone(), Cpu::new(2).in_background(background));
                assert!(logits(&m, &[&tokens[..1], &tokens[1..]]) == want, "{version} {dtype:?}");
                // Every weight is copied but the table.
                let all = m.weight_bytes(true) - m.checkpoint().tensors["emb.weight"].data.len() as u64 / 80;
                let copied = m.ops().checked().unwrap().map(|c| c.copied);
                let expected = [None, Some(0), Some(all)][background as usize];
                assert_eq!(copied, expected, "{version} {dtype:?} {background:?}");
                assert!(logits(&m, &[&tokens]) == want, "{version} {dtype:?} after {background:?}");
            }
            let m = model(packed, Cpu::new(2));
            assert!(against_itself(&m, 4, |_| ()).unwrap().passed(), "{version} {dtype:?}");
        }
    }
}

/// A file is the same to every instruction set: a token for the scalar code, more for the others.
#[test]
fn instruction_sets_read_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.packed.safetensors");
    for (version, dtype) in [
        (Version::V6, DType::Q8_0),
        (Version::V7, DType::Q4_K),
        (Version::V4, DType::Q4_0),
        (Version::V7, DType::Q6_K),
    ] {
        let source = synthetic::checkpoint(&config(version), DType::BF16, 3);
        save(&path, &source, SaveFormat::Packed, Some(dtype));
        let of = |isa, tokens| {
            let cpu = Cpu::with(Arc::new(Pool::new(1)), isa);
            logits(&model(format::open(&path).unwrap(), cpu), &[tokens])
        };
        for isa in Isa::available() {
            let tokens: &[u32] = if isa == Isa::SCALAR { &[5] } else { &[5, 9, 33, 2, 7] };
            assert!(of(isa, tokens) == of(Isa::best(), tokens), "{version} {isa}");
        }
    }
}

/// As `--quant bf16` lays them out, whatever floats they were; back again without loss.
#[test]
fn packed_for_activations_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let (path, back) = (dir.path().join("m.packed.safetensors"), dir.path().join("m.safetensors"));
    let tokens: Vec<u32> = (0..30).map(|n| n * 7 % 80).collect();
    for version in VERSIONS {
        for dtype in [DType::BF16, DType::F32] {
            let source = synthetic::checkpoint(&config(version), dtype, 3);
            save(&path, &source, SaveFormat::PackedBf16, None);
            let packed = format::open(&path).unwrap();
            let t = |name: &str| (packed.tensors[name].layout, packed.tensors[name].dtype);
            assert_eq!(t("blocks.1.ffn.value.weight"), (Layout::Panels, DType::BF16));
            assert_eq!(t("head.weight"), (Layout::Panels, DType::BF16));
            assert_eq!(t("emb.weight"), (Layout::Rows, dtype));
            let on_load = model(source.clone(), Cpu::new(2).quantizing(Some(Quant::Bf16)));
            let want = logits(&on_load, &[&tokens]);
            let tiles = on_load.ops().isa().has_tiles();
            for isa in Isa::available().into_iter().filter(|isa| isa.has_tiles() == tiles) {
                let cpu = Cpu::with(Arc::new(Pool::new(1)), isa).in_background(Background::Copy);
                let m = model(packed.clone(), cpu);
                assert!(logits(&m, &[&tokens[..3], &tokens[3..]]) == want, "{version} {dtype} {isa}");
                assert!(m.ops().checked().unwrap().is_some_and(|c| c.copied > 0));
                assert!(against_itself(&m, 4, |_| ()).unwrap().passed(), "{version} {dtype}");
            }
            // Other types that are asked for, and other files of it.
            let again = dir.path().join("again.packed.safetensors");
            save(&again, &packed, SaveFormat::Packed, None);
            assert_eq!(format::open(&again).unwrap().tensors["head.weight"].layout, Layout::Panels);
            let rows = in_rows(&packed);
            for quant in [Quant::Int8, Quant::Int4] {
                let of = |ckpt: &Checkpoint| model(ckpt.clone(), Cpu::new(2).quantizing(Some(quant)));
                assert!(
                    logits(&of(&packed), &[&tokens]) == logits(&of(&rows), &[&tokens]),
                    "{version} {quant}"
                );
            }
            save(&again, &packed, SaveFormat::Packed, Some(DType::Q8_0));
            let [eight, of_rows] = [format::open(&again).unwrap(), {
                save(&again, &rows, SaveFormat::Packed, Some(DType::Q8_0));
                format::open(&again).unwrap()
            }];
            assert!(eight.tensors["head.weight"].data == of_rows.tensors["head.weight"].data, "{version}");
            // Rows again: what was rounded stays so, everything else is as it was.
            save(&back, &packed, SaveFormat::Safetensors, None);
            let rows = format::open(&back).unwrap();
            for (name, t) in &source.tensors {
                let wide = t.to_f32();
                let rounded = || wide.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
                let is_panel = packed.tensors[name].layout == Layout::Panels;
                assert!(
                    rows.tensors[name].to_f32() == if is_panel { rounded() } else { wide.clone() },
                    "{name}"
                );
            }
        }
    }
    // Rows that are no whole blocks of 32, outputs no whole panels. What fills them up must be zero.
    let odd = Shape { version: Version::V7, layers: 2, width: 40, vocab: 33, head_size: 8 }.config();
    save(&path, &synthetic::checkpoint(&odd, DType::F16, 3), SaveFormat::PackedBf16, Some(DType::BF16));
    assert_eq!(format::open(&path).unwrap().tensors["emb.weight"].dtype, DType::BF16);
    let source = synthetic::checkpoint(&odd, DType::BF16, 3);
    save(&path, &source, SaveFormat::PackedBf16, None);
    let packed = format::open(&path).unwrap();
    let on_load = model(source, Cpu::new(2).quantizing(Some(Quant::Bf16)));
    assert!(logits(&model(packed.clone(), Cpu::new(2)), &[&[1, 2, 32]]) == logits(&on_load, &[&[1, 2, 32]]));
    let bytes = std::fs::read(&path).unwrap();
    let head = &packed.tensors["head.weight"].data;
    let at = bytes.windows(head.len()).position(|w| w == &head[..]).unwrap();
    let mut damaged = bytes.clone();
    // The last pair of the first panel's second block, which ends after eight numbers.
    damaged[at + 2 * 2048 - 1] = 0x7F;
    let error = format::read(&path, damaged.into()).unwrap_err().to_string();
    assert!(error.contains("head.weight") && error.contains("filled up with zeros"), "{error}");
    // Blocks stay blocks.
    let eight = dir.path().join("m.gguf");
    save(
        &eight,
        &synthetic::checkpoint(&config(Version::V7), DType::BF16, 3),
        SaveFormat::Gguf,
        Some(DType::Q8_0),
    );
    save(&path, &format::open(&eight).unwrap(), SaveFormat::PackedBf16, None);
    assert_eq!(format::open(&path).unwrap().tensors["head.weight"].dtype, DType::Q8_0);
    let f32 = SaveOptions {
        format: SaveFormat::PackedBf16,
        dtype: Some(DType::F32),
        vocabulary: None,
        progress: None,
    };
    assert!(format::save(&path, &format::open(&eight).unwrap(), f32).is_err());
}

/// By the rules of `--quant`, but for the embedding, which loading leaves as it is.
#[test]
fn types_are_those_of_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.packed.safetensors");
    let source = synthetic::checkpoint(&config(Version::V6), DType::BF16, 3);
    for (dtype, quant) in [(DType::Q8_0, Quant::Int8), (DType::Q4_K, Quant::Int4)] {
        save(&path, &source, SaveFormat::Packed, Some(dtype));
        let packed = format::open(&path).unwrap();
        let mut table = source.clone();
        table.tensors.insert("emb.weight".into(), packed.tensors["emb.weight"].clone());
        let on_load = model(table, Cpu::new(2).quantizing(Some(quant)));
        let packed = model(packed, Cpu::new(2));
        assert!(logits(&packed, &[&[1, 2, 3]]) == logits(&on_load, &[&[1, 2, 3]]), "{quant}");
        let layout = |name: &str| packed.checkpoint().tensors[name].layout;
        assert_eq!(layout("blocks.1.att.key.weight"), Layout::Panels);
        assert_eq!(layout("blocks.1.ffn.value.weight"), Layout::Strips { width: 256 });
        assert_eq!(layout("blocks.1.att.time_maa_w2"), Layout::Tiles);
        assert_eq!(layout("emb.weight"), Layout::Rows);
        assert_eq!(packed.checkpoint().tensors["emb.weight"].dtype, DType::Q8_0);
    }
}

/// Real trained weights (`../shared/data/weights`), by way of safetensors where rwkv.cpp's decays allow it.
#[test]
fn real_models_give_the_same_bits() {
    let Some(from) = common::shared("weights/rwkv.cpp-tiny") else { return };
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = b"It was the best of times, it was the worst".iter().map(|&b| b.into()).collect();
    let mut tried = 0;
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let Ok(source) = format::open(&path) else { continue };
        let exponentiated = source.decay_form == hawfinch_model::DecayForm::Exponentiated;
        for dtype in [None, Some(DType::Q8_0), Some(DType::Q4_K)] {
            let packed = dir.path().join("m.packed.safetensors");
            let options = SaveOptions { format: SaveFormat::Packed, dtype, vocabulary: None, progress: None };
            let saved = format::save(&packed, &source, options);
            if exponentiated {
                assert!(saved.unwrap_err().to_string().contains("exponentiated"));
                continue;
            }
            saved.unwrap();
            let packed = format::open(&packed).unwrap();
            let mut rows = in_rows(&packed);
            // What was not quantised is as it was in the source, which may lie transposed there.
            for (name, t) in &source.tensors {
                if rows.tensors[name].dtype == t.dtype {
                    rows.tensors.insert(name.clone(), t.clone());
                }
            }
            let want = logits(&model(rows, Cpu::new(2)), &[&tokens]);
            assert!(logits(&model(packed, Cpu::new(2)), &[&tokens]) == want, "{} {dtype:?}", path.display());
            tried += 1;
        }
    }
    assert!(tried >= 6, "{tried}");
}

/// packed → safetensors → packed → … : the same tensors, and the same packed file to the byte.
#[test]
fn nothing_is_lost_on_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for version in VERSIONS {
        let source = synthetic::checkpoint(&config(version), DType::BF16, 5);
        save(&at("source.safetensors"), &source, SaveFormat::Safetensors, None);
        let source = format::open(&at("source.safetensors")).unwrap();
        save(&at("a.packed.safetensors"), &source, SaveFormat::Packed, None);
        let packed = format::open(&at("a.packed.safetensors")).unwrap();
        for format in [SaveFormat::Safetensors, SaveFormat::Pth, SaveFormat::Gguf] {
            save(&at("back"), &packed, format, None);
            let back = format::open(&at("back")).unwrap();
            assert!(!back.metadata.keys().any(|k| k.starts_with("hawfinch.packed")), "{:?}", back.metadata);
            save(&at("b"), &back, SaveFormat::Safetensors, None);
            let official = std::fs::read(at("source.safetensors")).unwrap();
            assert!(std::fs::read(at("b")).unwrap() == official, "{version} {format:?}");
            save(&at("b"), &back, SaveFormat::Packed, None);
            let again = std::fs::read(at("a.packed.safetensors")).unwrap();
            assert!(std::fs::read(at("b")).unwrap() == again, "{version} {format:?}");
        }
        // Blocks too.
        for dtype in [DType::Q8_0, DType::Q4_K, DType::Q4_0] {
            save(&at("q.packed.safetensors"), &source, SaveFormat::Packed, Some(dtype));
            let packed = format::open(&at("q.packed.safetensors")).unwrap();
            save(&at("q.gguf"), &packed, SaveFormat::Gguf, None);
            let gguf = format::open(&at("q.gguf")).unwrap();
            for (name, t) in &packed.tensors {
                let (got, want) = (&gguf.tensors[name], t.unpacked());
                if want.dtype.is_quantized() {
                    assert!(got.dtype == want.dtype && got.data == want.data, "{version} {dtype} {name}");
                }
            }
            save(&at("r.packed.safetensors"), &gguf, SaveFormat::Packed, None);
            let again = format::open(&at("r.packed.safetensors")).unwrap();
            for (name, t) in &packed.tensors {
                let got = &again.tensors[name];
                assert_eq!((got.dtype, &got.shape, got.layout), (t.dtype, &t.shape, t.layout), "{name}");
                assert!(got.data == t.data, "{version} {dtype} {name}");
            }
        }
    }
}

/// Widths that fill no panel, tile or block, types that have none, and F64.
#[test]
fn odd_shapes_and_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.packed.safetensors");
    for version in VERSIONS {
        for width in [40, 96, 160] {
            let config = Shape { version, layers: 1, width, vocab: 33, head_size: width / 4 }.config();
            let source = synthetic::checkpoint(&config, DType::F32, 7);
            for dtype in [None, Some(DType::F64), Some(DType::BF16), Some(DType::Q8_0), Some(DType::Q4_K)] {
                save(&path, &source, SaveFormat::Packed, dtype);
                let packed = format::open(&path).unwrap();
                let want = logits(&model(in_rows(&packed), Cpu::new(2)), &[&[1, 2, 32]]);
                let got = logits(&model(packed, Cpu::new(2)), &[&[1, 2, 32]]);
                assert!(got == want, "{version} {width} {dtype:?}");
            }
        }
    }
    // Q5_K has no panels and stays in rows.
    let source = synthetic::checkpoint(&config(Version::V7), DType::F32, 7);
    let gguf = dir.path().join("m.gguf");
    save(&gguf, &source, SaveFormat::Gguf, Some(DType::Q5_K));
    save(&path, &format::open(&gguf).unwrap(), SaveFormat::Packed, None);
    let packed = format::open(&path).unwrap();
    let key = &packed.tensors["blocks.0.att.key.weight"];
    assert_eq!((key.dtype, key.layout), (DType::Q5_K, Layout::Rows));
    let want = logits(&model(format::open(&gguf).unwrap(), Cpu::new(2)), &[&[1, 2, 32]]);
    assert!(logits(&model(packed, Cpu::new(2)), &[&[1, 2, 32]]) == want);
}

fn sample(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("m.packed.safetensors");
    let config = Shape { version: Version::V7, layers: 1, width: 512, vocab: 80, head_size: 64 }.config();
    save(&path, &synthetic::checkpoint(&config, DType::BF16, 3), SaveFormat::Packed, Some(DType::Q8_0));
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

/// Other safetensors readers open it, and bytes lie at multiples of 64.
#[test]
fn the_container_is_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let (_, bytes) = sample(dir.path());
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut packed = 0;
    for (name, t) in theirs.tensors() {
        let at = t.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let alignment = if t.dtype() == safetensors::Dtype::U8 { 64 } else { 2 };
        assert_eq!(at % alignment, 0, "{name}");
        packed += usize::from(t.dtype() == safetensors::Dtype::U8);
    }
    assert!(packed >= 8, "{packed}");
}

#[test]
fn every_truncation_and_every_flip_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = sample(dir.path());
    let open = |bytes: Vec<u8>| format::read(&path, bytes.into());
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for len in (0..header).step_by(97).chain((header..bytes.len()).step_by(4001)) {
        assert!(open(bytes[..len].to_vec()).is_err(), "{len}");
    }
    // Any bit of the header but its blanks, and any of the data, there by the checksums.
    let blanks = bytes[..header].iter().rev().take_while(|&&b| b == b' ').count();
    let places = (0..header - blanks).chain((header..bytes.len()).step_by(997));
    let mut later = 0;
    for at in places {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        match open(damaged) {
            Err(e) => assert!(!e.to_string().contains('\n'), "{at}: {e}"),
            Ok(ckpt) => {
                // A large tensor's bytes: found when checksums are compared.
                let found = ckpt.packed.as_ref().map_or(Ok(()), |packed| packed.check_all());
                let around = String::from_utf8_lossy(&bytes[at.saturating_sub(40)..at + 40]);
                let error = found.expect_err(&format!("byte {at}: {around}")).to_string();
                assert!(error.contains("checksum differs") && at >= header, "{at}: {error}");
                later += 1;
            }
        }
    }
    assert!(later > 100, "{later}");
}

/// Damage in a large weight is said by the call after a thread found it, and by whoever writes or verifies.
#[test]
fn damage_is_found_after_the_first_call() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut bytes) = sample(dir.path());
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let list: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let place = list["blocks.0.ffn.key.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header + place + 70_000] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let said = "tensor `blocks.0.ffn.key.weight` holds other bytes than were written";
    for background in [Background::Check, Background::Copy] {
        let m = model(format::open(&path).unwrap(), Cpu::new(2).in_background(background));
        let mut state = m.new_state();
        let mut call = || {
            let call =
                Sequence { tokens: &[1, 2], state: &mut state, logits: Rows::Last, hidden: Rows::None };
            m.forward(&mut [call])
        };
        call().unwrap();
        assert!(m.ops().checked().unwrap_err().to_string().contains(said));
        assert!(call().unwrap_err().to_string().contains(said));
    }
    let report = against_itself(&model(format::open(&path).unwrap(), Cpu::new(2)), 2, |_| ()).unwrap();
    assert!(!report.passed() && report.checks[0].note.contains(said), "{:?}", report.checks[0]);
    let options =
        SaveOptions { format: SaveFormat::Safetensors, dtype: None, vocabulary: None, progress: None };
    let error = format::save(&dir.path().join("o.safetensors"), &format::open(&path).unwrap(), options);
    assert!(error.unwrap_err().to_string().contains(said));
}

/// Headers that are whole, with a right checksum, and say what cannot be.
#[test]
fn impossible_lists_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = sample(dir.path());
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = json.clone();
        let meta = &mut json["__metadata__"];
        let mut list: serde_json::Value =
            serde_json::from_str(meta["hawfinch.packed.tensors"].as_str().unwrap()).unwrap();
        change(&mut list);
        meta["hawfinch.packed.tensors"] = list.to_string().into();
        let sum = format::packed::sum_of(&serde_json::from_value(meta.clone()).unwrap());
        meta["hawfinch.packed.sum"] = format!("{sum:016x}").into();
        let mut text = json.to_string();
        text += &" ".repeat((64 - (text.len() + 8) % 64) % 64);
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.extend(&bytes[header..]);
        format::read(&path, file.into()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(changed(&|_| ()), Ok(()));
    let find = |list: &mut serde_json::Value, name: &str| {
        list.as_array().unwrap().iter().position(|e| e["name"] == name).unwrap()
    };
    let set = |name: &'static str, key: &'static str, value: serde_json::Value| {
        changed(&move |list| {
            let n = find(list, name);
            list[n][key] = value.clone();
        })
    };
    let (key, value, norm) = ("blocks.0.att.key.weight", "blocks.0.ffn.value.weight", "blocks.0.ln1.weight");
    let huge = u64::MAX / 2;
    for (name, field, new, said) in [
        (key, "shape", serde_json::json!([512, 511]), "shape"),
        (key, "shape", serde_json::json!([huge, 512]), "shape"),
        (key, "shape", serde_json::json!([huge, huge]), "shape"),
        (key, "shape", serde_json::json!([0, 512]), "bytes"),
        (key, "shape", serde_json::json!([]), "shape"),
        (key, "shape", serde_json::json!([1024, 512]), "bytes"),
        (key, "type", "q4_0".into(), "bytes"),
        (key, "type", "i64".into(), "number type"),
        (key, "type", "q9".into(), "number type"),
        (key, "layout", "tiles".into(), ""),
        (key, "layout", "strips".into(), "layout"),
        (key, "layout", "heaps".into(), "layout"),
        (key, "layout", "plain".into(), "another type"),
        (key, "width", 128.into(), "layout"),
        (key, "scale", 0.0.into(), "scale"),
        (key, "scale", (-1.0).into(), "scale"),
        (key, "xxh64", "12".into(), "no checksum"),
        (key, "xxh64", "+123456789abcdef".into(), "no checksum"),
        (key, "name", "other".into(), "not there"),
        (key, "name", "blocks.0.att.value.weight".into(), "twice"),
        (key, "extra", 1.into(), "does not parse"),
        (value, "width", 0.into(), "shape"),
        (value, "width", 100.into(), "shape"),
        (value, "width", 1024.into(), "shape"),
        (value, "width", 512.into(), ""),
        (norm, "layout", "rows".into(), "no tensor of bytes"),
        (norm, "shape", serde_json::json!([256]), "another type or shape"),
        (norm, "xxh64", "0000000000000000".into(), "checksum differs"),
    ] {
        match (set(name, field, new.clone()), said) {
            // As many bytes in another order: what only the version of the layout can tell.
            (Ok(()), "") => {}
            (Err(e), said) if !said.is_empty() => assert!(e.contains(said), "{name} {field} {new}: {e}"),
            (other, _) => panic!("{name} {field} {new}: {other:?}"),
        }
    }
    assert!(
        changed(&|list| drop(list.as_array_mut().unwrap().pop())).unwrap_err().contains("lacks the tensor")
    );
    assert!(changed(&|list| *list = 3.into()).unwrap_err().contains("does not parse"));
    let versioned = |version: &str| {
        let text = String::from_utf8_lossy(&bytes[8..header])
            .replace("\"hawfinch.packed\":\"1\"", &format!("\"hawfinch.packed\":\"{version}\""));
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.extend(&bytes[header..]);
        format::read(&path, file.into()).unwrap_err().to_string()
    };
    let newer = versioned("3");
    assert!(newer.contains("packed in layout 3") && newer.contains("pack the model again"), "{newer}");
    assert!(versioned("0").contains("no version") && versioned("x").contains("no version"));
}
