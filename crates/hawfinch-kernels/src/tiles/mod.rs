//! Products of tiles: sixteen rows by sixteen columns, as Intel's AMX computes them.
//!
//! What multiplies is a [`Tiles`]: the machine's instructions (`amx.rs`), or portable code that follows Intel's
//! description of them (`emulated.rs`), with which every loop around the tiles is tested on every machine. Tiles of
//! 8 bits are exact sums. Those of bf16 have an arithmetic of their own, written down in `emulated.rs`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod emulated;
mod product;
#[cfg(test)]
mod tests;

pub use product::{Runs, bf16, int8};

use crate::isa::TileCode;
use crate::{Isa, panel::BLOCK};

/// Rows of a tile, and its columns of 32 bits.
pub const SIDE: usize = 16;
/// Blocks that one [`Tiles::blocks`] multiplies.
pub const STEP: usize = 4;

/// A row of 32 signed bytes.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub struct Row(pub [i8; BLOCK]);

/// Signed bytes of sixteen tokens and one block: `[token, input]`.
pub type TokenCodes = [Row; SIDE];
/// Signed bytes of sixteen outputs and one block: `[quad of inputs, output, input of the quad]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct OutputCodes(pub [[[i8; 4]; SIDE]; BLOCK / 4]);
/// Integer sums: `[token, output]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Sums(pub [[i32; SIDE]; SIDE]);
/// Sums of f32: `[token, output]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Totals(pub [[f32; SIDE]; SIDE]);
/// 64 bytes of each of sixteen rows: 64 signed bytes, or 32 bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[u8; 64]; SIDE]);

/// Two tiles, wherever they lie: `[row, tile]`.
pub type Beside = [[[u8; 64]; 2]; SIDE];

impl Tile {
    /// Nothing but zeros.
    pub const ZERO: Tile = Tile([[0; 64]; SIDE]);
}

/// What multiplies tiles. A value is the proof that the thread may.
pub trait Tiles {
    /// Of [`STEP`] blocks each: `sums[token, output] = Σ x w` over the block's 32 inputs.
    fn blocks(&self, sums: &mut [Sums; STEP], x: &[TokenCodes; STEP], w: &[OutputCodes; STEP]);

    /// Of 32 tokens and 32 outputs: `totals[half of the tokens][half of the outputs] += Σ x w` over all inputs.
    ///
    /// * `x`: two runs of tiles `[token, input]`, as many each
    /// * `w`: two runs of tiles `[input, output]`, in which the numbers of an output that make 32 bits lie together;
    ///   each tile is multiplied with `parts` (at least one) tiles of the tokens, one after the other
    fn bf16(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2], parts: usize);

    /// The same with one part, where the rows of both runs of outputs lie beside each other.
    fn bf16_beside(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: &[Beside]);

    /// The same with signed bytes, exact (modulo 2^32).
    fn int8(&self, sums: &mut [[Sums; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2]);
}

/// Calls `run` with what multiplies tiles of this instruction set. False when it has none.
pub(crate) fn with(isa: Isa, run: impl Using) -> bool {
    match isa.tiles() {
        #[cfg(target_arch = "x86_64")]
        TileCode::Machine => run.using(&amx::Configured::new(isa)),
        TileCode::Emulated => run.using(&emulated::Emulated),
        _ => return false,
    }
    true
}

/// Work that needs tiles.
pub(crate) trait Using {
    /// Does it.
    fn using<T: Tiles>(self, tiles: &T);
}
