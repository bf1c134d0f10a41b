//! What a run writes down: `metrics.jsonl` in its folder, one JSON object a line, in the order of steps.
//!
//! ```json
//! {"kind":"train","step":1,"tokens":512,"loss":11.09,"lr":0.0006,"weight_decay":0.1,"grad_norm":2.5,"seconds":0.8,"tokens_per_second":640.0,"skipped":false}
//! {"kind":"eval","step":1,"tokens":512,"loss":11.02,"bits_per_byte":3.9,"dead_channels":0.0}
//! {"kind":"note","step":1,"text":"interrupted"}
//! ```
//!
//! A line is one write to the file, so that what was running when the machine stopped is a last line that is cut off;
//! every reader leaves that out. Numbers that are not finite are `null` and read as NaN.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::collective::Communication;
use crate::error::{Error, Result};

/// The name of the file in a run's folder.
pub const FILE: &str = "metrics.jsonl";

/// Most bytes of a line; records with long samples stay far below.
const MAX_LINE: u64 = 16 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A step was made, or skipped.
    Train(Train),
    /// The model was measured.
    Eval(Eval),
    /// Something happened.
    Note(Note),
}

/// A training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Steps made so far, this one included: from 1.
    pub step: u64,
    /// Tokens trained so far, over all steps.
    pub tokens: u64,
    /// Mean cross entropy of the step's tokens, in nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate of the step, before the factors of groups of parameters.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Weight decay of the step.
    #[serde(deserialize_with = "number")]
    pub weight_decay: f64,
    /// Euclidean norm of all gradients together, before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Wall time of training so far, pauses between the runs of the program left out.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// Of this step.
    #[serde(deserialize_with = "number")]
    pub tokens_per_second: f64,
    /// No weight was changed, since a gradient was not finite.
    pub skipped: bool,
    /// Of a step of several ranks: what the first of them said to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communication: Option<Communication>,
}

/// A measurement of the model on held-out text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Steps made so far; 0 is the model before training.
    pub step: u64,
    /// Tokens trained so far.
    pub tokens: u64,
    /// Mean cross entropy of the held-out tokens, in nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The same in bits for each byte of the text, if its bytes are known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_number")]
    pub bits_per_byte: Option<f64>,
    /// Share of a probe's questions that the model answered, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_number")]
    pub probe: Option<f64>,
    /// Share of the channel mix's channels, over all layers, that relu² left at zero for every held-out token, 0 to 1;
    /// none for the attention baseline, which has no relu².
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_number")]
    pub dead_channels: Option<f64>,
    /// Texts that the model wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<String>,
}

/// A sentence for whoever reads the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Steps made so far.
    pub step: u64,
    /// The sentence.
    pub text: String,
}

impl Record {
    /// Steps made when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Record::Train(r) => r.step,
            Record::Eval(r) => r.step,
            Record::Note(r) => r.step,
        }
    }
}

/// JSON has no NaN: serde_json writes `null` for it.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn some_number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<f64>, D::Error> {
    number(from).map(Some)
}

/// The file of a run's folder, or the file itself where one is named.
pub fn path_of(run: &Path) -> PathBuf {
    if run.is_dir() { run.join(FILE) } else { run.into() }
}

/// All records of a file, in its order. A last line that is cut off is left out.
///
/// # Errors
/// A file that cannot be read; with its number, a line that is no record or whose step comes before that of the line
/// above.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    records(path, BufReader::with_capacity(1 << 16, file))
}

/// As [`read`], of bytes from anywhere; `path` stands in the errors.
pub fn records(path: &Path, from: impl BufRead) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    scan(path, from, |record, _| all.push(record))?;
    Ok(all)
}

/// Hands on each record and where its line ends.
fn scan(path: &Path, mut from: impl BufRead, mut each: impl FnMut(Record, End)) -> Result<()> {
    let (mut bytes, mut line, mut last) = (0, Vec::new(), 0);
    for number in 1.. {
        let wrong = |what: String| Error::Metrics { path: path.into(), line: number, what };
        line.clear();
        from.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(|e| Error::read(path, e))?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 > MAX_LINE {
            return Err(wrong(format!("it is longer than {} MiB", MAX_LINE >> 20)));
        }
        bytes += line.len() as u64;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let broken = line.ends_with(b"\n");
        let record: Record = match serde_json::from_slice(&line) {
            Ok(record) => record,
            Err(_) if !broken => break,
            Err(e) => return Err(wrong(reason(&e))),
        };
        if record.step() < last {
            let step = record.step();
            return Err(wrong(format!("its step {step} comes after step {last} of the line above")));
        }
        last = record.step();
        each(record, End { bytes, broken });
    }
    Ok(())
}

/// Where a line ends.
struct End {
    /// Bytes of the file up to its end.
    bytes: u64,
    /// It ends in a line break.
    broken: bool,
}

/// What is wrong with a line. Its number is told by us: for serde_json it is always the first.
fn reason(e: &serde_json::Error) -> String {
    let all = e.to_string();
    match all.rsplit_once(" at line ") {
        Some((what, _)) if e.line() > 0 => format!("{what} (column {})", e.column()),
        _ => all,
    }
}

/// Writes records, each at once.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    bytes: u64,
    last: u64,
}

impl Writer {
    /// Begins the file of a new run.
    ///
    /// # Errors
    /// The folder has one already, or the file cannot be made.
    pub fn create(folder: &Path) -> Result<Writer> {
        let path = folder.join(FILE);
        let open = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = open.map_err(|e| Error::write(&path, e))?;
        Ok(Writer { path, file, bytes: 0, last: 0 })
    }

    /// Goes on with the file of a run that continues from its checkpoint after `step` steps: what was written of later
    /// steps is cut off, and so is a last line that is not whole. Where there is no file, it begins one.
    ///
    /// The file is shortened where it lies, in one call: whenever the machine stops, it holds the old records or the
    /// kept ones.
    ///
    /// # Errors
    /// Those of [`read`], and a file that cannot be written.
    pub fn resume(folder: &Path, step: u64) -> Result<Writer> {
        let path = folder.join(FILE);
        let write = |e| Error::write(&path, e);
        let mut kept = End { bytes: 0, broken: true };
        let mut last = 0;
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::read(&path, e)),
            // All lines are looked at: damage is told before anything is cut.
            Ok(file) => scan(&path, BufReader::new(file), |record, end| {
                if record.step() <= step {
                    (kept, last) = (end, record.step());
                }
            })?,
        }
        let mut file = OpenOptions::new().append(true).create(true).open(&path).map_err(write)?;
        if file.metadata().map_err(write)?.len() > kept.bytes {
            file.set_len(kept.bytes).map_err(write)?;
        }
        if !kept.broken {
            file.write_all(b"\n").map_err(write)?;
            kept.bytes += 1;
        }
        Ok(Writer { path, file, bytes: kept.bytes, last })
    }

    /// Writes a record. Its line is in the file when this returns; where that failed, nothing of it is.
    ///
    /// # Errors
    /// A write that failed, or a step before the last one.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let step = record.step();
        if step < self.last {
            let last = self.last;
            return Err(Error::request(format!("a record of step {step} cannot follow one of step {last}")));
        }
        let mut line = serde_json::to_vec(record).map_err(|e| Error::write(&self.path, e.into()))?;
        line.push(b'\n');
        if let Err(e) = self.file.write_all(&line) {
            // If this fails too, readers leave out the line that is cut off.
            let _ = self.file.set_len(self.bytes);
            return Err(Error::write(&self.path, e));
        }
        self.bytes += line.len() as u64;
        self.last = step;
        Ok(())
    }

    /// Waits until everything written is on the disk: for a checkpoint, which is to find its records there.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::write(&self.path, e))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64, loss: f64) -> Record {
        Record::Train(Train {
            step,
            tokens: step * 512,
            loss,
            lr: 6e-4,
            weight_decay: 0.1,
            grad_norm: 0.5,
            seconds: step as f64 * 0.25,
            tokens_per_second: 2048.0,
            skipped: false,
            communication: None,
        })
    }

    fn note(step: u64, text: &str) -> Record {
        Record::Note(Note { step, text: text.into() })
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().map(Record::step).collect()
    }

    /// A run of steps 1 to `last`, its folder and its file.
    fn run(last: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        (1..=last).for_each(|step| writer.write(&train(step, 5.0)).unwrap());
        let path = folder.path().join(FILE);
        (folder, path)
    }

    fn append(path: &Path, bytes: &[u8]) {
        OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn lines_are_as_documented_and_read_back() {
        let eval = Eval { step: 1, tokens: 512, loss: 4.5, bits_per_byte: Some(1.25), ..Eval::default() };
        let full = Eval {
            probe: Some(0.5),
            dead_channels: Some(0.75),
            samples: vec!["a\n\"b\"".into()],
            ..eval.clone()
        };
        let all = [
            train(1, 11.0),
            Record::Eval(Eval { bits_per_byte: None, ..eval.clone() }),
            Record::Eval(eval),
            Record::Eval(full),
            note(1, "é"),
        ];
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        for (n, record) in all.iter().enumerate() {
            writer.write(record).unwrap();
            // It is there at once.
            assert_eq!(read(writer.path()).unwrap(), all[..=n]);
        }
        writer.sync().unwrap();
        let lines = std::fs::read_to_string(writer.path()).unwrap();
        assert_eq!(
            lines,
            "{\"kind\":\"train\",\"step\":1,\"tokens\":512,\"loss\":11.0,\"lr\":0.0006,\"weight_decay\":0.1,\
             \"grad_norm\":0.5,\"seconds\":0.25,\"tokens_per_second\":2048.0,\"skipped\":false}\n\
             {\"kind\":\"eval\",\"step\":1,\"tokens\":512,\"loss\":4.5}\n\
             {\"kind\":\"eval\",\"step\":1,\"tokens\":512,\"loss\":4.5,\"bits_per_byte\":1.25}\n\
             {\"kind\":\"eval\",\"step\":1,\"tokens\":512,\"loss\":4.5,\"bits_per_byte\":1.25,\"probe\":0.5,\
             \"dead_channels\":0.75,\"samples\":[\"a\\n\\\"b\\\"\"]}\n\
             {\"kind\":\"note\",\"step\":1,\"text\":\"é\"}\n"
        );
        assert_eq!(path_of(folder.path()), writer.path());
        assert_eq!(path_of(writer.path()), writer.path());
    }

    #[test]
    fn losses_that_are_not_finite_survive() {
        let (folder, path) = run(0);
        let mut writer = Writer::resume(folder.path(), 0).unwrap();
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            writer.write(&train(1, loss)).unwrap();
        }
        let eval = Eval { step: 1, loss: f64::NAN, bits_per_byte: Some(f64::INFINITY), ..Eval::default() };
        writer.write(&Record::Eval(eval)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().matches("\"loss\":null").count(), 4);
        let found = read(&path).unwrap();
        for record in &found[..3] {
            let Record::Train(r) = record else { panic!("{record:?}") };
            assert!(r.loss.is_nan() && r.tokens == 512, "{r:?}");
        }
        let Record::Eval(r) = &found[3] else { panic!("{found:?}") };
        assert!(r.loss.is_nan() && r.bits_per_byte.is_some_and(f64::is_nan) && r.probe.is_none());
    }

    #[test]
    fn a_run_that_continues_forgets_what_came_after_its_checkpoint() {
        let (folder, path) = run(5);
        let whole = std::fs::read(&path).unwrap();
        // Nothing to cut: not a byte changes.
        drop(Writer::resume(folder.path(), 5).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let mut writer = Writer::resume(folder.path(), 3).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
        assert!(whole.starts_with(&std::fs::read(&path).unwrap()));
        writer.write(&note(3, "goes on")).unwrap();
        writer.write(&train(4, 1.0)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 3, 4]);
        // From the beginning, and where nothing was written.
        drop(Writer::resume(folder.path(), 0).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        let fresh = tempfile::tempdir().unwrap();
        Writer::resume(fresh.path(), 7).unwrap().write(&train(8, 1.0)).unwrap();
        assert_eq!(steps(&fresh.path().join(FILE)), [8]);
        // One that is there is not begun anew.
        assert!(matches!(Writer::create(folder.path()), Err(Error::Write { .. })));
    }

    #[test]
    fn every_cut_of_the_last_line_is_left_out() {
        let (folder, path) = run(3);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.len() / 3 * 2;
        for cut in second..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            // A line that lacks nothing but its break is whole.
            let there = if cut == whole.len() - 1 { vec![1, 2, 3] } else { vec![1, 2] };
            assert_eq!(steps(&path), there, "cut at {cut}");
            let mut writer = Writer::resume(folder.path(), 9).unwrap();
            writer.write(&train(4, 1.0)).unwrap();
            assert_eq!(steps(&path), [&there[..], &[4]].concat(), "cut at {cut}");
            assert!(std::fs::read(&path).unwrap().ends_with(b"}\n"));
        }
        // What a disk may hold of a file after the power went.
        std::fs::write(&path, [&whole[..], &[0; 100]].concat()).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
    }

    #[test]
    fn damage_is_told_with_its_line_and_nothing_is_cut() {
        let record = r#"{"kind":"note","step":9,"text":""}"#;
        for (line, words) in [
            ("nonsense", "line 3 is no record of a run: expected ident (column 2)"),
            (r#"{"kind":"dream","step":4}"#, "unknown variant `dream`"),
            (r#"{"step":4}"#, "missing field `kind`"),
            (r#"{"kind":"note","step":4}"#, "missing field `text`"),
            (r#"{"kind":"note","step":-4,"text":""}"#, "-4"),
            (r#"{"kind":"eval","step":4,"tokens":1,"loss":"low"}"#, "\"low\""),
            (r#"{"kind":"eval","step":4,"tokens":1}"#, "missing field `loss`"),
            (r#"{"kind":"note","step":1,"text":""}"#, "step 1 comes after step 2"),
            ("[]", "line 3"),
        ] {
            let (folder, path) = run(2);
            append(&path, format!("{line}\n{record}\n").as_bytes());
            let before = std::fs::read(&path).unwrap();
            for error in [read(&path).unwrap_err(), Writer::resume(folder.path(), 1).unwrap_err()] {
                let said = error.to_string();
                assert!(said.contains("metrics.jsonl line 3 ") && said.contains(words), "{line}: {said}");
                assert!(!said.contains("at line 1"), "{said}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
        let (_folder, path) = run(1);
        // Blank lines say nothing, unknown fields are of another version.
        append(&path, format!("\n  \r\n{}\n", record.replace("9", "9,\"new\":[1]")).as_bytes());
        assert_eq!(steps(&path), [1, 9]);
        append(&path, "\u{1b}[2J\n".as_bytes());
        assert!(!read(&path).unwrap_err().to_string().contains('\u{1b}'));
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let endless = io::repeat(b' ').take(MAX_LINE + 5);
        let said = records(Path::new("x"), BufReader::new(endless)).unwrap_err().to_string();
        assert_eq!(said, "x line 1 is no record of a run: it is longer than 16 MiB");
    }

    #[test]
    fn steps_do_not_go_back() {
        let (folder, _) = run(2);
        let mut writer = Writer::resume(folder.path(), 2).unwrap();
        assert!(matches!(writer.write(&note(1, "")), Err(Error::Request(_))));
        writer.write(&note(2, "")).unwrap();
    }

    /// What the fuzz target asks of any bytes.
    #[test]
    fn flips_and_truncations_never_panic() {
        let (_folder, path) = run(2);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                // Whatever it says, it says it in one line.
                if let Err(e) = records(Path::new("x"), &bytes[..]) {
                    assert!(!e.to_string().contains('\n'), "{e}");
                }
            }
            assert!(records(Path::new("x"), &whole[..at]).is_ok());
        }
    }
}
