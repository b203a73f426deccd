//! What teams have running and use.

use crate::{database::Database, testbed::Testbed};
use hearth_proto::{
    id::TeamId,
    wire::pool::{CapsuleUsageRequest, TeamStats, TeamStatsRequest, TeamUsage, TeamUsageRequest},
};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Code;

async fn stats(testbed: &Testbed, team: TeamId) -> TeamStats {
    let request = TeamStatsRequest { team_id: team.to_string(), range_sec: 3600, bucket_sec: 60 };
    testbed.client.clone().get_team_stats(request).await.unwrap().into_inner()
}

async fn usage(testbed: &Testbed, team: TeamId) -> TeamUsage {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let to_day = i32::try_from(today).unwrap();
    let request = TeamUsageRequest { team_id: team.to_string(), from_day: to_day - 1, to_day };
    testbed.client.clone().get_team_usage(request).await.unwrap().into_inner()
}

async fn samples(testbed: &Testbed) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM team_samples")
        .fetch_one(&mut testbed.database.connect().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_team_is_sampled_while_it_has_capsules() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.create(team).await.unwrap();
    let now = stats(&testbed, team).await.current.unwrap();
    assert_eq!((now.running, now.vcpus, now.memory_mb), (2, 2, 1024));
    // Seen once at its creation, so that the next look counts.
    testbed.host.table().capsules.get_mut(&id).unwrap().cpu_us = 1_000_000;
    testbed.until("two samples are written", async || samples(&testbed).await >= 2).await;
    let stats = stats(&testbed, team).await;
    assert_eq!(stats.peaks.unwrap().running, 2);
    assert!(stats.series.iter().all(|bucket| bucket.running == 2 && bucket.at_ms % 60_000 == 0));
    let days = usage(&testbed, team).await.days;
    let memory: f64 = days.iter().map(|day| day.memory_mb_minutes).sum();
    assert!(memory >= 1024.0 / 6.0, "two capsules for at least ten seconds: {memory}");
    let nobody = TeamId::new();
    assert!(usage(&testbed, nobody).await.days.is_empty());
    testbed.finish().await;
}

#[tokio::test]
async fn samples_wait_for_a_database_that_is_away() {
    let testbed = Testbed::start(Database::alone().await, |_| {}, |_| {}).await;
    testbed.full().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.until("the first sample is written", async || samples(&testbed).await == 1).await;
    testbed.database.cluster.down();
    let begun = tokio::time::Instant::now();
    testbed
        .until("a sample is due that cannot be written", async || {
            begun.elapsed() > std::time::Duration::from_secs(11)
        })
        .await;
    assert_eq!(testbed.pause(team, &id).await.unwrap().capsule_id, id, "capsules are changed all the same");
    testbed.database.cluster.up();
    testbed.until("it is written later", async || samples(&testbed).await >= 2).await;
    testbed.until("so is the pause", async || testbed.row(&id).await.unwrap().0 == "paused").await;
    testbed.finish().await;
}

#[tokio::test]
async fn a_capsules_own_use_is_its_hosts_answer() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let ask = async |team: TeamId, range_sec: u64| {
        let request = CapsuleUsageRequest { team_id: team.to_string(), capsule_id: id.clone(), range_sec };
        testbed.client.clone().get_capsule_usage(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(ask(team, 600).await.unwrap().points.len(), 1);
    assert_eq!(ask(team, 1_000_000).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(ask(TeamId::new(), 600).await.unwrap_err().code(), Code::NotFound);
    testbed.finish().await;
}

#[tokio::test]
async fn ranges_are_bounded() {
    let testbed = Testbed::with(|config| config.target = 0).await;
    let team_id = TeamId::new().to_string();
    for (range_sec, bucket_sec) in [(0, 1), (3600, 1), (3600, 0), (u64::MAX, u64::MAX)] {
        let request = TeamStatsRequest { team_id: team_id.clone(), range_sec, bucket_sec };
        let refused = testbed.client.clone().get_team_stats(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    for (from_day, to_day) in [(10, 9), (0, 92), (i32::MIN, i32::MAX)] {
        let request = TeamUsageRequest { team_id: team_id.clone(), from_day, to_day };
        let refused = testbed.client.clone().get_team_usage(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    testbed.finish().await;
}
