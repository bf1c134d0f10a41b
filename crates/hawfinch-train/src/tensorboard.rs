//! TensorBoard's event files: a run's numbers beside those of other programs.
//!
//! A file is a row of records, each framed as TensorFlow's `TFRecord`: the length (u64), its checksum, the bytes, their
//! checksum, all little-endian; checksums are CRC-32C, rotated and shifted by a constant (`tensorflow/core/lib/io/
//! record_writer.h`). The bytes are an `Event` of `tensorflow/core/util/event.proto`, of which these fields are written:
//!
//! ```text
//! Event      1: double wall_time   2: int64 step   3: string file_version   5: Summary   7: SessionLog
//! Summary    1: repeated Value { 1: string tag, 2: float simple_value }
//! SessionLog 1: enum status (START = 1)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::metrics::Record;

/// An event file that is being written.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    bytes: u64,
}

impl Events {
    /// Begins a file in the folder of a new run. Files that are there are left alone; TensorBoard reads all, by name.
    ///
    /// # Errors
    /// A file that cannot be made or written.
    pub fn create(folder: &Path) -> Result<Events> {
        Self::begin(folder, None)
    }

    /// Begins a file for a run that continues from its checkpoint after `step` steps. It says so: TensorBoard forgets
    /// what other files of the folder hold of later steps.
    ///
    /// # Errors
    /// As [`Events::create`].
    pub fn resume(folder: &Path, step: u64) -> Result<Events> {
        Self::begin(folder, Some(step))
    }

    fn begin(folder: &Path, resumed: Option<u64>) -> Result<Events> {
        let now = now();
        for n in 0.. {
            // TensorBoard asks for `tfevents` in the name, and for names that sort by time.
            let name = format!(
                "events.out.tfevents.{:010}.hawfinch.{}.{n}",
                now.max(0.0) as u64,
                std::process::id()
            );
            let path = folder.join(name);
            let file = match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened.map_err(|e| Error::write(&path, e))?,
            };
            let mut events = Events { path, file, bytes: 0 };
            events.put(&event(now, 0, &What::Version))?;
            if let Some(step) = resumed {
                events.put(&event(now, step.saturating_add(1), &What::Start))?;
            }
            return Ok(events);
        }
        unreachable!("numbers do not end")
    }

    /// Writes a record's numbers. Notes and samples have none.
    ///
    /// # Errors
    /// A write that failed; the file then ends with the record before.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Train(r) => self.scalars(
                r.step,
                &[
                    ("train/loss", r.loss),
                    ("train/lr", r.lr),
                    ("train/weight_decay", r.weight_decay),
                    ("train/grad_norm", r.grad_norm),
                    ("train/tokens_per_second", r.tokens_per_second),
                    ("train/tokens", r.tokens as f64),
                ],
            ),
            Record::Eval(r) => {
                let optional = [
                    ("eval/bits_per_byte", r.bits_per_byte),
                    ("eval/probe", r.probe),
                    ("eval/dead_channels", r.dead_channels),
                ];
                let optional = optional.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
                let all: Vec<_> = [("eval/loss", r.loss)].into_iter().chain(optional).collect();
                self.scalars(r.step, &all)
            }
            Record::Note(_) => Ok(()),
        }
    }

    /// Writes numbers of one step by their tags, each rounded to f32.
    ///
    /// # Errors
    /// As [`Events::write`].
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.put(&event(now(), step, &What::Scalars(values)))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn put(&mut self, event: &[u8]) -> Result<()> {
        let record = framed(event);
        if let Err(e) = self.file.write_all(&record) {
            // If this fails too, the file ends in a record that is cut off, for which TensorBoard waits.
            let _ = self.file.set_len(self.bytes);
            return Err(Error::write(&self.path, e));
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// What an event tells.
enum What<'a> {
    /// Of the file: its first event.
    Version,
    /// A run goes on: events of this step and later ones are void.
    Start,
    Scalars(&'a [(&'a str, f64)]),
}

/// An `Event`.
fn event(wall_time: f64, step: u64, what: &What) -> Vec<u8> {
    let mut out = Message::default();
    out.double(1, wall_time);
    out.integer(2, step);
    match what {
        What::Version => out.bytes(3, b"brain.Event:2"),
        What::Start => {
            let mut log = Message::default();
            log.integer(1, 1);
            out.bytes(7, &log.0);
        }
        What::Scalars(values) => {
            let mut summary = Message::default();
            for (tag, value) in *values {
                let mut scalar = Message::default();
                scalar.bytes(1, tag.as_bytes());
                scalar.float(2, *value as f32);
                summary.bytes(1, &scalar.0);
            }
            out.bytes(5, &summary.0);
        }
    }
    out.0
}

/// A message of Protocol Buffers. Fields are to be written by rising number, as its own writers do.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Begins a field. Wire types: 0 a varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.
    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    /// Left out when 0, which is what an absent field means.
    fn integer(&mut self, field: u64, n: u64) {
        if n != 0 {
            self.key(field, 0);
            self.varint(n);
        }
    }

    fn double(&mut self, field: u64, x: f64) {
        self.key(field, 1);
        self.0.extend(x.to_le_bytes());
    }

    /// Written even if it is 0: one of several kinds of value, it is told from the others by being there.
    fn float(&mut self, field: u64, x: f32) {
        self.key(field, 5);
        self.0.extend(x.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// A `TFRecord`.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length));
    out.extend(data);
    out.extend(masked(data));
    out
}

/// The checksum as it is stored: CRCs of bytes that hold CRCs would be weak.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (RFC 3720, appendix B.4), a byte at a time: a step writes a few hundred.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ byte)])
}

/// Of each byte, by the polynomial 0x1edc6f41 with its bits reversed.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Eval, Note, Train};

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = rising.iter().rev().copied().collect();
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(&falling), 0x113f_db5c);
    }

    /// Put together by hand from the description of the format; the checksums by TensorBoard's own code.
    #[test]
    fn bytes_are_those_of_the_format() {
        let version = [
            &b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22"[..],
            b"\x09\0\0\0\0\0\0\xf8\x3f",
            b"\x1a\x0dbrain.Event:2",
            b"\x2a\x28\x64\x6c",
        ];
        let start = [
            &b"\x0f\0\0\0\0\0\0\0\x6d\x53\x2b\x09"[..],
            b"\x09\0\0\0\0\0\0\xf8\x3f",
            b"\x10\x2c",
            b"\x3a\x02\x08\x01",
            b"\x3f\x5c\x0e\xdb",
        ];
        let scalars = [
            &b"\x22\0\0\0\0\0\0\0\x78\x11\x3d\xfd"[..],
            b"\x09\0\0\0\0\0\0\xf8\x3f",
            b"\x10\xac\x02",
            b"\x2a\x14",
            b"\x0a\x08\x0a\x01a\x15\0\0\0\x40",
            b"\x0a\x08\x0a\x01b\x15\0\0\xc0\x7f",
            b"\x31\x14\x5e\x22",
        ];
        assert_eq!(framed(&event(1.5, 0, &What::Version)), version.concat());
        assert_eq!(framed(&event(1.5, 44, &What::Start)), start.concat());
        let values = [("a", 2.0), ("b", f64::NAN)];
        assert_eq!(framed(&event(1.5, 300, &What::Scalars(&values))), scalars.concat());
    }

    /// The records of a file; the reading side is here alone.
    fn unframed(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let [a, b, c, d, e, f, g, h, ..] = *bytes {
            let length = u64::from_le_bytes([a, b, c, d, e, f, g, h]) as usize;
            let record = &bytes[12..12 + length];
            assert_eq!(bytes[..16 + length], framed(record));
            all.push(record.to_vec());
            bytes = &bytes[16 + length..];
        }
        assert!(bytes.is_empty());
        all
    }

    /// With `INTEROP_OUT` set, the file stays in that folder, for TensorBoard's own reader (`tests/interop`).
    #[test]
    fn a_run_that_was_resumed_is_two_files() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = std::env::var_os("INTEROP_OUT").map_or(temporary.path().to_path_buf(), PathBuf::from);
        let train = |step: u64, loss: f64| {
            Record::Train(Train {
                step,
                tokens: 512 * step,
                loss,
                lr: 6e-4,
                weight_decay: 0.1,
                grad_norm: 0.5,
                seconds: 1.0,
                tokens_per_second: 512.0,
                skipped: false,
                communication: None,
            })
        };
        let mut first = Events::create(&folder).unwrap();
        for (step, loss) in [(1, 11.0), (2, f64::NAN), (3, 100.0), (4, 100.0)] {
            first.write(&train(step, loss)).unwrap();
        }
        let mut second = Events::resume(&folder, 2).unwrap();
        second.write(&train(3, 9.0)).unwrap();
        let eval = Eval {
            step: 3,
            tokens: 1536,
            loss: 9.5,
            bits_per_byte: Some(3.25),
            dead_channels: Some(0.25),
            ..Eval::default()
        };
        second.write(&Record::Eval(eval)).unwrap();
        second.write(&Record::Note(Note { step: 3, text: "no number".into() })).unwrap();

        assert!(first.path() < second.path());
        let (a, b) =
            (unframed(&std::fs::read(&first.path).unwrap()), unframed(&std::fs::read(&second.path).unwrap()));
        assert_eq!((a.len(), b.len()), (5, 4));
        assert!(a[0].ends_with(b"brain.Event:2") && b[0].ends_with(b"brain.Event:2"));
        assert!(b[1].ends_with(b"\x10\x03\x3a\x02\x08\x01"));
        for tag in
            ["train/loss", "train/lr", "train/weight_decay", "train/grad_norm", "train/tokens_per_second"]
        {
            assert!(a[1].windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
        }
        for tag in ["eval/loss", "eval/bits_per_byte", "eval/dead_channels"] {
            assert!(b[3].windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
        }
        // Written up to the last byte, though the files are still open.
        assert_eq!(std::fs::metadata(&first.path).unwrap().len(), first.bytes);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let said = Events::create(Path::new("no/such")).unwrap_err().to_string();
        assert!(said.contains("no/such/events.out.tfevents."), "{said}");
    }
}
