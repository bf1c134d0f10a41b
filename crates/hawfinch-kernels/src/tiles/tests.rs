use super::*;
use crate::Pool;
use crate::testing::values;

fn sets() -> Vec<Isa> {
    let emulated = Isa::SCALAR.with_emulated_tiles();
    Isa::available().into_iter().filter(|isa| isa.has_tiles()).chain([emulated]).collect()
}

fn bytes(n: usize, seed: u32) -> Vec<i8> {
    values(n, seed).iter().map(|v| (v * 128.0).floor() as i8).collect()
}

/// What the machine's tiles compute is what is written down, to the bit: extremes, tiny numbers, infinity and NaN.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_machines_tiles_are_those_described() {
    let Some(isa) = Isa::new(crate::Level::Amx) else { return };
    let (machine, described) = (amx::Configured::new(isa), emulated::Emulated);
    assert_eq!([false, true].map(|bf16| machine.multiply(bf16, 3)), [3 << 16, 3 << 15]);
    for seed in 0..20 {
        let some =
            |n: usize, seed: u32| -> Vec<i8> { if seed == 0 { vec![-128; n] } else { bytes(n, seed) } };
        let (a, b) = (some(STEP * 512, seed), some(STEP * 512, 100 * seed));
        let (mut x, mut w) = ([[Row::default(); SIDE]; STEP], [OutputCodes([[[0; 4]; SIDE]; 8]); STEP]);
        for (to, from) in x.as_flattened_mut().iter_mut().zip(a.as_chunks::<BLOCK>().0) {
            to.0 = *from;
        }
        for (to, from) in w.iter_mut().zip(b.chunks_exact(512)) {
            to.0.as_flattened_mut().as_flattened_mut().copy_from_slice(from);
        }
        let mut sums = [[Sums([[7; SIDE]; SIDE]); STEP]; 2];
        machine.blocks(&mut sums[0], &x, &w);
        described.blocks(&mut sums[1], &x, &w);
        assert!(sums[0].iter().zip(&sums[1]).all(|(a, b)| a.0 == b.0), "blocks {seed}");

        let tiles = |n: usize, seed: u32, float: bool| -> Vec<Tile> {
            let numbers: Vec<u8> = if float {
                let numbers = values(n * 512, seed).into_iter().enumerate().map(|(k, v)| {
                    // From tiny to large; some that are no numbers.
                    let v = match (seed % 4, k % 37) {
                        (1, _) => v * 1e-22,
                        (2, 5) => v * 1e-39,
                        (3, 7) if k % 5 == 0 => f32::INFINITY,
                        (3, 9) if k % 7 == 0 => f32::NAN,
                        (2, _) => v * 1e18,
                        _ => v,
                    };
                    half::bf16::from_f32(v).to_le_bytes()
                });
                numbers.flatten().collect()
            } else {
                bytemuck::cast_slice(&some(n * 1024, seed)).to_vec()
            };
            numbers
                .chunks_exact(1024)
                .map(|t| Tile(std::array::from_fn(|r| std::array::from_fn(|c| t[64 * r + c]))))
                .collect()
        };
        let (x, w) = (tiles(12, seed, true), tiles(4, seed + 4, true));
        let mut totals = [[[Totals([[0.5; SIDE]; SIDE]); 2]; 2]; 2];
        let bits = |t: &[[Totals; 2]; 2]| -> Vec<u32> {
            let numbers = t.as_flattened().iter().flat_map(|t| t.0.as_flattened());
            numbers.map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
        };
        machine.bf16(&mut totals[0], [&x[..6], &x[6..]], [&w[..2], &w[2..]], 3);
        described.bf16(&mut totals[1], [&x[..6], &x[6..]], [&w[..2], &w[2..]], 3);
        assert_eq!(bits(&totals[0]), bits(&totals[1]), "bf16 {seed}");

        let (x, w) = (tiles(6, seed, false), tiles(6, 7 * seed, false));
        let mut sums = [[[Sums([[-3; SIDE]; SIDE]); 2]; 2]; 2];
        machine.int8(&mut sums[0], [&x[..3], &x[3..]], [&w[..3], &w[3..]]);
        described.int8(&mut sums[1], [&x[..3], &x[3..]], [&w[..3], &w[3..]]);
        let same = sums[0].as_flattened().iter().zip(sums[1].as_flattened()).all(|(a, b)| a.0 == b.0);
        assert!(same, "int8 {seed}");
    }
}

#[test]
fn bytes_are_multiplied_exactly() {
    for (t, o, i) in [(1, 1, 1), (17, 40, 70), (33, 16, 64), (40, 100, 1100)] {
        let (x, w) = (bytes(t * i, 1), bytes(o * i, 2));
        let want: Vec<i32> = x
            .chunks_exact(i)
            .flat_map(|x| {
                w.chunks_exact(i).map(|w| x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum())
            })
            .collect();
        for isa in sets() {
            let mut y = vec![1; t * o];
            assert!(int8(isa, &Pool::new(2), &mut y, &Runs::tokens_int8(&x, i), &Runs::weights_int8(&w, i)));
            assert_eq!(y, want, "{isa} {t} {o} {i}");
        }
    }
    assert!(!int8(
        Isa::SCALAR,
        &Pool::new(1),
        &mut [0],
        &Runs::tokens_int8(&[1], 1),
        &Runs::weights_int8(&[1], 1)
    ));
}

/// Three parts err as a sum in f32 does, one as rounding to bf16 does; a token's bits depend on it alone.
#[test]
fn bf16_errs_as_said_and_depends_on_the_token_alone() {
    for (t, o, i) in [(1, 1, 1), (17, 40, 70), (35, 33, 600)] {
        let x = values(t * i, 1);
        let (w, data): (Vec<f64>, Vec<[u8; 2]>) = values(o * i, 2)
            .iter()
            .map(|&v| (half::bf16::from_f32(v).to_f64(), half::bf16::from_f32(v).to_le_bytes()))
            .unzip();
        let weights = Runs::weights_bf16(data.as_flattened(), i);
        for isa in sets() {
            for (parts, unit) in [(1, 2f64.powi(-9)), (3, 2f64.powi(-23))] {
                let mut y = vec![f32::NAN; t * o];
                assert!(bf16(isa, &Pool::new(3), &mut y, &Runs::tokens_bf16(&x, i, parts), &weights, 2.0));
                for (token, (x, y)) in x.chunks_exact(i).zip(y.chunks_exact(o)).enumerate() {
                    for (w, y) in w.chunks_exact(i).zip(y) {
                        let products = || x.iter().zip(w).map(|(&x, w)| f64::from(x) * w);
                        let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                        let error = (want * 2.0 - f64::from(*y)).abs();
                        assert!(
                            error <= 2.0 * unit * size * if parts == 3 { 8.0 } else { 1.01 },
                            "{isa} {parts} {error}"
                        );
                    }
                    let mut alone = vec![f32::NAN; o];
                    bf16(isa, &Pool::new(1), &mut alone, &Runs::tokens_bf16(x, i, parts), &weights, 2.0);
                    assert_eq!(alone, y, "{isa} token {token}");
                }
            }
        }
    }
}
