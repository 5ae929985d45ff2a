//! What the operator may set, and who may publish what.

use pilot_plugin::wire::service::event_stream::{ALL, MAX_PAYLOAD, pattern_matches};
use pilot_plugin::wire::{Address, NodeId};
use pilot_plugin::{Error, Peer};
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Bytes that wait for one subscriber; beyond that the oldest event is
    /// dropped. One event may be longer.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub(crate) queue_bytes: usize,
    /// Events that wait for one subscriber; beyond that the oldest is dropped.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub(crate) queue_events: usize,
    /// Connections in all; one more is reset.
    #[schemars(range(min = 1, max = 65_536))]
    pub(crate) max_subscribers: usize,
    /// Connections of one node; one more is reset. Each subscribes to one topic.
    #[schemars(range(min = 1, max = 65_536))]
    pub(crate) max_per_node: usize,
    /// Longest payload, in bytes; a connection that sends a longer one is reset.
    #[schemars(range(max = 16_777_216))]
    pub(crate) max_payload: usize,
    /// Bytes of events that have not come whole, of all connections; a
    /// connection that would exceed it is reset.
    #[schemars(range(min = 65_536))]
    pub(crate) max_begun: usize,
    /// Who may publish what: one rule must allow it. Not set, everybody who can
    /// connect may publish everything; an empty list allows nobody.
    pub(crate) publish: Option<Vec<Rule>>,
    /// Whether a publication that is not allowed resets its connection, instead
    /// of only being left out and counted.
    pub(crate) reset_refused: bool,
}

/// Allows publishing. What is set must fit; each list fits if one of its items
/// does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Rule {
    /// Topics, or patterns of them: a segment `*` or `abc*` stands for one
    /// segment, a last segment `>` for one or more, `*` alone for all.
    pub(crate) topics: Option<Vec<String>>,
    /// Networks that the publisher shares with this node; 0 is shared by all.
    pub(crate) networks: Option<Vec<u16>>,
    /// Numbers or addresses of nodes.
    pub(crate) nodes: Option<Vec<Node>>,
    /// Tags of the publisher, as far as the registry shows them.
    pub(crate) tags: Option<Vec<String>>,
}

/// A node, by number or by address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Node {
    Number(u32),
    Address(String),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queue_bytes: 1 << 20,
            queue_events: 1024,
            max_subscribers: 1024,
            max_per_node: 64,
            max_payload: MAX_PAYLOAD,
            max_begun: 64 << 20,
            publish: None,
            reset_refused: false,
        }
    }
}

impl Config {
    /// What a schema cannot say, or a host did not check.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.queue_bytes == 0 || self.queue_events == 0 {
            return Err(Error::new("queue-bytes and queue-events must be at least 1"));
        }
        let rules = self.publish.iter().flatten().enumerate();
        for (i, node) in rules.flat_map(|(i, r)| r.nodes.iter().flatten().map(move |n| (i, n))) {
            if let Node::Address(text) = node
                && let Err(why) = text.parse::<Address>()
            {
                return Err(Error::new(format!("publish[{i}].nodes: {why}")));
            }
        }
        Ok(())
    }
}

/// What one connection may publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    All,
    /// What one of these patterns matches.
    Topics(Vec<Vec<u8>>),
}

impl Rights {
    pub(crate) fn of(peer: &Peer, rules: Option<&[Rule]>) -> Self {
        let Some(rules) = rules else { return Self::All };
        let mut patterns = Vec::new();
        for rule in rules.iter().filter(|rule| rule.fits(peer)) {
            match &rule.topics {
                None => return Self::All,
                Some(topics) => patterns.extend(topics.iter().map(|t| t.clone().into_bytes())),
            }
        }
        if patterns.iter().any(|p| p == ALL) {
            return Self::All;
        }
        Self::Topics(patterns)
    }

    pub(crate) fn allow(&self, topic: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Topics(patterns) => {
                patterns.iter().any(|p| p == topic || pattern_matches(p, topic))
            }
        }
    }
}

impl Rule {
    fn fits(&self, peer: &Peer) -> bool {
        let is = |node: &Node| match node {
            Node::Number(number) => NodeId(*number) == peer.node(),
            Node::Address(text) => text.parse::<Address>().is_ok_and(|a| a.node == peer.node()),
        };
        let shares = |network: &u16| *network == 0 || peer.networks.contains(network);
        let networks = self.networks.as_ref().is_none_or(|all| all.iter().any(shares));
        let nodes = self.nodes.as_ref().is_none_or(|all| all.iter().any(is));
        let tags = self.tags.as_ref().is_none_or(|all| all.iter().any(|t| peer.tags.contains(t)));
        networks && nodes && tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(peer: &Peer, config: &str) -> Rights {
        let config: Config = pilot_plugin::json::from_str(config).unwrap();
        config.check().unwrap();
        Rights::of(peer, config.publish.as_deref())
    }

    #[test]
    fn rules_allow_by_network_node_and_tag() {
        let mut peer = Peer::at("0:0000.0000.0007:49152".parse().unwrap());
        peer.networks = vec![3];
        peer.tags = vec!["sensor".to_owned()];
        assert_eq!(rights(&peer, "{}"), Rights::All);
        assert_eq!(rights(&peer, r#"{"publish": []}"#), Rights::Topics(Vec::new()));
        assert!(!rights(&peer, r#"{"publish": []}"#).allow(b"x"));
        for (rule, fits) in [
            (r#"{"networks": [1, 3]}"#, true),
            (r#"{"networks": [0]}"#, true),
            (r#"{"networks": [1]}"#, false),
            (r#"{"networks": []}"#, false),
            (r#"{"nodes": [7]}"#, true),
            (r#"{"nodes": ["0:0000.0000.0007"]}"#, true),
            (r#"{"nodes": [8]}"#, false),
            (r#"{"tags": ["sensor", "x"]}"#, true),
            (r#"{"tags": ["x"]}"#, false),
            (r#"{"nodes": [7], "tags": ["x"]}"#, false),
            ("{}", true),
        ] {
            let all = rights(&peer, &format!(r#"{{"publish": [{rule}]}}"#)).allow(b"any");
            assert_eq!(all, fits, "{rule}");
        }
        let some = rights(
            &peer,
            r#"{"publish": [{"topics": ["sensors.*", "a"], "networks": [3]}, {"topics": ["b"], "nodes": [8]}]}"#,
        );
        assert!(some.allow(b"sensors.x") && some.allow(b"a") && some.allow(b"sensors.*"));
        assert!(!some.allow(b"b") && !some.allow(b"sensors.x.y") && !some.allow(b"*"));
        assert_eq!(rights(&peer, r#"{"publish": [{"topics": ["*"]}]}"#), Rights::All);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let config: Config =
            pilot_plugin::json::from_str(r#"{"publish": [{}, {"nodes": ["seven"]}]}"#).unwrap();
        let why = config.check().unwrap_err().to_string();
        assert!(why.starts_with("publish[1].nodes: invalid address: \"seven\""), "{why}");
        assert!(pilot_plugin::json::from_str::<Config>(r#"{"queue": 1}"#).is_err());
    }
}
