//! `hearth exec`: a command in a capsule, with its output as it comes and its exit status as ours.

use super::{
    args::ExecArgs,
    socket::{self, Heard, Receiver, Sender},
};
use crate::client::Client;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::{io::Write, process::ExitCode};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

const INPUT_BYTES: usize = 64 << 10;

/// Runs the command, or only starts it.
pub async fn exec(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let mut order = order(&args);
    let capsule = format!("/v1/capsules/{}", args.capsule);
    if args.background {
        order["background"] = true.into();
        let started = client.post(&format!("{capsule}/exec"), &order).await?;
        if args.client.json {
            println!("{started:#}");
        } else {
            println!("{} {}", started["pid"], started["tag"].as_str().unwrap_or_default());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (mut sender, receiver) = socket::open(&client, &format!("{capsule}/exec/stream")).await?;
    order["type"] = "start".into();
    order["keep_stdin"] = args.stdin.into();
    sender.json(&order).await?;
    follow(sender, receiver, args.stdin, args.client.json).await
}

fn order(args: &ExecArgs) -> Value {
    let (program, rest) =
        args.command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut order = json!({ "cmd": program, "args": rest });
    for (name, value) in [("cwd", &args.cwd), ("user", &args.user), ("tag", &args.tag)] {
        if let Some(value) = value {
            order[name] = value.as_str().into();
        }
    }
    for (name, value) in &args.env {
        order["env"][name] = value.as_str().into();
    }
    order
}

/// Shows a process's output until it ends. Ctrl-C is the process's to handle; twice, it is killed.
pub async fn follow(
    mut sender: Sender,
    mut receiver: Receiver,
    stdin: bool,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut interrupts = signal(SignalKind::interrupt()).context("Ctrl-C")?;
    let mut interrupted = false;
    let mut input = stdin.then(tokio::io::stdin);
    let mut buffer = vec![0; INPUT_BYTES];
    let mut text = Text::default();
    loop {
        tokio::select! {
            heard = receiver.next() => match heard? {
                Heard::Json(message) => {
                    if as_json {
                        println!("{message}");
                    }
                    match message["type"].as_str().unwrap_or_default() {
                        "stdout" if !as_json => print_to(&mut std::io::stdout(), &message)?,
                        "stderr" if !as_json => print_to(&mut std::io::stderr(), &message)?,
                        "exit" => return Ok(ExitCode::from(socket::exit_status(&message))),
                        "error" => bail!("{}", message["data"].as_str().unwrap_or("the command failed")),
                        _ => {}
                    }
                }
                Heard::Bytes(_) => {}
                Heard::End => bail!("the stream ended before the command did"),
            },
            _ = interrupts.recv() => {
                let message = if interrupted {
                    json!({ "type": "stop" })
                } else {
                    json!({ "type": "signal", "signal": "SIGINT" })
                };
                interrupted = true;
                sender.json(&message).await?;
            }
            read = read(&mut input, &mut buffer) => match read? {
                0 => {
                    input = None;
                    sender.json(&json!({ "type": "stdin", "data": text.finish(), "close": true })).await?;
                }
                length => {
                    let data = text.push(&buffer[..length]);
                    sender.json(&json!({ "type": "stdin", "data": data })).await?;
                }
            },
        }
    }
}

/// Standard input, or nothing for ever.
async fn read(input: &mut Option<tokio::io::Stdin>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match input {
        Some(input) => input.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// JSON takes text only, so a character that is cut in two waits for its rest.
#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.0) {
            Ok(text) => text.len(),
            // What is no text at all goes too, as far as it can.
            Err(error) => error.error_len().map_or(error.valid_up_to(), |_| self.0.len()),
        };
        let rest = self.0.split_off(whole);
        String::from_utf8_lossy(&std::mem::replace(&mut self.0, rest)).into_owned()
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

fn print_to(to: &mut impl Write, message: &Value) -> std::io::Result<()> {
    to.write_all(message["data"].as_str().unwrap_or_default().as_bytes())?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ExecArgs,
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let args = Command::parse_from(["exec", "-eA=1", "--cwd=/x", "cl-1", "ls", "-l", "--json"]).args;
        let expected = json!({ "cmd": "ls", "args": ["-l", "--json"], "cwd": "/x", "env": { "A": "1" } });
        assert_eq!(order(&args), expected);
    }

    #[test]
    fn characters_are_not_cut_in_two() {
        let mut text = Text::default();
        assert_eq!(text.push("é".as_bytes().split_at(1).0), "");
        assert_eq!(text.push("é".as_bytes().split_at(1).1), "é");
        assert_eq!(text.push(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(text.push(b"\xf0\x9f"), "");
        assert_eq!(text.finish(), "\u{fffd}");
    }
}
