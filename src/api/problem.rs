//! Errors on the wire: `application/problem+json` (RFC 9457) with our code, the sentence and the hint.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Kind};
use crate::link::Problem;

/// An [`Error`] as an answer. What is ours goes to the log with its whole chain; the caller sees the sentence.
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            Kind::Input => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Refused => StatusCode::FORBIDDEN,
            Kind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Config | Kind::Internal => {
                tracing::error!(error = ?self.0, "a request failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let mut problem = Problem::from(&self.0);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            problem.causes.clear();
        }
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}
