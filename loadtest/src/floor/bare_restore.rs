//! The floor of a restore: QEMU alone. Spawned without a jail, with the template's own machine (the agent's arguments
//! with real paths), over a complete private copy of the guest's memory: no pager, no preload library. The time is
//! from the spawn to QEMU's RESUME event; nothing is asked of the guest.

use crate::bench::Bench;
use anyhow::Context;
use hearth_agent::{
    config::Layout,
    disk::sparse,
    engine::Accelerator,
    memory::{
        CHUNK,
        layer::{Buffers, Layer},
    },
    network::netns::Netns,
    snapshot::store::{Snapshot, Store, name},
    template::recipe::BootSet,
    vmm::{
        process::{Process, Program},
        qemu::{self, Purpose, fd, path},
        qmp::Qmp,
    },
};
use nix::sys::statvfs::statvfs;
use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::{NamedTempFile, TempDir};

/// Restores before the first that counts.
const WARM_UP: usize = 2;
/// Fewest that count.
const RUNS_MIN: usize = 20;
/// Each step of QEMU takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// Memory that is never paged out to a disk.
const MEMORY_FOLDER: &str = "/dev/shm";

/// What every restore starts from.
struct Machine {
    qemu: PathBuf,
    snapshot: Snapshot,
    rootfs: PathBuf,
    accelerator: Accelerator,
    memory: NamedTempFile,
}

/// Measures restores of the template's snapshot.
pub async fn measure(bench: &Bench, layout: &Layout, qemu: &Path) -> anyhow::Result<Vec<Duration>> {
    let runs = bench.n.max(RUNS_MIN);
    let phase = bench.progress.phase("floor: bare restore", WARM_UP + runs);
    let template = bench.control.template().await?;
    let snapshot = Store::open(&layout.templates())?
        .get(&template.snapshot_key)?
        .with_context(|| format!("snapshot {}", template.snapshot_key))?;
    let engine = &snapshot.manifest.platform.engine;
    anyhow::ensure!(
        engine == "qemu",
        "the bare restore is QEMU's, the template {engine}'s: set HEARTH_ENGINE=qemu"
    );
    let accelerator = match snapshot.manifest.platform.accelerator.as_str() {
        "kvm" => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    let memory = populate(&snapshot).context("a copy of the guest's memory")?;
    let rootfs = BootSet::read(&layout.boot_files())?.files.rootfs;
    let machine = Machine { qemu: qemu.to_owned(), snapshot, rootfs, accelerator, memory };
    let mut times = Vec::with_capacity(runs);
    for run in 0..WARM_UP + runs {
        let took = machine.restore().await?;
        if WARM_UP <= run {
            times.push(took);
        }
        phase.step();
    }
    Ok(times)
}

/// Writes all of the guest's memory into a file, in memory where there is room.
fn populate(snapshot: &Snapshot) -> anyhow::Result<NamedTempFile> {
    let layer = Layer::open(File::open(snapshot.path(name::MEMORY))?)?;
    let room = statvfs(MEMORY_FOLDER).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    let folder = if layer.ram_bytes() <= room { PathBuf::from(MEMORY_FOLDER) } else { std::env::temp_dir() };
    let memory = tempfile::Builder::new().prefix("hearth-bench-").suffix(".ram").tempfile_in(folder)?;
    let file = memory.as_file();
    file.set_len(layer.ram_bytes())?;
    let mut buffers = Buffers::new()?;
    for chunk in 0..layer.chunks() {
        if layer.read(chunk, &mut buffers)?.stored != 0 {
            file.write_all_at(&buffers.chunk, (chunk * CHUNK) as u64)?;
        }
    }
    Ok(memory)
}

/// A QEMU of ours; killed when dropped.
struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
    }
}

impl Machine {
    async fn restore(&self) -> anyhow::Result<Duration> {
        let folder = TempDir::with_prefix("hearth-bare-")?;
        let upper = folder.path().join("upper.img");
        sparse::copy(&self.snapshot.path(name::UPPER), &upper)?;
        let (_netns, tap) = Netns::create()?;
        let socket = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket)?;
        let log = folder.path().join("vmm.log");
        let console = File::options().write(true).open("/dev/null")?;
        let program = Program {
            path: self.qemu.clone(),
            args: self.arguments(&upper),
            env: Vec::new(),
            stdin: None,
            log: File::create(&log)?,
            output: None,
            fds: vec![
                (OwnedFd::from(listener), fd::QMP),
                (tap, fd::TAP),
                (OwnedFd::from(console), fd::CONSOLE),
            ],
            surroundings: None,
            jail: None,
            oom_score: 0,
        };
        let state = File::open(self.snapshot.path(name::DEVICE))?;
        let start = Instant::now();
        let vmm = Running(Process::spawn(program).context("starting QEMU")?);
        let took = bring_up(&socket, state, start).await.with_context(|| {
            format!("the bare VMM; its log: {}", fs::read_to_string(&log).unwrap_or_default().trim())
        })?;
        vmm.0.kill()?;
        vmm.0.exited().await?;
        vmm.0.reap();
        Ok(took)
    }

    /// The agent's arguments with the jail's paths replaced. Memory is private: as with the preload library, the
    /// copy stays as it is.
    fn arguments(&self, upper: &Path) -> Vec<OsString> {
        let vmm_name = format!("hearth-bench-{}", std::process::id());
        let memory = self.memory.path().display().to_string();
        let replace = [
            (format!("mem-path={},share=on", path::MEMORY), format!("mem-path={memory},share=off")),
            (format!("file={},", path::ROOTFS), format!("file={},", self.rootfs.display())),
            (format!("file={},", path::UPPER), format!("file={},", upper.display())),
        ];
        let size = self.snapshot.manifest.size;
        qemu::arguments(&vmm_name, size, self.accelerator, &Purpose::Restore)
            .into_iter()
            .map(|argument| {
                let text = argument.to_string_lossy().into_owned();
                replace.iter().fold(text, |text, (from, to)| text.replace(from, to)).into()
            })
            .collect()
    }
}

/// Greeting, load, continue; the time until the vCPUs run.
async fn bring_up(socket: &Path, state: File, start: Instant) -> anyhow::Result<Duration> {
    let qmp = Qmp::connect(socket, DEADLINE).await?;
    qemu::prepare(&qmp).await?;
    qemu::load(&qmp, state).await?;
    let mut events = qmp.events();
    qemu::resume(&qmp).await?;
    events.wait("cont", DEADLINE, |event| (event.name == "RESUME").then_some(())).await?;
    Ok(start.elapsed())
}
