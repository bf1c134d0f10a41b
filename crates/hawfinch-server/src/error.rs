//! Errors as OpenAI's API shapes them, and Anthropic's where their client asks.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// An error of a request: what is wrong, and with what.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// One sentence.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// Result of a request.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// Of any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400 about a field.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::bad(message) }
    }

    /// 400 about a field that asks for what is not here.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("unsupported_parameter"), ..Self::bad(message) }
    }

    /// 404.
    pub fn missing(message: impl Into<String>, code: &'static str) -> Self {
        Self { code: Some(code), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503: the server is closing.
    pub fn closing() -> Self {
        let message = "the server is shutting down: send the request again to one that runs";
        Self {
            retry_after: Some(Duration::from_secs(5)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// OpenAI's `type`: there a key or a model that is wrong differs by the `code` alone.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": …}` as OpenAI writes it.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }

    /// `{"type": "error", …}` as Anthropic writes it.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            s if s.is_server_error() => "api_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            _ => self.kind(),
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    /// The response with this body.
    pub fn response(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(self.body())
    }
}

impl From<hawfinch_engine::Error> for ApiError {
    /// What the engine refuses is the request's fault, but for failures of the model.
    fn from(e: hawfinch_engine::Error) -> Self {
        use hawfinch_engine::Error as E;
        let message = e.to_string();
        match e {
            E::Setting { setting, .. } => Self::field(setting, message),
            E::EmptyStop { .. } => Self::field("stop", message),
            E::TokenRange { .. } => Self::field("prompt", message),
            E::Grammar { .. } => {
                Self { code: Some("invalid_grammar"), ..Self::field("response_format", message) }
            }
            E::TemplateRender { .. } => Self::field("messages", message),
            E::UnknownTemplate { .. } => Self::field("template", message),
            E::NothingLeft { .. } => Self::field("logit_bias", message),
            E::TimedOut => Self {
                retry_after: Some(Duration::from_secs(5)),
                code: Some("timeout"),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            },
            E::Stopping => Self {
                retry_after: Some(Duration::from_secs(5)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            },
            _ => Self::internal(message),
        }
    }
}

impl From<hawfinch_engine::schedule::Refused> for ApiError {
    fn from(refused: hawfinch_engine::schedule::Refused) -> Self {
        use hawfinch_engine::schedule::Refused;
        match refused {
            Refused::Wrong(e) => e.into(),
            Refused::Closing => Self::closing(),
            Refused::Full(wait) => Self {
                retry_after: Some(wait),
                code: Some("queue_full"),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "too many requests wait already: send it again after the time that Retry-After says",
                )
            },
        }
    }
}
