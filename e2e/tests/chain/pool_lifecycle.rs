//! The life of users' capsules through pool-manager's calls, on real capsules.

use crate::folder;
use futures::TryStreamExt;
use hearth_e2e::service::TestService;
use hearth_proto::{
    id::TeamId,
    wire::{
        agent::{CapsuleState, ExecCall},
        pool::{
            CapsuleRecord, CapsuleRef, CreateCapsuleRequest, CreateTemplateRequest, DeleteTemplateRequest,
            ForkCapsuleRequest, GetCapsuleRecordRequest, LocateRequest, RollbackCapsuleRequest,
        },
        process::{ExecRequest, exec_event::Event},
    },
};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Far longer than a pause takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a shell says in a capsule.
async fn shell(service: &TestService, id: &str, script: &str) -> String {
    let request = ExecRequest {
        cmd: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        ..Default::default()
    };
    let call = ExecCall { capsule_id: id.to_owned(), request: Some(request) };
    let events = service.agent().unwrap().exec(call).await.unwrap().into_inner();
    let events: Vec<_> = events.try_collect().await.unwrap();
    let stdout = events.into_iter().filter_map(|event| match event.event {
        Some(Event::Stdout(bytes)) => Some(bytes),
        _ => None,
    });
    String::from_utf8(stdout.flatten().collect()).unwrap().trim().to_owned()
}

fn of(team: TeamId, id: &str) -> CapsuleRef {
    CapsuleRef { team_id: team.to_string(), capsule_id: id.to_owned() }
}

async fn locate(service: &TestService, team: TeamId, id: &str) -> Result<(), Status> {
    let request = LocateRequest { team_id: team.to_string(), capsule_id: id.to_owned() };
    service.pools().unwrap().locate(request).await.map(|_| ())
}

async fn get(service: &TestService, team: TeamId, id: &str) -> CapsuleRecord {
    let request = GetCapsuleRecordRequest { team_id: team.to_string(), capsule_id: id.to_owned() };
    service.pools().unwrap().get_capsule(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_is_paused_copied_kept_and_taken_back() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let team = TeamId::new();
    let mut pools = service.pools().unwrap();
    let request = CreateCapsuleRequest {
        team_id: team.to_string(),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        ..Default::default()
    };
    let created = pools.create_capsule(request).await.unwrap().into_inner();
    let id = created.capsule_id.as_str();
    assert_eq!(shell(&service, id, "echo $GREETING; echo first >/root/note").await, "hello");

    let paused = pools.pause_capsule(of(team, id)).await.unwrap().into_inner();
    assert_eq!(paused.state(), CapsuleState::Paused);
    assert_eq!(locate(&service, team, id).await.unwrap_err().code(), Code::FailedPrecondition);
    let resumed = pools.resume_capsule(of(team, id)).await.unwrap().into_inner();
    assert_eq!(resumed.state(), CapsuleState::Running);
    assert_eq!(shell(&service, id, "cat /root/note").await, "first");

    let keep = CreateTemplateRequest {
        team_id: team.to_string(),
        capsule_id: id.to_owned(),
        name: "kept".to_owned(),
        ..Default::default()
    };
    let kept = pools.create_snapshot(keep).await.unwrap().into_inner();
    assert!(kept.snapshot && kept.size_bytes > 0, "{kept:?}");
    shell(&service, id, "echo second >/root/note").await;
    let fork = ForkCapsuleRequest {
        team_id: team.to_string(),
        capsule_id: id.to_owned(),
        count: 2,
        ..Default::default()
    };
    let copies = pools.fork_capsule(fork).await.unwrap().into_inner().capsules;
    assert_eq!(copies.len(), 2);
    for copy in &copies {
        assert_eq!(shell(&service, &copy.capsule_id, "cat /root/note").await, "second");
    }
    let back = RollbackCapsuleRequest {
        team_id: team.to_string(),
        capsule_id: id.to_owned(),
        snapshot: "kept".to_owned(),
    };
    pools.rollback_capsule(back).await.unwrap();
    assert_eq!(shell(&service, id, "cat /root/note").await, "first");

    let from_kept =
        CreateCapsuleRequest { team_id: team.to_string(), template: "kept".to_owned(), ..Default::default() };
    let started = pools.create_capsule(from_kept).await.unwrap().into_inner();
    assert_eq!(shell(&service, &started.capsule_id, "cat /root/note").await, "first");
    let delete = DeleteTemplateRequest { team_id: team.to_string(), name: "kept".to_owned() };
    pools.delete_snapshot(delete).await.unwrap();
    assert_eq!(shell(&service, &started.capsule_id, "cat /root/note").await, "first");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_host_paused_comes_back_when_it_is_used() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let team = TeamId::new();
    let request = CreateCapsuleRequest { team_id: team.to_string(), timeout_sec: 2, ..Default::default() };
    let created = service.pools().unwrap().create_capsule(request).await.unwrap().into_inner();
    let id = created.capsule_id.as_str();
    shell(&service, id, "echo here >/root/note").await;
    let end = Instant::now() + PATIENCE;
    while get(&service, team, id).await.state() != CapsuleState::Paused {
        assert!(Instant::now() < end, "it is not paused: {:?}", get(&service, team, id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    locate(&service, team, id).await.unwrap();
    assert_eq!(shell(&service, id, "cat /root/note").await, "here");
    service.stop_clean().unwrap();
}
