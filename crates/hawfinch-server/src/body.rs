//! Request bodies: JSON of a known shape, or one sentence that says where it is not.

use crate::error::{ApiError, ApiResult};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Bodies from so many bytes on are read on a thread of their own.
const LARGE: usize = 256 << 10;

/// A body of JSON.
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        json_type(request.headers())?;
        let bytes = read(request, state).await?;
        if bytes.len() < LARGE {
            return parse(&bytes).map(Body);
        }
        // Others are served meanwhile.
        tokio::task::block_in_place(|| parse(&bytes)).map(Body)
    }
}

/// The whole body, within the limits of size and time that the router sets.
pub async fn read<S: Send + Sync>(request: Request, state: &S) -> ApiResult<Bytes> {
    match Bytes::from_request(request, state).await {
        Ok(bytes) => Ok(bytes),
        Err(BytesRejection::FailedToBufferBody(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(crate::app::too_large())
        }
        Err(e) => Err(ApiError::bad(format!("the request's body did not arrive whole: {e}"))),
    }
}

/// Browsers send other sites' forms with other types: JSON must say that it is.
fn json_type(headers: &HeaderMap) -> ApiResult<()> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    let message = "send JSON, with the header `Content-Type: application/json`";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// JSON of a known shape.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    if let Err(e) = std::str::from_utf8(bytes) {
        return Err(ApiError::bad(format!(
            "the request's body is not UTF-8: byte {} is wrong",
            e.valid_up_to()
        )));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let kind = if e.is_data() { "is not what this route takes" } else { "is no JSON" };
        ApiError::bad(format!("the request's body {kind}: {e}"))
    })
}

/// Runs a handler with a body each part of which must arrive within `time`, all within `whole`: one that trickles in holds a
/// connection, nothing else.
pub async fn within<F: Future<Output = Response>>(
    time: Duration,
    whole: Duration,
    request: Request,
    handler: impl FnOnce(Request) -> F,
) -> Response {
    let (parts, body) = request.into_parts();
    let late = tokio::time::Instant::now() + whole;
    let body = body.into_data_stream();
    let timed = futures_util::stream::unfold((body, false), move |(mut body, over)| async move {
        if over {
            return None;
        }
        let late = late.min(tokio::time::Instant::now() + time);
        match tokio::time::timeout_at(late, body.next()).await {
            Ok(Some(part)) => Some((part.map_err(|e| e.into_inner()), (body, false))),
            Ok(None) => None,
            Err(_) => Some((Err("it took too long".into()), (body, true))),
        }
    });
    handler(Request::from_parts(parts, axum::body::Body::from_stream(timed))).await
}
