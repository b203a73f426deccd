//! Disks: their size, growing them under a capsule that writes, filling them, and a host without room.

use crate::{folder, small::Small};
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self as wire, CapsuleState},
};
use std::{fs, path::Path, process::Command};

/// Prints the size of the root file system in MiB.
const SIZE: &str = "df --block-size=M --output=size / | tail -n 1 | tr -dc 0-9";

/// Writes numbered blocks of random bytes until it is told to stop, and remembers their sum.
const WRITE_ON: &str = r#"
import hashlib, os, threading
stop, written, fault = threading.Event(), hashlib.sha256(), []
def write():
    try:
        with open('/var/tmp/stream', 'wb') as file:
            while not stop.is_set():
                block = os.urandom(1 << 18)
                file.write(block)
                written.update(block)
                if file.tell() > 200 << 20: break
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fault.append(error)
writer = threading.Thread(target=write)
writer.start()
"#;

const WRITE_NO_MORE: &str = r#"
stop.set()
writer.join()
assert not fault, fault
print(hashlib.sha256(open('/var/tmp/stream', 'rb').read()).hexdigest() == written.hexdigest())
"#;

async fn restore(agent: &mut TestAgent, template: &str, disk_mb: u64) -> anyhow::Result<CapsuleId> {
    let id = CapsuleId::new();
    let request = wire::RestoreRequest {
        capsule_id: id.to_string(),
        template: template.to_owned(),
        disk_mb,
        ..Default::default()
    };
    agent.client.restore(request).await?;
    Ok(id)
}

async fn grow(agent: &mut TestAgent, id: CapsuleId, disk_mb: u64) -> Result<wire::Capsule, tonic::Status> {
    let request = wire::GrowDiskRequest { capsule_id: id.to_string(), disk_mb };
    agent.client.grow_disk(request).await.map(tonic::Response::into_inner)
}

/// What the guest sees, in MiB.
async fn seen(agent: &mut TestAgent, id: CapsuleId) -> u64 {
    agent.shell(id, SIZE).await.unwrap().parse().unwrap()
}

/// A file system of `disk_mb` has about that size: its own tables take some.
fn is_about(seen: u64, disk_mb: u64) -> bool {
    disk_mb * 94 / 100 <= seen && seen <= disk_mb
}

/// The file system in an image is sound.
fn check(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_has_the_default_size_or_the_one_asked_for_and_never_less() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let default = restore(&mut agent, "code", 0).await.unwrap();
    assert!(is_about(seen(&mut agent, default).await, 2048));
    let facts = agent.get(default).await.unwrap();
    assert_eq!(facts.disk_mb, 2048);
    assert!((1..200).contains(&facts.disk_used_mb), "{facts:?}");
    let large = restore(&mut agent, "code", 20_000).await.unwrap();
    assert!(is_about(seen(&mut agent, large).await, 20_000));
    assert_eq!(agent.get(large).await.unwrap().disk_mb, 20_000);
    for (disk_mb, word) in [(1000, "at least 2048"), (u64::MAX, "at most")] {
        let error = restore(&mut agent, "code", disk_mb).await.unwrap_err();
        let status = error.downcast_ref::<tonic::Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("disk_mb") && status.message().contains(word), "{status:?}");
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_under_a_writer_and_stays_so_over_pause_fork_and_rollback() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = restore(&mut agent, "code", 0).await.unwrap();
    let (early, _) = agent.snapshot(id).await.unwrap();
    agent.python(id, WRITE_ON).await.unwrap();
    for disk_mb in [3000, 9000, 9000] {
        let grown = grow(&mut agent, id, disk_mb).await.unwrap();
        assert_eq!(grown.disk_mb, disk_mb);
        assert!(is_about(seen(&mut agent, id).await, disk_mb));
    }
    assert_eq!(agent.python(id, WRITE_NO_MORE).await.unwrap(), "True");
    let error = grow(&mut agent, id, 8999).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("disk_mb") && error.message().contains("at least 9000"), "{error:?}");
    let used = agent.get(id).await.unwrap().disk_used_mb;
    assert!(used > 0);
    agent.pause(id).await.unwrap();
    let paused = agent.get(id).await.unwrap();
    assert_eq!((paused.state(), paused.disk_mb), (CapsuleState::Paused, 9000));
    let error = grow(&mut agent, id, 10_000).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error:?}");
    for generation in fs::read_dir(dir.path().join("agent/snapshots")).unwrap() {
        check(&generation.unwrap().path().join("upper.img"));
    }
    agent.resume(id).await.unwrap();
    assert!(is_about(seen(&mut agent, id).await, 9000));
    let (copies, _) = agent.fork(id, 1).await.unwrap();
    assert!(is_about(seen(&mut agent, copies[0]).await, 9000));
    let same =
        agent.python(copies[0], "import os\nprint(os.path.getsize('/var/tmp/stream') > 0)").await.unwrap();
    assert_eq!(same, "True");
    // The snapshot is of a smaller disk; the capsule keeps the size it was given.
    agent.rollback(id, early).await.unwrap();
    assert!(is_about(seen(&mut agent, id).await, 9000));
    let error = agent.shell(id, "ls /var/tmp/stream").await.unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_capsule_gets_its_size_when_it_is_claimed() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(true).await.unwrap();
    let error = grow(&mut agent, id, 4096).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error:?}");
    let request = wire::ClaimRequest { capsule_id: id.to_string(), disk_mb: 4096, ..Default::default() };
    let claimed = agent.client.claim(request).await.unwrap().into_inner();
    assert_eq!((claimed.state(), claimed.disk_mb), (CapsuleState::Running, 4096));
    assert!(is_about(seen(&mut agent, id).await, 4096));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_inside_and_the_capsule_goes_on() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = restore(&mut agent, "code", 0).await.unwrap();
    // Most of it is taken without being written; the rest is written, to the last block.
    let said = agent
        .shell(
            id,
            "free=$(df --block-size=M --output=avail / | tail -n 1 | tr -dc 0-9); \
             fallocate -l $((free - 60))M /root/most; \
             dd if=/dev/urandom of=/root/rest bs=1M 2>&1; sync; df --output=avail / | tail -n 1; \
             rm /root/most; echo word >/root/word && sync && cat /root/word",
        )
        .await
        .unwrap();
    assert!(said.contains("No space left on device") && said.trim_end().ends_with("word"), "{said}");
    assert_eq!(agent.python(id, "print(6*7)").await.unwrap(), "42");
    let vmm = fs::read_dir(dir.path().join("agent/vmms")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(
        fs::metadata(vmm.join("upper.img")).unwrap().len(),
        2048 << 20,
        "the host's file keeps its size"
    );
    let used = agent.get(id).await.unwrap().disk_used_mb;
    assert!((40..200).contains(&used), "{used}");
    // More room makes it fit.
    grow(&mut agent, id, 3000).await.unwrap();
    agent.shell(id, "fallocate -l 1500M /root/most && rm /root/most").await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_is_an_error_inside_the_capsule_that_writes() {
    let dir = folder();
    let small = Small::mount(&dir.path().join("agent/vmms"), "64m");
    let settings = [("HEARTH_PARKED", "0"), ("HEARTH_DISK_RESERVE_MB", "32")];
    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    let (writer, other) = (agent.restore(false).await.unwrap(), agent.restore(false).await.unwrap());
    agent.python(other, "x = 41").await.unwrap();
    let said = agent
        .shell(writer, "dd if=/dev/urandom of=/root/large bs=1M count=200 conv=fsync 2>&1; echo ended $?")
        .await
        .unwrap();
    assert!(said.contains("error") && !said.trim_end().ends_with("ended 0"), "{said}");
    for id in [writer, other] {
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Running);
    }
    assert_eq!(agent.python(other, "print(x + 1)").await.unwrap(), "42");
    assert_eq!(agent.python(writer, "print(6 * 7)").await.unwrap(), "42", "its memory serves on");
    let error = agent.restore(false).await.unwrap_err();
    let status = error.downcast_ref::<tonic::Status>().unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("HEARTH_DISK_RESERVE_MB"), "{status:?}");
    agent.destroy(writer).await.unwrap();
    // With room again, the other one's disk takes writes, and new capsules start.
    agent.shell(other, "dd if=/dev/urandom of=/root/a bs=1M count=8 conv=fsync").await.unwrap();
    hearth_e2e::process::until(std::time::Duration::from_secs(20), "room for a capsule", || {
        let used = fs::read_dir(dir.path().join("agent/vmms"))?.count();
        Ok((used == 1).then_some(()))
    })
    .unwrap();
    agent.restore(false).await.unwrap();
    agent.process.stop().unwrap();
    drop(small);
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
