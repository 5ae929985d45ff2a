//! The chain of hashes over the records, and what the registry signs of it.
//! Knows nothing of files.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use pilot_wire::registry::audit::{AuditActor, AuditRecord, AuditResult};
use pilot_wire::registry::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// What stands before the first record.
pub const BEGINNING: Hash = [0; 32];

/// What the hash of a record covers, beside the hash before it.
#[derive(Serialize)]
struct Content<'a> {
    seq: u64,
    time: u64,
    command: u64,
    actor: &'a AuditActor,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    operation: &'a str,
    object: &'a str,
    result: AuditResult,
    #[serde(skip_serializing_if = "str::is_empty")]
    code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    rule: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// The JSON that the hash of a record covers.
pub fn content(record: &AuditRecord) -> Vec<u8> {
    // Named one by one: a new field has to be thought of here.
    let AuditRecord {
        seq,
        time,
        command,
        actor,
        source,
        operation,
        object,
        result,
        code,
        rule,
        detail,
        request_id,
        count,
        previous: _,
        hash: _,
    } = record;
    let content = Content {
        seq: *seq,
        time: *time,
        command: *command,
        actor,
        source,
        operation,
        object,
        result: *result,
        code,
        rule,
        detail,
        request_id,
        count: Some(*count).filter(|count| *count != 1),
    };
    // Numbers and texts: serialising them into memory does not fail.
    serde_json::to_vec(&content).unwrap_or_default()
}

/// The hash of a record that follows `previous`.
pub fn hash(previous: &Hash, record: &AuditRecord) -> Hash {
    let mut digest = Sha256::new();
    digest.update(previous);
    digest.update(content(record));
    digest.finalize().into()
}

/// Reads 64 hex digits, lowercase.
pub fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    hex::decode_to_slice(text, &mut hash).ok()?;
    (hex::encode(hash) == text).then_some(hash)
}

/// How far the log went at a time, signed by the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// The last record.
    pub seq: u64,
    /// Its hash, hex.
    pub hash: String,
    /// When it was signed, Unix seconds.
    pub time: u64,
    /// Over `audit:SEQ:HASH:TIME`.
    pub signature: Signature,
}

impl SignedHead {
    /// Signs.
    pub fn sign(key: &SigningKey, seq: u64, hash: &Hash, time: u64) -> Self {
        let hash = hex::encode(hash);
        let signature = sign(key, &Self::text(seq, &hash, time));
        Self { seq, hash, time, signature }
    }

    /// Whether this key signed it.
    pub fn is_by(&self, key: &PublicKey) -> bool {
        verifies(key, &Self::text(self.seq, &self.hash, self.time), &self.signature)
    }

    fn text(seq: u64, hash: &str, time: u64) -> String {
        format!("audit:{seq}:{hash}:{time}")
    }
}

/// That old records were removed in good order, signed by the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The first record that is kept.
    pub first: u64,
    /// Hash of the last one that was removed, hex.
    pub previous: String,
    /// How many were removed with this cut.
    pub removed: u64,
    /// When, Unix seconds.
    pub time: u64,
    /// Over `audit-cut:FIRST:PREVIOUS:REMOVED:TIME`.
    pub signature: Signature,
}

impl Cut {
    /// Signs.
    pub fn sign(key: &SigningKey, first: u64, previous: &Hash, removed: u64, time: u64) -> Self {
        let previous = hex::encode(previous);
        let signature = sign(key, &Self::text(first, &previous, removed, time));
        Self { first, previous, removed, time, signature }
    }

    /// Whether this key signed it.
    pub fn is_by(&self, key: &PublicKey) -> bool {
        let Self { first, previous, removed, time, signature } = self;
        verifies(key, &Self::text(*first, previous, *removed, *time), signature)
    }

    fn text(first: u64, previous: &str, removed: u64, time: u64) -> String {
        format!("audit-cut:{first}:{previous}:{removed}:{time}")
    }
}

fn sign(key: &SigningKey, text: &str) -> Signature {
    Signature(key.sign(text.as_bytes()).to_bytes())
}

fn verifies(key: &PublicKey, text: &str, signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    VerifyingKey::from_bytes(&key.0)
        .is_ok_and(|key| key.verify_strict(text.as_bytes(), &signature).is_ok())
}
