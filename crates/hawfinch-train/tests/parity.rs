//! Training of every version against an independent implementation: the committed fixtures, and those of
//! `../shared/data` where that folder lies beside the repository.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawfinch_kernels::Pool;
use hawfinch_model::verify::parity;
use hawfinch_train::verify;

fn check_all(dir: &Path, at_least: usize) {
    let folders = parity::find(dir).unwrap();
    assert!(folders.len() >= at_least, "{} folders in {}", folders.len(), dir.display());
    let pool = Arc::new(Pool::new(2));
    let mut failed = Vec::new();
    for folder in folders {
        let report = verify::check(&pool, &folder).unwrap();
        for c in &report.checks {
            println!("{}: {:.1e} of {:.0e} {} ({})", folder.display(), c.error, c.tolerance, c.what, c.note);
            if !c.passed() {
                failed.push(format!("{}: {c:?}", folder.display()));
            }
        }
        assert!(report.absent.is_empty() && report.checks.len() >= 31, "{}: {report:?}", folder.display());
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Files of expected values: initialisation, schedules, orders of samples, data sets.
fn check_files(dir: &Path, kinds: &[&str]) {
    let found = verify::find_files(dir).unwrap();
    for kind in kinds {
        assert!(found.iter().any(|path| path.ends_with(kind)), "{kind} in {}", dir.display());
    }
    let pool = Arc::new(Pool::new(2));
    for path in found {
        let report = verify::check_file(&pool, &path).unwrap();
        report.checks.iter().for_each(|c| println!("{}: {c:?}", path.display()));
        assert!(report.passed() && report.absent.is_empty(), "{}: {report:#?}", path.display());
    }
}

const JSON: [&str; 3] = ["init.json", "schedule.json", "sampler.json"];

#[test]
fn committed_fixtures_agree() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    check_all(&crates.join("hawfinch-model/tests/data/parity"), 6);
    check_files(&crates.join("hawfinch-model/tests/data/parity"), &JSON);
    check_files(&crates.join("hawfinch-data/tests/data"), &["demo.jsonl"]);
}

#[test]
fn shared_fixtures_agree() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/parity");
    if !path.exists() {
        return println!("skipped: {} is not there", path.display());
    }
    check_all(&path, 10);
    check_files(&path, &[&JSON[..], &["binidx/demo.jsonl"]].concat());
}
