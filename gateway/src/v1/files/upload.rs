//! Uploads: passed on to the guest as they arrive, in bounded memory. A file is whole, or not there.
//!
//! Three forms, told apart by the content type: `multipart/form-data` with the part `path` before the part `file` (the
//! compatible one), JSON with `path` and `content` or `content_base64`, and anything else as the bytes themselves with
//! `?path=`, `?user=` and `?mode=`.

use super::{mode, path};
use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::{body::JsonBody, fields::Fields, query::Query, rules},
    middleware::Scope,
    ops::{files::Upload, guest::Place},
    v1::CapsulePath,
};
use axum::{
    Extension,
    body::Body,
    extract::{FromRequest, Multipart, Request, State, multipart::Field},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hearth_proto::{error::ErrorCode, wire::files::WriteStart};
use http::{StatusCode, header};
use std::time::Duration;
use tokio::time::timeout;

/// As in the compatible API, for the form that is not meant for large files.
const SMALL_BYTES_MAX: u64 = 100 << 20;
/// A client that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Of the parts that are not the file.
const PART_BYTES_MAX: usize = 8 << 10;
/// What is still read of a body after a refusal, so that a client that sends everything first sees the answer.
const DRAIN_BYTES: u64 = 64 << 20;
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Everything that an upload needs beside its body.
struct Target {
    app: App,
    place: Place,
    /// 0: no limit.
    limit: u64,
}

/// Writes a file of at most 100 MiB.
pub(crate) async fn write(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let place = Place::of(&app, &scope, caller, capsule).await?;
    receive(Target { app, place, limit: SMALL_BYTES_MAX }, query, request).await
}

/// Writes a file of any size.
pub(crate) async fn write_stream(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let place = Place::of(&app, &scope, caller, capsule).await?;
    receive(Target { app, place, limit: 0 }, query, request).await
}

async fn receive(target: Target, query: Query, request: Request) -> Result<StatusCode, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().to_ascii_lowercase();
    if kind.starts_with("multipart/form-data") {
        multipart(&target, request).await
    } else if kind.starts_with("application/json") {
        json(&target, request).await
    } else {
        plain(&target, query, request.into_body()).await
    }
}

async fn json(target: &Target, request: Request) -> Result<StatusCode, ApiError> {
    let body = JsonBody::from_request(request, &target.app).await?;
    let mut fields = body.fields()?;
    let start = start(&mut fields)?;
    let content = match (fields.text("content")?, fields.text("content_base64")?) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(coded)) => {
            STANDARD.decode(coded).map_err(|_| fields.fault("content_base64", "not valid base64"))?
        }
        (None, None) => return Err(fields.fault("content", "required, or content_base64")),
        (Some(_), Some(_)) => return Err(fields.fault("content_base64", "not together with content")),
    };
    let whole = futures::stream::once(std::future::ready(Ok::<_, ApiError>(Bytes::from(content))));
    pass_on(target, start, whole).await?.finish().await.map(|_| StatusCode::NO_CONTENT)
}

async fn plain(target: &Target, mut query: Query, body: Body) -> Result<StatusCode, ApiError> {
    let mut fields = Fields::parse(b"{}")?;
    for name in ["path", "path_base64", "user", "mode"] {
        if let Some(text) = query.text(name) {
            fields.set(name, &text);
        }
    }
    let start = start(&mut fields)?;
    let mut bytes = body.into_data_stream();
    match pass_on(target, start, (&mut bytes).map(|piece| piece.map_err(|_| ended_early()))).await {
        Ok(upload) => upload.finish().await.map(|_| StatusCode::NO_CONTENT),
        Err(error) => {
            drain(bytes).await;
            Err(error)
        }
    }
}

async fn multipart(target: &Target, request: Request) -> Result<StatusCode, ApiError> {
    let mut parts = Multipart::from_request(request, &target.app)
        .await
        .map_err(|error| ApiError::invalid(format!("the body is not valid multipart: {error}")))?;
    let mut fields = Fields::parse(b"{}")?;
    loop {
        let Some(mut part) = next_part(&mut parts).await? else {
            return Err(ApiError::invalid("file: required, as a part of multipart/form-data after path"));
        };
        let name = part.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "file" => {
                let start = start(&mut fields).map_err(|error| {
                    ApiError::invalid(format!("{error}; the part `path` must come before the part `file`"))
                })?;
                let pieces = (&mut part).map(|piece| piece.map_err(|_| ended_early()));
                let sent = pass_on(target, start, pieces).await;
                drop(part);
                return match sent {
                    // The end of the body says that the file is whole.
                    Ok(upload) => {
                        while next_part(&mut parts).await?.is_some() {}
                        upload.finish().await.map(|_| StatusCode::NO_CONTENT)
                    }
                    Err(error) => {
                        drain_parts(parts).await;
                        Err(error)
                    }
                };
            }
            "path" | "path_base64" | "user" | "mode" => {
                let text = small_part(&mut part, &name).await?;
                fields.set(&name, &text);
            }
            _ => drop(small_part(&mut part, &name).await?),
        }
    }
}

async fn next_part(parts: &mut Multipart) -> Result<Option<Field<'_>>, ApiError> {
    match timeout(SILENCE, parts.next_field()).await {
        Ok(part) => part.map_err(|_| ended_early()),
        Err(_) => Err(silent()),
    }
}

/// The text of a part that is not the file.
async fn small_part(part: &mut Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(piece) = timeout(SILENCE, part.next()).await.map_err(|_| silent())? {
        let piece = piece.map_err(|_| ended_early())?;
        text.extend_from_slice(&piece);
        if text.len() > PART_BYTES_MAX {
            let name = crate::json::fields::shown(name);
            return Err(ApiError::invalid(format!("{name}: over {PART_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(text)
        .map_err(|_| ApiError::invalid(format!("{name}: not valid UTF-8; use path_base64")))
}

/// Passes bytes on as they come. What it returns is whole when the caller knows that nothing follows.
async fn pass_on(
    target: &Target,
    start: WriteStart,
    bytes: impl Stream<Item = Result<Bytes, ApiError>>,
) -> Result<Upload, ApiError> {
    let mut upload = Upload::begin(&target.app, target.place.clone(), start);
    let mut bytes = std::pin::pin!(bytes);
    let mut size = 0;
    while let Some(piece) = timeout(SILENCE, bytes.next()).await.map_err(|_| silent())? {
        let piece = piece?;
        size += piece.len() as u64;
        check_size(size, target.limit)?;
        if !upload.push(piece).await {
            upload.finish().await?;
            return Err(refused_silently());
        }
    }
    Ok(upload)
}

/// Where to write, and as whom.
fn start(fields: &mut Fields) -> Result<WriteStart, ApiError> {
    Ok(WriteStart { path: path(fields, "path")?, user: rules::user(fields)?, mode: mode(fields)? })
}

fn check_size(size: u64, limit: u64) -> Result<(), ApiError> {
    if limit == 0 || size <= limit {
        return Ok(());
    }
    let message = format!("file: over {limit} bytes; use files/stream/write");
    Err(ApiError::new(ErrorCode::TooLarge, message))
}

fn ended_early() -> ApiError {
    ApiError::invalid("the body ended early; nothing was written")
}

fn silent() -> ApiError {
    ApiError::invalid(format!("nothing arrived for {} s; nothing was written", SILENCE.as_secs()))
        .with_status(StatusCode::REQUEST_TIMEOUT)
}

fn refused_silently() -> ApiError {
    ApiError::new(ErrorCode::AgentError, "the capsule stopped taking the file")
}

async fn drain(bytes: impl Stream<Item = Result<Bytes, axum::Error>>) {
    let mut bytes = std::pin::pin!(bytes);
    let mut left = DRAIN_BYTES;
    let rest = async {
        while let Some(Ok(piece)) = bytes.next().await {
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    let _late = timeout(DRAIN_DEADLINE, rest).await;
}

async fn drain_parts(mut parts: Multipart) {
    let mut left = DRAIN_BYTES;
    let rest = async {
        while let Ok(Some(mut part)) = parts.next_field().await {
            while let Ok(Some(piece)) = part.chunk().await {
                left = left.saturating_sub(piece.len() as u64);
                if left == 0 {
                    return;
                }
            }
        }
    };
    let _late = timeout(DRAIN_DEADLINE, rest).await;
}
