//! Matrix products with quantised weights, repacked for the kernels: `y = W x` in integers within a block of 32
//! inputs, in f32 across blocks.
//!
//! Sixteen outputs are a panel. A panel runs over the inputs record by record; in a block the bytes of four inputs of
//! every output lie together, so that one instruction multiplies sixteen outputs by the same four activations and
//! nothing is ever added across a register. Panels lie one after the other; four at a time are read, each a stream.
//!
//! The meaning (`scalar.rs`): activations are quantised to 8 bits per block of 32 ([`Activations`]), products are
//! summed exactly in integers, and for every block in order
//! `sum = fma(Σ q x, w_scale * x_scale, sum)` (for formats with a minimum also
//! `sum = fma(-w_min, x_scale * Σ x, sum)`; Q6_K, whose weights have a scale for every 16 inputs, does it for one half of
//! a block, then for the other). So a result depends neither on the other tokens nor on threads or instruction sets, to
//! the bit.

mod activations;
#[cfg(target_arch = "x86_64")]
mod block_avx2;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod many;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_rows;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod operands;
mod pack;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod six_x86;
pub mod sparse;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sparse_wide;
mod tiled;
mod tiled_strips;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, Group, Quantizing};

use std::sync::Arc;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::Level;
use crate::buffer::Buffer;
use crate::output::Out;
#[cfg(target_arch = "x86_64")]
use crate::prefetch;
use crate::{DType, Isa, Pool, Store, Then, Work};

/// Inputs that share a scale.
pub const BLOCK: usize = 32;
/// Inputs that share a scale of Q6_K: two sub-blocks make a block.
const SUB_BLOCK: usize = 16;
/// Inputs whose bytes lie together.
pub const QUAD: usize = 4;
/// Outputs of a panel.
pub const ROWS: usize = 16;
/// Tokens that kernels take at most at a time.
pub const GROUP: usize = 12;

/// What a panel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Q8_0. Per 64 inputs: 2 × 16 f16 scales, then 2 × 8 × 64 bytes `q + 128`.
    Q8,
    /// Q4_0. Per 64 inputs: 2 × 16 f16 scales, then 2 × 4 × 64 bytes, in byte 64 n + j quad n in the low and
    /// quad n + 4 in the high half.
    Q4,
    /// Q4_K. Per 256 inputs: 16 f16 `d`, 16 f16 `dmin`, 8 × (16 scales, 16 minima), then 8 × 4 × 64 bytes as Q4.
    Q4K,
    /// Q6_K. Per 256 inputs: 16 f16 `d`, 16 × 16 signed scales of 8 bits, then 16 × 3 × 64 bytes. In sub-block s, byte
    /// 64 n + j holds quad n's code in its low six bits; its high two are bits 2 n and 2 n + 1 of quad 3's code.
    Q6K,
}

impl Kind {
    /// The kind that holds a format's numbers, if one does.
    pub fn of(dtype: DType) -> Option<Kind> {
        match dtype {
            DType::Q8_0 => Some(Kind::Q8),
            DType::Q4_0 => Some(Kind::Q4),
            DType::Q4_K => Some(Kind::Q4K),
            DType::Q6_K => Some(Kind::Q6K),
            _ => None,
        }
    }

    /// The format that [`Kind::of`] is asked for.
    const fn dtype(self) -> DType {
        match self {
            Kind::Q8 => DType::Q8_0,
            Kind::Q4 => DType::Q4_0,
            Kind::Q4K => DType::Q4_K,
            Kind::Q6K => DType::Q6_K,
        }
    }

    /// Blocks of one record.
    pub const fn record_blocks(self) -> usize {
        match self {
            Kind::Q8 | Kind::Q4 => 2,
            Kind::Q4K | Kind::Q6K => 8,
        }
    }

    /// Bytes of one record.
    pub const fn record_bytes(self) -> usize {
        match self {
            Kind::Q8 => 64 + 2 * 512,
            Kind::Q4 => 64 + 2 * 256,
            Kind::Q4K => 64 + 256 + 8 * 256,
            Kind::Q6K => SIX_CODES + 16 * SIX_BYTES,
        }
    }
}

/// Bytes of a Q6_K record before its codes: 16 f16 `d`, then the scales of one sub-block after the other.
const SIX_CODES: usize = SIX_SCALES + 16 * ROWS;
/// Bytes of a Q6_K record before its scales.
const SIX_SCALES: usize = 2 * ROWS;
/// Bytes of a sub-block's codes in a Q6_K record.
const SIX_BYTES: usize = 3 * ROWS * QUAD;

/// A weight matrix in panels.
pub struct Panels {
    kind: Kind,
    outputs: usize,
    inputs: usize,
    scale: f32,
    records: usize,
    data: Arc<Store>,
}

/// Bytes of `[outputs, inputs]` in panels; `None` for formats that have none, rows that are no whole blocks, and on
/// overflow.
pub fn bytes_for(dtype: DType, outputs: usize, inputs: usize) -> Option<usize> {
    let kind = Kind::of(dtype)?;
    dtype.bytes_for(inputs)?;
    let records = inputs.div_ceil(kind.record_blocks() * BLOCK);
    outputs.div_ceil(ROWS).checked_mul(records.checked_mul(kind.record_bytes())?)
}

impl Panels {
    /// Repacks rows `[o, i]` of `dtype`, on all threads. `None` for formats that have no panels.
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
        let kind = Kind::of(dtype)?;
        let row_bytes = dtype.bytes_for(inputs)?;
        assert_eq!(rows.len(), row_bytes * outputs);
        let records = inputs.div_ceil(kind.record_blocks() * BLOCK);
        let panel_bytes = records * kind.record_bytes();
        let panels = outputs.div_ceil(ROWS);
        let mut data = Buffer::new(panels * panel_bytes);
        if panel_bytes > 0 && outputs > 0 {
            pool.split(&mut data.bytes_mut()[..panels * panel_bytes], panel_bytes, STRIP, |first, strip| {
                let mut rows = rows.chunks_exact(row_bytes).skip(first * ROWS);
                for panel in strip.chunks_exact_mut(panel_bytes) {
                    rows.by_ref().take(ROWS).enumerate().for_each(|(r, row)| pack::row(kind, row, panel, r));
                }
            });
        }
        Some(Panels { kind, outputs, inputs, scale, records, data: Arc::new(Store::own(data)) })
    }

    /// What [`Panels::pack`] makes of rows of `dtype`, made before. `None` when the bytes are not as many as
    /// [`bytes_for`] says, or more.
    pub fn packed(dtype: DType, data: Arc<Store>, outputs: usize, inputs: usize, scale: f32) -> Option<Self> {
        let kind = Kind::of(dtype)?;
        let records = inputs.div_ceil(kind.record_blocks() * BLOCK);
        let fits = bytes_for(dtype, outputs, inputs)? <= data.bytes().len();
        fits.then_some(Panels { kind, outputs, inputs, scale, records, data })
    }

    /// Where the panels lie.
    pub fn store(&self) -> &Arc<Store> {
        &self.data
    }

    /// The rows of blocks that were packed, without the scale.
    pub fn unpack(&self) -> Vec<u8> {
        let row_bytes = self.kind.dtype().bytes_for(self.inputs).expect("whole blocks");
        let mut rows = vec![0; row_bytes * self.outputs];
        if row_bytes > 0 {
            let panels = self.data.bytes().chunks_exact(self.panel_bytes());
            for (rows, panel) in rows.chunks_mut(ROWS * row_bytes).zip(panels) {
                let rows = rows.chunks_exact_mut(row_bytes).enumerate();
                rows.for_each(|(r, row)| pack::unpack_row(self.kind, panel, r, row));
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

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.outputs.div_ceil(ROWS) * self.panel_bytes()
    }

    /// Blocks of activations that a product takes: whole records.
    pub fn blocks(&self) -> usize {
        self.records * self.kind.record_blocks()
    }

    fn panel_bytes(&self) -> usize {
        self.records * self.kind.record_bytes()
    }

    /// The strip of which `first` is the first panel.
    fn strip(&self, first: usize) -> Strip<'_> {
        let width = STRIP.min(self.outputs.div_ceil(ROWS) - first);
        let data = &self.data.bytes()[first * self.panel_bytes()..][..width * self.panel_bytes()];
        Strip { kind: self.kind, records: self.records, width, data }
    }
}

/// Panels that are read together: `[panel, record]`.
#[derive(Clone, Copy)]
struct Strip<'a> {
    kind: Kind,
    records: usize,
    width: usize,
    data: &'a [u8],
}

/// Panels of a strip.
const STRIP: usize = 4;
/// Multiply-adds below which a product stays on the calling thread: about a microsecond.
const ALONE: usize = 1 << 16;

/// y = x Wᵀ.
///
/// * `y`: `[t, o]`, overwritten
/// * `x`: `[t, i]`
/// * `a`: scratch for the quantised activations
///
/// # Panics
/// When the lengths disagree with the matrix.
pub fn linear(isa: Isa, pool: &Pool, y: &mut [f32], x: &[f32], w: &Panels, a: &mut Activations) {
    if crate::linear::tokens(y, x, w.outputs, w.inputs).is_some() {
        pool.run_all(&[a.of(isa, x, w.inputs, w.blocks())]);
        pool.run_all(&[product(isa, y, w, a, Then::Nothing)]);
    }
}

/// [`linear`] as work to be done, and what follows it, with activations quantised to [`Panels::blocks`] blocks; `None` when there is
/// nothing to multiply.
///
/// # Panics
/// As [`linear`].
pub fn product<'a>(
    isa: Isa,
    y: &'a mut [f32],
    w: &'a Panels,
    a: &'a Activations,
    then: Then<'a, f32>,
) -> Option<Product<'a>> {
    if w.outputs == 0 || w.inputs == 0 {
        y.fill(0.0);
        then.finish(y, 0);
        return None;
    }
    assert!(
        a.is_for(y.len() / w.outputs, w.blocks()) && y.len().is_multiple_of(w.outputs),
        "panels: activations"
    );
    let alone = y.len() * w.inputs <= ALONE;
    Some(Product { isa, w, a, alone, y: Out::new(y, w.outputs, then) })
}

/// A product with panels: a chunk is a strip with every token.
pub struct Product<'a> {
    isa: Isa,
    w: &'a Panels,
    a: &'a Activations,
    /// All of it is one chunk.
    alone: bool,
    y: Out<'a, f32>,
}

impl Product<'_> {
    fn strips(&self) -> usize {
        self.w.outputs.div_ceil(STRIP * ROWS)
    }

    fn strip(&self, n: usize) {
        let (o, strip) = (self.w.outputs, self.w.strip(n * STRIP));
        let put = |p: usize, token: usize, sums: &[f32; ROWS]| {
            let row = (n * STRIP + p) * ROWS;
            let n = ROWS.min(o - row);
            // SAFETY: these outputs belong to this chunk alone.
            unsafe { self.y.put(token, row, &sums[..n], self.w.scale) }
        };
        if let Some((tokens, x)) = self.a.tiled(self.isa) {
            return tiled::strip(self.isa, strip, x, tokens, &mut { put });
        }
        for group in self.a.groups() {
            run(self.isa, strip, group, &mut |p, token, sums| put(p, group.first + token, sums));
        }
    }
}

impl Work for Product<'_> {
    fn chunks(&self) -> usize {
        if self.alone { 1 } else { self.strips() }
    }

    unsafe fn chunk(&self, n: usize) {
        if self.alone { (0..self.strips()).for_each(|n| self.strip(n)) } else { self.strip(n) }
    }

    fn reads(&self, n: usize) -> &[u8] {
        if self.alone { &[] } else { self.w.strip(n * STRIP).data }
    }
}

/// Sums of a strip with each token of a group, given to `put(panel, token, sums)`.
fn run(isa: Isa, strip: Strip<'_>, group: Group<'_>, put: &mut dyn FnMut(usize, usize, &[f32; ROWS])) {
    match isa.level() {
        // SAFETY: an Isa exists only where the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::avx512(strip, group, prefetch::by_name(), put) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2(strip, group, prefetch::by_name(), put) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { neon::plain(strip, group, put) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::NeonDotprod => unsafe { neon::dotprod(strip, group, put) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => unsafe { neon::i8mm(strip, group, put) },
        _ => {
            for p in 0..strip.width {
                for token in 0..group.width {
                    put(p, token, &scalar::sums(strip, p, group, token));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
