//! Taking hold of a VMM that an earlier agent started: its control socket, its namespace, its user id, its image.

use super::{
    control::{Control, VmmError},
    firecracker::{self, Firecracker},
    guard::Vmm,
    launch::{LaunchError, Launcher, host},
    process::Process,
    qemu,
    qmp::Qmp,
};
use crate::{capsule::ledger::Record, engine::Kind, memory::image::Image, network::netns::Netns};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// A VMM answers within milliseconds; with vCPUs on a busy host, within a second.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// What is found of a VMM, all of it living.
#[derive(Debug)]
pub struct Abandoned {
    /// Its folder.
    pub folder: PathBuf,
    /// Its record.
    pub record: Record,
    /// VMM first, then its pager.
    pub processes: Vec<Arc<Process>>,
    /// The image that it maps.
    pub image: Option<Arc<Image>>,
}

/// A VMM that was taken over.
#[derive(Debug)]
pub struct TakenOver {
    /// It.
    pub vmm: Vmm,
    /// Whether its vCPUs run.
    pub running: bool,
}

impl Launcher {
    /// Takes it over. When that fails it is left as it is: the caller ends it.
    pub async fn take_over(&self, abandoned: Abandoned) -> Result<TakenOver, LaunchError> {
        let Abandoned { folder, record, processes, image } = abandoned;
        let mut uid = self.uids.claim(record.uid).ok_or_else(|| {
            host("its user id")(io::Error::other(format!("{} is another VMM's by now", record.uid)))
        })?;
        if let (Some(parent), Some(name)) = (&self.cgroups, folder.file_name()) {
            uid.hold(parent.of(&format!("{}{}", self.layout.mark(), name.to_string_lossy())));
        }
        let mut processes = processes.into_iter();
        let process = processes.next().ok_or_else(|| host("its process")(io::ErrorKind::NotFound.into()))?;
        let netns = Netns::of_process(process.pid()).map_err(host("its network namespace"))?;
        let connected = match record.engine.as_str() {
            "qemu" => connect_qemu(&folder).await,
            "firecracker" => self.connect_firecracker(&folder, record.uid).await,
            other => return Err(host("its engine")(io::Error::other(format!("`{other}` is unknown")))),
        };
        let (control, running) =
            connected.map_err(|error| host("its control socket")(io::Error::other(error)))?;
        let vmm = Vmm {
            control,
            netns: Arc::new(netns),
            process,
            pager: processes.next(),
            folder,
            uid: Some(uid),
            image,
            record: Mutex::new(record),
            left: false,
            reaper: self.reaper.clone(),
        };
        Ok(TakenOver { vmm, running })
    }

    async fn connect_firecracker(&self, folder: &Path, uid: u32) -> Result<(Control, bool), VmmError> {
        let Kind::Firecracker { version, .. } = &self.engine.kind else {
            return Err(firecracker::FirecrackerError::State(io::Error::other(
                "this agent uses another engine than the one that started it",
            ))
            .into());
        };
        let (firecracker, running) = Firecracker::take_over(folder, uid, *version, GREETING_DEADLINE).await?;
        Ok((Control::Firecracker(firecracker), running))
    }
}

async fn connect_qemu(folder: &Path) -> Result<(Control, bool), VmmError> {
    // QEMU listens on: it takes one connection after the other.
    let qmp = Qmp::connect(&folder.join("qmp.sock"), GREETING_DEADLINE).await?;
    let running = qemu::is_running(&qmp).await?;
    Ok((Control::Qemu(qmp), running))
}
