//! Named snapshots: restored from, rolled back to, deleted; they outlive the agent.

use crate::{
    folder,
    pause::{CHECK_AND_CHANGE, SET_UP},
};
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::{collections::HashMap, fs, time::Duration};

fn env() -> HashMap<String, String> {
    HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())])
}

#[tokio::test]
async fn a_named_snapshot_is_a_template_until_it_is_deleted() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let source = agent.restore_from("code", env()).await.unwrap();
    agent.python(source, SET_UP).await.unwrap();
    let (name, reply) = agent.snapshot(source).await.unwrap();
    println!("named snapshot: {:?}", reply.capture);
    let snapshot = reply.snapshot.unwrap();
    assert_eq!((snapshot.capsule_id, snapshot.template.as_str()), (source.to_string(), "code"));
    // The source goes on, and what it does is not in the snapshot.
    assert_eq!(agent.python(source, CHECK_AND_CHANGE).await.unwrap(), format!("2 {source}"));
    // A paused capsule is named without being resumed.
    agent.pause(source).await.unwrap();
    let (second, reply) = agent.snapshot(source).await.unwrap();
    assert!(reply.capture.is_none(), "{reply:?}");
    agent.destroy(source).await.unwrap();
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    assert_eq!(agent.snapshots().await.unwrap(), [name.to_string(), second.to_string()]);
    let first = agent.restore_from(&name.to_string(), env()).await.unwrap();
    assert_eq!(agent.get(first).await.unwrap().template, name.to_string());
    assert_eq!(agent.python(first, CHECK_AND_CHANGE).await.unwrap(), format!("2 {first}"));
    let later = agent.restore_from(&second.to_string(), env()).await.unwrap();
    assert_eq!(agent.python(later, CHECK_AND_CHANGE).await.unwrap(), format!("3 {later}"));
    agent.delete_snapshot(name).await.unwrap();
    agent.delete_snapshot(name).await.unwrap();
    assert_eq!(agent.snapshots().await.unwrap(), [second.to_string()]);
    let error = agent.restore_from(&name.to_string(), env()).await.unwrap_err();
    assert!(format!("{error:#}").contains("not found"), "{error:#}");
    // What came from it does not need it: it goes on, and to disk and back.
    agent.pause(first).await.unwrap();
    agent.resume(first).await.unwrap();
    assert_eq!(agent.python(first, CHECK_AND_CHANGE).await.unwrap(), format!("3 {first}"));
    agent.process.stop().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count(), 1);
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_snapshot_that_is_deleted_during_a_restore_is_kept_for_it() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let source = agent.restore_from("code", env()).await.unwrap();
    agent.python(source, SET_UP).await.unwrap();
    let (name, _) = agent.snapshot(source).await.unwrap();
    let id = CapsuleId::new();
    let request = wire::RestoreRequest {
        capsule_id: id.to_string(),
        template: name.to_string(),
        park: false,
        env: env(),
        network: None,
    };
    let mut changes = agent.client.watch_host(wire::WatchHostRequest {}).await.unwrap().into_inner();
    let mut client = agent.client.clone();
    let restore = tokio::spawn(async move { client.restore(request).await });
    loop {
        let change = changes.message().await.unwrap().unwrap();
        if change.capsule_id == id.to_string() {
            assert_eq!(change.state(), wire::CapsuleState::Starting);
            break;
        }
    }
    agent.delete_snapshot(name).await.unwrap();
    assert_eq!(agent.snapshots().await.unwrap(), Vec::<String>::new());
    restore.await.unwrap().unwrap();
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
    let snapshots = dir.path().join("agent/snapshots");
    until(Duration::from_secs(10), "its files to be gone", || {
        Ok((fs::read_dir(&snapshots)?.count() == 0).then_some(()))
    })
    .unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_rollback_gives_the_state_of_the_snapshot_back() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let (name, _) = agent.snapshot(id).await.unwrap();
    for paused in [false, true] {
        assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
        agent.shell(id, "rm -rf /tmp/job; echo spoiled > /etc/motd").await.unwrap();
        if paused {
            agent.pause(id).await.unwrap();
        }
        let reply = agent.rollback(id, name).await.unwrap();
        println!("rollback: {} us", reply.total_us);
        assert_ne!(agent.shell(id, "cat /etc/motd 2>&1 || true").await.unwrap(), "spoiled\n");
    }
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
    until(Duration::from_secs(10), "the old VMMs to be gone", || {
        Ok((fs::read_dir(dir.path().join("agent/vmms"))?.count() == 1).then_some(()))
    })
    .unwrap();
    // Another capsule's snapshot is refused, and one that is not there.
    let other = agent.restore(false).await.unwrap();
    let error = agent.rollback(other, name).await.unwrap_err();
    assert!(format!("{error:#}").contains("not a snapshot of this capsule"), "{error:#}");
    agent.delete_snapshot(name).await.unwrap();
    let error = agent.rollback(id, name).await.unwrap_err();
    assert!(format!("{error:#}").contains("not found"), "{error:#}");
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("3 {id}"));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
