//! `hearth doctor`: what this machine has, what it lacks, and how to get it, a line each.

use crate::{
    args::{DoctorArgs, Where},
    postgres,
};
use hearth_agent::{
    engine::{Accelerator, Engine, Programs, TCG_WARNING},
    template::recipe::BootSet,
    usage::meminfo_kib,
};
use nix::sys::statvfs::statvfs;
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// How a finding is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Good,
    /// It works, with less.
    Warn,
    /// Hearth cannot run.
    Bad,
}

/// One line of the report.
#[derive(Debug)]
struct Finding {
    grade: Grade,
    name: &'static str,
    text: String,
}

impl Finding {
    fn new(grade: Grade, name: &'static str, text: impl Into<String>) -> Self {
        Self { grade, name, text: text.into() }
    }
}

/// Reports; fails when Hearth cannot run here.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = look(args);
    if args.json {
        let rows: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "name": finding.name,
                    "grade": match finding.grade { Grade::Good => "good", Grade::Warn => "warn", Grade::Bad => "bad" },
                    "text": finding.text,
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::from(rows));
    } else {
        for finding in &findings {
            let mark = match finding.grade {
                Grade::Good => "ok  ",
                Grade::Warn => "warn",
                Grade::Bad => "BAD ",
            };
            println!("{mark}  {:12}  {}", finding.name, finding.text);
        }
    }
    let bad = findings.iter().any(|finding| finding.grade == Grade::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = needed(&args.place, &args.programs.qemu, std::env::var_os("DATABASE_URL").is_some());
    let engine = engine(args);
    if engine.grade != Grade::Bad
        && let Some(qemu) = findings.iter_mut().find(|finding| finding.name == "qemu")
    {
        spare(qemu, &engine.text);
    }
    findings.extend([
        engine,
        network(),
        packages(),
        memory(),
        disk("data disk", &args.place.dir, 4 << 30),
        disk("cache disk", &args.place.cache, 4 << 30),
        open_files(),
        processes(),
    ]);
    findings
}

/// What Hearth cannot start without, cheap to look at.
fn needed(place: &Where, qemu: &Path, has_database: bool) -> Vec<Finding> {
    vec![
        root(),
        kernel(),
        qemu_program(qemu),
        device("userfaultfd", "/dev/userfaultfd", "a kernel with CONFIG_USERFAULTFD, as Debian's: boot one"),
        device("tap", "/dev/net/tun", "the module tun: modprobe tun"),
        tmpfs(),
        namespaces(),
        seccomp(),
        database(has_database),
        images(place),
        preload(),
    ]
}

/// What `hearth up` lacks here, and how to get it: a line each. Empty when it can start, or when only the agent can tell
/// whether it does without QEMU: where Firecracker is installed it may use that.
pub fn missing(place: &Where, programs: &Programs, has_database: bool) -> Vec<String> {
    let has_firecracker = programs.firecracker.exists() && programs.jailer.exists();
    needed(place, &programs.qemu, has_database)
        .into_iter()
        .filter(|finding| finding.grade == Grade::Bad)
        .filter(|finding| finding.name != "qemu" || !has_firecracker)
        .map(|finding| format!("{}: {}", finding.name, finding.text))
        .collect()
}

fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Finding::new(Grade::Good, "root", "yes");
    }
    Finding::new(Grade::Bad, "root", "namespaces, taps and mounts need root: use sudo")
}

/// Linux 6.1 brought /dev/userfaultfd.
fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let grade = if version < (6, 1) { Grade::Bad } else { Grade::Good };
    let text = match grade {
        Grade::Bad => {
            format!("Linux {release}; 6.1 or newer is needed: apt-get install linux-image-amd64, and reboot")
        }
        Grade::Good | Grade::Warn => format!("Linux {release} (6.1 or newer is needed)"),
    };
    Finding::new(grade, "kernel", text)
}

/// Rulesets are tried in a namespace that ends at once.
fn network() -> Finding {
    match hearth_agent::network::router::probe() {
        Ok(()) => Finding::new(Grade::Good, "network", "capsules can be given a way out"),
        Err(error) => {
            let how =
                "capsules run with network `none` only: apt-get install --no-install-recommends nftables";
            Finding::new(Grade::Warn, "network", format!("{error}; {how}"))
        }
    }
}

fn qemu_program(path: &Path) -> Finding {
    if path.exists() {
        return Finding::new(Grade::Good, "qemu", path.display().to_string());
    }
    let how = "apt-get install --no-install-recommends qemu-system-x86, or set HEARTH_QEMU_BIN";
    Finding::new(Grade::Bad, "qemu", format!("{} is not there: {how}", path.display()))
}

/// A missing QEMU is no obstacle where Firecracker is used.
fn spare(qemu: &mut Finding, engine: &str) {
    if qemu.grade == Grade::Bad && engine.starts_with("firecracker ") {
        qemu.grade = Grade::Warn;
        qemu.text.push_str(" (not needed while Firecracker is used)");
    }
}

fn engine(args: &DoctorArgs) -> Finding {
    let prober = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("hearth"));
    match Engine::choose(&args.programs, args.engine, &prober) {
        Err(error) => Finding::new(Grade::Bad, "engine", error.to_string()),
        Ok(engine) => {
            let text = format!(
                "{} {} with {}: {}",
                engine.name(),
                engine.version,
                engine.accelerator.as_str(),
                engine.reason
            );
            match engine.accelerator {
                Accelerator::Kvm => Finding::new(Grade::Good, "engine", text),
                Accelerator::Tcg => Finding::new(Grade::Warn, "engine", format!("{text}; {TCG_WARNING}")),
            }
        }
    }
}

fn device(name: &'static str, path: &str, how: &str) -> Finding {
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::new(Grade::Good, name, path),
        Err(error) => Finding::new(Grade::Bad, name, format!("{path}: {error}; it needs {how}")),
    }
}

/// Tried for real: the option is what counts, and kernels without transparent huge pages do not know it.
fn tmpfs() -> Finding {
    let (grade, text) = match try_tmpfs() {
        Ok(true) => (Grade::Good, "mounted with huge=never, as the images need".to_owned()),
        Ok(false) => (Grade::Warn, "not tried: mounting needs root".to_owned()),
        Err(error) => {
            let how = "boot a kernel with CONFIG_TMPFS and CONFIG_TRANSPARENT_HUGEPAGE, as Debian's, and allow mounts";
            (Grade::Bad, format!("cannot be mounted with huge=never ({error}): {how}"))
        }
    };
    Finding::new(grade, "tmpfs", text)
}

/// False: not root, so not tried.
fn try_tmpfs() -> io::Result<bool> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    if !nix::unistd::geteuid().is_root() {
        return Ok(false);
    }
    let folder = std::env::temp_dir().join(format!("hearth-doctor-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mounted =
        mount(Some("hearth-doctor"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k,huge=never"))
            .and_then(|()| umount2(&folder, MntFlags::MNT_DETACH));
    fs::remove_dir(&folder)?;
    mounted?;
    Ok(true)
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["net", "mnt", "ipc", "uts"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        return Finding::new(Grade::Good, "namespaces", "net, mnt, ipc, uts");
    }
    let text =
        format!("the kernel has no {} namespaces: boot one with them, as Debian's", missing.join(", "));
    Finding::new(Grade::Bad, "namespaces", text)
}

/// QEMU's sandbox.
fn seccomp() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.starts_with("Seccomp:")) {
        return Finding::new(Grade::Good, "seccomp", "known to the kernel");
    }
    Finding::new(
        Grade::Bad,
        "seccomp",
        "the kernel has none: boot one with CONFIG_SECCOMP_FILTER, as Debian's",
    )
}

fn database(has_database: bool) -> Finding {
    if has_database {
        return Finding::new(Grade::Good, "postgres", "DATABASE_URL is set");
    }
    match postgres::installed().last() {
        Some(major) => Finding::new(Grade::Good, "postgres", format!("version {major}, run privately")),
        None => Finding::new(
            Grade::Bad,
            "postgres",
            "no version 15 to 17: apt-get install postgresql, or set DATABASE_URL",
        ),
    }
}

/// Programs that building the images takes, with their packages (Debian 12 and 13).
const IMAGE_TOOLS: [(&str, &str); 9] = [
    ("readelf", "binutils"),
    ("cpio", "cpio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.erofs", "erofs-utils"),
    ("depmod", "kmod"),
    ("mmdebstrap", "mmdebstrap"),
    ("python3", "python3"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];
/// Where Debian's packages have their programs.
const PROGRAMS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

fn packages() -> Finding {
    let is_there = |tool: &str| PROGRAMS.iter().any(|folder| Path::new(folder).join(tool).exists());
    let missing: Vec<&str> =
        IMAGE_TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Finding::new(Grade::Good, "packages", "all that building images takes");
    }
    let text = format!("building images also takes: apt-get install {}", missing.join(" "));
    Finding::new(Grade::Warn, "packages", text)
}

fn images(place: &Where) -> Finding {
    match BootSet::read(&crate::up::layout(place).boot_files()) {
        Ok(boot) => Finding::new(Grade::Good, "images", boot.files.rootfs.display().to_string()),
        Err(error) => Finding::new(Grade::Bad, "images", error.to_string()),
    }
}

fn preload() -> Finding {
    let path = std::env::current_exe().unwrap_or_default().with_file_name("libhearth_preload.so");
    if path.exists() {
        return Finding::new(Grade::Good, "preload", path.display().to_string());
    }
    Finding::new(Grade::Bad, "preload", format!("{} is missing: run `make build`", path.display()))
}

fn memory() -> Finding {
    let mb = |name: &str| meminfo_kib(name).unwrap_or(0) >> 10;
    let (total, free) = (mb("MemTotal"), mb("MemAvailable"));
    let grade = match free {
        0..2048 => Grade::Bad,
        2048..4096 => Grade::Warn,
        _ => Grade::Good,
    };
    let text = match grade {
        Grade::Good => format!("{free} of {total} MiB available (4096 for a start, 2048 at least)"),
        Grade::Warn | Grade::Bad => format!(
            "{free} of {total} MiB available, 4096 for a start: end something, or lower HEARTH_POOL_TARGET and \
             HEARTH_MEMORY_MB"
        ),
    };
    Finding::new(grade, "memory", text)
}

fn disk(name: &'static str, path: &Path, needed: u64) -> Finding {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Err(error) => Finding::new(Grade::Bad, name, format!("{}: {error}", there.display())),
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let grade = if free < needed { Grade::Bad } else { Grade::Good };
            let (free, needed) = (free >> 30, needed >> 30);
            let text = match grade {
                Grade::Bad => format!(
                    "{free} GiB free at {}, {needed} needed: make room, or set HEARTH_DIR and HEARTH_CACHE",
                    path.display()
                ),
                Grade::Good | Grade::Warn => {
                    format!("{free} GiB free at {} ({needed} needed)", path.display())
                }
            };
            Finding::new(grade, name, text)
        }
    }
}

/// About 20 descriptors per capsule in the agent.
fn open_files() -> Finding {
    use nix::sys::resource::{Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < 4096 => Finding::new(
            Grade::Warn,
            "open files",
            format!("the limit is {soft}: `ulimit -n 65536` for many capsules"),
        ),
        Ok((soft, _)) => Finding::new(Grade::Good, "open files", format!("the limit is {soft}")),
        Err(error) => Finding::new(Grade::Warn, "open files", error.to_string()),
    }
}

/// Two processes and some threads per capsule.
fn processes() -> Finding {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match number("/proc/sys/kernel/pid_max").zip(number("/proc/sys/kernel/threads-max")) {
        Some((pids, threads)) if pids.min(threads) < 8192 => Finding::new(
            Grade::Warn,
            "processes",
            format!("at most {}: sysctl kernel.pid_max=65536 kernel.threads-max=65536", pids.min(threads)),
        ),
        Some((pids, threads)) => {
            Finding::new(Grade::Good, "processes", format!("at most {}", pids.min(threads)))
        }
        None => Finding::new(Grade::Warn, "processes", "/proc/sys/kernel cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let place = Where { dir: "/nowhere/dir".into(), cache: "/nowhere/cache".into() };
        let nowhere = PathBuf::from("/nowhere/qemu");
        let mut programs =
            Programs { qemu: nowhere.clone(), firecracker: nowhere.clone(), jailer: nowhere.clone() };
        let missing = super::missing(&place, &programs, true);
        let line = |name: &str| missing.iter().find(|line| line.starts_with(name)).unwrap();
        assert!(
            line("qemu: ").contains("apt-get install --no-install-recommends qemu-system-x86"),
            "{missing:?}"
        );
        let there = std::env::current_exe().unwrap();
        (programs.firecracker, programs.jailer) = (there.clone(), there);
        assert!(!super::missing(&place, &programs, true).iter().any(|line| line.starts_with("qemu")));
        assert!(line("images: ").contains("make images"), "{missing:?}");
        let grade = |engine| {
            let mut qemu = qemu_program(Path::new("/nowhere/qemu"));
            spare(&mut qemu, engine);
            qemu.grade
        };
        assert_eq!(grade("firecracker 1.16.1 with kvm: KVM is real"), Grade::Warn);
        assert_eq!(grade("qemu 7.2.22 with tcg: KVM only emulates"), Grade::Bad);
        assert!(missing.iter().all(|line| !line.contains('\n')), "{missing:?}");
        assert!(!missing.iter().any(|line| line.starts_with("postgres")), "{missing:?}");
    }
}
