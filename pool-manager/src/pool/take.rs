//! A capsule for somebody, now: from the pool, else restored.

use super::{Pools, demand::Demand};
use crate::{
    error::Refused,
    host::{Host, client::Env, held::Held},
    lease::Leases,
    metrics,
    template::{Template, catalogue::Catalogue, fit::Size},
};
use hearth_proto::id::CapsuleId;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch as level, time::Instant};

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
    pub(crate) host: Host,
    pub(crate) catalogue: level::Receiver<Arc<Catalogue>>,
    pub(crate) pools: Pools,
    pub(crate) demand: Demand,
    pub(crate) leases: Leases,
    pub(crate) limits: LeaseLimits,
}

impl Taker {
    /// A capsule with a lease. On a hit this is memory only.
    pub(crate) async fn take(&self, want: Want) -> Result<Taken, Refused> {
        let begun = Instant::now();
        let lease = self.limits.check(want.lease)?;
        let catalogue = Arc::clone(&self.catalogue.borrow());
        let template = catalogue.choose(&want.template, want.size)?;
        template.speaks(&want.language)?;
        let host_id = self.host_id()?;
        let (held, source) = match self.warm(template).await? {
            Some(held) => (held, Source::Warm),
            None => (self.demand.restore(&template.name, Env::new()).await?, Source::Restored),
        };
        let id = held.id();
        if !self.leases.grant(held, lease).await {
            return Err(Refused::stopping());
        }
        let after = begun.elapsed();
        metrics::taken(source.as_str(), after);
        Ok(Taken { id, host_id, endpoint: Arc::clone(&self.host.endpoint), source, after })
    }

    /// A running capsule with `env`, for a user. A parked one was given its environment when it was restored, so one
    /// with its own is always restored.
    pub(crate) async fn running(&self, template: &Template, env: Env) -> Result<(Held, Source), Refused> {
        let begun = Instant::now();
        let warm = if env.is_empty() { self.warm(template).await? } else { None };
        let (held, source) = match warm {
            Some(held) => match self.host.agent.claim(held.id()).await {
                Ok(()) => (held, Source::Warm),
                Err(error) => {
                    // A parked capsule that died a moment ago: its user gets another one.
                    tracing::warn!(capsule.id = %held.id(), %error, "claim failed, restoring another capsule");
                    drop(held);
                    (self.demand.restore(&template.name, env).await?, Source::Restored)
                }
            },
            None => (self.demand.restore(&template.name, env).await?, Source::Restored),
        };
        metrics::taken(source.as_str(), begun.elapsed());
        Ok((held, source))
    }

    /// The host's id, or that it is away.
    pub(crate) fn host_id(&self) -> Result<Arc<str>, Refused> {
        self.host.id().ok_or_else(|| Refused::Away("the host's agent is away".to_owned()))
    }

    async fn warm(&self, template: &Template) -> Result<Option<Held>, Refused> {
        match self.pools.of(&template.name) {
            Some(pool) => pool.take().await.map_err(|_gone| Refused::stopping()),
            None => Ok(None),
        }
    }
}
