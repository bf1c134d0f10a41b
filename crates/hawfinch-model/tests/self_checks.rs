//! Properties that hold whatever the weights are (spec section 14).

use std::collections::BTreeMap;

use hawfinch_kernels::DType;
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::verify::against_itself;
use hawfinch_model::{
    Checkpoint, Config, Cpu, Error, Model, OpenOptions, Rows, Sequence, StoredTensor, Version,
};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

fn small(version: Version) -> Config {
    Shape { version, layers: 3, width: 64, vocab: 80, head_size: 16 }.config()
}

fn model(checkpoint: Checkpoint) -> Model {
    Model::from_checkpoint(checkpoint, OpenOptions::default(), Cpu::new(2)).unwrap()
}

fn all_logits(m: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut state = m.new_state();
    let call = Sequence { tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
    m.forward(&mut [call]).unwrap().remove(0).logits
}

#[test]
fn parameter_totals() {
    let total = |version, layers, width, layer_0_value| {
        Shape { version, layers, width, vocab: 65536, head_size: 64 }.config().parameters(layer_0_value)
    };
    assert_eq!(total(Version::V6, 24, 2048, true), 1_599_873_024);
    assert_eq!(total(Version::V6, 32, 2560, true), 3_099_863_040);
    assert_eq!(total(Version::V6, 32, 4096, true), 7_635_746_816);
    // The published v7 totals count layer 0's unused v0, v1, v2.
    assert_eq!(total(Version::V7, 12, 768, true), 191_084_544);
    assert_eq!(total(Version::V7, 24, 1024, true), 450_834_432);
    assert_eq!(total(Version::V7, 24, 2048, true), 1_527_668_736);
    assert_eq!(total(Version::V7, 32, 2560, true), 2_948_065_280);
    assert_eq!(total(Version::V7, 32, 4096, true), 7_199_932_416);
    assert!(total(Version::V7, 32, 4096, false) < 7_199_932_416);
}

#[test]
fn the_configuration_comes_back_from_names_and_shapes() {
    for version in VERSIONS {
        let config = small(version);
        let ckpt = synthetic::checkpoint(&config, DType::BF16, 1);
        assert_eq!(Config::infer(&ckpt).unwrap(), config);
        assert_eq!(ckpt.parameters(), config.parameters(true));
        // Whatever order the tensors come in.
        let mut reversed = ckpt.clone();
        reversed.tensors.reverse();
        assert_eq!(Config::infer(&reversed).unwrap(), config);
    }
}

#[test]
fn every_version_agrees_with_itself() {
    for version in VERSIONS {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let m = model(synthetic::checkpoint(&small(version), dtype, 5));
            let report = against_itself(&m, 40, |_| ()).unwrap();
            assert!(report.passed(), "{version} {dtype}: {report:?}");
        }
    }
}

#[test]
fn nan_weights_fail_verification_and_are_named() {
    let mut ckpt = synthetic::checkpoint(&small(Version::V6), DType::F32, 5);
    let name = "blocks.1.ffn.key.weight";
    let mut values = ckpt.tensors[name].to_f32();
    values[7] = f32::NAN;
    ckpt.tensors[name] = StoredTensor::from_f32(&ckpt.tensors[name].shape.clone(), &values);
    let m = model(ckpt.clone());
    let report = against_itself(&m, 4, |_| ()).unwrap();
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.passed()).collect();
    assert_eq!(failed.len(), 2, "{report:?}");
    assert!(failed[0].note.contains(name) && failed[0].note.contains("index 7"), "{report:?}");
    assert!(failed[1].what.contains("logits"), "{report:?}");
    assert!(hawfinch_model::verify::first_bad_tensor(&ckpt)[0].contains(name));
    // In a vector it is found when the model is opened.
    let name = "blocks.0.att.time_decay";
    let mut values = ckpt.tensors[name].to_f32();
    values[3] = f32::INFINITY;
    ckpt.tensors[name] = StoredTensor::from_f32(&ckpt.tensors[name].shape.clone(), &values);
    let e = Model::from_checkpoint(ckpt, OpenOptions::default(), Cpu::<f32>::new(1)).err().unwrap();
    assert!(matches!(e, Error::NonFinite { ref name, index: 3, .. } if name.ends_with("time_decay")), "{e}");
}

/// Calls longer than a step, ragged batches: every sequence as if it were alone and fed one by one.
#[test]
fn long_and_ragged_calls_change_nothing() {
    for version in [Version::V4, Version::V6, Version::V7] {
        let m = model(synthetic::checkpoint(&small(version), DType::F32, 9));
        let texts: Vec<Vec<u32>> =
            [300, 1, 130, 7].iter().map(|&n| (0..n).map(|i| (i * i + n) % 80).collect()).collect();
        let alone: Vec<_> = texts
            .iter()
            .map(|t| {
                let mut state = m.new_state();
                let mut logits = Vec::new();
                for id in t {
                    let tokens = [*id];
                    let s = Sequence {
                        tokens: &tokens,
                        state: &mut state,
                        logits: Rows::All,
                        hidden: Rows::None,
                    };
                    logits.extend(m.forward(&mut [s]).unwrap().remove(0).logits);
                }
                (logits, state)
            })
            .collect();
        let mut states = vec![m.new_state(); texts.len()];
        let mut calls: Vec<_> = texts
            .iter()
            .zip(&mut states)
            .map(|(t, state)| Sequence { tokens: t, state, logits: Rows::All, hidden: Rows::Last })
            .collect();
        let out = m.forward(&mut calls).unwrap();
        for ((alone, out), state) in alone.iter().zip(&out).zip(&states) {
            assert!(alone.0 == out.logits && alone.1 == *state, "{version}");
            assert_eq!(out.hidden.len(), 64);
        }
        // The last rows alone, from one step, from several, more than there are, none.
        for n in [0, 1, 2, 150, 1000] {
            let mut states = vec![m.new_state(); texts.len()];
            let call = |(t, state)| Sequence { tokens: t, state, logits: Rows::Tail(n), hidden: Rows::None };
            let mut calls: Vec<_> = texts.iter().map(|t| &t[..]).zip(&mut states).map(call).collect();
            let tails = m.forward(&mut calls).unwrap();
            for (all, tail) in out.iter().zip(&tails) {
                let from = all.logits.len().saturating_sub(n * m.config().vocab);
                assert!(all.logits[from..] == tail.logits, "{version} {n}");
            }
        }
    }
}

#[test]
fn bad_requests_change_no_state() {
    let m = model(synthetic::checkpoint(&small(Version::V7), DType::F32, 9));
    let mut state = m.new_state();
    let fresh = state.clone();
    let mut call = |tokens: &[u32]| {
        let s = Sequence { tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
        m.forward(&mut [s]).unwrap_err()
    };
    assert!(matches!(call(&[1, 80, 2]), Error::TokenRange { id: 80, vocab: 80 }));
    assert!(call(&[]).to_string().contains("at least one token"));
    assert_eq!(state, fresh);
}

/// v5.2 is v6 with its low-rank parts zero and mixes counted from the other end.
#[test]
fn version_5_2_is_version_6_without_its_data_dependence() {
    let five = synthetic::checkpoint(&small(Version::V5_2), DType::F32, 11);
    let config = small(Version::V6);
    let mut six = synthetic::checkpoint(&config, DType::F32, 12);
    for (name, tensor) in &mut six.tensors {
        let shape = tensor.shape.clone();
        let same = name.replace("time_maa_", "time_mix_");
        *tensor = if name.ends_with("_w1") || name.ends_with("_w2") || name.ends_with("time_maa_w") {
            StoredTensor::from_f32(&shape, &vec![0.0; tensor.len()])
        } else if name.ends_with("time_maa_x") {
            tensor.clone()
        } else if let Some(source) = five.get(&same) {
            let flip = same != *name;
            let values: Vec<f32> = source.to_f32().iter().map(|v| if flip { 1.0 - v } else { *v }).collect();
            StoredTensor::from_f32(&shape, &values)
        } else {
            panic!("v5.2 has no {name}")
        };
    }
    let tokens: Vec<u32> = (0..50).map(|i| i * 7 % 80).collect();
    let (a, b) = (all_logits(&model(five), &tokens), all_logits(&model(six), &tokens));
    let error = a.iter().zip(&b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(error < 2e-4, "{error}");
}

#[test]
fn variants_are_refused_by_name() {
    let expected: BTreeMap<&str, &str> = BTreeMap::from([
        ("blocks.0.ffn.s_emb.weight", "DeepEmbed"),
        ("blocks.0.qkv.weight", "7b"),
        ("qkv.0.k1", "7b"),
        ("blocks.0.tiny_ln.weight", "tiny attention"),
        ("blocks.0.att.time_maa_rkvw_w1", "x060b"),
        ("blocks.0.ffnPre.key.weight", "ffnPre"),
        ("head_q.weight", "head-QK"),
    ]);
    for (name, words) in expected {
        let mut ckpt = synthetic::checkpoint(&small(Version::V7), DType::F32, 1);
        ckpt.insert(name, StoredTensor::from_f32(&[1], &[0.0])).unwrap();
        let e = Config::infer(&ckpt).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("does not implement"), "{e}");
    }
    // Buffers of old training code hold nothing.
    let mut ckpt = synthetic::checkpoint(&small(Version::V4), DType::F32, 1);
    ckpt.insert("blocks.0.att.time_shift", StoredTensor::from_f32(&[0], &[])).unwrap();
    assert!(Config::infer(&ckpt).is_ok());
}

#[test]
fn tensors_that_nothing_uses_are_named() {
    for version in VERSIONS {
        let mut ckpt = synthetic::checkpoint(&small(version), DType::F32, 1);
        let config = Config::infer(&ckpt).unwrap();
        assert!(config.unused(&ckpt).is_empty());
        ckpt.insert("blocks.1.att.time_state", StoredTensor::from_f32(&[1], &[0.0])).unwrap();
        ckpt.insert("blocks.1.att.new_gate", StoredTensor::from_f32(&[1], &[0.0])).unwrap();
        assert_eq!(config.unused(&ckpt), ["blocks.1.att.new_gate"]);
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    for version in VERSIONS {
        let whole = synthetic::checkpoint(&small(version), DType::F32, 1);
        for name in whole.tensors.keys() {
            let optional = ["v0", "v1", "v2"].iter().any(|v| *name == format!("blocks.0.att.{v}"));
            let mut without = whole.clone();
            without.tensors.shift_remove(name);
            match Config::infer(&without) {
                Ok(_) => assert!(optional, "{version} without {name}"),
                // A tensor that tells versions apart may make it look like another one, which then lacks
                // something else.
                Err(e) => assert!(e.to_string().contains('`') || e.to_string().contains("damaged"), "{e}"),
            }
            let mut misshapen = whole.clone();
            let n = whole.tensors[name].len();
            misshapen.tensors[name] = StoredTensor::from_f32(&[n, 3], &vec![0.0; 3 * n]);
            assert!(optional || Config::infer(&misshapen).is_err(), "{version} with a misshapen {name}");
        }
    }
}
