//! (pure) Whether a host takes one more capsule, and if not, what is used up.
//!
//! Memory is judged by what capsules can really come to, not by what their guests were promised: an idle capsule of
//! 1 GiB has some 45 MB of its own. What the host has free already counts what they took so far; beside it each capsule
//! is held a reserve to grow into, until it has grown that far. A capsule that grows further is bounded by its control
//! group, and ends before the host's services do (decision 0014).

use std::fmt;

/// What an operator set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Most capsules that live at once.
    pub capsules_max: usize,
    /// Memory that stays free for the host itself.
    pub memory_reserve_mb: u64,
    /// Memory that is held for each capsule to grow into.
    pub capsule_reserve_mb: u64,
    /// vCPUs per processor.
    pub cpu_overcommit: u32,
    /// Disk space that stays free.
    pub disk_reserve_mb: u64,
}

/// What the host has, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory that can be had without swapping, the kernel's estimate.
    pub memory_available_mb: u64,
    /// Free space of the disk that capsules' writable layers are on.
    pub disk_free_mb: u64,
    /// Free space for memory images.
    pub images_free_mb: u64,
}

/// What a living capsule has, and what it may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mb: u64,
    /// Memory that is its own already.
    pub private_mb: u64,
}

/// What a new capsule needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mb: u64,
    /// Bytes that its writable layer begins with.
    pub disk_mb: u64,
    /// What a memory image of its template will take at first; zero when there is one already.
    pub image_mb: u64,
}

/// What can be used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `HEARTH_MAX_CAPSULES`.
    Capsules,
    /// `HEARTH_CPU_OVERCOMMIT`.
    Cpu,
    /// `HEARTH_MEMORY_RESERVE_MB`, `HEARTH_CAPSULE_RESERVE_MB`.
    Memory,
    /// `HEARTH_DISK_RESERVE_MB`.
    Disk,
    /// `HEARTH_IMAGE_BUDGET_MB`.
    Images,
}

impl Resource {
    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capsules => "capsules",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Images => "images",
        }
    }
}

/// Why a host does not take a capsule: it asks for more than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// What is used up.
    pub resource: Resource,
    /// How much the capsule needs.
    pub asked: u64,
    /// How much there is for it.
    pub available: u64,
    /// Of how much: the limit, or what the host has.
    pub of: u64,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, asked, available, of } = self;
        match resource {
            Resource::Capsules => write!(f, "its limit of {of} capsules is reached (HEARTH_MAX_CAPSULES)"),
            Resource::Cpu => write!(
                f,
                "processors: {asked} vCPUs are asked, {available} of {of} are left (HEARTH_CPU_OVERCOMMIT)"
            ),
            Resource::Memory => write!(
                f,
                "memory: {asked} MiB are asked, {available} of {of} MiB are neither used nor held for other \
                 capsules and the host (HEARTH_CAPSULE_RESERVE_MB, HEARTH_MEMORY_RESERVE_MB)"
            ),
            Resource::Disk => write!(
                f,
                "disk: {asked} MiB are asked, {available} of {of} free MiB are not held for the host \
                 (HEARTH_DISK_RESERVE_MB)"
            ),
            Resource::Images => write!(
                f,
                "memory images: {asked} MiB are asked, {available} MiB are free (HEARTH_IMAGE_BUDGET_MB)"
            ),
        }
    }
}

/// Decides whether `wanted` fits beside the capsules that live.
pub fn admit(policy: &Policy, host: &Host, tenants: &[Tenant], wanted: &Wanted) -> Result<(), Refusal> {
    let check = |resource, asked: u64, available: u64, of: u64| {
        if asked <= available { Ok(()) } else { Err(Refusal { resource, asked, available, of }) }
    };
    let limit = policy.capsules_max as u64;
    check(Resource::Capsules, 1, limit.saturating_sub(tenants.len() as u64), limit)?;
    let vcpus = u64::from(host.cpus) * u64::from(policy.cpu_overcommit);
    let taken: u64 = tenants.iter().map(|tenant| u64::from(tenant.vcpus)).sum();
    check(Resource::Cpu, wanted.vcpus.into(), vcpus.saturating_sub(taken), vcpus)?;
    // A small guest cannot grow into more than it has.
    let reserve = |memory_mb: u64| memory_mb.min(policy.capsule_reserve_mb);
    let held: u64 =
        tenants.iter().map(|tenant| reserve(tenant.memory_mb).saturating_sub(tenant.private_mb)).sum();
    let free = host.memory_available_mb.saturating_sub(held).saturating_sub(policy.memory_reserve_mb);
    check(Resource::Memory, reserve(wanted.memory_mb), free, host.memory_available_mb)?;
    let disk = host.disk_free_mb.saturating_sub(policy.disk_reserve_mb);
    check(Resource::Disk, wanted.disk_mb, disk, host.disk_free_mb)?;
    check(Resource::Images, wanted.image_mb, host.images_free_mb, host.images_free_mb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        capsules_max: 100,
        memory_reserve_mb: 512,
        capsule_reserve_mb: 128,
        cpu_overcommit: 64,
        disk_reserve_mb: 512,
    };
    const HOST: Host =
        Host { cpus: 2, memory_available_mb: 24_000, disk_free_mb: 10_000, images_free_mb: 4_000 };
    const WANTED: Wanted = Wanted { vcpus: 1, memory_mb: 1024, disk_mb: 10, image_mb: 0 };

    fn idle(count: usize) -> Vec<Tenant> {
        vec![Tenant { vcpus: 1, memory_mb: 1024, private_mb: 45 }; count]
    }

    #[test]
    fn each_resource_is_refused_by_name_with_what_is_asked_and_what_there_is() {
        let refused = |policy: Policy, host: Host, tenants: usize, wanted: Wanted| {
            let refusal = admit(&policy, &host, &idle(tenants), &wanted).unwrap_err();
            (refusal.resource, refusal.asked, refusal.available)
        };
        assert_eq!(refused(POLICY, HOST, 100, WANTED), (Resource::Capsules, 1, 0));
        let strict = Policy { cpu_overcommit: 1, ..POLICY };
        assert_eq!(refused(strict, HOST, 1, Wanted { vcpus: 2, ..WANTED }), (Resource::Cpu, 2, 1));
        let small = Host { memory_available_mb: 512 + 83 * 3 + 100, ..HOST };
        assert_eq!(refused(POLICY, small, 3, WANTED), (Resource::Memory, 128, 100));
        let full = Host { disk_free_mb: 515, ..HOST };
        assert_eq!(refused(POLICY, full, 3, WANTED), (Resource::Disk, 10, 3));
        let budget = Host { images_free_mb: 5, ..HOST };
        assert_eq!(refused(POLICY, budget, 3, Wanted { image_mb: 64, ..WANTED }), (Resource::Images, 64, 5));
        assert_eq!(admit(&POLICY, &budget, &idle(3), &WANTED), Ok(()), "an image that is there is no matter");
    }

    #[test]
    fn the_limit_of_capsules_fits_a_host_of_24_gib_with_guests_of_1_gib() {
        // What the idle ones took is not available any more.
        let host = Host { memory_available_mb: 24_000 - 99 * 45, ..HOST };
        assert_eq!(admit(&POLICY, &host, &idle(99), &WANTED), Ok(()));
        // A host of 4 GiB takes what it can hold, not what it was told.
        let small = |count: usize| Host { memory_available_mb: 3_500 - count as u64 * 45, ..HOST };
        let most = (0..).take_while(|count| admit(&POLICY, &small(*count), &idle(*count), &WANTED).is_ok());
        assert_eq!(most.count(), 23);
    }

    #[test]
    fn a_refusal_says_which_setting_to_look_at() {
        let refusal = Refusal { resource: Resource::Memory, asked: 128, available: 3, of: 700 };
        assert!(refusal.to_string().contains("128 MiB are asked, 3 of 700 MiB"), "{refusal}");
        for (resource, setting) in [
            (Resource::Capsules, "HEARTH_MAX_CAPSULES"),
            (Resource::Cpu, "HEARTH_CPU_OVERCOMMIT"),
            (Resource::Memory, "HEARTH_MEMORY_RESERVE_MB"),
            (Resource::Disk, "HEARTH_DISK_RESERVE_MB"),
            (Resource::Images, "HEARTH_IMAGE_BUDGET_MB"),
        ] {
            let text = Refusal { resource, asked: 2, available: 1, of: 1 }.to_string();
            assert!(text.contains(setting), "{text}");
        }
    }

    fn any_tenant() -> impl Strategy<Value = Tenant> {
        (1..16u32, 64..4096u64, 0..4096u64).prop_map(|(vcpus, memory_mb, private_mb)| Tenant {
            vcpus,
            memory_mb,
            private_mb,
        })
    }

    proptest! {
        #[test]
        fn one_who_leaves_never_makes_less_room(tenants in proptest::collection::vec(any_tenant(), 1..60)) {
            let all = admit(&POLICY, &HOST, &tenants, &WANTED);
            let fewer = admit(&POLICY, &HOST, &tenants[1..], &WANTED);
            prop_assert!(all.is_err() || fewer.is_ok());
        }

        #[test]
        fn a_capsule_that_has_grown_is_held_nothing_more(grown in 128..4096u64) {
            let tenants = vec![Tenant { vcpus: 1, memory_mb: 4096, private_mb: grown }; 50];
            let host = Host { memory_available_mb: 512 + 128, ..HOST };
            prop_assert_eq!(admit(&POLICY, &host, &tenants, &WANTED), Ok(()));
        }
    }
}
