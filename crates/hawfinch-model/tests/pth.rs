//! `.pth` files that torch.save wrote, and our own.

mod common;

use common::{compare, shared};
use hawfinch_model::format;

/// The forms of `.pth` met in the wild, against values computed by another program.
#[test]
fn every_variant_reads_as_expected() {
    let Some(dir) = shared("parity/pth-variants") else { return };
    let expected = format::open(&dir.join("expected.safetensors")).unwrap();
    for (file, prefix) in [
        ("dict.pth", "basic."),
        ("ordereddict-metadata.pth", "basic."),
        ("parameters.pth", "basic."),
        ("views-and-dtypes.pth", "views."),
    ] {
        let got = format::open(&dir.join(file)).unwrap();
        let want: Vec<_> = expected.tensors.keys().filter_map(|k| k.strip_prefix(prefix)).collect();
        assert_eq!(got.tensors.len(), want.len(), "{file}");
        for name in want {
            compare(&got, name, &expected, &format!("{prefix}{name}"));
        }
    }
    let error = format::open(&dir.join("legacy-nonzip.pth")).unwrap_err().to_string();
    assert!(error.contains("before version 1.6"), "{error}");
}
