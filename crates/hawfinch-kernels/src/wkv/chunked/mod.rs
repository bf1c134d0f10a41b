//! WKV a chunk of tokens at a time, in matrix form: the recurrences of v5, v6 and v7 as small dense products.
//!
//! The signatures are those of the recurrences with the length of a chunk before them. Any number of tokens will do, the
//! last chunk is as short as it comes, and working memory depends on the chunk alone, not on the text. One file says what
//! tokens are to each other (`pairs.rs`, which also says why nothing overflows, whatever the decays are), one multiplies
//! (`product.rs`), one file a version puts them together. v5 with one decay a head is v5 with as many equal ones. v4 is
//! not here: it is a weighted mean of each channel on its own, without a product to make of it, and its parallel form
//! (pairs of numerator, denominator and exponent, combined as a tree) takes more exponentials a token, not fewer.
//!
//! # Which form to use
//!
//! Token by token, [`wkv5`](super::wkv5), [`wkv6`](super::wkv6), [`wkv7`](super::wkv7): what the model does. Measured
//! over 4,096 tokens by `examples/wkv.rs`, a head of 64 channels, one thread of a Zen 4 with AVX-512, nanoseconds a token:
//!
//! | | token by token | chunks of 8 | of 16 | of 64 |
//! | --- | --- | --- | --- | --- |
//! | v5 | 227 | 306 | 319 | 387 |
//! | v6 | 283 | 346 | 356 | 433 |
//! | v7 | 427 | 746 | 773 | 1031 |
//!
//! A processor has no units that favour matrices in f32, so what counts is how many multiply-adds there are. For a state
//! of n² numbers the recurrence takes 3 n² a token in v5 and v6 and 5 n² in v7: 208 and 347 ns at the peak of this
//! machine, of which it reaches nine tenths (v6 and v7 spend some 45 ns on exponentials). Chunks take 2 n² and 4 n²
//! beside the state, and what tokens are to each other on top, in short sums. Rounding the factors to bf16, as units for
//! tiles of matrices want them, moves outputs by 2e-2 of their root mean square (f32: 2e-6 in either form), and WKV is
//! but 3 to 4% of a prompt's time (1.5 B parameters in int8, 2,048 tokens).
//!
//! And chunks give up a promise. The recurrence gives the same bits however a text is divided over calls. Chunks begin
//! where a call begins: divided elsewhere than between chunks, the same text gives results that differ in the last places
//! (tests say by how much). A value that is not finite also spoils the outputs of up to three tokens before its own.
//! They are here for work that needs all tokens of a piece at once, as training does.

mod matrix;
mod pairs;
pub(crate) mod product;
#[cfg(target_arch = "x86_64")]
mod product_x86;
#[cfg(test)]
mod tests;
mod v7;

pub use matrix::{wkv5, wkv6};
pub use v7::wkv7;
