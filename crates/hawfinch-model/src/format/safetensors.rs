//! safetensors: eight bytes of header length, a JSON header of names, types, shapes and byte ranges,
//! then the bytes. The reader cuts tensors out of the mapped file; the writer streams.
//!
//! The rules of the format are enforced: ranges in bounds, without overlaps, without gaps, no name
//! twice, header of at most 100 MB.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::encode::{Item, Progress};
use crate::checkpoint::{Checkpoint, FileFormat, StoredTensor};
use crate::{Error, Result};

/// Longest header the format allows.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// Most axes of a tensor.
const MAX_AXES: usize = 16;

/// One tensor of the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header: tensors in the order of the file (a map would hide names that occur twice).
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        d.deserialize_map(V)
    }
}

/// Reads a safetensors file from its bytes, names and shapes as they stand there. (Names of web-rwkv
/// and Hugging Face are translated by [`super::open`].)
///
/// # Errors
/// Every break of the format's rules, and number types that no RWKV checkpoint has.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let bad = |what: String| Error::damaged(path, what);
    let too_short =
        || bad(format!("it ends after {} bytes, inside the safetensors header: it is truncated", file.len()));
    let length = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(too_short)?;
    if length > MAX_HEADER {
        return Err(bad(format!(
            "its safetensors header claims {length} bytes (the format allows {MAX_HEADER})"
        )));
    }
    let start = length as usize + 8;
    let json = file.get(8..start).ok_or_else(too_short)?;
    let mut header: Header = serde_json::from_slice(json)
        .map_err(|e| bad(format!("its safetensors header does not parse: {e}")))?;
    header.tensors.sort_by_key(|(_, e)| e.data_offsets);
    let data = file.slice(start..);

    let mut ckpt = Checkpoint::new(path, FileFormat::Safetensors);
    ckpt.file_bytes = file.len() as u64;
    ckpt.metadata = header.metadata;
    let mut end_of_last = 0;
    for (name, entry) in header.tensors {
        let [begin, end] = entry.data_offsets;
        let bad = |what: String| bad(format!("tensor `{}` {what}", shorten(&name)));
        if begin != end_of_last || end < begin {
            return Err(bad(format!(
                "has the byte range {begin}..{end} where {end_of_last}.. comes next: ranges overlap or leave a gap"
            )));
        }
        if end > data.len() as u64 {
            return Err(bad(format!(
                "ends at byte {end} of the data, but the file has only {}: it is truncated",
                data.len()
            )));
        }
        let dtype = dtype_of(&entry.dtype).ok_or_else(|| {
            Error::unsupported(
                path,
                format!(
                    "tensor `{}` has number type {}, which hawfinch does not read",
                    shorten(&name),
                    shorten(&entry.dtype)
                ),
            )
        })?;
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape =
            shape.filter(|s| s.len() <= MAX_AXES).ok_or_else(|| bad("has an impossible shape".into()))?;
        let bytes = data.slice(begin as usize..end as usize);
        let tensor = StoredTensor::new(dtype, shape, bytes).ok_or_else(|| {
            bad(format!("of type {dtype} and shape {:?} has a range of {} bytes", entry.shape, end - begin))
        })?;
        end_of_last = end;
        ckpt.insert(name, tensor)?;
    }
    if end_of_last != data.len() as u64 {
        return Err(bad(format!("{} bytes follow its last tensor", data.len() as u64 - end_of_last)));
    }
    Ok(ckpt)
}

fn shorten(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

fn dtype_of(name: &str) -> Option<DType> {
    use DType::*;
    [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool].into_iter().find(|&d| name_of(d) == Some(name))
}

/// The format's own name of a number type; `None` for those it lacks.
pub(super) fn name_of(dtype: DType) -> Option<&'static str> {
    use DType::*;
    Some(match dtype {
        F64 => "F64",
        F32 => "F32",
        F16 => "F16",
        BF16 => "BF16",
        I64 => "I64",
        I32 => "I32",
        I16 => "I16",
        I8 => "I8",
        U8 => "U8",
        Bool => "BOOL",
        _ => return None,
    })
}

#[derive(Serialize)]
struct EntryOut<'a> {
    dtype: &'a str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

/// Writes a safetensors file. Tensors of wider numbers come first (each then lies at a multiple of its
/// number's size, which other readers rely on), otherwise in the order given.
pub(super) fn write(
    out: &mut dyn Write,
    items: &[Item],
    metadata: &BTreeMap<String, String>,
    progress: &mut Progress,
) -> io::Result<()> {
    let mut order: Vec<&Item> = items.iter().collect();
    order.sort_by_key(|i| std::cmp::Reverse(i.dtype.block_bytes()));
    out.write_all(&header(&order, metadata, 8)?)?;
    order.iter().try_for_each(|item| item.write(out, progress))
}

/// The length and the header of a file whose tensors lie in this order; filled up so that the data begin at a multiple
/// of `alignment`.
pub(super) fn header(
    order: &[&Item],
    metadata: &BTreeMap<String, String>,
    alignment: usize,
) -> io::Result<Vec<u8>> {
    // Written by hand rather than as one Map: the order of names is the order of the bytes.
    let mut json = String::from("{");
    if !metadata.is_empty() {
        json += &format!("\"__metadata__\":{},", serde_json::to_string(metadata)?);
    }
    let mut at = 0u64;
    for item in order {
        let dtype = name_of(item.dtype)
            .ok_or_else(|| io::Error::other(format!("safetensors cannot hold {} tensors", item.dtype)))?;
        let end = at + item.bytes()?;
        let entry = EntryOut { dtype, shape: &item.shape, data_offsets: [at, end] };
        json += &format!("{}:{},", serde_json::to_string(&item.name)?, serde_json::to_string(&entry)?);
        at = end;
    }
    if json.len() > 1 {
        json.pop();
    }
    json.push('}');
    while (json.len() + 8) % alignment != 0 {
        json.push(' ');
    }
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json.as_bytes());
    Ok(out)
}
