//! Products of many tokens with panels by tiles: exactly the sums of `scalar.rs`. (Strips: `tiled_strips.rs`.)
//!
//! A tile is sixteen tokens with a panel's sixteen outputs over one block of 32 inputs, whose exact sum is then scaled in
//! f32 as everywhere else: that is why half of a tile's depth is not used. The codes of a panel are put into the
//! order of tiles, as signed bytes, once for all tokens. The tiles of the next blocks run while those before are
//! scaled. Of Q6_K, whose halves of a block have scales of their own, each half is multiplied alone: with zeros in the
//! place of the other.

use super::{BLOCK, Kind, ROWS, SIX_BYTES, SIX_CODES, SIX_SCALES, Strip};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::tiles::{self, OutputCodes, SIDE, STEP, Sums, Tiles, TokenCodes};

/// Tokens from which tiles are used: more than one group of the other loops.
pub const FROM: usize = super::GROUP + 1;

/// Activations in the order of tiles. Blocks are whole [`STEP`]s; what is beyond the last token or block is never used.
#[derive(Default)]
pub struct Tokens {
    /// `[sixteen tokens, block, token]`
    pub codes: Vec<tiles::Row>,
    /// As `codes`: the scale of a block.
    pub scales: Vec<f32>,
    /// As `codes`: the scale times the sum of the codes.
    pub offsets: Vec<f32>,
}

impl Tokens {
    /// Makes room for so many; none unless tiles are used.
    pub fn resize(&mut self, isa: Isa, tokens: usize, blocks: usize) {
        let all =
            if isa.has_tiles() && tokens >= FROM { tokens.div_ceil(SIDE) * padded(blocks) * SIDE } else { 0 };
        self.codes.resize(all, tiles::Row::default());
        self.scales.resize(all, 0.0);
        self.offsets.resize(all, 0.0);
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }
}

/// Blocks that are multiplied for so many.
pub const fn padded(blocks: usize) -> usize {
    blocks.next_multiple_of(STEP)
}

/// Where a block of a token lies.
pub const fn place(token: usize, block: usize, blocks: usize) -> usize {
    (token / SIDE * padded(blocks) + block) * SIDE + token % SIDE
}

/// Sixteen outputs in the order of tiles.
pub struct Sheet {
    /// Parts of a block that have scales of their own.
    parts: usize,
    /// `[step, part, block of the step]`: whole [`STEP`]s.
    pub codes: Vec<OutputCodes>,
    /// `[block, part, output]`
    pub scales: Vec<[f32; ROWS]>,
    /// As `scales`, of formats that have them.
    pub minima: Vec<[f32; ROWS]>,
}

impl Sheet {
    /// Room for so many blocks.
    pub fn new(kind: Kind, blocks: usize) -> Sheet {
        let parts = if kind == Kind::Q6K { 2 } else { 1 };
        Sheet {
            parts,
            codes: vec![OutputCodes([[[0; 4]; ROWS]; BLOCK / 4]); padded(blocks) * parts],
            scales: vec![[0.0; ROWS]; blocks * parts],
            minima: vec![[0.0; ROWS]; if kind == Kind::Q4K { blocks } else { 0 }],
        }
    }

    /// Sums with every token, given to `put(token, sums)`.
    pub fn with_every<T: Tiles>(
        &self,
        isa: Isa,
        tiles: &T,
        x: &Tokens,
        tokens: usize,
        put: &mut dyn FnMut(usize, &[f32; ROWS]),
    ) {
        let blocks = self.scales.len() / self.parts;
        for first in (0..tokens).step_by(SIDE) {
            let from = place(first, 0, blocks);
            let all = from..from + padded(blocks) * SIDE;
            let x = Group {
                codes: x.codes[all.clone()].as_chunks().0,
                scales: x.scales[all.clone()].as_chunks().0,
                offsets: x.offsets[all].as_chunks().0,
            };
            let mut totals = [[0f32; ROWS]; SIDE];
            match isa.level() {
                // SAFETY: an Isa exists only where the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe {
                    match (self.parts, self.minima.is_empty()) {
                        (1, true) => avx512::product::<T, 1, false>(tiles, &mut totals, self, x),
                        (1, false) => avx512::product::<T, 1, true>(tiles, &mut totals, self, x),
                        _ => avx512::product::<T, 2, false>(tiles, &mut totals, self, x),
                    }
                },
                _ => product(tiles, &mut totals, self, x),
            }
            totals.iter().enumerate().take(tokens - first).for_each(|(t, totals)| put(first + t, totals));
        }
    }
}

/// Sums of a strip with `tokens` tokens, given to `put(panel, token, sums)`.
pub fn strip(
    isa: Isa,
    w: Strip<'_>,
    x: &Tokens,
    tokens: usize,
    put: &mut dyn FnMut(usize, usize, &[f32; ROWS]),
) {
    assert!(tiles::with(isa, Run { isa, w, x, tokens, put }), "a set with tiles");
}

struct Run<'a> {
    isa: Isa,
    w: Strip<'a>,
    x: &'a Tokens,
    tokens: usize,
    put: &'a mut dyn FnMut(usize, usize, &[f32; ROWS]),
}

impl tiles::Using for Run<'_> {
    fn using<T: Tiles>(self, tiles: &T) {
        let Run { isa, w, x, tokens, put } = self;
        let mut sheet = Sheet::new(w.kind, w.records * w.kind.record_blocks());
        for (p, panel) in w.data.chunks_exact(w.records * w.kind.record_bytes()).enumerate() {
            match isa.level() {
                // SAFETY: an Isa exists only where the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512::arrange(&mut sheet, w.kind, panel) },
                _ => arrange(&mut sheet, w.kind, panel, halves),
            }
            sheet.with_every(isa, tiles, x, tokens, &mut |token, sums| put(p, token, sums));
        }
    }
}

/// Sixteen tokens: `[block]`.
#[derive(Clone, Copy)]
struct Group<'a> {
    codes: &'a [TokenCodes],
    scales: &'a [[f32; SIDE]],
    offsets: &'a [[f32; SIDE]],
}

/// Sixteen f16.
pub fn halves(bytes: &[u8]) -> [f32; ROWS] {
    std::array::from_fn(|r| half::f16::from_le_bytes([bytes[2 * r], bytes[2 * r + 1]]).to_f32())
}

/// Puts a panel into the order of tiles.
#[inline(always)]
fn arrange(sheet: &mut Sheet, kind: Kind, panel: &[u8], halves: impl Fn(&[u8]) -> [f32; ROWS]) {
    let per = kind.record_blocks();
    for (n, record) in panel.chunks_exact(kind.record_bytes()).enumerate() {
        for b in 0..per {
            let at = n * per + b;
            if kind == Kind::Q6K {
                sixes(sheet, at, b, record, halves(&record[..SIX_SCALES]));
                continue;
            }
            let codes: &mut [i8] = sheet.codes[at].0.as_flattened_mut().as_flattened_mut();
            match kind {
                Kind::Q8 => {
                    let from = &record[64 + 512 * b..][..512];
                    codes.iter_mut().zip(from).for_each(|(code, &b)| *code = (b ^ 0x80) as i8);
                }
                Kind::Q4 | Kind::Q4K => {
                    let (from, zero) = if kind == Kind::Q4 { (64, 8) } else { (320, 0) };
                    let (low, high) = codes.split_at_mut(256);
                    let from = &record[from + 256 * b..][..256];
                    low.iter_mut().zip(from).for_each(|(code, &b)| *code = (b & 15) as i8 - zero);
                    high.iter_mut().zip(from).for_each(|(code, &b)| *code = (b >> 4) as i8 - zero);
                }
                Kind::Q6K => unreachable!("done above"),
            }
            if kind == Kind::Q4K {
                let (d, dmin) = (halves(&record[..32]), halves(&record[32..64]));
                let numbers = &record[64 + 32 * b..][..32];
                for r in 0..ROWS {
                    sheet.scales[at][r] = d[r] * f32::from(numbers[r]);
                    sheet.minima[at][r] = dmin[r] * f32::from(numbers[ROWS + r]);
                }
            } else {
                sheet.scales[at] = halves(&record[32 * b..][..32]);
            }
        }
    }
}

/// Puts block `at` of a panel of Q6_K into the order of tiles: block `b` of a record with these `d`.
#[inline(always)]
fn sixes(sheet: &mut Sheet, at: usize, b: usize, record: &[u8], d: [f32; ROWS]) {
    const QUAD_BYTES: usize = SIX_BYTES / 3;
    for part in 0..2 {
        let from = &record[SIX_CODES + SIX_BYTES * (2 * b + part)..][..SIX_BYTES];
        let codes = &mut sheet.codes[(at / STEP * 2 + part) * STEP + at % STEP];
        let codes = codes.0.as_flattened_mut().as_flattened_mut();
        let codes = &mut codes[part * 4 * QUAD_BYTES..][..4 * QUAD_BYTES];
        for j in 0..QUAD_BYTES {
            let w = [from[j], from[QUAD_BYTES + j], from[2 * QUAD_BYTES + j]];
            for n in 0..3 {
                codes[QUAD_BYTES * n + j] = (w[n] & 63) as i8 - 32;
            }
            codes[QUAD_BYTES * 3 + j] = (w[0] >> 6 | w[1] >> 6 << 2 | w[2] >> 6 << 4) as i8 - 32;
        }
        let scales = &record[SIX_SCALES + ROWS * (2 * b + part)..][..ROWS];
        for r in 0..ROWS {
            sheet.scales[2 * at + part][r] = d[r] * f32::from(scales[r] as i8);
        }
    }
}

/// Sums of sixteen tokens with a panel.
fn product<T: Tiles>(tiles: &T, totals: &mut [[f32; ROWS]; SIDE], w: &Sheet, x: Group<'_>) {
    let mut sums = [[Sums([[0; ROWS]; SIDE]); STEP]; 2];
    let ws = w.codes.as_chunks::<STEP>().0.chunks_exact(w.parts);
    for (step, (xs, ws)) in x.codes.as_chunks::<STEP>().0.iter().zip(ws).enumerate() {
        for (sums, w) in sums.iter_mut().zip(ws) {
            tiles.blocks(sums, xs, w);
        }
        let of_step = step * STEP * w.parts..w.scales.len().min((step + 1) * STEP * w.parts);
        for at in of_step {
            let (b, part) = (at / w.parts, at % w.parts);
            for (t, totals) in totals.iter_mut().enumerate() {
                let sums = &sums[part][b % STEP].0[t];
                for r in 0..ROWS {
                    totals[r] = (sums[r] as f32).mul_add(w.scales[at][r] * x.scales[b][t], totals[r]);
                    if let Some(minima) = w.minima.get(at) {
                        totals[r] = (-minima[r]).mul_add(x.offsets[b][t], totals[r]);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub fn arrange(sheet: &mut Sheet, kind: Kind, panel: &[u8]) {
        super::arrange(sheet, kind, panel, |bytes| halves(bytes));
    }

    /// [`super::halves`] in a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,f16c")]
    pub fn halves(bytes: &[u8]) -> [f32; ROWS] {
        let bytes: &[u8; 2 * ROWS] = bytes.try_into().expect("sixteen numbers");
        let mut out = [0f32; ROWS];
        // SAFETY: 32 bytes, sixteen numbers.
        unsafe {
            let wide = _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), wide);
        }
        out
    }

    /// [`super::product`] with the totals in registers. Two sets of integer sums: while one is scaled, tiles fill the
    /// other.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn product<T: Tiles, const PARTS: usize, const MINIMA: bool>(
        tiles: &T,
        totals: &mut [[f32; ROWS]; SIDE],
        w: &Sheet,
        x: Group<'_>,
    ) {
        let (xs, ws) = (x.codes.as_chunks::<STEP>().0, w.codes.as_chunks::<STEP>().0);
        let (ws, blocks) = (ws.as_chunks::<PARTS>().0, w.scales.len() / PARTS);
        assert!(xs.len() == ws.len() && blocks <= xs.len() * STEP && w.parts == PARTS);
        assert!(x.scales.len() >= blocks && x.offsets.len() >= blocks);
        assert!(!MINIMA || w.minima.len() == w.scales.len());
        let mut sums = [[[Sums([[0; ROWS]; SIDE]); STEP]; PARTS]; 2];
        let multiply = |sums: &mut [[Sums; STEP]; PARTS], x, ws: &[[OutputCodes; STEP]; PARTS]| {
            for (sums, w) in sums.iter_mut().zip(ws) {
                tiles.blocks(sums, x, w);
            }
        };
        let mut sum = [_mm512_setzero_ps(); SIDE];
        if let (Some(x), Some(w)) = (xs.first(), ws.first()) {
            multiply(&mut sums[0], x, w);
        }
        for step in 0..xs.len() {
            if step + 1 < xs.len() {
                multiply(&mut sums[(step + 1) % 2], &xs[step + 1], &ws[step + 1]);
            }
            for at in step * STEP * PARTS..PARTS * blocks.min((step + 1) * STEP) {
                let (b, part) = (at / PARTS, at % PARTS);
                let done = &sums[step % 2][part][b % STEP];
                // SAFETY: sixteen numbers each.
                unsafe {
                    let scale = _mm512_loadu_ps(w.scales[at].as_ptr());
                    let minima = if MINIMA { _mm512_loadu_ps(w.minima[at].as_ptr()) } else { scale };
                    for t in 0..SIDE {
                        let dot = _mm512_cvtepi32_ps(_mm512_load_si512(done.0[t].as_ptr().cast()));
                        let both = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[b][t]));
                        sum[t] = _mm512_fmadd_ps(dot, both, sum[t]);
                        if MINIMA {
                            sum[t] = _mm512_fnmadd_ps(minima, _mm512_set1_ps(x.offsets[b][t]), sum[t]);
                        }
                    }
                }
            }
        }
        for (totals, sum) in totals.iter_mut().zip(sum) {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sum) };
        }
    }
}
