//! GGUF's container, whatever model it holds: header, key-values, tensor table. Versions 2 and 3,
//! little-endian.
//!
//! `GGUF`, u32 version, u64 tensors, u64 key-values; key-values (string key, u32 type, value; strings are
//! u64 length and bytes; arrays u32 type, u64 length, values); tensors (string name, u32 axes, u64 axes
//! innermost first, u32 type, u64 offset); from the next multiple of `general.alignment` (32) the data.

use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;
use indexmap::IndexMap;

use super::le::Cursor;
use crate::{Error, Result};

/// The first four bytes.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Where no `general.alignment` says otherwise.
pub(super) const ALIGNMENT: usize = 32;

/// A value of a key; numbers widened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// f32 apart, so that printing it gives the digits it was written with.
    Float32(f32),
    Bool(bool),
    String(Bytes),
    Strings(Vec<Bytes>),
    /// An array of f32, little-endian.
    Floats(Bytes),
    /// An array of other numbers: how many. Nothing here needs their values.
    Numbers(u64),
}

impl Value {
    /// A scalar or a UTF-8 string as text; `None` for arrays and other bytes.
    pub(super) fn text(&self) -> Option<String> {
        Some(match self {
            Value::Unsigned(v) => v.to_string(),
            Value::Signed(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Float32(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::String(b) => std::str::from_utf8(b).ok()?.to_string(),
            Value::Strings(_) | Value::Floats(_) | Value::Numbers(_) => return None,
        })
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self) -> Option<usize> {
        match *self {
            Value::Unsigned(v) => v.try_into().ok(),
            Value::Signed(v) => v.try_into().ok(),
            _ => None,
        }
    }
}

/// A tensor as the table describes it, with its bytes.
pub(super) struct Stored {
    pub(super) dtype: DType,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
}

/// A whole file.
pub(super) struct Container {
    pub(super) keys: IndexMap<String, Value>,
    pub(super) tensors: IndexMap<String, Stored>,
}

/// ggml's number of a type, for those that hawfinch reads.
const TYPES: [(u32, DType); 20] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (10, DType::Q2_K),
    (11, DType::Q3_K),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (20, DType::IQ4_NL),
    (23, DType::IQ4_XS),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::BF16),
];

/// Names of the types that hawfinch does not read, for the sentence that says so.
const OTHER_TYPES: [(u32, &str); 16] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// ggml's number of a type; `None` for types without one.
pub(super) fn type_number(dtype: DType) -> Option<u32> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n)
}

/// Parses a whole file.
pub(super) fn parse(path: &Path, file: &Bytes) -> Result<Container> {
    Parser { path, cur: Cursor::new(file.clone()) }.run(file)
}

struct Parser<'a> {
    path: &'a Path,
    cur: Cursor,
}

struct Entry {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

impl Parser<'_> {
    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::damaged(self.path, what)
    }

    /// For a read that passed the end of the file.
    fn short(&self, within: &str) -> Error {
        self.damaged(format!(
            "the file ends within {within} (byte {}); download it again",
            self.cur.position() + self.cur.left()
        ))
    }

    fn run(mut self, file: &Bytes) -> Result<Container> {
        let (tensors, keys) = self.header()?;
        let keys = self.keys(keys)?;
        let alignment = match keys.get("general.alignment") {
            None => ALIGNMENT,
            Some(v) => v
                .count()
                .filter(|a| a.is_power_of_two() && *a <= 1 << 20)
                .ok_or_else(|| self.damaged("its general.alignment is not a power of two"))?,
        };
        if let Some(parts) = keys.get("split.count").and_then(Value::count).filter(|&n| n > 1) {
            return Err(Error::unsupported(
                self.path,
                format!(
                    "it is one of {parts} parts of a split GGUF; join them with llama.cpp's `llama-gguf-split --merge`"
                ),
            ));
        }
        let table = self.table(tensors)?;
        let start = self.cur.position().next_multiple_of(alignment);
        let mut tensors = IndexMap::new();
        let mut spans = Vec::new();
        for e in table {
            if e.offset % alignment != 0 {
                return Err(self.damaged(format!(
                    "tensor `{}` lies at offset {}, not a multiple of {alignment}",
                    e.name, e.offset
                )));
            }
            let from = start.checked_add(e.offset);
            let span = from.and_then(|a| Some((a, a.checked_add(e.len)?))).filter(|s| s.1 <= file.len());
            // An empty tensor may lie anywhere.
            let (from, to) = match span {
                Some(s) => s,
                None if e.len == 0 => (0, 0),
                None => {
                    return Err(self.damaged(format!(
                        "tensor `{}` needs {} bytes at offset {}, past the end of the file; download it again",
                        e.name, e.len, e.offset
                    )));
                }
            };
            spans.push((from, to));
            let stored = Stored { dtype: e.dtype, shape: e.shape, data: file.slice(from..to) };
            if tensors.insert(e.name.clone(), stored).is_some() {
                return Err(self.damaged(format!("it holds two tensors named `{}`", e.name)));
            }
        }
        spans.retain(|(from, to)| from < to);
        spans.sort_unstable();
        if spans.windows(2).any(|w| w[1].0 < w[0].1) {
            return Err(self.damaged("two of its tensors overlap"));
        }
        Ok(Container { keys, tensors })
    }

    /// (tensors, key-values)
    fn header(&mut self) -> Result<(u64, u64)> {
        let magic = self.cur.bytes(4).ok_or_else(|| self.short("its header"))?;
        if magic[..] != MAGIC[..] {
            return Err(Error::not_a_model(self.path, "it does not begin with `GGUF`"));
        }
        let version = self.cur.u32().ok_or_else(|| self.short("its header"))?;
        match version {
            2 | 3 => {}
            v if v != 0 && v & 0xffff == 0 => {
                return Err(Error::unsupported(
                    self.path,
                    "it is a big-endian GGUF; hawfinch reads little-endian ones, which llama.cpp's gguf_convert_endian.py makes",
                ));
            }
            1 => {
                return Err(Error::unsupported(
                    self.path,
                    "it is of GGUF version 1; hawfinch reads versions 2 and 3, convert the original again",
                ));
            }
            v => {
                let known = "hawfinch reads versions 2 and 3";
                return Err(Error::unsupported(self.path, format!("it is of GGUF version {v}; {known}")));
            }
        }
        let tensors = self.cur.u64().ok_or_else(|| self.short("its header"))?;
        let keys = self.cur.u64().ok_or_else(|| self.short("its header"))?;
        Ok((tensors, keys))
    }

    fn string(&mut self, what: &str) -> Result<Bytes> {
        let len = self.cur.u64().ok_or_else(|| self.short(what))?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.cur.bytes(len).ok_or_else(|| self.short(what))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let bytes = self.string(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(s) => Ok(s.to_string()),
            Err(_) => {
                Err(self.damaged(format!("{what} before byte {} is not UTF-8 text", self.cur.position())))
            }
        }
    }

    fn keys(&mut self, count: u64) -> Result<IndexMap<String, Value>> {
        // No capacity from `count`: a wrong one ends with the file.
        let mut out = IndexMap::new();
        for _ in 0..count {
            let key = self.name("the name of a key")?;
            let what = format!("the value of `{key}`");
            let kind = self.cur.u32().ok_or_else(|| self.short(&what))?;
            let value = self.value(&what, kind)?;
            if out.insert(key, value).is_some() {
                return Err(self.damaged(format!("{what} is there twice")));
            }
        }
        Ok(out)
    }

    fn value(&mut self, what: &str, kind: u32) -> Result<Value> {
        let cur = &mut self.cur;
        let value = match kind {
            0 => cur.u8().map(|v| Value::Unsigned(v.into())),
            1 => cur.u8().map(|v| Value::Signed((v as i8).into())),
            2 => cur.u16().map(|v| Value::Unsigned(v.into())),
            3 => cur.u16().map(|v| Value::Signed((v as i16).into())),
            4 => cur.u32().map(|v| Value::Unsigned(v.into())),
            5 => cur.u32().map(|v| Value::Signed((v as i32).into())),
            6 => cur.u32().map(|v| Value::Float32(f32::from_bits(v))),
            7 => cur.u8().map(|v| Value::Bool(v != 0)),
            8 => return Ok(Value::String(self.string(what)?)),
            9 => return self.array(what),
            10 => cur.u64().map(Value::Unsigned),
            11 => cur.u64().map(|v| Value::Signed(v as i64)),
            12 => cur.u64().map(|v| Value::Float(f64::from_bits(v))),
            _ => return Err(self.damaged(format!("{what} is of type {kind}, which does not exist"))),
        };
        value.ok_or_else(|| self.short(what))
    }

    fn array(&mut self, what: &str) -> Result<Value> {
        let kind = self.cur.u32().ok_or_else(|| self.short(what))?;
        let count = self.cur.u64().ok_or_else(|| self.short(what))?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                let mut out = Vec::new();
                for _ in 0..count {
                    out.push(self.string(what)?);
                }
                return Ok(Value::Strings(out));
            }
            9 => return Err(Error::unsupported(self.path, format!("{what} is an array of arrays"))),
            _ => return Err(self.damaged(format!("{what} is an array of type {kind}, which does not exist"))),
        };
        let len = usize::try_from(count).ok().and_then(|n| n.checked_mul(size));
        match len.and_then(|n| self.cur.bytes(n)) {
            Some(bytes) if kind == 6 => Ok(Value::Floats(bytes)),
            Some(_) => Ok(Value::Numbers(count)),
            None => Err(self.short(what)),
        }
    }

    fn table(&mut self, count: u64) -> Result<Vec<Entry>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let name = self.name("the name of a tensor")?;
            let what = format!("the description of tensor `{name}`");
            let axes = self.cur.u32().ok_or_else(|| self.short(&what))?;
            if axes > 4 {
                return Err(self.damaged(format!("tensor `{name}` has {axes} axes, GGUF allows 4")));
            }
            let mut shape = Vec::with_capacity(4);
            for _ in 0..axes {
                let d = self.cur.u64().ok_or_else(|| self.short(&what))?;
                shape.push(usize::try_from(d).unwrap_or(usize::MAX));
            }
            shape.reverse();
            let kind = self.cur.u32().ok_or_else(|| self.short(&what))?;
            let offset = self.cur.u64().ok_or_else(|| self.short(&what))?;
            let dtype = self.dtype(&name, kind)?;
            let cols = shape.last().copied().unwrap_or(1);
            let total = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
            let rows = total.map(|t| t.checked_div(cols).unwrap_or(0));
            let len = rows.and_then(|r| dtype.bytes_for(cols)?.checked_mul(r));
            let len = len.filter(|_| shape.iter().all(|&d| d <= 1 << 40)).ok_or_else(|| {
                self.damaged(format!("tensor `{name}` has the impossible shape {shape:?} for {dtype}"))
            })?;
            out.push(Entry {
                name,
                dtype,
                shape,
                offset: usize::try_from(offset).unwrap_or(usize::MAX),
                len,
            });
        }
        Ok(out)
    }

    fn dtype(&self, name: &str, kind: u32) -> Result<DType> {
        if let Some((_, d)) = TYPES.iter().find(|(n, _)| *n == kind) {
            return Ok(*d);
        }
        match OTHER_TYPES.iter().find(|(n, _)| *n == kind) {
            Some((_, other)) => Err(Error::unsupported(
                self.path,
                format!(
                    "tensor `{name}` is of type {other}, which hawfinch does not read; take a Q4_K, Q5_K, Q6_K or Q8_0 file of the same model"
                ),
            )),
            None => Err(Error::unsupported(
                self.path,
                format!(
                    "tensor `{name}` is of ggml type {kind}, which hawfinch does not know; take a Q4_K, Q5_K, Q6_K or Q8_0 file of the same model"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.bytes());
    }

    fn head(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(version.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        out
    }

    /// A file of one key.
    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let mut out = head(3, 0, 1);
        string(&mut out, name);
        out.extend(kind.to_le_bytes());
        out.extend(value);
        out
    }

    /// A file of these tensors (name, axes innermost first, type, offset) with `data` bytes behind.
    fn tensors(list: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
        let mut out = head(3, list.len() as u64, 0);
        for (name, axes, kind, offset) in list {
            string(&mut out, name);
            out.extend((axes.len() as u32).to_le_bytes());
            axes.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT) + data, 7);
        out
    }

    fn parse_it(bytes: Vec<u8>) -> Result<Container> {
        parse(Path::new("x.gguf"), &bytes.into())
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let array = |kind: u32, count: u64, bytes: &[u8]| {
            [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
        };
        let text = [&2u64.to_le_bytes()[..], b"hi"].concat();
        let float = 1.5f32.to_le_bytes();
        for (kind, bytes, expected) in [
            (0, vec![200], Value::Unsigned(200)),
            (1, vec![200], Value::Signed(-56)),
            (2, vec![1, 2], Value::Unsigned(513)),
            (3, vec![0xff, 0xff], Value::Signed(-1)),
            (4, vec![1, 0, 0, 0], Value::Unsigned(1)),
            (5, vec![0xff; 4], Value::Signed(-1)),
            (6, float.to_vec(), Value::Float32(1.5)),
            (7, vec![1], Value::Bool(true)),
            (8, text.clone(), Value::String(Bytes::from_static(b"hi"))),
            (9, array(8, 1, &text), Value::Strings(vec![Bytes::from_static(b"hi")])),
            (9, array(6, 1, &float), Value::Floats(Bytes::copy_from_slice(&float))),
            (9, array(2, 3, &[0; 6]), Value::Numbers(3)),
            (10, vec![0xff; 8], Value::Unsigned(u64::MAX)),
            (11, vec![0xff; 8], Value::Signed(-1)),
            (12, 0.1f64.to_le_bytes().to_vec(), Value::Float(0.1)),
        ] {
            let file = key("k", kind, &bytes);
            for end in 0..file.len() {
                assert!(parse_it(file[..end].to_vec()).is_err(), "kind {kind} cut at {end}");
            }
            assert_eq!(parse_it(file).unwrap().keys["k"], expected, "kind {kind}");
        }
    }

    #[test]
    fn tensors_lie_where_the_table_says() {
        let c = parse_it(tensors(&[("a", &[3, 2], 0, 0), ("b", &[32], 8, 32)], 32 + 34)).unwrap();
        assert_eq!((c.tensors["a"].dtype, &c.tensors["a"].shape[..]), (DType::F32, &[2, 3][..]));
        assert_eq!((c.tensors["b"].dtype, c.tensors["b"].data.len()), (DType::Q8_0, 34));
    }

    #[test]
    fn absurd_files_get_their_sentence() {
        let huge = u64::MAX.to_le_bytes();
        let mut split = key("split.count", 2, &[3, 0]);
        split.resize(64, 0);
        for (file, part) in [
            (b"GGML....".to_vec(), "does not begin with `GGUF`"),
            (head(1, 0, 0), "version 1"),
            (head(4, 0, 0), "version 4"),
            (head(3u32.swap_bytes(), 0, 0), "big-endian"),
            (head(3, 0, u64::MAX), "ends within the name of a key"),
            (head(3, u64::MAX, 0), "ends within the name of a tensor"),
            ([head(3, 0, 1), huge.to_vec()].concat(), "ends within the name of a key"),
            (key("k", 8, &huge), "ends within the value of `k`"),
            (key("k", 13, &[0; 8]), "type 13"),
            (key("k", 9, &[[9, 0, 0, 0].to_vec(), huge.to_vec()].concat()), "array of arrays"),
            (key("k", 9, &[[12, 0, 0, 0].to_vec(), huge.to_vec()].concat()), "ends within the value"),
            (key("k", 9, &[[8, 0, 0, 0].to_vec(), huge.to_vec()].concat()), "ends within the value"),
            (key("general.alignment", 4, &[33, 0, 0, 0]), "power of two"),
            (key("general.alignment", 4, &[0; 4]), "power of two"),
            (split, "one of 3 parts"),
            (tensors(&[("t", &[1, 1, 1, 1, 1], 0, 0)], 4), "5 axes"),
            (tensors(&[("t", &[u64::MAX, u64::MAX], 0, 0)], 4), "impossible shape"),
            (tensors(&[("t", &[31], 2, 0)], 64), "impossible shape"),
            (tensors(&[("t", &[8], 0, 0)], 31), "past the end"),
            (tensors(&[("t", &[8], 0, u64::MAX - 31)], 32), "past the end"),
            (tensors(&[("t", &[8], 0, 8)], 64), "not a multiple of 32"),
            (tensors(&[("t", &[8], 0, 0), ("u", &[8], 0, 0)], 64), "overlap"),
            (tensors(&[("t", &[8], 0, 0), ("t", &[8], 0, 32)], 64), "two tensors"),
            (tensors(&[("t", &[256], 16, 0)], 999), "`t` is of type IQ2_XXS"),
            (tensors(&[("t", &[256], 99, 0)], 999), "`t` is of ggml type 99"),
        ] {
            let message = match parse_it(file) {
                Ok(_) => panic!("not refused: {part}"),
                Err(e) => e.to_string(),
            };
            assert!(message.contains(part) && !message.contains('\n'), "`{message}` should say `{part}`");
        }
    }
}
