//! The ASCII strings that the signature of each request covers. IDs are
//! decimal, unpadded; the published strings cover no time and no value.

use super::network::Invitee;
use crate::address::NodeId;

macro_rules! challenges {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),+) = $text:literal;)+) => {$(
        $(#[$doc])*
        pub fn $name($($arg: NodeId),+) -> String {
            format!($text)
        }
    )+};
}

challenges! {
    /// `resolve`, signed by the requester.
    resolve(requester, node) = "resolve:{requester}:{node}";
    /// `report_trust`, signed by `node`.
    report_trust(node, peer) = "report_trust:{node}:{peer}";
    /// `revoke_trust`, signed by `node`.
    revoke_trust(node, peer) = "revoke_trust:{node}:{peer}";
    /// `set_visibility`.
    set_visibility(node) = "set_visibility:{node}";
    /// `set_hostname`.
    set_hostname(node) = "set_hostname:{node}";
    /// `set_tags`.
    set_tags(node) = "set_tags:{node}";
    /// `set_task_exec`.
    set_task_exec(node) = "set_task_exec:{node}";
    /// `heartbeat`.
    heartbeat(node) = "heartbeat:{node}";
    /// `poll_handshakes`.
    poll_handshakes(node) = "poll_handshakes:{node}";
    /// `deregister`.
    deregister(node) = "deregister:{node}";
    /// `punch`, signed by the requester, who is one of the two.
    punch(node_a, node_b) = "punch:{node_a}:{node_b}";
    /// `rotate_key`, signed by the old key.
    rotate_key(node) = "rotate:{node}";
    /// `request_handshake`, signed by the sender; also in direct handshakes.
    request_handshake(from, to) = "handshake:{from}:{to}";
    /// `respond_handshake`, signed by the responder.
    respond_handshake(node, peer) = "respond:{node}:{peer}";
}

/// `register` with proof, an extension: signed by the key being registered.
/// `timestamp` is in Unix seconds, `listen_addr` is the text of the request.
pub fn register(timestamp: u64, listen_addr: &str) -> String {
    format!("register:{timestamp}:{listen_addr}")
}

/// `session_open`, an extension: signed by `node`. `nonce` is the registry's,
/// as it came.
pub fn session(node: NodeId, nonce: &str) -> String {
    format!("session:{node}:{nonce}")
}

/// `invite`, an extension: signed by the inviting node. `to` is
/// `node:NUMBER` or `owner:TEXT`, `expires` in Unix seconds.
pub fn invite(network: u16, to: &Invitee, expires: u64) -> String {
    let to = match to {
        Invitee::Node(node) => format!("node:{node}"),
        Invitee::Owner(owner) => format!("owner:{owner}"),
    };
    format!("invite:{network}:{expires}:{to}")
}
