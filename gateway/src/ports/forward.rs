//! One HTTP/1.1 request over a tunnel, and what it turns into when it changes its protocol.

use super::{headers, target::Target, tunnel::Tunnel};
use crate::{app::App, error::ApiError};
use axum::{body::Body, extract::Request, response::Response};
use hearth_proto::error::ErrorCode;
use hearth_service::underway::Underway;
use http::{StatusCode, Uri, Version};
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{io::copy_bidirectional, sync::OwnedSemaphorePermit};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// From the request to the head of its answer: services may think, and clients may wait for news.
const HEAD_DEADLINE: Duration = Duration::from_secs(600);

/// Sends a request and passes the answer on as it comes. What it holds is held until the answer's last byte.
pub(super) async fn forward(
    app: &App,
    target: &Target,
    tunnel: Tunnel,
    permit: OwnedSemaphorePermit,
    mut request: Request,
) -> Result<Response, ApiError> {
    let client = headers::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
    headers::inward(request.headers_mut(), target);
    *request.uri_mut() =
        target.path.parse::<Uri>().map_err(|_| ApiError::invalid("the path is not valid"))?;
    *request.version_mut() = Version::HTTP_11;
    let Tunnel { stream, pumps } = tunnel;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its error is the request's, which says it.
        let _ended = connection.with_upgrades().await;
    }));
    let answered = tokio::time::timeout(HEAD_DEADLINE, sender.send_request(request)).await;
    let late = || ApiError::timeout("the service in the capsule did not answer in time");
    let mut response = answered.map_err(|_| late())?.map_err(|error| broken(&error))?;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let service = (switching && client.is_some()).then(|| hyper::upgrade::on(&mut response));
    headers::outward(response.headers_mut(), target, switching);
    let held = Held { _connection: connection, _pumps: pumps, _permit: permit };
    if let (Some(client), Some(service)) = (client, service) {
        let stop = app.stop.clone();
        app.tasks.spawn(join(client, service, stop, held));
        return Ok(response.map(|_| Body::empty()));
    }
    Ok(response.map(|body| Body::new(Underway::new(body, held))))
}

/// What lives as long as an answer.
struct Held {
    _connection: AbortOnDropHandle<()>,
    _pumps: super::tunnel::Pumps,
    _permit: OwnedSemaphorePermit,
}

/// Bytes in both directions between a client and a service that have left HTTP.
async fn join(client: OnUpgrade, service: OnUpgrade, stop: CancellationToken, held: Held) {
    let joined = async {
        let (Ok(client), Ok(service)) = tokio::join!(client, service) else { return };
        let (mut client, mut service) = (TokioIo::new(client), TokioIo::new(service));
        // Either side may break it off; that is how such connections end.
        let _ended = copy_bidirectional(&mut client, &mut service).await;
    };
    let _stopped = stop.run_until_cancelled(joined).await;
    drop(held);
}

fn broken(error: &hyper::Error) -> ApiError {
    tracing::info!(%error, "a service in a capsule broke its connection off");
    ApiError::new(ErrorCode::AgentError, "the service in the capsule broke the connection off")
}
