//! Instruction sets, chosen at run time. Every kernel takes an [`Isa`]: having the value is the proof that
//! the machine has the instructions. `HAWFINCH_ISA` forces one.
//!
//! All of them compute the same bits: integer sums are exact, floating-point sums have one order, written
//! down by the scalar version, and every multiply-add is fused everywhere. (But products of [`crate::bf16`] by tiles, or with
//! numbers below 2^-126, and those of [`crate::gemm`] in bf16, which training uses.)

use std::fmt;
use std::sync::OnceLock;

/// A family of instructions that kernels are written or compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target guarantees; the meaning of every operation.
    Scalar,
    /// Arm NEON: every 64-bit Arm processor.
    Neon,
    /// NEON with the dot product of bytes (`dotprod`: Cortex-A76, Neoverse N1, Apple A13 and later).
    NeonDotprod,
    /// The same with products of matrices of bytes (`i8mm`: Cortex-A710, Neoverse V1, Apple M2 and later).
    NeonI8mm,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later).
    Avx512,
    /// AVX-512 and AMX tiles of 8 bits and bf16 (Sapphire Rapids and later), on Linux.
    Amx,
}

impl Level {
    /// Every level, slowest first.
    pub const ALL: [Level; 7] = [
        Level::Scalar,
        Level::Neon,
        Level::NeonDotprod,
        Level::NeonI8mm,
        Level::Avx2,
        Level::Avx512,
        Level::Amx,
    ];

    /// As in `HAWFINCH_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::NeonDotprod => "neon-dotprod",
            Level::NeonI8mm => "neon-i8mm",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
        }
    }

    fn is_present(self) -> bool {
        match self {
            Level::Scalar => true,
            Level::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm => {
                Level::NeonDotprod.is_present() && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            #[cfg(not(target_arch = "aarch64"))]
            Level::NeonDotprod | Level::NeonI8mm => false,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                use std::arch::is_x86_feature_detected as has;
                has!("avx2") && has!("fma") && has!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                use std::arch::is_x86_feature_detected as has;
                Level::Avx2.is_present()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Level::Avx512.is_present() && crate::tiles::amx::is_present(),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 | Level::Amx => false,
        }
    }
}

/// Whether AMD made this processor.
pub(crate) fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        static AMD: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            let vendor = __cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
        });
        *AMD
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// What multiplies tiles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TileCode {
    Absent,
    Machine,
    Emulated,
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    /// That of the loops without tiles.
    level: Level,
    tiles: TileCode,
}

impl Isa {
    /// The proof that the machine has `level`, or `None`.
    pub fn new(level: Level) -> Option<Isa> {
        let (loops, tiles) = match level {
            Level::Amx => (Level::Avx512, TileCode::Machine),
            _ => (level, TileCode::Absent),
        };
        level.is_present().then_some(Isa { level: loops, tiles })
    }

    /// The one every machine has.
    pub const SCALAR: Isa = Isa { level: Level::Scalar, tiles: TileCode::Absent };

    /// Which loops run. AMX has those of AVX-512; its tiles are for products alone.
    pub const fn level(self) -> Level {
        self.level
    }

    /// What multiplies tiles, if anything does.
    pub(crate) const fn tiles(self) -> TileCode {
        self.tiles
    }

    /// Whether there are tiles.
    pub const fn has_tiles(self) -> bool {
        !matches!(self.tiles, TileCode::Absent)
    }

    /// Whether there are instructions for pairs of bf16 in registers of AVX-512.
    pub(crate) fn has_pairs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.level() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether they multiply faster than those for numbers: Intel's processors take as long for one as for two of those.
    pub(crate) fn prefers_pairs(self) -> bool {
        self.has_pairs() && is_amd()
    }

    /// This one with portable code in place of AMX's tiles. For tests: the loops around tiles run on every machine.
    pub const fn with_emulated_tiles(self) -> Isa {
        Isa { tiles: TileCode::Emulated, ..self }
    }

    /// As in `HAWFINCH_ISA`.
    pub const fn name(self) -> &'static str {
        match self.tiles {
            TileCode::Absent => self.level.name(),
            TileCode::Machine => Level::Amx.name(),
            TileCode::Emulated => "emulated tiles",
        }
    }

    /// All that this machine has, slowest first.
    pub fn available() -> Vec<Isa> {
        Level::ALL.into_iter().filter_map(Isa::new).collect()
    }

    /// The fastest of this machine.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Isa::available().last().unwrap_or(&Isa::SCALAR))
    }

    /// The one that `HAWFINCH_ISA` names, else the fastest.
    ///
    /// # Errors
    /// One sentence: an unknown name, or a set that this machine lacks.
    pub fn chosen() -> Result<Isa, String> {
        match std::env::var("HAWFINCH_ISA") {
            Ok(name) if !name.is_empty() => Isa::from_name(&name),
            _ => Ok(Isa::best()),
        }
    }

    /// By name, whatever its letter case.
    ///
    /// # Errors
    /// One sentence: an unknown name, or a set that this machine lacks.
    pub fn from_name(name: &str) -> Result<Isa, String> {
        let here = Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
        let Some(level) = Level::ALL.into_iter().find(|l| l.name().eq_ignore_ascii_case(name)) else {
            let known = Level::ALL.map(Level::name).join(", ");
            return Err(format!(
                "`{name}` is no instruction set hawfinch knows ({known}); this machine has {here}"
            ));
        };
        Isa::new(level)
            .ok_or_else(|| format!("this machine lacks the instruction set `{name}`; it has {here}"))
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Defines a function that takes an [`Isa`] first and runs `$body`, an `#[inline(always)]` function of the
/// other arguments, compiled for that instruction set.
macro_rules! compiled_for_each {
    ($(#[$meta:meta])* $vis:vis fn $name:ident$(<$($g:ident: $b:path),+>)?($($arg:ident: $ty:ty),* $(,)?) = $body:expr) => {
        $(#[$meta])*
        $vis fn $name$(<$($g: $b),+>)?(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2$(<$($g: $b),+>)?($($arg: $ty),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512$(<$($g: $b),+>)?($($arg: $ty),*) {
                    $body($($arg),*)
                }
                match isa.level() {
                    // SAFETY: an Isa exists only where the machine has the instructions.
                    $crate::isa::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}
pub(crate) use compiled_for_each;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_absent_sets_refused() {
        assert_eq!(Isa::from_name("Scalar").unwrap(), Isa::SCALAR);
        assert!(Isa::from_name("sse9").unwrap_err().contains("no instruction set"));
        let absent = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        assert!(Isa::from_name(absent).unwrap_err().contains("lacks"));
        assert!(Isa::available().contains(&Isa::best()));
    }
}
