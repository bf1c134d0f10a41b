//! Tiles by AMX: the only code that names its instructions.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::{Beside, OutputCodes, SIDE, STEP, Sums, Tile, Tiles, TokenCodes, Totals};
use crate::Isa;
use crate::isa::TileCode;

/// Whether the machine has tiles of 8 bits and bf16 and the system lets this process use them. Asks once.
pub fn is_present() -> bool {
    static PRESENT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *PRESENT.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    /// AMX-BF16, AMX-TILE and AMX-INT8 in leaf 7.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// OSXSAVE in leaf 1.
    const XSAVE: u32 = 1 << 27;
    /// The tiles' configuration and data in the first extended control register.
    const SAVED: u32 = 1 << 17 | 1 << 18;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & XSAVE == 0 || __cpuid_count(7, 0).edx & TILES != TILES {
        return false;
    }
    let saved: u32;
    // SAFETY: XGETBV of register 0 exists where OSXSAVE is set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    saved & SAVED == SAVED
}

/// Linux saves the registers only of processes that asked.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission; no pointers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sixteen rows of 64 bytes in every tile; for blocks of 32 inputs 4 and 5 have half as many bytes a row, 6 and 7 half as
/// many rows.
const fn shape(blocks: bool) -> Shape {
    let mut shape = Shape { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let mut n = 0;
    while n < 8 {
        shape.bytes[n] = if blocks && (n == 4 || n == 5) { 32 } else { 64 };
        shape.rows[n] = if blocks && n >= 6 { 8 } else { 16 };
        n += 1;
    }
    shape
}

static WHOLE: Shape = shape(false);
static BLOCKS: Shape = shape(true);

/// A thread whose tiles are in use, until it is dropped.
pub struct Configured {
    shape: Cell<Option<&'static Shape>>,
    /// Tiles belong to the thread.
    bound: PhantomData<*const ()>,
}

impl Configured {
    /// # Panics
    /// When the instruction set has no tiles.
    pub fn new(isa: Isa) -> Self {
        assert!(isa.tiles() == TileCode::Machine);
        Configured { shape: Cell::new(None), bound: PhantomData }
    }

    /// Makes `shape` the one in use.
    #[inline(always)]
    fn need(&self, shape: &'static Shape) {
        if !self.shape.get().is_some_and(|s| std::ptr::eq(s, shape)) {
            // SAFETY: the machine has tiles (an Isa says so); the shape is 64 valid bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) shape, options(readonly, nostack, preserves_flags)) };
            self.shape.set(Some(shape));
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        if self.shape.get().is_some() {
            // SAFETY: the machine has tiles.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// Two by two sums of products of runs of tiles, held in tiles 0 .. 4: two tiles of outputs stay while each part of the tokens'
/// is multiplied with them. `$w0`, `$w1`: the first tile of outputs of each run, `$step` bytes before the next, rows `$apart`;
/// `$count` of them.
macro_rules! square {
    ($multiply:literal, $out:expr, $x:expr, [$w0:expr, $w1:expr, $step:literal, $apart:expr],
     $count:expr, $parts:expr) => {
        // SAFETY: the shape fits; the callers compared the lengths of the runs, of which all tiles are read once, in
        // order; `out` is four tiles. One block of instructions, so nothing else uses the tiles meanwhile.
        unsafe {
            asm!(
                "tileloadd tmm0, [{out} + {row}]",
                "tileloadd tmm1, [{out} + {row} + 1024]",
                "tileloadd tmm2, [{out} + {row} + 2048]",
                "tileloadd tmm3, [{out} + {row} + 3072]",
                "test {left}, {left}",
                "jz 4f",
                "2:",
                "tileloadd tmm6, [{w0} + {apart}]",
                "tileloadd tmm7, [{w1} + {apart}]",
                "mov {part}, {parts}",
                "3:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                concat!($multiply, " tmm0, tmm4, tmm6"),
                concat!($multiply, " tmm1, tmm4, tmm7"),
                concat!($multiply, " tmm2, tmm5, tmm6"),
                concat!($multiply, " tmm3, tmm5, tmm7"),
                "add {x0}, 1024",
                "add {x1}, 1024",
                "dec {part}",
                "jnz 3b",
                concat!("add {w0}, ", $step),
                concat!("add {w1}, ", $step),
                "dec {left}",
                "jnz 2b",
                "4:",
                "tilestored [{out} + {row}], tmm0",
                "tilestored [{out} + {row} + 1024], tmm1",
                "tilestored [{out} + {row} + 2048], tmm2",
                "tilestored [{out} + {row} + 3072], tmm3",
                x0 = inout(reg) $x[0].as_ptr() => _,
                x1 = inout(reg) $x[1].as_ptr() => _,
                w0 = inout(reg) $w0 => _,
                w1 = inout(reg) $w1 => _,
                left = inout(reg) $count => _,
                parts = in(reg) $parts,
                part = out(reg) _,
                out = in(reg) $out as *mut _,
                row = in(reg) 64usize,
                apart = in(reg) $apart,
                options(nostack)
            );
        }
    };
}

/// Rounds of four independent products, operands in tiles: enough to hide their latency.
macro_rules! rounds {
    ($multiply:literal, $rounds:expr) => {
        // SAFETY: whole tiles of zeros, all within this block of instructions; at least one round.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                "2:",
                concat!($multiply, " tmm0, tmm4, tmm6"),
                concat!($multiply, " tmm1, tmm4, tmm7"),
                concat!($multiply, " tmm2, tmm5, tmm6"),
                concat!($multiply, " tmm3, tmm5, tmm7"),
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) $rounds.max(1) => _,
                options(nostack)
            );
        }
    };
}

impl Configured {
    /// Multiplies `rounds` times four tiles in registers; gives the multiply-adds.
    pub fn multiply(&self, bf16: bool, rounds: usize) -> usize {
        self.need(&WHOLE);
        if bf16 {
            rounds!("tdpbf16ps", rounds);
        } else {
            rounds!("tdpbssd", rounds);
        }
        rounds * 4 * SIDE * SIDE * if bf16 { 32 } else { 64 }
    }
}

impl Tiles for Configured {
    #[inline(always)]
    fn blocks(&self, sums: &mut [Sums; STEP], x: &[TokenCodes; STEP], w: &[OutputCodes; STEP]) {
        self.need(&BLOCKS);
        // SAFETY: the shape fits: reads sixteen rows of 32 and eight of 64 bytes of each block, writes sixteen rows of
        // 64 bytes for each; what tiles hold is used within.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm4, [{x} + {half}]",
                "tileloadd tmm6, [{w} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tilezero tmm1",
                "tileloadd tmm5, [{x} + {half} + 512]",
                "tileloadd tmm7, [{w} + {row} + 512]",
                "tdpbssd tmm1, tmm5, tmm7",
                "tilezero tmm2",
                "tileloadd tmm4, [{x} + {half} + 1024]",
                "tileloadd tmm6, [{w} + {row} + 1024]",
                "tdpbssd tmm2, tmm4, tmm6",
                "tilezero tmm3",
                "tileloadd tmm5, [{x} + {half} + 1536]",
                "tileloadd tmm7, [{w} + {row} + 1536]",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                x = in(reg) x,
                w = in(reg) w,
                sums = in(reg) sums,
                half = in(reg) 32usize,
                row = in(reg) 64usize,
                options(nostack, preserves_flags)
            );
        }
    }

    fn bf16(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2], parts: usize) {
        assert!(x.iter().all(|x| x.len() == w[0].len() * parts) && w[0].len() == w[1].len());
        assert!(parts > 0);
        self.need(&WHOLE);
        square!("tdpbf16ps", totals, x, [w[0].as_ptr(), w[1].as_ptr(), "1024", 64usize], w[0].len(), parts);
    }

    fn bf16_beside(&self, totals: &mut [[Totals; 2]; 2], x: [&[Tile]; 2], w: &[Beside]) {
        assert!(x.iter().all(|x| x.len() == w.len()));
        self.need(&WHOLE);
        let first = w.as_ptr().cast::<u8>();
        let second = first.wrapping_add(64);
        square!("tdpbf16ps", totals, x, [first, second, "2048", 128usize], w.len(), 1usize);
    }

    fn int8(&self, sums: &mut [[Sums; 2]; 2], x: [&[Tile]; 2], w: [&[Tile]; 2]) {
        assert!(x.iter().chain(&w).all(|t| t.len() == w[0].len()));
        self.need(&WHOLE);
        square!("tdpbssd", sums, x, [w[0].as_ptr(), w[1].as_ptr(), "1024", 64usize], w[0].len(), 1usize);
    }
}
