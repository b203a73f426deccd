//! Who a capsule is: host name, machine id, boot id. Clones of one snapshot must not share them.

use nix::mount::{MsFlags, mount};
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The address Debian gives the machine's own name, so that the name resolves (sudo(8) looks it up).
const OWN_ADDRESS: &str = "127.0.1.1";

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

    /// Takes the names on. `boot_id` is a fresh UUID in text form, kept in `run_dir` and mounted over the kernel's.
    pub fn assume(&self, boot_id: &str, run_dir: &Path) -> io::Result<()> {
        nix::unistd::sethostname(&self.hostname)?;
        fs::write("/etc/hostname", format!("{}\n", self.hostname))?;
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        fs::write("/etc/hosts", with_own_name(&hosts, &self.hostname))?;
        fs::write("/etc/machine-id", format!("{}\n", self.machine_id))?;
        cover_boot_id(boot_id, &run_dir.join("boot_id"))
    }
}

/// The kernel's own boot id is made once and has no way to be set.
fn cover_boot_id(boot_id: &str, file: &Path) -> io::Result<()> {
    fs::write(file, format!("{boot_id}\n"))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o444))?;
    if fs::read_to_string(BOOT_ID)?.trim_end() != boot_id {
        mount(Some(file), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
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
