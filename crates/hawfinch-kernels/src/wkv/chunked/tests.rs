//! Chunks against token by token.

use crate::testing::values;
use crate::wkv::{Head, Rows, chunked, wkv5, wkv6, wkv7};
use crate::{Isa, Real, norm};

/// Two heads, so that rows are wider than a head.
const HEADS: usize = 2;

/// r, k, v, raw decays, and what v7 has beside them, each `[t, c]`.
struct Inputs {
    n: usize,
    of: [Vec<f32>; 6],
    /// Raw decays of v5, `[c]`.
    constant: Vec<f32>,
    state: Vec<f32>,
}

/// Which decays tokens have.
#[derive(Clone, Copy, Debug)]
enum Decays {
    /// From 0.98 to 0.37 (v7: all it can have).
    Usual,
    /// Exactly 0 in f32 and f64 (v7: 0.545).
    Nothing,
    /// 1 but for the last places.
    Everything,
    /// These three and what overflows e^x, in turn over channels and tokens.
    Mixed,
}

const DECAYS: [Decays; 4] = [Decays::Usual, Decays::Nothing, Decays::Everything, Decays::Mixed];

impl Inputs {
    fn new(n: usize, tokens: usize, decays: Decays) -> Self {
        let c = HEADS * n;
        let mut of: [Vec<f32>; 6] = std::array::from_fn(|m| values(tokens * c, m as u32 + 1));
        let mut constant = values(c, 8);
        for x in [&mut of[3], &mut constant] {
            for (at, d) in x.iter_mut().enumerate() {
                *d = match decays {
                    Decays::Usual => 2.0 * *d - 2.0,
                    Decays::Nothing => 20.0,
                    Decays::Everything => -15.0,
                    Decays::Mixed => [*d, 20.0, -15.0, 120.0, -120.0][(at * 7 + at / c) % 5],
                };
            }
        }
        let key = of[4].clone();
        norm::l2_normalize(Isa::SCALAR, &mut of[4], &key, n);
        of[5].iter_mut().for_each(|a| *a = 0.5 + 0.5 * *a);
        Inputs { n, of, constant, state: values(HEADS * n * n, 9) }
    }

    /// Outputs, then states, after calls for tokens up to each of `ends`; `chunk` 0 is token by token.
    fn run<F: Real>(&self, isa: Isa, version: usize, chunk: usize, ends: &[usize]) -> Vec<F> {
        let (n, c) = (self.n, HEADS * self.n);
        let wide = |x: &[f32]| -> Vec<F> { x.iter().map(|v| F::from_f32(*v)).collect() };
        let x: Vec<Vec<F>> = self.of.iter().map(|x| wide(x)).collect();
        let (constant, bonus) = (wide(&self.constant), wide(&values(c, 20)));
        let (mut y, mut state) = (vec![F::ZERO; x[0].len()], wide(&self.state));
        let mut begin = 0;
        for end in ends.iter().map(|t| t * c) {
            let [r, k, v, d, kk, a] = [0, 1, 2, 3, 4, 5].map(|m: usize| &x[m][begin..end]);
            // SAFETY: one call at a time.
            let y = unsafe { &Rows::new(&mut y[begin..end]) };
            for (head, s) in state.chunks_exact_mut(n * n).enumerate() {
                let own = Head { r, k, v, head, n, c };
                match (version, chunk) {
                    // One decay and bonus a head (v5.0), then one a channel (v5.2).
                    (50, 0) => wkv5(isa, y, s, own, &constant[..HEADS], &bonus[..HEADS]),
                    (50, _) => chunked::wkv5(isa, chunk, y, s, own, &constant[..HEADS], &bonus[..HEADS]),
                    (52, 0) => wkv5(isa, y, s, own, &constant, &bonus),
                    (52, _) => chunked::wkv5(isa, chunk, y, s, own, &constant, &bonus),
                    (6, 0) => wkv6(isa, y, s, own, d, &bonus),
                    (6, _) => chunked::wkv6(isa, chunk, y, s, own, d, &bonus),
                    (_, 0) => wkv7(isa, y, s, own, d, kk, a),
                    (_, _) => chunked::wkv7(isa, chunk, y, s, own, d, kk, a),
                }
            }
            begin = end;
        }
        y.extend(state);
        y
    }
}

const VERSIONS: [usize; 4] = [50, 52, 6, 7];

/// The largest difference, in units of the largest number.
fn difference<F: Real>(got: &[F], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let far = got.iter().zip(want).map(|(g, w)| (g.to_f64() - w).abs());
    // Not `max`, which passes over NaN.
    far.fold(0.0, |m, d| if d <= m { m } else { d }) / scale
}

#[test]
fn equal_token_by_token_for_every_decay_and_length() {
    let isa = Isa::best();
    for decays in DECAYS {
        for (n, chunk) in [(64, 4), (64, 16), (64, 24), (64, 64), (5, 16), (80, 6), (8, 1)] {
            for tokens in [1, 2, chunk - 1, chunk, chunk + 1, 3 * chunk + 7] {
                let inputs = Inputs::new(n, tokens, decays);
                for version in VERSIONS {
                    let want = inputs.run::<f64>(isa, version, 0, &[tokens]);
                    let wide = difference(&inputs.run::<f64>(isa, version, chunk, &[tokens]), &want);
                    let narrow = difference(&inputs.run::<f32>(isa, version, chunk, &[tokens]), &want);
                    let what = format!("v{version}, {decays:?}, n {n}, {tokens} tokens in chunks of {chunk}");
                    assert!(wide <= 1e-13, "{what}: f64 is {wide:e} away");
                    assert!(narrow <= 4e-6, "{what}: f32 is {narrow:e} away");
                }
            }
        }
    }
}

#[test]
fn no_tokens_change_nothing() {
    let inputs = Inputs::new(64, 0, Decays::Usual);
    for version in VERSIONS {
        assert_eq!(inputs.run::<f32>(Isa::best(), version, 16, &[0]), inputs.state);
    }
}

#[test]
fn over_a_long_text_errors_do_not_grow() {
    let (isa, tokens) = (Isa::best(), 2048);
    for decays in DECAYS {
        let inputs = Inputs::new(64, tokens, decays);
        for version in VERSIONS {
            let want = inputs.run::<f64>(isa, version, 0, &[tokens]);
            let wide = difference(&inputs.run::<f64>(isa, version, 32, &[tokens]), &want);
            let narrow = difference(&inputs.run::<f32>(isa, version, 32, &[tokens]), &want);
            let one_by_one = difference(&inputs.run::<f32>(isa, version, 0, &[tokens]), &want);
            assert!(wide <= 1e-12, "v{version}, {decays:?}: f64 is {wide:e} away");
            assert!(
                narrow <= 1e-5,
                "v{version}, {decays:?}: f32 is {narrow:e} away ({one_by_one:e} one by one)"
            );
        }
    }
}

/// Exactly so where the pieces are whole chunks: the work is the same.
#[test]
fn a_text_in_pieces_is_the_whole_text() {
    let (isa, tokens, chunk) = (Isa::best(), 50, 16);
    for decays in DECAYS {
        let inputs = Inputs::new(64, tokens, decays);
        for version in VERSIONS {
            let whole = inputs.run::<f32>(isa, version, chunk, &[tokens]);
            assert_eq!(
                whole,
                inputs.run::<f32>(isa, version, chunk, &[16, 48, tokens]),
                "v{version}, {decays:?}"
            );
            let want: Vec<f64> = whole.iter().map(|v| f64::from(*v)).collect();
            let pieces = difference(&inputs.run::<f32>(isa, version, chunk, &[3, 21, tokens]), &want);
            assert!(pieces <= 4e-6, "v{version}, {decays:?}: {pieces:e} away");
        }
    }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    let (isa, tokens, n) = (Isa::best(), 40, 64);
    let inputs = Inputs::new(n, tokens, Decays::Usual);
    let mut other = Inputs::new(n, tokens, Decays::Usual);
    let from = 22 * HEADS * n;
    other.of.iter_mut().for_each(|x| x[from..].iter_mut().for_each(|v| *v = 0.3 - *v));
    for version in VERSIONS {
        let [a, b] = [&inputs, &other].map(|x| x.run::<f32>(isa, version, 16, &[tokens]));
        assert!(a[..from] == b[..from] && a[from..] != b[from..], "v{version}");
    }
}
