//! Several hosts: which one a capsule goes to, and that it stays there.

use crate::{agent::Host, database::Database, testbed::Testbed};
use hearth_proto::{
    id::TeamId,
    wire::{agent::CapsuleState, pool},
};
use tonic::Code;

/// A pool-manager with two hosts, both up.
async fn two(target: usize) -> (Testbed, Host) {
    let folder = tempfile::tempdir().unwrap();
    let second = Host::new("second-host", folder.path().join("second.sock"));
    second.up();
    // The sockets' folder lives as long as the test's process.
    let _path = folder.keep();
    let endpoint = second.endpoint();
    let set = move |config: &mut hearth_pool_manager::Config| {
        config.target = target;
        let first = config.agent_endpoint.clone().unwrap();
        config.agent_endpoint = Some(format!("{first},{endpoint}"));
    };
    let testbed = Testbed::start(Database::new().await, set, |_| {}).await;
    testbed.full().await;
    testbed
        .until("both hosts are connected", async || {
            let hosts = hosts(&testbed).await;
            hosts.len() == 2 && hosts.iter().all(|host| host.status == "online")
        })
        .await;
    (testbed, second)
}

async fn hosts(testbed: &Testbed) -> Vec<pool::HostRecord> {
    testbed.client.clone().list_hosts(pool::ListHostsRequest {}).await.unwrap().into_inner().hosts
}

#[tokio::test]
async fn capsules_spread_over_hosts_and_stay_where_they_are() {
    let (testbed, second) = two(0).await;
    let team = TeamId::new();
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(testbed.create(team).await.unwrap());
    }
    let on = |host_id: &str| made.iter().filter(|capsule| capsule.host_id == host_id).count();
    assert_eq!((on("host-of-the-test"), on("second-host")), (2, 2), "each time the one with most room");
    assert_eq!(second.table().in_state(CapsuleState::Running).len(), 2);
    for capsule in &made {
        let place = testbed.locate(team, &capsule.capsule_id).await.unwrap();
        let expected =
            if capsule.host_id == "second-host" { second.endpoint() } else { testbed.host.endpoint() };
        assert_eq!((place.host_id.as_str(), place.endpoint), (capsule.host_id.as_str(), expected));
        testbed.pause(team, &capsule.capsule_id).await.unwrap();
        testbed.resume(team, &capsule.capsule_id).await.unwrap();
    }
    let listed = hosts(&testbed).await;
    assert!(listed.iter().all(|host| host.capsules == 2 && host.last_seen_ms > 0), "{listed:?}");
    for capsule in &made {
        testbed.destroy(team, &capsule.capsule_id).await.unwrap();
    }
    assert!(second.table().capsules.is_empty());
    testbed.finish().await;
    second.down().await;
}

#[tokio::test]
async fn a_pool_is_spread_and_a_warm_capsule_anywhere_is_taken_first() {
    let (testbed, second) = two(3).await;
    let counts = |testbed: &Testbed| {
        (testbed.on_host(CapsuleState::Parked).len(), second.table().in_state(CapsuleState::Parked).len())
    };
    assert_eq!(counts(&testbed), (2, 1));
    testbed.host.hold(true);
    second.hold(true);
    let mut taken = Vec::new();
    for _ in 0..3 {
        let take = testbed.take().await.unwrap();
        assert_eq!(take.source, "warm");
        taken.push(take.capsule_id);
    }
    testbed.host.hold(false);
    second.hold(false);
    for id in &taken {
        testbed.release(id).await;
    }
    testbed
        .until("all are destroyed where they are", async || {
            testbed.host.table().destroyed.len() + second.table().destroyed.len() == 3
        })
        .await;
    testbed.full().await;
    testbed.finish().await;
    second.down().await;
}

#[tokio::test]
async fn a_host_that_is_away_keeps_its_capsules_and_gets_no_new_ones() {
    let (testbed, second) = two(0).await;
    let team = TeamId::new();
    let mut made = Vec::new();
    for _ in 0..2 {
        made.push(testbed.create(team).await.unwrap());
    }
    let there = made.iter().find(|capsule| capsule.host_id == "second-host").unwrap().capsule_id.clone();
    second.down().await;
    testbed
        .until("it is known to be away", async || {
            hosts(&testbed).await.iter().any(|host| host.status == "unreachable")
        })
        .await;
    assert!(testbed.status().await.ready, "the other one serves");
    for _ in 0..3 {
        assert_eq!(testbed.create(team).await.unwrap().host_id, "host-of-the-test");
    }
    assert_eq!(testbed.get(team, &there).await.unwrap().state(), CapsuleState::Running);
    assert_eq!(testbed.pause(team, &there).await.unwrap_err().code(), Code::Unavailable);
    second.up();
    testbed
        .until("it is back", async || hosts(&testbed).await.iter().all(|host| host.status == "online"))
        .await;
    assert_eq!(testbed.pause(team, &there).await.unwrap().state(), CapsuleState::Paused);
    testbed.finish().await;
    second.down().await;
}

#[tokio::test]
async fn capsules_of_a_host_that_is_no_more_are_missing() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let other = Host::new("new-host", testbed.path("new.sock"));
    other.up();
    testbed.config.agent_endpoint = Some(other.endpoint());
    testbed.restart().await;
    testbed
        .until("it is missing", async || {
            testbed.get(team, &id).await.unwrap().reason.starts_with("missing: ")
        })
        .await;
    let hosts = hosts(&testbed).await;
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    assert!(!testbed.host.table().destroyed.contains(&id), "nothing is destroyed for that");
    testbed.finish().await;
    other.down().await;
}
