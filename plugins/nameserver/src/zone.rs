//! The records: who owns a name, what it stands for, and until when. Knows
//! nothing of streams and disks; time is an argument, in Unix seconds.
//!
//! A name belongs to the identity that registered it, with all records of any
//! kind, until the last has been expired for the grace period.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;

use pilot_plugin::wire::service::nameserver::{self as wire, MAX_NAME};
use pilot_plugin::wire::{Address, NodeId};
use pilot_plugin::{Peer, json};
use serde::{Deserialize, Serialize};

/// An identity that names belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// This node's operator: its own hostname, and networks in the records file.
    Local,
    /// A node whose key is not known.
    Node(NodeId),
    /// A public key, base64.
    Key(Rc<str>),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Key(key) => write!(f, "key:{key}"),
        }
    }
}

impl Owner {
    /// Reads what [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "local" {
            return Some(Self::Local);
        }
        match text.split_once(':')? {
            ("node", number) => Some(Self::Node(NodeId(number.parse().ok()?))),
            ("key", key) => Some(Self::Key(key.into())),
            _ => None,
        }
    }
}

/// Who registers.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) owner: Owner,
    /// Its own addresses have this node; none for the operator, who may
    /// register any.
    pub(crate) node: Option<NodeId>,
}

impl Who {
    pub(crate) fn peer(peer: &Peer) -> Self {
        let node = peer.node();
        let key = peer.public_key.as_deref().filter(|key| !key.is_empty());
        let owner = key.map_or(Owner::Node(node), |key| Owner::Key(key.into()));
        Self { owner, node: Some(node) }
    }

    pub(crate) const LOCAL: Self = Self { owner: Owner::Local, node: None };

    const fn is_this_node(&self) -> bool {
        matches!(self.owner, Owner::Local) && self.node.is_some()
    }

    /// A name that was registered while the node's key was not known goes over
    /// to the key.
    fn may_use(&self, owner: &Owner) -> bool {
        *owner == self.owner || matches!(owner, Owner::Node(node) if Some(*node) == self.node)
    }
}

/// What a name is to stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    A(Address),
    N(u16),
    S { address: Address, network: u16, port: u16 },
}

impl Value {
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::A(_) => "A",
            Self::N(_) => "N",
            Self::S { .. } => "S",
        }
    }
}

/// Why a registration is refused, in the words of the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("cannot register address for another node")]
    ForeignAddress,
    #[error("cannot register service for another node")]
    ForeignService,
    #[error("name \"{0}\" belongs to another node")]
    Taken(String),
    #[error("name too long: at most {MAX_NAME} bytes")]
    TooLong,
    #[error("too many records: this server keeps at most {0}")]
    Full(usize),
    #[error("too many records of one node: at most {0}")]
    PerNode(usize),
    #[error("the record could not be stored, try again later")]
    NotStored,
    #[error("the registry could not be asked who the name belongs to, try again later")]
    Busy,
    #[error("this server is being replaced, connect again")]
    Replaced,
}

/// Bounds and lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Seconds.
    pub(crate) ttl: u64,
    /// Seconds.
    pub(crate) grace: u64,
    pub(crate) max_records: usize,
    pub(crate) per_node: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Timed<T> {
    // Short keys: the store has a quota.
    #[serde(rename = "v")]
    value: T,
    /// Expired from this second on.
    #[serde(rename = "u")]
    until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    #[serde(rename = "a")]
    address: Address,
    #[serde(rename = "n")]
    network: u16,
    #[serde(rename = "p")]
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    owner: Owner,
    /// The name is its owner's before this second.
    held_until: u64,
    a: Option<Timed<Address>>,
    n: Option<Timed<u16>>,
    s: Vec<Timed<Place>>,
}

impl Entry {
    /// What it counts for: a name without records is kept as well.
    fn size(&self) -> usize {
        let records = usize::from(self.a.is_some()) + usize::from(self.n.is_some()) + self.s.len();
        records.max(1)
    }
}

/// A name as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    name: String,
    #[serde(rename = "h")]
    held_until: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<Timed<Address>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<Timed<u16>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    s: Vec<Timed<Place>>,
}

/// All names.
#[derive(Debug)]
pub(crate) struct Zone {
    rules: Rules,
    names: HashMap<Rc<str>, Entry>,
    by_owner: HashMap<Owner, BTreeSet<Rc<str>>>,
    services: BTreeMap<(u16, u16), BTreeSet<Rc<str>>>,
    size: usize,
    /// What the names were before the changes that are not settled yet.
    undo: Vec<(Rc<str>, Option<Entry>)>,
    /// Whose stored names are out of date.
    dirty: BTreeSet<Owner>,
    /// Whose stored names may be those of a change that did not happen.
    torn: BTreeSet<Owner>,
    /// When a name was last to be stored.
    stored_at: HashMap<Rc<str>, u64>,
    /// Grows with every change.
    version: u64,
}

impl Zone {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            names: HashMap::new(),
            by_owner: HashMap::new(),
            services: BTreeMap::new(),
            size: 0,
            undo: Vec::new(),
            dirty: BTreeSet::new(),
            torn: BTreeSet::new(),
            stored_at: HashMap::new(),
            version: 0,
        }
    }

    /// The address of a name.
    pub(crate) fn address(&self, name: &str, now: u64) -> Option<Address> {
        let record = self.names.get(name)?.a?;
        (now < record.until).then_some(record.value)
    }

    /// The network of a name.
    pub(crate) fn network(&self, name: &str, now: u64) -> Option<u16> {
        let record = self.names.get(name)?.n?;
        (now < record.until).then_some(record.value)
    }

    /// The services at a port of a network, by name.
    pub(crate) fn services(
        &self,
        network: u16,
        port: u16,
        now: u64,
    ) -> impl Iterator<Item = (&str, Address)> {
        self.services.get(&(network, port)).into_iter().flatten().filter_map(move |name| {
            let at = self.names.get(name)?.s.iter().find(|record| {
                let Place { network: n, port: p, .. } = record.value;
                now < record.until && (n, p) == (network, port)
            })?;
            Some((&**name, at.value.address))
        })
    }

    /// Registers or renews; says whether something is new. It counts as stored
    /// only after [`Zone::settle`].
    ///
    /// # Errors
    /// What to answer.
    pub(crate) fn register(
        &mut self,
        who: &Who,
        name: &str,
        value: Value,
        now: u64,
    ) -> Result<bool, Refusal> {
        let foreign = |address: Address| who.node.is_some_and(|node| node != address.node);
        match value {
            Value::A(address) if foreign(address) => return Err(Refusal::ForeignAddress),
            Value::S { address, .. } if foreign(address) => return Err(Refusal::ForeignService),
            _ => {}
        }
        if name.len() > MAX_NAME {
            return Err(Refusal::TooLong);
        }
        // A name that nobody holds any more begins anew.
        let old = self.names.get(name).filter(|entry| now < entry.held_until);
        // This node's own hostname is its own, whoever was quicker.
        let old = old.filter(|entry| !who.is_this_node() || who.may_use(&entry.owner));
        if old.is_some_and(|entry| !who.may_use(&entry.owner)) {
            return Err(Refusal::Taken(name.to_owned()));
        }
        let mut entry = old.cloned().unwrap_or_else(|| Entry {
            owner: who.owner.clone(),
            held_until: 0,
            a: None,
            n: None,
            s: Vec::new(),
        });
        entry.owner = who.owner.clone();
        let until = now.saturating_add(self.rules.ttl);
        entry.held_until = entry.held_until.max(until.saturating_add(self.rules.grace));
        let news = match value {
            Value::A(value) => set(&mut entry.a, value, until, now),
            Value::N(value) => set(&mut entry.n, value, until, now),
            Value::S { address, network, port } => {
                let value = Place { address, network, port };
                let same = |record: &&mut Timed<Place>| {
                    (record.value.network, record.value.port) == (network, port)
                };
                match entry.s.iter_mut().find(same) {
                    Some(record) => {
                        let news = record.value != value || record.until <= now;
                        *record = Timed { value, until };
                        news
                    }
                    None => {
                        entry.s.push(Timed { value, until });
                        true
                    }
                }
            }
        };
        self.check_room(who, name, &entry)?;
        // Who only renews has it written once in a while: each write of the
        // store is waited for.
        let mere = old.is_some_and(|old| {
            old.owner == entry.owner
                && self.stored_at.get(name).is_some_and(|at| now < at + self.rules.ttl / 4)
        });
        if news || !mere {
            self.put(name, Some(entry), now);
        } else {
            let name =
                self.names.get_key_value(name).map_or_else(|| name.into(), |(n, _)| Rc::clone(n));
            let old = self.replace(&name, Some(entry));
            self.undo.push((name, old));
        }
        Ok(news)
    }

    /// Everything that was registered is durable.
    pub(crate) fn settle(&mut self) {
        self.undo.clear();
        self.dirty.clear();
    }

    /// All of [`Zone::unsettled`] was written.
    pub(crate) fn wrote(&mut self) {
        self.torn.clear();
    }

    /// Nothing of what was registered since [`Zone::settle`] happened.
    pub(crate) fn roll_back(&mut self) {
        while let Some((name, entry)) = self.undo.pop() {
            self.replace(&name, entry);
            // What the store has of it is not certain.
            self.stored_at.remove(&name);
        }
        // Some may have been written before one failed.
        self.torn.append(&mut self.dirty);
    }

    /// Whose names have to be stored before [`Zone::settle`]; the operator's
    /// are not. Owners that have names come first, so that a name that moves is
    /// never in neither place.
    pub(crate) fn unsettled(&self) -> Vec<Owner> {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        if self.dirty.is_empty() {
            return with;
        }
        for owner in self.dirty.union(&self.torn).filter(|owner| **owner != Owner::Local) {
            let list = if self.by_owner.contains_key(owner) { &mut with } else { &mut without };
            list.push(owner.clone());
        }
        with.append(&mut without);
        with
    }

    /// The names of an owner as they are stored; `None` when there are none.
    pub(crate) fn stored(&self, owner: &Owner) -> Option<Vec<u8>> {
        let names = self.by_owner.get(owner)?;
        let stored = names.iter().filter_map(|name| {
            let Entry { held_until, a, n, s, .. } = self.names.get(name)?.clone();
            Some(Stored { name: name.to_string(), held_until, a, n, s })
        });
        json::to_vec(&stored.collect::<Vec<_>>()).ok()
    }

    /// Takes names that were stored. What a key holds beats what the node of a
    /// number holds; what has been free for long is left out.
    ///
    /// # Errors
    /// When the text is not what [`Zone::stored`] gives.
    pub(crate) fn load(&mut self, owner: &Owner, text: &[u8], now: u64) -> json::Result<()> {
        for Stored { name, held_until, a, n, s } in json::from_slice::<Vec<Stored>>(text)? {
            // This node's own name may be there already.
            let better = self
                .names
                .get(&*name)
                .is_none_or(|entry| entry.owner != Owner::Local && entry.owner < *owner);
            if now < held_until && better {
                self.replace(
                    &name.into(),
                    Some(Entry { owner: owner.clone(), held_until, a, n, s }),
                );
            }
        }
        Ok(())
    }

    /// Drops what has expired, and names that nobody holds any more. Gives
    /// owners that have none left, so that the store can forget them.
    pub(crate) fn sweep(&mut self, now: u64) -> Vec<Owner> {
        let old = |entry: &Entry| {
            entry.held_until <= now
                || entry.a.is_some_and(|record| record.until <= now)
                || entry.n.is_some_and(|record| record.until <= now)
                || entry.s.iter().any(|record| record.until <= now)
        };
        let names: Vec<_> =
            self.names.iter().filter(|(_, e)| old(e)).map(|(name, _)| Rc::clone(name)).collect();
        let mut gone = BTreeSet::new();
        for name in names {
            let Some(mut entry) = self.names.get(&name).cloned() else { continue };
            let owner = entry.owner.clone();
            if entry.held_until <= now {
                self.replace(&name, None);
            } else {
                entry.a = entry.a.filter(|record| now < record.until);
                entry.n = entry.n.filter(|record| now < record.until);
                entry.s.retain(|record| now < record.until);
                self.replace(&name, Some(entry));
            }
            if !self.by_owner.contains_key(&owner) && owner != Owner::Local {
                gone.insert(owner);
            }
        }
        gone.into_iter().collect()
    }

    /// Whether an owner has names.
    pub(crate) fn has(&self, owner: &Owner) -> bool {
        self.by_owner.contains_key(owner)
    }

    /// Grows with every change.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// Records, and names kept without any.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// What lives, in the published form.
    pub(crate) fn export(&self, now: u64) -> wire::Zone {
        let mut zone = wire::Zone::default();
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        for (name, entry) in names {
            if let Some(record) = entry.a.filter(|record| now < record.until) {
                zone.a_records.push(wire::ZoneA { name: name.to_string(), address: record.value });
            }
            if let Some(record) = entry.n.filter(|record| now < record.until) {
                let (name, network_id) = (name.to_string(), record.value);
                zone.n_records.push(wire::ZoneN { name, network_id });
            }
            for record in entry.s.iter().filter(|record| now < record.until) {
                let Place { address, network, port } = record.value;
                zone.s_records.push(wire::Service {
                    name: name.to_string(),
                    address,
                    network,
                    port,
                });
            }
        }
        zone
    }

    /// Takes records of the published form: addresses and services for their
    /// node, networks for the operator. What somebody holds stays as it is.
    /// Gives how many were taken and how many not.
    pub(crate) fn import(&mut self, zone: &wire::Zone, now: u64) -> (usize, usize) {
        let node =
            |address: Address| Who { owner: Owner::Node(address.node), node: Some(address.node) };
        let a = zone.a_records.iter().map(|r| (node(r.address), &r.name, Value::A(r.address)));
        let n = zone.n_records.iter().map(|r| (Who::LOCAL, &r.name, Value::N(r.network_id)));
        let s = zone.s_records.iter().map(|r| {
            let (address, network, port) = (r.address, r.network, r.port);
            (node(address), &r.name, Value::S { address, network, port })
        });
        let records: Vec<_> = a.chain(n).chain(s).collect();
        let mut taken = 0;
        for (who, name, value) in &records {
            taken += usize::from(self.register(who, name, *value, now).is_ok());
        }
        // They are in their file.
        self.settle();
        (taken, records.len() - taken)
    }

    fn check_room(&self, who: &Who, name: &str, entry: &Entry) -> Result<(), Refusal> {
        let old = self.names.get(name);
        let before = old.map_or(0, Entry::size);
        let grows = entry.size() > before;
        if grows && self.size - before + entry.size() > self.rules.max_records {
            return Err(Refusal::Full(self.rules.max_records));
        }
        let moves = old.is_none_or(|old| old.owner != who.owner);
        if who.owner == Owner::Local || !grows && !moves {
            return Ok(());
        }
        let others = self.by_owner.get(&who.owner).into_iter().flatten();
        let others = others.filter(|other| &***other != name);
        let sizes = others.filter_map(|other| self.names.get(other)).map(Entry::size);
        if sizes.sum::<usize>() + entry.size() > self.rules.per_node {
            return Err(Refusal::PerNode(self.rules.per_node));
        }
        Ok(())
    }

    /// Changes a name so that it can be undone.
    fn put(&mut self, name: &str, entry: Option<Entry>, now: u64) {
        let name =
            self.names.get_key_value(name).map_or_else(|| name.into(), |(n, _)| Rc::clone(n));
        self.dirty.extend(entry.as_ref().map(|entry| entry.owner.clone()));
        let old = self.replace(&name, entry);
        self.dirty.extend(old.as_ref().map(|entry| entry.owner.clone()));
        self.stored_at.insert(Rc::clone(&name), now);
        self.undo.push((name, old));
    }

    /// Changes a name and every index of it.
    fn replace(&mut self, name: &Rc<str>, entry: Option<Entry>) -> Option<Entry> {
        self.version += 1;
        let old = self.names.remove(name);
        if entry.is_none() {
            self.stored_at.remove(name);
        }
        if let Some(old) = &old {
            self.size -= old.size();
            if let Some(names) = self.by_owner.get_mut(&old.owner) {
                names.remove(name);
                if names.is_empty() {
                    self.by_owner.remove(&old.owner);
                }
            }
            for Timed { value: Place { network, port, .. }, .. } in &old.s {
                if let Some(names) = self.services.get_mut(&(*network, *port)) {
                    names.remove(name);
                    if names.is_empty() {
                        self.services.remove(&(*network, *port));
                    }
                }
            }
        }
        if let Some(entry) = entry {
            self.size += entry.size();
            self.by_owner.entry(entry.owner.clone()).or_default().insert(Rc::clone(name));
            for Timed { value: Place { network, port, .. }, .. } in &entry.s {
                self.services.entry((*network, *port)).or_default().insert(Rc::clone(name));
            }
            self.names.insert(Rc::clone(name), entry);
        }
        old
    }
}

/// Sets a record; says whether it is another than the one that lived.
fn set<T: Copy + PartialEq>(at: &mut Option<Timed<T>>, value: T, until: u64, now: u64) -> bool {
    let news = at.is_none_or(|record| record.value != value || record.until <= now);
    *at = Some(Timed { value, until });
    news
}
