//! WKV a chunk of tokens at a time, in matrix form.

mod matrix;
mod pairs;
mod product;
#[cfg(target_arch = "x86_64")]
mod product_x86;
#[cfg(test)]
mod tests;
mod v7;

pub use matrix::{wkv5, wkv6};
pub use v7::wkv7;
