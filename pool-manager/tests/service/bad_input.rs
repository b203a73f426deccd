//! Requests that are wrong, and requests that come too early.

use crate::{database::Database, testbed::Testbed};
use hearth_pool_manager::{Config, PoolManager, PoolManagerError};
use hearth_proto::{id::TeamId, wire::pool};
use hearth_service::shutdown::Shutdown;
use tonic::{Code, Status};

async fn take(testbed: &Testbed, request: pool::TakeRequest) -> (Code, String) {
    let refused: Status = testbed.client.clone().take(request).await.unwrap_err();
    (refused.code(), refused.message().to_owned())
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let testbed = Testbed::with(|config| config.target = 0).await;
    for (request, code, message) in [
        (
            pool::TakeRequest { template: "rust".to_owned(), ..Default::default() },
            Code::NotFound,
            "template `rust` not found; there are: code",
        ),
        (
            pool::TakeRequest { memory_mb: 4096, ..Default::default() },
            Code::InvalidArgument,
            "memory_mb: no variant of the template has 4096; there are: 512",
        ),
        (
            pool::TakeRequest { language: "cobol".to_owned(), ..Default::default() },
            Code::InvalidArgument,
            "language `cobol` is not in template `code`; there are: python",
        ),
        (
            pool::TakeRequest { lease_ms: 86_400_000, ..Default::default() },
            Code::InvalidArgument,
            "lease_ms: at most 900000 (HEARTH_LEASE_MAX_SEC), not 86400000",
        ),
    ] {
        assert_eq!(take(&testbed, request).await, (code, message.to_owned()));
    }
    let create =
        pool::CreateCapsuleRequest { team_id: TeamId::new().to_string(), vcpus: 8, ..Default::default() };
    let refused = testbed.client.clone().create_capsule(create).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("vcpus: "), "{}", refused.message());
    let create = pool::CreateCapsuleRequest { team_id: "nobody".to_owned(), ..Default::default() };
    let refused = testbed.client.clone().create_capsule(create).await.unwrap_err();
    assert!(refused.message().starts_with("team_id: "), "{}", refused.message());
    let refused = testbed.get(TeamId::new(), "cl-short").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("capsule_id: "), "{}", refused.message());
    assert!(testbed.host.table().capsules.is_empty());
    testbed.finish().await;
}

#[tokio::test]
async fn until_the_template_is_built_requests_hear_how_far_it_is() {
    let testbed = Testbed::start(Database::new().await, |_| {}, |host| host.hold_builds(true)).await;
    let detail = "building template code: boot the guest";
    testbed.until("the build says something", async || testbed.status().await.detail == detail).await;
    assert!(!testbed.status().await.ready);
    let refused = testbed.take().await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, detail));
    testbed.host.hold_builds(false);
    testbed.full().await;
    let status = testbed.status().await;
    assert!(status.ready);
    assert_eq!(status.detail, "");
    testbed
        .until("the template has its row", async || {
            let name: Option<String> =
                sqlx::query_scalar("SELECT name FROM templates WHERE languages = '{python}'")
                    .fetch_optional(&mut testbed.database.connect().await)
                    .await
                    .unwrap();
            name.as_deref() == Some("code")
        })
        .await;
    testbed.finish().await;
}

#[tokio::test]
async fn a_start_without_a_database_ends_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let url = format!("postgres://postgres@{}/none", folder.path().display().to_string().replace('/', "%2F"));
    let mut config = Config::new(path("pool.sock"), format!("unix:{}", path("agent.sock").display()), url);
    config.database_wait_sec = 0;
    let error = PoolManager::start(config, Shutdown::new()).await.unwrap_err();
    assert!(matches!(error, PoolManagerError::DatabaseAway { .. }), "{error}");
    assert!(!path("pool.sock").exists(), "nothing is served");
}
