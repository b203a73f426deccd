//! QEMU's command line, and the order of its QMP commands.

use super::{
    machine::{GuestNetwork, Size},
    qmp::{Event, Qmp, QmpError},
};
use crate::engine::Accelerator;
use serde_json::json;
use std::{ffi::OsString, fs::File, os::fd::OwnedFd, time::Duration};

/// Saving or loading the device state (60 KiB) takes milliseconds.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(20);

/// Paths inside the jail.
pub mod path {
    /// Read-only root filesystem.
    pub const ROOTFS: &str = "/rootfs";
    /// The capsule's writable layer.
    pub const UPPER: &str = "/upper";
    /// Guest memory: the shared image, or a build's own RAM file.
    pub const MEMORY: &str = "/memory";
    /// Kernel (builds only).
    pub const KERNEL: &str = "/kernel";
    /// Initial RAM disk (builds only).
    pub const INITRAMFS: &str = "/initramfs";
    /// What a flattening writes.
    pub const OUTPUT: &str = "/output";
    /// Where a build's console goes.
    pub const CONSOLE: &str = "/console.log";
    /// The preload library.
    pub const PRELOAD: &str = "/preload.so";
}

/// Descriptors that QEMU inherits.
pub mod fd {
    /// Listening QMP socket.
    pub const QMP: i32 = 10;
    /// The tap.
    pub const TAP: i32 = 11;
    /// `/dev/userfaultfd`, for the preload library.
    pub const UFFD: i32 = 12;
    /// Socket to the pager, for the preload library.
    pub const PAGER: i32 = 13;
    /// Pipe to the pager, for the console of a restored guest.
    pub const CONSOLE: i32 = 14;
}

/// Between two looks at a migration whose events went to another.
const MIGRATION_PAUSE: Duration = Duration::from_millis(5);

/// What a QEMU process is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Boot a kernel, for a template build.
    Boot {
        /// What the kernel is told of its clock.
        clock: String,
        /// With a third disk, for a flattening.
        output: bool,
    },
    /// Wait for a snapshot's device state.
    Restore,
}

/// QEMU's CPU model. Part of the snapshot's key. `la57=off` keeps page walks at four levels.
pub fn cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max,la57=off",
    }
}

/// The guest's kernel command line; `clock` is what it is told of its clock (see [`clock_options`]).
fn kernel_command_line(clock: &str) -> String {
    format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off init_on_alloc=0 nowatchdog \
         transparent_hugepage=never cpuidle.off=1 rcupdate.rcu_normal_after_boot=1 psi=0 lsm= audit=0 \
         kfence.sample_interval=0 {clock} \
         hearth.ip={}/{} hearth.gw={} hearth.dns={}",
        GuestNetwork::GUEST,
        GuestNetwork::PREFIX,
        GuestNetwork::HOST,
        GuestNetwork::RESOLVER,
    )
}

/// What the guest's kernel is told of its clock. Under software emulation it reads the host's time stamp counter and
/// cannot find its rate out by itself (see `engine::tsc`).
pub fn clock_options(accelerator: Accelerator, tsc_khz: u64) -> String {
    match accelerator {
        Accelerator::Kvm => String::new(),
        Accelerator::Tcg => format!("tsc=reliable no_timer_check tsc_early_khz={tsc_khz}"),
    }
}

/// The command line. Device order and options are part of the snapshot's key: they must be the same when a snapshot is
/// made and when it is restored.
pub fn arguments(name: &str, size: Size, accelerator: Accelerator, purpose: &Purpose) -> Vec<OsString> {
    let memory = size.memory_mb;
    let (accel, tap) = match accelerator {
        Accelerator::Kvm => ("kvm", "tap,id=net0,fd=11"),
        // One translation thread per vCPU; 64 MiB of translated code is more than any template needs.
        Accelerator::Tcg => ("tcg,thread=multi,tb-size=64", "tap,id=net0,fd=11,vhost=off"),
    };
    // A restored guest's goes to the pager; a build has none, and its console is kept whole, to tell why it failed.
    let console = match purpose {
        Purpose::Boot { .. } => format!("ringbuf,id=console,size=65536,logfile={}", path::CONSOLE),
        Purpose::Restore => "file,id=console,path=/dev/fdset/1,append=on".to_owned(),
    };
    let mac = GuestNetwork::mac_text(GuestNetwork::GUEST_MAC);
    let mut args: Vec<String> = [
        "-name",
        name,
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-accel",
        accel,
        "-cpu",
        cpu_model(accelerator),
        "-smp",
        &size.vcpus.to_string(),
        "-m",
        &format!("{memory}M"),
        "-object",
        // QEMU is told share=on in both cases: else its saved state would hold all of RAM.
        &format!(
            "memory-backend-file,id=ram,size={memory}M,mem-path={},share=on,prealloc=off,merge=off,dump=off",
            path::MEMORY
        ),
        "-M",
        "microvm,memory-backend=ram,x-option-roms=off,isa-serial=on,rtc=on,acpi=on",
        "-chardev",
        "socket,id=qmp,fd=10,server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        &console,
        "-serial",
        "chardev:console",
        "-drive",
        &format!("id=rootfs,file={},if=none,format=raw,readonly=on,file.locking=off", path::ROOTFS),
        "-device",
        "virtio-blk-device,drive=rootfs",
        "-drive",
        // Flushes are not passed on: the layer lives as long as the memory it belongs to; a snapshot syncs it.
        &format!(
            "id=upper,file={},if=none,format=raw,cache=unsafe,discard=unmap,file.locking=off",
            path::UPPER
        ),
        "-device",
        // A host without room is an error of the guest's write, not a machine that stands still until there is room.
        "virtio-blk-device,drive=upper,werror=report,rerror=report",
        "-netdev",
        tap,
        "-device",
        // A restored guest has nobody to announce itself to.
        &format!("virtio-net-device,netdev=net0,mac={mac},guest_announce=off"),
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-device,rng=rng",
    ]
    .map(str::to_owned)
    .to_vec();
    match purpose {
        Purpose::Boot { clock, output } => {
            let append = kernel_command_line(clock);
            args.extend(
                ["-kernel", path::KERNEL, "-initrd", path::INITRAMFS, "-append", &append].map(str::to_owned),
            );
            if *output {
                let drive = format!("id=output,file={},if=none,format=raw,cache=unsafe", path::OUTPUT);
                let device = "virtio-blk-device,drive=output,werror=report,rerror=report";
                args.extend(["-drive", &drive, "-device", device].map(str::to_owned));
            }
        }
        Purpose::Restore => {
            let pipe = format!("fd={},set=1", fd::CONSOLE);
            args.extend(["-add-fd", &pipe, "-S", "-incoming", "defer"].map(str::to_owned));
        }
    }
    args.into_iter().map(OsString::from).collect()
}

/// Prepares a fresh QEMU for saving or loading: RAM stays out of the state, progress comes as events.
pub async fn prepare(qmp: &Qmp) -> Result<(), QmpError> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    qmp.call("migrate-set-capabilities", json!({ "capabilities": [on("x-ignore-shared"), on("events")] }))
        .await
        .map(drop)
}

/// Saves the device state of a stopped machine into `state`.
pub async fn save(qmp: &Qmp, state: &File) -> Result<(), QmpError> {
    let fd = state.try_clone().map_err(|error| QmpError::Protocol(error.to_string()))?;
    let mut events = qmp.events();
    // The default bandwidth limit would only slow 60 KiB down.
    qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 })).await?;
    qmp.give("state", OwnedFd::from(fd)).await?;
    qmp.call("migrate", json!({ "uri": "fd:state" })).await?;
    migrated(events.wait("migrate", MIGRATION_DEADLINE, migration_end).await?, "migrate")
}

/// Loads a device state into a machine that waits for one; it stays stopped.
pub async fn load(qmp: &Qmp, state: File) -> Result<(), QmpError> {
    let mut events = qmp.events();
    qmp.give("state", OwnedFd::from(state)).await?;
    qmp.call("migrate-incoming", json!({ "uri": "fd:state" })).await?;
    migrated(events.wait("migrate-incoming", MIGRATION_DEADLINE, migration_end).await?, "migrate-incoming")
}

fn migration_end(event: &Event) -> Option<bool> {
    if event.name != "MIGRATION" {
        return None;
    }
    match event.data.get("status").and_then(serde_json::Value::as_str) {
        Some("completed") => Some(true),
        Some("failed" | "cancelled") => Some(false),
        _ => None,
    }
}

fn migrated(ok: bool, command: &str) -> Result<(), QmpError> {
    if ok {
        return Ok(());
    }
    Err(QmpError::Refused { command: command.to_owned(), reason: "the device state does not fit".to_owned() })
}

/// Whether the vCPUs of a VMM that is taken over run. A save that another had begun is waited for: what it was for is
/// void, and nothing may be asked meanwhile.
pub async fn is_running(qmp: &Qmp) -> Result<bool, QmpError> {
    let settled = async {
        loop {
            let migration = qmp.call("query-migrate", json!({})).await?;
            match migration.get("status").and_then(serde_json::Value::as_str) {
                None | Some("none" | "completed" | "failed" | "cancelled") => return Ok(()),
                Some(_) => tokio::time::sleep(MIGRATION_PAUSE).await,
            }
        }
    };
    let deadline = |_| QmpError::Deadline("query-migrate".to_owned());
    tokio::time::timeout(MIGRATION_DEADLINE, settled).await.map_err(deadline)??;
    let status = qmp.call("query-status", json!({})).await?;
    let running = status.get("running").and_then(serde_json::Value::as_bool);
    running.ok_or_else(|| QmpError::Protocol("query-status says no status".to_owned()))
}

/// Lets the vCPUs run.
pub async fn resume(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.call("cont", json!({})).await.map(drop)
}

/// Stops the vCPUs; returns once they stand still.
pub async fn stop(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.call("stop", json!({})).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_and_restore_differ_only_in_where_the_machine_comes_from() {
        let size = Size { vcpus: 1, memory_mb: 512 };
        let boot =
            arguments("x", size, Accelerator::Tcg, &Purpose::Boot { clock: String::new(), output: false });
        let restore = arguments("x", size, Accelerator::Tcg, &Purpose::Restore);
        let devices = |args: &[OsString]| {
            // What is behind the console's device differs, and what is loaded.
            let text = format!("{args:?}")
                .replace("ringbuf,id=console,size=65536,logfile=/console.log", "")
                .replace("file,id=console,path=/dev/fdset/1,append=on", "");
            let ends = ["\"-kernel\"", "\"-add-fd\""];
            ends.iter().filter_map(|end| text.split_once(end)).map(|(devices, _)| devices.to_owned()).next()
        };
        assert_eq!(devices(&boot), devices(&restore));
    }

    #[test]
    fn the_sandbox_is_on_and_the_state_leaves_ram_out() {
        let size = Size { vcpus: 2, memory_mb: 512 };
        let text = format!("{:?}", arguments("x", size, Accelerator::Kvm, &Purpose::Restore));
        for part in ["spawn=deny", "share=on", "file=/rootfs,if=none,format=raw,readonly=on"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
