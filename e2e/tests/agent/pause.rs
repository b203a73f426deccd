//! Pause and resume: nothing in the capsule is lost, and nothing is held while it is paused.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::wire::agent::{self as wire, CapsuleState};
use std::{collections::HashMap, fs, path::Path, time::Duration};

/// Python variables of each kind, a file, a working folder, a background process, and memory to hash.
pub const SET_UP: &str = r#"
import os, hashlib, subprocess, random
numbers = [0]
os.makedirs('/tmp/job', exist_ok=True)
os.chdir('/tmp/job')
open('log.txt', 'w').write('begin\n')
block = bytearray(os.urandom(1 << 20) * 24)
before = hashlib.sha256(block).hexdigest()
script = 'import time\nn = 0\nwhile True:\n    n += 1\n    open("/tmp/job/ticks", "w").write(str(n))\n    time.sleep(0.05)'
ticker = subprocess.Popen(['python3', '-c', script])
print(ticker.pid)
"#;

/// Checks all of it, and changes it.
pub const CHECK_AND_CHANGE: &str = r#"
import time
assert hashlib.sha256(block).hexdigest() == before, 'memory changed'
assert os.getcwd() == '/tmp/job'
assert ticker.poll() is None, 'the background process is gone'
assert open('log.txt').read().count('\n') == len(numbers)
def ticks():
    try: return int(open('ticks').read())
    except (ValueError, FileNotFoundError): return 0
start, limit = ticks(), time.monotonic() + 20
while ticks() <= start + 1:
    assert time.monotonic() < limit, 'the background process does not run'
    time.sleep(0.02)
numbers.append(numbers[-1] + 1)
open('log.txt', 'a').write(f'{numbers[-1]}\n')
# Other pages each time; some become zero.
at = (numbers[-1] * 7919 * 4096) % (len(block) - (1 << 20))
block[at:at + (1 << 19)] = os.urandom(1 << 19)
block[at + (1 << 19):at + (1 << 20)] = bytes(1 << 19)
before = hashlib.sha256(block).hexdigest()
assert os.environ['FLAVOUR'] == 'plain', os.environ.get('FLAVOUR')
helper = subprocess.Popen(['sleep', '1000'])
print(len(numbers), os.uname().nodename)
"#;

/// Folders of VMMs that there are.
fn vmms(dir: &Path) -> usize {
    fs::read_dir(dir.join("agent/vmms")).unwrap().count()
}

fn env() -> HashMap<String, String> {
    HashMap::from([("FLAVOUR".to_owned(), "plain".to_owned())])
}

#[tokio::test]
async fn everything_survives_ten_pauses_and_nothing_is_held_meanwhile() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let machine_id = agent.shell(id, "cat /etc/machine-id").await.unwrap();
    for round in 0..10 {
        let said = agent.python(id, CHECK_AND_CHANGE).await.unwrap();
        assert_eq!(said, format!("{} {id}", round + 2));
        let capture = agent.pause(id).await.unwrap();
        assert!(capture.written_pages > 100 && capture.written_pages <= capture.own_pages, "{capture:?}");
        println!("pause {round}: {capture:?}");
        until(Duration::from_secs(10), "the VMM to be gone", || Ok((vmms(dir.path()) == 0).then_some(())))
            .unwrap();
        let paused = agent.get(id).await.unwrap();
        assert_eq!((paused.state(), paused.private_kb), (CapsuleState::Paused, 0));
        let took = agent.resume(id).await.unwrap();
        println!("resume {round}: {took} us");
    }
    agent.python(id, CHECK_AND_CHANGE).await.unwrap();
    assert_eq!(agent.shell(id, "cat /etc/machine-id").await.unwrap(), machine_id);
    let generations = fs::read_dir(dir.path().join("agent/snapshots")).unwrap().count();
    assert_eq!(generations, 0, "a running capsule needs no generation");
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_restarted_agent_lists_a_paused_capsule_and_resumes_it() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let running = agent.restore(false).await.unwrap();
    agent.pause(id).await.unwrap();
    let snapshots = dir.path().join("agent/snapshots");
    for kill in [true, false] {
        if kill {
            agent.process.kill().unwrap()
        } else {
            agent.process.stop().unwrap()
        }
        // What a crash leaves: a generation that no record names, and a draft.
        for orphan in ["gen-orphan", ".draft-x"] {
            fs::create_dir(snapshots.join(orphan)).unwrap();
            fs::write(snapshots.join(orphan).join("manifest.json"), b"{}").unwrap();
        }
        agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Paused);
        // The agent that was told to stop was told to end what runs.
        assert_eq!(agent.get(running).await.is_ok(), kill, "a running capsule outlives only a killed agent");
        assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 1, "only what a record names stays");
    }
    // No template was ensured by this agent: the generation names what it stands on.
    agent.resume(id).await.unwrap();
    assert_eq!(agent.python(id, CHECK_AND_CHANGE).await.unwrap(), format!("2 {id}"));
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    for folder in ["agent/paused", "agent/snapshots"] {
        assert_eq!(fs::read_dir(dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn conflicts_are_refused_at_once_and_repetitions_join() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore_from("code", env()).await.unwrap();
    agent.python(id, SET_UP).await.unwrap();
    let request = || wire::PauseRequest { capsule_id: id.to_string() };
    let mut clients = [agent.client.clone(), agent.client.clone()];
    let [first, second] = &mut clients;
    let (one, two) = tokio::join!(first.pause(request()), second.pause(request()));
    let captures = [one.unwrap().into_inner().capture, two.unwrap().into_inner().capture];
    assert!(captures[0].is_some() && captures[0] == captures[1], "one pause: {captures:?}");
    let error = agent.run(id, "1").await.unwrap_err();
    assert!(format!("{error:#}").contains("paused"), "{error:#}");
    let resume = || wire::ResumeRequest { capsule_id: id.to_string() };
    let [first, second] = &mut clients;
    let (one, two) = tokio::join!(first.resume(resume()), second.resume(resume()));
    let took = [one.unwrap().into_inner().total_us, two.unwrap().into_inner().total_us];
    assert!(took.contains(&0) && took[0] != took[1], "one resume: {took:?}");
    // A stream that is open when the capsule is paused ends, with the reason.
    let mut runner = TestAgent { process: agent.process, client: agent.client.clone() };
    let long = async {
        let call = wire::ExecuteCall {
            capsule_id: id.to_string(),
            request: Some(hearth_proto::wire::run::RunRequest {
                code: "print('here', flush=True)\nimport time\ntime.sleep(600)".to_owned(),
                timeout_ms: 600_000,
                ..Default::default()
            }),
        };
        let mut events = clients[0].execute(call).await.unwrap().into_inner();
        // Timings, then the first output.
        events.message().await.unwrap();
        events.message().await.unwrap();
        let pause = clients[1].pause(request()).await;
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return (status, pause),
            }
        }
    };
    let (status, pause) = long.await;
    pause.unwrap();
    assert!(status.message().contains("paused"), "{status:?}");
    runner.resume(id).await.unwrap();
    runner.destroy(id).await.unwrap();
    runner.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
