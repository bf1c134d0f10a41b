#![no_main]
//! See `template` in the checks.

#[path = "../../crates/hawfinch-engine/tests/fuzz_checks/mod.rs"]
mod checks;
#[path = "../../crates/hawfinch-model/tests/fuzz_checks/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(init: let_caught_panics_pass(), |data: &[u8]| checks::template(data));

/// Panics of the template engine become errors, but libFuzzer's hook ends the program at any panic: let
/// those that are caught pass it.
fn let_caught_panics_pass() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|l| l.file().contains("minijinja")) {
            hook(info);
        }
    }));
}
