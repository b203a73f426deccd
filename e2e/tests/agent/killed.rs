//! kill -9 of the agent alone, with work under way: its callers hear of it, the next agent sweeps and serves.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, agent_client::AgentClient},
        run::RunRequest,
    },
};
use std::{path::Path, time::Duration};
use tonic::{Code, transport::Channel};

/// Longest time in which a caller must hear that its agent is gone.
const HEARD: Duration = Duration::from_secs(5);

/// VMMs and pagers of the data folder that run.
fn vmms(dir: &Path) -> usize {
    leftovers::of(dir).iter().filter(|left| left.starts_with("process ") && !left.contains(" agent")).count()
}

/// Runs code until its stream ends; returns how.
async fn run(mut client: AgentClient<Channel>, id: CapsuleId) -> Result<(), tonic::Status> {
    let request = RunRequest { code: "while True: pass".into(), timeout_ms: 60_000, ..Default::default() };
    let call = wire::ExecuteCall { capsule_id: id.to_string(), request: Some(request) };
    let mut events = client.execute(call).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_killed_under_load() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let id = agent.restore(false).await.unwrap();
        runs.push(tokio::spawn(run(agent.client.clone(), id)));
    }
    // A restore is under way too.
    let mut client = agent.client.clone();
    let restore = tokio::spawn(async move {
        let capsule_id = CapsuleId::new().to_string();
        let request = wire::RestoreRequest { capsule_id, template: "code".into(), ..Default::default() };
        client.restore(request).await.map(drop)
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(runs.iter().all(|run| !run.is_finished()), "the runs are under way");
    agent.process.kill().unwrap();
    runs.push(restore);
    for call in runs {
        let heard =
            tokio::time::timeout(HEARD, call).await.expect("a caller waits for an agent that is gone");
        let status = heard.unwrap().expect_err("a killed agent's call cannot go well");
        assert!([Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&status.code()), "{status:?}");
    }
    assert!(vmms(dir.path()) >= 4, "two VMMs and their pagers outlive the agent");
    drop(agent);

    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    assert_eq!(vmms(dir.path()), 0, "the next agent ends what nobody owns: {:#?}", leftovers::of(dir.path()));
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    assert_eq!(agent.run(id, "print('next')").await.unwrap().stdout, "next\n");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
