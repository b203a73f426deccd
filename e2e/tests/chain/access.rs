//! Keys, teams, and what one may not see of the other.

use crate::folder;
use hearth_e2e::service::{Answer, TestService};
use serde_json::{Value, json};

async fn call(service: &TestService, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    service.send(method, path, Some(key), body.to_string().into_bytes()).await.unwrap()
}

/// A key of a team of its own.
async fn other_team(service: &TestService) -> String {
    let team = service.post("/v1/admin/teams", &json!({ "name": "others" })).await.unwrap();
    assert_eq!(team.status, 201, "{team:?}");
    let path = format!("/v1/admin/teams/{}/api-keys", team.text("/id"));
    let key = service.post(&path, &json!({ "name": "theirs" })).await.unwrap();
    assert_eq!(key.status, 201, "{key:?}");
    key.text("/key").to_owned()
}

/// Every route that names a capsule, a snapshot or a key, with a body that would be fine.
fn routes(capsule: &str, snapshot: &str, key: &str) -> Vec<(&'static str, String, Value)> {
    let path = json!({ "path": "/root" });
    let at = |rest: &str| format!("/v1/capsules/{capsule}{rest}");
    let mut routes = vec![
        ("GET", at(""), Value::Null),
        ("PATCH", at(""), json!({ "name": "stolen" })),
        ("POST", at("/pause"), Value::Null),
        ("POST", at("/resume"), Value::Null),
        ("POST", at("/ping"), Value::Null),
        ("POST", at("/fork"), json!({ "count": 1 })),
        ("POST", at("/rollback"), json!({ "snapshot": snapshot })),
        ("GET", at("/metrics"), Value::Null),
        ("GET", at("/logs"), Value::Null),
        ("POST", at("/exec"), json!({ "cmd": "true" })),
        ("POST", at("/exec"), json!({ "cmd": "true", "background": true })),
        ("POST", at("/execute"), json!({ "code": "1" })),
        ("GET", at("/processes"), Value::Null),
        ("DELETE", at("/processes/1"), Value::Null),
        ("GET", at("/processes/1/logs"), Value::Null),
        ("POST", at("/processes/1/stdin"), json!({ "data": "x" })),
        ("POST", at("/files/move"), json!({ "from": "/a", "to": "/b" })),
        ("POST", at("/files/chmod"), json!({ "path": "/root", "mode": "0700" })),
        ("POST", at("/files/write"), json!({ "path": "/root/x", "content": "x" })),
        ("POST", at("/files/stream/write"), json!({ "path": "/root/x", "content": "x" })),
        ("GET", at("/ports/8000/"), Value::Null),
        ("POST", "/v1/snapshots".to_owned(), json!({ "sandbox_id": capsule, "name": "stolen" })),
        ("DELETE", format!("/v1/snapshots/{snapshot}"), Value::Null),
        ("DELETE", format!("/v1/api-keys/{key}"), Value::Null),
        ("DELETE", at(""), Value::Null),
    ];
    for file in ["read", "stream/read", "list", "mkdir", "remove", "stat"] {
        routes.push(("POST", at(&format!("/files/{file}")), path.clone()));
    }
    routes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_finds_nothing_and_changes_nothing() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let capsule = service.create().await.unwrap();
    let snapshot = json!({ "sandbox_id": capsule, "name": "ours" });
    assert_eq!(service.post("/v1/snapshots", &snapshot).await.unwrap().status, 201);
    let keys = service.get("/v1/api-keys").await.unwrap();
    let key = keys.text("/0/id").to_owned();
    let theirs = other_team(&service).await;

    for (method, path, body) in routes(&capsule, "ours", &key) {
        let answer = call(&service, method, &path, &theirs, &body).await;
        let told = (answer.status, answer.text("/error/code").to_owned());
        assert_eq!(told, (404, "not_found".to_owned()), "{method} {path}: {answer:?}");
    }
    for path in ["/v1/capsules", "/v1/snapshots?type=snapshot"] {
        let listed = call(&service, "GET", path, &theirs, &Value::Null).await;
        assert_eq!(listed.body, json!([]), "{path}");
    }
    for path in ["/v1/admin/teams", "/v1/admin/users", "/v1/hosts"] {
        let refused = call(&service, "GET", path, &theirs, &Value::Null).await;
        assert_eq!((refused.status, refused.text("/error/code")), (403, "forbidden"), "{path}");
    }

    let ours = service.get(&format!("/v1/capsules/{capsule}")).await.unwrap();
    assert_eq!((ours.text("/status"), ours.text("/name")), ("running", ""), "{ours:?}");
    let snapshots = service.get("/v1/snapshots?type=snapshot").await.unwrap();
    assert_eq!(snapshots.text("/0/name"), "ours", "{snapshots:?}");
    assert_eq!(service.delete("/v1/snapshots/ours").await.unwrap().status, 204);
    service.delete(&format!("/v1/capsules/{capsule}")).await.unwrap();
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_do_what_their_scopes_say_until_they_are_revoked_and_the_log_tells() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let made = service.post("/v1/api-keys", &json!({ "name": "reader", "scopes": ["read"] })).await.unwrap();
    assert_eq!(made.status, 201, "{made:?}");
    let (reader, id) = (made.text("/key").to_owned(), made.text("/id").to_owned());
    assert_eq!(call(&service, "GET", "/v1/capsules", &reader, &Value::Null).await.status, 200);
    for (method, path, body) in [
        ("POST", "/v1/capsules", json!({})),
        ("POST", "/v1/execute", json!({ "code": "1" })),
        ("POST", "/v1/api-keys", json!({})),
    ] {
        let refused = call(&service, method, path, &reader, &body).await;
        assert_eq!((refused.status, refused.text("/error/code")), (403, "forbidden"), "{method} {path}");
    }
    let powerful = json!({ "scopes": ["platform"] });
    let admin = service.post("/v1/api-keys", &json!({ "scopes": ["admin", "read"] })).await.unwrap();
    let refused = call(&service, "POST", "/v1/api-keys", admin.text("/key"), &powerful).await;
    assert_eq!(refused.status, 403, "{refused:?}");

    assert_eq!(service.delete(&format!("/v1/api-keys/{id}")).await.unwrap().status, 204);
    assert_eq!(call(&service, "GET", "/v1/capsules", &reader, &Value::Null).await.status, 401);
    let capsule = service.create().await.unwrap();
    service.delete(&format!("/v1/capsules/{capsule}")).await.unwrap();

    let logged = async {
        loop {
            let page = service.get("/v1/audit-logs?limit=100").await.unwrap();
            let items = page.body["items"].as_array().cloned().unwrap_or_default();
            let has = |action: &str, resource: &str| {
                items.iter().any(|item| item["action"] == action && item["resource_id"] == resource)
            };
            if has("api_key.create", &id)
                && has("api_key.revoke", &id)
                && has("capsule.create", &capsule)
                && has("capsule.destroy", &capsule)
            {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), logged).await.expect("the log to tell");
    let page = service.get("/v1/audit-logs?limit=1").await.unwrap();
    let next = (page.text("/next_before").to_owned(), page.text("/next_before_id").to_owned());
    let second =
        service.get(&format!("/v1/audit-logs?limit=1&before={}&before_id={}", next.0, next.1)).await.unwrap();
    assert_ne!(page.text("/items/0/id"), second.text("/items/0/id"), "{second:?}");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept_and_say_when_to_come_back() {
    let dir = folder();
    let limits =
        [("HEARTH_POOL_TARGET", "0"), ("HEARTH_TEAM_CAPSULES", "1"), ("HEARTH_CREATES_PER_SEC", "3")];
    let service = TestService::start(dir.path(), &limits).await.unwrap();
    let capsule = service.create().await.unwrap();
    let over = service.post("/v1/capsules", &json!({})).await.unwrap();
    assert_eq!((over.status, over.text("/error/code")), (429, "rate_limited"), "{over:?}");
    assert_eq!(service.post(&format!("/v1/capsules/{capsule}/pause"), &json!({})).await.unwrap().status, 200);
    let second = service.create().await.unwrap();
    let back = service.post(&format!("/v1/capsules/{capsule}/resume"), &json!({})).await.unwrap();
    assert!([200, 429].contains(&back.status), "{back:?}");
    let mut refused = None;
    for _ in 0..20 {
        let answer = service.post("/v1/capsules", &json!({ "template": "no-such" })).await.unwrap();
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a limit on new capsules");
    assert!(refused.text("/error/message").contains("too many new capsules"), "{refused:?}");
    for id in [capsule, second] {
        service.delete(&format!("/v1/capsules/{id}")).await.unwrap();
    }
    service.stop_clean().unwrap();
}
