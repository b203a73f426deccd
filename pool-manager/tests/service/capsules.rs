//! Users' capsules and their rows.

use crate::testbed::Testbed;
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::agent::CapsuleState,
};
use std::sync::Arc;
use tonic::{Code, Status};

#[tokio::test]
async fn a_capsule_lives_from_create_to_destroy() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let created = testbed.create(team).await.unwrap();
    let id = created.capsule_id.as_str();
    assert_eq!((created.source.as_str(), created.template.as_str()), ("warm", "code"));
    assert_eq!(created.state(), CapsuleState::Running);
    assert_eq!((created.vcpus, created.memory_mb, created.timeout_sec), (1, 512, 300));
    assert_eq!(testbed.row(id).await.unwrap().0, "running");

    let got = testbed.get(team, id).await.unwrap();
    assert_eq!((got.name.as_str(), got.metadata["purpose"].as_str()), ("mine", "test"));
    assert_eq!(got.created_at_ms, created.created_at_ms);
    let second = testbed.create(team).await.unwrap().capsule_id;
    assert_eq!(testbed.list(team).await.unwrap(), [second.as_str(), id], "the newest first");
    assert_eq!(testbed.locate(team, id).await.unwrap().endpoint, testbed.host.endpoint());

    testbed.destroy(team, id).await.unwrap();
    testbed.destroy(team, id).await.unwrap();
    assert!(testbed.host.table().destroyed.contains(&id.to_owned()));
    testbed.until("the row follows", async || testbed.row(id).await.unwrap().0 == "stopped").await;
    assert_eq!(testbed.get(team, id).await.unwrap().state(), CapsuleState::Stopped);
    assert_eq!(testbed.list(team).await.unwrap(), [second]);
    assert_eq!(testbed.locate(team, id).await.unwrap_err().code(), Code::FailedPrecondition);
    testbed.finish().await;
}

#[tokio::test]
async fn another_teams_capsule_is_not_found() {
    let testbed = Testbed::new().await;
    let id = testbed.create(TeamId::new()).await.unwrap().capsule_id;
    let (stranger, unknown) = (TeamId::new(), CapsuleId::new().to_string());
    for id in [id.as_str(), unknown.as_str()] {
        assert_eq!(testbed.get(stranger, id).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(testbed.locate(stranger, id).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(testbed.destroy(stranger, id).await.unwrap_err().code(), Code::NotFound);
    }
    assert!(testbed.list(stranger).await.unwrap().is_empty());
    // Nor does a release end what is a user's.
    testbed.release(&id).await;
    assert_eq!(testbed.on_host(CapsuleState::Running), [id]);
    testbed.finish().await;
}

#[tokio::test]
async fn a_capsule_that_dies_is_failed_with_its_reason() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.die(&id, "the VMM was killed");
    testbed
        .until("it is known to have failed", async || {
            testbed.get(team, &id).await.unwrap().state() == CapsuleState::Failed
        })
        .await;
    assert_eq!(testbed.get(team, &id).await.unwrap().reason, "the VMM was killed");
    let row = ("failed".to_owned(), "the VMM was killed".to_owned());
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap() == row).await;
    assert!(testbed.list(team).await.unwrap().is_empty());
    testbed.finish().await;
}

#[tokio::test]
async fn a_failed_claim_costs_its_user_nothing() {
    let testbed = Testbed::new().await;
    testbed.host.table().refuse_claims = Some(Status::internal("the pager died"));
    let created = testbed.create(TeamId::new()).await.unwrap();
    assert_eq!(created.source, "restored");
    testbed.until("the other is destroyed", async || testbed.host.table().destroyed.len() == 1).await;
    testbed.finish().await;
}

#[tokio::test]
async fn a_capsule_with_an_environment_is_restored_with_it() {
    let testbed = Testbed::new().await;
    let env = [("GREETING".to_owned(), "hello".to_owned())].into();
    let created = testbed.create_with(TeamId::new(), env).await.unwrap();
    assert_eq!(created.source, "restored");
    assert_eq!(testbed.host.table().env[&created.capsule_id]["GREETING"], "hello");
    assert_eq!(testbed.stock().await.parked, 4, "no parked one was spent on it");
    testbed.finish().await;
}

#[tokio::test]
async fn a_caller_that_leaves_during_create_leaves_a_capsule_with_its_row() {
    let testbed = Arc::new(Testbed::with(|config| config.target = 0).await);
    let team = TeamId::new();
    testbed.host.hold(true);
    let left = tokio::spawn({
        let testbed = testbed.clone();
        async move { testbed.create(team).await }
    });
    testbed.until("it is being restored", async || testbed.host.table().restoring == 1).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    testbed.host.hold(false);
    testbed.until("it is listed", async || testbed.list(team).await.unwrap().len() == 1).await;
    assert_eq!(testbed.list(team).await.unwrap(), testbed.on_host(CapsuleState::Running));
    assert_eq!(testbed.rows().await, 1);
    testbed.finish_shared().await;
}

#[tokio::test]
async fn a_create_that_fails_leaves_neither_capsule_nor_row() {
    let testbed = Testbed::with(|config| config.target = 0).await;
    testbed.host.table().refuse = Some(Status::internal("QEMU exited"));
    let refused = testbed.create(TeamId::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
    assert_eq!(refused.message(), "the host could not start the capsule");
    assert_eq!(testbed.rows().await, 0);
    assert!(testbed.host.table().capsules.is_empty());
    testbed.finish().await;
}
