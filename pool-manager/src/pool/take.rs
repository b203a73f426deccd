//! A capsule for somebody, now: from the pool, else restored.

use crate::{
    capsule::{clerk::Clerk, quota::Amount},
    error::Refused,
    host::{
        client::{AgentError, Start},
        held::Held,
    },
    metrics,
    placement::{self, Candidate},
    site::{Site, Sites},
    template::{Template, fit::Size},
};
use hearth_proto::id::CapsuleId;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Where a capsule came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It was parked in a pool.
    Warm,
    /// It was restored for this request.
    Restored,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Restored => "restored",
        }
    }
}

/// What a one-shot needs.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) template: String,
    pub(crate) size: Size,
    pub(crate) language: String,
    /// Zero: the default.
    pub(crate) lease: Duration,
}

/// A capsule for one run.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) id: CapsuleId,
    pub(crate) host_id: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    pub(crate) source: Source,
    pub(crate) after: Duration,
}

/// Lease of a one-shot: what is given when none is asked for, and the most that is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseLimits {
    pub(crate) default: Duration,
    pub(crate) most: Duration,
}

impl LeaseLimits {
    fn check(self, asked: Duration) -> Result<Duration, Refused> {
        match asked {
            Duration::ZERO => Ok(self.default),
            asked if asked > self.most => {
                let most = self.most.as_millis();
                Err(Refused::Invalid(format!(
                    "lease_ms: at most {most} (HEARTH_LEASE_MAX_SEC), not {}",
                    asked.as_millis()
                )))
            }
            asked => Ok(asked),
        }
    }
}

/// Hands out capsules.
#[derive(Debug, Clone)]
pub(crate) struct Taker {
    pub(crate) sites: Sites,
    pub(crate) clerk: Clerk,
    pub(crate) limits: LeaseLimits,
}

impl Taker {
    /// A capsule with a lease. On a hit this is memory only.
    pub(crate) async fn take(&self, want: Want) -> Result<Taken, Refused> {
        let begun = Instant::now();
        let lease = self.limits.check(want.lease)?;
        let (site, template) = self.place(&want.template, want.size).await?;
        template.speaks(&want.language)?;
        let host_id = site.up()?.id.as_str().into();
        let (held, source) = match warm(site, &template).await? {
            Some(held) => (held, Source::Warm),
            None => {
                let start = Start { size: template.size(), ..Start::default() };
                (site.demand.restore(&template.name, start).await?, Source::Restored)
            }
        };
        let id = held.id();
        if !site.leases.grant(held, lease).await {
            return Err(Refused::stopping());
        }
        let after = begun.elapsed();
        metrics::taken(source.as_str(), after);
        Ok(Taken { id, host_id, endpoint: Arc::clone(&site.host.endpoint), source, after })
    }

    /// A running capsule for a user. A parked one was given its environment when it was restored, so one with its own is
    /// always restored.
    pub(crate) async fn running(
        &self,
        site: &Site,
        template: &Template,
        start: Start,
    ) -> Result<(Held, Source), Refused> {
        let begun = Instant::now();
        // The size that was chosen, not the one that was asked for.
        let start = Start { size: template.size(), ..start };
        let warm = if start.env.is_empty() { warm(site, template).await? } else { None };
        let claimed = match warm {
            Some(held) => claimed(site, held, start.clone()).await?,
            None => None,
        };
        let (held, source) = match claimed {
            Some(held) => (held, Source::Warm),
            None => (site.demand.restore(&template.name, start).await?, Source::Restored),
        };
        metrics::taken(source.as_str(), begun.elapsed());
        Ok((held, source))
    }

    /// The host for a new capsule, and the variant of the template that it gets there.
    pub(crate) async fn place(&self, name: &str, size: Size) -> Result<(&Site, Template), Refused> {
        let mut refused = None;
        let mut able = Vec::new();
        for site in self.sites.all() {
            match site.templates().choose(name, size) {
                Ok(template) => able.push((site, template.clone())),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        // With one host there is nothing to choose, and nothing to wait for.
        let loads = if able.len() > 1 { self.clerk.loads().await? } else { HashMap::new() };
        let candidates: Vec<Candidate> =
            able.iter().map(|(site, template)| candidate(site, template, &loads)).collect();
        match placement::place(&candidates) {
            Some(chosen) => Ok(able.swap_remove(chosen)),
            None => Err(refused.unwrap_or_else(|| Refused::Away("the host's agent is away".to_owned()))),
        }
    }
}

fn candidate(site: &Site, template: &Template, loads: &HashMap<String, Amount>) -> Candidate {
    let facts = site.host.up();
    let pool = site.pools.of(&template.name);
    let taken = facts.as_ref().and_then(|facts| loads.get(&facts.id)).copied().unwrap_or_default();
    Candidate {
        up: facts.is_some(),
        has_template: true,
        parked: pool.map_or(0, |pool| pool.stock().parked),
        demand: site.demand.now(),
        memory_mb: facts.map_or(0, |facts| facts.memory_mb),
        taken_mb: taken.memory_mb,
    }
}

async fn warm(site: &Site, template: &Template) -> Result<Option<Held>, Refused> {
    // A pool keeps the first variant of its template only.
    let pooled = site.templates().find(&template.name).is_some_and(|first| first.size() == template.size());
    match site.pools.of(&template.name) {
        Some(pool) if pooled => pool.take().await.map_err(|_gone| Refused::stopping()),
        Some(_) | None => Ok(None),
    }
}

/// Claims a parked capsule; none when that failed and another one may do better.
async fn claimed(site: &Site, held: Held, start: Start) -> Result<Option<Held>, Refused> {
    match site.host.agent.claim(held.id(), start).await {
        Ok(()) => Ok(Some(held)),
        // The same is said of any other capsule.
        Err(error @ (AgentError::Invalid(_) | AgentError::Denied(_))) => {
            Err(error.refused("start the capsule"))
        }
        Err(error) => {
            // A parked capsule that died a moment ago: its user gets another one.
            tracing::warn!(capsule.id = %held.id(), %error, "claim failed, restoring another capsule");
            drop(held);
            Ok(None)
        }
    }
}
