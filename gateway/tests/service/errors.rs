//! Every refusal has the one shape, whoever makes it.

use crate::testbed::{Testbed, header, refusal, until};

#[tokio::test]
async fn unknown_routes_and_methods_have_the_error_shape() {
    let bed = Testbed::start().await;
    let missing = refusal(bed.get("/v1/nothing/here")).await;
    assert_eq!((missing.status, missing.code.as_str()), (404, "not_found"));
    assert!(missing.message.contains("/v1/nothing/here"));
    let wrong = refusal(bed.client.put(bed.url("/v1/execute"))).await;
    assert_eq!((wrong.status, wrong.code.as_str()), (405, "invalid_request"));
    let response = bed.client.patch(bed.url("/v1/capsules")).send().await.expect("an answer");
    let allow = header(&response, "allow").unwrap_or_default();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
}

#[tokio::test]
async fn malformed_ids_are_400_and_an_absent_upstream_is_503() {
    let bed = Testbed::start().await;
    for path in [
        "/v1/capsules/nope",
        "/v1/capsules/cl-123",
        "/v1/capsules/%ff",
        "/v1/capsules/cl-ZZZZZZZZZZZZZZZZZZZZZZZZZ",
    ] {
        let refused = refusal(bed.get(path)).await;
        assert_eq!((refused.status, refused.code.as_str()), (400, "invalid_request"), "{path}");
        assert!(refused.message.starts_with("id: "), "{}", refused.message);
    }
    let capsule = "/v1/capsules/cl-0000000000000000000000000";
    let key = bed.key();
    let requests = [
        bed.get("/v1/capsules"),
        bed.get(capsule),
        bed.client.delete(bed.url(capsule)).header("x-api-key", &key),
        bed.post("/v1/capsules", ""),
        bed.post("/v1/execute", r#"{"code":"1"}"#),
        bed.post(&format!("{capsule}/exec"), r#"{"cmd":"true"}"#),
        bed.post(&format!("{capsule}/execute"), r#"{"code":"1"}"#),
    ];
    for request in requests {
        let refused = refusal(request).await;
        assert_eq!((refused.status, refused.code.as_str()), (503, "host_unavailable"));
        assert!(!refused.message.contains("sock"), "{}", refused.message);
    }
    let response = bed.post("/v1/execute", r#"{"code":"1"}"#).send().await.expect("an answer");
    assert_eq!(header(&response, "retry-after").as_deref(), Some("1"));
}

#[tokio::test]
async fn bodies_over_the_limit_are_413_even_when_they_are_sent_to_the_end() {
    let bed = Testbed::start_with(&["--max-body-bytes=2048"]).await;
    for size in [2049, 8000, 1 << 20] {
        let request = bed.post("/v1/execute", "x".repeat(size));
        if size <= 8000 {
            let refused = refusal(request).await;
            assert_eq!((refused.status, refused.code.as_str()), (413, "too_large"), "{size}");
        } else if let Ok(response) = request.send().await {
            // Far over the limit we stop reading, so the client may see the connection break instead.
            assert_eq!(response.status(), 413);
        }
    }
}

#[tokio::test]
async fn the_request_id_is_made_or_kept() {
    let bed = Testbed::start().await;
    let own = bed.get("/health").header("x-request-id", "mine-1").send().await.expect("an answer");
    assert_eq!(header(&own, "x-request-id").as_deref(), Some("mine-1"));
    let made = bed.get("/health").header("x-request-id", "not plain!").send().await.expect("an answer");
    assert!(header(&made, "x-request-id").is_some_and(|id| id.starts_with("req-")));
}

#[tokio::test]
async fn requests_over_the_limit_are_refused_and_probes_are_not() {
    let bed = Testbed::start_with(&["--max-requests=1"]).await;
    let mut stalled = tokio::net::TcpStream::connect(bed.running.address()).await.expect("connected");
    let head = format!(
        "POST /v1/execute HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 100\r\n\r\n{{",
        bed.key()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stalled, head.as_bytes()).await.expect("written");
    // Until the stalled request has its place, this one reaches the absent pool-manager.
    let refused = until(&bed, "no_capacity").await;
    assert_eq!(refused.status, 503);
    assert_eq!(bed.get("/health").send().await.expect("an answer").status(), 200);
    drop(stalled);
    until(&bed, "host_unavailable").await;
}
