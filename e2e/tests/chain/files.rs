//! Files through the gateway: uploads that do not end as they should.

use crate::folder;
use hearth_e2e::service::TestService;
use serde_json::json;
use std::{io, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_or_is_cut_changes_nothing() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let id = service.create().await.unwrap();
    let files = format!("/v1/capsules/{id}/files");
    let old = json!({ "path": "/root/kept", "content": "old" });
    assert_eq!(service.post(&format!("{files}/write"), &old).await.unwrap().status, 204);

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{files}/stream/write", service.url);
    for number in 0..20 {
        // Some pieces arrive, then the client is gone.
        let pieces = (0..=number % 4).map(|_| Ok(vec![b'x'; 100_000]));
        let broken = pieces.chain([Err(io::Error::other("gone"))]).collect::<Vec<io::Result<Vec<u8>>>>();
        let body = reqwest::Body::wrap_stream(futures::stream::iter(broken));
        let request = http.post(&url).query(&[("path", "/root/kept")]).header("x-api-key", &service.key);
        assert!(request.timeout(Duration::from_secs(30)).body(body).send().await.is_err());
    }
    // The guest sees the last of them end before it answers this.
    let exec = json!({ "cmd": "/bin/sh", "args": ["-c", "cat kept; ls -A | wc -l"] });
    let seen = service.post(&format!("/v1/capsules/{id}/exec"), &exec).await.unwrap();
    assert!(seen.text("/stdout").starts_with("old"), "{seen:?}");

    let part = |name: &str, more: &str, content: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n{content}\r\n")
    };
    let (path, file) = (part("path", "", "/root/new"), part("file", "; filename=\"f\"", "whole"));
    let send = |body: String| {
        let form = "multipart/form-data; boundary=B";
        let request = http.post(format!("{}{files}/write", service.url)).header("x-api-key", &service.key);
        async move { request.header("content-type", form).body(body).send().await.unwrap().status().as_u16() }
    };
    // Cut before its last boundary, although the body itself is complete; the file first; no file at all.
    assert_eq!(send(format!("{path}{file}")).await, 400);
    assert_eq!(send(format!("{file}{path}--B--\r\n")).await, 400);
    assert_eq!(send(format!("{path}--B--\r\n")).await, 400);
    let missing = service.post(&format!("{files}/read"), &json!({ "path": "/root/new" })).await.unwrap();
    assert_eq!((missing.status, missing.text("/error/code")), (404, "not_found"), "{missing:?}");
    assert_eq!(send(format!("{path}{file}--B--\r\n")).await, 204);
    let whole = service.post(&format!("{files}/read"), &json!({ "path": "/root/new" })).await.unwrap();
    assert_eq!(whole.body, json!("whole"));
    service.delete(&format!("/v1/capsules/{id}")).await.unwrap();
    service.stop_clean().unwrap();
}
