//! The small durable stores of plugins: one SQLite file for all of them, one
//! table, a quota each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::instance::{KeyValue, StoreError};

/// Bytes that the keys and values of one plugin may take; beyond it a write is
/// refused.
pub const STORE_QUOTA: u64 = 16 << 20;
/// Bytes of one value; a longer one is refused.
pub const STORE_MAX_VALUE: usize = 1 << 20;
/// Bytes of a key; a longer one is refused.
pub const STORE_MAX_KEY: usize = 256;
/// What a record counts beside its key and value, so that the number of records
/// is bounded too.
const RECORD: u64 = 64;

/// The stores of all plugins.
#[derive(Clone)]
pub struct Stores {
    shared: Arc<Mutex<Shared>>,
    moved: Option<PathBuf>,
}

struct Shared {
    database: Connection,
    /// Bytes taken, by plugin; read from the file at its first write.
    taken: HashMap<String, u64>,
}

impl Stores {
    /// Opens the file, or makes it. One that is damaged is moved aside, see
    /// [`Stores::moved_aside`].
    ///
    /// # Errors
    /// A text that names the file and says why it cannot be used.
    pub fn open(path: &Path) -> Result<Self, String> {
        let problem = |error: &dyn std::fmt::Display| {
            format!("the store of plugins {} cannot be used: {error}", path.display())
        };
        let mut moved = None;
        let database = match prepare(path) {
            Ok(database) => database,
            Err(error) if is_damage(&error) => {
                let aside = move_aside(path).map_err(|error| problem(&error))?;
                tracing::error!(
                    file = %path.display(),
                    "the store of plugins is damaged ({error}); it was moved to {}, and plugins \
                     begin with an empty one",
                    aside.display()
                );
                moved = Some(aside);
                prepare(path).map_err(|error| problem(&error))?
            }
            Err(error) => return Err(problem(&error)),
        };
        let shared = Shared { database, taken: HashMap::new() };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), moved })
    }

    /// Where the damaged file is that was found when this one was opened.
    pub fn moved_aside(&self) -> Option<&Path> {
        self.moved.as_deref()
    }

    /// The store of one plugin.
    pub fn of(&self, plugin: &str) -> Arc<dyn KeyValue> {
        Arc::new(Store { plugin: plugin.to_owned(), shared: Arc::clone(&self.shared) })
    }
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(Duration::from_secs(5))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    let check: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(check)));
    }
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS store (
             plugin TEXT NOT NULL,
             key TEXT NOT NULL,
             value BLOB NOT NULL,
             PRIMARY KEY (plugin, key)
         ) WITHOUT ROWID;",
    )?;
    Ok(database)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Renames the file and what SQLite keeps beside it.
fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
    let named = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = named(&format!(".damaged-{now}"));
    std::fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let beside = named(suffix);
        if beside.exists() {
            std::fs::rename(beside, named(&format!(".damaged-{now}{suffix}")))?;
        }
    }
    Ok(aside)
}

struct Store {
    plugin: String,
    shared: Arc<Mutex<Shared>>,
}

impl Store {
    /// The file; after a panic of another user SQLite has rolled back.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn disk(error: rusqlite::Error) -> StoreError {
    StoreError::Disk(error.to_string())
}

fn check(key: &str) -> Result<(), StoreError> {
    match key.len() {
        1..=STORE_MAX_KEY => Ok(()),
        length => Err(StoreError::Key(length)),
    }
}

fn size(key: &str, value: usize) -> u64 {
    (key.len() as u64).saturating_add(value as u64).saturating_add(RECORD)
}

impl Shared {
    fn taken(&mut self, plugin: &str) -> rusqlite::Result<u64> {
        if let Some(taken) = self.taken.get(plugin) {
            return Ok(*taken);
        }
        let mut query = self.database.prepare_cached(
            "SELECT coalesce(sum(length(CAST(key AS BLOB)) + length(value) + ?2), 0) \
             FROM store WHERE plugin = ?1",
        )?;
        let taken: i64 = query.query_row(params![plugin, RECORD as i64], |row| row.get(0))?;
        let taken = u64::try_from(taken).unwrap_or(0);
        drop(query);
        self.taken.insert(plugin.to_owned(), taken);
        Ok(taken)
    }

    /// Bytes that the record of `key` takes now.
    fn record(&self, plugin: &str, key: &str) -> rusqlite::Result<u64> {
        let mut query = self
            .database
            .prepare_cached("SELECT length(value) FROM store WHERE plugin = ?1 AND key = ?2")?;
        let length: Option<i64> =
            query.query_row(params![plugin, key], |row| row.get(0)).optional()?;
        Ok(length.map_or(0, |length| size(key, usize::try_from(length).unwrap_or(0))))
    }
}

impl KeyValue for Store {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check(key)?;
        let shared = self.lock();
        let mut query = shared
            .database
            .prepare_cached("SELECT value FROM store WHERE plugin = ?1 AND key = ?2")
            .map_err(disk)?;
        query.query_row(params![self.plugin, key], |row| row.get(0)).optional().map_err(disk)
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key)?;
        let over = |wanted: u64, quota: u64| {
            Err(StoreError::Quota { plugin: self.plugin.clone(), wanted, quota })
        };
        if value.len() > STORE_MAX_VALUE {
            return over(value.len() as u64, STORE_MAX_VALUE as u64);
        }
        let mut shared = self.lock();
        let taken = shared.taken(&self.plugin).map_err(disk)?;
        let before = shared.record(&self.plugin, key).map_err(disk)?;
        let after = taken.saturating_sub(before).saturating_add(size(key, value.len()));
        // What makes it smaller is always allowed.
        if after > STORE_QUOTA && after > taken {
            return over(after, STORE_QUOTA);
        }
        let mut query = shared
            .database
            .prepare_cached(
                "INSERT INTO store (plugin, key, value) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (plugin, key) DO UPDATE SET value = excluded.value",
            )
            .map_err(disk)?;
        query.execute(params![self.plugin, key, value]).map_err(disk)?;
        drop(query);
        shared.taken.insert(self.plugin.clone(), after);
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        check(key)?;
        let mut shared = self.lock();
        let taken = shared.taken(&self.plugin).map_err(disk)?;
        let before = shared.record(&self.plugin, key).map_err(disk)?;
        let mut query = shared
            .database
            .prepare_cached("DELETE FROM store WHERE plugin = ?1 AND key = ?2")
            .map_err(disk)?;
        query.execute(params![self.plugin, key]).map_err(disk)?;
        drop(query);
        shared.taken.insert(self.plugin.clone(), taken.saturating_sub(before));
        Ok(())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let shared = self.lock();
        let mut query = shared
            .database
            .prepare_cached(
                "SELECT key FROM store WHERE plugin = ?1 AND key >= ?2 \
                 AND substr(key, 1, length(?2)) = ?2 ORDER BY key",
            )
            .map_err(disk)?;
        let keys = query.query_map(params![self.plugin, prefix], |row| row.get(0)).map_err(disk)?;
        keys.collect::<rusqlite::Result<_>>().map_err(disk)
    }
}
