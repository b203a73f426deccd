//! The service `Processes` on the wire.

use super::{Service, exec};
use crate::process::{
    Plan,
    input::InputError,
    log::{Cut, Item, Log, Reader, Source},
    registry::{Process, Selector},
    terminal::Size,
};
use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use hearth_proto::wire::process::{
    AttachEvent, AttachRequest, Attached, ListProcessesReply, ListProcessesRequest, ProcessInfo, ResizeReply,
    ResizeRequest, SignalReply, SignalRequest, StartReply, StartRequest, WriteInputReply, WriteInputRequest,
    attach_event, processes_server::Processes, selector,
};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Output that is kept unless the caller says otherwise, and at the most.
const KEEP_BYTES_DEFAULT: u64 = 1 << 20;
const KEEP_BYTES_MAX: u64 = 8 << 20;
const COLS_DEFAULT: u16 = 80;
const ROWS_DEFAULT: u16 = 24;
const SIGNAL_MAX: i32 = 64;

impl From<Cut> for Status {
    fn from(cut: Cut) -> Self {
        Self::resource_exhausted(cut.to_string())
    }
}

impl From<InputError> for Status {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Closed => Self::failed_precondition(error.to_string()),
            InputError::Slow(_) => Self::resource_exhausted(error.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Processes for Service {
    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartReply>, Status> {
        self.enter(request.metadata())?;
        let request = request.into_inner();
        let command = request.command.ok_or_else(|| Status::invalid_argument("command: missing"))?;
        let limited = command.timeout_ms != 0;
        let mut order = exec::order(command);
        if !limited {
            order.timeout = Duration::MAX;
        }
        let keep_bytes = match request.keep_bytes {
            0 => KEEP_BYTES_DEFAULT,
            bytes => bytes.min(KEEP_BYTES_MAX),
        };
        let plan = Plan {
            tag: request.tag,
            terminal: request.terminal.map(size).transpose()?,
            keep_stdin: request.keep_stdin,
            keep_bytes: usize::try_from(keep_bytes).unwrap_or(usize::MAX),
        };
        let process = self.inner.processes.start(order, plan, &self.inner.guest.env())?;
        let reply = StartReply { pid: process.facts.pid, tag: process.facts.tag.clone() };
        Ok(Response::new(reply))
    }

    type AttachStream = BoxStream<'static, Result<AttachEvent, Status>>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        self.enter(request.metadata())?;
        let AttachRequest { process, replay, once } = request.into_inner();
        let process = self.process(process)?;
        let log: &Arc<Log> = process.log.as_ref().ok_or_else(|| {
            Status::failed_precondition("process: its output goes to the call that started it")
        })?;
        let reader = log.read(replay, once);
        let attached = Attached { process: Some(info(&process)), truncated: reader.truncated };
        let first = wire(attach_event::Event::Attached(attached));
        Ok(Response::new(stream::once(async { Ok(first) }).chain(events(reader)).boxed()))
    }

    async fn list(
        &self,
        request: Request<ListProcessesRequest>,
    ) -> Result<Response<ListProcessesReply>, Status> {
        self.enter(request.metadata())?;
        let all = self.inner.processes.list(request.into_inner().ended);
        Ok(Response::new(ListProcessesReply { processes: all.iter().map(|process| info(process)).collect() }))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalReply>, Status> {
        self.enter(request.metadata())?;
        let SignalRequest { process, signal } = request.into_inner();
        if !(1..=SIGNAL_MAX).contains(&signal) {
            return Err(Status::invalid_argument(format!("signal: {signal} is not from 1 to {SIGNAL_MAX}")));
        }
        let process = self.process(process)?;
        let live = process.live().ok_or_else(|| Status::not_found("the process has ended"))?;
        live.group.signal(signal).map_err(super::status::internal)?;
        Ok(Response::new(SignalReply {}))
    }

    async fn write(&self, request: Request<WriteInputRequest>) -> Result<Response<WriteInputReply>, Status> {
        self.enter(request.metadata())?;
        let WriteInputRequest { process, data, close } = request.into_inner();
        let process = self.process(process)?;
        let input = process.live().and_then(|live| live.input).ok_or(InputError::Closed)?;
        input.write(data, close).await?;
        Ok(Response::new(WriteInputReply {}))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeReply>, Status> {
        self.enter(request.metadata())?;
        let ResizeRequest { process, terminal } = request.into_inner();
        let wanted = size(terminal.ok_or_else(|| Status::invalid_argument("terminal: missing"))?)?;
        let process = self.process(process)?;
        let terminal = process.live().and_then(|live| live.terminal);
        let terminal = terminal
            .ok_or_else(|| Status::failed_precondition("the process has no terminal, or has ended"))?;
        terminal.resize(wanted).map_err(super::status::internal)?;
        Ok(Response::new(ResizeReply {}))
    }
}

impl Service {
    fn process(
        &self,
        selector: Option<hearth_proto::wire::process::Selector>,
    ) -> Result<Arc<Process>, Status> {
        let selector = match selector.and_then(|selector| selector.by) {
            Some(selector::By::Pid(pid)) if pid != 0 => Selector::Pid(pid),
            Some(selector::By::Tag(tag)) if !tag.is_empty() => Selector::Tag(tag),
            _ => return Err(Status::invalid_argument("process: neither a pid nor a tag")),
        };
        let found = self.inner.processes.find(&selector);
        found.ok_or_else(|| Status::not_found("there is no such process, or it is no longer remembered"))
    }
}

/// The reader's items; the stream ends after the exit, or where the reader was cut.
fn events(reader: Reader) -> impl Stream<Item = Result<AttachEvent, Status>> + Send {
    stream::unfold(reader, |mut reader| async move {
        let event = match reader.next().await? {
            Ok(Item::Bytes(Source::Stdout, bytes)) => attach_event::Event::Stdout(bytes),
            Ok(Item::Bytes(Source::Stderr, bytes)) => attach_event::Event::Stderr(bytes),
            Ok(Item::Bytes(Source::Terminal, bytes)) => attach_event::Event::Terminal(bytes),
            Ok(Item::Exit(exit)) => attach_event::Event::Exited(exec::exited(exit)),
            Err(cut) => return Some((Err(cut.into()), reader)),
        };
        Some((Ok(wire(event)), reader))
    })
}

fn wire(event: attach_event::Event) -> AttachEvent {
    AttachEvent { event: Some(event) }
}

fn info(process: &Process) -> ProcessInfo {
    let facts = &process.facts;
    ProcessInfo {
        pid: facts.pid,
        tag: facts.tag.clone(),
        cmd: facts.program.clone(),
        args: facts.args.clone(),
        user: facts.user.clone(),
        cwd: facts.cwd.clone(),
        terminal: facts.terminal,
        started_at_ms: facts.started_at_ms,
        exited: process.exit().map(exec::exited),
    }
}

fn size(terminal: hearth_proto::wire::process::Terminal) -> Result<Size, Status> {
    let side = |field: &str, count: u32, default: u16| match u16::try_from(count) {
        Ok(0) => Ok(default),
        Ok(count) => Ok(count),
        Err(_) => Err(Status::invalid_argument(format!("terminal.{field}: {count} is more than 65535"))),
    };
    Ok(Size {
        cols: side("cols", terminal.cols, COLS_DEFAULT)?,
        rows: side("rows", terminal.rows, ROWS_DEFAULT)?,
    })
}
