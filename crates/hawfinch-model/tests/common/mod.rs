//! Helpers of the integration tests.
#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;

use hawfinch_model::{Checkpoint, Model, Rows, Sequence};

/// A folder of `../shared/data`, or `None` (said on the terminal) where it is absent.
pub fn shared(part: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(part);
    if dir.exists() {
        return Some(dir);
    }
    eprintln!("skipped: {part} of ../shared/data is not there");
    None
}

/// The crate's own fixtures.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

/// Same type, shape and bytes.
pub fn compare(a: &Checkpoint, name_a: &str, b: &Checkpoint, name_b: &str) {
    let (x, y) = (a.get(name_a).expect(name_a), b.get(name_b).expect(name_b));
    assert_eq!((x.dtype, &x.shape), (y.dtype, &y.shape), "{name_a}");
    assert!(!x.transposed && !y.transposed, "{name_a}");
    assert_eq!(x.data, y.data, "{name_a}");
}

/// Logits of every token, fed in pieces, and the state after.
pub fn logits(m: &Model, pieces: &[&[u32]]) -> Vec<f32> {
    let mut state = m.new_state();
    let mut out = Vec::new();
    for tokens in pieces {
        let call = Sequence { tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
        out.extend(m.forward(&mut [call]).unwrap().remove(0).logits);
    }
    out.extend(state.data());
    out
}
