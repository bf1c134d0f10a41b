//! A model into a packed file, tensor by tensor, in the memory of the largest.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use hawfinch_kernels::linear::columns::Columns;
use hawfinch_kernels::panel::sparse::{self, Sparse};
use hawfinch_kernels::panel::{self, Panels};
use hawfinch_kernels::{DType, bf16};

use super::super::encode::{Item, Make, Progress};
use super::super::save::{Reshaped, official_order, official_shapes, replace_by_file};
use super::super::{SaveFormat, SaveOptions, gguf, safetensors};
use super::{ALIGNMENT, Entry, LAYOUT, LAYOUT_BF16, SUM, TENSORS, VERSION, sum_of, xxh64};
use crate::checkpoint::{Checkpoint, Layout, StoredTensor};
use crate::config::Config;
use crate::names::{self, Role};
use crate::quantize::rounding;
use crate::{Cpu, Error, Result};

/// The type that a matrix takes: the one asked for where rows are whole blocks of it, with head and embedding in 8
/// bits at least. Types that have no panels are multiplied slowly: where one is asked for, 4 bits stand in.
pub(in crate::format) fn matrix_type(asked: Option<DType>, name: &str, t: &StoredTensor) -> DType {
    let inputs = t.shape.last().copied().unwrap_or(1);
    match asked {
        None => t.dtype,
        Some(d) if d.is_float() => d,
        Some(_) if t.dtype.is_quantized() => t.dtype,
        Some(d) => {
            let is_end = matches!(name, "head.weight" | "emb.weight");
            let wish: &[DType] = match d {
                DType::Q8_0 => &[DType::Q8_0],
                _ if is_end => &[DType::Q8_0],
                DType::Q4_0 => &[DType::Q4_0],
                DType::Q6_K => &[DType::Q6_K, DType::Q8_0],
                _ => &[DType::Q4_K, DType::Q4_0],
            };
            wish.iter().find(|d| d.bytes_for(inputs).is_some()).copied().unwrap_or(t.dtype)
        }
    }
}

/// The type that a matrix takes where floats are laid out for activations in bf16.
pub(in crate::format) fn bf16_type(name: &str, t: &StoredTensor) -> DType {
    if t.dtype.is_float() && name != "emb.weight" { DType::BF16 } else { t.dtype }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Asked {
    dtype: Option<DType>,
    /// Linear weights that are floats are laid out for activations in bf16.
    bf16: bool,
}

/// The type that a tensor of the model takes; matrices as [`matrix_type`] says.
fn target_type(
    ckpt: &Checkpoint,
    config: &Config,
    Asked { dtype: asked, bf16 }: Asked,
    name: &str,
    t: &StoredTensor,
) -> DType {
    let own = gguf::original_type(ckpt, name).unwrap_or(t.dtype);
    match role(config, name) {
        Some(Role::Matrix) if bf16 && name != "emb.weight" => bf16_type(name, t),
        Some(Role::Matrix) => matrix_type(asked, name, t),
        _ if own.is_float() => asked.filter(|d| d.is_float()).unwrap_or(own),
        // Blocks that run along the wrong axis have no order but as numbers.
        _ if own.is_quantized() && t.transposed => DType::F32,
        _ => own,
    }
}

fn role(config: &Config, name: &str) -> Option<Role> {
    // The logarithmic bonus of v5 stands where time_faaaa does.
    let listed = name.replace("att.time_first", "att.time_faaaa");
    let find = |name: &str| names::find(config.version, name).map(|(_, param)| param.role);
    find(name).or_else(|| find(&listed))
}

/// One tensor on its way.
struct Plan<'c> {
    name: String,
    tensor: &'c StoredTensor,
    /// As it will be read: type, logical shape, layout and scale, without bytes.
    made: StoredTensor,
    /// An ordinary tensor of the file.
    plain: bool,
    /// Bytes of it.
    bytes: usize,
}

/// Writes a model packed; `metadata` is what every format of ours says.
pub(in crate::format) fn save(
    path: &Path,
    ckpt: &Checkpoint,
    options: SaveOptions,
    mut metadata: BTreeMap<String, String>,
) -> Result<()> {
    let config = Config::infer(ckpt)?;
    let reshaped = official_shapes(ckpt, Some(&config));
    // A model that was packed so stays so, unless it is to have another type.
    let was = || options.dtype.is_none() && ckpt.tensors.values().any(StoredTensor::is_bf16_panels);
    let asked = Asked { dtype: options.dtype, bf16: options.format == SaveFormat::PackedBf16 || was() };
    let plans = official_order(ckpt, Some(&config))
        .into_iter()
        .map(|(name, tensor)| plan(ckpt, &config, asked, &reshaped, name, tensor))
        .collect::<Result<Vec<_>>>()?;
    let ops = Cpu::<f32>::default();
    let sums = RefCell::new(vec![0u64; plans.len()]);
    let makes: Vec<Box<Make>> = plans
        .iter()
        .enumerate()
        .map(|(n, plan)| {
            let (ops, sums) = (&ops, &sums);
            Box::new(move |out: &mut dyn Write| {
                let bytes = make(ops, plan)?;
                sums.borrow_mut()[n] = xxh64(&bytes);
                out.write_all(&bytes)?;
                let fill = if plan.plain { 0 } else { bytes.len().next_multiple_of(ALIGNMENT) - bytes.len() };
                out.write_all(&[0; ALIGNMENT][..fill])
            }) as Box<Make>
        })
        .collect();
    let hollows: Vec<StoredTensor> = plans
        .iter()
        .map(|p| {
            if p.plain {
                return p.made.clone();
            }
            let shape = vec![p.bytes.next_multiple_of(ALIGNMENT)];
            StoredTensor { dtype: DType::U8, shape, ..StoredTensor::from_f32(&[0], &[]) }
        })
        .collect();
    let items: Vec<Item> = plans
        .iter()
        .zip(&hollows)
        .zip(&makes)
        .map(|((plan, hollow), make)| Item {
            name: plan.name.clone(),
            shape: hollow.shape.clone(),
            dtype: hollow.dtype,
            tensor: hollow,
            made: Some(&**make),
        })
        .collect();
    // What is packed first, then wide numbers before narrow ones: each lies where its kind should.
    let mut order: Vec<(&Plan, &Item)> = plans.iter().zip(&items).collect();
    order.sort_by_key(|(plan, item)| (plan.plain, std::cmp::Reverse(item.dtype.block_bytes())));
    let order: Vec<&Item> = order.into_iter().map(|(_, item)| item).collect();
    let is_bf16 = |p: &Plan| p.made.layout == Layout::Panels && p.made.dtype == DType::BF16;
    let version = if plans.iter().any(is_bf16) { LAYOUT_BF16 } else { LAYOUT };
    metadata.insert(VERSION.into(), version.to_string());
    let mut header = || -> io::Result<Vec<u8>> {
        let sums = sums.borrow();
        let entries: Vec<Entry> = plans.iter().zip(&*sums).map(|(plan, sum)| plan.entry(*sum)).collect();
        metadata.insert(TENSORS.into(), serde_json::to_string(&entries)?);
        let sum = sum_of(&metadata);
        metadata.insert(SUM.into(), format!("{sum:016x}"));
        safetensors::header(&order, &metadata, ALIGNMENT)
    };
    let total = items.iter().map(Item::bytes).sum::<io::Result<u64>>().map_err(|e| Error::io(path, e))?;
    let mut progress = Progress::new(total, options.progress);
    replace_by_file(path, |file| {
        // With checksums of zero first, which take as much place as the real ones.
        let length = {
            let mut out = BufWriter::with_capacity(1 << 20, &mut *file);
            let header = header()?;
            out.write_all(&header)?;
            order.iter().try_for_each(|item| item.write(&mut out, &mut progress))?;
            out.flush()?;
            header.len()
        };
        let header = header()?;
        assert_eq!(header.len(), length, "checksums have a fixed length");
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header)
    })
}

impl Plan<'_> {
    fn entry(&self, sum: u64) -> Entry {
        let width = match self.made.layout {
            Layout::Strips { width } => Some(width as u64),
            _ => None,
        };
        Entry {
            name: self.name.clone(),
            dtype: self.made.dtype.name().into(),
            shape: self.made.shape.iter().map(|&d| d as u64).collect(),
            layout: if self.plain { "plain" } else { self.made.layout.name() }.into(),
            width,
            scale: (self.made.scale != 1.0).then_some(self.made.scale),
            xxh64: format!("{sum:016x}"),
        }
    }
}

/// How a tensor will lie.
fn plan<'c>(
    ckpt: &Checkpoint,
    config: &Config,
    asked: Asked,
    reshaped: &'c Reshaped,
    name: String,
    tensor: &'c StoredTensor,
) -> Result<Plan<'c>> {
    let official = reshaped.get(name.as_str());
    let dtype = target_type(ckpt, config, asked, &name, tensor);
    let shape = official.map_or(&tensor.shape, |(shape, _)| shape).clone();
    let tensor = official.and_then(|(_, t)| t.as_ref()).unwrap_or(tensor);
    let role = role(config, &name);
    let layout = match (role, &shape[..]) {
        (Some(Role::LowRank), [.., _, _]) if dtype.is_float() || dtype.is_quantized() => Layout::Tiles,
        (Some(Role::Matrix), &[o, i]) if name != "emb.weight" && o > 0 && i > 0 => {
            match panel::Kind::of(dtype) {
                Some(_) if name.ends_with(".ffn.value.weight") && sparse::has(dtype) => {
                    Layout::Strips { width: sparse::width_for(o) }
                }
                Some(_) => Layout::Panels,
                None if dtype == DType::BF16 && asked.bf16 => Layout::Panels,
                None => Layout::Rows,
            }
        }
        _ => Layout::Rows,
    };
    // Encoding anew multiplies the scale in.
    let scale = if dtype == tensor.dtype && !tensor.transposed { tensor.scale } else { 1.0 };
    let made =
        StoredTensor { dtype, shape: shape.clone(), transposed: false, scale, layout, data: Bytes::new() };
    let bytes = made.expected_bytes().ok_or_else(|| {
        Error::Invalid(format!("tensor `{name}` of shape {shape:?} cannot be written as {dtype}"))
    })?;
    let plain = layout == Layout::Rows && scale == 1.0 && safetensors::name_of(dtype).is_some();
    Ok(Plan { name, tensor, made, plain, bytes })
}

/// The bytes of a tensor in its layout.
fn make(ops: &Cpu, plan: &Plan) -> io::Result<Bytes> {
    let Plan { name, made, .. } = plan;
    let mut t = plan.tensor.unpacked();
    if t.transposed || (t.dtype != made.dtype && !made.dtype.is_quantized()) {
        let mut rows = Vec::with_capacity(plan.bytes);
        let item =
            Item { name: name.clone(), shape: t.shape.clone(), dtype: made.dtype, tensor: &t, made: None };
        item.write(&mut rows, &mut Progress::new(0, None))?;
        t.data = rows.into();
    } else if t.dtype != made.dtype {
        t = rounding::encoded(ops, name, &t, made.dtype).map_err(io::Error::other)?;
    }
    let rows = t.data;
    let inputs = made.shape.last().copied().unwrap_or(1);
    let outputs = made.shape.first().copied().unwrap_or(1);
    let pool = ops.pool();
    let store = match made.layout {
        Layout::Rows => return Ok(rows),
        Layout::Panels if made.dtype == DType::BF16 => {
            Some(bf16::Panels::pack(pool, &rows, outputs, inputs, 1.0).store().clone())
        }
        Layout::Panels => {
            Panels::pack(pool, made.dtype, &rows, outputs, inputs, 1.0).map(|w| w.store().clone())
        }
        Layout::Strips { width } => {
            Sparse::pack_in(width, pool, made.dtype, &rows, outputs, inputs, 1.0).map(|w| w.store().clone())
        }
        Layout::Tiles => {
            // `x @ W`: the rows are inputs. A stack is several matrices, each in tiles of its own.
            let (from, to) = (made.shape[made.shape.len() - 2], inputs);
            let matrix = made.dtype.bytes_for(to).unwrap_or(0) * from;
            let mut out = Vec::with_capacity(rows.len());
            for matrix in rows.chunks_exact(matrix.max(1)) {
                let tiles = Columns::pack(made.dtype, matrix, to, from, 1.0);
                out.extend_from_slice(&tiles.store().bytes()[..matrix.len()]);
            }
            return Ok(out.into());
        }
    };
    let store = store.ok_or_else(|| io::Error::other(format!("tensor `{name}` has no panels")))?;
    Ok(Bytes::copy_from_slice(&store.bytes()[..plan.bytes]))
}
