//! Products with panels on NEON: exactly the sums of `scalar.rs`. A register holds four outputs; one load brings four
//! inputs of four tokens, which instructions name by lane.
//!
//! With `i8mm` and more than three tokens: `neon_rows.rs`.

use std::arch::aarch64::*;

use super::operands::{Operands, Put, Q4, Q4K, Q6K, Q8, by_kind, give, kind_of, offset};
use super::{Group, Kind, QUAD, ROWS, SIX_BYTES, SIX_SCALES, STRIP, Strip, neon_rows};
use crate::neon::{self, Dot, Mixed, Multiply, Plain};
use crate::prefetch;

/// Registers of a panel's four inputs.
pub const REGISTERS: usize = 4;
/// Tokens from which rows of eight are worth putting together.
const ROWS_FROM: usize = 4;

/// Scales and minima of four outputs of a block.
#[derive(Clone, Copy)]
pub struct Scales {
    scale: float32x4_t,
    min: float32x4_t,
}

impl Scales {
    /// Of register `h` of part `b` (see [`parts`]) of the record at `at`.
    ///
    /// # Safety
    /// A record of this kind lies there.
    #[inline(always)]
    pub unsafe fn of<const KIND: u8>(at: *const u8, b: usize, h: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            if KIND == Q4K {
                let of = at.add(64 + 32 * b + 4 * h);
                Scales {
                    scale: vmulq_f32(neon::f16(at.add(8 * h)), neon::bytes(of)),
                    min: vmulq_f32(neon::f16(at.add(32 + 8 * h)), neon::bytes(of.add(16))),
                }
            } else if KIND == Q6K {
                let scale = neon::signed_bytes(at.add(SIX_SCALES + ROWS * b + 4 * h));
                Scales { scale: vmulq_f32(neon::f16(at.add(8 * h)), scale), min: neon::zero_ps() }
            } else {
                Scales { scale: neon::f16(at.add(32 * b + 8 * h)), min: neon::zero_ps() }
            }
        }
    }

    /// `sum` with what a part adds for one token.
    #[inline(always)]
    pub fn add<const KIND: u8>(
        self,
        sum: float32x4_t,
        dot: int32x4_t,
        x_scale: f32,
        x_sum: i32,
    ) -> float32x4_t {
        // SAFETY: registers only; every processor of this architecture has the instructions.
        unsafe {
            let sum = vfmaq_f32(sum, vcvtq_f32_s32(dot), vmulq_n_f32(self.scale, x_scale));
            if KIND == Q4K { vfmsq_f32(sum, self.min, vdupq_n_f32(x_scale * x_sum as f32)) } else { sum }
        }
    }
}

/// Bytes of a record before its codes, and of a block's codes.
pub const fn codes(kind: u8) -> (usize, usize) {
    let block = match kind {
        Q8 => 512,
        Q6K => 2 * SIX_BYTES,
        _ => 256,
    };
    let kind = kind_of(kind);
    (kind.record_bytes() - kind.record_blocks() * block, block)
}

/// Parts of a block that have scales of their own.
pub const fn parts(kind: u8) -> usize {
    if kind == Q6K { 2 } else { 1 }
}

/// Scale of the activations and sum of them in part `part` of a block of token `t`; of Q6_K, where the part's sum of
/// products begins.
///
/// # Safety
/// Block and token are within the group.
#[inline(always)]
pub unsafe fn activations<const KIND: u8>(
    o: &Operands<'_>,
    block: usize,
    part: usize,
    t: usize,
) -> (f32, i32) {
    // SAFETY: the caller's promise.
    let (x_scale, x_sum) = unsafe { o.block(block, t) };
    // SAFETY: the same.
    (x_scale, if KIND == Q6K { unsafe { o.half(2 * block + part, t) } } else { x_sum })
}

/// What the sum of a part begins with, by what [`activations`] gives for it.
#[inline(always)]
pub fn start<const KIND: u8, M: Multiply>(x_sum: i32) -> i32 {
    match KIND {
        Q6K => x_sum,
        Q8 if M::SIGNED => 0,
        _ => offset(KIND).wrapping_mul(x_sum),
    }
}

/// The codes of four outputs in a sub-block of Q6_K, quad by quad.
///
/// # Safety
/// They lie there, 64 bytes apart.
#[inline(always)]
pub unsafe fn sixes(codes: *const u8) -> [int32x4_t; 4] {
    // SAFETY: the caller's promise.
    let [a, b, c] = [0, 64, 128].map(|at| unsafe { vld1q_s32(codes.add(at).cast()) });
    let fourth = neon::insert::<6>(neon::insert::<4>(neon::shift::<2>(c), b), a);
    [neon::low6(a), neon::low6(b), neon::low6(c), fourth]
}

/// H registers of the codes of quad `quad`, and for 4 bits of quad `quad + 4`, of the block whose codes lie at `at`.
///
/// # Safety
/// They do.
#[inline(always)]
pub unsafe fn load<const KIND: u8, M: Multiply, const H: usize>(
    at: *const u8,
    quad: usize,
) -> [[int32x4_t; H]; 2] {
    let mut w = [[neon::zero(); H]; 2];
    for h in 0..H {
        // SAFETY: the caller's promise.
        let both = unsafe { vld1q_s32(at.add(64 * quad + 16 * h).cast()) };
        if KIND == Q8 {
            w[0][h] = if M::SIGNED { neon::signed(both) } else { both };
        } else {
            w[0][h] = neon::low4(both);
            w[1][h] = neon::shift::<4>(both);
        }
    }
    w
}

/// P panels with T tokens, of each panel H registers from `first` on.
///
/// # Safety
/// `o` was made for at least P panels, and T tokens of the group are left; the processor has M's instruction.
#[inline(always)]
unsafe fn tile<const KIND: u8, M: Multiply, const P: usize, const T: usize, const H: usize>(
    o: Operands<'_>,
    first: usize,
    out: &mut [[[f32; ROWS]; T]; P],
) {
    let kind = const { kind_of(KIND) };
    let (before, of_block) = const { codes(KIND) };
    let mut sums = [[[neon::zero_ps(); H]; T]; P];
    for n in 0..o.records {
        let ahead = o.ahead(n * kind.record_bytes(), P);
        for b in 0..kind.record_blocks() {
            let block = n * kind.record_blocks() + b;
            for p in 0..P {
                // SAFETY: all offsets lie within record n of each panel, block and quads within the group.
                unsafe {
                    let at = o.data.add(p * o.bytes + n * kind.record_bytes());
                    let from = at.add(before + of_block * b);
                    if first == 0 {
                        for line in 0..of_block / 64 {
                            prefetch::second(from.wrapping_add(64 * line + ahead));
                        }
                    }
                    for part in 0..const { parts(KIND) } {
                        let mut dot = [[neon::zero(); T]; H];
                        if KIND != Q4K {
                            for t in 0..T {
                                let (_, x_sum) = activations::<KIND>(&o, block, part, t);
                                let start = vdupq_n_s32(start::<KIND, M>(x_sum));
                                for h in 0..H {
                                    dot[h][t] = start;
                                }
                            }
                        }
                        if KIND == Q6K {
                            for h in 0..H {
                                let w = sixes(from.add(SIX_BYTES * part + 16 * (first + h)));
                                for quad in 0..4 {
                                    let x = o.quads(block * 8 + 4 * part + quad);
                                    neon::multiply::<M, T>(&mut dot[h], w[quad], x);
                                }
                            }
                        } else {
                            for quad in 0..if KIND == Q8 { 8 } else { 4 } {
                                let w = load::<KIND, M, H>(from.add(16 * first), quad);
                                for h in 0..H {
                                    let x: *const [i8; QUAD] = o.quads(block * 8 + quad);
                                    neon::multiply::<M, T>(&mut dot[h], w[0][h], x);
                                    if KIND != Q8 {
                                        let x = o.quads(block * 8 + quad + 4);
                                        neon::multiply::<M, T>(&mut dot[h], w[1][h], x);
                                    }
                                }
                            }
                        }
                        for h in 0..H {
                            let scales = Scales::of::<KIND>(at, b * parts(KIND) + part, first + h);
                            for t in 0..T {
                                let (x_scale, x_sum) = activations::<KIND>(&o, block, part, t);
                                sums[p][t][h] = scales.add::<KIND>(sums[p][t][h], dot[h][t], x_scale, x_sum);
                            }
                        }
                    }
                }
            }
        }
    }
    for p in 0..P {
        for t in 0..T {
            for h in 0..H {
                // SAFETY: four numbers of sixteen.
                unsafe { vst1q_f32(out[p][t].as_mut_ptr().add(4 * (first + h)), sums[p][t][h]) };
            }
        }
    }
}

/// A strip with all tokens of a group.
///
/// # Safety
/// The processor has M's instruction.
#[inline(always)]
unsafe fn group<const KIND: u8, M: Multiply>(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
    let count = w.width;
    let mut p = 0;
    while p < count {
        // One token: as many streams as the strip has panels. More: as many registers of a panel as leave room for
        // the sums of all tokens.
        let n = if x.width == 1 && p + STRIP <= count { STRIP } else { 1 };
        let o = Operands::new(w, p, n, x, 0);
        macro_rules! run {
            ($panels:expr, $tokens:literal, $registers:literal) => {{
                let mut sums = [[[0f32; ROWS]; $tokens]; $panels];
                for first in (0..REGISTERS).step_by($registers) {
                    // SAFETY: the operands are of so many panels, the group has so many tokens; the caller's promise.
                    unsafe { tile::<KIND, M, { $panels }, $tokens, $registers>(o, first, &mut sums) };
                }
                give(p, 0, &sums, put);
            }};
        }
        match x.width {
            1 if n == STRIP => run!(STRIP, 1, 4),
            1 => run!(1, 1, 4),
            2 => run!(1, 2, 4),
            3 => run!(1, 3, 4),
            4 => run!(1, 4, 2),
            5 => run!(1, 5, 2),
            6 => run!(1, 6, 2),
            7 => run!(1, 7, 1),
            8 => run!(1, 8, 1),
            9 => run!(1, 9, 1),
            10 => run!(1, 10, 1),
            11 => run!(1, 11, 1),
            _ => run!(1, 12, 1),
        }
        p += n;
    }
}

macro_rules! level {
    ($(#[$meta:meta])* $name:ident, $group:ident, $features:literal, $multiply:ty) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub fn $name(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
            by_kind!(w, $group, x, put);
        }

        #[target_feature(enable = $features)]
        fn $group<const KIND: u8>(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
            // SAFETY: this function's features.
            unsafe { group::<KIND, $multiply>(w, x, put) }
        }
    };
}

level!(
    /// A strip with all tokens of a group, by products of 16 bits.
    plain,
    group_plain,
    "neon",
    Plain
);
level!(
    /// The same by dot products of signed bytes.
    dotprod,
    group_dotprod,
    "neon,dotprod",
    Dot
);
level!(
    /// The same by dot products of unsigned with signed bytes: for few tokens.
    mixed,
    group_mixed,
    "neon,dotprod,i8mm",
    Mixed
);

/// A strip with all tokens of a group, on processors with `i8mm`.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub fn i8mm(w: Strip<'_>, x: Group<'_>, put: Put<'_>) {
    if x.width < ROWS_FROM { mixed(w, x, put) } else { neon_rows::run(w, x, put) }
}
