//! Deaths in the middle of a capture: the capsule fails and says why, or the capture is whole; never half of one.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::{
    id::{CapsuleId, SnapshotId},
    wire::agent::{self as wire, CapsuleState},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::HashMap, path::Path, time::Duration};

/// The steps of a capture take some ten milliseconds each: kills at these times meet different ones.
const DELAYS_MS: [u64; 4] = [0, 20, 60, 150];
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
enum Victim {
    Vmm,
    Pager,
}

impl Victim {
    fn pids(self, dir: &Path) -> Vec<i32> {
        match self {
            Self::Vmm => leftovers::vmms(dir),
            Self::Pager => leftovers::pagers(dir),
        }
    }
}

/// Waits until the capsule is in a state, as a watcher of the host sees it.
async fn watched(agent: &TestAgent, id: CapsuleId, wanted: CapsuleState) -> anyhow::Result<()> {
    let mut changes = agent.client.clone().watch_host(wire::WatchHostRequest {}).await?.into_inner();
    let seen = async {
        while let Some(capsule) = changes.message().await? {
            if capsule.capsule_id == id.to_string() && capsule.state() == wanted {
                return Ok(());
            }
        }
        anyhow::bail!("the stream of changes ended")
    };
    tokio::time::timeout(DEADLINE, seen).await?
}

/// Begins a named snapshot, kills the victim when it is under way, and returns whether the snapshot was made.
async fn kill_during(
    agent: &mut TestAgent,
    dir: &Path,
    (victim, delay): (Victim, u64),
    id: CapsuleId,
) -> (SnapshotId, bool) {
    let name = SnapshotId::new();
    let mut client = agent.client.clone();
    let request = wire::CreateSnapshotRequest { capsule_id: id.to_string(), snapshot_id: name.to_string() };
    let capture = tokio::spawn(async move { client.create_snapshot(request).await });
    watched(agent, id, CapsuleState::Snapshotting).await.unwrap();
    tokio::time::sleep(Duration::from_millis(delay)).await;
    let pids = victim.pids(dir);
    assert_eq!(pids.len(), 1, "one capsule: {:#?}", leftovers::of(dir));
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    let outcome = tokio::time::timeout(DEADLINE, capture).await.expect("a capture hangs").unwrap();
    if let Err(status) = &outcome {
        assert!(!status.message().is_empty(), "{status:?}");
    }
    (name, outcome.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_or_pager_that_dies_during_a_capture_leaves_no_half_of_one() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let mut made = 0;
    for victim in [Victim::Vmm, Victim::Pager] {
        for delay in DELAYS_MS {
            let id = agent.restore(false).await.unwrap();
            agent.python(id, "import os\nblock = os.urandom(30 << 20)\nmark = 'kept'").await.unwrap();
            let (name, is_made) = kill_during(&mut agent, dir.path(), (victim, delay), id).await;
            watched(&agent, id, CapsuleState::Failed).await.unwrap();
            let failed = agent.get(id).await.unwrap();
            assert!(!failed.reason.is_empty(), "{failed:?}");
            let listed = agent.snapshots().await.unwrap();
            assert_eq!(listed.contains(&name.to_string()), is_made, "{victim:?} {delay} ms: {failed:?}");
            if is_made {
                made += 1;
                let copy = agent.restore_from(&name.to_string(), HashMap::new()).await.unwrap();
                assert_eq!(agent.python(copy, "print(mark, len(block))").await.unwrap(), "kept 31457280");
                agent.destroy(copy).await.unwrap();
                agent.delete_snapshot(name).await.unwrap();
            }
            agent.destroy(id).await.unwrap();
            until(DEADLINE, "all of it to be given back", || {
                let count = leftovers::vmms(dir.path()).len() + leftovers::pagers(dir.path()).len();
                Ok((count == 0).then_some(()))
            })
            .unwrap();
        }
    }
    println!("{made} of {} captures were whole", 2 * DELAYS_MS.len());
    assert!(made < 2 * DELAYS_MS.len(), "no death came in the middle of a capture");
    let drafts = std::fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count();
    assert_eq!(drafts, 0, "a capture that failed left something");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
