//! The agent on real capsules: restores, images, isolation, deaths. Run with `--test-threads=1`. Several threads each: a
//! client that is not polled would keep the agent waiting for it, 30 s, at its stop.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod captures;
mod console;
mod damage;
mod disk;
mod files;
mod flatten;
mod fork;
mod hostile;
mod idle;
mod limits;
mod metrics;
mod network;
mod pause;
mod ports;
mod processes;
mod sequences;
mod sizes;
mod small;
mod snapshots;
mod store;
mod survival;
mod terminals;
mod working_set;

use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::wire::agent as wire;
use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("hearth-").tempdir_in("/tmp").unwrap()
}

fn images(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir.join("agent/images"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "img"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_capsule_answers_and_leaves_nothing() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[]).await.unwrap();
    let template = agent.ensure_code().await.unwrap();
    assert_eq!(template.languages, ["python"]);
    for park in [false, true] {
        let id = agent.restore(park).await.unwrap();
        let ran = agent.run(id, "print(1+1)\n40+2").await.unwrap();
        assert_eq!((ran.stdout.as_str(), ran.value.as_deref()), ("2\n", Some("42")), "{ran:?}");
        assert_eq!(ran.end.as_ref().map(|end| end.execution_count), Some(1));
        agent.destroy(id).await.unwrap();
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pager_serves_faults_from_the_store_when_the_image_is_evicted() {
    let dir = folder();
    // Nothing is filled ahead: every page that is not in the image has to be asked for.
    let settings = [("HEARTH_PARKED", "0"), ("HEARTH_PREFETCH", "false")];
    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    let first = agent.restore(false).await.unwrap();
    let cold = agent.get(first).await.unwrap();
    assert!(cold.faults > 100, "an empty image is filled by faults: {cold:?}");
    let second = agent.restore(false).await.unwrap();
    let hot = agent.get(second).await.unwrap();
    assert!(hot.faults * 4 < cold.faults, "a filled image is shared: {hot:?} after {cold:?}");
    let evicted =
        agent.client.evict_image(wire::EvictImageRequest { template: "code".to_owned() }).await.unwrap();
    assert!(evicted.into_inner().bytes > 1 << 20);
    let third = agent.restore(false).await.unwrap();
    let again = agent.get(third).await.unwrap();
    assert!(again.faults > 100, "after the eviction the pager serves faults again: {again:?}");
    // Those that map the old image keep it.
    for id in [first, second, third] {
        let ran = agent.run(id, "import pandas, matplotlib\nprint(sum(range(1000)))").await.unwrap();
        assert_eq!(ran.stdout, "499500\n", "{ran:?}");
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_capsule_user_can_write_the_image_and_no_write_reaches_it() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let image = images(dir.path()).pop().unwrap();
    // Readable by the capsule's user, as QEMU needs, but not writable.
    let open = |mode: &str| {
        Command::new("/usr/bin/dd")
            .arg(if mode == "write" {
                format!("of={}", image.display())
            } else {
                format!("if={}", image.display())
            })
            .arg(if mode == "write" { "if=/dev/zero".to_owned() } else { "of=/dev/null".to_owned() })
            .args(["bs=4096", "count=1", "conv=notrunc"])
            .uid(520_000)
            .gid(520_000)
            .output()
            .unwrap()
    };
    assert!(!open("write").status.success(), "the image was opened for writing");
    // The VMM holds it read-only: by the mode of its descriptor, whatever the path is called in its jail.
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let image_inode = inode(&image).unwrap();
    let mut held = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let is_vmm = fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains("qemu-system"));
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten().filter(|_| is_vmm) {
            if inode(&fd.path()).is_ok_and(|inode| inode == image_inode) {
                let mode = fs::symlink_metadata(fd.path()).unwrap().permissions().mode();
                assert_eq!(mode & 0o200, 0, "a VMM holds the image writable");
                held += 1;
            }
        }
    }
    assert!(held > 0, "no VMM was seen to hold the image");
    agent.run(id, "block = bytearray(b'Z' * (64 << 20))").await.unwrap();
    let other = agent.restore(false).await.unwrap();
    let ran = agent.run(other, "'block' in globals()").await.unwrap();
    assert_eq!(ran.value.as_deref(), Some("False"));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_calls_are_refused_by_name() {
    let dir = folder();
    let mut agent =
        TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0"), ("HEARTH_MAX_CAPSULES", "1")]).await.unwrap();
    let request = wire::RestoreRequest {
        capsule_id: "nonsense".to_owned(),
        template: "code".to_owned(),
        ..Default::default()
    };
    let error = agent.client.restore(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("capsule_id"), "{error:?}");
    let error = agent
        .client
        .ensure_template(wire::EnsureTemplateRequest { template: "x".to_owned(), ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    agent.ensure_code().await.unwrap();
    let only = agent.restore(false).await.unwrap();
    let full = agent.restore(false).await.unwrap_err();
    assert!(format!("{full:#}").contains("limit of 1"), "{full:#}");
    agent.destroy(only).await.unwrap();
    agent.restore(false).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
