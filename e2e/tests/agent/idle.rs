//! Capsules that pause or end by themselves: idle ones, and those whose lifetime is over.

use crate::{folder, small::Small};
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, CapsuleState, TimeoutAction, agent_client::AgentClient},
        process::ExecRequest,
    },
};
use std::time::Duration;
use tonic::{Code, transport::Channel};

const ALONE: [(&str, &str); 1] = [("HEARTH_PARKED", "0")];

fn idle(milliseconds: u64) -> wire::RestoreRequest {
    wire::RestoreRequest { idle_timeout_ms: milliseconds, ..Default::default() }
}

fn lifetime(milliseconds: u64, action: TimeoutAction) -> wire::RestoreRequest {
    wire::RestoreRequest { timeout_ms: milliseconds, timeout_action: action.into(), ..Default::default() }
}

fn refresh(id: CapsuleId) -> wire::SetTimeoutsRequest {
    wire::SetTimeoutsRequest { capsule_id: id.to_string(), ..Default::default() }
}

/// Runs a shell script to its end; the exit code, or how its stream broke.
async fn script(mut client: AgentClient<Channel>, id: CapsuleId, script: &str) -> Result<i32, tonic::Status> {
    let request = ExecRequest {
        cmd: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        timeout_ms: 120_000,
        ..Default::default()
    };
    let call = wire::ExecCall { capsule_id: id.to_string(), request: Some(request) };
    let mut events = client.exec(call).await?.into_inner();
    let mut code = -1;
    while let Some(event) = events.message().await? {
        if let Some(hearth_proto::wire::process::exec_event::Event::Exited(exited)) = event.event {
            code = exited.exit_code;
        }
    }
    Ok(code)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_pauses_and_a_busy_one_does_not() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let busy = agent.restore_as(idle(1_500)).await.unwrap();
    // It says nothing for several times its idle time.
    let work = tokio::spawn(script(agent.client.clone(), busy, "sleep 12"));
    let never = agent.restore_as(idle(1_500)).await.unwrap();
    agent.python(never, "kept = 41").await.unwrap();
    agent.enters(never, CapsuleState::Paused).await.unwrap();
    assert_eq!(agent.get(busy).await.unwrap().state(), CapsuleState::Running);
    let error = agent.client.set_timeouts(refresh(never)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert_eq!(agent.python(never, "print(kept)").await.unwrap(), "41", "its next use brings it back");
    let wish = wire::SetTimeoutsRequest { idle_timeout_ms: Some(0), ..refresh(never) };
    let now = agent.client.set_timeouts(wish).await.unwrap().into_inner();
    assert_eq!((now.idle_timeout_ms, now.timeout_ms), (0, 0));
    assert_eq!(agent.python(never, "print(kept + 1)").await.unwrap(), "42");
    assert_eq!(work.await.unwrap().unwrap(), 0, "a busy capsule was paused");
    let paused = agent.enters(busy, CapsuleState::Paused).await.unwrap();
    assert!(paused.last_active_at_ms > paused.created_at_ms + 10_000, "its work counts as use: {paused:?}");
    assert_eq!(agent.get(never).await.unwrap().state(), CapsuleState::Running);
    for id in [busy, never] {
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_whose_pause_fails_runs_on_and_is_paused_later() {
    let dir = folder();
    let small = Small::mount(&dir.path().join("agent/snapshots"), "3m");
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    agent.python(id, "import os\nkept = os.urandom(20 << 20)").await.unwrap();
    // From now on there is more than fits.
    let wish = wire::SetTimeoutsRequest { idle_timeout_ms: Some(800), ..refresh(id) };
    agent.client.set_timeouts(wish).await.unwrap();
    let failures = |agent: &TestAgent| agent.process.log().matches("a capture failed").count();
    until(Duration::from_secs(120), "two pauses to fail", || Ok((failures(&agent) >= 2).then_some(())))
        .unwrap();
    agent.enters(id, CapsuleState::Running).await.unwrap();
    assert_eq!(agent.python(id, "print(len(kept))").await.unwrap(), "20971520");
    small.resize("512m");
    agent.enters(id, CapsuleState::Paused).await.unwrap();
    agent.resume(id).await.unwrap();
    assert_eq!(agent.python(id, "print(len(kept))").await.unwrap(), "20971520");
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    drop(small);
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lifetime_ends_in_use_or_not_and_settings_outlive_the_agent() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let doomed = agent.restore_as(lifetime(3_000, TimeoutAction::Destroy)).await.unwrap();
    let broken = script(agent.client.clone(), doomed, "sleep 100").await.unwrap_err();
    assert!(broken.message().contains("stop"), "its stream ends with the reason: {broken:?}");
    agent.enters(doomed, CapsuleState::Stopped).await.unwrap();
    let paused = agent.restore_as(lifetime(2_000, TimeoutAction::Pause)).await.unwrap();
    let broken = script(agent.client.clone(), paused, "sleep 100").await.unwrap_err();
    assert!(broken.message().contains("paus"), "{broken:?}");
    agent.enters(paused, CapsuleState::Paused).await.unwrap();
    // It has its lifetime again, then it goes to disk again.
    agent.resume(paused).await.unwrap();
    agent.enters(paused, CapsuleState::Paused).await.unwrap();
    // One from the pool has its timeouts from whoever takes it.
    let parked = agent.restore(true).await.unwrap();
    let claim =
        wire::ClaimRequest { capsule_id: parked.to_string(), idle_timeout_ms: 1_000, ..Default::default() };
    agent.client.claim(claim).await.unwrap();
    agent.enters(parked, CapsuleState::Paused).await.unwrap();
    let kept =
        wire::RestoreRequest { idle_timeout_ms: 3_600_000, ..lifetime(7_200_000, TimeoutAction::Destroy) };
    let kept = agent.restore_as(kept).await.unwrap();
    agent.pause(kept).await.unwrap();
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.resume(kept).await.unwrap();
    let now = agent.client.set_timeouts(refresh(kept)).await.unwrap().into_inner();
    let expected = (3_600_000, 7_200_000, TimeoutAction::Destroy);
    assert_eq!((now.idle_timeout_ms, now.timeout_ms, now.timeout_action()), expected);
    let wrong = wire::SetTimeoutsRequest { timeout_ms: Some(u64::MAX), ..refresh(kept) };
    let error = agent.client.set_timeouts(wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("timeout_ms: "), "{error:?}");
    for id in [paused, parked, kept] {
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capsule_is_destroyed_where_that_was_asked_for_also_by_a_later_agent() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let gone = |milliseconds: u64| wire::RestoreRequest {
        idle_action: TimeoutAction::Destroy.into(),
        ..idle(milliseconds)
    };
    let busy = agent.restore_as(gone(1_500)).await.unwrap();
    let work = tokio::spawn(script(agent.client.clone(), busy, "sleep 8"));
    let first = agent.restore_as(gone(1_500)).await.unwrap();
    agent.enters(first, CapsuleState::Stopped).await.unwrap();
    assert_eq!(agent.get(busy).await.unwrap().state(), CapsuleState::Running);
    assert_eq!(work.await.unwrap().unwrap(), 0, "a busy capsule was destroyed");
    agent.enters(busy, CapsuleState::Stopped).await.unwrap();
    // One from the pool has it from its claim.
    let parked = agent.restore(true).await.unwrap();
    let claim = wire::ClaimRequest {
        capsule_id: parked.to_string(),
        idle_timeout_ms: 1_000,
        idle_action: TimeoutAction::Destroy.into(),
        ..Default::default()
    };
    agent.client.claim(claim).await.unwrap();
    agent.enters(parked, CapsuleState::Stopped).await.unwrap();
    // Kept over a pause and over agents, in the records of both kinds.
    let paused = agent.restore_as(gone(3_600_000)).await.unwrap();
    let running = agent.restore_as(gone(3_600_000)).await.unwrap();
    agent.pause(paused).await.unwrap();
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.resume(paused).await.unwrap();
    for id in [paused, running] {
        let now = agent.client.set_timeouts(refresh(id)).await.unwrap().into_inner();
        assert_eq!((now.idle_timeout_ms, now.idle_action()), (3_600_000, TimeoutAction::Destroy));
        let wish = wire::SetTimeoutsRequest { idle_timeout_ms: Some(800), ..refresh(id) };
        let now = agent.client.set_timeouts(wish).await.unwrap().into_inner();
        assert_eq!((now.idle_timeout_ms, now.idle_action()), (800, TimeoutAction::Destroy));
        agent.enters(id, CapsuleState::Stopped).await.unwrap();
    }
    let wrong = wire::SetTimeoutsRequest { idle_action: Some(9), ..refresh(running) };
    let error = agent.client.set_timeouts(wrong).await.unwrap_err();
    assert_eq!((error.code(), error.message().starts_with("idle_action: ")), (Code::InvalidArgument, true));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
