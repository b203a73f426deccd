//! Capsules outlive their agent: the next one takes them over as they are, whenever the first one was killed.

use crate::{
    folder,
    pause::{CHECK_AND_CHANGE, SET_UP},
};
use hearth_e2e::{
    agent::TestAgent,
    ledger::{is_alive, processes},
    leftovers,
    process::{Hearth, program, until},
};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, CapsuleState, agent_client::AgentClient},
        run::RunRequest,
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tonic::transport::Channel;

/// Longest time in which a caller must hear that its agent is gone.
const HEARD: Duration = Duration::from_secs(5);
/// What a capsule's death takes to be known, on a busy machine.
const DEATH: Duration = Duration::from_secs(10);

fn env() -> HashMap<String, String> {
    HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())])
}

/// Runs code until its stream ends; returns how.
async fn run(mut client: AgentClient<Channel>, id: CapsuleId) -> Result<(), tonic::Status> {
    let request = RunRequest { code: "while True: pass".into(), timeout_ms: 60_000, ..Default::default() };
    let call = wire::ExecuteCall { capsule_id: id.to_string(), request: Some(request) };
    let mut events = client.execute(call).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

/// A copy of the program, as an upgrade puts it beside the old one.
fn upgraded(dir: &Path) -> String {
    let old = program().unwrap();
    let folder = dir.join("upgrade");
    fs::create_dir_all(&folder).unwrap();
    let new = folder.join("hearth");
    fs::copy(&old, &new).unwrap();
    let library = "libhearth_preload.so";
    fs::copy(old.with_file_name(library), folder.join(library)).unwrap();
    new.to_string_lossy().into_owned()
}

/// Ends the agent while a run in `busy` and a restore are under way, whose id it returns.
async fn end_under_load(mut agent: TestAgent, busy: CapsuleId, kill: bool) -> CapsuleId {
    let under_way = tokio::spawn(run(agent.client.clone(), busy));
    let mut client = agent.client.clone();
    let restored = CapsuleId::new();
    let restore = tokio::spawn(async move {
        let capsule_id = restored.to_string();
        let request = wire::RestoreRequest { capsule_id, template: "code".into(), ..Default::default() };
        client.restore(request).await.map(drop)
    });
    if kill {
        agent.process.kill().unwrap();
    } else {
        agent.process.stop().unwrap();
    }
    let heard = tokio::time::timeout(HEARD, under_way).await.expect("its caller hears of it").unwrap();
    heard.expect_err("a run cannot outlive its agent");
    // It may have been done before.
    let _ = tokio::time::timeout(HEARD, restore).await.expect("its caller hears of it").unwrap();
    restored
}

#[tokio::test(flavor = "multi_thread")]
async fn capsules_live_on_over_kill_nine_and_upgrade_under_load() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "1")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let one = agent.restore_from("code", env()).await.unwrap();
    agent.python(one, SET_UP).await.unwrap();
    let paused = agent.restore_from("code", env()).await.unwrap();
    agent.python(paused, SET_UP).await.unwrap();
    agent.pause(paused).await.unwrap();
    let busy = agent.restore(false).await.unwrap();
    let before = agent.get(one).await.unwrap();
    let upgrade = upgraded(dir.path());
    let mut rounds = 1;
    for next in ["", upgrade.as_str(), ""] {
        let parked = agent.restore(true).await.unwrap();
        let pids = || [one, parked, busy].map(|id| processes(dir.path(), &id.to_string()));
        let were = pids();
        let restored = end_under_load(agent, busy, next.is_empty()).await;
        assert!(were.iter().flatten().all(|pid| is_alive(*pid)), "capsules outlive their agent");
        // The agent of the second round is the one that is asked to leave them.
        let mut settings = vec![("HEARTH_PARKED", "1"), ("HEARTH_ON_STOP", "leave")];
        settings.extend((!next.is_empty()).then_some(("HEARTH_BIN", next)));
        agent = TestAgent::start(dir.path(), &settings).await.unwrap();
        let mut seen = Vec::new();
        for id in [one, parked, busy, paused] {
            seen.push(agent.get(id).await.unwrap().state());
        }
        use CapsuleState::{Parked, Paused, Running};
        assert_eq!(seen, [Running, Parked, Running, Paused], "{}", agent.process.log());
        assert_eq!(pids(), were, "the same VMMs and pagers");
        let got = agent.get(one).await.unwrap();
        assert_eq!((got.created_at_ms, &got.template), (before.created_at_ms, &before.template));
        rounds += 1;
        assert_eq!(agent.python(one, CHECK_AND_CHANGE).await.unwrap(), format!("{rounds} {one}"));
        assert_eq!(agent.python(busy, "print('free again')").await.unwrap(), "free again");
        assert_eq!(agent.python(parked, "print(1 + 1)").await.unwrap(), "2", "a parked one can be claimed");
        agent.destroy(parked).await.unwrap();
        // Either the restore was done, and it lives, or it was not, and nothing of it is left.
        if agent.get(restored).await.is_ok() {
            agent.python(restored, "print(1)").await.unwrap();
            agent.destroy(restored).await.unwrap();
        }
        agent.ensure_code().await.unwrap();
    }
    // What was taken over can be paused, resumed and copied like any other.
    agent.pause(one).await.unwrap();
    agent.resume(one).await.unwrap();
    let (copies, _) = agent.fork(one, 1).await.unwrap();
    assert_eq!(agent.python(copies[0], "print(len(numbers))").await.unwrap(), rounds.to_string());
    assert_eq!(agent.python(one, CHECK_AND_CHANGE).await.unwrap(), format!("{} {one}", rounds + 1));
    agent.resume(paused).await.unwrap();
    assert_eq!(agent.python(paused, CHECK_AND_CHANGE).await.unwrap(), format!("2 {paused}"));
    for id in [one, paused, busy, copies[0]] {
        agent.destroy(id).await.unwrap();
    }
    // Told to leave what runs, it leaves nothing when nothing does.
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// Kills the agent `after` a pause or a resume of the capsule was asked for, and starts another. Whether the call had been
/// answered, and what the capsule is then.
async fn cut(
    mut agent: TestAgent,
    dir: &Path,
    id: CapsuleId,
    resume: bool,
    after: Duration,
) -> (TestAgent, bool, CapsuleState) {
    let mut client = agent.client.clone();
    let call = tokio::spawn(async move {
        let capsule_id = id.to_string();
        match resume {
            true => client.resume(wire::ResumeRequest { capsule_id }).await.map(drop),
            false => client.pause(wire::PauseRequest { capsule_id }).await.map(drop),
        }
    });
    tokio::time::sleep(after).await;
    agent.process.kill().unwrap();
    let answered = tokio::time::timeout(HEARD, call).await.expect("its caller hears of it").unwrap().is_ok();
    drop(agent);
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    let state = agent.get(id).await.unwrap().state();
    (agent, answered, state)
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_pause_or_resume_is_cut_the_capsule_is_there_afterwards() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let mut found = Vec::new();
    for percent in [5, 25, 45, 65, 85, 100, 120] {
        // How long they take now, on a machine that is busy with more than this.
        let start = Instant::now();
        agent.pause(id).await.unwrap();
        let pause = start.elapsed();
        let start = Instant::now();
        agent.resume(id).await.unwrap();
        let took = [pause, start.elapsed()];
        for resume in [false, true] {
            if resume && agent.get(id).await.unwrap().state() == CapsuleState::Running {
                agent.pause(id).await.unwrap();
            }
            let after = took[usize::from(resume)] * percent / 100;
            let (next, answered, state) = cut(agent, dir.path(), id, resume, after).await;
            agent = next;
            found.push((if resume { "resume" } else { "pause" }, percent, answered, state));
            if answered {
                assert_eq!(state == CapsuleState::Paused, !resume, "what was answered is kept: {found:?}");
            }
        }
        if agent.get(id).await.unwrap().state() == CapsuleState::Paused {
            agent.resume(id).await.unwrap();
        }
        let said = agent.python(id, CHECK_AND_CHANGE).await.unwrap();
        assert!(said.ends_with(&id.to_string()), "{said}: {found:?}");
        let left = fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count();
        assert_eq!(left, 0, "a running capsule needs no generation: {found:?}");
    }
    println!("cut: {found:?}");
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("agent/paused")).unwrap().count(), 0);
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// Waits until the capsule has failed; why.
async fn failure(agent: &mut TestAgent, id: CapsuleId) -> String {
    tokio::time::timeout(DEATH, async {
        loop {
            let capsule = agent.get(id).await.unwrap();
            if capsule.state() == CapsuleState::Failed {
                return capsule.reason;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a death is noticed")
}

#[tokio::test(flavor = "multi_thread")]
async fn deaths_are_told_whether_an_agent_ran_or_not() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(agent.restore(false).await.unwrap());
    }
    let end = |id: CapsuleId, which: usize| {
        kill(Pid::from_raw(processes(dir.path(), &id.to_string())[which]), Signal::SIGKILL).unwrap();
    };
    agent.process.kill().unwrap();
    end(ids[0], 0);
    end(ids[1], 1);
    // A record that a newer agent wrote is not guessed at.
    let strange = processes(dir.path(), &ids[4].to_string());
    for entry in fs::read_dir(dir.path().join("agent/vmms")).unwrap().flatten() {
        let path = entry.path().join("record.json");
        let text = fs::read_to_string(&path).unwrap();
        if text.contains(&ids[4].to_string()) {
            fs::write(&path, text.replace("\"version\":2", "\"version\":999")).unwrap();
        }
    }
    drop(agent);
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    assert!(failure(&mut agent, ids[0]).await.contains("the VMM ended while no agent ran"));
    assert!(failure(&mut agent, ids[1]).await.contains("its pager ended while no agent ran"));
    let mut watched = agent.client.watch_host(wire::WatchHostRequest {}).await.unwrap().into_inner();
    let mut told = HashMap::new();
    for _ in 0..4 {
        let capsule = watched.message().await.unwrap().unwrap();
        told.insert(capsule.capsule_id.clone(), capsule.state());
    }
    let states = ids[..4].iter().map(|id| told[&id.to_string()]).collect::<Vec<_>>();
    use CapsuleState::{Failed, Running};
    assert_eq!(states, [Failed, Failed, Running, Running], "whoever watches learns all of it");
    assert!(agent.get(ids[4]).await.is_err() && strange.iter().all(|pid| !is_alive(*pid)));
    assert!(agent.process.log().contains("version 999"), "{}", agent.process.log());
    // Of those that were taken over the exit status is unknown, not their death.
    end(ids[2], 0);
    assert!(failure(&mut agent, ids[2]).await.contains("the VMM ended"));
    end(ids[3], 1);
    assert!(failure(&mut agent, ids[3]).await.contains("its pager ended"));
    agent.run(ids[3], "1").await.unwrap_err();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_never_own_one_folder() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let mut second = Hearth::start(dir.path(), &["agent"], &[]).unwrap();
    assert!(!second.wait(Duration::from_secs(60)).unwrap().success());
    assert!(second.log().contains("another agent runs in this data folder"), "{}", second.log());
    assert_eq!(agent.python(id, "print(1)").await.unwrap(), "1", "the first one's capsule is unharmed");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_agent_pauses_and_its_capsules_come_back_when_they_are_used() {
    let dir = folder();
    let pause = [("HEARTH_PARKED", "1"), ("HEARTH_ON_STOP", "pause")];
    let mut agent = TestAgent::start(dir.path(), &pause).await.unwrap();
    agent.ensure_code().await.unwrap();
    let ours = agent.restore_from("code", env()).await.unwrap();
    agent.python(ours, SET_UP).await.unwrap();
    let theirs = agent.restore(false).await.unwrap();
    agent.pause(theirs).await.unwrap();
    let parked = agent.restore(true).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new(), "nothing is left running");
    let mut agent = TestAgent::start(dir.path(), &pause).await.unwrap();
    for id in [ours, theirs] {
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Paused);
    }
    assert!(agent.get(parked).await.is_err(), "a warm one is destroyed");
    assert_eq!(agent.python(ours, CHECK_AND_CHANGE).await.unwrap(), format!("2 {ours}"));
    let error = agent.run(theirs, "1").await.unwrap_err();
    assert!(format!("{error:#}").contains("paused"), "what its user paused, its user resumes: {error:#}");
    agent.resume(theirs).await.unwrap();
    // One that cannot be paused is not lost without a word: its store is full of a file where its folder was.
    agent.destroy(theirs).await.unwrap();
    let snapshots = dir.path().join("agent/snapshots");
    fs::remove_dir_all(&snapshots).unwrap();
    fs::write(&snapshots, b"").unwrap();
    agent.process.signal(Signal::SIGTERM).unwrap();
    agent.process.wait(Duration::from_secs(60)).unwrap();
    assert!(agent.process.log().contains("could not be paused"), "{}", agent.process.log());
    fs::remove_file(&snapshots).unwrap();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    let reason = failure(&mut agent, ours).await;
    assert!(reason.contains("it could not be paused when its host stopped"), "{reason}");
    agent.process.stop().unwrap();
    until(DEATH, "nothing to be left", || Ok(leftovers::of(dir.path()).is_empty().then_some(()))).unwrap();
}
