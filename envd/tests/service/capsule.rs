//! A service under test: started for one test, with a cgroup, an /etc and a host name of its own; nothing is left.

use hearth_envd::cgroup::Cgroup;
use hearth_proto::{
    metadata,
    wire::{
        envd::{ActivateRequest, envd_client::EnvdClient},
        process::{ExecEvent, ExecRequest, Exited, exec_event::Event},
    },
};
use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Longest wait for anything that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);
pub const TOKEN: &str = "a-token-of-32-visible-characters";

/// Covers what the service writes in /etc, and gives it users of its own.
const NAMESPACE: &str = r#"for file in passwd group hosts hostname machine-id; do
    [ -e /etc/$file ] || : > /etc/$file
    mount --bind "$ETC/$file" /etc/$file
done
exec "$@""#;

pub struct Capsule {
    service: Child,
    address: String,
    pub cgroup: Cgroup,
    pub folder: TempDir,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

/// Everything a process did.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Exited,
}

impl Outcome {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }
}

pub fn now_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// A call as the agent makes it.
pub fn call<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(metadata::TOKEN, token.parse().unwrap());
    request.metadata_mut().insert(metadata::REALTIME_NS, now_ns().to_string().parse().unwrap());
    request
}

pub fn activation() -> ActivateRequest {
    let mut entropy = vec![0; 64];
    getrandom::fill(&mut entropy).unwrap();
    ActivateRequest {
        entropy,
        realtime_ns: now_ns(),
        hostname: "cl-test".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        token: TOKEN.to_owned(),
        env: HashMap::from([("CAPSULE".to_owned(), "yes".to_owned())]),
    }
}

pub fn program(cmd: &str, args: &[&str]) -> ExecRequest {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    ExecRequest { cmd: cmd.to_owned(), args, ..ExecRequest::default() }
}

pub fn shell(script: &str) -> ExecRequest {
    program("sh", &["-c", script])
}

impl Capsule {
    /// Starts a service that was never activated.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        // The temporary folder is root's alone; users of the test must get through it.
        open_up(folder.path());
        open_up(&home);
        write_etc(&folder, home.to_str().unwrap());
        let cgroup = make_cgroup();
        let mut service = Command::new("unshare")
            .args(["--mount", "--uts", "sh", "-ec", NAMESPACE, "sh", env!("CARGO_BIN_EXE_envd"), "service"])
            .args(["--listen", "127.0.0.1:0", "--clock", "offset", "--cgroup"])
            .arg(cgroup.path())
            .arg("--run-dir")
            .arg(folder.path().join("run"))
            .env("ETC", folder.path().join("etc"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(service.stderr.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.find(|line| line.contains("envd serves")).expect("the service starts");
        let address = first.rsplit_once("address=").unwrap().1.trim().to_owned();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        let reader = std::thread::spawn(move || lines.for_each(|line| sink.lock().unwrap().push(line)));
        Self { service, address, cgroup, folder, log, reader: Some(reader) }
    }

    /// Starts a service and activates it.
    pub async fn active() -> (Self, EnvdClient<Channel>) {
        let capsule = Self::start();
        let mut client = capsule.connect().await;
        client.activate(activation()).await.unwrap();
        (capsule, client)
    }

    pub async fn connect(&self) -> EnvdClient<Channel> {
        EnvdClient::new(self.channel().await)
    }

    /// A connection of its own, with windows like the agent's.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint =
            endpoint.initial_stream_window_size(256 << 10).initial_connection_window_size(32 << 20);
        endpoint.connect().await.unwrap()
    }

    pub fn home(&self) -> String {
        self.folder.path().join("home").to_str().unwrap().to_owned()
    }

    /// Most memory the service ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.service.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Error lines so far, taken out: a test that expects them takes them, all others must end without.
    pub fn take_errors(&self) -> Vec<String> {
        let mut log = self.log.lock().unwrap();
        let (errors, others) = log.drain(..).partition(|line| line.contains("ERROR"));
        *log = others;
        errors
    }
}

impl Drop for Capsule {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
        let _ = self.cgroup.thaw();
        let _ = self.cgroup.kill();
        let empty = self.cgroup.wait_empty(SOON).unwrap();
        for entry in fs::read_dir(self.cgroup.path()).unwrap().flatten() {
            if entry.path().is_dir() {
                let _ = fs::remove_dir(entry.path());
            }
        }
        let _ = fs::remove_dir(self.cgroup.path());
        // Its end is the end of the log, also for processes that inherited it.
        let _ = self.reader.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(empty, "processes are left");
            assert!(!self.cgroup.path().exists(), "the control group is left");
            assert_eq!(self.take_errors(), Vec::<String>::new(), "unexpected error lines");
        }
    }
}

/// Runs a process to its end.
pub async fn run(client: &mut EnvdClient<Channel>, request: ExecRequest) -> Result<Outcome, Status> {
    collect(client.exec(call(request, TOKEN)).await?.into_inner()).await
}

/// Reads a stream to its end and checks its order.
pub async fn collect(mut events: Streaming<ExecEvent>) -> Result<Outcome, Status> {
    let mut outcome = Outcome::default();
    let mut ended = false;
    while let Some(event) = events.message().await? {
        assert!(!ended, "Exited is last");
        match event.event.unwrap() {
            Event::Started(started) => assert_ne!(started.pid, 0),
            Event::Stdout(bytes) => outcome.stdout.extend(bytes),
            Event::Stderr(bytes) => outcome.stderr.extend(bytes),
            Event::Exited(exited) => {
                outcome.exited = exited;
                ended = true;
            }
        }
    }
    assert!(ended, "Exited comes");
    Ok(outcome)
}

/// Waits until a condition holds. For states of other processes that nothing announces.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn write_etc(folder: &TempDir, home: &str) {
    let etc = folder.path().join("etc");
    fs::create_dir(&etc).unwrap();
    let passwd = format!("root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::{home}:/bin/sh\n");
    for (file, text) in [
        ("passwd", passwd.as_str()),
        ("group", "root:x:0:\nuser:x:1000:\nsudo:x:27:user\nextra:x:4242:root,user\n"),
        ("hosts", "127.0.0.1 localhost\n"),
        ("hostname", ""),
        ("machine-id", ""),
    ] {
        fs::write(etc.join(file), text).unwrap();
    }
}

fn open_up(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

fn make_cgroup() -> Cgroup {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.into_iter().find(|fields| fields[2] == "cgroup2").expect("a cgroup v2 mount");
    let name = format!("hearth-envd-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let cgroup = Cgroup::at(mount[1]).child(&name);
    cgroup.make().expect("root, to make a control group");
    cgroup
}
