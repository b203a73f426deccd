//! Finding a capsule to use it: what comes back from a pause by that, and who may use its ports.

use crate::testbed::Testbed;
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{
        agent::CapsuleState,
        pool::{CreateCapsuleRequest, LocatePortRequest},
    },
};
use tonic::{Code, Status};

#[tokio::test]
async fn what_its_user_paused_stays_paused() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.pause(team, &id).await.unwrap();
    let refused = testbed.locate(team, &id).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "the capsule is paused, not running");
    assert_eq!(testbed.on_host(CapsuleState::Paused), [id]);
    testbed.finish().await;
}

#[tokio::test]
async fn what_its_host_paused_comes_back_when_it_is_used() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.host.suspend(&id);
    testbed
        .until("that is known", async || {
            testbed.get(team, &id).await.unwrap().state() == CapsuleState::Paused
        })
        .await;
    testbed.locate(team, &id).await.unwrap();
    assert_eq!(testbed.on_host(CapsuleState::Running), [id.as_str()]);
    // A pause of its user's makes it its user's.
    testbed.host.suspend(&id);
    testbed
        .until("that is known", async || {
            testbed.get(team, &id).await.unwrap().state() == CapsuleState::Paused
        })
        .await;
    testbed.pause(team, &id).await.unwrap();
    assert_eq!(testbed.locate(team, &id).await.unwrap_err().code(), Code::FailedPrecondition);
    testbed.finish().await;
}

#[tokio::test]
async fn with_auto_resume_any_use_brings_it_back_and_all_users_wait_for_one_resume() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let request = CreateCapsuleRequest { team_id: team.to_string(), auto_resume: true, ..Default::default() };
    let id = testbed.create_as(request).await.unwrap().capsule_id;
    testbed.pause(team, &id).await.unwrap();
    let all = futures::future::join_all((0..8).map(|_| testbed.locate(team, &id))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let resumes = testbed.host.table().changes.iter().filter(|change| *change == "resume").count();
    assert_eq!(resumes, 1);
    testbed.pause(team, &id).await.unwrap();
    testbed.host.table().refuse_changes = Some(Status::resource_exhausted("the memory budget is used up"));
    assert_eq!(testbed.locate(team, &id).await.unwrap_err().code(), Code::ResourceExhausted);
    testbed.finish().await;
}

#[tokio::test]
async fn a_port_is_for_its_team_its_token_or_everybody() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let request =
        CreateCapsuleRequest { team_id: team.to_string(), public_ports: vec![8080], ..Default::default() };
    let created = testbed.create_as(request).await.unwrap();
    let reach = async |port: u32, team_id: &str, access_token: &str| {
        let request = LocatePortRequest {
            capsule_id: created.capsule_id.clone(),
            port,
            team_id: team_id.to_owned(),
            access_token: access_token.to_owned(),
        };
        testbed.client.clone().locate_port(request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(reach(8080, "", "").await, Ok(()));
    assert_eq!(reach(9000, &team.to_string(), "").await, Ok(()));
    assert_eq!(reach(9000, "", &created.access_token).await, Ok(()));
    assert_eq!(reach(9000, "", "").await, Err(Code::PermissionDenied));
    assert_eq!(reach(9000, "", "0123").await, Err(Code::PermissionDenied));
    assert_eq!(reach(9000, &TeamId::new().to_string(), "").await, Err(Code::PermissionDenied));
    assert_eq!(reach(0, &team.to_string(), "").await, Err(Code::InvalidArgument));
    assert_eq!(reach(70_000, &team.to_string(), "").await, Err(Code::InvalidArgument));
    let request =
        LocatePortRequest { capsule_id: CapsuleId::new().to_string(), port: 80, ..Default::default() };
    let refused = testbed.client.clone().locate_port(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    testbed.finish().await;
}
