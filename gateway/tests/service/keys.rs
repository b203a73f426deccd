//! API keys: who gets in, and the life of the first key.

use crate::testbed::{Testbed, config, header, refusal, start};
use hearth_gateway::GatewayError;
use sqlx::{Connection, PgConnection};
use std::{fs, os::unix::fs::PermissionsExt};

#[tokio::test]
async fn only_a_valid_key_gets_in_through_either_header() {
    let bed = Testbed::start().await;
    let key = bed.key();
    let other = format!("wrn_{}", "0".repeat(32));
    let route = || bed.client.get(bed.url("/v1/capsules"));
    let refused = [
        route(),
        route().header("x-api-key", ""),
        route().header("x-api-key", "junk"),
        route().header("x-api-key", &other),
        route().header("x-api-key", &other).header("authorization", format!("Bearer {key}")),
        route().header("authorization", format!("Basic {key}")),
        route().bearer_auth(&other),
        // Without a key nothing is said about the body.
        bed.client.post(bed.url("/v1/execute")).body("junk"),
        bed.client.get(bed.url("/v1/capsules/junk")),
    ];
    for request in refused {
        let refusal = refusal(request).await;
        assert_eq!((refusal.status, refusal.code.as_str()), (401, "unauthorized"));
        assert!(!refusal.message.contains("wrn_"));
    }
    let response = route().send().await.expect("an answer");
    assert_eq!(header(&response, "www-authenticate").as_deref(), Some("Bearer"));
    for admitted in [route().header("x-api-key", &key), route().bearer_auth(&key)] {
        assert_eq!(refusal(admitted).await.code, "host_unavailable");
    }
}

#[tokio::test]
async fn the_first_key_is_made_once_and_survives_restarts() {
    let mut bed = Testbed::start().await;
    let key = bed.key();
    assert_eq!(key.len(), 36);
    assert!(key.starts_with("wrn_"));
    let mode = fs::metadata(bed.running.key_file()).expect("the key file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bed.restart().await;
    assert_eq!(bed.key(), key);
    assert_eq!(keys(&bed).await, 1);
    assert_eq!(refusal(bed.get("/v1/capsules")).await.code, "host_unavailable");
}

#[tokio::test]
async fn a_removed_file_stays_removed_while_the_database_has_keys() {
    let mut bed = Testbed::start().await;
    fs::remove_file(bed.running.key_file()).expect("removed");
    bed.restart().await;
    assert!(!bed.running.key_file().exists());
    assert_eq!(keys(&bed).await, 1);
}

#[tokio::test]
async fn the_kept_key_works_with_a_new_database() {
    let mut bed = Testbed::start().await;
    let key = bed.key();
    let url = crate::postgres::database().await;
    bed.config.database_url = Some(url.parse().expect("a URL"));
    bed.restart().await;
    assert_eq!(bed.key(), key);
    assert_eq!(refusal(bed.get("/v1/capsules")).await.code, "host_unavailable");
}

#[tokio::test]
async fn a_revoked_key_is_not_revived_by_a_restart() {
    let mut bed = Testbed::start().await;
    run(&bed, "UPDATE api_keys SET revoked_at = now()").await;
    bed.restart().await;
    assert_eq!(refusal(bed.get("/v1/capsules")).await.status, 401);
}

#[tokio::test]
async fn the_last_use_is_written_at_the_latest_at_shutdown() {
    let bed = Testbed::start().await;
    refusal(bed.get("/v1/capsules")).await;
    bed.stop().await;
    let mut connection = PgConnection::connect(&bed.database).await.expect("a connection");
    let used: bool = sqlx::query_scalar("SELECT last_used_at > now() - interval '1 minute' FROM api_keys")
        .fetch_one(&mut connection)
        .await
        .expect("a row");
    assert!(used);
}

#[tokio::test]
async fn two_gateways_that_start_at_once_agree_on_schema_and_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = crate::postgres::database().await;
    let config = config(&url, folder.path(), &[]);
    let (one, two) = tokio::join!(start(&config), start(&config));
    let (one, two) = (one.expect("a gateway"), two.expect("a gateway"));
    let key = fs::read_to_string(one.0.key_file()).expect("the key file");
    for (running, shutdown) in [one, two] {
        let request = reqwest::Client::new()
            .get(format!("http://{}/v1/capsules", running.address()))
            .header("x-api-key", key.trim());
        assert_eq!(refusal(request).await.status, 503);
        shutdown.begin();
    }
}

#[tokio::test]
async fn what_cannot_work_is_said_before_anything_listens() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = crate::postgres::database().await;
    fs::write(folder.path().join("api-key"), "junk").expect("written");
    let error = start(&config(&url, folder.path(), &[])).await.expect_err("no gateway");
    assert!(matches!(error, GatewayError::FirstKey(_)), "{error}");
    let error = start(&config(&url, folder.path(), &["--max-requests=0"])).await.expect_err("no gateway");
    assert!(matches!(error, GatewayError::Config(_)), "{error}");
    let error =
        start(&config(&url, folder.path(), &["--pool-manager=http://x"])).await.expect_err("no gateway");
    assert!(matches!(error, GatewayError::Endpoint(_)), "{error}");
}

async fn keys(bed: &Testbed) -> i64 {
    let mut connection = PgConnection::connect(&bed.database).await.expect("a connection");
    sqlx::query_scalar("SELECT count(*) FROM api_keys").fetch_one(&mut connection).await.expect("a count")
}

async fn run(bed: &Testbed, sql: &'static str) {
    let mut connection = PgConnection::connect(&bed.database).await.expect("a connection");
    sqlx::query(sql).execute(&mut connection).await.expect("done");
}
