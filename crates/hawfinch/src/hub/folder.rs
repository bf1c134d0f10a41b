//! The models folder: where it is and what lies in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::system::folders;

/// The folder for models: `$HAWFINCH_MODELS`, else `hawfinch/models` in the user's data folder. It need
/// not exist.
///
/// # Errors
/// Neither is set.
pub fn models() -> anyhow::Result<PathBuf> {
    match std::env::var_os("HAWFINCH_MODELS").filter(|v| !v.is_empty()) {
        Some(dir) => std::path::absolute(dir).context("HAWFINCH_MODELS is not a path"),
        None => match folders::data() {
            Some(data) => Ok(data.join("hawfinch").join("models")),
            None => {
                bail!("there is no home folder to keep models in: set HAWFINCH_MODELS to a folder for them")
            }
        },
    }
}

/// The folder of a repository (`owner/repo`, checked) within the models folder.
pub fn of_repo(models: &Path, repo: &str) -> PathBuf {
    models.join(repo.replace('/', "--"))
}

/// One model in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As `models` shows it and [`super::resolve`] finds it: the file's name, or `owner/repo:file`, or
    /// `owner/repo` for a folder that is a model as a whole.
    pub name: String,
    /// File or folder.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Entry {
    /// The name without the extension of a model file.
    pub fn stem(&self) -> &str {
        match self.name.rsplit_once('.') {
            Some((stem, ext)) if is_model_extension(OsStr::new(ext)) => stem,
            _ => &self.name,
        }
    }
}

/// Models of a folder that are named where there is more than one.
const LISTED: usize = 12;

/// True for the extensions that model files have.
pub fn is_model_extension(ext: &OsStr) -> bool {
    let known = ["pth", "pt", "st", "safetensors", "gguf", "bin"];
    ext.to_str().is_some_and(|e| known.iter().any(|k| k.eq_ignore_ascii_case(e)))
}

/// True for a path whose name is that of a model file.
pub fn is_model_file(path: &Path) -> bool {
    path.extension().is_some_and(is_model_extension)
}

/// Models of the folder, by name; none when there is no such folder.
///
/// # Errors
/// The folder cannot be read.
pub fn list(models: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut all = Vec::new();
    for path in children(models)? {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        if path.is_dir() {
            let repo = name.replacen("--", "/", 1);
            if path.join("config.json").is_file() {
                all.push(Entry { name: repo, bytes: size(&path), path });
            } else {
                for file in files_below(&path) {
                    let inner = file.strip_prefix(&path).unwrap_or(&file);
                    let inner: Vec<_> = inner.iter().map(OsStr::to_string_lossy).collect();
                    let name = format!("{repo}:{}", inner.join("/"));
                    all.push(Entry { name, bytes: size(&file), path: file });
                }
            }
        } else if is_model_file(&path) {
            all.push(Entry { name: name.to_owned(), bytes: size(&path), path });
        }
    }
    all.sort_by_key(|e: &Entry| e.name.to_lowercase());
    Ok(all)
}

/// Downloads that were not finished: (path, bytes).
pub fn unfinished(models: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    walk(models, 4, &mut |p| {
        if p.extension().is_some_and(|e| e == "part") {
            found.push((p.to_path_buf(), size(p)));
        }
    });
    found.sort();
    found
}

/// Models in the cache of Hugging Face's own programs: `owner/repo:file` and where it is.
pub fn hugging_face_cache(cache: &Path) -> Vec<Entry> {
    let mut all = Vec::new();
    for repo in children(cache).unwrap_or_default() {
        let name = repo.file_name().and_then(OsStr::to_str).and_then(|n| n.strip_prefix("models--"));
        let Some(name) = name.map(|n| n.replacen("--", "/", 1)) else { continue };
        for snapshot in children(&repo.join("snapshots")).unwrap_or_default() {
            if snapshot.join("config.json").exists() {
                all.push(Entry { name: name.clone(), bytes: size(&snapshot), path: snapshot });
                continue;
            }
            for file in children(&snapshot).unwrap_or_default().into_iter().filter(|f| is_model_file(f)) {
                let inner = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                all.push(Entry { name: format!("{name}:{inner}"), bytes: size(&file), path: file });
            }
        }
    }
    all
}

/// The model that a repository's folder holds: the folder itself when it is a Hugging Face one, else its
/// only model file.
///
/// # Errors
/// None, or more than one.
pub fn model_in(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.join("config.json").is_file() {
        return Ok(folder.into());
    }
    let mut files = files_below(folder);
    if files.len() > 1 {
        // By name they are; what they hold tells.
        files.retain(|f| hawfinch_model::format::is_model(f));
    }
    match files.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("{} holds no model", folder.display()),
        many => {
            let names: Vec<_> = many.iter().take(LISTED).map(|f| f.display().to_string()).collect();
            let more = match many.len().saturating_sub(LISTED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            bail!(
                "{} holds {} models, name one of them: {}{more}",
                folder.display(),
                many.len(),
                names.join(", ")
            )
        }
    }
}

/// Model files below a folder, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(folder, 3, &mut |p| {
        if is_model_file(p) {
            files.push(p.to_path_buf());
        }
    });
    files.sort();
    files
}

/// Calls `each` for every file below `folder`, at most `depth` folders deep.
fn walk(folder: &Path, depth: usize, each: &mut dyn FnMut(&Path)) {
    for path in children(folder).unwrap_or_default() {
        match path.is_dir() {
            true if depth > 0 && !path.is_symlink() => walk(&path, depth - 1, each),
            true => {}
            false => each(&path),
        }
    }
}

/// What lies in a folder; nothing when it is not there.
fn children(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(entries.filter_map(|e| e.ok().map(|e| e.path())).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("the folder {} cannot be read", folder.display())),
    }
}

/// Bytes of a file, or of all files below a folder.
fn size(path: &Path) -> u64 {
    let of = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
    if !path.is_dir() {
        return of(path);
    }
    let mut sum = 0;
    walk(path, 3, &mut |p| sum += of(p));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_folder_holds() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("b.pth", "12345"),
            ("A.gguf", "1"),
            ("notes.txt", "no model"),
            ("20B_tokenizer.json", "{}"),
            ("o--r/deep/x.bin", "12"),
            ("o--r/x.bin.0123.part", "123"),
            ("o--hf/config.json", "{}"),
            ("o--hf/model.safetensors", "1234"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = list(dir.path()).unwrap();
        let found: Vec<_> = found.iter().map(|e| (e.name.as_str(), e.stem(), e.bytes)).collect();
        assert_eq!(
            found,
            [("A.gguf", "A", 1), ("b.pth", "b", 5), ("o/hf", "o/hf", 6), ("o/r:deep/x.bin", "o/r:deep/x", 2)]
        );
        let parts = unfinished(dir.path());
        assert_eq!(parts, [(dir.path().join("o--r/x.bin.0123.part"), 3)]);
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
        assert!(model_in(&dir.path().join("none")).is_err());
    }

    #[test]
    fn the_cache_of_other_programs() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "models--o--r--x/snapshots/abc/m.pth",
            "models--o--hf/snapshots/d/config.json",
            "datasets--a/x.pth",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "1").unwrap();
        }
        let mut names: Vec<_> = hugging_face_cache(dir.path()).into_iter().map(|e| e.name).collect();
        names.sort();
        assert_eq!(names, ["o/hf", "o/r--x:m.pth"]);
    }
}
