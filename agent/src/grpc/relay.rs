//! Calls of a guest's `Processes` and `Files`, passed on unread: whatever envd learns to serve there is served here.
//!
//! ```text
//! caller ──▶ x-hearth-capsule ──▶ handle, use, guest, place ──▶ guest's connection for the service
//!    ◀────────────── frames, as fast as the slower side takes them, until one ends or the capsule's life does
//! ```

use super::service::{AgentService, end};
use crate::{
    capsule::activity::Activity,
    error::AgentError,
    guest::{Guest, GuestError, RELAYED_MAX, Relayed},
};
use futures::future::BoxFuture;
use hearth_proto::{
    metadata,
    wire::{files::files_server, process::processes_server},
};
use hearth_service::telemetry::chain;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use std::{
    convert::Infallible,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tonic::{Status, body::Body, server::NamedService, service::Routes};
use tower::{Service, ServiceExt};

/// Adds the services that are passed on.
pub fn add(routes: Routes, agent: &AgentService) -> Routes {
    routes.add_service(Relay::<Processes>::new(agent)).add_service(Relay::<Files>::new(agent))
}

/// Which service.
trait Passed: Clone + Send + Sync + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// The guest's connection for it.
    fn connection(guest: &Guest) -> &Relayed;
}

/// Background commands and terminals.
#[derive(Debug, Clone)]
struct Processes;

/// Files.
#[derive(Debug, Clone)]
struct Files;

impl Passed for Processes {
    const NAME: &'static str = processes_server::SERVICE_NAME;
    fn connection(guest: &Guest) -> &Relayed {
        &guest.processes
    }
}

impl Passed for Files {
    const NAME: &'static str = files_server::SERVICE_NAME;
    fn connection(guest: &Guest) -> &Relayed {
        &guest.files
    }
}

/// One service that is passed on.
#[derive(Debug, Clone)]
struct Relay<P> {
    agent: AgentService,
    passed: PhantomData<P>,
}

impl<P: Passed> Relay<P> {
    fn new(agent: &AgentService) -> Self {
        Self { agent: agent.clone(), passed: PhantomData }
    }
}

impl<P: Passed> NamedService for Relay<P> {
    const NAME: &'static str = P::NAME;
}

impl<P: Passed> Service<Request<Body>> for Relay<P> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let agent = self.agent.clone();
        Box::pin(async move { Ok(pass::<P>(&agent, request).await.unwrap_or_else(Status::into_http)) })
    }
}

/// Passes one call on.
async fn pass<P: Passed>(agent: &AgentService, mut request: Request<Body>) -> Result<Response<Body>, Status> {
    let handle = agent.capsule(&take_capsule(request.headers_mut())?)?;
    let activity = handle.activity();
    let guest = handle.guest().await?;
    // Watched from before the call on, so that no end is missed.
    let mut ended = Box::pin(end(&handle));
    let connection = P::connection(&guest);
    let place = Arc::clone(&connection.places).try_acquire_owned().map_err(|_| {
        Status::resource_exhausted(format!("the capsule has {RELAYED_MAX} such calls under way already"))
    })?;
    let (asking, asked) = oneshot::channel();
    let mut confirmed: BoxFuture<'static, Infallible> = Box::pin(confirm(asked));
    let request = request.map(|body| Body::new(Asking { body, end: End::Open(Some(asking)) }));
    let answered = tokio::select! {
        biased;
        answered = connection.channel.clone().oneshot(request) => answered,
        never = &mut confirmed => match never {},
        status = &mut ended => return Err(status),
    };
    // What a guest refuses comes as an answer; an error is its connection's.
    let answer = answered.map_err(|error| AgentError::Guest(GuestError::Unreachable(chain(&error))))?;
    let held = Some((activity, place));
    Ok(answer.map(|body| Body::new(Passing { body: Body::new(body), ended, confirmed, held })))
}

/// Answers a request that asks whether it has really ended. Whoever polls this is the call: when its caller has broken
/// off, the connection drops it as soon as it waits, and with it the answer.
async fn confirm(asked: oneshot::Receiver<oneshot::Sender<()>>) -> Infallible {
    if let Ok(go_on) = asked.await {
        tokio::task::yield_now().await;
        // The guest may have answered already.
        let _ = go_on.send(());
    }
    std::future::pending().await
}

/// A caller's request on its way. Our side of HTTP/2 shows one that was broken off as one that has ended; a guest would
/// take half a file for a whole one. So its end is passed on only when the call goes on.
struct Asking {
    body: Body,
    end: End,
}

/// Whether a frame says nothing. The last one often does; passed on it would not be the last, and HTTP/2 gives up a
/// connection with more than some of those.
fn is_empty(frame: &Frame<bytes::Bytes>) -> bool {
    frame.data_ref().is_some_and(bytes::Bytes::is_empty)
}

enum End {
    /// Not yet; where to ask then.
    Open(Option<oneshot::Sender<oneshot::Sender<()>>>),
    /// Seen, and the call is asked.
    Asked(oneshot::Receiver<()>),
    /// Passed on.
    Told,
}

impl http_body::Body for Asking {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let broken_off = || Poll::Ready(Some(Err(Status::cancelled("the call was broken off"))));
        loop {
            match &mut self.end {
                End::Told => return Poll::Ready(None),
                End::Asked(answer) => {
                    let answer = ready!(Pin::new(answer).poll(context));
                    self.end = End::Told;
                    return if answer.is_ok() { Poll::Ready(None) } else { broken_off() };
                }
                End::Open(asking) => {
                    let asking = asking.take();
                    match http_body::Body::poll_frame(Pin::new(&mut self.body), context) {
                        Poll::Ready(None) => {}
                        Poll::Ready(Some(Ok(frame))) if is_empty(&frame) => {
                            self.end = End::Open(asking);
                            continue;
                        }
                        other => {
                            self.end = End::Open(asking);
                            return other;
                        }
                    }
                    let (go_on, answer) = oneshot::channel();
                    if asking.is_none_or(|asking| asking.send(go_on).is_err()) {
                        self.end = End::Told;
                        return broken_off();
                    }
                    self.end = End::Asked(answer);
                }
            }
        }
    }
}

/// Takes out what is meant for this hop: the capsule, and what only we may say to a guest.
fn take_capsule(headers: &mut HeaderMap) -> Result<String, AgentError> {
    for own in [metadata::TOKEN, metadata::REALTIME_NS] {
        headers.remove(own);
    }
    let invalid = |reason: &str| AgentError::Invalid { field: metadata::CAPSULE, reason: reason.to_owned() };
    let capsule = headers.remove(metadata::CAPSULE).ok_or_else(|| invalid("missing"))?;
    capsule.to_str().map(str::to_owned).map_err(|_| invalid("no text"))
}

/// The guest's answer on its way. The capsule is in use until it ends, and it ends with the capsule's life.
struct Passing<E> {
    body: Body,
    ended: Pin<Box<E>>,
    confirmed: BoxFuture<'static, Infallible>,
    held: Option<(Activity, OwnedSemaphorePermit)>,
}

impl<E: Future<Output = Status> + Send> http_body::Body for Passing<E> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if self.held.is_none() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(never) = self.confirmed.as_mut().poll(context) {
            match never {}
        }
        // What has arrived is delivered before the end is told.
        let status = match http_body::Body::poll_frame(Pin::new(&mut self.body), context) {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    self.held = None;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                self.held = None;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(status))) => {
                Status::unavailable(format!("the guest's stream broke: {}", status.message()))
            }
            Poll::Pending => ready!(self.ended.as_mut().poll(context)),
        };
        self.held = None;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() || http_body::Body::is_end_stream(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_this_hop_goes_no_further() {
        let mut headers = HeaderMap::new();
        for name in [metadata::TOKEN, metadata::REALTIME_NS, "grpc-timeout", metadata::CAPSULE] {
            headers.insert(name, "x".parse().unwrap());
        }
        assert_eq!(take_capsule(&mut headers).unwrap(), "x");
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["grpc-timeout"]);
        let missing = take_capsule(&mut headers).unwrap_err();
        assert!(missing.to_string().starts_with("x-hearth-capsule: "), "{missing}");
    }
}
