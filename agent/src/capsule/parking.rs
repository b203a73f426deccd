//! Parked VMMs: processes that were spawned ahead and wait for a snapshot's device state.
//!
//! On QEMU they are bound to one snapshot (its size, image, disks); a restore that finds one saves the time of a spawn.

use crate::{
    error::AgentError,
    memory::image::Images,
    template::Template,
    vmm::{
        guard::Vmm,
        launch::{LaunchError, Launcher},
    },
};
use hearth_service::shutdown::Shutdown;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

/// After a failed spawn, before the next attempt.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// Keeps VMMs parked. Clones share it.
#[derive(Debug, Clone)]
pub struct Parking {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    launcher: Arc<Launcher>,
    images: Arc<Images>,
    target: usize,
    parked: Mutex<HashMap<String, Bay>>,
    /// Restores under way: they go first, spawning ahead waits.
    restoring: AtomicUsize,
    changed: Notify,
}

#[derive(Debug)]
struct Bay {
    template: Arc<Template>,
    vmms: Vec<Vmm>,
}

/// While held, no VMM is spawned ahead.
pub struct Restoring(Arc<Shared>);

impl Drop for Restoring {
    fn drop(&mut self) {
        self.0.restoring.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

impl Parking {
    /// Starts the task that keeps `target` VMMs parked for each template that was used.
    pub fn start(launcher: Arc<Launcher>, images: Arc<Images>, target: usize, shutdown: &Shutdown) -> Self {
        let shared = Arc::new(Shared {
            launcher,
            images,
            target,
            parked: Mutex::default(),
            restoring: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        // Waited for at shutdown: a VMM that it is just spawning must not outlive the sweep.
        shutdown.tasks().spawn(refill(shared.clone(), shutdown.token()));
        Self { shared }
    }

    /// Spawning ahead yields to restores while the result is held.
    pub fn restoring(&self) -> Restoring {
        self.shared.restoring.fetch_add(1, Ordering::SeqCst);
        Restoring(self.shared.clone())
    }

    /// A VMM for the template: a parked one, else a fresh one.
    pub async fn take(&self, template: &Arc<Template>) -> Result<Vmm, AgentError> {
        let parked = {
            let mut parked = self.shared.parked.lock().unwrap_or_else(PoisonError::into_inner);
            let bay = parked
                .entry(template.snapshot.manifest.key.clone())
                .or_insert_with(|| Bay { template: template.clone(), vmms: Vec::new() });
            bay.vmms.retain(Vmm::is_alive);
            bay.vmms.pop()
        };
        metrics::counter!("hearth_agent_parked_takes_total", "result" => if parked.is_some() { "hit" } else { "miss" })
            .increment(1);
        match parked {
            Some(vmm) => Ok(vmm),
            None => self.shared.spawn(template).await,
        }
    }

    /// Ends all that wait for a snapshot; those to come map its then current image.
    pub fn clear(&self, key: &str) {
        let mut parked = self.shared.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bay) = parked.get_mut(key) {
            bay.vmms.clear();
        }
        drop(parked);
        self.shared.changed.notify_one();
    }

    /// Ends all that wait for a snapshot that will not be restored any more.
    pub fn forget(&self, key: &str) {
        self.shared.parked.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Ends all parked VMMs and forgets what was used. Called at shutdown, when nothing is spawned ahead any more.
    pub fn close(&self) {
        self.shared.parked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Shared {
    async fn spawn(&self, template: &Arc<Template>) -> Result<Vmm, AgentError> {
        let manifest = &template.snapshot.manifest;
        let image = self.images.get(&manifest.key, manifest.size.ram_bytes())?;
        match self.launcher.park(&template.snapshot, &template.rootfs, image, None).await {
            Ok(vmm) => Ok(vmm),
            Err(error @ LaunchError::NoSlot(_)) => Err(AgentError::NoCapacity(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn wanted(&self) -> Option<Arc<Template>> {
        if self.restoring.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = 0;
        let mut wanted = None;
        for bay in parked.values_mut() {
            bay.vmms.retain(Vmm::is_alive);
            waiting += bay.vmms.len();
            if bay.vmms.len() < self.target {
                wanted = Some(bay.template.clone());
            }
        }
        metrics::gauge!("hearth_agent_parked_vmms").set(waiting as f64);
        metrics::gauge!("hearth_agent_parked_vmms_target").set((self.target * parked.len()) as f64);
        wanted
    }
}

async fn refill(shared: Arc<Shared>, stop: CancellationToken) {
    let mut not_before = Instant::now();
    loop {
        // The change may come while we spawn: it is remembered.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.changed.notified() => {}
        }
        time::sleep_until(not_before).await;
        while let Some(template) = shared.wanted() {
            if stop.is_cancelled() {
                return;
            }
            metrics::gauge!("hearth_agent_parked_vmms_spawning").set(1.0);
            let spawned = shared.spawn(&template).await;
            metrics::gauge!("hearth_agent_parked_vmms_spawning").set(0.0);
            match spawned {
                Ok(vmm) => {
                    let mut parked = shared.parked.lock().unwrap_or_else(PoisonError::into_inner);
                    // A bay that was closed meanwhile drops the VMM.
                    if let Some(bay) = parked.get_mut(&template.snapshot.manifest.key) {
                        bay.vmms.push(vmm);
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %hearth_service::telemetry::chain(&error), "no VMM could be parked");
                    not_before = Instant::now() + FAILURE_PAUSE;
                    shared.changed.notify_one();
                    break;
                }
            }
        }
    }
}
