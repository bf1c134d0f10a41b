//! Every version against an independent implementation: the committed fixtures, and those of
//! `../shared/data` where that folder lies beside the repository.

use std::path::{Path, PathBuf};

use hawfinch_model::verify::{Report, parity};
use hawfinch_model::{Checkpoint, StoredTensor, format};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity")
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

fn check_all(dir: &Path, at_least: usize) {
    let folders = parity::find(dir).unwrap();
    assert!(folders.len() >= at_least, "{} folders in {}", folders.len(), dir.display());
    for folder in folders {
        let report = parity::check(&folder, true).unwrap();
        for c in &report.checks {
            assert!(c.passed(), "{}: {c:?}", folder.display());
        }
        // 11 comparisons of case.safetensors; none may have been skipped.
        assert!(report.checks.len() >= 11, "{}: {report:?}", folder.display());
    }
}

#[test]
fn committed_fixtures_agree() {
    check_all(&fixtures(), 6);
}

#[test]
fn shared_fixtures_agree() {
    if let Some(dir) = shared("parity") {
        check_all(&dir, 10);
    }
}

/// Rewrites one tensor of a copy of a fixture folder with one number moved by `by`, and verifies that.
fn perturbed(folder: &Path, file: &str, tensor: &str, by: f64) -> Report {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join(file);
    let mut case: Checkpoint = format::open(&path).unwrap();
    let t = case.tensors.get_mut(tensor).unwrap_or_else(|| panic!("no {tensor}"));
    let changed = if t.len() == 1 {
        let bytes = (t.to_f64()[0] + by).to_le_bytes();
        StoredTensor::new(t.dtype, t.shape.clone(), bytes.to_vec().into()).unwrap()
    } else {
        let mut values = t.to_f32();
        let middle = values.len() / 2;
        values[middle] += by as f32;
        StoredTensor::from_f32(&t.shape, &values)
    };
    *t = changed;
    let options = format::SaveOptions {
        format: format::SaveFormat::Safetensors,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    // The old file is mapped by `case`: write beside it, then replace.
    let new = copy.path().join("new.safetensors");
    format::save(&new, &case, options).unwrap();
    drop(case);
    std::fs::rename(new, path).unwrap();
    parity::check(copy.path(), false).unwrap()
}

/// A number moved by half the tolerance beyond it is found, and only where it was moved.
fn must_fail(folder: &Path, file: &str, tensor: &str, tolerance: f64, check: &str) {
    let report = perturbed(folder, file, tensor, 1.5 * tolerance);
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.passed()).map(|c| c.what.as_str()).collect();
    assert!(failed.contains(&check), "{}: {tensor} moved, but {failed:?} failed", folder.display());
    let report = perturbed(folder, file, tensor, 0.5 * tolerance);
    assert!(report.passed(), "{}: moved by half the tolerance, but {report:?}", folder.display());
}

fn largest(folder: &Path, file: &str, tensor: &str) -> f64 {
    let case = format::open(&folder.join(file)).unwrap();
    case.get(tensor).unwrap().to_f64().into_iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[test]
fn a_perturbation_just_above_tolerance_fails_in_each_kind() {
    let case = "case.safetensors";
    for version in ["v4", "v50", "v51", "v52", "v6", "v7"] {
        let folder = fixtures().join("M").join(version);
        let fail = |tensor: &str, tolerance: f64, check: &str| {
            must_fail(&folder, case, tensor, tolerance, check);
        };
        fail("logits_f32", 2e-4, "logits, f32 weights");
        fail("logits_bf16w", 2e-4, "logits, bf16 weights");
        fail("cont_logits", 2e-4, "logits of the continuation");
        fail("init_logits", 2e-4, "logits from an initial state");
        fail("loss", 1e-5, "loss, f32 weights");
        fail("loss_bf16w", 1e-5, "loss, bf16 weights");
        fail("init_loss", 1e-5, "loss from an initial state");
        let wkv: &[&str] = if version == "v4" { &["aa", "bb", "pp"] } else { &["wkv"] };
        for field in [wkv, &["att_x", "ffn_x"]].concat() {
            let field = format!("state.1.{field}");
            let scale = largest(&folder, case, &field);
            fail(&field, 1e-4 * scale, "state after the last token");
        }
    }
}

#[test]
fn folders_are_found_wherever_they_are_and_what_they_lack_is_said() {
    let place = tempfile::tempdir().unwrap();
    let deep = place.path().join("any name/at any depth");
    std::fs::create_dir_all(&deep).unwrap();
    for file in ["case.safetensors", "model.pth"] {
        std::fs::copy(fixtures().join("M/v7").join(file), deep.join(file)).unwrap();
    }
    // A folder without tolerances is not passed over in silence.
    assert_eq!(parity::find(place.path()).unwrap(), std::slice::from_ref(&deep));
    let report = parity::check(&deep, false).unwrap();
    assert!(report.checks.is_empty() && report.absent[0].starts_with("meta.json"), "{report:?}");
    std::fs::copy(fixtures().join("M/v7/meta.json"), deep.join("meta.json")).unwrap();
    let report = parity::check(&deep, false).unwrap();
    assert!(report.passed() && report.absent.iter().any(|a| a == "model-bf16.pth"), "{report:?}");
    // What lies there says what is missing: that it lacks its model is a failure.
    for left in ["meta.json", "case.safetensors"] {
        let without = place.path().join("without").join(left);
        std::fs::create_dir_all(&without).unwrap();
        std::fs::copy(deep.join(left), without.join(left)).unwrap();
        assert!(parity::find(place.path()).unwrap().contains(&without), "{left}");
        let report = parity::check(&without, false).unwrap();
        let [check] = &report.checks[..] else { panic!("{report:?}") };
        assert!(
            !report.passed() && check.what == "model.pth" && check.note.contains("missing"),
            "{report:?}"
        );
    }
    #[cfg(unix)]
    {
        let links = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&deep, links.path().join("link")).unwrap();
        std::os::unix::fs::symlink(links.path(), links.path().join("circle")).unwrap();
        assert_eq!(parity::find(links.path()).unwrap(), [links.path().join("link")]);
    }
}

#[test]
fn a_lora_without_its_alpha_leaves_the_rest_compared() {
    let Some(dir) = shared("parity/A/v7") else { return };
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("peft.json") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let report = parity::check(copy.path(), true).unwrap();
    assert!(report.passed() && report.checks.len() >= 14, "{report:?}");
    assert!(report.absent.iter().any(|a| a.starts_with("peft.json")), "{report:?}");
}

#[test]
fn a_perturbation_of_tuned_states_and_adapters_fails() {
    let Some(dir) = shared("parity/A") else { return };
    for version in ["v6", "v7"] {
        let folder = dir.join(version);
        let fail = |tensor: &str, tolerance: f64, check: &str| {
            must_fail(&folder, "peft.safetensors", tensor, tolerance, check);
        };
        fail("logits_state", 2e-4, "logits from the tuned state");
        fail("logits_lora", 2e-4, "logits with the LoRA");
        fail("loss_state", 1e-5, "loss from the tuned state");
        fail("loss_lora", 1e-5, "loss with the LoRA");
        let scale = largest(&folder, "peft.safetensors", "state_final.1.wkv");
        fail("state_final.1.wkv", 1e-4 * scale, "state after the tuned state");
    }
}

#[test]
fn without_their_tolerances_losses_and_states_are_absent_and_not_compared() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["case.safetensors", "model.pth", "model-bf16.pth"] {
        std::fs::copy(fixtures().join("M/v6").join(file), copy.path().join(file)).unwrap();
    }
    let check = |tolerances: &str| {
        let meta = format!("{{\"recommended_tolerances\":{{\"f32_sequential\":{{{tolerances}}}}}}}");
        std::fs::write(copy.path().join("meta.json"), meta).unwrap();
        parity::check(copy.path(), false)
    };
    let report = check("\"logits_max_abs\":2e-4").unwrap();
    assert!(report.passed() && report.checks.len() == 6, "{report:?}");
    let said =
        |what: &str| report.absent.iter().any(|a| a.starts_with("a tolerance for") && a.contains(what));
    assert!(said("loss, f32") && said("loss, bf16") && said("state after the last token"), "{report:?}");
    for (wrong, words) in [
        ("\"loss_abs\":1e-5", "no tolerance at"),
        ("\"logits_max_abs\":\"2e-4\"", "no number from 0 up"),
        ("\"logits_max_abs\":-1", "no number from 0 up"),
        ("\"logits_max_abs\":2e-4,\"loss_abs\":null", "no number from 0 up"),
    ] {
        let e = check(wrong).unwrap_err().to_string();
        assert!(e.contains(words), "{wrong}: {e}");
    }
}

#[test]
fn what_is_no_token_id_is_no_other_token() {
    let folder = fixtures().join("M/v7");
    let copy = tempfile::tempdir().unwrap();
    for file in ["meta.json", "model.pth"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    let mut case = format::open(&folder.join("case.safetensors")).unwrap();
    let t = case.tensors.get_mut("tokens").unwrap();
    let mut bytes = t.data.to_vec();
    bytes[..8].copy_from_slice(&(-1i64).to_le_bytes());
    t.data = bytes.into();
    let options = format::SaveOptions {
        format: format::SaveFormat::Safetensors,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&copy.path().join("case.safetensors"), &case, options).unwrap();
    let e = parity::check(copy.path(), false).unwrap_err().to_string();
    assert!(e.contains("out of range"), "{e}");
}
