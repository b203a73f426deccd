//! A new capsule for a user.

use super::{Change, Labels, Record, Times, clerk::Clerk, state::State};
use crate::{
    error::Refused,
    host::{client::Env, held::Held},
    pool::take::{Source, Taker},
    store::{
        Store,
        writer::{Job, Writer},
    },
    template::{Template, fit::Size},
};
use hearth_proto::id::TeamId;
use hearth_service::shutdown::Shutdown;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::sync::oneshot;

/// What a user asks for.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) team: TeamId,
    pub(crate) template: String,
    pub(crate) size: Size,
    /// Zero: none.
    pub(crate) timeout_sec: u64,
    pub(crate) env: Env,
    pub(crate) labels: Labels,
}

/// Creates capsules.
#[derive(Debug, Clone)]
pub(crate) struct Creation {
    pub(crate) taker: Taker,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
    pub(crate) writer: Writer,
    pub(crate) shutdown: Shutdown,
}

impl Creation {
    /// Creates a capsule and its row. When the future is dropped, the creation goes on to its end: afterwards there are
    /// a capsule and its row, or neither.
    pub(crate) async fn create(&self, order: Order) -> Result<(Record, Source), Refused> {
        let catalogue = Arc::clone(&self.taker.catalogue.borrow());
        let template = catalogue.choose(&order.template, order.size)?.clone();
        let host_id = self.taker.host_id()?;
        let (reply, answer) = oneshot::channel();
        let this = self.clone();
        self.shutdown.tasks().spawn(async move {
            let created = this.through(order, &template, &host_id).await;
            // The caller may have left; the capsule has its row, so its user can find it.
            let _left = reply.send(created);
        });
        answer.await.unwrap_or(Err(Refused::Internal))
    }

    async fn through(
        &self,
        mut order: Order,
        template: &Template,
        host_id: &str,
    ) -> Result<(Record, Source), Refused> {
        let env = std::mem::take(&mut order.env);
        let (held, source) = self.taker.running(template, env).await?;
        let record = record(order, template, host_id, &held);
        if let Err(error) = self.store.insert(&record).await {
            tracing::warn!(capsule.id = %record.id, %error, "row not written, capsule destroyed");
            // The insert may have been done although its answer was lost.
            let reason = "its creation could not be recorded".to_owned();
            let at = OffsetDateTime::now_utc();
            self.writer.enqueue(Job::State(Change { id: record.id, state: State::Failed, reason, at })).await;
            drop(held);
            return Err(error.refused());
        }
        // In this order somebody always answers for the capsule.
        self.clerk.insert(record.clone()).await;
        held.given_away();
        let (template, source_name) = (record.template.as_str(), source.as_str());
        tracing::info!(capsule.id = %record.id, template, source = source_name, "capsule created");
        Ok((record, source))
    }
}

fn record(order: Order, template: &Template, host_id: &str, held: &Held) -> Record {
    let now = OffsetDateTime::now_utc();
    Record {
        id: held.id(),
        team: order.team,
        template: template.name.clone(),
        host_id: host_id.to_owned(),
        state: State::Running,
        reason: String::new(),
        vcpus: template.vcpus,
        memory_mb: template.memory_mb,
        timeout_sec: order.timeout_sec,
        labels: order.labels,
        times: Times { created: now, started: Some(now), last_active: Some(now), updated: now },
    }
}
