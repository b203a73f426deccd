//! `/v1/capsules/{id}/files/…`: the compatible routes, and `stat`, `move` and `chmod` beside them. All are POST with a
//! JSON body; uploads are in `upload`.
//!
//! Paths that are not UTF-8 are read and sent as base64 in fields whose names end in `_base64`.

pub(crate) mod upload;

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::{body::JsonBody, fields::Fields, rules},
    middleware::Scope,
    ops::{
        files::{self, shown_path},
        guest::Place,
    },
    v1::CapsulePath,
};
use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::StreamExt;
use hearth_proto::wire::files::{
    ChangeRequest, Entry, EntryType, ListRequest, MakeDirRequest, MoveRequest, ReadRequest, RemoveRequest,
    StatRequest,
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

const DEPTH_MAX: u64 = 64;
/// As many bytes as the guest takes in a path.
const PATH_BYTES_MAX: usize = 4095;

/// A file, a directory or something else.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct EntryBody {
    name: String,
    path: String,
    /// `file`, `directory` or `symlink`: a strict enum in clients. Sockets, pipes and devices are `file` too, and their
    /// `permissions` tell. A link has its target's type; one without a target is a `symlink`.
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    /// Seconds since the epoch.
    modified_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    /// What it takes on disk.
    disk_bytes: u64,
    /// Only of a path that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
}

impl From<Entry> for EntryBody {
    fn from(entry: Entry) -> Self {
        let odd = std::str::from_utf8(&entry.path).is_err();
        Self {
            kind: match entry.r#type() {
                EntryType::Directory => "directory",
                EntryType::Symlink => "symlink",
                EntryType::File | EntryType::Other | EntryType::Unspecified => "file",
            },
            name: shown_path(&entry.name),
            path: shown_path(&entry.path),
            path_base64: odd.then(|| STANDARD.encode(&entry.path)),
            size: entry.size,
            mode: entry.mode,
            permissions: entry.permissions,
            owner: entry.owner,
            group: entry.group,
            modified_at: entry.modified_at_ms.div_euclid(1_000),
            symlink_target: entry.symlink_target.as_deref().map(shown_path),
            disk_bytes: entry.disk_bytes,
        }
    }
}

/// One entry.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct EntryAnswer {
    entry: EntryBody,
}

/// Entries.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct EntriesAnswer {
    entries: Vec<EntryBody>,
}

/// A path that must be there.
pub(crate) fn path(fields: &mut Fields, name: &str) -> Result<Vec<u8>, ApiError> {
    let coded_name = format!("{name}_base64");
    let path = match (rules::path(fields, name)?, fields.text(&coded_name)?) {
        (path, None) => path.into_bytes(),
        (path, Some(coded)) if path.is_empty() => {
            STANDARD.decode(coded).map_err(|_| fields.fault(&coded_name, "not valid base64"))?
        }
        (_, Some(_)) => return Err(fields.fault(&coded_name, format!("not together with {name}"))),
    };
    if path.is_empty() {
        return Err(fields.fault(name, "required"));
    }
    if path.contains(&0) || path.len() > PATH_BYTES_MAX {
        return Err(fields.fault(name, format!("must be at most {PATH_BYTES_MAX} bytes without NUL")));
    }
    Ok(path)
}

/// A file's bytes, as they are read.
pub(crate) async fn read(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = body.fields()?;
    let request = ReadRequest {
        path: path(&mut fields, "path")?,
        user: rules::user(&mut fields)?,
        offset: fields.number("offset", 0, i64::MAX.unsigned_abs())?.unwrap_or(0),
        length: fields.number("length", 1, i64::MAX.unsigned_abs())?.unwrap_or(0),
    };
    let permit = app.stream_permit()?;
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let download = files::download(&app, &place, request).await?;
    let length = HeaderValue::from(download.length);
    let bytes = download.bytes().map(move |piece| {
        let _held = &permit;
        piece
    });
    let octets = HeaderValue::from_static("application/octet-stream");
    let headers = [(header::CONTENT_TYPE, octets), (header::CONTENT_LENGTH, length)];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// Entries below a directory, level by level.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<EntriesAnswer>, ApiError> {
    let mut fields = body.fields()?;
    let request = ListRequest {
        path: path(&mut fields, "path")?,
        user: rules::user(&mut fields)?,
        // 0 counts as 1, as in the compatible API.
        depth: u32::try_from(fields.number("depth", 0, DEPTH_MAX)?.unwrap_or(1).max(1)).unwrap_or(1),
    };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let entries = files::list(&app, &place, request).await?;
    Ok(Json(EntriesAnswer { entries: entries.into_iter().map(EntryBody::from).collect() }))
}

/// Makes a directory and its parents.
pub(crate) async fn mkdir(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<EntryAnswer>, ApiError> {
    let mut fields = body.fields()?;
    let request = MakeDirRequest { path: path(&mut fields, "path")?, user: rules::user(&mut fields)? };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let entry = place.guest(&app).make_dir(request).await.map_err(files::refusal)?;
    Ok(Json(EntryAnswer { entry: entry.into() }))
}

/// Removes a file, or a directory with all in it.
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let mut fields = body.fields()?;
    let request = RemoveRequest { path: path(&mut fields, "path")?, user: rules::user(&mut fields)? };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    place.guest(&app).remove(request).await.map_err(files::refusal)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is at a path.
pub(crate) async fn stat(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<EntryAnswer>, ApiError> {
    let mut fields = body.fields()?;
    let request = StatRequest { path: path(&mut fields, "path")?, user: rules::user(&mut fields)? };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let entry = place.guest(&app).stat(request).await.map_err(files::refusal)?;
    Ok(Json(EntryAnswer { entry: entry.into() }))
}

/// Renames or moves; what is there already is replaced only with `overwrite`.
pub(crate) async fn r#move(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<EntryAnswer>, ApiError> {
    let mut fields = body.fields()?;
    let request = MoveRequest {
        from: path(&mut fields, "from")?,
        to: path(&mut fields, "to")?,
        user: rules::user(&mut fields)?,
        overwrite: fields.flag("overwrite")?.unwrap_or(false),
    };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let entry = place.guest(&app).r#move(request).await.map_err(files::refusal)?;
    Ok(Json(EntryAnswer { entry: entry.into() }))
}

/// Changes mode, owner and group.
pub(crate) async fn chmod(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<EntryAnswer>, ApiError> {
    let mut fields = body.fields()?;
    let request = ChangeRequest {
        path: path(&mut fields, "path")?,
        user: rules::user(&mut fields)?,
        mode: mode(&mut fields)?,
        owner: name(&mut fields, "owner")?,
        group: name(&mut fields, "group")?,
        recursive: fields.flag("recursive")?.unwrap_or(false),
    };
    if request.mode.is_none() && request.owner.is_none() && request.group.is_none() {
        return Err(ApiError::invalid("mode: required, unless owner or group is to be changed"));
    }
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let entry = place.guest(&app).change(request).await.map_err(files::refusal)?;
    Ok(Json(EntryAnswer { entry: entry.into() }))
}

/// A mode: octal digits as people write them, or a number as `stat` answers it.
pub(crate) fn mode(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    if fields.is_text("mode") {
        let text = fields.text("mode")?.unwrap_or_default();
        return match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
            _ => Err(fields.fault("mode", "must be octal digits such as \"0644\"")),
        };
    }
    let mode = fields.number("mode", 0, 0o7777)?;
    Ok(mode.and_then(|mode| u32::try_from(mode).ok()))
}

/// A name or number of a user or group.
fn name(fields: &mut Fields, field: &str) -> Result<Option<String>, ApiError> {
    let name = fields.text(field)?.filter(|name| !name.is_empty());
    match name {
        Some(name) if name.len() > 64 || name.contains(char::is_control) => {
            Err(fields.fault(field, "not a name"))
        }
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).expect("an object")
    }

    #[test]
    fn an_entry_has_the_compatible_shape() {
        let entry = Entry {
            name: b"a".to_vec(),
            path: b"/x/a".to_vec(),
            r#type: EntryType::Other.into(),
            mode: 0o644,
            permissions: "prw-r--r--".to_owned(),
            modified_at_ms: 1_999,
            ..Entry::default()
        };
        let body = serde_json::to_value(EntryBody::from(entry)).expect("JSON");
        let shown = (&body["type"], &body["modified_at"], &body["mode"], body.get("symlink_target"));
        assert_eq!(shown, (&"file".into(), &1.into(), &420.into(), None));
        let odd = EntryBody::from(Entry { path: b"/\xff".to_vec(), ..Entry::default() });
        assert_eq!((odd.path.as_str(), odd.path_base64.as_deref()), ("/\u{fffd}", Some("L/8=")));
    }

    #[test]
    fn paths_are_text_or_base64() {
        assert_eq!(path(&mut fields(r#"{"path":"/a"}"#), "path").expect("fine"), b"/a");
        assert_eq!(path(&mut fields(r#"{"path_base64":"L/8="}"#), "path").expect("fine"), b"/\xff");
        for (body, says) in [
            ("{}", "path: required"),
            (r#"{"path":7}"#, "path: expected a string"),
            (r#"{"path":"/a","path_base64":"L/8="}"#, "path_base64: not together"),
            (r#"{"path_base64":"!"}"#, "path_base64: not valid base64"),
            (r#"{"path_base64":"AA=="}"#, "path: must be at most"),
        ] {
            let message = path(&mut fields(body), "path").expect_err(body).to_string();
            assert!(message.starts_with(says), "{message}");
        }
    }

    #[test]
    fn modes_are_octal_text_or_numbers() {
        assert!(matches!(mode(&mut fields(r#"{"mode":"0755"}"#)), Ok(Some(0o755))));
        assert!(matches!(mode(&mut fields(r#"{"mode":420}"#)), Ok(Some(0o644))));
        for wrong in [r#"{"mode":"9"}"#, r#"{"mode":"17777"}"#, r#"{"mode":4096}"#, r#"{"mode":true}"#] {
            assert!(mode(&mut fields(wrong)).is_err(), "{wrong}");
        }
    }
}
