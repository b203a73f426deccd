//! `/v1/admin`: teams, users, members; for keys with the scope `platform`.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::{body::JsonBody, rules},
    store::{
        api_keys::KeyRow,
        teams::{MemberRow, TeamRow, UserRow},
    },
    v1::{created, keys, keys::KeyBody, rfc3339},
};
use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use hearth_proto::{
    error::ErrorCode,
    id::{IdError, TeamId, UserId},
};
use http::StatusCode;
use serde::Serialize;

/// RFC 5321, section 4.5.3.1.3, less the brackets.
const EMAIL_CHARS_MAX: usize = 254;
const ROLES: [&str; 3] = ["owner", "admin", "member"];

/// A team.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct TeamBody {
    #[schema(value_type = String)]
    id: TeamId,
    name: String,
    created_at: String,
    /// Keys that were not revoked.
    keys: i64,
    members: i64,
}

impl From<TeamRow> for TeamBody {
    fn from(row: TeamRow) -> Self {
        let TeamRow { id, name, created_at, keys, members } = row;
        Self { id: TeamId::from_uuid(id), name, created_at: rfc3339(created_at), keys, members }
    }
}

/// A user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct UserBody {
    #[schema(value_type = String)]
    id: UserId,
    email: String,
    name: String,
    created_at: String,
}

impl From<UserRow> for UserBody {
    fn from(row: UserRow) -> Self {
        let UserRow { id, email, name, created_at } = row;
        Self { id: UserId::from_uuid(id), email, name, created_at: rfc3339(created_at) }
    }
}

/// A user in a team.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MemberBody {
    #[schema(value_type = String)]
    user_id: UserId,
    email: String,
    name: String,
    /// owner, admin or member.
    role: String,
}

impl From<MemberRow> for MemberBody {
    fn from(row: MemberRow) -> Self {
        let MemberRow { user_id, email, name, role } = row;
        Self { user_id: UserId::from_uuid(user_id), email, name, role }
    }
}

/// All teams.
pub(crate) async fn teams(State(app): State<App>, _: Caller) -> Result<Json<Vec<TeamBody>>, ApiError> {
    let teams = app.store.teams().await.map_err(ApiError::internal)?;
    Ok(Json(teams.into_iter().map(TeamBody::from).collect()))
}

/// Makes a team.
pub(crate) async fn create_team(
    State(app): State<App>,
    _: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = body.fields()?;
    let name = rules::display_name(&mut fields)?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| fields.fault("name", "required"))?;
    let id = TeamId::new();
    app.store.add_team(id, &name).await.map_err(ApiError::internal)?;
    let created_at = rfc3339(time::OffsetDateTime::now_utc());
    let team = TeamBody { id, name, created_at, keys: 0, members: 0 };
    created(&format!("/v1/admin/teams/{id}"), &team)
}

/// Ends a team: its keys are revoked. A team that still has capsules is not ended.
pub(crate) async fn delete_team(
    State(app): State<App>,
    caller: Caller,
    axum::Extension(scope): axum::Extension<crate::middleware::Scope>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let team = team_id(&id)?;
    if team == caller.team {
        return Err(ApiError::invalid("id: a key cannot end its own team"));
    }
    let of_team = Caller { team, ..caller };
    let left = crate::ops::capsules::list(&app, &scope, of_team, crate::ops::capsules::Filter::default());
    if !left.await?.capsules.is_empty() {
        let message = "the team has capsules; destroy them first";
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    found(app.store.delete_team(team).await.map_err(ApiError::internal)?, "team")?;
    app.keys.forget();
    Ok(StatusCode::NO_CONTENT)
}

/// A team's members.
pub(crate) async fn members(
    State(app): State<App>,
    _: Caller,
    Path(id): Path<String>,
) -> Result<Json<Vec<MemberBody>>, ApiError> {
    let team = known_team(&app, &id).await?;
    let members = app.store.members(team).await.map_err(ApiError::internal)?;
    Ok(Json(members.into_iter().map(MemberBody::from).collect()))
}

/// Puts a user into a team, or gives another role there.
pub(crate) async fn set_member(
    State(app): State<App>,
    _: Caller,
    Path((team, user)): Path<(String, String)>,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let mut fields = body.fields_or_none()?;
    let role = fields.text("role")?.unwrap_or_else(|| "member".to_owned());
    if !ROLES.contains(&role.as_str()) {
        return Err(fields.fault("role", "must be owner, admin or member"));
    }
    let (team, user) = (team_id(&team)?, user_id(&user)?);
    let set = app.store.set_member(team, user, &role).await.map_err(ApiError::internal)?;
    found(set, "team or user")?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a user out of a team.
pub(crate) async fn remove_member(
    State(app): State<App>,
    _: Caller,
    Path((team, user)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let removed = app.store.remove_member(team_id(&team)?, user_id(&user)?).await;
    found(removed.map_err(ApiError::internal)?, "member")?;
    Ok(StatusCode::NO_CONTENT)
}

/// A team's keys.
pub(crate) async fn team_keys(
    State(app): State<App>,
    _: Caller,
    Path(id): Path<String>,
) -> Result<Json<Vec<KeyBody>>, ApiError> {
    let team = known_team(&app, &id).await?;
    let rows: Vec<KeyRow> = app.store.keys(team).await.map_err(ApiError::internal)?;
    Ok(Json(rows.into_iter().map(KeyBody::from).collect()))
}

/// Makes a key of a team.
pub(crate) async fn create_team_key(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let team = known_team(&app, &id).await?;
    keys::make(&app, caller, team, &body).await
}

/// All users.
pub(crate) async fn users(State(app): State<App>, _: Caller) -> Result<Json<Vec<UserBody>>, ApiError> {
    let users = app.store.users().await.map_err(ApiError::internal)?;
    Ok(Json(users.into_iter().map(UserBody::from).collect()))
}

/// Makes a user.
pub(crate) async fn create_user(
    State(app): State<App>,
    _: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = body.fields()?;
    let email = fields.required_text("email")?;
    if !is_email(&email) {
        return Err(fields.fault("email", "not an e-mail address"));
    }
    let name = rules::display_name(&mut fields)?.unwrap_or_default();
    let id = UserId::new();
    if !app.store.add_user(id, &email, &name).await.map_err(ApiError::internal)? {
        return Err(ApiError::new(ErrorCode::Conflict, "email: there is a user with this address already"));
    }
    let user = UserBody { id, email, name, created_at: rfc3339(time::OffsetDateTime::now_utc()) };
    created(&format!("/v1/admin/users/{id}"), &user)
}

/// Removes a user from all teams, and revokes the keys that were made for them.
pub(crate) async fn delete_user(
    State(app): State<App>,
    _: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    found(app.store.delete_user(user_id(&id)?).await.map_err(ApiError::internal)?, "user")?;
    app.keys.forget();
    Ok(StatusCode::NO_CONTENT)
}

fn is_email(text: &str) -> bool {
    let plain = text.chars().count() <= EMAIL_CHARS_MAX
        && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    plain
        && matches!(text.split_once('@'), Some((local, domain))
        if !local.is_empty() && !domain.is_empty() && !domain.contains('@'))
}

fn team_id(text: &str) -> Result<TeamId, ApiError> {
    text.parse().map_err(|error: IdError| ApiError::invalid(format!("id: {error}")))
}

fn user_id(text: &str) -> Result<UserId, ApiError> {
    text.parse().map_err(|error: IdError| ApiError::invalid(format!("user: {error}")))
}

async fn known_team(app: &App, text: &str) -> Result<TeamId, ApiError> {
    let team = team_id(text)?;
    found(app.store.has_team(team).await.map_err(ApiError::internal)?, "team")?;
    Ok(team)
}

fn found(there: bool, what: &str) -> Result<(), ApiError> {
    if there {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no such {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_at_but_not_judged() {
        for fine in ["a@b", "first.last+tag@example.org"] {
            assert!(is_email(fine), "{fine}");
        }
        for wrong in ["", "a", "@b", "a@", "a@b@c", "a b@c", &format!("{}@x", "a".repeat(300))] {
            assert!(!is_email(wrong), "{wrong}");
        }
    }
}
