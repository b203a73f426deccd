//! How a capsule's VMM or pager ended.

use crate::vmm::guard::Vmm;
use std::{io, time::Duration};
use tokio::time::timeout;

/// Between a pager's end and its VMM's, when it was the VMM that died.
const VMM_AFTER_PAGER: Duration = Duration::from_millis(500);

/// Waits until the VMM or its pager has ended, and says which and how. Cancel safe.
pub(super) async fn of(vmm: &Vmm) -> String {
    let is_vmm = tokio::select! {
        biased;
        _ = vmm.process.exited() => true,
        // A dying VMM closes its files, which ends its pager, before it has ended itself.
        _ = pager_exited(vmm) => timeout(VMM_AFTER_PAGER, vmm.process.exited()).await.is_ok(),
    };
    if is_vmm {
        let who = if vmm.ran_out_of_memory() { "the VMM, out of memory," } else { "the VMM" };
        return ended(who, vmm.process.reap(), &vmm.log());
    }
    let how = vmm.pager.as_ref().and_then(|pager| pager.reap());
    ended("its pager", how, &vmm.pager_log())
}

async fn pager_exited(vmm: &Vmm) -> io::Result<()> {
    match &vmm.pager {
        Some(pager) => pager.exited().await,
        None => std::future::pending().await,
    }
}

fn ended(who: &str, how: Option<String>, log: &str) -> String {
    let how = how.unwrap_or_else(|| "unknown".to_owned());
    if log.is_empty() { format!("{who} ended ({how})") } else { format!("{who} ended ({how}): {log}") }
}
