//! `hawfinch synthesize`: a checkpoint of random weights of any version and size.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use hawfinch_kernels::block;
use hawfinch_model::format::{self, MadeTensor, SaveFormat};
use hawfinch_model::synthetic::{Shape, range};
use hawfinch_model::{Config, Rng, Version, names};

use crate::fail::usage;
use crate::model_file::parse_dtype;
use crate::output::{self, note, size, thousands};
use crate::progress::Progress;
use crate::signal;

/// Arguments of `synthesize`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The weights are random, in the ranges of trained ones: the model runs, its text is noise.
The same arguments give the same file on every machine.

Examples:
  hawfinch synthesize tiny.pth --layers 2 --width 128 --vocab 256
  hawfinch synthesize eagle.safetensors --version 5.2 --layers 24 --width 2048
  hawfinch synthesize goose-7b.pth --layers 32 --width 4096 --sparse"
)]
pub struct Args {
    /// The file to write: .pth or .safetensors
    out: PathBuf,
    /// RWKV version: 4, 5.0, 5.1, 5.2, 6 or 7
    #[arg(long, default_value = "7", value_parser = parse_version)]
    version: Version,
    /// Layers L
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=9999))]
    layers: u16,
    /// Width D, a multiple of the head size
    #[arg(long, default_value_t = 768)]
    width: u32,
    /// Vocabulary V
    #[arg(long, default_value_t = 65536, value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Head size N (not used by version 4)
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    head_size: u32,
    /// Number type: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: String,
    /// Which random weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Zeros in place of random weights, as a file with holes that takes next to no disk
    #[arg(long)]
    sparse: bool,
    /// Replace the file if it exists
    #[arg(long, short)]
    force: bool,
}

fn parse_version(s: &str) -> Result<Version, String> {
    Version::from_number(s.trim_start_matches(['v', 'V']))
        .filter(|version| version.has_state())
        .ok_or_else(|| "choose one of 4, 5.0, 5.1, 5.2, 6, 7".to_string())
}

/// Numbers made at a time.
const PIECE: usize = 1 << 16;

/// Writes the checkpoint, tensor by tensor.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dtype = parse_dtype(&args.dtype, SaveFormat::Gguf)?;
    if !dtype.is_float() {
        return Err(usage(format!(
            "--dtype must be f32, f16 or bf16, not {dtype}; `hawfinch convert` quantises"
        )));
    }
    let format = SaveFormat::from_extension(&args.out);
    let format =
        format.filter(|f| matches!(f, SaveFormat::Pth | SaveFormat::Safetensors)).ok_or_else(|| {
            usage(format!(
                "{} must end in .pth or .safetensors (`hawfinch convert` makes others of it)",
                args.out.display()
            ))
        })?;
    if args.width == 0 {
        return Err(usage("the width must be at least 1"));
    }
    if args.version != Version::V4 && !args.width.is_multiple_of(args.head_size) {
        return Err(usage(format!(
            "the width {} must be a multiple of the head size {} (--head-size gives another)",
            args.width, args.head_size
        )));
    }
    output::may_write(&args.out, args.force)?;
    let shape = Shape {
        version: args.version,
        layers: args.layers.into(),
        width: args.width as usize,
        vocab: args.vocab as usize,
        head_size: args.head_size as usize,
    };
    let config = shape.config();
    signal::end_cleanly();
    write(args, &config, dtype, format)?;
    let bytes = std::fs::metadata(&args.out)?.len();
    note(format_args!(
        "wrote {}: {} of random weights, {} parameters, {dtype}, {}{}",
        args.out.display(),
        config.version,
        thousands(config.parameters(true)),
        size(bytes),
        if args.sparse { " (zeros, as holes)" } else { "" },
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(
    args: &Args,
    config: &Config,
    dtype: hawfinch_kernels::DType,
    format: SaveFormat,
) -> hawfinch_model::Result<()> {
    let params = names::all_params(config.version, config.layers);
    let tensors: Vec<MadeTensor> = params
        .iter()
        .map(|(name, p)| MadeTensor { name: name.clone(), shape: config.shape(p), dtype })
        .collect();
    let random = RefCell::new(Rng::new(args.seed));
    let fill = |i: usize, out: &mut dyn Write| -> io::Result<()> {
        let mut left: usize = tensors[i].shape.iter().product();
        let (low, high) = range(config, params[i].1);
        let mut random = random.borrow_mut();
        let (mut values, mut bytes) = (Vec::with_capacity(PIECE), Vec::new());
        let zeros = vec![0; PIECE * dtype.block_bytes()];
        while left > 0 {
            let n = left.min(PIECE);
            if args.sparse {
                out.write_all(&zeros[..n * dtype.block_bytes()])?;
            } else {
                values.clear();
                values.extend((0..n).map(|_| random.uniform(low, high)));
                bytes.clear();
                block::encode(dtype, &values, &mut bytes);
                out.write_all(&bytes)?;
            }
            left -= n;
        }
        Ok(())
    };
    let mut bar = None;
    let mut tell = |done, total| {
        bar.get_or_insert_with(|| Progress::bytes("writing", total)).set(done);
    };
    format::save_made(&args.out, format, &tensors, &BTreeMap::new(), &fill, args.sparse, Some(&mut tell))
}
