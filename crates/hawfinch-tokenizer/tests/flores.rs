//! World ids of whole FLORES-200 files, by count and SHA-256, where `../shared/data` (beside the repository) has the
//! corpus and the system has a `tar` that unpacks it; says that it is skipped elsewhere.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use hawfinch_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

#[derive(serde::Deserialize)]
struct Hashes {
    flores_dev: HashMap<String, Expected>,
}

#[derive(serde::Deserialize)]
struct Expected {
    bytes: usize,
    tokens: usize,
    sha256: String,
}

#[test]
fn whole_files_have_the_known_ids() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let archive = shared.join("corpora/flores200/flores200_dataset.tar.xz");
    let Ok(hashes) = std::fs::read(shared.join("tokenizer/world_file_hashes.json")) else {
        eprintln!("skipped: {} is not there", shared.display());
        return;
    };
    let hashes: Hashes = serde_json::from_slice(&hashes).expect("the hashes");
    let mut names: Vec<&String> = hashes.flores_dev.keys().collect();
    names.sort();
    // All wanted files in one stream, in the archive's order; each is told from the next by its known length.
    let listed = Command::new("tar").arg("-tf").arg(&archive).output();
    let listed = match listed {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).expect("names"),
        _ => {
            eprintln!("skipped: tar cannot read {}", archive.display());
            return;
        }
    };
    let members: Vec<&str> = listed
        .lines()
        .filter(|m| hashes.flores_dev.contains_key(m.rsplit('/').next().unwrap_or(m)))
        .collect();
    assert_eq!(members.len(), names.len());
    let mut tar = Command::new("tar")
        .arg("-xOf")
        .arg(&archive)
        .args(&members)
        .stdout(Stdio::piped())
        .spawn()
        .expect("tar ran before");
    let mut stream = tar.stdout.take().expect("piped");
    let world = Tokenizer::world();
    for member in members {
        let expected = &hashes.flores_dev[member.rsplit('/').next().unwrap_or(member)];
        let mut text = vec![0; expected.bytes];
        stream.read_exact(&mut text).expect("the file's bytes");
        let ids = world.encode(&text);
        assert_eq!(ids.len(), expected.tokens, "{member}");
        let mut hash = Sha256::new();
        for id in &ids {
            hash.update(id.to_le_bytes());
        }
        let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, expected.sha256, "{member}");
        assert!(world.encode_parallel(&text, 2) == ids, "{member}");
        assert_eq!(world.decode(&ids).expect("ids of a text"), text, "{member}");
    }
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    assert!(tar.wait().expect("tar's end").success());
}
