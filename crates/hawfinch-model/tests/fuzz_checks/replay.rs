//! Replaying inputs of fuzz targets from files.

use std::path::{Path, PathBuf};

/// Name and check of a target.
pub type Target = (&'static str, fn(&[u8]));

/// Checks `FOLDER/TARGET/*`, inputs that once broke something.
pub fn finds(folder: &str, targets: &[Target]) {
    let mut count = 0;
    for (target, check) in targets {
        let Ok(files) = std::fs::read_dir(Path::new(folder).join(target)) else { continue };
        for file in files {
            let path = file.expect("an entry").path();
            eprintln!("{}", path.display()); // shown when the check panics or aborts
            check(&std::fs::read(path).expect("a find"));
            count += 1;
        }
    }
    eprintln!("{count} finds replayed");
}

/// Checks `FOLDER/TARGET.corpus`, samples of the inputs that reach most of the code. With
/// `HAWFINCH_FUZZ_SEEDS=FOLDER` they are written where fuzzing goes on from them.
pub fn corpora(folder: &str, targets: &[Target]) {
    for (target, check) in targets {
        let out = seed_folder(target);
        for (i, input) in unpack(&Path::new(folder).join(format!("{target}.corpus"))).iter().enumerate() {
            eprintln!("{target} {i}");
            check(input);
            if let Some(out) = &out {
                std::fs::write(out.join(format!("sample-{i}")), input).expect("a sample");
            }
        }
    }
}

/// `FOLDER/TARGET` of `HAWFINCH_FUZZ_SEEDS=FOLDER`, made where absent.
fn seed_folder(target: &str) -> Option<PathBuf> {
    let out = PathBuf::from(std::env::var_os("HAWFINCH_FUZZ_SEEDS")?).join(target);
    std::fs::create_dir_all(&out).expect("the folder of seeds");
    Some(out)
}

/// The inputs of a `.corpus` file: each its length (u32, little-endian) and its bytes.
fn unpack(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rest = &file[..];
    let mut out = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (input, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        out.push(input.to_vec());
        rest = tail;
    }
    assert!(rest.is_empty() && !out.is_empty(), "{} is cut off", path.display());
    out
}

/// Checks the seeds of a target. With `HAWFINCH_FUZZ_SEEDS=FOLDER` they are written to `FOLDER/TARGET/`,
/// where `fuzz/run.sh` wants them.
pub fn seeds(target: &str, seeds: &[(String, Vec<u8>)], targets: &[Target]) {
    assert!(!seeds.is_empty(), "{target}");
    let (_, check) = targets.iter().find(|(name, _)| *name == target).expect("a target");
    let out = seed_folder(target);
    for (name, file) in seeds {
        eprintln!("{target}: {name}");
        check(file);
        if let Some(out) = &out {
            std::fs::write(out.join(format!("seed-{name}")), file).expect("a seed");
        }
    }
}
