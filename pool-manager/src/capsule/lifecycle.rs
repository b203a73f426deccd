//! Changes of a capsule that its user asks for: pause, resume, rollback, settings. Each runs in a task of its own to its
//! end, whatever its caller does, in the one place that the book keeps for it.

use super::{
    Disk, Labels, PausedBy, Record,
    book::{Begin, Edit},
    clerk::{Clerk, Settlement},
    operation::{Kind, Outcome, Ticket},
    settings::{Settings, TimeoutAction, Timeouts},
    state::State,
};
use crate::{
    error::Refused,
    host::client::{Agent, AgentError},
    metrics,
    site::{Site, Sites},
    store::Store,
};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::agent,
};
use hearth_service::shutdown::Shutdown;
use std::{collections::BTreeMap, future::Future};
use tokio::time::Instant;

/// Changes capsules.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    pub(crate) sites: Sites,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
    pub(crate) shutdown: Shutdown,
}

/// What a user wants changed; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) timeout_sec: Option<u64>,
    pub(crate) timeout_action: Option<TimeoutAction>,
    pub(crate) disk_mb: Option<u64>,
    pub(crate) auto_resume: Option<bool>,
    pub(crate) name: Option<String>,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    pub(crate) public_ports: Option<Vec<u16>>,
}

/// What an operation did: what changed also when it failed, what listeners are told, and the result.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) edit: Edit,
    pub(crate) event: Option<&'static str>,
    pub(crate) result: Result<(), Refused>,
}

impl Done {
    fn well(edit: Edit, event: Option<&'static str>) -> Self {
        Self { edit, event, result: Ok(()) }
    }

    /// It changed nothing.
    pub(crate) fn refused(refused: Refused) -> Self {
        Self { edit: Edit::default(), event: None, result: Err(refused) }
    }
}

impl Lifecycle {
    /// Puts a team's capsule on disk, for its user.
    pub(crate) async fn pause(&self, team: TeamId, id: CapsuleId) -> Outcome {
        self.run(
            team,
            id,
            Kind::Pause,
            |site, record| async move { pause(&site.host.agent, record.id).await },
        )
        .await
    }

    /// Brings a team's capsule back from disk.
    pub(crate) async fn resume(&self, team: TeamId, id: CapsuleId) -> Outcome {
        self.run(
            team,
            id,
            Kind::Resume,
            |site, record| async move { resume(&site.host.agent, &record).await },
        )
        .await
    }

    /// Makes a team's capsule one of its own snapshots again.
    pub(crate) async fn roll_back(&self, team: TeamId, id: CapsuleId, snapshot: &str) -> Outcome {
        // A capsule that is not there is told from a snapshot that is not.
        self.record(team, id).await?;
        let found = self.store.snapshot(team, snapshot).await.map_err(|error| error.refused())?;
        let own = found.filter(|snapshot| snapshot.capsule == id);
        let own =
            own.ok_or_else(|| Refused::NotFound(format!("snapshot `{snapshot}` of this capsule not found")))?;
        self.run(team, id, Kind::Rollback, move |site, record| async move {
            match site.host.agent.roll_back(record.id, own.id).await {
                Ok(disk) => Done::well(running(disk), Some("rolled_back")),
                Err(error) => Done::refused(error.refused("roll the capsule back")),
            }
        })
        .await
    }

    /// Changes what its user can choose.
    pub(crate) async fn update(&self, team: TeamId, id: CapsuleId, wishes: Wishes) -> Outcome {
        self.run(team, id, Kind::Update, |site, record| async move {
            update(&site.host.agent, &record, wishes).await
        })
        .await
    }

    /// Counts as use of a team's running capsule, and gives it its whole time again. Beside whatever is under way, as
    /// far as its host allows it.
    pub(crate) async fn ping(&self, team: TeamId, id: CapsuleId) -> Outcome {
        let record = self.record(team, id).await?;
        if record.state != State::Running {
            return Err(Refused::not_running(record.state.as_str()));
        }
        let agent = &self.sites.of(&record.host_id)?.host.agent;
        agent.set_timeouts(id, None).await.map_err(|error| error.refused("ping the capsule"))?;
        self.clerk.touch(id).await;
        self.record(team, id).await
    }

    /// A team's capsule when what is under way with it is over. Cancel safe.
    pub(crate) async fn settled(&self, team: TeamId, id: CapsuleId) -> Outcome {
        if let Some(joined) = self.clerk.joined(id).await? {
            // Whether it was done well is told to who asked for it.
            let _outcome = joined.outcome().await;
        }
        self.record(team, id).await
    }

    /// What a team's capsule used over time.
    pub(crate) async fn usage(
        &self,
        team: TeamId,
        id: CapsuleId,
        range_sec: u64,
    ) -> Result<agent::UsageReply, Refused> {
        let record = self.record(team, id).await?;
        let agent = &self.sites.of(&record.host_id)?.host.agent;
        agent.usage(id, range_sec).await.map_err(|error| error.refused("say what the capsule used"))
    }

    /// A team's capsule; one that is over and not remembered any more is refused as what it is.
    async fn record(&self, team: TeamId, id: CapsuleId) -> Outcome {
        match self.clerk.get(team, id).await? {
            Some(record) => Ok(record),
            None => Err(self.unknown(team, id).await),
        }
    }

    /// Why nothing can be done with a capsule that the book does not know.
    pub(crate) async fn unknown(&self, team: TeamId, id: CapsuleId) -> Refused {
        match self.store.get(team, id).await {
            Ok(Some(record)) => Refused::not_running(record.state.as_str()),
            Ok(None) => Refused::no_capsule(),
            Err(error) => error.refused(),
        }
    }

    /// Does `work` with a capsule, unless it is done already or somebody else is doing it: then waits for that.
    /// When the future is dropped, the work goes on.
    pub(crate) async fn run<F>(
        &self,
        team: TeamId,
        id: CapsuleId,
        kind: Kind,
        work: impl FnOnce(Site, Record) -> F + Send + 'static,
    ) -> Outcome
    where
        F: Future<Output = Done> + Send + 'static,
    {
        let (record, ticket) = match self.clerk.begin(team, id, kind).await? {
            Begin::Unknown => return Err(self.unknown(team, id).await),
            Begin::Refused(refused) => return Err(refused),
            Begin::Nothing { record, .. } => return Ok(*record),
            Begin::Join(joined) => return joined.outcome().await,
            Begin::Go { record, ticket, .. } => (record, ticket),
        };
        let this = self.clone();
        let task =
            self.shutdown.tasks().spawn(async move { this.through(*record, ticket, kind, work).await });
        task.await.unwrap_or_else(|panic| {
            tracing::error!(capsule.id = %id, %panic, "an operation panicked");
            Err(Refused::Internal)
        })
    }

    async fn through<F: Future<Output = Done>>(
        &self,
        record: Record,
        ticket: Ticket,
        kind: Kind,
        work: impl FnOnce(Site, Record) -> F,
    ) -> Outcome {
        let (begun, id) = (Instant::now(), record.id);
        let done = match self.sites.of(&record.host_id) {
            Ok(site) => work(site.clone(), record).await,
            Err(away) => Done::refused(away),
        };
        metrics::operation(kind.label(), done.result.is_ok(), begun.elapsed());
        let Done { edit, event, result } = done;
        self.clerk.settle(id, Settlement { ticket, edit, event, result }).await
    }
}

fn running(disk: Disk) -> Edit {
    Edit { state: Some(State::Running), paused_by: Some(PausedBy::Host), disk: Some(disk), ..Edit::default() }
}

async fn pause(agent: &Agent, id: CapsuleId) -> Done {
    let error = match agent.pause(id).await {
        Ok(disk) => {
            let edit = Edit { state: Some(State::Paused), disk: Some(disk), ..Edit::default() };
            return Done::well(edit, Some("paused"));
        }
        Err(error) => error,
    };
    // Where nobody can say what came of it, it stays its user's pause: the next look at the host tells.
    let paused_by = (!error.is_open()).then_some(PausedBy::Host);
    Done { edit: Edit { paused_by, ..Edit::default() }, ..Done::refused(error.refused("pause the capsule")) }
}

/// Also gives it the timeouts that were chosen while it was on disk.
async fn resume(agent: &Agent, record: &Record) -> Done {
    match agent.resume(record.id).await {
        Ok(disk) => {
            if let Err(error) = agent.set_timeouts(record.id, Some(record.settings.timeouts)).await {
                tracing::warn!(capsule.id = %record.id, %error, "timeouts of a resumed capsule not set");
            }
            Done::well(running(disk), Some("resumed"))
        }
        Err(error) => Done::refused(error.refused("resume the capsule")),
    }
}

async fn update(agent: &Agent, record: &Record, wishes: Wishes) -> Done {
    let (settings, labels) = wished(record, &wishes);
    if wishes.disk_mb.is_some() && record.state != State::Running {
        return Done::refused(Refused::not_running(record.state.as_str()));
    }
    let mut edit = Edit::default();
    let told = async {
        if let Some(disk_mb) = wishes.disk_mb {
            edit.disk = Some(agent.grow_disk(record.id, disk_mb).await?);
        }
        // A paused one gets them when it is resumed.
        if settings.timeouts != record.settings.timeouts && record.state == State::Running {
            agent.set_timeouts(record.id, Some(settings.timeouts)).await?;
        }
        Ok::<_, AgentError>(())
    };
    match told.await {
        Ok(()) => {
            let edit = Edit { settings: Some(settings), labels: Some(labels), ..edit };
            Done::well(edit, None)
        }
        // A disk that has grown stays so.
        Err(error) => Done { edit, ..Done::refused(error.refused("change the capsule")) },
    }
}

fn wished(record: &Record, wishes: &Wishes) -> (Settings, Labels) {
    let (settings, labels) = (record.settings.clone(), record.labels.clone());
    let timeouts = Timeouts {
        idle_sec: wishes.timeout_sec.unwrap_or(settings.timeouts.idle_sec),
        action: wishes.timeout_action.unwrap_or(settings.timeouts.action),
    };
    let settings = Settings {
        timeouts,
        auto_resume: wishes.auto_resume.unwrap_or(settings.auto_resume),
        public_ports: wishes.public_ports.clone().unwrap_or(settings.public_ports),
        network: settings.network,
    };
    let labels = Labels {
        name: wishes.name.clone().unwrap_or(labels.name),
        metadata: wishes.metadata.clone().unwrap_or(labels.metadata),
    };
    (settings, labels)
}
