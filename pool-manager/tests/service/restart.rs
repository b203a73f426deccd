//! A pool-manager that comes after another one.

use crate::testbed::Testbed;
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::agent::CapsuleState,
};

#[tokio::test]
async fn parked_capsules_of_the_earlier_one_are_adopted_and_the_rest_destroyed() {
    let mut testbed = Testbed::new().await;
    let parked = testbed.on_host(CapsuleState::Parked);
    assert_eq!(parked.len(), 4);
    testbed.config.target = 3;
    testbed.restart().await;
    testbed.full().await;
    testbed.until("the fourth is destroyed", async || testbed.host.table().destroyed.len() == 1).await;
    assert_eq!(testbed.host.table().parked_restores, 4, "nothing was restored anew");
    assert_eq!(testbed.take().await.unwrap().source, "warm");
    testbed.finish().await;
}

#[tokio::test]
async fn users_capsules_are_known_after_a_restart() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let dies = testbed.create(team).await.unwrap().capsule_id;
    testbed.full().await;
    testbed.restart().await;
    testbed.host.die(&dies, "the VMM was killed");
    testbed.full().await;
    assert_eq!(testbed.locate(team, &id).await.unwrap().host_id, "host-of-the-test");
    testbed
        .until("the death is known", async || {
            testbed.get(team, &dies).await.unwrap().state() == CapsuleState::Failed
        })
        .await;
    testbed.destroy(team, &id).await.unwrap();
    assert!(testbed.host.table().destroyed.contains(&id));
    testbed.finish().await;
}

#[tokio::test]
async fn a_one_shot_of_the_earlier_one_can_still_be_released() {
    let mut testbed = Testbed::with(|config| config.target = 0).await;
    let taken = testbed.take().await.unwrap().capsule_id;
    testbed.restart().await;
    testbed.full().await;
    assert_eq!(testbed.on_host(CapsuleState::Running), [taken.as_str()], "nobody knows its user");
    testbed.release(&taken).await;
    testbed.until("it is destroyed", async || testbed.host.table().destroyed.contains(&taken)).await;
    testbed.finish().await;
}

#[tokio::test]
async fn what_nobody_can_be_using_any_more_is_destroyed() {
    let mut testbed = Testbed::with(|config| {
        config.target = 0;
        config.lease_default_sec = 1;
        config.lease_max_sec = 1;
    })
    .await;
    let team = TeamId::new();
    let users = testbed.create(team).await.unwrap().capsule_id;
    let stranger = CapsuleId::new().to_string();
    testbed.host.stranger(&stranger, CapsuleState::Running);
    testbed.restart().await;
    testbed
        .until("the stranger is destroyed", async || testbed.host.table().destroyed.contains(&stranger))
        .await;
    assert_eq!(testbed.on_host(CapsuleState::Running), [users]);
    testbed.finish().await;
}
