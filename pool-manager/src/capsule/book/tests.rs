//! Tests of the book.

use super::*;
use crate::{capsule::operation::Outcome, host::observed::Live};

fn second(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

fn with(team: TeamId) -> (Book, CapsuleId) {
    let (mut book, record) = (Book::default(), Record::plain(team));
    let id = record.id;
    book.insert(record);
    (book, id)
}

fn see(book: &mut Book, id: CapsuleId, live: &Live, now: OffsetDateTime) -> Effect {
    book.observe(id, Seen::Present(live), Figures::default(), now)
}

#[test]
fn another_teams_capsule_is_not_there() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    assert!(book.get(team, id).is_some());
    assert!(book.get(TeamId::new(), id).is_none());
    assert_eq!(book.end(TeamId::new(), id, second(1)), Ending::Unknown);
    assert!(matches!(book.begin(TeamId::new(), id, Kind::Pause, second(1)), Begin::Unknown));
    assert!(book.list(TeamId::new()).is_empty());
}

#[test]
fn a_death_changes_the_record_and_asks_for_a_write() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    let died = Live::Failed { reason: "killed".to_owned() };
    let Effect::Write(record, Some("failed")) = see(&mut book, id, &died, second(5)) else {
        panic!("not written");
    };
    assert_eq!((record.state, record.reason.as_str()), (State::Failed, "killed"));
    assert_eq!(record.times.updated, second(5));
    assert_eq!(book.get(team, id).unwrap().reason, "killed");
    assert_eq!(book.active().count(), 0);
    assert_eq!(see(&mut book, id, &died, second(6)), Effect::Nothing);
}

#[test]
fn ending_is_idempotent() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    assert!(matches!(book.end(team, id, second(1)), Ending::Now { write: true, .. }));
    assert!(matches!(book.end(team, id, second(2)), Ending::Now { write: false, .. }));
    assert!(
        matches!(book.ended(id, second(3)), Effect::Write(record, Some("destroyed")) if record.state == State::Stopped)
    );
    assert_eq!(book.ended(id, second(4)), Effect::Nothing);
    assert_eq!(book.end(team, id, second(5)), Ending::Over);
}

#[test]
fn ended_capsules_are_forgotten_in_the_end() {
    let (mut book, team) = (Book::default(), TeamId::new());
    for _ in 0..ENDED_MAX + 10 {
        let record = Record::plain(team);
        book.insert(record.clone());
        book.end(team, record.id, second(1));
        book.ended(record.id, second(2));
    }
    assert_eq!(book.entries.len(), ENDED_MAX);
}

#[test]
fn activity_is_written_now_and_then() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    let written = (0..65).filter(|now| book.touch(id, second(*now)).is_some()).count();
    assert_eq!(written, 2);
    assert_eq!(book.get(team, id).unwrap().times.last_active, Some(second(64)));
}

#[test]
fn a_pause_of_its_users_is_told_from_one_of_its_hosts() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    let by_host = see(&mut book, id, &Live::Paused, second(1));
    assert!(matches!(by_host, Effect::Write(record, Some("paused")) if record.paused_by == PausedBy::Host));
    // Its user pauses what its host had paused: from now on it is its user's.
    assert!(matches!(book.begin(team, id, Kind::Pause, second(2)), Begin::Nothing { write: true, .. }));
    assert_eq!(book.get(team, id).unwrap().paused_by, PausedBy::User);
    // It runs again, whoever's doing that is: the next pause is its host's.
    see(&mut book, id, &Live::Running, second(3));
    let Begin::Go { ticket, write: true, .. } = book.begin(team, id, Kind::Pause, second(4)) else {
        panic!("refused");
    };
    // No answer came; but then the host says that it is paused.
    drop(ticket);
    let paused = see(&mut book, id, &Live::Paused, second(5));
    assert!(matches!(paused, Effect::Write(record, _) if record.paused_by == PausedBy::User));
}

#[test]
fn while_something_is_under_way_only_an_end_is_news() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    let Begin::Go { ticket, .. } = book.begin(team, id, Kind::Pause, second(1)) else { panic!("refused") };
    assert_eq!(book.get(team, id).unwrap().under_way, Some(Kind::Pause));
    assert_eq!(see(&mut book, id, &Live::Paused, second(2)), Effect::Nothing);
    assert_eq!(book.observe(id, Seen::Absent, Figures::default(), second(2)), Effect::Nothing);
    assert!(matches!(book.begin(team, id, Kind::Fork, second(2)), Begin::Refused(Refused::Conflict(_))));
    assert!(matches!(book.begin(team, id, Kind::Pause, second(2)), Begin::Join(_)));
    let died = Live::Failed { reason: "killed".to_owned() };
    assert!(matches!(see(&mut book, id, &died, second(3)), Effect::Write(..)));
    // What came of the pause does not bring it back.
    let edit = Edit { state: Some(State::Paused), ..Edit::default() };
    let outcome: Outcome = Ok(book.settle(id, edit, second(4)).unwrap());
    assert_eq!(outcome.as_ref().unwrap().state, State::Failed);
    ticket.done(outcome);
    assert_eq!(book.get(team, id).unwrap().under_way, None);
}

#[test]
fn quotas_count_what_runs_and_what_is_being_made() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    let limits = Limits { capsules: 2, memory_mb: 0 };
    let one = Amount::of(1, 1, 512);
    let made = book.reserve(team, one, limits).unwrap();
    assert!(matches!(book.reserve(team, one, limits), Err(Refused::Quota(_))));
    assert!(book.reserve(TeamId::new(), one, limits).is_ok());
    drop(made);
    assert!(book.reserve(team, one, limits).is_ok());
    see(&mut book, id, &Live::Paused, second(1));
    assert!(book.reserve(team, Amount::of(2, 1, 512), limits).is_ok());
}

#[test]
fn processor_time_is_counted_from_the_first_look_and_once() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    for (cpu_us, now) in [(1_000, 1), (1_500, 2), (1_700, 3)] {
        let figures = Figures { cpu_us, ..Figures::default() };
        book.observe(id, Seen::Present(&Live::Running), figures, second(now));
    }
    let running = Amount::of(1, 1, 512);
    assert_eq!(book.sample(), [TeamNow { team, running, cpu_us: 700 }]);
    assert_eq!(book.sample(), [TeamNow { team, running, cpu_us: 0 }]);
    // The last of an ended capsule is not lost.
    let figures = Figures { cpu_us: 1_800, ..Figures::default() };
    let stopped = Live::Stopped { reason: String::new() };
    book.observe(id, Seen::Present(&stopped), figures, second(4));
    assert_eq!(book.sample(), [TeamNow { team, running: Amount::default(), cpu_us: 100 }]);
    assert!(book.sample().is_empty());
}

#[test]
fn capsules_of_hosts_that_are_gone_are_found() {
    let (book, id) = with(TeamId::new());
    assert_eq!(book.homeless(&HashSet::from(["other".to_owned()])), [id]);
    assert!(book.homeless(&HashSet::from(["host".to_owned()])).is_empty());
}

#[test]
fn news_from_before_a_change_does_not_undo_it() {
    let team = TeamId::new();
    let (mut book, id) = with(team);
    see(&mut book, id, &Live::Paused, second(1));
    let Begin::Go { ticket, .. } = book.begin(team, id, Kind::Resume, second(1)) else { panic!("refused") };
    let edit = Edit { state: Some(State::Running), ..Edit::default() };
    ticket.done(Ok(book.settle(id, edit, second(2)).unwrap()));
    assert_eq!(see(&mut book, id, &Live::Paused, second(2)), Effect::Nothing);
    assert!(matches!(see(&mut book, id, &Live::Paused, second(3)), Effect::Write(_, Some("paused"))));
}
