//! Is KVM real? Its device file does not tell: some hosts offer one that only emulates ordinary guests, where a kernel
//! boots for minutes and then fails. So a tiny guest runs a counted loop, and the clock tells.
//!
//! The loop runs in a process of its own (`hearth kvm-probe`), which is killed when it takes too long.

#![expect(unsafe_code, reason = "memory of the tiny guest is given to KVM")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use memmap2::MmapMut;
use std::{
    io,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Iterations of the guest's loop.
const ITERATIONS: u32 = 2_000_000;
/// Real hardware needs below 1 ns an iteration; nested in software emulation some 10 ns; the emulating KVM that this
/// probe was written against 2,800 ns.
const NANOS_MAX: f64 = 250.0;
/// The loop at [`NANOS_MAX`] takes half a second.
const DEADLINE: Duration = Duration::from_secs(3);

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// KVM runs guests in hardware.
    pub real: bool,
    /// For people.
    pub reason: String,
}

impl Verdict {
    fn no(reason: impl Into<String>) -> Self {
        Self { real: false, reason: reason.into() }
    }
}

/// Runs `prober kvm-probe` with a deadline.
pub fn probe(prober: &Path) -> io::Result<Verdict> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Verdict::no("there is no /dev/kvm"));
    }
    let mut child = Command::new(prober)
        .arg("kvm-probe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut output = child.stdout.take();
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        let read = output.as_mut().map_or(Ok(0), |output| io::Read::read_to_string(output, &mut text));
        // The receiver is gone only after the deadline.
        let _ = send.send(read.map(|_| text));
    });
    let text = receive.recv_timeout(DEADLINE);
    // Ended or not, it must not stay; a process that has ended is no error.
    let _ = child.kill();
    child.wait()?;
    // It ends with the child's end of the pipe.
    let _ = reader.join();
    Ok(match text {
        Ok(Ok(text)) => judge(text.trim()),
        Ok(Err(error)) => Verdict::no(format!("the KVM probe's answer could not be read: {error}")),
        Err(_) => Verdict::no(format!(
            "KVM is there but a guest loop of {ITERATIONS} iterations was not done in {} s: it only emulates",
            DEADLINE.as_secs()
        )),
    })
}

fn judge(text: &str) -> Verdict {
    match text.parse::<f64>() {
        Ok(nanos) if nanos <= NANOS_MAX => {
            Verdict { real: true, reason: format!("KVM is real: {nanos:.2} ns per guest loop iteration") }
        }
        Ok(nanos) => Verdict::no(format!(
            "KVM is there but only emulates: {nanos:.0} ns per guest loop iteration, real hardware needs below \
             {NANOS_MAX:.0}"
        )),
        Err(_) if text.is_empty() => Verdict::no("KVM is there but the probe's guest did not run"),
        Err(_) => Verdict::no(format!("KVM cannot be used: {text}")),
    }
}

/// The `kvm-probe` command: prints nanoseconds per iteration, or why the guest did not run.
pub fn run_probe() -> String {
    match time_loop() {
        Ok(elapsed) => format!("{:.3}", elapsed.as_nanos() as f64 / f64::from(ITERATIONS)),
        Err(reason) => reason,
    }
}

const MEMORY_BYTES: usize = 0x1_0000;
const PAGE_MAP_4: u64 = 0x1000;
const PAGE_POINTERS: u64 = 0x2000;
const PAGE_FOLDER: u64 = 0x3000;
const CODE: u64 = 0x4000;

/// Runs `mov ecx, N; loop: dec ecx; jnz loop; hlt` in 64-bit mode and returns how long KVM took.
fn time_loop() -> Result<Duration, String> {
    let fail = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(fail("/dev/kvm"))?;
    let vm = kvm.create_vm().map_err(fail("creating a guest"))?;
    let mut memory = MmapMut::map_anon(MEMORY_BYTES).map_err(|error| format!("memory: {error}"))?;
    // Identity map of the first 2 MiB: present, writable; the folder's entry is a large page.
    for (at, entry) in
        [(PAGE_MAP_4, PAGE_POINTERS | 3), (PAGE_POINTERS, PAGE_FOLDER | 3), (PAGE_FOLDER, 0x83)]
    {
        memory[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    let mut code = vec![0xb9];
    code.extend_from_slice(&ITERATIONS.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    memory[CODE as usize..][..code.len()].copy_from_slice(&code);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the region is `memory`, which outlives the guest and is not touched while it runs.
    unsafe { vm.set_user_memory_region(region) }.map_err(fail("guest memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(fail("creating a vCPU"))?;
    // Without a processor description that has it, 64-bit mode is refused.
    let features =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(fail("the processor's features"))?;
    vcpu.set_cpuid2(&features).map_err(fail("setting the processor's features"))?;
    let mut system = vcpu.get_sregs().map_err(fail("reading registers"))?;
    system.cr3 = PAGE_MAP_4;
    system.cr4 = 1 << 5;
    system.cr0 = 1 << 31 | 1;
    system.efer = 1 << 8 | 1 << 10;
    for segment in [&mut system.cs, &mut system.ds, &mut system.es, &mut system.ss] {
        (segment.base, segment.limit, segment.present, segment.s, segment.g) = (0, 0xffff_ffff, 1, 1, 1);
        (segment.type_, segment.selector, segment.db, segment.l) = (3, 16, 1, 0);
    }
    (system.cs.type_, system.cs.selector, system.cs.db, system.cs.l) = (11, 8, 0, 1);
    vcpu.set_sregs(&system).map_err(fail("64-bit mode"))?;
    let mut registers = vcpu.get_regs().map_err(fail("reading registers"))?;
    (registers.rip, registers.rflags) = (CODE, 2);
    vcpu.set_regs(&registers).map_err(fail("registers"))?;
    let start = Instant::now();
    match vcpu.run().map_err(fail("running the guest"))? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        other => Err(format!("the guest ended with {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_decides_not_the_device() {
        assert!(judge("0.31").real);
        assert!(judge("12.5").real);
        assert!(!judge("2800").real);
        assert!(judge("creating a guest: EPERM").reason.contains("EPERM"));
        assert!(!judge("").real);
    }
}
