//! The thread that writes: it takes waiting records, gives them their places in
//! the chain, and keeps them with a signed head in one transaction. What cannot
//! be written is tried again, as it is, until it can. Then sinks and who looks
//! on are told. Between batches it removes what is too old or too much.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use pilot_wire::registry::audit::AuditRecord;
use rusqlite::Connection;
use tokio::sync::broadcast;

use super::chain::{BEGINNING, Cut, Hash, SignedHead, hash};
use super::key::RegistryKey;
use super::{AuditError, Retention, draft, file, told};
use crate::events::Events;

/// Records that may wait to be written. Beyond it who brings more waits too, as
/// long as writing works; else one batch more is taken, as what comes with it is
/// durable already, and no further request is admitted.
pub(super) const MAX_WAITING: usize = 32_768;
/// Records per transaction, or those of one command.
const MAX_BATCH: usize = 8192;
/// Time after a failed write before the next try, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A head stays for ever after so many records or seconds.
const ANCHOR: (u64, u64) = (10_000, 3600);
/// Time between looks for records to be removed, and records after which it is
/// looked for earlier.
const RETAIN: (Duration, u64) = (Duration::from_secs(60), 1000);
/// Records removed in one transaction.
const MAX_REMOVED: u64 = 10_000;
/// Of a full log so many percent are kept, so that not every batch removes some.
const KEPT_PERCENT: u64 = 90;
/// A log of no more records is never too large.
const MIN_RECORDS: u64 = 100;
/// Events between two looks at whether sinks' journal is on disk.
const TOLD_CHUNK: usize = 1000;

/// What both sides see.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    /// For writing.
    pub(super) db: Arc<Mutex<Connection>>,
    pub(super) key: RegistryKey,
    pub(super) retention: Mutex<Retention>,
    pub(super) queue: Mutex<Queue>,
    /// There is something to do.
    pub(super) work: Condvar,
    /// There is room again, or no use in waiting.
    pub(super) room: Condvar,
    pub(super) healthy: AtomicBool,
    pub(super) head: Mutex<Option<SignedHead>>,
    pub(super) live: broadcast::Sender<Arc<AuditRecord>>,
}

/// What waits.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) batches: VecDeque<Vec<AuditRecord>>,
    /// Records in them and in the one being written.
    pub(super) records: usize,
    /// The records of all commands up to this one have been brought.
    pub(super) applied: u64,
    pub(super) asked: Vec<Ask>,
    pub(super) stop: bool,
}

/// What else the thread is asked to do, after what was brought before.
pub(super) enum Ask {
    /// Say when all is durable.
    Flush(SyncSender<Result<(), AuditError>>),
    /// Tell these from now on, and what they were not told yet.
    Follow(Events),
    /// Let the file grow to so many pages more.
    #[cfg(test)]
    Grow(u32),
    /// Fail.
    #[cfg(test)]
    Panic,
    /// Look now for what is to be removed, at this time.
    #[cfg(test)]
    Retain(u64),
}

impl Shared {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }
}

/// A panic elsewhere leaves whole values behind, so poisoning is ignored.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With the thread. When that fails, nothing more is admitted, and nobody waits
/// for it.
pub(super) struct Alive(pub(super) Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Self(shared) = self;
        shared.healthy.store(false, Ordering::Release);
        let mut queue = shared.queue();
        queue.stop = true;
        // Who waits for an answer hears that there is none.
        queue.asked.clear();
        drop(queue);
        shared.room.notify_all();
        tracing::error!(
            "audit log {}: the thread that writes it failed; what changes the state is refused; \
             start the registry again and report this",
            shared.path.display()
        );
    }
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    seq: u64,
    hash: Hash,
    /// Command of the last record.
    command: u64,
    /// Number and time of the last anchor.
    anchor: (u64, u64),
    events: Option<Events>,
    /// Events up to this record are as safe as events are.
    told: u64,
    /// When it was last looked for records to be removed, and where.
    retained: (Instant, u64),
}

impl Keeper {
    /// Begins where the file ends.
    pub(super) fn new(shared: Arc<Shared>, end: Option<file::End>) -> rusqlite::Result<Self> {
        let (anchor, told) = {
            let db = lock(&shared.db);
            (file::last_anchor(&db)?.unwrap_or_default(), file::meta(&db, "told")?.unwrap_or(0))
        };
        let (seq, hash, command) = end.map_or((0, BEGINNING, 0), |e| (e.seq, e.hash, e.command));
        let retained = (Instant::now(), seq);
        Ok(Self { shared, seq, hash, command, anchor, events: None, told, retained })
    }

    /// Works until it is stopped, and everything is written or cannot be.
    pub(super) fn run(mut self) {
        loop {
            let (records, asked, stop) = self.next();
            let count = records.len();
            if count > 0 && !self.write(records) {
                // Stopped: the commands are durable, and give these records again.
                self.refuse_asked(asked);
                return;
            }
            self.done(count);
            asked.into_iter().for_each(|ask| self.answer(ask));
            self.retain_if_due();
            if stop {
                return;
            }
        }
    }

    /// Waits for work; what was asked comes when no records wait before it.
    fn next(&self) -> (Vec<AuditRecord>, Vec<Ask>, bool) {
        let idle = |q: &mut Queue| q.batches.is_empty() && q.asked.is_empty() && !q.stop;
        let queue = self.shared.queue();
        let waited = self.shared.work.wait_timeout_while(queue, RETAIN.0, idle);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        let mut records = Vec::new();
        while records.len() < MAX_BATCH
            && let Some(batch) = queue.batches.pop_front()
        {
            records.extend(batch);
        }
        if !queue.batches.is_empty() {
            return (records, Vec::new(), false);
        }
        (records, std::mem::take(&mut queue.asked), queue.stop)
    }

    /// Writes, however often it takes; false when it was stopped before.
    fn write(&mut self, mut records: Vec<AuditRecord>) -> bool {
        let mut pause = RETRY.0;
        loop {
            match self.try_write(&mut records) {
                Ok(()) => break,
                Err(e) => self.failed(&e),
            }
            let mut queue = self.shared.queue();
            for ask in std::mem::take(&mut queue.asked) {
                match ask {
                    Ask::Flush(reply) => drop(reply.send(Err(self.unwritable()))),
                    #[cfg(test)]
                    Ask::Grow(pages) => grow(&lock(&self.shared.db), pages),
                    later => queue.asked.push(later),
                }
            }
            if queue.stop {
                return false;
            }
            drop(self.shared.work.wait_timeout(queue, pause));
            pause = (pause * 2).min(RETRY.1);
        }
        if !self.shared.healthy.swap(true, Ordering::AcqRel) {
            tracing::info!("audit log {}: is written again", self.shared.path.display());
        }
        for record in records {
            self.tell_lookers(record);
        }
        self.tell_sinks();
        true
    }

    fn failed(&self, e: &rusqlite::Error) {
        if self.shared.healthy.swap(false, Ordering::AcqRel) {
            tracing::error!(
                "audit log {}: cannot be written: {e}; what changes the state is refused until \
                 it can",
                self.shared.path.display()
            );
        }
        self.shared.room.notify_all();
    }

    fn unwritable(&self) -> AuditError {
        AuditError::Unwritable(self.shared.path.clone())
    }

    fn try_write(&mut self, records: &mut [AuditRecord]) -> rusqlite::Result<()> {
        let now = unix_now();
        let mut db = lock(&self.shared.db);
        let tx = db.transaction()?;
        let (mut seq, mut last) = (self.seq, self.hash);
        for record in records.iter_mut() {
            seq += 1;
            link(record, seq, &mut last);
            file::insert(&tx, record)?;
        }
        let (head, anchor) = self.sign(&tx, seq, &last, now)?;
        file::set_meta(&tx, "told", self.told)?;
        tx.commit()?;
        drop(db);
        self.command = records.last().map_or(self.command, |record| record.command);
        self.advance(seq, last, head, anchor);
        Ok(())
    }

    fn sign(
        &self,
        db: &Connection,
        seq: u64,
        hash: &Hash,
        now: u64,
    ) -> rusqlite::Result<(SignedHead, bool)> {
        let head = SignedHead::sign(&self.shared.key.signing, seq, hash, now);
        let anchor = seq >= self.anchor.0 + ANCHOR.0 || now >= self.anchor.1 + ANCHOR.1;
        file::put_head(db, &head, anchor)?;
        Ok((head, anchor))
    }

    /// After the transaction.
    fn advance(&mut self, seq: u64, hash: Hash, head: SignedHead, anchor: bool) {
        (self.seq, self.hash) = (seq, hash);
        if anchor {
            self.anchor = (seq, head.time);
        }
        *lock(&self.shared.head) = Some(head);
    }

    fn tell_lookers(&self, record: AuditRecord) {
        if self.shared.live.receiver_count() > 0 {
            // Nobody is left when it fails.
            let _ = self.shared.live.send(Arc::new(record));
        }
    }

    /// Tells sinks what they were not told, from the file. Where sinks lag, so
    /// does the log, and then who brings records.
    fn tell_sinks(&mut self) {
        let Some(events) = &self.events else { return };
        if !events.wanted() {
            self.told = self.seq;
            return;
        }
        while self.told < self.seq {
            let mut chunk = Vec::with_capacity(TOLD_CHUNK);
            let from = i64::try_from(self.told + 1).unwrap_or(i64::MAX);
            let read = file::each_record(&lock(&self.shared.db), from, |record| {
                chunk.push(record);
                if chunk.len() < TOLD_CHUNK { Ok(()) } else { Err(()) }
            });
            let last = chunk.iter().rev().find_map(|r| r.as_ref().ok()).map(|r| r.seq);
            let (Ok(_), Some(last)) = (read, last) else {
                tracing::error!(
                    "audit log {}: records after {} cannot be read for event sinks",
                    self.shared.path.display(),
                    self.told
                );
                return;
            };
            for record in chunk.into_iter().flatten() {
                events.emit(|| told::happening(&record));
            }
            if let Err(e) = events.flush() {
                tracing::warn!("audit records may come again to event sinks: {e}");
                // Not noted, so that they are told again after a restart.
                return;
            }
            self.told = last;
        }
    }

    /// So many records are written.
    fn done(&self, count: usize) {
        if count > 0 {
            self.shared.queue().records -= count;
            self.shared.room.notify_all();
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Flush(reply) => {
                let flushed = self.flush().map_err(|e| {
                    tracing::error!("audit log {}: {e}", self.shared.path.display());
                    self.unwritable()
                });
                // Who asked may be gone.
                let _ = reply.send(flushed);
            }
            Ask::Follow(events) => {
                self.events = Some(events);
                self.tell_sinks();
            }
            #[cfg(test)]
            Ask::Grow(pages) => grow(&lock(&self.shared.db), pages),
            #[cfg(test)]
            Ask::Panic => panic!("asked to"),
            #[cfg(test)]
            Ask::Retain(now) => self.retain(now).expect("removal"),
        }
    }

    fn refuse_asked(&self, asked: Vec<Ask>) {
        for ask in asked {
            if let Ask::Flush(reply) = ask {
                let _ = reply.send(Err(self.unwritable()));
            }
        }
    }

    /// One transaction that is synced, and so everything before it.
    fn flush(&self) -> rusqlite::Result<()> {
        let applied = self.shared.queue().applied;
        synchronised(&mut lock(&self.shared.db), |tx| {
            file::set_meta(tx, "complete", applied)?;
            file::set_meta(tx, "told", self.told)
        })
    }

    fn retain_if_due(&mut self) {
        let limited = *lock(&self.shared.retention) != Retention::default();
        let due = self.retained.0.elapsed() >= RETAIN.0 || self.seq >= self.retained.1 + RETAIN.1;
        if !limited || !due {
            return;
        }
        if let Err(e) = self.retain(unix_now()) {
            let path = self.shared.path.display();
            tracing::warn!("audit log {path}: old records are not removed, tried again later: {e}");
        }
        self.retained = (Instant::now(), self.seq);
    }

    /// Removes the oldest records that are too old or too many; never those
    /// that sinks were not told, nor the newest one.
    fn retain(&mut self, now: u64) -> rusqlite::Result<()> {
        let Retention { age, bytes } = *lock(&self.shared.retention);
        loop {
            let mut db = lock(&self.shared.db);
            let (Some(first), used) = file::extent(&db)? else { return Ok(()) };
            let told = if self.events.is_some() { self.told } else { self.seq };
            let most = self.seq.min(told + 1).min(first + MAX_REMOVED);
            let mut keep_from = first;
            if let Some(age) = age {
                let oldest = now.saturating_sub(age.as_secs());
                keep_from = file::first_since(&db, oldest, most)?;
            }
            let count = self.seq + 1 - first;
            let too_large = |limit: &u64| used > *limit && count > MIN_RECORDS;
            if let Some(limit) = bytes.filter(too_large) {
                let each = (used / count).max(1);
                let excess = used - limit / 100 * KEPT_PERCENT;
                keep_from = keep_from.max(first + excess.div_ceil(each)).min(most);
            }
            if keep_from <= first {
                return Ok(());
            }
            let removed = keep_from - first;
            let mut record = AuditRecord {
                time: now,
                command: self.command,
                actor: draft::registry(),
                operation: "audit_retention".to_owned(),
                object: format!("audit records {first} to {}", keep_from - 1),
                detail: "removed by age or size".to_owned(),
                count: 1,
                ..AuditRecord::default()
            };
            let (seq, mut hash) = (self.seq + 1, self.hash);
            link(&mut record, seq, &mut hash);
            // No command gives this record again: its number must never be given
            // to another one after it was told.
            let (head, anchor) = synchronised(&mut db, |tx| {
                let previous = file::hash_of(tx, keep_from - 1)?;
                let key = &self.shared.key.signing;
                file::remove_before(tx, &Cut::sign(key, keep_from, &previous, removed, now))?;
                file::insert(tx, &record)?;
                self.sign(tx, seq, &hash, now)
            })?;
            db.execute_batch("PRAGMA incremental_vacuum")?;
            drop(db);
            tracing::info!(removed, "old audit records removed");
            self.advance(seq, hash, head, anchor);
            self.tell_lookers(record);
            self.tell_sinks();
        }
    }
}

/// A transaction that is on disk when it is done, with all before it.
fn synchronised<T>(
    db: &mut Connection,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    db.pragma_update(None, "synchronous", "FULL")?;
    let written = (|| {
        let tx = db.transaction()?;
        let done = change(&tx)?;
        tx.commit()?;
        Ok(done)
    })();
    db.pragma_update(None, "synchronous", "NORMAL")?;
    written
}

/// Gives a record its place after the one whose hash is `last`.
fn link(record: &mut AuditRecord, seq: u64, last: &mut Hash) {
    record.seq = seq;
    record.previous = hex::encode(*last);
    *last = hash(last, record);
    record.hash = hex::encode(*last);
}

pub(super) fn unix_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs())
}

#[cfg(test)]
fn grow(db: &Connection, pages: u32) {
    let now: u32 = db.pragma_query_value(None, "page_count", |r| r.get(0)).expect("pragma");
    let sql = format!("PRAGMA max_page_count={}", now.saturating_add(pages));
    db.query_row(&sql, [], |r| r.get::<_, i64>(0)).expect("pragma");
}
