//! The audit log: every change that a caller asks for, whether it was done or refused, as one row. Written in batches
//! beside the requests; while the database is away, a bounded number of rows waits.

mod actions;

use crate::{
    app::App,
    auth::Caller,
    middleware::{Scope, route_of},
    store::audit::Row,
};
use actions::Action;
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{StatusCode, header};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Rows that wait for the database. An hour without one at three changes a second.
const WAITING_MAX: usize = 10_000;
const BATCH_MAX: usize = 500;
/// How long rows are collected before they are written.
const COLLECT: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(2);
/// For the last rows at shutdown.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// The status of a change whose caller left before the answer (nginx's number).
const LEFT: u16 = 499;
const RESOURCE_CHARS_MAX: usize = 128;

/// Takes rows.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    rows: mpsc::Sender<Row>,
}

impl Audit {
    /// The handle, and what [`write`] reads.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Row>) {
        let (rows, queue) = mpsc::channel(WAITING_MAX);
        (Self { rows }, queue)
    }

    fn log(&self, row: Row) {
        if let Err(error) = self.rows.try_send(row) {
            metrics::counter!("hearth_gateway_audit_lost_total").increment(1);
            let row = error.into_inner();
            tracing::error!(
                audit.action = row.action,
                audit.resource = row.resource_id,
                "an audit row is lost"
            );
        }
    }
}

/// The layer that notes changes. It runs inside the one that knows the caller.
pub(crate) async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = route_of(request.extensions()).map(str::to_owned);
    let action = route.and_then(|route| actions::of(request.method(), &route));
    let caller = request.extensions().get::<Caller>().copied();
    let (Some(action), Some(caller)) = (action, caller) else { return next.run(request).await };
    let mut note = Note::new(&app, &request, action, caller);
    let response = next.run(request).await;
    note.answered(&response);
    response
}

/// A change under way. Dropped without an answer, it is noted as one whose caller left.
struct Note {
    audit: Audit,
    row: Option<Row>,
}

impl Note {
    fn new(app: &App, request: &Request, action: Action, caller: Caller) -> Self {
        let request_id = request.extensions().get::<Scope>().map(|scope| scope.request_id.to_string());
        let row = Row {
            id: Uuid::now_v7(),
            at: OffsetDateTime::now_utc(),
            team: caller.team,
            key: caller.key,
            action: action.name,
            resource_type: action.resource,
            resource_id: bounded(action.resource_in(request.uri().path()).unwrap_or_default()),
            status: LEFT,
            request_id: request_id.unwrap_or_default(),
        };
        Self { audit: app.audit.clone(), row: Some(row) }
    }

    /// What was made says its id in `Location`.
    fn answered(&mut self, response: &Response) {
        let Some(mut row) = self.row.take() else { return };
        row.status = response.status().as_u16();
        if response.status() == StatusCode::CREATED
            && let Some(made) = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok())
        {
            row.resource_id = bounded(made.rsplit('/').next().unwrap_or_default());
        }
        self.audit.log(row);
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(row) = self.row.take() {
            self.audit.log(row);
        }
    }
}

fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(RESOURCE_CHARS_MAX).collect()
}

/// Writes rows in batches until shutdown, and then the rest.
pub(crate) async fn write(app: App, mut rows: mpsc::Receiver<Row>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while !stop.is_cancelled() {
        let collected = stop.run_until_cancelled(async {
            if batch.is_empty() {
                rows.recv_many(&mut batch, BATCH_MAX).await;
            }
            tokio::time::sleep(COLLECT).await;
        });
        let _stopped = collected.await;
        take(&mut rows, &mut batch);
        if let Err(error) = app.store.add_audit(&batch).await {
            tracing::warn!(%error, rows = batch.len(), "the audit log waits for the database");
            let _stopped = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
        } else {
            batch.clear();
        }
    }
    let last = async {
        loop {
            take(&mut rows, &mut batch);
            if batch.is_empty() || app.store.add_audit(&batch).await.is_err() {
                return;
            }
            batch.clear();
        }
    };
    let _late = tokio::time::timeout(LAST_WRITES, last).await;
    if !batch.is_empty() {
        tracing::error!(rows = batch.len(), "audit rows were not written");
    }
}

fn take(rows: &mut mpsc::Receiver<Row>, batch: &mut Vec<Row>) {
    while batch.len() < BATCH_MAX
        && let Ok(row) = rows.try_recv()
    {
        batch.push(row);
    }
}
