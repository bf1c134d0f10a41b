//! Known answers for every block format. `testdata/README.md` says who made them.

use super::{decode, encode};
use crate::DType;

macro_rules! known {
    ($($dtype:ident $name:literal),* $(,)?) => {
        [$((
            DType::$dtype,
            &include_bytes!(concat!("testdata/", $name, ".blocks"))[..],
            &include_bytes!(concat!("testdata/", $name, ".f32"))[..],
        )),*]
    };
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / 4];
    decode(DType::F32, bytes, &mut out);
    out
}

#[test]
fn decodes_as_the_gguf_package_does() {
    for (dtype, blocks, expected) in known!(
        Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1", Q8_0 "q8_0", Q2_K "q2_k", Q3_K "q3_k", Q4_K "q4_k",
        Q5_K "q5_k", Q6_K "q6_k", IQ4_NL "iq4_nl", IQ4_XS "iq4_xs",
    ) {
        let expected = floats(expected);
        let mut got = vec![f32::NAN; expected.len()];
        decode(dtype, blocks, &mut got);
        for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{dtype}: number {i} is {a}, expected {b}");
        }
    }
}

#[test]
fn every_block_type_is_known_here() {
    let known = 12;
    assert_eq!(DType::ALL.iter().filter(|d| d.is_quantized()).count(), known);
}

/// Deterministic, roughly normal numbers.
fn noise(n: usize) -> Vec<f32> {
    let mut s = 99u64;
    let mut next = || {
        s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| (next() + next() + next()) * 0.02).collect()
}

#[test]
fn more_bits_mean_less_error() {
    let x = noise(256 * 40);
    let norm: f64 = x.iter().map(|v| f64::from(v * v)).sum();
    let relative = |dtype: DType| {
        let mut bytes = Vec::new();
        assert!(encode(dtype, &x, &mut bytes), "{dtype}");
        let mut y = vec![0.0; x.len()];
        decode(dtype, &bytes, &mut y);
        let err: f64 = x.iter().zip(&y).map(|(a, b)| f64::from((a - b) * (a - b))).sum();
        (err / norm).sqrt()
    };
    // Root mean square errors relative to the numbers', for numbers of this distribution.
    for (dtype, bound) in [
        (DType::Q4_0, 0.10),
        (DType::Q4_K, 0.075),
        (DType::Q5_0, 0.05),
        (DType::Q5_K, 0.038),
        (DType::Q6_K, 0.020),
        (DType::Q8_0, 0.006),
    ] {
        let r = relative(dtype);
        assert!(r < bound && r > bound / 4.0, "{dtype}: {r}");
    }
    assert!(relative(DType::Q4_K) < relative(DType::Q4_0));
    assert!(relative(DType::Q5_K) < relative(DType::Q5_0));
    assert!(!encode(DType::Q2_K, &x, &mut Vec::new()) && !encode(DType::IQ4_XS, &x, &mut Vec::new()));
}

#[test]
fn odd_values_do_not_panic() {
    for odd in [f32::NAN, f32::INFINITY, f32::MAX, 1e-40, 0.0, -1.0] {
        for fill in [0.0, 1.0, odd] {
            let mut x = vec![fill; 256];
            x[17] = odd;
            for dtype in DType::ALL {
                let mut bytes = Vec::new();
                if encode(dtype, &x, &mut bytes) {
                    assert_eq!(Some(bytes.len()), dtype.bytes_for(256));
                    decode(dtype, &bytes, &mut vec![0.0; 256]);
                }
            }
        }
    }
}

#[test]
fn encodes_as_ggml_does() {
    let x = floats(include_bytes!("testdata/encode.f32"));
    macro_rules! expected {
        ($($dtype:ident $name:literal),* $(,)?) => {
            [$((DType::$dtype, &include_bytes!(concat!("testdata/encode.", $name))[..])),*]
        };
    }
    for (dtype, expected) in expected!(
        Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1", Q8_0 "q8_0", Q4_K "q4_k", Q5_K "q5_k", Q6_K "q6_k",
    ) {
        let mut got = Vec::new();
        assert!(encode(dtype, &x, &mut got));
        assert_eq!(got.len(), expected.len());
        let size = dtype.block_bytes();
        let blocks = || got.chunks(size).zip(expected.chunks(size)).enumerate();
        let other: Vec<usize> = blocks().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
        assert!(other.is_empty(), "{dtype}: blocks {other:?} differ");
    }
}
