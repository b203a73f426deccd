//! Whether a guest answers: asked every few seconds, beside everything else, so that one that does not answer is waited
//! for by nobody.

use crate::guest::{Guest, GuestError};
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often a running guest is asked, which also keeps its clock.
const PERIOD: Duration = Duration::from_secs(10);
/// The same after it did not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Failures in a row that make a guest unresponsive. Each takes up to five seconds: a busy one is not called dead.
const FAILURES_MAX: u32 = 3;

/// The questions to one guest.
pub(super) struct Health {
    next: Instant,
    asked: Option<BoxFuture<'static, Result<(), GuestError>>>,
    failures: u32,
}

/// (pure) What an answer, or none, changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// It has not answered too often.
    Lost,
    /// It answers again.
    Found,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + PERIOD, asked: None, failures: 0 }
    }

    /// The next answer. Cancel safe: a question that was asked stays asked. Never, while `is_running` is false.
    pub(super) async fn answer(&mut self, guest: &Guest, is_running: bool) -> Result<(), GuestError> {
        if !is_running {
            self.asked = None;
            return std::future::pending().await;
        }
        if self.asked.is_none() {
            sleep_until(self.next).await;
        }
        let guest = guest.clone();
        let asked = self.asked.get_or_insert_with(|| Box::pin(async move { guest.health().await.map(drop) }));
        let answer = asked.await;
        self.asked = None;
        self.next = Instant::now() + if answer.is_ok() { PERIOD } else { AGAIN };
        answer
    }

    /// Counts an answer.
    pub(super) fn count(&mut self, is_well: bool) -> Change {
        let (failures, change) = after(self.failures, is_well);
        self.failures = failures;
        change
    }
}

/// (pure) The number of failures in a row after an answer, and what that changes.
fn after(failures: u32, is_well: bool) -> (u32, Change) {
    match (failures, is_well) {
        (FAILURES_MAX.., true) => (0, Change::Found),
        (_, true) => (0, Change::None),
        (_, false) => {
            let failures = failures.saturating_add(1);
            (failures, if failures == FAILURES_MAX { Change::Lost } else { Change::None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_lost_after_failures_in_a_row_and_found_by_one_answer() {
        let mut failures = 0;
        let mut changes = Vec::new();
        for is_well in [false, false, true, false, false, false, false, true, true] {
            let (next, change) = after(failures, is_well);
            failures = next;
            changes.push(change);
        }
        use Change::{Found, Lost, None};
        assert_eq!(changes, [None, None, None, None, None, Lost, None, Found, None]);
    }
}
