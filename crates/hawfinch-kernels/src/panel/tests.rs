use super::*;
use crate::testing::values;
use crate::{block, linear as rows};

const KINDS: [DType; 4] = [DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K];

fn encoded(dtype: DType, o: usize, i: usize) -> Vec<u8> {
    let mut data = Vec::new();
    assert!(values(o * i, 2).chunks(i).all(|row| block::encode(dtype, row, &mut data)));
    data
}

/// Every instruction set of this machine, and each with portable code in place of tiles.
fn sets() -> Vec<Isa> {
    Isa::available().into_iter().flat_map(|isa| [isa, isa.with_emulated_tiles()]).collect()
}

/// Every instruction set gives the bits of the scalar meaning, whatever the tokens beside and the threads.
#[test]
fn instruction_sets_agree_to_the_bit() {
    for dtype in KINDS {
        for (t, o, i) in [
            (1, 200, 256),
            (30, 37, 512),
            (2, 64, 256),
            (5, 96, 256),
            (1, 5, 768),
            (12, 16, 1024),
            (33, 20, 768),
            (16, 130, 256),
        ] {
            let data = encoded(dtype, o, i);
            let x = values(t * i, 3);
            let pools = [Pool::new(1), Pool::new(3)];
            let w = Panels::pack(&pools[1], dtype, &data, o, i, 0.5).unwrap();
            let mut want = vec![f32::NAN; t * o];
            linear(Isa::SCALAR, &pools[0], &mut want, &x, &w, &mut Activations::default());
            for isa in sets() {
                for pool in &pools {
                    let mut y = vec![f32::NAN; t * o];
                    linear(isa, pool, &mut y, &x, &w, &mut Activations::default());
                    assert_eq!(y, want, "{isa} {dtype} {t} {o} {i}");
                }
                for s in 0..t {
                    let mut alone = vec![f32::NAN; o];
                    linear(
                        isa,
                        &pools[0],
                        &mut alone,
                        &x[s * i..(s + 1) * i],
                        &w,
                        &mut Activations::default(),
                    );
                    assert_eq!(alone, want[s * o..(s + 1) * o], "{isa} {dtype} token {s} of {t}");
                }
            }
        }
    }
}

/// As many tokens as a group can have, each a loop of its own.
#[test]
fn every_number_of_tokens() {
    let (o, i, pool) = (150, 768, Pool::new(1));
    for dtype in KINDS {
        let data = encoded(dtype, o, i);
        let panels = Panels::pack(&pool, dtype, &data, o, i, 0.5).unwrap();
        let strips = sparse::Sparse::pack(&pool, dtype, &data, o, i, 0.5);
        assert_eq!(strips.is_some(), sparse::has(dtype));
        for t in 1..=GROUP + 1 {
            let x = values(t * i, 3);
            let (mut want, mut y) = (vec![f32::NAN; t * o], vec![f32::NAN; t * o]);
            linear(Isa::SCALAR, &pool, &mut want, &x, &panels, &mut Activations::default());
            for isa in Isa::available() {
                linear(isa, &pool, &mut y, &x, &panels, &mut Activations::default());
                assert_eq!(y, want, "panels: {isa} {dtype} {t}");
                let Some(strips) = &strips else { continue };
                y.fill(f32::NAN);
                sparse::linear(isa, &pool, &mut y, &x, strips, &mut Activations::default());
                assert_eq!(y, want, "strips: {isa} {dtype} {t}");
            }
        }
    }
}

/// Blocks that are not whole records, single outputs.
#[test]
fn shapes_that_do_not_fill_panels() {
    for (o, i) in [(1, 32), (17, 96), (3, 160)] {
        for dtype in [DType::Q8_0, DType::Q4_0] {
            let data = encoded(dtype, o, i);
            let w = Panels::pack(&Pool::new(1), dtype, &data, o, i, 1.0).unwrap();
            near(dtype, &data, &w, o, i);
        }
    }
    assert!(Panels::pack(&Pool::new(1), DType::Q5_0, &[], 0, 32, 1.0).is_none());
}

/// Against the same blocks decoded, with activations in full precision: only the 8 bits of these differ.
#[test]
fn near_the_product_of_decoded_blocks() {
    for dtype in KINDS {
        let (o, i) = (48, 1024);
        let data = encoded(dtype, o, i);
        let w = Panels::pack(&Pool::new(2), dtype, &data, o, i, 2.0).unwrap();
        near(dtype, &data, &w, o, i);
    }
}

fn near(dtype: DType, data: &[u8], w: &Panels, o: usize, i: usize) {
    let (pool, x) = (Pool::new(1), values(2 * i, 9));
    let (mut want, mut got) = (vec![0f64; 2 * o], vec![0f32; 2 * o]);
    let x64: Vec<f64> = x.iter().map(|&v| v.into()).collect();
    let matrix = rows::Matrix { dtype, outputs: o, inputs: i, scale: w.scale, data };
    rows::linear(Isa::SCALAR, &pool, &mut want, &x64, matrix);
    linear(Isa::best(), &pool, &mut got, &x, w, &mut Activations::default());
    // Numbers in -1..1: rounding errors of 1/254 at most, 1/440 in the mean square, times weights.
    let bound = 5.0 * (i as f64).sqrt() / 440.0 * 0.6 * f64::from(w.scale);
    for (a, b) in want.iter().zip(&got) {
        assert!((a - f64::from(*b)).abs() < bound, "{dtype} {o} {i}: {a} {b}");
    }
}

/// The largest codes: no sum overflows or saturates.
#[test]
fn extremes_are_exact() {
    let i = 256;
    let signs = |other: f32| (0..i).map(|k| if k % 3 == 0 { other } else { 1.0 }).collect::<Vec<f32>>();
    for (dtype, x) in KINDS.into_iter().flat_map(|dtype| [(dtype, signs(-1.0)), (dtype, signs(1.0))]) {
        let mut data = vec![0u8; 16 * dtype.bytes_for(i).unwrap()];
        for (n, block) in data.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            let (codes, d) = match dtype {
                DType::Q4_K => (16..144, 0),
                DType::Q6_K => (0..192, 208),
                _ => (2..dtype.block_bytes(), 0),
            };
            // Q6_K: the least code of every other row, -32, else the largest.
            let least = dtype == DType::Q6_K && n % 2 == 0;
            block[codes].fill(if dtype == DType::Q8_0 { 0x80 } else { [0xff, 0][usize::from(least)] });
            block[d..d + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            if dtype == DType::Q6_K {
                block[192..208].fill(0x80);
            }
        }
        let pool = Pool::new(1);
        let w = Panels::pack(&pool, dtype, &data, 16, i, 1.0).unwrap();
        let strips = sparse::Sparse::pack(&pool, dtype, &data, 16, i, 1.0);
        let mut want = vec![0f32; 16];
        linear(Isa::SCALAR, &pool, &mut want, &x, &w, &mut Activations::default());
        for isa in sets() {
            for t in [1, 2, 3, 4, 5, 20] {
                let (x, want) = (x.repeat(t), want.repeat(t));
                let mut y = vec![0f32; 16 * t];
                linear(isa, &pool, &mut y, &x, &w, &mut Activations::default());
                assert_eq!(y, want, "{isa} {dtype} {t}");
                let Some(strips) = &strips else { continue };
                sparse::linear(isa, &pool, &mut y, &x, strips, &mut Activations::default());
                assert_eq!(y, want, "strips: {isa} {dtype} {t}");
            }
        }
        let weights = match dtype {
            DType::Q8_0 => [-128.0; 2],
            DType::Q6_K => [-32.0 * -128.0, 31.0 * -128.0],
            _ => [7.0; 2],
        };
        if dtype != DType::Q4_K {
            let sum: f32 = x.iter().sum();
            for (got, code) in want.iter().zip(weights) {
                assert!((got - code * sum).abs() < 0.01 * (code * sum).abs(), "{dtype} {got}");
            }
        }
    }
}

/// Blocks of Q6_K with any codes and scales, not only those that an encoder writes.
#[test]
fn any_blocks_of_six_bits() {
    let (dtype, o, i, pool) = (DType::Q6_K, 37, 768, Pool::new(1));
    let mut state = 5u32;
    let mut data: Vec<u8> = (0..o * dtype.bytes_for(i).unwrap())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    // d of either sign, at most 0.0005: weights within 2.
    data.chunks_exact_mut(210).for_each(|block| block[209] = block[209] & 0x83 | 0x0c);
    assert!(data.chunks_exact(210).any(|block| block[192..208].iter().any(|&s| s as i8 == -128)));
    let w = Panels::pack(&pool, dtype, &data, o, i, 0.5).unwrap();
    near(dtype, &data, &w, o, i);
    for t in [1, 2, 5, 12, 13, 40] {
        let x = values(t * i, 3);
        let (mut want, mut y) = (vec![f32::NAN; t * o], vec![f32::NAN; t * o]);
        linear(Isa::SCALAR, &pool, &mut want, &x, &w, &mut Activations::default());
        for isa in sets() {
            linear(isa, &pool, &mut y, &x, &w, &mut Activations::default());
            assert_eq!(y, want, "{isa} {t}");
        }
    }
}

/// With tiles, records that do not fill steps and rows that are not whole records; a damaged token stays alone.
#[test]
fn tiles_at_the_edges() {
    for (t, o, i) in [(13, 1, 32), (17, 17, 96), (40, 33, 160), (129, 64, 64)] {
        for dtype in [DType::Q8_0, DType::Q4_0] {
            let data = encoded(dtype, o, i);
            let w = Panels::pack(&Pool::new(1), dtype, &data, o, i, 1.5).unwrap();
            let mut x = values(t * i, 4);
            x[3 * i + 5] = f32::INFINITY;
            let mut want = vec![f32::NAN; t * o];
            linear(Isa::SCALAR, &Pool::new(1), &mut want, &x, &w, &mut Activations::default());
            assert!(want.iter().enumerate().all(|(n, v)| v.is_nan() == (n / o == 3)));
            // Scratch that held other numbers before.
            let mut scratch = Activations::default();
            for isa in sets() {
                let mut y = vec![f32::NAN; t * o];
                linear(isa, &Pool::new(2), &mut y, &x, &w, &mut scratch);
                let same =
                    y.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                assert!(same, "{isa} {dtype} {t} {o} {i}");
            }
        }
    }
}

#[test]
fn damage_in_an_activation_shows() {
    let data = encoded(DType::Q8_0, 16, 64);
    let w = Panels::pack(&Pool::new(1), DType::Q8_0, &data, 16, 64, 1.0).unwrap();
    let mut x = values(64, 1);
    x[40] = f32::NAN;
    let mut y = vec![0f32; 16];
    linear(Isa::best(), &Pool::new(1), &mut y, &x, &w, &mut Activations::default());
    assert!(y.iter().all(|v| v.is_nan()));
}

/// Strips give the bits of panels, with many zeros, few, none and nothing but zeros.
#[test]
fn strips_agree_with_panels_to_the_bit() {
    for dtype in KINDS.into_iter().filter(|&d| sparse::has(d)) {
        // The last two: several spans of outputs with many tokens, more tokens than are summed at a time; blocks
        // that are no whole number of those put into order together.
        for (t, o, i) in [
            (1, 200, 256),
            (1, 768, 1024),
            (15, 130, 512),
            (3, 64, 256),
            (2, 1030, 256),
            (140, 300, 256),
            (5, 600, if dtype == DType::Q4_K { 256 } else { 96 }),
        ] {
            let data = encoded(dtype, o, i);
            let pools = [Pool::new(1), Pool::new(3)];
            let panels = Panels::pack(&pools[0], dtype, &data, o, i, 0.5).unwrap();
            for zeros in [0.0, 0.6, 0.97, 2.0] {
                let keep = values(t * i, 5).into_iter().map(|v| (v + 1.0) / 2.0 >= zeros);
                let x: Vec<f32> = values(t * i, 3)
                    .iter()
                    .zip(keep)
                    .map(|(v, keep)| if keep { v * v } else { 0.0 })
                    .collect();
                let mut want = vec![f32::NAN; t * o];
                linear(Isa::best(), &pools[0], &mut want, &x, &panels, &mut Activations::default());
                for pool in &pools {
                    let w = sparse::Sparse::pack(pool, dtype, &data, o, i, 0.5).unwrap();
                    for isa in sets() {
                        let mut y = vec![f32::NAN; t * o];
                        sparse::linear(isa, pool, &mut y, &x, &w, &mut Activations::default());
                        assert_eq!(y, want, "{isa} {dtype} {t} {o} {i} {zeros}");
                    }
                }
            }
        }
    }
}

/// Any blocks come back from panels and strips as they were, and what was packed before is taken as it lies.
#[test]
fn unpacking_is_exact() {
    let pool = Pool::new(2);
    for dtype in KINDS {
        for (o, i) in [(1, 256), (16, 512), (200, 256), (1030, 768), (70, 1024)] {
            // Every bit pattern of a block, not only those that an encoder writes.
            let bytes = dtype.bytes_for(i).unwrap() * o;
            let data: Vec<u8> =
                (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let w = Panels::pack(&pool, dtype, &data, o, i, 0.5).unwrap();
            assert!(w.unpack() == data, "{dtype} {o} {i}");
            assert_eq!(bytes_for(dtype, o, i), Some(w.bytes()));
            let lent = |store: &Store, n| Arc::new(Store::lent(store.bytes()[..n].to_vec()));
            let again = Panels::packed(dtype, lent(w.store(), w.bytes()), o, i, 0.5).unwrap();
            assert!(again.unpack() == data);
            assert!(Panels::packed(dtype, lent(w.store(), w.bytes() - 1), o, i, 0.5).is_none());
            for width in [128, 256, sparse::width_for(o)] {
                if !sparse::has(dtype) {
                    assert!(sparse::Sparse::pack_in(width, &pool, dtype, &data, o, i, 0.5).is_none());
                    assert_eq!(sparse::bytes_for(dtype, o, i, width), None);
                    continue;
                }
                let w = sparse::Sparse::pack_in(width, &pool, dtype, &data, o, i, 0.5).unwrap();
                assert!(w.unpack() == data, "{dtype} {o} {i} {width}");
                assert_eq!(sparse::bytes_for(dtype, o, i, width), Some(w.bytes()));
                let packed = |n| {
                    sparse::Sparse::packed(dtype, lent(w.store(), n), o, i, 0.5, width).map(|w| w.unpack())
                };
                assert!(packed(w.bytes()) == Some(data.clone()) && packed(w.bytes() - 1).is_none());
            }
        }
    }
    let (huge, fine) = (usize::MAX / 8, 256);
    assert!(bytes_for(DType::Q8_0, huge, fine).is_none() && bytes_for(DType::Q4_K, fine, 100).is_none());
    assert!(sparse::bytes_for(DType::Q4_K, huge, huge / 256 * 256, 128).is_none());
    assert!([0, 64, 2176].iter().all(|&w| sparse::bytes_for(DType::Q8_0, 128, 32, w).is_none()));
}

/// However a processor likes to read them: in several streams or in one.
#[test]
#[cfg(target_arch = "x86_64")]
fn streams_do_not_matter() {
    let (o, i, pool) = (5 * ROWS, 512, Pool::new(1));
    for dtype in KINDS {
        let data = encoded(dtype, o, i);
        let w = Panels::pack(&pool, dtype, &data, o, i, 1.0).unwrap();
        for tokens in 1..=5 {
            let (x, mut a) = (values(tokens * i, 3), Activations::default());
            pool.run_all(&[a.of(Isa::SCALAR, &x, i, w.blocks())]);
            for isa in Isa::available() {
                for first in [0, STRIP] {
                    let sums = |streams: bool| {
                        let mut all = vec![[0f32; ROWS]; STRIP * tokens];
                        let mut put = |p: usize, t: usize, sums: &[f32; ROWS]| all[p * tokens + t] = *sums;
                        let (strip, group) = (w.strip(first), a.group(0));
                        match isa.level() {
                            // SAFETY: an Isa exists only where the machine has the instructions.
                            Level::Avx512 => unsafe { x86::avx512(strip, group, streams, &mut put) },
                            // SAFETY: as above.
                            Level::Avx2 => unsafe { x86::avx2(strip, group, streams, &mut put) },
                            _ => run(isa, strip, group, &mut put),
                        }
                        all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>()
                    };
                    assert!(sums(true) == sums(false), "{isa} {dtype} {tokens}");
                }
            }
        }
    }
}
