//! Writing a checkpoint in another format or number type, under official names and shapes, in official
//! order, without ever replacing a file by half of one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hawfinch_kernels::{DType, panel};

use super::encode::{Item, Progress};
use super::{gguf, gguf_write, packed, pth_write, safetensors};
use crate::checkpoint::{Checkpoint, DecayForm, StoredTensor};
use crate::config::{self, Config, Version};
use crate::{Error, Result, metadata, names};

/// A format hawfinch writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFormat {
    /// PyTorch `.pth`.
    Pth,
    /// safetensors with official names.
    Safetensors,
    /// GGUF.
    Gguf,
    /// Weights as the kernels want them, in a safetensors file ([`super::packed`]).
    Packed,
    /// The same with linear weights that are floats in bf16, laid out for activations in bf16
    /// ([`hawfinch_kernels::bf16`]).
    PackedBf16,
}

impl SaveFormat {
    /// The format that a file name's extension asks for; `.packed.safetensors` is that of packed files.
    pub fn from_extension(path: &Path) -> Option<SaveFormat> {
        let before = path.file_stem().and_then(|stem| Path::new(stem).extension());
        let is_packed = before.is_some_and(|e| e.eq_ignore_ascii_case("packed"));
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "pth" | "pt" => Some(SaveFormat::Pth),
            "safetensors" if is_packed => Some(SaveFormat::Packed),
            "safetensors" | "st" => Some(SaveFormat::Safetensors),
            "gguf" => Some(SaveFormat::Gguf),
            _ => None,
        }
    }

    fn is_packed(self) -> bool {
        matches!(self, SaveFormat::Packed | SaveFormat::PackedBf16)
    }

    /// Whether models can be written in this format with matrices of that number type.
    pub fn writes(self, dtype: DType) -> bool {
        match self {
            SaveFormat::Pth | SaveFormat::Safetensors => dtype.is_float(),
            SaveFormat::Gguf => dtype.is_float() || (dtype.is_quantized() && gguf_write::writable(dtype)),
            SaveFormat::Packed => dtype.is_float() || panel::Kind::of(dtype).is_some(),
            SaveFormat::PackedBf16 => dtype == DType::BF16,
        }
    }
}

/// How to write.
pub struct SaveOptions<'a> {
    /// Format.
    pub format: SaveFormat,
    /// Number type of the floating-point tensors; `None` keeps each tensor's own. Block types are
    /// kept where the format has them (GGUF, packed) and become F16 where it has not: F16's eleven significant
    /// bits lose the least of a block's `scale × integer`.
    pub dtype: Option<DType>,
    /// GGUF: bytes of each token of the World vocabulary by id (id 0, the end of text, has none), which
    /// llama.cpp needs to tokenise. Without it the file is whole for hawfinch and for callers of llama.cpp
    /// that pass token ids.
    pub vocabulary: Option<&'a [Vec<u8>]>,
    /// Told (bytes written, bytes in all) now and then.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

/// Writes `ckpt` to `path`, through a temporary file beside it that is renamed when complete.
///
/// # Errors
/// Checkpoints whose decays are stored exponentiated (rwkv.cpp's), a model without a state as GGUF or packed, number
/// types that the format lacks,
/// numbers that the type cannot hold, and what the system says.
pub fn save(path: &Path, ckpt: &Checkpoint, options: SaveOptions) -> Result<()> {
    if ckpt.decay_form == DecayForm::Exponentiated {
        return Err(Error::unsupported(
            &ckpt.path,
            "rwkv.cpp's .bin files store the decays already exponentiated, from which the trained values cannot \
             be had back exactly; hawfinch runs them but converts only from the original model",
        ));
    }
    if let Some(d) = options.dtype
        && options.format != SaveFormat::Gguf
        && !options.format.writes(d)
    {
        return Err(Error::Invalid(match options.format {
            SaveFormat::PackedBf16 => format!("weights for activations in bf16 are bf16, not {d}"),
            SaveFormat::Packed => format!("{d} is not a number type of packed files; GGUF has it"),
            _ => format!("{d} is not a number type of .pth and .safetensors files; GGUF has it"),
        }));
    }
    let unpacked;
    let ckpt = if let Some(packed) = &ckpt.packed {
        // What damage made of it should not become a sound file.
        packed.check_all()?;
        unpacked = ckpt.in_rows();
        &unpacked
    } else {
        ckpt
    };
    let config = Config::infer(ckpt).ok();
    // These are for running a model.
    if let (Some(config), SaveFormat::Gguf | SaveFormat::Packed | SaveFormat::PackedBf16) =
        (&config, options.format)
    {
        config.version.needs_state(&ckpt.path)?;
    }
    let metadata = metadata_of(ckpt, config.as_ref(), |name, t| match options.format {
        SaveFormat::Gguf => gguf_write::matrix_type(options.dtype, name, t),
        SaveFormat::Packed => packed::matrix_type(options.dtype, name, t),
        SaveFormat::PackedBf16 => packed::bf16_type(name, t),
        _ => target_dtype(t.dtype, options.dtype),
    });
    if options.format.is_packed() {
        return packed::save(path, ckpt, options, metadata);
    }
    if options.format == SaveFormat::Gguf {
        return save_gguf(path, ckpt, options, metadata);
    }
    let reshaped = official_shapes(ckpt, config.as_ref());
    let items: Vec<Item> = official_order(ckpt, config.as_ref())
        .into_iter()
        .map(|(name, tensor)| {
            let official = reshaped.get(name.as_str());
            Item {
                shape: official.map_or(&tensor.shape, |(s, _)| s).clone(),
                dtype: target_dtype(gguf::original_type(ckpt, &name).unwrap_or(tensor.dtype), options.dtype),
                tensor: official.and_then(|(_, t)| t.as_ref()).unwrap_or(tensor),
                made: None,
                name,
            }
        })
        .collect();
    let io_error = |e: io::Error| Error::io(path, e);
    let total: u64 = items.iter().map(Item::bytes).sum::<io::Result<u64>>().map_err(io_error)?;
    let mut progress = Progress::new(total, options.progress);
    replace_file(path, |out| match options.format {
        SaveFormat::Pth => pth_write::write(out, &items, &metadata, &mut progress),
        _ => {
            let mut metadata = metadata;
            // transformers opens a file only if this says so.
            metadata.insert("format".into(), "pt".into());
            safetensors::write(out, &items, &metadata, &mut progress)
        }
    })
}

fn target_dtype(own: DType, asked: Option<DType>) -> DType {
    match asked {
        Some(d) if own.is_float() || own.is_quantized() => d,
        None if own.is_quantized() => DType::F16,
        _ => own,
    }
}

/// The type that most numbers of the linear weights are written in, which need not be the one asked for: a row that
/// divides into no blocks takes another.
fn common_type(
    ckpt: &Checkpoint,
    config: &Config,
    written: impl Fn(&str, &StoredTensor) -> DType,
) -> Option<DType> {
    let mut counts: Vec<(DType, usize)> = Vec::new();
    for (name, t) in ckpt.tensors.iter().filter(|(name, _)| *name != "emb.weight") {
        if names::find(config.version, name).is_some_and(|(_, param)| param.role == names::Role::Matrix) {
            let dtype = written(name, t);
            match counts.iter_mut().find(|(d, _)| *d == dtype) {
                Some((_, n)) => *n += t.len(),
                None => counts.push((dtype, t.len())),
            }
        }
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d)
}

/// Our metadata: what the file had of it, and what the tensors say now; `written` is the type that a matrix takes.
fn metadata_of(
    ckpt: &Checkpoint,
    config: Option<&Config>,
    written: impl Fn(&str, &StoredTensor) -> DType,
) -> BTreeMap<String, String> {
    let ours = ckpt.metadata.iter().filter(|(k, _)| k.starts_with(metadata::PREFIX));
    let ours = ours.filter(|(k, _)| !gguf_write::is_ours_alone(k));
    let mut out: BTreeMap<String, String> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut set = |key: &str, value: String| drop(out.insert(key.into(), value));
    set(metadata::WRITER, env!("CARGO_PKG_VERSION").into());
    if let Some(c) = config {
        set(metadata::VERSION, c.version.number().into());
        set(metadata::VOCABULARY, c.vocab.to_string());
        if c.version != Version::V4 {
            set(metadata::HEAD_SIZE, c.head_size.to_string());
            set(metadata::GROUP_NORM_EPS, c.group_norm_eps.to_string());
        }
        // The model stays the one it was: states made with it fit what is written.
        if let Ok(hash) = crate::hash::identity(ckpt, None) {
            set(metadata::SOURCE_HASH, hash);
        }
        if let Some(dtype) = common_type(ckpt, c, written) {
            set(metadata::DTYPE, dtype.name().into());
            let before = common_type(ckpt, c, |_, t| t.dtype);
            let mut schemes: Vec<String> =
                ckpt.metadata.get(metadata::QUANTIZED).cloned().into_iter().collect();
            let steps =
                [before.filter(|_| schemes.is_empty()), Some(dtype).filter(|_| before != Some(dtype))];
            for step in steps.into_iter().flatten().filter(|d| d.is_quantized()) {
                if schemes.last().is_none_or(|s| !s.ends_with(step.name())) {
                    schemes.push(step.name().into());
                }
            }
            if !schemes.is_empty() {
                set(metadata::QUANTIZED, schemes.join(", "));
            }
        }
    }
    out
}

/// The tensors in official order; what the version does not know comes last, in file order. Without a
/// configuration (a state, a LoRA) all stay in file order.
pub(super) fn official_order<'c>(
    ckpt: &'c Checkpoint,
    config: Option<&Config>,
) -> Vec<(String, &'c StoredTensor)> {
    let mut out: Vec<(String, &StoredTensor)> = Vec::with_capacity(ckpt.tensors.len());
    let mut done = std::collections::HashSet::new();
    if let Some(c) = config {
        for (key, _) in names::all_params(c.version, c.layers) {
            let key = config::present_name(ckpt, &key);
            if let Some(t) = ckpt.get(&key) {
                done.insert(key.clone());
                out.push((key, t));
            }
        }
    }
    out.extend(ckpt.tensors.iter().filter(|(k, _)| !done.contains(*k)).map(|(k, t)| (k.clone(), t)));
    out
}

pub(super) type Reshaped = BTreeMap<String, (Vec<usize>, Option<StoredTensor>)>;

/// Official shapes of the tensors whose format dropped or added axes of length 1. A tensor with its last
/// two axes swapped in the file is put in order first, since other axes become the last two.
pub(super) fn official_shapes(ckpt: &Checkpoint, config: Option<&Config>) -> Reshaped {
    let Some(c) = config else { return Reshaped::new() };
    let mut out = Reshaped::new();
    for (key, t) in &ckpt.tensors {
        // The logarithmic bonus of v5 stands where time_faaaa does.
        let listed = match c.version {
            Version::V4 => key.clone(),
            _ => key.replace("att.time_first", "att.time_faaaa"),
        };
        let Some((_, param)) = names::find(c.version, &listed) else { continue };
        let official = c.shape(param);
        let unit_free = |s: &[usize]| s.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if official != t.shape && unit_free(&official) == t.squeezed() {
            let ordered = if t.transposed { t.converted(float_of(t.dtype)) } else { None };
            out.insert(key.clone(), (official, ordered));
        }
    }
    out
}

fn float_of(dtype: DType) -> DType {
    if dtype.is_quantized() { DType::F32 } else { dtype }
}

fn save_gguf(
    path: &Path,
    ckpt: &Checkpoint,
    options: SaveOptions,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let config = Config::infer(ckpt)?;
    let name = ckpt.metadata.get("general.name").cloned();
    let name = name.or_else(|| Some(ckpt.path.file_stem()?.to_string_lossy().into_owned()));
    let plan = gguf_write::Plan::new(
        ckpt,
        &config,
        &gguf_write::Options {
            dtype: options.dtype,
            vocabulary: options.vocabulary,
            metadata,
            name: name.unwrap_or_default(),
        },
    )?;
    let mut progress = Progress::new(plan.total(), options.progress);
    replace_file(path, |out| plan.write(out, &mut progress))
}

/// Lets `fill` write a new file beside `path`, then puts it in the place of `path` in one step. On an
/// error the new file is removed and the old one stays. A link stays a link: what it leads to is replaced.
/// What is there and is no file of a disk (a pipe, `/dev/stdout`, `/dev/null`) is written to, not replaced.
pub(crate) fn replace_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let written = OpenOptions::new().write(true).open(path).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            fill(&mut out)?;
            out.flush()
        });
        return written.map_err(|e| Error::io(path, e));
    }
    replace_by_file(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush()
    })
}

/// As [`replace_file`], for what must seek in the new file: only a file of a disk can be replaced.
pub(crate) fn replace_by_file(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let path = target.as_path();
    let name = path.file_name().ok_or_else(|| Error::Invalid(format!("{} names no file", path.display())))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary =
        TemporaryFile::create(folder, &name.to_string_lossy()).map_err(|e| Error::io(path, e))?;
    let written = (|| {
        fill(&mut temporary.file)?;
        temporary.file.sync_all()?;
        std::fs::rename(&temporary.path, path)
    })();
    written.map_err(|e| Error::io(path, e))?;
    temporary.keep = true;
    Ok(())
}

/// Files that are being written and have no name yet that anybody asked for.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Deletes the files that are being written at this moment, which no longer can be finished: for a program
/// that is about to end before its time (Ctrl-C). What was to be replaced stays.
pub fn remove_unfinished() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Nothing more can be done if this fails.
        let _ = std::fs::remove_file(path);
    }
}

struct TemporaryFile {
    path: PathBuf,
    file: File,
    keep: bool,
}

impl TemporaryFile {
    fn create(folder: &Path, name: &str) -> io::Result<Self> {
        // Held until the file is listed: none may come into being unseen.
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        // Two writers of one name must not meet in one file; create_new decides.
        for n in 0..1000 {
            let path = folder.join(format!(".{name}.{}-{n}.part", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    unfinished.push(path.clone());
                    return Ok(TemporaryFile { path, file, keep: false });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done if this fails too.
            let _ = std::fs::remove_file(&self.path);
        }
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| *p != self.path);
    }
}
