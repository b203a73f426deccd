//! `hearth ps`: the capsules there are.

use super::{args::PsArgs, table};
use crate::client::Client;
use serde_json::Value;
use std::process::ExitCode;

/// Lists capsules, page by page.
pub async fn ps(args: PsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let mut query: Vec<(String, String)> = Vec::new();
    if let Some(status) = &args.status {
        query.push(("status".to_owned(), status.clone()));
    }
    for (key, value) in &args.metadata {
        query.push((format!("metadata.{key}"), value.clone()));
    }
    let capsules = client.pages("/v1/capsules", &query).await?;
    if args.client.json {
        println!("{:#}", Value::from(capsules));
    } else if args.quiet {
        for capsule in &capsules {
            println!("{}", table::text(capsule, "id"));
        }
    } else {
        let names = ["id", "status", "name", "template", "vcpus", "memory_mb", "timeout_sec", "created_at"];
        let rows: Vec<Vec<String>> = capsules
            .iter()
            .map(|capsule| names.iter().map(|name| table::text(capsule, name)).collect())
            .collect();
        let heads = ["CAPSULE", "STATUS", "NAME", "TEMPLATE", "VCPUS", "MIB", "TIMEOUT", "CREATED"];
        table::print(&heads, &rows);
    }
    Ok(ExitCode::SUCCESS)
}
