//! A server in this process, and a client of a few lines: what it sends is exactly what a test says.

use hawfinch_engine::schedule::Limits;
use hawfinch_engine::tree::cache::StateCache;
use hawfinch_engine::tree::files::FileStore;
use hawfinch_engine::{Codec, Template};
use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
use hawfinch_server::{App, Models, Opened, SavedStates, Settings};
use hawfinch_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A stream of a completion that does not end by itself, asked for and not read yet.
pub fn endless(address: SocketAddr) -> TcpStream {
    let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 1_000_000, "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    stream
}

/// States that fit where they are saved, but for what files add.
pub const SAVED: usize = 12;

/// A server that runs until it is dropped.
pub struct Server {
    pub app: Arc<App>,
    pub address: SocketAddr,
    pub log: Arc<Mutex<Vec<String>>>,
    stop: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    serving: Option<tokio::task::JoinHandle<()>>,
    folder: Arc<tempfile::TempDir>,
}

/// The model of the tests.
pub fn model() -> Model {
    Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::new(1)).unwrap()
}

fn opened(name: &str, folder: &Path) -> Opened {
    let model = model();
    let mut template = Template::builtin("world").unwrap();
    template.stops.tokens.clear();
    let codec = Arc::new(Codec(model.state_layout().clone()));
    let files = FileStore::open(&folder.join("tree"), codec, 1 << 30).unwrap();
    let bytes = 4 * model.state_layout().len();
    Opened {
        name: name.into(),
        model: Arc::new(model),
        tokenizer: Tokenizer::bytes(),
        template,
        cache: StateCache::new(bytes, 64 << 20, Some(files), None, |e| panic!("{e}")),
        saved: SavedStates::open(&folder.join("saved"), (SAVED * bytes) as u64).unwrap(),
    }
}

impl Server {
    /// With these settings and limits.
    pub fn with(settings: Settings, limits: Limits) -> Self {
        Self::in_folder(settings, limits, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// As it comes.
    pub fn plain() -> Self {
        Self::with(Settings::default(), Limits::default())
    }

    /// With a folder of states that an earlier one may have left.
    pub fn in_folder(settings: Settings, limits: Limits, folder: Arc<tempfile::TempDir>) -> Self {
        let path = folder.path().to_owned();
        let opener =
            move |_: &Path, name: Option<&str>| Ok(opened(name.unwrap_or("loaded"), &path.join("more")));
        let models = Models::new(limits, Box::new(opener));
        models.add(opened("tiny", folder.path())).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(hawfinch_server::bind(([127, 0, 0, 1], 0).into())).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let to = log.clone();
        let settings = Settings { address, ..settings };
        let app = Arc::new(App::new(settings, models, move |line| to.lock().unwrap().push(line.to_owned())));
        let tls = app.settings.tls.as_ref().map(|(c, k)| hawfinch_server::tls(c, k).unwrap());
        let (stop, stopped) = watch::channel(false);
        let serving = runtime.spawn(hawfinch_server::serve(app.clone(), listener, tls, stopped));
        Self { app, address, log, stop, runtime: Some(runtime), serving: Some(serving), folder }
    }

    /// Stops it as a signal does; gives the folder for the next one.
    pub fn stop(mut self, grace: Duration) -> Arc<tempfile::TempDir> {
        self.end(grace);
        self.folder.clone()
    }

    fn end(&mut self, grace: Duration) {
        let _ = self.stop.send(true);
        self.app.models.close(grace);
        if let (Some(runtime), Some(serving)) = (&self.runtime, self.serving.take()) {
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap()
            });
        }
    }

    /// Sends bytes, reads until the connection ends.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// A request with more headers.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        Answer::parse(&self.raw(&[head.as_bytes(), b"\r\n", body].concat()))
    }

    /// JSON there and back.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// JSON that must be answered with 200.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        answer.json()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    /// Waits until nothing runs.
    pub fn idle(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let health = self.get("/health").json();
            let m = &health["models"][0];
            if m["running"] == 0 && m["waiting"] == 0 {
                return;
            }
            assert!(Instant::now() < until, "{health}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.serving.is_some() {
            self.end(Duration::ZERO);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let mut body = bytes.get(at + 4..).unwrap_or_default().to_vec();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self { status, head, body }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The data of each event of a stream, with its name.
    pub fn events(&self) -> Vec<(String, String)> {
        let text = self.text();
        let mut events = Vec::new();
        for block in text.split("\n\n").filter(|b| !b.trim().is_empty()) {
            let field = |name: &str| {
                block.lines().find_map(|l| l.strip_prefix(name).map(str::trim).map(str::to_owned))
            };
            if let Some(data) = field("data:") {
                events.push((field("event:").unwrap_or_default(), data));
            }
        }
        events
    }

    /// The chunks of a stream of OpenAI's, which must end with [DONE].
    pub fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut events = self.events();
        assert_eq!(events.pop().map(|e| e.1).as_deref(), Some("[DONE]"), "{}", self.text());
        events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = body.windows(2).position(|w| w == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&body[..at]).unwrap().trim(), 16).unwrap();
        out.extend_from_slice(&body[at + 2..at + 2 + n]);
        body = &body[at + 2 + n + 2..];
        if n == 0 {
            break;
        }
    }
    out
}
