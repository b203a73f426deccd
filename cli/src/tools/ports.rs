//! `hearth ports`: where a capsule's services are.

use super::{args::PortsArgs, table};
use crate::client::Client;
use reqwest::Method;
use serde_json::{Value, json};
use std::{collections::BTreeSet, process::ExitCode};

/// Shows addresses, and opens or closes ports first.
pub async fn ports(args: PortsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/capsules/{}", args.capsule);
    let mut capsule = client.get(&path).await?;
    let public = |capsule: &Value| -> BTreeSet<u16> {
        let ports = capsule.get("public_ports").and_then(Value::as_array).into_iter().flatten();
        ports.filter_map(|port| port.as_u64()?.try_into().ok()).collect()
    };
    let mut open = public(&capsule);
    if !args.open.is_empty() || !args.close.is_empty() {
        open.extend(&args.open);
        open.retain(|port| !args.close.contains(port));
        capsule = client.call(Method::PATCH, &path, Some(&json!({ "public_ports": open }))).await?;
        open = public(&capsule);
    }
    let token = client.get(&path).await?.get("access_token").and_then(Value::as_str).unwrap_or("").to_owned();
    let shown: BTreeSet<u16> = args.ports.iter().copied().chain(open.iter().copied()).collect();
    let rows: Vec<(u16, bool, String, String)> = shown
        .into_iter()
        .map(|port| {
            let by_path = format!("{}{path}/ports/{port}/", client.url());
            (port, open.contains(&port), by_path, client.by_host(&args.capsule, port))
        })
        .collect();
    if args.client.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(port, public, path, host)| json!({ "port": port, "public": public, "url": path, "host_url": host }))
            .collect();
        println!("{:#}", json!({ "ports": rows, "access_token": token }));
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(port, public, path, host)| {
            vec![port.to_string(), if public { "everybody" } else { "key or token" }.to_owned(), path, host]
        })
        .collect();
    table::print(&["PORT", "OPEN TO", "BY PATH", "BY HOST NAME"], &cells);
    println!("access token: {}", if token.is_empty() { "-" } else { &token });
    Ok(ExitCode::SUCCESS)
}
