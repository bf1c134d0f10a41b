#![no_main]
//! See `packed` in the checks.

#[path = "../../crates/hawfinch-model/tests/fuzz_checks/mod.rs"]
mod checks;
#[path = "../../crates/hawfinch-model/tests/fuzz_checks/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::packed(data));
