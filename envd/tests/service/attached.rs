//! A client of `Processes`: starts, attaches, and collects what is heard.

use crate::capsule::{Capsule, SOON, TOKEN, call};
use hearth_proto::wire::process::{
    AttachEvent, AttachRequest, Attached, ExecRequest, Exited, ListProcessesRequest, ProcessInfo, Selector,
    SignalRequest, StartReply, StartRequest, WriteInputRequest, attach_event::Event,
    processes_client::ProcessesClient, selector::By,
};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};

#[derive(Clone)]
pub struct Client(pub ProcessesClient<Channel>);

/// Everything that one attachment gave.
#[derive(Debug, Default)]
pub struct Heard {
    pub attached: Attached,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub terminal: Vec<u8>,
    pub exited: Option<Exited>,
}

pub fn tagged(tag: &str) -> Option<Selector> {
    Some(Selector { by: Some(By::Tag(tag.to_owned())) })
}

pub fn numbered(pid: u32) -> Option<Selector> {
    Some(Selector { by: Some(By::Pid(pid)) })
}

pub fn background(command: ExecRequest, tag: &str) -> StartRequest {
    StartRequest { command: Some(command), tag: tag.to_owned(), ..StartRequest::default() }
}

impl Client {
    pub async fn of(capsule: &Capsule) -> Self {
        Self(ProcessesClient::new(capsule.channel().await))
    }

    pub async fn start(&self, request: StartRequest) -> Result<StartReply, Status> {
        Ok(self.0.clone().start(call(request, TOKEN)).await?.into_inner())
    }

    pub async fn attach(
        &self,
        process: Option<Selector>,
        replay: bool,
    ) -> Result<Streaming<AttachEvent>, Status> {
        let request = AttachRequest { process, replay, once: false };
        Ok(self.0.clone().attach(call(request, TOKEN)).await?.into_inner())
    }

    /// Attaches with replay and reads to the end.
    pub async fn hear(&self, process: Option<Selector>) -> Result<Heard, Status> {
        hear(self.attach(process, true).await?).await
    }

    /// What there is now.
    pub async fn now(&self, process: Option<Selector>) -> Heard {
        let request = AttachRequest { process, replay: true, once: true };
        hear(self.0.clone().attach(call(request, TOKEN)).await.unwrap().into_inner()).await.unwrap()
    }

    pub async fn list(&self, ended: bool) -> Vec<ProcessInfo> {
        let request = ListProcessesRequest { ended };
        self.0.clone().list(call(request, TOKEN)).await.unwrap().into_inner().processes
    }

    pub async fn signal(&self, process: Option<Selector>, signal: i32) -> Result<(), Status> {
        self.0.clone().signal(call(SignalRequest { process, signal }, TOKEN)).await.map(drop)
    }

    pub async fn write(&self, process: Option<Selector>, data: &[u8], close: bool) -> Result<(), Status> {
        let request = WriteInputRequest { process, data: data.to_vec(), close };
        self.0.clone().write(call(request, TOKEN)).await.map(drop)
    }

    /// Waits until the output so far has this text.
    pub async fn shows(&self, process: Option<Selector>, text: &str) -> Heard {
        timeout(SOON, async {
            loop {
                let heard = self.now(process.clone()).await;
                let all = [&heard.stdout[..], &heard.terminal].concat();
                if String::from_utf8_lossy(&all).contains(text) {
                    return heard;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{text:?} does not come"))
    }
}

/// Reads an attachment to its end and checks its order.
pub async fn hear(mut events: Streaming<AttachEvent>) -> Result<Heard, Status> {
    let mut heard = Heard::default();
    let mut first = true;
    while let Some(event) = events.message().await? {
        assert!(heard.exited.is_none(), "Exited is last");
        match event.event.unwrap() {
            Event::Attached(attached) => {
                assert!(first, "Attached is first");
                heard.attached = attached;
            }
            Event::Stdout(bytes) => heard.stdout.extend(bytes),
            Event::Stderr(bytes) => heard.stderr.extend(bytes),
            Event::Terminal(bytes) => heard.terminal.extend(bytes),
            Event::Exited(exited) => heard.exited = Some(exited),
        }
        first = false;
    }
    assert!(!first, "Attached comes");
    Ok(heard)
}
