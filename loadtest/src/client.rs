//! HTTP as a user speaks it: one kept connection, times taken around the exchange. Refuses any address but loopback.

use crate::prometheus::Metrics;
use anyhow::{Context, bail};
use reqwest::{Method, Request, Url};
use serde_json::Value;
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Longer than the slowest thing measured: a command of two minutes in a capsule.
const DEADLINE: Duration = Duration::from_secs(180);

/// A connection to the measured Hearth. Calls that run at the same time take connections of their own.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    key: String,
}

/// An answer and how long it took, from sending the request to the last byte of the body.
#[derive(Debug)]
pub struct Timed {
    /// The JSON body.
    pub body: Value,
    /// The time.
    pub took: Duration,
}

impl Client {
    /// A client; the URL's host must be a loopback address.
    pub fn new(url: &str, key: String) -> anyhow::Result<Self> {
        let url: Url = url.parse().with_context(|| format!("the URL `{url}`"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
            bail!("`{url}` is not a loopback address: only a Hearth on this machine is measured");
        }
        let http =
            reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().context("the HTTP client")?;
        Ok(Self { http, url, key })
    }

    /// Sends JSON and returns the JSON of a success, timed.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Timed> {
        let request = self.request(Method::POST, path)?.json(body).build()?;
        self.timed(request).await
    }

    /// Gets JSON, timed.
    pub async fn get(&self, path: &str) -> anyhow::Result<Timed> {
        let request = self.request(Method::GET, path)?.build()?;
        self.timed(request).await
    }

    /// Deletes; the answer has no body that matters.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.request(Method::DELETE, path)?.send().await?.error_for_status()?;
        Ok(())
    }

    /// Reads `/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = self.request(Method::GET, "/metrics")?.send().await?.error_for_status()?;
        Ok(Metrics::parse(&answer.text().await?))
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<reqwest::RequestBuilder> {
        Ok(self.http.request(method, self.url.join(path)?).header("X-API-Key", &self.key))
    }

    async fn timed(&self, request: Request) -> anyhow::Result<Timed> {
        let what = format!("{} {}", request.method(), request.url().path());
        let start = Instant::now();
        let answer = self.http.execute(request).await.with_context(|| what.clone())?;
        let status = answer.status();
        let bytes = answer.bytes().await.with_context(|| what.clone())?;
        let took = start.elapsed();
        if !status.is_success() {
            bail!("{what}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        let body = serde_json::from_slice(&bytes).with_context(|| format!("{what}: the answer"))?;
        Ok(Timed { body, took })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_measured() {
        for url in ["http://127.0.0.1:80", "http://[::1]:8080"] {
            assert!(Client::new(url, String::new()).is_ok(), "{url}");
        }
        for url in ["http://10.0.0.1", "http://example.com", "http://localhost.example.com:80", "nonsense"] {
            assert!(Client::new(url, String::new()).is_err(), "{url}");
        }
    }
}
