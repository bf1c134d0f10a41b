//! `hawfinch train`: from data to a model.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use hawfinch_kernels::peak;
use hawfinch_model::{Checkpoint, Cpu, metadata};
use hawfinch_tokenizer::Tokenizer;
use hawfinch_train::batches::Batches;
use hawfinch_train::checkpoint;
use hawfinch_train::collective::Collective;
use hawfinch_train::config::{Operands, RunConfig};
use hawfinch_train::init::{self, Options, Sizes};
use hawfinch_train::trainer::{Data, End, Observer, Trainer};
use hawfinch_train::tuning::Method;

use crate::commands::data::report::share;
use crate::commands::data::watch::failed;
use crate::fail::usage;
use crate::model_args::{check_environment, open_checkpoint};
use crate::signal;
use crate::tokenizer_args::{named, of_checkpoint};
use crate::train::data;
use crate::train::keys::{Keys, resolve};
use crate::train::ranks;
use crate::train::view::View;

/// Arguments of `train`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "CONFIG is a TOML file of the keys below, one a line (`width = 256`). A flag wins over the file.
Paths in the file are relative to it, but `out` to where you are.

The run is kept in its folder: checkpoints step-N (model.safetensors in them is a model that every
command opens), metrics, curves. Given again, the same command goes on from the last checkpoint, to
the bit as if it had never stopped. Ctrl-C saves and ends; the same command goes on.

Started by mpirun or srun (built with --features mpi), all processes train one model: `batch` and
`accumulate` are those of all together, so the result is that of one process.

Examples:
  hawfinch train recipes/tiny.toml
  hawfinch train --text 'books/*.txt' --tokenizer bytes --layers 4 --width 256 --epochs 2 -o runs/books
  hawfinch chat runs/tiny/step-00000500/model.safetensors
  hawfinch train --from model.pth --method lora --data mine --epochs 1 --lr 1e-4 -o runs/mine
  hawfinch chat model.pth --lora runs/mine/step-00000500/adapter.safetensors
  mpirun -n 4 hawfinch train recipes/tiny.toml --accumulate 4"
)]
pub struct Args {
    /// The settings of the run
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
}

/// Trains, or goes on.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ranks = ranks::join()?;
    let result = train(args, ranks.clone());
    ranks::leave(&*ranks, result)
}

fn train(args: &Args, ranks: Arc<dyn Collective>) -> anyhow::Result<ExitCode> {
    // Only the first writes and talks.
    let first = ranks.rank() == 0;
    let note = |line: std::fmt::Arguments<'_>| {
        if first {
            crate::output::note(line);
        }
    };
    check_environment()?;
    let mut config = resolve(args.config.as_deref(), &args.keys)?;
    config.check().map_err(|e| usage(e.to_string()))?;
    let last = checkpoint::list(&config.out)?.pop();
    // What the run began with decides the tokenizer; a new one has what was asked for.
    let beside = config.method != Method::Full;
    if let Some(found) = &last {
        same_method(&config, &hawfinch_model::format::open(&found.model())?)?;
    }
    let beginning = match (&last, &config.from) {
        (Some(found), _) if !beside => Some(open_checkpoint(&found.model())?),
        (_, Some(from)) => Some(open_checkpoint(from)?),
        _ => None,
    };
    let tokenizer = tokenizer(&config, beginning.as_ref())?;
    // Texts become tokens once; the others find what the first has made.
    if !first {
        ranks.barrier()?;
    }
    let names = match data::find(&config, &tokenizer, first, beginning.as_ref()) {
        // Ctrl-C while texts become tokens.
        Err(e) if matches!(e.downcast_ref(), Some(hawfinch_data::Error::Stopped)) && ranks.size() == 1 => {
            return failed(hawfinch_data::Error::Stopped, data::kept(&config).as_deref());
        }
        names => names?,
    };
    if first {
        ranks.barrier()?;
    }
    let train = Batches::open(&names.train, config.order, config.ctx, config.seed)?;
    let validation = match &names.validation {
        Some(name) => Some(Batches::in_order(name, config.ctx)?),
        None => None,
    };
    config.length(train.tokens()).map_err(|e| usage(e.to_string()))?;
    let masked = masked(&train, validation.as_ref());
    let data = Data {
        fingerprint: train.fingerprint()?,
        train,
        validation,
        probe: config.probe.as_deref().map_or(Ok(Vec::new()), |path| data::probe(path, &tokenizer))?,
        token_bytes: Some(token_bytes(&tokenizer)),
    };
    let cpu = Cpu::<f32>::default();
    let (isa, pool) = (cpu.isa(), cpu.pool().clone());
    let mut trainer = match &last {
        Some(found) => {
            let loaded = checkpoint::load(found)?;
            if !beside {
                same_shape(&config, &loaded.model)?;
            }
            let base = beginning.as_ref().filter(|_| beside);
            let trainer = Trainer::resume_among(ranks.clone(), config.clone(), base, &loaded, cpu, data)?;
            note(format_args!("going on from {}", found.path.display()));
            trainer
        }
        None => {
            let mut weights = match beginning {
                Some(weights) => weights,
                None => new_model(&mut config, &tokenizer, &cpu)?,
            };
            if let Some(t) = weights.tensors.values().find(|t| t.dtype.is_quantized())
                && !beside
            {
                note(format_args!(
                    "{} is quantised ({}): its numbers are trained as floats from here on",
                    weights.path.display(),
                    t.dtype
                ));
            }
            // A vocabulary that nobody could guess goes with the model.
            if let Some(carried) = tokenizer.carried() {
                weights.metadata.insert(metadata::TOKENIZER.into(), carried);
            }
            Trainer::new_among(ranks.clone(), config.clone(), &weights, cpu, data)?
        }
    };
    let out = &config.out;
    if first {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
        let resolved = toml::to_string(&config).context("the settings as TOML")?;
        let path = out.join("config.toml");
        std::fs::write(&path, resolved).with_context(|| format!("cannot write {}", path.display()))?;
    }

    let model = trainer.learner().model();
    // Three products a weight: forward, to what went in, to the weight if it is trained.
    let work = if beside { 4.0 } else { 6.0 } * model.multiply_adds(true) as f64;
    let short = Duration::from_millis(100);
    let best = match config.precision {
        Operands::Bf16 => peak::pairs(isa, &pool, short),
        Operands::F32 => None,
    };
    let best = best.unwrap_or_else(|| peak::multiply_adds(isa, &pool, short));
    let (trained, all) = {
        let parameters = trainer.learner().tape().parameters();
        (parameters.trained_numbers() as f64 / 1e6, parameters.numbers() as f64 / 1e6)
    };
    let parameters = match config.method {
        Method::Full => format!("{trained:.2} M parameters"),
        method => format!("{} of {trained:.2} M parameters beside {:.2} M", method.title(), all - trained),
    };
    let (steps, step) = (trainer.length().steps, trainer.progress().step);
    let several = if ranks.size() > 1 { format!(" of {} ranks each", ranks.size()) } else { String::new() };
    note(format_args!(
        "{}, {parameters}, {} tokens a step, {} steps, {} on {} threads{several}",
        model.config().version,
        config.tokens_per_step(),
        steps,
        isa,
        pool.threads()
    ));
    if let Some(masked) = masked {
        note(format_args!("{masked}"));
    }
    let most = 2.0 * best * ranks.size() as f64;
    let view = first.then(|| View::new(out, (steps, step), &config.prompt, &tokenizer, (work, most)));
    let mut view = view.transpose()?;
    signal::catch(1);
    signal::catch_requests_to_end();
    let stop = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    let end = std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                stop.store(signal::pressed(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut nobody = ();
        let observer: &mut dyn Observer = match &mut view {
            Some(view) => view,
            None => &mut nobody,
        };
        let end = trainer.run(observer, &stop);
        done.store(true, Ordering::Relaxed);
        end
    });
    if let Some(view) = &mut view {
        view.finish();
    }
    let end = end?;
    let found = checkpoint::list(out)?.pop();
    let model = found.map_or(String::new(), |f| f.model().display().to_string());
    Ok(match end {
        End::Stopped => {
            note(format_args!("stopped at step {}: the same command goes on", trainer.progress().step));
            ExitCode::from(signal::INTERRUPTED)
        }
        End::Done => {
            note(format_args!("done: {model}"));
            ExitCode::SUCCESS
        }
        End::NoBetter => {
            let (loss, step) = trainer.progress().best.unwrap_or((f64::NAN, 0));
            note(format_args!(
                "ended: validation was best at step {step}, {loss:.4}; the last model is {model}"
            ));
            ExitCode::SUCCESS
        }
    })
}

/// Refuses to go on with a run by another method.
fn same_method(config: &RunConfig, there: &Checkpoint) -> anyhow::Result<()> {
    let kind = there.metadata.get(metadata::KIND).map_or("full", String::as_str);
    if kind == config.method.name() {
        return Ok(());
    }
    Err(usage(format!(
        "the run in {} is of method {kind}, not {}: give `out` another folder",
        config.out.display(),
        config.method.name()
    )))
}

/// What a run learns of its data where that is not all.
fn masked(train: &Batches, validation: Option<&Batches>) -> Option<String> {
    let of = |set: &Batches| share(set.learned(), set.tokens());
    let differs = |set: &Batches| set.is_masked().then(|| of(set));
    match (differs(train), validation.map(|v| (differs(v), of(v)))) {
        (Some(share), None) => Some(format!("loss on {share} of tokens")),
        (Some(share), Some((_, of))) => Some(format!("loss on {share} of tokens, in validation on {of}")),
        (None, Some((Some(of), _))) => Some(format!("loss on all tokens, in validation on {of}")),
        (None, _) => None,
    }
}

/// Refuses to go on with a run under settings of another model.
fn same_shape(config: &RunConfig, model: &Checkpoint) -> anyhow::Result<()> {
    let there = hawfinch_model::Config::infer(model)?;
    let version = config.rwkv_version()?;
    let v4 = there.version == hawfinch_model::Version::V4;
    let asked = [
        ("layers", config.layers, there.layers),
        ("width", config.width, there.width),
        ("head-size", if v4 { there.head_size } else { config.head_size }, there.head_size),
        ("ffn-width", config.ffn_width.unwrap_or(there.ffn_width), there.ffn_width),
        ("vocab", config.vocab.unwrap_or(there.vocab), there.vocab),
    ];
    let differs = asked.iter().find(|(_, asked, there)| asked != there);
    // What a run began with is the model's, not the settings'.
    let why = match differs {
        _ if config.from.is_some() => return Ok(()),
        _ if version != there.version => {
            format!("{}, not {}", there.version.plain_name(), version.plain_name())
        }
        Some((key, asked, there)) => format!("a model of {key} {there}, not {asked}"),
        None => return Ok(()),
    };
    Err(usage(format!("the run in {} is of {why}: give `out` another folder", config.out.display())))
}

/// The tokenizer of a run: the one asked for, else that of the model it began with.
fn tokenizer(config: &RunConfig, beginning: Option<&Checkpoint>) -> anyhow::Result<Tokenizer> {
    let vocab = beginning.map(hawfinch_model::Config::infer).transpose()?.map(|c| c.vocab);
    match (&config.tokenizer, beginning.zip(vocab)) {
        (Some(asked), Some((weights, vocab))) => {
            let tokenizer = named(asked.as_ref())?;
            tokenizer.check_fits(vocab, &weights.path)?;
            Ok(tokenizer)
        }
        (Some(asked), None) => named(asked.as_ref()),
        (None, Some((weights, vocab))) => of_checkpoint(weights, vocab),
        (None, None) => Ok(Tokenizer::world()),
    }
}

/// Weights by the references' initialisation.
fn new_model(config: &mut RunConfig, tokenizer: &Tokenizer, cpu: &Cpu<f32>) -> anyhow::Result<Checkpoint> {
    // Rows in whole registers.
    let needed = tokenizer.vocab_size();
    let vocab = *config.vocab.get_or_insert(needed.next_multiple_of(16));
    if vocab < needed {
        return Err(usage(format!("`vocab` is {vocab}, and the tokenizer has {needed} tokens")));
    }
    let sizes = Sizes {
        version: config.rwkv_version()?,
        layers: config.layers,
        width: config.width,
        vocab,
        head_size: config.head_size,
        ffn_width: config.ffn_width,
        ranks: None,
    };
    let model = sizes.config().map_err(|e| usage(e.to_string()))?;
    let options = Options { seed: config.seed, lr_init: config.lr };
    Ok(init::model(&model, &options, cpu.isa(), cpu.pool()))
}

/// Bytes of each token; ids that have none count as none.
fn token_bytes(tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = 0..tokenizer.vocab_size() as u32;
    ids.map(|id| tokenizer.token_bytes(id).map_or(0, |b| b.len() as u32)).collect()
}
