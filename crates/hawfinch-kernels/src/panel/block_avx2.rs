//! Integer sums of a block of 32 inputs on AVX2: sixteen outputs with two to four tokens.
//!
//! Sixteen registers hold eight sums, codes and inputs, and nothing more. Compilers order the loops anew and keep codes
//! on the stack, which takes a third longer for 4 bits, so the registers are given out by hand.

use std::arch::asm;
use std::arch::x86_64::*;

use super::QUAD;
use super::operands::Q8;

/// Tokens at most.
pub const MOST: usize = 4;

/// Sums of each token: of the first eight outputs, of the others. Those of tokens that were not asked for are nothing.
pub type Sums = [[__m256i; 2]; MOST];

/// Adds the products of eight outputs' four inputs with those of one token: sums of 32 bits for codes of 8 bits with an
/// offset of 128, of 16 bits, to be added in pairs, for codes of 4 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub fn add<const KIND: u8>(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    if KIND == Q8 {
        // Signed codes: at most 2 * 128 * 127 a pair, no saturation.
        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    } else {
        // Eight fours at most a block: 8 * 2 * 15 * 127 fits 16 bits.
        _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
    }
}

/// `$token` for each of so many tokens: the byte at which its inputs lie, the registers of its sums.
macro_rules! tokens {
    (2, $token:ident, $($args:tt)*) => {
        concat!($token!($($args)* "0", "0", "1"), $token!($($args)* "4", "2", "3"))
    };
    (3, $token:ident, $($args:tt)*) => {
        concat!(tokens!(2, $token, $($args)*), $token!($($args)* "8", "4", "5"))
    };
    (4, $token:ident, $($args:tt)*) => {
        concat!(tokens!(3, $token, $($args)*), $token!($($args)* "12", "6", "7"))
    };
}

/// A token's quad with codes of 4 bits in two registers: at most 8 × 2 × 15 × 127 a block, which fits 16 bits.
macro_rules! four_token {
    ($x:literal, $w:literal, $other:literal, $at:literal, $sum:literal, $other_sum:literal) => {
        concat!(
            "vpbroadcastd ymm12, dword ptr [",
            $x,
            "+",
            $at,
            "]\n",
            "vpmaddubsw ymm13, ymm",
            $w,
            ", ymm12\n",
            "vpmaddubsw ymm12, ymm",
            $other,
            ", ymm12\n",
            "vpaddw ymm",
            $sum,
            ", ymm",
            $sum,
            ", ymm13\n",
            "vpaddw ymm",
            $other_sum,
            ", ymm",
            $other_sum,
            ", ymm12\n",
        )
    };
}

/// A line of codes: sixteen outputs.
macro_rules! load_line {
    ($codes:literal) => {
        concat!("vmovdqu ymm8, [{w}+", $codes, "]\n", "vmovdqu ymm9, [{w}+", $codes, "+32]\n")
    };
}

/// A line of a panel of 4 bits: a quad in the low halves of bytes, another in the high ones.
macro_rules! four_line {
    ($tokens:tt, $codes:literal, $x:literal, $high:literal) => {
        concat!(
            load_line!($codes),
            "vpsrlw ymm10, ymm8, 4\n",
            "vpsrlw ymm11, ymm9, 4\n",
            "vpand ymm8, ymm8, ymm15\n",
            "vpand ymm9, ymm9, ymm15\n",
            "vpand ymm10, ymm10, ymm15\n",
            "vpand ymm11, ymm11, ymm15\n",
            tokens!($tokens, four_token, $x, "8", "9",),
            tokens!($tokens, four_token, $high, "10", "11",),
        )
    };
}

/// A quad of codes of 4 bits, a byte each.
macro_rules! byte_line {
    ($tokens:tt, $codes:literal, $x:literal) => {
        concat!(load_line!($codes), tokens!($tokens, four_token, $x, "8", "9",),)
    };
}

/// A token's quad with signed codes of 8 bits in registers 8 and 9, their sizes in 10 and 11: at most 2 × 128 × 127 a
/// pair, so that nothing saturates.
macro_rules! eight_token {
    ($x:literal, $at:literal, $sum:literal, $other_sum:literal) => {
        concat!(
            "vpbroadcastd ymm12, dword ptr [",
            $x,
            "+",
            $at,
            "]\n",
            "vpsignb ymm13, ymm12, ymm8\n",
            "vpsignb ymm12, ymm12, ymm9\n",
            "vpmaddubsw ymm13, ymm10, ymm13\n",
            "vpmaddubsw ymm12, ymm11, ymm12\n",
            "vpmaddwd ymm13, ymm13, ymm14\n",
            "vpmaddwd ymm12, ymm12, ymm14\n",
            "vpaddd ymm",
            $sum,
            ", ymm",
            $sum,
            ", ymm13\n",
            "vpaddd ymm",
            $other_sum,
            ", ymm",
            $other_sum,
            ", ymm12\n",
        )
    };
}

/// A quad of codes of 8 bits, stored with an offset of 128.
macro_rules! eight_line {
    ($tokens:tt, $codes:literal, $x:literal) => {
        concat!(
            "vpxor ymm8, ymm15, [{w}+",
            $codes,
            "]\n",
            "vpxor ymm9, ymm15, [{w}+",
            $codes,
            "+32]\n",
            "vpabsb ymm10, ymm8\n",
            "vpabsb ymm11, ymm9\n",
            tokens!($tokens, eight_token, $x,),
        )
    };
}

/// `$line` for each quad, `$codes` where their codes begin.
macro_rules! quads {
    ($tokens:tt, $line:ident, $c0:literal $c1:literal $c2:literal $c3:literal $c4:literal $c5:literal $c6:literal $c7:literal) => {
        concat!(
            $line!($tokens, $c0, "{x}"),
            $line!($tokens, $c1, "{x}+{s}"),
            $line!($tokens, $c2, "{x}+2*{s}"),
            $line!($tokens, $c3, "{x3}"),
            $line!($tokens, $c4, "{x}+4*{s}"),
            $line!($tokens, $c5, "{x3}+2*{s}"),
            $line!($tokens, $c6, "{x6}"),
            $line!($tokens, $c7, "{x6}+{s}"),
        )
    };
}

macro_rules! panel_fours {
    ($tokens:tt) => {
        concat!(
            four_line!($tokens, "0", "{x}", "{x}+4*{s}"),
            four_line!($tokens, "64", "{x}+{s}", "{x3}+2*{s}"),
            four_line!($tokens, "128", "{x}+2*{s}", "{x6}"),
            four_line!($tokens, "192", "{x3}", "{x6}+{s}"),
        )
    };
}

macro_rules! slot_fours {
    ($tokens:tt) => {
        quads!($tokens, byte_line, "0" "256" "512" "768" "1024" "1280" "1536" "1792")
    };
}

macro_rules! panel_eights {
    ($tokens:tt) => {
        quads!($tokens, eight_line, "0" "64" "128" "192" "256" "320" "384" "448")
    };
}

macro_rules! slot_eights {
    ($tokens:tt) => {
        quads!($tokens, eight_line, "0" "256" "512" "768" "1024" "1280" "1536" "1792")
    };
}

/// Adds up a block in registers; `$sum $t $n`: which register holds which sums.
macro_rules! add_up {
    ($text:ident!($tokens:tt), $w:ident, $x:ident, $stride:ident, $mask:literal, $sums:ident, $($sum:tt $t:tt $n:tt),*) => {
        // SAFETY: reads codes and inputs, which the caller promises; changes no registers but those it names.
        unsafe {
            asm!(
                $text!($tokens),
                w = in(reg) $w,
                x = in(reg) $x,
                x3 = in(reg) $x.wrapping_byte_add(3 * $stride),
                x6 = in(reg) $x.wrapping_byte_add(6 * $stride),
                s = in(reg) $stride,
                $(inout($sum) $sums[$t][$n],)*
                out("ymm8") _,
                out("ymm9") _,
                out("ymm10") _,
                out("ymm11") _,
                out("ymm12") _,
                out("ymm13") _,
                in("ymm14") _mm256_set1_epi16(1),
                in("ymm15") _mm256_set1_epi8($mask),
                options(pure, readonly, nostack, preserves_flags),
            )
        }
    };
}

/// The function of one way that codes lie in.
macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $text:ident, $mask:literal) => {
        $(#[$doc])*
        ///
        /// `x`: the inputs of the block's first quad, token by token; those of every other quad lie `stride` bytes
        /// after the ones before.
        ///
        /// # Safety
        /// Codes and the inputs of T tokens lie there.
        ///
        /// # Panics
        /// Unless T is 2, 3 or 4.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn $name<const T: usize>(w: *const u8, x: *const [i8; QUAD], stride: usize) -> Sums {
            let mut sums = [[_mm256_setzero_si256(); 2]; MOST];
            match T {
                2 => add_up!($text!(2), w, x, stride, $mask, sums,
                    "ymm0" 0 0, "ymm1" 0 1, "ymm2" 1 0, "ymm3" 1 1),
                3 => add_up!($text!(3), w, x, stride, $mask, sums,
                    "ymm0" 0 0, "ymm1" 0 1, "ymm2" 1 0, "ymm3" 1 1, "ymm4" 2 0, "ymm5" 2 1),
                4 => add_up!($text!(4), w, x, stride, $mask, sums,
                    "ymm0" 0 0, "ymm1" 0 1, "ymm2" 1 0, "ymm3" 1 1, "ymm4" 2 0, "ymm5" 2 1, "ymm6" 3 0, "ymm7" 3 1),
                _ => unreachable!("two to four tokens"),
            }
            sums
        }
    };
}

block!(
    /// A panel's codes of 4 bits: sums of 16 bits, to be added in pairs.
    panel_fours, panel_fours, 15
);
block!(
    /// A panel's codes of 8 bits: sums of 32 bits.
    panel_eights, panel_eights, -128
);
block!(
    /// Codes of 4 bits in bytes of their own, quads 256 bytes apart: sums of 16 bits, to be added in pairs.
    slot_fours, slot_fours, 15
);
block!(
    /// Codes of 8 bits, quads 256 bytes apart: sums of 32 bits.
    slot_eights, slot_eights, -128
);
