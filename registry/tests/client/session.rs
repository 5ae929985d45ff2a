//! A client that opens a session and applies what it is told.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::view::View;
use super::{Client, Identity};

pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) view: View,
    /// The answer to `session_open`.
    pub(crate) opened: Value,
}

/// The request that answers a nonce.
pub(crate) fn opening(key: &Identity, node: u64, nonce: &str) -> Value {
    let signature = key.sign(&format!("session:{node}:{nonce}"));
    json!({"type": "session_open", "node_id": node, "signature": signature})
}

pub(crate) fn challenge(client: &mut Client) -> String {
    let reply = client.ask(json!({"type": "session_challenge"}));
    assert_eq!(reply["type"], "session_challenge_ok", "{reply}");
    reply["nonce"].as_str().unwrap().to_owned()
}

impl Session {
    /// Opens one where `view` was left.
    pub(crate) fn resume(
        addr: SocketAddr,
        key: &Identity,
        node: u64,
        view: View,
        peers: &[u64],
    ) -> Self {
        Self::on(Client::connect(addr), key, node, view, peers)
    }

    pub(crate) fn open(addr: SocketAddr, key: &Identity, node: u64, peers: &[u64]) -> Self {
        Self::resume(addr, key, node, View::default(), peers)
    }

    pub(crate) fn on(
        mut client: Client,
        key: &Identity,
        node: u64,
        mut view: View,
        peers: &[u64],
    ) -> Self {
        let nonce = challenge(&mut client);
        let mut request = opening(key, node, &nonce);
        request["epoch"] = view.epoch.as_str().into();
        request["since"] = view.since.into();
        request["peers"] = peers.into();
        let opened = client.ask(request);
        assert_eq!(opened["type"], "session_open_ok", "{opened}");
        assert_eq!(opened["node_id"], node);
        let epoch = opened["epoch"].as_str().unwrap().to_owned();
        assert!(!epoch.is_empty());
        if epoch != view.epoch {
            (view.epoch, view.since) = (epoch, 0);
        }
        view.ended = None;
        let resumed = opened["resumed"] == true;
        let mut session = Self { client, view, opened };
        if !resumed {
            let syncs = session.view.syncs;
            session.until("the sync comes", |view| view.syncs > syncs);
        }
        session
    }

    pub(crate) fn resumed(&self) -> bool {
        self.opened["resumed"] == true
    }

    /// The next answer; news before it are applied.
    pub(crate) fn answer(&mut self) -> Value {
        loop {
            let frame = self.client.receive().expect("session closed");
            if frame["type"] != "push" {
                return frame;
            }
            self.view.apply(serde_json::from_value(frame).unwrap());
        }
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Value {
        self.client.send_raw(request.to_string().as_bytes());
        self.answer()
    }

    /// Applies news until the view is so.
    pub(crate) fn until(&mut self, what: &str, is_so: impl Fn(&View) -> bool) {
        while !is_so(&self.view) {
            let frame = self.client.receive().unwrap_or_else(|| panic!("never: {what}"));
            assert_eq!(frame["type"], "push", "{frame}");
            self.view.apply(serde_json::from_value(frame).unwrap());
        }
    }

    /// Applies everything that was acknowledged to anybody before. The answer to
    /// a write says that the changes of those before it are noted; they are told
    /// before the next request is read.
    pub(crate) fn settle(&mut self) {
        let node = &self.opened["node_id"];
        let write = json!({"type": "update_polo_score", "node_id": node, "delta": 0});
        assert_eq!(self.ask(&write)["type"], "update_polo_score_ok");
        assert_eq!(self.ask(&json!({"type": "beacon_list"}))["type"], "beacon_list_ok");
    }

    /// Reads to the end; the reason that was told.
    pub(crate) fn end(mut self) -> (Option<String>, View) {
        while let Some(frame) = self.client.receive() {
            if frame["type"] == "push" {
                self.view.apply(serde_json::from_value(frame).unwrap());
            }
        }
        (self.view.ended.take(), self.view)
    }
}
