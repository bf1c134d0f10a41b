use super::*;
use crate::testing::values;

fn matrix(dtype: DType, outputs: usize, inputs: usize, data: &[u8]) -> Matrix<'_> {
    Matrix { dtype, outputs, inputs, scale: 0.5, data }
}

/// Plain sums in f64, both number types, with and without neighbours.
#[test]
fn equals_the_plain_sum_and_ignores_neighbours() {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for (t, o, i) in [(1, 3, 5), (7, 33, 100), (4, 16, 64), (9, 1, 1), (2, 5, 1024), (13, 300, 40)] {
            let (x, w) = (values(t * i, 1), values(o * i, 2));
            let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
            let m = matrix(DType::F32, o, i, &bytes);
            let mut y = vec![0f32; t * o];
            linear(isa, &pool, &mut y, &x, m);
            let x64: Vec<f64> = x.iter().map(|&v| v.into()).collect();
            let mut y64 = vec![0f64; t * o];
            linear(isa, &pool, &mut y64, &x64, m);
            for s in 0..t {
                for j in 0..o {
                    let want: f64 = (0..i).map(|k| 0.5 * x64[s * i + k] * f64::from(w[j * i + k])).sum();
                    assert!((y64[s * o + j] - want).abs() < 1e-11, "{isa}");
                    assert!((f64::from(y[s * o + j]) - want).abs() < 1e-4, "{isa}");
                }
                let mut alone = vec![0f32; o];
                linear(isa, &pool, &mut alone, &x[s * i..(s + 1) * i], m);
                assert_eq!(alone, y[s * o..(s + 1) * o], "one token alone gives the same bits");
            }
        }
    }
}

/// Every instruction set gives the bits of the scalar code.
#[test]
fn instruction_sets_agree_to_the_bit() {
    let pool = Pool::new(2);
    for (t, o, i) in [(1, 19, 130), (7, 9, 64), (4, 3, 15), (1, 200, 256), (15, 21, 256)] {
        let (x, w) = (values(t * i, 7), values(o * i, 8));
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::Q8_0, DType::Q5_1, DType::Q6_K] {
            if i % dtype.block_len() != 0 {
                continue;
            }
            let mut data = Vec::new();
            assert!(w.chunks(i).all(|row| block::encode(dtype, row, &mut data)));
            let run = |isa| {
                let mut y = vec![f32::NAN; t * o];
                linear(isa, &pool, &mut y, &x, matrix(dtype, o, i, &data));
                y
            };
            let want = run(Isa::SCALAR);
            for isa in Isa::available() {
                assert_eq!(run(isa), want, "{isa} {dtype} {t} {o} {i}");
            }
        }
    }
}

/// Rows of several strips, of which the last is shorter, with numbers left over; more tokens and rows than are copied at
/// a time; by one thread and by several.
#[test]
fn long_rows_and_many_tokens_agree_to_the_bit() {
    for (t, o, i, dtype) in [
        (100, 300, 2600, DType::BF16),
        (52, 70, 4100, DType::F16),
        (49, 13, 5000, DType::F32),
        (5, 40, 2816, DType::Q6_K),
        (50, 9, 2080, DType::Q8_0),
        (96, 1100, 1040, DType::BF16),
        // A single chunk of more tokens than are copied at a time; rows of less than sixteen numbers.
        (300, 2, 5, DType::F32),
        (200, 1, 16, DType::BF16),
        (100, 64, 7, DType::F16),
        (50, 30, 33, DType::F64),
    ] {
        let (x, w) = (values(t * i, 7), values(o * i, 8));
        let mut data = Vec::new();
        assert!(w.chunks(i).all(|row| block::encode(dtype, row, &mut data)));
        let run = |isa, threads| {
            let mut y = vec![f32::NAN; t * o];
            linear(isa, &Pool::new(threads), &mut y, &x, matrix(dtype, o, i, &data));
            y
        };
        let want = run(Isa::SCALAR, 2);
        for isa in Isa::available() {
            assert!(run(isa, 1) == want && run(isa, 3) == want, "{isa} {dtype} {t} {o} {i}");
        }
    }
}

/// Nothing is multiplied with nothing.
#[test]
fn no_tokens_are_no_work() {
    let bytes = vec![0u8; 4 * 6];
    linear::<f32>(Isa::best(), &Pool::new(2), &mut [], &[], matrix(DType::F32, 3, 2, &bytes));
}

/// What follows a product is done at each output's place, in whatever chunks it is computed.
#[test]
fn what_follows_many_tokens() {
    let (t, o, i) = (130, 500, 64);
    let (x, w, residual) = (values(t * i, 1), values(o * i, 2), values(t * o, 3));
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let m = matrix(DType::F32, o, i, &bytes);
    let pool = Pool::new(3);
    for isa in Isa::available() {
        let run = |then| {
            let mut y = vec![f32::NAN; t * o];
            pool.run_all(&[product((isa, 3), &mut y, &x, m, then)]);
            y
        };
        let plain = run(Then::Nothing);
        let added: Vec<f32> = plain.iter().zip(&residual).map(|(y, r)| y + r).collect();
        let squared: Vec<f32> = plain.iter().map(|y| y.max(0.0) * y.max(0.0)).collect();
        assert!(run(Then::Add(&residual)) == added && run(Then::ReluSquared) == squared, "{isa}");
    }
}

#[test]
fn turning_exchanges_the_axes() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
        let (i, o) = (35, 64);
        let w = values(i * o, 5);
        let mut data = Vec::new();
        assert!(w.chunks(o).all(|row| block::encode(dtype, row, &mut data)));
        let mut plain = vec![0f32; i * o];
        let row = dtype.bytes_for(o).unwrap();
        plain.chunks_mut(o).zip(data.chunks(row)).for_each(|(p, b)| block::decode(dtype, b, p));
        let (dtype, turned) = turned(dtype, &data, i, o);
        let mut got = vec![0f32; i * o];
        block::decode(dtype, &turned, &mut got);
        assert!((0..i * o).all(|n| got[n] == plain[n % i * o + n / i]), "{dtype}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (t, o, i) = (5, 700, 900);
    let (x, w) = (values(t * i, 3), values(o * i, 4));
    let bytes: Vec<u8> = w.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let m = matrix(DType::BF16, o, i, &bytes);
    let (mut a, mut b) = (vec![0f32; t * o], vec![0f32; t * o]);
    linear(Isa::best(), &Pool::new(1), &mut a, &x, m);
    linear(Isa::best(), &Pool::new(3), &mut b, &x, m);
    assert_eq!(a, b);
}

/// Weights input by input: every instruction set gives the bits of the scalar code, whatever the tokens beside, and
/// these are near the plain sum.
#[test]
fn columns_agree_to_the_bit() {
    for (t, o, i) in [(1, 64, 96), (31, 64, 40), (7, 200, 33), (2, 5, 7), (6, 16, 64), (25, 96, 130)] {
        let (x, w) = (values(t * i, 7), values(o * i, 8));
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let mut data = Vec::new();
            assert!(block::encode(dtype, &w, &mut data));
            let run = |isa, threads, x: &[f32]| {
                let mut y = vec![f32::NAN; x.len() / i * o];
                let w = columns::Columns::pack(dtype, &data, o, i, matrix(dtype, o, i, &data).scale);
                columns::linear(isa, &Pool::new(threads), &mut y, x, &w);
                y
            };
            let want = run(Isa::SCALAR, 1, &x);
            for isa in Isa::available() {
                assert_eq!(run(isa, 3, &x), want, "{isa} {dtype} {t} {o} {i}");
                for s in 0..t {
                    assert_eq!(
                        run(isa, 1, &x[s * i..(s + 1) * i]),
                        want[s * o..(s + 1) * o],
                        "{isa} token {s}"
                    );
                }
            }
            let mut decoded = vec![0f32; i * o];
            block::decode(dtype, &data, &mut decoded);
            for (n, got) in want.iter().enumerate() {
                let (s, j) = (n / o, n % o);
                let sum: f64 = (0..i).map(|k| f64::from(x[s * i + k]) * f64::from(decoded[k * o + j])).sum();
                assert!((f64::from(*got) - 0.5 * sum).abs() < 1e-5, "{dtype}");
            }
        }
    }
}

/// Tiles come back as the rows they were made of.
#[test]
fn columns_unpack_exactly() {
    for (dtype, o, i) in [
        (DType::BF16, 200, 33),
        (DType::F32, 5, 7),
        (DType::F16, 128, 3),
        (DType::Q8_0, 96, 5),
        (DType::F32, 9, 0),
    ] {
        let bytes = dtype.bytes_for(o).unwrap() * i;
        let data: Vec<u8> = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
        let w = columns::Columns::pack(dtype, &data, o, i, 1.0);
        assert_eq!(w.unpack(), data, "{dtype} {o} {i}");
        let lent = |n: usize| std::sync::Arc::new(crate::Store::lent(w.store().bytes()[..n].to_vec()));
        let again = columns::Columns::packed(dtype, lent(bytes), o, i, 1.0).unwrap();
        assert_eq!(again.unpack(), data);
        assert!(bytes == 0 || columns::Columns::packed(dtype, lent(bytes - 1), o, i, 1.0).is_none());
    }
}
