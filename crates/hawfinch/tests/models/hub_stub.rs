//! A model hub on loopback, and the program run against it. Nothing here leaves the machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::{Version, synthetic};
use sha2::{Digest, Sha256};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    /// First byte of the range asked for.
    pub fn from(&self) -> Option<u64> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close after so many bytes of the body, whatever was announced.
    pub cut: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }
    pub fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.into(), value.to_string()));
        self
    }
    pub fn body(mut self, body: &[u8]) -> Reply {
        self.body = body.to_vec();
        self
    }
}

/// A server that answers by a function and remembers what it was asked.
pub struct Stub {
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Stub {
    pub fn new(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (seen_here, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (seen_here.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Stub { address, seen }
    }

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// First bytes of the ranges of all GET requests (0: the whole).
    pub fn starts(&self) -> Vec<u64> {
        let gets = self.seen().into_iter().filter(|r| r.method == "GET");
        gets.map(|r| r.from().unwrap_or(0)).collect()
    }
}

/// `answer` gets the request and how many of the same method and path came before it.
fn serve(
    stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request, usize) -> Reply,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = Request { method, path, headers };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|r| r.method == request.method && r.path == request.path).count();
        seen.push(request.clone());
        before
    };
    let reply = answer(&request, before);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut out = stream;
    out.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        out.write_all(&reply.body[..end]).ok()?;
    }
    out.flush().ok()
}

/// A file as a hub gives it: HEAD redirects to the storage with size and hash, GET gives ranges.
pub fn large_file(request: &Request, content: &[u8]) -> Reply {
    if request.method == "HEAD" {
        return Reply::status(302)
            .header("X-Linked-Size", content.len())
            .header("X-Linked-Etag", format!("\"{}\"", hash(content)))
            .header("Location", "https://storage.invalid/x")
            .header("Content-Length", 0);
    }
    part_of(request, content)
}

/// The range asked for.
pub fn part_of(request: &Request, content: &[u8]) -> Reply {
    match request.from() {
        None => Reply::status(200).body(content),
        Some(from) if from < content.len() as u64 => Reply::status(206)
            .header("Content-Range", format!("bytes {from}-{}/{}", content.len() - 1, content.len()))
            .body(&content[from as usize..]),
        Some(_) => Reply::status(416),
    }
}

pub fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of a small model that hawfinch opens.
pub fn model() -> Vec<u8> {
    let shape = synthetic::Shape { version: Version::V7, layers: 2, width: 128, vocab: 300, head_size: 64 };
    let ckpt = synthetic::checkpoint(&shape.config(), hawfinch_kernels::DType::F32, 5);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let options =
        SaveOptions { format: SaveFormat::Safetensors, dtype: None, vocabulary: None, progress: None };
    format::save(&path, &ckpt, options).unwrap();
    std::fs::read(path).unwrap()
}

/// The program with a models folder of its own.
pub struct Room {
    dir: tempfile::TempDir,
    pub variables: Vec<(&'static str, String)>,
}

impl Room {
    pub fn new() -> Room {
        Room { dir: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }
    pub fn with(mut self, variable: &'static str, value: impl ToString) -> Room {
        self.variables.push((variable, value.to_string()));
        self
    }
    pub fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.models().join(path)
    }
    /// Everything in the models folder, relative.
    pub fn files(&self) -> Vec<String> {
        fn below(dir: &Path, all: &mut Vec<PathBuf>) {
            for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if e.path().is_dir() { below(&e.path(), all) } else { all.push(e.path()) }
            }
        }
        let mut all = Vec::new();
        below(&self.models(), &mut all);
        let mut all: Vec<_> =
            all.iter().map(|p| p.strip_prefix(self.models()).unwrap().display().to_string()).collect();
        all.sort();
        all
    }
    pub fn run(&self, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawfinch"));
        for name in ["HF_TOKEN", "SSL_CERT_FILE", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        // Without a hub of the test's own, a port where nothing listens.
        command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HOME", self.dir.path());
        command.env("HAWFINCH_MODELS", self.models()).envs(self.variables.iter().map(|(n, v)| (n, v)));
        command.args(args).stdin(std::process::Stdio::null());
        Run::of(command.output().unwrap())
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    fn of(o: Output) -> Run {
        let text = |b| String::from_utf8(b).unwrap();
        Run { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) }
    }
    /// Checks the exit code, and that it did not panic.
    #[track_caller]
    pub fn code(self, code: i32) -> Run {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self
    }
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Run {
        for part in parts {
            assert!(self.err.contains(part) || self.out.contains(part), "`{part}` in {self:#?}");
        }
        self
    }
}
