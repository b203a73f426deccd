//! A client of the HTTP API for the tools.

use crate::{args::ClientArgs, keys};
use anyhow::{Context, bail};
use serde_json::Value;
use std::time::Duration;

/// Beside the run's own limit: restores, transfers, a queue.
const SLACK: Duration = Duration::from_secs(60);

/// A connection to a Hearth.
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Client {
    /// A client by the command line.
    pub fn new(args: &ClientArgs) -> anyhow::Result<Self> {
        let key = match &args.api_key {
            Some(key) => key.clone(),
            None => {
                keys::first(&args.dir).context("no API key: set HEARTH_API_KEY, or use the data folder's")?
            }
        };
        Self::with_key(&args.url, key)
    }

    /// A client with a key.
    pub fn with_key(url: &str, key: String) -> anyhow::Result<Self> {
        // Hearth is on this machine or behind its own address: a proxy for the internet is not meant for it.
        let http = reqwest::Client::builder().no_proxy().build().context("the HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key })
    }

    /// Sends a request and returns the JSON of a success.
    pub async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut request =
            self.http.request(method, format!("{}{path}", self.url)).header("X-API-Key", &self.key);
        let mut limit = SLACK;
        if let Some(body) = body {
            if let Some(timeout_ms) = body.get("timeout_ms").and_then(Value::as_u64) {
                limit += Duration::from_millis(timeout_ms);
            }
            request = request.json(body);
        }
        let response = request
            .timeout(limit)
            .send()
            .await
            .with_context(|| format!("no Hearth at {} (hearth up starts one)", self.url))?;
        let status = response.status();
        let text = response.text().await.context("reading the answer")?;
        let value: Value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("the answer is not JSON: {text}"))?
        };
        if status.is_success() {
            return Ok(value);
        }
        let error = value.get("error");
        let part =
            |name: &str| error.and_then(|error| error.get(name)).and_then(Value::as_str).unwrap_or("?");
        bail!("{} ({})", part("message"), part("code"))
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(reqwest::Method::POST, path, Some(body)).await
    }

    /// GET.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(reqwest::Method::GET, path, None).await
    }
}
