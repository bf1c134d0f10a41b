//! `.pth` files in the forms met in the wild beside the values that another program read from them
//! (`expected.safetensors`): a plain dict, an OrderedDict with metadata, parameters, views, the format before zip.

use std::path::{Path, PathBuf};

use super::{Report, parity};
use crate::{Checkpoint, Result, format};

/// The name of such a folder.
const FOLDER: &str = "pth-variants";
/// The values of all its files.
const EXPECTED: &str = "expected.safetensors";
/// Its files, and what the names of their tensors begin with in [`EXPECTED`].
const FILES: [(&str, &str); 5] = [
    ("dict.pth", "basic."),
    ("ordereddict-metadata.pth", "basic."),
    ("parameters.pth", "basic."),
    ("views-and-dtypes.pth", "views."),
    (LEGACY, "basic."),
];
/// Written before PyTorch 1.6: may be refused, in a sentence that says so.
const LEGACY: &str = "legacy-nonzip.pth";

/// The folders at or below `dir` that [`check`] is for: those of this name, and those that hold one of these files beside the
/// expected values.
///
/// # Errors
/// `dir` cannot be read.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = parity::folders(dir)?;
    found.retain(|folder| {
        // (`.` has no name.)
        let named = std::fs::canonicalize(folder).is_ok_and(|path| path.ends_with(FOLDER));
        let has = |name: &str| folder.join(name).is_file();
        named || (has(EXPECTED) && FILES.iter().any(|(file, _)| has(file)))
    });
    Ok(found)
}

/// Reads every file of the folder and counts the tensors that are missing, too many, or of another type, shape or bytes.
/// Files that are not there are listed as absent, as are those of whose values nothing is known.
///
/// # Errors
/// The expected values are missing or cannot be read.
pub fn check(folder: &Path) -> Result<Report> {
    let mut report = Report::default();
    let expected = format::open(&folder.join(EXPECTED))?;
    for (file, prefix) in FILES {
        let path = folder.join(file);
        if !path.is_file() {
            report.absent.push(file.into());
            continue;
        }
        let what = format!("tensors of {file} that differ");
        match format::open(&path) {
            Ok(got) => {
                let (compared, differ) = compare(&got, &expected, prefix);
                let mut note = format!("{compared} tensors");
                if let Some(first) = differ.first() {
                    note += &format!(", first {first}");
                }
                // Nothing compared with nothing is no pass.
                let error = if compared == 0 { f64::NAN } else { differ.len() as f64 };
                report.add(what, error, 0.0, note);
            }
            Err(e) if file == LEGACY && e.to_string().contains("before version 1.6") => {
                report.add(format!("{file} is refused with its reason"), 0.0, 0.0, e.to_string());
            }
            Err(e) => report.add(what, f64::NAN, 0.0, e.to_string()),
        }
    }
    let entries = std::fs::read_dir(folder).map_err(|e| crate::Error::io(folder, e))?;
    let mut others: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".pth") && FILES.iter().all(|(file, _)| file != name))
        .collect();
    others.sort();
    report.absent.extend(others.iter().map(|name| format!("what {name} holds, in {EXPECTED}")));
    Ok(report)
}

/// How many tensors were compared, and what is wrong with which.
fn compare(got: &Checkpoint, expected: &Checkpoint, prefix: &str) -> (usize, Vec<String>) {
    let want = expected.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)));
    let mut names: Vec<&str> = want.clone().map(|(name, _)| name).collect();
    let mut differ = Vec::new();
    for (name, want) in want {
        let wrong = match got.get(name) {
            None => "is missing".into(),
            Some(t) if t.dtype != want.dtype => format!("is {}, expected {}", t.dtype, want.dtype),
            Some(t) if t.shape != want.shape => format!("is {:?}, expected {:?}", t.shape, want.shape),
            Some(t) if t.transposed || t.data != want.data => "has other values".into(),
            Some(_) => continue,
        };
        differ.push(format!("`{name}` {wrong}"));
    }
    names.sort_unstable();
    let more = got.tensors.keys().filter(|name| names.binary_search(&name.as_str()).is_err());
    differ.extend(more.map(|name| format!("`{name}` is not expected")));
    (names.len(), differ)
}
