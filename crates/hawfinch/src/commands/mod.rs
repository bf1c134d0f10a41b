//! One file a subcommand: its arguments (`Args`), what it does (`run`), and its tests.

pub mod inspect;
