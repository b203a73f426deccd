//! `hearth cp`: files in and out of capsules, streamed, with a bar.

use super::args::{CopyArgs, local, remote};
use crate::client::Client;
use anyhow::{Context, bail};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::ExitCode,
};
use tokio::{fs::File, io::AsyncWriteExt};
use tokio_util::io::ReaderStream;

/// As deep as the API lists.
const DEPTH_MAX: u32 = 64;
const PIECE_BYTES: usize = 256 << 10;

/// Copies one file, or a directory with all in it.
pub async fn copy(args: CopyArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let copied = match (remote(&args.source), remote(&args.target)) {
        (None, Some((capsule, path))) => {
            let source = local(&args.source).unwrap_or_default();
            let guest = Guest { client: &client, capsule, user: args.user.as_deref() };
            up(&guest, &source, path, args.recursive).await?
        }
        (Some((capsule, path)), None) => {
            let target = local(&args.target).unwrap_or_default();
            let guest = Guest { client: &client, capsule, user: args.user.as_deref() };
            down(&guest, path, &target, args.recursive).await?
        }
        _ => bail!("one of SOURCE and TARGET must be CAPSULE:PATH, and the other a path here"),
    };
    if args.client.json {
        println!("{}", json!({ "files": copied.files, "bytes": copied.bytes }));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Default)]
struct Copied {
    files: u64,
    bytes: u64,
}

/// Files of one capsule.
struct Guest<'a> {
    client: &'a Client,
    capsule: &'a str,
    user: Option<&'a str>,
}

impl Guest<'_> {
    fn path(&self, route: &str) -> String {
        format!("/v1/capsules/{}/files/{route}", self.capsule)
    }

    fn body(&self, path: &str) -> Value {
        let mut body = json!({ "path": path });
        if let Some(user) = self.user {
            body["user"] = user.into();
        }
        body
    }

    async fn is_directory(&self, path: &str) -> anyhow::Result<bool> {
        match self.client.post(&self.path("stat"), &self.body(path)).await {
            Ok(answer) => Ok(answer["entry"]["type"] == "directory"),
            Err(error) if error.to_string().ends_with("(not_found)") => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn upload(&self, from: &Path, to: &str) -> anyhow::Result<u64> {
        let file = File::open(from).await.with_context(|| from.display().to_string())?;
        let meta = file.metadata().await.with_context(|| from.display().to_string())?;
        let bar = bar(meta.len(), to);
        let counted = bar.clone();
        let bytes = ReaderStream::with_capacity(file, PIECE_BYTES).inspect(move |piece| {
            if let Ok(piece) = piece {
                counted.inc(piece.len() as u64);
            }
        });
        let mut query = vec![("path", to.to_owned()), ("mode", mode(&meta))];
        if let Some(user) = self.user {
            query.push(("user", user.to_owned()));
        }
        let (path, body) = (self.path("stream/write"), reqwest::Body::wrap_stream(bytes));
        let sent = self.client.upload(&path, &query, body);
        sent.await.with_context(|| format!("{}:{to}", self.capsule))?;
        bar.finish_and_clear();
        Ok(meta.len())
    }

    /// The file appears under its name when it is whole.
    async fn download(&self, from: &str, to: &Path) -> anyhow::Result<u64> {
        let answer = self.client.download(&self.path("stream/read"), &self.body(from)).await;
        let answer = answer.with_context(|| format!("{}:{from}", self.capsule))?;
        let length = answer.content_length();
        let bar = bar(length.unwrap_or(0), from);
        let draft = draft(to);
        let written = write(answer, &draft, &bar).await;
        let size = match written {
            Ok(size) if length.is_none_or(|length| length == size) => size,
            Ok(size) => {
                fs::remove_file(&draft).ok();
                bail!("{from}: broke off after {size} bytes");
            }
            Err(error) => {
                fs::remove_file(&draft).ok();
                return Err(error);
            }
        };
        fs::rename(&draft, to).with_context(|| to.display().to_string())?;
        bar.finish_and_clear();
        Ok(size)
    }
}

async fn write(answer: reqwest::Response, to: &Path, bar: &ProgressBar) -> anyhow::Result<u64> {
    let mut file = File::create(to).await.with_context(|| to.display().to_string())?;
    let (mut bytes, mut size) = (answer.bytes_stream(), 0);
    while let Some(piece) = bytes.next().await {
        let piece = piece.context("the download broke off")?;
        file.write_all(&piece).await.with_context(|| to.display().to_string())?;
        size += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    file.flush().await.with_context(|| to.display().to_string())?;
    Ok(size)
}

fn draft(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.part"))
}

fn mode(meta: &fs::Metadata) -> String {
    use std::os::unix::fs::PermissionsExt;
    format!("{:04o}", meta.permissions().mode() & 0o777)
}

/// On a terminal only; a log gets its lines from the commands' ends.
fn bar(size: u64, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(size).with_message(name.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn up(guest: &Guest<'_>, source: &Path, target: &str, recursive: bool) -> anyhow::Result<Copied> {
    let name = source.file_name().map(|name| name.to_string_lossy().into_owned());
    let meta = fs::metadata(source).with_context(|| source.display().to_string())?;
    let into = target.is_empty() || target.ends_with('/') || guest.is_directory(target).await?;
    let target = match (into, name) {
        (true, Some(name)) => join(target, &name),
        (true, None) | (false, _) => target.to_owned(),
    };
    let mut copied = Copied::default();
    if !meta.is_dir() {
        copied.bytes = guest.upload(source, &target).await?;
        copied.files = 1;
        return Ok(copied);
    }
    if !recursive {
        bail!("{} is a directory; use -r", source.display());
    }
    let mut waiting = vec![(source.to_owned(), target)];
    while let Some((folder, below)) = waiting.pop() {
        match guest.client.post(&guest.path("mkdir"), &guest.body(&below)).await {
            Ok(_) => {}
            Err(error) if error.to_string().ends_with("(conflict)") => {}
            Err(error) => return Err(error),
        }
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let to = join(&below, &entry.file_name().to_string_lossy());
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && !entry.path().is_symlink() => waiting.push((path, to)),
                Ok(meta) if meta.is_file() => {
                    copied.bytes += guest.upload(&path, &to).await?;
                    copied.files += 1;
                }
                Ok(_) | Err(_) => {
                    eprintln!("hearth: {}: left out, neither file nor directory", path.display())
                }
            }
        }
    }
    Ok(copied)
}

async fn down(guest: &Guest<'_>, source: &str, target: &Path, recursive: bool) -> anyhow::Result<Copied> {
    let name = source.trim_end_matches('/').rsplit('/').next().filter(|name| is_plain(name));
    let target = match name {
        Some(name) if target.is_dir() => target.join(name),
        _ => target.to_owned(),
    };
    let mut copied = Copied::default();
    if !guest.is_directory(source).await? {
        copied.bytes = guest.download(source, &target).await?;
        copied.files = 1;
        return Ok(copied);
    }
    if !recursive {
        bail!("{source} is a directory; use -r");
    }
    let mut body = guest.body(source);
    body["depth"] = DEPTH_MAX.into();
    let listed = guest.client.post(&guest.path("list"), &body).await?;
    fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    for entry in listed["entries"].as_array().into_iter().flatten() {
        let path = entry["path"].as_str().unwrap_or_default();
        let Some(to) = below(&target, source, path) else {
            eprintln!("hearth: {path}: left out, its name cannot be used here");
            continue;
        };
        match entry["type"].as_str() {
            Some("directory") => fs::create_dir_all(&to).with_context(|| to.display().to_string())?,
            Some("file")
                if !entry["permissions"]
                    .as_str()
                    .is_some_and(|mode| mode.starts_with(['p', 's', 'c', 'b'])) =>
            {
                copied.bytes += guest.download(path, &to).await?;
                copied.files += 1;
            }
            _ => eprintln!("hearth: {path}: left out, neither file nor directory"),
        }
    }
    Ok(copied)
}

fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{}/{name}", folder.trim_end_matches('/')),
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name != "~"
}

/// Where an entry of a capsule belongs here. A guest names its files as it likes: none leads out of `target`.
fn below(target: &Path, source: &str, path: &str) -> Option<PathBuf> {
    let rest = path.strip_prefix(source.trim_end_matches('/'))?.trim_start_matches('/');
    let plain = Path::new(rest).components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !rest.is_empty() && !rest.contains('\0')).then(|| target.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_guest_leads_out_of_the_target() {
        let of = |path: &str| below(Path::new("/here"), "/data/", path);
        assert_eq!(of("/data/a/b"), Some(PathBuf::from("/here/a/b")));
        for wrong in ["/data/../x", "/data/a/../../x", "/data", "/elsewhere/x", "/data/.."] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_are_joined_to_folders() {
        assert_eq!(join("/a/", "b"), "/a/b");
        assert_eq!(join("", "b"), "b");
        assert_eq!(join("~", "b"), "~/b");
    }
}
