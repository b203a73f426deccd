//! Files: every promise of the contract, with real users, links, pipes and a full disk.

use crate::{
    capsule::{TOKEN, call, run, shell},
    stored::Client,
};
use hearth_proto::wire::files::{
    ChangeRequest, Entry, EntryType, ReadRequest, WriteRequest, WriteStart, read_reply, write_request::Part,
};
use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

fn no_leftovers(folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.as_bytes().starts_with(b".hearth-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_is_written_is_read_and_belongs_to_its_user() {
    let client = Client::active().await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8 | 1).collect();
    let parts: Vec<&[u8]> = data.chunks(100_001).collect();
    let entry = client.write_as("user", b"~/a/b/file", None, &parts).await.unwrap();
    let path = client.home().join("a/b/file");
    assert_eq!((entry.name.as_slice(), entry.size, entry.mode), (&b"file"[..], 3_000_000, 0o644));
    assert_eq!((entry.path.as_slice(), entry.r#type()), (path.as_os_str().as_bytes(), EntryType::File));
    assert_eq!(
        (entry.owner.as_str(), entry.group.as_str(), entry.permissions.as_str()),
        ("user", "user", "-rw-r--r--")
    );
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().uid(), 1000, "parents too");
    assert!(client.read("a/b/file").await.unwrap() == data);
    for (offset, length) in [(0_usize, 1_usize), (100, 1000), (2_999_999, 10), (1_234_567, 0), (5_000_000, 0)]
    {
        let (entry, part) = client.read_part(b"~/a/b/file", offset as u64, length as u64).await.unwrap();
        let from = offset.min(data.len());
        let end = if length == 0 { data.len() } else { (from + length).min(data.len()) };
        assert!(part == data[from..end] && entry.size == 3_000_000, "{offset} {length}");
    }
    let empty = client.write_as("user", b"empty", Some(0o4751), &[]).await.unwrap();
    assert_eq!((empty.size, empty.mode, empty.permissions.as_str()), (0, 0o4751, "-rwsr-x--x"));
    assert_eq!(client.read("empty").await.unwrap(), b"");
    let root =
        client.write_as("", client.home().join("root").as_os_str().as_bytes(), None, &[b"x"]).await.unwrap();
    assert_eq!(root.owner, "root");
    no_leftovers(&client.home());
}

#[tokio::test]
async fn a_replaced_file_keeps_mode_owner_and_the_links_that_lead_to_it() {
    let client = Client::active().await;
    let home = client.home();
    fs::write(home.join("file"), "old").unwrap();
    fs::set_permissions(home.join("file"), fs::Permissions::from_mode(0o4666)).unwrap();
    symlink("file", home.join("link")).unwrap();
    symlink("sub/new", home.join("dangling")).unwrap();
    let entry = client.write("link", b"new").await.unwrap();
    assert_eq!(
        (entry.symlink_target.as_deref(), entry.size, entry.permissions.as_str()),
        (Some(&b"file"[..]), 3, "Lrw-rw-rw-")
    );
    let metadata = fs::symlink_metadata(home.join("file")).unwrap();
    // Root's as before, but no program of root's any more: somebody else has written it.
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o666));
    assert_eq!(fs::read(home.join("file")).unwrap(), b"new");
    assert!(home.join("link").is_symlink());
    client.write("dangling", b"made").await.unwrap();
    assert!(home.join("dangling").is_symlink());
    assert_eq!(fs::read(home.join("sub/new")).unwrap(), b"made");
    symlink("loop", home.join("loop")).unwrap();
    assert_eq!(code(client.write("loop", b"x").await), Code::InvalidArgument);
    assert_eq!(code(client.write("sub", b"x").await), Code::FailedPrecondition);
    assert_eq!(code(client.write("file/below", b"x").await), Code::FailedPrecondition);
    no_leftovers(&home);
}

#[tokio::test]
async fn a_stream_that_breaks_leaves_what_was_there() {
    let client = Client::active().await;
    let home = client.home();
    client.write("file", b"old").await.unwrap();
    let (to, messages) = mpsc::channel(4);
    let mut files = client.files.clone();
    let writing = tokio::spawn(async move { files.write(call(ReceiverStream::new(messages), TOKEN)).await });
    let start = WriteStart { path: b"file".to_vec(), user: "user".to_owned(), mode: None };
    to.send(WriteRequest { part: Some(Part::Start(start)) }).await.unwrap();
    to.send(WriteRequest { part: Some(Part::Data(vec![1; 1 << 20])) }).await.unwrap();
    let has_temporary = || {
        fs::read_dir(&home)
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().as_bytes().starts_with(b".hearth-"))
    };
    crate::capsule::until("it is being written", has_temporary).await;
    assert_eq!(fs::metadata(home.join("file")).unwrap().len(), 3, "seen whole or not at all");
    writing.abort();
    crate::capsule::until("the rest is removed", || !has_temporary()).await;
    assert_eq!(fs::metadata(home.join("file")).unwrap().len(), 3, "a call that was broken off is no end");
    // Two starts are none, and neither is none at all.
    let start = || WriteStart { path: b"file".to_vec(), user: "user".to_owned(), mode: None };
    let twice = vec![
        WriteRequest { part: Some(Part::Start(start())) },
        WriteRequest { part: Some(Part::Start(start())) },
    ];
    let refused = client.files.clone().write(call(tokio_stream::iter(twice), TOKEN)).await;
    assert_eq!(code(refused), Code::InvalidArgument);
    let none = client.files.clone().write(call(tokio_stream::iter(vec![]), TOKEN)).await;
    assert_eq!(code(none), Code::InvalidArgument);
    assert_eq!(fs::read(home.join("file")).unwrap(), b"old");
    no_leftovers(&home);
}

#[tokio::test]
async fn nobody_gets_rights_that_are_not_theirs() {
    let client = Client::active().await;
    let home = client.home();
    fs::write(home.join("secret"), "root's").unwrap();
    fs::set_permissions(home.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(home.join("readable"), "root's").unwrap();
    fs::create_dir(home.join("closed")).unwrap();
    fs::set_permissions(home.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.join("closed/x"), "x").unwrap();
    fs::write(home.join("group"), "shared").unwrap();
    std::os::unix::fs::chown(home.join("group"), Some(0), Some(4242)).unwrap();
    fs::set_permissions(home.join("group"), fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(code(client.read("secret").await), Code::PermissionDenied);
    assert_eq!(code(client.write("secret", b"x").await), Code::PermissionDenied);
    assert_eq!(
        code(client.write("readable", b"x").await),
        Code::PermissionDenied,
        "though the directory is open"
    );
    assert_eq!(code(client.stat("closed/x").await), Code::PermissionDenied);
    assert_eq!(code(client.list("closed", 1).await), Code::PermissionDenied);
    assert_eq!(code(client.make_dir("closed/y").await), Code::PermissionDenied);
    assert_eq!(code(client.make_dir("/hearth-test-made").await), Code::PermissionDenied);
    assert_eq!(code(client.remove("user", "closed/x").await), Code::PermissionDenied);
    assert_eq!(code(client.relocate("user", "closed/x", "x", false).await), Code::PermissionDenied);
    let chmod = ChangeRequest {
        path: b"readable".to_vec(),
        user: "user".to_owned(),
        mode: Some(0o777),
        ..Default::default()
    };
    assert_eq!(code(client.change(chmod.clone()).await), Code::PermissionDenied);
    let chown = ChangeRequest { mode: None, owner: Some("user".to_owned()), ..chmod };
    assert_eq!(code(client.change(chown).await), Code::PermissionDenied);
    // By a supplementary group.
    assert_eq!(client.read("group").await.unwrap(), b"shared");
    let kept = client.write("group", b"changed").await.unwrap();
    assert_eq!((kept.owner.as_str(), kept.group.as_str(), kept.mode), ("root", "extra", 0o660));
    // An unreadable directory below the first is listed, not entered.
    let names: Vec<_> = client.list("~", 3).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert!(names.contains(&b"closed".to_vec()) && !names.contains(&b"x".to_vec()));
    assert_eq!(code(client.write_as("nobody-here", b"x", None, &[]).await), Code::InvalidArgument);
    no_leftovers(&home);
}

#[tokio::test]
async fn names_are_bytes_and_bad_paths_are_refused_by_name() {
    let client = Client::active().await;
    for name in [&b"caf\xe9 \xff"[..], b"new\nline", " grüße €".as_bytes(), b"-rf", b"~tilde", &[b'n'; 255]]
    {
        let path = [b"./", name].concat();
        let path = if name.starts_with(b"~") { path } else { name.to_vec() };
        let entry = client.write_as("user", &path, None, &[name]).await.unwrap();
        assert_eq!(entry.name, name);
        assert_eq!(client.read_part(&path, 0, 0).await.unwrap().1, name);
        assert!(client.list("~", 1).await.unwrap().iter().any(|entry| entry.name == name));
    }
    for path in [&b""[..], b"a\0b", &[b'a'; 4096]] {
        let status = client.read_part(path, 0, 0).await.unwrap_err();
        assert!(
            status.code() == Code::InvalidArgument && status.message().starts_with("path:"),
            "{status:?}"
        );
    }
    assert_eq!(code(client.read(&"n".repeat(256)).await), Code::InvalidArgument);
    let status = client.read("missing/file").await.unwrap_err();
    assert!(status.code() == Code::NotFound && status.message().contains("missing/file"), "{status:?}");
    assert_eq!(code(client.read("~no-such-user/x").await), Code::NotFound);
    assert!(client.read("~root/x").await.is_err());
}

#[tokio::test]
async fn directories_are_listed_level_by_level() {
    let client = Client::active().await;
    let home = client.home();
    for path in ["l/a/x/deep", "l/a-b", "l/b"] {
        client.make_dir(path).await.unwrap();
    }
    fs::write(home.join("l/a/1"), "12345").unwrap();
    fs::write(home.join("l/a-b/2"), "").unwrap();
    symlink("a", home.join("l/link")).unwrap();
    symlink("nowhere", home.join("l/none")).unwrap();
    nix::unistd::mkfifo(&home.join("l/pipe"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let names = |entries: Vec<Entry>| -> Vec<String> {
        let prefix = home.join("l");
        let below = |entry: Entry| {
            let path = String::from_utf8(entry.path).unwrap();
            path.strip_prefix(prefix.to_str().unwrap()).unwrap().trim_start_matches('/').to_owned()
        };
        entries.into_iter().map(below).collect()
    };
    let level = ["a", "a-b", "b", "link", "none", "pipe"];
    assert_eq!(names(client.list("l", 0).await.unwrap()), level);
    assert_eq!(names(client.list("l", 2).await.unwrap()), [&level[..], &["a-b/2", "a/1", "a/x"]].concat());
    assert_eq!(names(client.list("l", 64).await.unwrap()).last().unwrap(), "a/x/deep");
    let entries = client.list("l", 1).await.unwrap();
    let kinds: Vec<_> = entries.iter().map(Entry::r#type).collect();
    let directory = EntryType::Directory;
    assert_eq!(kinds, [directory, directory, directory, directory, EntryType::Symlink, EntryType::Other]);
    assert_eq!(entries[3].symlink_target.as_deref(), Some(&b"a"[..]));
    assert!(entries[3].permissions.starts_with("Lrwx") && entries[0].permissions == "drwxr-xr-x");
    // Through a link as the top.
    assert_eq!(client.list("l/link", 1).await.unwrap().len(), 2);
    assert_eq!(code(client.list("l/a/1", 1).await), Code::FailedPrecondition);
    assert_eq!(code(client.list("l/missing", 1).await), Code::NotFound);
    assert_eq!(code(client.list("l", 65).await), Code::InvalidArgument);
    assert_eq!(code(client.make_dir("l/a").await), Code::AlreadyExists);
    assert_eq!(code(client.make_dir("l/a/1").await), Code::FailedPrecondition);
    assert_eq!(code(client.make_dir("l/a/1/x").await), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_hundred_thousand_entries_are_listed_in_bounded_memory() {
    let mut client = Client::active().await;
    let script = "mkdir many && cd many && seq -f 'file-number-%06.0f' 1 100000 | xargs touch";
    let mut request = shell(script);
    request.user = "user".to_owned();
    assert_eq!(run(&mut client.envd, request).await.unwrap().exited.exit_code, 0);
    let entries = client.list("many", 1).await.unwrap();
    assert_eq!(entries.len(), 100_000);
    assert!(entries.is_sorted_by(|one, other| one.path < other.path));
    assert!(client.capsule.peak_kib() < 96 << 10, "{} KiB", client.capsule.peak_kib());
    client.remove("user", "many").await.unwrap();
    assert_eq!(code(client.stat("many").await), Code::NotFound);
}

#[tokio::test]
async fn moves_replace_only_when_told_and_cross_file_systems() {
    let mut client = Client::active().await;
    let home = client.home();
    client.write("one", b"1").await.unwrap();
    client.write("two", b"2").await.unwrap();
    assert_eq!(code(client.relocate("user", "one", "two", false).await), Code::AlreadyExists);
    assert_eq!(client.relocate("user", "one", "two", true).await.unwrap().size, 1);
    assert_eq!(
        (client.read("two").await.unwrap(), code(client.stat("one").await)),
        (b"1".to_vec(), Code::NotFound)
    );
    assert_eq!(code(client.relocate("user", "one", "x", false).await), Code::NotFound);
    assert_eq!(code(client.relocate("user", "two", "no/such/x", false).await), Code::NotFound);
    client.make_dir("d/sub").await.unwrap();
    assert_eq!(code(client.relocate("user", "d", "d/sub/d", false).await), Code::InvalidArgument);
    assert_eq!(code(client.relocate("user", "two", "d", true).await), Code::FailedPrecondition);
    // To another file system and back: a tree with all kinds of things.
    let other = client.small("other", "64m").await;
    let script = "cd ~/d && echo x > f && chmod 640 f && touch -d 2001-02-03T04:05:06Z f && ln -s f l && mkfifo p && truncate -s 100M sparse && echo end >> sparse && chmod 750 sub && touch -d 2002-02-03T04:05:06Z sub";
    let mut request = shell(script);
    request.user = "user".to_owned();
    assert_eq!(run(&mut client.envd, request).await.unwrap().exited.exit_code, 0);
    let there = other.join("d").to_str().unwrap().to_owned();
    client.relocate("user", "d", &there, false).await.unwrap();
    assert_eq!(code(client.stat("d").await), Code::NotFound);
    let sparse = client.stat(&format!("{there}/sparse")).await.unwrap();
    assert_eq!(sparse.size, (100 << 20) + 4);
    assert!(sparse.disk_bytes < 1 << 20, "holes stay holes: {sparse:?}");
    let file = client.stat(&format!("{there}/f")).await.unwrap();
    assert_eq!((file.mode, file.owner.as_str(), file.modified_at_ms), (0o640, "user", 981_173_106_000));
    let sub = client.stat(&format!("{there}/sub")).await.unwrap();
    assert_eq!((sub.mode, sub.modified_at_ms), (0o750, 1_012_709_106_000));
    assert_eq!(client.stat(&format!("{there}/l")).await.unwrap().symlink_target.as_deref(), Some(&b"f"[..]));
    assert_eq!(client.stat(&format!("{there}/p")).await.unwrap().r#type(), EntryType::Other);
    assert_eq!(code(client.relocate("user", "two", &format!("{there}/f"), false).await), Code::AlreadyExists);
    client.relocate("user", "two", &format!("{there}/f"), true).await.unwrap();
    assert_eq!(client.read(&format!("{there}/f")).await.unwrap(), b"1");
    // One that does not fit leaves everything as it was.
    client.write_as("user", b"large", None, &[&vec![7; 3 << 20][..]; 30]).await.unwrap();
    let full = client.relocate("user", "large", &format!("{there}/large"), false).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert_eq!(client.stat("large").await.unwrap().size, 90 << 20);
    let names: Vec<_> = client.list(&there, 1).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["f", "l", "p", "sparse", "sub"].map(|name| name.as_bytes().to_vec()));
    no_leftovers(&home);
}

#[tokio::test]
async fn removal_takes_links_not_targets_and_never_the_root() {
    let client = Client::active().await;
    let home = client.home();
    client.write("d/a/file", b"x").await.unwrap();
    symlink("d", home.join("link")).unwrap();
    symlink("/", home.join("rootlink")).unwrap();
    client.remove("user", "link").await.unwrap();
    client.remove("user", "rootlink").await.unwrap();
    assert!(home.join("d/a/file").exists());
    client.remove("user", "d").await.unwrap();
    assert_eq!(code(client.remove("user", "d").await), Code::NotFound);
    for path in ["/", "//", "/.", "/tmp/..", "/proc/self/root/"] {
        let refused = client.remove("user", path).await.unwrap_err();
        assert!(refused.code() != Code::NotFound, "{path}: {refused:?}");
        assert!(path.contains("proc") || refused.message().starts_with("path:"), "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn mode_owner_and_group_change_also_of_all_below() {
    let client = Client::active().await;
    let home = client.home();
    client.write("c/d/file", b"x").await.unwrap();
    fs::write(home.join("outside"), "").unwrap();
    symlink("../outside", home.join("c/link")).unwrap();
    let change = |mode, owner: Option<&str>, group: Option<&str>| ChangeRequest {
        path: home.join("c").as_os_str().as_bytes().to_vec(),
        mode,
        owner: owner.map(str::to_owned),
        group: group.map(str::to_owned),
        recursive: true,
        ..Default::default()
    };
    let entry = client.change(change(Some(0o2711), Some("root"), Some("4242"))).await.unwrap();
    assert_eq!((entry.mode, entry.owner.as_str(), entry.group.as_str()), (0o2711, "root", "extra"));
    let file = fs::metadata(home.join("c/d/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (0, 4242, 0o2711));
    let outside = fs::metadata(home.join("outside")).unwrap();
    assert_eq!((outside.gid(), outside.mode() & 0o7777), (0, 0o644), "links are left alone");
    for (owner, group, field) in [(Some("who"), None, "owner:"), (None, Some("who"), "group:")] {
        let status = client.change(change(None, owner, group)).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{status:?}");
    }
}

#[tokio::test]
async fn pipes_devices_and_made_up_files_never_hang_the_service() {
    let client = Client::active().await;
    let home = client.home();
    nix::unistd::mkfifo(&home.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(home.join("pipe"), fs::Permissions::from_mode(0o666)).unwrap();
    for path in ["pipe", "/dev/zero", "/dev/null", "/dev/tty", "~"] {
        assert_eq!(code(client.read(path).await), Code::FailedPrecondition, "{path}");
    }
    assert_eq!(code(client.write("pipe", b"x").await), Code::FailedPrecondition, "nobody reads it");
    client.write("/dev/null", &vec![1; 1 << 20]).await.unwrap();
    // A pipe with a reader gets what is written.
    let reading = tokio::spawn({
        let mut envd = client.envd.clone();
        async move {
            run(&mut envd, shell("exec 3< ~user/pipe; head -c 300000 <&3 | wc -c; sleep 1")).await.unwrap()
        }
    });
    let sent = loop {
        match client.write("pipe", &vec![1; 300_000]).await {
            Err(status) if status.code() == Code::FailedPrecondition => tokio::task::yield_now().await,
            sent => break sent,
        }
    };
    assert_eq!(sent.unwrap().r#type(), EntryType::Other);
    assert!(reading.await.unwrap().text().contains("300000"));
    let version = client.read("/proc/version").await.unwrap();
    assert!(version.starts_with(b"Linux version"), "{version:?}");
    assert_eq!(client.read_part(b"/proc/version", 6, 7).await.unwrap().1, b"version");
    assert!(client.read("/proc/self/environ").await.is_ok() || client.read("/proc/1/environ").await.is_err());
    assert!(!client.list("/proc", 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_breaks_off() {
    let client = Client::active().await;
    client.write_as("user", b"file", None, &[&vec![7; 3 << 20][..]; 8]).await.unwrap();
    let request = ReadRequest { path: b"file".to_vec(), ..Default::default() };
    // Root's home is elsewhere.
    assert_eq!(code(client.files.clone().read(call(request.clone(), TOKEN)).await), Code::NotFound);
    let request = ReadRequest { user: "user".to_owned(), ..request };
    let mut parts = client.files.clone().read(call(request, TOKEN)).await.unwrap().into_inner();
    parts.message().await.unwrap().unwrap();
    fs::File::options().write(true).open(client.home().join("file")).unwrap().set_len(1000).unwrap();
    let status = loop {
        match parts.message().await {
            Ok(part) => assert!(part.is_some(), "it ended in order"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
}

#[tokio::test]
async fn holes_cost_neither_disk_nor_memory_in_either_direction() {
    let client = Client::active().await;
    const CHUNK: usize = 1 << 20;
    let (to, messages) = mpsc::channel(2);
    let mut files = client.files.clone();
    let writing = tokio::spawn(async move { files.write(call(ReceiverStream::new(messages), TOKEN)).await });
    let start = WriteStart { path: b"sparse".to_vec(), user: "user".to_owned(), mode: None };
    to.send(WriteRequest { part: Some(Part::Start(start)) }).await.unwrap();
    for number in 0..512_u32 {
        let mut chunk = vec![0; CHUNK];
        if number % 100 == 50 {
            chunk[777..1777].fill(number.to_le_bytes()[0]);
        }
        to.send(WriteRequest { part: Some(Part::Data(chunk)) }).await.unwrap();
    }
    drop(to);
    let entry = writing.await.unwrap().unwrap().into_inner();
    assert_eq!(entry.size, 512 << 20);
    assert!(entry.disk_bytes < 1 << 20, "{entry:?}");
    let request = ReadRequest { path: b"sparse".to_vec(), user: "user".to_owned(), ..Default::default() };
    let mut parts = client.files.clone().read(call(request, TOKEN)).await.unwrap().into_inner();
    let (mut size, mut sum) = (0_usize, 0_u64);
    while let Some(part) = parts.message().await.unwrap() {
        if let Some(read_reply::Part::Data(data)) = part.part {
            size += data.len();
            sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
    }
    assert_eq!(
        (size, sum),
        (512 << 20, [50, 150, 250, 350 - 256, 450 - 256].map(|byte| byte * 1000).iter().sum())
    );
    assert!(client.capsule.peak_kib() < 64 << 10, "{} KiB", client.capsule.peak_kib());
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_no_part_of_a_file() {
    let mut client = Client::active().await;
    let small = client.small("small", "4m").await.to_str().unwrap().to_owned();
    client.write(&format!("{small}/kept"), b"kept").await.unwrap();
    for name in ["new", "kept"] {
        let path = format!("{small}/{name}");
        let full =
            client.write_as("user", path.as_bytes(), None, &[&vec![7; 1 << 20][..]; 30]).await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
        assert!(full.message().contains(name), "{full:?}");
    }
    assert_eq!(client.read(&format!("{small}/kept")).await.unwrap(), b"kept");
    assert_eq!(client.list(&small, 1).await.unwrap().len(), 1);
    assert_eq!(client.write(&format!("{small}/fits"), &[7; 1 << 20]).await.unwrap().size, 1 << 20);
}
