//! One run of code: what is asked for, how its events become one answer, and how it can fail.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    ops::{
        capsules::unknown_capsule,
        collect::{Collected, Collector},
        stages,
    },
    upstream::{UpstreamError, stream::Events},
};
use hearth_proto::{
    error::ErrorCode,
    id::{CapsuleId, RunId},
    wire::{
        agent::{ExecuteCall, ExecuteEvent, execute_event},
        pool::HostRef,
        run::{FileInput, RunRequest},
    },
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tonic::Code;

/// The guest ends a run in time by itself. When it does not, we wait this much longer before we give up.
pub(crate) const OVERTIME: Duration = Duration::from_secs(15);

/// A checked request to run code.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) code: String,
    pub(crate) language: &'static str,
    pub(crate) env: HashMap<String, String>,
    /// Absolute, or empty for the context's own.
    pub(crate) cwd: String,
    pub(crate) stdin: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) max_output_bytes: u64,
    pub(crate) files: Vec<File>,
    pub(crate) artifacts: bool,
}

/// A file that is written before the code runs.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
}

/// Where a run's capsule came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It waited in a pool.
    Warm,
    /// It was restored for this run.
    Restored,
    /// It was booted for this run.
    Booted,
    /// It is the caller's own and was running already.
    Own,
}

impl Source {
    /// pool-manager's word for it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "warm" => Some(Self::Warm),
            "restored" => Some(Self::Restored),
            "booted" => Some(Self::Booted),
            _ => None,
        }
    }

    /// The word in metrics, and in public except for `own`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Restored => "restored",
            Self::Booted => "booted",
            Self::Own => "own",
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) id: RunId,
    pub(crate) collected: Collected,
    pub(crate) capsule: CapsuleId,
    pub(crate) source: Source,
    /// From asking for the capsule until its vCPUs ran.
    pub(crate) claim: Duration,
}

/// A run that has no answer.
#[derive(Debug)]
pub(crate) enum RunFault {
    /// The capsule was dead or gone before anything ran: another one can be tried.
    NotBegun(UpstreamError),
    /// For the caller.
    Failed(ApiError),
}

/// Runs code in the default context of a running capsule of the caller.
pub(crate) async fn in_capsule(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    run: &Run,
) -> Result<Answer, ApiError> {
    let started = Instant::now();
    let host = app.pool.locate(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)?;
    let place = Place { host, capsule, source: Source::Own, taken: started };
    // Runs in one context queue up, so another one may come first.
    let limit = Duration::from_millis(app.config.max_timeout_ms) + run.timeout + OVERTIME;
    let answer = on_host(app, scope, &place, run, limit).await.map_err(|fault| match fault {
        RunFault::NotBegun(error) => unknown_capsule(error),
        RunFault::Failed(error) => error,
    })?;
    stages::total(Source::Own, started.elapsed());
    Ok(answer)
}

/// A capsule to run in.
pub(crate) struct Place {
    pub(crate) host: HostRef,
    pub(crate) capsule: CapsuleId,
    pub(crate) source: Source,
    /// When it was asked for.
    pub(crate) taken: Instant,
}

/// Runs code in a capsule and collects its events, at most for `limit`. Dropping the future interrupts the run.
pub(crate) async fn on_host(
    app: &App,
    scope: &Scope,
    place: &Place,
    run: &Run,
    limit: Duration,
) -> Result<Answer, RunFault> {
    match tokio::time::timeout(limit, collect(app, scope, place, run, limit)).await {
        Ok(result) => result,
        Err(_) => Err(RunFault::Failed(ApiError::timeout(format!(
            "the run did not end within {} s",
            limit.as_secs()
        )))),
    }
}

async fn collect(
    app: &App,
    scope: &Scope,
    place: &Place,
    run: &Run,
    limit: Duration,
) -> Result<Answer, RunFault> {
    let begun = Instant::now();
    let waited = begun.duration_since(place.taken);
    let call = ExecuteCall { capsule_id: place.capsule.to_string(), request: Some(wire(run)) };
    let opened = app.agents.execute(&place.host, call, &scope.request_id, limit).await;
    let mut events = opened.map_err(|error| before(error, begun))?;
    let mut collector = Collector::new(run.max_output_bytes);
    let mut resume = Duration::ZERO;
    // The caller's own capsule cannot be replaced by another one: once the call is open, its code may have run, and a
    // break is a loss, also when nothing was said yet.
    let mut running = place.source == Source::Own;
    while let Some(event) = next(&mut events, running, begun).await? {
        match event.event {
            Some(execute_event::Event::Timings(timings)) => resume = Duration::from_micros(timings.resume_us),
            Some(execute_event::Event::Run(event)) => {
                running = true;
                if collector.push(event) {
                    break;
                }
            }
            // An event of a newer agent that this gateway does not know.
            None => {}
        }
    }
    let collected = collector.finish().ok_or_else(|| {
        let cut = tonic::Status::unavailable("the stream ended before the run").into();
        if running { during(cut) } else { before(cut, begun) }
    })?;
    stages::run(place.source, begun.elapsed());
    let claim = if place.source == Source::Own { Duration::ZERO } else { waited + resume };
    Ok(Answer { id: RunId::new(), collected, capsule: place.capsule, source: place.source, claim })
}

async fn next(
    events: &mut Events<ExecuteEvent>,
    running: bool,
    begun: Instant,
) -> Result<Option<ExecuteEvent>, RunFault> {
    events.next().await.map_err(|error| if running { during(error) } else { before(error, begun) })
}

/// A failure before the first event of the run. A refusal is one for certain; when the connection broke, the code may
/// have been running silently, so only an early break counts as not begun.
fn before(error: UpstreamError, begun: Instant) -> RunFault {
    const EARLY: Duration = Duration::from_secs(2);
    match error.code() {
        Some(Code::NotFound | Code::FailedPrecondition) => RunFault::NotBegun(error),
        Some(code) if is_gone(code) && begun.elapsed() < EARLY => RunFault::NotBegun(error),
        Some(code) if is_gone(code) => RunFault::Failed(lost().because(error)),
        Some(_) | None => RunFault::Failed(error.into()),
    }
}

/// A failure while code ran.
fn during(error: UpstreamError) -> RunFault {
    RunFault::Failed(match error.code() {
        Some(Code::InvalidArgument | Code::ResourceExhausted) => error.into(),
        Some(_) | None => lost().because(error),
    })
}

/// What the ways look like in which an agent or a capsule can go away under a call: a refused connection, a broken
/// one, a stream that was reset.
pub(crate) fn is_gone(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::DataLoss)
}

fn lost() -> ApiError {
    ApiError::new(ErrorCode::AgentError, "the capsule was lost while the code ran")
}

fn wire(run: &Run) -> RunRequest {
    RunRequest {
        code: run.code.clone(),
        language: run.language.to_owned(),
        context_id: String::new(),
        env: run.env.clone(),
        cwd: run.cwd.clone(),
        stdin: run.stdin.as_ref().map(|stdin| stdin.clone().into_bytes()),
        timeout_ms: u64::try_from(run.timeout.as_millis()).unwrap_or(u64::MAX),
        max_output_bytes: run.max_output_bytes,
        files: run
            .files
            .iter()
            .map(|file| FileInput { path: file.path.clone(), content: file.content.clone() })
            .collect(),
        artifacts: run.artifacts,
        rehearsal: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    fn error(code: Code) -> UpstreamError {
        Status::new(code, "text").into()
    }

    #[test]
    fn another_capsule_is_tried_only_when_nothing_can_have_run() {
        let now = Instant::now();
        let long_ago = now.checked_sub(Duration::from_secs(10)).expect("the machine runs longer");
        for code in [Code::NotFound, Code::FailedPrecondition] {
            assert!(matches!(before(error(code), long_ago), RunFault::NotBegun(_)));
        }
        assert!(matches!(before(error(Code::Unavailable), now), RunFault::NotBegun(_)));
        assert!(matches!(before(error(Code::Unavailable), long_ago), RunFault::Failed(_)));
        assert!(matches!(before(error(Code::InvalidArgument), now), RunFault::Failed(_)));
        for code in [Code::Unavailable, Code::NotFound, Code::Internal, Code::FailedPrecondition] {
            let RunFault::Failed(fault) = during(error(code)) else { panic!("tried again after {code:?}") };
            assert_eq!(fault.to_string(), "the capsule was lost while the code ran");
            assert_eq!(fault.code(), ErrorCode::AgentError);
        }
    }
}
