//! `hearth snapshot`: capsules' states under a name.

use super::{
    args::{SnapshotArgs, SnapshotCommand},
    table,
};
use crate::client::Client;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Creates, lists or deletes.
pub async fn snapshots(args: SnapshotArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let json = args.client.json;
    match args.command {
        SnapshotCommand::Create { capsule, name, overwrite } => {
            let mut body = json!({ "sandbox_id": capsule });
            if let Some(name) = name {
                body["name"] = name.into();
            }
            let query = if overwrite { "?overwrite=true" } else { "" };
            let made = client.post(&format!("/v1/snapshots{query}"), &body).await?;
            if json { println!("{made:#}") } else { println!("{}", table::text(&made, "name")) }
        }
        SnapshotCommand::Ls => {
            let all = client.get("/v1/snapshots").await?;
            if json {
                println!("{all:#}");
            } else {
                show(&all);
            }
        }
        SnapshotCommand::Rm { name } => {
            client.call(Method::DELETE, &format!("/v1/snapshots/{name}"), None).await?;
            if !json {
                println!("{name} deleted");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(all: &Value) {
    let names = ["name", "type", "vcpus", "memory_mb", "size_bytes", "sandbox_id", "created_at"];
    let rows: Vec<Vec<String>> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| names.iter().map(|name| table::text(one, name)).collect())
        .collect();
    table::print(&["NAME", "TYPE", "VCPUS", "MIB", "BYTES", "CAPSULE", "CREATED"], &rows);
}
