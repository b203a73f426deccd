//! The agent's store on an XFS of its own: copies share blocks, the mount outlives the agent, and nothing is left.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers};
use nix::sys::statvfs::statvfs;
use std::{fs, path::Path, process::Command};

const XFS: [(&str, &str); 3] =
    [("HEARTH_PARKED", "0"), ("HEARTH_STORE_FS", "xfs"), ("HEARTH_STORE_SIZE", "4Gi")];

/// The line of the store's mount, which has the mount's id.
fn mount_of(dir: &Path) -> Option<String> {
    let path = format!(" {} ", dir.join("agent/store").display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().find(|line| line.contains(&path)).map(str::to_owned)
}

fn used_mb(folder: &Path) -> u64 {
    let stat = statvfs(folder).unwrap();
    ((stat.blocks() - stat.blocks_free()) * stat.fragment_size()) >> 20
}

/// The writable layers of all VMMs.
fn uppers(dir: &Path) -> Vec<std::path::PathBuf> {
    let vmms = fs::read_dir(dir.join("agent/store/vmms")).unwrap();
    vmms.map(|vmm| vmm.unwrap().path().join("upper.img")).collect()
}

/// Whether extents of a file are shared with another's (fiemap).
fn shares(path: &Path) -> bool {
    let output = Command::new("/usr/sbin/filefrag").arg("-v").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).contains("shared")
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_xfs_of_its_own_copies_share_blocks_and_outlive_the_agent() {
    let dir = folder();
    let store = dir.path().join("agent/store");
    let mut agent = TestAgent::start(dir.path(), &XFS).await.unwrap();
    let mount = mount_of(dir.path()).unwrap();
    for option in ["nodev", "nosuid", "noexec"] {
        assert!(mount.contains(option), "{option} in {mount}");
    }
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let sum = "sha256sum /root/large | cut -c 1-64";
    let before =
        agent.shell(id, &format!("head -c 150M /dev/urandom >/root/large; sync; {sum}")).await.unwrap();
    assert!(agent.get(id).await.unwrap().disk_used_mb > 140);
    let used = used_mb(&store);
    let (copies, reply) = agent.fork(id, 3).await.unwrap();
    println!("fork of 3 with 150 MB on disk: {:?}", reply.capture);
    // The capture's memory has the file once more, in the guest's cache; the copies' pagers hold it. Three copies and
    // the capture's disk would take 600 MB more.
    let more = used_mb(&store) - used;
    assert!(more < 350, "three copies of 150 MB took {more} MB");
    let uppers = uppers(dir.path());
    assert_eq!((uppers.len(), uppers.iter().filter(|upper| shares(upper)).count()), (4, 4));
    for copy in copies {
        assert_eq!(agent.shell(copy, sum).await.unwrap(), before);
        agent.destroy(copy).await.unwrap();
    }
    let capture = agent.pause(id).await.unwrap();
    println!("pause with 150 MB on disk: {capture:?}");
    for kill in [true, false] {
        if kill {
            agent.process.kill().unwrap();
            assert_eq!(mount_of(dir.path()), Some(mount.clone()), "the mount outlives the agent");
        } else {
            agent.process.stop().unwrap();
            assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
        }
        agent = TestAgent::start(dir.path(), &XFS).await.unwrap();
        if kill {
            assert_eq!(mount_of(dir.path()), Some(mount.clone()), "it is taken over");
        }
    }
    agent.resume(id).await.unwrap();
    assert_eq!(agent.shell(id, sum).await.unwrap(), before);
    agent.pause(id).await.unwrap();
    agent.process.stop().unwrap();
    // What is on it would be out of reach on another kind of store.
    let error = TestAgent::start(dir.path(), &[]).await.err().unwrap();
    assert!(format!("{error:#}").contains("HEARTH_STORE_FS=plain"), "{error:#}");
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
    let mut agent = TestAgent::start(dir.path(), &XFS).await.unwrap();
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
    let mut agent = TestAgent::start(dir.path(), &[]).await.unwrap();
    assert!(!dir.path().join("agent/store.xfs").exists(), "an empty one is given up");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
