//! Keeps memberships: takes what the registry says, joins what the
//! configuration names, renews in time, and ends by the clock what has expired.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pilot_wire::NodeId;
use pilot_wire::registry::network::{Membership, NetworkRef};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::proof::{self, ProofError};
use super::status::{State, Status};
use super::{NetworksParts, News, Published, numbers};
use crate::config::{Plaintext, WantedNetwork};
use crate::control::{Moment, RegistryError, Watched};
use crate::events::other;

/// Pauses between attempts that were refused; they double, and each is cut by
/// up to half at random.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The pause after an attempt for which there was no session.
const AWAY_PAUSE: Duration = Duration::from_secs(2);
/// The longest sleep: clocks are set, and memberships end by the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Why a membership ended that has a term.
const EXPIRED: &str = "expired";
/// A membership that ends within so many seconds and is not known to the
/// registry any more has expired there.
const SKEW: u64 = 300;
/// A membership with less left than this, in seconds, is not taken for success:
/// clocks may differ, and joining must not turn into a loop.
const SHORT: u64 = 60;
/// A membership is not renewed more often than this, in seconds.
const RENEW: u64 = 5;
/// Peers remembered of which networks were forgotten; beyond it what was looked up
/// of any peer is looked up again.
const MAX_FORGOTTEN: usize = 4096;
/// Why a membership ended of which the registry does not want to know.
const WITHDRAWN: &str = "the registry refuses sessions";
/// Networks that are shown though this node has left them and no configuration
/// names them; beyond it the oldest are forgotten.
const MAX_LEFT: usize = 64;

/// What came of a join.
type Judged = Result<(Membership, Moment), Failed>;

pub(super) struct Task {
    parts: NetworksParts,
    watched: Watched,
    shared: Arc<Mutex<Published>>,
    memberships: BTreeMap<u16, Membership>,
    entries: Vec<Entry>,
    /// The registry has said on this session which memberships there are.
    synced: bool,
    /// It has said so in this run.
    heard: bool,
    joins: JoinSet<(usize, Judged)>,
    /// When the registry last said all, and how this node stands with one network:
    /// what it said before is over. At most one for each network.
    said: Moment,
    said_of: BTreeMap<u16, Moment>,
}

/// A network that is wanted, joined, or was.
struct Entry {
    wanted: Option<WantedNetwork>,
    id: Option<u16>,
    name: Option<String>,
    state: State,
    reason: Option<String>,
    since: u64,
    /// Not tried before.
    next_try: Option<Instant>,
    pause: Duration,
    joining: bool,
    /// When its membership is renewed, Unix seconds.
    renew: Option<u64>,
    /// Little was left of the membership when it came.
    short: bool,
    /// Another one stands for the same network.
    duplicate: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Task {
    pub(super) fn new(
        parts: NetworksParts,
        watched: Watched,
        shared: Arc<Mutex<Published>>,
    ) -> Self {
        let now = (parts.clock)();
        let entries =
            parts.wanted.iter().cloned().map(|wanted| Entry::wanted(wanted, now)).collect();
        let valid = |m: &Membership| m.expires.is_none_or(|at| at > now);
        let remembered = match parts.plaintext {
            Plaintext::Refuse => Vec::new(),
            Plaintext::Fine | Plaintext::Warn => parts.store.memberships(),
        };
        let memberships: BTreeMap<u16, Membership> =
            remembered.into_iter().filter(valid).map(|m| (m.network, m)).collect();
        let mut task = Self {
            parts,
            watched,
            shared,
            memberships: BTreeMap::new(),
            entries,
            synced: false,
            heard: false,
            joins: JoinSet::new(),
            said: 0,
            said_of: BTreeMap::new(),
        };
        for membership in memberships.into_values() {
            task.note(membership);
        }
        if let Some(warning) = task.parts.plaintext.warning()
            && !task.entries.is_empty()
        {
            tracing::warn!("{warning}");
        }
        task.publish();
        task
    }

    pub(super) async fn run(mut self, mut news: mpsc::Receiver<News>) {
        self.restore().await;
        let mut session = self.parts.member.session().watch();
        let mut link = self.parts.member.registry().link();
        loop {
            self.expire().await;
            self.start_due();
            self.publish();
            let wake = self.wake();
            tokio::select! {
                news = news.recv() => match news {
                    Some(news) => self.take(news).await,
                    None => return,
                },
                Some(done) = self.joins.join_next(), if !self.joins.is_empty() => match done {
                    Ok((index, result)) => self.tried(index, result).await,
                    Err(e) => tracing::error!("joining a network ended badly: {e}"),
                },
                evicted = self.watched.evicted() => self.forget(evicted).await,
                Ok(()) = session.changed() => {}
                Ok(()) = link.changed() => {}
                () = sleep_until(wake) => {}
            }
            self.synced &= self.parts.member.has_session();
        }
    }

    /// Known peers are permitted before the registry has been asked.
    async fn restore(&mut self) {
        self.parts.permits.set_own(numbers(&self.memberships)).await;
        for (node, networks) in self.parts.store.shared() {
            self.parts.permits.set_shared(node, &networks, &[]).await;
            self.watched.touch(node);
        }
    }

    /// Nothing follows of these peers any more, so what they share counts no
    /// longer. When one comes again it is found again.
    async fn forget(&mut self, nodes: BTreeSet<NodeId>) {
        for node in nodes {
            if self.watched.has(node) || self.parts.permits.shared(node).await.is_empty() {
                continue;
            }
            {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                if shared.forgotten.len() >= MAX_FORGOTTEN {
                    shared.forgotten.clear();
                    shared.generation += 1;
                }
                shared.forgotten.insert(node);
            }
            let left = self.parts.permits.set_shared(node, &[], &[]).await;
            self.parts.store.set_shared(node, &left);
        }
    }

    /// Whether the registry has said something of a network after `moment`.
    fn is_over(&mut self, network: u16, moment: Moment) -> bool {
        let last = self.said_of.get(&network).copied().unwrap_or_default().max(self.said);
        if moment >= last {
            self.said_of.insert(network, moment);
        }
        moment < last
    }

    async fn take(&mut self, news: News) {
        let done = match news {
            News::Synced(all, done) => {
                if let Some((all, renewed, moment)) = all {
                    self.said = moment;
                    let all = if self.parts.plaintext == Plaintext::Refuse { vec![] } else { all };
                    self.sync(all, renewed).await;
                }
                (self.synced, self.heard) = (true, true);
                done
            }
            News::Joined(membership, moment, done) => {
                if !self.is_over(membership.network, moment) {
                    self.adopt(membership).await;
                }
                done
            }
            News::Left { network, name, reason, moment, done } => {
                if !self.is_over(network, moment) {
                    self.leave(network, Some(name), &reason, reason == EXPIRED).await;
                }
                done
            }
            News::Withdrawn(done) => {
                let all: Vec<u16> = self.memberships.keys().copied().collect();
                for network in all {
                    self.leave(network, None, WITHDRAWN, true).await;
                }
                done
            }
        };
        self.publish();
        // An error means that nobody waits for it.
        let _ = done.send(());
    }

    /// `renewed` says that the registry's state is another one: what it does not
    /// know was not taken from this node.
    async fn sync(&mut self, all: Vec<Membership>, renewed: bool) {
        let gone: Vec<u16> = self
            .memberships
            .keys()
            .copied()
            .filter(|network| all.iter().all(|m| m.network != *network))
            .collect();
        let now = (self.parts.clock)();
        for network in gone {
            let expires = self.memberships.get(&network).and_then(|m| m.expires);
            let reason = match renewed {
                true => "lost by the registry",
                // The registry's clock decides, and may be ahead.
                false if expires.is_some_and(|at| at <= now + SKEW) => EXPIRED,
                false => "removed",
            };
            // What the configuration names is joined at every start.
            let again = reason != "removed" || !self.heard;
            self.leave(network, None, reason, again).await;
        }
        for membership in all {
            self.adopt(membership).await;
        }
    }

    /// This node is in a network.
    async fn adopt(&mut self, membership: Membership) {
        let network = membership.network;
        if self.parts.plaintext == Plaintext::Refuse {
            return;
        }
        if self.memberships.get(&network) == Some(&membership) {
            return;
        }
        let new = !self.memberships.contains_key(&network);
        let (name, expires) = (membership.name.clone(), membership.expires);
        self.note(membership);
        self.changed().await;
        if new {
            tracing::info!(network, "in network {name}");
            if let Some(warning) = self.parts.plaintext.warning() {
                tracing::warn!(network, "{warning}");
            }
            self.parts.events.emit(|| {
                other(
                    "network.joined",
                    json!({"expires": expires, "name": name, "network": network}),
                )
            });
        }
    }

    fn note(&mut self, membership: Membership) {
        let now = (self.parts.clock)();
        let index = self.entry(&membership);
        let entry = &mut self.entries[index];
        entry.id = Some(membership.network);
        entry.name = Some(membership.name.clone());
        entry.stand(State::Joined, None, now);
        entry.next_try = None;
        let left = membership.expires.map(|at| at.saturating_sub(now));
        entry.short = left.is_some_and(|left| left < SHORT);
        if !entry.short {
            entry.pause = FIRST_PAUSE;
        }
        // At 80 % of what is left of it.
        entry.renew = left.map(|left| now + (left * 4 / 5).max(RENEW));
        let shown = entry.shown();
        // The configuration may name it by its name and by its number.
        for (other, entry) in self.entries.iter_mut().enumerate() {
            if other != index && entry.is(membership.network, &membership.name) {
                entry.duplicate = true;
                (entry.next_try, entry.renew) = (None, None);
                entry.stand(State::Left, Some(format!("duplicate of {shown}")), now);
            }
        }
        self.memberships.insert(membership.network, membership);
    }

    /// The entry of a network; made when it is not there.
    fn entry(&mut self, membership: &Membership) -> usize {
        let Membership { network, name, .. } = membership;
        let same = |e: &Entry| e.is(*network, name);
        if let Some(index) = self.entries.iter().position(same) {
            return index;
        }
        self.entries.push(Entry {
            wanted: None,
            id: Some(*network),
            name: Some(name.clone()),
            state: State::Joined,
            reason: None,
            since: (self.parts.clock)(),
            next_try: None,
            pause: FIRST_PAUSE,
            joining: false,
            renew: None,
            short: false,
            duplicate: false,
        });
        self.entries.len() - 1
    }

    /// This node is no longer in a network. `again` says whether one that the
    /// configuration names is joined again.
    async fn leave(&mut self, network: u16, name: Option<String>, reason: &str, again: bool) {
        let now = (self.parts.clock)();
        let before = self.memberships.remove(&network);
        let name = name.or_else(|| before.as_ref().map(|m| m.name.clone())).unwrap_or_default();
        if let Some(entry) = self.entries.iter_mut().find(|e| e.is(network, &name)) {
            let state = if again && entry.wanted.is_some() { State::Waiting } else { State::Left };
            entry.stand(state, Some(reason.to_owned()), now);
            (entry.next_try, entry.renew) = (None, None);
            if entry.short {
                entry.back_off();
            }
            if matches!(&entry.wanted, Some(w) if matches!(w.network, NetworkRef::Name(_))) {
                // The next one of that name may have another number.
                entry.id = None;
            }
        }
        self.forget_left();
        if before.is_none() {
            return;
        }
        self.changed().await;
        tracing::info!(network, reason, "no longer in network {name}");
        self.parts.events.emit(|| {
            other("network.left", json!({"name": name, "network": network, "reason": reason}))
        });
    }

    fn forget_left(&mut self) {
        // Numbers of entries must stay while attempts know them.
        if !self.joins.is_empty() {
            return;
        }
        let idle = |e: &Entry| e.wanted.is_none() && e.state == State::Left;
        let mut many = self.entries.iter().filter(|e| idle(e)).count().saturating_sub(MAX_LEFT);
        self.entries.retain(|e| {
            let goes = many > 0 && idle(e);
            many -= usize::from(goes);
            !goes
        });
    }

    /// Makes a change of memberships count.
    async fn changed(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).generation += 1;
        self.publish();
        self.parts.permits.set_own(numbers(&self.memberships)).await;
        self.parts.store.set_memberships(self.memberships.values().cloned().collect());
        self.watched.refresh_all();
    }

    /// Ends what has expired, also while the registry is away.
    async fn expire(&mut self) {
        let now = (self.parts.clock)();
        let over = |m: &&Membership| m.expires.is_some_and(|at| at <= now);
        let over: Vec<u16> = self.memberships.values().filter(over).map(|m| m.network).collect();
        for network in over {
            self.leave(network, None, EXPIRED, true).await;
        }
    }

    /// Tries to join what is due.
    fn start_due(&mut self) {
        let (now, moment) = ((self.parts.clock)(), Instant::now());
        let blocked = match self.parts.member.need_session() {
            _ if self.parts.plaintext == Plaintext::Refuse => Some(Plaintext::REFUSED.to_owned()),
            Ok(()) if self.synced => None,
            Ok(()) => Some("the registry has not said yet where this node is in".to_owned()),
            Err(e) => Some(e.to_string()),
        };
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let Some(wanted) = entry.wanted.clone() else { continue };
            let renews = entry.renew.is_some_and(|at| at <= now);
            let tries = match entry.state {
                State::Joined => renews,
                State::Left | State::Joining => false,
                State::Refused | State::Waiting => true,
            };
            if !tries || entry.joining {
                continue;
            }
            if let Some(reason) = &blocked {
                if entry.state != State::Joined {
                    entry.stand(State::Waiting, Some(reason.clone()), now);
                }
                continue;
            }
            if entry.next_try.is_some_and(|at| at > moment) {
                continue;
            }
            entry.joining = true;
            if entry.state != State::Joined {
                entry.stand(State::Joining, None, now);
            }
            let member = self.parts.member.clone();
            let environment = Arc::clone(&self.parts.environment);
            self.joins.spawn(async move {
                let attempt = async {
                    let proofs = proof::gather(&wanted, &environment).await?;
                    Ok(member.join_network(wanted.network, proofs).await?)
                };
                (index, attempt.await)
            });
        }
    }

    async fn tried(&mut self, index: usize, result: Result<(Membership, Moment), Failed>) {
        let now = (self.parts.clock)();
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.joining = false;
        let failed = match result {
            Ok((membership, moment)) => {
                if self.is_over(membership.network, moment) {
                    // It was left again before this was read.
                    let entry = &mut self.entries[index];
                    if entry.state == State::Joining {
                        entry.back_off();
                        let reason = "the membership ended at once".to_owned();
                        entry.stand(State::Waiting, Some(reason), now);
                    }
                    return;
                }
                let entry = &mut self.entries[index];
                // By its number from now on: the configuration may say a name.
                entry.id = Some(membership.network);
                entry.name = Some(membership.name.clone());
                return self.adopt_renewed(membership).await;
            }
            Err(failed) => failed,
        };
        if entry.duplicate {
            return;
        }
        let reason = failed.to_string();
        let away = matches!(
            &failed,
            Failed::Registry(
                RegistryError::Unreachable(_)
                    | RegistryError::NoSession(_)
                    | RegistryError::NoNetworks
                    | RegistryError::Unregistered
            )
        );
        if away {
            // A connection that ends while it joins may end because it joins.
            if matches!(failed, Failed::Registry(RegistryError::Unreachable(_))) {
                entry.back_off();
            } else {
                entry.next_try = Some(Instant::now() + AWAY_PAUSE);
            }
            if entry.state == State::Joining {
                entry.stand(State::Waiting, Some(reason), now);
            }
            return;
        }
        let pause = entry.back_off();
        let shown = entry.shown();
        tracing::warn!("network {shown} cannot be joined: {reason}; next attempt in {pause:.0?}");
        if entry.state == State::Joining {
            entry.stand(State::Refused, Some(reason.clone()), now);
        } else {
            // It is in until the membership ends.
            entry.reason = Some(reason.clone());
        }
        self.parts
            .events
            .emit(|| other("network.refused", json!({"network": shown, "reason": reason})));
    }

    /// The same membership may come back from renewing; the clock starts anew.
    async fn adopt_renewed(&mut self, membership: Membership) {
        if self.memberships.get(&membership.network) == Some(&membership) {
            self.note(membership);
            return;
        }
        self.adopt(membership).await;
    }

    /// When there is something to do by the clock.
    fn wake(&self) -> Instant {
        let (now, moment) = ((self.parts.clock)(), Instant::now());
        let ends = self.memberships.values().filter_map(|m| m.expires);
        let renewals = self.entries.iter().filter(|e| !e.joining).filter_map(|e| e.renew);
        let renewals = renewals.filter(|at| *at > now);
        let by_clock = ends.chain(renewals).min();
        let by_clock =
            by_clock.map(|at| moment + Duration::from_secs(at.saturating_sub(now).min(60)));
        let tries = self.entries.iter().filter(|e| !e.joining).filter_map(|e| e.next_try);
        let soonest = by_clock.into_iter().chain(tries.filter(|at| *at > moment)).min();
        soonest.unwrap_or(moment + LONGEST_SLEEP).min(moment + LONGEST_SLEEP)
    }

    fn publish(&self) {
        let (now, moment) = ((self.parts.clock)(), Instant::now());
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.memberships.clone_from(&self.memberships);
        shared.buckets.retain(|network, _| self.memberships.contains_key(network));
        shared.status = self
            .entries
            .iter()
            .map(|entry| {
                let membership = entry.id.and_then(|id| self.memberships.get(&id));
                entry.status(membership, now, moment)
            })
            .collect();
    }
}

impl Entry {
    fn wanted(wanted: WantedNetwork, now: u64) -> Self {
        let (id, name) = match &wanted.network {
            NetworkRef::Id(id) => (Some(*id), None),
            NetworkRef::Name(name) => (None, Some(name.clone())),
        };
        Self {
            wanted: Some(wanted),
            id,
            name,
            state: State::Waiting,
            reason: None,
            since: now,
            next_try: None,
            pause: FIRST_PAUSE,
            joining: false,
            renew: None,
            short: false,
            duplicate: false,
        }
    }

    /// Puts the next attempt off, each time for longer. Returns for how long.
    fn back_off(&mut self) -> Duration {
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.next_try = Some(Instant::now() + pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// Whether it is about this network.
    fn is(&self, network: u16, name: &str) -> bool {
        match self.id {
            Some(id) => id == network,
            None => self.name.as_deref() == Some(name),
        }
    }

    fn stand(&mut self, state: State, reason: Option<String>, now: u64) {
        if self.state != state {
            self.since = now;
        }
        (self.state, self.reason) = (state, reason);
    }

    fn shown(&self) -> String {
        match (&self.name, self.id) {
            (Some(name), _) => name.clone(),
            (None, id) => id.unwrap_or_default().to_string(),
        }
    }

    fn status(&self, membership: Option<&Membership>, now: u64, moment: Instant) -> Status {
        let next = self.next_try.filter(|_| self.state != State::Left);
        let in_secs = |at: Instant| now + at.saturating_duration_since(moment).as_secs();
        Status {
            name: self.name.clone(),
            id: self.id,
            state: self.state,
            reason: self.reason.clone(),
            since: self.since,
            next_try: next.map(in_secs),
            configured: self.wanted.is_some(),
            expires: membership.and_then(|m| m.expires),
            tags: membership.map(|m| m.tags.clone()).unwrap_or_default(),
            address: membership.map(|m| m.address),
            external_identity: membership.and_then(|m| m.external_identity.clone()),
            may_broadcast: membership.is_some_and(|m| m.may_broadcast),
        }
    }
}
