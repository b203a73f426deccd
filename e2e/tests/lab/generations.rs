//! Pause, resume, fork, named snapshot and rollback on Firecracker: nothing that the guest wrote is lost, whatever was
//! captured before, and a capture that fails changes nothing.

use crate::{DEATH_DEADLINE, folder, no_leftovers, pids, stop};
use hearth_e2e::{agent::TestAgent, process::until};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Left to the filesystem's own bookkeeping when a large file is made.
const MARGIN: u64 = 4 << 20;

/// A value, memory to hash, a file in a working folder, a process.
const SET_UP: &str = r#"
import os, hashlib, subprocess
os.makedirs('/tmp/job', exist_ok=True)
os.chdir('/tmp/job')
rounds = 0
block = bytearray(os.urandom(6 << 20))
before = hashlib.sha256(block).hexdigest()
open('log.txt', 'w').write('')
sleeper = subprocess.Popen(['sleep', '100000'])
"#;

/// Checks all of it, and changes it: other pages each time, some of them to zero.
const CHECK_AND_CHANGE: &str = r#"
assert hashlib.sha256(block).hexdigest() == before, 'memory changed'
assert os.getcwd() == '/tmp/job' and sleeper.poll() is None
assert open('log.txt').read().count('\n') == rounds
assert os.environ['FLAVOUR'] == 'plain'
rounds += 1
open('log.txt', 'a').write(f'{rounds}\n')
os.sync()
at = (rounds * 1234567) % (len(block) - (1 << 19)) & ~4095
block[at:at + (1 << 18)] = os.urandom(1 << 18)
block[at + (1 << 18):at + (1 << 19)] = bytes(1 << 18)
before = hashlib.sha256(block).hexdigest()
print(rounds)
"#;

pub async fn start(dir: &Path) -> (TestAgent, CapsuleId) {
    start_with(dir, &[("HEARTH_PARKED", "0")]).await
}

async fn start_with(dir: &Path, env: &[(&str, &str)]) -> (TestAgent, CapsuleId) {
    let mut agent = TestAgent::start(dir, env).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = restore(&mut agent, "code").await;
    agent.python(id, SET_UP).await.unwrap();
    (agent, id)
}

async fn restore(agent: &mut TestAgent, from: &str) -> CapsuleId {
    let env = HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())]);
    agent.restore_from(from, env).await.unwrap()
}

/// Everything is there after so many rounds.
pub async fn is_whole(agent: &mut TestAgent, id: CapsuleId, rounds: u32) {
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), (rounds + 1).to_string());
}

/// The VMMs' files of captures in their jails: name and size.
fn dumps(dir: &Path) -> Vec<(PathBuf, u64)> {
    let jails = fs::read_dir(dir.join("agent/vmms")).unwrap().flatten();
    let roots = jails.flat_map(|vmm| fs::read_dir(vmm.path().join("firecracker")).into_iter().flatten());
    let files = roots.flatten().flat_map(|jail| {
        let root = jail.path().join("root");
        [root.join("saved"), root.join("written")]
    });
    files.filter_map(|path| Some((path.clone(), fs::metadata(path).ok()?.len()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_is_paused_resumed_forked_snapshotted_and_rolled_back() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    for round in 0..2 {
        is_whole(&mut agent, id, round).await;
        let capture = agent.pause(id).await.unwrap();
        println!("pause {round}: {capture:?}");
        assert!(capture.written_pages > 100 && capture.written_pages <= capture.own_pages, "{capture:?}");
        assert!(capture.own_pages < 384 << 8, "a difference, not all of memory: {capture:?}");
        until(DEATH_DEADLINE, "the VMM to be gone", || {
            Ok(pids(dir.path(), "--api-sock").is_empty().then_some(()))
        })
        .unwrap();
        println!("resume {round}: {} us", agent.resume(id).await.unwrap());
    }
    is_whole(&mut agent, id, 2).await;
    // Captures in one life: of the source of a fork, of a named snapshot, and each of the copies.
    let (copies, reply) = agent.fork(id, 2).await.unwrap();
    println!("fork of 2: {} us, {:?}", reply.total_us, reply.capture);
    let draw = "import random\nprint(random.random(), os.urandom(8).hex())";
    let mut seen = Vec::new();
    for copy in [id, copies[0], copies[1]] {
        is_whole(&mut agent, copy, 3).await;
        seen.push(agent.python(copy, draw).await.unwrap());
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{seen:?}");
    agent.destroy(copies[1]).await.unwrap();
    let (name, reply) = agent.snapshot(id).await.unwrap();
    println!("snapshot: {reply:?}");
    is_whole(&mut agent, id, 4).await;
    let other = restore(&mut agent, &name.to_string()).await;
    is_whole(&mut agent, other, 4).await;
    // Restored from a generation: its own pages are below what it writes.
    agent.pause(other).await.unwrap();
    agent.resume(other).await.unwrap();
    is_whole(&mut agent, other, 5).await;
    agent.rollback(id, name).await.unwrap();
    is_whole(&mut agent, id, 4).await;
    is_whole(&mut agent, copies[0], 4).await;
    // A VMM, and a pager, of capsules that came from generations.
    dies(&mut agent, dir.path(), "--api-sock", other, "the VMM ended").await;
    dies(&mut agent, dir.path(), " pager ", copies[0], "its pager ended").await;
    is_whole(&mut agent, id, 5).await;
    let next = restore(&mut agent, &name.to_string()).await;
    is_whole(&mut agent, next, 4).await;
    for id in [id, next, other, copies[0]] {
        agent.destroy(id).await.unwrap();
    }
    agent.delete_snapshot(name).await.unwrap();
    let left = fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count();
    assert_eq!(left, 0, "nothing is kept");
    stop(&mut agent, dir.path()).await;
}

/// Kills a process of a capsule: it fails, for that reason.
async fn dies(agent: &mut TestAgent, dir: &Path, word: &str, id: CapsuleId, reason: &str) {
    let vmms = fs::read_dir(dir.join("agent/vmms")).unwrap().flatten();
    let texts = vmms.map(|vmm| (vmm.path(), fs::read_to_string(vmm.path().join("record.json"))));
    let (folder, _) = texts
        .filter_map(|(path, text)| Some((path, text.ok()?)))
        .find(|(_, text)| text.contains(&id.to_string()))
        .unwrap();
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let victims: Vec<i32> = pids(dir, word)
        .into_iter()
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // As Firecracker's id, or in the path of the pager's figures.
            line.contains(&format!("{name} ")) || line.contains(&format!("/{name}/"))
        })
        .collect();
    assert_eq!(victims.len(), 1, "{victims:?} of {name}");
    kill(Pid::from_raw(victims[0]), Signal::SIGKILL).unwrap();
    let start = std::time::Instant::now();
    loop {
        let request = wire::GetCapsuleRequest { capsule_id: id.to_string(), usage: false };
        let capsule = agent.client.get_capsule(request).await.unwrap().into_inner();
        if capsule.state() == wire::CapsuleState::Failed {
            assert!(capsule.reason.contains(reason), "{capsule:?}");
            break;
        }
        assert!(start.elapsed() < DEATH_DEADLINE, "{capsule:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_before_between_and_after_failed_captures_is_there() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    // The first part is in a capture; from now on Firecracker's own log does not have it any more, and each snapshot is a
    // full one.
    is_whole(&mut agent, id, 0).await;
    let (copies, _) = agent.fork(id, 1).await.unwrap();
    agent.destroy(copies[0]).await.unwrap();
    assert!(dumps(dir.path()).is_empty(), "a capture's memory does not stay");
    let mut rounds = 1;
    let mut after_the_call = false;
    // So much is left of the disk: first enough for all of memory, but not for the layer too.
    for left_kb in [385 << 10, 12 << 10, 16, 0] {
        is_whole(&mut agent, id, rounds).await;
        rounds += 1;
        let filler = fill(dir.path(), left_kb);
        let error = format!("{:#}", agent.pause(id).await.unwrap_err());
        println!("a pause with {left_kb} KiB left: {error}");
        after_the_call |= !error.contains("snapshot/create");
        assert!(error.contains("No space left") || error.contains("os error 28"), "{error}");
        let error = format!("{:#}", agent.fork(id, 1).await.unwrap_err());
        println!("a fork with {left_kb} KiB left: {error}");
        assert_eq!(agent.get(id).await.unwrap().state(), wire::CapsuleState::Running);
        fs::remove_file(filler).unwrap();
    }
    assert!(after_the_call, "no pause got as far as the layer");
    is_whole(&mut agent, id, rounds).await;
    agent.pause(id).await.unwrap();
    until(DEATH_DEADLINE, "the jail to be gone", || Ok(dumps(dir.path()).is_empty().then_some(()))).unwrap();
    agent.resume(id).await.unwrap();
    is_whole(&mut agent, id, rounds + 1).await;
    // And the next capture is a difference again.
    let (copies, reply) = agent.fork(id, 1).await.unwrap();
    assert!(reply.capture.unwrap().own_pages < 384 << 8);
    is_whole(&mut agent, copies[0], rounds + 2).await;
    agent.destroy(id).await.unwrap();
    agent.destroy(copies[0]).await.unwrap();
    let drafts = fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count();
    assert_eq!(drafts, 0, "failed captures leave nothing");
    agent.process.stop().unwrap();
    no_leftovers(dir.path());
}

/// Fills the filesystem of `folder` but for so much, until the file is removed.
fn fill(folder: &Path, left_kb: u64) -> PathBuf {
    let path = folder.join("filler");
    let left = || {
        let room = nix::sys::statvfs::statvfs(folder).unwrap();
        room.blocks_available() * room.fragment_size()
    };
    let mut file = fs::File::create(&path).unwrap();
    // Most of it at once; the filesystem takes some for itself.
    let most = left().saturating_sub((left_kb << 10) + MARGIN);
    nix::fcntl::posix_fallocate(&file, 0, i64::try_from(most).unwrap()).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    while left_kb << 10 < left() && file.write_all(&[1; 4096]).is_ok() {}
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn jails_on_an_xfs_of_the_agents_own_share_blocks() {
    let dir = folder();
    let xfs = [("HEARTH_PARKED", "0"), ("HEARTH_STORE_FS", "xfs"), ("HEARTH_STORE_SIZE", "1Gi")];
    let (mut agent, id) = start_with(dir.path(), &xfs).await;
    let store = dir.path().join("agent/store");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(&store.display().to_string())).unwrap().to_owned();
    assert!(mount.contains("xfs") && mount.contains("nosuid") && !mount.contains("nodev"), "{mount}");
    agent.shell(id, "head -c 40M /dev/urandom > /root/large; sync").await.unwrap();
    is_whole(&mut agent, id, 0).await;
    let used = || {
        let stat = nix::sys::statvfs::statvfs(&store).unwrap();
        ((stat.blocks() - stat.blocks_free()) * stat.fragment_size()) >> 20
    };
    let before = used();
    let (copies, reply) = agent.fork(id, 1).await.unwrap();
    println!(
        "fork of 1 with 40 MB on disk: {} us, {:?}, {} MB more",
        reply.total_us,
        reply.capture,
        used() - before
    );
    is_whole(&mut agent, copies[0], 1).await;
    agent.pause(id).await.unwrap();
    agent.resume(id).await.unwrap();
    is_whole(&mut agent, id, 1).await;
    // The next agent takes over mount and jails.
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &xfs).await.unwrap();
    for id in [id, copies[0]] {
        is_whole(&mut agent, id, 2).await;
        agent.destroy(id).await.unwrap();
    }
    stop(&mut agent, dir.path()).await;
}
