//! What must hold of any bytes that a reader of this crate is given, one function a fuzz target. The
//! targets in `fuzz/` call these on what the fuzzer makes up, `fuzz_replay.rs` on what it has found.
//!
//! A check fails by panicking; aborting on large allocations is `limit.rs`'s part.
#![allow(dead_code)] // each fuzz target calls one of them

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions, ai00, ggml, gguf, pth, safetensors};
use hawfinch_model::{
    Checkpoint, Config, Cpu, DecayForm, FileFormat, Layout, Lora, Model, OpenOptions, Rows, Sequence, State,
    StoredTensor, Version,
};

pub mod tiny;

/// In messages, and the folder in which a LoRA's side files would be: there are none.
const PATH: &str = "folder-that-is-not-there/input";

/// An error's message is one sentence that a terminal can show.
fn sentence(error: impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 3000, "an error of {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "control characters in an error: {text:?}");
}

/// A checkpoint's own rules, and everything that is computed from its tensors alone.
fn sound(ckpt: &Checkpoint) {
    for (name, t) in &ckpt.tensors {
        assert_eq!(t.expected_bytes(), Some(t.data.len()), "{name}: {:?} {}", t.shape, t.dtype);
        assert!(t.scale.is_finite() && t.scale > 0.0, "{name}");
        assert!(!t.transposed || t.shape.len() >= 2, "{name}");
        // Axes of length 0 make room for any others.
        if !t.is_empty() {
            assert_eq!(t.to_f32().len(), t.len(), "{name}");
            assert_eq!(t.to_f64().len(), t.len(), "{name}");
            let _ = t.first_non_finite();
        }
    }
    let _ = ckpt.parameters();
    match Config::infer(ckpt) {
        Ok(config) => {
            assert!(config.layers > 0 && config.heads * config.head_size == config.att_width);
            // A model's state may be larger than the model, but not by the square of its size.
            let bytes: usize = ckpt.tensors.values().map(|t| t.data.len()).sum();
            assert!(config.state_len() <= bytes.saturating_mul(4096), "{config:?}");
        }
        Err(e) => sentence(e),
    }
}

fn reader(read: fn(&Path, Bytes) -> hawfinch_model::Result<Checkpoint>, data: &[u8]) {
    match read(Path::new(PATH), Bytes::copy_from_slice(data)) {
        Ok(ckpt) => sound(&ckpt),
        Err(e) => sentence(e),
    }
}

/// A `.pth` file.
pub fn pth(data: &[u8]) {
    reader(pth::read, data);
}

/// The pickle of a `.pth` file whose archive is sound: mutations of an archive fail its checksum.
pub fn pth_pickle(data: &[u8]) {
    let storage: Vec<u8> = (0..64).collect();
    let file = zip(&[
        ("a/data.pkl", data),
        ("a/byteorder", b"little"),
        ("a/data/0", &storage),
        ("a/data/1", &storage[..16]),
    ]);
    let file = Bytes::from(file);
    match pth::read(Path::new(PATH), file.clone()) {
        Ok(ckpt) => sound(&ckpt),
        Err(e) => sentence(e),
    }
    if let Err(e) = format::read(Path::new(PATH), file) {
        sentence(e);
    }
}

/// A `.safetensors` file; where the input begins with `{`, its header (up to the first zero byte) and
/// its data, for which the length is put in front.
pub fn safetensors(data: &[u8]) {
    reader(safetensors::read, data);
    if data.starts_with(b"{") {
        let header = data.iter().position(|&b| b == 0).unwrap_or(data.len());
        let body = data.get(header + 1..).unwrap_or_default();
        let file = [&(header as u64).to_le_bytes(), &data[..header], body].concat();
        reader(safetensors::read, &file);
        reader(format::read, &file);
    }
}

/// A GGUF file: model and vocabulary.
pub fn gguf(data: &[u8]) {
    reader(gguf::read, data);
    if let Err(e) = gguf::world_vocabulary(Path::new(PATH), &Bytes::copy_from_slice(data)) {
        sentence(e);
    }
}

/// rwkv.cpp's `.bin`.
pub fn ggml(data: &[u8]) {
    reader(ggml::read, data);
}

/// Ai00's live states.
pub fn ai00(data: &[u8]) {
    reader(ai00::read, data);
    reader(format::read, data);
}

/// The packed file of which length, padding and checksums are made up: given are its header as JSON, where the list of tensors
/// stands in the open under [`LIST`], a zero byte, and the data. An entry may say how many bytes its tensor is filled
/// up with (`fill`), which are not summed. A checksum that it has stays.
pub fn packed_file(data: &[u8]) -> Option<Vec<u8>> {
    let header = data.iter().position(|&b| b == 0).unwrap_or(data.len());
    let body = data.get(header + 1..).unwrap_or_default();
    let mut json: serde_json::Map<_, _> = serde_json::from_slice(&data[..header]).ok()?;
    let mut list = json.remove(LIST)?;
    for entry in list.as_array_mut().into_iter().flatten() {
        let fill = entry.as_object_mut().and_then(|e| e.remove("fill")).and_then(|n| n.as_u64());
        let at = |n: usize| json.get(entry["name"].as_str()?)?["data_offsets"][n].as_u64();
        let range = at(0).zip(at(1).and_then(|to| to.checked_sub(fill.unwrap_or(0))));
        let bytes = range.and_then(|(from, to)| body.get(from.try_into().ok()?..to.try_into().ok()?));
        if let (Some(bytes), Some(entry)) = (bytes, entry.as_object_mut()) {
            entry.entry("xxh64").or_insert_with(|| format!("{:016x}", format::packed::xxh64(bytes)).into());
        }
    }
    let mut metadata: BTreeMap<String, String> =
        json.remove("__metadata__").and_then(|m| serde_json::from_value(m).ok()).unwrap_or_default();
    metadata.insert(format::packed::TENSORS.into(), list.to_string());
    metadata.entry(format::packed::VERSION.into()).or_insert_with(|| format::packed::LAYOUT.to_string());
    let sum = format::packed::sum_of(&metadata);
    metadata.insert(format::packed::SUM.into(), format!("{sum:016x}"));
    json.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut text = serde_json::Value::Object(json).to_string();
    text += &" ".repeat((8 + text.len()).next_multiple_of(64) - 8 - text.len());
    Some([&(text.len() as u64).to_le_bytes(), text.as_bytes(), body].concat())
}

/// A packed file as [`packed_file`] makes it: it runs, and what it holds unpacks.
pub fn packed(data: &[u8]) {
    let Some(file) = packed_file(data) else { return };
    model_run(&file);
    if let Ok(ckpt) = format::read(Path::new(PATH), file.into()) {
        for (name, tensor) in &ckpt.tensors {
            let rows = tensor.unpacked();
            assert_eq!((rows.shape.clone(), rows.layout), (tensor.shape.clone(), Layout::Rows), "{name}");
        }
    }
}

/// Key of the list of tensors in inputs of [`packed_file`].
pub const LIST: &str = "list";

/// A file of any format, names translated: whatever opens as a model runs, and a division of its tokens
/// gives the same bits.
pub fn model_run(data: &[u8]) {
    let ckpt = match format::read(Path::new(PATH), Bytes::copy_from_slice(data)) {
        Ok(ckpt) => ckpt,
        Err(e) => return sentence(e),
    };
    sound(&ckpt);
    let model = match Model::from_checkpoint(ckpt, OpenOptions::default(), Cpu::new(1)) {
        Ok(model) => model,
        Err(e) => return sentence(e),
    };
    let last = model.config().vocab as u32 - 1;
    let (mut whole, mut split) = (model.new_state(), model.new_state());
    let at_once = logits(&model, &[0, last], &mut whole);
    let first = logits(&model, &[0], &mut split);
    let second = logits(&model, &[last], &mut split);
    if let (Some(a), Some(_), Some(b)) = (at_once, first, second) {
        assert_eq!(a.len(), model.config().vocab);
        assert!(a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits()), "split differs from whole");
        let bits = |s: &State| s.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&whole), bits(&split), "states differ");
    }
}

fn logits(model: &Model, tokens: &[u32], state: &mut State) -> Option<Vec<f32>> {
    let sequence = Sequence { tokens, state, logits: Rows::Last, hidden: Rows::None };
    match model.forward(&mut [sequence]) {
        Ok(mut out) => out.pop().map(|o| o.logits),
        Err(e) => {
            sentence(e);
            None
        }
    }
}

/// The file as a state and as a LoRA of small models of four versions; what loads runs.
pub fn state_lora(data: &[u8]) {
    static MODELS: OnceLock<Vec<Model>> = OnceLock::new();
    let models = MODELS.get_or_init(|| {
        let versions = [Version::V4, Version::V5_2, Version::V6, Version::V7];
        versions.map(|v| model(tiny::checkpoint(v), OpenOptions::default()).expect("a sound model")).into()
    });
    let ckpt = match format::read(Path::new(PATH), Bytes::copy_from_slice(data)) {
        Ok(ckpt) => ckpt,
        Err(e) => return sentence(e),
    };
    for m in models {
        match m.state_from(&ckpt) {
            Ok(mut state) => {
                assert_eq!(state.data().len(), m.state_layout().len());
                logits(m, &[1, 2], &mut state);
            }
            Err(e) => sentence(e),
        }
    }
    for alpha in [None, Some(2.0)] {
        match Lora::from_checkpoint(ckpt.clone(), alpha) {
            Ok(lora) => {
                for m in models {
                    let options = OpenOptions { loras: vec![lora.clone()], group_norm_eps: None };
                    match model(m.checkpoint().clone(), options) {
                        Ok(tuned) => drop(logits(&tuned, &[1, 2], &mut tuned.new_state())),
                        Err(e) => sentence(e),
                    }
                }
            }
            Err(e) => sentence(e),
        }
    }
}

fn model(ckpt: Checkpoint, options: OpenOptions) -> hawfinch_model::Result<Model> {
    Model::from_checkpoint(ckpt, options, Cpu::new(1))
}

/// Whatever is read can be written in every format, and read back it is the same.
pub fn round_trip(data: &[u8]) {
    let Ok(ckpt) = format::read(Path::new(PATH), Bytes::copy_from_slice(data)) else { return };
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let model = Config::infer(&ckpt).ok();
    for format in [SaveFormat::Pth, SaveFormat::Safetensors, SaveFormat::Gguf, SaveFormat::Packed] {
        let path = folder.path().join(format!("{}-{format:?}", std::process::id()));
        let saved =
            format::save(&path, &ckpt, SaveOptions { format, dtype: None, progress: None, vocabulary: None });
        if let Err(e) = saved {
            sentence(e);
            continue;
        }
        let back = match format::open(&path) {
            Ok(back) => back,
            Err(e) => panic!("{format:?} that was written does not open: {e}"),
        };
        assert_ne!(ckpt.decay_form, DecayForm::Exponentiated);
        assert!(back.tensors.len() <= ckpt.tensors.len(), "{format:?}");
        for (name, t) in &ckpt.tensors {
            let Some(b) = back.get(name) else {
                // Layer 0 of v7 uses none of these; GGUF keeps them only where all three are sound.
                let unused = ["v0", "v1", "v2"].iter().any(|n| *name == format!("blocks.0.att.{n}"));
                assert!(format == SaveFormat::Gguf && unused, "{format:?} has no {name:?}");
                continue;
            };
            same(name, t, b, back.format);
        }
        if let Some(config) = model {
            let again = Config::infer(&back).expect("a model stays one");
            assert_eq!(Config { group_norm_eps: 0.0, ..again }, Config { group_norm_eps: 0.0, ..config });
            assert_eq!(again.group_norm_eps, config.group_norm_eps);
        }
    }
}

/// Equal numbers under equal shapes but for axes of length 1; equal bytes where the type is kept.
fn same(name: &str, t: &StoredTensor, back: &StoredTensor, format: FileFormat) {
    assert_eq!(t.squeezed(), back.squeezed(), "{format:?} {name}");
    if t.is_empty() {
        return;
    }
    if t.dtype == back.dtype && t.scale == back.scale && !t.transposed && !back.transposed {
        assert_eq!(t.unpacked().data, back.unpacked().data, "{format:?} {name} ({})", t.dtype);
        return;
    }
    // Blocks become F16 where the format lacks them; what a GGUF of ours says to have been F16 before it was
    // widened becomes that again; GGUF widens what is not a matrix.
    let expected = match back.dtype {
        DType::F16 | DType::BF16 => t.converted(back.dtype).expect("a float type").to_f32(),
        _ => t.to_f32(),
    };
    let found = back.to_f32();
    for (i, (a, b)) in expected.iter().zip(&found).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{format:?} {name}[{i}]: {a} became {b}"
        );
    }
}

/// A zip of stored records with right checksums.
pub fn zip(records: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in records {
        let offset = out.len() as u32;
        let mut shared = vec![0; 8]; // flags, method, time, date
        shared.extend(rawzip::crc32(bytes).to_le_bytes());
        shared.extend((bytes.len() as u32).to_le_bytes());
        shared.extend((bytes.len() as u32).to_le_bytes());
        shared.extend((name.len() as u16).to_le_bytes());
        shared.extend([0, 0]); // no extra field
        out.extend(b"PK\x03\x04\x14\x00");
        out.extend(&shared);
        out.extend(name.bytes());
        out.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&shared);
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
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
