//! Replays what fuzzing found, so that the readers meet it in every test run: `tests/data/fuzz/TARGET/` holds
//! inputs that once broke something, `TARGET.corpus` a sample of the inputs that reached most of the code.
//! How to fuzz: `docs/fuzzing.md`.

mod fuzz_checks;
#[path = "fuzz_checks/limit.rs"]
mod limit;
#[path = "fuzz_checks/replay.rs"]
mod replay;

use std::path::Path;

use hawfinch_kernels::DType;
use hawfinch_model::{Config, Version, synthetic};

const TARGETS: [replay::Target; 10] = [
    ("pth", fuzz_checks::pth),
    ("pth_pickle", fuzz_checks::pth_pickle),
    ("safetensors", fuzz_checks::safetensors),
    ("gguf", fuzz_checks::gguf),
    ("ggml", fuzz_checks::ggml),
    ("packed", fuzz_checks::packed),
    ("ai00", fuzz_checks::ai00),
    ("state_lora", fuzz_checks::state_lora),
    ("model_run", fuzz_checks::model_run),
    ("round_trip", fuzz_checks::round_trip),
];
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/fuzz");

#[test]
fn finds_stay_fixed() {
    replay::finds(FOLDER, &TARGETS);
}

#[test]
fn the_corpus_passes() {
    replay::corpora(FOLDER, &TARGETS);
}

/// The seeds are sound files: every reader accepts them.
#[test]
fn seeds_are_accepted() {
    for (target, _) in TARGETS {
        let seeds = fuzz_checks::tiny::seeds(target);
        replay::seeds(target, &seeds, &TARGETS);
        // These are parts of files.
        if matches!(target, "pth_pickle" | "safetensors") {
            continue;
        }
        for (name, mut file) in seeds {
            if target == "packed" {
                file = fuzz_checks::packed_file(&file).expect("a header and a list");
            }
            if let Err(e) = hawfinch_model::format::read(Path::new("seed"), file.into()) {
                panic!("{target}: the seed {name} is refused: {e}");
            }
        }
    }
}

/// The matrix state of a layer is heads × head size²: one wide head in a model of width 1 would ask for the
/// square of the file's size. (Seen when the model target was written; as a file it is too large to keep.)
#[test]
fn no_file_asks_for_the_square_of_its_size() {
    let says = |width, head_size| {
        let config = Config {
            layers: 1,
            width,
            att_width: head_size,
            ffn_width: 1,
            heads: 1,
            head_size,
            ..fuzz_checks::tiny::config(Version::V5_1)
        };
        Config::infer(&synthetic::checkpoint(&config, DType::F16, 1)).unwrap_err().to_string()
    };
    let said = says(100, 1600);
    assert!(said.contains("1600 channels each"), "{said}");
    let said = says(1, 20_000);
    assert!(said.contains("20000 wide in a model of width 1"), "{said}");
}
