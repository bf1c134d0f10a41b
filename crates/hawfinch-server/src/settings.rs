//! What a server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything about a server but its models.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys, one of which every request must carry; none: no request needs one.
    pub keys: Vec<String>,
    /// Sites whose pages may use it, besides its own.
    pub origins: Vec<String>,
    /// Names that requests may call it by, besides its address and those of this machine's loopback.
    pub hosts: Vec<String>,
    /// Certificate chain and private key, PEM files: TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Bytes of a request's body at most.
    pub max_body: usize,
    /// Connections at most.
    pub max_connections: usize,
    /// How long a request may take, queue included.
    pub timeout: Duration,
    /// How long headers, a body and a stalled reader may take.
    pub io_timeout: Duration,
    /// How long requests may go on when the server is told to stop.
    pub grace: Duration,
    /// Tokens of a reply at most, and where a request says none.
    pub max_tokens: usize,
    /// Whether models may be loaded and unloaded by requests.
    pub allow_load: bool,
    /// Whether the texts of requests are logged.
    pub log_texts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            keys: Vec::new(),
            origins: Vec::new(),
            hosts: Vec::new(),
            tls: None,
            max_body: 16 << 20,
            max_connections: 1024,
            timeout: Duration::from_secs(600),
            io_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            max_tokens: 4096,
            allow_load: false,
            log_texts: false,
        }
    }
}
