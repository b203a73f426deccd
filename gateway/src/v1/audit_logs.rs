//! `GET /v1/audit-logs`: the changes that keys of the caller's team asked for, the newest first.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::query::Query,
    store::audit::{Logged, Wanted},
    v1::rfc3339,
};
use axum::{Json, extract::State};
use hearth_proto::id::KeyId;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// As in the compatible API.
const LIMIT: u64 = 50;
const LIMIT_MAX: u64 = 200;

/// One change.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LogItem {
    id: String,
    created_at: String,
    action: String,
    resource_type: String,
    resource_id: String,
    actor: Actor,
    /// `success` or `error`.
    outcome: &'static str,
    /// HTTP status of the answer; 499 when the caller left before it.
    status: i32,
    request_id: String,
}

/// Who asked.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Actor {
    #[serde(rename = "type")]
    kind: &'static str,
    #[schema(value_type = String)]
    id: KeyId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// A page.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LogPage {
    items: Vec<LogItem>,
    /// Send both back as `before` and `before_id` for the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before_id: Option<String>,
}

impl From<Logged> for LogItem {
    fn from(row: Logged) -> Self {
        Self {
            id: row.id.to_string(),
            created_at: rfc3339(row.at),
            action: row.action,
            resource_type: row.resource_type,
            resource_id: row.resource_id,
            actor: Actor { kind: "api_key", id: KeyId::from_uuid(row.key_id), name: row.key_name },
            outcome: if row.status < 400 { "success" } else { "error" },
            status: row.status,
            request_id: row.request_id,
        }
    }
}

/// One page of the log.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<LogPage>, ApiError> {
    let wanted = read(query)?;
    let rows = app.store.audit(caller.team, &wanted).await.map_err(ApiError::internal)?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == wanted.limit);
    let last = rows.last().filter(|_| full);
    let page = LogPage {
        next_before: last.map(|row| exact(row.at)),
        next_before_id: last.map(|row| row.id.to_string()),
        items: rows.into_iter().map(LogItem::from).collect(),
    };
    Ok(Json(page))
}

/// With the fractions of a second, unlike what is shown: pages must not overlap.
fn exact(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

fn read(mut query: Query) -> Result<Wanted, ApiError> {
    let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
    let before = match query.text("before") {
        None => None,
        Some(text) => {
            let at = OffsetDateTime::parse(&text, &Rfc3339)
                .map_err(|_| query.fault("before", "must be an instant such as 2027-01-31T12:00:00Z"))?;
            let id = query.text("before_id").map(|id| id.parse::<Uuid>()).transpose();
            Some((at, id.map_err(|_| query.fault("before_id", "not an id of the log"))?.unwrap_or_default()))
        }
    };
    Ok(Wanted {
        before,
        resource_type: query.text("resource_type"),
        action: query.text("action"),
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_asked_for_by_instant_and_id() {
        let id = Uuid::now_v7();
        let wanted =
            read(Query::parse(&format!("before=2026-05-02T10:00:00.123456Z&before_id={id}&limit=7")));
        let wanted = wanted.expect("fine");
        assert_eq!((wanted.before.expect("given").1, wanted.limit), (id, 7));
        assert_eq!(read(Query::parse("action=capsule.pause")).expect("fine").limit, 50);
        for wrong in ["before=yesterday", "before=2026-05-02T10:00:00Z&before_id=x", "limit=201"] {
            assert!(read(Query::parse(wrong)).is_err(), "{wrong}");
        }
    }
}
