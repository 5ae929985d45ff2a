//! From a request to an answer or to a command: who may ask what. Reads are
//! answered from the state; what changes it becomes a [`Command`].

mod joining;
mod networks;
mod published_networks;
mod views;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ed25519_dalek::VerifyingKey;
use pilot_plugin::{JoinRequest, Verdict};
use pilot_wire::NodeId;
use pilot_wire::registry::audit::AuditFilter;
use pilot_wire::registry::{
    Acknowledged, AuditPage, BeaconList, BeaconRegistered, Deregistered, Fields, Handshakes,
    Heartbeat, Lookup, PoloScore, PublicKey, Punch, Resolved, ResolvedHostname, Signature,
    challenge,
};

use published_networks::is_open;

use crate::admins::Admins;
use crate::audit::Audit;
use crate::events::Events;
use crate::limits::{Beacons, RateLimit};
use crate::metrics::Metrics;
use crate::rules::{JoinRules, NoRules};
use crate::state::{
    Command, MAX_JUSTIFICATION, MAX_OWNER, Network, Node, NodeRecord, Op, Origin, Refusal,
    Register, Signer, State, check_hostname, check_tags,
};

/// A proof of possession is good for so many seconds before and after its time.
const PROOF_WINDOW: u64 = 300;

/// Changes of scores a minute and source: anybody can make them, and each is
/// kept and audited. Without a limit of registrations there is none of these.
const SCORES: u32 = 60;

/// Registrations of known keys a minute and source; likewise.
const RETURNS: u32 = 120;

/// Wrong admin tokens a minute and source; then no token of that source is
/// looked at for a while. Loopback is exempt without a limit of registrations.
const GUESSES: u32 = 10;

/// Bytes of records on one page of the audit log.
const AUDIT_ROOM: usize = 512 * 1024;

/// Longest text of a client's for the audit log, in bytes.
const MAX_REQUEST_ID: usize = 64;

/// Who asks, as far as the connection knows.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Where the connection comes from.
    pub source: SocketAddr,
    /// The node that proved its key on this connection.
    pub session: Option<Signer>,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Admitted {
    /// An answer without any change.
    Reply(Acknowledged),
    /// A change to be made durable first.
    Write(Command),
    /// Likewise; what it led to is not yet the answer, but becomes it.
    WriteThen(Command, Then),
}

/// Makes the answer out of what a command led to: what the state must not know,
/// as the secret of a token, or the shape of a published answer.
pub struct Then(Box<dyn FnOnce(Acknowledged) -> Acknowledged + Send>);

impl Then {
    /// By this function.
    pub fn new(make: impl FnOnce(Acknowledged) -> Acknowledged + Send + 'static) -> Self {
        Self(Box::new(make))
    }

    /// The answer.
    pub fn answer(self, led_to: Acknowledged) -> Acknowledged {
        (self.0)(led_to)
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Then")
    }
}

/// Everything that requests are judged by.
pub struct Service {
    state: Arc<RwLock<State>>,
    rate: Mutex<RateLimit>,
    /// Registrations of known keys.
    returns: Mutex<RateLimit>,
    scores: Mutex<RateLimit>,
    guesses: Mutex<RateLimit>,
    /// Whether registrations are limited.
    limited: AtomicBool,
    beacons: Mutex<Beacons>,
    owner_recovery: bool,
    rules: Arc<dyn JoinRules>,
    events: Events,
    admins: Admins,
    any_node_makes_networks: bool,
    joins: joining::Joins,
    metrics: Arc<Metrics>,
    audit: Audit,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.rules.names();
        f.debug_struct("Service").field("rules", &rules).finish_non_exhaustive()
    }
}

impl Service {
    /// Judges by `state`, which the writer changes; every join is denied.
    pub fn new(state: Arc<RwLock<State>>, register_rate: u32, owner_recovery: bool) -> Self {
        Self {
            state,
            rate: Mutex::new(RateLimit::new(register_rate)),
            returns: Mutex::new(RateLimit::new(beside(register_rate, RETURNS))),
            scores: Mutex::new(RateLimit::new(beside(register_rate, SCORES))),
            guesses: Mutex::new(RateLimit::new(GUESSES)),
            limited: AtomicBool::new(register_rate > 0),
            beacons: Mutex::new(Beacons::default()),
            owner_recovery,
            rules: Arc::new(NoRules),
            events: Events::default(),
            admins: Admins::default(),
            any_node_makes_networks: false,
            joins: joining::Joins::default(),
            metrics: Arc::default(),
            audit: Audit::default(),
        }
    }

    /// Knows these administrators, and whether nodes make networks beside them.
    #[must_use]
    pub(crate) fn with_admins(mut self, admins: Admins, any_node_makes_networks: bool) -> Self {
        self.admins = admins;
        self.any_node_makes_networks = any_node_makes_networks;
        self
    }

    /// The name of the administrator who shows this token.
    ///
    /// # Errors
    /// When it is wrong, or there are no administrators.
    pub fn administrator(&self, token: &str) -> Result<String, Refusal> {
        self.admins.named(token)
    }

    /// The same, of a token that a connection shows. Who showed too many wrong
    /// ones has to wait.
    fn shown(&self, token: &str, asker: &Asker, now: u64) -> Result<String, Refusal> {
        let source = asker.source.ip();
        if !self.limited.load(Relaxed) && source.is_loopback() {
            return self.administrator(token);
        }
        if !lock(&self.guesses).has(source, now) {
            return Err(Refusal::RateLimited);
        }
        self.administrator(token).inspect_err(|_| {
            lock(&self.guesses).take(source, now);
        })
    }

    /// Counts here.
    #[must_use]
    pub(crate) fn with_metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// What is counted.
    pub(crate) const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Who is an administrator.
    pub(crate) const fn admins(&self) -> &Admins {
        &self.admins
    }

    /// Admits so many registrations a minute and source from now on.
    pub(crate) fn set_register_rate(&self, rate: u32) {
        lock(&self.rate).set_rate(rate);
        lock(&self.returns).set_rate(beside(rate, RETURNS));
        lock(&self.scores).set_rate(beside(rate, SCORES));
        self.limited.store(rate > 0, Relaxed);
    }

    /// Asks these about joins.
    #[must_use]
    pub fn with_rules(mut self, rules: Arc<dyn JoinRules>) -> Self {
        self.rules = rules;
        self
    }

    /// Tells these what is refused.
    #[must_use]
    pub(crate) fn with_events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// Asks this what was done.
    #[must_use]
    pub fn with_audit(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// The audit log.
    pub const fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Records of the audit log that fit, as many as fit into an answer. Whether the asker may know them is not
    /// judged here.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn audit_query(&self, filter: AuditFilter) -> Result<AuditPage, Refusal> {
        let audit = self.audit.clone();
        match tokio::task::spawn_blocking(move || audit.page(&filter)).await {
            Ok(Ok(page)) => Ok(fitting(page)),
            Ok(Err(e)) => {
                tracing::error!("{e}");
                Err(Refusal::Storage)
            }
            Err(e) => {
                tracing::error!("a query of the audit log ended badly: {e}");
                Err(Refusal::Storage)
            }
        }
    }

    /// Asks the join rule that the request names. What is not a verdict denies.
    /// May take as long as the rule's time limit: nothing else may wait for it.
    pub async fn validate(&self, request: JoinRequest) -> Verdict {
        self.rules.validate(request).await
    }

    /// Names of the join rules that can be asked now.
    pub fn join_rules(&self) -> Vec<String> {
        self.rules.names()
    }

    /// Where to say what happens.
    pub(crate) const fn events(&self) -> &Events {
        &self.events
    }

    /// Where the state is.
    pub(crate) fn shared_state(&self) -> &RwLock<State> {
        &self.state
    }

    /// The state as it is durable now.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        read(&self.state)
    }

    /// Whether the request may change the state. Others are answered from it,
    /// so whatever came before on the connection must be applied first.
    pub fn is_write(kind: &str) -> bool {
        matches!(
            kind,
            "register"
                | "deregister"
                | "set_visibility"
                | "set_hostname"
                | "set_tags"
                | "set_task_exec"
                | "report_trust"
                | "revoke_trust"
                | "request_handshake"
                | "respond_handshake"
                | "rotate_key"
                | "update_polo_score"
                | "set_polo_score"
        )
    }

    /// Judges one request of `asker` at `now` (Unix seconds).
    ///
    /// # Errors
    /// Says why it is refused.
    pub fn admit(&self, fields: &Fields<'_>, asker: &Asker, now: u64) -> Result<Admitted, Refusal> {
        let source = asker.source;
        let node = NodeId(fields.node_id);
        let peer = NodeId(fields.peer_id);
        let op = match fields.kind.as_ref() {
            "lookup" => {
                let state = self.state();
                let record = &state.node(node)?.record;
                let by = asker
                    .session
                    .filter(|s| state.node(s.node).is_ok_and(|asker| asker.record.key == s.key));
                let shown = |network: &Network| {
                    is_open(network) || by.is_some_and(|by| network.members.contains_key(&by.node))
                };
                return Ok(reply(lookup_of(&state, record, shown)));
            }
            "resolve" => return self.resolve(fields, asker),
            "resolve_hostname" => return self.resolve_hostname(fields),
            "heartbeat" => {
                let text = || challenge::heartbeat(node);
                let heard = |_: &State, node: &Node| node.touch(now);
                self.repeated(node, asker, fields, Node::HEARTBEAT, text, heard)?;
                return Ok(reply(Heartbeat { time: now }));
            }
            "poll_handshakes" => {
                let text = || challenge::poll_handshakes(node);
                let waits = |state: &State, _: &Node| state.has_handshakes(node);
                let (by, waits) =
                    self.repeated(node, asker, fields, Node::POLL_HANDSHAKES, text, waits)?;
                if !waits {
                    return Ok(reply(Handshakes { requests: vec![], responses: vec![] }));
                }
                Op::TakeHandshakes { by }
            }
            "register" => self.register(fields, source, now)?,
            "deregister" => {
                if self.state().node(node).is_err() {
                    return Ok(reply(Deregistered {}));
                }
                Op::Deregister { by: self.signed(node, fields, || challenge::deregister(node))? }
            }
            "set_visibility" => {
                let by = self.signer(node, asker, fields, || challenge::set_visibility(node))?;
                Op::SetVisibility { by, public: fields.public }
            }
            "set_hostname" => {
                let by = self.signer(node, asker, fields, || challenge::set_hostname(node))?;
                if !fields.hostname.is_empty() {
                    check_hostname(&fields.hostname)?;
                }
                Op::SetHostname { by, hostname: fields.hostname.clone().into_owned() }
            }
            "set_tags" => {
                let by = self.signer(node, asker, fields, || challenge::set_tags(node))?;
                Op::SetTags { by, tags: check_tags(&fields.tags)? }
            }
            "set_task_exec" => {
                let by = self.signer(node, asker, fields, || challenge::set_task_exec(node))?;
                Op::SetTaskExec { by, enabled: fields.enabled }
            }
            "report_trust" => {
                let by =
                    self.signer(node, asker, fields, || challenge::report_trust(node, peer))?;
                Op::ReportTrust { by, peer }
            }
            "revoke_trust" => {
                let by =
                    self.signer(node, asker, fields, || challenge::revoke_trust(node, peer))?;
                Op::RevokeTrust { by, peer }
            }
            "request_handshake" => {
                let (from, to) = (NodeId(fields.from_node_id), NodeId(fields.to_node_id));
                let by =
                    self.signer(from, asker, fields, || challenge::request_handshake(from, to))?;
                let justification = cut(&fields.justification, MAX_JUSTIFICATION).to_owned();
                Op::RequestHandshake { by, to, justification }
            }
            "respond_handshake" => {
                let by =
                    self.signer(node, asker, fields, || challenge::respond_handshake(node, peer))?;
                Op::RespondHandshake { by, peer, accept: fields.accept }
            }
            "rotate_key" => {
                let by = self.signed(node, fields, || challenge::rotate_key(node))?;
                let new_key =
                    PublicKey::from_base64(&fields.new_public_key).ok_or(Refusal::BadKey)?;
                Op::RotateKey { by, new_key }
            }
            "punch" => return self.punch(fields, asker),
            "get_polo_score" => {
                let state = self.state();
                let record = &state.node(node)?.record;
                let (address, polo_score) = (record.address(), record.polo_score);
                return Ok(reply(PoloScore { node_id: node, address, polo_score }));
            }
            "update_polo_score" => {
                let delta = fields.delta.ok_or(Refusal::Missing("delta"))?;
                Op::UpdatePoloScore { node: self.scored(node, source, now)?, delta }
            }
            "set_polo_score" => {
                let polo_score = fields.polo_score.ok_or(Refusal::Missing("polo_score"))?;
                Op::SetPoloScore { node: self.scored(node, source, now)?, polo_score }
            }
            "beacon_register" => {
                lock(&self.beacons).register(fields.beacon_id, &fields.addr, now)?;
                return Ok(reply(BeaconRegistered { beacon_id: fields.beacon_id }));
            }
            "beacon_list" => {
                return Ok(reply(BeaconList { beacons: lock(&self.beacons).list(now) }));
            }
            other => return Err(Refusal::UnknownType(cut(other, 64).to_owned())),
        };
        let request = cut(&fields.request_id, MAX_REQUEST_ID).to_owned();
        let origin = Origin { source: Some(source), request };
        Ok(Admitted::Write(Command { at: now, origin, op }))
    }

    /// A node whose score may be changed from there now.
    fn scored(&self, node: NodeId, source: SocketAddr, now: u64) -> Result<NodeId, Refusal> {
        self.state().node(node)?;
        if !lock(&self.scores).take(source.ip(), now) {
            return Err(Refusal::RateLimited);
        }
        Ok(node)
    }

    /// Checks the request's signature under the key of `node`, unless the
    /// connection is a session of that node under that key.
    fn signer(
        &self,
        node: NodeId,
        asker: &Asker,
        fields: &Fields<'_>,
        challenge: impl FnOnce() -> String,
    ) -> Result<Signer, Refusal> {
        // The lock is not held while verifying; applying compares the key.
        let key = self.state().node(node)?.record.key;
        if let Some(signer) = asker.session.filter(|s| s.node == node && s.key == key) {
            return Ok(signer);
        }
        verified(node, key, fields, challenge)
    }

    /// Checks the request's signature under the key of `node`, on a session too:
    /// what takes a node's place away needs its key, not only its connection.
    fn signed(
        &self,
        node: NodeId,
        fields: &Fields<'_>,
        challenge: impl FnOnce() -> String,
    ) -> Result<Signer, Refusal> {
        let key = self.state().node(node)?.record.key;
        verified(node, key, fields, challenge)
    }

    /// As [`Self::signer`], for what a node signs alike each time, so that it is
    /// verified once; `look` looks at the node then, under one lock with the
    /// check if it is known.
    fn repeated<T>(
        &self,
        node: NodeId,
        asker: &Asker,
        fields: &Fields<'_>,
        kind: u8,
        challenge: impl FnOnce() -> String,
        look: impl FnOnce(&State, &Node) -> T,
    ) -> Result<(Signer, T), Refusal> {
        let signature = Signature::from_base64(&fields.signature);
        {
            let state = self.state();
            let found = state.node(node)?;
            let signer = Signer { node, key: found.record.key };
            let good = |signature: &Signature| found.knows_signature(kind, &signature.0);
            if asker.session == Some(signer) || signature.as_ref().is_some_and(good) {
                return Ok((signer, look(&state, found)));
            }
        }
        let signer = self.signer(node, asker, fields, challenge)?;
        let state = self.state();
        let found = state.node(node)?;
        if let Some(signature) = signature {
            found.remember_signature(kind, &signer.key, &signature.0);
        }
        Ok((signer, look(&state, found)))
    }

    /// Checks that `signature` answers the nonce that a connection was given,
    /// and says under which key.
    ///
    /// # Errors
    /// When it does not, or the node is not registered.
    pub fn session_signer(
        &self,
        node: NodeId,
        nonce: &str,
        signature: Signature,
    ) -> Result<Signer, Refusal> {
        let key = self.state().node(node)?.record.key;
        if !verifies(key, &challenge::session(node, nonce), signature) {
            return Err(Refusal::BadSignature(node));
        }
        Ok(Signer { node, key })
    }

    fn register(&self, fields: &Fields<'_>, source: SocketAddr, now: u64) -> Result<Op, Refusal> {
        let admitted = lock(&self.rate).take(source.ip(), now);
        let key = PublicKey::from_base64(&fields.public_key).ok_or(Refusal::BadKey)?;
        let known = self.state().key(&key);
        let admitted = match known {
            Some(_) => lock(&self.returns).take(source.ip(), now),
            None => admitted,
        };
        if !admitted {
            return Err(Refusal::RateLimited);
        }
        let proven = proof(fields, key, now)?;
        if known.is_some_and(|k| k.proven) && !proven {
            return Err(Refusal::ProofRequired);
        }
        if fields.owner.len() > MAX_OWNER {
            return Err(Refusal::OwnerTooLong);
        }
        Ok(Op::Register(Register {
            key,
            endpoint: endpoint(&fields.listen_addr, source),
            owner: fields.owner.clone().into_owned(),
            // Kept long enough to be refused as malformed.
            hostname: cut(&fields.hostname, 64).to_owned(),
            proven,
            takeover: self.owner_recovery,
        }))
    }

    fn resolve(&self, fields: &Fields<'_>, asker: &Asker) -> Result<Admitted, Refusal> {
        let (requester, target) = (NodeId(fields.requester_id), NodeId(fields.node_id));
        self.signer(requester, asker, fields, || challenge::resolve(requester, target))?;
        let state = self.state();
        let node = state.node(target)?;
        if !state.may_resolve(requester, node) {
            return Err(Refusal::Private(target));
        }
        let real_addr = node.record.endpoint.to_string();
        Ok(reply(Resolved { node_id: target, real_addr }))
    }

    fn resolve_hostname(&self, fields: &Fields<'_>) -> Result<Admitted, Refusal> {
        let state = self.state();
        let record = &state.named(cut(&fields.hostname, 64))?.record;
        Ok(reply(ResolvedHostname {
            node_id: record.id,
            address: record.address(),
            public: record.public,
            hostname: record.hostname.clone(),
        }))
    }

    /// Gives both addresses to one of the two, if it may resolve the other.
    fn punch(&self, fields: &Fields<'_>, asker: &Asker) -> Result<Admitted, Refusal> {
        let requester = NodeId(fields.requester_id);
        let (a, b) = (NodeId(fields.node_a), NodeId(fields.node_b));
        let other = match requester {
            r if r == a => b,
            r if r == b => a,
            _ => return Err(Refusal::Outsider),
        };
        self.signer(requester, asker, fields, || challenge::punch(a, b))?;
        let state = self.state();
        if !state.may_resolve(requester, state.node(other)?) {
            return Err(Refusal::Private(other));
        }
        let addr = |id| state.node(id).map(|n| n.record.endpoint.to_string());
        Ok(reply(Punch { node_a: a, node_a_addr: addr(a)?, node_b: b, node_b_addr: addr(b)? }))
    }
}

/// Checks the request's signature under `key`, which is that of `node`.
fn verified(
    node: NodeId,
    key: PublicKey,
    fields: &Fields<'_>,
    challenge: impl FnOnce() -> String,
) -> Result<Signer, Refusal> {
    let signature = Signature::from_base64(&fields.signature);
    if !signature.is_some_and(|signature| verifies(key, &challenge(), signature)) {
        return Err(Refusal::BadSignature(node));
    }
    Ok(Signer { node, key })
}

/// The records from the front that fit into an answer; the rest is on the next
/// page.
fn fitting(page: AuditPage) -> AuditPage {
    let AuditPage { records, next } = page;
    let (records, cut) = views::page_within(records, usize::MAX, AUDIT_ROOM);
    let next = if cut { records.last().map(|record| record.seq) } else { next };
    AuditPage { records, next }
}

/// A rate that only counts where registrations are limited.
const fn beside(register_rate: u32, rate: u32) -> u32 {
    if register_rate == 0 { 0 } else { rate }
}

fn reply(reply: impl Into<Acknowledged>) -> Admitted {
    Admitted::Reply(reply.into())
}

/// What there is to know of a node.
pub(crate) fn lookup(state: &State, record: &NodeRecord) -> Lookup {
    lookup_of(state, record, |_| true)
}

/// The same, with those of its networks that are `shown`. In which closed
/// networks a node is, others need not know.
fn lookup_of(state: &State, record: &NodeRecord, shown: impl Fn(&Network) -> bool) -> Lookup {
    let networks = state
        .memberships(record.id)
        .filter(|(network, _)| shown(network))
        .map(|(network, _)| network.record.id);
    Lookup {
        node_id: record.id,
        address: record.address(),
        networks: std::iter::once(0).chain(networks).collect(),
        public_key: record.key,
        public: record.public,
        polo_score: record.polo_score,
        hostname: Some(&record.hostname).filter(|h| !h.is_empty()).cloned(),
        tags: record.tags.clone(),
        task_exec: record.task_exec,
        real_addr: record.public.then(|| record.endpoint.to_string()),
    }
}

/// Whether the request proves possession of `key`: a signature over a time
/// close to ours and the listen address. None at all is no proof, a stale one
/// neither, a false one is refused.
fn proof(fields: &Fields<'_>, key: PublicKey, now: u64) -> Result<bool, Refusal> {
    if fields.proof.is_empty() {
        return Ok(false);
    }
    let timestamp =
        fields.timestamp.and_then(|t| u64::try_from(t).ok()).ok_or(Refusal::BadProof)?;
    let signature = Signature::from_base64(&fields.proof).ok_or(Refusal::BadProof)?;
    if timestamp.abs_diff(now) > PROOF_WINDOW {
        return Ok(false);
    }
    if !verifies(key, &challenge::register(timestamp, &fields.listen_addr), signature) {
        return Err(Refusal::BadProof);
    }
    Ok(true)
}

fn verifies(key: PublicKey, message: &str, signature: Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    VerifyingKey::from_bytes(&key.0)
        .is_ok_and(|key| key.verify_strict(message.as_bytes(), &signature).is_ok())
}

/// The host is always the source's; the port that of `host:port`, or the
/// source's when there is none.
fn endpoint(listen_addr: &str, source: SocketAddr) -> SocketAddr {
    let ip: IpAddr = source.ip();
    let stated = listen_addr.rsplit_once(':').and_then(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        (bracketed || !host.contains(':')).then_some(port)?.parse().ok()
    });
    SocketAddr::new(ip, stated.unwrap_or(source.port()))
}

/// At most `max` bytes, cut between characters.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A panic elsewhere leaves whole values behind in what these locks guard, so
/// poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    state.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use pilot_wire::registry::audit::{AuditActor, AuditRecord, AuditResult};

    use super::*;

    #[test]
    fn endpoints_take_the_port_only() {
        let source: SocketAddr = "192.0.2.7:555".parse().unwrap();
        for (listen, port) in [
            ("203.0.113.9:4000", 4000),
            (":7", 7),
            ("[::]:9", 9),
            ("host.example:1", 1),
            ("", 555),
            ("nonsense", 555),
            ("::1", 555),
            (":http", 555),
            (":99999", 555),
        ] {
            assert_eq!(
                endpoint(listen, source).to_string(),
                format!("192.0.2.7:{port}"),
                "{listen}"
            );
        }
    }

    fn asker(source: &str) -> Asker {
        Asker { source: source.parse().unwrap(), session: None }
    }

    /// Node 1 is there, with the key of this seed; so many registrations a minute.
    fn service(seed: u8, rate: u32) -> Service {
        let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
        let mut state = State::default();
        let register = Register {
            key: PublicKey(key),
            endpoint: "192.0.2.7:4000".parse().unwrap(),
            owner: String::new(),
            hostname: String::new(),
            proven: false,
            takeover: false,
        };
        state.apply(&Command::own(1, Op::Register(register))).unwrap();
        Service::new(Arc::new(RwLock::new(state)), rate, false)
    }

    fn codes(service: &Service, request: &str, from: &str, times: usize) -> Vec<&'static str> {
        let fields = Fields::parse(request.as_bytes()).unwrap();
        let code = |_| match service.admit(&fields, &asker(from), 100) {
            Ok(_) => "",
            Err(refusal) => refusal.code(),
        };
        (0..times).map(code).collect()
    }

    #[test]
    fn what_anybody_can_write_is_limited_by_source() {
        let limited = service(7, 10);
        let key = limited.state().node(NodeId(1)).unwrap().record.key;
        let again = format!(r#"{{"type":"register","public_key":"{key}"}}"#);
        let score = r#"{"type":"update_polo_score","node_id":1,"delta":1}"#;
        for (request, rate) in [(again.as_str(), RETURNS), (score, SCORES)] {
            let rate = rate as usize;
            let codes = codes(&limited, request, "[2001:db8::1]:5", rate + 1);
            assert_eq!((&codes[..rate], codes[rate]), (&vec![""; rate][..], "rate_limited"));
        }
        // The same /64, and another source.
        assert_eq!(codes(&limited, score, "[2001:db8::2]:5", 1), ["rate_limited"]);
        assert_eq!(codes(&limited, score, "192.0.2.9:5", 1), [""]);
        let unlimited = service(7, 0);
        assert_eq!(codes(&unlimited, score, "192.0.2.9:5", 1000), [""; 1000]);
        assert_eq!(codes(&unlimited, &again, "192.0.2.9:5", 1000), [""; 1000]);
    }

    #[test]
    fn guessing_tokens_is_slowed() {
        let right = "0123456789abcdef";
        for (source, rate, slowed) in
            [("192.0.2.9:5", 0, true), ("127.0.0.1:5", 10, true), ("127.0.0.1:5", 0, false)]
        {
            let service = service(7, rate).with_admins(Admins::by_token(Some(right)), false);
            let asker = asker(source);
            for _ in 0..GUESSES {
                assert_eq!(service.shown("wrong", &asker, 100), Err(Refusal::BadAdminToken));
            }
            let shown = service.shown(right, &asker, 100);
            assert_eq!(shown.is_err(), slowed, "{source} {shown:?}");
            assert!(service.shown(right, &asker, 106).is_ok());
        }
    }

    #[test]
    fn a_session_does_not_replace_the_signature_of_what_ends_a_node() {
        let service = service(7, 0);
        let key = service.state().node(NodeId(1)).unwrap().record.key;
        let session = Some(Signer { node: NodeId(1), key });
        let asker = Asker { session, ..asker("192.0.2.9:5") };
        let new = PublicKey([9; 32]);
        for (kind, signed, bare) in [
            ("deregister", "deregister:1", "bad_signature"),
            ("rotate_key", "rotate:1", "bad_signature"),
            ("set_visibility", "set_visibility:1", ""),
        ] {
            let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
            let signature = ed25519_dalek::Signer::sign(&signing, signed.as_bytes());
            let signature = Signature(signature.to_bytes());
            for (signature, wanted) in [(String::new(), bare), (signature.to_string(), "")] {
                let request = format!(
                    r#"{{"type":"{kind}","node_id":1,"new_public_key":"{new}","signature":"{signature}"}}"#
                );
                let fields = Fields::parse(request.as_bytes()).unwrap();
                let code = service.admit(&fields, &asker, 100).map_or_else(|r| r.code(), |_| "");
                assert_eq!(code, wanted, "{kind} {signature:?}");
            }
        }
    }

    #[test]
    fn pages_of_the_audit_log_end_by_size() {
        let record = |seq| AuditRecord {
            seq,
            time: 1,
            command: seq,
            actor: AuditActor::default(),
            source: String::new(),
            operation: "reap".to_owned(),
            object: String::new(),
            result: AuditResult::Allowed,
            code: String::new(),
            rule: String::new(),
            detail: "x".repeat(AUDIT_ROOM / 3),
            request_id: String::new(),
            count: 1,
            previous: String::new(),
            hash: String::new(),
        };
        let page = fitting(AuditPage { records: (1..=4).map(record).collect(), next: None });
        assert_eq!((page.records.len(), page.next), (2, Some(2)));
        let page = fitting(AuditPage { records: (3..=4).map(record).collect(), next: Some(4) });
        assert_eq!((page.records.len(), page.next), (2, Some(4)));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!((cut("aé", 2), cut("aé", 3), cut("", 5)), ("a", "aé", ""));
    }
}
