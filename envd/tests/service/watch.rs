//! Watching files.

use crate::{
    capsule::{SOON, TOKEN, call},
    stored::Client,
};
use hearth_proto::wire::files::{WatchEvent, WatchKind, WatchRequest};
use std::{fs, os::unix::ffi::OsStrExt, os::unix::fs::PermissionsExt, path::Path};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

async fn watch(client: &Client, path: &Path, recursive: bool) -> Result<Streaming<WatchEvent>, Status> {
    let path = path.as_os_str().as_bytes().to_vec();
    let request = WatchRequest { path, user: "user".to_owned(), recursive };
    let mut events = client.files.clone().watch(call(request, TOKEN)).await?.into_inner();
    assert_eq!(next(&mut events).await.unwrap().kind(), WatchKind::Watching);
    Ok(events)
}

async fn next(events: &mut Streaming<WatchEvent>) -> Option<WatchEvent> {
    timeout(SOON, events.message()).await.expect("an event").unwrap()
}

/// The events up to one of this path and kind; what they say of other paths or kinds is passed over.
async fn wait_for(events: &mut Streaming<WatchEvent>, kind: WatchKind, path: &Path) -> WatchEvent {
    loop {
        let event = next(events).await.expect("the watch goes on");
        if event.kind() == kind && event.path == path.as_os_str().as_bytes() {
            return event;
        }
    }
}

#[tokio::test]
async fn changes_are_told_as_they_happen() {
    let client = Client::active().await;
    let home = client.home();
    let mut events = watch(&client, &home, false).await.unwrap();
    fs::write(home.join("a"), "1").unwrap();
    let created = wait_for(&mut events, WatchKind::Created, &home.join("a")).await;
    assert!(!created.directory);
    wait_for(&mut events, WatchKind::Modified, &home.join("a")).await;
    fs::set_permissions(home.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    wait_for(&mut events, WatchKind::Attributes, &home.join("a")).await;
    fs::rename(home.join("a"), home.join("b")).unwrap();
    let renamed = wait_for(&mut events, WatchKind::Renamed, &home.join("a")).await;
    assert_eq!(renamed.new_path, home.join("b").as_os_str().as_bytes());
    fs::rename(home.join("b"), client.capsule.folder.path().join("b")).unwrap();
    wait_for(&mut events, WatchKind::Removed, &home.join("b")).await;
    fs::rename(client.capsule.folder.path().join("b"), home.join("c")).unwrap();
    wait_for(&mut events, WatchKind::Created, &home.join("c")).await;
    fs::remove_file(home.join("c")).unwrap();
    wait_for(&mut events, WatchKind::Removed, &home.join("c")).await;
    // A file that comes by a call appears under its name only.
    client.write("d", b"whole").await.unwrap();
    let event = next(&mut events).await.unwrap();
    assert_eq!(
        (event.kind(), event.path.as_slice()),
        (WatchKind::Created, home.join("d").as_os_str().as_bytes())
    );
    fs::create_dir(home.join("sub")).unwrap();
    assert!(wait_for(&mut events, WatchKind::Created, &home.join("sub")).await.directory);
    fs::write(home.join("sub/unseen"), "").unwrap();
    fs::write(home.join("last"), "").unwrap();
    while let Some(event) = next(&mut events).await {
        assert!(!event.path.ends_with(b"unseen"), "not recursive");
        if event.path.ends_with(b"last") {
            break;
        }
    }
}

#[tokio::test]
async fn new_moved_and_deep_directories_are_watched_with_the_rest() {
    let client = Client::active().await;
    let top = client.home().join("top");
    fs::create_dir_all(top.join("x/y")).unwrap();
    let mut events = watch(&client, &top, true).await.unwrap();
    fs::write(top.join("x/y/f"), "").unwrap();
    wait_for(&mut events, WatchKind::Created, &top.join("x/y/f")).await;
    fs::create_dir_all(top.join("n/m/o")).unwrap();
    fs::write(top.join("n/m/o/f"), "").unwrap();
    wait_for(&mut events, WatchKind::Created, &top.join("n/m/o/f")).await;
    fs::rename(top.join("n"), top.join("moved")).unwrap();
    wait_for(&mut events, WatchKind::Renamed, &top.join("n")).await;
    fs::write(top.join("moved/m/o/g"), "").unwrap();
    wait_for(&mut events, WatchKind::Created, &top.join("moved/m/o/g")).await;
    fs::remove_dir_all(&top).unwrap();
    wait_for(&mut events, WatchKind::Removed, &top).await;
    assert!(next(&mut events).await.is_none(), "what was watched is gone");
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_told_once_that_events_were_lost() {
    let client = Client::active().await;
    let home = client.home();
    let mut events = watch(&client, &home, false).await.unwrap();
    for number in 0..40_000 {
        fs::write(home.join(format!("file-with-a-longer-name-{}", number % 5000)), "x").unwrap();
    }
    let mut lost = 0;
    fs::write(home.join("last"), "").unwrap();
    loop {
        let event = next(&mut events).await.unwrap();
        lost += usize::from(event.kind() == WatchKind::Lost);
        if 0 < lost {
            // From here on changes are told again.
            fs::write(home.join("after"), "").unwrap();
            wait_for(&mut events, WatchKind::Created, &home.join("after")).await;
            break;
        }
    }
    assert!(client.capsule.peak_kib() < 64 << 10, "{} KiB", client.capsule.peak_kib());
}

#[tokio::test]
async fn what_cannot_be_watched_is_said_and_watches_end_with_their_callers() {
    let client = Client::active().await;
    let home = client.home();
    fs::create_dir(home.join("closed")).unwrap();
    fs::set_permissions(home.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(watch(&client, &home.join("closed"), false).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(watch(&client, &home.join("missing"), false).await.unwrap_err().code(), Code::NotFound);
    for round in 0..3 {
        let mut open = Vec::new();
        let full = loop {
            match watch(&client, &home, true).await {
                Ok(events) => open.push(events),
                Err(status) => break status,
            }
        };
        assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
        // Later those of the round before may still be on their way out.
        assert!(0 < round || 32 <= open.len(), "{}", open.len());
        drop(open);
        let deadline = std::time::Instant::now() + SOON;
        while watch(&client, &home, true).await.is_err() {
            assert!(std::time::Instant::now() < deadline);
        }
    }
}
