//! The audit log in one SQLite file: WAL, so that readers and the writer never
//! wait for each other. Records are columns of one table, from which the hash
//! of each can be made again; triggers refuse to change or remove them, but for
//! the removal of old ones, which is let through by a row in `removal`.
//!
//! Who looks for a public key is served by an index over its first character
//! only: an index over whole keys, which come in no order, would write a page of
//! the file for every record.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use pilot_wire::Address;
use pilot_wire::registry::Signature;
use pilot_wire::registry::audit::{AuditActor, AuditFilter, AuditRecord, AuditResult};
use rusqlite::types::{ToSql, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use super::chain::{Cut, Hash, SignedHead, parse_hash};

/// Its name in the folder of the store.
pub const AUDIT_FILE: &str = "audit.db";

/// "PAUD": marks the file as ours.
const APPLICATION_ID: i32 = 0x5041_5544;
const SCHEMA_VERSION: i32 = 1;
/// Longest wait for somebody else who writes; nobody should.
const BUSY: Duration = Duration::from_secs(5);
/// Cuts that are kept; of older ones their successors tell.
const MAX_CUTS: i64 = 100;

const SCHEMA: &[&str] = &[
    "CREATE TABLE records (
        seq INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        command INTEGER NOT NULL,
        kind TEXT NOT NULL,
        name TEXT CHECK (name <> ''),
        node INTEGER,
        address TEXT,
        public_key TEXT CHECK (public_key <> ''),
        owner TEXT CHECK (owner <> ''),
        external_identity TEXT CHECK (external_identity <> ''),
        source TEXT NOT NULL,
        operation TEXT NOT NULL,
        object TEXT NOT NULL,
        result TEXT NOT NULL,
        code TEXT NOT NULL,
        rule TEXT NOT NULL,
        detail TEXT NOT NULL,
        request_id TEXT NOT NULL,
        count INTEGER NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL
    ) STRICT",
    "CREATE INDEX by_time ON records (time)",
    "CREATE INDEX by_operation ON records (operation)",
    "CREATE INDEX by_object ON records (object)",
    "CREATE INDEX by_name ON records (name) WHERE name IS NOT NULL",
    "CREATE INDEX by_node ON records (node) WHERE node IS NOT NULL",
    "CREATE INDEX by_key ON records (substr(public_key, 1, 1)) WHERE public_key IS NOT NULL",
    "CREATE INDEX by_owner ON records (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX by_external ON records (external_identity)
        WHERE external_identity IS NOT NULL",
    "CREATE TABLE heads (
        seq INTEGER PRIMARY KEY,
        hash TEXT NOT NULL,
        time INTEGER NOT NULL,
        signature TEXT NOT NULL,
        anchor INTEGER NOT NULL
    ) STRICT",
    "CREATE TABLE cuts (
        first INTEGER PRIMARY KEY,
        previous TEXT NOT NULL,
        removed INTEGER NOT NULL,
        time INTEGER NOT NULL,
        signature TEXT NOT NULL
    ) STRICT",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE removal (allowed INTEGER PRIMARY KEY) STRICT",
    "CREATE TRIGGER records_are_not_changed BEFORE UPDATE ON records
        BEGIN SELECT RAISE(ABORT, 'audit records are not changed'); END",
    "CREATE TRIGGER records_are_not_removed BEFORE DELETE ON records
        WHEN NOT EXISTS (SELECT 1 FROM removal)
        BEGIN SELECT RAISE(ABORT, 'audit records are not removed'); END",
];

const COLUMNS: &str = "seq, time, command, kind, name, node, address, public_key, owner, \
     external_identity, source, operation, object, result, code, rule, detail, request_id, count, \
     previous, hash";

/// Makes the file, for its mode, and opens it for writing.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    // The first has an effect only before there is any table.
    db.execute_batch(
        "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    )?;
    prepare(db)
}

/// A log that is gone with the process.
pub(super) fn open_in_memory() -> rusqlite::Result<Connection> {
    prepare(Connection::open_in_memory()?)
}

/// Opens a file for reading beside whoever writes it.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    Ok(db)
}

fn prepare(mut db: Connection) -> rusqlite::Result<Connection> {
    let empty: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if empty == 0 {
        let tx = db.transaction()?;
        for statement in SCHEMA {
            tx.execute_batch(statement)?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.commit()?;
    }
    Ok(db)
}

/// Whether the file is one of ours; else why not.
pub(super) fn check(db: &Connection) -> Result<(), String> {
    let pragma = |name| db.pragma_query_value(None, name, |r| r.get::<_, i32>(0));
    match pragma("application_id").map_err(|e| e.to_string())? {
        APPLICATION_ID => {}
        _ => return Err("it is a database of another program".to_owned()),
    }
    match pragma("user_version").map_err(|e| e.to_string())? {
        SCHEMA_VERSION => Ok(()),
        version => Err(format!("its layout {version} is not known to this version")),
    }
}

/// How a log stands to a record that it had once.
pub(super) enum Compared {
    /// It has none at all.
    Empty,
    /// It has it, or has removed it in good order.
    Same,
    /// It never had it, or has it no longer.
    Differs(String),
}

pub(super) fn compare(db: &Connection, (seq, hash): &(u64, String)) -> rusqlite::Result<Compared> {
    let (Some(first), Some(end)) = (extent(db)?.0, end(db)?) else { return Ok(Compared::Empty) };
    if *seq < first {
        return Ok(Compared::Same);
    }
    if *seq > end.seq {
        return Ok(Compared::Differs(format!(
            "records {} to {seq} are missing at the end: the state file names record {seq}",
            end.seq + 1
        )));
    }
    let found: Option<Hash> =
        db.query_row("SELECT hash FROM records WHERE seq = ?1", [seq], |r| r.get(0)).optional()?;
    Ok(match found {
        Some(found) if hex::encode(found) == *hash => Compared::Same,
        Some(_) => {
            Compared::Differs(format!("record {seq}: it is not the one that the state file names"))
        }
        None => Compared::Differs(format!("record {seq}: it is missing, the state file names it")),
    })
}

/// What is wrong with the file itself: pages, indexes that hide records,
/// triggers that are gone.
pub(super) fn damage(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut lines = db.prepare("PRAGMA integrity_check(10)")?;
    for line in lines.query_map([], |r| r.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            found.push(format!("the file is damaged: {line}"));
        }
    }
    let mut statements = db.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
    let there: Vec<String> =
        statements.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    let name = |sql: &str| sql.split([' ', '\n']).take(3).collect::<Vec<_>>().join(" ");
    for wanted in SCHEMA.iter().filter(|wanted| !there.iter().any(|sql| sql == *wanted)) {
        found.push(format!("the layout was changed: {:?} is not as it was made", name(wanted)));
    }
    for sql in there.iter().filter(|sql| !SCHEMA.contains(&sql.as_str())) {
        found.push(format!("the layout was changed: {:?} does not belong there", name(sql)));
    }
    Ok(found)
}

/// Where the chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) seq: u64,
    pub(super) hash: Hash,
    /// Command of the last record.
    pub(super) command: u64,
}

pub(super) fn end(db: &Connection) -> rusqlite::Result<Option<End>> {
    let sql = "SELECT seq, hash, command FROM records ORDER BY seq DESC LIMIT 1";
    let end = |r: &Row<'_>| Ok(End { seq: r.get(0)?, hash: r.get(1)?, command: r.get(2)? });
    db.query_row(sql, [], end).optional()
}

pub(super) fn insert(db: &Connection, record: &AuditRecord) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO records ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, \
         ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
    );
    let some = |text| Some(text).filter(|text: &&String| !text.is_empty());
    let bytes = |hash: &str| parse_hash(hash).unwrap_or_default();
    let actor = &record.actor;
    db.prepare_cached(&sql)?.execute(params![
        record.seq,
        record.time,
        record.command,
        actor.kind,
        some(&actor.name),
        actor.node_id.map(|node| node.0),
        actor.address.map(|address| address.to_string()),
        some(&actor.public_key),
        some(&actor.owner),
        some(&actor.external_identity),
        record.source,
        record.operation,
        record.object,
        result_word(record.result),
        record.code,
        record.rule,
        record.detail,
        record.request_id,
        record.count,
        bytes(&record.previous),
        bytes(&record.hash),
    ])?;
    Ok(())
}

const fn result_word(result: AuditResult) -> &'static str {
    match result {
        AuditResult::Allowed => "allowed",
        AuditResult::Denied => "denied",
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<AuditRecord> {
    let text = |n: usize| row.get::<_, Option<String>>(n).map(Option::unwrap_or_default);
    let bytes = |n: usize| row.get::<_, Hash>(n).map(hex::encode);
    let wrong = |n: usize, what: String| {
        rusqlite::Error::FromSqlConversionFailure(n, rusqlite::types::Type::Text, what.into())
    };
    // Absent is NULL here, and another way to write it would be an edit unseen.
    let absent_or = |n: usize| match row.get::<_, Option<String>>(n)? {
        Some(empty) if empty.is_empty() => Err(wrong(n, "an empty text is none".to_owned())),
        text => Ok(text.unwrap_or_default()),
    };
    let address = row.get::<_, Option<String>>(6)?;
    let address: Option<Address> = match &address {
        Some(text) => Some(text.parse().map_err(|_| wrong(6, format!("{text:?} is no address")))?),
        None => None,
    };
    if address.map(|a| a.to_string()) != row.get(6)? {
        return Err(wrong(6, "the address is not written as it is".to_owned()));
    }
    let result = match text(13)?.as_str() {
        "allowed" => AuditResult::Allowed,
        "denied" => AuditResult::Denied,
        other => return Err(wrong(13, format!("{other:?} is no result"))),
    };
    Ok(AuditRecord {
        seq: row.get(0)?,
        time: row.get(1)?,
        command: row.get(2)?,
        actor: AuditActor {
            kind: text(3)?,
            name: absent_or(4)?,
            node_id: row.get::<_, Option<u32>>(5)?.map(Into::into),
            address,
            public_key: absent_or(7)?,
            owner: absent_or(8)?,
            external_identity: absent_or(9)?,
        },
        source: text(10)?,
        operation: text(11)?,
        object: text(12)?,
        result,
        code: text(14)?,
        rule: text(15)?,
        detail: text(16)?,
        request_id: text(17)?,
        count: row.get(18)?,
        previous: bytes(19)?,
        hash: bytes(20)?,
    })
}

/// Calls `each` with every record from number `from` on, in order. What stands
/// in the place of one that cannot be read says its number.
pub(super) fn each_record<E>(
    db: &Connection,
    from: i64,
    mut each: impl FnMut(Result<AuditRecord, String>) -> Result<(), E>,
) -> rusqlite::Result<Result<(), E>> {
    let sql = format!("SELECT {COLUMNS} FROM records WHERE seq >= ?1 ORDER BY seq");
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([from])?;
    while let Some(row) = rows.next()? {
        let read = record(row).map_err(|e| {
            let seq = match row.get_ref(0) {
                Ok(ValueRef::Integer(seq)) => seq.to_string(),
                _ => "without a number".to_owned(),
            };
            format!("record {seq} cannot be read: {e}")
        });
        if let Err(e) = each(read) {
            return Ok(Err(e));
        }
    }
    Ok(Ok(()))
}

/// The records that fit, in order; one more than `limit` says that there are
/// more.
pub(super) fn query(
    db: &Connection,
    filter: &AuditFilter,
    limit: u32,
) -> rusqlite::Result<Vec<AuditRecord>> {
    let AuditFilter { since, until, actor, operation, object, result, after, limit: _ } = filter;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut values: Vec<Box<dyn ToSql>> =
        vec![Box::new(number(after.unwrap_or(0))), Box::new(i64::from(limit) + 1)];
    let mut common = String::from("seq > ?1");
    let mut add = |condition: &str, value: Box<dyn ToSql>| {
        values.push(value);
        condition.replace('?', &format!("?{}", values.len()))
    };
    let mut also = |condition: String| common = format!("{common} AND {condition}");
    if let Some(since) = since {
        also(add("time >= ?", Box::new(number(*since))));
    }
    if let Some(until) = until {
        also(add("time < ?", Box::new(number(*until))));
    }
    if let Some(operation) = operation {
        also(add("operation = ?", Box::new(operation.clone())));
    }
    if let Some(object) = object {
        also(add("object = ?", Box::new(object.clone())));
    }
    if let Some(result) = result {
        also(add("result = ?", Box::new(result_word(*result))));
    }
    // One look-up for each thing that the text may be, each along its index.
    let mut ways = Vec::new();
    if let Some(actor) = actor {
        let node = actor.parse().ok().or_else(|| Some(actor.parse::<Address>().ok()?.node.0));
        ways.extend(node.map(|node: u32| add("node = ?", Box::new(node))));
        for condition in [
            "name = ?",
            "owner = ?",
            "external_identity = ?",
            "substr(public_key, 1, 1) = substr(?, 1, 1) AND public_key = ?",
        ] {
            ways.push(add(condition, Box::new(actor.clone())));
        }
    } else {
        ways.push("TRUE".to_owned());
    }
    let ways: Vec<_> = ways
        .iter()
        .map(|way| {
            format!(
                "SELECT seq FROM (SELECT seq FROM records WHERE {way} AND {common} ORDER BY seq \
                 LIMIT ?2)"
            )
        })
        .collect();
    let sql = format!(
        "SELECT {COLUMNS} FROM records WHERE seq IN ({}) ORDER BY seq LIMIT ?2",
        ways.join(" UNION ")
    );
    let values = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    db.prepare(&sql)?.query_map(values, record)?.collect()
}

pub(super) fn heads(db: &Connection) -> rusqlite::Result<Vec<SignedHead>> {
    let mut select = db.prepare("SELECT seq, hash, time, signature FROM heads ORDER BY seq")?;
    let heads = select.query_map([], |r| {
        let (seq, hash, time) = (r.get(0)?, r.get(1)?, r.get(2)?);
        Ok(SignedHead { seq, hash, time, signature: signature(r, 3)? })
    })?;
    heads.collect()
}

pub(super) fn cuts(db: &Connection) -> rusqlite::Result<Vec<Cut>> {
    let mut select =
        db.prepare("SELECT first, previous, removed, time, signature FROM cuts ORDER BY first")?;
    let cuts = select.query_map([], |r| {
        let (first, previous, removed, time) = (r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?);
        Ok(Cut { first, previous, removed, time, signature: signature(r, 4)? })
    })?;
    cuts.collect()
}

/// One that is no signature is one that verifies under no key.
fn signature(row: &Row<'_>, n: usize) -> rusqlite::Result<Signature> {
    let text: String = row.get(n)?;
    Ok(Signature::from_base64(&text).unwrap_or(Signature([0; 64])))
}

/// Number and time of the newest head that stays for ever.
pub(super) fn last_anchor(db: &Connection) -> rusqlite::Result<Option<(u64, u64)>> {
    let sql = "SELECT seq, time FROM heads WHERE anchor = 1 ORDER BY seq DESC LIMIT 1";
    db.query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?))).optional()
}

/// Keeps a head; the newest before it goes, unless it is an anchor.
pub(super) fn put_head(db: &Connection, head: &SignedHead, anchor: bool) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM heads WHERE anchor = 0")?.execute([])?;
    db.prepare_cached(
        "INSERT INTO heads (seq, hash, time, signature, anchor) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![head.seq, head.hash, head.time, head.signature.to_string(), anchor])?;
    Ok(())
}

/// Removes the records before `cut.first`, and what tells of them alone.
pub(super) fn remove_before(db: &Connection, cut: &Cut) -> rusqlite::Result<()> {
    db.execute("INSERT INTO removal (allowed) VALUES (1)", [])?;
    db.execute("DELETE FROM records WHERE seq < ?1", [cut.first])?;
    db.execute("DELETE FROM removal", [])?;
    db.execute("DELETE FROM heads WHERE seq < ?1", [cut.first - 1])?;
    db.execute(
        "INSERT INTO cuts (first, previous, removed, time, signature) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![cut.first, cut.previous, cut.removed, cut.time, cut.signature.to_string()],
    )?;
    db.execute(
        "DELETE FROM cuts WHERE first NOT IN (SELECT first FROM cuts ORDER BY first DESC LIMIT ?1)",
        [MAX_CUTS],
    )?;
    Ok(())
}

/// Number of the first record, and how many bytes are used.
pub(super) fn extent(db: &Connection) -> rusqlite::Result<(Option<u64>, u64)> {
    let first = db.query_row("SELECT min(seq) FROM records", [], |r| r.get(0))?;
    let pragma = |name| db.pragma_query_value(None, name, |r| r.get::<_, u64>(0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok((first, pages * pragma("page_size")?))
}

/// The first record that is not older than `time`, looking no further than
/// `before`.
pub(super) fn first_since(db: &Connection, time: u64, before: u64) -> rusqlite::Result<u64> {
    let sql = "SELECT seq FROM records WHERE time >= ?1 AND seq < ?2 ORDER BY seq LIMIT 1";
    let time = i64::try_from(time).unwrap_or(i64::MAX);
    Ok(db.query_row(sql, params![time, before], |r| r.get(0)).optional()?.unwrap_or(before))
}

pub(super) fn hash_of(db: &Connection, seq: u64) -> rusqlite::Result<Hash> {
    db.query_row("SELECT hash FROM records WHERE seq = ?1", [seq], |r| r.get(0))
}

pub(super) fn meta(db: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0)).optional()
}

pub(super) fn set_meta(db: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value])?;
    Ok(())
}

/// Number of the first record, and how many there are.
pub(super) fn count(db: &Connection) -> rusqlite::Result<(Option<u64>, u64)> {
    db.query_row("SELECT min(seq), count(*) FROM records", [], |r| Ok((r.get(0)?, r.get(1)?)))
}
