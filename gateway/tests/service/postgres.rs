//! A Postgres of this test binary's own: a Unix socket in a temporary folder, no TCP. It stops when the binary ends.

use sqlx::{Connection, PgConnection};
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

static CLUSTER: OnceLock<String> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The URL of a new, empty database.
pub async fn database() -> String {
    let folder = tokio::task::spawn_blocking(|| CLUSTER.get_or_init(start).clone()).await.expect("a cluster");
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut connection = PgConnection::connect(&url(&folder, "postgres")).await.expect("a connection");
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&mut connection).await.expect("a database");
    url(&folder, &name)
}

fn url(folder: &str, database: &str) -> String {
    format!("postgres://postgres@localhost/{database}?host={}", folder.replace('/', "%2F"))
}

/// Starts the cluster and a small process that stops it and removes its folder when this one has ended, however it
/// ends: a static has no destructor.
fn start() -> String {
    let folder = tempfile::Builder::new().prefix("hearth-test-pg-").tempdir().expect("a folder").keep();
    let (uid, gid) = unprivileged();
    chown(&folder, Some(uid), Some(gid)).expect("chown");
    let data = folder.join("data");
    run(
        program("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth=trust", "--no-sync"])
            .args(["-E", "UTF8"]),
        uid,
        gid,
    );
    let settings =
        format!("-c listen_addresses= -c unix_socket_directories={} -c fsync=off", folder.display());
    let log = folder.join("log");
    run(
        program("pg_ctl")
            .arg("-D")
            .arg(&data)
            .arg("-l")
            .arg(&log)
            .args(["-w", "-t", "60", "-o", &settings])
            .arg("start"),
        uid,
        gid,
    );
    watch(&folder, &data, uid, gid);
    folder.to_str().expect("UTF-8").to_owned()
}

/// Waits for the end of its standard input, which only this process holds open.
fn watch(folder: &Path, data: &Path, uid: u32, gid: u32) {
    let script = r#"cat >/dev/null; "$0" -D "$1" -m immediate stop >/dev/null 2>&1; rm -rf "$2""#;
    let mut watcher = Command::new("/bin/sh");
    watcher.arg("-c").arg(script).arg(bin("pg_ctl")).arg(data).arg(folder);
    watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    as_user(&mut watcher, uid, gid);
    let child = watcher.spawn().expect("a watcher");
    // Kept open, and never waited for, until this process ends.
    std::mem::forget(child);
}

fn run(command: &mut Command, uid: u32, gid: u32) {
    as_user(command, uid, gid);
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .expect("a program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Postgres refuses to run as root.
fn as_user(command: &mut Command, uid: u32, gid: u32) {
    if nix::unistd::geteuid().is_root() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
}

fn unprivileged() -> (u32, u32) {
    if !nix::unistd::geteuid().is_root() {
        return (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    }
    let user =
        nix::unistd::User::from_name("postgres").expect("the user database").expect("a user `postgres`");
    (user.uid.as_raw(), user.gid.as_raw())
}

fn program(name: &str) -> Command {
    Command::new(bin(name))
}

/// Debian keeps each major version in a folder of its own.
fn bin(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("Postgres is installed")
        .map(|entry| entry.expect("readable").path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {name} below /usr/lib/postgresql"))
}
