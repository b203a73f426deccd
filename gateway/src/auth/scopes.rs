//! (pure) What a key may do: five words, and which of them each route asks for.

use http::Method;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// One permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyScope {
    /// Look at capsules, templates, metrics and events.
    Read,
    /// Run code and commands, move files, open terminals and ports.
    Run,
    /// Create, change and destroy capsules and snapshots.
    Manage,
    /// Keys of the own team, its audit log.
    Admin,
    /// Teams, users, hosts: the installation.
    Platform,
}

impl KeyScope {
    pub(crate) const ALL: [Self; 5] = [Self::Read, Self::Run, Self::Manage, Self::Admin, Self::Platform];

    /// As in the table's column and in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Manage => "manage",
            Self::Admin => "admin",
            Self::Platform => "platform",
        }
    }
}

/// A word that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be of read, run, manage, admin, platform")]
pub(crate) struct UnknownScope;

impl FromStr for KeyScope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(UnknownScope)
    }
}

/// The scopes of one key.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeyScopes(u8);

impl KeyScopes {
    /// Everything inside a team.
    pub(crate) const TEAM: Self = Self(0b01111);
    /// Everything.
    pub(crate) const OPERATOR: Self = Self(0b11111);

    pub(crate) fn with(self, scope: KeyScope) -> Self {
        Self(self.0 | 1 << scope as u8)
    }

    pub(crate) fn has(self, scope: KeyScope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether a key with these may make one with `others`: nobody gives away what they do not have.
    pub(crate) fn covers(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// What both have.
    pub(crate) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Unknown words of a newer Hearth give no right.
    pub(crate) fn of(words: &[String]) -> Self {
        words.iter().filter_map(|word| word.parse().ok()).fold(Self::default(), Self::with)
    }

    pub(crate) fn list(self) -> Vec<KeyScope> {
        KeyScope::ALL.into_iter().filter(|scope| self.has(*scope)).collect()
    }

    pub(crate) fn words(self) -> Vec<String> {
        self.list().into_iter().map(|scope| scope.as_str().to_owned()).collect()
    }
}

impl fmt::Debug for KeyScopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.list()).finish()
    }
}

/// What a route asks for, by its method and its path as it is written in the router. A route that is not thought of
/// here needs everything.
pub(crate) fn required(method: &Method, route: &str) -> KeyScope {
    let Some(rest) = route.strip_prefix("/v1/") else { return KeyScope::Platform };
    let read = method == Method::GET || method == Method::HEAD;
    let parts: Vec<&str> = rest.split('/').collect();
    match parts.as_slice() {
        ["execute"]
        | ["capsules", "{id}", "execute" | "exec" | "processes" | "files" | "pty" | "contexts", ..] => {
            match parts.as_slice() {
                ["capsules", "{id}", "processes"] if read => KeyScope::Read,
                _ => KeyScope::Run,
            }
        }
        ["capsules", "{id}", "ports", ..] | ["capsules", "{id}", "ping"] => KeyScope::Run,
        ["capsules" | "snapshots" | "templates", ..] if read => KeyScope::Read,
        ["events", ..] if read => KeyScope::Read,
        ["capsules" | "snapshots" | "templates", ..] => KeyScope::Manage,
        ["api-keys" | "audit-logs", ..] => KeyScope::Admin,
        _ => KeyScope::Platform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_asks_for_what_it_does() {
        for (method, route, scope) in [
            (Method::POST, "/v1/execute", KeyScope::Run),
            (Method::GET, "/v1/capsules", KeyScope::Read),
            (Method::POST, "/v1/capsules", KeyScope::Manage),
            (Method::DELETE, "/v1/capsules/{id}", KeyScope::Manage),
            (Method::GET, "/v1/capsules/{id}/metrics", KeyScope::Read),
            (Method::POST, "/v1/capsules/{id}/fork", KeyScope::Manage),
            (Method::POST, "/v1/capsules/{id}/ping", KeyScope::Run),
            (Method::GET, "/v1/capsules/{id}/pty", KeyScope::Run),
            (Method::GET, "/v1/capsules/{id}/exec/stream", KeyScope::Run),
            (Method::POST, "/v1/capsules/{id}/files/read", KeyScope::Run),
            (Method::GET, "/v1/capsules/{id}/processes", KeyScope::Read),
            (Method::DELETE, "/v1/capsules/{id}/processes/{selector}", KeyScope::Run),
            (Method::GET, "/v1/capsules/{id}/ports/{port}/{*path}", KeyScope::Run),
            (Method::GET, "/v1/events/stream", KeyScope::Read),
            (Method::POST, "/v1/snapshots", KeyScope::Manage),
            (Method::GET, "/v1/api-keys", KeyScope::Admin),
            (Method::POST, "/v1/admin/teams", KeyScope::Platform),
            (Method::GET, "/v1/hosts", KeyScope::Platform),
            (Method::GET, "/v1/something/new", KeyScope::Platform),
        ] {
            assert_eq!(required(&method, route), scope, "{method} {route}");
        }
    }

    #[test]
    fn nobody_gives_away_what_they_do_not_have() {
        let words =
            |words: &[&str]| KeyScopes::of(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert!(KeyScopes::TEAM.covers(words(&["read", "admin"])));
        assert!(!KeyScopes::TEAM.covers(words(&["platform"])));
        assert!(!words(&["read"]).covers(words(&["read", "run"])));
        assert_eq!(words(&["read", "fly"]).words(), ["read"]);
        assert!(KeyScope::ALL.into_iter().all(|scope| KeyScopes::OPERATOR.has(scope)));
    }
}
