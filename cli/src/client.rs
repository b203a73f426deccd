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

    /// Where the service is, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The API key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where a port of a capsule is by host name; resolvers know names below `localhost`, and a wildcard for others.
    pub fn by_host(&self, capsule: &str, port: u16) -> String {
        let host = self.url.split_once("://").map_or(self.url.as_str(), |(_, host)| host);
        let host =
            host.strip_prefix("127.0.0.1").map_or_else(|| host.to_owned(), |rest| format!("localhost{rest}"));
        format!("http://{port}-{capsule}.{host}/")
    }

    /// All pages of a list.
    pub async fn pages(&self, path: &str, query: &[(String, String)]) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let mut request = self.request(reqwest::Method::GET, path).query(query).timeout(SLACK);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let response = self.sent(request).await?;
            let next = response.headers().get("x-next-cursor").and_then(|next| next.to_str().ok());
            cursor = next.map(str::to_owned);
            match success(response).await? {
                Value::Array(page) => all.extend(page),
                other => all.push(other),
            }
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// POST of a stream of bytes, for as long as it takes.
    pub async fn upload(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: reqwest::Body,
    ) -> anyhow::Result<Value> {
        let request = self.request(reqwest::Method::POST, path).query(query).body(body);
        success(self.sent(request).await?).await
    }

    /// POST whose answer is a stream of bytes.
    pub async fn download(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        let response = self.sent(self.request(reqwest::Method::POST, path).json(body)).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        match success(response).await {
            Ok(_) => bail!("an answer that is neither a success nor an error"),
            Err(error) => Err(error),
        }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).header("X-API-Key", &self.key)
    }

    async fn sent(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        request.send().await.with_context(|| format!("no Hearth at {} (hearth up starts one)", self.url))
    }

    /// Sends a request and returns the JSON of a success.
    pub async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut request = self.request(method, path);
        let mut limit = SLACK;
        if let Some(body) = body {
            if let Some(timeout_ms) = body.get("timeout_ms").and_then(Value::as_u64) {
                limit += Duration::from_millis(timeout_ms);
            }
            request = request.json(body);
        }
        success(self.sent(request.timeout(limit)).await?).await
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

/// The JSON of a success, or the error that the service tells: its message, and its code in brackets.
async fn success(response: reqwest::Response) -> anyhow::Result<Value> {
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
    let part = |name: &str| error.and_then(|error| error.get(name)).and_then(Value::as_str).unwrap_or("?");
    bail!("{} ({})", part("message"), part("code"))
}
