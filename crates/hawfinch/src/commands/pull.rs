//! `hawfinch pull`: fetch models from a Hugging Face hub.

use std::io::Write;
use std::process::ExitCode;

use crate::fail::usage;
use crate::hub::folder;
use crate::hub::known::{self, Known};
use crate::output::{self, size};

/// Arguments of `pull`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hawfinch pull --list                     models known by name
  hawfinch pull rwkv7-0.4b                 the newest RWKV-7 of that size
  hawfinch pull OWNER/REPO                 a repository with one model, or a Hugging Face folder
  hawfinch pull BlinkDL/rwkv-6-world:RWKV-x060-World-1B6-v2.1-20240328-ctx4096.pth

An interrupted download goes on where it ended. HF_ENDPOINT names another hub, HF_TOKEN logs in,
HAWFINCH_MODELS is the folder that models go to (`hawfinch models path` prints it).")]
pub struct Args {
    /// Known names, owner/repo, or owner/repo:file
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// List the models known by name, and which of them are here
    #[arg(long)]
    list: bool,
    /// With --list: print JSON
    #[arg(long, requires = "list")]
    json: bool,
    /// Fetch even what is already here
    #[arg(long)]
    force: bool,
}

/// Fetches or lists.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        if !args.names.is_empty() {
            return Err(usage("give either names or --list"));
        }
        list(args.json)?;
    } else if args.names.is_empty() {
        return Err(usage("name a model to fetch; `hawfinch pull --list` shows those known by name"));
    } else {
        fetch(args)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> anyhow::Result<()> {
    let dir = folder::models()?;
    let here = |k: &Known| dir.join(k.file).is_file();
    if json {
        #[derive(serde::Serialize)]
        struct Row<'a> {
            #[serde(flatten)]
            known: &'a Known,
            here: bool,
        }
        let rows: Vec<_> = known::all().iter().map(|k| Row { known: k, here: here(k) }).collect();
        return output::json(&rows);
    }
    let mut out = String::new();
    out.push_str(&format!(
        "{:<18} {:<12} {:>6} {:>8}  {:<5}  {}\n",
        "NAME", "ALSO", "RWKV", "SIZE", "VOCAB", "REPOSITORY"
    ));
    for k in known::all() {
        let large = k.bytes.map_or_else(|| k.parameters.to_owned(), size);
        let also = k.names[1..].join(" ");
        let mark = if here(k) { "  (here)" } else { "" };
        out.push_str(&format!(
            "{:<18} {:<12} {:>6} {:>8}  {:<5}  {}{mark}\n",
            k.name(),
            also,
            k.version,
            large,
            format!("{:?}", k.vocabulary),
            k.repo
        ));
    }
    out.push_str(
            "SIZE is that of the file where it is known, else the number of parameters. Anything else on the hub: \
             owner/repo or owner/repo:file.\n",
        );
    let mut to = output::stdout();
    to.write_all(out.as_bytes())?;
    Ok(to.flush()?)
}

#[cfg(not(feature = "hub"))]
fn fetch(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!(
        "this hawfinch was built without the feature `hub`: download the model by hand into {}",
        folder::models()?.display()
    )
}

#[cfg(feature = "hub")]
fn fetch(args: &Args) -> anyhow::Result<()> {
    use crate::hub::download::Hub;
    use crate::hub::name::Wanted;

    // All names are read before anything is fetched.
    let wanted = args.names.iter().map(|n| Wanted::parse(n)).collect::<anyhow::Result<Vec<_>>>()?;
    let hub = Hub::from_env()?;
    let dir = folder::models()?;
    for (wanted, name) in wanted.iter().zip(&args.names) {
        let files = work::files(&hub, &dir, wanted)?;
        for (source, target) in &files {
            work::one(&hub, source, target, args.force)?;
        }
        work::say(name, &files);
    }
    Ok(())
}

#[cfg(feature = "hub")]
mod work {
    use std::path::{Path, PathBuf};

    use anyhow::{Context, anyhow, bail};
    use hawfinch_model::{Config, format};
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

    use super::folder;
    use crate::hub::download::{Hub, Source};
    use crate::hub::known::Vocabulary;
    use crate::hub::name::{self, Wanted};
    use crate::hub::{self, PILE_TOKENIZER};
    use crate::output::{note, size};
    use crate::progress::Progress;

    /// What to fetch, and where to; the model comes first.
    pub fn files(hub: &Hub, dir: &Path, wanted: &Wanted) -> anyhow::Result<Vec<(Source, PathBuf)>> {
        let plain = |repo: &str, file: &str| {
            let source = Source { repo: repo.into(), file: file.into(), sha256: None };
            (source, hub::place(dir, repo, file))
        };
        Ok(match wanted {
            Wanted::Known(k) => {
                let (model, target) = plain(k.repo, k.file);
                let mut files = vec![(Source { sha256: k.sha256, ..model }, target)];
                if k.vocabulary == Vocabulary::Pile {
                    files.push((pile_tokenizer(), dir.join(PILE_TOKENIZER)));
                }
                files
            }
            Wanted::File { repo, file } => vec![plain(repo, file)],
            Wanted::Repo(repo) => {
                let bar = asking(hub);
                let listed = hub.files(repo).with_context(|| by_hand_repo(hub, dir, repo))?;
                drop(bar);
                chosen(repo, &listed)?.iter().map(|f| plain(repo, f)).collect()
            }
        })
    }

    /// A hub may take its time to answer.
    fn asking(hub: &Hub) -> Progress {
        Progress::time(&format!("asking {}", hub.endpoint()))
    }

    fn pile_tokenizer() -> Source {
        Source { repo: "spaces/BlinkDL/Raven-RWKV-7B".into(), file: PILE_TOKENIZER.into(), sha256: None }
    }

    /// Of a repository's files, those to fetch for its one model.
    pub fn chosen(repo: &str, listed: &[String]) -> anyhow::Result<Vec<String>> {
        // Names that would not be safe as paths are as good as not there.
        let safe: Vec<&String> = listed.iter().filter(|f| name::file(f).is_ok()).collect();
        let models: Vec<&String> =
            safe.iter().copied().filter(|f| folder::is_model_file(Path::new(f))).collect();
        let top = |f: &&&String| !f.contains('/');
        let shards: Vec<&String> =
            safe.iter().filter(top).copied().filter(|f| f.ends_with(".safetensors")).collect();
        if safe.iter().any(|f| *f == "config.json") && !shards.is_empty() {
            // A Hugging Face folder: its weights and the small files that say what they are.
            let small = [
                "config.json",
                "model.safetensors.index.json",
                "generation_config.json",
                "rwkv_vocab_v20230424.txt",
            ];
            let small =
                safe.iter().copied().filter(|f| small.contains(&f.as_str()) || f.starts_with("tokenizer"));
            return Ok(shards.into_iter().chain(small).cloned().collect());
        }
        match models.as_slice() {
            [one] => Ok(vec![(*one).clone()]),
            [] => bail!("{repo} holds no model file (.pth, .safetensors, .st, .gguf, .bin)"),
            many => {
                let shown: Vec<String> =
                    many.iter().map(|f| format!("\n  hawfinch pull {}", quoted(repo, f))).collect();
                bail!("{repo} holds {} models, name one of them:{}", many.len(), shown.concat())
            }
        }
    }

    fn quoted(repo: &str, file: &str) -> String {
        let plain = file.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        if plain { format!("{repo}:{file}") } else { format!("'{repo}:{file}'") }
    }

    /// Fetches one file, unless it is there.
    pub fn one(hub: &Hub, source: &Source, target: &Path, force: bool) -> anyhow::Result<()> {
        if target.is_file() && !force {
            note(format!("{} is here already: {}", source.file, target.display()));
            return Ok(());
        }
        let hand = || {
            format!(
                "{} was not fetched; where there is no network, download {} elsewhere and put it at {}",
                source.file,
                hub.address(source),
                target.display()
            )
        };
        // The reason first: `{:#}` prints context before its cause.
        let or_hand = |e: anyhow::Error| anyhow!("{e:#}; {}", hand());
        let asking = asking(hub);
        let remote = hub.look_up(source).map_err(or_hand)?;
        drop(asking);
        if let Some(parent) = target.parent() {
            hub::make_folder(parent)?;
        }
        let large = remote.bytes.map_or_else(String::new, |n| format!(" ({})", size(n)));
        note(format!("fetching {}{large} from {}", source.file, hub.endpoint()));
        let bar = bar(remote.bytes);
        let done = hub.fetch(source, &remote, target, &bar);
        bar.finish_and_clear();
        done.map_err(or_hand)?;
        let checked = match source.sha256.is_some() || remote.sha256.is_some() {
            true => "SHA-256 verified",
            false => "size verified; the hub gives no hash of it",
        };
        note(format!("{} ({checked})", target.display()));
        Ok(())
    }

    fn by_hand_repo(hub: &Hub, dir: &Path, repo: &str) -> String {
        format!(
            "{repo} was not fetched (where there is no network, download its files from {}/{repo} elsewhere and put \
             them into {})",
            hub.endpoint(),
            folder::of_repo(dir, repo).display()
        )
    }

    fn bar(size: Option<u64>) -> ProgressBar {
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let (bar, style) = match size {
            Some(n) => (
                ProgressBar::new(n),
                style("{bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} {msg}"),
            ),
            None => {
                (ProgressBar::no_length(), style("{spinner} {decimal_bytes}  {decimal_bytes_per_sec} {msg}"))
            }
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.with_style(style)
    }

    /// What was fetched, as hawfinch sees it.
    pub fn say(name: &str, files: &[(Source, PathBuf)]) {
        let Some((_, model)) = files.first() else { return };
        let folder = model.parent().filter(|_| files.len() > 1).filter(|p| p.join("config.json").is_file());
        let opened = format::open(folder.unwrap_or(model)).and_then(|c| Config::infer(&c));
        match opened {
            Ok(c) => note(format!(
                "{}, {} layers of width {}: try `hawfinch chat {name}`",
                c.version, c.layers, c.width
            )),
            Err(e) => note(format!("note: hawfinch cannot run this file: {e}")),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::chosen;

        fn pick(files: &[&str]) -> Result<Vec<String>, String> {
            let files: Vec<String> = files.iter().map(|s| s.to_string()).collect();
            chosen("o/r", &files).map_err(|e| e.to_string())
        }

        #[test]
        fn the_one_model_of_a_repository() {
            assert_eq!(pick(&["README.md", "x.pth"]).unwrap(), ["x.pth"]);
            assert_eq!(pick(&["README.md", "../evil.pth", "a/b.gguf"]).unwrap(), ["a/b.gguf"]);
            assert!(pick(&["README.md"]).unwrap_err().contains("holds no model"));
            let many = pick(&["a.pth", "b 50%.pth"]).unwrap_err();
            assert!(many.contains("hawfinch pull o/r:a.pth") && many.contains("'o/r:b 50%.pth'"), "{many}");
        }

        #[test]
        fn a_hugging_face_folder_is_one_model() {
            let files = [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "tokenizer.json",
                "modeling_rwkv.py",
                "old/model.safetensors",
            ];
            let want = [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "config.json",
                "model.safetensors.index.json",
                "tokenizer.json",
            ];
            assert_eq!(pick(&files).unwrap(), want);
        }
    }
}
