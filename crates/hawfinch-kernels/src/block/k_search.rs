//! The searches for scales and codes of the K formats that are written, step for step as in ggml's
//! reference quantisers (same order of f32 operations), so that blocks come out the same where no
//! compiler fused a multiplication with an addition.

use half::f16;

use super::k::{LEN, scale_min};

/// Below this a group counts as zero.
const TINY: f32 = 1e-15;

/// Round to nearest, ties to even, for |v| < 2^22; anything at all beyond, without a panic.
fn nearest(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() as i32 & 0x007f_ffff) - 0x0040_0000
}

/// A block of Q4_K or Q5_K.
pub(super) struct Pairs {
    d: f16,
    m: f16,
    scales: [u8; 12],
    pub(super) codes: [u8; LEN],
}

impl Pairs {
    pub(super) fn put_head(&self, out: &mut Vec<u8>) {
        out.extend(self.d.to_le_bytes());
        out.extend(self.m.to_le_bytes());
        out.extend(self.scales);
    }
}

/// Codes 0..=`top` of eight sub-blocks of 32, each with a scale and a minimum of 6 bits. `first` and
/// `steps` are the range of scales tried: (top + first + 0.1·i) / range for i in 0..=steps.
pub(super) fn pairs(x: &[f32; LEN], top: i32, first: f32, steps: usize) -> Pairs {
    let mut codes = [0u8; LEN];
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    let (mut max_scale, mut max_min) = (0f32, 0f32);
    for (i, (x, q)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let mean_square = x.iter().fold(0.0, |s, v| s + v * v) / 32.0;
        let weights = x.map(|v| mean_square.sqrt() + v.abs());
        (scales[i], mins[i]) = scale_and_min(x, &weights, top, first, steps, q);
        max_scale = if scales[i] > max_scale { scales[i] } else { max_scale };
        max_min = if mins[i] > max_min { mins[i] } else { max_min };
    }
    let per = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let mut packed = [0u8; 12];
    for i in 0..8 {
        let s = (nearest(per(max_scale) * scales[i]) as u8).min(63);
        let m = (nearest(per(max_min) * mins[i]) as u8).min(63);
        if i < 4 {
            packed[i] = s;
            packed[i + 4] = m;
        } else {
            packed[i + 4] = s & 15 | (m & 15) << 4;
            packed[i - 4] |= (s >> 4) << 6;
            packed[i] |= (m >> 4) << 6;
        }
    }
    let (d, m) = (f16::from_f32(max_scale / 63.0), f16::from_f32(max_min / 63.0));
    // The codes again, for the scales as they were rounded.
    for (i, (x, q)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let (scale, min) = scale_min(&packed, i);
        let (scale, min) = (d.to_f32() * f32::from(scale), m.to_f32() * f32::from(min));
        if scale != 0.0 {
            *q = x.map(|v| nearest((v + min) / scale).clamp(0, top) as u8);
        }
    }
    Pairs { d, m, scales: packed, codes }
}

/// Scale and (negated) minimum of one sub-block with the least weighted square error among those tried:
/// for each trial scale the codes, for the codes the best linear fit.
fn scale_and_min(
    x: &[f32; 32],
    weights: &[f32; 32],
    top: i32,
    first: f32,
    steps: usize,
    codes: &mut [u8; 32],
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for i in 1..32 {
        min = if x[i] < min { x[i] } else { min };
        max = if x[i] > max { x[i] } else { max };
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        *codes = [0; 32];
        return (0.0, -min);
    }
    let error = |scale: f32, min: f32, codes: &[u8; 32]| {
        let mut sum = 0.0;
        for i in 0..32 {
            let diff = scale * f32::from(codes[i]) + min - x[i];
            sum += weights[i] * (diff * diff);
        }
        sum
    };
    let inverse = top as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    *codes = x.map(|v| nearest(inverse * (v - min)).clamp(0, top) as u8);
    let mut best = error(scale, min, codes);
    for step in 0..=steps {
        let inverse = (first + 0.1 * step as f32 + top as f32) / (max - min);
        let trial = x.map(|v| nearest(inverse * (v - min)).clamp(0, top) as u8);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for i in 0..32 {
            let l = f32::from(trial[i]);
            sum_l += weights[i] * l;
            sum_l2 += weights[i] * l * l;
            sum_xl += weights[i] * l * x[i];
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        if det > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let err = error(this_scale, this_min, &trial);
            if err < best {
                (*codes, best, scale, min) = (trial, err, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// A block of Q6_K.
pub(super) struct Sixes {
    pub(super) d: f16,
    pub(super) scales: [i8; 16],
    /// 0 to 63
    pub(super) codes: [u8; LEN],
}

/// Codes of sixteen sub-blocks of 16 with 8-bit scales.
pub(super) fn sixes(x: &[f32; LEN]) -> Sixes {
    let mut codes = [0u8; LEN];
    let mut scales = [0f32; 16];
    let mut max = 0f32;
    for (i, (x, q)) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        scales[i] = signed_scale(x, q);
        if scales[i].abs() > max.abs() {
            max = scales[i];
        }
    }
    if max.abs() < TINY {
        return Sixes { d: f16::ZERO, scales: [0; 16], codes: [0; LEN] };
    }
    let inverse = -128.0 / max;
    let d = f16::from_f32(1.0 / inverse);
    let scales = scales.map(|s| nearest(inverse * s).min(127) as i8);
    for (i, (x, q)) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        let scale = d.to_f32() * f32::from(scales[i]);
        if scale != 0.0 {
            *q = x.map(|v| (nearest(v / scale).clamp(-32, 31) + 32) as u8);
        }
    }
    Sixes { d, scales, codes }
}

/// The scale of 16 numbers with codes −32..=31, the best of nineteen trials under weights x².
fn signed_scale(x: &[f32; 16], codes: &mut [u8; 16]) -> f32 {
    let mut max = 0f32;
    for &v in x {
        if v.abs() > max.abs() {
            max = v;
        }
    }
    if max.abs() < TINY {
        *codes = [0; 16];
        return 0.0;
    }
    let code = |inverse: f32, v: f32| nearest(inverse * v).clamp(-32, 31);
    // Sums of w·x·q and w·q·q.
    let sums = |inverse: f32| {
        let (mut xl, mut l2) = (0f32, 0f32);
        for &v in x {
            let (l, w) = (code(inverse, v) as f32, v * v);
            xl += w * v * l;
            l2 += w * l * l;
        }
        (xl, l2)
    };
    let mut inverse = -32.0 / max;
    let (xl, l2) = sums(inverse);
    let mut scale = if l2 != 0.0 { xl / l2 } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|&s| s != 0) {
        let trial = -(32.0 + 0.1 * step as f32) / max;
        let (xl, l2) = sums(trial);
        if l2 > 0.0 && xl * xl > best * l2 {
            (inverse, scale) = (trial, xl / l2);
            best = scale * xl;
        }
    }
    *codes = x.map(|v| (code(inverse, v) + 32) as u8);
    scale
}
