//! Looks for whatever was done to a log: records that were removed, changed,
//! reordered, inserted or doubled, and signatures that are not the registry's.
//! Pure: where records, heads and cuts come from is not known here.

use std::collections::BTreeMap;

use pilot_wire::registry::PublicKey;
use pilot_wire::registry::audit::AuditRecord;

use super::chain::{BEGINNING, Cut, Hash, SignedHead, hash, parse_hash};

/// Problems that are told one by one; of more, only the number.
const MAX_PROBLEMS: usize = 100;

/// What a verification is made against.
#[derive(Clone, Debug, Default)]
pub struct Signed {
    /// Heads, in any order.
    pub heads: Vec<SignedHead>,
    /// Cuts, in any order.
    pub cuts: Vec<Cut>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub records: u64,
    /// Number of the first one that should be there.
    pub first: u64,
    /// Number and hash of the last one; 0 and empty for none.
    pub last: (u64, String),
    /// When the newest head was signed, Unix seconds.
    pub signed: Option<u64>,
    /// What is wrong, and where; empty when all is sound.
    pub problems: Vec<String>,
    /// How many problems more there are.
    pub more: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds a problem.
    pub fn problem(&mut self, text: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text.into());
        } else {
            self.more += 1;
        }
    }
}

/// Goes through `records` in the order in which they are kept. An error in
/// their place says why one cannot be read. `known` is a number and hash that
/// somebody noted elsewhere.
pub fn verify(
    key: &PublicKey,
    signed: &Signed,
    known: Option<&(u64, String)>,
    records: impl IntoIterator<Item = Result<AuditRecord, String>>,
) -> Report {
    let mut walk = Verification::begin(key, signed, known);
    records.into_iter().for_each(|record| walk.record(record));
    walk.end()
}

/// [`verify`], one record after the other.
#[derive(Debug)]
pub struct Verification {
    report: Report,
    /// Highest number so far.
    last: u64,
    /// Hash of the record before, as it says itself.
    previous: Hash,
    /// What must have which hash, and who says so.
    claims: BTreeMap<u64, Vec<(Hash, &'static str)>>,
    /// The newest head with a good signature.
    newest: Option<u64>,
}

const HEAD: &str = "a signed head";
const KNOWN: &str = "the head that was given";

impl Verification {
    /// As for [`verify`].
    pub fn begin(key: &PublicKey, signed: &Signed, known: Option<&(u64, String)>) -> Self {
        let mut report = Report { first: 1, ..Report::default() };
        let mut previous = BEGINNING;
        let mut cuts: Vec<_> = signed.cuts.iter().collect();
        cuts.sort_by_key(|cut| cut.first);
        for (n, cut) in cuts.iter().enumerate() {
            let place = format!("cut before record {}", cut.first);
            let Some(hash) = parse_hash(&cut.previous).filter(|_| cut.is_by(key)) else {
                report.problem(format!("{place}: its signature is not by the registry's key"));
                continue;
            };
            let before = n.checked_sub(1).and_then(|n| cuts.get(n));
            if before.is_some_and(|b| b.first.saturating_add(cut.removed) != cut.first) {
                report.problem(format!("{place}: it does not follow the cut before it"));
            }
            (report.first, previous) = (cut.first, hash);
        }
        let mut claims: BTreeMap<u64, Vec<(Hash, &'static str)>> = BTreeMap::new();
        let mut newest = None;
        for head in &signed.heads {
            let Some(hash) = parse_hash(&head.hash).filter(|_| head.is_by(key)) else {
                let seq = head.seq;
                report.problem(format!(
                    "head {seq}: its signature is not by the registry's key {key}"
                ));
                continue;
            };
            claims.entry(head.seq).or_default().push((hash, HEAD));
            if newest.is_none_or(|seq| seq <= head.seq) {
                newest = Some(head.seq);
                report.signed = Some(head.time);
            }
        }
        if let Some((seq, text)) = known {
            match parse_hash(text) {
                _ if *seq + 1 < report.first => report.problem(format!(
                    "record {seq}: it was removed in good order and cannot be compared with \
                     {KNOWN}"
                )),
                Some(hash) => claims.entry(*seq).or_default().push((hash, KNOWN)),
                None => report.problem(format!("{KNOWN}: {text:?} is no hash, 64 hex digits")),
            }
        }
        let mut walk = Self { last: report.first - 1, report, previous, claims, newest };
        walk.compare(walk.last, &previous);
        walk.claims = walk.claims.split_off(&walk.report.first);
        walk
    }

    /// The next record, or why it cannot be read.
    pub fn record(&mut self, record: Result<AuditRecord, String>) {
        self.report.records += 1;
        match record {
            Ok(record) => self.look(&record),
            Err(problem) => {
                let last = self.last;
                self.report.problem(format!("after record {last}: {problem}"));
            }
        }
    }

    fn look(&mut self, record: &AuditRecord) {
        let seq = record.seq;
        let expected = self.last + 1;
        if seq > expected {
            let missing = match seq - 1 {
                end if end == expected => format!("record {expected} is missing"),
                end => format!("records {expected} to {end} are missing"),
            };
            self.report.problem(missing);
        } else if seq < expected {
            let problem = if seq < self.report.first {
                "it stands before the first one that is kept"
            } else {
                "it stands twice, or in the wrong place"
            };
            self.report.problem(format!("record {seq}: {problem}"));
        }
        let previous = parse_hash(&record.previous);
        if previous != Some(self.previous) {
            self.report
                .problem(format!("record {seq}: it does not follow the record that stands before"));
        }
        let stated = parse_hash(&record.hash);
        let right = previous.map(|previous| hash(&previous, record));
        if stated.is_none() || stated != right {
            self.report.problem(format!("record {seq}: it was changed, its hash is another"));
        }
        self.previous = stated.unwrap_or_default();
        // By what it contains: a chain that was made anew does not help.
        let is = right.unwrap_or_default();
        self.compare(seq, &is);
        if seq >= expected {
            self.last = seq;
            self.report.last = (seq, record.hash.clone());
        }
    }

    fn compare(&mut self, seq: u64, is: &Hash) {
        for (hash, who) in self.claims.remove(&seq).unwrap_or_default() {
            if hash != *is {
                self.report.problem(format!("record {seq}: it is not the one that {who} names"));
            }
        }
    }

    /// There are no more.
    pub fn end(mut self) -> Report {
        let Self { report, last, claims, newest, .. } = &mut self;
        let ends = *claims.keys().next_back().unwrap_or(&0);
        if ends > *last {
            let who = claims.get(&ends).and_then(|c| c.first()).map_or("", |(_, who)| *who);
            let from = *last + 1;
            report.problem(format!(
                "records {from} to {ends} are missing at the end: {who} names record {ends}"
            ));
        } else {
            for (seq, claims) in claims.iter() {
                for (_, who) in claims {
                    report.problem(format!("record {seq}: it is missing, {who} names it"));
                }
            }
        }
        let covered = newest.unwrap_or(0);
        if report.records > 0 && *last > covered {
            report.problem(match newest {
                Some(covered) => {
                    format!("records {} to {last}: no signed head covers them", *covered + 1)
                }
                None => "there is no signed head".to_owned(),
            });
        }
        self.report
    }
}
