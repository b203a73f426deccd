//! Who a capsule is: host name, machine id, boot id. Clones of one snapshot must not share them.

use nix::mount::{MsFlags, mount};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The address Debian gives the machine's own name, so that the name resolves (sudo(8) looks it up).
const OWN_ADDRESS: &str = "127.0.1.1";
/// More than this of a hosts file is not kept.
const HOSTS_BYTES_MAX: u64 = 1 << 20;

/// A capsule's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    hostname: String,
    machine_id: String,
}

/// A name that cannot be one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a host name.
    #[error("hostname: 1 to 63 of a-z, 0-9 and inner hyphens")]
    Hostname,
    /// Not a machine id.
    #[error("machine_id: 32 lower-case hex digits")]
    MachineId,
}

impl Identity {
    /// Checks the names.
    pub fn new(hostname: String, machine_id: String) -> Result<Self, IdentityError> {
        let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let edge = hostname.starts_with('-') || hostname.ends_with('-');
        if !(1..=63).contains(&hostname.len()) || edge || !hostname.bytes().all(label) {
            return Err(IdentityError::Hostname);
        }
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if machine_id.len() != 32 || !machine_id.bytes().all(digit) {
            return Err(IdentityError::MachineId);
        }
        Ok(Self { hostname, machine_id })
    }
}

/// The files that hold a capsule's names. They are on a tmpfs and mounted over their places in /etc and /proc, as
/// container engines do: in the first moments after a restore every page and every line of the kernel's code that a
/// write touches costs time, and a disk's file system touches many.
#[derive(Debug)]
pub struct Names {
    folder: PathBuf,
    open: Mutex<Option<Files>>,
}

/// The open files: finding them again by name would cost more than writing them.
#[derive(Debug)]
struct Files {
    hostname: File,
    hosts: File,
    machine_id: File,
    boot_id: File,
}

impl Names {
    /// Nothing is mounted yet; `run_dir` is a folder on a tmpfs, ours alone.
    pub fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("names"), open: Mutex::default() }
    }

    /// Takes the names on. `boot_id` is a fresh UUID in text form.
    pub fn assume(&self, identity: &Identity, boot_id: &str) -> io::Result<()> {
        nix::unistd::sethostname(&identity.hostname)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let files = match &mut *open {
            Some(files) => files,
            none => none.insert(Files::mount(&self.folder)?),
        };
        replace(&files.hostname, &format!("{}\n", identity.hostname))?;
        replace(&files.machine_id, &format!("{}\n", identity.machine_id))?;
        replace(&files.boot_id, &format!("{boot_id}\n"))?;
        let mut hosts = String::new();
        files.hosts.seek(SeekFrom::Start(0))?;
        // What is in it is the user's to say: whatever is not a hosts file is replaced by one.
        if (&files.hosts).take(HOSTS_BYTES_MAX).read_to_string(&mut hosts).is_err() {
            hosts.clear();
        }
        replace(&files.hosts, &with_own_name(&hosts, &identity.hostname))
    }
}

impl Files {
    fn mount(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let cover = |place: &str, mode: u32| {
            let name = Path::new(place).file_name().unwrap_or(OsStr::new(place));
            let path = folder.join(name);
            // Also after a restart of the service, when the user may have written his own lines into it.
            if !path.exists() {
                fs::write(&path, fs::read(place).unwrap_or_default())?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                if !Path::new(place).exists() {
                    File::create(place)?;
                }
                mount(Some(&path), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            }
            File::options().read(true).write(true).open(path)
        };
        Ok(Self {
            hostname: cover("/etc/hostname", 0o644)?,
            hosts: cover("/etc/hosts", 0o644)?,
            machine_id: cover("/etc/machine-id", 0o444)?,
            boot_id: cover(BOOT_ID, 0o444)?,
        })
    }
}

/// Makes `text` the file's whole content.
fn replace(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    if file.metadata()?.len() != text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

/// (pure) A hosts file with the machine's own name in it, other lines as they are.
pub fn with_own_name(hosts: &str, hostname: &str) -> String {
    let own = |line: &&str| line.split_ascii_whitespace().next() == Some(OWN_ADDRESS);
    let mut text = String::with_capacity(hosts.len() + hostname.len() + 16);
    for line in hosts.lines().filter(|line| !own(line)) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(OWN_ADDRESS);
    text.push(' ');
    text.push_str(hostname);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_names_are_refused() {
        let id = "0123456789abcdef0123456789abcdef";
        let new = |hostname: &str, machine_id: &str| Identity::new(hostname.into(), machine_id.into());
        assert!(new("cl-0d9x2", id).is_ok());
        for hostname in ["", "-a", "a-", "a b", "A", "a\n", "a/b", &"a".repeat(64)] {
            assert_eq!(new(hostname, id), Err(IdentityError::Hostname), "{hostname:?}");
        }
        for machine_id in ["", "0123", &id.to_uppercase(), &id.replace('0', "g")] {
            assert_eq!(new("a", machine_id), Err(IdentityError::MachineId), "{machine_id:?}");
        }
    }

    #[test]
    fn a_hosts_file_keeps_its_other_lines() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\told\n10.0.0.9 db # 127.0.1.1\n";
        let named = with_own_name(hosts, "cl-1");
        assert_eq!(named, "127.0.0.1 localhost\n10.0.0.9 db # 127.0.1.1\n127.0.1.1 cl-1\n");
        assert_eq!(with_own_name(&named, "cl-1"), named);
    }
}
