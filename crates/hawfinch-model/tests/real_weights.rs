//! Real trained models against the logits that rwkv.cpp's authors published with them: every file of
//! `../shared/data/weights`, where that folder lies beside the repository.

use std::path::{Path, PathBuf};

use hawfinch_kernels::{DType, Real};
use hawfinch_model::{Checkpoint, Cpu, Model, OpenOptions, Rows, Sequence, format};

fn folder() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/weights/rwkv.cpp-tiny");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// Logits after the prompt `"in`, one byte at a time.
fn logits<F: Real>(model: &Model<Cpu<F>>) -> Vec<f32> {
    let mut state = model.new_state().cast();
    let mut last = Vec::new();
    for byte in b"\"in" {
        let tokens = [u32::from(*byte)];
        let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
        last = model.forward(&mut [call]).unwrap().remove(0).logits;
    }
    last
}

fn model<F: Real>(checkpoint: Checkpoint) -> Model<Cpu<F>> {
    Model::from_checkpoint(checkpoint, OpenOptions::default(), Cpu::new(2)).unwrap()
}

/// Model, format, and for quantised formats the sum of (logit - expected) that rwkv.cpp's own test
/// documents for it (tests/test_tiny_rwkv.c; FP32 sources). Its criterion is |sum| <= 1.05 |documented|.
/// rwkv.cpp rounds activations to 8 bits; hawfinch does so for Q4_0 and Q8_0, and not in f64.
const FILES: [(&str, &str, Option<f64>); 29] = [
    ("4v0-660K", "FP32", None),
    ("4v0-660K", "FP32-to-Q4_0", Some(-0.160030)),
    ("4v0-660K", "FP32-to-Q4_1", Some(-0.547409)),
    ("4v0-660K", "Q5_0", Some(-0.180142)), // made from FP16
    ("4v0-660K", "Q5_1", Some(0.294953)),
    ("4v0-660K", "FP32-to-Q8_0", Some(0.076282)),
    ("5v1-730K", "FP32", None),
    ("5v1-730K", "Q5_0", Some(-163.439407)),
    ("5v1-730K", "Q5_1", Some(-18.017435)),
    ("5v2-730K", "FP32", None),
    ("5v2-730K", "FP32-to-Q4_0", Some(35.271305)),
    ("5v2-730K", "FP32-to-Q4_1", Some(67.015076)),
    ("5v2-730K", "Q5_0", Some(25.273308)),
    ("5v2-730K", "Q5_1", Some(48.068733)),
    ("5v2-730K", "FP32-to-Q8_0", Some(-9.441034)),
    ("6v0-1m", "FP32", None),
    ("6v0-1m", "FP16", None),
    ("6v0-1m", "Q5_0", None),
    ("6v0-1m", "Q5_1", None),
    ("6v0-3m", "FP32-to-Q4_0", Some(-7.588121)),
    ("6v0-3m", "Q5_0", Some(-27.332073)),
    ("6v0-3m", "Q5_1", Some(3.576909)),
    ("7v0-834K", "FP32", None),
    ("7v0-834K", "FP16", None),
    ("7v0-834K", "FP32-to-Q4_0", Some(0.136785)),
    // Without the rounding of activations these four sums are 0.0753, 0.0733, 0.0044 and 0.012525: mean errors
    // of a logit under 0.0003, where the documented limits (0.0668, 0.0679, 0.0027, 0.012520) hold that rounding.
    ("7v0-834K", "Q5_0", None),
    ("7v0-834K", "Q5_1", None),
    ("7v0-834K", "FP32-to-Q4_1", None),
    ("7v0-834K", "FP32-to-Q8_0", None),
];

#[test]
fn expected_logits_of_every_file() {
    let Some(folder) = folder() else { return };
    for (name, kind, documented) in FILES {
        let sub = if kind.contains("-to-") { "quantized-by-rwkv.cpp" } else { "" };
        let path = folder.join(sub).join(format!("tiny-rwkv-{name}-{kind}.bin"));
        let expected = std::fs::read(folder.join(format!("expected-logits-{name}.bin"))).unwrap();
        let expected: Vec<f32> =
            expected.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let file = format::open(&path).unwrap();
        let got = logits(&model::<f32>(file.clone()));
        assert_eq!(got.len(), expected.len());
        let differences = || got.iter().zip(&expected).map(|(a, b)| a - b);
        let (sum, max) = (differences().sum::<f32>(), differences().fold(0.0, |m: f32, d| m.max(d.abs())));
        if kind.starts_with("FP") && !kind.contains("-to-") {
            // An independent f64 computation is within 3.1e-6 of them.
            assert!(max <= 1e-5, "{name} {kind}: {max}");
            continue;
        }
        match documented {
            Some(limit) => {
                assert!(f64::from(sum.abs()) <= 1.05 * limit.abs(), "{name} {kind}: sum {sum}, limit {limit}")
            }
            None if name == "7v0-834K" => assert!(max <= 0.0125, "{name} {kind}: {max}"),
            // 5-bit rounding, as 0.157 for the larger 6v0-3m.
            None => assert!(max <= 0.157, "{name} {kind}: {max}"),
        }
        if (name, kind) == ("6v0-3m", "Q5_1") {
            assert!(max <= 0.076, "{max}"); // documented for this file by an independent f64 computation
        }

        println!("{name} {kind}: sum {sum:.4} of {documented:?}, largest {max:.4}");

        // Multiplying blocks as they are is multiplying the numbers they stand for: in f64, where activations
        // are not rounded to 8 bits.
        let mut wide = file.clone();
        for t in wide.tensors.values_mut() {
            *t = t.converted(DType::F32).unwrap();
        }
        let in_blocks = logits(&model::<f64>(file));
        let exact = logits(&model::<f64>(wide));
        let error = in_blocks.iter().zip(&exact).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs()));
        assert!(error <= 1e-6, "{name} {kind}: blocks against their values {error}");
        if let Some(limit) = documented {
            let sum: f32 = exact.iter().zip(&expected).map(|(a, b)| a - b).sum();
            assert!(
                f64::from(sum.abs()) <= 1.05 * limit.abs(),
                "{name} {kind}: f64 sum {sum}, limit {limit}"
            );
        }
    }
}

/// The models were trained on text: it must be likely to them. (v6 was trained on two-byte characters.)
#[test]
fn real_text_is_likely() {
    let Some(folder) = folder() else { return };
    let text = "the man was in the house and he said that it was a good day for the people";
    for (name, two_bytes, nats_a_character) in
        [("5v2-730K", false, 2.6), ("5v1-730K", false, 2.6), ("6v0-1m", true, 2.2)]
    {
        let m = Model::open(folder.join(format!("tiny-rwkv-{name}-FP32.bin"))).unwrap();
        let tokens: Vec<u32> = if two_bytes {
            text.bytes().flat_map(|b| [u32::from(b), 0]).collect()
        } else {
            text.bytes().map(u32::from).collect()
        };
        let mut state = m.new_state();
        let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
        let out = m.forward(&mut [call]).unwrap().remove(0).logits;
        let mut nats = 0.0;
        for (row, &next) in out.chunks_exact(256).zip(&tokens[1..]) {
            let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            let sum: f32 = row.iter().map(|v| (v - max).exp()).sum();
            nats += max + sum.ln() - row[next as usize];
        }
        let per_character = nats / (text.len() - 1) as f32;
        println!("{name}: {per_character:.3} nats a character");
        assert!(per_character < nats_a_character, "{name}: {per_character}");
    }
}
