//! A private Postgres cluster in the data folder, for when no `DATABASE_URL` is given.
//!
//! It runs the installed programs as the unprivileged user `postgres` (Debian's package makes it), listens on a Unix
//! socket only, and is stopped with Hearth.

use crate::ending::Ending;
use nix::{
    sys::signal::Signal,
    unistd::{User, chown},
};
use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The majors this was written for; another may have other formats and options.
const MAJORS: std::ops::RangeInclusive<u32> = 15..=17;
/// Where Debian installs the programs, one folder per major.
const PROGRAMS: &str = "/usr/lib/postgresql";
/// The user it runs as.
const USER: &str = "postgres";
/// A cluster that recovers from a crash needs seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// SIGINT is a fast shutdown: sessions are ended, everything is written (postgres(1)).
const STOP: Ending = Ending { signal: Signal::SIGINT, deadline: Duration::from_secs(20) };
/// Between two looks for the socket, which nothing announces.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No installed major fits.
    #[error(
        "no PostgreSQL {}–{} in {PROGRAMS}: apt-get install postgresql, or set DATABASE_URL",
        MAJORS.start(),
        MAJORS.end()
    )]
    NotInstalled,
    /// The cluster was made by a major that is not installed.
    #[error("the cluster in {folder} was made by PostgreSQL {major}: apt-get install postgresql-{major}")]
    OtherMajor {
        /// The cluster's folder.
        folder: PathBuf,
        /// Its major.
        major: String,
    },
    /// The user is missing.
    #[error("there is no user `{USER}`: it comes with the package postgresql")]
    NoUser,
    /// A file or program failed.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {text}")]
    Program {
        /// Which.
        program: String,
        /// Its last words.
        text: String,
    },
    /// It does not come up.
    #[error("the private database does not come up; its log is {0}")]
    Silent(PathBuf),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> PostgresError {
    let what = what.into();
    move |source| PostgresError::Io { what, source }
}

/// The majors that are installed and fit, newest last.
pub fn installed() -> Vec<u32> {
    let mut majors: Vec<u32> = fs::read_dir(PROGRAMS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|major| MAJORS.contains(major))
        .filter(|major| Path::new(PROGRAMS).join(major.to_string()).join("bin/postgres").exists())
        .collect();
    majors.sort_unstable();
    majors
}

/// A running cluster. Dropping it stops it.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    url: String,
}

impl Postgres {
    /// Makes the cluster in `dir/postgres` if it is not there, and starts it. Blocks for up to some seconds.
    pub fn start(dir: &Path) -> Result<Self, PostgresError> {
        let folder = dir.join("postgres");
        let (cluster, sockets, log) = (folder.join("cluster"), folder.join("run"), folder.join("log"));
        let user = User::from_name(USER).ok().flatten().ok_or(PostgresError::NoUser)?;
        for path in [&folder, &sockets] {
            fs::create_dir_all(path).map_err(io_error(path.display().to_string()))?;
            chown(path, Some(user.uid), Some(user.gid))
                .map_err(|errno| io_error(path.display().to_string())(errno.into()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(io_error(path.display().to_string()))?;
        }
        let programs = programs_for(&cluster)?;
        if !cluster.join("PG_VERSION").exists() {
            initialise(&programs, &cluster, &user)?;
        }
        if stop_leftover(dir).map_err(io_error("the database that an earlier Hearth left"))? {
            tracing::warn!("stopped the private database that an earlier Hearth left running");
        }
        let log_file = fs::File::options()
            .append(true)
            .create(true)
            .open(&log)
            .map_err(io_error(log.display().to_string()))?;
        let child = as_user(&programs.join("postgres"), &user)
            .arg("-D")
            .arg(&cluster)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "unix_socket_permissions=0700",
                "-c",
                "max_connections=50",
            ])
            .args(["-c", "shared_buffers=32MB", "-c", "fsync=on", "-k"])
            .arg(&sockets)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().map_err(io_error("the database's log"))?)
            .stderr(log_file)
            .spawn()
            .map_err(io_error("starting postgres"))?;
        let url = format!("postgres://{USER}@localhost/postgres?host={}", sockets.display());
        let mut postgres = Self { child, url };
        postgres.wait_until_up(&sockets.join(".s.PGSQL.5432"), &log)?;
        Ok(postgres)
    }

    /// How to connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn wait_until_up(&mut self, socket: &Path, log: &Path) -> Result<(), PostgresError> {
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            let ended = self.child.try_wait().map_err(io_error("postgres"))?.is_some();
            if ended || START_DEADLINE < start.elapsed() {
                return Err(PostgresError::Silent(log.to_owned()));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let ended = STOP.of(self.child.id() as i32, || matches!(self.child.try_wait(), Ok(None)));
        if ended != Ok(true) {
            tracing::warn!(?ended, "the private database does not stop and is killed");
            // It recovers at the next start.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Stops the cluster in `dir` that an earlier Hearth left running. Nothing to do is no error.
pub fn stop_leftover(dir: &Path) -> io::Result<bool> {
    let file = dir.join("postgres/cluster/postmaster.pid");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
        return Ok(false);
    };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = dir.join("postgres/cluster");
    if !String::from_utf8_lossy(&command).contains(&*ours.to_string_lossy()) {
        return Ok(false);
    }
    if !STOP.of(pid, || Path::new(&format!("/proc/{pid}")).exists())? {
        return Err(io::Error::other(format!("the private database (process {pid}) does not stop")));
    }
    Ok(true)
}

/// The programs that made the cluster, or the newest for a new one.
fn programs_for(cluster: &Path) -> Result<PathBuf, PostgresError> {
    let majors = installed();
    let major = match fs::read_to_string(cluster.join("PG_VERSION")) {
        Err(_) => *majors.last().ok_or(PostgresError::NotInstalled)?,
        Ok(text) => {
            let major = text.trim().to_owned();
            let other = || PostgresError::OtherMajor { folder: cluster.to_owned(), major: major.clone() };
            *majors.iter().find(|installed| installed.to_string() == major).ok_or_else(other)?
        }
    };
    Ok(Path::new(PROGRAMS).join(major.to_string()).join("bin"))
}

fn initialise(programs: &Path, cluster: &Path, user: &User) -> Result<(), PostgresError> {
    tracing::info!(folder = %cluster.display(), "making a private database");
    let output = as_user(&programs.join("initdb"), user)
        .arg("-D")
        .arg(cluster)
        // Only its own user and root reach the socket's folder: trusted there, and nowhere else.
        .args(["--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C.UTF-8", "-U", USER])
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("starting initdb"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // A half-made cluster would be taken for a whole one.
    let _ = fs::remove_dir_all(cluster);
    Err(PostgresError::Program { program: "initdb".to_owned(), text })
}

/// A command that runs as `user`, in its own process group: a terminal's Ctrl-C must not end the database first.
fn as_user(program: &Path, user: &User) -> Command {
    let mut command = Command::new(program);
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).process_group(0).current_dir("/");
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command
}
