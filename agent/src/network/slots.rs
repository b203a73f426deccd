//! Network slots: a number, and with it an address, for each capsule's namespace; and a few namespaces made ahead.
//!
//! A namespace serves one capsule and is never used again. A number is used again when everything of its slot is gone,
//! and as late as possible.

use super::{
    netns::{Netns, NetworkError, system},
    nft::Batch,
    plan,
    policy::{Element, Policy},
    router::Router,
    ruleset,
};
use std::{
    collections::{HashSet, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// After a slot could not be made ahead, before the next attempt.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// The slots of a host. One exists per agent.
#[derive(Debug)]
pub struct Slots {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// The way out, or why there is none.
    router: Result<Router, String>,
    /// Slots to have ready.
    target: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers that are taken: by ready slots, by capsules, and by those that are being removed.
    taken: HashSet<u32>,
    /// Where the search for a free number goes on.
    next: u32,
    ready: VecDeque<(Netns, OwnedFd)>,
    /// Slots that were given back and are still to be removed.
    gone: Vec<u32>,
    closed: bool,
}

/// A slot's number, given back when dropped, and what its guest may reach.
#[derive(Debug)]
pub struct Lease {
    slot: u32,
    shared: Arc<Shared>,
    /// It is the next agent's.
    left: AtomicBool,
    applied: Mutex<Vec<Element>>,
}

impl Slots {
    /// Slots behind a router, or without a way out and why. `keep` are numbers of capsules that outlived an earlier
    /// agent: nobody gets them until they are given back through [`Slots::adopt`] or [`Slots::give_up`].
    pub fn start(router: Result<Router, String>, target: usize, keep: HashSet<u32>) -> io::Result<Self> {
        let state = State { taken: keep, ..State::default() };
        let mut shared = Shared { router, target, state: Mutex::new(state), changed: Condvar::new() };
        // The first one shows whether this kernel can do it.
        if shared.router.is_ok() {
            let trial = Arc::new(shared);
            let made = trial.make();
            let failed = match made {
                Ok(ready) => {
                    trial.lock().ready.push_back(ready);
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            shared = match (failed, Arc::try_unwrap(trial)) {
                (None, Err(trial)) => return Self::run(trial),
                (failed, Ok(trial)) => {
                    let reason = failed.unwrap_or_else(|| "the first slot is gone".to_owned());
                    Shared { router: Err(reason), ..trial }
                }
                (Some(reason), Err(_)) => return Err(io::Error::other(reason)),
            };
        }
        Self::run(Arc::new(shared))
    }

    fn run(shared: Arc<Shared>) -> io::Result<Self> {
        let works = shared.clone();
        let worker = thread::Builder::new().name("slots".to_owned()).spawn(move || works.work())?;
        shared.count(&shared.lock());
        Ok(Self { shared, worker: Mutex::new(Some(worker)) })
    }

    /// The way out; else why there is none.
    pub fn router(&self) -> Result<&Router, &str> {
        self.shared.router.as_ref().map_err(String::as_str)
    }

    /// How many are made ahead now.
    pub fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// A namespace that no capsule has had, and its tap. Made ahead, else made now, which blocks for milliseconds.
    pub fn take(&self) -> Result<(Netns, OwnedFd), NetworkError> {
        let start = Instant::now();
        let ready = self.shared.lock().ready.pop_front();
        let taken = match ready {
            Some(ready) => Ok(ready),
            None => self.shared.make(),
        };
        self.shared.changed.notify_all();
        metrics::histogram!("hearth_agent_slot_seconds", "step" => "take")
            .record(start.elapsed().as_secs_f64());
        self.shared.count(&self.shared.lock());
        taken
    }

    /// Takes the slot of a VMM that outlived an earlier agent: its number from the ledger, its namespace from the
    /// process. Its policy is to be applied again; until then it reaches nothing.
    pub fn adopt(&self, slot: u32, pid: i32) -> Result<Netns, NetworkError> {
        let netns = Netns::of_process(pid).map_err(system("the VMM's namespace"))?;
        self.shared.lock().taken.insert(slot);
        Ok(netns.with_lease(Lease::new(slot, &self.shared)))
    }

    /// Gives back the slot of a capsule that was to be adopted and could not be.
    pub fn give_up(&self, slot: u32) {
        drop(Lease::new(slot, &self.shared));
    }

    /// Ends the slots that are ready and waits until what was given back is removed.
    pub fn close(&self) {
        let ready = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.ready)
        };
        drop(ready);
        self.shared.changed.notify_all();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if worker.is_some_and(|worker| worker.join().is_err()) {
            tracing::error!("the thread that makes slots panicked");
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, state: &State) {
        let used = state.taken.len().saturating_sub(state.ready.len() + state.gone.len());
        metrics::gauge!("hearth_agent_slots", "state" => "free").set(state.ready.len() as f64);
        metrics::gauge!("hearth_agent_slots", "state" => "used").set(used as f64);
    }

    /// Makes a slot with the next free number.
    fn make(self: &Arc<Self>) -> Result<(Netns, OwnedFd), NetworkError> {
        let start = Instant::now();
        let slot = self.lock().number().ok_or(NetworkError::NoSlot)?;
        // From here a failure gives the number back.
        let lease = Lease::new(slot, self);
        let router = self.router.as_ref().ok().map(Router::descriptor).transpose()?;
        let made = Netns::create_linked(lease, router)?;
        metrics::histogram!("hearth_agent_slot_seconds", "step" => "make")
            .record(start.elapsed().as_secs_f64());
        Ok(made)
    }

    /// Removes what is given back, keeps slots ready, until it is closed and nothing is to be removed.
    fn work(self: Arc<Self>) {
        let mut not_before = Instant::now();
        loop {
            let (gone, make) = {
                let mut state = self.lock();
                loop {
                    let wanted = !state.closed && state.ready.len() < self.target;
                    let pause = not_before.saturating_duration_since(Instant::now());
                    if !state.gone.is_empty() || state.closed || (wanted && pause.is_zero()) {
                        break (state.gone.clone(), wanted && pause.is_zero());
                    }
                    let wait = if wanted { pause } else { Duration::MAX };
                    state = self.wait(state, wait);
                }
            };
            if gone.is_empty() && !make {
                return;
            }
            for slot in gone {
                self.remove(slot);
            }
            if make {
                match self.make() {
                    Ok(ready) => self.keep(ready),
                    Err(error) => {
                        tracing::warn!(%error, "no network slot could be made ahead");
                        not_before = Instant::now() + FAILURE_PAUSE;
                    }
                }
            }
            self.count(&self.lock());
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, duration: Duration) -> MutexGuard<'a, State> {
        if duration == Duration::MAX {
            return self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.changed.wait_timeout(state, duration).unwrap_or_else(PoisonError::into_inner).0
    }

    fn keep(&self, ready: (Netns, OwnedFd)) {
        let mut state = self.lock();
        if state.closed {
            // Not while the lock is held: it gives its number back.
            drop(state);
            drop(ready);
            return;
        }
        state.ready.push_back(ready);
    }

    /// Removes what is left of a slot; then its number is free.
    fn remove(&self, slot: u32) {
        if let Ok(router) = &self.router
            && let Err(error) = router.remove(slot)
        {
            tracing::warn!(slot, %error, "a slot is not removed; its number is not used again");
            self.lock().gone.retain(|gone| *gone != slot);
            return;
        }
        let mut state = self.lock();
        state.gone.retain(|gone| *gone != slot);
        state.taken.remove(&slot);
    }
}

impl State {
    /// The next free number, which is then taken.
    fn number(&mut self) -> Option<u32> {
        let slot = (0..plan::SLOTS_MAX)
            .map(|step| (self.next + step) % plan::SLOTS_MAX)
            .find(|slot| !self.taken.contains(slot))?;
        self.taken.insert(slot);
        self.next = slot + 1;
        Some(slot)
    }
}

impl Lease {
    fn new(slot: u32, shared: &Arc<Shared>) -> Self {
        Self { slot, shared: shared.clone(), left: AtomicBool::new(false), applied: Mutex::default() }
    }

    /// The slot's number.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Leaves the slot, and what its guest may reach, to the next agent: dropping this does not give it back.
    pub(super) fn let_go(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Replaces what the slot's guest may reach.
    pub(super) fn apply(&self, policy: &Policy) -> Result<(), NetworkError> {
        let router = match &self.shared.router {
            Ok(router) => router,
            Err(reason) if policy.has_egress() => return Err(NetworkError::NoEgress(reason.clone())),
            Err(_) => return Ok(()),
        };
        let wanted = policy.elements(self.slot);
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        router.netfilter.apply(&change(&applied, &wanted)).map_err(system("a capsule's network policy"))?;
        *applied = wanted;
        Ok(())
    }
}

/// (pure) What makes `wanted` of `applied`.
fn change(applied: &[Element], wanted: &[Element]) -> Batch {
    let mut batch = Batch::default();
    for element in applied.iter().filter(|element| !wanted.contains(element)) {
        batch.delete_element(ruleset::TABLE, element.set.name(), &element.key, element.end.as_deref());
    }
    for element in wanted.iter().filter(|element| !applied.contains(element)) {
        batch.add_element(ruleset::TABLE, element.set.name(), &element.key, element.end.as_deref());
    }
    batch
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.left.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.apply(&Policy::default()) {
            tracing::warn!(slot = self.slot, %error, "a slot's policy is not removed");
        }
        let mut state = self.shared.lock();
        state.gone.push(self.slot);
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::router;
    use std::{path::Path, process::Command};

    const MARK: &str = "hearth-00c0ffee-";

    /// In a network namespace of its own, which is the host here.
    fn on_a_host(work: impl FnOnce(&Path) + Send + 'static) {
        thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let folder = tempfile::tempdir().unwrap();
            work(&folder.path().join("router.netns"));
        })
        .join()
        .unwrap();
    }

    fn listed(path: &Path) -> String {
        let net = format!("--net={}", path.display());
        let output = Command::new("nsenter").args([&net, "nft", "list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn links(path: &Path) -> usize {
        let net = format!("--net={}", path.display());
        let output = Command::new("nsenter").args([&net, "cat", "/proc/net/dev"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.trim_start().starts_with('s') && line.contains(':')).count()
    }

    fn wait(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(30), "waited for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn slots_are_made_ahead_taken_and_removed_with_their_policies() {
        on_a_host(|path| {
            router::sweep(path, MARK, &HashSet::new()).unwrap();
            let slots =
                Slots::start(Router::open(path, MARK).map_err(|error| error.to_string()), 3, HashSet::new());
            let slots = slots.unwrap();
            assert!(slots.router().is_ok(), "{:?}", slots.router().err());
            wait("slots", || links(path) == 3);
            let mut takes = Vec::new();
            let mut held = Vec::new();
            for _ in 0..20 {
                let start = Instant::now();
                held.push(slots.take().unwrap());
                takes.push(start.elapsed());
                wait("a ready slot", || slots.shared.lock().ready.len() == 3);
            }
            takes.sort();
            println!("taking a ready slot: p50 {:?}, slowest {:?}", takes[10], takes[19]);
            let numbers: HashSet<u32> = held.iter().filter_map(|(netns, _)| netns.slot()).collect();
            assert_eq!(numbers.len(), 20);
            let policy = Policy { internet: true, ..Policy::default() };
            let start = Instant::now();
            held[0].0.apply(&policy).unwrap();
            println!("applying a policy: {:?}", start.elapsed());
            let address = plan::address(held[0].0.slot().unwrap()).to_string();
            assert_eq!(listed(path).matches(&address).count(), 2);
            held.clear();
            wait("removal", || slots.shared.lock().taken.len() == 3);
            assert_eq!((links(path), listed(path).contains(&address)), (3, false));
            slots.close();
            assert_eq!(links(path), 0);
            drop(slots);
            assert_eq!(router::sweep(path, MARK, &HashSet::new()).unwrap(), 1);
            assert_eq!(router::remains(path, MARK), Vec::<String>::new());
        });
    }

    #[test]
    fn a_later_agent_adopts_what_is_kept_and_sweeps_the_rest() {
        on_a_host(|path| {
            let open = || Router::open(path, MARK).map_err(|error| error.to_string());
            let slots = Slots::start(open(), 1, HashSet::new()).unwrap();
            let (kept, _tap) = slots.take().unwrap();
            let (_swept, _tap) = slots.take().unwrap();
            let policy = Policy { internet: true, ..Policy::default() };
            kept.apply(&policy).unwrap();
            let number = kept.slot().unwrap();
            let address = plan::address(number).to_string();
            // The VMM of the kept one, which outlives its agent.
            let mut vmm = kept.inside(|| Command::new("sleep").arg("600").spawn()).unwrap();
            // The agent was killed: nothing was given back.
            std::mem::forget((slots, kept));
            let keep = HashSet::from([number]);
            assert!(router::sweep(path, MARK, &keep).unwrap() >= 1);
            assert_eq!(links(path), 1);
            let later = Slots::start(open(), 2, keep).unwrap();
            assert!(!listed(path).contains(&address), "nothing is open until it is asked for again");
            let adopted = later.adopt(number, vmm.id() as i32).unwrap();
            adopted.apply(&policy).unwrap();
            assert!(listed(path).contains(&address));
            assert!(adopted.traffic().is_ok());
            let (other, _tap) = later.take().unwrap();
            assert_ne!(other.slot(), Some(number));
            vmm.kill().unwrap();
            vmm.wait().unwrap();
            drop((adopted, other));
            later.close();
            assert_eq!((links(path), listed(path).contains(&address)), (0, false));
            router::sweep(path, MARK, &HashSet::new()).unwrap();
        });
    }

    #[test]
    fn without_a_router_a_slot_has_no_way_out() {
        let slots = Slots::start(Err("no nft".to_owned()), 1, HashSet::new()).unwrap();
        let (netns, _tap) = slots.take().unwrap();
        netns.apply(&Policy::default()).unwrap();
        let error = netns.apply(&Policy { internet: true, ..Policy::default() }).unwrap_err();
        assert!(error.to_string().contains("no nft"), "{error}");
    }
}
