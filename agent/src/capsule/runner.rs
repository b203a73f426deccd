//! The task that owns one capsule: restores it, lets it run, notices its death, gives everything back.

use super::{
    handle::{Facts, Handle, Measured, Message},
    registry::Registry,
    state::{Denied, Happening, Request, State},
};
use crate::{
    error::AgentError,
    guest::{Guest, Identity},
    snapshot::store::name,
    template::{Template, Templates, build::now_ms},
    usage,
    vmm::launch::Vmm,
};
use hearth_proto::id::CapsuleId;
use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::Instrument;

/// Messages that may wait for the task.
const QUEUE: usize = 32;
/// How often a running guest is asked for its health, which also keeps its clock.
const HEALTH_PERIOD: Duration = Duration::from_secs(10);

/// What a restore is asked for.
#[derive(Debug)]
pub struct Wish {
    /// The new capsule's id.
    pub id: CapsuleId,
    /// Stop the vCPUs when it is ready.
    pub park: bool,
    /// Environment of what runs in it.
    pub env: HashMap<String, String>,
}

/// Starts the task of a new capsule.
pub fn start(
    templates: Arc<Templates>,
    template: Arc<Template>,
    registry: Arc<Registry>,
    tasks: &tokio_util::task::TaskTracker,
    wish: Wish,
) -> Handle {
    let manifest = &template.snapshot.manifest;
    let facts = Arc::new(Facts {
        id: wish.id,
        template: manifest.template.clone(),
        vcpus: manifest.size.vcpus,
        memory_mb: manifest.size.memory_mb,
        created_at_ms: now_ms(),
    });
    let (messages, queue) = mpsc::channel(QUEUE);
    let (state, state_watch) = watch::channel(State::Starting);
    let (guest, guest_watch) = watch::channel(None);
    let handle = Handle { facts, messages, state: state_watch, guest: guest_watch };
    let runner = Runner { templates, template, registry, handle: handle.clone(), queue, state, guest };
    let span = tracing::info_span!("capsule", capsule.id = %wish.id);
    tasks.spawn(runner.run(wish).instrument(span));
    handle
}

struct Runner {
    templates: Arc<Templates>,
    template: Arc<Template>,
    registry: Arc<Registry>,
    handle: Handle,
    queue: mpsc::Receiver<Message>,
    state: watch::Sender<State>,
    guest: watch::Sender<Option<Guest>>,
}

/// Why the loop of a living capsule ended.
enum End {
    Destroyed(Vec<oneshot::Sender<()>>),
    Died(String),
}

impl Runner {
    async fn run(mut self, wish: Wish) {
        let park = wish.park;
        let end = match self.start(wish).await {
            Start::Done(vmm, guest) => {
                let source = if park { "pool" } else { "demand" };
                metrics::counter!("hearth_agent_restores_total", "source" => source).increment(1);
                self.guest.send_replace(Some(guest.clone()));
                self.happened(Happening::Restored { parked: park });
                let end = self.live(&vmm, &guest).await;
                self.note(&vmm, &end).await;
                drop(vmm);
                end
            }
            Start::Ended(end) => end,
        };
        self.guest.send_replace(None);
        match end {
            End::Destroyed(replies) => {
                self.happened(Happening::Released);
                for reply in replies {
                    // The caller may have gone.
                    let _ = reply.send(());
                }
            }
            End::Died(reason) => {
                tracing::warn!(reason, "capsule failed");
                metrics::counter!("hearth_agent_capsule_failures_total").increment(1);
                self.happened(Happening::Died(reason));
            }
        }
        self.queue.close();
        while let Some(message) = self.queue.recv().await {
            self.refuse(message);
        }
    }

    fn happened(&mut self, happening: Happening) {
        self.state.send_modify(|state| *state = state.clone().after(happening));
        self.registry.changed(&self.handle);
    }

    /// Restores, unless the capsule is destroyed meanwhile.
    async fn start(&mut self, wish: Wish) -> Start {
        let restore = restore(&self.templates, &self.template, wish);
        tokio::pin!(restore);
        loop {
            tokio::select! {
                biased;
                message = self.queue.recv() => match message {
                    Some(Message::Destroy(reply)) => {
                        self.state.send_replace(State::Stopping);
                        // Dropping the restore undoes what it has done.
                        return Start::Ended(End::Destroyed(vec![reply]));
                    }
                    Some(other) => refuse(&self.state.borrow(), other),
                    None => return Start::Ended(End::Destroyed(Vec::new())),
                },
                restored = &mut restore => return match restored {
                    Ok((vmm, guest)) => Start::Done(vmm, guest),
                    Err(error) => {
                        Start::Ended(End::Died(hearth_service::telemetry::chain(&error)))
                    }
                },
            }
        }
    }

    /// Serves requests until the capsule ends.
    async fn live(&mut self, vmm: &Vmm, guest: &Guest) -> End {
        let mut health = time::interval_at(time::Instant::now() + HEALTH_PERIOD, HEALTH_PERIOD);
        health.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // A death is noticed before more is asked of the dead.
                biased;
                _ = vmm.process.exited() => {
                    return End::Died(ended("the VMM", vmm.process.reap(), &vmm.log()));
                }
                _ = pager_exited(vmm) => {
                    let how = vmm.pager.as_ref().and_then(|pager| pager.reap());
                    return End::Died(ended("its pager", how, &vmm.pager_log()));
                }
                message = self.queue.recv() => match message {
                    Some(Message::Claim(reply)) => {
                        let claimed = self.claim(vmm).await.map(|()| guest.clone());
                        let failed = claimed.as_ref().err().map(ToString::to_string);
                        // The caller may have gone; the capsule runs and is destroyed by its owner's lease.
                        let _ = reply.send(claimed);
                        if let Some(reason) = failed {
                            return End::Died(reason);
                        }
                    }
                    Some(Message::Destroy(reply)) => {
                        self.state.send_replace(State::Stopping);
                        return End::Destroyed(vec![reply]);
                    }
                    Some(Message::Measure(reply)) => {
                        // The caller may have gone.
                        let _ = reply.send(measure(vmm));
                    }
                    None => return End::Destroyed(Vec::new()),
                },
                _ = health.tick() => {
                    if *self.state.borrow() == State::Running
                        && let Err(error) = guest.health().await
                    {
                        tracing::warn!(%error, "the guest does not answer");
                    }
                }
            }
        }
    }

    /// Lets a parked capsule run.
    async fn claim(&mut self, vmm: &Vmm) -> Result<(), AgentError> {
        let next = self.state.borrow().decide(Request::Claim)?;
        let Some(next) = next else { return Ok(()) };
        let start = Instant::now();
        vmm.resume().await?;
        step("claim", start);
        self.state.send_replace(next);
        self.registry.changed(&self.handle);
        Ok(())
    }

    /// Logs and counts what the capsule's pager did.
    async fn note(&self, vmm: &Vmm, end: &End) {
        if let Ok(stats) = vmm.pager_stats() {
            use crate::memory::stats::Counter;
            for (name, counter) in [
                ("hearth_agent_faults_total", Counter::Faults),
                ("hearth_agent_filled_pages_total", Counter::FilledPages),
                ("hearth_agent_zero_pages_total", Counter::ZeroPages),
                ("hearth_agent_copied_pages_total", Counter::CopiedPages),
            ] {
                metrics::counter!(name).increment(stats.get(counter));
            }
            metrics::counter!("hearth_agent_fault_serve_microseconds_total")
                .increment(stats.get(Counter::ServeMicros));
        }
        if let End::Died(_) = end
            && let Ok(console) = time::timeout(Duration::from_secs(1), vmm.console()).await
        {
            tracing::warn!(console = %console.unwrap_or_default(), "console of a failed capsule");
        }
    }

    fn refuse(&self, message: Message) {
        refuse(&self.state.borrow(), message);
    }
}

enum Start {
    Done(Vmm, Guest),
    Ended(End),
}

fn refuse(state: &State, message: Message) {
    // Whoever asked may have gone.
    match message {
        Message::Claim(reply) => {
            let _ = reply.send(Err(Denied { state: state.clone() }.into()));
        }
        Message::Destroy(reply) => {
            let _ = reply.send(());
        }
        Message::Measure(reply) => {
            let _ = reply.send(Measured::default());
        }
    }
}

async fn pager_exited(vmm: &Vmm) -> io::Result<()> {
    match &vmm.pager {
        Some(pager) => pager.exited().await,
        None => std::future::pending().await,
    }
}

fn ended(who: &str, how: Option<String>, log: &str) -> String {
    let how = how.unwrap_or_else(|| "unknown".to_owned());
    if log.is_empty() { format!("{who} ended ({how})") } else { format!("{who} ended ({how}): {log}") }
}

fn measure(vmm: &Vmm) -> Measured {
    let mut private_kb = usage::private_dirty_kb(vmm.process.pid()).unwrap_or(0);
    if let Some(pager) = &vmm.pager {
        private_kb += usage::private_dirty_kb(pager.pid()).unwrap_or(0);
    }
    Measured { private_kb, pager: vmm.pager_stats().unwrap_or_default() }
}

/// Records how long a step took.
pub fn step(name: &'static str, start: Instant) {
    metrics::histogram!("hearth_agent_step_seconds", "step" => name).record(start.elapsed().as_secs_f64());
}

/// From a template to a capsule that answers: VMM, device state, vCPUs, handshake.
/// Dropping the future half way gives everything back (the VMM is a guard).
async fn restore(
    templates: &Arc<Templates>,
    template: &Arc<Template>,
    wish: Wish,
) -> Result<(Vmm, Guest), AgentError> {
    let _first = templates.parking.restoring();
    let start = Instant::now();
    let mut vmm = templates.parking.take(template).await?;
    vmm.assign(wish.id).map_err(|error| AgentError::NoCapacity(format!("the VMM's record: {error}")))?;
    step("vmm", start);
    let restored = bring_up(&vmm, template, wish, start).await;
    match restored {
        Ok(guest) => Ok((vmm, guest)),
        // A restore that failed because a process died is told by that death, not by its symptom.
        Err(error) if vmm.is_alive() => Err(error),
        Err(error) => {
            let log = [vmm.log(), vmm.pager_log()].join(" ");
            Err(AgentError::Ended(format!("{error}; the VMM or its pager ended: {}", log.trim())))
        }
    }
}

async fn bring_up(
    vmm: &Vmm,
    template: &Arc<Template>,
    wish: Wish,
    start: Instant,
) -> Result<Guest, AgentError> {
    let load = Instant::now();
    vmm.load(&template.snapshot.path(name::DEVICE)).await?;
    step("load", load);
    let resume = Instant::now();
    vmm.resume().await?;
    step("resume", resume);
    let handshake = Instant::now();
    let guest = Guest::new(vmm.netns.clone());
    let identity = Identity { hostname: wish.id.to_string(), env: wish.env };
    let reply = guest.activate(identity, wish.park).await?;
    step("handshake", handshake);
    tracing::debug!(steps = ?reply.step_us, "guest activated");
    if wish.park {
        let park = Instant::now();
        vmm.pause().await?;
        step("park", park);
    }
    step(if wish.park { "restore_parked" } else { "restore" }, start);
    Ok(guest)
}
