//! Models by name, run as a user runs them: `pull` against a hub on loopback, `models`, `doctor`,
//! `completions`, `man`.

// Without the feature there is nothing to fetch with.
#![cfg_attr(not(feature = "hub"), allow(dead_code))]

mod hub_stub;
mod local;
#[cfg(feature = "hub")]
mod pull;
