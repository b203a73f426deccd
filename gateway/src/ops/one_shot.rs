//! A run in a fresh capsule: take one, run the code in it, give it back.
//!
//! ```text
//! Take ──▶ Execute ──▶ answer      Release goes out when the lease is dropped: also when the client goes away,
//!   ▲         │                    and after the stream to the agent was dropped, which interrupts the code.
//!   └─────────┘ once, if the capsule was dead before anything ran
//! ```

use crate::{
    app::App,
    error::ApiError,
    middleware::Scope,
    ops::{
        lease::Lease,
        run::{self, Answer, Run, RunFault},
        stages,
    },
};
use hearth_proto::wire::{agent::Template, pool::TakeRequest};
use hearth_service::telemetry;
use std::time::{Duration, Instant};

/// The lease outlives the run's own limits, so that it only ever ends what was forgotten.
const LEASE_OVERTIME: Duration = Duration::from_secs(30);

/// What to take a capsule of.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Empty: the default template.
    pub(crate) template: String,
    /// 0: the template's own size.
    pub(crate) memory_mb: u64,
}

/// Runs code in a capsule that nobody used before and nobody will use again.
pub(crate) async fn execute(app: &App, scope: &Scope, wish: &Wish, run: &Run) -> Result<Answer, ApiError> {
    let started = Instant::now();
    if wish.memory_mb > 0 {
        check_memory(&app.pool.templates(&scope.request_id).await?, wish)?;
    }
    let answer = match attempt(app, scope, wish, run).await {
        Err(RunFault::NotBegun(error)) => {
            let cause = telemetry::chain(&error);
            tracing::warn!(
                error.cause = cause,
                "a capsule was dead before the code ran; another one is tried"
            );
            attempt(app, scope, wish, run).await.map_err(dead_again)?
        }
        Err(RunFault::Failed(error)) => return Err(error),
        Ok(answer) => answer,
    };
    stages::total(answer.source, started.elapsed());
    Ok(answer)
}

async fn attempt(app: &App, scope: &Scope, wish: &Wish, run: &Run) -> Result<Answer, RunFault> {
    let taking = Instant::now();
    let take = TakeRequest {
        template: wish.template.clone(),
        memory_mb: wish.memory_mb,
        language: run.language.to_owned(),
        lease_ms: u64::try_from((run.timeout + LEASE_OVERTIME).as_millis()).unwrap_or(u64::MAX),
    };
    let lease = Lease::take(app, scope, take).await.map_err(RunFault::Failed)?;
    stages::take(lease.place.source, taking.elapsed());
    run::on_host(app, scope, &lease.place, run, run.timeout + run::OVERTIME).await
}

/// Twice in a row is not bad luck. What the agent said is about a capsule that the caller never named.
fn dead_again(fault: RunFault) -> ApiError {
    match fault {
        RunFault::NotBegun(error) => {
            ApiError::unavailable("no capsule could start the code; try again").because(error)
        }
        RunFault::Failed(error) => error,
    }
}

/// (pure) A snapshot's size is baked in: some variant must be at least as large as the wish.
fn check_memory(templates: &[Template], wish: &Wish) -> Result<(), ApiError> {
    let mut sizes: Vec<u64> = templates
        .iter()
        .filter(|template| wish.template.is_empty() || template.name == wish.template)
        .map(|template| template.memory_mb)
        .collect();
    if sizes.is_empty() {
        // The name may be an alias, which only pool-manager resolves.
        sizes = templates.iter().map(|template| template.memory_mb).collect();
    }
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() || sizes.iter().any(|size| *size >= wish.memory_mb) {
        return Ok(());
    }
    let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
    Err(ApiError::invalid(format!(
        "memory_mb: the largest size does not reach; sizes there are: {}",
        sizes.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(name: &str, memory_mb: u64) -> Template {
        Template { name: name.to_owned(), memory_mb, ..Template::default() }
    }

    #[test]
    fn a_size_that_no_snapshot_has_names_those_there_are() {
        let templates = [template("code", 1024), template("code", 512), template("big", 4096)];
        let check = |name: &str, memory_mb| {
            check_memory(&templates, &Wish { template: name.to_owned(), memory_mb })
                .map_err(|e| e.to_string())
        };
        assert_eq!(check("code", 1024), Ok(()));
        assert_eq!(check("", 4096), Ok(()));
        assert_eq!(check("minimal", 4096), Ok(()));
        let refused = check("code", 1025).expect_err("too large");
        assert_eq!(refused, "memory_mb: the largest size does not reach; sizes there are: 512, 1024");
        assert!(check("minimal", 4097).is_err());
        assert!(check_memory(&[], &Wish { template: String::new(), memory_mb: 9 }).is_ok());
    }
}
