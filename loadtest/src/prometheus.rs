//! (pure) Reading the text of `/metrics`: single values, and the means of histograms between two readings.
//!
//! The text form: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4.

use serde::Serialize;
use std::collections::BTreeMap;

/// Histograms whose steps are shown, and the short name of each.
const HISTOGRAMS: [(&str, &str); 2] =
    [("hearth_agent_step_seconds", "agent"), ("hearth_gateway_execute_stage_seconds", "gateway")];

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq)]
struct Line {
    name: String,
    labels: Vec<String>,
    value: f64,
}

/// A step of the chain, over all runs between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stage {
    /// Mean time in milliseconds.
    pub mean_ms: f64,
    /// How often it was done.
    pub count: u64,
}

impl Metrics {
    /// Reads the text; lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect();
        Self { lines }
    }

    /// The sum of a metric over all its labels; `None` when it was never recorded.
    pub fn value(&self, name: &str) -> Option<f64> {
        let mut values = self.lines.iter().filter(|line| line.name == name).map(|line| line.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// The mean of each step since an earlier reading, by name: `agent load`, `gateway run warm`.
    pub fn stages_since(&self, before: &Self) -> BTreeMap<String, Stage> {
        let (now, then) = (self.sums(), before.sums());
        now.into_iter()
            .filter_map(|(name, (seconds, count))| {
                let (seconds_then, count_then) = then.get(&name).copied().unwrap_or_default();
                let count = count - count_then;
                let mean_ms = (seconds - seconds_then) / count * 1e6;
                (count >= 1.0).then(|| (name, Stage { mean_ms: mean_ms.round() / 1e3, count: count as u64 }))
            })
            .collect()
    }

    /// Seconds and count of each step.
    fn sums(&self) -> BTreeMap<String, (f64, f64)> {
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for line in &self.lines {
            let part = HISTOGRAMS
                .iter()
                .find_map(|(metric, short)| line.name.strip_prefix(metric).map(|suffix| (*short, suffix)));
            let Some((short, suffix)) = part else { continue };
            let name = std::iter::once(short).chain(line.labels.iter().map(String::as_str));
            let name = name.collect::<Vec<_>>().join(" ");
            match suffix {
                "_sum" => sums.entry(name).or_default().0 += line.value,
                "_count" => sums.entry(name).or_default().1 += line.value,
                _ => {}
            }
        }
        sums
    }
}

/// `name{label="value",…} number`. Our labels hold no commas, braces or quotes.
fn line(text: &str) -> Option<Line> {
    let (series, value) = text.trim().rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.trim_end_matches('}')),
        None => (series, ""),
    };
    // A run has one engine.
    let labels =
        labels.split(',').filter_map(|label| label.split_once('=')).filter(|(name, _)| *name != "engine");
    // In the order of their names reversed: `stage` before `source`.
    let mut labels: Vec<(&str, &str)> = labels.collect();
    labels.sort_unstable_by(|one, other| other.cmp(one));
    let labels = labels.into_iter().map(|(_, value)| value.trim_matches('"').to_owned()).collect();
    Some(Line { name: name.to_owned(), labels, value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE hearth_agent_step_seconds histogram\n\
        hearth_agent_step_seconds_bucket{step=\"load\",le=\"+Inf\"} 2\n\
        hearth_agent_step_seconds_sum{step=\"load\"} 0.02\n\
        hearth_agent_step_seconds_count{step=\"load\"} 2\n\
        hearth_agent_parked_vmms 2\n";
    const AFTER: &str = "hearth_agent_step_seconds_sum{step=\"load\"} 0.05\n\
        hearth_agent_step_seconds_count{step=\"load\"} 5\n\
        hearth_gateway_execute_stage_seconds_sum{source=\"warm\",stage=\"take\"} 0.004\n\
        hearth_gateway_execute_stage_seconds_count{stage=\"take\",source=\"warm\"} 2\n\
        hearth_agent_restores_total{source=\"pool\"} 3\n\
        hearth_agent_restores_total{source=\"demand\"} 4\n";

    #[test]
    fn a_stage_is_the_mean_between_two_readings() {
        let stages = Metrics::parse(AFTER).stages_since(&Metrics::parse(BEFORE));
        assert_eq!(stages["agent load"], Stage { mean_ms: 10.0, count: 3 });
        assert_eq!(stages["gateway take warm"], Stage { mean_ms: 2.0, count: 2 });
        assert_eq!(stages.len(), 2);
    }

    #[test]
    fn a_step_that_did_not_happen_is_left_out() {
        let metrics = Metrics::parse(BEFORE);
        assert!(metrics.stages_since(&metrics).is_empty());
    }

    #[test]
    fn values_are_summed_over_labels_and_absent_ones_are_none() {
        assert_eq!(Metrics::parse(AFTER).value("hearth_agent_restores_total"), Some(7.0));
        assert_eq!(Metrics::parse(BEFORE).value("hearth_agent_parked_vmms"), Some(2.0));
        assert_eq!(Metrics::parse("").value("hearth_agent_parked_vmms"), None);
    }
}
