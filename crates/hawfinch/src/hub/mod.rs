//! Models by name: the list of known ones, the models folder, fetching from a Hugging Face hub.
//!
//! Every command that takes a model calls [`resolve`] on what the user typed, before opening it:
//!
//! ```ignore
//! let path = hub::resolve(&args.model)?; // an existing path, a name in the models folder, or a sentence
//! let checkpoint = hawfinch_model::format::open(&path)?;
//! ```
//!
//! The models folder ([`folder::models`]) is `$HAWFINCH_MODELS`, else `hawfinch/models` in the user's data
//! folder. Models of the known list lie in it as single files under their own names; other repositories
//! of the hub in a folder `owner--repo`; `20B_tokenizer.json` (for Pile models) beside the files.

#[cfg(feature = "hub")]
pub mod download;
pub mod folder;
pub mod known;
pub mod name;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use name::Wanted;

/// The vocabulary that Pile models need, beside them.
#[cfg(feature = "hub")]
pub const PILE_TOKENIZER: &str = "20B_tokenizer.json";

/// The path of the model that the user means: an existing file or folder wins; else a model in the models
/// folder by its short name, its file name (with or without extension), `owner/repo` or
/// `owner/repo:file`.
///
/// # Errors
/// There is none: a sentence that says where was looked and what fetches it.
pub fn resolve(model: &Path) -> anyhow::Result<PathBuf> {
    if model.exists() {
        return Ok(model.into());
    }
    let Some(name) = model.to_str() else { bail!("there is no file or folder {}", model.display()) };
    let dir = folder::models()?;
    match find_in(&dir, name)? {
        Some(path) => Ok(path),
        None => bail!("{}", missing(name, &dir)),
    }
}

/// The model of that name in a models folder.
fn find_in(dir: &Path, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let found = match Wanted::parse(name) {
        Ok(Wanted::Known(k)) => Some(dir.join(k.file)),
        Ok(Wanted::File { repo, file }) => Some(folder::of_repo(dir, &repo).join(file)),
        Ok(Wanted::Repo(repo)) => {
            let whole = folder::of_repo(dir, &repo);
            if whole.is_dir() { Some(folder::model_in(&whole)?) } else { None }
        }
        Err(_) => None,
    };
    if let Some(path) = found.filter(|p| p.exists()) {
        return Ok(Some(path));
    }
    // A file put there by hand, by its name.
    let same = |e: &folder::Entry| e.name.eq_ignore_ascii_case(name) || e.stem().eq_ignore_ascii_case(name);
    Ok(folder::list(dir)?.into_iter().find(same).map(|e| e.path))
}

fn missing(name: &str, dir: &Path) -> String {
    let there =
        format!("there is no file or folder `{name}`, and no model of that name in {}", dir.display());
    match Wanted::parse(name) {
        Ok(Wanted::Known(k)) => format!("{there}; `hawfinch pull {}` fetches it", k.name()),
        // A path more likely than a repository.
        Ok(_)
            if Path::new(name).extension().is_some_and(folder::is_model_extension) && !name.contains(':') =>
        {
            there
        }
        Ok(_) => format!("{there}; `hawfinch pull {name}` fetches it, if the hub has it"),
        Err(_) => match name::similar(name).as_slice() {
            [] => format!(
                "{there}; `hawfinch models` lists what there is, `hawfinch pull --list` what can be fetched"
            ),
            near => {
                format!("{there}; known models near it: {} (fetch one with `hawfinch pull`)", near.join(", "))
            }
        },
    }
}

/// The folder that a repository's or the list's files go to, and the name of the file in it.
#[cfg(feature = "hub")]
pub fn place(dir: &Path, repo: &str, file: &str) -> PathBuf {
    let known = known::all().iter().any(|k| k.repo == repo && k.file == file);
    if known { dir.join(file) } else { folder::of_repo(dir, repo).join(file) }
}

/// Makes a folder with all above it.
pub fn make_folder(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("the folder {} cannot be made", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        make_folder(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        path
    }

    #[test]
    fn names_find_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let known = known::find("rwkv7-0.1b").unwrap();
        let a = touch(dir.join(known.file));
        let b = touch(dir.join("Mine.gguf"));
        let c = touch(dir.join("o--r/sub/x.st"));
        let d = touch(dir.join("o--hf/model.safetensors"));
        touch(dir.join("o--hf/config.json"));
        let find = |name: &str| find_in(dir, name).unwrap();
        assert_eq!(find("rwkv7-0.1b"), Some(a.clone()));
        assert_eq!(find("RWKV7-G1D-0.1B"), Some(a.clone()));
        assert_eq!(find(known.file), Some(a));
        assert_eq!(find("mine"), Some(b.clone()));
        assert_eq!(find("mine.GGUF"), Some(b));
        assert_eq!(find("o/r:sub/x.st"), Some(c.clone()));
        assert_eq!(find("o/r"), Some(c));
        assert_eq!(find("o/hf"), d.parent().map(Path::to_path_buf));
        for none in ["rwkv7-0.4b", "x", "o/r:sub/y.st", "o/none", "../mine", "", "o/r:../../etc"] {
            assert_eq!(find(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_fetches_it() {
        let dir = Path::new("/models");
        assert!(missing("rwkv7-0.1b", dir).ends_with("`hawfinch pull rwkv7-g1d-0.1b` fetches it"));
        assert!(missing("a/b:c.pth", dir).contains("`hawfinch pull a/b:c.pth`"));
        assert!(missing("a/b", dir).contains("`hawfinch pull a/b` fetches it, if the hub has it"));
        assert!(missing("dir/model.pth", dir).ends_with("/models"));
        assert!(missing("rwkv7-3b", dir).contains("known models near it: rwkv7"));
        assert!(missing("nothing", dir).contains("hawfinch pull --list"));
    }
}
