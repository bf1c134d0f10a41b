//! The application: its routes, who may use them, and what is counted.

use crate::api;
use crate::body;
use crate::error::{ApiError, ApiResult};
use crate::hosted::Models;
use crate::page;
use crate::settings::Settings;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;
use hawfinch_engine::schedule::Histogram;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// What all requests share.
pub struct App {
    /// What the server was started with.
    pub settings: Settings,
    /// Its models.
    pub models: Models,
    /// Replies that later requests of `/v1/responses` may go on from.
    pub responses: api::responses::Kept,
    /// Places of requests for embeddings that compute at once.
    pub embedding: Arc<Semaphore>,
    /// Of those that wait for one.
    pub embedding_queue: Semaphore,
    /// Places of states that are taken in at once: each is in memory.
    pub importing: Semaphore,
    /// What was answered.
    pub http: HttpCounts,
    /// When it started.
    pub started: Instant,
    /// Told of what happens, in one line.
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

/// Counts of what was answered.
#[derive(Debug, Default)]
pub struct HttpCounts {
    /// By the first digit of their status.
    pub by_class: [AtomicU64; 6],
    /// Until the head of the answer.
    pub time: Histogram,
    /// Connections open now.
    pub connections: AtomicUsize,
}

/// Requests for embeddings that compute at once.
const EMBEDDING: usize = 2;
/// States that are taken in at once: some, since a body may trickle in.
const IMPORTING: usize = 16;

/// Shared by all handlers.
pub type Shared = Arc<App>;

/// Where a connection comes from, put into its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Who asks, for fairness between clients.
#[derive(Debug, Clone)]
pub struct Client(pub Arc<str>);

/// A client, and a user of it.
pub type Who = (Arc<str>, Arc<str>);

impl Client {
    /// With the `user` of a request: users of one client take turns, too.
    pub fn with_user(&self, user: Option<&str>) -> Who {
        let user: String = user.unwrap_or_default().chars().take(64).collect();
        (self.0.clone(), user.into())
    }
}

impl App {
    /// That begins now.
    pub fn new(settings: Settings, models: Models, log: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let waiting = models.limits().queue.max(1);
        Self {
            settings,
            models,
            responses: Default::default(),
            embedding: Arc::new(Semaphore::new(EMBEDDING)),
            embedding_queue: Semaphore::new(waiting),
            importing: Semaphore::new(IMPORTING),
            http: Default::default(),
            started: Instant::now(),
            log: Box::new(log),
        }
    }

    /// The latest moment that a request that came now may end.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout
    }

    /// Logs the text of a request, where that is wished.
    pub fn log_text(&self, text: impl FnOnce() -> String) {
        if self.settings.log_texts {
            (self.log)(&format!("text: {}", text().escape_debug()));
        }
    }

    /// Tokens of a reply: what was asked for within what is allowed.
    pub fn max_tokens(&self, asked: Option<u64>) -> usize {
        asked
            .map_or(self.settings.max_tokens, |n| usize::try_from(n).unwrap_or(usize::MAX))
            .min(self.settings.max_tokens)
    }
}

/// Where states are taken in, and how large they may be.
const IMPORT: &str = "/v1/states/import";
const MAX_STATE: usize = 512 << 20;

/// All routes.
pub fn router(app: Shared) -> Router {
    let limit = app.settings.max_body;
    Router::new()
        .route("/v1/models", get(api::models::list))
        .route("/v1/models/load", post(api::models::load))
        .route("/v1/models/unload", post(api::models::unload))
        .route("/v1/models/{*id}", get(api::models::get))
        .route("/v1/completions", post(api::completions::complete))
        .route("/v1/chat/completions", post(api::chat::chat))
        .route("/v1/responses", post(api::responses::create))
        .route("/v1/responses/{id}", get(api::responses::get).delete(api::responses::delete))
        .route("/v1/messages", post(api::messages::create))
        .route("/v1/messages/count_tokens", post(api::messages::count))
        .route("/v1/embeddings", post(api::embeddings::embed))
        .route("/v1/rank", post(api::rank::rank))
        .route("/v1/states", get(api::states::list).post(api::states::create))
        .route(IMPORT, post(api::states::import).layer(DefaultBodyLimit::max(MAX_STATE)))
        .route("/v1/states/{id}", get(api::states::get).delete(api::states::delete))
        .route("/v1/states/{id}/content", get(api::states::export))
        .route("/tokenize", post(api::tokens::tokenize))
        .route("/detokenize", post(api::tokens::detokenize))
        .route("/tokenizer_info", get(api::tokens::info))
        .route("/health", get(api::health::health))
        .route("/metrics", get(api::health::metrics))
        .route("/openapi.json", get(api::openapi::document))
        .route("/docs", get(page::docs))
        .route("/", get(page::index))
        .route("/{file}", get(page::asset))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(limit))
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

async fn nothing_here(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    ApiError::missing(
        format!("there is nothing at `{}`: /openapi.json lists what is", path.escape_debug()),
        "unknown_url",
    )
}

async fn wrong_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("`{}` is not answered to {}", path.escape_debug(), request.method());
    ApiError { code: Some("method_not_allowed"), ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message) }
}

/// What stands before every route: who asks, from where, and with which key.
async fn guard(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let anthropic = request.headers().contains_key("anthropic-version")
        || request.uri().path().starts_with("/v1/messages");
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let peer = request.extensions().get::<Peer>().copied();
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let answer = |e: ApiError| if anthropic { e.response(e.anthropic()) } else { e.into_response() };
    let mut response = match admit(&app, &mut request, peer) {
        Ok(()) if method == Method::OPTIONS => preflight(asked),
        Ok(()) => {
            let length: Option<u64> =
                request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
            let time = app.settings.io_timeout;
            // States are large, and take their time.
            let (limit, whole) = match path.as_str() {
                IMPORT => (MAX_STATE, 20 * time),
                _ => (app.settings.max_body, time),
            };
            match length {
                // Said before the body is sent, where the client waits for it.
                Some(n) if n > limit as u64 => answer(too_large()),
                _ => {
                    let run = body::within(time, whole, request, |r| next.run(r));
                    match AssertUnwindSafe(run).catch_unwind().await {
                        Ok(response) => shaped(response, answer).await,
                        Err(_) => answer(ApiError::internal("the request met a fault of this program")),
                    }
                }
            }
        }
        Err(e) => answer(e),
    };
    if let Some(origin) = origin.filter(|o| app.settings.origins.iter().any(|a| a == "*" || o == a.as_str()))
    {
        allow(response.headers_mut(), origin);
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let class = usize::from(response.status().as_u16() / 100).min(5);
    app.http.by_class[class].fetch_add(1, Ordering::Relaxed);
    app.http.time.record(began.elapsed());
    let who = peer.map_or_else(|| "-".to_owned(), |p| p.0.ip().to_string());
    let path: String = path.chars().take(100).collect();
    let ms = began.elapsed().as_millis();
    (app.log)(&format!("{who} {method} {} {} {ms} ms", path.escape_debug(), response.status().as_u16()));
    response
}

/// Errors that come from below, as plain text, in the shape that the client knows.
async fn shaped(response: Response, answer: impl FnOnce(ApiError) -> Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !(status.is_client_error() || status.is_server_error()) || !kind.starts_with("text/plain") {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    answer(ApiError::new(status, String::from_utf8_lossy(&text).replace('\n', " ")))
}

/// 413.
pub fn too_large() -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is larger than this server takes")
}

fn admit(app: &App, request: &mut Request, peer: Option<Peer>) -> ApiResult<()> {
    known_host(app, request.headers(), request.uri().host())?;
    own_site(app, request.headers())?;
    let public = request.method() == Method::OPTIONS || page::is_public(request.uri().path());
    let key = if public { None } else { key(app, request.headers())? };
    let ip = peer.map(|p| p.0.ip().to_string()).unwrap_or_default();
    let client = match key {
        // Several keys are several clients, wherever they come from.
        Some(key) if app.settings.keys.len() > 1 => format!("key {key}"),
        _ => ip,
    };
    request.extensions_mut().insert(Client(client.into()));
    Ok(())
}

/// The number of the key that a request carries; `None` where none is needed.
fn key(app: &App, headers: &HeaderMap) -> ApiResult<Option<usize>> {
    if app.settings.keys.is_empty() {
        return Ok(None);
    }
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization")
        .and_then(|v| v.split_once(' '))
        .filter(|(s, _)| s.eq_ignore_ascii_case("bearer"));
    let given = bearer.map(|(_, k)| k.trim()).or_else(|| text("x-api-key")).unwrap_or_default();
    let mut found = None;
    // All of them, each in constant time.
    for (i, key) in app.settings.keys.iter().enumerate() {
        if bool::from(key.as_bytes().ct_eq(given.as_bytes())) {
            found = Some(i);
        }
    }
    match found {
        Some(i) => Ok(Some(i)),
        None => {
            let message = if given.is_empty() {
                "this server needs a key: send the header `Authorization: Bearer KEY`"
            } else {
                "the key is not one of this server's"
            };
            Err(ApiError {
                code: Some("invalid_api_key"),
                ..ApiError::new(StatusCode::UNAUTHORIZED, message)
            })
        }
    }
}

/// A page of another site cannot use a server on this machine under a name of its own (DNS rebinding).
fn known_host(app: &App, headers: &HeaderMap, in_uri: Option<&str>) -> ApiResult<()> {
    if !app.settings.address.ip().is_loopback() && app.settings.hosts.is_empty() {
        return Ok(());
    }
    let given = headers.get(header::HOST).and_then(|v| v.to_str().ok()).or(in_uri).unwrap_or_default();
    let name = without_port(given);
    // A name in the form of an address is no name that a foreign site could have taken.
    let own = name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback() || !app.settings.address.ip().is_loopback())
        || app.settings.hosts.iter().any(|h| h.eq_ignore_ascii_case(name));
    if own {
        return Ok(());
    }
    let shown: String = name.chars().take(100).collect();
    let message =
        format!("this server is not `{}`: --host-name lets it answer to that name", shown.escape_debug());
    Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, message))
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    }
}

/// Pages of other sites may use it only where that is allowed.
fn own_site(app: &App, headers: &HeaderMap) -> ApiResult<()> {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|v| v.to_str().ok()) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, site)| site.eq_ignore_ascii_case(host));
    if same || app.settings.origins.iter().any(|a| a == "*" || a == origin) {
        return Ok(());
    }
    let shown: String = origin.chars().take(100).collect();
    let message = format!("pages of `{}` may not use this server: --cors allows it", shown.escape_debug());
    Err(ApiError::new(StatusCode::FORBIDDEN, message))
}

/// The answer to a browser that asks whether a site may send these headers: a site that is allowed may send any.
fn preflight(asked: Option<HeaderValue>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    let usual = HeaderValue::from_static("authorization, content-type, x-api-key");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(usual));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
}
