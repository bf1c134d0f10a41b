//! Loads a hawfinch server and measures what comes back; the last line is JSON, the exit code 1 when something was not
//! as it must be, 2 when it was called wrongly. See `README.md`.

mod chats;
mod http;
mod process;
mod shorts;
mod turn;
mod words;

use std::process::ExitCode;

const USAGE: &str = "usage: load chats|shorts|turn --url http://ADDRESS:PORT [options]
  chats   streaming conversations at once; fails on an error or a stall over 2 s
          --concurrency N (64)  --seconds S (60)  --max-tokens N (200: replies of 100 to 200)
  shorts  short requests with prompts of their own; fails on an error or when memory grew
          --pid PID  --requests N (10000)  --concurrency N (64)  --state-memory MB (0: the server's budget)
  turn    the next turn of 2,000 tokens, its state known and not; fails below 20 times or on other text
          --rounds N (5)
  all     --model NAME (the first)  --key KEY  --seed N (1)  --pid PID (the server, for its memory)
          --words (let a model of random weights say whole words: it can be sent back as it was)";

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    url: String,
    key: Option<String>,
    model: Option<String>,
    pid: Option<u32>,
    concurrency: u64,
    seconds: f64,
    max_tokens: u64,
    requests: u64,
    rounds: u64,
    state_memory: u64,
    seed: u64,
    words: bool,
}

impl Options {
    fn server(&self) -> Result<http::Server, String> {
        http::Server::new(&self.url, self.key.clone())
    }

    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut o = Self {
            url: String::new(),
            key: None,
            model: None,
            pid: None,
            concurrency: 64,
            seconds: 60.0,
            max_tokens: 200,
            requests: 10_000,
            rounds: 5,
            state_memory: 0,
            seed: 1,
            words: false,
        };
        while let Some(name) = args.next() {
            if name == "--words" {
                o.words = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
                value.parse().map_err(|_| format!("{name}: `{value}` is no number"))
            }
            match name.as_str() {
                "--url" => o.url = value,
                "--key" => o.key = Some(value),
                "--model" => o.model = Some(value),
                "--pid" => o.pid = Some(number(&name, &value)?),
                "--concurrency" => o.concurrency = number::<u64>(&name, &value)?.max(1),
                "--seconds" => o.seconds = number(&name, &value)?,
                "--max-tokens" => o.max_tokens = number::<u64>(&name, &value)?.max(1),
                "--requests" => o.requests = number(&name, &value)?,
                "--rounds" => o.rounds = number::<u64>(&name, &value)?.max(1),
                "--state-memory" => o.state_memory = number(&name, &value)?,
                "--seed" => o.seed = number(&name, &value)?,
                _ => return Err(format!("there is no option {name}")),
            }
        }
        if !(o.seconds > 0.0 && o.seconds < 1e6) {
            return Err("--seconds must be more than 0".into());
        }
        Ok(o)
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let options = match Options::parse(args) {
        Ok(options) if ["chats", "shorts", "turn"].contains(&what.as_str()) => options,
        Ok(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
        Err(e) => {
            eprintln!("load: {e}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // One thread: the processor belongs to the server.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("load: {e}");
            return ExitCode::FAILURE;
        }
    };
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        match what.as_str() {
            "chats" => chats::run(&options).await,
            "shorts" => shorts::run(&options).await,
            _ => turn::run(&options).await,
        }
    });
    match result {
        Ok((ok, json)) => {
            println!("{json}");
            if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("load: {e}");
            ExitCode::FAILURE
        }
    }
}
