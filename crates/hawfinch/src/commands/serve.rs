//! `hawfinch serve`: models behind the HTTP APIs that clients speak, and a chat page.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hawfinch_engine::Codec;
use hawfinch_engine::schedule::Limits;
use hawfinch_engine::tree::cache::StateCache;
use hawfinch_engine::tree::files::FileStore;
use hawfinch_engine::tree::store::Store;
use hawfinch_model::{Model, State};
use hawfinch_server::{App, Models, Opened, SavedStates, Settings};

use crate::built_in::DEMO;
use crate::fail::usage;
use crate::hub;
use crate::model_args::{ModelOptions, model_identity};
use crate::output::{note, size};
use crate::system::folders;
use crate::system::memory::Memory;
use crate::tokenizer_args::TokenizerOption;
use crate::{family, signal};

/// Arguments of `serve`.
#[derive(clap::Args, Debug, Clone)]
#[command(
    after_help = "The APIs: /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models (OpenAI), \
/v1/messages (Anthropic), /v1/rank, /v1/states, /tokenize, /metrics …; /docs describes them. At / there is a chat page.

Conversations are never read again: the state after each is kept, in memory up to --state-memory, then in --state-dir, and \
any request that begins as a known text goes on from there. Results are the same bits as without.

Examples:
  hawfinch serve                                   # the built-in model, at http://127.0.0.1:8080
  hawfinch serve rwkv7-0.4b --port 9000
  hawfinch serve world=RWKV-x070-World-1.5B.pth --quant int8 --adapter poet=poems.pth
  HAWFINCH_API_KEY=secret hawfinch serve model.gguf --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem"
)]
pub struct Args {
    /// Model files, folders or names, each as NAME=MODEL to say what requests call it [default: the built-in model]
    #[arg(value_name = "[NAME=]MODEL")]
    models: Vec<String>,
    /// A LoRA or tuned state that requests choose as MODEL+NAME (repeatable); of the first model, or of the one named
    #[arg(long = "adapter", value_name = "[MODEL+]NAME=FILE")]
    adapters: Vec<String>,
    /// Chat template: world, g1, g1-think, raven, pile, instruct, completion …, or a Jinja file [default: by the model]
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<PathBuf>,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    /// Let requests load and unload models (/v1/models/load), by any path that this program may read
    #[arg(long)]
    allow_load: bool,
    /// Log the texts of requests; without, no text is logged
    #[arg(long)]
    log_texts: bool,
    /// Log no requests
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    network: Network,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    states: StateOptions,
    #[command(flatten)]
    options: ModelOptions,
}

/// Where it listens and to whom.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Network options")]
struct Network {
    /// Address to listen at; 0.0.0.0 or :: is every address of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// File of keys, one a line: every request must carry one. HAWFINCH_API_KEY in the environment is one, too
    #[arg(long, value_name = "FILE")]
    api_key: Option<PathBuf>,
    /// Let pages of this site use the server, such as `https://example.org`; * is every site (repeatable)
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// A further name that requests may call this server by (repeatable)
    #[arg(long, value_name = "NAME")]
    host_name: Vec<String>,
    /// Certificate chain (PEM): serve over TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// What requests may take.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Limits")]
struct LimitOptions {
    /// Sequences of a model that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    width: u16,
    /// Requests that may wait; beyond it they are refused (429) and told when to come back
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: u16,
    /// Longest reply in tokens
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Seconds that a request may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u32,
    /// Largest body of a request, in MB
    #[arg(long, value_name = "MB", default_value_t = 16)]
    max_body: u16,
    /// Connections at most
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Seconds that requests may go on when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

/// Where states are kept.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "States")]
struct StateOptions {
    /// Memory for states of each model, in MB [default: an eighth of what is free]
    #[arg(long, value_name = "MB")]
    state_memory: Option<u32>,
    /// Folder for states that do not fit in memory, and for those that are saved [default: hawfinch/states in the data folder]
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_state_dir")]
    state_dir: Option<PathBuf>,
    /// Keep no states on the disk
    #[arg(long)]
    no_state_dir: bool,
    /// Disk space for states of each model that do not fit in memory, in MB
    #[arg(long, value_name = "MB", default_value_t = 8192)]
    state_disk: u32,
    /// Disk space for states of each model that requests save, in MB
    #[arg(long, value_name = "MB", default_value_t = 8192)]
    saved_disk: u32,
    /// A store of states that several servers share: `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]` (in builds with --features
    /// redis)
    #[arg(long, value_name = "URL")]
    state_store: Option<String>,
}

/// Serves until it is told to stop.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.options.check()?;
    if cfg!(not(feature = "redis")) && args.states.state_store.is_some() {
        return Err(usage("--state-store needs a build with `--features redis`"));
    }
    let settings = settings(args)?;
    let tls = match &settings.tls {
        Some((certificate, key)) => {
            Some(hawfinch_server::tls(certificate, key).map_err(|e| anyhow::anyhow!("TLS: {e}"))?)
        }
        None => None,
    };
    if !settings.address.ip().is_loopback() && settings.keys.is_empty() {
        note("warning: everybody who reaches this address can use the server: --api-key FILE asks for a key");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .context("the system gives no threads for connections")?;
    // An address that is taken is told before models are read.
    let listener = runtime.block_on(hawfinch_server::bind(settings.address)).map_err(anyhow::Error::msg)?;
    let address = listener.local_addr()?;
    let limits = Limits { width: args.limits.width.into(), queue: args.limits.queue.into() };
    let opener = opener(args.clone());
    let models =
        Models::new(limits, Box::new(move |path, name| opener(path, name).map_err(|e| format!("{e:#}"))));
    open_all(args, &models)?;
    signal::catch(1);
    signal::catch_requests_to_end();
    let quiet = args.quiet;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let grace = settings.grace;
    let app = Arc::new(App::new(Settings { address, ..settings }, models, move |line| {
        if !quiet {
            note(format_args!("{} {line}", crate::output::clock()));
        }
    }));
    note(format_args!("hawfinch serves {} at {scheme}://{}", names(&app.models), shown(address)));
    note("Ctrl-C stops it; a second Ctrl-C does not wait for requests that run.");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    runtime.block_on(async {
        let serving = tokio::spawn(hawfinch_server::serve(app.clone(), listener, tls, stopped));
        while !signal::pressed() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        note("stopping: what runs is finished");
        let _ = stop.send(true);
        let of = app.clone();
        let closing = tokio::task::spawn_blocking(move || of.models.close(grace));
        let _ = serving.await;
        let _ = closing.await;
    });
    // What still computes for nobody is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// How the address is told to a person.
fn shown(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port()),
        _ => address,
    }
}

fn names(models: &Models) -> String {
    let all = models.all();
    let named = all.iter().map(|h| {
        let variants: Vec<String> = h.variants().into_iter().map(|(name, _)| format!("+{name}")).collect();
        format!(
            "{}{}",
            h.name,
            if variants.is_empty() { String::new() } else { format!(" ({})", variants.join(" ")) }
        )
    });
    named.collect::<Vec<_>>().join(", ")
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let n = &args.network;
    let mut keys: Vec<String> = Vec::new();
    if let Some(file) = &n.api_key {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("the keys in {}", file.display()))?;
        keys.extend(
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned),
        );
        if keys.is_empty() {
            return Err(usage(format!("{} holds no key: write one a line", file.display())));
        }
    }
    if let Ok(key) = std::env::var("HAWFINCH_API_KEY")
        && !key.trim().is_empty()
    {
        keys.push(key.trim().to_owned());
    }
    for origin in &n.cors {
        let sound =
            origin == "*" || origin.split_once("://").is_some_and(|(_, h)| !h.is_empty() && !h.contains('/'));
        if !sound {
            return Err(usage(format!("--cors takes a site such as https://example.org, not `{origin}`")));
        }
    }
    Ok(Settings {
        address: SocketAddr::new(n.host, n.port),
        keys,
        origins: n.cors.clone(),
        hosts: n.host_name.clone(),
        tls: n.tls_cert.clone().zip(n.tls_key.clone()),
        max_body: usize::from(args.limits.max_body) << 20,
        max_connections: args.limits.max_connections.into(),
        timeout: Duration::from_secs(args.limits.timeout.into()),
        grace: Duration::from_secs(args.limits.grace.into()),
        max_tokens: args.limits.max_tokens,
        allow_load: args.allow_load,
        log_texts: args.log_texts,
        ..Settings::default()
    })
}

/// `NAME=MODEL`, or what a model is called by itself.
fn named(spec: &str) -> (Option<String>, PathBuf) {
    match spec.split_once('=') {
        // A path may hold the character, too.
        Some((name, path)) if !Path::new(spec).exists() && !name.contains(['/', '\\']) => {
            (Some(name.to_owned()), path.into())
        }
        _ => (None, spec.into()),
    }
}

fn open_all(args: &Args, models: &Models) -> anyhow::Result<()> {
    let built_in = [DEMO.to_owned()];
    let specs = if args.models.is_empty() { &built_in[..] } else { &args.models[..] };
    if args.models.is_empty() {
        note(super::generate::DEMO_NOTE);
    }
    for spec in specs {
        let (name, path) = named(spec);
        models.load(&path, name.as_deref()).map_err(anyhow::Error::msg)?;
    }
    let all = models.all();
    let by_name: HashMap<&str, _> = all.iter().map(|h| (h.name.as_str(), h)).collect();
    for spec in &args.adapters {
        let Some((whole, file)) = spec.split_once('=') else {
            return Err(usage(format!("--adapter takes [MODEL+]NAME=FILE, not `{spec}`")));
        };
        let (hosted, name) = match whole.split_once('+') {
            None => (&all[0], whole),
            Some((model, name)) => match by_name.get(model) {
                Some(hosted) => (*hosted, name),
                None => return Err(usage(format!("--adapter {spec}: there is no model called `{model}`"))),
            },
        };
        hosted.add_variant(name, Path::new(file)).map_err(|e| anyhow::anyhow!("--adapter {spec}: {e}"))?;
    }
    Ok(())
}

/// Opens a model with everything that belongs to it.
fn opener(args: Args) -> impl Fn(&Path, Option<&str>) -> anyhow::Result<Opened> + Send + Sync {
    move |path, name| {
        let model = args.options.open_for(path, args.limits.width.into())?;
        let tokenizer = args.tokenizer.for_model(&model)?;
        let template = family::template(args.template.as_deref(), &model, &tokenizer)?;
        let identity = model_identity(&model)?;
        let (cache, saved) = states(&args, &model, &identity)?;
        let name = name.map_or_else(|| call(path), str::to_owned);
        Ok(Opened { name, model: Arc::new(model), tokenizer, template, cache, saved })
    }
}

/// What a model is called: its file's name without the ending, in letters that names have.
fn call(path: &Path) -> String {
    let last = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = match last.rsplit_once('.') {
        Some((stem, ending)) if hub::folder::is_model_extension(ending.as_ref()) => stem,
        _ => &last[..],
    };
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = stem.chars().map(fits).collect();
    if name.is_empty() { "model".into() } else { name }
}

fn states(args: &Args, model: &Model, identity: &str) -> anyhow::Result<(StateCache<State>, SavedStates)> {
    let s = &args.states;
    let state_bytes = size_of::<f32>() * model.state_layout().len();
    let budget = match s.state_memory {
        Some(mb) => (mb as usize) << 20,
        None => (Memory::now().available().unwrap_or(4 << 30) / 8) as usize,
    };
    let folder = match (&s.state_dir, s.no_state_dir) {
        (Some(folder), _) => Some(folder.clone()),
        (None, true) => None,
        (None, false) => folders::data().map(|d| d.join("hawfinch").join("states")),
    };
    let codec = Arc::new(Codec(model.state_layout().clone()));
    // One folder a model: states of others are of no use to it.
    let digits: String = identity.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    let (files, saved) = match &folder {
        None => (None, SavedStates::nowhere()),
        Some(folder) => {
            let own = folder.join(digits);
            private(&own)
                .with_context(|| format!("the folder for states, {}, cannot be made", own.display()))?;
            let failed = || format!("the folder for states, {} (--no-state-dir does without)", own.display());
            let files = FileStore::open(&own.join("tree"), codec.clone(), u64::from(s.state_disk) << 20);
            let saved =
                SavedStates::open(&own.join("saved"), u64::from(s.saved_disk) << 20).with_context(failed)?;
            (Some(files.with_context(failed)?), saved)
        }
    };
    let shared = s.state_store.as_deref().map(|url| shared_store(url, codec)).transpose()?;
    if budget < state_bytes {
        bail!("--state-memory is less than one state of this model takes ({})", size(state_bytes as u64));
    }
    let report = |why: &str| note(format_args!("warning: {why}"));
    Ok((StateCache::new(state_bytes, budget, files, shared, report), saved))
}

/// Makes a folder that, where the system knows such a thing, only its owner may enter: conversations lie in it.
fn private(folder: &Path) -> std::io::Result<()> {
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.create(folder)
}

#[cfg(feature = "redis")]
fn shared_store(url: &str, codec: Arc<Codec>) -> anyhow::Result<Arc<dyn Store<State>>> {
    let store = hawfinch_server::redis_store::RedisStore::open(url, codec);
    Ok(Arc::new(store.map_err(|e| usage(format!("--state-store: {e}")))?))
}

#[cfg(not(feature = "redis"))]
fn shared_store(_url: &str, _codec: Arc<Codec>) -> anyhow::Result<Arc<dyn Store<State>>> {
    bail!("this build has no Redis")
}
