//! `hearth logs`: what a process wrote, or what the guest said on its console.

use super::{args::LogsArgs, exec, socket};
use crate::client::Client;
use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use std::{io::Write, process::ExitCode};

/// Shows it, or follows it.
pub async fn logs(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let capsule = format!("/v1/capsules/{}", args.capsule);
    let Some(process) = &args.process else {
        let answer = client.get(&format!("{capsule}/logs")).await?;
        if args.client.json {
            println!("{answer:#}");
        } else {
            print!("{}", answer["console"].as_str().unwrap_or_default());
        }
        return Ok(ExitCode::SUCCESS);
    };
    let path = format!("{capsule}/processes/{process}");
    if args.follow {
        let (sender, receiver) = socket::open(&client, &format!("{path}/stream")).await?;
        return exec::follow(sender, receiver, false, args.client.json).await;
    }
    let answer = client.get(&format!("{path}/logs")).await?;
    if args.client.json {
        println!("{answer:#}");
    } else {
        let base64 = answer["encoding"] == "base64";
        std::io::stdout().write_all(&bytes(&answer["stdout"], base64)?)?;
        std::io::stderr().write_all(&bytes(&answer["stderr"], base64)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bytes(value: &Value, base64: bool) -> anyhow::Result<Vec<u8>> {
    let text = value.as_str().unwrap_or_default();
    if base64 { BASE64_STANDARD.decode(text).context("output that is not base64") } else { Ok(text.into()) }
}
