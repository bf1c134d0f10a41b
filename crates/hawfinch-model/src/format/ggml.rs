//! rwkv.cpp's `.bin` files ("ggmf"), read only: they hold the decays of v4 and v5 already exponentiated.
//!
//! Little-endian: magic `0x67676d66`, version (100 or 101), vocabulary, width, layers, type code; then
//! tensors until the end of the file, each: number of axes (1 to 3), length of the name, type code, the
//! axes innermost first, the name, the numbers. Names are official but for v7's `att.x_rwkvag`, the six
//! token-shift mixes in one tensor. What the converter changed is undone here without copying:
//!
//! - `time_*` vectors lost their axes of length 1 and may have gained one at the end;
//! - low-rank matrices (v6, v7) are stored transposed;
//! - v4 holds `-exp(time_decay)`, v5 `exp(-exp(time_decay))` and `exp(time_first)`:
//!   [`DecayForm::Exponentiated`].
//!
//! rwkv.cpp normalises the heads of v5 with 1e-5 and of v6 and v7 with 64e-5.

use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::DType;

use super::le::Cursor;
use crate::names::{self, Dim, Role};
use crate::{Checkpoint, DecayForm, Error, FileFormat, Layout, Result, StoredTensor, Version};

/// `ggmf` as a little-endian number.
pub const MAGIC: u32 = 0x6767_6d66;

/// True when a file's first bytes are those of an rwkv.cpp model.
pub fn is_ggml(head: &[u8]) -> bool {
    head.starts_with(&MAGIC.to_le_bytes())
}

/// rwkv.cpp's number for a type; `Err` names one that it no longer reads.
fn dtype(code: u32) -> std::result::Result<DType, Option<&'static str>> {
    Ok(match code {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        4 => return Err(Some("Q4_1_O")),
        5 => return Err(Some("Q4_2")),
        6 => return Err(Some("Q4_3")),
        7 => DType::Q5_0,
        8 => DType::Q5_1,
        9 => DType::Q8_0,
        10 => return Err(Some("Q8_1")),
        11 => DType::Q2_K,
        12 => DType::Q3_K,
        13 => DType::Q4_K,
        14 => DType::Q5_K,
        15 => DType::Q6_K,
        16 => return Err(Some("Q8_K")),
        _ => return Err(None),
    })
}

/// Reads a whole file; tensors share its bytes.
///
/// # Errors
/// Another magic, an unknown version, a type that rwkv.cpp dropped, tensors that pass the end of the
/// file or disagree with the header.
pub fn read(path: &Path, file: Bytes) -> Result<Checkpoint> {
    let mut ckpt = Checkpoint::new(path, FileFormat::Ggml);
    ckpt.file_bytes = file.len() as u64;
    let mut cur = Cursor::new(file);
    let header = read_header(path, &mut cur)?;
    while cur.left() > 0 {
        let (name, tensor) = read_tensor(path, &mut cur)?;
        ckpt.insert(name, tensor)?;
    }
    if let Some(emb) = ckpt.get("emb.weight")
        && emb.shape != [header.vocab, header.width]
    {
        return Err(Error::damaged(
            path,
            format!(
                "its header says {} tokens × {} channels, its emb.weight is {:?}",
                header.vocab, header.width, emb.shape
            ),
        ));
    }
    let found = ckpt.tensors.keys().filter_map(|k| names::split_block(k)).map(|(l, _)| l + 1).max();
    if let Some(layers) = found.filter(|&l| l != header.layers) {
        let said = header.layers;
        return Err(Error::damaged(path, format!("its header says {said} layers, it holds {layers}")));
    }
    to_official(path, &mut ckpt, header.width)?;
    Ok(ckpt)
}

struct Header {
    vocab: usize,
    width: usize,
    layers: usize,
}

fn read_header(path: &Path, cur: &mut Cursor) -> Result<Header> {
    let short = || Error::damaged(path, "the file ends within its header");
    let magic = cur.u32().ok_or_else(short)?;
    if magic != MAGIC {
        return Err(Error::not_a_model(
            path,
            format!("it begins with {magic:#010x}, an rwkv.cpp file with {MAGIC:#010x}"),
        ));
    }
    let mut field = || cur.u32().ok_or_else(short);
    let (version, vocab, width, layers, code) = (field()?, field()?, field()?, field()?, field()?);
    if !(100..=101).contains(&version) {
        return Err(Error::unsupported(
            path,
            format!("it is of rwkv.cpp file version {version}, hawfinch reads 100 and 101"),
        ));
    }
    let dtype = known_dtype(path, code, "the file")?;
    if version == 100 && dtype.is_quantized() {
        return Err(Error::unsupported(
            path,
            format!(
                "it is of rwkv.cpp file version 100, whose {dtype} blocks no current program reads; quantise the original again"
            ),
        ));
    }
    Ok(Header { vocab: vocab as usize, width: width as usize, layers: layers as usize })
}

fn known_dtype(path: &Path, code: u32, of: &str) -> Result<DType> {
    dtype(code).map_err(|old| match old {
        Some(name) => Error::unsupported(
            path,
            format!("the type of {of} is {name}, which is no longer read; quantise the original again"),
        ),
        None => Error::damaged(path, format!("the type of {of} is number {code}, which does not exist")),
    })
}

/// One tensor as the file describes it.
fn read_tensor(path: &Path, cur: &mut Cursor) -> Result<(String, StoredTensor)> {
    let start = cur.position();
    let short = || Error::damaged(path, format!("the file ends within the tensor header at byte {start}"));
    let axes = cur.u32().ok_or_else(short)?;
    let name_len = cur.u32().ok_or_else(short)? as usize;
    let code = cur.u32().ok_or_else(short)?;
    if !(1..=3).contains(&axes) {
        return Err(Error::damaged(
            path,
            format!("the tensor at byte {start} has {axes} axes, expected 1 to 3"),
        ));
    }
    let mut shape = Vec::with_capacity(3);
    for _ in 0..axes {
        shape.push(cur.u32().ok_or_else(short)? as usize);
    }
    shape.reverse();
    let name = cur.bytes(name_len).ok_or_else(short)?;
    let name = std::str::from_utf8(&name)
        .map_err(|_| Error::damaged(path, format!("the tensor at byte {start} has a name that is not text")))?
        .to_string();
    let dtype = known_dtype(path, code, &format!("tensor `{name}`"))?;
    let mut tensor = StoredTensor {
        dtype,
        shape,
        transposed: false,
        scale: 1.0,
        layout: Layout::Rows,
        data: Bytes::new(),
    };
    let len = tensor.expected_bytes().ok_or_else(|| {
        Error::damaged(
            path,
            format!("tensor `{name}` has the impossible shape {:?} for {dtype}", tensor.shape),
        )
    })?;
    tensor.data = cur.bytes(len).ok_or_else(|| {
        Error::damaged(
            path,
            format!(
                "tensor `{name}` needs {len} bytes and the file has {} left; download it again",
                cur.left()
            ),
        )
    })?;
    Ok((name, tensor))
}

/// Which version the names say, as rwkv.cpp itself decides it.
fn family(ckpt: &Checkpoint) -> Version {
    let has = |name: &str| ckpt.get(&format!("blocks.0.att.{name}")).is_some();
    if has("r_k") {
        Version::V7
    } else if has("time_maa_x") {
        Version::V6
    } else if !has("ln_x.weight") {
        Version::V4
    } else if !has("gate.weight") {
        Version::V5_0
    } else {
        Version::V5_2 // or 5.1: their parameters are of the same names
    }
}

/// Official names and shapes for what the converter changed.
fn to_official(path: &Path, ckpt: &mut Checkpoint, width: usize) -> Result<()> {
    let version = family(ckpt);
    match version {
        Version::V4 => ckpt.decay_form = DecayForm::Exponentiated,
        Version::V5_0 | Version::V5_1 | Version::V5_2 => {
            ckpt.decay_form = DecayForm::Exponentiated;
            ckpt.group_norm_eps = Some(1e-5);
        }
        Version::V6 | Version::V7 | Version::Attention => {}
    }
    for (name, mut tensor) in std::mem::take(&mut ckpt.tensors) {
        let Some((layer, rest)) = names::split_block(&name) else {
            ckpt.insert(name, tensor)?;
            continue;
        };
        if rest == "att.x_rwkvag" {
            for (part, mix) in
                split_mixes(path, &name, &tensor)?.into_iter().zip(["r", "w", "k", "v", "a", "g"])
            {
                ckpt.insert(format!("blocks.{layer}.att.x_{mix}"), part)?;
            }
            continue;
        }
        if let Some((_, param)) = names::find(version, &name) {
            if param.role == Role::LowRank && tensor.shape.len() == param.shape.len() {
                // Never fewer than two axes; the stored ones are swapped.
                let n = tensor.shape.len();
                tensor.shape.swap(n - 2, n - 1);
                tensor.transposed = true;
            } else if rest.contains(".time_") {
                tensor.shape = time_shape(&tensor, param.shape, width);
            }
        } else if rest == "att.time_first" {
            tensor.shape = vec![tensor.len()]; // v5.0 and v5.1: [H]
        }
        ckpt.insert(name, tensor)?;
    }
    Ok(())
}

/// Official shape of a `time_*` parameter, from which axes of length 1 were taken and to which one or two
/// were added at the end.
fn time_shape(tensor: &StoredTensor, official: &[Dim], width: usize) -> Vec<usize> {
    match (official, &tensor.shape[..]) {
        ([Dim::One, Dim::One, _], _) => vec![1, 1, tensor.len()],
        (_, &[h, 1, 1]) => vec![h],
        (_, &[h, n, 1]) => vec![h, n],
        // A number a channel of a single head, or (v5.1) a number a head.
        (_, &[n, 1]) if n == width => vec![1, n],
        (_, &[n, 1]) => vec![n],
        (_, shape) => shape.to_vec(),
    }
}

/// `[6, 1, D]` as six tensors `[1, 1, D]` over the same bytes.
fn split_mixes(path: &Path, name: &str, t: &StoredTensor) -> Result<Vec<StoredTensor>> {
    let wrong =
        || Error::damaged(path, format!("tensor `{name}` has shape {:?}, expected [6, 1, D]", t.shape));
    let width = t.len() / 6;
    if t.dtype.is_quantized() || t.shape != [6, 1, width] {
        return Err(wrong());
    }
    let len = t.data.len() / 6;
    let part = |i: usize| StoredTensor::new(t.dtype, vec![1, 1, width], t.data.slice(i * len..(i + 1) * len));
    (0..6).map(|i| part(i).ok_or_else(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    /// A file in the format's own terms: (name, type code, axes outermost first, bytes).
    fn file(header: [u32; 6], tensors: &[(&str, u32, &[u32], Vec<u8>)]) -> Bytes {
        let mut out = Vec::new();
        header.iter().for_each(|v| out.extend(v.to_le_bytes()));
        for (name, code, shape, data) in tensors {
            for v in [shape.len() as u32, name.len() as u32, *code] {
                out.extend(v.to_le_bytes());
            }
            shape.iter().rev().for_each(|v| out.extend(v.to_le_bytes()));
            out.extend(name.bytes());
            out.extend(data);
        }
        out.into()
    }

    fn floats(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    fn read_it(bytes: Bytes) -> Result<Checkpoint> {
        read(Path::new("x.bin"), bytes)
    }

    fn message(bytes: Bytes) -> String {
        read_it(bytes).expect_err("this file is wrong").to_string()
    }

    const HEADER: [u32; 6] = [MAGIC, 101, 2, 4, 1, 0];

    #[test]
    fn v7_mixes_come_apart_and_low_rank_matrices_turn() {
        let ckpt = read_it(file(
            HEADER,
            &[
                ("blocks.0.att.x_rwkvag", 0, &[6, 1, 4], floats(24)),
                ("blocks.0.att.w1", 0, &[2, 4], floats(8)),
                ("blocks.0.att.r_k", 0, &[2, 2], floats(4)),
            ],
        ))
        .unwrap();
        assert_eq!(ckpt.get("blocks.0.att.x_k").unwrap().to_f32(), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(ckpt.get("blocks.0.att.x_k").unwrap().shape, [1, 1, 4]);
        let w1 = ckpt.get("blocks.0.att.w1").unwrap();
        assert_eq!(w1.shape, [4, 2]);
        assert_eq!(w1.to_f32(), [0., 4., 1., 5., 2., 6., 3., 7.]);
        assert_eq!((ckpt.decay_form, ckpt.group_norm_eps), (DecayForm::Raw, None));
    }

    #[test]
    fn v5_decays_lose_the_axes_the_converter_added() {
        let old = read_it(file(
            HEADER,
            &[
                ("blocks.0.att.ln_x.weight", 0, &[4], floats(4)),
                ("blocks.0.att.time_decay", 0, &[2, 1, 1], floats(2)),
                ("blocks.0.att.time_first", 0, &[2, 1, 1], floats(2)),
                ("blocks.0.att.time_mix_k", 0, &[4], floats(4)),
            ],
        ))
        .unwrap();
        assert_eq!(old.get("blocks.0.att.time_decay").unwrap().shape, [2]);
        assert_eq!(old.get("blocks.0.att.time_first").unwrap().shape, [2]);
        assert_eq!(old.get("blocks.0.att.time_mix_k").unwrap().shape, [1, 1, 4]);
        assert_eq!((old.decay_form, old.group_norm_eps), (DecayForm::Exponentiated, Some(1e-5)));
        let new = read_it(file(
            HEADER,
            &[
                ("blocks.0.att.ln_x.weight", 0, &[4], floats(4)),
                ("blocks.0.att.gate.weight", 0, &[4, 4], floats(16)),
                ("blocks.0.att.time_decay", 0, &[2, 2, 1], floats(4)),
                ("blocks.0.att.time_faaaa", 0, &[2, 2, 1], floats(4)),
            ],
        ))
        .unwrap();
        assert_eq!(new.get("blocks.0.att.time_decay").unwrap().shape, [2, 2]);
        assert_eq!(new.get("blocks.0.att.time_faaaa").unwrap().shape, [2, 2]);
    }

    #[test]
    fn every_wrong_file_gets_its_sentence() {
        let emb = |shape: &'static [u32], n: usize| ("emb.weight", 0, shape, floats(n));
        for (bytes, part) in [
            (Bytes::from_static(b"ggm"), "within its header"),
            (Bytes::from_static(b"PK\x03\x04........................"), "begins with 0x04034b50"),
            (file([MAGIC, 99, 2, 4, 1, 0], &[]), "version 99"),
            (file([MAGIC, 100, 2, 4, 1, 2], &[]), "version 100"),
            (file([MAGIC, 101, 2, 4, 1, 5], &[]), "Q4_2"),
            (file([MAGIC, 101, 2, 4, 1, 77], &[]), "number 77"),
            (file(HEADER, &[emb(&[3, 4], 12)]), "its emb.weight is [3, 4]"),
            (file(HEADER, &[emb(&[2, 4], 8), emb(&[2, 4], 8)]), "two tensors"),
            (file(HEADER, &[emb(&[2, 4], 7)]), "needs 32 bytes"),
            (file(HEADER, &[emb(&[u32::MAX, u32::MAX, u32::MAX], 0)]), "impossible shape"),
            (file(HEADER, &[("a", 2, &[2, 31], vec![])]), "impossible shape"),
            (file(HEADER, &[("blocks.4.ln1.weight", 0, &[4], floats(4))]), "says 1 layers, it holds 5"),
            (file(HEADER, &[("blocks.0.att.x_rwkvag", 0, &[5, 1, 4], floats(20))]), "expected [6, 1, D]"),
            (file(HEADER, &[("a", 0, &[], vec![])]), "0 axes"),
        ] {
            let got = message(bytes);
            assert!(got.contains(part), "{got} should say {part}");
            assert!(!got.contains('\n'));
        }
    }

    #[test]
    fn truncations_and_flips_never_panic() {
        let whole = file(
            HEADER,
            &[
                ("emb.weight", 1, &[2, 4], vec![0; 16]),
                ("blocks.0.att.x_rwkvag", 0, &[6, 1, 4], floats(24)),
                ("blocks.0.att.r_k", 0, &[2, 2], floats(4)),
                ("blocks.0.att.w1", 2, &[1, 32], vec![1; 18]),
            ],
        );
        let ends: Vec<usize> = (0..whole.len()).filter(|&n| read_it(whole.slice(..n)).is_ok()).collect();
        // Only where a tensor ends: the format does not say how many there are.
        assert_eq!(ends.len(), 4, "{ends:?}");
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..1 + seed % 3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 20) as u8;
            }
            if let Ok(ckpt) = read_it(bytes.into()) {
                let _ = Config::infer(&ckpt);
                ckpt.tensors.values().for_each(|t| assert_eq!(t.to_f32().len(), t.len()));
            }
        }
    }
}
