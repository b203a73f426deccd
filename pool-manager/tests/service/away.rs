//! The agent away, the database away.

use crate::{database::Database, testbed::Testbed};
use hearth_proto::{id::TeamId, wire::agent::CapsuleState};
use tonic::Code;

#[tokio::test]
async fn an_agent_that_comes_back_is_compared_with_what_was_known() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let (lost, kept, died) = (
        testbed.create(team).await.unwrap().capsule_id,
        testbed.create(team).await.unwrap().capsule_id,
        testbed.create(team).await.unwrap().capsule_id,
    );
    testbed.full().await;
    testbed.host.down().await;
    testbed.until("that is known", async || !testbed.status().await.ready).await;
    assert!(testbed.status().await.detail.starts_with("no host: "));
    assert_eq!(testbed.take().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(testbed.get(team, &kept).await.unwrap().state(), CapsuleState::Running);

    let parked = testbed.on_host(CapsuleState::Parked);
    {
        // While nobody looked: a parked capsule and a user's are gone, another one failed.
        let mut table = testbed.host.table();
        table.capsules.remove(&parked[0]);
        table.capsules.remove(&lost);
    }
    testbed.host.die(&died, "the VMM was killed");
    testbed.host.up();
    testbed.until("it is back", async || testbed.status().await.ready).await;
    testbed.full().await;

    let now = testbed.on_host(CapsuleState::Parked);
    assert_eq!(now.len(), 4);
    assert!(parked[1..].iter().all(|id| now.contains(id)), "the others stay parked");
    let lost = testbed.get(team, &lost).await.unwrap();
    assert_eq!(lost.state(), CapsuleState::Unspecified);
    assert!(lost.reason.starts_with("missing: "), "{}", lost.reason);
    assert_eq!(testbed.get(team, &died).await.unwrap().state(), CapsuleState::Failed);
    assert_eq!(testbed.get(team, &kept).await.unwrap().state(), CapsuleState::Running);
    testbed.finish().await;
}

#[tokio::test]
async fn a_destroy_while_the_agent_is_away_is_done_when_it_is_back() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.down().await;
    assert_eq!(testbed.destroy(team, &id).await.unwrap_err().code(), Code::Unavailable);
    testbed.host.up();
    testbed.until("it is destroyed", async || testbed.host.table().destroyed.contains(&id)).await;
    testbed.until("the row follows", async || testbed.row(&id).await.unwrap().0 == "stopped").await;
    testbed.finish().await;
}

#[tokio::test]
async fn without_the_database_runs_go_on_and_changes_are_written_later() {
    let testbed = Testbed::start(Database::alone().await, |_| {}, |_| {}).await;
    testbed.full().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let other = testbed.create(team).await.unwrap().capsule_id;
    testbed.full().await;
    testbed.database.cluster.down();

    let taken = testbed.take().await.unwrap();
    assert_eq!(taken.source, "warm");
    testbed.release(&taken.capsule_id).await;
    assert_eq!(testbed.get(team, &id).await.unwrap().state(), CapsuleState::Running);
    assert_eq!(testbed.list(team).await.unwrap().len(), 2);
    assert_eq!(testbed.locate(team, &id).await.unwrap().endpoint, testbed.host.endpoint());
    let refused = testbed.create(team).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "the database is away"));
    testbed.host.die(&id, "the VMM was killed");
    testbed.destroy(team, &other).await.unwrap();
    testbed
        .until("only parked ones are left", async || testbed.on_host(CapsuleState::Running).is_empty())
        .await;

    testbed.database.cluster.up();
    let failed = ("failed".to_owned(), "the VMM was killed".to_owned());
    testbed.until("the death is written", async || testbed.row(&id).await.unwrap() == failed).await;
    testbed.until("the end is written", async || testbed.row(&other).await.unwrap().0 == "stopped").await;
    testbed.finish().await;
}
