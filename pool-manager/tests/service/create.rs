//! What users can choose for a capsule, keys, quotas, lists.

use crate::testbed::Testbed;
use hearth_proto::{
    id::TeamId,
    wire::{
        agent::{CapsuleState, NetworkPolicy, TimeoutAction},
        pool::{self, CreateCapsuleRequest, TeamLimits},
    },
};
use std::sync::Arc;
use tonic::Code;

fn request(team: TeamId) -> CreateCapsuleRequest {
    CreateCapsuleRequest { team_id: team.to_string(), ..Default::default() }
}

#[tokio::test]
async fn a_parked_capsule_gets_what_its_user_chose() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let network =
        NetworkPolicy { internet: true, allow: vec!["10.1.0.0/16".to_owned()], ..Default::default() };
    let created = testbed
        .create_as(CreateCapsuleRequest {
            timeout_sec: 90,
            timeout_action: TimeoutAction::Destroy.into(),
            disk_mb: 8192,
            network: Some(network.clone()),
            auto_resume: true,
            public_ports: vec![8080, 80, 80],
            ..request(team)
        })
        .await
        .unwrap();
    assert_eq!(created.source, "warm");
    let id = created.capsule_id.clone();
    {
        let table = testbed.host.table();
        assert_eq!(table.timeouts[&id], (90_000, TimeoutAction::Destroy.into()));
        assert_eq!(table.capsules[&id].disk_mb, 8192);
        assert_eq!(table.capsules[&id].network, Some(network.clone()));
    }
    testbed.full().await;
    testbed.restart().await;
    let known = testbed.get(team, &id).await.unwrap();
    assert_eq!(known.network, Some(network));
    assert_eq!((known.timeout_sec, known.timeout_action()), (90, TimeoutAction::Destroy));
    assert_eq!((known.auto_resume, known.public_ports), (true, vec![80, 8080]));
    assert_eq!((known.disk_mb, known.host_id.as_str()), (8192, "host-of-the-test"));
    assert_eq!(known.access_token.len(), 32);
    assert_eq!(known.access_token, created.access_token);
    testbed.finish().await;
}

#[tokio::test]
async fn the_same_key_makes_one_capsule_also_after_a_restart() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let keyed = CreateCapsuleRequest { idempotency_key: "once".to_owned(), ..request(team) };
    let first = testbed.create_as(keyed.clone()).await.unwrap().capsule_id;
    assert_eq!(testbed.create_as(keyed.clone()).await.unwrap().capsule_id, first);
    testbed.restart().await;
    assert_eq!(testbed.create_as(keyed.clone()).await.unwrap().capsule_id, first);
    assert_eq!(testbed.rows().await, 1);

    let other = CreateCapsuleRequest { auto_resume: true, ..keyed.clone() };
    assert_eq!(testbed.create_as(other).await.unwrap_err().code(), Code::AlreadyExists);
    let another_team = CreateCapsuleRequest { team_id: TeamId::new().to_string(), ..keyed };
    testbed.full().await;
    assert_ne!(testbed.create_as(another_team).await.unwrap().capsule_id, first);
    testbed.finish().await;
}

#[tokio::test]
async fn a_concurrent_request_with_the_same_key_waits_for_the_first() {
    let testbed = Arc::new(Testbed::with(|config| config.target = 0).await);
    let keyed = CreateCapsuleRequest { idempotency_key: "once".to_owned(), ..request(TeamId::new()) };
    testbed.host.hold(true);
    let spawn = || {
        let (testbed, keyed) = (testbed.clone(), keyed.clone());
        tokio::spawn(async move { testbed.create_as(keyed).await })
    };
    let all = [spawn(), spawn(), spawn()];
    testbed.until("one is being restored", async || testbed.host.table().restoring == 1).await;
    testbed.host.hold(false);
    let mut ids = Vec::new();
    for one in all {
        ids.push(one.await.unwrap().unwrap().capsule_id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(testbed.host.table().running_restores, 1);
    testbed.finish_shared().await;
}

#[tokio::test]
async fn a_key_whose_request_failed_can_be_used_again() {
    let testbed = Testbed::with(|config| config.target = 0).await;
    let keyed = CreateCapsuleRequest { idempotency_key: "once".to_owned(), ..request(TeamId::new()) };
    testbed.host.table().refuse = Some(tonic::Status::internal("QEMU exited"));
    assert_eq!(testbed.create_as(keyed.clone()).await.unwrap_err().code(), Code::Unknown);
    testbed.host.table().refuse = None;
    testbed.create_as(keyed).await.unwrap();
    testbed.finish().await;
}

#[tokio::test]
async fn a_team_has_no_more_than_its_quota() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let limited =
        CreateCapsuleRequest { limits: Some(TeamLimits { capsules: 2, memory_mb: 0 }), ..request(team) };
    let first = testbed.create_as(limited.clone()).await.unwrap().capsule_id;
    testbed.create_as(limited.clone()).await.unwrap();
    let refused = testbed.create_as(limited.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().starts_with("quota: "), "{}", refused.message());
    // A paused one does not count; nor does another team's.
    testbed.pause(team, &first).await.unwrap();
    testbed.create_as(limited.clone()).await.unwrap();
    let memory = Some(TeamLimits { capsules: 0, memory_mb: 1000 });
    let refused = testbed.create_as(CreateCapsuleRequest { limits: memory, ..limited }).await.unwrap_err();
    assert!(refused.message().contains("memory"), "{}", refused.message());
    testbed.create_as(CreateCapsuleRequest { limits: memory, ..request(TeamId::new()) }).await.unwrap();
    testbed.finish().await;
}

#[tokio::test]
async fn lists_are_filtered_and_go_on_where_they_stopped() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let mut ids = Vec::new();
    for number in 0..5 {
        let metadata = [("parity".to_owned(), (number % 2).to_string())].into();
        let created = testbed.create_as(CreateCapsuleRequest { metadata, ..request(team) }).await.unwrap();
        ids.insert(0, created.capsule_id);
    }
    let list = async |request: pool::ListCapsuleRecordsRequest| {
        let request = pool::ListCapsuleRecordsRequest { team_id: team.to_string(), ..request };
        let reply = testbed.client.clone().list_capsules(request).await.unwrap().into_inner();
        let listed: Vec<String> = reply.capsules.into_iter().map(|capsule| capsule.capsule_id).collect();
        (listed, reply.next_cursor)
    };
    let page = pool::ListCapsuleRecordsRequest { limit: 2, ..Default::default() };
    let (first, cursor) = list(page.clone()).await;
    assert_eq!(first, ids[..2]);
    // What is made meanwhile does not move the place.
    testbed.create(team).await.unwrap();
    let (second, cursor) = list(pool::ListCapsuleRecordsRequest { cursor, ..page.clone() }).await;
    assert_eq!(second, ids[2..4]);
    let (third, end) = list(pool::ListCapsuleRecordsRequest { cursor, ..page }).await;
    assert_eq!((third.as_slice(), end.as_str()), (&ids[4..], ""));

    let odd = [("parity".to_owned(), "1".to_owned())].into();
    let (odd, _) = list(pool::ListCapsuleRecordsRequest { metadata: odd, ..Default::default() }).await;
    assert_eq!(odd, [ids[1].clone(), ids[3].clone()]);

    testbed.pause(team, &ids[0]).await.unwrap();
    testbed.destroy(team, &ids[1]).await.unwrap();
    testbed.until("the row follows", async || testbed.row(&ids[1]).await.unwrap().0 == "stopped").await;
    let of = |state: CapsuleState| pool::ListCapsuleRecordsRequest {
        states: vec![state.into()],
        ..Default::default()
    };
    assert_eq!(list(of(CapsuleState::Paused)).await.0, [ids[0].clone()]);
    assert_eq!(list(of(CapsuleState::Stopped)).await.0, [ids[1].clone()]);
    testbed.finish().await;
}

#[tokio::test]
async fn capsules_that_ended_long_ago_are_listed_from_their_rows() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.destroy(team, &id).await.unwrap();
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap().0 == "stopped").await;
    testbed.restart().await;
    let request = pool::ListCapsuleRecordsRequest {
        team_id: team.to_string(),
        states: vec![CapsuleState::Stopped.into()],
        metadata: [("purpose".to_owned(), "test".to_owned())].into(),
        ..Default::default()
    };
    let reply = testbed.client.clone().list_capsules(request).await.unwrap().into_inner();
    assert_eq!(reply.capsules.len(), 1);
    assert_eq!(reply.capsules[0].capsule_id, id);
    assert_eq!(testbed.pause(team, &id).await.unwrap_err().code(), Code::FailedPrecondition);
    testbed.finish().await;
}
