//! The task that has the wanted template built, at every connection of the host: a new agent may need a new snapshot.

use super::{Template, catalogue::Catalogue};
use crate::{
    host::{
        Link,
        client::{Agent, AgentError, Progress},
    },
    retry::{self, Backoff},
    store::writer::{Job, Writer},
};
use hearth_service::{shutdown::Shutdown, telemetry};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch as level, time};

/// A build takes a minute; failing twice in a row is not a matter of milliseconds.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(30) };

/// Ensures one template on one host.
#[derive(Debug)]
pub(crate) struct Ensure {
    pub(crate) wanted: String,
    pub(crate) agent: Agent,
    pub(crate) link: level::Receiver<Link>,
    pub(crate) catalogue: level::Sender<Arc<Catalogue>>,
    pub(crate) writer: Writer,
    pub(crate) shutdown: Shutdown,
}

impl Ensure {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self) {
        let stop = self.shutdown.token();
        let _stopped = stop
            .run_until_cancelled(async {
                loop {
                    // A new agent restores only what it was asked to ensure.
                    self.catalogue.send_replace(Arc::new(Catalogue::new(&self.wanted)));
                    if self.link.wait_for(Link::is_up).await.is_err() {
                        return;
                    }
                    self.until_ready().await;
                    // Ready until the host goes, however shortly; then again.
                    if self.link.changed().await.is_err() {
                        return;
                    }
                }
            })
            .await;
    }

    async fn until_ready(&self) {
        for failures in 1.. {
            match self.once().await {
                Ok(()) => return,
                Err(error) => {
                    let reason = telemetry::chain(&error);
                    tracing::error!(template = self.wanted, reason, "template not ready; tried again");
                    self.progress(&reason);
                }
            }
            time::sleep(BACKOFF.delay(failures, retry::unit())).await;
            if !self.link.borrow().is_up() {
                return;
            }
        }
    }

    async fn once(&self) -> Result<(), AgentError> {
        let mut build = self.agent.ensure(&self.wanted).await?;
        let template = loop {
            match build.next().await? {
                Progress::Line(line) => {
                    tracing::info!(template = self.wanted, line, "template build");
                    self.progress(&line);
                }
                Progress::Done(template) => break template,
            }
        };
        tracing::info!(template = template.name, snapshot.key = template.snapshot_key, "template ready");
        // Other templates of the host can be used as well, without a pool.
        let others = match self.agent.templates().await {
            Ok(templates) => templates,
            Err(error) => {
                tracing::warn!(%error, "the host's other templates are not known");
                Vec::new()
            }
        };
        let same = |other: &Template| other.name == template.name && other.size() == template.size();
        let others: Vec<Template> = others.into_iter().filter(|other| !same(other)).collect();
        // The one that the pool keeps comes first: it is what is had without a wish for a size.
        let all: Vec<Template> = std::iter::once(template).chain(others).collect();
        // One row per name.
        for template in all.iter().rev() {
            self.writer.enqueue(Job::Template(template.clone())).await;
        }
        self.catalogue.send_modify(|catalogue| *catalogue = Arc::new(catalogue.with(all)));
        Ok(())
    }

    fn progress(&self, line: &str) {
        self.catalogue.send_modify(|catalogue| *catalogue = Arc::new(catalogue.progressed(line)));
    }
}
