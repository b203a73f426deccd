//! Base images that were made of capsules (decision 0017): a root filesystem each, read-only, in a folder that is named
//! by its content, and a record by which somebody asked for it.
//!
//! ```text
//! bases/KEY/rootfs.erofs, manifest.json     the image; KEY is the beginning of its SHA-256
//! bases/IMAGE_ID.json                       the record; two may name one KEY
//! ```
//!
//! A record is written when its image is on disk, and removed before it. Data folders may share a cache: an image
//! without a record is removed when it is older than a flattening can take.

use crate::template::shelf::InUse;
use hearth_proto::id::{CapsuleId, ImageId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

/// The image's name in its folder, as in the folders of `images/build`.
pub const ROOTFS: &str = "rootfs.erofs";
const MANIFEST: &str = "manifest.json";
const DRAFT_PREFIX: &str = ".draft-";
const ENDING: &str = "json";
/// Hex digits of a key.
const KEY_DIGITS: usize = 24;
/// Largest record that is read.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// What nobody names is removed when it is older.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// The guest writes this into the image's last block, and then the image's length as a little-endian u64
/// (`envd/src/boot/flatten.rs`).
const SEAL: &[u8; 8] = b"HRTHBASE";
const SEAL_BYTES: u64 = 4096;
/// EROFS's magic number, and where it is.
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
const MAGIC_AT: u64 = 1024;

/// Why a base image cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BaseImageError {
    /// A file failed.
    #[error("base image, {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such image.
    #[error("base image {0} not found")]
    NotFound(ImageId),
    /// It is needed by what was made of it.
    #[error("base image {id} is in use by {by}")]
    InUse {
        /// Which.
        id: ImageId,
        /// By what.
        by: String,
    },
    /// The guest did not finish it; with the end of its console.
    #[error("the guest did not make a whole image; its console ends: {0}")]
    Unfinished(String),
}

fn fail(path: &Path) -> impl Fn(io::Error) -> BaseImageError + '_ {
    move |source| BaseImageError::File { path: path.to_owned(), source }
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImage {
    /// Who asked for it names it so; a template of this name can be built on it.
    pub id: ImageId,
    /// Its folder's name.
    pub key: String,
    /// SHA-256 of the image.
    pub sha256: String,
    /// Bytes of the image.
    pub bytes: u64,
    /// The capsule that it was made of.
    pub capsule: CapsuleId,
    /// The template that capsule came from.
    pub template: String,
    /// Languages that a template on it warms.
    pub languages: Vec<String>,
    /// Milliseconds since the epoch.
    pub created_at_ms: i64,
}

/// The same as `images/build` writes beside its images, of which an agent reads this much.
#[derive(Serialize)]
struct Manifest<'a> {
    files: std::collections::BTreeMap<&'a str, ManifestFile<'a>>,
}

#[derive(Serialize)]
struct ManifestFile<'a> {
    bytes: u64,
    sha256: &'a str,
}

/// The base images of a cache. All calls read or write files: call them where blocking is allowed.
#[derive(Debug, Clone)]
pub struct BaseImages {
    folder: PathBuf,
}

impl BaseImages {
    /// In `folder`, which is made if it is missing. Removes what nobody names.
    pub fn open(folder: &Path) -> Result<Self, BaseImageError> {
        fs::create_dir_all(folder).map_err(fail(folder))?;
        let images = Self { folder: folder.to_owned() };
        let named: Vec<String> = images.list()?.into_iter().map(|image| image.key).collect();
        for entry in fs::read_dir(folder).map_err(fail(folder))? {
            let entry = entry.map_err(fail(folder))?;
            let is_old = entry.metadata().and_then(|meta| meta.modified());
            let is_old = is_old.is_ok_and(|time| time.elapsed().is_ok_and(|age| ORPHAN_AGE < age));
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_old && is_folder && !named.contains(&entry.file_name().to_string_lossy().into_owned()) {
                fs::remove_dir_all(entry.path()).map_err(fail(&entry.path()))?;
            }
        }
        Ok(images)
    }

    fn record(&self, id: ImageId) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }

    /// Path of an image.
    pub fn rootfs(&self, image: &BaseImage) -> PathBuf {
        self.folder.join(&image.key).join(ROOTFS)
    }

    /// Holds the image at this path, if it is one of these: while the result lives, nobody removes it.
    pub fn hold(&self, rootfs: &Path) -> io::Result<Option<InUse>> {
        match rootfs.parent().filter(|folder| folder.parent() == Some(&self.folder)) {
            Some(folder) => InUse::of(folder),
            None => Ok(None),
        }
    }

    /// The image of this id. `None` when there is none.
    pub fn get(&self, id: ImageId) -> Result<Option<BaseImage>, BaseImageError> {
        let path = self.record(id);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(fail(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).map_err(fail(&path))?;
        let image: BaseImage =
            serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(fail(&path))?;
        let length = fs::metadata(self.rootfs(&image)).map_err(fail(&path))?.len();
        if image.id != id || length != image.bytes {
            return Err(fail(&path)(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")));
        }
        Ok(Some(image))
    }

    /// All of them, oldest first. Damaged ones are left out, with a line in the log.
    pub fn list(&self) -> Result<Vec<BaseImage>, BaseImageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(fail(&self.folder))? {
            let name = entry.map_err(fail(&self.folder))?.file_name().to_string_lossy().into_owned();
            let id = name.strip_suffix(&format!(".{ENDING}")).and_then(|id| id.parse().ok());
            match id.map(|id| self.get(id)) {
                Some(Ok(Some(image))) => found.push(image),
                Some(Err(error)) => tracing::warn!(name, %error, "a base image cannot be used"),
                Some(Ok(None)) | None => {}
            }
        }
        found.sort_by_key(|image| (image.created_at_ms, image.id));
        Ok(found)
    }

    /// Begins an image of at most `bytes`, in a file that `user` may write.
    pub fn draft(&self, bytes: u64, user: u32) -> Result<Draft, BaseImageError> {
        let folder = self.folder.join(format!("{DRAFT_PREFIX}{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&folder).map_err(fail(&folder))?;
        let draft = Draft { folder, images: self.clone() };
        let path = draft.rootfs();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let made = file.and_then(|file| file.set_len(bytes.next_multiple_of(SEAL_BYTES) + SEAL_BYTES));
        made.and_then(|()| chown(&path, Some(user), Some(user))).map_err(fail(&path))?;
        Ok(draft)
    }

    /// Removes an image, for good when this returns. Refused while anybody holds it. One that is not there is no error.
    pub fn remove(&self, id: ImageId) -> Result<(), BaseImageError> {
        let Some(image) = self.get(id)? else { return Ok(()) };
        let folder = self.folder.join(&image.key);
        let is_shared = self.list()?.iter().any(|other| other.id != id && other.key == image.key);
        let lock = File::open(&folder).map_err(fail(&folder))?;
        if !is_shared && lock.try_lock().is_err() {
            return Err(BaseImageError::InUse { id, by: "a template or a capsule".to_owned() });
        }
        let path = self.record(id);
        fs::remove_file(&path).and_then(|()| sync(&self.folder)).map_err(fail(&path))?;
        if !is_shared {
            // First out of its name, at once and whole; what a crash leaves, a later start removes.
            let doomed = self.folder.join(format!("{DRAFT_PREFIX}removed-{}", image.key));
            let removed = fs::rename(&folder, &doomed).and_then(|()| fs::remove_dir_all(&doomed));
            removed.map_err(fail(&folder))?;
        }
        Ok(())
    }
}

/// An image that is being made. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    images: BaseImages,
}

impl Draft {
    /// The file that the guest writes.
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// The guest's kernel and tools: two archives as one initial RAM disk, which the kernel unpacks one over the other.
    pub fn initramfs(&self, archives: [&Path; 2]) -> Result<PathBuf, BaseImageError> {
        let path = self.folder.join("initramfs");
        let mut out = File::create_new(&path).map_err(fail(&path))?;
        // The VMM's user reads it, whatever the agent's umask is.
        out.set_permissions(fs::Permissions::from_mode(0o644)).map_err(fail(&path))?;
        for archive in archives {
            File::open(archive).and_then(|mut file| io::copy(&mut file, &mut out)).map_err(fail(archive))?;
        }
        Ok(path)
    }

    /// Publishes what the guest wrote, after its VMM has ended: checks that it is whole, gives it to root, read-only.
    /// `describe` is given key, SHA-256 and bytes.
    pub fn publish(
        self,
        console: &str,
        describe: impl FnOnce(String, String, u64) -> BaseImage,
    ) -> Result<BaseImage, BaseImageError> {
        let path = self.rootfs();
        let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = file.map_err(fail(&path))?;
        let bytes = sealed_bytes(&file).map_err(fail(&path))?;
        let bytes = bytes.ok_or_else(|| BaseImageError::Unfinished(console.to_owned()))?;
        let settled = chown(&path, Some(0), Some(0))
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o444)))
            .and_then(|()| file.set_len(bytes));
        settled.map_err(fail(&path))?;
        let sha256 = digest(&file).map_err(fail(&path))?;
        let image = describe(sha256[..KEY_DIGITS].to_owned(), sha256, bytes);
        self.keep(&file, &image)?;
        Ok(image)
    }

    fn keep(&self, rootfs: &File, image: &BaseImage) -> Result<(), BaseImageError> {
        match fs::remove_file(self.folder.join("initramfs")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(&self.folder)(error)),
            Ok(()) | Err(_) => {}
        }
        let entry = ManifestFile { bytes: image.bytes, sha256: &image.sha256 };
        let manifest = Manifest { files: [(ROOTFS, entry)].into() };
        write(&self.folder.join(MANIFEST), &manifest)?;
        rootfs.sync_all().and_then(|()| sync(&self.folder)).map_err(fail(&self.folder))?;
        let folder = &self.images.folder;
        let target = folder.join(&image.key);
        match fs::rename(&self.folder, &target) {
            // The same content is there already.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            renamed => renamed.and_then(|()| sync(folder)).map_err(fail(&target))?,
        }
        let record = self.images.record(image.id);
        let draft = record.with_extension("draft");
        write(&draft, image)?;
        fs::rename(&draft, &record).and_then(|()| sync(folder)).map_err(fail(&record))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.folder.display(), %error, "an unfinished base image is left");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// What the guest says of the image's length in the last block, if that can be true.
fn sealed_bytes(file: &File) -> io::Result<Option<u64>> {
    let meta = file.metadata()?;
    let (mut seal, mut magic) = ([0; 16], [0; 4]);
    if !meta.is_file() || meta.size() < 2 * SEAL_BYTES {
        return Ok(None);
    }
    file.read_exact_at(&mut seal, meta.size() - SEAL_BYTES)?;
    file.read_exact_at(&mut magic, MAGIC_AT)?;
    let bytes = seal[8..].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let is_whole = seal[..8] == *SEAL
        && magic == MAGIC
        && (SEAL_BYTES..=meta.size() - SEAL_BYTES).contains(&bytes)
        && bytes.is_multiple_of(SEAL_BYTES);
    Ok(is_whole.then_some(bytes))
}

fn digest(file: &File) -> io::Result<String> {
    let (mut digest, mut buffer, mut at) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hex::encode(digest.finalize())),
            count => {
                digest.update(&buffer[..count]);
                at += count as u64;
            }
        }
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), BaseImageError> {
    let mut file = File::create(path).map_err(fail(path))?;
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::from).map_err(fail(path))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(fail(path))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest leaves: an image of one block more than `content` needs, and the seal.
    fn pack(draft: &Draft, content: &[u8]) {
        let file = File::options().write(true).open(draft.rootfs()).unwrap();
        let bytes = (MAGIC_AT + 4 + content.len() as u64).next_multiple_of(SEAL_BYTES);
        file.write_all_at(&MAGIC, MAGIC_AT).unwrap();
        file.write_all_at(content, MAGIC_AT + 4).unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(SEAL, end - SEAL_BYTES).unwrap();
        file.write_all_at(&bytes.to_le_bytes(), end - SEAL_BYTES + 8).unwrap();
    }

    fn publish(images: &BaseImages, id: ImageId, content: &[u8]) -> BaseImage {
        let draft = images.draft(1 << 20, 0).unwrap();
        pack(&draft, content);
        let describe = |key, sha256, bytes| BaseImage {
            id,
            key,
            sha256,
            bytes,
            capsule: CapsuleId::new(),
            template: "code".to_owned(),
            languages: vec!["python".to_owned()],
            created_at_ms: 1,
        };
        draft.publish("", describe).unwrap()
    }

    #[test]
    fn what_is_published_is_found_by_id_and_by_content_and_goes_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let images = BaseImages::open(folder.path()).unwrap();
        let (first, second, third) = (ImageId::new(), ImageId::new(), ImageId::new());
        assert_eq!(images.get(first).unwrap(), None);
        let image = publish(&images, first, b"files");
        assert_eq!(images.get(first).unwrap(), Some(image.clone()));
        let mode = fs::metadata(images.rootfs(&image)).unwrap().permissions().mode();
        assert_eq!((image.bytes, mode & 0o777), (4096, 0o444));
        assert_eq!(publish(&images, second, b"files").key, image.key, "equal content, one folder");
        assert_ne!(publish(&images, third, b"other files").key, image.key);
        assert_eq!(images.list().unwrap().len(), 3);
        images.remove(first).unwrap();
        images.remove(first).unwrap();
        assert_eq!(images.get(first).unwrap(), None);
        let held = images.hold(&images.rootfs(&image)).unwrap().expect("one of these");
        let refused = images.remove(second).unwrap_err();
        assert!(matches!(refused, BaseImageError::InUse { .. }), "{refused}");
        assert!(images.get(second).unwrap().is_some(), "a refused removal changes nothing");
        drop(held);
        images.remove(second).unwrap();
        images.remove(third).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_guest_did_not_finish_or_lies_about_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let images = BaseImages::open(folder.path()).unwrap();
        let lies: [fn(&File, u64); 4] = [
            |file, end| file.write_all_at(b"x", end - SEAL_BYTES).unwrap(),
            |file, end| file.write_all_at(&(end - 4096 + 4096).to_le_bytes(), end - SEAL_BYTES + 8).unwrap(),
            |file, end| file.write_all_at(&u64::MAX.to_le_bytes(), end - SEAL_BYTES + 8).unwrap(),
            |file, _| file.write_all_at(b"x", MAGIC_AT).unwrap(),
        ];
        for lie in lies {
            let draft = images.draft(1 << 20, 0).unwrap();
            pack(&draft, b"files");
            let file = File::options().write(true).open(draft.rootfs()).unwrap();
            lie(&file, file.metadata().unwrap().len());
            let error = draft.publish("no space", |_, _, _| panic!("published")).unwrap_err();
            assert!(error.to_string().contains("no space"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_image_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let images = BaseImages::open(folder.path()).unwrap();
        let id = ImageId::new();
        let image = publish(&images, id, b"files");
        File::options().write(true).open(images.rootfs(&image)).unwrap().set_len(5).unwrap();
        assert!(images.get(id).is_err());
        assert_eq!(images.list().unwrap(), []);
    }
}
