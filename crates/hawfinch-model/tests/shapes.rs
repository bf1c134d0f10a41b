//! Models of unusual shapes through every format that is written: the same configuration, identity and bits.

use std::path::Path;

use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::{Checkpoint, Config, Cpu, Model, OpenOptions, Rows, Sequence, StoredTensor, Version};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

/// Logits of a few tokens, all at once; the same one by one is checked on the way.
fn logits(ckpt: &Checkpoint) -> Vec<f32> {
    let m = Model::from_checkpoint(ckpt.clone(), OpenOptions::default(), Cpu::new(1)).unwrap();
    let tokens = [1, 2, 3, 5, 8, 13];
    let run = |step: usize| {
        let mut state = m.new_state();
        let each = tokens.chunks(step).flat_map(|tokens| {
            let call = Sequence { tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
            m.forward(&mut [call]).unwrap().remove(0).logits
        });
        each.collect::<Vec<f32>>()
    };
    let whole = run(6);
    assert_eq!(whole, run(1));
    whole
}

fn convert(ckpt: &Checkpoint, dir: &Path, name: &str, format: SaveFormat) -> Checkpoint {
    let path = dir.join(name);
    format::save(&path, ckpt, SaveOptions { format, dtype: None, vocabulary: None, progress: None }).unwrap();
    format::open(&path).unwrap()
}

/// There and back over all formats.
fn survives(what: &str, ckpt: &Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::infer(ckpt).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (identity, want) = (hawfinch_model::hash::compute(ckpt, None).unwrap(), logits(ckpt));
    let mut last = ckpt.clone();
    let formats = [SaveFormat::Gguf, SaveFormat::Pth, SaveFormat::Gguf, SaveFormat::Safetensors];
    for (i, format) in formats.into_iter().enumerate() {
        last = convert(&last, dir.path(), &format!("{i}"), format);
        assert_eq!(Config::infer(&last).unwrap(), config, "{what} as {format:?}");
        assert_eq!(hawfinch_model::hash::identity(&last, None).unwrap(), identity, "{what} as {format:?}");
        assert!(logits(&last) == want, "{what} as {format:?}: other logits");
    }
    // The bytes themselves, not only what the metadata hands on.
    assert_eq!(hawfinch_model::hash::compute(&last, None).unwrap(), identity, "{what}");
    for (name, t) in &ckpt.tensors {
        assert_eq!(last.get(name).map(|t| (&t.shape, &t.data)), Some((&t.shape, &t.data)), "{what}: {name}");
    }
}

#[test]
fn attention_narrower_and_wider_than_the_model() {
    for version in VERSIONS {
        for (width, heads, head_size) in [(32, 3, 16), (32, 1, 16), (64, 1, 8), (40, 5, 8), (32, 1, 32)] {
            let base = Shape { version, layers: 2, width: 64, vocab: 20, head_size: 16 }.config();
            let (heads, head_size) =
                if version == Version::V4 { (1, heads * head_size) } else { (heads, head_size) };
            let config = Config { width, heads, head_size, att_width: heads * head_size, ..base };
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let ckpt = synthetic::checkpoint(&config, dtype, 3);
                survives(&format!("{version} {width} {heads}x{head_size} {dtype}"), &ckpt);
            }
        }
    }
}

#[test]
fn one_layer_of_version_7_with_and_without_a_value_residual() {
    let config = Shape { version: Version::V7, layers: 1, width: 32, vocab: 20, head_size: 16 }.config();
    let mut ckpt = synthetic::checkpoint(&config, DType::BF16, 3);
    survives("with", &ckpt);
    let with = logits(&ckpt);
    for name in ["v0", "v1", "v2"] {
        ckpt.tensors.shift_remove(&format!("blocks.0.att.{name}")).unwrap();
    }
    survives("without", &ckpt);
    assert_eq!(logits(&ckpt), with);
}

#[test]
fn the_logarithmic_bonus_of_early_version_5() {
    for version in [Version::V5_0, Version::V5_1] {
        let config = Shape { version, layers: 2, width: 32, vocab: 20, head_size: 8 }.config();
        let direct = synthetic::checkpoint(&config, DType::F32, 3);
        let mut logarithmic = Checkpoint { tensors: Default::default(), ..direct.clone() };
        for (name, t) in &direct.tensors {
            logarithmic.insert(name.replace("time_faaaa", "time_first"), t.clone()).unwrap();
        }
        assert_ne!(logits(&logarithmic), logits(&direct));
        survives(&format!("{version}"), &logarithmic);
        // Unit axes, as some files have them.
        let mut axes = logarithmic.clone();
        for name in ["blocks.0.att.time_first", "blocks.1.att.time_decay"] {
            let t = axes.tensors.get_mut(name).unwrap();
            t.shape = vec![t.len(), 1, 1];
        }
        assert_eq!(logits(&axes), logits(&logarithmic));
    }
}

/// Decays as strong and as weak as numbers allow leave everything finite, and any division gives the same bits.
#[test]
fn extreme_decays() {
    for version in VERSIONS {
        let config = Shape { version, layers: 2, width: 32, vocab: 20, head_size: 8 }.config();
        for raw in [-200.0f32, -30.0, 5.0, 60.0, 88.0, 200.0, 3e38, -3e38] {
            let mut ckpt = synthetic::checkpoint(&config, DType::F32, 3);
            for (name, t) in &mut ckpt.tensors {
                if name.ends_with("att.time_decay") || name.ends_with("att.w0") {
                    *t = StoredTensor::from_f32(&t.shape, &vec![raw; t.len()]);
                }
            }
            assert!(logits(&ckpt).iter().all(|v| v.is_finite()), "{version} {raw}");
        }
    }
}

#[test]
fn numbers_beyond_a_type_are_refused_not_made_infinite() {
    let dir = tempfile::tempdir().unwrap();
    let config = Shape { version: Version::V6, layers: 2, width: 256, vocab: 20, head_size: 64 }.config();
    for name in ["blocks.1.att.key.weight", "blocks.0.att.time_maa_w2", "blocks.1.ln1.weight"] {
        let mut ckpt = synthetic::checkpoint(&config, DType::BF16, 3);
        let t = ckpt.tensors.get_mut(name).unwrap();
        let mut values = t.to_f32();
        values[70] = -70_000.0;
        *t = StoredTensor::from_f32(&t.shape, &values).converted(DType::BF16).unwrap();
        for (format, dtype) in [
            (SaveFormat::Safetensors, DType::F16),
            (SaveFormat::Pth, DType::F16),
            (SaveFormat::Gguf, DType::F16),
            (SaveFormat::Gguf, DType::Q8_0),
        ] {
            // GGUF holds all but the matrices as F32.
            let narrow = format != SaveFormat::Gguf || name.contains("key");
            let path = dir.path().join("out");
            let options = SaveOptions { format, dtype: Some(dtype), vocabulary: None, progress: None };
            match format::save(&path, &ckpt, options) {
                Ok(()) => assert!(!narrow, "{name} as {dtype} in {format:?}"),
                Err(e) => {
                    let e = e.to_string();
                    assert!(narrow && e.contains("cannot") && e.contains("choose bf16"), "{e}");
                    assert!(!path.exists());
                }
            }
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Files of RWKV-6 may hold scaled matrices in block types that are only read.
#[test]
fn scaled_blocks_that_cannot_be_encoded_become_f16() {
    let dir = tempfile::tempdir().unwrap();
    let config = Shape { version: Version::V6, layers: 1, width: 256, vocab: 20, head_size: 64 }.config();
    let mut ckpt = synthetic::checkpoint(&config, DType::F16, 3);
    let bytes: Vec<u8> =
        (0..256).flat_map(|_| [vec![0x11; 16], vec![0xe4; 64], vec![0, 0x20, 0, 0x10]].concat()).collect();
    let mut blocks = StoredTensor::new(DType::Q2_K, vec![256, 256], bytes.into()).unwrap();
    blocks.scale = 2.0;
    let want = blocks.to_f32();
    assert!(want.iter().any(|&v| v > 0.01));
    ckpt.tensors.insert("blocks.0.att.output.weight".into(), blocks);
    let saved = convert(&ckpt, dir.path(), "out.gguf", SaveFormat::Gguf);
    let got = saved.get("blocks.0.att.output.weight").unwrap();
    assert_eq!((got.dtype, got.scale), (DType::F16, 1.0));
    assert!(got.to_f32().iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-3 * b.abs()));
}
