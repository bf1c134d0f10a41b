//! The chat page and the page of documentation, built in.

use crate::error::ApiError;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Nothing but what this server serves runs in the page.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal)*) => {
        /// Name and text of each file.
        const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../page/", $name)))),*];
    };
}

files!(
    "api.js" "app.js" "chat.js" "docs.css" "docs.html" "docs.js" "dom.js" "icon.svg" "index.html" "inline.js" "markdown.js"
    "parameters.js" "settings.js" "sidebar.js" "state.js" "store.js" "style.css" "theme.js" "thread.css" "thread.js" "tree.js"
);

/// Whether a path is a file of the page, which holds nothing that needs a key.
pub fn is_public(path: &str) -> bool {
    path == "/" || path == "/docs" || FILES.iter().any(|(name, _)| path.strip_prefix('/') == Some(name))
}

fn file(name: &str) -> Option<Response> {
    let (_, text) = FILES.iter().find(|(n, _)| *n == name)?;
    let kind = match name.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        _ => "image/svg+xml",
    };
    let mut response = (*text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}

/// The chat.
pub async fn index() -> Response {
    file("index.html").unwrap_or_default()
}

/// The documentation.
pub async fn docs() -> Response {
    file("docs.html").unwrap_or_default()
}

/// A file of theirs.
pub async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let shown: String = name.chars().take(100).collect();
    file(&name).ok_or_else(|| {
        ApiError::missing(format!("there is nothing at `/{}`", shown.escape_debug()), "unknown_url")
    })
}
