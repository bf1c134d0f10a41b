//! The command line of hawfinch.
fn main() {}
