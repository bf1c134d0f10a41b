//! The data of a run: a data set that is there, or one made of texts in the run's folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hawfinch_data::{
    HeldOut, Inputs, LossOn, Mixing, Plan, Policy, Reading, Shard, Source, build, held_out_name,
};
use hawfinch_model::{Checkpoint, Config};
use hawfinch_tokenizer::Tokenizer;
use hawfinch_tokenizer::chat::Format;
use hawfinch_train::config::RunConfig;
use hawfinch_train::trainer::Question;

use crate::commands::data::report::brief;
use crate::commands::data::watch::watched;
use crate::fail::usage;
use crate::family;
use crate::output::note;

/// Names of data sets to train on and to validate on.
pub struct Names {
    /// To train on.
    pub train: PathBuf,
    /// To validate on.
    pub validation: Option<PathBuf>,
}

/// Finds the data of a run, or makes it; of several ranks only the first does. `from` is the model that the run begins with.
///
/// # Errors
/// Texts that cannot be read, a full disk; a validation set that is not there.
pub fn find(
    config: &RunConfig,
    tokenizer: &Tokenizer,
    first: bool,
    from: Option<&Checkpoint>,
) -> anyhow::Result<Names> {
    let train = match &config.data {
        Some(name) => name.clone(),
        None if first => of_text(config, tokenizer, from)?,
        None => {
            let (_, name) = place(config);
            if !name_exists(&name) {
                anyhow::bail!(
                    "{} is not there: rank 0 made it of `text` in `out`, which all ranks must see",
                    name.display()
                );
            }
            name
        }
    };
    let validation = match &config.validation {
        Some(name) => Some(name.clone()),
        // One in which no document was held out is none.
        None => Some(held_out_name(&train)).filter(|name| {
            name_exists(name) && hawfinch_data::binidx::Reader::open(name).is_ok_and(|r| r.tokens() > 1)
        }),
    };
    Ok(Names { train, validation })
}

fn name_exists(name: &Path) -> bool {
    let (bin, idx) = hawfinch_data::binidx::paths(name);
    bin.is_file() && idx.is_file()
}

/// Where the data set of the run's texts lies.
fn place(config: &RunConfig) -> (PathBuf, PathBuf) {
    let folder = config.out.join("data");
    let name = folder.join("text");
    (folder, name)
}

/// Where what was made so far is kept, after Ctrl-C.
pub fn kept(config: &RunConfig) -> Option<PathBuf> {
    Some(build::work_folder(&place(config).1)).filter(|work| work.is_dir())
}

/// What to do about a line that is no document: `train` has no flag to leave such out.
const SKIP: &str = "mend it, or make a data set with `hawfinch data build --bad-lines skip` and give it as `data` instead of `text`";

/// How conversations are written: as was asked for, as a run that goes on did, or as the model talks that it begins with.
fn template(
    config: &RunConfig,
    record: &Path,
    from: Option<&Checkpoint>,
    tokenizer: &Tokenizer,
) -> anyhow::Result<String> {
    if let Some(name) = &config.template {
        return Ok(name.clone());
    }
    let before = fs::read_to_string(record).ok();
    let before = before.and_then(|plan| serde_json::from_str::<serde_json::Value>(&plan).ok());
    if let Some(name) = before.as_ref().and_then(|plan| plan["reading"]["template"].as_str()) {
        return Ok(name.into());
    }
    let usual = Reading::default().template;
    let Some(from) = from else { return Ok(usual) };
    let own = family::of_checkpoint(from, &Config::infer(from)?, tokenizer)?;
    match own.name() {
        // One that nobody has taught to talk.
        "completion" => Ok(usual),
        name if Format::named(name).is_some() => Ok(name.into()),
        _ => {
            note(format_args!(
                "the model brings a chat template of its own, by which no data are written: conversations are written by `{usual}`, which `chat --template {usual}` talks, or by another `template`"
            ));
            Ok(usual)
        }
    }
}

/// A data set of the run's texts, made unless it is there.
fn of_text(config: &RunConfig, tokenizer: &Tokenizer, from: Option<&Checkpoint>) -> anyhow::Result<PathBuf> {
    let (folder, name) = place(config);
    let record = folder.join("plan.json");
    let sources = config.text.iter().map(|s| Source::parse(s)).collect::<Result<Vec<_>, _>>();
    let sources = sources.map_err(|e| usage(e.to_string()))?;
    let held_out = (config.held_out > 0.0).then_some(HeldOut::Share(config.held_out));
    let mixing = Mixing { held_out, dedup: true, ..Mixing::default() };
    // As `data build` does.
    let loss_on = config.loss_on.unwrap_or(LossOn::Assistant);
    let template = template(config, &record, from, tokenizer)?;
    let reading = Reading { loss_on, template, ..Reading::default() };
    let plan = Inputs::find(&sources, None)
        .and_then(|inputs| Plan::new(inputs, tokenizer, reading, mixing))
        .map_err(|e| usage(e.to_string()))?;
    let made_of = serde_json::to_string(&plan)?;
    if name_exists(&name) && fs::read_to_string(&record).is_ok_and(|there| there == made_of) {
        return Ok(name);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let _ = fs::remove_file(&record);
    let summary = watched(None, |control| {
        build::tokenise_shard(&plan, &name, Shard::WHOLE, Policy::default(), true, tokenizer, control)?;
        build::finish(&plan, &name, control)
    })
    .map_err(|e| match e {
        hawfinch_data::Error::Document { place, what, .. } => {
            hawfinch_data::Error::Document { place, what, advice: SKIP }
        }
        e => e,
    })?;
    let find =
        if summary.replaced_utf8 > 0 { " (`data build --invalid-utf8 fail` names the first)" } else { "" };
    note(format_args!("data: {}{find}", brief(&summary)));
    fs::write(&record, made_of).with_context(|| format!("cannot write {}", record.display()))?;
    Ok(name)
}

/// Questions of a probe at most.
const QUESTIONS: usize = 1000;

/// The texts of a JSONL file (`text`), each with its last word as what is asked for.
///
/// # Errors
/// A file that cannot be read, a line that is no such object, no text with a last word.
pub fn probe(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Question>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut questions = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).take(QUESTIONS) {
        let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
        let Some(text) = value.as_ref().and_then(|v| v["text"].as_str()) else {
            return Err(usage(format!("{}, line {}: it is no object with a `text`", path.display(), n + 1)));
        };
        // The word with the space before it: what a model goes on with.
        let text = text.trim_end();
        let Some(at) = text.rfind(char::is_whitespace).filter(|at| *at > 0) else { continue };
        let (mut ids, asked) =
            (tokenizer.encode(&text.as_bytes()[..at]), tokenizer.encode(&text.as_bytes()[at..]));
        ids.extend(&asked);
        questions.push(Question { ids, asked: asked.len() });
    }
    if questions.is_empty() {
        return Err(usage(format!("{} has no text of two words to ask for the last of", path.display())));
    }
    Ok(questions)
}
