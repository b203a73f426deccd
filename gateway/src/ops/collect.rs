//! (pure) The events of a run become one answer. The guest is not trusted: whatever it sends, what is kept is bounded.

use hearth_proto::wire::run::{
    Artifact, End, MimePart, Result as Display, RunError, RunEvent, RunStatus, run_event,
};

/// The guest cuts its output and marks the cut. We allow for the marker, and cut only what does not respect the limit.
const STREAM_SLACK_BYTES: usize = 64 << 10;
const RESULTS_BYTES_MAX: usize = 64 << 20;
const RESULTS_MAX: usize = 1_000;
const ARTIFACTS_BYTES_MAX: usize = 64 << 20;
const ARTIFACTS_MAX: usize = 1_000;
/// Name, value and traceback of an error together.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// One answer of a run that came to its end.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) status: Status,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) displays: Vec<Display>,
    pub(crate) error: Option<RunError>,
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) execution_count: u32,
    /// The context lost its state before this run.
    pub(crate) fresh_kernel: bool,
    pub(crate) truncated: Truncated,
    /// Time inside the guest.
    pub(crate) run_us: u64,
}

/// What is not whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Truncated {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) results: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) artifacts: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Truncated {
    /// Whether anything is not whole.
    pub(crate) fn any(self) -> bool {
        self.stdout || self.stderr || self.results || self.artifacts
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Ok,
    Error,
    Timeout,
    Interrupted,
    Oom,
    KernelDied,
}

impl Status {
    fn of(end: &End) -> Self {
        match end.status() {
            RunStatus::Ok => Self::Ok,
            RunStatus::Error => Self::Error,
            RunStatus::Timeout => Self::Timeout,
            RunStatus::Interrupted => Self::Interrupted,
            RunStatus::Oom => Self::Oom,
            // A word that we do not know: nothing can be said for the kernel.
            RunStatus::KernelDied | RunStatus::Unspecified => Self::KernelDied,
        }
    }
}

/// Takes events until the end.
#[derive(Debug)]
pub(crate) struct Collector {
    stdout: Bounded,
    stderr: Bounded,
    displays: Vec<Display>,
    displays_bytes: usize,
    artifacts: Vec<Artifact>,
    artifacts_bytes: usize,
    error: Option<RunError>,
    truncated: Truncated,
    end: Option<End>,
}

impl Collector {
    /// Keeps at most so many bytes of each stream (and the guest's marker).
    pub(crate) fn new(max_output_bytes: u64) -> Self {
        let limit =
            usize::try_from(max_output_bytes).unwrap_or(usize::MAX).saturating_add(STREAM_SLACK_BYTES);
        Self {
            stdout: Bounded::new(limit),
            stderr: Bounded::new(limit),
            displays: Vec::new(),
            displays_bytes: 0,
            artifacts: Vec::new(),
            artifacts_bytes: 0,
            error: None,
            truncated: Truncated::default(),
            end: None,
        }
    }

    /// Takes one event. True when it was the last.
    pub(crate) fn push(&mut self, event: RunEvent) -> bool {
        match event.event {
            Some(run_event::Event::Stdout(chunk)) => self.stdout.push(&chunk.data),
            Some(run_event::Event::Stderr(chunk)) => self.stderr.push(&chunk.data),
            Some(run_event::Event::Result(display)) => self.display(display),
            Some(run_event::Event::Error(error)) => self.error = Some(bounded_error(error)),
            Some(run_event::Event::Artifact(artifact)) => self.artifact(artifact),
            Some(run_event::Event::End(end)) => self.end = Some(end),
            // An event of a newer guest.
            None => {}
        }
        self.end.is_some()
    }

    /// The answer, if the end was among the events.
    pub(crate) fn finish(self) -> Option<Collected> {
        let end = self.end?;
        let truncated = Truncated {
            stdout: self.stdout.cut || end.stdout_truncated,
            stderr: self.stderr.cut || end.stderr_truncated,
            ..self.truncated
        };
        Some(Collected {
            status: Status::of(&end),
            stdout: self.stdout.bytes,
            stderr: self.stderr.bytes,
            displays: self.displays,
            error: self.error,
            artifacts: self.artifacts,
            execution_count: end.execution_count,
            fresh_kernel: end.fresh_kernel,
            truncated,
            run_us: end.run_us,
        })
    }

    fn display(&mut self, display: Display) {
        let bytes: usize = display.parts.iter().map(part_bytes).sum();
        if self.displays.len() < RESULTS_MAX && self.displays_bytes.saturating_add(bytes) <= RESULTS_BYTES_MAX
        {
            self.displays_bytes += bytes;
            self.displays.push(display);
        } else {
            self.truncated.results = true;
        }
    }

    fn artifact(&mut self, mut artifact: Artifact) {
        if self.artifacts.len() >= ARTIFACTS_MAX {
            self.truncated.artifacts = true;
            return;
        }
        let content = artifact.content.as_ref().map_or(0, Vec::len);
        if self.artifacts_bytes.saturating_add(content) > ARTIFACTS_BYTES_MAX {
            artifact.content = None;
            self.truncated.artifacts = true;
        } else {
            self.artifacts_bytes += content;
        }
        artifact.path.truncate(floor_boundary(&artifact.path, 4096));
        artifact.mime.truncate(floor_boundary(&artifact.mime, 256));
        self.artifacts.push(artifact);
    }
}

/// Bytes up to a limit; what is over it is dropped.
#[derive(Debug)]
pub(crate) struct Bounded {
    pub(crate) bytes: Vec<u8>,
    limit: usize,
    pub(crate) cut: bool,
}

impl Bounded {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, cut: false }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        let room = self.limit - self.bytes.len();
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        self.cut |= chunk.len() > room;
    }
}

/// A part's text and a little for the structures around it, so that empty parts are not free.
fn part_bytes(part: &MimePart) -> usize {
    part.mime.len() + part.data.len() + 64
}

fn bounded_error(mut error: RunError) -> RunError {
    let mut room = ERROR_BYTES_MAX;
    let mut take = |text: &mut String| {
        text.truncate(floor_boundary(text, room));
        room -= text.len();
    };
    take(&mut error.name);
    take(&mut error.value);
    error.traceback.truncate(1_000);
    error.traceback.iter_mut().for_each(take);
    error
}

/// The largest length up to `max` that does not cut a character.
fn floor_boundary(text: &str, max: usize) -> usize {
    text.floor_char_boundary(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::wire::run::Chunk;

    fn event(event: run_event::Event) -> RunEvent {
        RunEvent { event: Some(event) }
    }

    fn stdout(data: &[u8]) -> RunEvent {
        event(run_event::Event::Stdout(Chunk { data: data.to_vec() }))
    }

    fn end(status: RunStatus) -> RunEvent {
        event(run_event::Event::End(End { status: status.into(), execution_count: 3, ..End::default() }))
    }

    #[test]
    fn characters_split_between_chunks_are_whole_again() {
        let mut collector = Collector::new(100);
        assert!(!collector.push(stdout(&[0xe2, 0x82])));
        assert!(!collector.push(stdout(&[0xac])));
        assert!(collector.push(end(RunStatus::Ok)));
        let collected = collector.finish().expect("an end");
        assert_eq!(collected.stdout, "€".as_bytes());
        assert_eq!((collected.status, collected.execution_count), (Status::Ok, 3));
        assert!(!collected.truncated.any());
    }

    #[test]
    fn without_an_end_there_is_no_answer() {
        let mut collector = Collector::new(100);
        collector.push(stdout(b"half"));
        assert!(collector.finish().is_none());
    }

    #[test]
    fn a_guest_that_floods_is_cut_and_said_so() {
        let mut collector = Collector::new(10);
        for _ in 0..100 {
            collector.push(stdout(&[b'x'; 4096]));
        }
        for _ in 0..2 * RESULTS_MAX {
            collector.push(event(run_event::Event::Result(Display::default())));
            collector.push(event(run_event::Event::Artifact(Artifact::default())));
        }
        collector.push(end(RunStatus::Timeout));
        let collected = collector.finish().expect("an end");
        assert_eq!(collected.stdout.len(), 10 + STREAM_SLACK_BYTES);
        assert_eq!((collected.displays.len(), collected.artifacts.len()), (RESULTS_MAX, ARTIFACTS_MAX));
        assert_eq!(
            collected.truncated,
            Truncated { stdout: true, stderr: false, results: true, artifacts: true }
        );
    }

    #[test]
    fn artifacts_over_the_sum_lose_their_content_not_their_name() {
        let mut collector = Collector::new(10);
        for _ in 0..65 {
            let content = Some(vec![0; 1 << 20]);
            collector.push(event(run_event::Event::Artifact(Artifact { content, ..Artifact::default() })));
        }
        collector.push(end(RunStatus::Ok));
        let collected = collector.finish().expect("an end");
        assert_eq!(collected.artifacts.iter().filter(|artifact| artifact.content.is_some()).count(), 64);
        assert_eq!(collected.artifacts.len(), 65);
    }

    #[test]
    fn errors_are_cut_between_characters() {
        let value = "€".repeat(ERROR_BYTES_MAX);
        let error = bounded_error(RunError { name: "E".to_owned(), value, traceback: vec!["t".to_owned()] });
        assert!(error.name.len() + error.value.len() + error.traceback[0].len() <= ERROR_BYTES_MAX);
        assert!(error.value.ends_with('€'));
    }
}
