//! Reading a log to verify or export it, beside the registry that writes it.
//!
//! An export is a file of lines, each one JSON object with one key: first
//! `export`, which says what is in it, then each `cut`, each `head`, each
//! `record`. Every line is written in one way only, so that a change of any byte
//! can be seen.

use std::io::{self, BufRead, Write};
use std::path::Path;

use pilot_wire::registry::PublicKey;
use pilot_wire::registry::audit::AuditRecord;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::chain::{Cut, SignedHead};
use super::verify::{Report, Signed, Verification};
use super::{AuditError, file};

/// The layout of exports.
const VERSION: u32 = 1;
/// Longest line of an export, in bytes; a longer one is a problem.
const MAX_LINE: usize = 1 << 20;

/// What an export contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Layout.
    pub version: u32,
    /// Key of the registry that wrote it. Whoever verifies has to know the key
    /// from elsewhere.
    pub key: PublicKey,
    /// Number of the first record.
    pub first: u64,
    /// How many records.
    pub records: u64,
    /// How many heads.
    pub heads: u64,
    /// How many cuts.
    pub cuts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Export(Contents),
    Cut(Cut),
    Head(SignedHead),
    Record(Box<AuditRecord>),
}

/// Why a log is not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] AuditError),
    /// A record cannot be read.
    #[error("{0}; look at it with \"pilot-registry audit verify\"")]
    Record(String),
    /// The export cannot be written.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// The signed heads of a log, the oldest first.
///
/// # Errors
/// When the file cannot be read.
pub fn heads(path: &Path) -> Result<Vec<SignedHead>, AuditError> {
    let db = open(path)?;
    file::heads(&db).map_err(|e| unreadable(path, &e))
}

/// What a log lacks that had a record of this number and hash once.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn missed(path: &Path, noted: &(u64, String)) -> Result<Option<String>, AuditError> {
    let db = open(path)?;
    Ok(match file::compare(&db, noted).map_err(|e| unreadable(path, &e))? {
        file::Compared::Same => None,
        file::Compared::Differs(problem) => Some(problem),
        file::Compared::Empty => {
            Some(format!("there are no records; the state file names record {}", noted.0))
        }
    })
}

/// Verifies a log, as it is at one moment. See [`super::verify::verify`].
///
/// # Errors
/// When the file cannot be read at all; damage that can be read around is in
/// the report.
pub fn verify_database(
    path: &Path,
    key: &PublicKey,
    known: Option<&(u64, String)>,
) -> Result<Report, AuditError> {
    let mut db = open(path)?;
    let unreadable = |e: rusqlite::Error| unreadable(path, &e);
    let tx = db.transaction().map_err(unreadable)?;
    let mut problems = match file::damage(&tx) {
        Ok(problems) => problems,
        Err(e) => vec![format!("the file is damaged: {e}")],
    };
    let mut signed = Signed::default();
    match file::heads(&tx) {
        Ok(heads) => signed.heads = heads,
        Err(e) => problems.push(format!("heads cannot be read: {e}")),
    }
    match file::cuts(&tx) {
        Ok(cuts) => signed.cuts = cuts,
        Err(e) => problems.push(format!("cuts cannot be read: {e}")),
    }
    let mut walk = Verification::begin(key, &signed, known);
    let walked = file::each_record(&tx, i64::MIN, |record| {
        walk.record(record);
        Ok::<_, std::convert::Infallible>(())
    });
    if let Err(e) = walked {
        problems.push(format!("records cannot be read: {e}"));
    }
    let mut report = walk.end();
    problems.into_iter().for_each(|problem| report.problem(problem));
    Ok(report)
}

/// Writes a log as it is at one moment; gives what it contains.
///
/// # Errors
/// When it cannot be read or written.
pub fn export(path: &Path, key: &PublicKey, out: &mut impl Write) -> Result<Contents, ExportError> {
    let mut db = open(path)?;
    let unreadable = |e: rusqlite::Error| ExportError::Log(unreadable(path, &e));
    let tx = db.transaction().map_err(unreadable)?;
    let (heads, cuts) =
        (file::heads(&tx).map_err(unreadable)?, file::cuts(&tx).map_err(unreadable)?);
    let (first, records) = file::count(&tx).map_err(unreadable)?;
    let contents = Contents {
        version: VERSION,
        key: *key,
        first: first.unwrap_or(0),
        records,
        heads: heads.len() as u64,
        cuts: cuts.len() as u64,
    };
    let mut line = |line: Line| {
        serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
        out.write_all(b"\n")
    };
    line(Line::Export(contents.clone()))?;
    cuts.into_iter().try_for_each(|cut| line(Line::Cut(cut)))?;
    heads.into_iter().try_for_each(|head| line(Line::Head(head)))?;
    file::each_record(&tx, i64::MIN, |record| {
        let record = record.map_err(ExportError::Record)?;
        line(Line::Record(Box::new(record))).map_err(ExportError::Write)
    })
    .map_err(unreadable)??;
    out.flush()?;
    Ok(contents)
}

/// Verifies an export. See [`super::verify::verify`].
///
/// # Errors
/// When it cannot be read.
pub fn verify_export(
    mut input: impl BufRead,
    key: &PublicKey,
    known: Option<&(u64, String)>,
) -> io::Result<Report> {
    let mut number = 0;
    let mut problems = Vec::new();
    let mut next = || -> io::Result<Option<(usize, Result<Line, String>)>> {
        number += 1;
        Ok(line(&mut input)?.map(|line| (number, line)))
    };
    let mut contents = None;
    let mut signed = Signed::default();
    let mut pending = next()?;
    while let Some((number, read)) = pending.take() {
        match read {
            Ok(Line::Export(found)) if number == 1 => contents = Some(found),
            Ok(Line::Cut(cut)) => {
                let before = signed.cuts.last().is_some_and(|last| last.first > cut.first);
                if before || !signed.heads.is_empty() {
                    problems.push(format!("line {number}: it is out of place"));
                }
                signed.cuts.push(cut);
            }
            Ok(Line::Head(head)) => {
                if signed.heads.last().is_some_and(|last| last.seq > head.seq) {
                    problems.push(format!("line {number}: it is out of place"));
                }
                signed.heads.push(head);
            }
            other @ Ok(Line::Record(_)) => {
                pending = Some((number, other));
                break;
            }
            Ok(Line::Export(_)) => problems.push(format!("line {number}: it is out of place")),
            Err(problem) => problems.push(format!("line {number}: {problem}")),
        }
        pending = next()?;
    }
    let mut walk = Verification::begin(key, &signed, known);
    let mut first = 0;
    while let Some((number, read)) = pending.take() {
        match read {
            Ok(Line::Record(record)) => {
                first = if first == 0 { record.seq } else { first };
                walk.record(Ok(*record));
            }
            Ok(_) => problems.push(format!("line {number}: it is out of place")),
            Err(problem) => walk.record(Err(format!("line {number}: {problem}"))),
        }
        pending = next()?;
    }
    let mut report = walk.end();
    let found = Contents {
        version: VERSION,
        key: *key,
        first,
        records: report.records,
        heads: signed.heads.len() as u64,
        cuts: signed.cuts.len() as u64,
    };
    match contents {
        Some(contents) if contents == found => {}
        Some(contents) => {
            problems.push(format!("the first line says {contents:?}, but it is {found:?}"));
        }
        None => problems.push("line 1: it does not say what is in the export".to_owned()),
    }
    problems.into_iter().for_each(|problem| report.problem(problem));
    Ok(report)
}

/// The next line, or what is wrong with it; none at the end.
fn line(input: &mut impl BufRead) -> io::Result<Option<Result<Line, String>>> {
    let mut bytes = Vec::new();
    let mut limited = io::Read::take(&mut *input, MAX_LINE as u64);
    if limited.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    let Some(text) = bytes.strip_suffix(b"\n") else {
        return Ok(Some(Err("it does not end as a line does, or is too long".to_owned())));
    };
    let parsed: Line = match serde_json::from_slice(text) {
        Ok(parsed) => parsed,
        Err(e) => return Ok(Some(Err(format!("it cannot be read: {e}")))),
    };
    if serde_json::to_vec(&parsed).map_err(io::Error::from)? != text {
        return Ok(Some(Err("it is not written as it was exported".to_owned())));
    }
    Ok(Some(Ok(parsed)))
}

fn open(path: &Path) -> Result<Connection, AuditError> {
    let db = file::open_to_read(path).map_err(|e| unreadable(path, &e))?;
    file::check(&db)
        .map_err(|problem| AuditError::Unreadable { path: path.to_owned(), problem })?;
    Ok(db)
}

fn unreadable(path: &Path, e: &rusqlite::Error) -> AuditError {
    AuditError::Unreadable { path: path.to_owned(), problem: e.to_string() }
}

/// Calls `each` with every record of a log from command `from` on.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn records_from_command(path: &Path, from: u64) -> Result<Vec<AuditRecord>, AuditError> {
    let db = open(path)?;
    let mut records = Vec::new();
    let walked = file::each_record(&db, i64::MIN, |record| {
        records.extend(record.ok().filter(|record| record.command >= from));
        Ok::<_, std::convert::Infallible>(())
    });
    walked.map_err(|e| unreadable(path, &e))?.unwrap_or_else(|never| match never {});
    Ok(records)
}
