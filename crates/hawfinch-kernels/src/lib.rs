//! CPU arithmetic.
