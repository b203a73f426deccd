//! (pure) A capsule's samples over a day, in three resolutions. Bounded: 471 points, 26 KB.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What a capsule used until one moment. Counters only grow; the rest is of the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Processor time in microseconds. A counter.
    pub cpu_us: u64,
    /// Memory that is its own.
    pub private_bytes: u64,
    /// Memory of images that it maps.
    pub shared_bytes: u64,
    /// Of its writable layer.
    pub disk_bytes: u64,
    /// A counter.
    pub received_bytes: u64,
    /// A counter.
    pub sent_bytes: u64,
}

impl Sample {
    /// The same, with the counters of what was before.
    pub fn over(self, before: &Sample) -> Self {
        Self {
            cpu_us: self.cpu_us + before.cpu_us,
            received_bytes: self.received_bytes + before.received_bytes,
            sent_bytes: self.sent_bytes + before.sent_bytes,
            ..self
        }
    }

    /// The same with no process any more.
    pub fn at_rest(self) -> Self {
        Self { private_bytes: 0, shared_bytes: 0, ..self }
    }
}

/// A resolution: its interval and how many points are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Between two points.
    pub interval_ms: u64,
    points: usize,
}

/// Ten minutes, two hours, a day.
pub const TIERS: [Tier; 3] = [
    Tier { interval_ms: 10_000, points: 60 },
    Tier { interval_ms: 60_000, points: 120 },
    Tier { interval_ms: 300_000, points: 288 },
];

/// A series of one resolution and the interval that is being filled.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Series {
    points: VecDeque<Sample>,
    /// Number of the interval since the epoch.
    open: i64,
    samples: u64,
    private_sum: u64,
    shared_sum: u64,
    newest: Sample,
}

impl Series {
    fn add(&mut self, sample: Sample, tier: Tier) {
        let number = sample.at_ms.div_euclid(tier.interval_ms as i64);
        if self.samples != 0 && number != self.open {
            self.points.push_back(self.mean());
            // One more than the range has: the first point's share of time needs the one before it.
            while tier.points + 1 < self.points.len() {
                self.points.pop_front();
            }
            (self.samples, self.private_sum, self.shared_sum) = (0, 0, 0);
        }
        self.open = number;
        self.samples += 1;
        self.private_sum += sample.private_bytes;
        self.shared_sum += sample.shared_bytes;
        self.newest = sample;
    }

    /// The interval that is being filled as a point: memory as its mean.
    fn mean(&self) -> Sample {
        let samples = self.samples.max(1);
        let (private_bytes, shared_bytes) = (self.private_sum / samples, self.shared_sum / samples);
        Sample { private_bytes, shared_bytes, ..self.newest }
    }
}

/// A point for a reader: what was used in the interval before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// As sampled.
    pub sample: Sample,
    /// Processor time since the point before, in percent of all vCPUs.
    pub cpu_pct: f64,
}

/// The samples of one capsule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    series: [Series; TIERS.len()],
}

impl History {
    /// Adds a sample. One that is not newer than the last is left out.
    pub fn add(&mut self, sample: Sample) {
        if sample.at_ms <= self.newest().at_ms {
            return;
        }
        for (series, tier) in self.series.iter_mut().zip(TIERS) {
            series.add(sample, tier);
        }
    }

    /// The last sample; all zero when there is none.
    pub fn newest(&self) -> Sample {
        self.series[0].newest
    }

    /// The points of the last `range_ms` before `now_ms`, oldest first, in the finest resolution that reaches so far,
    /// and that resolution.
    pub fn points(&self, now_ms: i64, range_ms: u64, vcpus: u32) -> (Vec<Point>, Tier) {
        let reaches = |tier: &Tier| range_ms <= tier.interval_ms * tier.points as u64;
        let at = TIERS.iter().position(reaches).unwrap_or(TIERS.len() - 1);
        let series = &self.series[at];
        let open = (series.samples != 0).then(|| series.mean());
        let from = now_ms.saturating_sub_unsigned(range_ms);
        let mut before: Option<Sample> = None;
        let mut points = Vec::new();
        for sample in series.points.iter().copied().chain(open) {
            if from <= sample.at_ms {
                points.push(Point { sample, cpu_pct: cpu_pct(before, sample, vcpus) });
            }
            before = Some(sample);
        }
        (points, TIERS[at])
    }
}

fn cpu_pct(before: Option<Sample>, now: Sample, vcpus: u32) -> f64 {
    let Some(before) = before else { return 0.0 };
    let elapsed_us = (now.at_ms - before.at_ms).max(1) as f64 * 1000.0;
    let used_us = now.cpu_us.saturating_sub(before.cpu_us) as f64;
    used_us / elapsed_us / f64::from(vcpus.max(1)) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn sample(second: i64) -> Sample {
        Sample {
            at_ms: second * 1000,
            cpu_us: second as u64 * 500_000,
            private_bytes: second as u64,
            ..Sample::default()
        }
    }

    fn history(seconds: i64) -> History {
        let mut history = History::default();
        for second in (10..=seconds).step_by(10) {
            history.add(sample(second));
        }
        history
    }

    #[test]
    fn each_range_has_its_resolution_and_reaches_back_that_far() {
        let end = 2 * 86_400;
        let history = history(end);
        for (range_ms, interval_ms) in [
            (300_000, 10_000),
            (600_000, 10_000),
            (3_600_000, 60_000),
            (7_200_000, 60_000),
            (DAY_MS, 300_000),
        ] {
            let (points, tier) = history.points(end * 1000, range_ms, 1);
            assert_eq!(tier.interval_ms, interval_ms, "{range_ms}");
            let wanted = range_ms / interval_ms;
            assert!((wanted..=wanted + 1).contains(&(points.len() as u64)), "{range_ms}: {}", points.len());
            assert!(points.iter().is_sorted_by_key(|point| point.sample.at_ms));
            assert!(points.iter().all(|point| (point.cpu_pct - 50.0).abs() < 1.0), "{:?}", points[0]);
        }
        let (points, _) = history.points(end * 1000, DAY_MS, 2);
        assert!((points[5].cpu_pct - 25.0).abs() < 1.0, "of all its vCPUs");
    }

    #[test]
    fn memory_is_the_mean_of_an_interval_and_counters_are_as_at_its_end() {
        let (points, _) = history(180).points(180_000, 3_600_000, 1);
        // 10 to 50 s, 60 to 110 s, …
        let seen: Vec<_> =
            points.iter().map(|point| (point.sample.private_bytes, point.sample.cpu_us)).collect();
        assert_eq!(seen, [(30, 25_000_000), (85, 55_000_000), (145, 85_000_000), (180, 90_000_000)]);
    }

    #[test]
    fn it_is_bounded_and_survives_a_file() {
        let full = history(3 * 86_400);
        let kept: usize = full.series.iter().map(|series| series.points.len()).sum();
        assert_eq!(kept, 471);
        let text = serde_json::to_vec(&full).unwrap();
        assert!(text.len() < 128 << 10, "{} bytes", text.len());
        assert_eq!(serde_json::from_slice::<History>(&text).unwrap(), full);
    }

    #[test]
    fn a_sample_of_the_past_changes_nothing() {
        let mut history = history(100);
        let before = history.clone();
        history.add(sample(50));
        history.add(sample(100));
        assert_eq!(history, before);
    }

    #[test]
    fn counters_go_on_over_a_pause() {
        let before = Sample { cpu_us: 7, received_bytes: 3, sent_bytes: 1, private_bytes: 9, ..sample(1) };
        let now = Sample { cpu_us: 5, private_bytes: 2, at_ms: 9, ..Sample::default() }.over(&before);
        assert_eq!((now.cpu_us, now.received_bytes, now.sent_bytes), (12, 3, 1));
        assert_eq!((now.private_bytes, now.at_ms, now.at_rest().private_bytes), (2, 9, 0));
    }
}
