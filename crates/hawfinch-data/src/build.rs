//! From sources to a data set, in one run or in shards, going on where an earlier run ended.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hawfinch_tokenizer::Tokenizer;

use crate::assemble::{assemble, find_parts, held_out_name};
use crate::binidx;
use crate::control::{Control, Policy};
use crate::error::{Error, Result};
use crate::mask::mask_name;
use crate::plan::{Plan, Shard};
use crate::summary::Summary;
use crate::tokenise::tokenise;

/// The work folder of a data set: `NAME.parts`.
pub fn work_folder(out: &Path) -> PathBuf {
    let (bin, _) = binidx::paths(out);
    let mut name: OsString = bin.with_extension("").into();
    name.push(".parts");
    name.into()
}

/// The files that a plan writes or takes away: without a mask of their own, data sets must not lie beside another's.
pub fn files(plan: &Plan, out: &Path) -> Vec<PathBuf> {
    let mut names = vec![out.to_path_buf()];
    names.extend(plan.mixing.held_out.map(|_| held_out_name(out)));
    names.extend(names.clone().iter().map(|name| mask_name(name)));
    names.iter().flat_map(|name| <[PathBuf; 2]>::from(binidx::paths(name))).collect()
}

/// Turns the texts of a plan into parts, this shard's of them, in the work folder of `out`. Parts that are there are not
/// made again. With `anew`, what a work folder holds of other files or settings is thrown away.
///
/// # Errors
/// A file cannot be read or written; a document cannot be used and the policy says to fail; the work folder is of other
/// files or settings and `anew` is not given; the caller stopped it. In each case what is finished is
/// kept, and the same call goes on from there (standard input is read from its start).
pub fn tokenise_shard(
    plan: &Plan,
    out: &Path,
    shard: Shard,
    policy: Policy,
    anew: bool,
    tokenizer: &Tokenizer,
    control: Control,
) -> Result<()> {
    let work = work_folder(out);
    if plan.inputs.reads_stdin() && shard != Shard::WHOLE {
        return Err(Error::request(
            "standard input cannot be divided into shards: each would need all of it; write it into a file",
        ));
    }
    prepare(plan, &work, anew)?;
    let done = tokenise(plan, &work, shard, policy, tokenizer, control);
    // There is nothing to go on from, and no other shard at work there.
    if done.is_err() && shard == Shard::WHOLE && (plan.inputs.reads_stdin() || !any_part(&work)?) {
        remove(&work)?;
    }
    done
}

/// Whether a part was finished in a work folder.
fn any_part(work: &Path) -> Result<bool> {
    let mut names = std::fs::read_dir(work).map_err(|e| Error::read(work, e))?.flatten();
    Ok(names.any(|e| e.path().extension().is_some_and(|e| e == "tokens")))
}

/// Whether there is nothing in a work folder but what is being written.
fn only_begun(work: &Path) -> Result<bool> {
    let mut names = std::fs::read_dir(work).map_err(|e| Error::read(work, e))?.flatten();
    Ok(names.all(|e| e.file_name().to_string_lossy().ends_with(".part")))
}

/// Makes the work folder one of this plan.
fn prepare(plan: &Plan, work: &Path, anew: bool) -> Result<()> {
    let shown = work.display();
    if work.is_dir() {
        // Shards that begin at once find each other's plan half written, or the same plan whole.
        let only_begun = only_begun(work)?;
        let there = Plan::load(work)?;
        match there {
            // What standard input gave cannot be told to be what it gives now.
            Some(old) if plan.same_parts(&old) && !plan.inputs.reads_stdin() => {}
            Some(old) if anew || old.inputs.reads_stdin() || !any_part(work)? => remove(work)?,
            None if only_begun => {}
            None if anew && Plan::path(work).exists() => remove(work)?,
            None => {
                return Err(Error::OtherWork(format!(
                    "{shown} is in the way: it is no work folder of this version; move it away, or write the data set elsewhere"
                )));
            }
            Some(_) => {
                return Err(Error::OtherWork(format!(
                    "{shown} holds work of other settings, or files have changed since: give --force to begin anew, or the settings it was begun with to go on"
                )));
            }
        }
    }
    std::fs::create_dir_all(work).map_err(|e| Error::write(work, e))?;
    plan.save(work)
}

/// Removes what this crate writes into a work folder, and the folder if nothing else is in it.
fn remove(work: &Path) -> Result<()> {
    for entry in std::fs::read_dir(work).map_err(|e| Error::read(work, e))? {
        let path = entry.map_err(|e| Error::read(work, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = name == "plan.json" || [".tokens", ".end", ".part"].iter().any(|e| name.ends_with(e));
        if ours {
            std::fs::remove_file(&path).map_err(|e| Error::write(&path, e))?;
        }
    }
    // Fails where somebody put something else there, which stays.
    let _ = std::fs::remove_dir(work);
    Ok(())
}

/// Makes the data set from the parts in its work folder, which is removed when that is done.
///
/// # Errors
/// A part is missing, a file cannot be written (the parts are kept), the caller stopped it.
pub fn finish(plan: &Plan, out: &Path, control: Control) -> Result<Summary> {
    let work = work_folder(out);
    let parts = find_parts(plan, std::slice::from_ref(&work))?;
    let summary = assemble(plan, &parts, out, control)?;
    remove(&work)?;
    Ok(summary)
}

/// The plan of the work folders of all shards.
///
/// # Errors
/// A folder is none, or they are of different data sets.
pub fn plan_of(folders: &[PathBuf]) -> Result<Plan> {
    let mut first: Option<Plan> = None;
    for folder in folders {
        let plan = Plan::load(folder)?.ok_or_else(|| {
            let shown = folder.display();
            Error::request(format!(
                "{shown} is no work folder: `hawfinch data build --shard` makes NAME.parts"
            ))
        })?;
        match &first {
            Some(first) if !first.same_data_set(&plan) => {
                let (a, b) = (folders[0].display(), folder.display());
                return Err(Error::request(format!(
                    "{a} and {b} are of different data sets: their files or settings differ"
                )));
            }
            Some(_) => {}
            None => first = Some(plan),
        }
    }
    first.ok_or_else(|| Error::request("no work folder is given"))
}

/// Makes the data set from the parts of all shards, byte for byte what one run makes. The folders are kept.
///
/// # Errors
/// A part is in none of the folders, a file cannot be written, the caller stopped it.
pub fn merge(plan: &Plan, folders: &[PathBuf], out: &Path, control: Control) -> Result<Summary> {
    assemble(plan, &find_parts(plan, folders)?, out, control)
}
