//! Parts to a data set: which documents are taken, how often and in which order is decided here, over all of them, so
//! that it depends on nothing but their texts and their order.

use std::collections::{BinaryHeap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

use crate::binidx::{self, Writer};
use crate::control::{Control, Phase};
use crate::error::{Error, Result};
use crate::feed::parts_of_stream;
use crate::mask::{MaskWriter, mask_name};
use crate::part::{Counts, Part, Record};
use crate::plan::{HeldOut, PartId, Plan, Unit};
use crate::sampler::{mix, permute};
use crate::summary::{LabelSummary, SourceSummary, Summary};

/// Documents between two looks at whether to go on.
const LOOK: u64 = 4096;

/// The name of the held-out data set beside another.
pub fn held_out_name(out: &Path) -> PathBuf {
    let (bin, _) = crate::binidx::paths(out);
    let mut name = bin.with_extension("").into_os_string();
    name.push(".held-out");
    name.into()
}

/// Where the parts are, in order. Each is in one of the folders.
pub(crate) fn find_parts(plan: &Plan, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (number, unit) in plan.units().into_iter().enumerate() {
        let parts = match unit {
            Unit::Files(_) => Some(1),
            Unit::Lines { parts, .. } => Some(parts),
            Unit::Stream { .. } => folders.iter().find_map(|f| parts_of_stream(f, number)),
        };
        let file = match unit {
            Unit::Files(files) => files.start,
            Unit::Lines { file, .. } | Unit::Stream { file } => file,
        };
        // A stream of unknown length has at least one.
        for index in 0..parts.unwrap_or(1) {
            let id = PartId { unit: number, index };
            let mut whole = None;
            for folder in folders {
                let path = id.path(folder);
                if whole.is_none() && Part::open(&path)?.is_some() {
                    whole = Some(path);
                }
            }
            match whole {
                Some(path) if parts.is_some() => found.push(path),
                _ => missing.push((file, index)),
            }
        }
    }
    let Some((file, index)) = missing.first() else { return Ok(found) };
    Err(Error::request(format!(
        "{} parts of the work are not there, the first is part {} of {}: let every shard end, and name the folders of all",
        missing.len(),
        index + 1,
        plan.file(*file).shown()
    )))
}

/// A set of hashes needs no other hash.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.0 = self.0.rotate_left(8) ^ u64::from(b));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 ^= n;
    }
}

type Seen = HashSet<(u64, u64), BuildHasherDefault<Low>>;

/// What becomes of a document.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Fate {
    Duplicate,
    HeldOut,
    Taken,
}

/// Numbers that a text decides: for the held-out choice, and for the choice of those that are repeated or left out.
fn held_out_key(record: &Record) -> u64 {
    mix(record.hash[1] ^ 0x6865_6c64)
}
fn mixing_key(record: &Record) -> u64 {
    mix(record.hash[0] ^ 0x6d69_7869)
}

/// How often the documents of a source are written.
#[derive(Clone, Copy)]
struct Times {
    /// All of them so often.
    all: u64,
    /// Once more those whose key is below this bin of [`BINS`].
    more_below: u64,
}

/// Bins of keys: a source's share is met to this part of its tokens, and to one document.
const BINS: usize = 1 << 16;

fn bin(record: &Record) -> usize {
    (mixing_key(record) >> 48) as usize
}

impl Times {
    fn of(self, record: &Record) -> u64 {
        self.all + u64::from((bin(record) as u64) < self.more_below)
    }
}

/// A document where it lies.
struct Document<'a> {
    /// Its number among all.
    number: u64,
    /// The numbers of its part and of its record in it.
    at: (u32, u32),
    part: &'a Part,
    record: &'a Record,
}

/// The documents of all parts.
struct Documents<'a> {
    plan: &'a Plan,
    parts: &'a [PathBuf],
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl Documents<'_> {
    /// Opens a part that was there a moment ago.
    fn part(&self, path: &Path) -> Result<Part> {
        Part::open(path)?.ok_or_else(|| Error::request(format!("{} was damaged meanwhile", path.display())))
    }

    /// Each document, in order.
    fn each(&self, mut each: impl FnMut(&Document) -> Result<()>) -> Result<()> {
        let mut number = 0;
        for (part_number, path) in (0..).zip(self.parts) {
            let part = self.part(path)?;
            for (i, record) in (0..).zip(part.records()) {
                if number % LOOK == 0 && (self.stop)() {
                    return Err(Error::Stopped);
                }
                each(&Document { number, at: (part_number, i), part: &part, record })?;
                number += 1;
            }
        }
        Ok(())
    }

    fn label(&self, record: &Record) -> Result<usize> {
        let file = self.plan.inputs.files.get(record.file as usize);
        file.map(|f| f.label)
            .ok_or_else(|| Error::request("a part does not go with its plan: begin anew with --force"))
    }

    fn source(&self, record: &Record) -> usize {
        self.plan.file(record.file as usize).source
    }

    /// Whether some documents are not learned whole.
    ///
    /// # Errors
    /// Nothing at all is to be learned.
    fn masked(&self, fates: &[Fate], counts: &Counts) -> Result<bool> {
        if counts.unlearned > 0 && fates.is_empty() {
            return Err(Error::request(format!(
                "nothing is to be learned: of {} conversations none has a reply of an assistant; --loss-on all learns all their words",
                counts.unlearned
            )));
        }
        let mut masked = false;
        self.each(|&Document { record, .. }| {
            masked |= record.learned < record.tokens;
            Ok(())
        })?;
        Ok(masked)
    }

    /// The key up to which texts are held out; `None` if none is.
    fn held_out_limit(&self) -> Result<Option<u64>> {
        match self.plan.mixing.held_out {
            None => Ok(None),
            Some(HeldOut::Share(share)) => Ok(Some((share * 2f64.powi(64)) as u64)),
            Some(HeldOut::Texts(0)) => Ok(None),
            Some(HeldOut::Texts(n)) => {
                // The n smallest of different keys.
                let (mut heap, mut inside) = (BinaryHeap::new(), HashSet::new());
                self.each(|&Document { record, .. }| {
                    let key = held_out_key(record);
                    let full = heap.len() as u64 == n;
                    if full && heap.peek().is_some_and(|&most| key >= most) || !inside.insert(key) {
                        return Ok(());
                    }
                    heap.push(key);
                    if full && let Some(most) = heap.pop() {
                        inside.remove(&most);
                    }
                    Ok(())
                })?;
                Ok(heap.peek().copied())
            }
        }
    }

    /// What becomes of each document, and the tokens of each source.
    fn fates(&self, summary: &mut Summary) -> Result<Vec<Fate>> {
        let limit = self.held_out_limit()?;
        let (mut seen, mut fates) = (Seen::default(), Vec::new());
        self.each(|&Document { record, .. }| {
            let label = self.label(record)?;
            let fate = if self.plan.mixing.dedup && !seen.insert((record.hash[0], record.hash[1])) {
                summary.labels[label].duplicates += 1;
                Fate::Duplicate
            } else if limit.is_some_and(|limit| held_out_key(record) <= limit) {
                Fate::HeldOut
            } else {
                summary.sources[self.source(record)].tokens_there += u64::from(record.tokens);
                Fate::Taken
            };
            fates.push(fate);
            Ok(())
        })?;
        Ok(fates)
    }

    /// How often each source's documents are written.
    fn times(&self, fates: &[Fate], summary: &mut Summary) -> Result<Vec<Times>> {
        let sources = &self.plan.inputs.sources;
        let there: u64 = summary.sources.iter().map(|s| s.tokens_there).sum();
        let weights: Option<f64> = sources.iter().map(|s| s.weight).sum();
        let once = vec![Times { all: 1, more_below: 0 }; sources.len()];
        let wanted = self.plan.mixing.tokens.unwrap_or(there) as f64;
        if weights.is_none() && self.plan.mixing.tokens.is_none() || there == 0 {
            return Ok(once);
        }
        let mut rest = vec![0u64; sources.len()];
        let mut times = once;
        for (i, source) in sources.iter().enumerate() {
            let tokens = summary.sources[i].tokens_there;
            let share = match (source.weight, weights) {
                (Some(weight), Some(all)) => {
                    summary.sources[i].asked_share = Some(weight / all);
                    weight / all
                }
                _ => tokens as f64 / there as f64,
            };
            if tokens == 0 {
                let path = &source.path;
                return Err(Error::request(format!(
                    "the source `{path}` has no document that could have a share: leave it out"
                )));
            }
            let wanted = (share * wanted).round() as u64;
            times[i].all = wanted / tokens;
            rest[i] = wanted % tokens;
        }
        let mut bins = vec![vec![0u64; BINS]; sources.len()];
        self.each(|&Document { number, record, .. }| {
            if fates[number as usize] == Fate::Taken {
                bins[self.source(record)][bin(record)] += u64::from(record.tokens);
            }
            Ok(())
        })?;
        for ((times, rest), bins) in times.iter_mut().zip(rest).zip(bins) {
            let mut tokens = 0;
            for (n, more) in bins.into_iter().enumerate() {
                // As many bins as come closest.
                if tokens + more / 2 >= rest {
                    break;
                }
                tokens += more;
                times.more_below = n as u64 + 1;
            }
        }
        Ok(times)
    }
}

/// A data set on its way, with its mask if it needs one.
struct DataSet {
    name: PathBuf,
    tokens: Writer,
    mask: Option<MaskWriter>,
}

impl DataSet {
    fn create(name: &Path, masked: bool) -> Result<DataSet> {
        let mask = masked.then(|| MaskWriter::create(name)).transpose()?;
        Ok(DataSet { name: name.into(), tokens: Writer::create(name)?, mask })
    }

    fn push(&mut self, part: &Part, record: &Record) -> Result<()> {
        if let Some(mask) = &mut self.mask {
            mask.push(&part.mask(record))?;
        }
        self.tokens.push(part.tokens(record))
    }

    /// Puts the files in their places. A data set that is there is taken away first: at no time does one lie beside a
    /// mask that is not its own, or without that which it needs.
    fn finish(self) -> Result<()> {
        binidx::remove(&binidx::paths(&self.name).1)?;
        match self.mask {
            Some(mask) => mask.finish()?,
            None => {
                let (bin, idx) = binidx::paths(&mask_name(&self.name));
                binidx::remove(&idx)?;
                binidx::remove(&bin)?;
            }
        }
        self.tokens.finish()
    }
}

/// Writes the data set, and the held-out one beside it if there is to be one.
pub(crate) fn assemble(plan: &Plan, parts: &[PathBuf], out: &Path, control: Control) -> Result<Summary> {
    let documents = Documents { plan, parts, stop: control.stop };
    let mut summary = empty_summary(plan);
    let mut counts = Counts::default();
    for path in parts {
        counts.add(&documents.part(path)?.counts());
    }
    let fates = documents.fates(&mut summary)?;
    summary.masked = documents.masked(&fates, &counts)?;
    let times = documents.times(&fates, &mut summary)?;
    let create = |name: &Path| DataSet::create(name, summary.masked);
    let mut held_out = plan.mixing.held_out.map(|_| create(&held_out_name(out))).transpose()?;
    let mut train = create(out)?;
    let most = times.iter().map(|t| t.all + u64::from(t.more_below > 0)).max().unwrap_or(0);
    let total: u64 = match plan.mixing.tokens {
        Some(tokens) => tokens,
        None => summary.sources.iter().map(|s| s.tokens_there).sum(),
    };
    // Documents in the order in which a shuffle picks them, as numbers of part and record.
    let mut order: Vec<(u32, u32)> = Vec::new();
    // Repetitions lie as far apart as the data set allows: the whole once, then once more what is wanted twice.
    for round in 0..most.max(1) {
        documents.each(|&Document { number, at, part, record }| {
            let fate = fates[number as usize];
            let label = documents.label(record)?;
            let taken = fate == Fate::Taken && times[documents.source(record)].of(record) > round;
            if fate == Fate::HeldOut && round == 0 {
                if let Some(held_out) = &mut held_out {
                    held_out.push(part, record)?;
                }
                summary.labels[label].held_out.add(record, 1);
            } else if taken {
                summary.labels[label].written.add(record, 1);
                summary.sources[documents.source(record)].tokens_written += u64::from(record.tokens);
                if plan.mixing.shuffle.is_some() {
                    order.push(at);
                } else {
                    train.push(part, record)?;
                    if number % LOOK == 0 {
                        (control.progress)(
                            Phase::Write,
                            train.tokens.tokens(),
                            total.max(train.tokens.tokens()),
                        );
                    }
                }
            }
            Ok(())
        })?;
    }
    if let Some(seed) = plan.mixing.shuffle {
        shuffle(&documents, &order, seed, &mut train, total, control)?;
    }
    if let Some(held_out) = held_out {
        held_out.finish()?;
    }
    train.finish()?;
    total_up(&mut summary, &counts);
    Ok(summary)
}

/// Writes documents in an order that the seed decides.
fn shuffle(
    documents: &Documents,
    order: &[(u32, u32)],
    seed: u64,
    train: &mut DataSet,
    total: u64,
    control: Control,
) -> Result<()> {
    let parts = documents.parts.iter().map(|path| documents.part(path)).collect::<Result<Vec<Part>>>()?;
    let n = order.len() as u64;
    for i in 0..n {
        if i % LOOK == 0 {
            if (control.stop)() {
                return Err(Error::Stopped);
            }
            (control.progress)(Phase::Write, train.tokens.tokens(), total.max(train.tokens.tokens()));
        }
        let (part, at) = order[permute(i, n, mix(seed)) as usize];
        let part = &parts[part as usize];
        train.push(part, &part.records()[at as usize])?;
    }
    Ok(())
}

fn empty_summary(plan: &Plan) -> Summary {
    let label = |label: &String| LabelSummary { label: label.clone(), ..LabelSummary::default() };
    Summary {
        labels: plan.inputs.labels.iter().map(label).collect(),
        sources: (plan.inputs.sources.iter())
            .map(|s| SourceSummary { source: s.path.clone(), ..SourceSummary::default() })
            .collect(),
        ..Summary::default()
    }
}

fn total_up(summary: &mut Summary, counts: &Counts) {
    for label in &summary.labels {
        summary.written.join(&label.written);
        summary.held_out.join(&label.held_out);
        summary.duplicates += label.duplicates;
    }
    summary.too_short = counts.short;
    summary.too_long = counts.long;
    summary.bad_lines = counts.bad;
    summary.nothing_to_learn = counts.unlearned;
    summary.reasoning_left_out = counts.reasoning;
    summary.invalid_utf8 = counts.invalid;
    summary.replaced_utf8 = counts.replaced;
}
