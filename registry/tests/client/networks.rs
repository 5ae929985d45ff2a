//! A registry with the shipped join rules, nodes with sessions, and an
//! administrator.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;

use pilot_registry::Config;
use pilot_wire::registry::challenge;
use pilot_wire::registry::network::Invitee;
use serde_json::{Value, json};

use super::plugins::shipped;
use super::session::Session;
use super::{Client, Identity, config};

pub(crate) const ADMIN: &str = "the admin token of tests";

/// With the shipped join rules, and an administrator.
pub(crate) fn joinable() -> Config {
    Config {
        plugin_path: Some(vec![shipped().to_owned()]),
        admin_token: Some(ADMIN.to_owned()),
        ..config()
    }
}

pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A node on its session.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) key: Identity,
    pub(crate) session: Session,
}

impl Node {
    /// Registers with a proof, and opens a session.
    pub(crate) fn new(addr: SocketAddr, seed: u32) -> Self {
        Self::owned(addr, seed, "")
    }

    pub(crate) fn owned(addr: SocketAddr, seed: u32, owner: &str) -> Self {
        let key = Identity::new(seed);
        let mut request = key.register();
        let now = unix_now();
        request["timestamp"] = now.into();
        request["proof"] = key.sign(&challenge::register(now, ":4000")).into();
        Self::with(addr, key, request, owner)
    }

    /// Registers without a proof.
    pub(crate) fn unproven(addr: SocketAddr, seed: u32, owner: &str) -> Self {
        let key = Identity::new(seed);
        let request = key.register();
        Self::with(addr, key, request, owner)
    }

    fn with(addr: SocketAddr, key: Identity, mut request: Value, owner: &str) -> Self {
        if !owner.is_empty() {
            request["owner"] = owner.into();
        }
        let reply = Client::connect(addr).ask(request);
        let id = reply["node_id"].as_u64().unwrap_or_else(|| panic!("{reply}"));
        let session = Session::open(addr, &key, id, &[]);
        Self { id, key, session }
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Value {
        self.session.ask(request)
    }

    /// Joins, with proofs by the name of the rule.
    pub(crate) fn join(&mut self, network: impl Into<Value>, proofs: Value) -> Value {
        let network: Value = network.into();
        self.ask(&json!({"type": "network_join", "network": network, "proofs": proofs}))
    }

    /// Joins and is let in; gives the membership.
    pub(crate) fn enter(&mut self, network: impl Into<Value>, proofs: Value) -> Value {
        let reply = self.join(network, proofs);
        assert_eq!(reply["type"], "network_join_ok", "{reply}");
        reply["membership"].clone()
    }

    pub(crate) fn invites(&self, network: u16, to: &Invitee, expires: u64) -> Value {
        let signature = self.key.sign(&challenge::invite(network, to, expires));
        json!({"type": "invite", "network": network, "to": to, "expires": expires,
               "signature": signature})
    }

    /// The code of the refusal to see the real address of a node, or nothing.
    pub(crate) fn resolves(&mut self, target: u64) -> Value {
        let request = self.key.resolve(self.id, target);
        self.ask(&request)["code"].clone()
    }
}

/// An administrator.
pub(crate) struct Admin(Client);

impl Admin {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self(Client::connect(addr))
    }

    pub(crate) fn ask(&mut self, mut request: Value) -> Value {
        request["admin_token"] = ADMIN.into();
        self.0.ask(request)
    }

    /// Asks what is not refused.
    pub(crate) fn ok(&mut self, request: Value) -> Value {
        let reply = self.ask(request);
        assert!(reply["type"].as_str().is_some_and(|kind| kind.ends_with("_ok")), "{reply}");
        reply
    }

    /// Makes a network; gives its number.
    pub(crate) fn network(&mut self, name: &str, join: &Value) -> u16 {
        let made = self.ok(json!({"type": "network_create", "name": name, "join": join}));
        u16::try_from(made["network"]["id"].as_u64().unwrap()).unwrap()
    }

    /// Makes a token; gives its id and secret.
    pub(crate) fn token(&mut self, network: u16, mut more: Value) -> (String, String) {
        more["type"] = "token_create".into();
        more["network"] = network.into();
        let made = self.ok(more);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&made["token"]["id"]), text(&made["secret"]))
    }
}

/// A policy of rules without configuration.
pub(crate) fn rules(names: &[&str]) -> Value {
    json!({"rules": names.iter().map(|name| json!({"rule": name})).collect::<Vec<_>>()})
}

/// The refusal of a join, which names the rule.
pub(crate) fn denied(reply: &Value, rule: &str) -> String {
    assert_eq!(reply["code"], "not_admitted", "{reply}");
    let message = reply["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("{rule:?}")), "{message}");
    message
}
