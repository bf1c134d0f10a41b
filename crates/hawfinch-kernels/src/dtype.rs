//! Number formats a weight may be stored in, with their sizes. Conversions live in [`crate::block`].

use std::fmt;

/// How the numbers of a tensor are stored.
///
/// Plain types hold one number an element. Block types (ggml's) hold a whole block of consecutive
/// numbers of one row in a few bytes; a row is always a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
#[allow(missing_docs)] // the variants are the formats' own names
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl DType {
    /// Numbers in one block: 1 for plain types, 32 or 256 for block types.
    pub const fn block_len(self) -> usize {
        use DType::*;
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
            _ => 1,
        }
    }

    /// Bytes of one block (of one number, for plain types).
    pub const fn block_bytes(self) -> usize {
        use DType::*;
        match self {
            F64 | I64 => 8,
            F32 | I32 => 4,
            F16 | BF16 | I16 => 2,
            I8 | U8 | Bool => 1,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_NL => 18,
            IQ4_XS => 136,
        }
    }

    /// Bytes that `n` consecutive numbers of one row take, or `None` when `n` is not a whole number of
    /// blocks or the product overflows.
    pub const fn bytes_for(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }

    /// True for the floating-point types, one number an element.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// True for block-quantised types.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Mean bits a number.
    pub fn bits(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }

    /// The usual lower-case or ggml name, as printed and as accepted by [`DType::from_name`].
    pub const fn name(self) -> &'static str {
        use DType::*;
        match self {
            F64 => "f64",
            F32 => "f32",
            F16 => "f16",
            BF16 => "bf16",
            I64 => "i64",
            I32 => "i32",
            I16 => "i16",
            I8 => "i8",
            U8 => "u8",
            Bool => "bool",
            Q4_0 => "q4_0",
            Q4_1 => "q4_1",
            Q5_0 => "q5_0",
            Q5_1 => "q5_1",
            Q8_0 => "q8_0",
            Q2_K => "q2_k",
            Q3_K => "q3_k",
            Q4_K => "q4_k",
            Q5_K => "q5_k",
            Q6_K => "q6_k",
            IQ4_NL => "iq4_nl",
            IQ4_XS => "iq4_xs",
        }
    }

    /// Every type, in the order of the enum.
    pub const ALL: [DType; 22] = {
        use DType::*;
        [
            F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K,
            Q5_K, Q6_K, IQ4_NL, IQ4_XS,
        ]
    };

    /// The type of that name, whatever its letter case.
    pub fn from_name(name: &str) -> Option<DType> {
        Self::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_sizes_are_whole() {
        for d in DType::ALL {
            assert_eq!(DType::from_name(d.name()), Some(d));
            assert_eq!(d.bytes_for(256), Some(256 / d.block_len() * d.block_bytes()));
        }
        assert_eq!(DType::Q4_K.bytes_for(100), None);
        assert_eq!(DType::F64.bytes_for(usize::MAX), None);
    }
}
