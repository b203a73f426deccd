//! Gives each call to the service that its path names. Three prefixes need no router, and `Exec` no detour.

use crate::grpc::Service;
use futures::future::BoxFuture;
use hearth_proto::wire::{
    envd::envd_server::EnvdServer,
    files::files_server::{self, FilesServer},
    process::processes_server::{self, ProcessesServer},
};
use std::{
    convert::Infallible,
    task::{Context, Poll},
};
use tonic::{
    body::Body,
    codegen::{Service as Answer, http},
};

/// The three services of one guest. Clones share it.
#[derive(Clone)]
pub struct Dispatch {
    envd: EnvdServer<Service>,
    processes: ProcessesServer<Service>,
    files: FilesServer<Service>,
}

impl Dispatch {
    /// Over a service, for requests up to so many bytes. Files come in parts of tonic's own size.
    pub fn new(service: Service, request_bytes_max: usize) -> Self {
        Self {
            envd: EnvdServer::new(service.clone()).max_decoding_message_size(request_bytes_max),
            processes: ProcessesServer::new(service.clone()).max_decoding_message_size(request_bytes_max),
            files: FilesServer::new(service),
        }
    }
}

impl Answer<http::Request<Body>> for Dispatch {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match service.map(|(service, _)| service) {
            Some(processes_server::SERVICE_NAME) => self.processes.call(request),
            Some(files_server::SERVICE_NAME) => self.files.call(request),
            // It also says that there is no other.
            _ => self.envd.call(request),
        }
    }
}
