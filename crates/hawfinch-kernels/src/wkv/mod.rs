//! The WKV recurrences: one file a version, one sequence a call, any number of tokens, the state updated
//! in place. Decays are taken as the checkpoint's raw parameters and exponentiated inside, in the
//! number type of the state.

mod v4;
mod v5;
mod v6;
mod v7;

pub use v4::{State4, wkv4};
pub use v5::wkv5;
pub use v6::wkv6;
pub use v7::wkv7;

use crate::Real;

/// One token of one head of v5 and v6, S `[key, value]`: reads y = rᵀ(S + u k vᵀ), then
/// S ← diag(w) S + k vᵀ. All `[n]`, `s` `[n, n]`.
#[inline]
fn matrix_step<F: Real>(y: &mut [F], s: &mut [F], r: &[F], k: &[F], v: &[F], w: &[F], u: &[F]) {
    let n = r.len();
    y.fill(F::ZERO);
    for i in 0..n {
        let row = &mut s[i * n..(i + 1) * n];
        let (ri, ki, wi, uk) = (r[i], k[i], w[i], u[i] * k[i]);
        for j in 0..n {
            y[j] += ri * (row[j] + uk * v[j]);
            row[j] = wi * row[j] + ki * v[j];
        }
    }
}
