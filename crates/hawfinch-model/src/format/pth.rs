//! PyTorch `.pth`: a zip archive of one pickle, which names the tensors, and one stored record a
//! storage. Tensors are slices of the mapped file; only views that are not contiguous are copied.
//!
//! Layout as `torch.save` writes it since PyTorch 1.6: `NAME/data.pkl`, `NAME/byteorder`,
//! `NAME/data/0…`, `NAME/version`. Ours add `NAME/hawfinch.json`, the metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;

use super::pickle::{Pickle, Stop, Tensor, Value};
use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::{Error, Result};

/// Record with our metadata, beside `data.pkl`.
pub(super) const METADATA_RECORD: &str = "hawfinch.json";
/// Longest metadata record that is read.
const MAX_METADATA: usize = 1 << 20;
/// Views that are not contiguous may together take this much beyond the file's own size.
const COPY_SLACK: u64 = 1 << 20;

/// Keys under which trainers wrap the parameters.
const WRAPPERS: [&str; 6] = ["state_dict", "model_state_dict", "model", "module", "weights", "params"];

/// Reads a `.pth` file from its bytes.
///
/// # Errors
/// Damaged archives and pickles, compressed records, big-endian files, TorchScript programs, and every
/// pickle that refers to anything but tensors.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let archive = Archive::open(path, &file)?;
    if let Some(order) = archive.record("byteorder")?
        && order.as_ref() != b"little"
    {
        let order = String::from_utf8_lossy(&order[..order.len().min(16)]).into_owned();
        return Err(Error::unsupported(
            path,
            format!("its numbers are in {order:?} byte order, and hawfinch reads little-endian files only"),
        ));
    }
    let data = archive.checked_record("data.pkl")?.ok_or_else(|| {
        Error::not_a_model(path, "it is a zip archive without the data.pkl of a PyTorch checkpoint")
    })?;
    let pickle = Pickle::load(&data).map_err(|stop| match stop {
        Stop::Damaged(what) => Error::damaged(path, what),
        Stop::Refused(what) => Error::unsupported(path, what),
    })?;
    let mut ckpt = Checkpoint::new(path, FileFormat::Pth);
    ckpt.file_bytes = file.len() as u64;
    let mut copy_budget = file.len() as u64 + COPY_SLACK;
    for &(key, value) in parameters(path, &pickle)? {
        let (Some(key), Some(tensor)) = (pickle.str(key), pickle.tensor(value)) else { continue };
        let tensor = archive.tensor(&pickle, key, tensor, &mut copy_budget)?;
        ckpt.insert(key, tensor)?;
    }
    if let Some(json) = archive.checked_record(METADATA_RECORD)?.filter(|r| r.len() <= MAX_METADATA) {
        ckpt.metadata = serde_json::from_slice::<BTreeMap<String, String>>(&json).map_err(|e| {
            Error::damaged(path, format!("its record {METADATA_RECORD} is not what hawfinch writes: {e}"))
        })?;
    }
    Ok(ckpt)
}

/// The dictionary that holds the tensors: the root, or the one dictionary inside it.
fn parameters<'p>(path: &Path, pickle: &'p Pickle) -> Result<&'p [(Value, Value)]> {
    let holds_tensors = |d: &[(Value, Value)]| d.iter().any(|&(_, v)| pickle.tensor(v).is_some());
    let Some(root) = pickle.dict(pickle.root) else {
        let what = match pickle.root {
            Value::Tensor(_) => "a single tensor",
            Value::List(_) | Value::Tuple(_) => "a list",
            _ => "a single value",
        };
        return Err(Error::not_a_model(path, format!("its pickle holds {what}, not named tensors")));
    };
    if holds_tensors(root) || root.is_empty() {
        return Ok(root);
    }
    let inner: Vec<(&str, &[(Value, Value)])> = root
        .iter()
        .filter_map(|&(k, v)| Some((pickle.str(k)?, pickle.dict(v)?)))
        .filter(|(_, d)| holds_tensors(d))
        .collect();
    let wrapped: Vec<_> = inner.iter().filter(|(k, _)| WRAPPERS.contains(k)).collect();
    match (&wrapped[..], &inner[..]) {
        ([(_, d)], _) | ([], [(_, d)]) => Ok(d),
        ([], []) => Err(Error::not_a_model(path, "its pickle holds no named tensors")),
        _ => {
            let keys: Vec<&str> = inner.iter().map(|(k, _)| *k).take(8).collect();
            Err(Error::unsupported(
                path,
                format!(
                    "it holds several sets of tensors ({}); save one of them on its own",
                    keys.join(", ")
                ),
            ))
        }
    }
}

/// The zip directory: record name (without the archive's own name) → where its bytes lie.
struct Archive<'a> {
    path: &'a Path,
    file: &'a Bytes,
    records: HashMap<&'a [u8], Record>,
}

struct Record {
    start: usize,
    len: usize,
    crc: u32,
    compressed: bool,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, file: &'a Bytes) -> Result<Self> {
        let zip = rawzip::ZipArchive::from_slice(file.as_ref()).map_err(|_| {
            Error::damaged(
                path,
                "the directory at the end of the zip archive is missing: the file is truncated",
            )
        })?;
        let bad = |e: rawzip::Error| Error::damaged(path, format!("its zip directory is damaged: {e}"));
        let mut records = HashMap::new();
        let mut prefix: Option<&[u8]> = None;
        let mut count = 0u64;
        let mut entries = zip.entries();
        while let Some(entry) = entries.next_entry().map_err(bad)? {
            count += 1;
            if entry.is_dir() {
                continue;
            }
            let located = zip.get_entry(entry.wayfinder()).map_err(bad)?;
            let (start, end) = located.compressed_data_range();
            // The name in the local header is compared with the directory's, so that a record cannot be
            // two things to two readers. Both are slices of the file.
            let name = slice_of(file, entry.file_path().as_ref());
            let (Some(name), Ok(start), Ok(end)) = (name, usize::try_from(start), usize::try_from(end))
            else {
                return Err(Error::damaged(path, "its zip directory points outside the file"));
            };
            if located.local_header().file_path().as_ref() != name {
                return Err(Error::damaged(
                    path,
                    format!(
                        "the zip record `{}` has another name in its own header",
                        String::from_utf8_lossy(name)
                    ),
                ));
            }
            let record = Record {
                start,
                len: end - start,
                crc: entry.crc32(),
                compressed: entry.compression_method() != rawzip::CompressionMethod::STORE,
            };
            if !record.compressed && entry.uncompressed_size_hint() != record.len as u64 {
                return Err(Error::damaged(
                    path,
                    format!("the zip record `{}` has two different sizes", String::from_utf8_lossy(name)),
                ));
            }
            // NAME/data.pkl marks the archive's own name; all records are under it.
            let cut = name.iter().position(|&b| b == b'/').map_or(0, |i| i + 1);
            if *prefix.get_or_insert(&name[..cut]) != &name[..cut] {
                return Err(Error::not_a_model(
                    path,
                    "it is a zip archive of several folders, which a PyTorch checkpoint never is",
                ));
            }
            if records.insert(&name[cut..], record).is_some() {
                return Err(Error::damaged(
                    path,
                    format!("its zip directory lists `{}` twice", String::from_utf8_lossy(name)),
                ));
            }
        }
        if count != zip.entries_hint() {
            return Err(Error::damaged(
                path,
                format!("its zip directory holds {count} records where it promises {}", zip.entries_hint()),
            ));
        }
        if records.contains_key(&b"constants.pkl"[..]) || records.keys().any(|k| k.starts_with(b"code/")) {
            return Err(Error::unsupported(
                path,
                "it is a TorchScript program, not a checkpoint; save the module's state_dict with torch.save",
            ));
        }
        Ok(Archive { path, file, records })
    }

    fn record(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(r) = self.records.get(name.as_bytes()) else { return Ok(None) };
        if r.compressed {
            return Err(Error::unsupported(
                self.path,
                format!(
                    "its record `{name}` is compressed, so it cannot be mapped into memory; PyTorch stores records \
                     uncompressed: unpack the archive and pack it again with zip -0, or save it with torch.save"
                ),
            ));
        }
        Ok(Some(self.file.slice(r.start..r.start + r.len)))
    }

    /// A small record whose checksum is compared. (Storages are not: opening must not read the file.)
    fn checked_record(&self, name: &str) -> Result<Option<Bytes>> {
        let bytes = self.record(name)?;
        if let (Some(b), Some(r)) = (&bytes, self.records.get(name.as_bytes()))
            && b.len() <= super::pickle::MAX_PICKLE
            && rawzip::crc32(b) != r.crc
        {
            return Err(Error::damaged(
                self.path,
                format!("the checksum of its record `{name}` does not fit"),
            ));
        }
        Ok(bytes)
    }

    /// Cuts a tensor out of its storage.
    fn tensor(&self, pickle: &Pickle, name: &str, t: &Tensor, copy_budget: &mut u64) -> Result<StoredTensor> {
        let bad = |what: String| Error::damaged(self.path, format!("tensor `{}` {what}", shorten(name)));
        let key = pickle.str(Value::Str(t.storage.key.0, t.storage.key.1)).unwrap_or("?");
        let record = self
            .record(&format!("data/{key}"))?
            .ok_or_else(|| bad(format!("lies in the record data/{}, which the file lacks", shorten(key))))?;
        let size = t.dtype.block_bytes() as u64;
        let storage_bytes = t.storage.numel.checked_mul(if t.storage.dtype.is_some() { size } else { 1 });
        let Some(storage_bytes) = storage_bytes.filter(|&b| b <= record.len() as u64) else {
            return Err(bad(format!(
                "lies in a storage of {} elements, but the record has only {} bytes",
                t.storage.numel,
                record.len()
            )));
        };
        let storage_len = storage_bytes / size;
        let shape: Option<Vec<usize>> = t.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let count = t.shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d));
        let (Some(shape), Some(count)) = (shape, count) else {
            return Err(bad(format!("has the impossible shape {:?}", t.shape)));
        };
        if count == 0 {
            return StoredTensor::new(t.dtype, shape, Bytes::new())
                .ok_or_else(|| bad("is impossible".into()));
        }
        // The highest element that the view touches.
        let last = t
            .shape
            .iter()
            .zip(&t.strides)
            .try_fold(t.offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?));
        if last.is_none_or(|l| l >= storage_len) {
            return Err(bad(format!(
                "(shape {:?}, strides {:?}, offset {}) reaches beyond its storage of {storage_len} elements",
                t.shape, t.strides, t.offset
            )));
        }
        let data = if contiguous(&t.shape, &t.strides) {
            // In range: offset + count - 1 = last < storage_len.
            let start = (t.offset * size) as usize;
            record.slice(start..start + (count * size) as usize)
        } else {
            let bytes = count.checked_mul(size).filter(|b| *b <= *copy_budget).ok_or_else(|| {
                bad(format!("is a view of shape {:?} far larger than the file that holds it", t.shape))
            })?;
            *copy_budget -= bytes;
            gather(&record, t, count as usize, size as usize).into()
        };
        StoredTensor::new(t.dtype, shape, data).ok_or_else(|| bad("has the wrong number of bytes".into()))
    }
}

/// The part of `file` that `part` points to, with the lifetime of the file's bytes.
fn slice_of<'a>(file: &'a Bytes, part: &[u8]) -> Option<&'a [u8]> {
    let start = (part.as_ptr() as usize).checked_sub(file.as_ptr() as usize)?;
    file.get(start..start.checked_add(part.len())?)
}

fn shorten(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Row-major without gaps; strides of axes of length 1 are free.
fn contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        if d != 1 && s != expected {
            return false;
        }
        expected = expected.saturating_mul(d);
    }
    true
}

/// Copies a strided view into row-major order. Bounds were checked by the caller.
fn gather(record: &[u8], t: &Tensor, count: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0u64; t.shape.len()];
    let mut at = t.offset;
    for _ in 0..count {
        let start = at as usize * size;
        out.extend_from_slice(&record[start..start + size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += t.strides[axis];
            if index[axis] < t.shape[axis] {
                break;
            }
            at -= t.strides[axis] * t.shape[axis];
            index[axis] = 0;
        }
    }
    out
}

/// The number types a `.pth` file of ours may hold, with the storage class of each.
pub(super) fn storage_class(dtype: DType) -> Option<&'static str> {
    use DType::*;
    Some(match dtype {
        F64 => "DoubleStorage",
        F32 => "FloatStorage",
        F16 => "HalfStorage",
        BF16 => "BFloat16Storage",
        I64 => "LongStorage",
        I32 => "IntStorage",
        I16 => "ShortStorage",
        I8 => "CharStorage",
        U8 => "ByteStorage",
        Bool => "BoolStorage",
        _ => return None,
    })
}
