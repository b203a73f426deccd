//! Probes, metrics, migrations.

use crate::{
    postgres,
    testbed::{Testbed, refusal, until},
};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn alive_is_not_ready_while_pool_manager_is_absent() {
    let bed = Testbed::start().await;
    let health: Value =
        bed.client.get(bed.url("/health")).send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(health["status"], "ok");
    let refused = refusal(bed.client.get(bed.url("/ready"))).await;
    assert_eq!((refused.status, refused.code.as_str()), (503, "host_unavailable"));
    let ready: Value =
        bed.client.get(bed.url("/ready")).send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(ready["ready"], false);
    assert_eq!(ready["detail"], "pool-manager does not answer");
}

#[tokio::test]
async fn metrics_name_routes_and_never_paths() {
    let bed = Testbed::start().await;
    refusal(bed.get("/v1/capsules/cl-123")).await;
    refusal(bed.get("/secret-path-of-a-caller")).await;
    let text =
        bed.client.get(bed.url("/metrics")).send().await.expect("an answer").text().await.expect("text");
    let count = r#"hearth_gateway_requests_total{route="/v1/capsules/{id}",method="GET",status="400"}"#;
    for expected in [count, "hearth_gateway_request_seconds_bucket", "hearth_gateway_requests_in_flight"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!text.contains("secret-path"));
}

#[tokio::test]
async fn migrations_run_twice_and_at_the_same_time() {
    let url = postgres::database().await;
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await.expect("a pool");
    let (one, two) = tokio::join!(hearth_migrations::run(&pool), hearth_migrations::run(&pool));
    one.expect("migrated");
    two.expect("migrated");
    hearth_migrations::run(&pool).await.expect("nothing to do");
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            .fetch_all(&pool)
            .await
            .expect("tables");
    for table in
        ["_sqlx_migrations", "api_keys", "audit_log", "capsules", "hosts", "teams", "templates", "users"]
    {
        assert!(tables.iter().any(|there| there == table), "{table}: {tables:?}");
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections_at_once() {
    let bed = Testbed::start().await;
    // The client keeps this connection open.
    bed.client.get(bed.url("/health")).send().await.expect("an answer").text().await.expect("text");
    let begun = std::time::Instant::now();
    bed.stop().await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    assert!(bed.client.get(bed.url("/health")).send().await.is_err());
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_is_told_so() {
    let bed = Testbed::start_with(&["--gateway-grace-ms=200", "--max-requests=1"]).await;
    let mut stalled = tokio::net::TcpStream::connect(bed.running.address()).await.expect("connected");
    let head = format!(
        "POST /v1/execute HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 9\r\n\r\n{{",
        bed.key()
    );
    stalled.write_all(head.as_bytes()).await.expect("written");
    until(&bed, "no_capacity").await;
    bed.stop().await;
    let mut answer = String::new();
    stalled.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting down"), "{answer}");
}
