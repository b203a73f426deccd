//! The example of an embedded gateway, used as it is.

#[path = "../../examples/embed.rs"]
mod embed;

use crate::{
    postgres,
    testbed::{self, header},
};
use hearth_gateway::Gateway;
use hearth_service::shutdown::Shutdown;
use serde_json::Value;
use std::time::Duration;

#[tokio::test]
async fn routes_middleware_and_background_work_are_added() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = postgres::database().await;
    let config = testbed::config(&url, &folder.path().join("data"), &[]);
    let shutdown = Shutdown::new();
    let gateway = Gateway::builder(config).extension(embed::Counting::default());
    let running = gateway.start(shutdown.clone()).await.expect("a gateway");
    let key = std::fs::read_to_string(running.key_file()).expect("the key file");
    let client = reqwest::Client::new();
    let url = format!("http://{}/ours/count", running.address());

    let refused = client.get(&url).send().await.expect("an answer");
    assert_eq!(refused.status(), 401);
    let body: Value = refused.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "unauthorized");

    let ticking = async {
        loop {
            let answer = client.get(&url).header("x-api-key", key.trim()).send().await.expect("an answer");
            assert_eq!((answer.status().as_u16(), header(&answer, "x-ours").as_deref()), (200, Some("yes")));
            let body: Value = answer.json().await.expect("JSON");
            assert_eq!(body["keys"], 1);
            if body["ticks"].as_u64() > Some(1) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ticking).await.expect("the background work to run");

    // Hearth's own routes are inside the middleware too.
    let health = client.get(format!("http://{}/health", running.address())).send().await.expect("an answer");
    assert_eq!((health.status().as_u16(), header(&health, "x-ours").as_deref()), (200, Some("yes")));
    assert!(shutdown.finish(Duration::from_secs(10)).await, "the background work did not end");
}
