//! The task that owns one context: one run at a time, control before runs.

use super::{Control, DefaultEnv, Queued};
use crate::{
    config::Config,
    error::RuntimeError,
    files::{self, Watched},
    kernel::{Broken, Incoming, Kernel, Request, Settings},
    language::Language,
    output::Sink,
    run::{self, Ended, Run, Stop},
};
use futures::FutureExt;
use hearth_proto::wire::run::{End, RunStatus};
use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// The state of one context.
pub(super) struct Runner {
    id: String,
    language: Language,
    config: Arc<Config>,
    env: Arc<DefaultEnv>,
    kernel: Option<Kernel>,
    /// Kernels started so far.
    started: u32,
    /// Whether user code has run in the kernel.
    ran: bool,
    /// The kernel is to be reseeded by its next request.
    reseed_due: bool,
    /// The directory of the last run, watched.
    watched: Option<Watched>,
}

/// How a run is reported.
struct Verdict {
    status: RunStatus,
    count: u32,
}

impl Runner {
    pub(super) fn new(id: String, language: Language, config: Arc<Config>, env: Arc<DefaultEnv>) -> Self {
        Self {
            id,
            language,
            config,
            env,
            kernel: None,
            started: 0,
            ran: false,
            reseed_due: false,
            watched: None,
        }
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
            Control::Reseed(reply) => {
                self.reseed().await;
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
        // The first run of a restored capsule finds its directory watched.
        if let Some(cwd) = self.kernel.as_ref().and_then(|kernel| kernel.cwd().ok()) {
            self.watched = Watched::start(self.config.user.as_ref(), cwd).await;
        }
        Ok(())
    }

    /// Fails closed: a kernel that does not confirm is killed, the next use starts another.
    async fn reseed(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        if !self.ran {
            self.reseed_due = true;
            return;
        }
        if let Err(error) = kernel.call(&Request::Reseed, self.config.limits.reseed).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "kernel not reseeded, killing it");
            self.discard().await;
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
                (self.ran, self.reseed_due) = (false, false);
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
        if let Err((name, value)) = self.prepare(&mut run).await {
            sink.explain(name, value);
            return Verdict { status: RunStatus::Error, count: 0 };
        }
        let mut verdict = Verdict { status: RunStatus::Ok, count: 0 };
        let cells = if run.rehearsal { self.language.rehearsal() } else { &[run.code.as_str()] };
        for cell in cells {
            let Some(kernel) = &mut self.kernel else {
                return Verdict { status: RunStatus::KernelDied, count: 0 };
            };
            let (version, defaults) = self.env.get();
            let mut settings = Settings { reseed: self.reseed_due, ..Settings::default() };
            self.reseed_due = false;
            let oom_kills = kernel.oom_kills_before();
            let limits = run::Limits { timeout: run.timeout, grace: self.config.limits.interrupt_grace };
            let request = if run.rehearsal {
                Request::Rehearse(cell, settings)
            } else {
                settings.default_env = (version != kernel.env_version).then_some(&*defaults);
                settings.env = (!run.env.is_empty()).then_some(&run.env);
                settings.cwd = run.cwd.as_deref();
                settings.stdin = run.stdin.take();
                kernel.env_version = version;
                self.ran = true;
                Request::Execute(cell, settings)
            };
            let ended = run::drive(kernel, &request, sink, limits).await;
            verdict = self.judge(ended, &run, oom_kills, sink).await;
        }
        if run.artifacts {
            self.report_artifacts(sink).await;
        }
        verdict
    }

    /// Writes the run's files and has its directory watched, if it asked for that. An error is the run's own.
    async fn prepare(&mut self, run: &mut Run) -> Result<(), (&'static str, String)> {
        if let Some(cwd) = &run.cwd
            && !Path::new(cwd).is_dir()
        {
            return Err(("NotADirectoryError", format!("cwd: {cwd} is not a directory")));
        }
        let files = std::mem::take(&mut run.files);
        if files.is_empty() && !run.artifacts {
            return Ok(());
        }
        let cwd: PathBuf = match (&run.cwd, &self.kernel, &self.watched) {
            (Some(cwd), ..) => cwd.into(),
            // Nobody has changed the directory yet.
            (None, Some(_), Some(watched)) if !self.ran => watched.root().to_owned(),
            (None, Some(kernel), _) => kernel.cwd().map_err(|error| ("KernelDied", error.to_string()))?,
            (None, None, _) => return Err(("KernelDied", "the context has no process".into())),
        };
        let user = self.config.user.as_ref();
        if !files.is_empty() {
            let folder = cwd.clone();
            let written = files::as_user(user, move || files::write(&folder, files)).await;
            let failed = |error: &dyn std::error::Error| ("OSError", error.to_string());
            written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        }
        if run.artifacts && !self.watched.as_ref().is_some_and(|watched| watched.is_current(&cwd)) {
            self.watched = Watched::start(user, cwd).await;
        }
        Ok(())
    }

    /// Reports what the run made or changed in its directory; nothing is read when nothing was.
    async fn report_artifacts(&mut self, sink: &mut Sink) {
        let Some(watched) = self.watched.take_if(|watched| !watched.is_quiet()) else { return };
        let (artifacts, next) = watched.changes(self.config.user.as_ref()).await;
        self.watched = next;
        for artifact in artifacts {
            sink.artifact(artifact);
        }
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
