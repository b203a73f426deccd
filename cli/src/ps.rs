//! `hearth ps`: the capsules there are.

use crate::{args::PsArgs, client::Client};
use serde_json::Value;
use std::process::ExitCode;

/// Lists capsules.
pub async fn ps(args: PsArgs) -> anyhow::Result<ExitCode> {
    let capsules = Client::new(&args.client)?.get("/v1/capsules").await?;
    if args.client.json {
        println!("{capsules:#}");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:28}  {:10}  {:10}  {:>5}  {:>7}  CREATED",
        "CAPSULE", "STATUS", "TEMPLATE", "VCPUS", "MEMORY"
    );
    for capsule in capsules.as_array().into_iter().flatten() {
        let text = |name: &str| capsule.get(name).and_then(Value::as_str).unwrap_or("-");
        let number = |name: &str| capsule.get(name).and_then(Value::as_u64).unwrap_or(0);
        println!(
            "{:28}  {:10}  {:10}  {:>5}  {:>4}MiB  {}",
            text("id"),
            text("status"),
            text("template"),
            number("vcpus"),
            number("memory_mb"),
            text("created_at"),
        );
    }
    Ok(ExitCode::SUCCESS)
}
