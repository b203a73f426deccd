//! Bad requests: a 4xx in the error shape that names the field.

use crate::folder;
use hearth_e2e::service::TestService;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_the_field_named() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let big = format!("{{\"code\": \"{}\"}}", "x".repeat((1 << 20) + 1));
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (b"{}".to_vec(), 400, "code"),
        (br#"{"code": 5}"#.to_vec(), 400, "code"),
        (br#"{"code": "1", "language": "cobol"}"#.to_vec(), 400, "language"),
        (br#"{"code": "1", "template": "nope"}"#.to_vec(), 404, "template"),
        (br#"{"code": "1", "timeout_ms": 0}"#.to_vec(), 400, "timeout_ms"),
        (br#"{"code": "1", "timeout_ms": "soon"}"#.to_vec(), 400, "timeout_ms"),
        (br#"{"code": "1", "files": [{"path": "a"}]}"#.to_vec(), 400, "files[0]"),
        (
            br#"{"code": "1", "files": [{"path": "a", "content_base64": "%"}]}"#.to_vec(),
            400,
            "content_base64",
        ),
        (br#"{"code": "1", "memory_mb": 99999999}"#.to_vec(), 400, "memory_mb"),
        (br#"{"code": "1", "network": "internet"}"#.to_vec(), 400, "network"),
        (b"{\"code\": ".to_vec(), 400, "JSON"),
        (b"{\"code\": \"\xff\"}".to_vec(), 400, "UTF-8"),
        (big.into_bytes(), 413, "code"),
    ];
    for (body, status, named) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = service.send("POST", "/v1/execute", Some(&service.key), body).await.unwrap();
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert!(answer.text("/error/message").contains(named), "{shown}: {answer:?} names no {named}");
        assert!(!answer.text("/error/code").is_empty(), "{answer:?}");
    }
    let no_key = service.send("POST", "/v1/execute", None, b"{}".to_vec()).await.unwrap();
    assert_eq!((no_key.status, no_key.text("/error/code")), (401, "unauthorized"), "{no_key:?}");
    let bad_key = service.send("GET", "/v1/capsules", Some("wrn_00"), Vec::new()).await.unwrap();
    assert_eq!(bad_key.status, 401, "{bad_key:?}");
    let unknown = service.get("/v1/nothing").await.unwrap();
    assert_eq!((unknown.status, unknown.text("/error/code")), (404, "not_found"), "{unknown:?}");
    let malformed = service.get("/v1/capsules/xyz").await.unwrap();
    assert_eq!(malformed.status, 400, "{malformed:?}");
    let absent = service.get("/v1/capsules/cl-0000000000000000000000000").await.unwrap();
    assert_eq!(absent.status, 404, "{absent:?}");
    let created = service.post("/v1/capsules", &json!({ "vcpus": "many" })).await.unwrap();
    assert_eq!(created.status, 400, "{created:?}");
    assert!(created.text("/error/message").contains("vcpus"), "{created:?}");
    service.stop_clean().unwrap();
}
