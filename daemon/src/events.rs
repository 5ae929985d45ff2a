//! Where the daemon says what happens on its node. Anybody may say something at
//! any time: it never waits, and costs a look at a flag while nobody listens.
//! Who keeps and delivers events is not known here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_core::{Refusal, RefusalDetail};
use pilot_host::events::Happening;
use pilot_wire::{Address, NodeId};

/// Refusals of one rule that become events in a second; what is refused beyond
/// it is in the `count` of the next one.
const REFUSALS: u32 = 10;

/// What takes events. No method blocks.
pub trait EventLog: Send + Sync {
    /// Whether anybody listens.
    fn wanted(&self) -> bool;

    /// Takes one.
    fn emit(&self, happening: Happening);

    /// The number of the node that later ones happen on.
    fn set_node(&self, _node: NodeId) {}
}

/// A way to say what happens. Cheap to clone; by default nobody listens.
#[derive(Clone, Default)]
pub struct Events(Option<Arc<dyn EventLog>>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Events").field(&self.0.is_some()).finish()
    }
}

impl Events {
    /// To this log.
    pub fn to(log: Arc<dyn EventLog>) -> Self {
        Self(Some(log))
    }

    /// Whether anybody listens.
    pub fn wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|log| log.wanted())
    }

    /// The number of this node, from now on.
    pub fn set_node(&self, node: NodeId) {
        if let Some(log) = &self.0 {
            log.set_node(node);
        }
    }

    /// Says what happened; it is made only when somebody listens.
    pub fn emit(&self, happening: impl FnOnce() -> Happening) {
        if let Some(log) = self.0.as_ref().filter(|log| log.wanted()) {
            log.emit(happening());
        }
    }
}

/// An event that has no row in the table. Its name is well-formed and its data
/// an object, or it is an event without data.
pub(crate) fn other(name: &str, data: serde_json::Value) -> Happening {
    let data = match data {
        serde_json::Value::Object(data) => Some(data),
        _ => None,
    };
    Happening::parse(name, data)
        .unwrap_or_else(|_| Happening::Other { name: name.to_owned(), data: None })
}

/// Refusals on their way to events, at a bounded rate for each rule.
#[derive(Debug)]
pub(crate) struct Refusals {
    rules: [Rule; Refusal::ALL.len()],
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    since: Instant,
    told: u32,
    /// What the counter stood at when the rule was last told of.
    counted: u64,
}

impl Refusals {
    pub(crate) fn new(now: Instant) -> Self {
        let rule = Rule { since: now, told: 0, counted: 0 };
        Self { rules: [rule; Refusal::ALL.len()] }
    }

    /// The event for a refusal, when it is time for one. `counter` is how many
    /// the rule has refused in all.
    pub(crate) fn event(
        &mut self,
        refused: Refused,
        counter: u64,
        now: Instant,
    ) -> Option<Happening> {
        let Refused { node, port, rule, detail } = refused;
        let index = Refusal::ALL.iter().position(|r| *r == rule)?;
        let state = &mut self.rules[index];
        if now.saturating_duration_since(state.since) >= Duration::from_secs(1) {
            (state.since, state.told) = (now, 0);
        }
        if state.told >= REFUSALS {
            return None;
        }
        state.told += 1;
        let count = counter.saturating_sub(state.counted).max(1);
        state.counted = counter;
        let peer_node_id = node.unwrap_or_default();
        Some(match (rule, detail) {
            (Refusal::Replay, RefusalDetail::Counter(counter)) => {
                Happening::SecurityNonceReplay { counter, peer_node_id }
            }
            (Refusal::SynRate, RefusalDetail::SourcePort(src_port)) => {
                let src_addr = Address::backbone(peer_node_id);
                Happening::SecuritySynRateLimited { src_addr, src_port }
            }
            _ => Happening::SecurityRefused { count, peer_node_id, port, rule: rule.name().into() },
        })
    }
}

/// What was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) node: Option<NodeId>,
    pub(crate) port: u16,
    pub(crate) rule: Refusal,
    pub(crate) detail: RefusalDetail,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what is said.
    #[derive(Default)]
    pub(crate) struct Heard(Mutex<Vec<Happening>>);

    impl Heard {
        pub(crate) fn events(self: &Arc<Self>) -> Events {
            Events::to(Arc::clone(self) as Arc<dyn EventLog>)
        }

        pub(crate) fn all(&self) -> Vec<Happening> {
            self.0.lock().unwrap().clone()
        }

        pub(crate) fn names(&self) -> Vec<String> {
            self.all().iter().map(|h| h.name().to_owned()).collect()
        }
    }

    impl EventLog for Heard {
        fn wanted(&self) -> bool {
            true
        }

        fn emit(&self, happening: Happening) {
            self.0.lock().unwrap().push(happening);
        }
    }

    #[test]
    fn nothing_is_made_when_nobody_listens() {
        Events::default().emit(|| panic!("made for nobody"));
    }

    #[test]
    fn refusals_of_a_rule_become_few_events_that_count_them_all() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        let refused = |rule, detail| Refused { node: Some(NodeId(3)), port: 80, rule, detail };
        let none = RefusalDetail::None;
        let mut counts = Vec::new();
        for n in 1..=100 {
            let at = start + Duration::from_millis(n);
            let event = refusals.event(refused(Refusal::Untrusted, none), n, at);
            if let Some(Happening::SecurityRefused { count, .. }) = event {
                counts.push(count);
            }
        }
        assert_eq!(counts, vec![1; REFUSALS as usize]);
        let later = start + Duration::from_millis(1500);
        let event = refusals.event(refused(Refusal::Untrusted, none), 101, later);
        let expected = Happening::SecurityRefused {
            count: 91,
            peer_node_id: NodeId(3),
            port: 80,
            rule: "untrusted".into(),
        };
        assert_eq!(event, Some(expected));
        let event = refusals.event(refused(Refusal::Replay, RefusalDetail::Counter(9)), 1, later);
        let expected = Happening::SecurityNonceReplay { counter: 9, peer_node_id: NodeId(3) };
        assert_eq!(event, Some(expected), "each rule has its own share");
        let limited = refused(Refusal::SynRate, RefusalDetail::SourcePort(49_152));
        let src_addr = Address::backbone(NodeId(3));
        let expected = Happening::SecuritySynRateLimited { src_addr, src_port: 49_152 };
        assert_eq!(refusals.event(limited, 1, later), Some(expected));
    }
}
