//! (pure) What a VMM may use, and in which files of its control group that is written.

use super::hierarchy::{Controller, Hierarchy};
use crate::vmm::machine::Size;

/// Memory of a VMM beside its guest's: its own (Firecracker 5 MiB; QEMU 40 MiB, and 64 MiB of translated code), its page
/// tables, and the page cache of its disks, which is reclaimed when it is short.
const OVERHEAD_MB: u64 = 256;
/// Threads beside the vCPUs': a QEMU has up to 64 for its disks.
const THREADS_MAX: u32 = 96;
/// Processor time is counted over this.
const PERIOD_US: u64 = 100_000;
/// Weight of one vCPU; an ordinary process outside all groups has the same.
const WEIGHT_V2: u64 = 100;
const WEIGHT_V1: u64 = 1024;
/// Bounds of the kernel's.
const WEIGHT_V2_MAX: u64 = 10_000;
const WEIGHT_V1_MAX: u64 = 262_144;

/// What one VMM may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    memory_bytes: u64,
    threads: u32,
    vcpus: u64,
}

impl Limits {
    /// Of a machine of this size.
    pub fn of(size: Size) -> Self {
        Self {
            memory_bytes: (size.memory_mb + OVERHEAD_MB) << 20,
            threads: size.vcpus + THREADS_MAX,
            vcpus: size.vcpus.into(),
        }
    }

    /// Microseconds of processor time per period: all vCPUs, and half a processor for the devices.
    fn quota_us(&self) -> u64 {
        self.vcpus * PERIOD_US + PERIOD_US / 2
    }

    /// The files to write, in this order.
    pub fn files(&self, hierarchy: &Hierarchy) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        for controller in &hierarchy.controllers {
            match (controller, hierarchy.is_unified) {
                (Controller::Memory, true) => {
                    files.push(("memory.max", self.memory_bytes.to_string()));
                    // A VMM without one of its threads is of no use.
                    files.push(("memory.oom.group", "1".to_owned()));
                }
                (Controller::Memory, false) => {
                    files.push(("memory.limit_in_bytes", self.memory_bytes.to_string()));
                }
                (Controller::Cpu, true) => {
                    let weight = (self.vcpus * WEIGHT_V2).min(WEIGHT_V2_MAX);
                    files.push(("cpu.weight", weight.to_string()));
                    files.push(("cpu.max", format!("{} {PERIOD_US}", self.quota_us())));
                }
                (Controller::Cpu, false) => {
                    let weight = (self.vcpus * WEIGHT_V1).min(WEIGHT_V1_MAX);
                    files.push(("cpu.shares", weight.to_string()));
                    files.push(("cpu.cfs_period_us", PERIOD_US.to_string()));
                    files.push(("cpu.cfs_quota_us", self.quota_us().to_string()));
                }
                (Controller::Pids, _) => files.push(("pids.max", self.threads.to_string())),
            }
        }
        files
    }
}

/// What is written for all VMMs of an agent together: they weigh as much as one ordinary process per processor, so that
/// however many they are, the host's own work gets its turn.
pub fn parent_files(hierarchy: &Hierarchy, cpus: u64) -> Vec<(&'static str, String)> {
    if !hierarchy.controllers.contains(&Controller::Cpu) {
        return Vec::new();
    }
    if hierarchy.is_unified {
        vec![("cpu.weight", (cpus * WEIGHT_V2).min(WEIGHT_V2_MAX).to_string())]
    } else {
        vec![("cpu.shares", (cpus * WEIGHT_V1).min(WEIGHT_V1_MAX).to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn hierarchy(is_unified: bool) -> Hierarchy {
        let controllers = vec![Controller::Memory, Controller::Cpu, Controller::Pids];
        Hierarchy { root: PathBuf::from("/c"), is_unified, controllers }
    }

    #[test]
    fn a_vmm_is_bounded_by_its_size() {
        let limits = Limits::of(Size { vcpus: 2, memory_mb: 512 });
        let text = |unified| {
            let files = limits.files(&hierarchy(unified));
            files.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(",")
        };
        assert_eq!(
            text(true),
            "memory.max=805306368,memory.oom.group=1,cpu.weight=200,cpu.max=250000 100000,pids.max=98"
        );
        assert_eq!(
            text(false),
            "memory.limit_in_bytes=805306368,cpu.shares=2048,cpu.cfs_period_us=100000,\
             cpu.cfs_quota_us=250000,pids.max=98"
        );
    }

    #[test]
    fn all_vmms_together_weigh_as_much_as_a_process_per_processor() {
        assert_eq!(parent_files(&hierarchy(true), 4), [("cpu.weight", "400".to_owned())]);
        assert_eq!(parent_files(&hierarchy(false), 4), [("cpu.shares", "4096".to_owned())]);
        assert_eq!(parent_files(&hierarchy(true), 4096), [("cpu.weight", "10000".to_owned())]);
        let memory = Hierarchy { controllers: vec![Controller::Memory], ..hierarchy(true) };
        assert_eq!(parent_files(&memory, 4), []);
    }
}
