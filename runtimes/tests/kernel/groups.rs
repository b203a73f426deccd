//! Kernels in cgroups. Needs root and a cgroup v2 mount; without the memory controller only the kill is tested.

use super::support::{Bed, request};
use hearth_proto::wire::run::{RunRequest, RunStatus};
use hearth_test_skip::lacks;
use std::{fs, path::PathBuf, time::Duration};

/// A cgroup of our own, removed at the end.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "))?.split(' ').nth(1)?;
        let path = PathBuf::from(mount).join(format!("hearth-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn has_memory(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.controllers")).is_ok_and(|list| list.contains("memory"))
    }

    /// The cgroups of kernels.
    fn kernels(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _killed = fs::write(self.0.join("cgroup.kill"), "1");
        for path in self.kernels().into_iter().chain([self.0.clone()]) {
            let _removed = fs::remove_dir(path);
        }
    }
}

#[tokio::test]
async fn what_leaves_the_process_group_is_killed_with_the_kernel() {
    let Some(group) = Group::new("kill") else {
        lacks("cgroup", "there is no cgroup v2 that this process may write to");
        return;
    };
    let Some(bed) = Bed::with(|config| config.cgroup = Some(group.0.clone())) else { return };
    let code = "import subprocess, os\np = subprocess.Popen(['sleep', '1000'], start_new_session=True)\np.pid, os.getpid()";
    let output = bed.code(code).await.ok();
    let inside = group
        .kernels()
        .iter()
        .map(|path| fs::read_to_string(path.join("cgroup.procs")).unwrap())
        .collect::<String>();
    assert_eq!(inside.lines().count(), 2, "{inside}");
    assert!(output.value().contains(inside.lines().next().unwrap()));
    assert_eq!(bed.code("os._exit(0)").await.status(), RunStatus::KernelDied);
    let child = output.value().trim_matches('(').split(',').next().unwrap().to_owned();
    let ended = async {
        // The state is a level: look until it is there.
        while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the subprocess lives on");
    // A run that is deaf to the interrupt is killed through the cgroup as well.
    let deaf = "import time\nwhile True:\n    try: time.sleep(9)\n    except KeyboardInterrupt: pass";
    let output = bed.run(RunRequest { timeout_ms: 200, ..request(deaf) }).await;
    assert_eq!((output.status(), output.end.fresh_kernel), (RunStatus::Timeout, true));
}

#[tokio::test]
async fn too_much_memory_is_told_from_other_deaths() {
    let Some(group) = Group::new("memory").filter(Group::has_memory) else {
        lacks(
            "cgroup-memory",
            "there is no cgroup v2 with the memory controller; boot with systemd.unified_cgroup_hierarchy=1",
        );
        return;
    };
    let Some(bed) = Bed::with(|config| {
        config.cgroup = Some(group.0.clone());
        config.limits.memory_bytes = Some(256 << 20);
    }) else {
        return;
    };
    let output = bed.code("x = bytearray(10**9)").await;
    assert_eq!((output.status(), output.error().name.as_str()), (RunStatus::Oom, "OutOfMemoryError"));
    assert!(bed.code("1").await.ok().end.fresh_kernel);
}
