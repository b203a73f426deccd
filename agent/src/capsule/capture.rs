//! Copies a capsule's state while its vCPUs stand still: device state, the pages that differ from its template's, and
//! the writable layer of the same instant.

use crate::{
    disk::sparse,
    error::AgentError,
    memory::{
        difference::{self, DifferenceError, Pending},
        dumped::Dump,
        layer::{Layer, LayerError},
        own::{Own, OwnError},
    },
    snapshot::{
        generation::{Generation, Generations},
        manifest::{Manifest, Parent},
        store::{Draft, Durability, StoreError, name},
    },
    template::{Template, build::now_ms},
    vmm::{control::VmmError, guard::Vmm},
};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Why a capsule could not be captured. It stands still afterwards, otherwise unharmed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The VMM did not do as told.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Its memory could not be read.
    #[error(transparent)]
    Own(#[from] OwnError),
    /// Its memory could not be compared or stored.
    #[error(transparent)]
    Difference(#[from] DifferenceError),
    /// Its template's memory is damaged.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The snapshot store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file failed.
    #[error("{what}: {source}")]
    File {
        /// Which step.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl CaptureError {
    /// The VMM's record could not be written.
    pub fn record(source: io::Error) -> Self {
        Self::File { what: "the VMM's record", source }
    }
}

fn file(what: &'static str) -> impl Fn(io::Error) -> CaptureError {
    move |source| CaptureError::File { what, source }
}

/// What a capture found and how long its steps took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Freezing user processes, syncing the guest's disk.
    pub prepare: Duration,
    /// vCPUs stood still.
    pub stood_still: Duration,
    /// Of that: the device state.
    pub device: Duration,
    /// Of that: finding, reading and comparing pages.
    pub memory: Duration,
    /// Of that: the writable layer.
    pub disk: Duration,
    /// Compressing, writing, syncing and publishing.
    pub publish: Duration,
    /// All of it.
    pub total: Duration,
    /// Pages that were the capsule's own.
    pub own_pages: u64,
    /// Pages that differ.
    pub written_pages: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Figures {
    /// The wire form.
    pub fn wire(&self) -> wire::Capture {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        wire::Capture {
            prepare_us: us(self.prepare),
            stood_still_us: us(self.stood_still),
            device_us: us(self.device),
            memory_us: us(self.memory),
            disk_us: us(self.disk),
            publish_us: us(self.publish),
            total_us: us(self.total),
            own_pages: self.own_pages,
            written_pages: self.written_pages,
            bytes: self.bytes,
        }
    }
}

/// A captured state that is not published yet. Dropping it removes the files.
#[derive(Debug)]
pub struct Captured {
    draft: Draft,
    manifest: Manifest,
    memory: Pending,
}

impl Captured {
    /// Writes what is still in memory, and publishes. The capsule is not needed for this any more.
    pub fn publish(
        self,
        generations: &Generations,
        durability: Durability,
    ) -> Result<Arc<Generation>, AgentError> {
        let Self { draft, mut manifest, memory } = self;
        memory.finish().map_err(CaptureError::from)?;
        Ok(generations.publish(draft, &mut manifest, durability)?)
    }
}

/// Whose state is captured, and under which key.
#[derive(Debug)]
pub struct Order {
    /// Key of the generation.
    pub key: String,
    /// The capsule.
    pub capsule: CapsuleId,
}

/// Stops the vCPUs and copies. They stand still afterwards, whatever the outcome.
pub async fn capture(
    vmm: &Vmm,
    base: &Arc<Template>,
    generations: &Arc<Generations>,
    order: Order,
    figures: &mut Figures,
) -> Result<Captured, CaptureError> {
    let settled = Instant::now();
    settle(vmm).await?;
    // The processors still run.
    figures.prepare += settled.elapsed();
    let start = Instant::now();
    vmm.pause().await?;
    let owned = generations.clone();
    let draft = blocking(move || owned.draft()).await?;
    let dump = vmm.capture(&draft.path(name::DEVICE)).await?;
    figures.device = start.elapsed();
    let image = vmm.image().ok_or_else(|| file("the memory image")(io::ErrorKind::NotFound.into()))?;
    let copy = Copy {
        dump,
        pid: vmm.process.pid(),
        image: image.path().to_owned(),
        upper: vmm.upper(),
        base: base.clone(),
    };
    // The block layer was drained by the stop: memory and disk are of one instant.
    let (draft, copied) = blocking(move || copy.run(draft)).await?;
    figures.memory = copied.memory;
    figures.disk = copied.disk;
    figures.own_pages = copied.own_pages;
    figures.written_pages = copied.pending.pages;
    Ok(Captured { draft, manifest: manifest(base, order), memory: copied.pending })
}

/// Writes out what would delay the copy of the writable layer. Worth calling while user processes still run, too.
pub(super) async fn settle(vmm: &Vmm) -> Result<(), CaptureError> {
    let upper = vmm.upper();
    blocking(move || sparse::settle(&upper).map_err(file("the writable layer"))).await
}

fn manifest(base: &Template, order: Order) -> Manifest {
    let of = &base.snapshot.manifest;
    let parent = Parent { key: of.key.clone(), memory_xxh3: of.memory_xxh3 };
    Manifest {
        key: order.key,
        created_at_ms: now_ms(),
        parent: Some(parent),
        capsule: Some(order.capsule),
        ..of.clone()
    }
}

/// Runs blocking work to its end.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What the blocking part needs.
struct Copy {
    dump: Option<Dump>,
    pid: i32,
    image: PathBuf,
    upper: PathBuf,
    base: Arc<Template>,
}

struct Copied {
    memory: Duration,
    disk: Duration,
    own_pages: u64,
    pending: Pending,
}

impl Copy {
    fn run(self, draft: Draft) -> Result<(Draft, Copied), CaptureError> {
        let start = Instant::now();
        let ram_bytes = self.base.snapshot.manifest.size.ram_bytes();
        let memory = Own::open(self.dump, self.pid, &self.image, ram_bytes)?;
        let own = memory.written().map_err(file("the VMM's page map"))?;
        let layer = self.base.snapshot.path(name::MEMORY);
        let layer = Layer::open(File::open(layer).map_err(file("the template's memory"))?)?;
        let image = File::open(&self.image).map_err(file("the memory image"))?;
        let parent = difference::Parent::new(layer, image)?;
        let out = File::create_new(draft.path(name::MEMORY)).map_err(file("the memory layer"))?;
        let pending = difference::read(&parent, &own, |at, page| memory.read(at, page), out)?;
        let memory = start.elapsed();
        sparse::copy(&self.upper, &draft.path(name::UPPER)).map_err(file("the writable layer"))?;
        let own_pages = own.iter().map(|bits| u64::from(bits.count_ones())).sum();
        Ok((draft, Copied { memory, disk: start.elapsed() - memory, own_pages, pending }))
    }
}
