//! A working set that does not fit any more is noticed at the next fresh image, and recorded anew.

use crate::folder;
use hearth_agent::memory::{
    layer::Layer,
    working_set::{self, Chunks},
};
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::wire::agent as wire;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

/// Two throw-away restores, on a busy machine.
const RECORDED: Duration = Duration::from_secs(120);

/// A cache of the test's own with the images of the shared one: what is broken here must not meet other tests.
fn own_cache(folder: &Path) {
    let shared = std::env::var_os("HEARTH_CACHE").map_or("/var/cache/hearth".into(), PathBuf::from);
    fs::create_dir(folder.join("images")).unwrap();
    fs::copy(shared.join("images/current.json"), folder.join("images/current.json")).unwrap();
}

/// The only template's memory layer and working set.
fn files(cache: &Path) -> (PathBuf, PathBuf) {
    let templates = fs::read_dir(cache.join("templates")).unwrap().flatten().map(|entry| entry.path());
    let files: Vec<PathBuf> = templates
        .filter(|path| path.is_dir())
        .flat_map(|path| fs::read_dir(path).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>())
        .collect();
    let named = |prefix: &str| {
        let is_named = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
        let found: Vec<_> = files.iter().filter(is_named).collect();
        assert_eq!(found.len(), 1, "{prefix}: {files:?}");
        found[0].clone()
    };
    (named("memory"), named("working-"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_set_that_does_not_fit_is_recorded_anew() {
    let (dir, cache) = (folder(), folder());
    own_cache(cache.path());
    let cache_text = cache.path().to_str().unwrap();
    let settings = [("HEARTH_PARKED", "0"), ("HEARTH_CACHE", cache_text)];
    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    agent.process.stop().unwrap();
    let (memory, set) = files(cache.path());
    let recorded = working_set::read(&set).unwrap();
    assert!(recorded.len() > 100, "{} chunks were recorded", recorded.len());
    // One chunk of all: what a set looks like whose template is used otherwise now.
    let layer = Layer::open(File::open(memory).unwrap()).unwrap();
    working_set::write(&layer, &recorded.iter().copied().take(1).collect::<Chunks>(), &set).unwrap();

    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    let first = agent.restore(false).await.unwrap();
    let misses = agent.get(first).await.unwrap().faults;
    until(RECORDED, "a new working set", || {
        let chunks = working_set::read(&set).map_or(0, |chunks| chunks.len());
        Ok((chunks * 10 > recorded.len() * 9).then_some(()))
    })
    .unwrap();
    agent.destroy(first).await.unwrap();
    agent.client.evict_image(wire::EvictImageRequest { template: "code".to_owned() }).await.unwrap();
    let second = agent.restore(false).await.unwrap();
    let hits = agent.get(second).await.unwrap().faults;
    assert!(hits < misses, "{hits} faults with a working set, {misses} without");
    assert_eq!(agent.python(second, "print(6 * 7)").await.unwrap(), "42");
    agent.destroy(second).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
