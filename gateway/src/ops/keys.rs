//! API keys: made, revoked.

use crate::{
    app::App,
    auth::{Caller, api_key::Secret, scopes::KeyScopes},
    error::ApiError,
    store::api_keys::{self, KeyRow},
};
use hearth_proto::{
    error::ErrorCode,
    id::{KeyId, TeamId, UserId},
};
use time::OffsetDateTime;

/// A checked request for a key.
#[derive(Debug, Clone)]
pub(crate) struct NewKey {
    pub(crate) name: String,
    pub(crate) scopes: KeyScopes,
    pub(crate) expires_at: Option<OffsetDateTime>,
    pub(crate) user: Option<UserId>,
}

/// Makes a key; its text is returned once and not kept.
pub(crate) async fn create(
    app: &App,
    caller: Caller,
    team: TeamId,
    new: NewKey,
) -> Result<(KeyRow, String), ApiError> {
    if !caller.scopes.covers(new.scopes) {
        let message = "scopes: a key cannot be given scopes that the key which makes it lacks";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    if let Some(user) = new.user {
        let members = app.store.members(team).await.map_err(ApiError::internal)?;
        if !members.iter().any(|member| member.user_id == user.uuid()) {
            return Err(ApiError::invalid("user_id: no member of the team"));
        }
    }
    let secret = Secret::new().map_err(|error| ApiError::internal(std::io::Error::other(error)))?;
    let hash = secret.hash_hex();
    let key = api_keys::NewKey {
        id: KeyId::new(),
        team,
        name: &new.name,
        prefix: secret.display_prefix(),
        hash: &hash,
        scopes: new.scopes,
        expires_at: new.expires_at,
        user: new.user.map(UserId::uuid),
        created_by: Some(caller.key),
    };
    app.store.add_key(&key).await.map_err(ApiError::internal)?;
    let row = KeyRow {
        id: key.id.uuid(),
        team_id: team.uuid(),
        name: new.name.clone(),
        prefix: secret.display_prefix().to_owned(),
        scopes: new.scopes.words(),
        created_at: OffsetDateTime::now_utc(),
        created_by: Some(caller.key.uuid()),
        user_id: key.user,
        expires_at: new.expires_at,
        last_used_at: None,
    };
    Ok((row, secret.expose().to_owned()))
}

/// Revokes a team's key. It ends here at once, and at other gateways when what they remember is too old.
pub(crate) async fn revoke(app: &App, team: TeamId, key: KeyId) -> Result<(), ApiError> {
    if !app.store.revoke_key(team, key).await.map_err(ApiError::internal)? {
        return Err(ApiError::new(ErrorCode::NotFound, "there is no such API key"));
    }
    app.keys.forget();
    Ok(())
}
