//! Which host a new capsule goes to. Pure.

/// What is known of a host that could take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its agent is connected.
    pub(crate) up: bool,
    /// It has the template in the size that is asked for.
    pub(crate) has_template: bool,
    /// Warm capsules of the template.
    pub(crate) parked: usize,
    /// Restores that run or wait.
    pub(crate) demand: usize,
    /// Its memory, and what of it runs for users already, in MiB.
    pub(crate) memory_mb: u64,
    pub(crate) taken_mb: u64,
}

/// The host to ask: one with a warm capsule before one without, then the one where the fewest wait, then the one with
/// most room. None when no host can take it.
pub(crate) fn place(candidates: &[Candidate]) -> Option<usize> {
    let score = |host: &Candidate| {
        let room = host.memory_mb.saturating_sub(host.taken_mb);
        (host.parked > 0, std::cmp::Reverse(host.demand), room)
    };
    candidates
        .iter()
        .enumerate()
        .filter(|(_, host)| host.up && host.has_template)
        // Of equals the first.
        .rev()
        .max_by_key(|(_, host)| score(host))
        .map(|(index, _)| index)
}

/// How many of `total` warm capsules each of `hosts` keeps, for the one at `index`.
pub(crate) fn share(total: usize, hosts: usize, index: usize) -> usize {
    let hosts = hosts.max(1);
    total / hosts + usize::from(index < total % hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn candidate()(
            (up, has_template) in (any::<bool>(), any::<bool>()),
            (parked, demand) in (0usize..4, 0usize..4),
            (memory_mb, taken_mb) in (0u64..10_000, 0u64..12_000),
        ) -> Candidate {
            Candidate { up, has_template, parked, demand, memory_mb, taken_mb }
        }
    }

    proptest! {
        #[test]
        fn only_a_host_that_can_is_chosen_and_one_is_if_any_can(
            hosts in prop::collection::vec(candidate(), 0..6),
        ) {
            let able = |host: &Candidate| host.up && host.has_template;
            let chosen = place(&hosts).map(|index| hosts[index]);
            prop_assert_eq!(chosen.is_some(), hosts.iter().any(able));
            if let Some(chosen) = chosen {
                prop_assert!(able(&chosen));
                let warm = hosts.iter().any(|host| able(host) && host.parked > 0);
                prop_assert_eq!(chosen.parked > 0, warm);
            }
        }

        #[test]
        fn shares_are_the_whole(total in 0usize..600, hosts in 1usize..9) {
            let shares: Vec<_> = (0..hosts).map(|index| share(total, hosts, index)).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), total);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn room_decides_between_equals() {
        let small =
            Candidate { up: true, has_template: true, parked: 0, demand: 0, memory_mb: 4096, taken_mb: 4000 };
        let large = Candidate { taken_mb: 100, ..small };
        assert_eq!(place(&[small, large]), Some(1));
        assert_eq!(place(&[large, large]), Some(0));
        assert_eq!(place(&[Candidate { parked: 1, ..small }, large]), Some(0));
    }
}
