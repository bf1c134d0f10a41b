//! Models quantised while they are opened: the same bits however they are run, and near the model they come from.

mod common;

use std::sync::Arc;

use common::logits;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::format::{SaveFormat, SaveOptions};
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::verify::{against_itself, divergence};
use hawfinch_model::{Config, Cpu, Model, OpenOptions, Quant, Rows, Sequence, Trace, Version, format};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

/// Wide enough for blocks of 256 and heads of the usual size.
fn wide(version: Version) -> Config {
    Shape { version, layers: 2, width: 256, vocab: 80, head_size: 64 }.config()
}

/// Whole and in pieces, alone and beside others, on one thread and three, on every instruction set.
#[test]
fn the_same_bits_however_they_are_run() {
    let tokens: Vec<u32> = (0..30).map(|n| n * 7 % 80).collect();
    let pools = [1, 3].map(|n| Arc::new(Pool::new(n)));
    for version in VERSIONS {
        for quant in [None].into_iter().chain(Quant::ALL.map(Some)) {
            let ckpt = synthetic::checkpoint(&wide(version), DType::BF16, 3);
            let open = |isa, pool: &Arc<Pool>| {
                let cpu = Cpu::with(pool.clone(), isa).quantizing(quant);
                Model::from_checkpoint(ckpt.clone(), OpenOptions::default(), cpu).unwrap()
            };
            let fastest = open(Isa::best(), &pools[1]);
            assert!(against_itself(&fastest, 12, |_| ()).unwrap().passed(), "{version} {quant:?}");
            let want = logits(&fastest, &[&tokens]);
            for isa in Isa::available().into_iter().chain([Isa::best().with_emulated_tiles()]) {
                if quant == Some(Quant::Bf16) && isa.has_tiles() != Isa::best().has_tiles() {
                    // Tiles of bf16 add in an order of their own.
                    let tiled = open(isa, &pools[1]);
                    assert!(against_itself(&tiled, 12, |_| ()).unwrap().passed(), "{version} {isa}");
                    continue;
                }
                // The scalar code is slow, and compared operation by operation where it is written.
                let tokens = if isa == Isa::SCALAR { &tokens[..3] } else { &tokens };
                let want = if isa == Isa::SCALAR { logits(&fastest, &[tokens]) } else { want.clone() };
                for pool in &pools {
                    let m = open(isa, pool);
                    assert!(logits(&m, &[tokens]) == want, "{version} {quant:?} {isa}");
                    let got = logits(&m, &[&tokens[..1], &tokens[1..2], &tokens[2..]]);
                    assert!(got == want, "{version} {quant:?} {isa} in pieces");
                }
            }
        }
    }
}

/// GGUF files in Q6_K, of which `ffn.value` too lies in panels: the same bits however they are run, and near
/// the source.
#[test]
fn files_of_six_bits() {
    let tokens: Vec<u32> = (0..30).map(|n| n * 7 % 80).collect();
    let dir = tempfile::tempdir().unwrap();
    for version in [Version::V4, Version::V6, Version::V7] {
        let source = synthetic::checkpoint(&wide(version), DType::BF16, 3);
        let path = dir.path().join("six.gguf");
        let options = SaveOptions {
            format: SaveFormat::Gguf,
            dtype: Some(DType::Q6_K),
            vocabulary: None,
            progress: None,
        };
        format::save(&path, &source, options).unwrap();
        let open = |isa, threads| {
            let ckpt = format::open(&path).unwrap();
            let is_six = |name: &str| ckpt.tensors[name].dtype == DType::Q6_K;
            assert!(is_six("blocks.1.att.key.weight"));
            // The hidden layer of version 6 is no whole 256 channels wide here.
            assert!(is_six("blocks.1.ffn.value.weight") || version == Version::V6);
            let cpu = Cpu::with(Arc::new(Pool::new(threads)), isa);
            Model::from_checkpoint(ckpt, OpenOptions::default(), cpu).unwrap()
        };
        let fastest = open(Isa::best(), 3);
        assert!(against_itself(&fastest, 12, |_| ()).unwrap().passed(), "{version}");
        let want = logits(&fastest, &[&tokens]);
        for isa in Isa::available().into_iter().chain([Isa::best().with_emulated_tiles()]) {
            let tokens = if isa == Isa::SCALAR { &tokens[..3] } else { &tokens };
            let want = if isa == Isa::SCALAR { logits(&fastest, &[tokens]) } else { want.clone() };
            let m = open(isa, 1);
            assert!(logits(&m, &[tokens]) == want, "{version} {isa}");
            assert!(logits(&m, &[&tokens[..1], &tokens[1..]]) == want, "{version} {isa} in pieces");
        }
        // Full precision, 8 bits, 4 bits: between the last two, nearer to 8.
        let of_source = [None, Some(Quant::Int8), Some(Quant::Int4)].map(|quant| {
            let cpu = Cpu::new(2).quantizing(quant);
            let m = Model::from_checkpoint(source.clone(), OpenOptions::default(), cpu).unwrap();
            logits(&m, &[&tokens])
        });
        let rows = tokens.len() * 80;
        let kl = |other: &[f32]| divergence(&of_source[0][..rows], &other[..rows], 80);
        let (eight, six, four) = (kl(&of_source[1]), kl(&want), kl(&of_source[2]));
        eprintln!("{version}: KL {eight:.2e} {six:.2e} {four:.2e}");
        assert!(eight < six && 3.0 * six < four, "{version}: KL {eight:.2e} {six:.2e} {four:.2e}");
    }
}

/// What a change makes of the logits is what the changed model computes, from whichever layer on.
#[test]
fn a_trace_computes_what_the_model_does() {
    for version in VERSIONS {
        let config = wide(version);
        let ckpt = synthetic::checkpoint(&config, DType::F16, 3);
        let other = synthetic::checkpoint(&config, DType::F16, 4);
        let open = |ckpt| Model::from_checkpoint(ckpt, OpenOptions::default(), Cpu::new(2)).unwrap();
        let model = open(ckpt.clone());
        let texts: [&[u32]; 2] = [&[3, 1, 4, 1, 5, 9, 2, 6], &[7, 7, 7]];
        let trace = Trace::new(&model, &texts).unwrap();
        let next = trace.next_tokens();
        assert_eq!((next[0], next[7], next[8], next[10]), (Some(1), None, Some(7), None));
        for changed in [
            &[][..],
            &["emb.weight"],
            &["blocks.0.ln0.bias"],
            &["blocks.0.att.value.weight"],
            &["blocks.1.ffn.key.weight", "blocks.1.ln1.weight"],
            &["head.weight", "ln_out.weight"],
            &["blocks.0.att.key.weight", "emb.weight", "head.weight", "blocks.1.att.output.weight"],
        ] {
            let mut got = Vec::new();
            let mut make = |name: &str| Ok(other.tensors[name].clone());
            trace.logits(changed, &mut make, &mut |_, rows| got.extend_from_slice(rows)).unwrap();
            let mut changed_model = ckpt.clone();
            for &name in changed {
                changed_model.tensors.insert(name.into(), other.tensors[name].clone());
            }
            let changed_model = open(changed_model);
            let mut want = Vec::new();
            for tokens in texts {
                let mut state = changed_model.new_state();
                let call = Sequence { tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
                want.extend(changed_model.forward(&mut [call]).unwrap().remove(0).logits);
            }
            assert!(got == want, "{version} {changed:?}");
        }
        assert!(Trace::new(&model, &[&[1][..], &[]]).is_err() && Trace::new(&model, &[&[80]]).is_err());
    }
}

/// Real models (`../shared/data/weights`): what 8 bits change is far below what 4 bits change, and both are small
/// beside the models' losses of 1 to 4 nats. They are 64 to 128 channels wide, where a block is half a row or a
/// quarter: wide models lose less.
#[test]
fn real_models_stay_near() {
    let Some(dir) = common::shared("weights/rwkv.cpp-tiny") else { return };
    let text = b"It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of fool";
    for (name, wide, bounds) in [
        ("4v0-660K", false, [1e-4, 1e-3, 1e-2, 1e-2]),
        ("5v1-730K", false, [1e-3, 3e-3, 0.2, 0.15]),
        ("5v2-730K", false, [1e-3, 3e-3, 0.2, 0.15]),
        ("6v0-1m", true, [1e-3, 3e-3, 0.1, 0.05]),
        ("7v0-834K", false, [1e-5, 1e-4, 1e-3, 1e-3]),
    ] {
        // The v6 models read text of two bytes a character.
        let tokens: Vec<u32> =
            text.iter().flat_map(|&b| if wide { vec![b.into(), 0] } else { vec![b.into()] }).collect();
        let open = |quant| {
            let ckpt = format::open(&dir.join(format!("tiny-rwkv-{name}-FP32.bin"))).unwrap();
            let cpu = Cpu::new(2).quantizing(quant);
            let m = Model::from_checkpoint(ckpt, OpenOptions::default(), cpu).unwrap();
            let mut state = m.new_state();
            let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
            m.forward(&mut [call]).unwrap().remove(0).logits
        };
        let full = open(None);
        let mut found = Vec::new();
        for (quant, bound) in Quant::ALL.into_iter().zip(bounds) {
            let got = divergence(&full, &open(Some(quant)), 256);
            found.push(got);
            eprintln!("{name} {quant}: KL {got:.2e}");
            assert!(got > 0.0 && got < bound, "{name} {quant}: KL {got:.2e}");
        }
        let [sixteen, eight, four, mixed] = found[..] else { unreachable!("four ways") };
        assert!(sixteen < eight && eight < mixed && mixed <= four, "{name}: {found:?}");
    }
}
