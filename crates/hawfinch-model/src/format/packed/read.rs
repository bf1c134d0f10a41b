//! From the tensors of a safetensors file to those of the model that is packed in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hawfinch_kernels::{DType, bf16};

use super::{
    ALIGNMENT, CHECKED_AT_ONCE, Entry, LAYOUT, LAYOUT_BF16, Packed, SUM, TENSORS, VERSION, is_ours_alone,
    sum_of,
};
use crate::checkpoint::{Checkpoint, FileFormat, Layout, StoredTensor};
use crate::{Error, Result};

/// Most axes of a tensor.
const MAX_AXES: usize = 16;

/// The model in a safetensors file whose metadata are those of a packed one; `file` holds its tensors.
///
/// # Errors
/// A newer layout; a list, a tensor or a small tensor's bytes that are not as they were written.
pub(in crate::format) fn unfold(mut ckpt: Checkpoint, file: &Bytes) -> Result<Checkpoint> {
    let path = ckpt.path.clone();
    let list = list(&path, &ckpt.metadata)?;
    let mut stored = std::mem::take(&mut ckpt.tensors);
    let mut packed = Packed { path: path.clone(), tensors: Vec::with_capacity(list.len()), mapping: None };
    for entry in list {
        let bad = |what: &str| {
            let name: String = entry.name.chars().take(80).collect();
            Error::damaged(&path, format!("tensor `{name}` of its list of packed tensors {what}"))
        };
        let found = stored.swap_remove(&entry.name).ok_or_else(|| bad("is not there, or twice"))?;
        let sum = number(&entry.xxh64).ok_or_else(|| bad("has no checksum"))?;
        let tensor = if entry.layout == "plain" {
            let same = entry.dtype == found.dtype.name()
                && entry.shape.iter().copied().eq(found.shape.iter().map(|&d| d as u64))
                && entry.width.is_none()
                && entry.scale.is_none();
            same.then_some(found).ok_or_else(|| bad("has another type or shape there"))?
        } else {
            logical(&entry, found, file).map_err(bad)?
        };
        packed.tensors.push((entry.name.clone(), tensor.data.clone(), sum));
        let n = packed.tensors.len() - 1;
        if tensor.data.len() <= CHECKED_AT_ONCE && !packed.is_sound(n) {
            return Err(packed.damage(n));
        }
        ckpt.insert(entry.name, tensor)?;
    }
    if let Some(name) = stored.keys().next() {
        return Err(Error::damaged(
            path,
            format!("its list of packed tensors lacks the tensor `{name}`, which it holds"),
        ));
    }
    ckpt.metadata.retain(|key, _| !is_ours_alone(key));
    ckpt.format = FileFormat::Packed;
    ckpt.packed = Some(Arc::new(packed));
    Ok(ckpt)
}

/// The list of tensors, once version and checksum are right.
fn list(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<Entry>> {
    let version = metadata.get(VERSION).map_or("", String::as_str);
    match version.parse::<u64>() {
        Ok(LAYOUT | LAYOUT_BF16) => {}
        Ok(newer) if newer > LAYOUT_BF16 => {
            return Err(Error::unsupported(
                path,
                format!(
                    "its weights are packed in layout {newer}, and this hawfinch knows layouts up to {LAYOUT_BF16}: pack the model \
                     again with `hawfinch convert` or `hawfinch quantize`, or use a newer hawfinch"
                ),
            ));
        }
        _ => return Err(Error::damaged(path, format!("`{version}` is no version of a packed layout"))),
    }
    let sum = metadata.get(SUM).and_then(|text| number(text));
    if sum != Some(sum_of(metadata)) {
        return Err(Error::damaged(
            path,
            "its header holds another text than was written (the checksum of its metadata differs)",
        ));
    }
    let list = metadata.get(TENSORS).map_or("", String::as_str);
    serde_json::from_str(list)
        .map_err(|e| Error::damaged(path, format!("its list of packed tensors does not parse: {e}")))
}

/// Sixteen hexadecimal digits, small as they are written.
fn number(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// The tensor that `bytes` are, or what is wrong about them.
fn logical(
    entry: &Entry,
    bytes: StoredTensor,
    file: &Bytes,
) -> std::result::Result<StoredTensor, &'static str> {
    if bytes.dtype != DType::U8 || bytes.shape.len() != 1 {
        return Err("is no tensor of bytes there");
    }
    let number = |dtype: &DType| dtype.is_float() || dtype.is_quantized();
    let dtype = DType::from_name(&entry.dtype).filter(number).ok_or("has an unknown number type")?;
    let shape: Option<Vec<usize>> = entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.filter(|s| s.len() <= MAX_AXES).ok_or("has an impossible shape")?;
    let width = entry.width.and_then(|w| usize::try_from(w).ok());
    let layout = match (&*entry.layout, width) {
        ("strips", Some(width)) => Layout::Strips { width },
        (name, None) => [Layout::Rows, Layout::Panels, Layout::Tiles]
            .into_iter()
            .find(|l| l.name() == name && entry.width.is_none())
            .ok_or("has an unknown layout")?,
        _ => return Err("has an unknown layout"),
    };
    let scale = entry.scale.unwrap_or(1.0);
    if !(scale.is_finite() && scale > 0.0) {
        return Err("has an impossible scale");
    }
    let mut tensor =
        StoredTensor { dtype, shape, transposed: false, scale, layout, data: bytes.data.clone() };
    let exact = tensor.expected_bytes().ok_or("has a shape that its type and layout cannot have")?;
    let filled = exact.checked_next_multiple_of(ALIGNMENT).ok_or("has an impossible shape")?;
    if bytes.data.len() != filled {
        return Err("has more or fewer bytes than its shape asks for");
    }
    if bytes.data[exact..].iter().any(|&b| b != 0) {
        return Err("is not filled up with zeros");
    }
    // (A slice of no bytes points anywhere.)
    let from = (bytes.data.as_ptr() as usize).wrapping_sub(file.as_ptr() as usize);
    if !bytes.data.is_empty() && !from.is_multiple_of(ALIGNMENT) {
        return Err("does not begin at a multiple of 64 bytes");
    }
    tensor.data.truncate(exact);
    if tensor.is_bf16_panels() && !bf16::is_filled_with_zeros(&tensor.data, tensor.shape[1]) {
        return Err("is not filled up with zeros");
    }
    Ok(tensor)
}
