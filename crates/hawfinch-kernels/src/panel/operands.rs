//! What products with panels read, checked once, for loops that then use pointers.

use super::{Group, Kind, QUAD, ROWS, STRIP, Strip};

/// How far ahead of the loads all streams together are fetched, in bytes: into the second cache, which has room for more
/// lines under way than the first. (1024 each of four streams and 4096 of one were the fastest of 512 to 8192, in memory
/// that gave 35 and in memory that gave 57 GB/s.)
const AHEAD: usize = 4096;

/// [`Kind`] as a constant of a function.
pub const Q8: u8 = 0;
pub const Q4: u8 = 1;
pub const Q4K: u8 = 2;
pub const Q6K: u8 = 3;

/// The kind it stands for.
pub const fn kind_of(kind: u8) -> Kind {
    match kind {
        Q8 => Kind::Q8,
        Q4 => Kind::Q4,
        Q4K => Kind::Q4K,
        _ => Kind::Q6K,
    }
}

/// What a function reads: panels of a strip from the one at `data` on, and a group's tokens from `token` on.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub data: *const u8,
    /// Bytes of a panel.
    pub bytes: usize,
    pub records: usize,
    pub x: Group<'a>,
    pub token: usize,
}

impl<'a> Operands<'a> {
    pub fn new(w: Strip<'a>, first: usize, panels: usize, x: Group<'a>, token: usize) -> Self {
        let bytes = w.kind.record_bytes();
        let blocks = w.records * w.kind.record_blocks();
        assert!(first + panels <= w.width && w.data.len() >= w.records * w.width * bytes);
        assert!(x.quads.len() >= blocks * 8 * x.width && token < x.width);
        assert!(x.scales.len() >= blocks * x.width && x.sums.len() >= blocks * x.width);
        assert!(x.halves.len() >= 2 * blocks * x.width);
        let data = w.data.as_ptr().wrapping_add(first * w.records * bytes);
        Operands { data, bytes: w.records * bytes, records: w.records, x, token }
    }

    /// How far ahead to fetch at byte `at` of `panels` panels that are read together: near a panel's end the
    /// stream goes on that many panels further.
    #[inline(always)]
    pub fn ahead(&self, at: usize, panels: usize) -> usize {
        let ahead = if panels < STRIP { AHEAD } else { AHEAD / panels };
        if at + ahead < self.bytes { ahead } else { ahead + (panels - 1) * self.bytes }
    }

    /// Four inputs of every token from the first on.
    #[inline(always)]
    pub fn quads(&self, quad: usize) -> *const [i8; QUAD] {
        self.x.quads.as_ptr().wrapping_add(quad * self.x.width + self.token)
    }

    /// Four inputs of token `t`.
    ///
    /// # Safety
    /// `quad` and `t` are within the group.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub unsafe fn quad(&self, quad: usize, t: usize) -> i32 {
        let at = quad * self.x.width + self.token + t;
        // SAFETY: the caller's promise.
        unsafe { self.x.quads.as_ptr().add(at).cast::<i32>().read_unaligned() }
    }

    /// Scale and sum of a block of token `t`.
    ///
    /// # Safety
    /// As [`Operands::quad`].
    #[inline(always)]
    pub unsafe fn block(&self, block: usize, t: usize) -> (f32, i32) {
        let at = block * self.x.width + self.token + t;
        // SAFETY: the caller's promise.
        unsafe { (*self.x.scales.get_unchecked(at), *self.x.sums.get_unchecked(at)) }
    }

    /// What the sum of half a block of token `t` begins with for Q6_K.
    ///
    /// # Safety
    /// As [`Operands::quad`]; half `n` is one of block `n / 2`.
    #[inline(always)]
    pub unsafe fn half(&self, n: usize, t: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { *self.x.halves.get_unchecked(n * self.x.width + self.token + t) }
    }
}

/// The sum of a block's products that stands for zero when codes are stored with an offset: `-offset Σ x`. (Q6_K:
/// [`Group::halves`].)
#[inline(always)]
pub const fn offset(kind: u8) -> i32 {
    match kind {
        Q8 => -128,
        Q4 => -8,
        _ => 0,
    }
}

/// Where sums go: `put(panel, token, sums)`.
pub type Put<'a> = &'a mut dyn FnMut(usize, usize, &[f32; ROWS]);

macro_rules! by_kind {
    ($w:expr, $run:ident, $($arg:expr),*) => {
        match $w.kind {
            Kind::Q8 => $run::<Q8>($w, $($arg),*),
            Kind::Q4 => $run::<Q4>($w, $($arg),*),
            Kind::Q4K => $run::<Q4K>($w, $($arg),*),
            Kind::Q6K => $run::<Q6K>($w, $($arg),*),
        }
    };
}
pub(super) use by_kind;

/// Calls the macro `$run` with the name of the loops for an instruction set that has some.
macro_rules! by_width {
    ($isa:expr, $run:ident) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 => $run!(avx512),
            #[cfg(target_arch = "x86_64")]
            _ => $run!(avx2),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::NeonI8mm => $run!(mixed),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::NeonDotprod => $run!(dotprod),
            #[cfg(target_arch = "aarch64")]
            _ => $run!(plain),
        }
    };
}
pub(super) use by_width;

/// Hands over the sums of P panels with T tokens.
pub fn give<const P: usize, const T: usize>(
    panel: usize,
    token: usize,
    sums: &[[[f32; ROWS]; T]; P],
    put: Put<'_>,
) {
    for (p, sums) in sums.iter().enumerate() {
        for (t, sums) in sums.iter().enumerate() {
            put(panel + p, token + t, sums);
        }
    }
}
