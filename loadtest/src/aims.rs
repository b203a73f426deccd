//! (pure) The aims of issue 2 ("Speed to reach"), and whether a run met them.

use crate::report::Report;

/// In a live context.
const CELL_MS: f64 = 12.0;
/// A pool hit, and at most this many times the cell.
const WARM_MS: f64 = 25.0;
const WARM_TO_CELL: f64 = 2.5;
/// Empty pool, image hot.
const RESTORED_MS: f64 = 140.0;
/// Empty pool, image evicted.
const COLD_MS: f64 = 220.0;
/// Eight at once.
const BURST_MS: f64 = 900.0;
/// An idle restored capsule, in MiB.
const IDLE_MB: f64 = 45.0;

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Key in bench.json.
    pub name: &'static str,
    /// What is asked for.
    pub aim: String,
    /// Measured median, in `unit`.
    pub value: Option<f64>,
    /// The 95th and 99th percentile.
    pub tail: Option<(f64, f64)>,
    /// The floor's name and median.
    pub floor: Option<(&'static str, f64)>,
    /// `ms` or `MB`.
    pub unit: &'static str,
    /// Whether it is met; `None` when nothing was measured.
    pub met: Option<Verdict>,
}

/// Whether an aim is met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// It is.
    Met,
    /// By how much it is missed.
    Missed(f64),
}

/// All lines, in the order of the issue.
pub fn rows(report: &Report) -> Vec<Row> {
    let floors = &report.floors;
    let cell = report.context_cell.map(|summary| summary.p50_ms);
    let warm_limit = cell.map_or(WARM_MS, |cell| WARM_MS.min(cell * WARM_TO_CELL));
    let warm_aim = match cell {
        Some(cell) => format!("{WARM_MS} ms, {WARM_TO_CELL} × cell = {:.1} ms", cell * WARM_TO_CELL),
        None => format!("{WARM_MS} ms, {WARM_TO_CELL} × cell"),
    };
    let floor = |name, floor: Option<crate::stats::Summary>| floor.map(|summary| (name, summary.p50_ms));
    let timed = |name, aim, limit, summary: Option<crate::stats::Summary>, floor| Row {
        name,
        aim,
        value: summary.map(|summary| summary.p50_ms),
        tail: summary.map(|summary| (summary.p95_ms, summary.p99_ms)),
        floor,
        unit: "ms",
        met: summary.map(|summary| verdict(summary.p50_ms, limit)),
    };
    let plain = |limit: f64| format!("{limit} ms");
    let shell = floor("guest_shell", floors.guest_shell);
    let bare = floor("bare_restore", floors.bare_restore);
    let idle = report.idle_private_mb.map(|idle| idle.value);
    vec![
        timed("context_cell", plain(CELL_MS), CELL_MS, report.context_cell, shell),
        timed(
            "oneshot_warm",
            warm_aim,
            warm_limit,
            report.oneshot_warm,
            cell.map(|cell| ("context_cell", cell)),
        ),
        timed("oneshot_restored", plain(RESTORED_MS), RESTORED_MS, report.oneshot_restored, bare),
        timed("oneshot_restored_cold", plain(COLD_MS), COLD_MS, report.oneshot_restored_cold, bare),
        timed("burst8_restored", plain(BURST_MS), BURST_MS, report.burst8_restored, None),
        Row {
            name: "idle_private_mb",
            aim: format!("{IDLE_MB} MB"),
            value: idle,
            tail: None,
            floor: None,
            unit: "MB",
            met: idle.map(|value| verdict(value, IDLE_MB)),
        },
    ]
}

fn verdict(value: f64, limit: f64) -> Verdict {
    if value <= limit { Verdict::Met } else { Verdict::Missed(value - limit) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Summary;

    fn summary(p50_ms: f64) -> Option<Summary> {
        Some(Summary { p50_ms, p95_ms: p50_ms, p99_ms: p50_ms, n: 50 })
    }

    #[test]
    fn a_hit_is_held_to_both_of_its_limits() {
        let report = Report { context_cell: summary(8.0), oneshot_warm: summary(22.0), ..Report::default() };
        let rows = rows(&report);
        assert_eq!(rows[0].met, Some(Verdict::Met));
        assert_eq!(rows[1].met, Some(Verdict::Missed(2.0)));
        let report = Report { context_cell: summary(12.0), oneshot_warm: summary(26.0), ..Report::default() };
        assert_eq!(super::rows(&report)[1].met, Some(Verdict::Missed(1.0)));
    }

    #[test]
    fn what_was_not_measured_has_no_verdict() {
        assert!(rows(&Report::default()).iter().all(|row| row.met.is_none() && row.value.is_none()));
    }
}
