//! A client of `Files`.

use crate::capsule::{Capsule, TOKEN, call, run, shell};
use hearth_proto::wire::{
    envd::envd_client::EnvdClient,
    files::{
        ChangeRequest, Entry, ListRequest, MakeDirRequest, MoveRequest, ReadRequest, RemoveRequest,
        StatRequest, WriteRequest, WriteStart, files_client::FilesClient, read_reply, write_request::Part,
    },
};
use std::path::PathBuf;
use tonic::{Status, transport::Channel};

pub struct Client {
    pub capsule: Capsule,
    pub envd: EnvdClient<Channel>,
    pub files: FilesClient<Channel>,
}

impl Client {
    pub async fn active() -> Self {
        let (capsule, envd) = Capsule::active().await;
        let files = FilesClient::new(capsule.channel().await);
        Self { capsule, envd, files }
    }

    pub fn home(&self) -> PathBuf {
        self.capsule.home().into()
    }

    pub async fn write_as(
        &self,
        user: &str,
        path: &[u8],
        mode: Option<u32>,
        parts: &[&[u8]],
    ) -> Result<Entry, Status> {
        let start = WriteStart { path: path.to_vec(), user: user.to_owned(), mode };
        let mut messages = vec![WriteRequest { part: Some(Part::Start(start)) }];
        messages.extend(parts.iter().map(|part| WriteRequest { part: Some(Part::Data(part.to_vec())) }));
        let request = call(tokio_stream::iter(messages), TOKEN);
        Ok(self.files.clone().write(request).await?.into_inner())
    }

    pub async fn write(&self, path: &str, data: &[u8]) -> Result<Entry, Status> {
        self.write_as("user", path.as_bytes(), None, &[data]).await
    }

    pub async fn read_part(&self, path: &[u8], offset: u64, length: u64) -> Result<(Entry, Vec<u8>), Status> {
        let request = ReadRequest { path: path.to_vec(), user: "user".to_owned(), offset, length };
        let mut parts = self.files.clone().read(call(request, TOKEN)).await?.into_inner();
        let Some(read_reply::Part::Entry(entry)) = parts.message().await?.unwrap().part else { panic!() };
        let mut all = Vec::new();
        while let Some(part) = parts.message().await? {
            let Some(read_reply::Part::Data(data)) = part.part else { panic!("only data after the entry") };
            all.extend(data);
        }
        Ok((entry, all))
    }

    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Status> {
        Ok(self.read_part(path.as_bytes(), 0, 0).await?.1)
    }

    pub async fn stat(&self, path: &str) -> Result<Entry, Status> {
        let request = StatRequest { path: path.as_bytes().to_vec(), user: "user".to_owned() };
        Ok(self.files.clone().stat(call(request, TOKEN)).await?.into_inner())
    }

    pub async fn list(&self, path: &str, depth: u32) -> Result<Vec<Entry>, Status> {
        let request = ListRequest { path: path.as_bytes().to_vec(), user: "user".to_owned(), depth };
        let mut batches = self.files.clone().list(call(request, TOKEN)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = batches.message().await? {
            all.extend(batch.entries);
        }
        Ok(all)
    }

    pub async fn make_dir(&self, path: &str) -> Result<Entry, Status> {
        let request = MakeDirRequest { path: path.as_bytes().to_vec(), user: "user".to_owned() };
        Ok(self.files.clone().make_dir(call(request, TOKEN)).await?.into_inner())
    }

    pub async fn relocate(&self, user: &str, from: &str, to: &str, overwrite: bool) -> Result<Entry, Status> {
        let request = MoveRequest {
            from: from.as_bytes().to_vec(),
            to: to.as_bytes().to_vec(),
            user: user.to_owned(),
            overwrite,
        };
        Ok(self.files.clone().r#move(call(request, TOKEN)).await?.into_inner())
    }

    pub async fn remove(&self, user: &str, path: &str) -> Result<(), Status> {
        let request = RemoveRequest { path: path.as_bytes().to_vec(), user: user.to_owned() };
        self.files.clone().remove(call(request, TOKEN)).await.map(drop)
    }

    pub async fn change(&self, request: ChangeRequest) -> Result<Entry, Status> {
        Ok(self.files.clone().change(call(request, TOKEN)).await?.into_inner())
    }

    /// Mounts a small file system inside the service's own mount namespace.
    pub async fn small(&mut self, name: &str, size: &str) -> PathBuf {
        let path = self.home().join(name);
        let script = format!("mkdir {0} && mount -t tmpfs -o size={size},mode=777 small {0}", path.display());
        assert_eq!(run(&mut self.envd, shell(&script)).await.unwrap().exited.exit_code, 0);
        path
    }
}
