//! `hearth keys`: the first API key, as the data folder has it, and the team's keys, as the service has them.

use crate::{
    args::{KeysArgs, KeysCommand},
    client::Client,
    tools::show,
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Hearth never ran here, or somebody took the file away.
    #[error(
        "there is no API key at {0}: hearth up makes one at its first start; HEARTH_DIR names the data folder"
    )]
    Absent(PathBuf),
    /// It is root's.
    #[error("{0} is readable by root only: use sudo")]
    Closed(PathBuf),
    /// It cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{0} does not hold an API key")]
    Form(PathBuf),
}

/// Shows, lists, makes or revokes keys.
pub async fn keys(args: KeysArgs) -> anyhow::Result<ExitCode> {
    let (answer, columns, as_json): (Value, &[(&str, &str)], bool) = match args.command {
        KeysCommand::Show { dir } => {
            println!("{}", first(&dir)?);
            return Ok(ExitCode::SUCCESS);
        }
        KeysCommand::Ls(client) => (Client::new(&client)?.get("/v1/api-keys").await?, &KEY, client.json),
        KeysCommand::Create { client, name, scopes, expires_in_sec } => {
            let mut body = Map::new();
            let mut set = |name: &str, value: Option<Value>| {
                value.map(|value| body.insert(name.to_owned(), value));
            };
            set("name", name.map(Value::from));
            set("scopes", (!scopes.is_empty()).then(|| json!(scopes)));
            set("expires_in_sec", expires_in_sec.map(Value::from));
            let made = Client::new(&client)?.post("/v1/api-keys", &Value::Object(body)).await?;
            (made, &[("ID", "id"), ("KEY", "key")], client.json)
        }
        KeysCommand::Revoke { client, key } => {
            let path = format!("/v1/api-keys/{key}");
            (Client::new(&client)?.call(Method::DELETE, &path, None).await?, &[], client.json)
        }
    };
    Ok(show(&answer, columns, as_json))
}

const KEY: [(&str, &str); 7] = [
    ("ID", "id"),
    ("NAME", "name"),
    ("PREFIX", "key_prefix"),
    ("SCOPES", "scopes"),
    ("CREATED", "created_at"),
    ("LAST USED", "last_used"),
    ("EXPIRES", "expires_at"),
];

/// The first API key of a data folder.
pub fn first(dir: &Path) -> Result<String, KeyError> {
    let path = dir.join("api-key");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => KeyError::Absent(path),
                io::ErrorKind::PermissionDenied => KeyError::Closed(path),
                _ => KeyError::File { path, source: error },
            });
        }
    };
    let key = text.trim();
    let usable = key.starts_with("wrn_") && key.bytes().all(|byte| byte.is_ascii_graphic());
    if usable { Ok(key.to_owned()) } else { Err(KeyError::Form(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_shown_or_the_reason_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let says = |result: Result<String, KeyError>| result.unwrap_err().to_string();
        assert!(says(first(folder.path())).contains("hearth up makes one"));
        fs::write(folder.path().join("api-key"), "wrn_0123\n").unwrap();
        assert_eq!(first(folder.path()).unwrap(), "wrn_0123");
        fs::write(folder.path().join("api-key"), "something else").unwrap();
        assert!(says(first(folder.path())).contains("does not hold an API key"));
        let file = folder.path().join("api-key");
        assert!(says(first(&file)).starts_with(&file.join("api-key").display().to_string()));
    }
}
