//! Products of many tokens with strips by tiles: exactly the sums of `sparse.rs`. As in `many_x86.rs` nothing is skipped.

use super::sparse::{StripOf, header, row_bytes};
use super::tiled::{self, Sheet, Tokens};
use super::{BLOCK, Kind, QUAD, ROWS};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::tiles::{self, Tiles};

/// Bytes of a row whose codes are arranged together: those of 64 outputs, or of 128 of 4 bits.
const PIECE: usize = 64;

/// Calls of [`run`] that make a strip.
pub fn calls(kind: Kind, width: usize) -> usize {
    row_bytes(kind, width) / PIECE
}

/// Sums of the `n`-th piece of a strip with `tokens` tokens, given to `put(token, first output of the strip, sums)`.
pub fn run(
    isa: Isa,
    w: StripOf<'_>,
    n: usize,
    x: &Tokens,
    tokens: usize,
    put: &mut dyn FnMut(usize, usize, &[f32]),
) {
    assert!(n < calls(w.kind, w.width) && w.data.len() == w.block(w.blocks));
    assert!(tiles::with(isa, Run { isa, w, n, x, tokens, put }), "a set with tiles");
}

struct Run<'a> {
    isa: Isa,
    w: StripOf<'a>,
    n: usize,
    x: &'a Tokens,
    tokens: usize,
    put: &'a mut dyn FnMut(usize, usize, &[f32]),
}

impl tiles::Using for Run<'_> {
    fn using<T: Tiles>(self, tiles: &T) {
        let Run { isa, w, n, x, tokens, put } = self;
        let mut sheets: [Sheet; 4] = std::array::from_fn(|_| Sheet::new(w.kind, w.blocks));
        let halves = if w.kind == Kind::Q8 { 1 } else { 2 };
        for half in 0..halves {
            let first = (n * halves + half) * 64;
            match isa.level() {
                // SAFETY: an Isa exists only where the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512::arrange(&mut sheets, w, n, half, first) },
                _ => arrange(&mut sheets, w, n, half, first, interleaved, tiled::halves),
            }
            for (i, sheet) in sheets.iter().enumerate() {
                let output = first + ROWS * i;
                sheet.with_every(isa, tiles, x, tokens, &mut |token, sums| put(token, output, sums));
            }
        }
    }
}

/// Four rows of 64 outputs as the quads of four times sixteen outputs: output `16 i + 4 l + k` is byte `16 l + 4 i + k`
/// of a row.
fn interleaved(rows: [[u8; PIECE]; QUAD]) -> [[[u8; QUAD]; ROWS]; 4] {
    std::array::from_fn(|i| {
        std::array::from_fn(|o| std::array::from_fn(|j| rows[j][16 * (o / 4) + 4 * i + o % 4]))
    })
}

/// Puts 64 outputs, from `first` on, into the order of tiles: those of the low or of the high halves of a piece's bytes.
#[inline(always)]
fn arrange(
    sheets: &mut [Sheet; 4],
    w: StripOf<'_>,
    piece: usize,
    half: usize,
    first: usize,
    interleaved: impl Fn([[u8; PIECE]; QUAD]) -> [[[u8; QUAD]; ROWS]; 4],
    halves: impl Fn(&[u8]) -> [f32; ROWS],
) {
    let bytes = row_bytes(w.kind, w.width);
    for b in 0..w.blocks {
        let at = w.block(b);
        for quad in 0..BLOCK / QUAD {
            let mut rows = [[0u8; PIECE]; QUAD];
            for (k, row) in rows.iter_mut().enumerate() {
                let from = at + header(w.width) + (quad * QUAD + k) * bytes + piece * PIECE;
                let from = &w.data[from..from + PIECE];
                for (to, &from) in row.iter_mut().zip(from) {
                    *to = match w.kind {
                        Kind::Q8 => from ^ 0x80,
                        _ => from >> (4 * half) & 15,
                    };
                    if w.kind == Kind::Q4 {
                        *to = to.wrapping_sub(8);
                    }
                }
            }
            for (sheet, codes) in sheets.iter_mut().zip(interleaved(rows)) {
                sheet.codes[b].0[quad] = codes.map(|codes| codes.map(|code| code as i8));
            }
        }
        for (i, sheet) in sheets.iter_mut().enumerate() {
            let o = first + ROWS * i;
            let number = |at: usize| halves(&w.data[at..at + 2 * ROWS]);
            if w.kind == Kind::Q4K {
                let d = w.block(b / 8 * 8) - 4 * w.width + 2 * o;
                let (scale, min) = (number(d), number(d + 2 * w.width));
                let octets = |from: usize| &w.data[from..from + ROWS];
                let (scales, minima) = (octets(at + o), octets(at + w.width + o));
                for r in 0..ROWS {
                    sheet.scales[b][r] = scale[r] * f32::from(scales[r]);
                    sheet.minima[b][r] = min[r] * f32::from(minima[r]);
                }
            } else {
                sheet.scales[b] = number(at + 2 * o);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub fn arrange(sheets: &mut [Sheet; 4], w: StripOf<'_>, piece: usize, half: usize, first: usize) {
        let halves = |bytes: &[u8]| tiled::avx512::halves(bytes);
        super::arrange(sheets, w, piece, half, first, |rows| interleaved(rows), halves);
    }

    /// [`super::interleaved`] in registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn interleaved(rows: [[u8; PIECE]; QUAD]) -> [[[u8; QUAD]; ROWS]; 4] {
        // SAFETY: 64 bytes.
        let r = rows.map(|row| unsafe { _mm512_loadu_si512(row.as_ptr().cast()) });
        let (a, b) = (_mm512_unpacklo_epi8(r[0], r[1]), _mm512_unpackhi_epi8(r[0], r[1]));
        let (c, d) = (_mm512_unpacklo_epi8(r[2], r[3]), _mm512_unpackhi_epi8(r[2], r[3]));
        let q = [
            _mm512_unpacklo_epi16(a, c),
            _mm512_unpackhi_epi16(a, c),
            _mm512_unpacklo_epi16(b, d),
            _mm512_unpackhi_epi16(b, d),
        ];
        let mut out = [[[0; QUAD]; ROWS]; 4];
        for (out, q) in out.iter_mut().zip(q) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), q) };
        }
        out
    }
}
