//! Gradients against differences of the forward, f32 against f64, every instruction set against the scalar code.
//!
//! The function differentiated is J = Σ y ⊙ d_y + Σ S_T ⊙ d_s with random d_y and d_s, so every operand has a gradient of
//! every way it acts.

use super::*;
use crate::testing::values;
use crate::wkv::*;
use crate::{Isa, Pool, norm};

/// Two heads, so that rows are wider than a head.
const HEADS: usize = 2;

/// One decay a head (5.0, 5.1), one a channel (5.2), and the others.
const VERSIONS: [usize; 5] = [4, 50, 52, 6, 7];

/// Names of the operands of a version, in the order in which they lie here, the state last.
fn names(version: usize) -> &'static [&'static str] {
    match version {
        4 => &["k", "v", "time_decay", "time_first", "aa", "bb"],
        6 => &["r", "k", "v", "d", "bonus", "state"],
        7 => &["r", "k", "v", "om", "kk", "a", "state"],
        _ => &["r", "k", "v", "time_decay", "bonus", "state"],
    }
}

/// Operands of one sequence and the gradients that J gives.
#[derive(Clone)]
struct Case {
    version: usize,
    n: usize,
    /// As [`names`] says.
    of: Vec<Vec<f64>>,
    /// v4: exponents of the state.
    pp: Vec<f64>,
    d_y: Vec<f64>,
    /// As long as the state; v4: with respect to the unscaled sums, numerators first.
    d_s: Vec<f64>,
}

impl Case {
    fn new(version: usize, n: usize, t: usize) -> Self {
        let c = HEADS * n;
        let wide = |n, seed| -> Vec<f64> { values(n, seed).into_iter().map(f64::from).collect() };
        let scaled =
            |x: Vec<f64>, by: f64, plus: f64| -> Vec<f64> { x.iter().map(|x| x * by + plus).collect() };
        let whole = |seed| wide(t * c, seed);
        let states = if version == 4 { 2 * c } else { HEADS * n * n };
        let mut removal = values(t * c, 5);
        norm::l2_normalize(Isa::SCALAR, &mut removal, &values(t * c, 5), n);
        let removal: Vec<f64> = removal.into_iter().map(f64::from).collect();
        let own = if version == 50 { HEADS } else { c };
        let state = wide(HEADS * n * n, 9);
        let of = match version {
            4 => vec![
                scaled(whole(2), 2.0, 0.0),
                whole(3),
                wide(c, 4),
                wide(c, 6),
                wide(c, 7),
                scaled(wide(c, 8), 0.4, 0.6),
            ],
            // Decays from 0.98 to 0.37 (v7: from 0.998 to 0.74).
            6 => vec![whole(1), whole(2), whole(3), scaled(whole(4), 2.0, -2.0), wide(c, 6), state],
            7 => {
                vec![
                    whole(1),
                    whole(2),
                    whole(3),
                    scaled(whole(4), 3.0, -3.0),
                    removal,
                    scaled(whole(6), 0.5, 0.5),
                    state,
                ]
            }
            _ => {
                vec![whole(1), whole(2), whole(3), scaled(wide(own, 4), 2.0, -2.0), wide(own, 6), state]
            }
        };
        Case { version, n, of, pp: wide(c, 11), d_y: whole(12), d_s: wide(states, 13) }
    }

    fn c(&self) -> usize {
        HEADS * self.n
    }

    /// Outputs and last state (v4: its sums without scale), and of each head what was kept.
    fn forward<F: Real>(&self, isa: Isa, keep: bool) -> (Vec<F>, Vec<F>, Vec<Vec<F>>) {
        let x: Vec<Vec<F>> = self.of.iter().map(|x| narrow(x)).collect();
        let (n, c) = (self.n, self.c());
        let mut y = vec![F::ZERO; self.d_y.len()];
        let t = y.len() / c;
        if self.version == 4 {
            let (mut aa, mut bb, mut pp) = (x[4].clone(), x[5].clone(), narrow::<F>(&self.pp));
            let state = State4 { aa: &mut aa, bb: &mut bb, pp: &mut pp };
            wkv4(isa, &Pool::new(1), &mut y, state, &x[0], &x[1], &x[2], &x[3]);
            let s = aa.iter().chain(&bb).zip(pp.iter().cycle()).map(|(s, p)| *s * p.exp()).collect();
            return (y, s, Vec::new());
        }
        let mut s = x[x.len() - 1].clone();
        let kept = if self.version == 7 { saved_len7(t, n) } else { saved_len(t, n) };
        let mut saved = vec![vec![F::ZERO; kept]; HEADS];
        // SAFETY: one call at a time.
        let y_rows = unsafe { &Rows::new(&mut y) };
        for (head, (s, saved)) in s.chunks_exact_mut(n * n).zip(&mut saved).enumerate() {
            let own = Head { r: &x[0], k: &x[1], v: &x[2], head, n, c };
            match (self.version, keep) {
                (6, false) => wkv6(isa, y_rows, s, own, &x[3], &x[4]),
                (6, true) => wkv6_saving(isa, y_rows, s, saved, own, &x[3], &x[4]),
                (7, false) => wkv7(isa, y_rows, s, own, &x[3], &x[4], &x[5]),
                (7, true) => wkv7_saving(isa, y_rows, s, saved, own, &x[3], &x[4], &x[5]),
                (_, false) => wkv5(isa, y_rows, s, own, &x[3], &x[4]),
                (_, true) => wkv5_saving(isa, y_rows, s, saved, own, &x[3], &x[4]),
            }
        }
        (y, s, saved)
    }

    /// J.
    fn objective(&self) -> f64 {
        let (y, s, _) = self.forward::<f64>(Isa::best(), false);
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        sum(&y, &self.d_y) + sum(&s, &self.d_s)
    }

    /// Gradients with respect to all operands, in their order. What is there before must not matter.
    fn backward<F: Real>(&self, isa: Isa) -> Vec<Vec<F>> {
        let (_, _, saved) = self.forward::<F>(isa, true);
        self.backward_of(isa, &saved)
    }

    fn backward_of<F: Real>(&self, isa: Isa, saved: &[Vec<F>]) -> Vec<Vec<F>> {
        let x: Vec<Vec<F>> = self.of.iter().map(|x| narrow(x)).collect();
        let (n, c) = (self.n, self.c());
        let (d_y, mut d_s) = (narrow::<F>(&self.d_y), narrow::<F>(&self.d_s));
        let mut d: Vec<Vec<F>> = x.iter().map(|x| vec![F::from_f64(7.0); x.len()]).collect();
        if self.version == 4 {
            let pp = narrow::<F>(&self.pp);
            let (a, b) = d_s.split_at_mut(c);
            let mut exponent = vec![F::ZERO; c];
            let [d_k, d_v, time_decay, time_first, ..] = &mut d[..] else { unreachable!() };
            let to = Gradients4 { k: d_k, v: d_v, time_decay, time_first };
            let state = StateGradient4 { a, b, exponent: &mut exponent };
            let s = [&x[4][..], &x[5], &pp];
            wkv4_backward(isa, &Pool::new(1), to, state, s, &d_y, &x[0], &x[1], &x[2], &x[3]);
            for (m, from) in d_s.chunks_exact(c).enumerate() {
                for j in 0..c {
                    d[4 + m][j] = from[j] * (exponent[j] + pp[j]).exp();
                }
            }
            return d;
        }
        let state = d.len() - 1;
        d[state].copy_from_slice(&d_s);
        let (tensors, d_s) = d.split_at_mut(state);
        // SAFETY: one call at a time.
        let rows: Vec<Rows<F>> = tensors.iter_mut().map(|d| unsafe { Rows::new(d) }).collect();
        let to = Gradients { r: &rows[0], k: &rows[1], v: &rows[2] };
        for (head, (d_s, saved)) in d_s[0].chunks_exact_mut(n * n).zip(saved).enumerate() {
            let own = Head { r: &x[0], k: &x[1], v: &x[2], head, n, c };
            let count = x[3].len().min(c) / HEADS;
            let vector = |m: usize| rows[m].at(head * count, count);
            match self.version {
                6 => wkv6_backward(isa, to, &rows[3], vector(4), d_s, saved, &d_y, own, &x[3], &x[4]),
                7 => {
                    let (om, kk, a) = (&rows[3], &rows[4], &rows[5]);
                    wkv7_backward(isa, to, om, kk, a, d_s, saved, &d_y, own, &x[3], &x[4], &x[5]);
                }
                _ => wkv5_backward(isa, to, vector(3), vector(4), d_s, saved, &d_y, own, &x[3], &x[4]),
            }
        }
        d
    }

    /// Central differences of J (of the fourth order): of operand `m`, of `count` numbers of it (all if it has no more), beside where they
    /// stand.
    fn differences(&self, m: usize, count: usize) -> Vec<(usize, f64)> {
        let len = self.of[m].len();
        // Steps that visit all of it, first and last tokens included.
        let step = len.div_ceil(count);
        let step = if step > 1 { step | 1 } else { 1 };
        (0..len)
            .step_by(step)
            .chain(len.checked_sub(1))
            .map(|at| {
                let h = 1e-3;
                let around = |by: f64| {
                    let [more, less] = [by, -by].map(|by| {
                        let mut other = self.clone();
                        other.of[m][at] += by;
                        other.objective()
                    });
                    more - less
                };
                (at, (8.0 * around(h) - around(2.0 * h)) / (12.0 * h))
            })
            .collect()
    }

    /// The largest difference between gradients and differences of J in each operand, in units of its largest gradient.
    fn errors(&self, d: &[Vec<f64>], count: usize) -> Vec<f64> {
        (0..self.of.len())
            .map(|m| {
                let scale = largest(&d[m]);
                let far = |(at, want): &(usize, f64)| (d[m][*at] - want).abs() / scale;
                self.differences(m, count).iter().map(far).fold(0.0, worse)
            })
            .collect()
    }
}

fn narrow<F: Real>(x: &[f64]) -> Vec<F> {
    x.iter().map(|x| F::from_f64(*x)).collect()
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m: f64, v| m.max(v.abs()))
}

/// The larger of the two; not `max`, which passes over NaN.
fn worse(a: f64, b: f64) -> f64 {
    if b <= a { a } else { b }
}

/// The largest difference of each operand's gradients, in units of the largest of `want`.
fn apart<F: Real>(got: &[Vec<F>], want: &[Vec<f64>]) -> Vec<f64> {
    let one = |(got, want): (&Vec<F>, &Vec<f64>)| {
        let far = got.iter().zip(want).map(|(g, w)| (g.to_f64() - w).abs());
        far.fold(0.0, worse) / largest(want)
    };
    got.iter().zip(want).map(one).collect()
}

/// What is left out of a difference, and what rounding makes of one, stay below it.
const DIFFERENCES: f64 = 2e-9;

#[test]
fn gradients_are_those_of_the_forward() {
    for version in VERSIONS {
        for t in [1, 2, RUN - 1, RUN, RUN + 1, RUN7 - 1, RUN7, RUN7 + 1, 2 * RUN7 + 3] {
            let case = Case::new(version, 4, t);
            for (error, name) in case.errors(&case.backward(Isa::best()), 300).iter().zip(names(version)) {
                assert!(*error <= DIFFERENCES, "v{version}, {t} tokens, {name}: {error:e} away");
            }
        }
        let case = Case::new(version, 64, RUN + 2);
        for (error, name) in case.errors(&case.backward(Isa::best()), 30).iter().zip(names(version)) {
            assert!(*error <= DIFFERENCES, "v{version}, heads of 64, {name}: {error:e} away");
        }
    }
}

/// What the test above would say of gradients in which one way of acting is forgotten.
#[test]
fn a_forgotten_term_is_found() {
    for version in VERSIONS {
        // Three tokens in the second run.
        let t = if version == 7 { RUN7 + 3 } else { RUN + 3 };
        let case = Case::new(version, 4, t);
        let (_, _, saved) = case.forward::<f64>(Isa::best(), true);
        let count = case.of.len();
        let found = |broken: &Case, saved: &[Vec<f64>], operands: &[usize], what: &str| {
            let errors = case.errors(&broken.backward_of(Isa::best(), saved), 300);
            for m in operands {
                let name = names(version)[*m];
                assert!(errors[*m] > 1e3 * DIFFERENCES, "v{version} without {what}: {name} is right");
            }
        };
        let mut broken = case.clone();
        broken.d_s.fill(0.0);
        let reached: &[usize] = if version == 4 { &[0, 1, 2, 4, 5] } else { &[1, 2, 3, count - 1] };
        found(&broken, &saved, reached, "the gradient of the last state");
        let mut broken = case.clone();
        broken.d_y[(t - 1) * case.c()..].fill(0.0);
        found(&broken, &saved, &[0, 1, 2, 3, count - 1], "the last output");
        if version == 4 {
            broken = case.clone();
            broken.of[4].fill(0.0);
            found(&broken, &saved, &[0, 2, 3, 5], "the first state's numerator");
            continue;
        }
        // The state before the second run: wrong for its three tokens alone.
        let mut forgotten = saved.clone();
        forgotten.iter_mut().for_each(|s| s[16..32].fill(0.0));
        found(&case, &forgotten, &[0, 3], "a state that was kept");
        if version == 7 {
            let mut forgotten = saved.clone();
            forgotten.iter_mut().for_each(|s| *s.last_mut().unwrap() = 0.0);
            found(&case, &forgotten, &[0, 4, 5], "what was removed");
        } else {
            broken = case.clone();
            broken.of[4].fill(0.0);
            found(&broken, &saved, &[0, 1, 2], "the bonus");
        }
    }
}

#[test]
fn saving_changes_no_bits() {
    for (version, n, t) in [(50, 64, 40), (52, 64, 40), (6, 64, 40), (7, 64, 40), (7, 5, 33), (6, 5, 3)] {
        let case = Case::new(version, n, t);
        for isa in Isa::available() {
            let (y, s, _) = case.forward::<f32>(isa, false);
            let (y_saving, s_saving, saved) = case.forward::<f32>(isa, true);
            assert_eq!((&y, &s), (&y_saving, &s_saving), "v{version} on {isa}");
            // The first state kept is the one before the first token.
            let first = narrow::<f32>(case.of.last().unwrap());
            assert!(saved.iter().zip(first.chunks_exact(n * n)).all(|(kept, s)| &kept[..n * n] == s));
        }
    }
}

/// In units of the largest gradient of an operand.
#[test]
fn f32_is_near_f64_on_every_instruction_set() {
    for version in VERSIONS {
        for (n, t) in [(64, 1), (64, RUN), (64, 5 * RUN + 5), (32, 3 * RUN + 1), (5, 20)] {
            let case = Case::new(version, n, t);
            let want = case.backward::<f64>(Isa::SCALAR);
            for isa in Isa::available() {
                for (far, name) in apart(&case.backward::<f32>(isa), &want).iter().zip(names(version)) {
                    println!("v{version}, heads of {n}, {t} tokens, {isa}: {name} is {far:e} away");
                    assert!(
                        *far <= 2e-6,
                        "v{version}, heads of {n}, {t} tokens, {isa}: {name} is {far:e} away"
                    );
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for version in VERSIONS {
        for (n, t) in [(64, 1), (64, 2 * RUN + 7), (32, RUN + 9), (80, RUN), (5, 20)] {
            let case = Case::new(version, n, t);
            let want = case.backward::<f32>(Isa::SCALAR);
            for isa in Isa::available() {
                for ((got, want), name) in case.backward::<f32>(isa).iter().zip(&want).zip(names(version)) {
                    let differ = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differ, None, "v{version}, heads of {n}, {t} tokens, {isa}: {name}");
                }
            }
        }
    }
}

/// A head's gradients are those of the same head alone: whatever else the thread does.
#[test]
fn heads_do_not_see_each_other() {
    for version in VERSIONS {
        let (n, t) = (64, RUN + 5);
        let case = Case::new(version, n, t);
        let together = case.backward::<f32>(Isa::best());
        let mut other = case.clone();
        let c = case.c();
        // The other head's outputs have other gradients.
        other.d_y.chunks_exact_mut(c).for_each(|row| row[..n].iter_mut().for_each(|g| *g = 0.3 - *g));
        let alone = other.backward::<f32>(Isa::best());
        for m in 0..3 {
            let second = |d: &[Vec<f32>]| -> Vec<f32> {
                d[m].chunks(c).flat_map(|row| row[row.len() / 2..].to_vec()).collect()
            };
            let same = second(&together) == second(&alone);
            assert!(same && together[m] != alone[m], "v{version}, {}", names(version)[m]);
        }
    }
}

/// Decays that are exactly 0, that are 1 but for the last places, and whose parameters overflow e^x.
#[test]
fn whatever_the_decays_are_gradients_are_finite() {
    for version in VERSIONS {
        let mut case = Case::new(version, 64, 2 * RUN);
        let decays = if version == 4 { 2 } else { 3 };
        for (at, d) in case.of[decays].iter_mut().enumerate() {
            *d = [*d, 20.0, -15.0, 120.0, -120.0][(at * 7 + at / 128) % 5];
        }
        let want = case.backward::<f64>(Isa::SCALAR);
        let got = case.backward::<f32>(Isa::best());
        for ((far, got), name) in apart(&got, &want).iter().zip(&got).zip(names(version)) {
            assert!(got.iter().all(|d| d.is_finite()), "v{version}: {name}");
            assert!(*far <= 2e-6, "v{version}: {name} is {far:e} away");
        }
    }
}

/// Back through two calls: the gradient of the state between them is passed on.
#[test]
fn two_calls_are_one() {
    for version in VERSIONS {
        let (n, t) = (5, 2 * RUN + 4);
        let whole = Case::new(version, n, t);
        let want = whole.backward::<f64>(Isa::SCALAR);
        let c = whole.c();
        let rows = |m: usize| whole.of[m].len() == t * c;
        // Cut between runs and within one.
        for cut in [RUN, RUN + 3] {
            let part = |tokens: std::ops::Range<usize>| {
                let mut part = whole.clone();
                let cut = |x: &[f64]| x[tokens.start * c..tokens.end * c].to_vec();
                (0..part.of.len()).filter(|m| rows(*m)).for_each(|m| part.of[m] = cut(&whole.of[m]));
                part.d_y = cut(&whole.d_y);
                part
            };
            let (mut first, mut second) = (part(0..cut), part(cut..t));
            let states = if version == 4 { 4..6 } else { whole.of.len() - 1..whole.of.len() };
            let between = first.forward::<f64>(Isa::SCALAR, false).1;
            let count = between.len() / states.len();
            for (m, s) in states.clone().zip(between.chunks_exact(count)) {
                second.of[m] = s.to_vec();
            }
            second.pp.fill(0.0);
            let late = second.backward::<f64>(Isa::SCALAR);
            first.d_s = late[states].concat();
            let early = first.backward::<f64>(Isa::SCALAR);
            for (m, name) in names(version).iter().enumerate() {
                let got = if rows(m) {
                    [&early[m][..], &late[m][..]].concat()
                } else if m + 1 == whole.of.len() || version == 4 && m == 4 {
                    early[m].clone()
                } else {
                    early[m].iter().zip(&late[m]).map(|(a, b)| a + b).collect()
                };
                let far = apart(&[got], &want[m..=m])[0];
                assert!(far <= 1e-13, "v{version}, cut at {cut}: {name} is {far:e} away");
            }
        }
    }
}

/// v4 with exponents far from 0: a fresh state, whose own scale is e^-1e30, and keys that overflow e^x.
#[test]
fn the_gradient_of_a_fresh_state_of_v4_is_finite() {
    let mut case = Case::new(4, 5, 12);
    for (of, s) in [(4, 0.0), (5, 0.0)] {
        case.of[of].fill(s);
    }
    case.d_s.fill(0.0);
    // The gradient of the sums at exponent 0 does not depend on the exponent of a state that holds nothing.
    let want = case.clone();
    let at_zero = |case: &Case| {
        let mut case = case.clone();
        case.pp.fill(0.0);
        case.backward::<f64>(Isa::SCALAR)
    };
    let want = at_zero(&want);
    let x: Vec<Vec<f32>> = case.of.iter().map(|x| narrow(x)).collect();
    let (c, d_y) = (case.c(), narrow::<f32>(&case.d_y));
    let run = |k: &[f32]| {
        let (mut d_k, mut d_v) = (x[0].clone(), x[0].clone());
        let [mut a, mut b, mut exponent, mut time_decay, mut time_first] = [(); 5].map(|()| vec![0f32; c]);
        let to =
            Gradients4 { k: &mut d_k, v: &mut d_v, time_decay: &mut time_decay, time_first: &mut time_first };
        let state = StateGradient4 { a: &mut a, b: &mut b, exponent: &mut exponent };
        let fresh = vec![-1e30f32; c];
        let s = [&x[4][..], &x[5], &fresh];
        wkv4_backward(Isa::best(), &Pool::new(1), to, state, s, &d_y, k, &x[1], &x[2], &x[3]);
        (vec![d_k, d_v, time_decay, time_first], [a, b], exponent)
    };
    let (d, sums, exponent) = run(&x[0]);
    let unscaled = sums.map(|s| s.iter().zip(&exponent).map(|(s, e)| s * e.exp()).collect::<Vec<f32>>());
    let got: Vec<Vec<f32>> = d.into_iter().chain(unscaled).collect();
    for (far, name) in apart(&got, &want).iter().zip(names(4)) {
        assert!(*far <= 2e-6, "{name} is {far:e} away");
    }
    // All keys 200 higher: outputs and their gradients are the same, the scale of the state's gradient is e^-200.
    let far: Vec<f32> = x[0].iter().map(|k| k + 200.0).collect();
    let (d, sums, high) = run(&far);
    let want: Vec<Vec<f64>> = got[..4].iter().map(|d| d.iter().map(|d| f64::from(*d)).collect()).collect();
    for (far, name) in apart(&d, &want).iter().zip(names(4)) {
        assert!(*far <= 1e-4, "{name} is {far:e} away: keys near 200 have no more places");
    }
    assert!(sums.concat().iter().all(|s| s.is_finite() && *s != 0.0));
    assert!(high.iter().zip(&exponent).all(|(high, low)| (high - low + 200.0).abs() < 1e-3));
}

/// States that remember hundreds of tokens: a decay's last place counts as often, and so for every way to compute these
/// in f32. The gradient of v4's decay is a sum of differences of means.
#[test]
fn over_a_long_text_errors_do_not_grow() {
    for version in VERSIONS {
        let mut case = Case::new(version, 64, 512);
        let decays = if version == 4 { 2 } else { 3 };
        // From 0.9991 to 0.951 (v7: from 0.9998 to 0.989).
        case.of[decays]
            .iter_mut()
            .zip(values(512 * 128, 21))
            .for_each(|(d, x)| *d = f64::from(x) * 2.0 - 6.0);
        let want = case.backward::<f64>(Isa::best());
        for (far, name) in apart(&case.backward::<f32>(Isa::best()), &want).iter().zip(names(version)) {
            println!("v{version}: {name} is {far:e} away");
            let most = if version == 4 { 5e-5 } else { 2e-5 };
            assert!(*far <= most, "v{version}: {name} is {far:e} away");
        }
    }
}
