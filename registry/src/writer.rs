//! The one thread that changes the state: it takes all waiting commands, makes
//! them durable in one transaction, applies them, and only then answers. So
//! what anybody can read is durable, and reads never wait for the disk. Then
//! the audit log gets its records, the askers their answers, watching nodes and
//! event sinks what happened.
//!
//! When the log takes no more commands, or applying one panics, the thread
//! ends, and the registry with it ([`Thread::ended`]): what it could still
//! answer would be of a state that nobody can vouch for.

use std::any::Any;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pilot_host::events::Happening;
use pilot_wire::registry::Acknowledged;
use tokio::sync::{mpsc, oneshot};

use crate::audit::{Audit, Draft};
use crate::events::{Before, Events};
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::service::{Admitted, read, write};
use crate::state::{Command, Refusal, RowKey, State};
use crate::store::{CommandLog, StoreError};

/// What a command led to.
pub(crate) type Outcome = Result<Acknowledged, Refusal>;

/// Jobs that may wait; a sender waits for room.
const QUEUE: usize = 1024;
/// Commands per transaction; the rest waits for the next.
const MAX_BATCH: usize = 8192;
/// Commands applied before readers get a turn.
const APPLY_CHUNK: usize = 256;
/// The same complaint is made at most so often.
const COMPLAINT: Duration = Duration::from_secs(1);

/// Who is told of what was applied, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Followers {
    /// Before the answers.
    pub audit: Audit,
    /// After them.
    pub hub: Hub,
    /// After them.
    pub events: Events,
    /// As it happens.
    pub metrics: Arc<Metrics>,
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
    ) -> std::io::Result<(Self, Thread)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (alive, ended) = oneshot::channel::<()>();
        let thread =
            std::thread::Builder::new().name("registry-writer".to_owned()).spawn(move || {
                // Dropped whichever way the thread ends.
                let _alive = alive;
                run(&state, log, queue, &followers)
            })?;
        Ok((Self { jobs }, Thread { thread, ended }))
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

    /// Brings what was admitted to its answer.
    pub(crate) async fn settle(&self, admitted: Admitted) -> Outcome {
        let (command, then) = match admitted {
            Admitted::Reply(reply) => return Ok(reply),
            Admitted::Write(command) => (command, None),
            Admitted::WriteThen(command, then) => (command, Some(then)),
        };
        let outcome = self.submit(vec![command]).await.pop().unwrap_or(Err(Refusal::Storage));
        outcome.map(|led_to| match then {
            Some(then) => then.answer(led_to),
            None => led_to,
        })
    }
}

/// Why the writer ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The log takes no more commands.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// It panicked.
    #[error(
        "the thread that changes the state failed: {0}; what was acknowledged is on disk, start the registry again and report this"
    )]
    Panicked(String),
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Thread {
    thread: JoinHandle<Result<(), StoreError>>,
    ended: oneshot::Receiver<()>,
}

impl Thread {
    /// Completes when the thread has ended; by itself, as long as there is a
    /// [`Writer`].
    pub(crate) async fn ended(&mut self) {
        // It never sends; its end is what is waited for.
        let _ = (&mut self.ended).await;
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it did not end because nobody had anything more to write.
    pub(crate) fn join(self) -> Result<(), WriterError> {
        match self.thread.join() {
            Ok(ended) => Ok(ended?),
            Err(panic) => Err(WriterError::Panicked(panic_text(&*panic))),
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_owned())
}

fn run(
    state: &RwLock<State>,
    mut log: Box<dyn CommandLog>,
    mut queue: mpsc::Receiver<Job>,
    followers: &Followers,
) -> Result<(), StoreError> {
    let Followers { audit, hub, events, metrics } = followers;
    let mut commands = Vec::new();
    let mut waiting = Vec::new();
    let mut happened = Vec::new();
    let mut records = Vec::new();
    let mut owed = Vec::new();
    let mut complaints = Complaints::default();
    let mut end = None;
    while let Some(job) = queue.blocking_recv() {
        let mut next = Some(job);
        while let Some(mut job) = next {
            waiting.push((job.commands.len(), job.reply));
            commands.append(&mut job.commands);
            next = if commands.len() < MAX_BATCH { queue.try_recv().ok() } else { None };
        }
        let first = read(state).applied() + 1;
        let began = Instant::now();
        let stored = if audit.is_healthy() {
            log.append(first, &commands)
        } else {
            Err(StoreError::Unaudited)
        };
        metrics.store.committed(
            commands.len(),
            began.elapsed(),
            stored.as_ref().err().map(|e| e as _),
        );
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
                complaints.refused(commands.len(), &e);
                end = Some(e).filter(StoreError::ends_the_log);
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
        if let Some(e) = end {
            return Err(e);
        }
        if log.wants_checkpoint() {
            checkpoint(state, log.as_mut(), audit, metrics, &mut owed)?;
        }
    }
    // So that the next start, with this version or a later one, replays nothing.
    // What cannot be written now is replayed.
    checkpoint(state, log.as_mut(), audit, metrics, &mut owed)
}

/// A disk that is full refuses thousands of batches a second.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: usize,
}

impl Complaints {
    fn refused(&mut self, count: usize, e: &StoreError) {
        self.unsaid += count;
        if e.ends_the_log() || self.last.is_none_or(|last| last.elapsed() >= COMPLAINT) {
            tracing::error!("{} requests refused: {e}", std::mem::take(&mut self.unsaid));
            self.last = Some(Instant::now());
        }
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

/// `owed` are rows that an earlier checkpoint could not write.
fn checkpoint(
    state: &RwLock<State>,
    log: &mut dyn CommandLog,
    audit: &Audit,
    metrics: &Metrics,
    owed: &mut Vec<RowKey>,
) -> Result<(), StoreError> {
    let began = Instant::now();
    // What the log forgets can no longer be audited by replaying it.
    if let Err(e) = audit.flush() {
        tracing::error!("checkpoint not written, the log keeps growing: {e}");
        return Ok(());
    }
    owed.extend(write(state).take_dirty_keys());
    owed.sort_unstable();
    owed.dedup();
    let (applied, rows) = {
        // Readers read along; nobody but this thread could change anything.
        let state = read(state);
        (state.applied(), owed.iter().map(|key| state.row(key)).collect::<Vec<_>>())
    };
    let written = log.checkpoint(applied, &rows).and_then(|()| {
        // After the flush nothing but synchronised records came to the log.
        log.note_audited(audit.head().map(|head| (head.seq, head.hash)))
    });
    metrics.store.checkpointed(began.elapsed(), written.as_ref().err().map(|e| e as _));
    match written {
        Ok(()) => owed.clear(),
        Err(e) if e.ends_the_log() => return Err(e),
        Err(e) => tracing::error!("checkpoint not written, the log keeps growing: {e}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
