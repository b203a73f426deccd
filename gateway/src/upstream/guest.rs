//! Processes and files of one capsule, over its host's agent. The agent passes these calls on unread, so what comes back
//! is the guest's: bounded by the limit on messages, and checked by whoever uses it.

use super::{
    UpstreamError,
    agents::{Agents, Checked},
    answer, request,
    stream::Events,
};
use futures::Stream;
use hearth_proto::{
    id::CapsuleId,
    metadata::CAPSULE,
    wire::{
        files::{
            ChangeRequest, Entry, ListReply, ListRequest, MakeDirRequest, MoveRequest, ReadReply,
            ReadRequest, RemoveRequest, StatRequest, WatchEvent, WatchRequest, WriteRequest,
            files_client::FilesClient,
        },
        pool::HostRef,
        process::{
            AttachEvent, AttachRequest, ListProcessesRequest, ProcessInfo, ResizeRequest, SignalRequest,
            StartReply, StartRequest, WriteInputRequest, processes_client::ProcessesClient,
        },
    },
};
use hearth_service::socket::MESSAGE_BYTES_MAX;
use std::{future::Future, time::Duration};
use tonic::{Request, Response, Status, transport::Channel};

/// Small calls. A guest under software emulation on a busy host takes a second.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// What may take as long as the tree below a path is large.
const TREE_DEADLINE: Duration = Duration::from_secs(300);
/// From a stream's call to its first answer.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Transfers and streams end by themselves; this only stops what was forgotten.
const STREAM_DEADLINE: Duration = Duration::from_secs(7 * 86_400);

/// One capsule's guest.
pub(crate) struct Guest<'a> {
    agents: &'a Agents,
    host: HostRef,
    capsule: CapsuleId,
    request_id: &'a str,
}

macro_rules! call {
    ($(#[$doc:meta])* $name:ident($client:ident, $request:ty) -> $reply:ty, $deadline:expr) => {
        $(#[$doc])*
        pub(crate) async fn $name(&self, message: $request) -> Result<$reply, UpstreamError> {
            self.unary($deadline, message, |channel, request| async move {
                $client(channel).$name(request).await
            })
            .await
        }
    };
}

macro_rules! stream {
    ($(#[$doc:meta])* $name:ident($client:ident, $request:ty) -> $reply:ty) => {
        $(#[$doc])*
        pub(crate) async fn $name(&self, message: $request) -> Result<Events<$reply>, UpstreamError> {
            let channel = self.agents.checkout(&self.host).await?;
            let mut client = $client(channel.channel());
            let opened = client.$name(self.request(message, STREAM_DEADLINE));
            let opened = answer(opened, OPEN_DEADLINE).await;
            Events::opened(channel, opened)
        }
    };
}

fn processes(channel: Channel) -> ProcessesClient<Channel> {
    ProcessesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn files(channel: Channel) -> FilesClient<Channel> {
    FilesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl<'a> Guest<'a> {
    /// The guest of a capsule on `host`.
    pub(crate) fn new(agents: &'a Agents, host: HostRef, capsule: CapsuleId, request_id: &'a str) -> Self {
        Self { agents, host, capsule, request_id }
    }

    call!(
        /// Starts a process that outlives the call.
        start(processes, StartRequest) -> StartReply, CALL_DEADLINE
    );
    stream!(
        /// What a process writes.
        attach(processes, AttachRequest) -> AttachEvent
    );
    call!(
        /// Sends a signal to a process's tree.
        signal(processes, SignalRequest) -> hearth_proto::wire::process::SignalReply, CALL_DEADLINE
    );
    call!(
        /// Writes to a process's input.
        write(processes, WriteInputRequest) -> hearth_proto::wire::process::WriteInputReply, CALL_DEADLINE
    );
    call!(
        /// Gives a terminal another size.
        resize(processes, ResizeRequest) -> hearth_proto::wire::process::ResizeReply, CALL_DEADLINE
    );
    stream!(
        /// A file's bytes.
        read(files, ReadRequest) -> ReadReply
    );
    call!(
        /// One entry.
        stat(files, StatRequest) -> Entry, CALL_DEADLINE
    );
    call!(
        /// Makes a directory.
        make_dir(files, MakeDirRequest) -> Entry, CALL_DEADLINE
    );
    call!(
        /// Renames or moves.
        r#move(files, MoveRequest) -> Entry, TREE_DEADLINE
    );
    call!(
        /// Removes a file or a tree.
        remove(files, RemoveRequest) -> hearth_proto::wire::files::RemoveReply, TREE_DEADLINE
    );
    call!(
        /// Changes mode and owner.
        change(files, ChangeRequest) -> Entry, TREE_DEADLINE
    );
    stream!(
        /// Entries below a directory.
        list(files, ListRequest) -> ListReply
    );
    stream!(
        /// Changes below a path.
        watch(files, WatchRequest) -> WatchEvent
    );

    /// Processes that run.
    pub(crate) async fn processes(&self, ended: bool) -> Result<Vec<ProcessInfo>, UpstreamError> {
        self.unary(CALL_DEADLINE, ListProcessesRequest { ended }, |channel, request| async move {
            processes(channel).list(request).await
        })
        .await
        .map(|reply| reply.processes)
    }

    /// Writes a file from a stream of messages, the first of which names it.
    pub(crate) async fn upload(
        &self,
        messages: impl Stream<Item = WriteRequest> + Send + 'static,
    ) -> Result<Entry, UpstreamError> {
        let mut channel = self.agents.checkout(&self.host).await?;
        let request = self.with_metadata(request(messages, self.request_id, STREAM_DEADLINE));
        let written = answer(files(channel.channel()).write(request), STREAM_DEADLINE).await;
        judged(&mut channel, written)
    }

    async fn unary<Q, T, F>(
        &self,
        deadline: Duration,
        message: Q,
        call: impl FnOnce(Channel, Request<Q>) -> F,
    ) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut channel = self.agents.checkout(&self.host).await?;
        let called = call(channel.channel(), self.request(message, deadline));
        let answered = answer(called, deadline).await;
        judged(&mut channel, answered)
    }

    fn request<Q>(&self, message: Q, deadline: Duration) -> Request<Q> {
        self.with_metadata(request(message, self.request_id, deadline))
    }

    fn with_metadata<Q>(&self, mut request: Request<Q>) -> Request<Q> {
        // An id is ASCII, so this does not fail; without it the agent would refuse the call.
        if let Ok(capsule) = self.capsule.to_string().parse() {
            request.metadata_mut().insert(CAPSULE, capsule);
        }
        request
    }
}

/// A channel that failed is not used again.
fn judged<T>(channel: &mut Checked, answered: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
    if let Err(UpstreamError::Status(status)) = &answered {
        channel.judge(status);
    }
    answered
}
