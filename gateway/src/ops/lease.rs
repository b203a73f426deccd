//! A one-shot capsule that is ours until it is dropped.

use crate::{
    app::App,
    error::ApiError,
    middleware::Scope,
    ops::run::{Place, Source},
    upstream::UpstreamError,
};
use hearth_proto::{
    id::CapsuleId,
    wire::pool::{TakeReply, TakeRequest},
};
use hearth_service::telemetry;
use std::{sync::Arc, time::Instant};
use tracing::{Instrument, Span};

/// A capsule from a pool. Dropping it gives it back in the background; if even that fails, its lease ends it.
pub(crate) struct Lease {
    pub(crate) place: Place,
    app: App,
    request_id: Arc<str>,
    /// The request's span: a lease may be dropped outside of it.
    span: Span,
}

impl Lease {
    /// Takes a capsule. When the caller goes away meanwhile, the capsule that comes is given back.
    pub(crate) async fn take(app: &App, scope: &Scope, take: TakeRequest) -> Result<Self, ApiError> {
        let taken = Instant::now();
        let template = take.template.clone();
        let task = {
            let app = app.clone();
            let request_id = scope.request_id.clone();
            // A task of its own, because a future that is dropped in the middle could not give back what comes.
            async move {
                let reply = app.pool.take(take, &request_id).await?;
                Self::new(app, request_id, reply, taken)
            }
        };
        match app.tasks.spawn(task.in_current_span()).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(refusal(error, &template)),
            Err(error) => Err(ApiError::internal(error)),
        }
    }

    fn new(app: App, request_id: Arc<str>, reply: TakeReply, taken: Instant) -> Result<Self, UpstreamError> {
        let capsule: CapsuleId =
            reply.capsule_id.parse().map_err(|_| UpstreamError::Incomplete("a valid capsule id"))?;
        let source = Source::parse(&reply.source).unwrap_or(Source::Restored);
        // From here on the capsule is given back also when the rest of the reply is wrong.
        let mut lease = Self {
            place: Place { host: Default::default(), capsule, source, taken },
            app,
            request_id,
            span: Span::current(),
        };
        lease.place.host = reply.host.ok_or(UpstreamError::Incomplete("the host"))?;
        Ok(lease)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (app, request_id, capsule) = (self.app.clone(), self.request_id.clone(), self.place.capsule);
        let release = async move {
            if let Err(error) = app.pool.release(capsule, &request_id).await {
                let cause = telemetry::chain(&error);
                tracing::warn!(error.cause = cause, capsule.id = %capsule, "a capsule was not given back; its lease will end it");
            }
        };
        self.app.tasks.spawn(release.instrument(self.span.clone()));
    }
}

/// Why there is no capsule, for the caller.
fn refusal(error: UpstreamError, template: &str) -> ApiError {
    match error.code() {
        Some(tonic::Code::NotFound) => unknown_template(template),
        Some(tonic::Code::Unavailable) => {
            ApiError::unavailable("Hearth is starting or restarting; try again").because(error)
        }
        Some(_) | None => error.into(),
    }
}

/// No template of this name.
pub(crate) fn unknown_template(name: &str) -> ApiError {
    ApiError::new(
        hearth_proto::error::ErrorCode::NotFound,
        format!("template: there is no template `{}`", crate::json::fields::shown(name)),
    )
}
