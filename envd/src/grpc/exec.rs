//! `Exec` on the wire.

use crate::process::{Event, Exit, Order};
use hearth_proto::wire::process::{ExecEvent, ExecRequest, Exited, Started, exec_event};
use std::time::Duration;

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// A year: beyond it a deadline's arithmetic, not its meaning, is at stake.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 86_400);
const OUTPUT_BYTES_DEFAULT: u64 = 8 << 20;
/// The tail's half of it is held in the guest's memory.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// What the request asks for, defaults filled in.
pub fn order(request: ExecRequest) -> Order {
    let user = if request.user.is_empty() { "root".to_owned() } else { request.user };
    let timeout = match request.timeout_ms {
        0 => TIMEOUT_DEFAULT,
        timeout_ms => Duration::from_millis(timeout_ms).min(TIMEOUT_MAX),
    };
    let output_bytes = match request.max_output_bytes {
        0 => OUTPUT_BYTES_DEFAULT,
        bytes => bytes.min(OUTPUT_BYTES_MAX),
    };
    Order {
        program: request.cmd,
        args: request.args,
        env: request.env,
        cwd: request.cwd,
        user,
        stdin: request.stdin,
        timeout,
        output_bytes_max: usize::try_from(output_bytes).unwrap_or(usize::MAX),
    }
}

/// An event on the wire.
pub fn wire(event: Event) -> ExecEvent {
    let event = match event {
        Event::Started { pid } => exec_event::Event::Started(Started { pid }),
        Event::Stdout(bytes) => exec_event::Event::Stdout(bytes),
        Event::Stderr(bytes) => exec_event::Event::Stderr(bytes),
        Event::Exited(exit) => exec_event::Event::Exited(exited(exit)),
    };
    ExecEvent { event: Some(event) }
}

/// An exit on the wire.
pub fn exited(exit: Exit) -> Exited {
    Exited {
        exit_code: exit.code,
        signal: exit.signal,
        timed_out: exit.timed_out,
        oom: exit.oom,
        stdout_truncated: exit.stdout_truncated,
        stderr_truncated: exit.stderr_truncated,
        error: exit.error,
    }
}
