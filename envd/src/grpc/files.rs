//! The service `Files` on the wire.

use super::Service;
use crate::files::{
    FileError,
    change::{self, Change},
    entry::{Entry, Kind},
    list, path, read, relocate, tree, watch,
    worker::Actor,
    write,
};
use crate::user::UserError;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use hearth_proto::wire::files::{self as wire, files_server::Files, write_request};
use std::{io, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Request, Response, Status, Streaming};

/// Parts that are read before they are sent: the disk and the network work at the same time.
const AHEAD: usize = 2;
const DEPTH_MAX: u32 = 64;
/// How long the message may take that names a file, …
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
/// … and each one after it.
const NEXT_DEADLINE: Duration = Duration::from_secs(300);

impl From<FileError> for Status {
    fn from(error: FileError) -> Self {
        let message = error.to_string();
        match error {
            FileError::Invalid { .. } | FileError::User(UserError::Unknown(_)) => {
                Self::invalid_argument(message)
            }
            FileError::Missing { .. } => Self::not_found(message),
            FileError::Kind { .. } => Self::failed_precondition(message),
            FileError::Exists(_) => Self::already_exists(message),
            FileError::Shrank(_) | FileError::BrokenOff => Self::aborted(message),
            FileError::TooMany(_) | FileError::Slow(_) => Self::resource_exhausted(message),
            FileError::Io { source, .. } => refused(&source, message),
            FileError::User(UserError::Read(_)) | FileError::Thread(_) => super::status::internal(error),
        }
    }
}

/// What the kernel said. What it says otherwise is about the user's own disk: no fault of envd's.
fn refused(error: &io::Error, message: String) -> Status {
    match error.raw_os_error().unwrap_or_default() {
        libc::ENOENT => Status::not_found(message),
        libc::EEXIST => Status::already_exists(message),
        libc::EACCES | libc::EPERM | libc::EROFS => Status::permission_denied(message),
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EMFILE | libc::ENFILE | libc::ENOMEM => {
            Status::resource_exhausted(message)
        }
        libc::EISDIR
        | libc::ENOTDIR
        | libc::ENOTEMPTY
        | libc::EBUSY
        | libc::ENXIO
        | libc::ETXTBSY
        | libc::EPIPE => Status::failed_precondition(message),
        libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP => Status::invalid_argument(message),
        _ => Status::unknown(message),
    }
}

#[tonic::async_trait]
impl Files for Service {
    type ReadStream = BoxStream<'static, Result<wire::ReadReply, Status>>;

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.enter(request.metadata())?;
        let wire::ReadRequest { path, user, offset, length } = request.into_inner();
        let parts = self.inner.files.stream(user, AHEAD, move |actor, parts| {
            read::read(actor, &at("path", &path, actor)?, offset, length, parts)
        })?;
        let reply = |part| wire::ReadReply {
            part: Some(match part {
                read::Part::Entry(entry) => wire::read_reply::Part::Entry(to_wire(entry)),
                read::Part::Data(data) => wire::read_reply::Part::Data(data),
            }),
        };
        answer(parts, reply).await
    }

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteRequest>>,
    ) -> Result<Response<wire::Entry>, Status> {
        self.enter(request.metadata())?;
        let mut messages = request.into_inner();
        let first = next(&mut messages, FIRST_DEADLINE).await?;
        let Some(write_request::Part::Start(start)) = first.and_then(|first| first.part) else {
            return Err(Status::invalid_argument("start: the first message must name the file"));
        };
        let wire::WriteStart { path, user, mode } = start;
        let (parts, mut source) = mpsc::channel(AHEAD);
        let work = self
            .inner
            .files
            .run(user, move |actor| write::write(actor, &at("path", &path, actor)?, mode, &mut source));
        let mut work = std::pin::pin!(work);
        // A failure ends the call at once, however much is still to come.
        let fed = tokio::select! {
            biased;
            ended = &mut work => return entry(ended),
            fed = feed(&mut messages, parts) => fed,
        };
        match fed {
            Ok(()) => entry(work.await),
            // The temporary file is gone before the caller hears of it.
            Err(status) => {
                let _broken_off = work.await;
                Err(status)
            }
        }
    }

    type ListStream = BoxStream<'static, Result<wire::ListReply, Status>>;

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.enter(request.metadata())?;
        let wire::ListRequest { path, user, depth } = request.into_inner();
        if DEPTH_MAX < depth {
            return Err(Status::invalid_argument(format!("depth: {depth} is more than {DEPTH_MAX}")));
        }
        let parts = self.inner.files.stream(user, AHEAD, move |actor, parts| {
            list::list(actor, &at("path", &path, actor)?, depth.max(1), parts)
        })?;
        answer(parts, |batch: Vec<Entry>| wire::ListReply {
            entries: batch.into_iter().map(to_wire).collect(),
        })
        .await
    }

    async fn stat(&self, request: Request<wire::StatRequest>) -> Result<Response<wire::Entry>, Status> {
        self.enter(request.metadata())?;
        let wire::StatRequest { path, user } = request.into_inner();
        let files = &self.inner.files;
        entry(files.run(user, move |actor| Entry::at(&at("path", &path, actor)?, &actor.names)).await)
    }

    async fn make_dir(
        &self,
        request: Request<wire::MakeDirRequest>,
    ) -> Result<Response<wire::Entry>, Status> {
        self.enter(request.metadata())?;
        let wire::MakeDirRequest { path, user } = request.into_inner();
        let made = self.inner.files.run(user, move |actor| {
            let path = at("path", &path, actor)?;
            tree::make_dir(&path)?;
            Entry::at(&path, &actor.names)
        });
        entry(made.await)
    }

    async fn r#move(&self, request: Request<wire::MoveRequest>) -> Result<Response<wire::Entry>, Status> {
        self.enter(request.metadata())?;
        let wire::MoveRequest { from, to, user, overwrite } = request.into_inner();
        let moved = self.inner.files.run(user, move |actor| {
            let (from, to) = (at("from", &from, actor)?, at("to", &to, actor)?);
            relocate::relocate(actor, &from, &to, overwrite)?;
            Entry::at(&to, &actor.names)
        });
        entry(moved.await)
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveRequest>,
    ) -> Result<Response<wire::RemoveReply>, Status> {
        self.enter(request.metadata())?;
        let wire::RemoveRequest { path, user } = request.into_inner();
        self.inner.files.run(user, move |actor| tree::remove(&at("path", &path, actor)?)).await?;
        Ok(Response::new(wire::RemoveReply {}))
    }

    async fn change(&self, request: Request<wire::ChangeRequest>) -> Result<Response<wire::Entry>, Status> {
        self.enter(request.metadata())?;
        let wire::ChangeRequest { path, user, mode, owner, group, recursive } = request.into_inner();
        let changed = self.inner.files.run(user, move |actor| {
            let path = at("path", &path, actor)?;
            change::change(actor, &path, &Change { mode, owner, group, recursive })?;
            Entry::at(&path, &actor.names)
        });
        entry(changed.await)
    }

    type WatchStream = BoxStream<'static, Result<wire::WatchEvent, Status>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.enter(request.metadata())?;
        let wire::WatchRequest { path, user, recursive } = request.into_inner();
        let path = move |actor: &Actor| at("path", &path, actor);
        let mut watch = self.inner.files.changes(user, path, recursive)?;
        let first = watch.next().await.transpose()?;
        let rest = stream::unfold(watch, |mut watch| async move {
            Some((watch.next().await?.map_err(Status::from), watch))
        });
        let all = stream::iter(first.map(Ok)).chain(rest);
        Ok(Response::new(all.map(|event| event.map(event_to_wire)).boxed()))
    }
}

fn at(field: &'static str, path: &[u8], actor: &Actor) -> Result<PathBuf, FileError> {
    path::resolve(field, path, &actor.user, &actor.names)
}

/// The parts as a stream. A call that fails at once has no stream.
async fn answer<T: Send + 'static, R: Send + 'static>(
    mut parts: mpsc::Receiver<Result<T, FileError>>,
    reply: impl Fn(T) -> R + Send + 'static,
) -> Result<Response<BoxStream<'static, Result<R, Status>>>, Status> {
    let first = parts.recv().await.transpose()?;
    let rest = stream::unfold(parts, |mut parts| async move { Some((parts.recv().await?, parts)) });
    let all = stream::iter(first.map(Ok)).chain(rest);
    Ok(Response::new(all.map(move |part| Ok(reply(part?))).boxed()))
}

async fn next(
    messages: &mut Streaming<wire::WriteRequest>,
    limit: Duration,
) -> Result<Option<wire::WriteRequest>, Status> {
    timeout(limit, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the next message did not come in time"))?
}

/// Passes what comes to the thread that writes, as fast as it writes.
async fn feed(
    messages: &mut Streaming<wire::WriteRequest>,
    parts: mpsc::Sender<write::Part>,
) -> Result<(), Status> {
    while let Some(message) = next(messages, NEXT_DEADLINE).await? {
        let Some(write_request::Part::Data(data)) = message.part else {
            return Err(Status::invalid_argument("data: only the first message names the file"));
        };
        if parts.send(write::Part::Data(data)).await.is_err() {
            // The thread has failed, and says why itself.
            return Ok(());
        }
    }
    // A caller that broke off looks like one that has ended. The connection ends this call then, as soon as it waits.
    tokio::task::yield_now().await;
    let _ = parts.send(write::Part::End).await;
    Ok(())
}

fn entry(entry: Result<Entry, FileError>) -> Result<Response<wire::Entry>, Status> {
    Ok(Response::new(to_wire(entry?)))
}

fn to_wire(entry: Entry) -> wire::Entry {
    let kind = match entry.kind {
        Kind::File => wire::EntryType::File,
        Kind::Directory => wire::EntryType::Directory,
        Kind::Symlink => wire::EntryType::Symlink,
        Kind::Other => wire::EntryType::Other,
    };
    wire::Entry {
        name: entry.name,
        path: entry.path,
        r#type: kind.into(),
        size: entry.size,
        mode: entry.mode,
        permissions: entry.permissions,
        owner: entry.owner,
        group: entry.group,
        modified_at_ms: entry.modified_at_ms,
        symlink_target: entry.symlink_target,
        disk_bytes: entry.disk_bytes,
    }
}

fn event_to_wire(event: watch::Event) -> wire::WatchEvent {
    let kind = match event.kind {
        watch::Kind::Watching => wire::WatchKind::Watching,
        watch::Kind::Created => wire::WatchKind::Created,
        watch::Kind::Modified => wire::WatchKind::Modified,
        watch::Kind::Removed => wire::WatchKind::Removed,
        watch::Kind::Renamed => wire::WatchKind::Renamed,
        watch::Kind::Attributes => wire::WatchKind::Attributes,
        watch::Kind::Lost => wire::WatchKind::Lost,
    };
    wire::WatchEvent {
        kind: kind.into(),
        path: bytes(event.path),
        new_path: bytes(event.new_path),
        directory: event.directory,
    }
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}
