//! What an agent's ledger says about its capsules' processes.

use std::{fs, path::Path};

/// The processes of the capsule `id` of the data folder `dir`: VMM, then pager. Empty when it has none.
pub fn processes(dir: &Path, id: &str) -> Vec<i32> {
    let vmms = fs::read_dir(dir.join("agent/vmms")).into_iter().flatten();
    vmms.flatten()
        .filter_map(|entry| fs::read(entry.path().join("record.json")).ok())
        .filter_map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .find(|record| record.get("capsule").and_then(|capsule| capsule.as_str()) == Some(id))
        .and_then(|record| record.get("processes").cloned())
        .and_then(|processes| processes.as_array().cloned())
        .unwrap_or_default()
        .iter()
        .filter_map(|process| process.get("pid").and_then(|pid| pid.as_i64()))
        .map(|pid| pid as i32)
        .collect()
}

/// Whether a process runs. An orphan that has ended stays in the table until init asks for it.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|name| !stat[name + 1..].trim_start().starts_with('Z'))
}
