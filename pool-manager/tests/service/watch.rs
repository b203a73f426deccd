//! The stream of capsule events.

use crate::testbed::Testbed;
use hearth_proto::{
    id::TeamId,
    wire::pool::{CreateCapsuleRequest, WatchCapsulesRequest},
};
use tonic::Code;

#[tokio::test]
async fn a_team_hears_what_happens_to_its_capsules_and_to_no_others() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let request = WatchCapsulesRequest { team_id: team.to_string() };
    let mut events = testbed.client.clone().watch_capsules(request).await.unwrap().into_inner();
    testbed.create(TeamId::new()).await.unwrap();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.pause(team, &id).await.unwrap();
    testbed.resume(team, &id).await.unwrap();
    testbed.snapshot(team, &id, "mine").await.unwrap();
    testbed.host.suspend(&id);
    let mut heard = Vec::new();
    for _ in 0..5 {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!(event.capsule.unwrap().capsule_id, id);
        assert!(event.at_ms > 0);
        heard.push(event.event);
    }
    assert_eq!(heard, ["created", "paused", "resumed", "snapshot_created", "paused"]);
    testbed.destroy(team, &id).await.unwrap();
    assert_eq!(events.message().await.unwrap().unwrap().event, "destroyed");
    testbed.finish().await;
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_so() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let mut events =
        testbed.client.clone().watch_capsules(WatchCapsulesRequest::default()).await.unwrap().into_inner();
    // More than the channel, the stream and the transport hold.
    let metadata = [("weight".to_owned(), "x".repeat(10_000))].into();
    let request = CreateCapsuleRequest { team_id: team.to_string(), metadata, ..Default::default() };
    let id = testbed.create_as(request).await.unwrap().capsule_id;
    for _ in 0..1000 {
        testbed.pause(team, &id).await.unwrap();
        testbed.resume(team, &id).await.unwrap();
    }
    let end = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    testbed.finish().await;
}
