//! `.pth` files that torch.save wrote, and our own.

mod common;

use common::shared;
use hawfinch_model::verify::{Report, pth};
use hawfinch_model::{StoredTensor, format};

/// A copy of the folder, changed.
fn copied(change: impl FnOnce(&std::path::Path)) -> Option<(tempfile::TempDir, Report)> {
    let dir = shared("parity/pth-variants")?;
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::write(copy.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
    }
    change(copy.path());
    let report = pth::check(copy.path()).unwrap();
    Some((copy, report))
}

fn failed(report: &Report) -> Vec<&str> {
    report.checks.iter().filter(|c| !c.passed()).map(|c| c.note.as_str()).collect()
}

/// The forms of `.pth` met in the wild, against values computed by another program.
#[test]
fn every_variant_reads_as_expected() {
    let Some((copy, report)) = copied(|_| ()) else { return };
    assert!(report.passed() && report.checks.len() == 5 && report.absent.is_empty(), "{report:#?}");
    let said = |words: &str| report.checks.iter().any(|c| c.note.contains(words));
    assert!(said("4 tensors") && said("10 tensors") && said("before version 1.6"), "{report:#?}");
    assert_eq!(pth::find(copy.path()).unwrap(), [copy.path()], "whatever its name");
}

#[test]
fn what_differs_is_counted_and_named() {
    // Expected values with one number changed, one tensor of another shape, one more, one fewer.
    let Some((_copy, report)) = copied(|folder| {
        let path = folder.join("expected.safetensors");
        let mut file = format::open(&path).unwrap();
        let mut values = file.get("basic.emb.weight").unwrap().to_f32();
        values[7] += 1e-6;
        file.tensors["basic.emb.weight"] = StoredTensor::from_f32(&[5, 4], &values);
        let flat = StoredTensor::from_f32(&[12], &file.get("views.b.offset_view").unwrap().to_f32());
        file.tensors["views.b.offset_view"] = flat;
        file.tensors.insert("basic.more".into(), StoredTensor::from_f32(&[1], &[0.0]));
        file.tensors.shift_remove("views.d.scalar");
        let options = format::SaveOptions {
            format: format::SaveFormat::Safetensors,
            dtype: None,
            vocabulary: None,
            progress: None,
        };
        // The old file is mapped: write beside it, then replace.
        let new = folder.join("new.safetensors");
        format::save(&new, &file, options).unwrap();
        drop(file);
        std::fs::rename(new, path).unwrap();
    }) else {
        return;
    };
    let errors: Vec<f64> = report.checks.iter().map(|c| c.error).collect();
    assert_eq!(errors, [2.0, 2.0, 2.0, 2.0, 0.0], "{report:#?}");
    let notes = failed(&report).join("\n");
    assert!(
        notes.contains("`emb.weight` has other values") && notes.contains("is [3, 4], expected [12]"),
        "{notes}"
    );
    // Files that are damaged, missing, unknown.
    let (_copy, report) = copied(|folder| {
        std::fs::write(folder.join("dict.pth"), "no pickle").unwrap();
        std::fs::rename(folder.join("parameters.pth"), folder.join("other.pth")).unwrap();
    })
    .unwrap();
    assert_eq!((failed(&report).len(), report.checks.len()), (1, 4), "{report:#?}");
    assert_eq!(report.absent, ["parameters.pth", "what other.pth holds, in expected.safetensors"]);
    let (copy, _) = copied(|_| ()).unwrap();
    std::fs::remove_file(copy.path().join("expected.safetensors")).unwrap();
    let e = pth::check(copy.path()).unwrap_err().to_string();
    assert!(e.contains("expected.safetensors"), "{e}");
}
