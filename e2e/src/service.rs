//! A whole `hearth up` and a client of its public API.

use crate::process::{Hearth, until};
use anyhow::{Context, bail};
use hearth_proto::wire::pool::{
    GetStatusRequest, PoolState, SetPoolRequest, pool_manager_client::PoolManagerClient,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::transport::Channel;

/// The first start builds the template: half a minute under software emulation, more on a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(400);
const FILL_DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// A running service.
pub struct TestService {
    /// Its process.
    pub process: Hearth,
    /// Where the API is.
    pub url: String,
    /// A key.
    pub key: String,
    http: reqwest::Client,
    dir: PathBuf,
}

/// Status and JSON of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; null when empty.
    pub body: Value,
}

impl Answer {
    /// A text below `path` (a JSON pointer).
    pub fn text(&self, path: &str) -> &str {
        self.body.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }
}

impl TestService {
    /// Starts `hearth up` in `dir` and waits until it is ready. It ends its capsules when it stops, unless `env` says
    /// otherwise.
    pub async fn start(dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut all = vec![("HEARTH_LISTEN", "127.0.0.1:0"), ("HEARTH_ON_STOP", "destroy")];
        all.extend_from_slice(env);
        let mut process = Hearth::start(dir, &["up"], &all)?;
        let url = until(Duration::from_secs(90), "hearth up to print its URL", || {
            if process.has_ended() {
                bail!("hearth up ended:\n{}", process.log());
            }
            Ok(process
                .log()
                .lines()
                .find_map(|line| line.trim().strip_prefix("URL ").map(|url| url.trim().to_owned())))
        })?;
        let key = fs::read_to_string(dir.join("api-key")).context("the first key")?.trim().to_owned();
        let http = reqwest::Client::builder().no_proxy().build()?;
        let service = Self { process, url, key, http, dir: dir.to_owned() };
        service.ready().await?;
        Ok(service)
    }

    /// Waits for `/ready`.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.get("/ready").await?;
            if answer.status == 200 {
                return Ok(());
            }
            if READY_DEADLINE < start.elapsed() {
                bail!("not ready: {answer:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends a request with any body.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Vec<u8>,
    ) -> anyhow::Result<Answer> {
        let mut request = self
            .http
            .request(method.parse()?, format!("{}{path}", self.url))
            .timeout(Duration::from_secs(120));
        if let Some(key) = key {
            request = request.header("X-API-Key", key);
        }
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        };
        Ok(Answer { status, body })
    }

    /// GET with the key.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send("GET", path, Some(&self.key), Vec::new()).await
    }

    /// POST with the key.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send("POST", path, Some(&self.key), body.to_string().into_bytes()).await
    }

    /// DELETE with the key.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.send("DELETE", path, Some(&self.key), Vec::new()).await
    }

    /// `POST /v1/execute` of Python code; any status but 200 is an error.
    pub async fn execute(&self, code: &str) -> anyhow::Result<Answer> {
        let answer = self.post("/v1/execute", &json!({ "code": code })).await?;
        if answer.status != 200 {
            bail!("{answer:?}");
        }
        Ok(answer)
    }

    /// A new capsule's id.
    pub async fn create(&self) -> anyhow::Result<String> {
        let answer = self.post("/v1/capsules", &json!({})).await?;
        if answer.status != 201 {
            bail!("{answer:?}");
        }
        Ok(answer.text("/id").to_owned())
    }

    /// Waits until a file is there in a capsule: what the code in it makes says how far it is.
    pub async fn sees(&self, id: &str, path: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let body = json!({ "cmd": "test", "args": ["-e", path] });
        loop {
            let answer = self.post(&format!("/v1/capsules/{id}/exec"), &body).await?;
            if answer.body.pointer("/exit_code") == Some(&json!(0)) {
                return Ok(());
            }
            if FILL_DEADLINE < start.elapsed() {
                bail!("waited for {path} in {id}: {answer:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What it costs the host.
    pub fn footprint(&self) -> crate::leftovers::Footprint {
        crate::leftovers::Footprint::of(&self.dir)
    }

    /// A client of pool-manager.
    pub fn pools(&self) -> anyhow::Result<PoolManagerClient<Channel>> {
        let endpoint = hearth_service::socket::endpoint(&self.dir.join("pool.sock"));
        Ok(PoolManagerClient::new(hearth_service::socket::channel(&endpoint)?))
    }

    /// A client of the agent.
    pub fn agent(&self) -> anyhow::Result<hearth_proto::wire::agent::agent_client::AgentClient<Channel>> {
        let endpoint = hearth_service::socket::endpoint(&self.dir.join("agent/agent.sock"));
        Ok(hearth_proto::wire::agent::agent_client::AgentClient::new(hearth_service::socket::channel(
            &endpoint,
        )?))
    }

    /// Sets the pool's target.
    pub async fn set_pool(&self, target: u32) -> anyhow::Result<()> {
        self.pools()?.set_pool(SetPoolRequest { template: "code".to_owned(), target }).await?;
        Ok(())
    }

    /// Waits until the pool's state is as wanted.
    pub async fn pool(&self, what: &str, wanted: impl Fn(&PoolState) -> bool) -> anyhow::Result<PoolState> {
        let start = Instant::now();
        let mut pools = self.pools()?;
        loop {
            let status = pools.get_status(GetStatusRequest {}).await?.into_inner();
            if let Some(state) = status.pools.iter().find(|pool| pool.template == "code")
                && wanted(state)
            {
                return Ok(state.clone());
            }
            if FILL_DEADLINE < start.elapsed() {
                bail!("waited for {what}: {status:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lines of the log that say ERROR.
    pub fn errors(&self) -> Vec<String> {
        self.process.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
    }

    /// Stops it; nothing may be left and nothing may have gone wrong unnoticed.
    pub fn stop_clean(mut self) -> anyhow::Result<()> {
        self.process.stop()?;
        let left = crate::leftovers::of(&self.dir);
        if !left.is_empty() {
            bail!("left behind: {left:#?}");
        }
        let errors = self.errors();
        if !errors.is_empty() {
            bail!("errors in the log: {errors:#?}");
        }
        Ok(())
    }
}
