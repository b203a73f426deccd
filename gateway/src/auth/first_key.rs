//! The first API key: made at the first start and kept in the data folder, where the CLI finds it.
//!
//! | file | database | what happens |
//! |---|---|---|
//! | missing | no keys | a key is made: file first, then its hash |
//! | missing | has keys | nothing: an operator took the file away |
//! | there | knows the key, also as revoked | nothing |
//! | there | does not know it (new database) | its hash is registered again |

use super::{api_key::Secret, scopes::KeyScopes};
use crate::store::{Store, StoreError, api_keys, teams};
use hearth_proto::id::KeyId;
use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The file's name in the data folder.
const FILE: &str = "api-key";
const KEY_NAME: &str = "first key";

/// Why the first API key could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FirstKeyError {
    /// The file or its folder cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} does not hold an API key; put it back, or remove it to get a new one on an empty database", .0.display())]
    Form(PathBuf),
    /// The database refused.
    #[error("the database refused")]
    Store(#[source] StoreError),
    /// The system has no random numbers.
    #[error("no random numbers")]
    Random(#[source] getrandom::Error),
}

/// Where the first key of this data folder is kept.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Makes sure that there is a key, and that the one in the file works.
pub(crate) async fn ensure(store: &Store, data_dir: &Path) -> Result<(), FirstKeyError> {
    let path = path(data_dir);
    let mut transaction = teams::setup(store).await.map_err(FirstKeyError::Store)?;
    let kept = read(&path)?;
    let any = api_keys::any(&mut transaction).await.map_err(FirstKeyError::Store)?;
    let secret = match kept {
        Some(secret) => secret,
        None if any => return Ok(()),
        None => {
            let secret = Secret::new().map_err(FirstKeyError::Random)?;
            write(&path, &secret)?;
            tracing::info!(path = %path.display(), "the first API key was made");
            secret
        }
    };
    let team = teams::first(&mut transaction).await.map_err(FirstKeyError::Store)?;
    let hash = secret.hash_hex();
    let key = api_keys::NewKey {
        id: KeyId::new(),
        team,
        name: KEY_NAME,
        prefix: secret.display_prefix(),
        hash: &hash,
        scopes: KeyScopes::OPERATOR,
        expires_at: None,
        user: None,
        created_by: None,
    };
    api_keys::insert(&mut transaction, &key).await.map_err(FirstKeyError::Store)?;
    teams::commit(transaction).await.map_err(FirstKeyError::Store)
}

/// The key in the file. A file that others may read is closed to them.
fn read(path: &Path) -> Result<Option<Secret>, FirstKeyError> {
    let fault = |source| FirstKeyError::File { path: path.to_owned(), source };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    if fs::metadata(path).map_err(fault)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the API key's file was open to others; now it has mode 0600");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fault)?;
    }
    Secret::parse(text.trim()).map(Some).ok_or_else(|| FirstKeyError::Form(path.to_owned()))
}

/// Publishes the file whole: write, fsync, rename, fsync the folder.
fn write(path: &Path, secret: &Secret) -> Result<(), FirstKeyError> {
    let fault = |source| FirstKeyError::File { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(fault)?;
    let draft = folder.join(format!(".{FILE}.new"));
    let publish = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        // A draft that a crash left behind keeps its mode.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(secret.expose().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        fs::File::open(folder)?.sync_all()
    };
    publish().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_whole_and_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(&folder.path().join("made/on/demand"));
        assert!(matches!(read(&path), Ok(None)));
        let secret = Secret::new().expect("random bytes");
        write(&path, &secret).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).expect("read").expect("a key").expose(), secret.expose());
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("readable").count(), 1);
    }

    #[test]
    fn an_open_file_is_closed_and_junk_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(folder.path());
        write(&path, &Secret::new().expect("random bytes")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(matches!(read(&path), Ok(Some(_))));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::write(&path, "junk").expect("written");
        assert!(matches!(read(&path), Err(FirstKeyError::Form(_))));
    }
}
