//! Live states that Ai00 keeps in files of its own: CBOR of `{name, id, default, data: {shape, data}}`,
//! where `data` is f32 of web-rwkv's layout `[C, N + 2, L, 1]`, first axis fastest: in each layer the
//! shift state of the time mix, then for each key channel the state over (head, value channel), then the
//! shift state of the channel mix.
//!
//! (Its tuned states are safetensors in web-rwkv's convention, and its `.prefab` models are weights made
//! ready for one GPU program, which are refused.)

use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;

use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::{Error, Result};

/// True for the first bytes of such a file: a CBOR map whose first key is `name` (state) or `info`
/// (prefab).
pub(super) fn recognise(head: &[u8]) -> bool {
    matches!(head, [0xa0..=0xb7 | 0xbf, 0x64, b'n', b'a', b'm', b'e', ..]) || is_prefab(head)
}

fn is_prefab(head: &[u8]) -> bool {
    matches!(head, [0xa0..=0xb7 | 0xbf, 0x64, b'i', b'n', b'f', b'o', ..])
}

/// Deepest nesting of values that are skipped.
const MAX_DEPTH: usize = 16;

/// Reads a live state: `blocks.L.att.time_state` as `[head, value, key]` like a tuned one, and
/// `blocks.L.att.shift_state`, `blocks.L.ffn.shift_state` `[C]`.
///
/// # Errors
/// Prefabs, RWKV-4 states, damaged files.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    if is_prefab(&file) {
        return Err(Error::unsupported(
            path,
            "it is an Ai00 prefab, weights made ready for one GPU program; give the .st file it was made from",
        ));
    }
    let mut r = Cbor { path, file: &file, at: 0 };
    let (mut shape, mut data) = (None, None);
    r.map(|r, key| match key {
        b"data" => r.map(|r, key| {
            match key {
                b"shape" => shape = Some(r.four()?),
                b"data" => data = Some(r.bytes(2)?),
                _ => r.skip(0)?,
            }
            Ok(())
        }),
        _ => r.skip(0),
    })?;
    if r.at != file.len() {
        return Err(Error::damaged(path, "bytes follow the end of the Ai00 state"));
    }
    let (Some(shape), Some(data)) = (shape, data) else {
        return Err(Error::damaged(path, "the Ai00 state lacks its shape or data"));
    };
    layers(path, shape, data, file.len())
}

fn layers(path: &Path, shape: [u64; 4], data: Bytes, file_len: usize) -> Result<Checkpoint> {
    let odd =
        || Error::damaged(path, format!("an Ai00 state of shape {shape:?} and {} bytes is none", data.len()));
    if shape[2] == 1 && shape[1].is_multiple_of(5) && shape[3] == 1 {
        return Err(Error::unsupported(
            path,
            "it is an Ai00 state of RWKV-4, which hawfinch does not import",
        ));
    }
    let numbers = shape.iter().try_fold(4u64, |a, &d| a.checked_mul(d)).ok_or_else(odd)?;
    let [c, rows, count, one] = shape.map(|d| usize::try_from(d).unwrap_or(usize::MAX));
    // Products below are bounded by the file's length from here on.
    if numbers != data.len() as u64 || one != 1 || rows < 3 || c == 0 || !c.is_multiple_of(rows - 2) {
        return Err(odd());
    }
    let n = rows - 2;
    let mut ckpt = Checkpoint::new(path, FileFormat::WebRwkv);
    ckpt.file_bytes = file_len as u64;
    let tensor = |shape: Vec<usize>, data| StoredTensor::new(DType::F32, shape, data).ok_or_else(odd);
    for layer in 0..count {
        let row = |r: usize| {
            let start = (layer * rows + r) * c * 4;
            data.slice(start..start + c * 4)
        };
        // [key][head][value] → [head][value][key]
        let mut wkv = Vec::with_capacity(c * n * 4);
        for channel in 0..c {
            (1..=n).for_each(|key| wkv.extend_from_slice(&row(key)[channel * 4..channel * 4 + 4]));
        }
        let block = |name: &str| format!("blocks.{layer}.{name}");
        ckpt.insert(block("att.shift_state"), tensor(vec![c], row(0))?)?;
        ckpt.insert(block("att.time_state"), tensor(vec![c / n, n, n], wkv.into())?)?;
        ckpt.insert(block("ffn.shift_state"), tensor(vec![c], row(rows - 1))?)?;
    }
    Ok(ckpt)
}

/// As much of CBOR as serde writes for a structure: definite lengths, or maps and arrays until a break.
struct Cbor<'a> {
    path: &'a Path,
    file: &'a Bytes,
    at: usize,
}

impl Cbor<'_> {
    fn bad<T>(&self) -> Result<T> {
        Err(Error::damaged(self.path, format!("the Ai00 state is cut short or broken at byte {}", self.at)))
    }

    fn take(&mut self, n: u64) -> Result<Bytes> {
        let end =
            usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)).filter(|&e| e <= self.file.len());
        match end {
            Some(end) => {
                let out = self.file.slice(self.at..end);
                self.at = end;
                Ok(out)
            }
            None => self.bad(),
        }
    }

    /// (major type, argument); `None` for an indefinite length.
    fn head(&mut self) -> Result<(u8, Option<u64>)> {
        let first = self.take(1)?[0];
        let argument = match first & 31 {
            small @ 0..=23 => u64::from(small),
            size @ 24..=27 => self.take(1 << (size - 24))?.iter().fold(0, |a, &b| a << 8 | u64::from(b)),
            31 => return Ok((first >> 5, None)),
            _ => return self.bad(),
        };
        Ok((first >> 5, Some(argument)))
    }

    /// True, and stepped over, when a break comes next.
    fn at_break(&mut self) -> bool {
        let yes = self.file.get(self.at) == Some(&0xff);
        self.at += usize::from(yes);
        yes
    }

    fn map(&mut self, mut each: impl FnMut(&mut Self, &[u8]) -> Result<()>) -> Result<()> {
        let (5, length) = self.head()? else { return self.bad() };
        let mut done = 0;
        while match length {
            Some(n) => done < n,
            None => !self.at_break(),
        } {
            let key = self.bytes(3)?;
            each(self, &key)?;
            done += 1;
        }
        Ok(())
    }

    /// A byte string (major type 2) or text (3).
    fn bytes(&mut self, major: u8) -> Result<Bytes> {
        match self.head()? {
            (m, Some(n)) if m == major => self.take(n),
            _ => self.bad(),
        }
    }

    fn four(&mut self) -> Result<[u64; 4]> {
        if self.head()? != (4, Some(4)) {
            return self.bad();
        }
        let mut out = [0; 4];
        for o in &mut out {
            match self.head()? {
                (0, Some(v)) => *o = v,
                _ => return self.bad(),
            }
        }
        Ok(out)
    }

    fn skip(&mut self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return self.bad();
        }
        match self.head()? {
            (0 | 1 | 7, Some(_)) => Ok(()),
            (2 | 3, Some(n)) => self.take(n).map(drop),
            (4, Some(n)) => (0..n).try_for_each(|_| self.skip(depth + 1)),
            (5, Some(n)) => (0..n).try_for_each(|_| self.skip(depth + 1).and_then(|()| self.skip(depth + 1))),
            (6, Some(_)) => self.skip(depth + 1),
            _ => self.bad(),
        }
    }
}
