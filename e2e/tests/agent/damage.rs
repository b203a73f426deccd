//! When putting a capsule on disk fails it runs on; what is damaged on disk is refused by name, and nothing else is
//! touched.

use crate::{
    folder,
    pause::{CHECK_AND_CHANGE, SET_UP},
};
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::wire::agent::CapsuleState;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

fn env() -> HashMap<String, String> {
    HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())])
}

/// A small tmpfs, unmounted when dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(at.to_owned())
    }

    pub(crate) fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str())).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A test that fails says why itself.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_leaves_the_capsule_running_and_nothing_behind() {
    let dir = folder();
    let snapshots = dir.path().join("agent/snapshots");
    let paused = dir.path().join("agent/paused");
    let small = Small::mount(&snapshots, "3m");
    let records = Small::mount(&paused, "1m");
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let mut rounds = 1;
    let mut still_well = async |agent: &mut TestAgent| {
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Running);
        rounds += 1;
        assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("{rounds} {id}"));
        assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0, "a failed capture leaves no files");
    };
    // The memory layer does not fit.
    let error = agent.pause(id).await.unwrap_err();
    assert!(format!("{error:#}").contains("No space left"), "{error:#}");
    let status = error.downcast_ref::<tonic::Status>().unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    still_well(&mut agent).await;
    assert!(agent.fork(id, 1).await.is_err());
    still_well(&mut agent).await;
    assert!(agent.snapshot(id).await.is_err());
    still_well(&mut agent).await;
    // Everything fits, but the record of the pause does not.
    small.resize("512m");
    let filler = paused.join("filler.draft");
    fs::write(&filler, vec![1; 1 << 20]).unwrap();
    let error = agent.pause(id).await.unwrap_err();
    assert!(format!("{error:#}").contains("record of a paused capsule"), "{error:#}");
    still_well(&mut agent).await;
    fs::remove_file(&filler).unwrap();
    agent.pause(id).await.unwrap();
    agent.resume(id).await.unwrap();
    still_well(&mut agent).await;
    agent.process.stop().unwrap();
    drop((small, records));
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// The only generation that there is.
fn generation(dir: &Path) -> PathBuf {
    let mut folders = fs::read_dir(dir.join("agent/snapshots")).unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    assert!(folders.next().is_none());
    folder
}

#[tokio::test]
async fn damaged_files_are_refused_by_name_and_the_capsule_stays_paused() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    let template = agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    agent.pause(id).await.unwrap();
    let folder = generation(dir.path());
    let cache = std::env::var("HEARTH_CACHE").unwrap_or_else(|_| "/var/cache/hearth".to_owned());
    let template = Path::new(&cache).join("templates").join(template.snapshot_key);
    let layer = fs::read(folder.join("memory.layer")).unwrap();
    let mut flipped = layer.clone();
    flipped[4096] ^= 1;
    let cut = layer[..layer.len() / 2].to_vec();
    let device = fs::read(folder.join("device.state")).unwrap();
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let foreign_layer = fs::read(template.join("memory.layer")).unwrap();
    let foreign_manifest = fs::read(template.join("manifest.json")).unwrap();
    let older = manifest.replace("\"version\": 2", "\"version\": 1");
    let changed = manifest.replacen("gen-", "gem-", 1);
    let damages: [(&str, Vec<u8>, &str); 9] = [
        ("memory.layer", cut, "memory layer"),
        ("memory.layer", flipped, "memory layer"),
        ("memory.layer", foreign_layer, "memory.layer"),
        ("memory.layer", Vec::new(), "memory layer"),
        ("device.state", device[..device.len() - 1].to_vec(), "device.state"),
        ("upper.img", b"short".to_vec(), "upper.img"),
        ("manifest.json", foreign_manifest, "the key"),
        ("manifest.json", changed.into_bytes(), "checksum"),
        ("manifest.json", older.into_bytes(), "version 1"),
    ];
    for (name, bytes, word) in damages {
        let (path, aside) = (folder.join(name), folder.join("aside"));
        fs::rename(&path, &aside).unwrap();
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", agent.resume(id).await.unwrap_err());
        assert!(error.contains(word), "{name}: {error}");
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Paused, "{name}");
        fs::rename(&aside, &path).unwrap();
    }
    agent.resume(id).await.unwrap();
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_generation_without_its_template_is_refused_and_kept() {
    let dir = folder();
    // A cache of its own, whose template can be taken away.
    let cache = std::env::var("HEARTH_CACHE").unwrap_or_else(|_| "/var/cache/hearth".to_owned());
    let own = dir.path().join("cache");
    fs::create_dir_all(own.join("templates")).unwrap();
    std::os::unix::fs::symlink(Path::new(&cache).join("images"), own.join("images")).unwrap();
    let env_of = [("HEARTH_PARKED", "0"), ("HEARTH_CACHE", own.to_str().unwrap())];
    let mut first = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    let key = first.ensure_code().await.unwrap().snapshot_key;
    first.process.stop().unwrap();
    let template = own.join("templates").join(&key);
    fs::create_dir(&template).unwrap();
    for file in fs::read_dir(Path::new(&cache).join("templates").join(&key)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), template.join(file.file_name())).unwrap();
    }
    let mut agent = TestAgent::start(dir.path(), &env_of).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    agent.pause(id).await.unwrap();
    agent.process.stop().unwrap();
    let aside = own.join("aside");
    fs::rename(&template, &aside).unwrap();
    let mut agent = TestAgent::start(dir.path(), &env_of).await.unwrap();
    let error = format!("{:#}", agent.resume(id).await.unwrap_err());
    assert!(error.contains(&key) && error.contains("not in the cache"), "{error}");
    assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Paused);
    fs::rename(&aside, &template).unwrap();
    agent.resume(id).await.unwrap();
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
