//! Models quantised while they are opened: the same bits however they are run, and near the model they come from.

mod common;

use std::sync::Arc;

use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::verify::{against_itself, divergence};
use hawfinch_model::{Config, Cpu, Model, OpenOptions, Quant, Rows, Sequence, Version, format};

const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

/// Wide enough for blocks of 256 and heads of the usual size.
fn wide(version: Version) -> Config {
    Shape { version, layers: 2, width: 256, vocab: 80, head_size: 64 }.config()
}

fn logits(m: &Model, pieces: &[&[u32]]) -> Vec<f32> {
    let mut state = m.new_state();
    let mut out = Vec::new();
    for tokens in pieces {
        let call = Sequence { tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
        out.extend(m.forward(&mut [call]).unwrap().remove(0).logits);
    }
    out.extend(state.data());
    out
}

/// Whole and in pieces, alone and beside others, on one thread and three, on every instruction set.
#[test]
fn the_same_bits_however_they_are_run() {
    let tokens: Vec<u32> = (0..30).map(|n| n * 7 % 80).collect();
    let pools = [1, 3].map(|n| Arc::new(Pool::new(n)));
    for version in VERSIONS {
        for quant in [None, Some(Quant::Int8), Some(Quant::Int4)] {
            let ckpt = synthetic::checkpoint(&wide(version), DType::BF16, 3);
            let open = |isa, pool: &Arc<Pool>| {
                let cpu = Cpu::with(pool.clone(), isa).quantizing(quant);
                Model::from_checkpoint(ckpt.clone(), OpenOptions::default(), cpu).unwrap()
            };
            let fastest = open(Isa::best(), &pools[1]);
            assert!(against_itself(&fastest, 12, |_| ()).unwrap().passed(), "{version} {quant:?}");
            let want = logits(&fastest, &[&tokens]);
            for isa in Isa::available() {
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

/// Real models (`../shared/data/weights`): what 8 bits change is far below what 4 bits change, and both are small
/// beside the models' losses of 1 to 4 nats. They are 64 to 128 channels wide, where a block is half a row or a
/// quarter: wide models lose less.
#[test]
fn real_models_stay_near() {
    let Some(dir) = common::shared("weights/rwkv.cpp-tiny") else { return };
    let text = b"It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of fool";
    for (name, wide, bounds) in [
        ("4v0-660K", false, [1e-3, 1e-2]),
        ("5v1-730K", false, [3e-3, 0.2]),
        ("5v2-730K", false, [3e-3, 0.2]),
        ("6v0-1m", true, [3e-3, 0.1]),
        ("7v0-834K", false, [1e-4, 1e-3]),
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
        for (quant, bound) in Quant::ALL.into_iter().zip(bounds) {
            let got = divergence(&full, &open(Some(quant)), 256);
            eprintln!("{name} {quant}: KL {got:.2e}");
            assert!(got > 0.0 && got < bound, "{name} {quant}: KL {got:.2e}");
        }
    }
}
