//! The RWKV models that have a short name. The list itself is `known.txt`.

use std::sync::LazyLock;

/// Which vocabulary a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Vocabulary {
    /// RWKV World: built into hawfinch.
    World,
    /// GPT-NeoX 20B: `20B_tokenizer.json`, fetched beside the model.
    Pile,
}

/// One known model.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Known {
    /// Short names; the first is the one shown.
    pub names: Vec<&'static str>,
    /// Its size as its authors give it.
    pub parameters: &'static str,
    /// RWKV version (4, 5, 6, 7).
    pub version: &'static str,
    /// Vocabulary.
    pub vocabulary: Vocabulary,
    /// Repository, `owner/repo`.
    pub repo: &'static str,
    /// File within it.
    pub file: &'static str,
    /// Size, where known for certain.
    pub bytes: Option<u64>,
    /// SHA-256 in lower-case hexadecimals, where known for certain.
    pub sha256: Option<&'static str>,
}

impl Known {
    /// The name shown.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    fn parse(line: &'static str) -> Option<Known> {
        let mut cells = line.split(" | ").map(str::trim);
        let mut cell = || cells.next();
        let known = Known {
            names: cell()?.split(' ').collect(),
            parameters: cell()?,
            version: cell()?,
            vocabulary: match cell()? {
                "World" => Vocabulary::World,
                "Pile" => Vocabulary::Pile,
                _ => return None,
            },
            repo: cell()?,
            file: cell()?,
            bytes: cell().filter(|c| *c != "-").and_then(|c| c.parse().ok()),
            sha256: cell().filter(|c| *c != "-"),
        };
        cell().is_none().then_some(known)
    }
}

/// All of them, in the order in which they are shown.
pub fn all() -> &'static [Known] {
    static ALL: LazyLock<Vec<Known>> = LazyLock::new(|| {
        let lines = include_str!("known.txt").lines().filter(|l| !l.starts_with('#'));
        lines.filter_map(Known::parse).collect()
    });
    &ALL
}

/// The model of that short name, whatever its letter case.
pub fn find(name: &str) -> Option<&'static Known> {
    all().iter().find(|k| k.names.iter().any(|n| n.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::hub::name;

    #[test]
    fn every_line_is_a_model_with_names_of_its_own() {
        let lines = include_str!("known.txt").lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(all().len(), lines);
        let mut seen = HashSet::new();
        for k in all() {
            assert!(k.names.iter().all(|n| seen.insert(n.to_ascii_lowercase())), "{}", k.name());
            assert!(name::repo(k.repo).is_ok() && name::file(k.file).is_ok(), "{}", k.name());
            assert!(k.file.ends_with(".pth") && ["4", "5", "6", "7"].contains(&k.version));
            let hex = |s: &str| {
                s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            };
            assert!(k.sha256.is_none_or(hex), "{}", k.name());
            // Two bytes a parameter, nearly: a size that does not match its name is a slip of the list.
            if let Some(bytes) = k.bytes {
                let (digits, unit) = k.parameters.split_at(k.parameters.len() - 1);
                let n = digits.parse::<f64>().unwrap() * if unit == "B" { 1e9 } else { 1e6 };
                assert!((0.85..2.2).contains(&(bytes as f64 / 2.0 / n)), "{} {bytes}", k.name());
            }
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("RWKV7-0.1B").unwrap().name(), "rwkv7-g1d-0.1b");
        assert_eq!(find("rwkv4-pile-169m").unwrap().vocabulary, Vocabulary::Pile);
        assert_eq!(find("gpt-2"), None);
    }
}
