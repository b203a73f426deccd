//! `hearth shell`: a terminal in a capsule.
//!
//! The terminal here is put into raw mode, so that every key reaches the program there, and is put back at the end,
//! whatever the end is. Leaving by a lost connection does not end the shell: `hearth shell --tag` goes back to it.

use super::{
    args::ShellArgs,
    socket::{self, Heard},
};
use crate::client::Client;
use anyhow::{Context, bail};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode, size};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal, Read, Write},
    process::ExitCode,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

const INPUT_BYTES: usize = 16 << 10;
const INPUTS_MAX: usize = 16;

/// Raw mode for as long as it lives.
struct Raw;

impl Raw {
    fn begin() -> anyhow::Result<Self> {
        enable_raw_mode().context("the terminal cannot be put into raw mode")?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = disable_raw_mode();
    }
}

/// Opens a terminal, and returns with the program's exit status.
pub async fn shell(args: ShellArgs) -> anyhow::Result<ExitCode> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal; use hearth exec -i");
    }
    let client = Client::new(&args.client)?;
    let (mut sender, mut receiver) =
        socket::open(&client, &format!("/v1/capsules/{}/pty", args.capsule)).await?;
    sender.json(&order(&args, size().unwrap_or((80, 24)))).await?;
    let mut resized = signal(SignalKind::window_change()).context("window changes")?;
    let mut typed = typed();
    let raw = Raw::begin()?;
    let mut tag = String::new();
    let ended = loop {
        tokio::select! {
            heard = receiver.next() => match heard {
                Ok(Heard::Bytes(bytes)) => show(&bytes)?,
                Ok(Heard::Json(message)) => match message["type"].as_str().unwrap_or_default() {
                    "started" => {
                        message["tag"].as_str().unwrap_or_default().clone_into(&mut tag);
                        // A terminal that was left may have had another size.
                        sender.json(&resize()).await?;
                    }
                    "exit" => break Ok(socket::exit_status(&message)),
                    "ping" => sender.json(&json!({ "type": "pong" })).await?,
                    "error" if message["fatal"] == true => {
                        break Err(anyhow::anyhow!("{}", message["data"].as_str().unwrap_or("refused")));
                    }
                    _ => {}
                },
                Ok(Heard::End) => break Err(anyhow::anyhow!("the connection ended")),
                Err(error) => break Err(error),
            },
            bytes = typed.recv() => match bytes {
                Some(bytes) => sender.bytes(bytes).await?,
                None => break Err(anyhow::anyhow!("standard input ended")),
            },
            _ = resized.recv() => sender.json(&resize()).await?,
        }
    };
    drop(raw);
    match ended {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(error) if tag.is_empty() => Err(error),
        Err(error) => {
            Err(error.context(format!("the terminal goes on: hearth shell --tag {tag} {}", args.capsule)))
        }
    }
}

fn order(args: &ShellArgs, (cols, rows): (u16, u16)) -> Value {
    if let Some(tag) = &args.tag {
        return json!({ "type": "connect", "tag": tag, "encoding": "binary" });
    }
    let mut order = json!({ "type": "start", "cols": cols, "rows": rows, "encoding": "binary" });
    if let Some((program, rest)) = args.command.split_first() {
        order["cmd"] = program.as_str().into();
        order["args"] = rest.into();
    }
    for (name, value) in [("cwd", &args.cwd), ("user", &args.user)] {
        if let Some(value) = value {
            order[name] = value.as_str().into();
        }
    }
    if let Ok(term) = std::env::var("TERM") {
        order["env"]["TERM"] = term.into();
    }
    order
}

fn resize() -> Value {
    let (cols, rows) = size().unwrap_or((80, 24));
    json!({ "type": "resize", "cols": cols.max(1), "rows": rows.max(1) })
}

fn show(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What is typed. On a thread of its own, which the process's end also ends: reading a terminal cannot be cancelled.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUTS_MAX);
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT_BYTES];
        let mut stdin = std::io::stdin().lock();
        while let Ok(length) = stdin.read(&mut buffer) {
            if length == 0 || sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ShellArgs,
    }

    #[test]
    fn a_terminal_is_started_or_found_again() {
        let of = |args: &[&str]| order(&Command::parse_from(["shell"].iter().chain(args)).args, (100, 40));
        let started = of(&["--user=user", "cl-1", "htop", "-d", "5"]);
        assert_eq!(
            (&started["type"], &started["cols"], &started["cmd"]),
            (&"start".into(), &100.into(), &"htop".into())
        );
        assert_eq!((&started["args"], &started["user"]), (&json!(["-d", "5"]), &"user".into()));
        let found = of(&["--tag=pty-1", "cl-1"]);
        assert_eq!(found, json!({ "type": "connect", "tag": "pty-1", "encoding": "binary" }));
    }
}
