//! Refusals that whoever runs the registry wants to know of: an event each, and
//! a command for the audit log, at a bounded rate. Nothing is dropped silently:
//! what is beyond the rate is in the `count` of the next one, or of one that
//! follows within two seconds.
//!
//! Bounds: [`RATE`] commands a second for each code and source address;
//! [`MAX_KINDS`] of those remembered, beyond which sources are counted as one,
//! `0.0.0.0`; [`QUEUE`] commands waiting for the writer, beyond which they are
//! counted as if they were beyond the rate.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilot_wire::NodeId;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::connection::unix_now;
use crate::events::Events;
use crate::limits::grouped;
use crate::state::{Command, Denial, Op, Origin, Refusal, Signer};
use crate::writer::Writer;

/// Commands a second for one code and source.
const RATE: u32 = 20;
/// Codes and sources remembered.
const MAX_KINDS: usize = 65_536;
/// Commands that wait for the writer.
const QUEUE: usize = 1024;
/// Longest name of what a request is about, in characters.
const MAX_OBJECT: usize = 64;
/// The time in which [`RATE`] counts.
const WINDOW: Duration = Duration::from_secs(1);

/// The request that was refused, as far as it can be told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    /// Its type.
    pub operation: String,
    /// The node that it names as its actor.
    pub claimed: Option<NodeId>,
    /// Whose session it came on.
    pub by: Option<Signer>,
    /// What it is about.
    pub object: String,
    /// The client's text.
    pub request_id: String,
}

/// What a request beyond the published ones is about, as in the audit log: its
/// network, its node, or both.
pub(crate) fn object(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct About {
        network: Option<Value>,
        node_id: Option<Value>,
        name: Option<Value>,
    }
    let Ok(About { network, node_id, name }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let text = |value: Value| value.to_string().chars().take(MAX_OBJECT).collect::<String>();
    let network = network.or(name).map(|network| format!("network {}", text(network)));
    let node = node_id.map(|node| format!("node {}", text(node)));
    match (node, network) {
        (Some(node), Some(network)) => format!("{node} in {network}"),
        (node, network) => node.or(network).unwrap_or_default(),
    }
}

/// A way to tell of refusals. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Denials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    events: Events,
    kinds: Mutex<HashMap<(&'static str, IpAddr), Told>>,
    queue: mpsc::Sender<Command>,
}

/// What was told of one code and source.
#[derive(Debug)]
struct Told {
    since: Instant,
    /// In this window.
    told: u32,
    /// The newest that was not told, and how many were not.
    untold: Option<(Command, u64)>,
}

/// The other end: brings the commands to the writer.
pub(crate) struct Teller {
    denials: Denials,
    queue: mpsc::Receiver<Command>,
}

impl Denials {
    /// Tells events too.
    pub(crate) fn new(events: Events) -> (Self, Teller) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let denials = Self(Arc::new(Inner { events, kinds: Mutex::default(), queue: sender }));
        (denials.clone(), Teller { denials, queue })
    }

    /// Tells the audit log of a refusal that it is to hold, and events of one
    /// that is notable. Never waits.
    pub(crate) fn deny(
        &self,
        source: SocketAddr,
        refusal: &Refusal,
        request: impl FnOnce() -> Refused,
    ) {
        if !refusal.is_audited() {
            return;
        }
        self.applied(source, refusal);
        let Refused { operation, claimed, by, mut object, request_id } = request();
        let (code, reason) = (refusal.code().to_owned(), refusal.to_string());
        let rule = match refusal {
            Refusal::NotAdmitted { rule, .. } => rule.clone(),
            _ => String::new(),
        };
        if let Refusal::NotAdmitted { network, .. } = refusal {
            // The request may have named it otherwise than by its number.
            let node = by.map_or_else(String::new, |by| format!("node {} in ", by.node));
            object = format!("{node}network {network}");
        }
        let denial = Denial { operation, claimed, by, object, code, reason, rule, count: 1 };
        let origin = Origin { source: Some(source), request: request_id };
        let command = Command { at: unix_now(), origin, op: Op::Deny(denial) };
        self.note(refusal.code(), source.ip(), command, Instant::now());
    }

    /// Tells of a refusal that the audit log knows of by the refused command.
    pub(crate) fn applied(&self, source: SocketAddr, refusal: &Refusal) {
        if refusal.is_notable() {
            self.0.events.refused(refusal.code(), source, refusal);
        }
    }

    fn note(&self, code: &'static str, source: IpAddr, command: Command, now: Instant) {
        let source = grouped(source);
        let mut kinds = self.kinds();
        let known = kinds.contains_key(&(code, source));
        if !known && kinds.len() >= MAX_KINDS {
            kinds.retain(|_, told| told.untold.is_some() || !told.is_over(now));
        }
        let full = !known && kinds.len() >= MAX_KINDS;
        let source = if full { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { source };
        let told = kinds.entry((code, source)).or_insert_with(|| Told::new(now));
        let count = told.untold.take().map_or(0, |(_, count)| count) + 1;
        told.untold = Some((command, count));
        if told.is_over(now) {
            (told.since, told.told) = (now, 0);
        }
        if told.told < RATE {
            told.tell(&self.0.queue);
        }
    }

    /// Tells what could not be told when it was refused, and forgets what is
    /// over.
    fn sweep(&self, now: Instant) {
        self.kinds().retain(|_, told| {
            if !told.is_over(now) {
                return true;
            }
            (told.since, told.told) = (now, 0);
            let waited = told.untold.is_some();
            told.tell(&self.0.queue);
            waited
        });
    }

    /// Everything that was not told.
    fn rest(&self) -> Vec<Command> {
        let rest = self.kinds().drain().filter_map(|(_, told)| told.untold).collect::<Vec<_>>();
        rest.into_iter().map(|(command, count)| of_count(command, count)).collect()
    }

    /// A panic leaves whole entries behind, so poisoning is ignored.
    fn kinds(&self) -> MutexGuard<'_, HashMap<(&'static str, IpAddr), Told>> {
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    const fn new(now: Instant) -> Self {
        Self { since: now, told: 0, untold: None }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }

    /// Hands over what was not told, if there is room.
    fn tell(&mut self, queue: &mpsc::Sender<Command>) {
        let Ok(place) = queue.try_reserve() else { return };
        if let Some((command, count)) = self.untold.take() {
            self.told += 1;
            place.send(of_count(command, count));
        }
    }
}

fn of_count(mut command: Command, count: u64) -> Command {
    if let Op::Deny(denial) = &mut command.op {
        denial.count = count;
    }
    command
}

impl Teller {
    /// Brings commands to the writer until `end`, and then the rest.
    pub(crate) async fn run(mut self, writer: Writer, mut end: oneshot::Receiver<()>) {
        let mut interval = tokio::time::interval(WINDOW);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut commands = Vec::new();
            tokio::select! {
                _ = self.queue.recv_many(&mut commands, QUEUE) => {}
                _ = interval.tick() => self.denials.sweep(Instant::now()),
                _ = &mut end => break,
            }
            tell(&writer, commands).await;
        }
        let mut commands = self.denials.rest();
        while let Ok(command) = self.queue.try_recv() {
            commands.push(command);
        }
        tell(&writer, commands).await;
    }
}

async fn tell(writer: &Writer, commands: Vec<Command>) {
    if commands.is_empty() {
        return;
    }
    let count = commands.len();
    let outcomes = writer.submit(commands).await;
    if outcomes.iter().any(|outcome| matches!(outcome, Err(Refusal::Storage))) {
        tracing::error!("{count} refusals are not in the audit log: it cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7))
    }

    fn command(source: SocketAddr) -> Command {
        let origin = Origin { source: Some(source), request: String::new() };
        let denial = Denial {
            operation: "heartbeat".to_owned(),
            claimed: Some(NodeId(1)),
            by: None,
            object: "node 1".to_owned(),
            code: "bad_signature".to_owned(),
            reason: String::new(),
            rule: String::new(),
            count: 1,
        };
        Command { at: 1, origin, op: Op::Deny(denial) }
    }

    fn counts(queue: &mut mpsc::Receiver<Command>) -> Vec<u64> {
        let mut counts = Vec::new();
        while let Ok(command) = queue.try_recv() {
            let Op::Deny(denial) = command.op else { panic!("{command:?}") };
            counts.push(denial.count);
        }
        counts
    }

    #[test]
    fn objects_are_named_as_in_the_audit_log() {
        for (body, wanted) in [
            (r#"{"type":"network_delete","network":3}"#, "network 3"),
            (
                r#"{"type":"network_remove","network":"lab","node_id":7}"#,
                "node 7 in network \"lab\"",
            ),
            (r#"{"type":"network_create","name":"lab"}"#, "network \"lab\""),
            (r#"{"type":"node_revoke","node_id":7}"#, "node 7"),
            (r#"{"type":"audit_query"}"#, ""),
            ("x", ""),
        ] {
            assert_eq!(object(body.as_bytes()), wanted);
        }
    }

    #[test]
    fn every_refusal_is_counted_once() {
        let (denials, mut teller) = Denials::new(Events::default());
        let start = Instant::now();
        for _ in 0..50 {
            denials.note("bad_signature", source(1).ip(), command(source(1)), start);
        }
        denials.note("bad_signature", source(2).ip(), command(source(2)), start);
        denials.note("bad_proof", source(1).ip(), command(source(1)), start);
        assert_eq!(counts(&mut teller.queue), [1; 22]);
        denials.sweep(start);
        assert!(counts(&mut teller.queue).is_empty());
        denials.sweep(start + WINDOW);
        assert_eq!(counts(&mut teller.queue), [30]);
        denials.sweep(start + WINDOW * 2);
        assert!(denials.kinds().is_empty());
        let later = start + WINDOW * 3;
        for _ in 0..25 {
            denials.note("bad_signature", source(1).ip(), command(source(1)), later);
        }
        denials.note("bad_signature", source(1).ip(), command(source(1)), later + WINDOW);
        let told = counts(&mut teller.queue);
        assert_eq!((told.len(), told.iter().sum::<u64>(), told[20]), (21, 26, 6));
    }

    #[test]
    fn a_full_queue_and_a_full_table_only_count() {
        let (denials, mut teller) = Denials::new(Events::default());
        let start = Instant::now();
        let sources = u32::try_from(MAX_KINDS).unwrap() + 10;
        for n in 0..sources {
            let source = SocketAddr::new(IpAddr::from(n.to_be_bytes()), 7);
            denials.note("bad_signature", source.ip(), command(source), start);
        }
        assert!(denials.kinds().len() <= MAX_KINDS + 1);
        let told: u64 = counts(&mut teller.queue).iter().sum();
        assert_eq!(told, QUEUE as u64);
        let count = |command: Command| match command.op {
            Op::Deny(denial) => denial.count,
            op => panic!("{op:?}"),
        };
        let rest: u64 = denials.rest().into_iter().map(count).sum();
        assert_eq!(told + rest, u64::from(sources));
        assert!(denials.kinds().is_empty());
    }
}
