//! Serving gRPC on a Unix socket, with a stop that takes as long as the calls under way.
//!
//! A connection ends politely only when its peer answers the server's goodbye (GOAWAY and a PING). One that does not,
//! because it is stopped, hangs or is no HTTP/2 client, would hold every stop for the whole grace period. So calls are
//! counted, and it is calls that are waited for.

use crate::underway::Underway;
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    codegen::{
        BoxFuture,
        http::{Request, Response},
    },
    service::Routes,
    transport::{Error, Server},
};
use tower::{Layer, Service};

/// For goodbyes and last bytes, once no call is under way.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Serves until `stop` is cancelled and no call is under way any more. How long calls may take then is the caller's
/// business: dropping the future gives them up.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    server: Server,
    routes: Routes,
    listener: UnixListener,
    stop: CancellationToken,
) -> Result<(), Error> {
    let calls = TaskTracker::new();
    let served = server
        .layer(CountCalls(calls.clone()))
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // A server that failed is not waited for.
        biased;
        served = served.as_mut() => return served,
        () = stop.cancelled() => {}
    }
    calls.close();
    tokio::select! {
        // With polite peers only, the server ends by itself.
        biased;
        served = served.as_mut() => return served,
        () = calls.wait() => {}
    }
    tokio::time::timeout(LAST_WORDS, served).await.unwrap_or(Ok(()))
}

/// Counts the calls of every service behind it.
#[derive(Debug, Clone)]
struct CountCalls(TaskTracker);

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, calls: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
struct Counted<S> {
    inner: S,
    calls: TaskTracker,
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Underway<Body>>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let token = self.calls.token();
        let response = self.inner.call(request);
        Box::pin(async move { Ok(response.await?.map(|body| Underway::new(body, token))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;
    use std::{convert::Infallible, path::Path, sync::Arc, time::Instant};
    use tokio::{io::AsyncWriteExt, net::UnixStream, sync::Notify, task::JoinHandle};
    use tonic::server::NamedService;

    /// Answers when it is told to.
    #[derive(Debug, Clone, Default)]
    struct Slow {
        begun: Arc<Notify>,
        end: Arc<Notify>,
    }

    impl NamedService for Slow {
        const NAME: &'static str = "test.Slow";
    }

    impl Service<Request<Body>> for Slow {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let slow = self.clone();
            Box::pin(async move {
                slow.begun.notify_one();
                slow.end.notified().await;
                Ok(Response::new(Body::empty()))
            })
        }
    }

    fn start(path: &Path, slow: &Slow) -> (CancellationToken, JoinHandle<Result<(), Error>>) {
        let stop = CancellationToken::new();
        let listener = socket::bind(path).expect("bound");
        let served = serve(Server::builder(), Routes::new(slow.clone()), listener, stop.clone());
        (stop, tokio::spawn(served))
    }

    /// A client that says hello and then nothing more, and one that says nothing at all.
    async fn dumb(path: &Path) -> [UnixStream; 2] {
        let mut hello = UnixStream::connect(path).await.expect("connected");
        hello.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
        [hello, UnixStream::connect(path).await.expect("connected")]
    }

    #[tokio::test]
    async fn peers_that_do_not_answer_do_not_hold_the_stop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let (stop, server) = start(&path, &Slow::default());
        let _dumb = dumb(&path).await;
        let begin = Instant::now();
        stop.cancel();
        server.await.expect("no panic").expect("served");
        assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_call_under_way_is_waited_for_and_answered() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let slow = Slow::default();
        let (stop, mut server) = start(&path, &slow);
        let _dumb = dumb(&path).await;
        let mut channel = socket::channel(&socket::endpoint(&path)).expect("a channel");
        let request = Request::post("http://x/test.Slow/Call").body(Body::empty()).expect("a request");
        std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("ready");
        let answer = tokio::spawn(channel.call(request));
        slow.begun.notified().await;
        stop.cancel();
        tokio::time::timeout(LAST_WORDS * 2, &mut server).await.expect_err("it left a call behind");
        slow.end.notify_one();
        assert_eq!(answer.await.expect("no panic").expect("an answer").status(), 200);
        server.await.expect("no panic").expect("served");
    }
}
