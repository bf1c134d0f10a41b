//! Backward of RWKV-4 (spec section 1.5, the stable form).

use crate::isa::compiled_for_each;
use crate::pool::Parts;
use crate::wkv::v4::{ALONE, CHANNELS, WIDE, weights};
use crate::{Isa, Pool, Real};

/// Where the gradients of the operands go; all are overwritten.
pub struct Gradients4<'a, F> {
    /// Of the keys, `[t, c]`.
    pub k: &'a mut [F],
    /// Of the values, `[t, c]`.
    pub v: &'a mut [F],
    /// Of the raw decay, `[c]`.
    pub time_decay: &'a mut [F],
    /// Of the bonus, `[c]`.
    pub time_first: &'a mut [F],
}

/// The gradient with respect to the sums of a state without their scale, A = aa·e^pp and B = bb·e^pp, with a scale of its
/// own: dL/dA = a·e^exponent, dL/dB = b·e^exponent. So neither overflows, whatever pp is. Each `[c]`.
///
/// What is known of A and B at their own scale (dL/dA itself) has the exponent 0. What is known of aa and bb, pp held
/// constant, has the exponent -pp; and dL/daa, pp held constant, is a·e^(exponent + pp).
pub struct StateGradient4<'a, F> {
    /// Of the numerator.
    pub a: &'a mut [F],
    /// Of the denominator.
    pub b: &'a mut [F],
    /// Common exponent.
    pub exponent: &'a mut [F],
}

/// Backward of [`wkv4`](crate::wkv::wkv4) for one sequence.
///
/// * `d_s`: with respect to the last state on entry (zeros: it is not used; then the exponent does not matter), to the
///   first on return: what the call for the tokens before these takes
/// * `s`: aa, bb and pp before the first token, each `[c]`
/// * `d_y`: `[t, c]`, the gradient of the output
/// * `k`, `v`, `time_decay`, `time_first`: as there
pub fn wkv4_backward<F: Real>(
    isa: Isa,
    pool: &Pool,
    d: Gradients4<'_, F>,
    d_s: StateGradient4<'_, F>,
    s: [&[F]; 3],
    d_y: &[F],
    k: &[F],
    v: &[F],
    time_decay: &[F],
    time_first: &[F],
) {
    let c = time_decay.len();
    let parts = Out {
        k: Parts::new(d.k),
        v: Parts::new(d.v),
        vectors: [d.time_decay, d.time_first, d_s.a, d_s.b, d_s.exponent].map(|x| Parts::new(x)),
    };
    let x = Operands { s, d_y, k, v, time_decay, time_first };
    let chunk = if k.len() <= ALONE { c } else { CHANNELS };
    pool.run(c.div_ceil(chunk), &|n| {
        let first = n * chunk;
        channels(isa, &parts, &x, first, chunk.min(c - first));
    });
}

/// Written by several threads, each its own channels.
struct Out<F> {
    k: Parts<F>,
    v: Parts<F>,
    /// Gradients of decay and bonus; a, b and exponent of the state's.
    vectors: [Parts<F>; 5],
}

struct Operands<'a, F> {
    s: [&'a [F]; 3],
    d_y: &'a [F],
    k: &'a [F],
    v: &'a [F],
    time_decay: &'a [F],
    time_first: &'a [F],
}

compiled_for_each! {
    fn channels<F: Real>(out: &Out<F>, x: &Operands<'_, F>, first: usize, count: usize) = body
}

/// What the way back needs of a token.
#[derive(Clone, Copy)]
struct Token<F> {
    /// The output.
    y: [F; WIDE],
    /// Its gradient over the denominator at the scale e^-q, and the exponent q.
    z: [F; WIDE],
    q: [F; WIDE],
    /// z times the weight of the current token.
    now: [F; WIDE],
}

/// `n` numbers of `x` from `at` on, then zeros.
#[inline(always)]
fn load<F: Real>(x: &[F], at: usize, n: usize) -> [F; WIDE] {
    let mut numbers = [F::ZERO; WIDE];
    numbers[..n].copy_from_slice(&x[at..at + n]);
    numbers
}

/// An exponent that stands for nothing.
const NOTHING: f64 = -1e30;

#[inline(always)]
fn body<F: Real>(out: &Out<F>, x: &Operands<'_, F>, first: usize, count: usize) {
    let c = x.time_decay.len();
    let zero = [F::ZERO; WIDE];
    let mut kept = vec![Token { y: zero, z: zero, q: zero, now: zero }; x.k.len() / c];
    for at in (first..first + count).step_by(WIDE) {
        let n = WIDE.min(first + count - at);
        let (mut a, mut b, mut p) = (load(x.s[0], at, n), load(x.s[1], at, n), load(x.s[2], at, n));
        let (mut w, u) = (load(x.time_decay, at, n), load(x.time_first, at, n));
        for l in 0..WIDE {
            w[l] = -w[l].exp();
        }
        // Derivatives of numerator and denominator by w, at the scale of the state, and the gradients of w and u.
        let (mut by_a, mut by_b, mut d_w, mut d_u) = (zero, zero, zero, zero);
        for (t, token) in kept.iter_mut().enumerate() {
            let (k, v, g) = (load(x.k, at + t * c, n), load(x.v, at + t * c, n), load(x.d_y, at + t * c, n));
            let (mut now, mut past) = (zero, zero);
            for l in 0..WIDE {
                now[l] = u[l] + k[l];
                past[l] = p[l] + w[l];
            }
            let (e1, e2) = weights(&p, &now);
            for l in 0..WIDE {
                let below = e1[l].mul_add(b[l], e2[l]);
                let y = e1[l].mul_add(a[l], e2[l] * v[l]) / below;
                let z = g[l] / below;
                d_w[l] = (z * e1[l]).mul_add((-y).mul_add(by_b[l], by_a[l]), d_w[l]);
                d_u[l] = (z * e2[l]).mul_add(v[l] - y, d_u[l]);
                token.y[l] = y;
                token.z[l] = z;
                token.q[l] = if p[l] > now[l] { p[l] } else { now[l] };
                token.now[l] = z * e2[l];
            }
            let (e1, e2) = weights(&past, &k);
            for l in 0..WIDE {
                by_a[l] = e1[l] * (a[l] + by_a[l]);
                by_b[l] = e1[l] * (b[l] + by_b[l]);
                a[l] = e1[l].mul_add(a[l], e2[l] * v[l]);
                b[l] = e1[l].mul_add(b[l], e2[l]);
                p[l] = if past[l] > k[l] { past[l] } else { k[l] };
            }
        }
        // SAFETY: these channels are this call's, here and below.
        let [d_time_decay, d_time_first, d_a, d_b, exponent] =
            unsafe { [0, 1, 2, 3, 4].map(|m: usize| out.vectors[m].get(at, n)) };
        let (mut pa, mut pb, mut o) = (load(d_a, 0, n), load(d_b, 0, n), load(exponent, 0, n));
        for l in 0..WIDE {
            if pa[l] == F::ZERO && pb[l] == F::ZERO {
                o[l] = F::from_f64(NOTHING);
            }
            let last = pb[l].mul_add(by_b[l], pa[l] * by_a[l]);
            d_w[l] = (o[l] + p[l]).exp().mul_add(last, d_w[l]);
        }
        for (t, token) in kept.iter().enumerate().rev() {
            let (k, v) = (load(x.k, at + t * c, n), load(x.v, at + t * c, n));
            let (mut d_k, mut d_v, mut past, mut now) = (zero, zero, zero, zero);
            for l in 0..WIDE {
                let f = (k[l] + o[l]).exp();
                let later = pa[l].mul_add(v[l], pb[l]);
                d_k[l] = token.now[l].mul_add(v[l] - token.y[l], f * later);
                d_v[l] = f.mul_add(pa[l], token.now[l]);
                past[l] = w[l] + o[l];
                now[l] = -token.q[l];
            }
            let (e1, e2) = weights(&past, &now);
            for l in 0..WIDE {
                let z = e2[l] * token.z[l];
                pa[l] = e1[l].mul_add(pa[l], z);
                pb[l] = e1[l].mul_add(pb[l], -(z * token.y[l]));
                o[l] = if past[l] > now[l] { past[l] } else { now[l] };
            }
            // SAFETY: as above.
            unsafe {
                out.k.get(at + t * c, n).copy_from_slice(&d_k[..n]);
                out.v.get(at + t * c, n).copy_from_slice(&d_v[..n]);
            }
        }
        for l in 0..n {
            // Nothing of an infinite decay.
            d_time_decay[l] = if d_w[l] == F::ZERO { F::ZERO } else { d_w[l] * w[l] };
        }
        d_time_first.copy_from_slice(&d_u[..n]);
        d_a.copy_from_slice(&pa[..n]);
        d_b.copy_from_slice(&pb[..n]);
        exponent.copy_from_slice(&o[..n]);
    }
}
