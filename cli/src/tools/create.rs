//! `hearth create`: a capsule that stays.

use super::{
    args::{CreateArgs, TimeoutAction},
    table,
};
use crate::client::Client;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Creates a capsule and prints its id.
pub async fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let capsule = Client::new(&args.client)?.post("/v1/capsules", &body(&args)).await?;
    if args.client.json {
        println!("{capsule:#}");
    } else {
        println!("{}", table::text(&capsule, "id"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Only what was asked for: the rest is the service's to choose.
fn body(args: &CreateArgs) -> Value {
    let mut body = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    let pairs = |pairs: &[(String, String)]| {
        let map: Map<String, Value> =
            pairs.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        (!map.is_empty()).then_some(Value::Object(map))
    };
    set("template", args.template.clone().map(Value::from));
    set("name", args.name.clone().map(Value::from));
    set("vcpus", args.vcpus.map(Value::from));
    set("memory_mb", args.memory_mb.map(Value::from));
    set("disk_mb", args.disk_mb.map(Value::from));
    set("timeout_sec", args.timeout.map(Value::from));
    set(
        "timeout_action",
        args.timeout_action.map(|action| match action {
            TimeoutAction::Pause => "pause".into(),
            TimeoutAction::Destroy => "destroy".into(),
        }),
    );
    set("auto_resume", args.auto_resume.then_some(Value::Bool(true)));
    set("network", args.network.as_deref().map(network));
    set("env", pairs(&args.env));
    set("metadata", pairs(&args.metadata));
    set("public_ports", (!args.public_ports.is_empty()).then(|| json!(args.public_ports)));
    Value::Object(body)
}

fn network(text: &str) -> Value {
    match text {
        "none" | "internet" => text.into(),
        ranges => json!({ "allow": ranges.split(',').map(str::trim).collect::<Vec<_>>() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CreateArgs,
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let of = |args: &[&str]| body(&Command::parse_from(["create"].iter().chain(args)).args);
        assert_eq!(of(&[]), json!({}));
        let all = of(&["--timeout=60", "--timeout-action=destroy", "-eA=1", "--network=10.0.0.0/8,1.2.3.4"]);
        let expected = json!({
            "timeout_sec": 60, "timeout_action": "destroy", "env": { "A": "1" },
            "network": { "allow": ["10.0.0.0/8", "1.2.3.4"] },
        });
        assert_eq!(all, expected);
    }
}
