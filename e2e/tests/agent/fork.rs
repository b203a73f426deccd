//! Forks: copies have the source's state, differ where they must, and the source goes on.

use crate::{
    folder,
    pause::{CHECK_AND_CHANGE, SET_UP},
};
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::wire::agent::CapsuleState;
use std::{
    collections::{HashMap, HashSet},
    fs,
};

const RANDOM: &str = "import random, os, uuid\nimport numpy\n\
                      print(random.random(), numpy.random.rand(), os.urandom(8).hex(), uuid.uuid4())";

#[tokio::test]
async fn forks_have_the_state_differ_in_randomness_and_names_and_the_source_goes_on() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let env = HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())]);
    let source = agent.restore_from("code", env).await.unwrap();
    agent.python(source, SET_UP).await.unwrap();
    agent.python(source, "import random\nrandom.seed(1)").await.unwrap();
    let (copies, reply) = agent.fork(source, 3).await.unwrap();
    let capture = reply.capture.unwrap();
    println!("fork of 3: {} us, {capture:?}", reply.total_us);
    assert!(0 < capture.stood_still_us && capture.stood_still_us <= capture.total_us, "{capture:?}");
    assert!(reply.capsules.iter().all(|capsule| capsule.state() == CapsuleState::Running), "{reply:?}");
    let repeated = hearth_proto::wire::agent::ForkRequest {
        capsule_id: source.to_string(),
        new_capsule_ids: copies.iter().map(ToString::to_string).collect(),
    };
    let again = agent.client.fork(repeated).await.unwrap().into_inner();
    assert!(again.capture.is_none() && again.capsules.len() == 3, "a repeated call finds the copies");
    let mut seen = HashSet::new();
    let all: Vec<_> = copies.iter().copied().chain([source]).collect();
    for id in &all {
        assert!(seen.insert(agent.python(*id, RANDOM).await.unwrap()), "two draw the same");
        assert!(
            seen.insert(agent.shell(*id, "cat /etc/machine-id").await.unwrap()),
            "two have one machine id"
        );
        // State, files, background process; and each changes only its own.
        for round in 0..2 {
            let said = agent.python(*id, CHECK_AND_CHANGE).await.unwrap();
            assert_eq!(said, format!("{} {id}", round + 2));
        }
    }
    // A copy is a capsule like any other: it is paused, resumed and forked.
    agent.pause(copies[0]).await.unwrap();
    let (grandchildren, reply) = agent.fork(copies[0], 1).await.unwrap();
    assert!(reply.capture.is_none(), "a paused capsule was captured before");
    agent.resume(copies[0]).await.unwrap();
    for id in [copies[0], grandchildren[0]] {
        assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("4 {id}"));
    }
    assert_eq!(fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count(), 0, "nothing is kept");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_fork_that_does_not_fit_leaves_no_copy_and_the_source_running() {
    let dir = folder();
    let env = [("HEARTH_PARKED", "0"), ("HEARTH_MAX_CAPSULES", "3")];
    let mut agent = TestAgent::start(dir.path(), &env).await.unwrap();
    agent.ensure_code().await.unwrap();
    let source = agent.restore(false).await.unwrap();
    agent.python(source, "x = 5").await.unwrap();
    let error = agent.fork(source, 3).await.unwrap_err();
    assert!(format!("{error:#}").contains("limit of 3"), "{error:#}");
    assert_eq!(agent.python(source, "print(x)").await.unwrap(), "5");
    let (copies, _) = agent.fork(source, 2).await.unwrap();
    assert_eq!(agent.python(copies[1], "print(x)").await.unwrap(), "5");
    let error = agent.fork(source, 0).await.unwrap_err();
    assert!(format!("{error:#}").contains("new_capsule_ids"), "{error:#}");
    // Paused capsules make room.
    agent.pause(copies[0]).await.unwrap();
    let other = agent.restore(false).await.unwrap();
    let error = agent.resume(copies[0]).await.unwrap_err();
    assert!(format!("{error:#}").contains("limit"), "{error:#}");
    agent.destroy(other).await.unwrap();
    agent.resume(copies[0]).await.unwrap();
    assert_eq!(agent.python(copies[0], "print(x)").await.unwrap(), "5");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
