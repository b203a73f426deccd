//! A capsule's console over its lives: what earlier ones left, and what the present one's VMM writes.

use crate::{
    usage::files::remove_others,
    vmm::console::{self, BYTES_MAX},
};
use hearth_proto::id::CapsuleId;
use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Where a capsule's console is. What earlier lives left goes with the last holder, if the capsule has ended.
#[derive(Debug)]
pub struct Console {
    kept: PathBuf,
    /// The present VMM's folder.
    vmm: Mutex<Option<PathBuf>>,
    has_ended: AtomicBool,
}

impl Console {
    /// Of a capsule; earlier lives' consoles are in `folder`.
    pub fn of(folder: &Path, id: CapsuleId) -> Self {
        Self { kept: path(folder, id), vmm: Mutex::default(), has_ended: AtomicBool::new(false) }
    }

    fn vmm(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.vmm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life begins: its VMM has this folder.
    pub fn begin(&self, vmm: &Path) {
        *self.vmm() = Some(vmm.to_owned());
    }

    /// The present life is over: keeps what it wrote. Not durable, and a failure costs the console only.
    pub fn keep(&self) {
        let folder = self.vmm().take();
        if let Some(folder) = folder
            && let Err(error) = append(&self.kept, &folder)
        {
            tracing::warn!(%error, "what a capsule wrote to its console cannot be kept");
        }
    }

    /// The capsule has ended: what is kept goes when nobody remembers it any more.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// What the guest wrote, over all its lives, oldest first: at most the last MiB.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let folder = self.vmm().clone();
        let mut bytes = kept(&self.kept)?;
        if let Some(folder) = folder {
            bytes.extend(console::read(&folder.join(console::FILE))?);
        }
        Ok(bytes.split_off(bytes.len().saturating_sub(BYTES_MAX)))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if *self.has_ended.get_mut() {
            // One that is left is removed by the next start.
            let _ = fs::remove_file(&self.kept);
        }
    }
}

fn path(folder: &Path, id: CapsuleId) -> PathBuf {
    folder.join(format!("{id}.log"))
}

fn kept(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Appends what the VMM in `folder` wrote to what is kept at `path`.
fn append(path: &Path, folder: &Path) -> io::Result<()> {
    let written = console::read(&folder.join(console::FILE))?;
    if written.is_empty() {
        return Ok(());
    }
    let mut bytes = kept(path)?;
    bytes.extend(written);
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&bytes[bytes.len().saturating_sub(BYTES_MAX)..])?;
    fs::rename(&draft, path)
}

/// Makes the folder of kept consoles, for root only: they may hold what users' programs wrote.
pub fn open(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    File::open(folder)?.set_permissions(fs::Permissions::from_mode(0o700))
}

/// Keeps what a VMM wrote whose capsule died while no agent was there.
pub fn rescue(folder: &Path, id: CapsuleId, vmm: &Path) -> io::Result<()> {
    append(&path(folder, id), vmm)
}

/// Removes all but those of `wanted`.
pub fn sweep(folder: &Path, wanted: &HashSet<CapsuleId>) -> io::Result<()> {
    remove_others(folder, &wanted.iter().map(|id| path(folder, *id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::console::Ring;

    #[test]
    fn a_console_goes_on_over_lives_and_goes_with_its_capsule() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, vmm) = (folder.path().join("consoles"), folder.path().join("vmm"));
        fs::create_dir(&vmm).unwrap();
        open(&kept).unwrap();
        let (id, other) = (CapsuleId::new(), CapsuleId::new());
        let console = Console::of(&kept, id);
        assert_eq!(console.read().unwrap(), b"");
        Ring::create(&vmm.join(console::FILE)).unwrap().append(b"first ").unwrap();
        console.begin(&vmm);
        assert_eq!(console.read().unwrap(), b"first ");
        console.keep();
        console.keep();
        let mut ring = Ring::create(&vmm.join(console::FILE)).unwrap();
        console.begin(&vmm);
        ring.append(b"second").unwrap();
        assert_eq!(console.read().unwrap(), b"first second");
        drop(console);
        rescue(&kept, id, &vmm).unwrap();
        rescue(&kept, other, &vmm).unwrap();
        sweep(&kept, &HashSet::from([id])).unwrap();
        let console = Console::of(&kept, id);
        assert_eq!(console.read().unwrap(), b"first second", "a later agent has it");
        ring.append(&vec![b'x'; BYTES_MAX]).unwrap();
        console.begin(&vmm);
        assert!(console.read().unwrap() == vec![b'x'; BYTES_MAX], "bounded over all lives");
        console.keep();
        console.end();
        drop(console);
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    }
}
