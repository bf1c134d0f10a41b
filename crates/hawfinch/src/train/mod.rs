//! What `train` is made of: settings from a file and from flags, the data, what a person sees.

pub mod data;
pub mod keys;
pub mod ranks;
pub mod view;
