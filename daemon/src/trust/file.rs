//! `trust.json`, beside the identity file: the published shape, and keys of our
//! own for what must survive a restart as well.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use serde::{Deserialize, Serialize};

use super::state::{MAX_TRUSTED, Pending, TrustState, Trusted};
use crate::{durable, rfc3339};

/// Why `trust.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustFileError {
    /// The system refused.
    #[error("trust: cannot {action} {}: {source}; fix its permissions or free space", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error("trust: {} is damaged ({problem}); restore it from a backup, or move it away to start without trust", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The file and its place.
#[derive(Clone, Debug)]
pub struct TrustFile {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    /// `null` when empty, as published.
    trusted: Option<Vec<StoredTrusted>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pending: Vec<StoredPending>,
    /// Ours: whom we asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outstanding: Vec<StoredOutstanding>,
    /// Ours: revocations that the registry has not confirmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revocations: Vec<NodeId>,
}

#[derive(Serialize, Deserialize)]
struct StoredTrusted {
    node_id: NodeId,
    #[serde(default)]
    public_key: String,
    approved_at: String,
    #[serde(default)]
    mutual: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    network: u16,
}

#[derive(Serialize, Deserialize)]
struct StoredPending {
    node_id: NodeId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    public_key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    justification: String,
    received_at: String,
}

#[derive(Serialize, Deserialize)]
struct StoredOutstanding {
    node_id: NodeId,
    asked_at: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u16) -> bool {
    *n == 0
}

impl TrustFile {
    /// The file at `path`, which need not exist.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads it; no file is no trust.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(&self) -> Result<TrustState, TrustFileError> {
        let bytes = durable::read(&self.path).map_err(self.io_error("read"))?;
        let Some(bytes) = bytes else { return Ok(TrustState::default()) };
        parse(&bytes)
            .map_err(|problem| TrustFileError::Damaged { path: self.path.clone(), problem })
    }

    /// Writes it; durable when it returns.
    ///
    /// # Errors
    /// When the system refuses; the old file then stands.
    pub fn save(&self, json: &[u8]) -> Result<(), TrustFileError> {
        durable::replace(&self.path, json).map_err(self.io_error("write"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io_error(&self, action: &'static str) -> impl FnOnce(io::Error) -> TrustFileError {
        move |source| TrustFileError::Io { action, path: self.path.clone(), source }
    }
}

/// The file's text for a state.
pub(super) fn render(state: &TrustState) -> Vec<u8> {
    let text = |key: Option<[u8; 32]>| key.map(|k| PublicKey(k).to_string()).unwrap_or_default();
    let trusted: Vec<_> = state
        .trusted()
        .iter()
        .map(|(node, t)| StoredTrusted {
            node_id: *node,
            public_key: text(t.key),
            approved_at: rfc3339::format(t.approved_at),
            mutual: t.mutual,
            network: t.network,
        })
        .collect();
    let stored = Stored {
        trusted: (!trusted.is_empty()).then_some(trusted),
        pending: state
            .pending()
            .iter()
            .map(|(node, p)| StoredPending {
                node_id: *node,
                public_key: text(p.key),
                justification: p.justification.clone(),
                received_at: rfc3339::format(p.received_at),
            })
            .collect(),
        outstanding: state
            .outstanding()
            .iter()
            .map(|(node, at)| StoredOutstanding { node_id: *node, asked_at: rfc3339::format(*at) })
            .collect(),
        revocations: state.revocations().iter().copied().collect(),
    };
    let mut json = serde_json::to_vec_pretty(&stored).unwrap_or_default();
    json.push(b'\n');
    json
}

fn parse(bytes: &[u8]) -> Result<TrustState, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let trusted = stored.trusted.unwrap_or_default();
    if trusted.len() > MAX_TRUSTED {
        return Err(format!("more than {MAX_TRUSTED} trusted nodes"));
    }
    let trusted: BTreeMap<_, _> = trusted
        .into_iter()
        .map(|t| {
            let trusted = Trusted {
                key: key(t.node_id, &t.public_key)?,
                approved_at: moment(t.node_id, &t.approved_at)?,
                mutual: t.mutual,
                network: t.network,
            };
            Ok((t.node_id, trusted))
        })
        .collect::<Result<_, String>>()?;
    let pending = stored
        .pending
        .into_iter()
        .map(|p| {
            let pending = Pending {
                key: key(p.node_id, &p.public_key)?,
                justification: p.justification,
                received_at: moment(p.node_id, &p.received_at)?,
            };
            Ok((p.node_id, pending))
        })
        .collect::<Result<_, String>>()?;
    let outstanding = stored
        .outstanding
        .into_iter()
        .map(|o| Ok((o.node_id, moment(o.node_id, &o.asked_at)?)))
        .collect::<Result<_, String>>()?;
    let revocations = stored.revocations.into_iter().collect();
    Ok(TrustState::new(trusted, pending, outstanding, revocations))
}

fn key(node: NodeId, text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    PublicKey::from_base64(text)
        .map(|key| Some(key.0))
        .ok_or_else(|| format!("public_key of node {node} is not 32 bytes of base64"))
}

fn moment(node: NodeId, text: &str) -> Result<i64, String> {
    rfc3339::parse(text).ok_or_else(|| format!("{text:?} of node {node} is not an RFC 3339 time"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everything_survives() {
        let dir = tempfile::tempdir().unwrap();
        let file = TrustFile::at(dir.path().join("trust.json"));
        assert_eq!(file.load().unwrap(), TrustState::default());
        let trusted = Trusted { key: Some([7; 32]), approved_at: 5, mutual: true, network: 0 };
        let unpinned = Trusted { key: None, approved_at: 6, mutual: false, network: 3 };
        let pending = Pending { key: None, justification: "why \"not\"".into(), received_at: 9 };
        let state = TrustState::new(
            BTreeMap::from([(NodeId(1), trusted), (NodeId(2), unpinned)]),
            BTreeMap::from([(NodeId(3), pending)]),
            BTreeMap::from([(NodeId(4), 11)]),
            BTreeSet::from([NodeId(5)]),
        );
        file.save(&render(&state)).unwrap();
        assert_eq!(file.load().unwrap(), state);
    }

    #[test]
    fn published_files_are_read_and_empty_ones_written_like_them() {
        let published = br#"{"trusted":[{"node_id":2,"public_key":"","approved_at":
            "2025-02-03T04:05:06.789012345+01:00","mutual":true}]}"#;
        let state = parse(published).unwrap();
        assert!(state.trusted()[&NodeId(2)].mutual);
        assert_eq!(parse(br#"{"trusted":null}"#).unwrap(), TrustState::default());
        let empty: serde_json::Value =
            serde_json::from_slice(&render(&TrustState::default())).unwrap();
        assert_eq!(empty, serde_json::json!({"trusted": null}));
    }

    #[test]
    fn damage_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = TrustFile::at(dir.path().join("trust.json"));
        let bad = [
            "",
            "[]",
            "{\"trusted\":[{\"node_id\":2}]}",
            "{\"trusted\":[{\"node_id\":2,\"public_key\":\"AA\",\"approved_at\":\"2025-02-03T04:05:06Z\"}]}",
            "{\"trusted\":[{\"node_id\":2,\"approved_at\":\"yesterday\"}]}",
        ];
        for text in bad {
            std::fs::write(file.path(), text).unwrap();
            let line = file.load().unwrap_err().to_string();
            assert!(line.contains("trust.json") && line.contains("move it away"), "{line}");
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
        }
    }
}
