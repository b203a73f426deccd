//! The floor of a cell: IPython's own shell in the guest, called in a loop by a program in a capsule.

use crate::{bench::Bench, stats::Summary};
use anyhow::{Context, bail};
use serde_json::{Value, json};

const PROGRAM: &str = include_str!("guest_shell.py");
/// Importing IPython takes some seconds under software emulation.
const TIMEOUT_SEC: u64 = 150;

/// Runs the program in a capsule of its own.
pub async fn measure(bench: &Bench) -> anyhow::Result<Summary> {
    let _phase = bench.progress.phase("floor: guest shell", 0);
    let capsule = bench.client.post("/v1/capsules", &json!({})).await?.body;
    let id = capsule.get("id").and_then(Value::as_str).context("the new capsule's id")?;
    let command = json!({ "cmd": "python3", "args": ["-c", PROGRAM], "timeout_sec": TIMEOUT_SEC });
    let answer = bench.client.post(&format!("/v1/capsules/{id}/exec"), &command).await?.body;
    bench.client.delete(&format!("/v1/capsules/{id}")).await?;
    let stdout = answer.get("stdout").and_then(Value::as_str).unwrap_or_default();
    let line = stdout.lines().last().unwrap_or_default();
    match serde_json::from_str(line) {
        Ok(summary) if answer.get("exit_code").and_then(Value::as_i64) == Some(0) => Ok(summary),
        _ => bail!("the program in the guest gave {answer}"),
    }
}
