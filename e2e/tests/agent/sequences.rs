//! Random sequences of writing, pausing, resuming, forking, snapshotting and rolling back, against a model: after each
//! step the guest's hash of its memory and of its file is that of the bytes which the model says are there.
//!
//! `HEARTH_TEST_SEED` repeats a sequence; a failure names its seed.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers, swap};
use hearth_proto::id::{CapsuleId, SnapshotId};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const MEMORY_BYTES: usize = 6 << 20;
const FILE_BYTES: usize = 1 << 20;
const STEP: usize = 4096;
/// Capsules that run beside each other; a fork beyond this ends the oldest.
const CAPSULES: usize = 3;
/// How often each operation comes in a sequence.
const OPERATIONS: [(Operation, usize); 6] = [
    (Operation::Write, 6),
    (Operation::Pause, 4),
    (Operation::Fork, 2),
    (Operation::Snapshot, 2),
    (Operation::RollBack, 2),
    (Operation::Restore, 1),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write,
    Pause,
    Fork,
    Snapshot,
    RollBack,
    Restore,
}

/// What a capsule's memory and file hold.
#[derive(Clone)]
struct Model {
    memory: Vec<u8>,
    file: Vec<u8>,
}

impl Model {
    fn new() -> Self {
        Self { memory: vec![0; MEMORY_BYTES], file: vec![0; FILE_BYTES] }
    }

    fn hashes(&self) -> String {
        let hash =
            |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{} {}", hash(&self.memory), hash(&self.file))
    }
}

const SET_UP: &str = "
import hashlib, os, array
block = bytearray(MEMORY)
os.makedirs('/tmp/model', exist_ok=True)
file = open('/tmp/model/file', 'w+b', buffering=0)
file.write(bytes(FILE))
def pattern(seed, length): return array.array('Q', range(seed, seed + length // 8)).tobytes()
def hashes():
    file.seek(0)
    return hashlib.sha256(block).hexdigest() + ' ' + hashlib.sha256(file.read()).hexdigest()
";

/// xorshift64*: a sequence that its seed repeats (Vigna, 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// A range of whole pages.
    fn range(&mut self, bytes: usize) -> (usize, usize) {
        let length = (1 + self.below(bytes / STEP / 4)) * STEP;
        (self.below((bytes - length) / STEP + 1) * STEP, length)
    }
}

fn seed() -> u64 {
    let given = std::env::var("HEARTH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    given.unwrap_or_else(now).max(1)
}

struct Sequence {
    agent: TestAgent,
    random: Random,
    capsules: Vec<(CapsuleId, Model)>,
    /// With the capsule that each was taken from.
    snapshots: Vec<(SnapshotId, CapsuleId, Model)>,
    /// Whether memory is swapped out before each operation.
    swap: bool,
    swapped_kb: u64,
}

impl Sequence {
    async fn new(agent: TestAgent, seed: u64, swap: bool) -> anyhow::Result<Self> {
        let mut sequence = Self {
            agent,
            random: Random(seed),
            capsules: Vec::new(),
            snapshots: Vec::new(),
            swap,
            swapped_kb: 0,
        };
        let id = sequence.agent.restore_from("code", HashMap::new()).await?;
        let set_up =
            SET_UP.replace("MEMORY", &MEMORY_BYTES.to_string()).replace("FILE", &FILE_BYTES.to_string());
        sequence.agent.python(id, &set_up).await?;
        sequence.capsules.push((id, Model::new()));
        Ok(sequence)
    }

    /// The operations in a random order, writes first and snapshots before what needs one.
    fn plan(&mut self) -> Vec<Operation> {
        let mut plan: Vec<Operation> =
            OPERATIONS.iter().flat_map(|(operation, times)| vec![*operation; *times]).collect();
        for at in (1..plan.len()).rev() {
            plan.swap(at, self.random.below(at + 1));
        }
        [vec![Operation::Write, Operation::Snapshot, Operation::Write], plan].concat()
    }

    async fn step(&mut self, operation: Operation) -> anyhow::Result<()> {
        let at = self.random.below(self.capsules.len());
        let id = self.capsules[at].0;
        match operation {
            Operation::Write => self.write(at).await?,
            Operation::Pause => {
                self.agent.pause(id).await?;
                self.agent.resume(id).await?;
            }
            Operation::Fork => {
                let (copies, _) = self.agent.fork(id, 1).await?;
                let model = self.capsules[at].1.clone();
                self.add(copies[0], model).await?;
            }
            Operation::Snapshot => {
                let (name, _) = self.agent.snapshot(id).await?;
                self.snapshots.push((name, id, self.capsules[at].1.clone()));
            }
            Operation::RollBack => {
                let own = self.snapshots.iter().rev().find(|(_, of, _)| *of == id).cloned();
                // A capsule without a snapshot of its own is written to instead.
                let Some((name, _, model)) = own else { return self.write(at).await };
                self.agent.rollback(id, name).await?;
                self.capsules[at].1 = model;
            }
            Operation::Restore => {
                let which = self.random.below(self.snapshots.len());
                let (name, _, model) = self.snapshots[which].clone();
                let id = self.agent.restore_from(&name.to_string(), HashMap::new()).await?;
                self.add(id, model).await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, at: usize) -> anyhow::Result<()> {
        let (id, model) = &mut self.capsules[at];
        let mut code = String::new();
        for _ in 0..1 + self.random.below(4) {
            let (from, length) = self.random.range(MEMORY_BYTES);
            let to = from + length;
            let seed = self.random.next() >> 16;
            let fill = |bytes: &mut [u8]| match seed % 3 {
                0 => bytes.fill(0),
                _ => bytes
                    .chunks_exact_mut(8)
                    .zip(seed..)
                    .for_each(|(word, number)| word.copy_from_slice(&number.to_le_bytes())),
            };
            let what = match seed % 3 {
                0 => format!("bytes({length})"),
                _ => format!("pattern({seed}, {length})"),
            };
            fill(&mut model.memory[from..to]);
            code += &format!("block[{from}:{to}] = {what}\n");
            if to <= FILE_BYTES {
                fill(&mut model.file[from..to]);
                code += &format!("_ = file.seek({from}), file.write({what})\n");
            }
        }
        self.agent.python(*id, &code).await.map(drop)
    }

    /// Takes a new capsule in; the oldest makes room.
    async fn add(&mut self, id: CapsuleId, model: Model) -> anyhow::Result<()> {
        self.capsules.push((id, model));
        if CAPSULES < self.capsules.len() {
            let (oldest, _) = self.capsules.remove(0);
            self.agent.destroy(oldest).await?;
        }
        Ok(())
    }

    async fn check(&mut self) -> anyhow::Result<()> {
        for (id, model) in &self.capsules {
            let said = self.agent.python(*id, "print(hashes())").await?;
            anyhow::ensure!(
                said == model.hashes(),
                "{id}: the guest's memory and file are not what was written"
            );
        }
        Ok(())
    }

    fn page_out(&mut self, dir: &Path) -> anyhow::Result<()> {
        for pid in leftovers::vmms(dir) {
            self.swapped_kb += swap::page_out(pid)?;
        }
        Ok(())
    }

    async fn run(&mut self, dir: &Path, budget: Duration) -> anyhow::Result<usize> {
        let start = Instant::now();
        let mut steps = 0;
        for operation in self.plan() {
            if budget < start.elapsed() {
                break;
            }
            if self.swap {
                self.page_out(dir)?;
            }
            println!("step {steps}: {operation:?}");
            self.step(operation).await?;
            self.check().await?;
            steps += 1;
        }
        Ok(steps)
    }
}

async fn sequence(dir: &Path, swap: bool) {
    let seed = seed();
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let mut sequence = Sequence::new(agent, seed, swap).await.unwrap();
    let ran = sequence.run(dir, Duration::from_secs(240)).await;
    let steps = ran.unwrap_or_else(|error| panic!("HEARTH_TEST_SEED={seed}: {error:#}"));
    println!("seed {seed}: {steps} steps, {} KiB seen in swap", sequence.swapped_kb);
    assert!(steps >= 10, "HEARTH_TEST_SEED={seed}: only {steps} steps");
    assert!(!swap || sequence.swapped_kb > 10_000, "{} KiB were swapped out", sequence.swapped_kb);
    for (id, _) in sequence.capsules {
        sequence.agent.destroy(id).await.unwrap();
    }
    for (name, ..) in sequence.snapshots {
        sequence.agent.delete_snapshot(name).await.unwrap();
    }
    sequence.agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_sequence_loses_no_byte() {
    let dir = folder();
    sequence(dir.path(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_sequence_loses_no_byte_when_memory_is_swapped_out() {
    let dir = folder();
    let place = folder();
    let swap = match swap::Swap::on(&place.path().join("swap"), 1 << 30) {
        Ok(swap) => swap,
        Err(error) => {
            hearth_test_skip::lacks("swap", &format!("a swap file can be turned on ({error:#})"));
            return;
        }
    };
    sequence(dir.path(), true).await;
    drop(swap);
}
