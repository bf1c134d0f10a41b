//! Corner cases of files and calls that a person may meet by accident.

use hawfinch_kernels::DType;
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::{
    Checkpoint, Cpu, DecayForm, FileFormat, Lora, Model, OpenOptions, Rows, Sequence, State, StoredTensor,
    Version, format, hash, verify,
};

fn shape(version: Version) -> Shape {
    Shape { version, layers: 2, width: 32, vocab: 64, head_size: 16 }
}

fn checkpoint(version: Version) -> Checkpoint {
    synthetic::checkpoint(&shape(version).config(), DType::F32, 1)
}

fn model(ckpt: Checkpoint, loras: Vec<Lora>) -> hawfinch_model::Result<Model> {
    Model::from_checkpoint(ckpt, OpenOptions { loras, ..OpenOptions::default() }, Cpu::new(1))
}

fn logits(m: &Model) -> Vec<f32> {
    let mut state = m.new_state();
    let call = Sequence { tokens: &[1, 2, 3], state: &mut state, logits: Rows::All, hidden: Rows::None };
    m.forward(&mut [call]).unwrap().remove(0).logits
}

#[test]
fn a_stack_with_a_unit_axis_in_front_is_refused_not_cut() {
    let mut odd = checkpoint(Version::V6);
    odd.tensors.get_mut("blocks.0.att.time_maa_w2").unwrap().shape.insert(0, 1);
    let e = model(odd, vec![]).err().unwrap().to_string();
    assert!(e.contains("time_maa_w2") && e.contains("[1, 5, 32, 32]"), "{e}");
    let w2 = StoredTensor::from_f32(&[1, 5, 32, 32], &[0.0; 5120]);
    let e = model(checkpoint(Version::V6), vec![lora(vec![("blocks.0.att.time_maa_w2", w2)])]).err().unwrap();
    assert!(e.to_string().contains("time_maa_w2"), "{e}");
}

#[test]
fn a_state_of_another_model_is_refused_before_anything_changes() {
    let (small, other) =
        (model(checkpoint(Version::V6), vec![]).unwrap(), model(checkpoint(Version::V4), vec![]).unwrap());
    let mut state = other.new_state();
    let call = Sequence { tokens: &[1], state: &mut state, logits: Rows::Last, hidden: Rows::None };
    let e = small.forward(&mut [call]).unwrap_err().to_string();
    assert!(e.contains("does not fit the model"), "{e}");
    assert_eq!(state, other.new_state());
}

#[test]
fn states_count_their_tokens() {
    let m = model(checkpoint(Version::V7), vec![]).unwrap();
    let (mut a, mut b) = (m.new_state(), m.new_state());
    let long = [3; 300];
    fn call<'a>(tokens: &'a [u32], state: &'a mut State) -> Sequence<'a> {
        Sequence { tokens, state, logits: Rows::None, hidden: Rows::None }
    }
    m.forward(&mut [call(&long[..], &mut a), call(&long[..2], &mut b)]).unwrap();
    m.forward(&mut [call(&long[..7], &mut b)]).unwrap();
    assert_eq!((a.tokens, b.tokens), (300, 9));
}

#[test]
fn a_tuned_state_merged_into_the_model_is_where_sequences_start() {
    let plain = checkpoint(Version::V6);
    let mut merged = plain.clone();
    let mut file = Checkpoint::new("tuned", FileFormat::Memory);
    for layer in 0..2 {
        let values: Vec<f32> = (0..512).map(|i| (i as f32 * 0.1 + layer as f32).sin()).collect();
        let t = StoredTensor::from_f32(&[2, 16, 16], &values);
        merged.insert(format!("blocks.{layer}.att.time_state"), t.clone()).unwrap();
        file.insert(format!("blocks.{layer}.att.time_state"), t).unwrap();
    }
    let (plain, merged) = (model(plain, vec![]).unwrap(), model(merged, vec![]).unwrap());
    assert_eq!(merged.new_state(), plain.state_from(&file).unwrap());
    assert_ne!(logits(&merged), logits(&plain));
    assert_eq!(merged.identity(None).unwrap(), plain.identity(None).unwrap());
}

#[test]
fn zeros_after_relu_are_counted_when_asked_for() {
    for version in [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
        let zeros = |share: usize| {
            let mut c = checkpoint(version);
            for layer in 0..2 {
                let name = format!("blocks.{layer}.ffn.key.weight");
                let weight = c.get(&name).unwrap().to_f64();
                let shape = c.get(&name).unwrap().shape.clone();
                let zero = weight.len() * share / 2;
                let values: Vec<f32> =
                    weight.iter().enumerate().map(|(i, &v)| if i < zero { 0.0 } else { v as f32 }).collect();
                c.tensors.insert(name, StoredTensor::from_f32(&shape, &values));
            }
            let m = model(c, Vec::new()).unwrap();
            assert_eq!(m.ops().zeros(), None);
            logits(&m);
            assert_eq!(m.ops().zeros(), None, "nobody asked");
            m.ops().count_zeros();
            logits(&m);
            m.ops().zeros().unwrap()
        };
        assert_eq!(zeros(2), 1.0, "{version}");
        let (some, half) = (zeros(0), zeros(1));
        assert!(some > 0.2 && some < 0.8 && half > 0.5 + some / 4.0 && half < 1.0, "{version} {some} {half}");
    }
}

#[test]
fn the_identity_is_cached() {
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: no other test of this program has a checkpoint in a large file, so none looks at the cache.
    unsafe { std::env::set_var("HAWFINCH_CACHE", dir.path().join("cache")) };
    let path = dir.path().join("m.safetensors");
    // Files below 16 MiB are not worth the cache.
    let config = Shape { vocab: 70_000, ..shape(Version::V4) }.config();
    let tensors = synthetic::checkpoint(&config, DType::F32, 1).tensors;
    let views = tensors.iter().map(|(name, t)| {
        (
            name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), &t.data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let mut file = format::open(&path).unwrap();
    let want = hash::identity(&file, None).unwrap();
    // What is in memory is changed, the file is not: only a hash from the cache stays the same.
    let t = file.tensors.get_mut("ln_out.bias").unwrap();
    t.data = vec![1; t.data.len()].into();
    assert_ne!(hash::compute(&file, None).unwrap(), want);
    assert_eq!(hash::identity(&file, None).unwrap(), want);
    // Metadata that is no hash names no model.
    file.metadata.insert("hawfinch.source_hash".into(), "sha256:12".into());
    assert_eq!(hash::identity(&file, None).unwrap(), want);
}

/// A LoRA with these tensors beside a pair that does nothing.
fn lora(tensors: Vec<(&str, StoredTensor)>) -> Lora {
    let mut c = Checkpoint::new("lora", FileFormat::Memory);
    c.insert("blocks.0.att.key.lora_A", StoredTensor::from_f32(&[2, 32], &[0.0; 64])).unwrap();
    c.insert("blocks.0.att.key.lora_B", StoredTensor::from_f32(&[32, 2], &[0.0; 64])).unwrap();
    for (name, tensor) in tensors {
        c.insert(name, tensor).unwrap();
    }
    Lora::from_checkpoint(c, Some(2.0)).unwrap()
}

#[test]
fn a_lora_of_the_embedding_is_not_dropped_in_silence() {
    let a = StoredTensor::from_f32(&[2, 32], &[1.0; 64]);
    let b = StoredTensor::from_f32(&[64, 2], &[1.0; 128]);
    let l = lora(vec![("emb.lora_A", a), ("emb.lora_B", b)]);
    let e = model(checkpoint(Version::V7), vec![l]).err().unwrap().to_string();
    assert!(e.contains("`emb` is no linear layer"), "{e}");
}

#[test]
fn a_replaced_decay_is_as_trained_whatever_form_the_file_has() {
    for version in [Version::V4, Version::V5_2] {
        let raw = checkpoint(version);
        let d = raw.get("blocks.1.att.time_decay").unwrap();
        let new: Vec<f32> = d.to_f32().iter().map(|v| v * 0.5).collect();
        let l = lora(vec![("blocks.1.att.time_decay", StoredTensor::from_f32(&d.shape, &new))]);
        let want = logits(&model(raw.clone(), vec![l.clone()]).unwrap());
        let mut exponentiated = raw;
        exponentiated.decay_form = DecayForm::Exponentiated;
        for layer in 0..2 {
            let t = exponentiated.tensors.get_mut(&format!("blocks.{layer}.att.time_decay")).unwrap();
            let v: Vec<f32> = t
                .to_f32()
                .iter()
                .map(|d| if version == Version::V4 { -d.exp() } else { (-d.exp()).exp() })
                .collect();
            *t = StoredTensor::from_f32(&t.shape.clone(), &v);
        }
        let got = logits(&model(exponentiated, vec![l]).unwrap());
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{version}: {worst}");
    }
}

#[test]
fn adapters_are_named_as_trainers_name_them() {
    let a = || StoredTensor::from_f32(&[2, 32], &[0.01; 64]);
    let b = || StoredTensor::from_f32(&[32, 2], &[0.3; 64]);
    let with = |a_name: &str, b_name: &str| {
        let mut c = Checkpoint::new("lora", FileFormat::Memory);
        c.insert(a_name, a()).unwrap();
        c.insert(b_name, b()).unwrap();
        Lora::from_checkpoint(c, Some(4.0))
    };
    let run = |l: Lora| logits(&model(checkpoint(Version::V7), vec![l]).unwrap());
    let want = run(with("blocks.1.att.value.lora_A", "blocks.1.att.value.lora_B").unwrap());
    assert_ne!(want, logits(&model(checkpoint(Version::V7), vec![]).unwrap()));
    for stem in ["model.blocks.1.att.value", "base_model.model.blocks.1.att.value"] {
        for end in ["", ".weight", ".default.weight"] {
            let l = with(&format!("{stem}.lora_A{end}"), &format!("{stem}.lora_B{end}")).unwrap();
            assert_eq!(run(l), want, "{stem} {end}");
        }
    }
    for (names, part) in [
        (["model.blocks.1.att.value.init_lora_A", "model.blocks.1.att.value.init_lora_B"], "PiSSA"),
        (["blocks.1.att.value.disha", "blocks.1.att.key.disha"], "DiSHA"),
        (["blocks.1.att.value.x", "blocks.1.att.key.x"], "holds no tensors named"),
    ] {
        let e = with(names[0], names[1]).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }
}

#[test]
fn a_scale_other_than_alpha_by_rank_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Checkpoint::new(dir.path().join("adapter_model.safetensors"), FileFormat::Memory);
    c.insert("blocks.0.att.key.lora_A", StoredTensor::from_f32(&[2, 32], &[0.0; 64])).unwrap();
    c.insert("blocks.0.att.key.lora_B", StoredTensor::from_f32(&[32, 2], &[0.0; 64])).unwrap();
    for (json, part) in [
        (r#"{"lora_alpha": 16, "use_rslora": true}"#, "use_rslora"),
        (r#"{"lora_alpha": 16, "alpha_pattern": {"key": 8}}"#, "alpha_pattern"),
        (r#"{"r": 16}"#, "does not say its alpha"),
    ] {
        std::fs::write(dir.path().join("adapter_config.json"), json).unwrap();
        let e = Lora::from_checkpoint(c.clone(), None).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }
    let plain = r#"{"lora_alpha": 16, "use_rslora": false, "alpha_pattern": {}}"#;
    std::fs::write(dir.path().join("adapter_config.json"), plain).unwrap();
    assert_eq!(Lora::from_checkpoint(c, None).unwrap().alpha, 16.0);
}

#[test]
fn a_model_with_a_lora_agrees_with_itself() {
    let a = StoredTensor::from_f32(&[2, 32], &[0.2; 64]);
    let b = StoredTensor::from_f32(&[32, 2], &[0.3; 64]);
    let l = lora(vec![("blocks.1.att.value.lora_A", a), ("blocks.1.att.value.lora_B", b)]);
    let options = OpenOptions { loras: vec![l], group_norm_eps: Some(1e-2) };
    let m = Model::from_checkpoint(checkpoint(Version::V7), options, Cpu::new(1)).unwrap();
    let report = verify::against_itself(&m, 6, |_| ()).unwrap();
    assert!(report.passed(), "{report:?}");
}

/// Every tensor of every version in other shapes of as many numbers, in other types, swapped, scaled: refused or
/// run to finite logits, never a panic, and unit axes of a vector never change a bit.
#[test]
fn no_shape_of_any_tensor_panics() {
    let versions = [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];
    for version in versions {
        let whole = checkpoint(version);
        let want = logits(&model(whole.clone(), vec![]).unwrap());
        for (name, tensor) in &whole.tensors {
            let shape = &tensor.shape;
            let mut front = shape.clone();
            front.insert(0, 1);
            let mut back = shape.clone();
            back.push(1);
            let reversed: Vec<usize> = shape.iter().rev().copied().collect();
            let halves = vec![2, tensor.len() / 2];
            for shape in [front, back, vec![tensor.len()], reversed, halves, vec![tensor.len(), 1, 1]] {
                let same = shape.iter().filter(|d| **d != 1).eq(tensor.shape.iter().filter(|d| **d != 1));
                let mut changed = whole.clone();
                changed.tensors.insert(name.clone(), tensor.reshaped(shape.clone()));
                if let Ok(m) = model(changed, vec![]) {
                    assert!(!same || logits(&m) == want, "{version} {name} as {shape:?}");
                }
            }
            for dtype in [DType::F64, DType::BF16, DType::Q8_0] {
                let Some(other) = tensor.converted(dtype) else { continue };
                let mut changed = whole.clone();
                changed.tensors.insert(name.clone(), other);
                let m = model(changed, vec![]).unwrap_or_else(|e| panic!("{version} {name} as {dtype}: {e}"));
                assert!(dtype != DType::F64 || logits(&m) == want, "{version} {name} as {dtype}");
            }
            // The same numbers with the last two axes swapped in memory, at half the scale.
            if let [.., rows, cols] = tensor.shape[..] {
                let values = tensor.to_f32();
                let mut turned = Vec::with_capacity(values.len());
                for part in values.chunks_exact(rows * cols) {
                    turned.extend((0..rows * cols).map(|i| 2.0 * part[i % rows * cols + i / rows]));
                }
                let mut stored = StoredTensor::from_f32(&tensor.shape, &turned);
                (stored.transposed, stored.scale) = (true, 0.5);
                assert_eq!(stored.to_f32(), values);
                let mut changed = whole.clone();
                changed.tensors.insert(name.clone(), stored);
                assert_eq!(hash::compute(&changed, None).unwrap(), hash::compute(&whole, None).unwrap());
                if name != "emb.weight" {
                    assert_eq!(logits(&model(changed, vec![]).unwrap()), want, "{version} {name} swapped");
                }
            }
        }
    }
}

/// Opening a pipe would wait for a writer that never comes.
#[cfg(unix)]
#[test]
fn a_pipe_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    match std::process::Command::new("mkfifo").arg(&path).status() {
        Ok(status) if status.success() => {}
        _ => return println!("skipped: there is no mkfifo"),
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(format::open(&path).map(|_| ()).unwrap_err().to_string()));
    let error = receiver.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits for a writer");
    assert!(error.contains("not a regular file"), "{error}");
}

fn saved(ckpt: &Checkpoint, name: &str, dtype: Option<DType>) -> hawfinch_model::Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let format = format::SaveFormat::from_extension(&path).unwrap();
    format::save(&path, ckpt, format::SaveOptions { format, dtype, vocabulary: None, progress: None })?;
    format::open(&path)
}

#[test]
fn buffers_without_numbers_do_not_keep_a_model_from_gguf() {
    let mut ckpt = checkpoint(Version::V6);
    ckpt.insert("blocks.0.att.time_shift", StoredTensor::from_f32(&[0], &[])).unwrap();
    let made = saved(&ckpt, "m.gguf", None).unwrap();
    assert!(made.get("blocks.0.att.time_shift").is_none() && made.tensors.len() + 1 == ckpt.tensors.len());
    ckpt.insert("blocks.0.att.other", StoredTensor::from_f32(&[1], &[1.0])).unwrap();
    assert!(saved(&ckpt, "m.gguf", None).unwrap_err().to_string().contains("blocks.0.att.other"));
}

#[test]
fn blocks_take_no_nan_and_no_infinity() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut ckpt = checkpoint(Version::V7);
        let t = ckpt.tensors.get_mut("blocks.1.ffn.key.weight").unwrap();
        let mut values = t.to_f32();
        values[40] = value;
        *t = StoredTensor::from_f32(&t.shape.clone(), &values);
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q5_1] {
            let e = saved(&ckpt, "m.gguf", Some(dtype)).unwrap_err().to_string();
            assert!(e.contains("blk.1.channel_mix_key.weight") && e.contains(&value.to_string()), "{e}");
        }
        // Floating-point numbers keep it, for whoever looks for it.
        for dtype in [None, Some(DType::F16), Some(DType::BF16)] {
            let made = saved(&ckpt, "m.pth", dtype).unwrap();
            let kept = made.get("blocks.1.ffn.key.weight").unwrap().to_f32()[40];
            assert!(kept == value || kept.is_nan() && value.is_nan(), "{dtype:?}: {kept}");
        }
    }
}

#[test]
fn quantising_keeps_the_model_s_hash_and_notes_the_scheme() {
    let ckpt = checkpoint(Version::V7);
    let hash = hash::identity(&ckpt, None).unwrap();
    let noted = |c: &Checkpoint| c.metadata.get(hawfinch_model::metadata::QUANTIZED).cloned();
    let mut file = saved(&ckpt, "m.gguf", None).unwrap();
    assert_eq!(noted(&file), None);
    for (name, dtype, scheme) in [
        ("m.gguf", Some(DType::Q8_0), "q8_0"),
        ("m.pth", None, "q8_0"),
        ("m.gguf", Some(DType::Q4_0), "q8_0, q4_0"),
        ("m.gguf", None, "q8_0, q4_0"),
        ("m.safetensors", Some(DType::F32), "q8_0, q4_0"),
    ] {
        file = saved(&file, name, dtype).unwrap();
        assert_eq!(noted(&file).as_deref(), Some(scheme), "{name} {dtype:?}");
        assert_eq!(hash::identity(&file, None).unwrap(), hash);
    }
    // Another program's blocks are noted when they become numbers.
    let mut theirs = saved(&ckpt, "m.gguf", Some(DType::Q8_0)).unwrap();
    theirs.metadata.clear();
    assert_eq!(noted(&saved(&theirs, "m.pth", None).unwrap()).as_deref(), Some("q8_0"));
}

#[test]
fn a_checkpoint_knows_the_files_it_was_read_from() {
    let data = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let files = |name: &str| {
        let files = format::open(&data(name)).unwrap().files;
        let mut names: Vec<_> =
            files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert!(files.iter().all(|f| f.is_file()));
        names
    };
    assert_eq!(files("v7.pth"), ["v7.pth"]);
    assert_eq!(files("v4.hf"), std::fs::read_dir(data("v4.hf")).map(names_of).unwrap());
    let sharded = files("v6.hf");
    assert!(sharded.len() == 3 && sharded.iter().any(|f| f.ends_with(".index.json")), "{sharded:?}");
    assert!(checkpoint(Version::V4).files.is_empty());
}

fn names_of(dir: std::fs::ReadDir) -> Vec<String> {
    let names = dir.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|n| !n.ends_with(".json")).collect()
}
