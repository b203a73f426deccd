//! The task that owns one context: one run at a time, control before runs.

use super::{Control, DefaultEnv, Queued};
use crate::{
    config::Config,
    error::RuntimeError,
    files::{self, Listing},
    kernel::{Broken, Incoming, Kernel, Request, Settings},
    language::Language,
    output::Sink,
    run::{self, Ended, File, Mailbox, Run, Stop},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures::FutureExt;
use hearth_proto::wire::run::{End, RunStatus};
use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// A rehearsal that takes longer is given up, with its kernel.
const REHEARSAL: Duration = Duration::from_secs(5);
const REHEARSAL_OUTPUT_BYTES: usize = 4 << 10;

/// The state of one context.
pub(super) struct Runner {
    id: String,
    language: Language,
    config: Arc<Config>,
    env: Arc<DefaultEnv>,
    kernel: Option<Kernel>,
    /// Kernels started so far.
    started: u32,
}

/// How a run is reported.
struct Verdict {
    status: RunStatus,
    count: u32,
}

impl Runner {
    pub(super) fn new(id: String, language: Language, config: Arc<Config>, env: Arc<DefaultEnv>) -> Self {
        Self { id, language, config, env, kernel: None, started: 0 }
    }

    /// Serves until the last handle is dropped.
    pub(super) async fn run(
        mut self,
        mut runs: mpsc::Receiver<Box<Queued>>,
        mut control: mpsc::Receiver<Control>,
        busy: watch::Sender<bool>,
    ) {
        loop {
            tokio::select! {
                // Control first: a reseed must come before the next run.
                biased;
                request = control.recv() => match request {
                    Some(request) => self.control(request).await,
                    None => break,
                },
                queued = runs.recv() => match queued {
                    Some(queued) => {
                        busy.send_replace(true);
                        self.serve(*queued).await;
                        busy.send_replace(false);
                    }
                    None => break,
                },
                () = idle(&mut self.kernel) => self.discard().await,
            }
        }
        self.discard().await;
    }

    async fn control(&mut self, request: Control) {
        // A caller that has gone needs no answer; the work is done all the same.
        match request {
            Control::Warm(reply) => {
                let _gone = reply.send(self.warm().await);
            }
            Control::Reseed(seed, reply) => {
                self.reseed(seed).await;
                let _gone = reply.send(());
            }
            Control::Rehearse(reply) => {
                self.rehearse().await;
                let _gone = reply.send(());
            }
        }
    }

    async fn warm(&mut self) -> Result<(), RuntimeError> {
        let limit = self.config.limits.warm;
        let (kernel, _) = self.ready().await?;
        let warmed = kernel.call(&Request::Warm, limit).await;
        if let Err(error) = warmed {
            self.discard().await;
            return Err(RuntimeError::Kernel(error.to_string()));
        }
        Ok(())
    }

    /// Fails closed: a kernel that does not confirm is killed, the next use starts another.
    async fn reseed(&mut self, mut seed: Vec<u8>) {
        let Some(kernel) = &mut self.kernel else { return };
        // No two contexts of one capsule agree either.
        seed.extend_from_slice(self.id.as_bytes());
        let request = Request::Reseed(BASE64.encode(seed));
        if let Err(error) = kernel.call(&request, self.config.limits.reseed).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "kernel not reseeded, killing it");
            self.discard().await;
        }
    }

    async fn rehearse(&mut self) {
        for cell in self.language.rehearsal() {
            let Some(kernel) = &mut self.kernel else { return };
            let mut sink = Sink::new(Mailbox::unread(), REHEARSAL_OUTPUT_BYTES);
            let limits = run::Limits { timeout: REHEARSAL, grace: self.config.limits.interrupt_grace };
            match run::drive(kernel, &Request::Rehearse(cell), &mut sink, limits).await {
                Ended::Replied { stop: None, .. } => {}
                ended => {
                    tracing::warn!(?ended, "rehearsal failed, killing the kernel");
                    self.discard().await;
                }
            }
        }
    }

    /// The kernel, started if need be; and whether it replaces an earlier one.
    async fn ready(&mut self) -> Result<(&mut Kernel, bool), RuntimeError> {
        // It may have ended since it was last looked at.
        if self.kernel.is_some() && idle(&mut self.kernel).now_or_never().is_some() {
            self.discard().await;
        }
        let fresh = self.kernel.is_none() && self.started > 0;
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => {
                let name = format!("{}-{}", self.id, self.started);
                let kernel = Kernel::start(&self.config, self.language, &name).await?;
                self.started += 1;
                kernel
            }
        };
        Ok((self.kernel.insert(kernel), fresh))
    }

    async fn discard(&mut self) {
        if let Some(mut kernel) = self.kernel.take() {
            kernel.kill().await;
        }
    }

    async fn serve(&mut self, queued: Queued) {
        let Queued { run, mailbox, accepted } = queued;
        let mut sink = Sink::new(mailbox, run.max_output_bytes);
        if sink.mailbox().is_abandoned() {
            return;
        }
        let mut fresh_kernel = false;
        let verdict = match self.ready().await {
            Ok((_, fresh)) => {
                fresh_kernel = fresh;
                self.execute(run, &mut sink).await
            }
            Err(error) => {
                sink.explain("KernelStartError", error.to_string());
                Verdict { status: RunStatus::KernelDied, count: 0 }
            }
        };
        sink.finish(End {
            status: verdict.status.into(),
            execution_count: verdict.count,
            fresh_kernel,
            run_us: u64::try_from(accepted.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..End::default()
        });
    }

    /// Runs on the kernel, which is there.
    async fn execute(&mut self, mut run: Run, sink: &mut Sink) -> Verdict {
        let Some(kernel) = &mut self.kernel else {
            return Verdict { status: RunStatus::KernelDied, count: 0 };
        };
        let files = std::mem::take(&mut run.files);
        let before = match prepare(&self.config, kernel, &run, files).await {
            Ok(before) => before,
            Err((name, value)) => {
                sink.explain(name, value);
                return Verdict { status: RunStatus::Error, count: 0 };
            }
        };
        let (version, defaults) = self.env.get();
        let settings = Settings {
            default_env: (version != kernel.env_version).then_some(&*defaults),
            env: (!run.env.is_empty()).then_some(&run.env),
            cwd: run.cwd.as_deref(),
            stdin: run.stdin.take(),
        };
        kernel.env_version = version;
        let oom_kills = kernel.oom_kills();
        let limits = run::Limits { timeout: run.timeout, grace: self.config.limits.interrupt_grace };
        let ended = run::drive(kernel, &Request::Execute(&run.code, settings), sink, limits).await;
        let verdict = self.judge(ended, &run, oom_kills, sink).await;
        if let Some((root, listing)) = before {
            let found =
                files::as_user(self.config.user.as_ref(), move || files::changed(&root, &listing)).await;
            for artifact in found.unwrap_or_default() {
                sink.artifact(artifact);
            }
        }
        verdict
    }

    /// Turns how a run ended into its status, and puts away a kernel that cannot be used again.
    async fn judge(&mut self, ended: Ended, run: &Run, oom_kills: Option<u64>, sink: &mut Sink) -> Verdict {
        let (stop, count) = match ended {
            Ended::Replied { ok, count, stop: None } => {
                return Verdict { status: if ok { RunStatus::Ok } else { RunStatus::Error }, count };
            }
            Ended::Replied { count, stop: Some(stop), .. } => (stop, count),
            Ended::Deaf(stop) => {
                self.discard().await;
                (stop, 0)
            }
            Ended::Gone(status) => return self.bury(status, oom_kills, sink).await,
        };
        let lost = if self.kernel.is_none() { "; it did not react, so its kernel was replaced" } else { "" };
        match stop {
            Stop::Timeout => {
                let limit = run.timeout.as_millis();
                sink.explain("TimeoutError", format!("the run took longer than {limit} ms{lost}"));
                Verdict { status: RunStatus::Timeout, count }
            }
            Stop::Abandoned => Verdict { status: RunStatus::Interrupted, count },
        }
    }

    /// The kernel is gone: why?
    async fn bury(&mut self, status: Option<ExitStatus>, oom_kills: Option<u64>, sink: &mut Sink) -> Verdict {
        let Some(mut kernel) = self.kernel.take() else {
            return Verdict { status: RunStatus::KernelDied, count: 0 };
        };
        let oom = kernel.oom_kills() > oom_kills;
        kernel.kill().await;
        if oom {
            let text = "the run used more memory than there is; its variables are lost";
            sink.explain("OutOfMemoryError", text.into());
            return Verdict { status: RunStatus::Oom, count: 0 };
        }
        let how = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("exited with status {code}"),
            Some((None, Some(signal))) => format!("was ended by {}", signal_name(signal)),
            Some((None, None)) | None => "broke its connection".into(),
        };
        sink.explain("KernelDied", format!("the Python process {how}; the context's variables are lost"));
        Verdict { status: RunStatus::KernelDied, count: 0 }
    }
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().into(),
        Err(_) => format!("signal {signal}"),
    }
}

/// Keeps an idle kernel's output flowing, into nothing. Returns when it can no longer be used; never when
/// there is none.
///
/// # Cancel safety
/// May be dropped at any time.
async fn idle(kernel: &mut Option<Kernel>) {
    let Some(kernel) = kernel else { return std::future::pending().await };
    loop {
        let end = match kernel.next().await {
            Ok(Incoming::Message(_) | Incoming::Bytes(..)) if kernel.is_closed() => Broken::Closed,
            Ok(Incoming::Message(_) | Incoming::Bytes(..)) => continue,
            Ok(Incoming::Exited(status)) => Broken::Exited(status),
            Err(error) => error,
        };
        tracing::info!(error = &end as &dyn std::error::Error, "idle kernel ended");
        return;
    }
}

/// Writes the run's files and lists its directory, if it asked for that. An error is the run's own.
async fn prepare(
    config: &Config,
    kernel: &Kernel,
    run: &Run,
    files: Vec<File>,
) -> Result<Option<(PathBuf, Listing)>, (&'static str, String)> {
    if let Some(cwd) = &run.cwd
        && !Path::new(cwd).is_dir()
    {
        return Err(("NotADirectoryError", format!("cwd: {cwd} is not a directory")));
    }
    if files.is_empty() && !run.artifacts {
        return Ok(None);
    }
    let cwd = match &run.cwd {
        Some(cwd) => cwd.into(),
        None => kernel.cwd().map_err(|error| ("KernelDied", error.to_string()))?,
    };
    let artifacts = run.artifacts;
    let work = move || {
        files::write(&cwd, files)?;
        Ok::<_, files::FileError>(artifacts.then(|| (cwd.clone(), Listing::of(&cwd))))
    };
    let done = files::as_user(config.user.as_ref(), work).await;
    done.map_err(|error| ("OSError", error.to_string()))?.map_err(|error| ("OSError", error.to_string()))
}
