//! `pilot-registry audit`: verify, export, heads, key. Works on a log that a
//! running registry writes, and on an exported one.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use pilot_wire::registry::PublicKey;
use pilot_wire::registry::audit::AuditRecord;

use crate::audit::{self, AUDIT_FILE, Draft, KEY_FILE, export, verify::Report};
use crate::store::{Reader, RestoreError, StoreError};

const USAGE: &str = "\
Usage: pilot-registry audit COMMAND [FLAGS] [FILE]

Commands:
  verify   look for records that were removed, changed, reordered or inserted;
           status 1 when something is wrong
  export   write the log as lines of JSON, to be verified elsewhere
  heads    list the signed heads; note the last one in another place
  key      show the public key that heads are signed with

FILE is an audit log (audit.db) or, for verify, an export of one.

Flags:
  -store PATH      the registry's state file: the log beside it is meant; verify
                   also compares it with the commands there, unless the registry runs
  -key KEY         public key in base64 [that of registry.key beside the log]
  -head SEQ:HASH   verify: a head that was noted earlier
  -out PATH        export: where to; must not exist [standard output]
";

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    store: Option<PathBuf>,
    key: Option<PublicKey>,
    head: Option<(u64, String)>,
    out: Option<PathBuf>,
    file: Option<PathBuf>,
}

/// Runs what the words after `audit` ask for.
pub fn run(args: impl IntoIterator<Item = String>) -> ExitCode {
    let mut args = args.into_iter();
    let Some(command) = args.next().filter(|c| !is_help(c)) else {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    };
    let args: Vec<_> = args.collect();
    if args.iter().any(|arg| is_help(arg)) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match parse(args).and_then(|asked| dispatch(&command, &asked)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("pilot-registry audit: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_help(arg: &str) -> bool {
    matches!(arg, "-h" | "-help" | "--help" | "help")
}

fn parse(args: Vec<String>) -> anyhow::Result<Asked> {
    let mut asked = Asked::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            if asked.file.replace(PathBuf::from(&arg)).is_some() {
                bail!("{arg:?}: there is a file already");
            }
            continue;
        };
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        let mut value =
            || value.clone().or_else(|| args.next()).with_context(|| format!("-{flag}: no value"));
        match flag.as_str() {
            "store" => asked.store = Some(value()?.into()),
            "out" => asked.out = Some(value()?.into()),
            "key" => {
                let text = value()?;
                let key = PublicKey::from_base64(&text);
                asked.key = Some(key.with_context(|| {
                    format!("-key {text}: not 32 bytes of padded base64; see \"audit key\"")
                })?);
            }
            "head" => {
                let text = value()?;
                let head = text.split_once(':').and_then(|(seq, hash)| {
                    audit::chain::parse_hash(hash)?;
                    Some((seq.parse().ok()?, hash.to_owned()))
                });
                asked.head = Some(head.with_context(|| {
                    format!("-head {text}: expected SEQ:HASH, as \"audit heads\" lists them")
                })?);
            }
            _ => bail!("-{flag}: there is no such flag; see \"pilot-registry audit -help\""),
        }
    }
    Ok(asked)
}

fn dispatch(command: &str, asked: &Asked) -> anyhow::Result<ExitCode> {
    match command {
        "verify" => verify(asked),
        "export" => {
            let (path, key) = (asked.path()?, asked.key()?);
            let contents = match &asked.out {
                Some(out) => {
                    let file = File::create_new(out);
                    let file = file.with_context(|| format!("-out {}", out.display()))?;
                    let mut file = BufWriter::new(file);
                    let contents = export::export(&path, &key, &mut file)?;
                    file.into_inner()?.sync_all()?;
                    contents
                }
                None => export::export(&path, &key, &mut BufWriter::new(io::stdout().lock()))?,
            };
            eprintln!("{} records, {} heads", contents.records, contents.heads);
            Ok(ExitCode::SUCCESS)
        }
        "heads" => {
            let mut out = io::stdout().lock();
            for head in export::heads(&asked.path()?)? {
                writeln!(out, "{}:{} {}", head.seq, head.hash, head.time)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        "key" => {
            println!("{}", asked.key()?);
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("{other:?}: expected verify, export, heads or key"),
    }
}

impl Asked {
    /// The log that is meant.
    fn path(&self) -> anyhow::Result<PathBuf> {
        match (&self.file, &self.store) {
            (Some(file), _) => Ok(file.clone()),
            (None, Some(store)) => Ok(audit::folder(store).join(AUDIT_FILE)),
            (None, None) => bail!("name an audit log, or with -store the registry's state file"),
        }
    }

    fn key(&self) -> anyhow::Result<PublicKey> {
        if let Some(key) = self.key {
            return Ok(key);
        }
        let beside = self.store.clone().map_or_else(|| self.path(), Ok)?;
        let key = audit::public_key(&audit::folder(&beside));
        key.with_context(|| format!("say with -key which key signed, or put {KEY_FILE} there"))
    }
}

fn verify(asked: &Asked) -> anyhow::Result<ExitCode> {
    let (path, key, known) = (asked.path()?, asked.key()?, asked.head.as_ref());
    let report = if is_database(&path)? {
        let mut report = export::verify_database(&path, &key, known)?;
        if let Some(store) = &asked.store {
            compare(&path, store, &mut report)?;
        }
        report
    } else {
        if asked.store.is_some() && asked.file.is_none() {
            bail!("{}: it is not an audit log", path.display());
        }
        export::verify_export(BufReader::new(File::open(&path)?), &key, known)?
    };
    for problem in &report.problems {
        println!("{}: {problem}", path.display());
    }
    if report.more > 0 {
        println!("{}: and {} problems more", path.display(), report.more);
    }
    let Report { records, last: (seq, hash), .. } = &report;
    if !report.is_sound() {
        println!("{}: NOT SOUND", path.display());
        return Ok(ExitCode::FAILURE);
    }
    if *records == 0 {
        println!("{}: sound, no records", path.display());
    } else {
        let first = report.first;
        println!("{}: sound, {records} records, {first} to {seq}", path.display());
        println!("head {seq}:{hash}");
    }
    Ok(ExitCode::SUCCESS)
}

fn is_database(path: &Path) -> anyhow::Result<bool> {
    let mut start = [0; 16];
    let named = || path.display().to_string();
    let read = io::Read::read(&mut File::open(path).with_context(named)?, &mut start);
    Ok(start[..read.with_context(named)?].starts_with(b"SQLite format 3"))
}

/// Looks for the record that the state file names as the last one at its time.
fn named(path: &Path, reader: &Reader, report: &mut Report) -> anyhow::Result<()> {
    if let Some(noted) = reader.audited()?
        && let Some(problem) = export::missed(path, &noted)?
    {
        report.problem(problem);
    }
    Ok(())
}

/// Compares a log with the commands that the state file still holds: from these
/// the records must come out as they are in the log.
fn compare(path: &Path, store: &Path, report: &mut Report) -> anyhow::Result<()> {
    if !store.exists() {
        bail!("-store {}: there is no such file", store.display());
    }
    let reader = match Reader::exclusive(store) {
        Err(StoreError::InUse(_)) => {
            // Noted before, and so in the log now.
            named(path, &Reader::open(store)?, report)?;
            eprintln!("{}: in use, its commands are not compared", store.display());
            return Ok(());
        }
        opened => opened?,
    };
    named(path, &reader, report)?;
    let mut expected: Vec<AuditRecord> = Vec::new();
    let mut first = None;
    let state = reader.replay(|state, command| {
        first.get_or_insert(state.applied() + 1);
        let draft = Draft::look(state, command);
        let outcome = state.apply(command);
        if let Some(draft) = draft {
            draft.finish(state, &outcome, &mut expected);
        }
        outcome
    });
    match state {
        Ok(_) => {}
        Err(RestoreError::Store(e)) => return Err(e.into()),
        Err(e) => return Err(anyhow::Error::from(e).context(store.display().to_string())),
    }
    let Some(first) = first else { return Ok(()) };
    let mut found = export::records_from_command(path, first)?;
    // What the log tells of itself comes from no command, and what stands before
    // a state that came from a backup tells of other commands.
    if let Some(restored) = found.iter().rposition(|r| r.operation == "audit_state_restored") {
        let from = found[restored].command;
        found.drain(..=restored);
        expected.retain(|record| record.command > from);
    }
    found.retain(|record| !record.operation.starts_with("audit_"));
    // Old ones may have been removed in good order.
    let kept_from = found.first().map_or(0, |record| record.command);
    if report.first > 1 {
        expected.retain(|record| record.command >= kept_from);
    }
    let mut found = found.into_iter();
    for expected in expected {
        let Some(is) = found.next() else {
            report.problem(format!(
                "the records from command {} on are missing at the end: they were cut off, or the \
                 registry was killed and has not been started since",
                expected.command
            ));
            return Ok(());
        };
        let seq = is.seq;
        let unplaced = AuditRecord { seq: 0, previous: String::new(), hash: String::new(), ..is };
        if unplaced != expected {
            report.problem(format!(
                "record {seq}: the state file holds another command {}",
                expected.command
            ));
            return Ok(());
        }
    }
    if let Some(more) = found.next() {
        let (seq, command) = (more.seq, more.command);
        report.problem(format!("record {seq}: the state file has no command {command}"));
    }
    Ok(())
}
