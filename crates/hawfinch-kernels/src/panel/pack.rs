//! From rows of blocks, as files hold them, to panels and back.

use super::{BLOCK, Kind, QUAD, ROWS, SIX_BYTES, SIX_CODES, SIX_SCALES, SUB_BLOCK};

/// Writes one row of blocks as row `r` of a panel (zero before).
pub fn row(kind: Kind, row: &[u8], panel: &mut [u8], r: usize) {
    match kind {
        Kind::Q8 => {
            for (b, block) in row.chunks_exact(34).enumerate() {
                let (record, half) = halves(kind, panel, b);
                record[half * 32 + 2 * r..][..2].copy_from_slice(&block[..2]);
                let quants = &mut record[64 + half * 512..][..512];
                for (n, quad) in block[2..].chunks_exact(QUAD).enumerate() {
                    let at = n * ROWS * QUAD + r * QUAD;
                    quants[at..at + QUAD].iter_mut().zip(quad).for_each(|(q, &b)| *q = b ^ 0x80);
                }
            }
        }
        Kind::Q4 => {
            for (b, block) in row.chunks_exact(18).enumerate() {
                let (record, half) = halves(kind, panel, b);
                record[half * 32 + 2 * r..][..2].copy_from_slice(&block[..2]);
                // ggml: byte j holds numbers j and j + 16, which is quads n and n + 4 here.
                nibbles(&block[2..], &mut record[64 + half * 256..][..256], r);
            }
        }
        Kind::Q4K => {
            let records = panel.chunks_exact_mut(kind.record_bytes());
            for (block, record) in row.chunks_exact(144).zip(records) {
                record[2 * r..][..2].copy_from_slice(&block[..2]);
                record[32 + 2 * r..][..2].copy_from_slice(&block[2..4]);
                for b in 0..8 {
                    let (scale, min) = scale_min(&block[4..16], b);
                    record[64 + 32 * b + r] = scale;
                    record[64 + 32 * b + 16 + r] = min;
                    // ggml: 32 bytes hold block 2n in their low, block 2n + 1 in their high halves.
                    let from = &block[16 + b / 2 * BLOCK..][..BLOCK];
                    let code = |j: usize| from[j] >> (4 * (b % 2)) & 15;
                    let packed: [u8; 16] = std::array::from_fn(|j| code(j) | code(j + 16) << 4);
                    nibbles(&packed, &mut record[320 + 256 * b..][..256], r);
                }
            }
        }
        Kind::Q6K => {
            let records = panel.chunks_exact_mut(kind.record_bytes());
            for (block, record) in row.chunks_exact(210).zip(records) {
                record[2 * r..][..2].copy_from_slice(&block[208..]);
                for s in 0..16 {
                    record[SIX_SCALES + ROWS * s + r] = block[192 + s];
                    let quads = &mut record[SIX_CODES + SIX_BYTES * s..][..SIX_BYTES];
                    for j in 0..SUB_BLOCK {
                        put_six(quads, r, j, six_of_file(block, s * SUB_BLOCK + j));
                    }
                }
            }
        }
    }
}

/// ggml: the code of number `j` of a Q6_K block. Each half of a block has 64 bytes of nibbles, the first two eighths of
/// it low, the next two high, and 32 bytes of two bits for each eighth.
fn six_of_file(block: &[u8], j: usize) -> u8 {
    let (low, high) = six_places(j);
    block[low.0] >> low.1 & 15 | (block[high.0] >> high.1 & 3) << 4
}

/// Byte and shift of the low four and of the high two bits of number `j` in ggml's block.
fn six_places(j: usize) -> ((usize, usize), (usize, usize)) {
    let (half, plane, j) = (j / 128, j % 128 / BLOCK, j % BLOCK);
    ((64 * half + plane % 2 * BLOCK + j, plane / 2 * 4), (128 + half * BLOCK + j, 2 * plane))
}

/// Writes the code of input `j` of a sub-block of row `r` (zero before).
fn put_six(quads: &mut [u8], r: usize, j: usize, code: u8) {
    let at = r * QUAD + j % QUAD;
    match j / QUAD {
        3 => (0..3).for_each(|n| quads[64 * n + at] |= (code >> (2 * n) & 3) << 6),
        n => quads[64 * n + at] |= code,
    }
}

/// The code of quad `n` of a sub-block of Q6_K at place `at` among the 64 of its quad.
pub fn six(quads: &[u8], n: usize, at: usize) -> u8 {
    match n {
        3 => (0..3).fold(0, |code, n| code | quads[64 * n + at] >> 6 << (2 * n)),
        n => quads[64 * n + at] & 63,
    }
}

/// The record of block `b` of a kind with two blocks a record, and which of the two it is.
fn halves(kind: Kind, panel: &mut [u8], b: usize) -> (&mut [u8], usize) {
    let per = kind.record_bytes();
    (&mut panel[b / 2 * per..][..per], b % 2)
}

/// 16 bytes of two codes each to the places of row `r`.
fn nibbles(codes: &[u8], quants: &mut [u8], r: usize) {
    for (n, quad) in codes.chunks_exact(QUAD).enumerate() {
        quants[n * ROWS * QUAD + r * QUAD..][..QUAD].copy_from_slice(quad);
    }
}

/// Scale and minimum `b` of a Q4_K block's twelve bytes of six-bit numbers.
pub fn scale_min(packed: &[u8], b: usize) -> (u8, u8) {
    if b < 4 {
        (packed[b] & 63, packed[b + 4] & 63)
    } else {
        let high = |at: usize| packed[at] >> 6 << 4;
        (packed[b + 4] & 15 | high(b - 4), packed[b + 4] >> 4 | high(b))
    }
}

/// The twelve bytes of which [`scale_min`] takes scale and minimum of eight blocks.
pub fn pack_scale_min(pairs: [(u8, u8); 8]) -> [u8; 12] {
    std::array::from_fn(|n| match n {
        0..4 => pairs[n].0 & 63 | pairs[n + 4].0 >> 4 << 6,
        4..8 => pairs[n - 4].1 & 63 | pairs[n].1 >> 4 << 6,
        _ => pairs[n - 4].0 & 15 | pairs[n - 4].1 << 4,
    })
}

/// Row `r` of a panel as the row of blocks that [`row`] took.
pub fn unpack_row(kind: Kind, panel: &[u8], r: usize, row: &mut [u8]) {
    let records = panel.chunks_exact(kind.record_bytes());
    match kind {
        Kind::Q8 | Kind::Q4 => {
            let (block_bytes, quant_bytes) = if kind == Kind::Q8 { (34, 512) } else { (18, 256) };
            for (blocks, record) in row.chunks_mut(2 * block_bytes).zip(records) {
                for (half, block) in blocks.chunks_exact_mut(block_bytes).enumerate() {
                    block[..2].copy_from_slice(&record[half * 32 + 2 * r..][..2]);
                    let quants = &record[64 + half * quant_bytes..];
                    for (n, quad) in block[2..].chunks_exact_mut(QUAD).enumerate() {
                        quad.copy_from_slice(&quants[(n * ROWS + r) * QUAD..][..QUAD]);
                        if kind == Kind::Q8 {
                            quad.iter_mut().for_each(|q| *q ^= 0x80);
                        }
                    }
                }
            }
        }
        Kind::Q4K => {
            for (block, record) in row.chunks_exact_mut(144).zip(records) {
                block[..2].copy_from_slice(&record[2 * r..][..2]);
                block[2..4].copy_from_slice(&record[32 + 2 * r..][..2]);
                let pair = |b: usize| (record[64 + 32 * b + r], record[64 + 32 * b + 16 + r]);
                block[4..16].copy_from_slice(&pack_scale_min(std::array::from_fn(pair)));
                for b in 0..8 {
                    let quants = &record[320 + 256 * b..];
                    let byte = |j: usize| quants[(j / QUAD * ROWS + r) * QUAD + j % QUAD];
                    let to = &mut block[16 + b / 2 * BLOCK..][..BLOCK];
                    for j in 0..16 {
                        to[j] |= (byte(j) & 15) << (b % 2 * 4);
                        to[j + 16] |= (byte(j) >> 4) << (b % 2 * 4);
                    }
                }
            }
        }
        Kind::Q6K => {
            for (block, record) in row.chunks_exact_mut(210).zip(records) {
                block[208..].copy_from_slice(&record[2 * r..][..2]);
                for s in 0..16 {
                    block[192 + s] = record[SIX_SCALES + ROWS * s + r];
                    let quads = &record[SIX_CODES + SIX_BYTES * s..];
                    for j in 0..SUB_BLOCK {
                        let code = six(quads, j / QUAD, r * QUAD + j % QUAD);
                        let (low, high) = six_places(s * SUB_BLOCK + j);
                        block[low.0] |= (code & 15) << low.1;
                        block[high.0] |= (code >> 4) << high.1;
                    }
                }
            }
        }
    }
}
