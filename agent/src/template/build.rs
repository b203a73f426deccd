//! Building a template: boot once, warm up, freeze, snapshot, publish.

use super::{
    Progress, Templates,
    recipe::{BootSet, Recipe},
};
use crate::{
    capsule::disk,
    disk::sparse,
    guest::{Guest, GuestError, Identity},
    memory::{
        image::{BuildRam, ImageError},
        layer::{self, LayerError},
    },
    snapshot::{
        manifest::{self, Manifest, Platform},
        store::{Draft, Durability, StoreError, name},
    },
    vmm::{control::VmmError, guard::Vmm, launch::LaunchError},
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::watch, time};

/// A kernel boots in 2 s under software emulation; a busy host may need many times that.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// Between two attempts to reach a booting guest: nothing announces that its network is up.
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// Closing a connection takes two packets each way.
const HANG_UP_DEADLINE: Duration = Duration::from_secs(5);
const HANG_UP_PAUSE: Duration = Duration::from_millis(5);

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No memory to build in.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No VMM.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The VMM did not do as told.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest does not come up; with the end of its console.
    #[error("the guest did not come up: {reason}; its console ends: {console}")]
    Boot {
        /// The last answer.
        reason: String,
        /// The last lines.
        console: String,
    },
    /// The guest did not do as told; with the end of its console.
    #[error("{source}; the guest's console ends: {console}")]
    Guest {
        /// What it said.
        source: GuestError,
        /// The last lines.
        console: String,
    },
    /// Its disk did not grow.
    #[error("the disk of the template: {0}")]
    Disk(#[from] disk::GrowError),
    /// The snapshot could not be published.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its memory could not be stored.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A file failed.
    #[error("{what}: {source}")]
    File {
        /// Which step.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn file(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::File { what, source }
}

/// Builds and publishes the snapshot `key`.
pub async fn build(
    templates: &Arc<Templates>,
    recipe: &Recipe,
    boot: &BootSet,
    platform: &Platform,
    key: &str,
    progress: &watch::Sender<Progress>,
) -> Result<(), BuildError> {
    let start = Instant::now();
    let say = |text: &str| {
        let line = format!("[{:5.1} s] {text}", start.elapsed().as_secs_f32());
        tracing::info!(template = recipe.name, "{line}");
        progress.send_replace(Progress::Line(line));
    };
    say(&format!("reserving {} MiB of memory", recipe.size.memory_mb));
    let uid = templates.launcher.reserve()?;
    let (images, user, bytes) = (templates.images.clone(), uid.id(), recipe.size.ram_bytes());
    let ram = tokio::task::spawn_blocking(move || images.reserve_build(user, bytes))
        .await
        .map_err(|error| file("reserving memory")(io::Error::other(error)))??;
    say("booting the guest");
    let vmm = templates.launcher.boot(&boot.files, recipe.size, uid, &ram).await?;
    let silent = |source| BuildError::Guest { source, console: String::new() };
    let guest = Guest::new_token().and_then(|token| Guest::new(vmm.netns.clone(), &token)).map_err(silent)?;
    come_up(&vmm, &guest).await?;
    disk::ensure(&vmm, &guest, recipe.disk_mb).await?;
    say(&format!("guest is up; starting and warming {}", recipe.languages.join(", ")));
    if let Err(source) = guest.prepare(recipe.languages.clone()).await {
        return Err(BuildError::Guest { source, console: vmm.console_log() });
    }
    drop(guest);
    hang_up(&vmm).await;
    say("contexts are warm and frozen; saving the device state");
    let draft = templates.store.draft()?;
    vmm.pause().await?;
    vmm.save(&draft.path(name::DEVICE)).await?;
    say("compressing memory");
    let manifest = Manifest {
        version: manifest::VERSION,
        key: key.to_owned(),
        template: recipe.name.clone(),
        languages: recipe.languages.clone(),
        size: recipe.size,
        platform: platform.clone(),
        rootfs_sha256: boot.rootfs_sha256.clone(),
        created_at_ms: now_ms(),
        parent: None,
        capsule: None,
        memory_bytes: 0,
        memory_xxh3: 0,
        device_xxh3: 0,
        device_bytes: 0,
        upper_bytes: 0,
    };
    let memory_bytes = tokio::task::spawn_blocking(move || publish(draft, manifest, vmm, &ram))
        .await
        .map_err(|error| file("publishing")(io::Error::other(error)))??;
    say(&format!("published {key}: {} MiB of memory stored", memory_bytes >> 20));
    Ok(())
}

/// Waits until envd answers, and activates it.
async fn come_up(vmm: &Vmm, guest: &Guest) -> Result<(), BuildError> {
    let deadline = Instant::now() + BOOT_DEADLINE;
    loop {
        let identity = Identity { hostname: "template".to_owned(), env: HashMap::new() };
        let reason = match guest.activate(identity).await {
            Ok(_) => return Ok(()),
            Err(GuestError::Unreachable(reason)) => reason,
            Err(source) => return Err(BuildError::Guest { source, console: vmm.console_log() }),
        };
        if !vmm.is_alive() {
            let reason = format!("the VMM ended {}", vmm.log());
            return Err(BuildError::Boot { reason, console: vmm.console_log() });
        }
        if deadline < Instant::now() {
            return Err(BuildError::Boot { reason, console: vmm.console_log() });
        }
        time::sleep(DIAL_PAUSE).await;
    }
}

/// Waits until the guest has closed its end of the calls' connection: in a snapshot it would be one to nobody, and each
/// restored guest would have to find that out.
async fn hang_up(vmm: &Vmm) {
    let deadline = Instant::now() + HANG_UP_DEADLINE;
    while Instant::now() < deadline {
        let netns = vmm.netns.clone();
        match tokio::task::spawn_blocking(move || netns.connections()).await {
            Ok(Ok(0)) => return,
            Ok(Ok(_)) => time::sleep(HANG_UP_PAUSE).await,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    tracing::warn!("the guest keeps a connection of the build; restores will be slower for it");
}

/// The blocking part: disk, memory, manifest. Returns the bytes of the memory layer.
fn publish(draft: Draft, mut manifest: Manifest, vmm: Vmm, ram: &BuildRam) -> Result<u64, BuildError> {
    // vCPUs stand still and the block layer was drained by the stop: memory and disk are of one instant.
    sparse::copy(&vmm.upper(), &draft.path(name::UPPER)).map_err(file("the writable layer"))?;
    let memory = File::open(ram.path()).map_err(file("guest memory"))?;
    let out = File::create_new(draft.path(name::MEMORY)).map_err(file("the memory layer"))?;
    layer::write(&memory, manifest.size.ram_bytes(), &out)?;
    drop(vmm);
    draft.measure(&mut manifest)?;
    draft.publish(&manifest, Durability::Synced)?;
    Ok(manifest.memory_bytes)
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
