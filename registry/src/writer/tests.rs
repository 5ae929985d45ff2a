//! The writer thread over a log that fails in every way a log may: thousands
//! of seeded runs, each checked against what was answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::state::{Op, Register, Row};
use crate::store::{RestoreError, Restoring, restore};

const SEEDS: u64 = 3000;
const CRASHES: usize = 3;

/// What outlives a crash: rows of the checkpoint, and batches after it.
#[derive(Clone, Debug, Default)]
struct Disk {
    rows: BTreeMap<(u8, Vec<u8>), Row>,
    applied: u64,
    batches: Vec<(u64, Vec<Command>)>,
    owner: u64,
    /// All there ever were, to compare with.
    history: Vec<Command>,
}

/// What happens to the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Refused, and nothing is there.
    Full,
    /// An error, and nothing is there.
    LostBefore,
    /// An error, and all of it is there.
    LostAfter,
    Panic,
    /// Somebody else opens the log.
    Fenced,
}

/// A log over such a disk, with a plan of faults.
struct FaultyLog {
    disk: Arc<Mutex<Disk>>,
    faults: StdRng,
    owner: u64,
    last: u64,
    logged: u64,
    ended: bool,
}

impl FaultyLog {
    fn new(disk: &Arc<Mutex<Disk>>, seed: u64) -> Self {
        let mut held = disk.lock().unwrap_or_else(PoisonError::into_inner);
        held.owner += 1;
        Self {
            disk: Arc::clone(disk),
            faults: StdRng::seed_from_u64(seed),
            owner: held.owner,
            last: 0,
            logged: 0,
            ended: false,
        }
    }

    fn lost(&mut self) -> StoreError {
        self.ended = true;
        StoreError::Lost { path: "simulated".into(), source: "fault".into() }
    }

    /// One write, with what may happen to it.
    fn write(&mut self, change: impl FnOnce(&mut Disk)) -> Result<(), StoreError> {
        if self.ended {
            return Err(self.lost());
        }
        let fault = match self.faults.random_range(0..40) {
            0..4 => Fault::Full,
            4 => Fault::LostBefore,
            5 => Fault::LostAfter,
            6 => Fault::Panic,
            7 => Fault::Fenced,
            _ => Fault::None,
        };
        let disk = Arc::clone(&self.disk);
        let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
        if fault == Fault::Fenced {
            disk.owner += 1;
        }
        if disk.owner != self.owner {
            self.ended = true;
            return Err(StoreError::Fenced("simulated".into()));
        }
        match fault {
            Fault::Full => {
                Err(StoreError::Write { path: "simulated".into(), source: "full".into() })
            }
            Fault::LostBefore => Err(self.lost()),
            Fault::LostAfter => {
                change(&mut disk);
                Err(self.lost())
            }
            Fault::Panic => panic!("simulated"),
            Fault::None | Fault::Fenced => {
                change(&mut disk);
                Ok(())
            }
        }
    }
}

impl CommandLog for FaultyLog {
    fn restore(&mut self, into: &mut dyn Restoring) -> Result<(), RestoreError> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.last = disk.applied;
        for row in disk.rows.into_values() {
            into.row(row)?;
        }
        into.checkpoint(disk.applied)?;
        for (first, commands) in disk.batches {
            into.batch(first, &commands)?;
            self.last += commands.len() as u64;
        }
        Ok(())
    }

    fn append(&mut self, first: u64, commands: &[Command]) -> Result<(), StoreError> {
        assert_eq!(first, self.last + 1, "the writer skips or repeats a number");
        self.write(|disk| {
            disk.batches.push((first, commands.to_vec()));
            disk.history.extend_from_slice(commands);
        })?;
        self.last += commands.len() as u64;
        self.logged += commands.len() as u64;
        Ok(())
    }

    fn wants_checkpoint(&self) -> bool {
        self.logged > 12
    }

    fn checkpoint(&mut self, applied: u64, rows: &[Row]) -> Result<(), StoreError> {
        assert_eq!(applied, self.last);
        self.write(|disk| {
            for row in rows {
                let place = (row.table as u8, row.key.clone());
                match row.value {
                    Some(_) => drop(disk.rows.insert(place, row.clone())),
                    None => drop(disk.rows.remove(&place)),
                }
            }
            disk.applied = applied;
            disk.batches.clear();
        })?;
        self.logged = 0;
        Ok(())
    }
}

/// A registration of key `n`, with a name that only it asks for.
fn register(n: u32, time: u64) -> Command {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    Command::own(
        time,
        Op::Register(Register {
            key: PublicKey(key),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 1)),
            owner: String::new(),
            hostname: format!("n{n}"),
            proven: false,
            takeover: false,
        }),
    )
}

/// What was answered: each name acknowledged, with its number; names refused
/// by a log that went on, so that they are not there.
#[derive(Default)]
struct Told {
    acknowledged: BTreeMap<String, NodeId>,
    refused: Vec<String>,
}

impl Told {
    fn check(&self, state: &State, seed: u64) {
        for (name, id) in &self.acknowledged {
            let held = state.named(name).map(|node| node.record.id);
            assert_eq!(held, Ok(*id), "seed {seed}: {name} was acknowledged");
        }
        for name in &self.refused {
            assert!(state.named(name).is_err(), "seed {seed}: {name} was refused");
        }
    }
}

fn rows(state: &State) -> Vec<Row> {
    let mut rows: Vec<_> = state.all_rows().collect();
    rows.sort();
    rows
}

#[test]
fn what_was_acknowledged_outlives_every_fault() {
    // The panics that are meant say nothing of use.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>().is_none_or(|text| *text != "simulated") {
            hook(info);
        }
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut ends = [0u32; 4];
    for seed in 0..SEEDS {
        let disk = Arc::new(Mutex::new(Disk::default()));
        let mut told = Told::default();
        let mut random = StdRng::seed_from_u64(seed);
        let mut next = 0;
        for crash in 0..CRASHES {
            let mut log = FaultyLog::new(&disk, seed ^ ((crash as u64) << 40));
            let Ok(state) = restore_or_retry(&mut log) else { continue };
            told.check(&state, seed);
            let state = Arc::new(RwLock::new(state));
            let (writer, thread) =
                Writer::start(Arc::clone(&state), Box::new(log), Followers::default()).unwrap();
            let refused = runtime.block_on(drive(&writer, &mut random, &mut next, &mut told));
            drop(writer);
            let ended = thread.join();
            ends[match &ended {
                Ok(()) => 0,
                Err(WriterError::Panicked(_)) => 1,
                Err(WriterError::Log(StoreError::Fenced(_))) => 2,
                Err(WriterError::Log(_)) => 3,
            }] += 1;
            if ended.is_ok() {
                // Nothing is unknown: memory and disk say the same.
                told.refused.extend(refused);
                let mut again = FaultyLog::new(&disk, u64::MAX);
                let mut restored = Replay::default();
                again.restore(&mut restored).unwrap();
                told.check(&read(&state), seed);
                assert_eq!(restored.applied, read(&state).applied(), "seed {seed}");
            }
        }
        let mut log = FaultyLog::new(&disk, 1 << 50);
        if let Ok(state) = restore_or_retry(&mut log) {
            told.check(&state, seed);
            let mut replayed = State::default();
            replayed.new_epoch(state.epoch().to_owned());
            for command in &disk.lock().unwrap_or_else(PoisonError::into_inner).history {
                let _ = replayed.apply(command);
            }
            assert_eq!(rows(&state), rows(&replayed), "seed {seed}");
        }
    }
    assert!(ends.iter().all(|n| *n > 20), "every end was met: {ends:?}");
}

/// The name of a new state may meet a fault as well.
fn restore_or_retry(log: &mut FaultyLog) -> Result<State, ()> {
    let audit: Audit = Default::default();
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restore(log, &audit))) {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(RestoreError::Store(_))) | Err(_) => Err(()),
        Ok(Err(other)) => panic!("what a crash left is no state: {other}"),
    }
}

/// Counts what a log gives.
#[derive(Default)]
struct Replay {
    applied: u64,
}

impl Restoring for Replay {
    fn row(&mut self, _row: Row) -> Result<(), RestoreError> {
        Ok(())
    }

    fn checkpoint(&mut self, applied: u64) -> Result<(), RestoreError> {
        self.applied = applied;
        Ok(())
    }

    fn batch(&mut self, first: u64, commands: &[Command]) -> Result<(), RestoreError> {
        assert_eq!(first, self.applied + 1);
        self.applied += commands.len() as u64;
        Ok(())
    }
}

/// Several jobs at once, until the writer ends or enough was written; returns
/// the names that were refused.
async fn drive(
    writer: &Writer,
    random: &mut StdRng,
    next: &mut u32,
    told: &mut Told,
) -> Vec<String> {
    let mut refused = Vec::new();
    for _ in 0..random.random_range(2..12) {
        let mut jobs = tokio::task::JoinSet::new();
        for _ in 0..random.random_range(1..4) {
            let names: Vec<_> = (*next..*next + random.random_range(1..4)).collect();
            *next += names.len() as u32;
            let writer = writer.clone();
            jobs.spawn(async move {
                let commands = names.iter().map(|n| register(*n, 5)).collect();
                (writer.submit(commands).await, names)
            });
        }
        while let Some(job) = jobs.join_next().await {
            let (outcomes, names) = job.unwrap();
            for (n, outcome) in names.iter().zip(outcomes) {
                match outcome {
                    Ok(Acknowledged::Registered(reply)) => {
                        told.acknowledged.insert(format!("n{n}"), reply.node_id);
                    }
                    Err(Refusal::Storage) => refused.push(format!("n{n}")),
                    other => panic!("{other:?}"),
                }
            }
        }
        if writer.jobs.is_closed() {
            break;
        }
    }
    refused
}
