//! `hawfinch chat`: a conversation in the terminal.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawfinch_engine::{Sampler, Uncounted};

use super::generate::DEMO_NOTE;
use crate::built_in::DEMO;
use crate::chat::commands::{self, Command, Line};
use crate::chat::lines::Lines;
#[cfg(feature = "serve")]
use crate::chat::remote::Remote;
use crate::chat::talk::{Talk, title};
use crate::fail::{closed_pipe, sentence, usage};
use crate::model_args::{ModelOptions, load_state};
use crate::output::{Stream, note};
use crate::runner::Runner;
use crate::sampler_args::SamplerOptions;
#[cfg(feature = "serve")]
use crate::sampler_args::given;
use crate::speculate_args::SpeculateOptions;
use crate::tokenizer_args::TokenizerOption;
use crate::{family, signal};

/// Arguments of `chat`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Within the chat, /help lists the commands: /reset /save /load /fork /regen /undo /system /set …
A line that ends in \\ goes on in the next. Ctrl-C stops a reply; Ctrl-D ends the chat.
When standard input is not a terminal, each of its lines is a message or a command.

Earlier text is never read again: the model's state is kept, and /regen goes back to it.

Examples:
  hawfinch chat RWKV-x070-World-0.4B.pth
  hawfinch chat RWKV-x070-World-2.9B.pth --speculate RWKV-x070-World-0.1B.pth
  hawfinch chat model.gguf --template g1-think --system 'Answer briefly.'
  hawfinch chat --connect http://127.0.0.1:8080
  printf 'Hello!\\n/save hello.safetensors\\n' | hawfinch chat model.pth --seed 1"
)]
pub struct Args {
    /// A model file or folder; without one the built-in model
    model: Option<PathBuf>,
    /// Talk to a server instead; MODEL is then one of its models, HAWFINCH_API_KEY the key it may ask for
    #[cfg(feature = "serve")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["load", "state", "template", "tokenizer", "speculate"])]
    connect: Option<String>,
    /// Chat template: world, g1, g1-think, raven, pile, instruct, completion …, or a Jinja file [default: by the model]
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<PathBuf>,
    /// System text to begin with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Begin with a saved conversation, or at a tuned state
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Begin at this state: a tuned one, or one saved by hawfinch
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Longest reply in tokens
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// Print tokens and speed after each reply, on standard error
    #[arg(long)]
    stats: bool,
    /// Print each reply as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tokenizer: TokenizerOption,
    #[command(flatten)]
    sampler: SamplerOptions,
    #[command(flatten)]
    speculate: SpeculateOptions,
    #[command(flatten)]
    options: ModelOptions,
}

/// Talks until the input ends.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "serve")]
    if let Some(url) = &args.connect {
        return connected(args, url);
    }
    let model = args.options.open(args.model.as_deref().unwrap_or(Path::new(DEMO)))?;
    let tokenizer = args.tokenizer.for_model(&model)?;
    let template = family::template(args.template.as_deref(), &model, &tokenizer)?;
    let config = args.sampler.over(template.sampler.clone())?;
    let uncounted = Uncounted::from_texts(tokenizer.vocab_size(), |id| tokenizer.token_bytes(id));
    let sampler = Sampler::new(config, uncounted)?;
    let state = match &args.state {
        Some(path) => load_state(&model, path)?,
        None => model.new_state(),
    };
    let guessing = args.speculate.open(&args.options, &model)?;
    let mut lines = Lines::open()?;
    if args.model.is_none() {
        note(DEMO_NOTE);
    }
    if lines.is_terminal() {
        note(title(&model, &template));
        note("/help lists commands, Ctrl-C stops a reply, Ctrl-D ends.\n");
    }
    // Ctrl-C is looked at after every token; while a long step computes, a few presses end the program.
    signal::catch(3);
    let runner = Runner::new(&model);
    let mut talk = Talk::new(&runner, tokenizer, sampler, template, state, args.max_tokens);
    if let Some(guessing) = guessing {
        talk.speculate(guessing);
    }
    talk.json = args.json;
    talk.stats = args.stats;
    if let Some(system) = &args.system {
        talk.set_system(Some(system));
    }
    if let Some(path) = &args.load {
        talk.load(path)?;
    }
    until_the_end(&mut lines, &mut talk, |talk| talk.branch().to_owned(), act)
}

/// Takes lines until they end or one asks to end.
fn until_the_end<T>(
    lines: &mut Lines,
    talk: &mut T,
    branch: impl Fn(&T) -> String,
    act: impl Fn(&mut T, &str, bool) -> anyhow::Result<bool>,
) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    while let Some(line) = lines.next(&branch(talk))? {
        // What was pressed during the line before is not meant for this one.
        signal::clear();
        match act(talk, &line, lines.is_terminal()) {
            Ok(true) => break,
            Ok(false) => {}
            Err(e) if closed_pipe(&e) => return Err(e),
            Err(e) => {
                // A person tries again; a script goes on, and its exit code tells.
                note(format_args!("hawfinch: {}", sentence(&e)));
                failed = true;
            }
        }
    }
    Ok(if failed && !lines.is_terminal() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Talks to a server.
#[cfg(feature = "serve")]
fn connected(args: &Args, url: &str) -> anyhow::Result<ExitCode> {
    let model = args.model.as_deref().map(|m| m.to_string_lossy().into_owned());
    let settings = given(|config| args.sampler.over(config))?;
    let mut remote = Remote::open(url, model.as_deref(), args.max_tokens)?
        .printing(args.json, args.stats)
        .sampling(settings);
    if let Some(system) = &args.system {
        remote.set_system(Some(system));
    }
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        note(remote.title());
        note("/help lists commands, Ctrl-C stops a reply, Ctrl-D ends.\n");
    }
    signal::catch(3);
    until_the_end(&mut lines, &mut remote, |r| r.branch().to_owned(), Remote::act)
}

/// Does what a line asks for; true when it asks to end.
fn act(talk: &mut Talk, line: &str, terminal: bool) -> anyhow::Result<bool> {
    let file = |rest: &str, command: &str| match rest {
        "" => Err(usage(format!("{command} needs the name of a file"))),
        name => Ok(PathBuf::from(name)),
    };
    let mut out = Stream::new();
    match commands::parse(line) {
        Line::Say("") => {}
        Line::Say(text) => {
            talk.say(text)?;
            if terminal {
                out.write("\n")?;
            }
        }
        Line::Unknown(name) => return Err(usage(format!("there is no command {name}: /help lists them"))),
        Line::Do(command, rest) => match command {
            Command::Quit => return Ok(true),
            Command::Help => out.write(&commands::help())?,
            Command::Reset => {
                talk.reset();
                note("(the conversation is forgotten)");
            }
            Command::System => match rest {
                "" => out.write(&format!("{}\n", talk.system().unwrap_or("(there is no system text)")))?,
                "-" => talk.set_system(None),
                text => {
                    talk.set_system(Some(text));
                    note("(the conversation begins anew with this system text)");
                }
            },
            Command::Regen => {
                talk.regenerate()?;
                if terminal {
                    out.write("\n")?;
                }
            }
            Command::Undo => {
                talk.undo()?;
                note("(the last question and its reply are forgotten)");
            }
            Command::History => out.write(&talk.history())?,
            Command::Save => talk.save(&file(rest, "/save")?)?,
            Command::Load => talk.load(&file(rest, "/load")?)?,
            Command::Fork => talk.fork(rest)?,
            Command::Branch if rest.is_empty() => out.write(&talk.list_branches())?,
            Command::Branch => talk.go(rest)?,
            Command::Set => match rest.split_once([' ', '=']) {
                Some((name, value)) => talk.set(name.trim(), value.trim())?,
                None if rest.is_empty() => out.write(&talk.settings())?,
                None => return Err(usage("/set takes a name and a value, as in /set temperature 0.8")),
            },
            Command::Stats => out.write(&format!("{}\n", talk.statistics()))?,
        },
    }
    Ok(false)
}
