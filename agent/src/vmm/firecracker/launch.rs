//! Starting a Firecracker in its jail.

use super::{
    Firecracker, FirecrackerError,
    api::{Api, ApiError},
    capture::Life,
    jail::Jail,
    machine::{self, path},
};
use crate::{
    engine::firecracker::Version,
    memory::image::{BuildRam, Image},
    network::tap,
    reaper::Remains,
    snapshot::store::{Snapshot, name},
    vmm::{
        control::{Control, VmmError},
        folder::log_file,
        guard::Vmm,
        launch::{Difference, LaunchError, Launcher, Pages, Spawned, Started, host},
        machine::{BootFiles, Size},
        process::{Process, Program, Surroundings, oom_score},
        uid::UidLease,
    },
};
use futures::FutureExt;
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Spawn to the first answer takes some 20 ms; a busy host may need much longer.
const GREETING_DEADLINE: Duration = Duration::from_secs(20);

/// What a Firecracker is started with.
struct Start {
    jailer: PathBuf,
    size: Size,
    /// Files that it may see: on the host, in the jail.
    files: Vec<(PathBuf, &'static str)>,
    /// Its writable layer is a copy of this.
    upper: PathBuf,
    pager: Option<Pages>,
    snapshot: Option<String>,
    /// The layer of a generation.
    under: Option<File>,
}

/// Boots a kernel, for a template build. Its memory is Firecracker's own until it is saved into `ram`.
pub async fn boot(
    launcher: &Arc<Launcher>,
    (jailer, version): (&Path, Version),
    (files, ram): (&BootFiles, &BuildRam),
    size: Size,
    uid: UidLease,
) -> Result<Vmm, LaunchError> {
    let mut admitted = vec![
        (files.kernel.clone(), path::KERNEL),
        (files.initramfs.clone(), path::INITRAMFS),
        (files.rootfs.clone(), path::ROOTFS),
        (ram.path().to_owned(), path::MEMORY),
    ];
    admitted.extend(files.output.iter().map(|output| (output.clone(), path::OUTPUT)));
    let start = Start {
        jailer: jailer.to_owned(),
        size,
        files: admitted,
        upper: files.upper.clone(),
        pager: None,
        snapshot: None,
        under: None,
    };
    start_one(launcher, start, uid, version, Some((size, files.output.is_some()))).await
}

/// Starts one that waits for the device state of `snapshot`, or of a generation over it; its pager listens. The image is where its pager keeps what
/// it has decompressed.
pub async fn park(
    launcher: &Arc<Launcher>,
    (jailer, version): (&Path, Version),
    (snapshot, rootfs, image): (&Snapshot, &Path, Arc<Image>),
    difference: Option<Difference>,
    uid: UidLease,
) -> Result<Vmm, LaunchError> {
    let (key, upper, over) = match difference {
        None => (snapshot.manifest.key.clone(), snapshot.path(name::UPPER), None),
        Some(Difference { key, layer, upper }) => (key, upper, Some(layer)),
    };
    // Open for its life: the generation's files may go before the next capture needs them.
    let under = over.as_ref().map(File::open).transpose().map_err(host("a capsule's own pages"))?;
    let start = Start {
        jailer: jailer.to_owned(),
        size: snapshot.manifest.size,
        files: vec![(rootfs.to_owned(), path::ROOTFS)],
        upper,
        pager: Some(Pages { image, layer: snapshot.path(name::MEMORY), over }),
        snapshot: Some(key),
        under,
    };
    start_one(launcher, start, uid, version, None).await
}

async fn start_one(
    launcher: &Arc<Launcher>,
    mut start: Start,
    uid: UidLease,
    version: Version,
    boots: Option<(Size, bool)>,
) -> Result<Vmm, LaunchError> {
    let life = Life::new(start.size, version, launcher.tells_holes, start.under.take());
    let (owned, user) = (launcher.clone(), uid.id());
    // Forks, namespaces and file copies: some milliseconds of blocking calls.
    let (spawned, api, root) = tokio::task::spawn_blocking(move || spawn(&owned, start, uid))
        .await
        .map_err(|error| host("starting a VMM")(io::Error::other(error)))??;
    let process = spawned.processes.first().cloned();
    let connect = async move {
        let is_alive = || process.as_ref().is_some_and(|process| process.exited().now_or_never().is_none());
        let info = api.greet(GREETING_DEADLINE, is_alive).await?;
        if info.vmm_version != version.to_string() {
            let error = FirecrackerError::Version { found: info.vmm_version, expected: version };
            return Err(error.into());
        }
        if let Some((size, has_output)) = boots {
            machine::boot(&api, size, has_output).await.map_err(|error| ended(error, is_alive()))?;
        }
        Ok::<_, VmmError>(Control::Firecracker(Firecracker { api, root, uid: user, version, life }))
    };
    launcher.adopt(spawned, connect).await
}

/// A call that got no answer because the process ended says so.
fn ended(error: ApiError, is_alive: bool) -> ApiError {
    if is_alive { error } else { ApiError::Closed }
}

/// The blocking part: folder, disk, network, jail, Firecracker, pager, record.
fn spawn(
    launcher: &Launcher,
    start: Start,
    mut uid: UidLease,
) -> Result<(Spawned, Api, PathBuf), LaunchError> {
    let (id, folder) = launcher.folder()?;
    let disk = folder.upper(&start.upper, uid.id())?;
    let (netns, tap) = launcher.slots.take()?;
    tap::give(tap, uid.id()).map_err(host("the tap"))?;
    let program = &launcher.engine.program;
    let mut jail = Jail::create(&folder.0, program, &id).map_err(host("the jail"))?;
    for (source, target) in &start.files {
        jail.admit(source, target).map_err(host("a file for the jail"))?;
    }
    jail.admit(&disk, path::UPPER).map_err(host("the writable layer in the jail"))?;
    let listener: Option<UnixListener> = match start.pager {
        Some(_) => Some(jail.listen(path::PAGER, uid.id()).map_err(host("the pager's socket"))?),
        None => None,
    };
    let (api, root) = (Api::new(jail.root_fd.clone()), jail.root.clone());
    let network = netns.descriptor().map_err(host("the network namespace"))?;
    launcher.bound(&id, start.size, &mut uid)?;
    let (reader, writer) = io::pipe().map_err(host("the console's pipe"))?;
    let (args, mounts) = jail.arguments(program, uid.id());
    let program = Program {
        path: start.jailer,
        args,
        env: Vec::new(),
        stdin: None,
        log: log_file(&folder.0.join("vmm.log"))?,
        // The guest's console, and Firecracker's own log, which a guest can make long: the pager keeps its end.
        output: Some(match start.pager {
            Some(_) => File::from(OwnedFd::from(writer)),
            None => File::create_new(folder.0.join("console.log")).map_err(host("the console's log"))?,
        }),
        fds: Vec::new(),
        surroundings: Some(Surroundings { network, mounts }),
        jail: None,
        oom_score: oom_score::VMM,
    };
    let process = Arc::new(Process::spawn(program).map_err(host("starting the jailer"))?);
    let mut started = Started { folder, processes: vec![process.clone()], netns, uid, image: None };
    if let (Some(pages), Some(listener)) = (start.pager, listener) {
        let inputs = (listener.into(), reader.into());
        let spawned = launcher.spawn_pager(&started.folder.0, &pages, inputs, Some(&process));
        let image = pages.image;
        match spawned {
            Ok(pager) => started.processes.push(pager),
            Err(error) => {
                let Started { folder, processes, uid, .. } = started;
                let (folder, uid) = (folder.keep(), Some(uid));
                launcher.reaper.bury(Remains { processes, folder, uid, image: Some(image) });
                return Err(error);
            }
        }
        started.image = Some(image);
    }
    let spawned = launcher.record(started, start.snapshot)?;
    Ok((spawned, api, root))
}
