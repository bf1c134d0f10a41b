//! What a corpus is made of: `[LABEL=]PATH[:WEIGHT]`, where PATH is a file, a folder, a pattern or `-`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::open::{self, Encoding, Kind};

/// A source as it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// What its documents count as in the summary; `None`: each file's name up to its first dot.
    pub label: Option<String>,
    /// A file, a folder (all files below it), a pattern (`*`, `?`, `[a-z]`, `**`), or `-` for standard input.
    pub path: String,
    /// Share of the tokens, relative to the other sources' weights.
    pub weight: Option<f64>,
}

impl Source {
    /// Reads `[LABEL=]PATH[:WEIGHT]`. What is a file or folder as it stands is taken as a path, whatever it contains;
    /// a weight is a number or a percentage.
    ///
    /// # Errors
    /// The weight is not above 0, or no path is left.
    pub fn parse(text: &str) -> Result<Source> {
        if Path::new(text).exists() {
            return Ok(Source { label: None, path: text.into(), weight: None });
        }
        let (rest, weight) = match text.rsplit_once(':').map(|(rest, w)| (rest, number(w))) {
            Some((rest, Some(weight))) => (rest, Some(weight)),
            _ => (text, None),
        };
        if weight.is_some_and(|w| !(w > 0.0 && w.is_finite())) {
            return Err(Error::request(format!(
                "`{text}`: a weight is a number above 0, such as 0.7 or 70%"
            )));
        }
        // `./a=b/c` keeps its sign.
        let (label, path) = match rest.split_once('=') {
            Some((label, path))
                if !label.is_empty() && !label.contains(['/', '\\']) && !Path::new(rest).exists() =>
            {
                (Some(label.to_owned()), path)
            }
            _ => (None, rest),
        };
        if path.is_empty() {
            return Err(Error::request(format!(
                "`{text}` names no file: write LABEL=PATH:WEIGHT, or PATH alone"
            )));
        }
        Ok(Source { label, path: path.into(), weight })
    }
}

fn number(text: &str) -> Option<f64> {
    match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok().map(|p| p / 100.0),
        None => text.parse().ok(),
    }
}

/// A file to read, in its place among all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it is; `-` for standard input.
    pub path: PathBuf,
    /// Index of its source.
    pub source: usize,
    /// Index of its label in [`Inputs::labels`].
    pub label: usize,
    /// Its size on the disk in bytes; 0 for standard input.
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970; 0 where the system does not say.
    pub changed: u64,
    /// What it holds.
    pub kind: Kind,
    /// How it is compressed.
    pub encoding: Encoding,
}

impl InputFile {
    /// Whether this is standard input.
    pub fn is_stdin(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Its name for a person.
    pub fn shown(&self) -> String {
        if self.is_stdin() { "standard input".into() } else { self.path.display().to_string() }
    }
}

/// All files of all sources, in the order in which their documents are numbered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The sources as asked for.
    pub sources: Vec<Source>,
    /// Labels, each once, in order of first use.
    pub labels: Vec<String>,
    /// The files: by source, within it by name.
    pub files: Vec<InputFile>,
}

impl Inputs {
    /// Finds the files and looks at the first bytes of each. `kind` is what all of them hold, if the caller knows.
    ///
    /// # Errors
    /// A source has no file, a file cannot be read or is of a kind that is not read here (the sentence says which),
    /// standard input is named twice, only some sources have weights, or there is no source.
    pub fn find(sources: &[Source], kind: Option<Kind>) -> Result<Inputs> {
        if sources.is_empty() {
            return Err(Error::request(
                "no source is given: name a file, a folder, a pattern or - for standard input",
            ));
        }
        let weighted = sources.iter().filter(|s| s.weight.is_some()).count();
        if weighted != 0 && weighted != sources.len() {
            return Err(Error::request(
                "some sources have a weight and some have none: give every source one, as PATH:WEIGHT, or none",
            ));
        }
        let mut inputs = Inputs { sources: sources.to_vec(), labels: Vec::new(), files: Vec::new() };
        let mut known = BTreeMap::new();
        for (index, source) in sources.iter().enumerate() {
            for path in paths(source)? {
                let name = source.label.clone().unwrap_or_else(|| stem(&path));
                let label = *known.entry(name.clone()).or_insert_with(|| {
                    inputs.labels.push(name);
                    inputs.labels.len() - 1
                });
                inputs.files.push(look(path, index, label, kind)?);
            }
        }
        if inputs.files.iter().filter(|f| f.is_stdin()).count() > 1 {
            return Err(Error::request("standard input can be read only once: name - once"));
        }
        Ok(inputs)
    }

    /// Whether standard input is among them.
    pub fn reads_stdin(&self) -> bool {
        self.files.iter().any(InputFile::is_stdin)
    }
}

/// A file's name up to its first dot.
fn stem(path: &Path) -> String {
    if path.as_os_str() == "-" {
        return "stdin".into();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.find('.') {
        Some(at) if at > 0 => name[..at].to_owned(),
        _ => name,
    }
}

/// The files of a source.
fn paths(source: &Source) -> Result<Vec<PathBuf>> {
    let path = Path::new(&source.path);
    if source.path == "-" || path.is_file() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    if path.is_dir() {
        below(path, &mut found)?;
        found.sort_unstable();
    } else if source.path.contains(['*', '?', '[']) {
        let pattern = glob::glob(&source.path).map_err(|e| {
            Error::request(format!("`{}` is no pattern of file names: {}", source.path, e.msg))
        })?;
        for entry in pattern {
            let entry = entry.map_err(|e| Error::Read { path: e.path().into(), source: e.into() })?;
            if entry.is_file() {
                found.push(entry);
            }
        }
        found.sort_unstable();
    } else {
        path.metadata().map_err(|e| Error::read(path, e))?;
        // A pipe or a device: whether it is the same as before cannot be told.
        return Err(Error::request(format!(
            "{} is neither a file nor a folder: feed it to standard input and name -",
            path.display()
        )));
    }
    if found.is_empty() {
        return Err(Error::request(format!("`{}` has no file", source.path)));
    }
    Ok(found)
}

/// All files below a folder; hidden ones are left out.
fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Links to folders are not followed: they may lead in a circle.
        let kind = entry.file_type().map_err(|e| Error::read(&path, e))?;
        if kind.is_dir() {
            below(&path, found)?;
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

fn look(path: PathBuf, source: usize, label: usize, asked: Option<Kind>) -> Result<InputFile> {
    if path.as_os_str() == "-" {
        // What it holds shows when it is read.
        let (kind, encoding) = (asked.unwrap_or(Kind::Unknown), Encoding::Unknown);
        return Ok(InputFile { path, source, label, size: 0, changed: 0, kind, encoding });
    }
    let meta = path.metadata().map_err(|e| Error::read(&path, e))?;
    let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let (kind, encoding) = open::probe(&path, asked)?;
    let changed = since.map_or(0, |d| d.as_nanos() as u64);
    Ok(InputFile { path, source, label, size: meta.len(), changed, kind, encoding })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_weights() {
        let parsed = |text: &str| {
            let s = Source::parse(text).unwrap();
            (s.label, s.path, s.weight)
        };
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parsed("en.jsonl"), (None, "en.jsonl".into(), None));
        assert_eq!(parsed("en=x/*.jsonl:70%"), (some("en"), "x/*.jsonl".into(), Some(0.7)));
        assert_eq!(parsed("code=c.txt:2"), (some("code"), "c.txt".into(), Some(2.0)));
        assert_eq!(parsed("./lang=en/a.txt"), (None, "./lang=en/a.txt".into(), None));
        assert_eq!(parsed("C:\\x.txt"), (None, "C:\\x.txt".into(), None));
        assert_eq!(parsed("-:0.5"), (None, "-".into(), Some(0.5)));
        for bad in ["a:0", "a:-1", "a:inf", "a:nan", "x="] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_come_in_order_whatever_the_folder_says() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        std::fs::create_dir(path("deep")).unwrap();
        for name in ["b.txt", "a.x.txt", "deep/c.txt", ".hidden"] {
            std::fs::write(path(name), "text").unwrap();
        }
        let whole = Source::parse(place.path().to_str().unwrap()).unwrap();
        let inputs = Inputs::find(&[whole], None).unwrap();
        assert_eq!(inputs.labels, ["a", "b", "c"]);
        let pattern = Source::parse(&format!("all={}/*.txt", place.path().display())).unwrap();
        let inputs = Inputs::find(&[pattern], None).unwrap();
        assert_eq!((inputs.labels, inputs.files.len()), (vec!["all".to_owned()], 2));
        let said = |text: &str| Inputs::find(&[Source::parse(text).unwrap()], None).unwrap_err().to_string();
        assert!(said(&format!("{}/*.none", place.path().display())).contains("has no file"));
        assert!(said("/nonexistent/file").contains("cannot read /nonexistent/file"));
        assert!(Inputs::find(&[], None).is_err());
        let twice = [Source::parse("-").unwrap(), Source::parse("-").unwrap()];
        assert!(Inputs::find(&twice, None).unwrap_err().to_string().contains("only once"));
        let half = [Source::parse("-:1").unwrap(), Source::parse("b").unwrap()];
        assert!(Inputs::find(&half, None).unwrap_err().to_string().contains("every source"));
    }
}
