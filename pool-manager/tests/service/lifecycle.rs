//! Pause, resume, fork, update, ping: what they do, and what they do beside each other.

use crate::testbed::{Testbed, of};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{
        agent::{CapsuleState, TimeoutAction},
        pool::{self, ForkCapsuleRequest, TeamLimits, UpdateCapsuleRequest},
    },
};
use std::sync::Arc;
use tonic::{Code, Status};

fn fork(team: TeamId, id: &str, count: u32) -> ForkCapsuleRequest {
    ForkCapsuleRequest { team_id: team.to_string(), capsule_id: id.to_owned(), count, ..Default::default() }
}

async fn paused_by(testbed: &Testbed, id: &str) -> String {
    let id: CapsuleId = id.parse().unwrap();
    sqlx::query_scalar("SELECT paused_by FROM capsules WHERE id = $1")
        .bind(id.uuid())
        .fetch_one(&mut testbed.database.connect().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_capsule_is_paused_and_comes_back() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let paused = testbed.pause(team, &id).await.unwrap();
    assert_eq!(paused.state(), CapsuleState::Paused);
    assert_eq!(testbed.pause(team, &id).await.unwrap().state(), CapsuleState::Paused, "it is as asked");
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap().0 == "paused").await;
    assert_eq!(paused_by(&testbed, &id).await, "user");

    testbed.restart().await;
    testbed.full().await;
    assert_eq!(testbed.get(team, &id).await.unwrap().state(), CapsuleState::Paused);
    let resumed = testbed.resume(team, &id).await.unwrap();
    assert_eq!(resumed.state(), CapsuleState::Running);
    assert_eq!(testbed.resume(team, &id).await.unwrap().state(), CapsuleState::Running);
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap().0 == "running").await;
    assert_eq!(paused_by(&testbed, &id).await, "host");
    let unknown = CapsuleId::new().to_string();
    assert_eq!(testbed.pause(team, &unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(testbed.pause(TeamId::new(), &id).await.unwrap_err().code(), Code::NotFound);
    testbed.finish().await;
}

#[tokio::test]
async fn requests_for_the_same_join_and_others_are_refused_at_once() {
    let testbed = Arc::new(Testbed::new().await);
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.stall(true);
    let spawn = || {
        let (testbed, id) = (testbed.clone(), id.clone());
        tokio::spawn(async move { testbed.pause(team, &id).await })
    };
    let first = spawn();
    testbed
        .until("it is being paused", async || {
            testbed.get(team, &id).await.unwrap().state() == CapsuleState::Pausing
        })
        .await;
    let second = spawn();
    for refused in [
        testbed.resume(team, &id).await.unwrap_err(),
        testbed.fork(fork(team, &id, 1)).await.unwrap_err(),
        testbed.snapshot(team, &id, "mine").await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
        assert!(refused.message().contains("being paused"), "{}", refused.message());
    }
    testbed.host.stall(false);
    for pause in [first, second] {
        assert_eq!(pause.await.unwrap().unwrap().state(), CapsuleState::Paused);
    }
    let pauses = testbed.host.table().changes.iter().filter(|change| *change == "pause").count();
    assert_eq!(pauses, 1, "the host was asked once");
    testbed.finish_shared().await;
}

#[tokio::test]
async fn what_was_begun_is_done_although_its_caller_left() {
    let testbed = Arc::new(Testbed::new().await);
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.stall(true);
    let left = tokio::spawn({
        let (testbed, id) = (testbed.clone(), id.clone());
        async move { testbed.fork(fork(team, &id, 2)).await }
    });
    testbed
        .until("it is being forked", async || testbed.host.table().changes.contains(&"fork".to_owned()))
        .await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    testbed.host.stall(false);
    testbed.until("the copies are listed", async || testbed.list(team).await.unwrap().len() == 3).await;
    assert_eq!(testbed.rows().await, 3);
    assert_eq!(testbed.on_host(CapsuleState::Running).len(), 3);
    testbed.finish_shared().await;
}

#[tokio::test]
async fn a_change_that_fails_leaves_the_capsule_as_it_was() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.table().refuse_changes = Some(Status::resource_exhausted("the disk is full"));
    for refused in [
        testbed.pause(team, &id).await.unwrap_err(),
        testbed.fork(fork(team, &id, 3)).await.unwrap_err(),
        testbed.snapshot(team, &id, "mine").await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::ResourceExhausted);
    }
    testbed.host.table().refuse_changes = None;
    assert_eq!(testbed.get(team, &id).await.unwrap().state(), CapsuleState::Running);
    assert_eq!(testbed.list(team).await.unwrap(), [id.as_str()]);
    assert_eq!(testbed.rows().await, 1);
    // The pause was none of its user's in the end: the next one is the host's.
    testbed.host.suspend(&id);
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap().0 == "paused").await;
    assert_eq!(paused_by(&testbed, &id).await, "host");
    testbed.finish().await;
}

#[tokio::test]
async fn copies_have_rows_and_tokens_of_their_own_and_one_key_makes_them_once() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let source = testbed.create(team).await.unwrap();
    testbed.pause(team, &source.capsule_id).await.unwrap();
    let keyed =
        ForkCapsuleRequest { idempotency_key: "copies".to_owned(), ..fork(team, &source.capsule_id, 3) };
    let copies = testbed.fork(keyed.clone()).await.unwrap();
    assert_eq!(copies.len(), 3);
    for copy in &copies {
        assert_eq!((copy.state(), copy.name.as_str()), (CapsuleState::Running, "mine"));
        assert_ne!(copy.access_token, source.access_token);
        assert_eq!(testbed.row(&copy.capsule_id).await.unwrap().0, "running");
    }
    let again = testbed.fork(keyed.clone()).await.unwrap();
    let ids = |records: &[pool::CapsuleRecord]| {
        records.iter().map(|record| record.capsule_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&again), ids(&copies));
    let other = ForkCapsuleRequest { count: 2, ..keyed };
    assert_eq!(testbed.fork(other).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(
        testbed.fork(fork(team, &source.capsule_id, 65)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let limits = Some(TeamLimits { capsules: 4, memory_mb: 0 });
    let limited = ForkCapsuleRequest { limits, ..fork(team, &source.capsule_id, 2) };
    assert!(testbed.fork(limited).await.unwrap_err().message().starts_with("quota: "));
    assert_eq!(testbed.rows().await, 4);
    testbed.finish().await;
}

#[tokio::test]
async fn an_update_changes_what_it_names() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let update = async |request: UpdateCapsuleRequest| {
        let request = UpdateCapsuleRequest { team_id: team.to_string(), capsule_id: id.clone(), ..request };
        testbed.client.clone().update_capsule(request).await.map(tonic::Response::into_inner)
    };
    let changed = update(UpdateCapsuleRequest {
        timeout_sec: Some(60),
        timeout_action: Some(TimeoutAction::Destroy.into()),
        disk_mb: Some(9000),
        name: Some("other".to_owned()),
        public_ports: Some(pool::PublicPorts { ports: vec![3000] }),
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!((changed.name.as_str(), changed.disk_mb, changed.timeout_sec), ("other", 9000, 60));
    assert_eq!(changed.metadata["purpose"], "test", "what is not named stays");
    assert_eq!(testbed.host.table().timeouts[&id], (60_000, TimeoutAction::Destroy.into()));
    let smaller = update(UpdateCapsuleRequest { disk_mb: Some(10), ..Default::default() }).await.unwrap_err();
    assert_eq!(smaller.code(), Code::InvalidArgument);

    testbed.pause(team, &id).await.unwrap();
    let grown = update(UpdateCapsuleRequest { disk_mb: Some(10_000), ..Default::default() }).await;
    assert_eq!(grown.unwrap_err().code(), Code::FailedPrecondition);
    let cleared = update(UpdateCapsuleRequest {
        timeout_sec: Some(0),
        metadata: Some(pool::Metadata::default()),
        ..Default::default()
    });
    assert!(cleared.await.unwrap().metadata.is_empty());
    testbed.resume(team, &id).await.unwrap();
    assert_eq!(
        testbed.host.table().timeouts[&id].0,
        0,
        "it has the timeout that was chosen while it was paused"
    );
    testbed.finish().await;
}

#[tokio::test]
async fn a_ping_is_for_running_capsules() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let ping = async || testbed.client.clone().ping_capsule(of(team, &id)).await;
    assert!(ping().await.unwrap().into_inner().last_active_at_ms > 0);
    assert!(testbed.host.table().changes.contains(&"set_timeouts".to_owned()));
    testbed.pause(team, &id).await.unwrap();
    assert_eq!(ping().await.unwrap_err().code(), Code::FailedPrecondition);
    testbed.finish().await;
}

#[tokio::test]
async fn a_destroy_does_not_wait_for_what_is_under_way() {
    let testbed = Arc::new(Testbed::new().await);
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.stall(true);
    let pause = tokio::spawn({
        let (testbed, id) = (testbed.clone(), id.clone());
        async move { testbed.pause(team, &id).await }
    });
    testbed
        .until("it is being paused", async || {
            testbed.get(team, &id).await.unwrap().state() == CapsuleState::Pausing
        })
        .await;
    testbed.destroy(team, &id).await.unwrap();
    testbed.host.stall(false);
    assert!(pause.await.unwrap().is_err());
    assert_eq!(testbed.get(team, &id).await.unwrap().state(), CapsuleState::Stopped);
    testbed.finish_shared().await;
}
