//! CPU arithmetic of RWKV models: the only crate that knows an instruction set.
//!
//! Every operation has a scalar version, written first, which is its meaning, generic over
//! [`Real`] (f32 to run, f64 to check). Shapes stand beside every slice argument, in the letters
//! `t` tokens, `c` channels, `h` heads, `n` head size, `o` and `i` a matrix's outputs and inputs.
//! Nothing here knows what a model is.

pub mod adamw;
mod ahead;
pub mod attention;
pub mod bf16;
pub mod block;
pub mod buffer;
mod by_channels;
pub mod cross_entropy;
mod dtype;
pub mod elementwise;
pub mod gemm;
mod isa;
pub mod linear;
pub mod mixes;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
pub mod orthogonal;
mod output;
pub mod panel;
pub mod peak;
mod pool;
mod prefetch;
mod real;
pub mod reduce;
pub mod softmax;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_gradients;
pub mod tiles;
pub mod wkv;

pub use ahead::Reads;
pub use dtype::DType;
pub use isa::{Isa, Level};
pub use output::Then;
pub use pool::{Pool, Work, run_here};
pub use real::Real;
pub use store::Store;
