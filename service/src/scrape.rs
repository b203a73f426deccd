//! `/metrics` of a role that has no HTTP API. Off unless an address is given.

use hyper::{Method, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Scrapers are few.
const CONNECTIONS_MAX: usize = 16;
/// One request and its answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds the address; a task of its own then answers `GET /metrics` until `stop` is cancelled. Returns the address
/// that was bound.
///
/// # Errors
/// The address is taken or not ours.
pub async fn serve(
    address: SocketAddr,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { stop.run_until_cancelled(accept(listener, metrics)).await });
    Ok(address)
}

async fn accept(listener: TcpListener, metrics: PrometheusHandle) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answered = answer(stream, metrics.clone());
                tokio::spawn(async move {
                    if tokio::time::timeout(CONNECTION_DEADLINE, answered).await.is_err() {
                        tracing::debug!("a scraper took too long");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a scraper was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, metrics: PrometheusHandle) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (status, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => (StatusCode::OK, metrics.render()),
            _ => (StatusCode::NOT_FOUND, "there is only GET /metrics\n".to_owned()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(
            hyper::header::CONTENT_TYPE,
            hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scraper's connection ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn metrics_are_served_until_the_stop() {
        let metrics = crate::metrics::install().expect("the registry");
        metrics::counter!("hearth_sample_total").increment(3);
        let stop = CancellationToken::new();
        let address = serve((Ipv4Addr::LOCALHOST, 0).into(), metrics, stop.clone()).await.expect("bound");
        let text = get(address, "/metrics").await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("hearth_sample_total 3"), "{text}");
        assert!(get(address, "/else").await.expect("an answer").starts_with("HTTP/1.1 404"));
        stop.cancel();
        let closed = async { while get(address, "/metrics").await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
    }
}
