//! What a run found: `bench.json`, and the tables.

use crate::{
    aims::{self, Verdict},
    prometheus::Stage,
    stats::Summary,
};
use anyhow::Context;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Measurements whose steps are shown, and the heads of their columns.
const COLUMNS: [(&str, &str); 6] = [
    ("context_cell", "cell"),
    ("oneshot_warm", "warm"),
    ("oneshot_restored", "restored"),
    ("oneshot_restored_cold", "cold"),
    ("burst8_restored", "burst8"),
    ("idle_private_mb", "idle"),
];

/// Everything measured. What failed is absent and named in `failed`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// A cell in a live context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_cell: Option<Summary>,
    /// One-shot, pool hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oneshot_warm: Option<Summary>,
    /// One-shot, restored, image hot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oneshot_restored: Option<Summary>,
    /// One-shot, restored, image evicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oneshot_restored_cold: Option<Summary>,
    /// Wall time of eight one-shots at once, restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst8_restored: Option<Summary>,
    /// Private memory of an idle restored capsule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_private_mb: Option<Memory>,
    /// What the paths are compared with.
    pub floors: Floors,
    /// Where it was measured.
    pub host: HostFacts,
    /// Means of the steps by measurement, from `/metrics`.
    pub stages: BTreeMap<&'static str, BTreeMap<String, Stage>>,
    /// Measurements that failed, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<&'static str, String>,
}

/// A median of memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// MiB.
    pub value: f64,
    /// Capsules measured.
    pub n: usize,
}

/// The floors.
#[derive(Debug, Default, Serialize)]
pub struct Floors {
    /// `GET /health`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_ready: Option<Summary>,
    /// IPython's shell in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_shell: Option<Summary>,
    /// QEMU's restore alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_restore: Option<Summary>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
pub struct HostFacts {
    /// Logical CPUs.
    pub cpus: u32,
    /// 1, 5 and 15 minute load averages before anything was started.
    pub load_average_at_start: String,
    /// Engine and version.
    pub engine: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
}

impl Report {
    /// Writes the JSON, making its folder.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, format!("{text}\n")).with_context(|| path.display().to_string())
    }

    /// Both tables.
    pub fn tables(&self) -> String {
        let mut text = self.paths();
        text.push_str(&self.stage_table());
        text
    }

    /// Aim, measured, floor.
    fn paths(&self) -> String {
        let host = &self.host;
        let mut lines = vec![
            String::new(),
            format!(
                "{} ({}), {} CPUs, load before: {}",
                host.engine, host.accelerator, host.cpus, host.load_average_at_start
            ),
            format!(
                "{:22} {:>29} {:>10} {:>9} {:>9}  {:25} met",
                "path", "aim: at most", "p50", "p95", "p99", "floor (p50)"
            ),
        ];
        for row in aims::rows(self) {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            let floor = row.floor.map_or(String::new(), |(name, value)| format!("{name} {value:.1} ms"));
            let met = match row.met {
                None => "not measured".to_owned(),
                Some(Verdict::Met) => "yes".to_owned(),
                Some(Verdict::Missed(by)) => format!("NO, by {by:.1} {}", row.unit),
            };
            lines.push(format!(
                "{:22} {:>29} {:>7} {} {:>9} {:>9}  {floor:25} {met}",
                row.name,
                row.aim,
                number(row.value),
                row.unit,
                number(row.tail.map(|tail| tail.0)),
                number(row.tail.map(|tail| tail.1)),
            ));
        }
        if let Some(http) = self.floors.http_ready {
            lines.push(format!("HTTP alone (GET /health): {:.2} ms", http.p50_ms));
        }
        for (name, reason) in &self.failed {
            lines.push(format!("FAILED {name}: {reason}"));
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// Mean of each step, one column per measurement: what the chain did while it was under way, refills of the pool
    /// included (`restore_parked`).
    fn stage_table(&self) -> String {
        let columns = COLUMNS.iter().filter_map(|(name, head)| Some((head, self.stages.get(name)?)));
        let columns: Vec<_> = columns.collect();
        let steps: BTreeSet<&String> = columns.iter().flat_map(|(_, stages)| stages.keys()).collect();
        if steps.is_empty() {
            return String::new();
        }
        let heads = columns.iter().map(|(head, _)| format!(" {head:>9}")).collect::<String>();
        let mut text = format!("\n{:24}{heads}\n", "mean of each step, ms");
        for step in steps {
            let means = columns.iter().map(|(_, stages)| {
                let mean = stages.get(step).map_or("-".to_owned(), |stage| format!("{:.1}", stage.mean_ms));
                format!(" {mean:>9}")
            });
            text.push_str(&format!("{step:24}{}\n", means.collect::<String>()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_issues_shape() {
        let summary = Some(Summary { p50_ms: 1.0, p95_ms: 2.0, p99_ms: 3.0, n: 50 });
        let mut report = Report { context_cell: summary, burst8_restored: summary, ..Report::default() };
        report.idle_private_mb = Some(Memory { value: 30.0, n: 5 });
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["context_cell"], serde_json::json!({"p50_ms":1.0,"p95_ms":2.0,"p99_ms":3.0,"n":50}));
        assert_eq!(json["burst8_restored"]["p50_ms"], 1.0);
        assert_eq!(json["idle_private_mb"]["value"], 30.0);
        assert!(json["floors"].is_object() && json.get("oneshot_warm").is_none());
    }

    #[test]
    fn a_missed_aim_says_by_how_much() {
        let summary = Some(Summary { p50_ms: 15.5, p95_ms: 20.0, p99_ms: 30.0, n: 50 });
        let text = Report { context_cell: summary, ..Report::default() }.tables();
        assert!(text.contains("NO, by 3.5 ms"), "{text}");
        assert!(text.contains("not measured"), "{text}");
    }
}
