//! Connections: accepted, wrapped in TLS, limited in number and time, ended with the server.

use crate::app::{Peer, Shared, router};
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

/// Bytes of a request's head at most, and headers in it.
const HEAD: usize = 64 << 10;
const HEADERS: usize = 100;

/// Listens at the settings' address.
///
/// # Errors
/// In words: the address is taken or not this machine's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use: another program listens there, give another --port")
        }
        _ => format!("cannot listen at {address}: {e}"),
    })
}

/// Reads a certificate chain and its key.
///
/// # Errors
/// In words: a file cannot be read or holds something else, or they do not belong together.
pub fn tls(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let wrong = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|e| wrong(certificate, &e))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|e| wrong(certificate, &e))?;
    if chain.is_empty() {
        return Err(wrong(certificate, &"there is no certificate in it (PEM is wanted)"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|c| c.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|e| format!("the certificate and the key cannot be used: {e}"))?;
    let mut config = config;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Answers until `stop` says so, then lets what runs end within the settings' grace.
pub async fn serve(
    app: Shared,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    mut stop: watch::Receiver<bool>,
) {
    let routes = router(app.clone());
    let places = Arc::new(Semaphore::new(app.settings.max_connections));
    let mut full_since = false;
    loop {
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                if !std::mem::replace(&mut full_since, true) {
                    (app.log)("all connections are taken: further clients wait");
                }
                tokio::select! {
                    place = places.clone().acquire_owned() => match place { Ok(place) => place, Err(_) => break },
                    _ = stop.changed() => break,
                }
            }
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, mostly: others will close theirs.
                (app.log)(&format!("a connection could not be accepted: {e}"));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        full_since = false;
        let (app, routes, tls, stop) = (app.clone(), routes.clone(), tls.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let _open = Open::new(&app);
            connection(&app, routes, tls, stream, peer, stop).await;
        });
    }
    drop(listener);
    // Those that end give their places back.
    let all = u32::try_from(app.settings.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(app.settings.grace + Duration::from_secs(2), places.acquire_many(all)).await;
}

/// Counts a connection while it is open.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(app: &'a Shared) -> Self {
        app.http.connections.fetch_add(1, Ordering::Relaxed);
        Open(app)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.http.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(
    app: &Shared,
    routes: Router,
    tls: Option<TlsAcceptor>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    // A peer that has gone without a word is noticed within minutes.
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20));
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&alive);
    let time = app.settings.io_timeout;
    let stream = Stalling::new(stream, time);
    match tls {
        None => http(time, routes, stream, peer, stop).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(time, tls.accept(stream)).await {
                http(time, routes, stream, peer, stop).await;
            }
        }
    }
}

async fn http(
    time: Duration,
    routes: Router,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    peer: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Peer(peer));
        routes.clone().call(request)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(time).max_buf_size(HEAD).max_headers(HEADERS);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            changed = stop.changed() => {
                // What is under way is answered; then it closes.
                connection.as_mut().graceful_shutdown();
                if changed.is_err() {
                    let _ = connection.as_mut().await;
                    return;
                }
            }
        }
    }
}

/// A stream whose writes fail when nothing has gone out for some time: who does not read holds no connection.
struct Stalling<S> {
    inner: S,
    time: Duration,
    /// Runs while a write waits.
    since: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(inner: S, time: Duration) -> Self {
        // A client that reads slowly, but reads, is waited for; one that does not read at all is let go of after this.
        Self { inner, time: time * 4, since: None }
    }

    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.since = None;
            return result;
        }
        let until = Instant::now() + self.time;
        let since = self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        match since.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watched(cx, result)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.watched(cx, result)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
