//! What is to be done, divided into parts that are done one by one, by one run or by several.

use std::path::{Path, PathBuf};

use hawfinch_tokenizer::chat::Format;
use serde::{Deserialize, Serialize};

use crate::cut::Split;
use crate::error::{Error, Result};
use crate::open::{Encoding, Kind};
use crate::source::{InputFile, Inputs};

/// Version of the plan and of the parts; another version begins anew.
const VERSION: u32 = 2;

/// How documents are read and turned into tokens. Parts that were made with other settings are no use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// How text is divided into documents; lines of JSON always are one each.
    pub split: Split,
    /// The only field of a line of JSON that counts; `None`: see the table in the documentation.
    pub field: Option<String>,
    /// Documents of fewer tokens (without the end token) are left out.
    pub min_tokens: u64,
    /// Documents of more tokens are left out.
    pub max_tokens: Option<u64>,
    /// How conversations are written: the name of a [`Format`].
    pub template: String,
    /// What a model is to learn of conversations.
    pub loss_on: LossOn,
    /// Bytes of a part: what is lost at most when a run ends before its time.
    pub part_bytes: u64,
}

impl Default for Reading {
    fn default() -> Self {
        Reading {
            split: Split::None,
            field: None,
            min_tokens: 1,
            max_tokens: None,
            template: Format::all()[0].name.into(),
            loss_on: LossOn::All,
            part_bytes: 64 << 20,
        }
    }
}

/// Which tokens of conversations a model is to learn to foretell. Documents of plain text are learned whole in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Those of replies, and what ends them; a mask beside the data set says which. Conversations without a reply are left
    /// out.
    Assistant,
    /// All: as the reference does. There is no mask.
    All,
}

/// How large the held-out part is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldOut {
    /// This share of all texts, 0 to 1.
    Share(f64),
    /// So many texts; equal ones count once and go together.
    Texts(u64),
}

/// Which documents are taken, how often and in which order: decided when all parts are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mixing {
    /// Leave out all but the first of equal texts.
    pub dedup: bool,
    /// Put some texts into a data set of their own, chosen by their content alone.
    pub held_out: Option<HeldOut>,
    /// Tokens of the data set, about; `None`: as many as there are. Sources keep their shares.
    pub tokens: Option<u64>,
    /// Shuffle the documents, by this seed.
    pub shuffle: Option<u64>,
}

/// Everything that decides the bytes of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    version: u32,
    /// The tokenizer's name and a checksum of its tokens.
    pub tokenizer: String,
    /// How documents are read.
    pub reading: Reading,
    /// Which are taken.
    pub mixing: Mixing,
    /// The files.
    pub inputs: Inputs,
}

/// Some files, or some of a file, whose documents are written into parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Unit {
    /// Whole files, these, as one part.
    Files(std::ops::Range<usize>),
    /// A plain file of lines, which can be entered anywhere: so many parts.
    Lines { file: usize, parts: u64 },
    /// A stream: a part after the other until it ends.
    Stream { file: usize },
}

/// A part: the number of its unit, and which of the unit's parts it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PartId {
    pub(crate) unit: usize,
    pub(crate) index: u64,
}

impl PartId {
    /// Where it lies in the work folder.
    pub(crate) fn path(self, work: &Path) -> PathBuf {
        work.join(format!("{:06}-{:06}.tokens", self.unit, self.index))
    }
}

/// One of `of` shares of the work, `number` from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1 to `of`.
    pub number: u64,
    /// How many there are.
    pub of: u64,
}

impl Shard {
    /// All the work.
    pub const WHOLE: Shard = Shard { number: 1, of: 1 };

    /// Reads `I/N`.
    ///
    /// # Errors
    /// It is not two whole numbers with 1 ≤ I ≤ N.
    pub fn parse(text: &str) -> Result<Shard> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((number, of)) if number >= 1 && number <= of => Ok(Shard { number, of }),
            _ => Err(Error::request(format!(
                "`{text}` is no shard: write I/N with I from 1 to N, such as 1/4"
            ))),
        }
    }

    /// The share of a process among those that a cluster's launcher has started, by the variables that it leaves: a task of a
    /// Slurm array, of `srun`, a rank of `mpirun`; each task of an array may have several processes.
    ///
    /// # Errors
    /// There are none of these variables, or they hold what cannot be.
    pub fn of_environment(get: impl Fn(&str) -> Option<String>) -> Result<Shard> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Some(text) = get(name) else { return Ok(None) };
            let wrong = || Error::request(format!("{name} is `{text}`, no number: say `--shard I/N`"));
            Ok(Some(text.trim().parse().map_err(|_| wrong())?))
        };
        let mut shard: Option<Shard> = None;
        let mut divide = |name: &str, index: u64, of: u64| -> Result<()> {
            if index >= of {
                return Err(Error::request(format!(
                    "{name} counts {of} processes, and this one would be the {}th: say `--shard I/N`",
                    index + 1
                )));
            }
            let Shard { number, of: outer } = shard.unwrap_or(Shard::WHOLE);
            let all =
                outer.checked_mul(of).ok_or_else(|| Error::request(format!("{name} is {of}: too many")))?;
            shard = Some(Shard { number: (number - 1) * of + index + 1, of: all });
            Ok(())
        };
        // An array's tasks may be numbered from anything, in steps.
        if let (Some(id), Some(count)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) {
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            let index = id.checked_sub(first).filter(|n| n.is_multiple_of(step)).map_or(count, |n| n / step);
            divide("SLURM_ARRAY_TASK_COUNT", index, count)?;
        }
        for (rank, size) in [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            // Not SLURM_NTASKS: a batch script has that too, of which there is one.
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ] {
            if let (Some(index), Some(of)) = (number(rank)?, number(size)?) {
                divide(size, index, of)?;
                break;
            }
        }
        shard.ok_or_else(|| {
            Error::request(
                "`--shard auto` is for tasks of Slurm and ranks of mpirun, and this process is neither: say `--shard I/N`",
            )
        })
    }

    /// Whether a part is this shard's.
    pub(crate) fn has(self, part: PartId) -> bool {
        (part.unit as u64 + part.index) % self.of == self.number - 1
    }
}

impl Plan {
    /// A plan over these files.
    ///
    /// # Errors
    /// The tokenizer has ids that 16 bits do not hold; there is no such template; a setting makes no sense; a Parquet file is damaged or has none of
    /// the columns that make a document.
    pub fn new(
        inputs: Inputs,
        tokenizer: &hawfinch_tokenizer::Tokenizer,
        reading: Reading,
        mixing: Mixing,
    ) -> Result<Plan> {
        let vocab = tokenizer.vocab_size();
        if vocab > 1 << 16 {
            return Err(Error::request(format!(
                "the tokenizer has ids up to {}, and a data set of 16-bit ids holds them up to 65535: use another tokenizer",
                vocab - 1
            )));
        }
        if let Some(HeldOut::Share(share)) = mixing.held_out
            && !(share > 0.0 && share < 1.0)
        {
            return Err(Error::request(
                "the held-out share must be above 0% and below 100%, or a number of texts",
            ));
        }
        if mixing.held_out == Some(HeldOut::Texts(0)) {
            return Err(Error::request("0 texts held out are none: leave --held-out away"));
        }
        if reading.max_tokens.is_some_and(|max| max < reading.min_tokens) {
            return Err(Error::request("the most tokens of a document are fewer than the fewest"));
        }
        if Format::named(&reading.template).is_none() {
            return Err(Error::request(format!(
                "there is no template `{}` to write conversations with: choose one of {}",
                reading.template,
                Format::names()
            )));
        }
        if reading.part_bytes == 0 {
            return Err(Error::request("parts of 0 bytes hold nothing"));
        }
        for file in inputs.files.iter().filter(|f| f.encoding == Encoding::Parquet) {
            // Whether it can be opened and has a column to read is said now, not after hours.
            crate::open::table(&file.path, reading.field.as_deref(), &Default::default())?;
        }
        let mut sum = xxhash_rust::xxh3::Xxh3::new();
        for id in 0..vocab as u32 {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            sum.update(&(bytes.len() as u32).to_le_bytes());
            sum.update(bytes);
        }
        let tokenizer = format!("{} {:016x}", tokenizer.name(), sum.digest());
        Ok(Plan { version: VERSION, tokenizer, reading, mixing, inputs })
    }

    /// How a file is divided into documents.
    pub(crate) fn split(&self, kind: Kind) -> Split {
        if kind == Kind::Jsonl { Split::Lines } else { self.reading.split }
    }

    /// The units of the plan, in the order of the files.
    pub(crate) fn units(&self) -> Vec<Unit> {
        let most = self.reading.part_bytes;
        let mut units = Vec::new();
        // Files gathered for a part, and their bytes.
        let (mut first, mut bytes) = (0, 0);
        for (i, file) in self.inputs.files.iter().enumerate() {
            let alone = match self.split(file.kind) {
                _ if file.is_stdin() => Some(Unit::Stream { file: i }),
                Split::None => None,
                _ if file.size <= most => None,
                Split::Lines if file.encoding == Encoding::Plain => {
                    Some(Unit::Lines { file: i, parts: file.size.div_ceil(most) })
                }
                _ => Some(Unit::Stream { file: i }),
            };
            let fits = alone.is_none() && bytes + file.size <= most;
            if !fits && first < i {
                units.push(Unit::Files(first..i));
                bytes = 0;
            }
            if !fits {
                first = i;
            }
            match alone {
                Some(unit) => {
                    units.push(unit);
                    first = i + 1;
                }
                None => bytes += file.size,
            }
        }
        if first < self.inputs.files.len() {
            units.push(Unit::Files(first..self.inputs.files.len()));
        }
        units
    }

    /// The file `plan.json` of a work folder.
    pub(crate) fn path(work: &Path) -> PathBuf {
        work.join("plan.json")
    }

    /// Reads the plan of a work folder; `None` if there is none that this version wrote.
    pub(crate) fn load(work: &Path) -> Result<Option<Plan>> {
        let path = Plan::path(work);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().filter(Plan::is_ours)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::read(&path, e)),
        }
    }

    /// Whether this version can go on with it.
    fn is_ours(&self) -> bool {
        self.version == VERSION && Format::named(&self.reading.template).is_some()
    }

    /// Writes the plan into a work folder.
    pub(crate) fn save(&self, work: &Path) -> Result<()> {
        let mut file = crate::new_file::NewFile::create(&Plan::path(work))?;
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::write(work, e.into()))?;
        file.put(&text)?;
        file.complete()
    }

    /// Whether parts made for `other` are parts of this plan: the same files, unchanged, read the same way.
    pub(crate) fn same_parts(&self, other: &Plan) -> bool {
        let mut mixed = other.clone();
        mixed.mixing = self.mixing.clone();
        // Weights decide nothing about parts.
        mixed.inputs.sources.clone_from(&self.inputs.sources);
        *self == mixed
    }

    /// Whether both plan the same data set, perhaps on two machines: files may lie and be dated otherwise.
    pub(crate) fn same_data_set(&self, other: &Plan) -> bool {
        let bare = |plan: &Plan| {
            let mut plan = plan.clone();
            plan.inputs.sources.iter_mut().for_each(|s| s.path.clear());
            for file in &mut plan.inputs.files {
                file.changed = 0;
                file.path = file.path.file_name().map(PathBuf::from).unwrap_or_default();
            }
            plan
        };
        bare(self) == bare(other)
    }

    /// How conversations are written.
    pub(crate) fn format(&self) -> &'static Format {
        // A plan that was read from a file may name another; then what it plans is refused ([`Plan::load`]).
        Format::named(&self.reading.template).unwrap_or(&Format::all()[0])
    }

    /// A file by its index.
    pub(crate) fn file(&self, index: usize) -> &InputFile {
        &self.inputs.files[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn plan(files: &[(u64, Kind, Encoding)], split: Split) -> Plan {
        let source = Source { label: None, path: "x".into(), weight: None };
        let file = |&(size, kind, encoding): &(u64, Kind, Encoding)| InputFile {
            path: "x".into(),
            source: 0,
            label: 0,
            size,
            changed: 0,
            kind,
            encoding,
        };
        let inputs = Inputs {
            sources: vec![source],
            labels: vec!["x".into()],
            files: files.iter().map(file).collect(),
        };
        let reading = Reading { split, part_bytes: 100, ..Reading::default() };
        Plan::new(inputs, &hawfinch_tokenizer::Tokenizer::bytes(), reading, Mixing::default()).unwrap()
    }

    #[test]
    fn small_files_go_together_and_large_ones_are_divided() {
        use Encoding::{Gzip, Plain};
        let files = [
            (40, Kind::Text, Plain),
            (60, Kind::Text, Gzip),
            (1, Kind::Text, Plain),
            (500, Kind::Text, Plain),
            (250, Kind::Jsonl, Plain),
            (250, Kind::Jsonl, Gzip),
            (0, Kind::Text, Plain),
            (100, Kind::Jsonl, Plain),
        ];
        let want = [
            Unit::Files(0..2),
            Unit::Files(2..3),
            Unit::Files(3..4),
            Unit::Lines { file: 4, parts: 3 },
            Unit::Stream { file: 5 },
            Unit::Files(6..8),
        ];
        assert_eq!(plan(&files, Split::None).units(), want);
        let lines = plan(&files[3..4], Split::Lines).units();
        assert_eq!(lines, [Unit::Lines { file: 0, parts: 5 }]);
        assert_eq!(plan(&files[3..4], Split::BlankLines).units(), [Unit::Stream { file: 0 }]);
    }

    #[test]
    fn every_part_is_one_shards() {
        for of in 1..5 {
            for unit in 0..4 {
                for index in 0..9 {
                    let owners = (1..=of).filter(|&number| Shard { number, of }.has(PartId { unit, index }));
                    assert_eq!(owners.count(), 1);
                }
            }
        }
        assert_eq!(Shard::parse("2/4").unwrap(), Shard { number: 2, of: 4 });
        let auto = |set: &[(&str, &str)]| {
            Shard::of_environment(|name| set.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_string()))
        };
        let array = |id, first, count, step| {
            auto(&[
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_MIN", first),
                ("SLURM_ARRAY_TASK_COUNT", count),
                ("SLURM_ARRAY_TASK_STEP", step),
            ])
        };
        assert_eq!(array("0", "0", "4", "1").unwrap(), Shard { number: 1, of: 4 });
        assert_eq!(array("1", "1", "4", "1").unwrap(), Shard { number: 1, of: 4 });
        assert_eq!(array("4", "1", "4", "1").unwrap(), Shard { number: 4, of: 4 });
        assert_eq!(array("13", "5", "3", "4").unwrap(), Shard { number: 3, of: 3 });
        for (id, first, step) in [("5", "1", "1"), ("0", "1", "1"), ("2", "1", "2"), ("x", "1", "1")] {
            assert!(array(id, first, "4", step).is_err(), "{id} {first} {step}");
        }
        let ranks = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3"), ("SLURM_NTASKS", "9")];
        assert_eq!(auto(&ranks).unwrap(), Shard { number: 2, of: 3 });
        let step = [("SLURM_PROCID", "7"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_NTASKS", "9")];
        assert_eq!(auto(&step).unwrap(), Shard { number: 8, of: 8 });
        // A script that was given eight tasks and starts none.
        assert!(auto(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).is_err());
        // Two tasks in each of three array jobs.
        let both = [
            ("SLURM_ARRAY_TASK_ID", "2"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(auto(&both).unwrap(), Shard { number: 4, of: 6 });
        assert!(auto(&[]).unwrap_err().to_string().contains("--shard I/N"));
        for bad in ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_says_what_makes_no_sense() {
        let inputs = plan(&[], Split::None).inputs;
        let bytes = hawfinch_tokenizer::Tokenizer::bytes();
        let with = |reading, mixing| Plan::new(inputs.clone(), &bytes, reading, mixing).is_ok();
        let held_out = |share| Mixing { held_out: Some(HeldOut::Share(share)), ..Mixing::default() };
        assert!(with(Reading::default(), held_out(0.01)));
        assert!(!with(Reading::default(), held_out(0.0)) && !with(Reading::default(), held_out(1.0)));
        assert!(!with(Reading { max_tokens: Some(0), ..Reading::default() }, Mixing::default()));
        assert!(!with(Reading { template: "qwen".into(), ..Reading::default() }, Mixing::default()));
        assert!(!with(Reading { part_bytes: 0, ..Reading::default() }, Mixing::default()));
    }
}
