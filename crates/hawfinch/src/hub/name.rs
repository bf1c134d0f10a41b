//! What a name given to `pull` means, and which names are safe to make paths and addresses of.

use anyhow::bail;

use super::known::{self, Known};
use crate::fail::usage;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A model of the list.
    Known(&'static Known),
    /// A whole repository: its one model.
    Repo(String),
    /// One file of a repository.
    File {
        /// `owner/repo`
        repo: String,
        /// Path within it.
        file: String,
    },
}

impl Wanted {
    /// Reads a short name, `owner/repo` or `owner/repo:file`.
    ///
    /// # Errors
    /// A name of no such form, or one that would lead out of the models folder: exit code 2.
    pub fn parse(name: &str) -> anyhow::Result<Wanted> {
        if let Some(k) = known::find(name) {
            return Ok(Wanted::Known(k));
        }
        if let Some((r, f)) = name.split_once(':') {
            repo(r).and_then(|()| file(f)).map_err(|e| usage(e.to_string()))?;
            return Ok(Wanted::File { repo: r.into(), file: f.into() });
        }
        if name.contains('/') {
            repo(name).map_err(|e| usage(e.to_string()))?;
            return Ok(Wanted::Repo(name.into()));
        }
        let near = similar(name);
        let near = if near.is_empty() { String::new() } else { format!(" (near it: {})", near.join(", ")) };
        Err(usage(format!(
            "no model is known by the name `{name}`{near}: see `hawfinch pull --list`, or name a file of the hub \
             as owner/repo:file"
        )))
    }
}

/// Known names that hold a part of `name`, at most four.
pub fn similar(name: &str) -> Vec<&'static str> {
    let name = name.to_ascii_lowercase();
    let parts: Vec<&str> = name.split(['-', '_', ' ', '/']).filter(|p| p.len() > 1).collect();
    let score = |k: &Known| {
        let text = format!("{} {}", k.names.join(" "), k.file.to_ascii_lowercase());
        parts.iter().filter(|p| text.contains(**p)).count()
    };
    let mut all: Vec<_> = known::all().iter().map(|k| (score(k), k)).filter(|(s, _)| *s > 0).collect();
    all.sort_by_key(|(s, _)| std::cmp::Reverse(*s));
    let best = all.first().map_or(0, |(s, _)| *s);
    all.iter().filter(|(s, _)| *s == best).take(4).map(|(_, k)| k.name()).collect()
}

/// Checks `owner/repo` as Hugging Face spells it.
pub fn repo(id: &str) -> anyhow::Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    match id.split_once('/') {
        Some((owner, name)) if good(owner) && good(name) => Ok(()),
        _ => bail!("`{}` is not the name of a repository: it has the form owner/repo", id.escape_debug()),
    }
}

/// Checks the path of a file within a repository: plain names between slashes, nothing hidden, nothing
/// that any system reads as a way out of the folder.
pub fn file(path: &str) -> anyhow::Result<()> {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with(['.', ' '])
            && !part
                .chars()
                .any(|c| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|'))
    };
    if path.len() <= 512 && path.split('/').all(good) {
        return Ok(());
    }
    bail!(
        "`{}` is refused as the name of a file: it must be a plain path within the repository",
        path.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        assert!(matches!(Wanted::parse("rwkv7-0.1b"), Ok(Wanted::Known(_))));
        assert_eq!(Wanted::parse("a/b").unwrap(), Wanted::Repo("a/b".into()));
        let file = Wanted::File { repo: "a/b".into(), file: "c d/e%.pth".into() };
        assert_eq!(Wanted::parse("a/b:c d/e%.pth").unwrap(), file);
    }

    #[test]
    fn ways_out_of_the_folder_are_refused() {
        for name in [
            "a/b:../c",
            "a/b:/etc/passwd",
            "a/b:c/../../d",
            "a/b:c\\d",
            "a/b:.ssh",
            "a/b:",
            "a/b:c//d",
            "../b",
            "a/..",
            "a/b/c",
            "/a",
            "a/",
            "a/b:C:x",
            "a/b:x\0y",
            "a/b:x\ny",
            "a/b:nul.",
            "",
            "a/b?x=1",
            "a/b#c",
            "a b/c",
            "-a/b",
            "a/b:x ",
        ] {
            let e = Wanted::parse(name).unwrap_err();
            assert!(e.is::<crate::fail::Usage>(), "{name}: {e}");
            assert!(!e.to_string().contains(['\0', '\n']), "{e}");
        }
        assert!(file(&"a/".repeat(300)).is_err());
    }

    #[test]
    fn a_name_that_is_not_known_brings_near_ones() {
        let e = Wanted::parse("rwkv7-g1-3b").unwrap_err().to_string();
        assert!(e.contains("near it: rwkv7-g1"), "{e}");
        assert!(Wanted::parse("zzz").unwrap_err().to_string().contains("pull --list"));
    }
}
