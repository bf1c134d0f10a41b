//! A data set made of a `NAME.jsonl`, byte for byte beside the `NAME.bin` and `NAME.idx` that lie there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use hawfinch_data::binidx::{self, Reader};
use hawfinch_data::{Control, Inputs, Mixing, Plan, Policy, Reading, Shard, Source, build};
use hawfinch_model::Error as ModelError;
use hawfinch_model::verify::Report;
use hawfinch_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use super::given::{At, Compared};
use crate::{Error, Result};

/// `jsonl` is the text, which need not be there: then that is what is wrong. Where a `NAME.json` lies beside it (texts, ids,
/// checksums) it is compared too, but for its `vocab_sha256`: what the vocabulary is shows in the ids.
pub(super) fn check(report: &mut Report, jsonl: &Path) -> Result<()> {
    let shown = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let given = ["jsonl", "bin", "idx"].map(|e| jsonl.with_extension(e));
    for path in given.iter().filter(|path| !path.is_file()) {
        report.add(format!("data set: {}", shown(path)), f64::NAN, 0.0, "it is missing beside the others");
    }
    if given.iter().any(|path| !path.is_file()) {
        return Ok(());
    }
    let place = Scratch::new()?;
    let out = place.0.join("made");
    make(jsonl, &out)?;
    let (bin, idx) = binidx::paths(&out);
    for (made, given) in [(&bin, &given[1]), (&idx, &given[2])] {
        let (made, want) = (read(made)?, read(given)?);
        let mut bytes = Compared::default();
        bytes.same(|| "length".into(), made.len(), want.len());
        for (i, (got, want)) in made.iter().zip(&want).enumerate() {
            bytes.same(|| format!("byte {i}"), got, want);
        }
        bytes.report(report, &format!("data set: length and bytes of {}", shown(given)), 0.0);
    }
    if let Err(e) = Reader::open(&given[1]) {
        report.add("data set: can be read", f64::NAN, 0.0, e.to_string());
    }
    let json = jsonl.with_extension("json");
    if !json.is_file() {
        report.absent.push(format!("data set: {}", shown(&json)));
        return Ok(());
    }
    let value = super::json(&json)?;
    let file = At::whole(&json, &value);
    let mut compared = Compared::default();
    for (key, path) in [("bin_sha256", &bin), ("idx_sha256", &idx)] {
        if let Some(want) = file.maybe(key) {
            let digest = Sha256::digest(read(path)?);
            let got = digest.iter().fold(String::new(), |s, b| format!("{s}{b:02x}"));
            compared.same(|| want.place.clone(), &got[..], want.text()?);
        }
    }
    let made = Reader::open(&out)?;
    if let Some(want) = file.maybe("total_tokens") {
        compared.same(|| want.place.clone(), made.tokens(), want.count()?);
    }
    let documents = file.get("documents")?.list()?;
    compared.same(|| "/documents (their number)".into(), made.documents(), documents.len() as u64);
    let world = Tokenizer::world();
    for (n, document) in (0..made.documents()).zip(&documents) {
        let got = made.document(n)?;
        let want = document.get("ids")?;
        let ids = want.counts()?;
        compared.same(|| format!("{} (their number)", want.place), got.len(), ids.len());
        for (i, (&got, want_id)) in got.iter().zip(ids).enumerate() {
            compared.same(|| format!("{}/{i}", want.place), got.into(), want_id);
        }
        let text = got.split_last().and_then(|(_, ids)| world.decode(ids).ok()).unwrap_or_default();
        let want = document.get("text")?;
        compared.same(|| want.place.clone(), &*String::from_utf8_lossy(&text), want.text()?);
    }
    compared.report(report, &format!("data set: texts, ids, checksums of {}", shown(&json)), 0.0);
    Ok(())
}

/// The data set of one file of texts: World tokens, in the file's order.
fn make(jsonl: &Path, out: &Path) -> Result<()> {
    let Some(path) = jsonl.to_str() else {
        return Err(ModelError::unsupported(jsonl, "its path is no UTF-8; move it").into());
    };
    let source = Source { label: None, path: path.into(), weight: None };
    let world = Tokenizer::world();
    let plan = Plan::new(Inputs::find(&[source], None)?, &world, Reading::default(), Mixing::default())?;
    let control = Control::quiet(1);
    build::tokenise_shard(&plan, out, Shard::WHOLE, Policy::default(), true, &world, control)?;
    build::finish(&plan, out, control)?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::read(path, e))
}

/// A new folder in the system's place for such, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("hawfinch-verify-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::write(&path, e)),
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
