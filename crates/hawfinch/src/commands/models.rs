//! `hawfinch models`: what is in the models folder.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use hawfinch_model::{Config, format};

use crate::fail::usage;
use crate::hub::folder::{self, Entry};
use crate::output::{self, note, size};
use crate::system::folders;

/// Arguments of `models`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch models
  hawfinch models remove rwkv7-0.4b
  cd \"$(hawfinch models path)\"")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List RWKV models in the cache of Hugging Face's own programs too
    #[arg(long)]
    cache: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Print the models folder
    Path,
    /// Delete models from the models folder
    #[command(visible_alias = "rm")]
    Remove {
        /// Names as `hawfinch models` lists them, or known names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Lists, removes, or prints the folder.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = folder::models()?;
    match &args.action {
        None => list(args, &dir)?,
        Some(Action::Path) => writeln!(std::io::stdout(), "{}", dir.display())?,
        Some(Action::Remove { names, yes }) => return remove(&dir, names, *yes),
    }
    Ok(ExitCode::SUCCESS)
}

/// A listed model.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    path: PathBuf,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    /// Why it cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Row {
    fn of(entry: Entry) -> Row {
        let opened =
            format::open(&entry.path).and_then(|c| Ok((Config::infer(&c)?, c.format.name(), c.parameters())));
        let Entry { name, path, bytes } = entry;
        let (version, format, parameters, error) = match opened {
            Ok((config, format, n)) => (Some(config.version.number()), Some(format), Some(n), None),
            Err(e) => (None, None, None, Some(e.to_string())),
        };
        Row { name, path, bytes, version, parameters, format, error }
    }
}

fn list(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let mut rows: Vec<Row> = folder::list(dir)?.into_iter().map(Row::of).collect();
    if args.cache
        && let Some(cache) = folders::hugging_face()
    {
        // The cache holds models of every kind: only those that are ours.
        rows.extend(
            folder::hugging_face_cache(&cache).into_iter().map(Row::of).filter(|r| r.error.is_none()),
        );
    }
    let unfinished = folder::unfinished(dir);
    if args.json {
        let parts: Vec<_> =
            unfinished.iter().map(|(p, n)| serde_json::json!({ "path": p, "bytes": n })).collect();
        let all = serde_json::json!({ "folder": dir, "models": rows, "unfinished": parts });
        return output::json(&all);
    }
    let mut out = String::new();
    if rows.is_empty() {
        out.push_str(&format!(
            "no models in {}: fetch one with `hawfinch pull rwkv7-0.4b`, or put a file there\n",
            dir.display()
        ));
    } else {
        let width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).clamp(4, 60);
        out.push_str(&format!(
            "{:<width$} {:>5} {:>8} {:>10}  FORMAT\n",
            "NAME", "RWKV", "SIZE", "PARAMETERS"
        ));
        for r in &rows {
            let count = r.parameters.map_or_else(|| "?".into(), millions);
            let last = r.format.or(r.error.as_deref()).unwrap_or_default();
            out.push_str(&format!(
                "{:<width$} {:>5} {:>8} {count:>10}  {last}\n",
                r.name,
                r.version.unwrap_or("?"),
                size(r.bytes)
            ));
        }
        out.push_str(&format!("in {}\n", dir.display()));
    }
    for (path, n) in &unfinished {
        out.push_str(&format!(
            "unfinished download: {} ({}); `hawfinch pull` goes on with it\n",
            path.strip_prefix(dir).unwrap_or(path).display(),
            size(*n)
        ));
    }
    let mut to = output::stdout();
    to.write_all(out.as_bytes())?;
    Ok(to.flush()?)
}

/// Parameters as people say them: `191 M`, `1.53 B`.
fn millions(n: u64) -> String {
    match n {
        0..10_000_000 => format!("{:.2} M", n as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

fn remove(dir: &Path, names: &[String], yes: bool) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for name in names {
        found.push(to_remove(dir, name)?);
    }
    found.dedup_by(|a, b| a.path == b.path);
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(usage("removing asks first and there is no terminal to answer at: add --yes"));
        }
        let list: Vec<String> = found.iter().map(|e| format!("{} ({})", e.name, size(e.bytes))).collect();
        eprint!("Delete {} from {}? [y/N] ", list.join(", "), dir.display());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            note("Nothing was deleted.");
            return Ok(ExitCode::from(1));
        }
    }
    for e in found {
        let at = || format!("{} cannot be deleted", e.path.display());
        // A link is removed, never what it points at.
        match e.path.is_dir() && !e.path.is_symlink() {
            true => std::fs::remove_dir_all(&e.path).with_context(at)?,
            false => std::fs::remove_file(&e.path).with_context(at)?,
        }
        if let Some(parent) = e.path.parent().filter(|p| *p != dir && p.starts_with(dir)) {
            // The repository's folder, if that was its last file.
            let _ = std::fs::remove_dir(parent);
        }
        note(format!("deleted {} ({})", e.path.display(), size(e.bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The entry of that name: only what lies in the models folder can be removed.
fn to_remove(dir: &Path, name: &str) -> anyhow::Result<Entry> {
    let listed = folder::list(dir)?;
    let known = crate::hub::known::find(name).map(|k| k.file);
    let is = |e: &&Entry| Some(e.name.as_str()) == known || e.name.eq_ignore_ascii_case(name);
    let by_stem = |e: &&Entry| e.stem().eq_ignore_ascii_case(name);
    if let Some(e) = listed.iter().find(is) {
        return Ok(e.clone());
    }
    match listed.iter().filter(by_stem).collect::<Vec<_>>().as_slice() {
        [one] => Ok((*one).clone()),
        [] => bail!("there is no model `{}` in {}", name.escape_debug(), dir.display()),
        many => {
            let names: Vec<_> = many.iter().map(|e| e.name.as_str()).collect();
            bail!("`{name}` may mean {}: give the whole name", names.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("models"), dir.path().join("x.pth"));
        std::fs::create_dir(&inside).unwrap();
        for f in [&outside, &inside.join("a.pth"), &inside.join("a.gguf"), &inside.join("b.st")] {
            std::fs::write(f, "1").unwrap();
        }
        assert_eq!(to_remove(&inside, "B").unwrap().path, inside.join("b.st"));
        assert_eq!(to_remove(&inside, "a.PTH").unwrap().path, inside.join("a.pth"));
        assert!(to_remove(&inside, "a").unwrap_err().to_string().contains("a.gguf or a.pth"));
        for name in ["../x.pth", outside.to_str().unwrap(), "", ".", "..", "b"].iter().filter(|n| **n != "b")
        {
            assert!(to_remove(&inside, name).is_err(), "{name}");
        }
    }

    #[test]
    fn numbers_of_parameters() {
        assert_eq!(
            [millions(1_234_567), millions(191_084_544), millions(1_527_668_736)],
            ["1.23 M", "191 M", "1.53 B"]
        );
    }
}
