//! The official SDK as a client: in the guests' root filesystem, whose Python is new enough, with the host's network.

use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Where the SDK and the checks are inside the root.
const INSIDE: &str = "sdk";

/// Runs `e2e/sdk/checks.py` with one generation of the SDK against a service.
pub fn checks(generation: &str, url: &str, key: &str, only: &[&str]) -> anyhow::Result<Output> {
    let cache = PathBuf::from(env::var("HEARTH_CACHE").unwrap_or_else(|_| "/var/cache/hearth".to_owned()));
    let root = root(&cache)?;
    let folder = root.join(INSIDE).join(generation);
    prepare(&cache, generation, &folder)?;
    Command::new("/usr/sbin/chroot")
        .arg(&root)
        .args(["/usr/bin/python3", "-B"])
        .arg(format!("/{INSIDE}/{generation}/checks.py"))
        .arg(generation)
        .args(only)
        .env_clear()
        .env("PYTHONPATH", format!("/{INSIDE}/{generation}/site"))
        .env("WRENN_API_KEY", key)
        // Names of ports are below this name, which an address cannot have.
        .env("WRENN_BASE_URL", url.replace("127.0.0.1", "localhost"))
        .stdin(Stdio::null())
        .output()
        .context("chroot")
}

/// The root filesystem of the current images, unpacked once.
fn root(cache: &Path) -> anyhow::Result<PathBuf> {
    let current = fs::read_to_string(cache.join("images/current.json")).context("images/build makes it")?;
    let current: Value = serde_json::from_str(&current)?;
    let text = |name: &str| current[name].as_str().with_context(|| format!("current.json lacks {name}"));
    let (image, hash) = (text("rootfs")?, text("rootfs_sha256")?);
    let root = cache.join(format!("test-root-{}", &hash[..16]));
    if root.exists() {
        return Ok(root);
    }
    let draft = cache.join(format!(".test-root-{}", std::process::id()));
    let unpacked = Command::new("fsck.erofs")
        .arg(format!("--extract={}", draft.display()))
        .arg(image)
        .output()
        .context("fsck.erofs")?;
    if !unpacked.status.success() {
        bail!("fsck.erofs: {}", String::from_utf8_lossy(&unpacked.stderr));
    }
    fs::rename(&draft, &root)?;
    Ok(root)
}

/// Puts the SDK and the checks where they are reached from inside.
fn prepare(cache: &Path, generation: &str, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let site = cache.join(format!("test-sdk-{generation}/site"));
    let copied = Command::new("cp").arg("-a").arg(&site).arg(folder).status().context("cp")?;
    if !copied.success() {
        bail!("{} cannot be copied; ./setup --test makes it", site.display());
    }
    let checks = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/checks.py");
    fs::copy(&checks, folder.join("checks.py")).with_context(|| checks.display().to_string())?;
    Ok(())
}
