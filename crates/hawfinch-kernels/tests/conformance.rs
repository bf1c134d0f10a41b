//! Every operation on every instruction set of this machine gives the bits of its scalar meaning, and a text in two
//! pieces those of the whole. (Matrix products: beside their code.)

use hawfinch_kernels::elementwise::{self, Binary, Unary};
use hawfinch_kernels::{Isa, Pool, adamw, norm, wkv};

#[path = "../src/testing.rs"]
mod testing;
use testing::values;

/// Runs `op` on every instruction set.
fn compare(name: &str, op: impl Fn(Isa) -> Vec<f32>) {
    let want = op(Isa::SCALAR);
    assert!(want.iter().any(|v| *v != 0.0 && v.is_finite()), "{name} does something");
    for isa in Isa::available() {
        let got = op(isa);
        let differ = want.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!((differ, got.len()), (None, want.len()), "{name} on {isa}");
    }
}

#[test]
fn element_by_element() {
    for c in [5, 64, 193] {
        let n = 7 * c;
        let (a, b, row) = (values(n, 1), values(n, 2), values(c, 3));
        let wide: Vec<f32> = values(n, 4).iter().map(|v| v * 120.0).collect();
        let into = |f: &dyn Fn(&mut [f32])| {
            let mut y = vec![0f32; n];
            f(&mut y);
            y
        };
        for f in [Unary::Exp, Unary::Tanh, Unary::Sigmoid, Unary::Silu, Unary::ReluSquared] {
            for x in [&a, &wide] {
                compare(&format!("{f:?}"), |isa| into(&|y| elementwise::unary(isa, f, y, x)));
            }
        }
        for f in [Binary::Add, Binary::Mul, Binary::SigmoidMul, Binary::SiluMul] {
            for b in [&b, &row] {
                compare(&format!("{f:?}"), |isa| into(&|y| elementwise::binary(isa, f, y, &a, b)));
            }
        }
        compare("lerp", |isa| into(&|y| elementwise::lerp(isa, y, &a, &b, &row)));
        compare("add_scaled", |isa| into(&|y| elementwise::add_scaled(isa, y, &a, &b, 0.3)));
        compare("add_scaled_to", |isa| {
            let mut y = a.clone();
            elementwise::add_scaled_to(isa, &mut y, &b, 0.3);
            assert_eq!(y, into(&|y| elementwise::add_scaled(isa, y, &a, &b, 0.3)));
            y
        });
        compare("add_to", |isa| {
            let mut y = a.clone();
            elementwise::add_to(isa, &mut y, &b);
            y
        });
        compare("scale_key", |isa| into(&|y| elementwise::scale_key(isa, y, &a, &b, &row)));
        compare("bonus", |isa| into(&|y| elementwise::bonus(isa, y, &a, &b, &wide, &a, &row, c)));
        compare("group_norm", |isa| into(&|y| norm::group_norm(isa, y, &wide, &row, &row, c, 1e-5)));
        let step = adamw::Step::new(3, 1e-2, 0.1, (0.9, 0.99), 1e-18, 0.7);
        compare("adamw", |isa| {
            let (mut p, mut m, mut v) = (a.clone(), b.clone(), b.iter().map(|v| v * v).collect::<Vec<_>>());
            adamw::update(isa, &mut p, &mut m, &mut v, &wide, &step);
            [p, m, v].concat()
        });
        compare("l2_normalize", |isa| into(&|y| norm::l2_normalize(isa, y, &wide, c)));
    }
}

#[test]
fn recurrences() {
    for (h, n) in [(2, 64), (3, 8), (1, 5), (2, 80)] {
        let (c, t) = (h * n, 9);
        let x: Vec<Vec<f32>> = (0..6).map(|s| values(t * c, 10 + s)).collect();
        let start = values(h * n * n, 30);
        // Output and state, at once or in two calls.
        let run = |isa: Isa, version: usize, split: usize| {
            let (mut y, mut state) = (vec![0f32; t * c], start.clone());
            for (from, to) in [(0, split * c), (split * c, t * c)] {
                let part = |k: usize| &x[k][from..to];
                // SAFETY: one call at a time.
                let rows = unsafe { wkv::Rows::new(&mut y[from..to]) };
                for (head, s) in state.chunks_exact_mut(n * n).enumerate() {
                    let rkv = wkv::Head { r: part(0), k: part(1), v: part(2), head, n, c };
                    match version {
                        5 => wkv::wkv5(isa, &rows, s, rkv, &x[3][..c], &x[4][..c]),
                        6 => wkv::wkv6(isa, &rows, s, rkv, part(3), &x[4][..c]),
                        _ => wkv::wkv7(isa, &rows, s, rkv, part(3), part(4), part(5)),
                    }
                }
            }
            y.extend(state);
            y
        };
        for version in [5, 6, 7] {
            compare(&format!("wkv{version}, {h} heads of {n}"), |isa| run(isa, version, 0));
            for isa in Isa::available() {
                assert_eq!(run(isa, version, 0), run(isa, version, 4), "wkv{version} in pieces on {isa}");
            }
        }
        for threads in [1, 3] {
            compare("wkv4", |isa| {
                let (mut y, mut s) = (vec![0f32; t * c], [values(c, 1), values(c, 2), values(c, 3)]);
                s[1].iter_mut().for_each(|b| *b = b.abs() + 0.1);
                let [aa, bb, pp] = &mut s;
                let state = wkv::State4 { aa, bb, pp };
                let pool = Pool::new(threads);
                wkv::wkv4(isa, &pool, &mut y, state, &x[0], &x[1], &x[2][..c], &x[3][..c]);
                y.extend(s.concat());
                y
            });
        }
    }
}

/// Chunks have a meaning of their own, near that of the recurrence (the tests beside them say how near), and the same
/// bits everywhere.
#[test]
fn recurrences_in_chunks() {
    for (h, n) in [(2, 64), (3, 8), (1, 5), (2, 80)] {
        let (c, t) = (h * n, 45);
        let x: Vec<Vec<f32>> = (0..6).map(|s| values(t * c, 10 + s)).collect();
        let mut removal = x[4].clone();
        norm::l2_normalize(Isa::SCALAR, &mut removal, &x[4], n);
        let run = |isa: Isa, version: usize, chunk: usize| {
            let (mut y, mut state) = (vec![0f32; t * c], values(h * n * n, 30));
            // SAFETY: one call at a time.
            let rows = unsafe { wkv::Rows::new(&mut y) };
            for (head, s) in state.chunks_exact_mut(n * n).enumerate() {
                let rkv = wkv::Head { r: &x[0], k: &x[1], v: &x[2], head, n, c };
                match version {
                    5 => wkv::chunked::wkv5(isa, chunk, &rows, s, rkv, &x[3][..c], &x[4][..c]),
                    6 => wkv::chunked::wkv6(isa, chunk, &rows, s, rkv, &x[3], &x[4][..c]),
                    _ => wkv::chunked::wkv7(isa, chunk, &rows, s, rkv, &x[3], &removal, &x[5]),
                }
            }
            y.extend(state);
            y
        };
        for (version, chunk) in [5, 6, 7].into_iter().flat_map(|v| [(v, 4), (v, 16), (v, 39)]) {
            let name = format!("wkv{version} in chunks of {chunk}, {h} heads of {n}");
            compare(&name, |isa| run(isa, version, chunk));
        }
    }
}
