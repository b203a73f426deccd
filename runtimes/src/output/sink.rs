//! Where a run's output goes: through the limits into the mailbox.

use super::{limit::Limiter, mime};
use crate::{
    kernel::Source,
    run::{Mailbox, event},
};
use hearth_proto::wire::run::{Artifact, End, MimePart, Result as Display, RunError};
use jupyter_protocol::ErrorOutput;
use serde_json::{Map, Value};

/// Displays and errors of one run together.
const RICH_BYTES_MAX: usize = 32 << 20;
/// Text of one error.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// The output of one run.
#[derive(Debug)]
pub(crate) struct Sink {
    mailbox: Mailbox,
    stdout: Limiter,
    stderr: Limiter,
    rich_left: usize,
    /// Errors are held until the run's status is known: an interrupt of ours is told as what it is.
    error: Option<RunError>,
}

impl Sink {
    /// A sink that lets about `max_bytes` of each stream through.
    pub(crate) fn new(mailbox: Mailbox, max_bytes: usize) -> Self {
        Self {
            mailbox,
            stdout: Limiter::new(max_bytes),
            stderr: Limiter::new(max_bytes),
            rich_left: RICH_BYTES_MAX,
            error: None,
        }
    }

    /// Who reads.
    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Text of a stream.
    pub(crate) fn text(&mut self, source: Source, data: &[u8]) {
        let now = match source {
            Source::Stdout => self.stdout.push(data),
            Source::Stderr => self.stderr.push(data),
        };
        if !now.is_empty() {
            self.mailbox.text(source, now);
        }
    }

    /// A display or the value of the cell.
    pub(crate) fn display(&mut self, bundle: Map<String, Value>, is_main: bool) {
        let mut parts = mime::parts(bundle);
        let size = mime::size(&parts);
        if size > self.rich_left {
            let notice = format!("<display of {size} bytes left out: over the limit of a run>");
            parts = vec![MimePart { mime: "text/plain".into(), data: notice }];
            if mime::size(&parts) > self.rich_left {
                return;
            }
        }
        self.rich_left -= mime::size(&parts);
        self.mailbox.push(event::Event::Result(Display { parts, is_main }));
    }

    /// An error of the code. Of several the last is the one that ended the cell.
    pub(crate) fn error(&mut self, error: ErrorOutput) {
        if let Some(before) = self.error.take() {
            self.push_error(before);
        }
        let mut left = ERROR_BYTES_MAX;
        let mut cut = |text: String| {
            let text = shorten(text, left);
            left -= text.len().min(left);
            text
        };
        self.error = Some(RunError {
            name: cut(error.ename),
            value: cut(error.evalue),
            traceback: error.traceback.into_iter().map(cut).filter(|line| !line.is_empty()).collect(),
        });
    }

    /// Replaces the held error's name and text: why the run was really ended. Its traceback, which tells
    /// where the code was, stays.
    pub(crate) fn explain(&mut self, name: &str, value: String) {
        let traceback = self.error.take().map(|error| error.traceback).unwrap_or_default();
        self.error = Some(RunError { name: name.into(), value, traceback });
    }

    /// A file that the run made.
    pub(crate) fn artifact(&mut self, artifact: Artifact) {
        self.mailbox.push(event::Event::Artifact(artifact));
    }

    /// Sends what is held back, and `end` with the truncation flags set.
    pub(crate) fn finish(self, mut end: End) {
        let Self { mailbox, stdout, stderr, error, .. } = self;
        for (source, limiter) in [(Source::Stdout, stdout), (Source::Stderr, stderr)] {
            let (tail, cut) = limiter.finish();
            if !tail.is_empty() {
                mailbox.text(source, &tail);
            }
            match source {
                Source::Stdout => end.stdout_truncated = cut,
                Source::Stderr => end.stderr_truncated = cut,
            }
        }
        if let Some(error) = error {
            mailbox.push(event::Event::Error(error));
        }
        mailbox.end(end);
    }

    fn push_error(&mut self, error: RunError) {
        let size =
            error.name.len() + error.value.len() + error.traceback.iter().map(String::len).sum::<usize>();
        if size <= self.rich_left {
            self.rich_left -= size;
            self.mailbox.push(event::Event::Error(error));
        }
    }
}

fn shorten(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
