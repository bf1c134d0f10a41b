//! Products with quantised weights whose inputs are mostly zero: `ffn.value` after relu².
//!
//! The weights of one input lie together for some hundreds of outputs, so those of an input that is zero (or rounds to
//! zero in 8 bits) are not read. The result is that of [`super::Panels`], bit for bit: integer sums do not change by
//! terms that are zero, and a block of zeros adds zero.
//!
//! Outputs are divided into strips. A strip holds, for every block of 32 inputs, the scales of its outputs, then 32
//! rows of codes. In a row, outputs lie in the order in which interleaving four rows puts them into registers in
//! sequence: within 64 outputs, output `16 i + 4 l + k` is byte `16 l + 4 i + k`. Four-bit codes of two such groups of
//! 64 share bytes, the first in the low halves. Q6_K has no strips: see [`has`].

use std::ops::Range;
use std::sync::Arc;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::many;
use super::{Activations, BLOCK, Group, Kind, tiled_strips};
use crate::Level;
use crate::buffer::Buffer;
use crate::output::Out;
use crate::{DType, Isa, Pool, Store, Then, Work, block};

/// Outputs that strips are made of.
pub(super) const UNIT: usize = 128;
/// Outputs of a strip at most. The wider, the longer the runs that are read of a row whose neighbours are not, and the
/// less of them do processors fetch in vain; but sums are to stay near.
pub(super) const WIDEST: usize = 16 * UNIT;

/// Tokens up to which inputs that are zero for all of them are worth finding.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FEW: usize = 3;

/// What is said where a strip of Q6_K would be.
pub(super) const NO_STRIPS: &str = "Q6_K has no strips";

/// A weight matrix in strips.
pub struct Sparse {
    kind: Kind,
    outputs: usize,
    inputs: usize,
    scale: f32,
    /// Outputs of a strip.
    width: usize,
    /// Bytes of a strip.
    strip_bytes: usize,
    data: Arc<Store>,
}

/// One strip.
#[derive(Clone, Copy)]
pub(super) struct StripOf<'a> {
    pub kind: Kind,
    pub width: usize,
    pub blocks: usize,
    pub data: &'a [u8],
}

impl StripOf<'_> {
    /// Where block `b` begins: its header, then its rows. For Q4_K the numbers of a super-block's eight blocks
    /// stand before the first.
    pub fn block(&self, b: usize) -> usize {
        block_at(self.kind, self.width, b)
    }
}

/// Whether numbers of that format can lie in strips: all that have panels can, but not Q6_K.
pub fn has(dtype: DType) -> bool {
    kind_of(dtype).is_some()
}

fn kind_of(dtype: DType) -> Option<Kind> {
    Kind::of(dtype).filter(|&kind| kind != Kind::Q6K)
}

/// Bytes before the codes of a block: f16 scales, or a scale and a minimum of 8 bits.
pub(super) const fn header(width: usize) -> usize {
    2 * width
}

/// Bytes of an input's codes.
pub(super) const fn row_bytes(kind: Kind, width: usize) -> usize {
    match kind {
        Kind::Q8 => width,
        Kind::Q4 | Kind::Q4K => width / 2,
        Kind::Q6K => panic!("{}", NO_STRIPS),
    }
}

fn block_at(kind: Kind, width: usize, b: usize) -> usize {
    let bytes = header(width) + BLOCK * row_bytes(kind, width);
    match kind {
        Kind::Q8 | Kind::Q4 => b * bytes,
        // 16-bit `d` and `dmin` of every output before each eight blocks.
        Kind::Q4K => (b / 8 + 1) * 4 * width + b * bytes,
        Kind::Q6K => panic!("{}", NO_STRIPS),
    }
}

/// The width of strips: as few as can be, of the same width.
pub fn width_for(outputs: usize) -> usize {
    let units = outputs.div_ceil(UNIT).max(1);
    let strips = units.div_ceil(WIDEST / UNIT);
    UNIT * units.div_ceil(strips)
}

/// Bytes of `[outputs, inputs]` in strips of `width` outputs; `None` for formats that have none, rows that are no whole
/// blocks, widths that strips do not have, and on overflow.
pub fn bytes_for(dtype: DType, outputs: usize, inputs: usize, width: usize) -> Option<usize> {
    let kind = kind_of(dtype)?;
    dtype.bytes_for(inputs)?;
    if width == 0 || width > WIDEST || !width.is_multiple_of(UNIT) {
        return None;
    }
    // No block is larger than 64 bytes an output.
    (inputs / BLOCK + 1).checked_mul(64 * width)?;
    outputs.div_ceil(width).checked_mul(block_at(kind, width, inputs / BLOCK))
}

impl Sparse {
    /// Repacks rows `[o, i]` of `dtype`, on all threads. `None` for formats that have no strips.
    ///
    /// # Panics
    /// When the bytes are not as many as the shape asks for.
    pub fn pack(
        pool: &Pool,
        dtype: DType,
        rows: &[u8],
        outputs: usize,
        inputs: usize,
        scale: f32,
    ) -> Option<Self> {
        let width = width_for(outputs);
        Self::pack_in(width, pool, dtype, rows, outputs, inputs, scale)
    }

    /// The same in strips of `width` outputs, whole units of 128 and at most 2048.
    ///
    /// # Panics
    /// As [`Sparse::pack`].
    pub fn pack_in(
        width: usize,
        pool: &Pool,
        dtype: DType,
        rows: &[u8],
        outputs: usize,
        inputs: usize,
        scale: f32,
    ) -> Option<Self> {
        let kind = kind_of(dtype)?;
        let per_row = dtype.bytes_for(inputs)?;
        assert_eq!(rows.len(), per_row * outputs);
        let strips = outputs.div_ceil(width);
        let blocks = inputs / BLOCK;
        let strip_bytes = block_at(kind, width, blocks);
        let mut data = Buffer::new(strips * strip_bytes);
        if strip_bytes > 0 {
            pool.split(&mut data.bytes_mut()[..strips * strip_bytes], strip_bytes, 1, |n, strip| {
                let rows = rows.chunks_exact(per_row).skip(n * width).take(width);
                rows.enumerate().for_each(|(o, row)| pack_row(kind, row, strip, width, o));
            });
        }
        let data = Arc::new(Store::own(data));
        Some(Sparse { kind, outputs, inputs, scale, width, strip_bytes, data })
    }

    /// What [`Sparse::pack_in`] makes of rows of `dtype`, made before. `None` when the bytes are not as many as
    /// [`bytes_for`] says, or more.
    pub fn packed(
        dtype: DType,
        data: Arc<Store>,
        outputs: usize,
        inputs: usize,
        scale: f32,
        width: usize,
    ) -> Option<Self> {
        let kind = kind_of(dtype)?;
        let fits = bytes_for(dtype, outputs, inputs, width)? <= data.bytes().len();
        let strip_bytes = block_at(kind, width, inputs / BLOCK);
        fits.then_some(Sparse { kind, outputs, inputs, scale, width, strip_bytes, data })
    }

    /// Where the strips lie.
    pub fn store(&self) -> &Arc<Store> {
        &self.data
    }

    /// Outputs of a strip.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows of blocks that were packed, without the scale.
    pub fn unpack(&self) -> Vec<u8> {
        let row_bytes = self.kind.dtype().bytes_for(self.inputs).expect("whole blocks");
        let mut rows = vec![0; row_bytes * self.outputs];
        if row_bytes > 0 {
            for (o, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
                unpack_row(self.strip(o / self.width), o % self.width, row);
            }
        }
        rows
    }

    /// o
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// i
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes that a product with no zeros reads.
    pub fn bytes(&self) -> usize {
        self.outputs.div_ceil(self.width) * self.strip_bytes
    }

    /// Blocks of activations that a product takes.
    pub fn blocks(&self) -> usize {
        self.inputs / BLOCK
    }

    fn strip(&self, n: usize) -> StripOf<'_> {
        let data = &self.data.bytes()[n * self.strip_bytes..(n + 1) * self.strip_bytes];
        StripOf { kind: self.kind, width: self.width, blocks: self.inputs / BLOCK, data }
    }
}

/// Byte of output `o` (of 64) in a row.
const fn place(o: usize) -> usize {
    16 * (o % 16 / 4) + 4 * (o / 16) + o % 4
}

/// Writes one output's row of blocks into a strip (zero before).
fn pack_row(kind: Kind, row: &[u8], strip: &mut [u8], width: usize, o: usize) {
    let dtype = kind.dtype();
    let blocks_of = dtype.block_len() / BLOCK;
    for (n, bytes) in row.chunks_exact(dtype.block_bytes()).enumerate() {
        if kind == Kind::Q4K {
            let at = block_at(kind, width, 8 * n) - 4 * width;
            strip[at + 2 * o..][..2].copy_from_slice(&bytes[..2]);
            strip[at + 2 * width + 2 * o..][..2].copy_from_slice(&bytes[2..4]);
        }
        for b in 0..blocks_of {
            let at = block_at(kind, width, n * blocks_of + b);
            match kind {
                Kind::Q8 | Kind::Q4 => strip[at + 2 * o..][..2].copy_from_slice(&bytes[..2]),
                Kind::Q4K => {
                    (strip[at + o], strip[at + width + o]) = super::pack::scale_min(&bytes[4..16], b);
                }
                Kind::Q6K => unreachable!("{NO_STRIPS}"),
            }
            let codes = &mut strip[at + header(width)..];
            for k in 0..BLOCK {
                let code = match kind {
                    Kind::Q8 => bytes[2 + k] ^ 0x80,
                    Kind::Q4 => bytes[2 + k % 16] >> (k / 16 * 4) & 15,
                    Kind::Q4K => bytes[16 + b / 2 * BLOCK + k] >> (b % 2 * 4) & 15,
                    Kind::Q6K => unreachable!("{NO_STRIPS}"),
                };
                let row = &mut codes[k * row_bytes(kind, width)..];
                match kind {
                    Kind::Q8 => row[o / 64 * 64 + place(o % 64)] = code,
                    _ => row[o / UNIT * 64 + place(o % 64)] |= code << (o / 64 % 2 * 4),
                }
            }
        }
    }
}

/// One output of a strip as the row of blocks that [`pack_row`] took.
fn unpack_row(strip: StripOf<'_>, o: usize, row: &mut [u8]) {
    let StripOf { kind, width, data, .. } = strip;
    let dtype = kind.dtype();
    let blocks_of = dtype.block_len() / BLOCK;
    for (n, bytes) in row.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        if kind == Kind::Q4K {
            let at = block_at(kind, width, 8 * n) - 4 * width;
            bytes[..2].copy_from_slice(&data[at + 2 * o..][..2]);
            bytes[2..4].copy_from_slice(&data[at + 2 * width + 2 * o..][..2]);
            let pair = |b: usize| {
                let at = block_at(kind, width, 8 * n + b);
                (data[at + o], data[at + width + o])
            };
            bytes[4..16].copy_from_slice(&super::pack::pack_scale_min(std::array::from_fn(pair)));
        }
        for b in 0..blocks_of {
            let at = block_at(kind, width, n * blocks_of + b);
            if kind != Kind::Q4K {
                bytes[..2].copy_from_slice(&data[at + 2 * o..][..2]);
            }
            let codes = &data[at + header(width)..];
            for k in 0..BLOCK {
                let row = &codes[k * row_bytes(kind, width)..];
                let four = || row[o / UNIT * 64 + place(o % 64)] >> (o / 64 % 2 * 4) & 15;
                match kind {
                    Kind::Q8 => bytes[2 + k] = row[o / 64 * 64 + place(o % 64)] ^ 0x80,
                    Kind::Q4 => bytes[2 + k % 16] |= four() << (k / 16 * 4),
                    Kind::Q4K => bytes[16 + b / 2 * BLOCK + k] |= four() << (b % 2 * 4),
                    Kind::Q6K => unreachable!("{NO_STRIPS}"),
                }
            }
        }
    }
}

/// y = x Wᵀ; as [`super::linear`].
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear(isa: Isa, pool: &Pool, y: &mut [f32], x: &[f32], w: &Sparse, a: &mut Activations) {
    if crate::linear::tokens(y, x, w.outputs, w.inputs).is_some() {
        pool.run_all(&[a.of(isa, x, w.inputs, w.blocks())]);
        pool.run_all(&[product(isa, pool.threads(), y, w, a, Then::Nothing)]);
    }
}

/// [`linear`] as work to be done by so many threads, and what follows it, with activations quantised to
/// [`Sparse::blocks`] blocks; `None` when there is nothing to multiply.
///
/// # Panics
/// As [`linear`].
pub fn product<'a>(
    isa: Isa,
    threads: usize,
    y: &'a mut [f32],
    w: &'a Sparse,
    a: &'a Activations,
    then: Then<'a, f32>,
) -> Option<Product<'a>> {
    if w.outputs == 0 || w.inputs == 0 {
        y.fill(0.0);
        then.finish(y, 0);
        return None;
    }
    let tokens = y.len() / w.outputs;
    assert!(a.is_for(tokens, w.blocks()) && y.len() == tokens * w.outputs, "strips: activations");
    // A thread has all its outputs at once, so that it reads long runs.
    let units = w.width / UNIT;
    let parts = match isa.level() {
        Level::Scalar => 1,
        _ => (threads * w.width).div_ceil(w.outputs.next_multiple_of(w.width)).clamp(1, units),
    };
    let part = units.div_ceil(parts) * UNIT;
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let span = many::span(isa, w.kind, w.outputs, threads);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let span = 0;
    Some(Product { isa, w, a, tokens, part, span, y: Out::new(y, w.outputs, then) })
}

/// A product with strips: a chunk is part of a strip with a group of tokens; with many tokens, with all.
pub struct Product<'a> {
    isa: Isa,
    w: &'a Sparse,
    a: &'a Activations,
    tokens: usize,
    /// Outputs of a chunk where zeros are looked for.
    part: usize,
    /// Outputs of a chunk with many tokens, on instruction sets with loops for them.
    span: usize,
    y: Out<'a, f32>,
}

impl Product<'_> {
    /// Calls that make a strip with all tokens at once; `None` where zeros are looked for.
    fn calls(&self) -> Option<usize> {
        if self.a.tiled(self.isa).is_some() {
            return Some(tiled_strips::calls(self.w.kind, self.w.width));
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if self.tokens > FEW && self.isa.level() != Level::Scalar {
            return Some(many::calls(self.w.width, self.span));
        }
        None
    }

    /// Stores sums of `token` from output `output` on.
    fn put(&self, token: usize, output: usize, sums: &[f32]) {
        let (o, output) = (self.w.outputs, output.min(self.w.outputs));
        // SAFETY: each chunk has outputs and tokens of its own.
        unsafe { self.y.put(token, output, &sums[..sums.len().min(o - output)], self.w.scale) }
    }
}

impl Work for Product<'_> {
    fn chunks(&self) -> usize {
        let strips = self.w.outputs.div_ceil(self.w.width);
        let parts = || self.w.width.div_ceil(self.part) * self.tokens.div_ceil(super::GROUP);
        strips * self.calls().unwrap_or_else(parts)
    }

    unsafe fn chunk(&self, n: usize) {
        let w = self.w;
        if let (Some(calls), Some((tokens, x))) = (self.calls(), self.a.tiled(self.isa)) {
            let (strip, n) = (n / calls, n % calls);
            return tiled_strips::run(self.isa, w.strip(strip), n, x, tokens, &mut |token, output, sums| {
                self.put(token, strip * w.width + output, sums);
            });
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(calls) = self.calls() {
            let (strip, n) = (n / calls, n % calls);
            return many::run(
                self.isa,
                w.strip(strip),
                (n, self.span),
                self.a,
                &mut |token, output, sums| {
                    self.put(token, strip * w.width + output, sums);
                },
            );
        }
        let (strips, parts) = (w.outputs.div_ceil(w.width), w.width.div_ceil(self.part));
        let (strip, part, group) = (n / parts % strips, n % parts, self.a.group(n / parts / strips));
        let outputs = part * self.part..w.width.min((part + 1) * self.part);
        let first = strip * w.width + outputs.start;
        run(self.isa, w.strip(strip), outputs, group, &mut |token, sums| {
            self.put(group.first + token, first, sums);
        });
    }
}

/// Sums of outputs `part` of a strip (all of them by scalar loops) with each token of a group, given to
/// `put(token, sums)`.
fn run(isa: Isa, w: StripOf<'_>, part: Range<usize>, x: Group<'_>, put: &mut dyn FnMut(usize, &[f32])) {
    match isa.level() {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        level if level != Level::Scalar => super::sparse_wide::run(isa, w, part, x, put),
        _ => {
            assert!(part == (0..w.width), "scalar loops compute whole strips");
            let mut sums = vec![0f32; w.width];
            for token in 0..x.width {
                portable(w, x, token, &mut sums);
                put(token, &sums);
            }
        }
    }
}

/// The meaning: all outputs of a strip with one token.
fn portable(w: StripOf<'_>, x: Group<'_>, token: usize, sums: &mut [f32]) {
    let half = |at: usize| {
        let mut number = [0f32];
        block::decode(DType::F16, &w.data[at..at + 2], &mut number);
        number[0]
    };
    sums.fill(0.0);
    for b in 0..w.blocks {
        let (at, place_of) = (w.block(b), b * x.width + token);
        let (x_scale, x_sum) = (x.scales[place_of], x.sums[place_of]);
        for (o, sum) in sums.iter_mut().enumerate() {
            let mut dot = 0;
            for k in 0..BLOCK {
                let row = &w.data[at + header(w.width) + k * row_bytes(w.kind, w.width)..];
                let code = match w.kind {
                    Kind::Q8 => i32::from(row[o / 64 * 64 + place(o % 64)]) - 128,
                    _ => i32::from(row[o / UNIT * 64 + place(o % 64)] >> (o / 64 % 2 * 4) & 15),
                };
                let code = if w.kind == Kind::Q4 { code - 8 } else { code };
                dot += code * i32::from(x.quads[(b * 8 + k / 4) * x.width + token][k % 4]);
            }
            if w.kind == Kind::Q4K {
                let d = block_at(w.kind, w.width, b / 8 * 8) - 4 * w.width + 2 * o;
                let scale = half(d) * f32::from(w.data[at + o]);
                let min = half(d + 2 * w.width) * f32::from(w.data[at + w.width + o]);
                *sum = (dot as f32).mul_add(scale * x_scale, *sum);
                *sum = (-min).mul_add(x_scale * x_sum as f32, *sum);
            } else {
                *sum = (dot as f32).mul_add(half(at + 2 * o) * x_scale, *sum);
            }
        }
    }
}
