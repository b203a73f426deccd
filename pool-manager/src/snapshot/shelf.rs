//! A team's snapshots: take, list, delete.

use super::{Snapshot, is_name, leftovers::Leftovers};
use crate::{
    capsule::{
        Record,
        book::Edit,
        events::{Event, Events},
        lifecycle::{Done, Lifecycle},
        now,
        once::{Key, Once},
        operation::Kind,
    },
    error::Refused,
    site::{Site, Sites},
    store::{Store, snapshots::Published},
    template::{Template, alias},
};
use hearth_proto::id::{CapsuleId, SnapshotId, TeamId};

/// What a user asks for.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotOrder {
    pub(crate) team: TeamId,
    pub(crate) capsule: CapsuleId,
    /// Empty: a new one.
    pub(crate) name: String,
    pub(crate) overwrite: bool,
    pub(crate) key: Option<Key>,
}

/// Takes, lists and deletes snapshots.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) sites: Sites,
    pub(crate) store: Store,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) events: Events,
    pub(crate) once: Once,
    pub(crate) leftovers: Leftovers,
}

impl Shelf {
    /// Keeps a capsule's state under a name. When the future is dropped, it goes on to its end.
    pub(crate) async fn create(&self, order: SnapshotOrder) -> Result<Snapshot, Refused> {
        let turn = match &order.key {
            Some(key) => {
                let turn = self.once.turn(key).await?;
                if let Some(snapshot) = self.earlier(key).await? {
                    return Ok(snapshot);
                }
                Some(turn)
            }
            None => None,
        };
        let name = self.name(&order).await?;
        let id = SnapshotId::new();
        let (this, team, capsule) = (self.clone(), order.team, order.capsule);
        let work = move |site: Site, source: Record| async move {
            let done = this.through(&site, &source, id, name, &order).await;
            drop(turn);
            match done {
                Ok(()) => Done { edit: Edit::default(), event: None, result: Ok(()) },
                Err(refused) => Done::refused(refused),
            }
        };
        let source = self.lifecycle.run(team, capsule, Kind::Snapshot, work).await?;
        let taken = self.store.snapshot_by_id(id).await.map_err(|error| error.refused())?;
        let taken = taken.ok_or_else(|| {
            Refused::Conflict(format!("the snapshot of {} was replaced in that moment", source.id))
        })?;
        self.tell("snapshot_created", &taken, Some(source));
        Ok(taken)
    }

    /// What an earlier request with this key made; nothing when that was deleted since.
    async fn earlier(&self, key: &Key) -> Result<Option<Snapshot>, Refused> {
        let Some(made) = self.store.request(key).await.map_err(|error| error.refused())? else {
            return Ok(None);
        };
        key.same(&made.digest)?;
        match made.snapshot {
            Some(id) => {
                let found = self.store.snapshot_by_id(id).await.map_err(|error| error.refused())?;
                found.map(Some).ok_or_else(|| {
                    Refused::Exists("idempotency_key: the snapshot it made was deleted".to_owned())
                })
            }
            None => Err(Refused::Exists("idempotency_key: it was used with another request".to_owned())),
        }
    }

    /// The name it gets, if it may have it.
    async fn name(&self, order: &SnapshotOrder) -> Result<String, Refused> {
        if order.name.is_empty() {
            let random = getrandom::u32().map_err(|_| Refused::Internal)?;
            return Ok(format!("template-{random:08x}"));
        }
        let name = order.name.clone();
        if !is_name(&name) {
            return Err(Refused::Invalid(
                "name: a letter or digit, then at most 63 of those and `.`, `_`, `-`".to_owned(),
            ));
        }
        if self.is_platforms(&name) {
            return Err(Refused::Exists(format!("`{name}` is a template of the platform's")));
        }
        let there = self.store.snapshot(order.team, &name).await.map_err(|error| error.refused())?;
        if there.is_some() && !order.overwrite {
            return Err(taken(&name));
        }
        Ok(name)
    }

    async fn through(
        &self,
        site: &Site,
        source: &Record,
        id: SnapshotId,
        name: String,
        order: &SnapshotOrder,
    ) -> Result<(), Refused> {
        let snapshot = Snapshot {
            id,
            team: order.team,
            name,
            capsule: source.id,
            template: source.template.clone(),
            host_id: source.host_id.clone(),
            vcpus: source.vcpus,
            memory_mb: source.memory_mb,
            size_bytes: 0,
            created: now(),
        };
        self.store.making(&snapshot).await.map_err(|error| error.refused())?;
        let published = match site.host.agent.capture(source.id, id).await {
            Ok(captured) => {
                let ready = Snapshot { size_bytes: captured.size_bytes, ..snapshot.clone() };
                self.store
                    .publish(&ready, order.overwrite, order.key.as_ref())
                    .await
                    .map_err(|error| error.refused())
                    .and_then(|published| match published {
                        Published::Done => Ok(()),
                        Published::NameTaken => Err(taken(&ready.name)),
                    })
            }
            Err(error) => Err(error.refused("keep the capsule's state")),
        };
        if published.is_err() {
            // A start that finds it unfinished says the same, should this not be written.
            if let Err(error) = self.store.discard(id).await {
                tracing::warn!(snapshot.id = %id, %error, "an unfinished snapshot is removed at the next start");
            }
        }
        self.leftovers.there_are();
        published
    }

    /// A team's snapshots, the newest first, and the platform's templates.
    pub(crate) async fn list(&self, team: TeamId) -> Result<(Vec<Snapshot>, Vec<Template>), Refused> {
        let own = self.store.snapshots(team).await.map_err(|error| error.refused())?;
        Ok((own, self.sites.templates()))
    }

    /// Deletes a team's snapshot. Its files go when no restore needs them any more.
    pub(crate) async fn delete(&self, team: TeamId, name: &str) -> Result<(), Refused> {
        let found = self.store.snapshot(team, name).await.map_err(|error| error.refused())?;
        let Some(snapshot) = found else {
            return Err(if self.is_platforms(name) {
                Refused::Forbidden(format!("`{name}` is a template of the platform's"))
            } else {
                Refused::NotFound(format!("snapshot `{name}` not found"))
            });
        };
        self.store.discard(snapshot.id).await.map_err(|error| error.refused())?;
        tracing::info!(snapshot.id = %snapshot.id, name, "snapshot deleted");
        self.tell("snapshot_deleted", &snapshot, None);
        self.leftovers.there_are();
        Ok(())
    }

    fn is_platforms(&self, name: &str) -> bool {
        // Other names of a template are taken even before it is built.
        alias::canonical(name) != name || name == alias::CODE || self.sites.has_template(name)
    }

    fn tell(&self, name: &'static str, snapshot: &Snapshot, capsule: Option<Record>) {
        self.events.send(Event {
            name,
            capsule,
            team: snapshot.team,
            template: snapshot.name.clone(),
            reason: String::new(),
            at: now(),
        });
    }
}

fn taken(name: &str) -> Refused {
    Refused::Exists(format!("a snapshot `{name}` exists already; `overwrite` replaces it"))
}
