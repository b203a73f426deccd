//! Clients of what an agent passes on to its capsules.

use hearth_proto::{
    id::CapsuleId,
    metadata,
    wire::{
        files::{
            Entry, ReadRequest, WriteRequest, WriteStart, files_client::FilesClient, read_reply,
            write_request,
        },
        process::{
            AttachEvent, AttachRequest, Attached, ExecRequest, Exited, Selector, StartRequest, Terminal,
            WriteInputRequest, attach_event::Event, processes_client::ProcessesClient, selector::By,
        },
    },
};
use std::{path::Path, time::Duration};
use tokio_stream::Stream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// Names the capsule on every call.
#[derive(Clone)]
pub struct Named(Option<MetadataValue<Ascii>>);

impl Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(capsule) = &self.0 {
            request.metadata_mut().insert(metadata::CAPSULE, capsule.clone());
        }
        Ok(request)
    }
}

/// A client of a capsule's processes.
pub type Processes = ProcessesClient<InterceptedService<Channel, Named>>;
/// A client of a capsule's files.
pub type Files = FilesClient<InterceptedService<Channel, Named>>;

/// Everything that one attachment gave.
#[derive(Debug, Default)]
pub struct Heard {
    /// The first event.
    pub attached: Attached,
    /// Standard output, or what a terminal showed.
    pub output: Vec<u8>,
    /// The end.
    pub exited: Option<Exited>,
}

impl Heard {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

fn connect(dir: &Path, capsule: &str) -> anyhow::Result<(Channel, Named)> {
    let socket = dir.join("agent/agent.sock");
    let channel = hearth_service::socket::channel(&hearth_service::socket::endpoint(&socket))?;
    let named = if capsule.is_empty() { None } else { Some(capsule.parse()?) };
    Ok((channel, Named(named)))
}

/// A client of the processes of a capsule, whose id is given as it is; without one when it is empty.
pub fn processes(dir: &Path, capsule: &str) -> anyhow::Result<Processes> {
    let (channel, named) = connect(dir, capsule)?;
    Ok(ProcessesClient::with_interceptor(channel, named))
}

/// A client of the files of a capsule, on a connection of its own.
pub fn files(dir: &Path, capsule: CapsuleId) -> anyhow::Result<Files> {
    let (channel, named) = connect(dir, &capsule.to_string())?;
    Ok(FilesClient::with_interceptor(channel, named))
}

/// The process with a tag.
pub fn tagged(tag: &str) -> Option<Selector> {
    Some(Selector { by: Some(By::Tag(tag.to_owned())) })
}

/// A bash script in the background, with a terminal if it has a size.
pub fn script(tag: &str, script: &str, size: Option<(u32, u32)>) -> StartRequest {
    let command = ExecRequest {
        cmd: "/bin/bash".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        ..Default::default()
    };
    let terminal = size.map(|(cols, rows)| Terminal { cols, rows });
    StartRequest { command: Some(command), tag: tag.to_owned(), terminal, ..Default::default() }
}

/// Attaches to a process.
pub async fn attach(
    client: &Processes,
    tag: &str,
    replay: bool,
    once: bool,
) -> Result<Streaming<AttachEvent>, Status> {
    let request = AttachRequest { process: tagged(tag), replay, once };
    Ok(client.clone().attach(request).await?.into_inner())
}

/// Reads an attachment to its end.
pub async fn hear(mut events: Streaming<AttachEvent>) -> Result<Heard, Status> {
    let mut heard = Heard::default();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Attached(attached)) => heard.attached = attached,
            Some(Event::Stdout(bytes) | Event::Terminal(bytes)) => heard.output.extend(bytes),
            Some(Event::Exited(exited)) => heard.exited = Some(exited),
            Some(Event::Stderr(_)) | None => {}
        }
    }
    Ok(heard)
}

/// Waits until what a process has shown so far has this text.
pub async fn shows(client: &Processes, tag: &str, text: &str) -> anyhow::Result<Heard> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let heard = hear(attach(client, tag, true, true).await?).await?;
        if heard.text().contains(text) {
            return Ok(heard);
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{text:?} does not come: {:?}", heard.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Types into a process.
pub async fn types(client: &Processes, tag: &str, data: &[u8]) -> Result<(), Status> {
    let request = WriteInputRequest { process: tagged(tag), data: data.to_vec(), close: false };
    client.clone().write(request).await.map(drop)
}

/// Writes a file of these chunks as a user.
pub async fn upload(
    client: &Files,
    path: &[u8],
    user: &str,
    chunks: impl Stream<Item = Vec<u8>> + Send + 'static,
) -> Result<Entry, Status> {
    use tokio_stream::StreamExt;
    let start = WriteStart { path: path.to_vec(), user: user.to_owned(), mode: None };
    let first = tokio_stream::once(WriteRequest { part: Some(write_request::Part::Start(start)) });
    let rest = chunks.map(|data| WriteRequest { part: Some(write_request::Part::Data(data)) });
    Ok(client.clone().write(first.chain(rest)).await?.into_inner())
}

/// Reads a file as a user, and gives each chunk to `take`.
pub async fn download(
    client: &Files,
    path: &[u8],
    user: &str,
    mut take: impl FnMut(&[u8]),
) -> Result<Entry, Status> {
    let request = ReadRequest { path: path.to_vec(), user: user.to_owned(), ..Default::default() };
    let mut parts = client.clone().read(request).await?.into_inner();
    let mut entry = Entry::default();
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(read_reply::Part::Entry(first)) => entry = first,
            Some(read_reply::Part::Data(data)) => take(&data),
            None => {}
        }
    }
    Ok(entry)
}
