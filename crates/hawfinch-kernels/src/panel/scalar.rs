//! The meaning of products with panels.

use half::f16;

use super::{BLOCK, Group, Kind, QUAD, ROWS, SIX_BYTES, SIX_CODES, SIX_SCALES, SUB_BLOCK, Strip, pack};

/// Sums of the sixteen outputs of a panel of a strip with one token of a group.
pub fn sums(strip: Strip<'_>, panel: usize, x: Group<'_>, token: usize) -> [f32; ROWS] {
    let kind = strip.kind;
    let mut sums = [0f32; ROWS];
    let half_at = |bytes: &[u8], r: usize| f16::from_le_bytes([bytes[2 * r], bytes[2 * r + 1]]).to_f32();
    let records = strip.data.chunks_exact(kind.record_bytes()).skip(panel * strip.records);
    for (n, record) in records.take(strip.records).enumerate() {
        for b in 0..kind.record_blocks() {
            let block = n * kind.record_blocks() + b;
            let at = block * x.width + token;
            let (x_scale, x_sum) = (x.scales[at], x.sums[at]);
            for r in 0..ROWS {
                if kind == Kind::Q6K {
                    for s in [2 * b, 2 * b + 1] {
                        let quads = &record[SIX_CODES + SIX_BYTES * s..];
                        let mut sum = 0i32;
                        for j in 0..SUB_BLOCK {
                            let (quad, k) = (j / QUAD, j % QUAD);
                            let w = i32::from(pack::six(quads, quad, r * QUAD + k)) - 32;
                            let x = x.quads[(block * 8 + s % 2 * 4 + quad) * x.width + token][k];
                            sum += w * i32::from(x);
                        }
                        let scale = f32::from(record[SIX_SCALES + ROWS * s + r] as i8);
                        let scale = half_at(record, r) * scale;
                        sums[r] = (sum as f32).mul_add(scale * x_scale, sums[r]);
                    }
                    continue;
                }
                let mut sum = 0i32;
                for j in 0..BLOCK {
                    let (quad, k) = (j / QUAD, j % QUAD);
                    let at = r * QUAD + k;
                    let w = match kind {
                        Kind::Q8 => i32::from(record[64 + 512 * b + 64 * quad + at]) - 128,
                        Kind::Q4 => code(&record[64 + 256 * b..], quad, at) - 8,
                        Kind::Q4K => code(&record[320 + 256 * b..], quad, at),
                        Kind::Q6K => unreachable!("done above"),
                    };
                    sum += w * i32::from(x.quads[(block * BLOCK / QUAD + quad) * x.width + token][k]);
                }
                let sum = sum as f32;
                match kind {
                    Kind::Q8 | Kind::Q4 => {
                        let scale = half_at(&record[32 * b..], r);
                        sums[r] = sum.mul_add(scale * x_scale, sums[r]);
                    }
                    Kind::Q4K => {
                        let of = |at: usize| f32::from(record[64 + 32 * b + at + r]);
                        let scale = half_at(record, r) * of(0);
                        let min = half_at(&record[32..], r) * of(16);
                        sums[r] = sum.mul_add(scale * x_scale, sums[r]);
                        sums[r] = (-min).mul_add(x_scale * x_sum as f32, sums[r]);
                    }
                    Kind::Q6K => unreachable!("done above"),
                }
            }
        }
    }
    sums
}

/// Quads 0..4 lie in the low, 4..8 in the high halves of the bytes.
fn code(quants: &[u8], quad: usize, at: usize) -> i32 {
    i32::from(quants[quad % 4 * 64 + at] >> (quad / 4 * 4) & 15)
}
