//! A private Postgres: Unix socket only, in a temporary folder, stopped when the last test that uses it ends.

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User, chown},
};
use sqlx::{Connection, PgConnection};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};
use tempfile::TempDir;

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// One running Postgres.
pub struct Cluster {
    server: Mutex<Option<Child>>,
    programs: PathBuf,
    /// Gone only while the cluster is dropped.
    folder: Option<TempDir>,
}

/// A database of its own for one test.
pub struct Database {
    pub cluster: Arc<Cluster>,
    name: String,
}

impl Database {
    /// In the cluster that the tests share.
    pub async fn new() -> Self {
        let cluster = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let cluster = Arc::new(Cluster::start());
                *shared = Arc::downgrade(&cluster);
                cluster
            })
        };
        Self::within(cluster).await
    }

    /// In a cluster of its own, which the test may stop and start.
    pub async fn alone() -> Self {
        Self::within(Arc::new(Cluster::start())).await
    }

    async fn within(cluster: Arc<Cluster>) -> Self {
        let name = format!("t{}", uuid::Uuid::new_v4().simple());
        let mut connection = cluster.connect("postgres").await;
        let create = format!("CREATE DATABASE {name}");
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        Self { cluster, name }
    }

    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    pub async fn connect(&self) -> PgConnection {
        self.cluster.connect(&self.name).await
    }
}

impl Cluster {
    fn start() -> Self {
        let folder = TempDir::with_prefix("hearth-pg-").unwrap();
        let cluster = Self { server: Mutex::new(None), programs: programs(), folder: Some(folder) };
        if let Some(user) = unprivileged() {
            chown(cluster.folder(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let made = cluster
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(cluster.data())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed");
        cluster.up();
        cluster
    }

    /// Starts the server; it accepts connections a moment later.
    pub fn up(&self) {
        let log = fs::File::create(self.folder().join("log")).unwrap();
        let server = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.server.lock().unwrap() = Some(server);
    }

    /// Stops the server and ends its connections.
    pub fn down(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut server) = server {
            let pid = Pid::from_raw(i32::try_from(server.id()).unwrap());
            // SIGINT is Postgres's fast shutdown.
            kill(pid, Signal::SIGINT).unwrap();
            server.wait().unwrap();
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder());
        if let Some(user) = unprivileged() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().map(TempDir::path).unwrap()
    }

    fn url(&self, name: &str) -> String {
        let folder = self.folder().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{folder}/{name}")
    }

    async fn connect(&self, name: &str) -> PgConnection {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match PgConnection::connect(&self.url(name)).await {
                Ok(connection) => return connection,
                Err(error) if Instant::now() > end => panic!("no database: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.down();
        if let Some(folder) = self.folder.take() {
            let path = folder.path().to_owned();
            if let Err(error) = folder.close() {
                eprintln!("{} stays behind: {error}", path.display());
            }
        }
    }
}

/// Postgres refuses to run as root.
fn unprivileged() -> Option<User> {
    Uid::effective().is_root().then(|| User::from_name("postgres").unwrap().expect("a user `postgres`"))
}

/// The newest installed major.
fn programs() -> PathBuf {
    let root = Path::new("/usr/lib/postgresql");
    let mut majors: Vec<u32> = fs::read_dir(root)
        .expect("Postgres is installed in /usr/lib/postgresql")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable();
    let newest = majors.pop().expect("a major version of Postgres");
    root.join(newest.to_string()).join("bin")
}
