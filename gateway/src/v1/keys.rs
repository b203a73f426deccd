//! `/v1/api-keys`: the keys of the caller's team. A key's text is in the answer that makes it and nowhere else.

use crate::{
    app::App,
    auth::{Caller, scopes::KeyScopes},
    error::ApiError,
    json::{body::JsonBody, fields::Fields, rules},
    ops::keys::{self, NewKey},
    store::api_keys::KeyRow,
    v1::{created, rfc3339},
};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use hearth_proto::id::{IdError, KeyId, TeamId, UserId};
use http::StatusCode;
use serde::Serialize;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// As in the compatible API.
const UNNAMED: &str = "Unnamed API Key";
const EXPIRES_SEC_MAX: u64 = 10 * 365 * 86_400;

/// A key as people see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct KeyBody {
    #[schema(value_type = String)]
    id: KeyId,
    #[schema(value_type = String)]
    team_id: TeamId,
    name: String,
    /// Its first characters, by which people recognise it.
    key_prefix: String,
    /// Of read, run, manage, admin, platform.
    scopes: Vec<String>,
    created_at: String,
    /// The key that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    created_by: Option<KeyId>,
    /// The user it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    user_id: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used: Option<String>,
    /// The key itself; only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<KeyRow> for KeyBody {
    fn from(row: KeyRow) -> Self {
        Self {
            id: KeyId::from_uuid(row.id),
            team_id: TeamId::from_uuid(row.team_id),
            name: row.name,
            key_prefix: row.prefix,
            scopes: row.scopes,
            created_at: rfc3339(row.created_at),
            created_by: row.created_by.map(KeyId::from_uuid),
            user_id: row.user_id.map(UserId::from_uuid),
            expires_at: row.expires_at.map(rfc3339),
            last_used: row.last_used_at.map(rfc3339),
            key: None,
        }
    }
}

/// Makes a key of the caller's team.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    make(&app, caller, caller.team, &body).await
}

/// Makes a key of some team.
pub(crate) async fn make(
    app: &App,
    caller: Caller,
    team: TeamId,
    body: &JsonBody,
) -> Result<Response, ApiError> {
    let new = read(&mut body.fields_or_none()?, caller, OffsetDateTime::now_utc())?;
    let (row, secret) = keys::create(app, caller, team, new).await?;
    let location = format!("/v1/api-keys/{}", KeyId::from_uuid(row.id));
    created(&location, &KeyBody { key: Some(secret), ..row.into() })
}

/// Keys of the caller's team that were not revoked.
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<KeyBody>>, ApiError> {
    let rows = app.store.keys(caller.team).await.map_err(ApiError::internal)?;
    Ok(Json(rows.into_iter().map(KeyBody::from).collect()))
}

/// Revokes a key; done already is done.
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = id.parse().map_err(|error: IdError| ApiError::invalid(format!("id: {error}")))?;
    keys::revoke(&app, caller.team, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Without scopes the key gets what the caller has, but not the installation.
fn read(fields: &mut Fields, caller: Caller, now: OffsetDateTime) -> Result<NewKey, ApiError> {
    let name = rules::display_name(fields)?.filter(|name| !name.is_empty());
    let scopes = match fields.texts("scopes")? {
        None => KeyScopes::TEAM.both(caller.scopes),
        Some(words) => {
            let mut scopes = KeyScopes::default();
            for (index, word) in words.iter().enumerate() {
                let scope = word.parse().map_err(|error| fields.fault(&format!("scopes[{index}]"), error))?;
                scopes = scopes.with(scope);
            }
            scopes
        }
    };
    let user = fields.text("user_id")?;
    let user =
        user.map(|id| id.parse().map_err(|error: IdError| fields.fault("user_id", error))).transpose()?;
    Ok(NewKey {
        name: name.unwrap_or_else(|| UNNAMED.to_owned()),
        scopes,
        expires_at: end(fields, now)?,
        user,
    })
}

fn end(fields: &mut Fields, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, ApiError> {
    let seconds = fields.number("expires_in_sec", 1, EXPIRES_SEC_MAX)?;
    match (fields.text("expires_at")?, seconds) {
        (None, None) => Ok(None),
        (None, Some(seconds)) => {
            Ok(now.checked_add(Duration::seconds(i64::try_from(seconds).unwrap_or(i64::MAX))))
        }
        (Some(text), None) => match OffsetDateTime::parse(&text, &Rfc3339) {
            Ok(end) if end > now => Ok(Some(end)),
            Ok(_) => Err(fields.fault("expires_at", "is in the past")),
            Err(_) => Err(fields.fault("expires_at", "must be an instant such as 2027-01-31T12:00:00Z")),
        },
        (Some(_), Some(_)) => Err(fields.fault("expires_in_sec", "not together with expires_at")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scopes::KeyScope;

    fn parsed(body: &str) -> Result<NewKey, ApiError> {
        let now = OffsetDateTime::UNIX_EPOCH;
        read(&mut Fields::parse(body.as_bytes()).expect("an object"), Caller::for_tests(), now)
    }

    #[test]
    fn a_key_has_the_teams_rights_unless_it_says_less() {
        let plain = parsed("{}").expect("fine");
        assert_eq!((plain.name.as_str(), plain.scopes, plain.expires_at), (UNNAMED, KeyScopes::TEAM, None));
        let less = parsed(r#"{"scopes":["read"],"expires_in_sec":60,"name":"ci"}"#).expect("fine");
        assert_eq!(less.scopes, KeyScopes::default().with(KeyScope::Read));
        assert_eq!(less.expires_at, Some(OffsetDateTime::UNIX_EPOCH + Duration::minutes(1)));
    }

    #[test]
    fn faults_name_the_field() {
        for (body, says) in [
            (r#"{"scopes":["read","fly"]}"#, "scopes[1]: must be of"),
            (r#"{"expires_at":"soon"}"#, "expires_at: must be an instant"),
            (r#"{"expires_at":"1960-01-01T00:00:00Z"}"#, "expires_at: is in the past"),
            (r#"{"expires_in_sec":0}"#, "expires_in_sec: must be from 1"),
            (r#"{"user_id":"me"}"#, "user_id: not a valid user id"),
        ] {
            let message = parsed(body).expect_err(body).to_string();
            assert!(message.starts_with(says), "{message}");
        }
    }
}
