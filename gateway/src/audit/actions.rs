//! (pure) Which requests are changes, and what they are called in the audit log. What runs inside a capsule (commands,
//! files, terminals) is its user's own business and is not noted.

use http::Method;

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) name: &'static str,
    pub(super) resource: &'static str,
    /// Which segment of the path, from 0, names the resource.
    segment: Option<usize>,
}

impl Action {
    /// The resource that a path names.
    pub(super) fn resource_in(self, path: &str) -> Option<&str> {
        path.split('/').filter(|part| !part.is_empty()).nth(self.segment?)
    }
}

/// The action of a request by its method and its route as it is written in the router.
pub(super) fn of(method: &Method, route: &str) -> Option<Action> {
    let action = |name, resource, segment| Some(Action { name, resource, segment });
    match (method.as_str(), route) {
        ("POST", "/v1/capsules") => action("capsule.create", "capsule", None),
        ("PATCH", "/v1/capsules/{id}") => action("capsule.update", "capsule", Some(2)),
        ("DELETE", "/v1/capsules/{id}") => action("capsule.destroy", "capsule", Some(2)),
        ("POST", "/v1/capsules/{id}/pause") => action("capsule.pause", "capsule", Some(2)),
        ("POST", "/v1/capsules/{id}/resume") => action("capsule.resume", "capsule", Some(2)),
        ("POST", "/v1/capsules/{id}/fork") => action("capsule.fork", "capsule", Some(2)),
        ("POST", "/v1/capsules/{id}/rollback") => action("capsule.rollback", "capsule", Some(2)),
        ("POST", "/v1/snapshots") => action("snapshot.create", "snapshot", None),
        ("DELETE", "/v1/snapshots/{name}") => action("snapshot.delete", "snapshot", Some(2)),
        ("POST", "/v1/api-keys") => action("api_key.create", "api_key", None),
        ("DELETE", "/v1/api-keys/{id}") => action("api_key.revoke", "api_key", Some(2)),
        ("POST", "/v1/admin/teams") => action("team.create", "team", None),
        ("DELETE", "/v1/admin/teams/{id}") => action("team.delete", "team", Some(3)),
        ("POST", "/v1/admin/teams/{id}/api-keys") => action("api_key.create", "api_key", None),
        ("POST", "/v1/admin/users") => action("user.create", "user", None),
        ("DELETE", "/v1/admin/users/{id}") => action("user.delete", "user", Some(3)),
        ("PUT", "/v1/admin/teams/{id}/members/{user}") => action("member.set", "user", Some(5)),
        ("DELETE", "/v1/admin/teams/{id}/members/{user}") => action("member.remove", "user", Some(5)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_their_names_and_the_rest_has_none() {
        let pause = of(&Method::POST, "/v1/capsules/{id}/pause").expect("a change");
        assert_eq!(
            (pause.name, pause.resource_in("/v1/capsules/cl-1/pause")),
            ("capsule.pause", Some("cl-1"))
        );
        let create = of(&Method::POST, "/v1/capsules").expect("a change");
        assert_eq!(create.resource_in("/v1/capsules"), None);
        let member = of(&Method::PUT, "/v1/admin/teams/{id}/members/{user}").expect("a change");
        assert_eq!(member.resource_in("/v1/admin/teams/team-1/members/usr-2"), Some("usr-2"));
        for (method, route) in [(Method::GET, "/v1/capsules"), (Method::POST, "/v1/capsules/{id}/exec")] {
            assert_eq!(of(&method, route), None);
        }
    }
}
