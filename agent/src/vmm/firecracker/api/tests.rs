//! The client against answers like Firecracker's.

use super::*;
use std::fs::File;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
};

/// An API that reads one request and gives `answer`; the handle returns what it read.
fn api(answer: &'static str) -> (Api, JoinHandle<String>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
    let root = Arc::new(OwnedFd::from(File::open(folder.path()).unwrap()));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    (Api::new(root), server, folder)
}

#[tokio::test]
async fn a_load_asks_for_what_it_means() {
    let (api, server, _folder) =
        api("HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n");
    let load = SnapshotLoad {
        snapshot_path: "/state",
        mem_backend: MemoryBackend { backend_type: "Uffd", backend_path: "/pager.sock" },
        track_dirty_pages: Some(true),
        enable_diff_snapshots: None,
        resume_vm: false,
        clock_realtime: None,
    };
    api.load_snapshot(&load).await.unwrap();
    let request = server.await.unwrap();
    assert!(request.starts_with("PUT /snapshot/load HTTP/1.1\r\n"), "{request}");
    assert!(
        request.ends_with(
            "\r\n\r\n{\"snapshot_path\":\"/state\",\"mem_backend\":{\"backend_type\":\"Uffd\",\
             \"backend_path\":\"/pager.sock\"},\"track_dirty_pages\":true,\"resume_vm\":false}"
        ),
        "{request}"
    );
}

#[tokio::test]
async fn a_refusal_is_told_in_firecrackers_words() {
    let (api, _server, _folder) = api(
        "HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n{\"fault_message\":\"no such snapshot !\"}",
    );
    let error = api.resume().await.unwrap_err();
    assert_eq!(error.to_string(), "Firecracker refused `resume`: no such snapshot !");
}

#[tokio::test]
async fn one_that_ends_or_was_never_there_is_closed() {
    let (silent, _server, _folder) = api("");
    assert!(matches!(silent.pause().await, Err(ApiError::Closed)));
    let folder = tempfile::tempdir().unwrap();
    let nobody = Api::new(Arc::new(OwnedFd::from(File::open(folder.path()).unwrap())));
    assert!(matches!(nobody.greet(DEADLINE, || false).await, Err(ApiError::Closed)));
}

#[tokio::test]
async fn an_answer_without_end_is_refused() {
    let (api, _server, _folder) = api(concat!(
        "HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n",
        "{\"vmm_version\":\"1.12.1\",\"state\":\"Not started\",\"id\":\"x\"}"
    ));
    assert!(matches!(
        api.call(Method::GET, "/", "describe", None::<&()>, DEADLINE).await,
        Err(ApiError::Closed)
    ));
}
