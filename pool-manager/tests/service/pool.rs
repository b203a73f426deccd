//! Taking and releasing, refills, leases.

use crate::testbed::Testbed;
use hearth_proto::wire::agent::CapsuleState;
use std::collections::HashSet;
use tokio::task::JoinSet;
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_twenty_meets_a_pool_of_four_and_all_are_served() {
    let testbed = std::sync::Arc::new(Testbed::new().await);
    testbed.host.table().restoring_most = 0;
    let parked_restores = testbed.host.table().parked_restores;
    testbed.host.hold(true);
    let mut takes = JoinSet::new();
    for _ in 0..20 {
        let testbed = testbed.clone();
        takes.spawn(async move { testbed.take().await.unwrap() });
    }
    testbed
        .until("all takes have arrived", async || {
            let stock = testbed.stock().await;
            stock.hits + stock.misses == 20
        })
        .await;
    testbed.until("two are being restored", async || testbed.host.table().restoring == 2).await;
    testbed.host.hold(false);
    let taken = takes.join_all().await;

    let ids: HashSet<_> = taken.iter().map(|taken| taken.capsule_id.clone()).collect();
    assert_eq!(ids.len(), 20, "no capsule is given twice");
    assert_eq!(taken.iter().filter(|taken| taken.source == "warm").count(), 4);
    assert_eq!(taken.iter().filter(|taken| taken.source == "restored").count(), 16);
    let stock = testbed.stock().await;
    assert_eq!((stock.hits, stock.misses), (4, 16));
    {
        let table = testbed.host.table();
        assert_eq!(table.running_restores, 16);
        // Two at a time for the burst; refills, of which there may be two, begin only when nobody waits.
        assert!(table.restoring_most <= 2, "{} at once", table.restoring_most);
    }
    assert!(taken.iter().all(|taken| taken.host.as_ref().unwrap().endpoint == testbed.host.endpoint()));

    for taken in &taken {
        testbed.release(&taken.capsule_id).await;
    }
    testbed.full().await;
    testbed
        .until("the released ones are destroyed", async || {
            let destroyed: HashSet<_> = testbed.host.table().destroyed.iter().cloned().collect();
            destroyed == ids
        })
        .await;
    assert_eq!(testbed.host.table().parked_restores, parked_restores + 4);
    assert_eq!(testbed.on_host(CapsuleState::Running).len(), 0);
    testbed.finish_shared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refills_wait_while_somebody_waits_for_a_restore() {
    let testbed = std::sync::Arc::new(Testbed::with(|config| config.target = 1).await);
    let hit = testbed.take().await.unwrap();
    testbed.host.hold(true);
    testbed.until("the refill has begun", async || testbed.host.table().restoring == 1).await;
    // The refill goes on; the next one would have to wait for the two that are asked for now.
    let takes: Vec<_> = (0..2)
        .map(|_| {
            let testbed = testbed.clone();
            tokio::spawn(async move { testbed.take().await.unwrap() })
        })
        .collect();
    testbed.until("both restores have begun", async || testbed.host.table().restoring == 3).await;
    assert_eq!(testbed.set_pool(3).await.refilling, 1);
    testbed.host.hold(false);
    for take in takes {
        assert_eq!(take.await.unwrap().source, "restored");
    }
    testbed.full().await;
    assert_eq!(hit.source, "warm");
    testbed.finish_shared().await;
}

#[tokio::test]
async fn the_oldest_parked_capsule_is_taken_first() {
    let testbed = Testbed::with(|config| config.refills = 1).await;
    let parked = testbed.on_host(CapsuleState::Parked);
    testbed.set_pool(0).await;
    // Ids are ordered by time; one refill at a time parks them in that order. Without a target all were destroyed.
    testbed.until("the pool is empty", async || testbed.on_host(CapsuleState::Parked).is_empty()).await;
    assert_eq!(testbed.host.table().destroyed.len(), parked.len());
    testbed.set_pool(3).await;
    testbed.full().await;
    let parked = testbed.on_host(CapsuleState::Parked);
    for oldest in parked {
        assert_eq!(testbed.take().await.unwrap().capsule_id, oldest);
    }
    testbed.finish().await;
}

#[tokio::test]
async fn without_capacity_a_miss_says_so_and_the_pool_recovers_by_itself() {
    let testbed = Testbed::with(|config| config.target = 1).await;
    let hit = testbed.take().await.unwrap();
    testbed.host.table().refuse = Some(Status::resource_exhausted("the memory budget is used up"));
    let refused = testbed.take().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "no capacity: the memory budget is used up");
    testbed.release(&hit.capsule_id).await;
    testbed.host.table().refuse = None;
    testbed.full().await;
    assert_eq!(testbed.take().await.unwrap().source, "warm");
    testbed.finish().await;
}

#[tokio::test]
async fn waiting_for_a_restore_ends_with_no_capacity() {
    let testbed = std::sync::Arc::new(
        Testbed::with(|config| {
            config.target = 0;
            config.restores = 1;
            config.take_wait_ms = 50;
        })
        .await,
    );
    testbed.host.hold(true);
    let first = tokio::spawn({
        let testbed = testbed.clone();
        async move { testbed.take().await }
    });
    testbed.until("it is being restored", async || testbed.host.table().restoring == 1).await;
    let refused = testbed.take().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().starts_with("no capacity: "), "{}", refused.message());
    testbed.host.hold(false);
    assert_eq!(first.await.unwrap().unwrap().source, "restored");
    testbed.finish_shared().await;
}

#[tokio::test]
async fn a_caller_that_leaves_during_a_restore_leaves_no_capsule_behind() {
    let testbed = std::sync::Arc::new(Testbed::with(|config| config.target = 0).await);
    testbed.host.hold(true);
    let left = tokio::spawn({
        let testbed = testbed.clone();
        async move { testbed.take().await }
    });
    testbed.until("it is being restored", async || testbed.host.table().restoring == 1).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    testbed.host.hold(false);
    testbed.until("it was destroyed", async || testbed.host.table().destroyed.len() == 1).await;
    assert!(testbed.host.table().capsules.is_empty());
    testbed.finish_shared().await;
}

#[tokio::test]
async fn an_expired_lease_ends_the_capsule() {
    let testbed = Testbed::new().await;
    let taken = testbed.take_for(30).await.unwrap();
    let kept = testbed.take().await.unwrap();
    testbed
        .until("the lease is over", async || testbed.host.table().destroyed.contains(&taken.capsule_id))
        .await;
    assert!(!testbed.host.table().destroyed.contains(&kept.capsule_id));
    // The late release is no error, and harms nobody.
    testbed.release(&taken.capsule_id).await;
    testbed.full().await;
    testbed.finish().await;
}

#[tokio::test]
async fn a_parked_capsule_that_dies_is_replaced() {
    let testbed = Testbed::new().await;
    let dead = testbed.on_host(CapsuleState::Parked).remove(0);
    testbed.host.die(&dead, "the VMM was killed");
    testbed
        .until("it is replaced", async || {
            let parked = testbed.on_host(CapsuleState::Parked);
            parked.len() == 4 && !parked.contains(&dead)
        })
        .await;
    testbed.full().await;
    for _ in 0..4 {
        assert_ne!(testbed.take().await.unwrap().capsule_id, dead);
    }
    testbed.finish().await;
}

#[tokio::test]
async fn a_parked_capsule_that_somebody_else_claimed_is_neither_given_nor_destroyed() {
    let testbed = Testbed::new().await;
    let claimed = testbed.on_host(CapsuleState::Parked).remove(0);
    testbed.host.stranger(&claimed, CapsuleState::Running);
    testbed.until("it left the pool", async || testbed.host.table().parked_restores == 5).await;
    testbed.full().await;
    for _ in 0..4 {
        assert_ne!(testbed.take().await.unwrap().capsule_id, claimed);
    }
    assert!(!testbed.host.table().destroyed.contains(&claimed));
    testbed.finish().await;
}

#[tokio::test]
async fn the_target_can_be_changed_while_running() {
    let testbed = Testbed::new().await;
    assert_eq!(testbed.set_pool(1).await.parked, 1);
    testbed.until("three are destroyed", async || testbed.host.table().destroyed.len() == 3).await;
    testbed.set_pool(6).await;
    testbed.full().await;
    assert_eq!(testbed.on_host(CapsuleState::Parked).len(), 6);
    testbed.finish().await;
}
