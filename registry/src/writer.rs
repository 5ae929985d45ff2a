//! The one thread that changes the state: it takes all waiting commands, makes
//! them durable in one transaction, applies them, and only then answers. So
//! what anybody can read is durable, and reads never wait for the disk. Then
//! the audit log gets its records, the askers their answers, watching nodes and
//! event sinks what happened.

use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use pilot_host::events::Happening;
use pilot_wire::registry::Acknowledged;
use tokio::sync::{mpsc, oneshot};

use crate::audit::{Audit, Draft};
use crate::events::{Before, Events};
use crate::push::Hub;
use crate::service::{read, write};
use crate::state::{Command, Refusal, State};
use crate::store::CommandLog;

/// What a command led to.
pub(crate) type Outcome = Result<Acknowledged, Refusal>;

/// Jobs that may wait; a sender waits for room.
const QUEUE: usize = 1024;
/// Commands per transaction; the rest waits for the next.
const MAX_BATCH: usize = 8192;
/// Commands applied before readers get a turn.
const APPLY_CHUNK: usize = 256;

/// Who is told of what was applied, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Followers {
    /// Before the answers.
    pub audit: Audit,
    /// After them.
    pub hub: Hub,
    /// After them.
    pub events: Events,
}

struct Job {
    commands: Vec<Command>,
    reply: oneshot::Sender<Vec<Outcome>>,
}

/// Hands commands to the writer thread; when the last one is dropped, the
/// thread ends and closes the log.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        state: Arc<RwLock<State>>,
        log: Box<dyn CommandLog>,
        followers: Followers,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("registry-writer".to_owned())
            .spawn(move || run(&state, log, queue, &followers))?;
        Ok((Self { jobs }, thread))
    }

    /// Makes commands durable and applies them in order; one outcome each.
    pub(crate) async fn submit(&self, commands: Vec<Command>) -> Vec<Outcome> {
        let count = commands.len();
        let (reply, outcomes) = oneshot::channel();
        let lost = || vec![Err(Refusal::Storage); count];
        match self.jobs.send(Job { commands, reply }).await {
            Ok(()) => outcomes.await.unwrap_or_else(|_| lost()),
            Err(_) => lost(),
        }
    }
}

fn run(
    state: &RwLock<State>,
    mut log: Box<dyn CommandLog>,
    mut queue: mpsc::Receiver<Job>,
    followers: &Followers,
) {
    let Followers { audit, hub, events } = followers;
    let mut commands = Vec::new();
    let mut waiting = Vec::new();
    let mut happened = Vec::new();
    let mut records = Vec::new();
    while let Some(job) = queue.blocking_recv() {
        let mut next = Some(job);
        while let Some(mut job) = next {
            waiting.push((job.commands.len(), job.reply));
            commands.append(&mut job.commands);
            next = if commands.len() < MAX_BATCH { queue.try_recv().ok() } else { None };
        }
        let first = read(state).applied() + 1;
        let stored = if audit.is_healthy() {
            log.append(first, &commands).map_err(|e| e.to_string())
        } else {
            Err("the audit log cannot be written".to_owned())
        };
        let mut outcomes = match stored {
            Ok(()) => {
                let wanted = events.wanted();
                let each = |state: &mut State, command: &Command| {
                    let before = wanted.then(|| Before::look(state, command));
                    let draft = Draft::look(state, command);
                    let outcome = state.apply(command);
                    if let Some(before) = before {
                        before.tell(state, command, &outcome, &mut happened);
                    }
                    if let Some(draft) = draft {
                        draft.finish(state, &outcome, &mut records);
                    }
                    outcome
                };
                apply(state, &commands, each)
            }
            Err(e) => {
                tracing::error!("{} requests refused: {e}", commands.len());
                vec![Err(Refusal::Storage); commands.len()]
            }
        }
        .into_iter();
        audit.append(read(state).applied(), std::mem::take(&mut records));
        for (count, reply) in waiting.drain(..) {
            // A connection that is gone needs no answer.
            let _ = reply.send(outcomes.by_ref().take(count).collect());
        }
        hub.follow(state);
        happened.drain(..).for_each(|happening: Happening| events.emit(|| happening));
        commands.clear();
        snapshot_if_due(state, log.as_mut(), audit);
    }
}

fn apply(
    state: &RwLock<State>,
    commands: &[Command],
    mut each: impl FnMut(&mut State, &Command) -> Outcome,
) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(commands.len());
    for chunk in commands.chunks(APPLY_CHUNK) {
        let mut state = write(state);
        outcomes.extend(chunk.iter().map(|command| each(&mut state, command)));
    }
    outcomes
}

fn snapshot_if_due(state: &RwLock<State>, log: &mut dyn CommandLog, audit: &Audit) {
    let snapshot = {
        let state = read(state);
        if !log.wants_snapshot(state.len()) {
            return;
        }
        state.snapshot()
    };
    // What the log forgets can no longer be audited by replaying it.
    if let Err(e) = audit.flush() {
        tracing::error!("snapshot not written, the log keeps growing: {e}");
        return;
    }
    if let Err(e) = log.replace(&snapshot) {
        tracing::error!("snapshot not written, the log keeps growing: {e}");
    }
}
