//! Reading a request's body: bounded in size and time.

use crate::{app::App, error::ApiError, json::fields::Fields};
use axum::{
    body::Body,
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hearth_proto::error::ErrorCode;
use http::{StatusCode, header};
use std::time::Duration;

/// A body must have arrived within this. Slow senders hold memory and one of the request slots.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A body over the limit is still read this many times the limit (and thrown away), so that a client that sends
/// everything before it looks at the answer sees our 413 and not a broken connection.
const DRAIN_FACTOR: usize = 4;

/// A whole request body within the limits. The content type is not looked at: clients of the compatible API send
/// anything.
pub(crate) struct JsonBody(Bytes);

impl JsonBody {
    /// The body as it came.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The body's JSON object.
    pub(crate) fn fields(&self) -> Result<Fields, ApiError> {
        Fields::parse(&self.0)
    }

    /// The body's JSON object, or one without fields when there is no body.
    pub(crate) fn fields_or_none(&self) -> Result<Fields, ApiError> {
        if self.0.is_empty() { Fields::parse(b"{}") } else { self.fields() }
    }
}

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let limit = app.config.max_body_bytes;
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<usize>().ok());
        if announced.is_some_and(|announced| announced > limit.saturating_mul(DRAIN_FACTOR)) {
            return Err(too_large(limit));
        }
        tokio::time::timeout(BODY_TIMEOUT, read(request.into_body(), limit)).await.unwrap_or_else(|_| {
            Err(ApiError::invalid(format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()))
                .with_status(StatusCode::REQUEST_TIMEOUT))
        })
    }
}

async fn read(body: Body, limit: usize) -> Result<JsonBody, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    let mut size: usize = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::invalid("the body ended early"))?;
        size = size.saturating_add(chunk.len());
        if size > limit {
            bytes.clear();
            if size > limit.saturating_mul(DRAIN_FACTOR) {
                break;
            }
        } else {
            bytes.extend_from_slice(&chunk);
        }
    }
    if size > limit { Err(too_large(limit)) } else { Ok(JsonBody(bytes.freeze())) }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(ErrorCode::TooLarge, format!("the body is over {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_the_limit_passes_and_one_byte_more_does_not() {
        assert_eq!(read(Body::from("12345678"), 8).await.map(|body| body.0.len()).ok(), Some(8));
        for size in [9, 32, 33, 1000] {
            let error = read(Body::from("x".repeat(size)), 8).await.err().expect("too large");
            assert_eq!(error.code(), ErrorCode::TooLarge);
        }
    }
}
