//! The router: one network namespace per data folder, between all capsules and the host.
//!
//! The host sees one link of it, one table about that link, and forwarding switched on; everything else is inside. The
//! namespace is kept by a mount on a file, so that capsules keep their network while there is no agent.

use super::{
    links::{self, Links, Peer, inside, on_a_thread, speak},
    netns::{NetworkError, system},
    nft::{Batch, Netfilter},
    plan, ruleset,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{FsType, fstatfs},
};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// `NSFS_MAGIC`, linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);
/// Choices of an uplink's addresses before we give up: others may use them.
const UPLINK_ATTEMPTS: u32 = 64;
/// Settings of the router's namespace.
const SETTINGS: [(&str, &str); 7] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/ip_forward", "1"),
];

/// The router's namespace, and a way to change its rules.
#[derive(Debug)]
pub struct Router {
    namespace: OwnedFd,
    /// Speaks to the router's ruleset.
    pub(super) netfilter: Netfilter,
}

impl Router {
    /// Opens the router that an earlier agent made and empties its sets: nothing leads out until policies are applied
    /// again. Makes one where there is none. Blocks for some ten milliseconds.
    pub fn open(path: &Path, mark: &str) -> Result<Self, NetworkError> {
        let (namespace, router) = match kept(path).map_err(system("the router's namespace"))? {
            Some(namespace) => {
                let again = namespace.try_clone().map_err(system("descriptor"))?;
                let router = inside(again, || {
                    speak(async |links| links.addresses().await)?
                        .into_iter()
                        .find(|address| plan::is_uplink(*address))
                        .ok_or_else(|| system("the router's way out")(io::ErrorKind::NotFound.into()))
                })?;
                (namespace, router)
            }
            None => create(path, mark)?,
        };
        let again = namespace.try_clone().map_err(system("descriptor"))?;
        let netfilter = inside(again, || {
            ruleset::load(&ruleset::router()).map_err(system("the router's ruleset"))?;
            Netfilter::open().map_err(system("a netfilter socket"))
        })?;
        ruleset::load(&ruleset::host(&plan::host_name(mark), router))
            .map_err(system("the host's ruleset"))?;
        forward().map_err(system("switching forwarding on"))?;
        Ok(Self { namespace, netfilter })
    }

    pub(super) fn descriptor(&self) -> Result<OwnedFd, NetworkError> {
        self.namespace.try_clone().map_err(system("descriptor"))
    }

    /// Runs `work` in the router's namespace: what it makes (a socket) stays there.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, NetworkError> {
        inside(self.descriptor()?, || work().map_err(system("inside the router's namespace")))
    }

    /// Deletes a slot's link and forgets its connections.
    pub(super) fn remove(&self, slot: u32) -> Result<(), NetworkError> {
        inside(self.descriptor()?, move || speak(async |links| links.delete(&plan::link(slot)).await))?;
        self.netfilter
            .forget_connections(plan::address(slot))
            .map_err(system("forgetting a slot's connections"))
    }
}

/// The namespace that is mounted on a file, if one is.
fn kept(path: &Path) -> io::Result<Option<OwnedFd>> {
    match File::open(path) {
        Ok(file) if fstatfs(&file)?.filesystem_type() == NSFS => Ok(Some(file.into())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The namespace, mounted on `path`, linked to the host, and its address of that link.
fn create(path: &Path, mark: &str) -> Result<(OwnedFd, Ipv4Addr), NetworkError> {
    let name = plan::host_name(mark);
    let taken = on_a_thread(|| speak(async |links| links.addresses().await))?;
    let (host, router) = (0..UPLINK_ATTEMPTS)
        .map(|attempt| plan::uplink(mark, attempt))
        .find(|(host, _)| !taken.iter().any(|address| address.to_bits() >> 2 == host.to_bits() >> 2))
        .ok_or_else(|| system("addresses of 198.18.0.0/15")(io::ErrorKind::AddrInUse.into()))?;
    let (host_namespace, far) = (open_own()?, name.clone());
    let file = path.to_owned();
    let namespace = on_a_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| system("unshare")(errno.into()))?;
        let namespace = open_own()?;
        for (setting, value) in SETTINGS {
            links::set(setting, value)?;
        }
        speak(async |links| {
            let lo = links.get("lo").await?;
            links.up(lo, None).await?;
            links.address(lo, plan::GATEWAY, 32).await?;
            links.unreachable(plan::INNER).await?;
            let peer = Peer { namespace: host_namespace.as_fd(), name: &far, mac: None };
            let up = links.add_pair(plan::UP, None, peer).await?;
            links.address(up, router, plan::LINK_PREFIX).await?;
            links.default_route(up, host).await
        })?;
        keep(&file).map_err(system("keeping the router's namespace"))?;
        Ok(namespace)
    })?;
    on_a_thread(move || {
        links::set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        speak(async |links| {
            let Some(link) = links.find(&name).await? else {
                return Err(system("the router's link")(io::ErrorKind::NotFound.into()));
            };
            links.address(link, host, plan::LINK_PREFIX).await?;
            links.up(link, None).await
        })
    })?;
    Ok((namespace, router))
}

/// The calling thread's network namespace.
fn open_own() -> Result<OwnedFd, NetworkError> {
    let what = "/proc/thread-self/ns/net";
    File::open(what).map(OwnedFd::from).map_err(system(what))
}

/// Mounts the calling thread's network namespace on a file.
fn keep(path: &Path) -> io::Result<()> {
    File::create(path)?;
    let nothing: Option<&Path> = None;
    mount(Some("/proc/thread-self/ns/net"), path, nothing, MsFlags::MS_BIND, nothing)?;
    Ok(())
}

/// Lets the host forward packets, as every host of virtual machines does.
fn forward() -> io::Result<()> {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(SETTING)?.trim() == "0" {
        fs::write(SETTING, "1")?;
        tracing::info!("switched net.ipv4.ip_forward on, for capsules that may reach the internet");
    }
    Ok(())
}

/// Removes what an earlier agent of this data folder left: links of slots that are not in `keep`, and, when none is to be
/// kept, router, host link and host table. Returns how many links and routers were removed. Blocks for milliseconds.
pub fn sweep(path: &Path, mark: &str, keep: &HashSet<u32>) -> Result<usize, NetworkError> {
    let namespace = kept(path).map_err(system("the router's namespace"))?;
    if keep.is_empty() {
        let removed = usize::from(namespace.is_some());
        unmount(path, namespace.is_some()).map_err(system("removing the router"))?;
        let name = plan::host_name(mark);
        remove_table(&name);
        return on_a_thread(move || speak(async |links| links.delete(&name).await)).map(|()| removed);
    }
    let Some(namespace) = namespace else { return Ok(0) };
    let keep = keep.clone();
    inside(namespace, move || speak(async |links| sweep_links(links, &keep).await))
}

async fn sweep_links(links: &Links, keep: &HashSet<u32>) -> Result<usize, NetworkError> {
    let mut removed = 0;
    for name in links.names().await? {
        if plan::slot_of(&name).is_some_and(|slot| !keep.contains(&slot)) {
            links.delete(&name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn unmount(path: &Path, mounted: bool) -> io::Result<()> {
    if mounted {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The host's table, if it is there. A kernel without nf_tables has none.
fn remove_table(name: &str) {
    let mut batch = Batch::default();
    batch.delete_table(name);
    let removed = Netfilter::open().and_then(|netfilter| netfilter.apply(&batch));
    match removed {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            tracing::debug!(table = name, %error, "no table was removed");
        }
        _ => {}
    }
}

/// Whether this host can give capsules a way out: loads all rulesets in a namespace that ends at once.
pub fn probe() -> Result<(), NetworkError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| system("unshare")(errno.into()))?;
        ruleset::load(&ruleset::router()).map_err(system("the router's ruleset"))?;
        ruleset::load(&ruleset::host("hearth-probe", plan::GATEWAY)).map_err(system("the host's ruleset"))?;
        let netfilter = Netfilter::open().map_err(system("a netfilter socket"))?;
        let mut batch = Batch::default();
        batch.delete_table(ruleset::TABLE);
        netfilter.apply(&batch).map_err(system("a netfilter socket"))?;
        netfilter.apply(&ruleset::slot()).map_err(system("a slot's ruleset"))
    })
}

/// Names of what a data folder's router has on the host, as far as it is there. For tests that nothing is left.
pub fn remains(path: &Path, mark: &str) -> Vec<String> {
    let name = plan::host_name(mark);
    let mut found = Vec::new();
    if path.exists() {
        found.push(format!("namespace {}", PathBuf::from(path).display()));
    }
    if Path::new("/sys/class/net").join(&name).exists() {
        found.push(format!("link {name}"));
    }
    found
}
