//! Just enough of HTTP/1.1 for requests to a server on this machine: one connection, kept between requests; bodies by
//! length or in chunks; server-sent events.

use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for the next bytes of an answer: beyond it the server is taken for dead.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a server is: `http://ADDRESS:PORT`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Address and port, as the header Host says them.
    pub host: String,
    /// Its key, if it asks for one.
    pub key: Option<String>,
}

impl Server {
    /// Reads a URL.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, String> {
        let rest =
            url.strip_prefix("http://").ok_or_else(|| format!("--url {url}: only http:// is spoken"))?;
        let host = rest.trim_end_matches('/');
        if host.is_empty() || host.contains('/') || !host.contains(':') {
            return Err(format!("--url {url}: it must be http://ADDRESS:PORT"));
        }
        Ok(Self { host: host.into(), key })
    }
}

/// A connection, opened when it is needed.
pub struct Client {
    server: Server,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were taken already.
    at: usize,
}

#[derive(Debug, Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
}

/// The head of an answer; its body is read from the client.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The status.
    pub status: u16,
    framing: Framing,
    close: bool,
}

impl Client {
    /// No connection yet.
    pub fn new(server: Server) -> Self {
        Self { server, stream: None, buffer: Vec::new(), at: 0 }
    }

    /// Sends a request and reads the answer's head.
    pub async fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Head, String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.server.host);
        if let Some(key) = &self.server.key {
            request += &format!("Authorization: Bearer {key}\r\n");
        }
        if !body.is_empty() {
            request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += &body;
        if self.stream.is_none() {
            self.buffer.clear();
            self.at = 0;
            let stream =
                TcpStream::connect(&self.server.host).await.map_err(|e| format!("connecting: {e}"))?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().ok_or("no connection")?;
        stream.write_all(request.as_bytes()).await.map_err(|e| format!("sending: {e}"))?;
        self.head().await
    }

    async fn more(&mut self) -> Result<(), String> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        let stream = self.stream.as_mut().ok_or("no connection")?;
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut self.buffer)).await;
        match read {
            Err(_) => Err(format!("nothing came for {} s", PATIENCE.as_secs())),
            Ok(Err(e)) => Err(format!("reading: {e}")),
            Ok(Ok(0)) => Err("the server closed the connection in the middle of an answer".into()),
            Ok(Ok(_)) => Ok(()),
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<String, String> {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.at += end + 2;
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn head(&mut self) -> Result<Head, String> {
        let first = self.line().await?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|s| s.get(..3)?.parse().ok());
        let mut head = Head {
            status: status.ok_or_else(|| format!("`{first}` is no status line"))?,
            framing: Framing::Length(0),
            close: false,
        };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.framing =
                        Framing::Length(value.parse().map_err(|_| format!("`{line}`: no length"))?);
                }
                "transfer-encoding" => head.framing = Framing::Chunked,
                "connection" => head.close = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
    }

    /// So many bytes.
    async fn exactly(&mut self, n: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() - self.at < n {
            self.more().await?;
        }
        let bytes = self.buffer[self.at..self.at + n].to_vec();
        self.at += n;
        Ok(bytes)
    }

    /// The next part of a body; `None` behind its last. With a length the body is one part.
    pub async fn part(&mut self, head: &mut Head) -> Result<Option<Vec<u8>>, String> {
        let part = match head.framing {
            Framing::Length(0) => None,
            Framing::Length(n) => {
                head.framing = Framing::Length(0);
                return self.exactly(n).await.map(Some);
            }
            Framing::Chunked => {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let size = size.map_err(|_| format!("`{line}` is no size of a chunk"))?;
                let bytes = self.exactly(size).await?;
                if !self.line().await?.is_empty() {
                    return Err("a chunk is longer than it said".into());
                }
                if size > 0 { Some(bytes) } else { None }
            }
        };
        if part.is_none() && head.close {
            self.stream = None;
        }
        Ok(part)
    }

    /// A whole answer; the connection is given up when anything goes wrong.
    pub async fn whole(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<String, String> {
        let result = self.whole_inner(method, path, body).await;
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    async fn whole_inner(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<String, String> {
        let mut head = self.send(method, path, body).await?;
        let mut all = Vec::new();
        while let Some(part) = self.part(&mut head).await? {
            all.extend(part);
        }
        // Where a length framed it, the end was not asked for.
        if head.close {
            self.stream = None;
        }
        let text = String::from_utf8(all).map_err(|_| "an answer is not UTF-8".to_owned())?;
        if head.status != 200 {
            let short: String = text.chars().take(300).collect();
            return Err(format!("{method} {path}: status {}: {short}", head.status));
        }
        Ok(text)
    }

    /// A whole answer of JSON.
    pub async fn json(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let text = self.whole(method, path, body).await?;
        serde_json::from_str(&text).map_err(|e| format!("{method} {path}: the answer is no JSON: {e}"))
    }

    /// A streamed chat completion.
    pub async fn chat(&mut self, body: &Value) -> Result<Streamed, String> {
        let result = self.chat_inner(body).await;
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    async fn chat_inner(&mut self, body: &Value) -> Result<Streamed, String> {
        let began = Instant::now();
        let mut head = self.send("POST", "/v1/chat/completions", Some(body)).await?;
        let mut seen =
            Streamed { began, times: Vec::new(), text: String::new(), last: Value::Null, finish: None };
        let (mut pending, mut done) = (Vec::<u8>::new(), false);
        while let Some(part) = self.part(&mut head).await? {
            let now = Instant::now();
            if head.status != 200 {
                pending.extend(part);
                continue;
            }
            pending.extend(part);
            while let Some(end) = pending.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                let event = String::from_utf8(event).map_err(|_| "an event is not UTF-8".to_owned())?;
                for line in event.lines() {
                    // Comments keep the connection alive, nothing else.
                    if let Some(data) = line.strip_prefix("data:") {
                        if done {
                            return Err("an event came after [DONE]".into());
                        }
                        done = seen.take(data.trim(), now)?;
                    }
                }
            }
        }
        let rest = String::from_utf8_lossy(&pending).into_owned();
        if head.status != 200 {
            return Err(format!("status {}: {}", head.status, rest.chars().take(300).collect::<String>()));
        }
        if !done || !rest.is_empty() {
            return Err("the stream ended without [DONE]".into());
        }
        if seen.finish.is_none() || seen.usage("completion_tokens") == 0 {
            return Err("the stream told no finish_reason, no usage or no token".into());
        }
        Ok(seen)
    }
}

/// A stream as it came.
#[derive(Debug)]
pub struct Streamed {
    /// When the request was sent.
    pub began: Instant,
    /// When each part that held text came.
    pub times: Vec<Instant>,
    /// The text.
    pub text: String,
    /// The chunk with usage and timings.
    pub last: Value,
    /// Why it ended.
    pub finish: Option<String>,
}

impl Streamed {
    /// True at the end.
    fn take(&mut self, data: &str, now: Instant) -> Result<bool, String> {
        if data == "[DONE]" {
            return Ok(true);
        }
        let chunk: Value = serde_json::from_str(data).map_err(|e| format!("an event is no JSON: {e}"))?;
        if let Some(e) = chunk.get("error") {
            return Err(format!("an error in the stream: {e}"));
        }
        let choice = &chunk["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["delta"]["reasoning_content"].as_str());
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.times.push(now);
            self.text += text;
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.into());
        }
        if chunk["usage"].is_object() {
            self.last = chunk;
        }
        Ok(false)
    }

    /// A number of its usage.
    pub fn usage(&self, name: &str) -> u64 {
        self.last["usage"][name].as_u64().unwrap_or(0)
    }

    /// Tokens of the prompt that a known state had read.
    pub fn cached(&self) -> u64 {
        self.last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    }

    /// Tokens of the prompt that were computed.
    pub fn computed(&self) -> u64 {
        self.last["timings"]["prompt_tokens_computed"].as_u64().unwrap_or(0)
    }

    /// Until the first text.
    pub fn first(&self) -> Option<Duration> {
        self.times.first().map(|t| *t - self.began)
    }

    /// The longest time between two parts that held text.
    pub fn longest_gap(&self) -> Duration {
        self.times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }
}
