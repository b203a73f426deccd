//! Starting VMMs: everything a VMM is bound to, as one guard.

use super::{
    console,
    control::{Control, VmmError},
    firecracker,
    folder::{Folder, log_file},
    guard::Vmm,
    jail::{Bind, Jail},
    machine::{BootFiles, Size},
    process::{Process, Program, oom_score},
    qemu::{self, Purpose, fd, path},
    qmp::Qmp,
    uid::{UidLease, Uids},
    undo::{Undo, silent},
};
use crate::{
    capsule::ledger::{self, ProcessRecord, Record},
    cgroup::Groups,
    config::Layout,
    engine::{Engine, Kind},
    memory::{
        dumped,
        image::{BuildRam, Image},
        pager,
    },
    network::{
        netns::{Netns, NetworkError},
        slots::Slots,
    },
    reaper::{Reaper, Remains},
    snapshot::store::{Snapshot, name},
};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Spawn to greeting takes 12–40 ms; a busy host may need much longer.
const GREETING_DEADLINE: Duration = Duration::from_secs(20);

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A step on the host failed.
    #[error("{what}: {source}")]
    Host {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No network namespace.
    #[error("the capsule's network: {0}")]
    Network(#[from] NetworkError),
    /// The VMM started but does not talk; with the end of its log.
    #[error("the VMM did not start: {source}; its log ends: {log}")]
    Silent {
        /// What the control socket said.
        source: VmmError,
        /// The log's end.
        log: String,
    },
    /// All user ids are taken.
    #[error("all {0} capsule slots are taken")]
    NoSlot(usize),
}

pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Host { what, source }
}

/// Starts VMMs. One exists per agent.
#[derive(Debug)]
pub struct Launcher {
    /// The engine of this host.
    pub engine: Engine,
    /// Where things are.
    pub layout: Layout,
    /// Takes over what is left of VMMs.
    pub reaper: Reaper,
    /// Where VMMs have their network from.
    pub slots: Slots,
    /// Where VMMs' control groups are made; none where the host has none to divide.
    pub(super) groups: Option<Groups>,
    /// Whether Firecrackers' differential snapshots can be read here.
    pub(super) tells_holes: bool,
    preload: PathBuf,
    helper: PathBuf,
    boot_id: String,
    uffd: File,
    pub(super) uids: Arc<Uids>,
    next: AtomicU64,
}

/// What a generation has beside its template's snapshot.
#[derive(Debug)]
pub struct Difference {
    /// Its key.
    pub key: String,
    /// Its memory layer.
    pub layer: PathBuf,
    /// Its writable layer.
    pub upper: PathBuf,
}

impl Launcher {
    /// A launcher. `helper` is our own program, which has the `pager` command; the preload library is beside it.
    pub fn new(
        engine: Engine,
        layout: Layout,
        reaper: Reaper,
        helper: PathBuf,
        uids: (u32, usize),
        slots: Slots,
    ) -> Result<Self, LaunchError> {
        let preload = helper.with_file_name("libhearth_preload.so");
        File::open(&preload)
            .map_err(host("libhearth_preload.so, which belongs beside the hearth program"))?;
        for folder in [layout.vmms(), layout.jail()] {
            fs::create_dir_all(&folder).map_err(host("the agent's folder"))?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))
                .map_err(host("the agent's folder"))?;
        }
        let uffd = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")
            .map_err(host("/dev/userfaultfd (Linux 6.1 or newer)"))?;
        let boot_id = ledger::boot_id().map_err(host("the host's boot id"))?;
        let next = first_number(&layout.vmms()).map_err(host("the VMMs' folder"))?;
        let groups = Groups::open_or_warn(&layout.mark());
        let tells_holes = matches!(engine.kind, Kind::Firecracker { .. })
            && dumped::tells_holes(&layout.vmms()).map_err(host("trying a sparse file"))?;
        let uids = Arc::new(Uids::new(uids.0, uids.1));
        Ok(Self {
            engine,
            layout,
            reaper,
            slots,
            groups,
            tells_holes,
            preload,
            helper,
            boot_id,
            uffd,
            uids,
            next: AtomicU64::new(next),
        })
    }

    /// Reserves a user id, for a template build before its RAM is made.
    pub fn reserve(&self) -> Result<UidLease, LaunchError> {
        self.uids.lease().ok_or(LaunchError::NoSlot(self.uids.count))
    }

    /// Boots a kernel with real shared RAM, for a template build.
    pub async fn boot(
        self: &Arc<Self>,
        files: &BootFiles,
        size: Size,
        uid: UidLease,
        ram: &BuildRam,
    ) -> Result<Vmm, LaunchError> {
        if let Kind::Firecracker { jailer, version } = &self.engine.kind {
            return firecracker::launch::boot(self, (jailer, *version), (files, ram), size, uid).await;
        }
        let mut binds = vec![
            bind(&files.kernel, path::KERNEL, false),
            bind(&files.initramfs, path::INITRAMFS, false),
            bind(ram.path(), path::MEMORY, true),
        ];
        binds.extend(files.output.iter().map(|output| bind(output, path::OUTPUT, true)));
        let start = Start {
            size,
            purpose: Purpose::Boot {
                clock: qemu::clock_options(self.engine.accelerator, self.engine.tsc_khz),
                output: files.output.is_some(),
            },
            binds,
            pager: None,
            snapshot: None,
        };
        self.start(start, uid, files.rootfs.clone(), files.upper.clone()).await
    }

    /// Starts a VMM that waits for the device state of `snapshot`, or of a generation over it: image mapped, the
    /// generation's pages put over it, pager serving, disks and tap bound.
    pub async fn park(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        rootfs: &Path,
        image: Arc<Image>,
        difference: Option<Difference>,
    ) -> Result<Vmm, LaunchError> {
        let uid = self.reserve()?;
        if let Kind::Firecracker { jailer, version } = &self.engine.kind {
            let from = (snapshot, rootfs, image);
            return firecracker::launch::park(self, (jailer, *version), from, difference, uid).await;
        }
        let binds = vec![bind(image.path(), path::MEMORY, false), bind(&self.preload, path::PRELOAD, false)];
        let (key, upper, over) = match difference {
            None => (snapshot.manifest.key.clone(), snapshot.path(name::UPPER), None),
            Some(Difference { key, layer, upper }) => (key, upper, Some(layer)),
        };
        let start = Start {
            size: snapshot.manifest.size,
            purpose: Purpose::Restore,
            binds,
            pager: Some(Pages { image, layer: snapshot.path(name::MEMORY), over }),
            snapshot: Some(key),
        };
        self.start(start, uid, rootfs.to_owned(), upper).await
    }

    async fn start(
        self: &Arc<Self>,
        start: Start,
        uid: UidLease,
        rootfs: PathBuf,
        upper: PathBuf,
    ) -> Result<Vmm, LaunchError> {
        let launcher = self.clone();
        // Forks, namespaces and file copies: some milliseconds of blocking calls.
        let spawned = tokio::task::spawn_blocking(move || launcher.spawn(start, uid, &rootfs, &upper))
            .await
            .map_err(|error| host("starting a VMM")(io::Error::other(error)))??;
        let socket = spawned.folder.join("qmp.sock");
        let connect = async move {
            let qmp = Qmp::connect(&socket, GREETING_DEADLINE).await?;
            qemu::prepare(&qmp).await?;
            Ok(Control::Qemu(qmp))
        };
        self.adopt(spawned, connect).await
    }

    /// Takes hold of a VMM that was just spawned, as soon as it talks.
    pub(super) async fn adopt(
        &self,
        spawned: Spawned,
        connect: impl Future<Output = Result<Control, VmmError>>,
    ) -> Result<Vmm, LaunchError> {
        let Spawned { folder, processes, netns, uid, image, record } = spawned;
        let path = folder.clone();
        // From here a failure undoes itself by the guard.
        let mut remains = Undo {
            reaper: &self.reaper,
            remains: Some(Remains { processes, folder, uid: Some(uid), image }),
        };
        // Side by side: with cgroup v1 the one takes as long as the other, and no guest runs before both are done.
        let (control, entered) = tokio::join!(connect, remains.enter_group());
        let control = match control {
            Ok(control) => control,
            Err(source) => return Err(silent(source, &remains, &path).await),
        };
        entered.map_err(host("the VMM's control group"))?;
        tracing::debug!(vmm = %path.display(), "vmm started");
        let Some(Remains { processes, folder, uid, image }) = remains.remains.take() else {
            return Err(host("starting a VMM")(io::Error::other("its remains are gone")));
        };
        let mut processes = processes.into_iter();
        let process =
            processes.next().ok_or_else(|| host("starting a VMM")(io::Error::other("no process")))?;
        Ok(Vmm {
            control,
            netns: Arc::new(netns),
            process,
            pager: processes.next(),
            folder,
            uid,
            image,
            record: Mutex::new(record),
            left: false,
            reaper: self.reaper.clone(),
        })
    }

    /// The blocking part: folder, disk, network, pager, VMM, record.
    fn spawn(
        &self,
        start: Start,
        mut uid: UidLease,
        rootfs: &Path,
        upper: &Path,
    ) -> Result<Spawned, LaunchError> {
        let (vmm_name, folder) = self.folder()?;
        self.bound(&vmm_name, start.size, &mut uid)?;
        let disk = folder.upper(upper, uid.id())?;
        let (netns, tap) = self.slots.take()?;
        let listener = UnixListener::bind(folder.0.join("qmp.sock")).map_err(host("the control socket"))?;
        let console = folder.0.join("console.log");
        let mut binds = start.binds;
        if start.pager.is_none() {
            File::create_new(&console).map_err(host("the console's log"))?;
            chown(&console, Some(uid.id()), Some(uid.id())).map_err(host("the console's log"))?;
            binds.push(bind(&console, path::CONSOLE, true));
        }
        let mut processes = Vec::new();
        let mut fds = vec![(OwnedFd::from(listener), fd::QMP), (tap, fd::TAP)];
        let mut env: Vec<(&'static str, OsString)> = Vec::new();
        let mut image = None;
        if let Some(pages) = start.pager {
            let (ours, theirs) = UnixStream::pair().map_err(host("the pager's socket"))?;
            let (reader, writer) = io::pipe().map_err(host("the console's pipe"))?;
            processes.push(self.spawn_pager(&folder.0, &pages, (theirs.into(), reader.into()), None)?);
            fds.push((OwnedFd::from(writer), fd::CONSOLE));
            fds.push((self.uffd.try_clone().map_err(host("/dev/userfaultfd"))?.into(), fd::UFFD));
            fds.push((OwnedFd::from(ours), fd::PAGER));
            env = vec![
                ("LD_PRELOAD", path::PRELOAD.into()),
                ("HEARTH_IMAGE", path::MEMORY.into()),
                ("HEARTH_UFFD_FD", fd::UFFD.to_string().into()),
                ("HEARTH_PAGER_FD", fd::PAGER.to_string().into()),
            ];
            image = Some(pages.image);
        }
        binds.push(bind(rootfs, path::ROOTFS, false));
        binds.push(bind(&disk, path::UPPER, true));
        if Path::new("/dev/kvm").exists() && self.engine.accelerator == crate::engine::Accelerator::Kvm {
            binds.push(bind(Path::new("/dev/kvm"), "/dev/kvm", true));
        }
        let network = netns.descriptor().map_err(host("the network namespace"))?;
        let jail = Jail { mount_point: self.layout.jail(), uid: uid.id(), network, binds };
        let program = Program {
            path: self.engine.program.clone(),
            args: qemu::arguments(&vmm_name, start.size, self.engine.accelerator, &start.purpose),
            env,
            stdin: None,
            log: log_file(&folder.0.join("vmm.log"))?,
            output: None,
            fds,
            surroundings: None,
            jail: Some(jail),
            oom_score: oom_score::VMM,
        };
        match Process::spawn(program) {
            Ok(vmm) => processes.insert(0, Arc::new(vmm)),
            Err(source) => {
                self.reaper.bury(Remains { processes, folder: folder.keep(), uid: Some(uid), image });
                return Err(host("starting the VMM in its jail")(source));
            }
        }
        self.record(Started { folder, processes, netns, uid, image }, start.snapshot)
    }

    /// A name and a folder for a new VMM.
    pub(super) fn folder(&self) -> Result<(String, Folder), LaunchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", self.layout.mark(), std::process::id());
        let folder = Folder::create(self.layout.vmms().join(format!("{}-{number}", std::process::id())))?;
        Ok((name, folder))
    }

    /// Makes a VMM's control group, which goes with its user id.
    pub(super) fn bound(&self, vmm: &str, size: Size, uid: &mut UidLease) -> Result<(), LaunchError> {
        if let Some(groups) = &self.groups {
            uid.hold(groups.make(vmm, size).map_err(host("the VMM's control group"))?);
        }
        Ok(())
    }

    /// Notes on disk what was started.
    pub(super) fn record(&self, started: Started, snapshot: Option<String>) -> Result<Spawned, LaunchError> {
        let Started { folder, processes, netns, uid, image } = started;
        let records = processes.iter().map(|process| ProcessRecord::from(&**process)).collect();
        let mut record = Record::new(self.boot_id.clone(), records, uid.id(), self.engine.name(), snapshot);
        record.image = image.as_ref().map(|image| image.name());
        record.slot = netns.slot();
        let folder = folder.keep();
        if let Err(source) = ledger::write(&folder, &record) {
            self.reaper.bury(Remains { processes, folder, uid: Some(uid), image });
            return Err(host("the VMM's record")(source));
        }
        Ok(Spawned { folder, processes, netns, uid, image, record })
    }

    /// Starts a pager that fills an image from a layer, and keeps the console that it reads. `socket` is a Firecracker's
    /// listening one when `firecracker` is that process.
    pub(super) fn spawn_pager(
        &self,
        folder: &Path,
        pages: &Pages,
        (socket, console): (OwnedFd, OwnedFd),
        firecracker: Option<&Process>,
    ) -> Result<Arc<Process>, LaunchError> {
        let stats = folder.join("pager.stats");
        let mut args = vec![
            OsString::from("pager"),
            "--layer".into(),
            (&pages.layer).into(),
            "--image".into(),
            pages.image.path().into(),
            "--stats".into(),
            stats.into(),
            "--console".into(),
            folder.join(console::FILE).into(),
            "--uid".into(),
            self.uids.pager.to_string().into(),
        ];
        if let Some(over) = &pages.over {
            args.extend([OsString::from("--difference"), over.into()]);
        }
        let mut fds = vec![(console, console::PAGER_FD)];
        if let Some(process) = firecracker {
            args.extend(["--firecracker".into(), process.pid().to_string().into()]);
            fds.push((process.as_fd().try_clone_to_owned().map_err(host("a pidfd"))?, pager::VMM_FD));
        }
        let program = Program {
            path: self.helper.clone(),
            args,
            env: Vec::new(),
            stdin: Some(socket),
            log: log_file(&folder.join("pager.log"))?,
            output: None,
            fds,
            surroundings: None,
            jail: None,
            oom_score: oom_score::PAGER,
        };
        Process::spawn(program).map(Arc::new).map_err(host("starting the pager"))
    }
}

struct Start {
    size: Size,
    purpose: Purpose,
    binds: Vec<Bind>,
    pager: Option<Pages>,
    snapshot: Option<String>,
}

/// Where a pager has its pages from.
pub(super) struct Pages {
    pub(super) image: Arc<Image>,
    /// The layer that the image is filled from.
    pub(super) layer: PathBuf,
    /// The layer of the capsule's own pages.
    pub(super) over: Option<PathBuf>,
}

/// A VMM's processes and what they are bound to.
pub(super) struct Started {
    pub(super) folder: Folder,
    /// VMM first, then its pager.
    pub(super) processes: Vec<Arc<Process>>,
    pub(super) netns: Netns,
    pub(super) uid: UidLease,
    pub(super) image: Option<Arc<Image>>,
}

/// The same, with its record on disk.
pub(super) struct Spawned {
    folder: PathBuf,
    pub(super) processes: Vec<Arc<Process>>,
    netns: Netns,
    uid: UidLease,
    image: Option<Arc<Image>>,
    record: Record,
}

/// A number that no VMM's folder has yet: an earlier agent may have had this process's id.
fn first_number(vmms: &Path) -> io::Result<u64> {
    let mut next = 0;
    for entry in fs::read_dir(vmms)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.rsplit('-').next()?.parse::<u64>().ok());
        next = next.max(number.map_or(0, |number| number + 1));
    }
    Ok(next)
}

fn bind(source: &Path, target: &str, writable: bool) -> Bind {
    Bind { source: source.to_owned(), target: PathBuf::from(target), writable }
}
