//! Replays what fuzzing found, so that templates meet it in every test run: `tests/data/fuzz/TARGET/` holds
//! inputs that once broke something, `TARGET.corpus` a sample of the inputs that reached most of the code.
//! How to fuzz: `docs/fuzzing.md`.

mod fuzz_checks;
#[path = "../../hawfinch-model/tests/fuzz_checks/limit.rs"]
mod limit;
#[path = "../../hawfinch-model/tests/fuzz_checks/replay.rs"]
mod replay;

const TARGETS: [replay::Target; 1] = [("template", fuzz_checks::template)];
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fuzz");

#[test]
fn finds_stay_fixed() {
    replay::finds(FOLDER, &TARGETS);
}

#[test]
fn the_corpus_passes() {
    replay::corpora(FOLDER, &TARGETS);
}

#[test]
fn seeds_are_accepted() {
    replay::seeds("template", &fuzz_checks::seeds(), &TARGETS);
}
