//! What one capsule uses, over all its lives.

use super::{
    history::{History, Point, Sample, Tier},
    probe::Probe,
};
use crate::memory::stats::{Counter, Stats};
use std::sync::{Mutex, PoisonError};

/// The meter of one capsule. Its calls block for at most some 100 µs.
#[derive(Debug)]
pub struct Meter {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    history: History,
    /// Counters of lives that are over.
    before: Sample,
    probe: Option<Probe>,
    /// What was counted of the present life's pager.
    pager: Stats,
    /// The same of its way out; none while there is none.
    egress: Option<(u64, u64)>,
    /// What it may reach, in a word.
    policy: &'static str,
    /// On disk, while it is paused.
    disk_bytes: u64,
}

/// Counters of pagers, over all capsules.
const PAGER_COUNTERS: [(&str, Counter); 5] = [
    ("hearth_agent_faults_total", Counter::Faults),
    ("hearth_agent_filled_pages_total", Counter::FilledPages),
    ("hearth_agent_zero_pages_total", Counter::ZeroPages),
    ("hearth_agent_copied_pages_total", Counter::CopiedPages),
    ("hearth_agent_fault_serve_microseconds_total", Counter::ServeMicros),
];

impl Meter {
    /// A meter that goes on from `history`.
    pub fn new(history: History) -> Self {
        let before = history.newest();
        let disk_bytes = before.disk_bytes;
        let inner = Inner {
            history,
            before,
            probe: None,
            pager: Stats::default(),
            egress: None,
            policy: "none",
            disk_bytes,
        };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life begins.
    pub fn begin(&self, probe: Probe) {
        let mut inner = self.lock();
        // What went out before is another life's, or was counted by an earlier agent.
        inner.egress = probe.egress().ok().flatten();
        inner.probe = Some(probe);
        inner.pager = Stats::default();
    }

    /// It may reach something else from now on, in a word; what it sent and received so far counts under the old one.
    pub fn set_policy(&self, policy: &'static str) {
        let mut inner = self.lock();
        inner.count_egress();
        inner.policy = policy;
    }

    /// The life ends; its processes are best still there. `disk_bytes` is what stays on disk.
    pub fn end(&self, now_ms: i64, disk_bytes: u64) {
        let mut inner = self.lock();
        inner.sample(now_ms);
        inner.probe = None;
        inner.before = inner.history.newest();
        inner.disk_bytes = disk_bytes;
    }

    /// Takes a sample and returns it.
    pub fn sample(&self, now_ms: i64) -> Sample {
        let mut inner = self.lock();
        inner.sample(now_ms);
        inner.history.newest()
    }

    /// The last sample.
    pub fn newest(&self) -> Sample {
        self.lock().history.newest()
    }

    /// See [`History::points`].
    pub fn points(&self, now_ms: i64, range_ms: u64, vcpus: u32) -> (Vec<Point>, Tier) {
        self.lock().history.points(now_ms, range_ms, vcpus)
    }

    /// All of it, for a file.
    pub fn history(&self) -> History {
        self.lock().history.clone()
    }
}

impl Inner {
    fn sample(&mut self, now_ms: i64) {
        self.count_egress();
        let sample = match &self.probe {
            Some(probe) => {
                if let Ok(pager) = probe.pager() {
                    count(&self.pager, &pager);
                    self.pager = pager;
                }
                // A VMM that has just ended is told by its end; what it used after the last sample is not known.
                let Ok(sample) = probe.sample(now_ms) else { return };
                sample.over(&self.before)
            }
            None => Sample { at_ms: now_ms, disk_bytes: self.disk_bytes, ..self.before.at_rest() },
        };
        self.history.add(sample);
    }
}

impl Inner {
    /// Counts what went in and out since it was looked at last.
    fn count_egress(&mut self) {
        let Some(Ok(Some(now))) = self.probe.as_ref().map(Probe::egress) else { return };
        let before = self.egress.replace(now).unwrap_or_default();
        for (direction, now, before) in [("received", now.0, before.0), ("sent", now.1, before.1)] {
            let more = now.saturating_sub(before);
            if more != 0 {
                let labels = [("policy", self.policy), ("direction", direction)];
                metrics::counter!("hearth_agent_egress_bytes_total", &labels).increment(more);
            }
        }
    }
}

/// Counts what a pager did since it was looked at last.
fn count(before: &Stats, now: &Stats) {
    for (name, counter) in PAGER_COUNTERS {
        let more = now.get(counter).saturating_sub(before.get(counter));
        if more != 0 {
            metrics::counter!(name).increment(more);
        }
    }
    for (micros, count) in now.served_since(before).filter(|(_, count)| *count != 0) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        metrics::histogram!("hearth_agent_fault_serve_seconds").record_many(micros as f64 / 1e6, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::process::Process;

    #[tokio::test]
    async fn counters_go_on_from_life_to_life_and_memory_ends_with_each() {
        let folder = tempfile::tempdir().unwrap();
        let upper = folder.path().join("upper");
        std::fs::write(&upper, vec![1; 8192]).unwrap();
        let before = Sample { at_ms: 1000, cpu_us: 5_000_000_000, sent_bytes: 7, ..Sample::default() };
        let mut history = History::default();
        history.add(before);
        let meter = Meter::new(history);
        let process = Process::open(std::process::id() as i32).unwrap();
        meter.begin(Probe::new([&process].into_iter(), upper, folder.path().join("stats")));
        let first = meter.sample(20_000);
        assert!(
            first.cpu_us >= before.cpu_us && first.private_bytes > 0 && first.sent_bytes >= 7,
            "{first:?}"
        );
        meter.end(30_000, 99);
        let paused = meter.sample(40_000);
        assert_eq!((paused.private_bytes, paused.disk_bytes), (0, 99));
        assert!(paused.cpu_us >= first.cpu_us, "{paused:?} after {first:?}");
        assert_eq!(Meter::new(meter.history()).sample(50_000).disk_bytes, 99);
        let (points, _) = meter.points(50_000, 300_000, 1);
        assert_eq!(points.len(), 4, "{points:?}");
    }
}
