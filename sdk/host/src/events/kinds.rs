//! The table of events. Fields stand in the order of the alphabet, which is the
//! order of the published keys, so that what is serialised needs no sorting.

use pilot_wire::{Address, NodeId, SocketAddress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One row an event: its documentation, variant, name and fields. A macro, so
/// that the name is written once for serialising, `name()` and `NAMES`.
macro_rules! happenings {
    ($(
        $(#[$meta:meta])*
        $variant:ident = $name:literal
        $({ $( $(#[$field_meta:meta])* $field:ident : $kind:ty, )* })?
    )*) => {
        /// Something that happened. What it says is data for sinks and for people;
        /// nothing in Pilot acts on it.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "event", content = "data")]
        #[expect(clippy::large_enum_variant, reason = "it lives until it is written as JSON")]
        pub enum Happening {
            $(
                $(#[$meta])*
                #[serde(rename = $name)]
                $variant $({ $( $(#[$field_meta])* $field: $kind, )* })?,
            )*
            /// An event of a plugin or script that has no row here. Built with
            /// [`Happening::parse`] or [`Happening::of_plugin`], which check the name.
            #[serde(skip)]
            Other {
                /// Its name.
                name: String,
                /// What it is about.
                data: Option<Map<String, Value>>,
            },
        }

        impl Happening {
            /// Names of all documented events.
            pub const NAMES: &[&str] = &[$($name,)*];

            /// The published name, as in `conn.established`.
            pub fn name(&self) -> &str {
                match self {
                    $( Self::$variant { .. } => $name, )*
                    Self::Other { name, .. } => name,
                }
            }
        }
    };
}

happenings! {
    // Published, with exactly these names and keys.

    /// The registry gave this node its address.
    NodeRegistered = "node.registered" {
        /// The node's virtual address.
        #[schemars(with = "String")]
        address: Address,
        /// Where the network sees the node, host and UDP port.
        endpoint: String,
    }
    /// The node was registered again, after the registry had lost it.
    NodeReregistered = "node.reregistered" {
        /// The node's virtual address.
        #[schemars(with = "String")]
        address: Address,
    }
    /// The node left the registry.
    NodeDeregistered = "node.deregistered"
    /// The endpoint of a peer became known.
    TunnelPeerAdded = "tunnel.peer_added" {
        /// Where the peer is, host and UDP port.
        endpoint: String,
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A key exchange was accepted, also a repeated one.
    TunnelEstablished = "tunnel.established" {
        /// Whether the peer proved its identity.
        authenticated: bool,
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
        /// Whether there was a tunnel before.
        rekeyed: bool,
        /// Whether it runs over a relay.
        relay: bool,
    }
    /// Packets to a peer go through the relay from now on.
    TunnelRelayActivated = "tunnel.relay_activated" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A peer asks for a stream; only at the side that listens.
    ConnSynReceived = "conn.syn_received" {
        /// Number of the stream on this node.
        conn_id: u64,
        /// Virtual port it is for.
        dst_port: u16,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        src_addr: Address,
        /// The peer's virtual port.
        src_port: u16,
    }
    /// A stream is open; only at the side that listens.
    ConnEstablished = "conn.established" {
        /// Number of the stream on this node.
        conn_id: u64,
        /// Virtual port it is for.
        dst_port: u16,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        src_addr: Address,
        /// The peer's virtual port.
        src_port: u16,
    }
    /// The peer closed a stream first.
    ConnFin = "conn.fin" {
        /// Number of the stream on this node.
        conn_id: u64,
        /// Virtual port on this node.
        local_port: u16,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        remote_addr: Address,
        /// The peer's virtual port.
        remote_port: u16,
    }
    /// A stream was reset.
    ConnRst = "conn.rst" {
        /// Number of the stream on this node.
        conn_id: u64,
        /// Virtual port on this node.
        local_port: u16,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        remote_addr: Address,
        /// The peer's virtual port.
        remote_port: u16,
    }
    /// A stream was closed because its peer was silent for too long.
    ConnIdleTimeout = "conn.idle_timeout" {
        /// Number of the stream on this node.
        conn_id: u64,
        /// Virtual port on this node.
        local_port: u16,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        remote_addr: Address,
        /// The peer's virtual port.
        remote_port: u16,
    }
    /// A datagram came in.
    DataDatagram = "data.datagram" {
        /// Virtual port it is for.
        dst_port: u16,
        /// Bytes.
        size: u64,
        /// The peer's virtual address.
        #[schemars(with = "String")]
        src_addr: Address,
        /// The peer's virtual port.
        src_port: u16,
    }
    /// More streams were asked for than the rate allows; the request was dropped.
    SecuritySynRateLimited = "security.syn_rate_limited" {
        /// Who asked.
        #[schemars(with = "String")]
        src_addr: Address,
        /// From which virtual port.
        src_port: u16,
    }
    /// A packet came a second time and was dropped.
    SecurityNonceReplay = "security.nonce_replay" {
        /// The packet's number.
        counter: u64,
        /// The peer whose tunnel it came in.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A peer asks to be trusted.
    HandshakeReceived = "handshake.received" {
        /// What it says for itself; not to be believed.
        justification: String,
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A request for trust waits for somebody's decision.
    HandshakePending = "handshake.pending" {
        /// What it says for itself; not to be believed.
        justification: String,
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A request for trust was granted by somebody.
    HandshakeApproved = "handshake.approved" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A request for trust was refused.
    HandshakeRejected = "handshake.rejected" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
        /// Why, in the words of whoever refused.
        reason: String,
    }
    /// A request for trust was granted without asking anybody.
    HandshakeAutoApproved = "handshake.auto_approved" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
        /// Why nobody had to be asked.
        reason: ApprovalReason,
    }
    /// This node does not trust a peer any more.
    TrustRevoked = "trust.revoked" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A peer does not trust this node any more.
    TrustRevokedByPeer = "trust.revoked_by_peer" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
    }
    /// A message came in on port 1001.
    MessageReceived = "message.received" {
        /// The sender's virtual address.
        from: String,
        /// Bytes.
        size: u64,
        /// `TEXT`, `BINARY` or `JSON`.
        r#type: String,
    }
    /// A file came in on port 1001 and was stored.
    FileReceived = "file.received" {
        /// The name that the sender gave it.
        filename: String,
        /// Where it is on this machine.
        path: String,
        /// Bytes.
        size: u64,
    }
    /// A peer subscribed to a topic on port 1002.
    PubsubSubscribed = "pubsub.subscribed" {
        /// The subscriber.
        #[schemars(with = "String")]
        remote: SocketAddress,
        /// The topic; `*` is all.
        topic: String,
    }
    /// A subscription ended.
    PubsubUnsubscribed = "pubsub.unsubscribed" {
        /// The subscriber.
        #[schemars(with = "String")]
        remote: SocketAddress,
        /// The topic.
        topic: String,
    }
    /// A peer published to a topic.
    PubsubPublished = "pubsub.published" {
        /// The publisher.
        #[schemars(with = "String")]
        from: SocketAddress,
        /// Bytes.
        size: u64,
        /// The topic.
        topic: String,
    }

    // Beyond the published ones.

    /// The daemon serves.
    DaemonStarted = "daemon.started" {
        /// Version of the daemon.
        version: String,
    }
    /// The daemon is about to end.
    DaemonStopping = "daemon.stopping" {
        /// Why: a signal, a command, an error.
        reason: String,
    }
    /// The registry answers, after it did not or was not asked.
    RegistryUp = "registry.up" {
        /// Where the registry is, host and port.
        registry: String,
    }
    /// The registry does not answer; known peers stay connected.
    RegistryDown = "registry.down" {
        /// What was seen.
        reason: String,
        /// Where the registry is, host and port.
        registry: String,
    }
    /// A registry serves, and its plugins have been started or have failed.
    RegistryStarted = "registry.started" {
        /// Where it listens, host and port.
        listen: String,
        /// Nodes that are registered.
        nodes: u64,
        /// Version of the registry.
        version: String,
    }
    /// A registry is about to end.
    RegistryStopping = "registry.stopping"
    /// A node asked another for trust, by way of this registry.
    RegistryHandshakeRequested = "registry.handshake_requested" {
        /// Who asks.
        #[schemars(with = "u32")]
        from_node_id: NodeId,
        /// What it says for itself; not to be believed.
        justification: String,
        /// Who is asked.
        #[schemars(with = "u32")]
        to_node_id: NodeId,
    }
    /// A node answered a request for trust, by way of this registry.
    RegistryHandshakeAnswered = "registry.handshake_answered" {
        /// Whether it was granted.
        accepted: bool,
        /// Who answers.
        #[schemars(with = "u32")]
        from_node_id: NodeId,
        /// Who had asked.
        #[schemars(with = "u32")]
        to_node_id: NodeId,
    }
    /// A node told this registry that it trusts another.
    RegistryTrustReported = "registry.trust_reported" {
        /// Who trusts.
        #[schemars(with = "u32")]
        from_node_id: NodeId,
        /// Whether the other has said so as well.
        mutual: bool,
        /// Who is trusted.
        #[schemars(with = "u32")]
        to_node_id: NodeId,
    }
    /// A node told this registry that it does not trust another any more.
    RegistryTrustRevoked = "registry.trust_revoked" {
        /// Who does not trust any more.
        #[schemars(with = "u32")]
        from_node_id: NodeId,
        /// Who was trusted.
        #[schemars(with = "u32")]
        to_node_id: NodeId,
    }
    /// A node has another identity key.
    RegistryKeyRotated = "registry.key_rotated" {
        /// The node's virtual address.
        #[schemars(with = "String")]
        address: Address,
        /// The new key, base64.
        public_key: String,
    }
    /// A registry refused a request, for a reason that can mean an attack or a
    /// full table. Many in a short time are one event.
    RegistryRefused = "registry.refused" {
        /// Why, for programs: the code in the reply.
        code: String,
        /// How many refusals of this code the event stands for.
        count: u64,
        /// Why the last one was refused, in words.
        reason: String,
        /// Where the last one came from, IP address and port.
        source: String,
    }
    /// A record of a registry's audit log, as it stands in the chain of hashes.
    /// It may come again after a restart; `seq` tells. What is absent in the
    /// record is an empty text or 0 here.
    RegistryAudit = "registry.audit" {
        /// Virtual address of who acted.
        actor_address: String,
        /// Who that is elsewhere.
        actor_external_identity: String,
        /// `node`, `admin`, `registry` or `unknown`.
        actor_kind: String,
        /// The administrator's name.
        actor_name: String,
        /// The node that acted.
        #[schemars(with = "u32")]
        actor_node_id: NodeId,
        /// Its owner.
        actor_owner: String,
        /// Its key, base64.
        actor_public_key: String,
        /// Why it was refused, for programs; empty when it was done.
        code: String,
        /// Number of the registry's command that the record tells of.
        command: u64,
        /// How many equal refusals it stands for.
        count: u64,
        /// What changed, or why not, in words.
        detail: String,
        /// Hash of this record, hex.
        hash: String,
        /// What it was about, as in `node 7`.
        object: String,
        /// What was asked for.
        operation: String,
        /// Hash of the record before, hex; zeros for the first.
        previous: String,
        /// The client's text, or one made for the request.
        request_id: String,
        /// `allowed` or `denied`.
        result: String,
        /// The rule that decided.
        rule: String,
        /// Number of the record, from 1, without gaps.
        seq: u64,
        /// Host and port that the request came from; empty for the registry itself.
        source: String,
        /// When, Unix seconds.
        time: u64,
    }
    /// A tunnel is gone: the peer ended it, or was silent for too long.
    TunnelLost = "tunnel.lost" {
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
        /// What was seen.
        reason: String,
    }
    /// A rule refused something of a peer. Many in a short time are one event.
    SecurityRefused = "security.refused" {
        /// How many refusals this event stands for.
        count: u64,
        /// The peer.
        #[schemars(with = "u32")]
        peer_node_id: NodeId,
        /// Virtual port it wanted; 0 when it was for none.
        port: u16,
        /// The rule that refused, as in `pilotctl why`.
        rule: String,
    }
    /// A changed configuration is in use.
    ConfigReloaded = "config.reloaded" {
        /// The file.
        file: String,
    }
    /// A changed configuration is wrong; the earlier one goes on.
    ConfigRefused = "config.refused" {
        /// The file.
        file: String,
        /// What is wrong, with key and line.
        reason: String,
    }
    /// A plugin or script runs that did not before.
    PluginLoaded = "plugin.loaded" {
        /// The file.
        file: String,
        /// Counts the instances of this name, from 1.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// SHA-256 of the file, hexadecimal.
        sha256: String,
        /// The version that it declares.
        version: String,
    }
    /// A newer generation took over; the earlier one drains.
    PluginReloaded = "plugin.reloaded" {
        /// The file.
        file: String,
        /// The generation that runs now.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// The generation that drains.
        previous: u64,
        /// SHA-256 of the file, hexadecimal.
        sha256: String,
        /// The version that it declares.
        version: String,
    }
    /// A new or changed file could not be used. What ran before goes on.
    PluginReloadFailed = "plugin.reload_failed" {
        /// The file; absent when there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// The generation that goes on; absent when none runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        /// Name of the plugin or script.
        name: String,
        /// What is wrong with the file, its configuration or its self-test.
        reason: String,
    }
    /// A callback panicked; the instance is replaced.
    PluginPanicked = "plugin.panicked" {
        /// Which generation.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// In which callback, and what the panic said.
        reason: String,
    }
    /// A callback did not return in time; the instance is replaced.
    PluginHung = "plugin.hung" {
        /// Which generation.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// In which callback.
        reason: String,
    }
    /// An instance ended although nobody asked for it.
    PluginDied = "plugin.died" {
        /// Which generation.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// Signal, exit code, out of memory.
        reason: String,
    }
    /// A plugin failed too often and is not started again by itself for now.
    PluginSwitchedOff = "plugin.switched_off" {
        /// Which generation was the last.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// The last failure, and what happens next.
        reason: String,
    }
    /// A plugin uses more than it may, and is given no new streams until it
    /// does not.
    PluginOverBudget = "plugin.over_budget" {
        /// Which generation.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
        /// What there is too much of, how much it is and how much it may be.
        reason: String,
    }
    /// A plugin or script was taken away; its last generation drains.
    PluginRemoved = "plugin.removed" {
        /// The generation that drains.
        generation: u64,
        /// Name of the plugin or script.
        name: String,
    }
    /// Events were lost. With `sink` they are lost for that sink only and stand
    /// in its stream in the place of the lost ones; without, for all.
    EventsDropped = "events.dropped" {
        /// How many.
        count: u64,
        /// `event_id` of the first; absent when they never had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_event_id: Option<u64>,
        /// `event_id` of the last; absent when they never had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_event_id: Option<u64>,
        /// Which bound was reached or what broke.
        reason: String,
        /// The sink that does not get them; absent when none does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sink: Option<String>,
    }
    /// A sink has failed several times in a row. Its events are kept.
    SinkFailing = "sink.failing" {
        /// The last failure.
        reason: String,
        /// The first failure, RFC 3339.
        since: String,
        /// The sink.
        sink: String,
        /// Events that wait for it.
        waiting: u64,
    }
    /// A sink that was failing takes events again.
    SinkRecovered = "sink.recovered" {
        /// Attempts that failed.
        attempts: u64,
        /// The first failure, RFC 3339.
        since: String,
        /// The sink.
        sink: String,
        /// Events that wait for it.
        waiting: u64,
    }
    /// A sink's receiver will never take these events, or they were given up.
    /// They are in its dead-letter file when it has one.
    SinkRejected = "sink.rejected" {
        /// How many.
        count: u64,
        /// `event_id` of the first.
        event_id: u64,
        /// `event_id` of the last.
        last_event_id: u64,
        /// What the sink said.
        reason: String,
        /// The sink.
        sink: String,
    }
    /// A name was registered at this node's nameserver.
    NameRegistered = "name.registered" {
        /// What it stands for.
        address: String,
        /// Who registered it.
        from: String,
        /// The name.
        name: String,
        /// Type of the record: `A`, `N` or `S`.
        record: String,
    }
    /// This node's nameserver refused to register a name.
    NameRefused = "name.refused" {
        /// Who asked.
        from: String,
        /// The name.
        name: String,
        /// Why.
        reason: String,
    }
    /// A task came in on port 1003.
    TaskReceived = "task.received" {
        /// The peer that asks.
        from: String,
        /// Its number.
        task_id: String,
    }
    /// A task is being worked on.
    TaskAccepted = "task.accepted" {
        /// The peer that asked.
        from: String,
        /// Its number.
        task_id: String,
    }
    /// A task was declined by whoever should have done it.
    TaskDeclined = "task.declined" {
        /// The peer that asked.
        from: String,
        /// Why, in their words.
        reason: String,
        /// Its number.
        task_id: String,
    }
    /// A task has its result.
    TaskCompleted = "task.completed" {
        /// The peer that asked.
        from: String,
        /// Its number.
        task_id: String,
    }
    /// A task was not accepted or not begun in time.
    TaskExpired = "task.expired" {
        /// The peer that asked.
        from: String,
        /// Which time ran out.
        reason: String,
        /// Its number.
        task_id: String,
    }
    /// A task was not taken in: malformed, too large, or its sender is not
    /// allowed to.
    TaskRefused = "task.refused" {
        /// The peer that asked.
        from: String,
        /// Why.
        reason: String,
    }
    /// A secure channel is open on port 443.
    SecureOpened = "secure.opened" {
        /// Whether the peer proved its identity inside the channel.
        authenticated: bool,
        /// The peer, virtual address and port.
        #[schemars(with = "String")]
        remote: SocketAddress,
    }
}

/// Why a request for trust was granted without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalReason {
    /// This node had asked for the same.
    Mutual,
    /// Both are in one network.
    SameNetwork,
}
