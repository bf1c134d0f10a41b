//! Matrix × matrix in the generality that training asks for: both operands are activations or weights in f32, either may
//! be read as its transpose, and products may be added to what stands there. (Weights as files hold them:
//! [`crate::linear`] and [`crate::panel`].)
//!
//! The meaning of [`gemm`] is `scalar.rs`: the inner dimension is divided into blocks by its length alone
//! (`depth`); within one, each number of the result is one chain of fused multiply-adds from zero; the
//! chains are added in order, the first to what stands there or to nothing. With [`Precision::Full`] every instruction set
//! gives these bits. With [`Precision::Bf16`] operands are rounded first, and the order of the sums may be another where an
//! instruction multiplies pairs; the number of threads never changes it.
//!
//! * `drive.rs`: blocks for caches and threads, over any `Kernel`; `walk.rs`: what is fetched ahead
//! * `x86.rs`, `neon.rs`, `portable.rs`: what packs operands into panels and multiplies panels; `pack_x86.rs`: the
//!   transposing in registers
//! * `tiled.rs`: the same with AMX's tiles

mod drive;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod pack_x86;
mod portable;
mod scalar;
#[cfg(test)]
mod tests;
mod tiled;
mod view;
mod walk;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use view::View;

use self::drive::{LIMITS, Limits};
use crate::isa::{Isa, Level};
use crate::{Pool, Real};

/// How exactly products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Operands as they are.
    Full,
    /// Operands rounded to bf16 (to the nearest, ties to even), products and sums in f32 (of f64: in f64), by the
    /// fastest the machine has. Where that is an instruction for bf16, numbers below 2^-126 may count as zero.
    Bf16,
}

/// What happens to what stands in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// It is overwritten, whatever it was.
    Overwrite,
    /// Products are added to it.
    Add,
}

/// `c = a b`, or `c += a b`. An inner dimension of 0 gives zeros.
///
/// * `c`: `[m, n]`
/// * `a`: `[m, k]`
/// * `b`: `[k, n]`
///
/// # Panics
/// When the shapes do not fit.
pub fn gemm<F: Real>(
    isa: Isa,
    pool: &Pool,
    precision: Precision,
    c: &mut [F],
    into: Into,
    a: View<'_, F>,
    b: View<'_, F>,
) {
    assert_eq!(c.len(), a.rows * b.columns, "gemm: c of [{}, {}]", a.rows, b.columns);
    gemm_strided(isa, pool, precision, c, b.columns, into, a, b);
}

/// [`gemm`] into part of a wider matrix: rows of `c` begin `c_row` numbers apart; what lies between them stays.
///
/// # Panics
/// When the shapes do not fit.
pub fn gemm_strided<F: Real>(
    isa: Isa,
    pool: &Pool,
    precision: Precision,
    c: &mut [F],
    c_row: usize,
    into: Into,
    a: View<'_, F>,
    b: View<'_, F>,
) {
    let ([m, k], n) = (a.shape(), b.columns);
    assert!(b.rows == k, "gemm: [{m}, {k}] with {:?}", b.shape());
    if m == 0 || n == 0 {
        return;
    }
    assert!((m == 1 || c_row >= n) && c.len() >= (m - 1) * c_row + n, "gemm: c of [{m}, {n}], {c_row} apart");
    if k == 0 {
        if into == Into::Overwrite {
            (0..m).for_each(|r| c[r * c_row..][..n].fill(F::ZERO));
        }
        return;
    }
    let operands = Operands { c, c_row, into, a, b };
    Way::of(isa, precision).run(isa, pool, operands, &LIMITS);
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The meaning itself.
    Scalar { rounded: bool },
    /// Numbers of f32 or f64, in panels.
    Numbers { rounded: bool },
    /// Pairs of bf16 by AVX512-BF16.
    Pairs,
    /// Tiles of bf16.
    Tiles,
}

impl Way {
    /// The fastest.
    fn of(isa: Isa, precision: Precision) -> Way {
        let rounded = precision == Precision::Bf16;
        if rounded && isa.has_tiles() {
            Way::Tiles
        } else if rounded && isa.prefers_pairs() {
            Way::Pairs
        } else if isa.level() == Level::Scalar {
            Way::Scalar { rounded }
        } else {
            Way::Numbers { rounded }
        }
    }

    fn run<F: Real>(self, isa: Isa, pool: &Pool, operands: Operands<'_, '_, F>, limits: &Limits) {
        let rounded = match self {
            Way::Scalar { rounded } => return scalar::gemm(pool, rounded, operands),
            Way::Numbers { rounded } => rounded,
            Way::Pairs | Way::Tiles => true,
        };
        let Operands { c, c_row, into, a, b } = operands;
        let (Some(narrow_a), Some(narrow_b)) = (a.as_f32(), b.as_f32()) else {
            let operands = Operands { c, c_row, into, a, b };
            return drive::run(&portable::Portable { isa, rounded }, pool, operands, limits);
        };
        let c = F::as_f32_slice(c).expect("numbers of the same type");
        let operands = Operands { c, c_row, into, a: narrow_a, b: narrow_b };
        if self == Way::Tiles {
            return drive::run(&tiled::Tiled { isa }, pool, operands, limits);
        }
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self == Way::Pairs => {
                assert!(isa.has_pairs());
                // SAFETY: an Isa exists only where the machine has the instructions; it has those for pairs.
                drive::run(&unsafe { x86::Pairs512::new() }, pool, operands, limits)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa exists only where the machine has the instructions.
            Level::Avx512 => drive::run(&unsafe { x86::Avx512::new(rounded) }, pool, operands, limits),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => drive::run(&unsafe { x86::Avx2::new(rounded) }, pool, operands, limits),
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonDotprod | Level::NeonI8mm => {
                drive::run(&neon::Neon { isa, rounded }, pool, operands, limits)
            }
            _ => drive::run(&portable::Portable { isa, rounded }, pool, operands, limits),
        }
    }
}

/// What is multiplied, shapes compared: `c` `[m, n]`, `a` `[m, k]`, `b` `[k, n]`, none of them 0.
struct Operands<'c, 'a, F> {
    c: &'c mut [F],
    c_row: usize,
    into: Into,
    a: View<'a, F>,
    b: View<'a, F>,
}

/// Blocks of the inner dimension at most, where each number is multiplied alone.
const DEPTH: usize = 256;
/// The same where pairs or tiles are multiplied.
const PAIRS_DEPTH: usize = 512;

/// Length of the blocks (the last may be shorter) that an inner dimension of `k` is divided into: as even as multiples of
/// `step` allow, at most `most`. Part of the meaning.
fn depth(k: usize, most: usize, step: usize) -> usize {
    k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(step).min(most)
}

/// The nearest bf16, widened.
#[inline(always)]
fn rounded<F: Real>(x: F) -> F {
    F::from_f32(half::bf16::from_f32(x.to_f32()).to_f32())
}
