//! Firecracker's API as it is, without the agent: whether its log of written pages can be trusted, and what its calls
//! cost by themselves.

use crate::{
    folder,
    generations::{is_whole, start},
    stop,
};
use hearth_agent::{
    disk::sparse,
    memory::{
        CHUNK, PAGE,
        layer::{Buffers, Layer},
    },
    snapshot::store::name,
    vmm::machine::GuestNetwork,
};
use hearth_e2e::{agent::TestAgent, process::until};
use hearth_proto::id::CapsuleId;
use nix::sys::signal::Signal;
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileExt, chown},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A call on this machine takes seconds at most.
const DEADLINE: Duration = Duration::from_secs(60);
/// What is on its way to the guest arrives.
const QUIET: Duration = Duration::from_secs(2);
/// Runs of each row of the benchmark.
const RUNS: usize = 5;
const UID: u32 = 990_000;

/// The API of the Firecracker in the jail with this root.
struct Raw(PathBuf);

impl Raw {
    /// A call that must succeed.
    fn call(&self, method: &str, path: &str, body: &str) {
        // By descriptor: the path is too long for a socket's address.
        let root = File::open(&self.0).unwrap();
        let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/api.sock", root.as_raw_fd())).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
    }

    fn state(&self, state: &str) {
        self.call("PATCH", "/vm", &format!(r#"{{"state":"{state}"}}"#));
    }

    fn create(&self, kind: &str, memory: &str) {
        let body = format!(
            r#"{{"snapshot_type":"{kind}","snapshot_path":"/{memory}.state","mem_file_path":"/{memory}"}}"#
        );
        self.call("PUT", "/snapshot/create", &body);
    }
}

/// The template's snapshot of this machine.
fn template() -> PathBuf {
    let cache = std::env::var("HEARTH_CACHE").unwrap();
    let folders = fs::read_dir(Path::new(&cache).join("templates")).unwrap().flatten();
    let found: Vec<_> =
        folders.map(|entry| entry.path()).filter(|at| at.join(name::MEMORY).exists()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn has_data(file: &File, at: u64) -> bool {
    nix::unistd::lseek(file, at as i64, nix::unistd::Whence::SeekData).is_ok_and(|data| data as u64 == at)
}

/// Pages of all memory that differ from the template's and are not in the file of differences, or not the same there. What
/// is missed is shown, and whether it was written between the two full snapshots, when the vCPUs stood still.
fn missed(template: &Layer, log: &File, [all, again]: [&File; 2]) -> (usize, usize) {
    let (mut buffers, mut page, mut logged) = (Buffers::new().unwrap(), vec![0; PAGE], vec![0; PAGE]);
    let mut later = vec![0; PAGE];
    let (mut written, mut missed) = (0, 0);
    for chunk in 0..template.chunks() {
        template.read(chunk, &mut buffers).unwrap();
        for (number, before) in buffers.chunk.chunks(PAGE).enumerate() {
            let at = (chunk * CHUNK + number * PAGE) as u64;
            all.read_exact_at(&mut page, at).unwrap();
            if page != before {
                written += 1;
                log.read_exact_at(&mut logged, at).unwrap();
                let is_there = has_data(log, at);
                if !is_there || logged != page {
                    let kind = if is_there { "with another content" } else { "not at all" };
                    again.read_exact_at(&mut later, at).unwrap();
                    let differs =
                        |one: &[u8], other: &[u8]| (0..PAGE).filter(|at| one[*at] != other[*at]).count();
                    let first = (0..PAGE).find(|at| page[*at] != logged[*at]).unwrap_or(0) & !31;
                    println!(
                        "the page at {at:#x} is in the log {kind}: {} bytes differ, {} once more in the second full one; \
                         at {first:#x} {:02x?}, logged {:02x?}, in the template {:02x?}",
                        differs(&page, &logged),
                        differs(&page, &later),
                        &page[first..first + 32],
                        &logged[first..first + 32],
                        &before[first..first + 32],
                    );
                    missed += 1;
                }
            }
        }
    }
    (written, missed)
}

/// The only VMM's jail.
fn jail(dir: &Path) -> PathBuf {
    let only = |folder: &Path| fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    only(&only(&dir.join("agent/vmms")).join("firecracker")).join("root")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "one page in two of three runs: see decision 0016"]
async fn the_log_of_written_pages_misses_none() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    let root = jail(dir.path());
    let raw = Raw(root.clone());
    let below = Layer::open(File::open(template().join(name::MEMORY)).unwrap()).unwrap();
    for round in 0..2 {
        is_whole(&mut agent, id, round).await;
        agent.shell(id, "dd if=/dev/urandom of=/tmp/more bs=64k count=16 2>/dev/null; sync").await.unwrap();
        // Nobody talks to the guest between the two: its devices would write what comes.
        agent.process.signal(Signal::SIGSTOP).unwrap();
        tokio::time::sleep(QUIET).await;
        raw.state("Paused");
        // The second goes into the same file.
        raw.create("Diff", "log");
        raw.create("Full", "all");
        raw.create("Full", "again");
        raw.state("Resumed");
        agent.process.signal(Signal::SIGCONT).unwrap();
        let open = |name: &str| File::open(root.join(name)).unwrap();
        let (written, missed) = missed(&below, &open("log"), [&open("all"), &open("again")]);
        let logged = fs::metadata(root.join("log")).map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta));
        println!("round {round}: {written} pages differ, {} pages are in the log", logged.unwrap() / 8);
        assert!(written > 1000, "{written}");
        assert_eq!(missed, 0, "of {written}");
        for full in ["all", "again"] {
            fs::remove_file(root.join(full)).unwrap();
        }
    }
    agent.destroy(id).await.unwrap();
    stop(&mut agent, dir.path()).await;
}

/// A Firecracker that was started by nothing but its jailer.
struct Bare {
    child: Child,
    namespace: String,
    raw: Raw,
}

impl Bare {
    /// From the files in `from`; what is timed is the spawn and the load. Its memory file is mapped.
    fn restore(base: &Path, from: &Files, number: usize) -> (Self, Duration) {
        let (id, namespace) = (format!("bare-{number}"), format!("bare{number}"));
        let ip = |args: &[&str]| assert!(Command::new("ip").args(args).status().unwrap().success());
        ip(&["netns", "add", &namespace]);
        let user = UID.to_string();
        let tap = GuestNetwork::TAP;
        ip(&["-n", &namespace, "tuntap", "add", tap, "mode", "tap", "user", &user]);
        ip(&["-n", &namespace, "link", "set", tap, "up"]);
        let root = base.join(format!("firecracker/{id}/root"));
        fs::create_dir_all(&root).unwrap();
        fs::hard_link(&from.rootfs, root.join("rootfs")).unwrap();
        fs::hard_link(&from.memory, root.join("memory")).unwrap();
        for (source, target) in [(&from.upper, "upper"), (&from.state, "state")] {
            // `fs::copy` would fill the disk's holes, and the lab's disk with them.
            sparse::copy(source, &root.join(target)).unwrap();
            chown(root.join(target), Some(UID), Some(UID)).unwrap();
        }
        let program = |name: &str| std::env::var(name).unwrap();
        let start = Instant::now();
        let child = Command::new("ip")
            .args(["netns", "exec", &namespace, &program("HEARTH_JAILER_BIN"), "--id", &id, "--exec-file"])
            .args([&program("HEARTH_FIRECRACKER_BIN"), "--uid", &user, "--gid", &user, "--chroot-base-dir"])
            .arg(base)
            .args(["--", "--api-sock", "/api.sock"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let bare = Self { child, namespace, raw: Raw(root.clone()) };
        let folder = File::open(&root).unwrap();
        let socket = format!("/proc/self/fd/{}/api.sock", folder.as_raw_fd());
        until(DEADLINE, "the API", || Ok(UnixStream::connect(&socket).is_ok().then_some(()))).unwrap();
        bare.raw.call(
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"/memory"},
                "enable_diff_snapshots":true,"resume_vm":true}"#,
        );
        (bare, start.elapsed())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
        let _ = fs::remove_dir_all(&self.raw.0);
    }
}

/// What a bare Firecracker is restored from.
struct Files {
    rootfs: PathBuf,
    memory: PathBuf,
    upper: PathBuf,
    state: PathBuf,
}

impl Files {
    fn of(template: &Path, folder: &Path) -> Self {
        let cache = PathBuf::from(std::env::var("HEARTH_CACHE").unwrap());
        let current = fs::read_to_string(cache.join("images/current.json")).unwrap();
        let current: serde_json::Value = serde_json::from_str(&current).unwrap();
        let rootfs = PathBuf::from(current["rootfs"].as_str().unwrap());
        let (layer, memory) =
            (Layer::open(File::open(template.join(name::MEMORY)).unwrap()).unwrap(), folder.join("memory"));
        let out = File::create_new(&memory).unwrap();
        out.set_len(layer.ram_bytes()).unwrap();
        let mut buffers = Buffers::new().unwrap();
        for chunk in 0..layer.chunks() {
            if layer.read(chunk, &mut buffers).unwrap().stored != 0 {
                out.write_all_at(&buffers.chunk, (chunk * CHUNK) as u64).unwrap();
            }
        }
        Self { rootfs, memory, upper: template.join(name::UPPER), state: template.join(name::DEVICE) }
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Times of our paths: restore, with its first exec, pause, resume, fork.
async fn ours(agent: &mut TestAgent) -> [Vec<Duration>; 5] {
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..RUNS {
        let start = Instant::now();
        let id: CapsuleId = agent.restore(false).await.unwrap();
        times[0].push(start.elapsed());
        agent.shell(id, "true").await.unwrap();
        times[1].push(start.elapsed());
        let start = Instant::now();
        agent.pause(id).await.unwrap();
        times[2].push(start.elapsed());
        let start = Instant::now();
        agent.resume(id).await.unwrap();
        times[3].push(start.elapsed());
        let start = Instant::now();
        let (copies, _) = agent.fork(id, 1).await.unwrap();
        times[4].push(start.elapsed());
        for id in [id, copies[0]] {
            agent.destroy(id).await.unwrap();
        }
    }
    times
}

/// The raw sequences: spawn and load; pause and create; the same, resume, and another spawn and load.
fn bare(base: &Path, files: &Files) -> [Vec<Duration>; 3] {
    let mut times: [Vec<Duration>; 3] = Default::default();
    for run in 0..RUNS {
        let (bare, restored) = Bare::restore(base, files, 2 * run);
        times[0].push(restored);
        let start = Instant::now();
        bare.raw.state("Paused");
        bare.raw.create("Diff", "difference");
        let paused = start.elapsed();
        times[1].push(paused);
        let start = Instant::now();
        bare.raw.state("Resumed");
        let resumed = start.elapsed();
        let (_copy, copied) = Bare::restore(base, files, 2 * run + 1);
        times[2].push(paused + resumed + copied);
    }
    times
}

/// Means of the agent's own steps of restores, by what is restored, from its metrics.
fn print_steps(address: &str) {
    let (mut stream, mut text) = (TcpStream::connect(address).unwrap(), String::new());
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    stream.read_to_string(&mut text).unwrap();
    let name = "hearth_agent_step_seconds";
    for line in text.lines() {
        let Some((labels, sum)) =
            line.strip_prefix(&format!("{name}_sum")).and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let count = format!("{name}_count{labels} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&count)).unwrap();
        let (sum, count): (f64, f64) = (sum.parse().unwrap(), count.parse().unwrap());
        println!("bench: {labels}: {:.0} ms, n = {count}", sum / count * 1000.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark: e2e/lab/run TESTS --ignored"]
async fn benchmark_of_our_paths_against_the_raw_calls() {
    let dir = folder();
    let address = "127.0.0.1:9101";
    let settings = [("HEARTH_PARKED", "0"), ("HEARTH_METRICS_LISTEN", address)];
    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    // The image is filled, as on a host that was used.
    let warm = agent.restore(false).await.unwrap();
    agent.shell(warm, "true").await.unwrap();
    agent.destroy(warm).await.unwrap();
    let [restore, exec, pause, resume, fork] = ours(&mut agent).await.map(median);
    print_steps(address);
    stop(&mut agent, dir.path()).await;
    let base = folder();
    let files = Files::of(&template(), base.path());
    let [load, create, copy] = bare(base.path(), &files).map(median);
    println!("bench: | path, n = {RUNS} | ours, ms | raw calls, ms | ratio |");
    println!("bench: |---|---|---|---|");
    for (path, ours, raw) in [
        ("restore until the guest has answered", restore, load),
        ("restore and the first exec", exec, load),
        ("pause", pause, create),
        ("resume until the guest has answered", resume, load),
        ("fork of 1 until the copy has answered", fork, copy),
    ] {
        println!("bench: | {path} | {ours:.0} | {raw:.0} | {:.1} |", ours / raw);
        assert!(ours.is_finite() && raw > 0.0);
    }
}
