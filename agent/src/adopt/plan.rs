//! (pure) What becomes of each VMM that a starting agent finds, for a crash between any two steps.
//!
//! | what is found | what was under way | what becomes of it |
//! |---|---|---|
//! | no record, or one of another version | a start, or a newer agent | swept |
//! | a record without a capsule | parked VMM, template build | swept: another is spawned in some 50 ms |
//! | `starting` | a restore, a fork's copy, a resume | swept: its caller got an error; a paused capsule stays paused |
//! | `stopping` | a destroy | swept: it is finished |
//! | a record of its pause from another generation than its own | a pause, up to giving the VMM up | swept: it is paused, and its vCPUs stood still since |
//! | a record of its pause from the generation that it was restored from | a resume, up to removing that record | adopted while it lives: it ran on since; else it is paused |
//! | two of one capsule | a rollback, up to giving the old one up | the newer living one is adopted |
//! | dead | nothing: it died | failed, with the reason |
//! | all others | nothing, or a capture | adopted |

use crate::capsule::ledger::{Phase, Record};
use hearth_proto::id::CapsuleId;
use std::collections::{HashMap, HashSet};

/// What is found in one VMM's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its record.
    pub record: Record,
    /// Why it cannot go on, if so.
    pub dead: Option<String>,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is this agent's from here on.
    Adopt,
    /// Its capsule failed: reported, then swept.
    Failed(String),
    /// Ended and removed; and why, for the log.
    Sweep(&'static str),
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One for each that was found, in their order.
    pub verdicts: Vec<Verdict>,
    /// Paused capsules that run again: their records are outdated.
    pub outdated: Vec<CapsuleId>,
}

/// Decides. `paused` names the generation of each paused capsule.
pub fn plan(found: &[Found], paused: &HashMap<CapsuleId, String>) -> Plan {
    let mut verdicts: Vec<Verdict> = found.iter().map(|found| judge(found, paused)).collect();
    only_one_of_each(found, &mut verdicts);
    let adopted = found.iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Verdict::Adopt);
    let outdated =
        adopted.filter_map(|(found, _)| found.record.capsule).filter(|id| paused.contains_key(id)).collect();
    Plan { verdicts, outdated }
}

fn judge(found: &Found, paused: &HashMap<CapsuleId, String>) -> Verdict {
    let record = &found.record;
    let Some((id, life)) = record.capsule.zip(record.life.as_ref()) else {
        return Verdict::Sweep("it runs no capsule");
    };
    match life.phase {
        Phase::Starting => return Verdict::Sweep("its restore was not done"),
        Phase::Stopping => return Verdict::Sweep("it was being destroyed"),
        Phase::Failed => return Verdict::Failed(life.reason.clone()),
        Phase::Parked | Phase::Running | Phase::Capturing => {}
    }
    match (paused.get(&id), &found.dead) {
        (Some(generation), _) if record.snapshot.as_ref() != Some(generation) => {
            Verdict::Sweep("its capsule is paused")
        }
        (Some(_), Some(_)) => Verdict::Sweep("it died before its resume was done; its capsule is paused"),
        (None, Some(reason)) => Verdict::Failed(reason.clone()),
        (_, None) => Verdict::Adopt,
    }
}

/// Of several VMMs of one capsule, the newest living one is it; a dead one is told of only when none lives.
fn only_one_of_each(found: &[Found], verdicts: &mut [Verdict]) {
    let mut order: Vec<usize> = (0..found.len()).collect();
    // A rollback starts its VMM after the old one answered, so later than any tick of its start.
    let start = |index: &usize| found[*index].record.processes.first().map(|process| process.start_ticks);
    order.sort_by_key(|index| (verdicts[*index] == Verdict::Adopt, start(index)));
    let mut taken = HashSet::new();
    for index in order.into_iter().rev() {
        if matches!(verdicts[index], Verdict::Sweep(_)) {
            continue;
        }
        if !found[index].record.capsule.is_some_and(|id| taken.insert(id)) {
            verdicts[index] = Verdict::Sweep("a newer one runs its capsule");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capsule::{
            ledger::{LifeRecord, ProcessRecord},
            settings::Settings,
        },
        snapshot::manifest::Parent,
    };

    const OWN: &str = "gen-own";

    fn found(id: CapsuleId, phase: Phase, dead: bool, start_ticks: u64) -> Found {
        let processes = vec![ProcessRecord { pid: 7, start_ticks }];
        let mut record = Record::new("boot".to_owned(), processes, 520_000, "qemu", Some(OWN.to_owned()));
        record.capsule = Some(id);
        record.life = Some(LifeRecord {
            phase,
            reason: if phase == Phase::Failed { "told".to_owned() } else { String::new() },
            token: String::new(),
            template: "code".to_owned(),
            vcpus: 1,
            memory_mb: 512,
            created_at_ms: 0,
            base: Parent { key: "code-1".to_owned(), memory_xxh3: 1 },
            settings: Settings::default(),
        });
        Found { record, dead: dead.then(|| "it died".to_owned()) }
    }

    fn paused(id: CapsuleId, generation: &str) -> HashMap<CapsuleId, String> {
        HashMap::from([(id, generation.to_owned())])
    }

    fn one(found: Found, paused: &HashMap<CapsuleId, String>) -> (Verdict, bool) {
        let mut plan = plan(&[found], paused);
        (plan.verdicts.remove(0), !plan.outdated.is_empty())
    }

    #[test]
    fn what_was_told_to_somebody_is_adopted_and_what_was_not_is_swept() {
        let id = CapsuleId::new();
        for phase in [Phase::Parked, Phase::Running, Phase::Capturing] {
            assert_eq!(one(found(id, phase, false, 1), &HashMap::new()), (Verdict::Adopt, false));
            let dead = one(found(id, phase, true, 1), &HashMap::new());
            assert_eq!(dead, (Verdict::Failed("it died".to_owned()), false));
        }
        for phase in [Phase::Starting, Phase::Stopping] {
            for dead in [true, false] {
                assert!(matches!(one(found(id, phase, dead, 1), &HashMap::new()).0, Verdict::Sweep(_)));
            }
        }
        let told = one(found(id, Phase::Failed, true, 1), &HashMap::new());
        assert_eq!(told.0, Verdict::Failed("told".to_owned()));
        let parked = Found {
            record: Record { capsule: None, life: None, ..found(id, Phase::Parked, false, 1).record },
            dead: None,
        };
        assert!(matches!(one(parked, &HashMap::new()).0, Verdict::Sweep(_)));
    }

    #[test]
    fn of_a_paused_capsule_and_its_vmm_exactly_one_is_kept() {
        let id = CapsuleId::new();
        for phase in [Phase::Starting, Phase::Parked, Phase::Running, Phase::Capturing, Phase::Stopping] {
            for dead in [true, false] {
                for generation in ["gen-new", OWN] {
                    let (verdict, outdated) = one(found(id, phase, dead, 1), &paused(id, generation));
                    assert_eq!(verdict == Verdict::Adopt, outdated, "{phase:?} {dead} {generation}");
                    assert!(
                        !matches!(verdict, Verdict::Failed(_)),
                        "nothing is lost: {phase:?} {dead} {generation}"
                    );
                }
            }
        }
        let resumed = one(found(id, Phase::Running, false, 1), &paused(id, OWN));
        assert_eq!(resumed, (Verdict::Adopt, true), "it ran on since its resume");
        let pausing = one(found(id, Phase::Capturing, false, 1), &paused(id, "gen-new"));
        assert_eq!(pausing, (Verdict::Sweep("its capsule is paused"), false));
    }

    #[test]
    fn of_a_rollback_the_new_one_goes_on_and_the_old_one_when_the_new_one_was_not_done_or_died() {
        let id = CapsuleId::new();
        let verdicts = |found: &[Found]| plan(found, &HashMap::new()).verdicts;
        let swept = |verdict: &Verdict| matches!(verdict, Verdict::Sweep(_));
        let (old, new) = (found(id, Phase::Running, false, 5), found(id, Phase::Running, false, 6));
        for (pair, at) in [([old.clone(), new.clone()], 1), ([new, old.clone()], 0)] {
            let verdicts = verdicts(&pair);
            assert!(verdicts[at] == Verdict::Adopt && swept(&verdicts[1 - at]), "{verdicts:?}");
        }
        for new in [found(id, Phase::Starting, false, 6), found(id, Phase::Running, true, 6)] {
            let verdicts = verdicts(&[old.clone(), new]);
            assert!(verdicts[0] == Verdict::Adopt && swept(&verdicts[1]), "{verdicts:?}");
        }
        let both = verdicts(&[found(id, Phase::Running, true, 5), found(id, Phase::Running, true, 6)]);
        assert_eq!(both.iter().filter(|verdict| matches!(verdict, Verdict::Failed(_))).count(), 1);
        let others = verdicts(&[old, found(CapsuleId::new(), Phase::Parked, false, 5)]);
        assert_eq!(others, [Verdict::Adopt, Verdict::Adopt]);
    }
}
