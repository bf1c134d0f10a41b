//! Fetching files from a Hugging Face hub: look a file up, fetch it (going on where an earlier attempt
//! ended), verify it, put it in place by rename.
//!
//! `HF_ENDPOINT` names another hub, `HF_TOKEN` logs in, `SSL_CERT_FILE` replaces the certificates trusted,
//! and the usual proxy variables count. Nothing that a server says becomes a path: paths are made of
//! checked names only ([`super::name`]).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::output::size;
use crate::system::disk;

/// Bytes that stay free on the disk beyond the file itself.
const SPARE: u64 = 64 << 20;
/// Attempts in a row that may bring less than [`PROGRESS`] bytes before a download is given up.
const ATTEMPTS: u32 = 4;
/// An attempt that brings this much counts as going well.
const PROGRESS: u64 = 1 << 20;
/// Redirects followed when a file is looked up.
const REDIRECTS: usize = 6;
/// A repository's list of files may be this long.
const MAX_LISTING: u64 = 16 << 20;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// `owner/repo`, or `spaces/owner/repo`.
    pub repo: String,
    /// Path within it.
    pub file: String,
    /// What it must hash to, where known beforehand.
    pub sha256: Option<&'static str>,
}

/// What the hub says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Bytes.
    pub bytes: Option<u64>,
    /// SHA-256 in lower-case hexadecimals: what the hub gives for large files.
    pub sha256: Option<String>,
    /// What tells this content from another of the same name; safe as part of a file name.
    pub version: Option<String>,
}

/// A connection to a hub.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// Why a download cannot be had: something that another attempt may mend, or not.
enum Failure {
    /// The connection broke or the server stumbled.
    Passing(anyhow::Error),
    /// Asking again would give the same.
    Final(anyhow::Error),
}

impl Hub {
    /// The hub that the environment names, huggingface.co otherwise.
    ///
    /// # Errors
    /// A variable that makes no sense.
    pub fn from_env() -> anyhow::Result<Hub> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            bail!(
                "HF_ENDPOINT is `{}`: it must be an address that begins with https:// or http://",
                endpoint.escape_debug()
            );
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("hawfinch/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if let Some(path) = set("SSL_CERT_FILE") {
            config = config.tls_config(tls(Path::new(&path))?);
        }
        Ok(Hub { agent: config.build().into(), endpoint, token: set("HF_TOKEN").map(|t| t.trim().into()) })
    }

    /// The address of the hub.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of a file, as a person can open it.
    pub fn address(&self, source: &Source) -> String {
        let file: Vec<String> = source.file.split('/').map(percent).collect();
        format!("{}/{}/resolve/main/{}", self.endpoint, source.repo, file.join("/"))
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> anyhow::Error {
        anyhow!("the hub at {} cannot be reached ({why})", self.endpoint)
    }

    /// Sends a request, with the token only to the hub itself.
    fn send(
        &self,
        get: bool,
        url: &str,
        range: Option<u64>,
        redirects: u32,
    ) -> Result<Response<Body>, ureq::Error> {
        let request = if get { self.agent.get(url) } else { self.agent.head(url) };
        let mut request = request
            .config()
            .max_redirects(redirects)
            .max_redirects_will_error(redirects > 0)
            .build()
            .header("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| same_host(url, &self.endpoint)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(from) = range.filter(|f| *f > 0) {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call()
    }

    /// Whether the hub answers at all.
    ///
    /// # Errors
    /// It does not: why.
    pub fn ping(&self) -> anyhow::Result<()> {
        self.send(false, &self.endpoint, None, 5).map_err(|e| self.unreachable(&e)).map(drop)
    }

    /// The files of a repository.
    ///
    /// # Errors
    /// The hub cannot be reached, has no such repository, or answers nonsense.
    pub fn files(&self, repo: &str) -> anyhow::Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let response = self.send(true, &url, None, 5).map_err(|e| self.unreachable(&e))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response.status(), repo, None));
        }
        let text = response.into_body().into_with_config().limit(MAX_LISTING).read_to_string();
        let text = text.map_err(|e| anyhow!("the list of files of {repo} broke off ({e})"))?;
        let list: Listing = serde_json::from_str(&text).map_err(|_| {
            anyhow!("{} answered something that is not a list of files of {repo}", self.endpoint)
        })?;
        Ok(list.siblings.into_iter().map(|s| s.rfilename).collect())
    }

    /// A status that is not a success, as a sentence.
    fn refusal(&self, status: StatusCode, repo: &str, file: Option<&str>) -> anyhow::Error {
        let what = file.map_or_else(|| repo.to_owned(), |f| format!("{f} of {repo}"));
        match status.as_u16() {
            404 => anyhow!("the hub at {} has no {what}: was it renamed or removed?", self.endpoint),
            401 | 403 if self.token.is_some() => {
                anyhow!(
                    "the hub at {} does not let this HF_TOKEN have {what} (status {status}), or has no such thing",
                    self.endpoint
                )
            }
            401 | 403 => anyhow!(
                "the hub at {} asks for a login for {what} (status {status}): set HF_TOKEN to a token of yours; it says the \
                 same of what does not exist",
                self.endpoint
            ),
            429 => anyhow!("the hub at {} asks to slow down (status 429): try again later", self.endpoint),
            _ => anyhow!(
                "the hub at {} failed to give {what} (status {status}): try again later",
                self.endpoint
            ),
        }
    }

    /// Asks what a file is, without fetching it.
    ///
    /// # Errors
    /// The hub cannot be reached or does not give the file.
    pub fn look_up(&self, source: &Source) -> anyhow::Result<Remote> {
        let mut url = self.address(source);
        for _ in 0..REDIRECTS {
            let response = self.send(false, &url, None, 0).map_err(|e| self.unreachable(&e))?;
            let status = response.status();
            let header =
                |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::trim);
            // Large files: the hub itself says what its storage will send.
            let linked = header("x-linked-etag");
            let answered = status.is_success() || (status.is_redirection() && linked.is_some());
            if !answered {
                let Some(next) = header("location").filter(|_| status.is_redirection()) else {
                    return Err(self.refusal(status, &source.repo, Some(&source.file)));
                };
                url = follow(&url, next)?;
                continue;
            }
            let length =
                header("x-linked-size").or_else(|| header("content-length").filter(|_| status.is_success()));
            let etag =
                linked.or_else(|| header("etag")).map(|e| e.trim_start_matches("W/").trim_matches('"'));
            let sha256 = etag.filter(|e| e.len() == 64 && e.bytes().all(|b| b.is_ascii_hexdigit()));
            return Ok(Remote {
                bytes: length.and_then(|s| s.parse().ok()),
                sha256: sha256.map(str::to_ascii_lowercase),
                version: etag.and_then(|e| {
                    let plain = e.chars().filter(char::is_ascii_alphanumeric).take(16).collect::<String>();
                    (!plain.is_empty()).then_some(plain)
                }),
            });
        }
        bail!("the hub at {} redirects in circles for {}", self.endpoint, source.file)
    }

    /// Fetches a file to `target`, going on with what an earlier attempt left beside it. The file appears
    /// under its name only when it is whole and right.
    ///
    /// # Errors
    /// No room, no connection, a hub that refuses, content that is not what it should be.
    pub fn fetch(
        &self,
        source: &Source,
        remote: &Remote,
        target: &Path,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let expected = expected_hash(source, remote)?;
        let part = part_path(target, remote);
        let at = || format!("{} cannot be written", part.display());
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&part).with_context(at)?;
        if file.try_lock().is_err() {
            bail!("{} is being fetched by another hawfinch", target.display());
        }
        let mut have = file.metadata().with_context(at)?.len();
        // Without a version there is no telling whether the rest belongs to the same content.
        if remote.version.is_none() || remote.bytes.is_some_and(|n| have > n) {
            file.set_len(0).with_context(at)?;
            have = 0;
        }
        if let Some(whole) = remote.bytes {
            bar.set_length(whole);
            let dir = target.parent().unwrap_or(Path::new("."));
            room(whole - have, disk::free(dir), target)?;
        }
        let mut hash = Sha256::new();
        if have > 0 {
            bar.set_message("checking what is there of it");
            have = io::copy(&mut bar.wrap_read(&mut file), &mut HashWriter(&mut hash)).with_context(at)?;
            bar.set_message("");
        }
        bar.set_position(have);
        let mut sink = Sink { file, hash, have, bar };
        self.transfer_all(source, remote, &mut sink)?;
        let Sink { file, hash, .. } = sink;
        if let Some(expected) = expected {
            let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            if found != expected {
                std::fs::remove_file(&part).with_context(at)?;
                bail!(
                    "{} arrived with the wrong content (SHA-256 {found}, expected {expected}) and was deleted: fetch it again, \
                     and if it happens again, something between here and {} changes it",
                    source.file,
                    self.endpoint
                );
            }
        }
        file.sync_all().with_context(at)?;
        drop(file);
        std::fs::rename(&part, target).with_context(|| format!("{} cannot be put in place", target.display()))
    }

    /// Attempts until the file is whole.
    fn transfer_all(&self, source: &Source, remote: &Remote, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        let mut failed = 0;
        while remote.bytes != Some(sink.have) {
            let before = sink.have;
            match self.transfer(source, remote, sink) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Passing(e)) => {
                    failed = if sink.have >= before + PROGRESS { 1 } else { failed + 1 };
                    if failed >= ATTEMPTS {
                        let kept = match remote.version.is_some() && sink.have > 0 {
                            true => format!(
                                "; {} of it are kept, and the next attempt goes on from there",
                                size(sink.have)
                            ),
                            false => String::new(),
                        };
                        return Err(anyhow!("{e}{kept}"));
                    }
                    std::thread::sleep(Duration::from_millis(150 << failed));
                }
            }
        }
        Ok(())
    }

    /// One attempt; `Ok` when the body ended where it should.
    fn transfer(&self, source: &Source, remote: &Remote, sink: &mut Sink<'_>) -> Result<(), Failure> {
        use Failure::{Final, Passing};
        let response = self.send(true, &self.address(source), Some(sink.have), 10);
        let response = response.map_err(|e| Passing(self.unreachable(&e)))?;
        let status = response.status();
        match status.as_u16() {
            200 => sink.restart().map_err(Final)?,
            206 => {
                let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
                if range.and_then(range_start) != Some(sink.have) {
                    sink.restart().map_err(Final)?;
                    return Err(Passing(anyhow!(
                        "{} sent another part of {} than asked for",
                        self.endpoint,
                        source.file
                    )));
                }
            }
            // What is there is longer than what the hub has, or whole without our knowing.
            416 if sink.have > 0 => {
                sink.restart().map_err(Final)?;
                return Err(Passing(anyhow!("{} has no more of {}", self.endpoint, source.file)));
            }
            429 | 500..=599 => return Err(Passing(self.refusal(status, &source.repo, Some(&source.file)))),
            _ => return Err(Final(self.refusal(status, &source.repo, Some(&source.file)))),
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0u8; 1 << 18];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Passing(anyhow!("the download of {} broke off ({e})", source.file))),
            };
            if remote.bytes.is_some_and(|whole| sink.have + n as u64 > whole) {
                sink.restart().map_err(Final)?;
                return Err(Passing(anyhow!("{} sent more of {} than it has", self.endpoint, source.file)));
            }
            sink.write(&buffer[..n]).map_err(Final)?;
        }
        match remote.bytes {
            Some(whole) if sink.have < whole => {
                Err(Passing(anyhow!("the download of {} broke off after {}", source.file, size(sink.have))))
            }
            _ => Ok(()),
        }
    }
}

/// Where the bytes go: the file, its hash, the bar.
struct Sink<'a> {
    file: File,
    hash: Sha256,
    /// Bytes written; the file's position.
    have: u64,
    bar: &'a ProgressBar,
}

impl Sink<'_> {
    fn restart(&mut self) -> anyhow::Result<()> {
        let done = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        done.context("the unfinished download cannot be emptied")?;
        self.hash = Sha256::new();
        self.have = 0;
        self.bar.set_position(0);
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(data).context("the download cannot be written to the disk")?;
        self.hash.update(data);
        self.have += data.len() as u64;
        self.bar.set_position(self.have);
        Ok(())
    }
}

/// Feeds a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The hash a file must have: what hawfinch knows, else what the hub says.
fn expected_hash(source: &Source, remote: &Remote) -> anyhow::Result<Option<String>> {
    match (source.sha256, &remote.sha256) {
        (Some(known), Some(said)) if known != said => bail!(
            "the hub has another {} than the one hawfinch knows (SHA-256 {said}, known {known}): if you trust it, fetch it as \
             {}:{}",
            source.file,
            source.repo,
            source.file
        ),
        (Some(known), _) => Ok(Some(known.into())),
        (None, said) => Ok(said.clone()),
    }
}

/// The unfinished file beside `target`: another content of the same name gets another one.
pub fn part_path(target: &Path, remote: &Remote) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    if let Some(version) = &remote.version {
        name.push(".");
        name.push(version);
    }
    name.push(".part");
    target.with_file_name(name)
}

/// Refuses a download that the disk has no room for.
fn room(missing: u64, free: Option<u64>, target: &Path) -> anyhow::Result<()> {
    match free {
        Some(free) if free < missing.saturating_add(SPARE) => bail!(
            "there is no room for {}: {} are still to come and the disk has {} free; set HAWFINCH_MODELS to a folder on \
             another disk or make room",
            target.display(),
            size(missing),
            size(free)
        ),
        _ => Ok(()),
    }
}

/// `bytes 5-9/10` → 5.
fn range_start(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Percent-encodes one part of a path.
fn percent(part: &str) -> String {
    part.bytes().fold(String::new(), |mut out, b| {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b.into()),
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}

/// `scheme://host:port` of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |n| n + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |n| start + n);
    &url[..end]
}

fn same_host(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

/// Where a redirect from `url` leads.
fn follow(url: &str, location: &str) -> anyhow::Result<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        Ok(location.into())
    } else if location.starts_with('/') && !location.starts_with("//") {
        Ok(format!("{}{location}", origin(url)))
    } else {
        bail!("{} redirects to `{}`, which is no address", origin(url), location.escape_debug())
    }
}

/// Certificates of a file in place of the built-in ones.
fn tls(path: &Path) -> anyhow::Result<ureq::tls::TlsConfig> {
    let text =
        std::fs::read(path).with_context(|| format!("SSL_CERT_FILE: {} cannot be read", path.display()))?;
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(&text) {
        if let Ok(ureq::tls::PemItem::Certificate(c)) = item {
            certificates.push(c);
        }
    }
    if certificates.is_empty() {
        bail!("SSL_CERT_FILE: {} holds no certificate", path.display());
    }
    let roots = ureq::tls::RootCerts::Specific(std::sync::Arc::new(certificates));
    Ok(ureq::tls::TlsConfig::builder().root_certs(roots).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(percent("Eng98%-Other2% ü.pth"), "Eng98%25-Other2%25%20%C3%BC.pth");
        assert_eq!(origin("https://h:1/x/y?z"), "https://h:1");
        assert_eq!(origin("http://h?x"), "http://h");
        assert_eq!(follow("http://h/a", "/b").unwrap(), "http://h/b");
        assert_eq!(follow("http://h/a", "https://cdn/c").unwrap(), "https://cdn/c");
        assert!(follow("http://h/a", "//evil/x").is_err() && follow("http://h/a", "file:///etc").is_err());
        assert!(same_host("https://H/x", "https://h") && !same_host("https://h.evil/x", "https://h"));
        assert!(!same_host("http://h/x", "https://h"), "a token is never sent in the clear after https");
        assert_eq!(
            (range_start("bytes 5-9/10"), range_start("bytes */10"), range_start("")),
            (Some(5), None, None)
        );
    }

    #[test]
    fn a_full_disk_is_seen_before_anything_is_fetched() {
        let target = Path::new("/m/x.pth");
        assert!(room(10, None, target).is_ok());
        assert!(room(10, Some(SPARE + 10), target).is_ok());
        let e = room(5_000_000_000, Some(SPARE + 10), target).unwrap_err().to_string();
        assert!(e.contains("5.00 GB are still to come and the disk has 67.11 MB free"), "{e}");
        assert!(room(u64::MAX, Some(u64::MAX - 1), target).is_err());
    }

    #[test]
    fn another_content_gets_another_unfinished_file() {
        let part = |v: Option<&str>| {
            part_path(Path::new("/m/x.pth"), &Remote { version: v.map(Into::into), ..Remote::default() })
        };
        assert_eq!(part(Some("abc")), Path::new("/m/x.pth.abc.part"));
        assert_eq!(part(None), Path::new("/m/x.pth.part"));
    }

    #[test]
    fn the_list_outranks_the_hub() {
        let known = "a".repeat(64);
        let source = Source {
            repo: "o/r".into(),
            file: "f".into(),
            sha256: Some(Box::leak(known.clone().into_boxed_str())),
        };
        let said = |s: &str| Remote { sha256: Some(s.into()), ..Remote::default() };
        assert_eq!(expected_hash(&source, &Remote::default()).unwrap(), Some(known.clone()));
        assert_eq!(expected_hash(&source, &said(&known)).unwrap(), Some(known));
        assert!(expected_hash(&source, &said(&"b".repeat(64))).unwrap_err().to_string().contains("o/r:f"));
        assert_eq!(expected_hash(&Source { sha256: None, ..source }, &said("c")).unwrap(), Some("c".into()));
    }
}
