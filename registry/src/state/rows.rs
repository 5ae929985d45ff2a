//! The state as rows of a table, so that a checkpoint writes what changed and a
//! start reads one record after the other. How rows are stored is not known
//! here.

use std::collections::{HashSet, VecDeque};

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use serde::{Deserialize, Serialize};

use super::trust::Sides;
use super::{NetworkRecord, State, Token};

/// Layout of the rows; a state of a newer one is refused. Layout 1 was
/// [`super::Snapshot`].
pub const ROWS_VERSION: u32 = 2;

/// What a row holds. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Table {
    /// One row: what belongs to nothing else.
    Meta = 0,
    /// By node number: the registered node.
    Node = 1,
    /// By key: its node.
    Key = 2,
    /// By owner text: the node that is recovered by it.
    Owner = 3,
    /// By node: whom it states trust in, from whom it has withdrawn it.
    Trust = 4,
    /// By node: what waits for it.
    Handshakes = 5,
    /// By network: its record and tokens.
    Network = 6,
    /// By network and node: a membership.
    Member = 7,
    /// By number: an invitation.
    Invitation = 8,
}

impl Table {
    /// The table of a stored number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Meta,
            1 => Self::Node,
            2 => Self::Key,
            3 => Self::Owner,
            4 => Self::Trust,
            5 => Self::Handshakes,
            6 => Self::Network,
            7 => Self::Member,
            8 => Self::Invitation,
            _ => return None,
        })
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Of which kind.
    pub table: Table,
    /// Big-endian numbers or text; unique within its table.
    pub key: Vec<u8>,
    /// JSON; none when the row is gone.
    pub value: Option<Vec<u8>>,
}

/// Which row; in the order of tables and keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// Of [`Table::Meta`].
    Meta,
    /// Of [`Table::Node`].
    Node(NodeId),
    /// Of [`Table::Key`].
    Key(PublicKey),
    /// Of [`Table::Owner`].
    Owner(Box<str>),
    /// Of [`Table::Trust`].
    Trust(NodeId),
    /// Of [`Table::Handshakes`].
    Handshakes(NodeId),
    /// Of [`Table::Network`].
    Network(u16),
    /// Of [`Table::Member`].
    Member(u16, NodeId),
    /// Of [`Table::Invitation`].
    Invitation(u64),
}

impl RowKey {
    const fn table(&self) -> Table {
        match self {
            Self::Meta => Table::Meta,
            Self::Node(_) => Table::Node,
            Self::Key(_) => Table::Key,
            Self::Owner(_) => Table::Owner,
            Self::Trust(_) => Table::Trust,
            Self::Handshakes(_) => Table::Handshakes,
            Self::Network(_) => Table::Network,
            Self::Member(..) => Table::Member,
            Self::Invitation(_) => Table::Invitation,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Meta => Vec::new(),
            Self::Node(id) | Self::Trust(id) | Self::Handshakes(id) => id.0.to_be_bytes().to_vec(),
            Self::Key(key) => key.0.to_vec(),
            Self::Owner(text) => text.as_bytes().to_vec(),
            Self::Network(id) => id.to_be_bytes().to_vec(),
            Self::Member(network, node) => {
                [&network.to_be_bytes()[..], &node.0.to_be_bytes()].concat()
            }
            Self::Invitation(id) => id.to_be_bytes().to_vec(),
        }
    }

    /// The other way round; none when the bytes are no key of that table.
    pub(super) fn parse(table: Table, bytes: &[u8]) -> Option<Self> {
        let node = || Some(NodeId(u32::from_be_bytes(bytes.try_into().ok()?)));
        Some(match table {
            Table::Meta => bytes.is_empty().then_some(Self::Meta)?,
            Table::Node => Self::Node(node()?),
            Table::Key => Self::Key(PublicKey(bytes.try_into().ok()?)),
            Table::Owner => Self::Owner(std::str::from_utf8(bytes).ok()?.into()),
            Table::Trust => Self::Trust(node()?),
            Table::Handshakes => Self::Handshakes(node()?),
            Table::Network => Self::Network(u16::from_be_bytes(bytes.try_into().ok()?)),
            Table::Member => {
                let (network, node) = bytes.split_at_checked(2)?;
                let network = u16::from_be_bytes(network.try_into().ok()?);
                Self::Member(network, NodeId(u32::from_be_bytes(node.try_into().ok()?)))
            }
            Table::Invitation => Self::Invitation(u64::from_be_bytes(bytes.try_into().ok()?)),
        })
    }
}

/// Value of the only row of [`Table::Meta`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) version: u32,
    pub(super) epoch: String,
    pub(super) applied: u64,
    pub(super) next_node: u32,
    pub(super) next_network: u16,
    pub(super) next_invitation: u64,
    pub(super) counts: Counts,
}

/// How many there are, so that a lost row is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) nodes: usize,
    pub(super) keys: usize,
    pub(super) owners: usize,
    pub(super) statements: usize,
    pub(super) withdrawals: usize,
    pub(super) handshakes: usize,
    pub(super) networks: usize,
    pub(super) members: usize,
    pub(super) invitations: usize,
}

/// Value of a row of [`Table::Key`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct KeyRow {
    pub(super) node: NodeId,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) proven: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) revoked: bool,
}

/// Value of a row of [`Table::Owner`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct OwnerRow {
    pub(super) node: NodeId,
}

/// Value of a row of [`Table::Trust`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct TrustRow {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) stated: Vec<NodeId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) withdrawn: Vec<NodeId>,
}

/// What waits for a node; value of a row of [`Table::Handshakes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inbox {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) requests: Vec<HandshakeRequest>,
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub(super) answers: VecDeque<HandshakeAnswer>,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.answers.is_empty()
    }
}

/// Value of a row of [`Table::Network`].
#[derive(Serialize)]
struct NetworkRowRef<'a> {
    record: &'a NetworkRecord,
    #[serde(skip_serializing_if = "is_zero")]
    policy: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ending: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<&'a Token>,
}

/// The same, read.
#[derive(Debug, Deserialize)]
pub(super) struct NetworkRow {
    pub(super) record: NetworkRecord,
    #[serde(default)]
    pub(super) policy: u64,
    #[serde(default)]
    pub(super) ending: bool,
    #[serde(default)]
    pub(super) tokens: Vec<Token>,
}

/// Rows changed since they were last taken; at most as many as there are rows.
#[derive(Debug, Default)]
pub(super) struct Dirty(Option<HashSet<RowKey>>);

impl Dirty {
    pub(super) fn mark(&mut self, key: impl FnOnce() -> RowKey) {
        if let Some(keys) = &mut self.0 {
            keys.insert(key());
        }
    }
}

impl State {
    /// From now on notes which rows change, or no longer. Off at first; turned
    /// off, what was noted is forgotten.
    pub fn track_dirty(&mut self, on: bool) {
        match (&mut self.dirty.0, on) {
            (Some(_), true) => {}
            (keys, true) => *keys = Some(HashSet::new()),
            (keys, false) => *keys = None,
        }
    }

    /// Which rows changed since this was last called, sorted; [`RowKey::Meta`]
    /// always. For who wants to read the rows themselves, with [`Self::row`],
    /// while others read too: the rows belong together as long as nothing is
    /// applied in between.
    pub fn take_dirty_keys(&mut self) -> Vec<RowKey> {
        let keys = self.dirty.0.as_mut().map(std::mem::take).unwrap_or_default();
        let mut keys: Vec<_> = keys.into_iter().chain([RowKey::Meta]).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The rows changed since this was last called, as they are now, sorted;
    /// the row of [`Table::Meta`] always.
    pub fn take_dirty(&mut self) -> Vec<Row> {
        self.take_dirty_keys().iter().map(|key| self.row(key)).collect()
    }

    /// Every row, in no particular order.
    pub fn all_rows(&self) -> impl Iterator<Item = Row> {
        self.row_keys().map(|key| self.row(&key))
    }

    /// Keys of every row, in no particular order.
    pub(super) fn row_keys(&self) -> impl Iterator<Item = RowKey> {
        let members = |n: &super::Network| {
            let network = n.record.id;
            n.members.keys().map(move |node| RowKey::Member(network, *node)).collect::<Vec<_>>()
        };
        let says = |node: &NodeId| self.trust_row(*node).is_some();
        std::iter::once(RowKey::Meta)
            .chain(self.nodes.iter().map(|n| RowKey::Node(n.record.id)))
            .chain(self.keys.keys().map(|key| RowKey::Key(*key)))
            .chain(self.owners.keys().map(|owner| RowKey::Owner((**owner).into())))
            .chain(self.trust.nodes().filter(says).map(RowKey::Trust))
            .chain(self.inboxes.nodes().map(RowKey::Handshakes))
            .chain(self.networks.stored().map(|n| RowKey::Network(n.record.id)))
            .chain(self.networks.stored().flat_map(members))
            .chain(self.networks.invitations().keys().map(|id| RowKey::Invitation(*id)))
    }

    /// One row as it is now.
    pub fn row(&self, key: &RowKey) -> Row {
        let value = match key {
            RowKey::Meta => json(Some(&self.meta())),
            RowKey::Node(id) => json(self.nodes.get(*id).map(|n| &n.record)),
            RowKey::Key(key) => json(self.keys.get(key).map(|e| KeyRow {
                node: e.node,
                proven: e.proven,
                revoked: e.revoked,
            })),
            RowKey::Owner(text) => json(self.owners.get(&**text).map(|n| OwnerRow { node: *n })),
            RowKey::Trust(id) => json(self.trust_row(*id)),
            RowKey::Handshakes(id) => json(self.inboxes.get(*id)),
            RowKey::Network(id) => json(self.networks.find(*id).map(|n| NetworkRowRef {
                record: &n.record,
                policy: n.policy,
                ending: self.networks.get(*id).is_none(),
                tokens: n.tokens.values().collect(),
            })),
            RowKey::Member(network, node) => {
                json(self.networks.find(*network).and_then(|n| n.members.get(node)))
            }
            RowKey::Invitation(id) => json(self.networks.invitation(*id)),
        };
        Row { table: key.table(), key: key.bytes(), value }
    }

    fn meta(&self) -> Meta {
        Meta {
            version: ROWS_VERSION,
            epoch: self.epoch.clone(),
            applied: self.applied,
            next_node: self.next_node,
            next_network: self.next_network,
            next_invitation: self.next_invitation,
            counts: self.row_counts(),
        }
    }

    pub(super) fn row_counts(&self) -> Counts {
        Counts {
            nodes: self.nodes.len(),
            keys: self.keys.len(),
            owners: self.owners.len(),
            statements: self.trust.statements,
            withdrawals: self.trust.withdrawals,
            handshakes: self.inboxes.len(),
            networks: self.networks.len(),
            members: self.networks.members(),
            invitations: self.networks.invitations().len(),
        }
    }

    fn trust_row(&self, node: NodeId) -> Option<TrustRow> {
        let mut row = TrustRow::default();
        for (peer, sides) in self.trust.of(node) {
            if sides.has(Sides::STATES) {
                row.stated.push(peer);
            }
            if sides.has(Sides::WITHDREW) {
                row.withdrawn.push(peer);
            }
        }
        (!row.stated.is_empty() || !row.withdrawn.is_empty()).then_some(row)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Numbers, texts, lists and objects with text keys always make JSON.
fn json<T: Serialize>(value: Option<T>) -> Option<Vec<u8>> {
    value.map(|value| serde_json::to_vec(&value).expect("plain data make JSON"))
}
