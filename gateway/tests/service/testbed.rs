//! A gateway of its own for each test: fresh database, fresh data folder, a port of its own, no pool-manager.

use crate::postgres;
use clap::Parser;
use hearth_gateway::{Config, Gateway, GatewayError, Running};
use hearth_service::shutdown::Shutdown;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;

pub struct Testbed {
    /// The URL of the database that the gateway was first started with.
    pub database: String,
    pub config: Config,
    pub running: Running,
    pub shutdown: Shutdown,
    pub client: reqwest::Client,
    /// Held for its lifetime.
    _folder: TempDir,
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    config: Config,
}

impl Testbed {
    /// A gateway with the default settings.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A gateway with more arguments.
    pub async fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = postgres::database().await;
        let mut config = config(&url, &folder.path().join("data"), args);
        config.pool_manager = Some(format!("unix:{}/absent.sock", folder.path().display()));
        let (running, shutdown) = start(&config).await.expect("a gateway");
        Self { database: url, config, running, shutdown, client: reqwest::Client::new(), _folder: folder }
    }

    /// Stops the gateway in order, and starts another one with the same settings.
    pub async fn restart(&mut self) {
        self.stop().await;
        let (running, shutdown) = start(&self.config).await.expect("a gateway");
        (self.running, self.shutdown) = (running, shutdown);
    }

    pub async fn stop(&self) {
        assert!(self.shutdown.finish(Duration::from_secs(10)).await, "tasks are still running");
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.address())
    }

    pub fn key(&self) -> String {
        std::fs::read_to_string(self.running.key_file()).expect("the key file").trim().to_owned()
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).header("x-api-key", self.key())
    }

    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(self.url(path)).header("x-api-key", self.key()).body(body)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

pub fn config(url: &str, data_dir: &std::path::Path, args: &[&str]) -> Config {
    let data_dir: PathBuf = data_dir.to_owned();
    let base = ["gateway", "--listen=127.0.0.1:0", "--database-url", url, "--dir"];
    let all = base.iter().map(|arg| arg.to_string()).chain([data_dir.display().to_string()]);
    Command::parse_from(all.chain(args.iter().map(|arg| arg.to_string()))).config
}

pub async fn start(config: &Config) -> Result<(Running, Shutdown), GatewayError> {
    let shutdown = Shutdown::new();
    let running = Gateway::start(config.clone(), shutdown.clone()).await?;
    Ok((running, shutdown))
}

/// What every error must be: status, JSON, code and message in the one shape.
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

pub async fn refusal(request: RequestBuilder) -> Refusal {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let id = header(&response, "x-request-id");
    assert!(id.is_some_and(|id| !id.is_empty()), "no x-request-id");
    let body: Value = response.json().await.expect("JSON");
    let text = |name: &str| body["error"][name].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
    Refusal { status, code: text("code"), message: text("message") }
}

pub fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned())
}

/// Asks until the refusal has this code.
pub async fn until(bed: &Testbed, code: &str) -> Refusal {
    let wait = async {
        loop {
            let refused = refusal(bed.get("/v1/capsules")).await;
            if refused.code == code {
                return refused;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the code to come")
}
