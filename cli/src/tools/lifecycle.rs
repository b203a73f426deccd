//! `hearth pause`, `resume`, `rm`, `fork`, `rollback`.

use super::{
    args::{CapsulesArgs, ForkArgs, RollbackArgs},
    table,
};
use crate::client::Client;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Puts capsules on disk.
pub async fn pause(args: CapsulesArgs) -> anyhow::Result<ExitCode> {
    each(args, Method::POST, "/pause", "paused").await
}

/// Brings capsules back.
pub async fn resume(args: CapsulesArgs) -> anyhow::Result<ExitCode> {
    each(args, Method::POST, "/resume", "running").await
}

/// Destroys capsules.
pub async fn remove(args: CapsulesArgs) -> anyhow::Result<ExitCode> {
    each(args, Method::DELETE, "", "destroyed").await
}

/// One after the other; what fails does not keep the rest.
async fn each(args: CapsulesArgs, method: Method, path: &str, done: &str) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let (mut answers, mut failed) = (Vec::new(), false);
    for capsule in &args.capsules {
        match client.call(method.clone(), &format!("/v1/capsules/{capsule}{path}"), None).await {
            Ok(answer) if args.client.json => answers.push(answer),
            Ok(_) => println!("{capsule} {done}"),
            Err(error) => {
                failed = true;
                eprintln!("hearth: {capsule}: {error:#}");
            }
        }
    }
    if args.client.json {
        println!("{:#}", Value::from(answers));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Makes copies and prints their ids.
pub async fn fork(args: ForkArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/capsules/{}/fork", args.capsule);
    let answer = client.post(&path, &json!({ "count": args.count })).await?;
    if args.client.json {
        println!("{answer:#}");
    } else {
        for capsule in answer.get("capsules").and_then(Value::as_array).into_iter().flatten() {
            println!("{}", table::text(capsule, "id"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a capsule back to a snapshot.
pub async fn rollback(args: RollbackArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/capsules/{}/rollback", args.capsule);
    let answer = client.post(&path, &json!({ "snapshot": args.snapshot })).await?;
    if args.client.json {
        println!("{answer:#}");
    } else {
        println!("{} is what {} was", args.capsule, args.snapshot);
    }
    Ok(ExitCode::SUCCESS)
}
