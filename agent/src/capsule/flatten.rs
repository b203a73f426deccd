//! Flattening: a capsule's disk, base and upper merged, becomes a new base image (decision 0017).
//!
//! ```text
//! capture (guest synced) ──▶ a machine of its own boots on base and a copy of the upper ──▶ packs them into a third
//! disk and ends ──▶ that disk's file is published
//! ```
//!
//! No file system of a guest is mounted on the host, and nothing of the capsule's runs in the machine that packs it.

use super::{
    fork::discard,
    handle::{Handle, Shot},
};
use crate::{
    agent::Parts,
    capsule::capture::{Figures, blocking},
    disk::base::{BaseImage, BaseImageError, Draft},
    error::AgentError,
    snapshot::{
        generation::Generations,
        store::{Durability, name},
    },
    steps::step_from,
    template::{TemplateError, build::now_ms, recipe::BootSet},
    vmm::machine::BootFiles,
};
use hearth_proto::id::ImageId;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Packing takes some seconds per GB with KVM, a minute or two in software emulation.
const DEADLINE: Duration = Duration::from_secs(900);
/// An image is at most as large as base and upper, and this.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Makes a base image of `source`, which goes on. Repeating it gives the image that is there. One at a time on a host:
/// the others wait. Goes on when its caller has gone.
pub async fn flatten(
    parts: &Arc<Parts>,
    source: &Handle,
    id: ImageId,
) -> Result<(BaseImage, Option<Figures>), AgentError> {
    let (parts, source, tasks) = (parts.clone(), source.clone(), parts.shutdown.tasks().clone());
    let work = async move {
        let stop = parts.shutdown.token();
        tokio::select! {
            // A stopping agent does not wait for it; what it made so far goes with it.
            biased;
            () = stop.cancelled() => Err(AgentError::Stopping),
            flattened = in_turn(&parts, &source, id) => flattened,
        }
    };
    let work = tasks.spawn(work);
    work.await.map_err(|error| AgentError::Ended(error.to_string()))?
}

async fn in_turn(
    parts: &Arc<Parts>,
    source: &Handle,
    id: ImageId,
) -> Result<(BaseImage, Option<Figures>), AgentError> {
    let turn = timeout(DEADLINE, parts.flattening.acquire()).await;
    let _turn = turn
        .map_err(|_| AgentError::NoCapacity("other capsules are being flattened".to_owned()))?
        .map_err(|_| AgentError::Stopping)?;
    let bases = parts.templates.bases.clone();
    match blocking(move || bases.get(id)).await? {
        Some(there) if there.capsule == source.facts.id => return Ok((there, None)),
        Some(_) => return Err(AgentError::Exists(format!("base image {id}"))),
        None => {}
    }
    let start = Instant::now();
    let key = Generations::new_key();
    let shot = source.capture(key, Durability::Transient).await?;
    let packed = pack(parts, source, &shot, id).await;
    discard(parts, &shot).await;
    let image = packed?;
    step_from("flatten", "generation", start);
    tracing::info!(capsule.id = %source.facts.id, image = %id, key = image.key, bytes = image.bytes, "flattened");
    Ok((image, shot.figures))
}

async fn pack(
    parts: &Arc<Parts>,
    source: &Handle,
    shot: &Shot,
    id: ImageId,
) -> Result<BaseImage, AgentError> {
    let templates = &parts.templates;
    let boot = BootSet::read(&templates.launcher.layout.boot_files()).map_err(TemplateError::from)?;
    let tools = boot.flatten.ok_or_else(|| {
        let reason = "the guest images have no tools for it: run `make images`".to_owned();
        AgentError::Template(TemplateError::Recipe(reason))
    })?;
    let base = &shot.generation.base;
    let upper = shot.generation.snapshot.path(name::UPPER);
    let bytes = image_bytes_max(&base.rootfs, &upper)?;
    room(parts, &base.rootfs, &upper)?;
    let size = base.snapshot.manifest.size;
    let uid = templates.launcher.reserve()?;
    let (images, user) = (parts.images.clone(), uid.id());
    let ram = blocking(move || images.reserve_build(user, size.ram_bytes())).await?;
    let (bases, initramfs) = (templates.bases.clone(), boot.files.initramfs.clone());
    let (draft, initramfs) = blocking(move || {
        let draft = bases.draft(bytes, user)?;
        let initramfs = draft.initramfs([&initramfs, &tools])?;
        Ok::<_, BaseImageError>((draft, initramfs))
    })
    .await?;
    let files = BootFiles {
        kernel: boot.files.kernel,
        initramfs,
        rootfs: base.rootfs.clone(),
        upper,
        output: Some(draft.rootfs()),
    };
    let vmm = templates.launcher.boot(&files, size, uid, &ram).await?;
    let ended = timeout(DEADLINE, vmm.process.exited()).await;
    let console = vmm.console_log();
    drop(vmm);
    ended
        .map_err(|_| BaseImageError::Unfinished(format!("it took longer than {DEADLINE:?}; {console}")))?
        .map_err(|source| AgentError::File { what: "the VMM that packs", source })?;
    publish(draft, console, (source, shot), id).await
}

async fn publish(
    draft: Draft,
    console: String,
    (source, shot): (&Handle, &Shot),
    id: ImageId,
) -> Result<BaseImage, AgentError> {
    let (capsule, template) = (source.facts.id, source.facts.template.clone());
    let languages = shot.generation.snapshot.manifest.languages.clone();
    let created_at_ms = now_ms();
    let describe = move |key, sha256, bytes| BaseImage {
        id,
        key,
        sha256,
        bytes,
        capsule,
        template,
        languages,
        created_at_ms,
    };
    Ok(blocking(move || draft.publish(&console, describe)).await?)
}

fn image_bytes_max(rootfs: &Path, upper: &Path) -> Result<u64, AgentError> {
    let size = |path: &Path| {
        fs::metadata(path)
            .map(|meta| meta.len())
            .map_err(|source| AgentError::File { what: "a capsule's disk", source })
    };
    Ok(size(rootfs)? + size(upper)? + OVERHEAD_BYTES)
}

/// Refuses what would use up the disk: an image is about as large as what is stored of base and upper.
fn room(parts: &Parts, rootfs: &Path, upper: &Path) -> Result<(), AgentError> {
    let stored = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let wanted_mb = (stored(rootfs) + 2 * stored(upper) + OVERHEAD_BYTES) >> 20;
    let folder = parts.templates.launcher.layout.bases();
    let free_mb =
        super::room::free_mb(&folder).map_err(|source| AgentError::File { what: "its disk", source })?;
    let reserve_mb = parts.registry.policy().disk_reserve_mb;
    if free_mb < wanted_mb + reserve_mb {
        return Err(AgentError::NoCapacity(format!(
            "a base image takes up to {wanted_mb} MiB, {free_mb} MiB of the cache's disk are free, of which \
             {reserve_mb} are kept"
        )));
    }
    Ok(())
}
