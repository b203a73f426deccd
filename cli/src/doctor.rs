//! `hearth doctor`: what this machine has, what it lacks, and how to get it, a line each.

use crate::{args::DoctorArgs, postgres};
use hearth_agent::{
    engine::{Accelerator, Engine, TCG_WARNING},
    template::recipe::BootSet,
};
use nix::sys::statvfs::statvfs;
use serde_json::json;
use std::{
    fs,
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
    vec![
        root(),
        kernel(),
        engine(args),
        device("userfaultfd", "/dev/userfaultfd", "Linux 6.1 or newer with CONFIG_USERFAULTFD"),
        device("tap", "/dev/net/tun", "modprobe tun"),
        tmpfs(),
        namespaces(),
        database(),
        images(args),
        preload(),
        memory(),
        disk("data disk", &args.place.dir, 4 << 30),
        disk("cache disk", &args.place.cache, 4 << 30),
        open_files(),
    ]
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
    Finding::new(grade, "kernel", format!("Linux {release} (6.1 or newer is needed)"))
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

fn tmpfs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = known.lines().any(|line| line.split_ascii_whitespace().last() == Some("tmpfs"));
    let grade = if has { Grade::Good } else { Grade::Bad };
    Finding::new(grade, "tmpfs", if has { "known to the kernel" } else { "the kernel has no tmpfs" })
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["net", "mnt", "ipc", "uts"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        return Finding::new(Grade::Good, "namespaces", "net, mnt, ipc, uts");
    }
    Finding::new(Grade::Bad, "namespaces", format!("the kernel has no {} namespaces", missing.join(", ")))
}

fn database() -> Finding {
    if std::env::var_os("DATABASE_URL").is_some() {
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

fn images(args: &DoctorArgs) -> Finding {
    match BootSet::read(&crate::up::layout(&args.place).boot_files()) {
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
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mb = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
            >> 10
    };
    let (total, free) = (mb("MemTotal:"), mb("MemAvailable:"));
    let grade = match free {
        0..2048 => Grade::Bad,
        2048..4096 => Grade::Warn,
        _ => Grade::Good,
    };
    Finding::new(
        grade,
        "memory",
        format!("{free} of {total} MiB available (4096 for a start, 2048 at least)"),
    )
}

fn disk(name: &'static str, path: &Path, needed: u64) -> Finding {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Err(error) => Finding::new(Grade::Bad, name, format!("{}: {error}", there.display())),
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let grade = if free < needed { Grade::Bad } else { Grade::Good };
            let text = format!("{} GiB free at {} ({} needed)", free >> 30, path.display(), needed >> 30);
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
