//! Helpers of the tests.

use std::path::PathBuf;

/// A file or folder of `../shared/data`, or `None` (said on the terminal) where it is absent.
pub(crate) fn shared(part: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(part);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {part} of ../shared/data is not there");
    None
}

/// A folder of parity fixtures, `M/v7` and so on: set M lies in the repository, set A beside it.
pub(crate) fn parity(case: &str) -> Option<PathBuf> {
    match case.starts_with("M/") {
        true => Some(
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../hawfinch-model/tests/data/parity"))
                .join(case),
        ),
        false => shared(&format!("parity/{case}")),
    }
}

/// What a test does to a file of expected values first.
pub(crate) type Change<'a> = &'a dyn Fn(&mut serde_json::Value);

/// A file of expected values of the committed parity fixtures, changed.
pub(crate) fn changed(name: &str, change: Change) -> (PathBuf, serde_json::Value) {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../hawfinch-model/tests/data/parity")).join(name);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    (path, value)
}
