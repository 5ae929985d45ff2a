//! What goes into a core and what comes out of it.

use std::net::SocketAddr;

use bytes::Bytes;
use pilot_wire::tunnel::Ed25519Public;
use pilot_wire::{Address, NodeId, SocketAddress};

use crate::time::Time;

/// Handle of a stream inside one core; never reused while the core lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// What the world tells a core.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram arrived. It is opened in place.
    Datagram {
        /// UDP source.
        from: SocketAddr,
        /// The whole datagram.
        data: &'a mut [u8],
    },
    /// The deadline of the last [`Output::Wait`] has come (early is harmless).
    Timeout,
    /// This node's number, from the registry or remembered from before. A
    /// changed number ends every stream and tunnel.
    LocalNode(NodeId),
    /// Where the beacon is; `None` when there is none.
    Beacon(Option<SocketAddr>),
    /// Ask the beacon now under which endpoint this node is seen.
    Discover,
    /// Answer to [`Event::NeedEndpoint`]: where a peer is, or nothing.
    Endpoint {
        /// The peer.
        node: NodeId,
        /// Its UDP endpoint as registered.
        endpoint: Option<SocketAddr>,
    },
    /// Answer to [`Event::NeedKey`]: a peer's identity key, or nothing.
    IdentityKey {
        /// The peer.
        node: NodeId,
        /// Its registered Ed25519 key.
        key: Option<Ed25519Public>,
    },
    /// What a peer is allowed from now on; streams that this forbids end.
    Permission {
        /// The peer.
        node: NodeId,
        /// The new permission.
        permission: Permission,
    },
    /// The networks that this node is in, beside 0. Streams in others end.
    Networks(&'a [u16]),
    /// The networks that a peer and this node are both in, beside 0. Streams
    /// with it in others end.
    Shared {
        /// The peer.
        node: NodeId,
        /// All of them.
        networks: &'a [u16],
        /// Those in which the peer may broadcast.
        speaks: &'a [u16],
    },
    /// The system refused to send a datagram, as larger than the path takes
    /// (EMSGSIZE). What is larger or as large is not sent there any more.
    TooLarge {
        /// Its UDP destination.
        to: SocketAddr,
        /// UDP payload, in bytes.
        len: usize,
    },
}

/// What a peer may do here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permission {
    /// Only the trust port is open to it.
    #[default]
    Stranger,
    /// Trusted, or in a shared network: every bound port is open to it.
    Trusted,
    /// Nothing is open to it and nothing is answered.
    Blocked,
}

/// What a core wants done. [`Output::Wait`] ends a drain.
#[derive(Debug)]
pub enum Output {
    /// Send what was put into the transmit buffer.
    Transmit(Transmit),
    /// Tell the application or the control plane.
    Event(Event),
    /// Nothing more to do before this moment, if any, or the next input.
    Wait(Option<Time>),
}

/// A batch of datagrams to one destination, contiguous in the transmit buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// UDP destination.
    pub to: SocketAddr,
    /// Bytes of the batch, from the start of the buffer.
    pub len: usize,
    /// Size of every datagram but the last, which may be shorter. Equal to
    /// `len` for a single datagram.
    pub segment: usize,
}

/// Something that the application or the control plane is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer opened a stream to a listening port.
    Incoming {
        /// The new stream, open.
        stream: StreamId,
        /// The listening port.
        local_port: u16,
        /// The peer's address and port.
        remote: SocketAddress,
    },
    /// A dialled stream is open.
    Connected {
        /// The stream.
        stream: StreamId,
    },
    /// A dialled stream could not be opened; the handle is gone.
    DialFailed {
        /// The stream.
        stream: StreamId,
        /// Why.
        reason: DialFailure,
    },
    /// Data, or the end of data, can be read. Comes again only after a read
    /// found nothing.
    Readable {
        /// The stream.
        stream: StreamId,
    },
    /// Written bytes were acknowledged and freed.
    Writable {
        /// The stream.
        stream: StreamId,
        /// Bytes freed since the last such event.
        freed: usize,
    },
    /// The stream is over in both directions; the handle is gone. When it ended
    /// in good order, or truncated, everything received was read before this.
    Closed {
        /// The stream.
        stream: StreamId,
        /// How it ended.
        reason: CloseReason,
    },
    /// A datagram for this node.
    Datagram {
        /// Sending address and port.
        source: SocketAddress,
        /// What it was sent to: this node, or all of a network.
        destination: Address,
        /// The port it was sent to.
        destination_port: u16,
        /// Its payload.
        data: Bytes,
    },
    /// A dial needs a peer's endpoint; answer with [`Input::Endpoint`].
    NeedEndpoint {
        /// The peer.
        node: NodeId,
    },
    /// A key exchange needs a peer's identity key; answer with
    /// [`Input::IdentityKey`].
    NeedKey {
        /// The peer.
        node: NodeId,
    },
    /// The beacon sees this node under this endpoint.
    Observed {
        /// Public UDP endpoint.
        endpoint: SocketAddr,
    },
    /// An authenticated key exchange with a peer was completed.
    TunnelUp {
        /// The peer.
        node: NodeId,
        /// Whether frames go through the beacon.
        relay: bool,
        /// Whether there was a session before.
        rekeyed: bool,
    },
    /// Frames to a peer go through the beacon from now on.
    RelayActivated {
        /// The peer.
        node: NodeId,
    },
    /// A packet was refused by a rule. At most ten of these a second; the
    /// counters have them all.
    Refused {
        /// The peer, when it is authenticated.
        node: Option<NodeId>,
        /// The port it wanted; 0 when it did not come that far.
        port: u16,
        /// The rule.
        rule: Refusal,
        /// What else is known of the packet.
        detail: RefusalDetail,
    },
}

/// What is known of a refused packet beside its peer and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusalDetail {
    /// Nothing.
    #[default]
    None,
    /// The port that a SYN came from.
    SourcePort(u16),
    /// The frame's counter.
    Counter(u64),
}

/// Why a dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The peer answered with RST: nothing listens there.
    #[error("connection refused")]
    Refused,
    /// No answer to any SYN.
    #[error("dial timeout")]
    Timeout,
    /// The registry does not say where the peer is.
    #[error("resolve failed: unknown, offline, or private without trust")]
    Unresolved,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Both sides finished and all data was delivered.
    #[error("closed")]
    Finished,
    /// The peer reset it.
    #[error("reset by peer")]
    Reset,
    /// This side reset it.
    #[error("reset locally")]
    Aborted,
    /// The peer stopped acknowledging.
    #[error("peer does not answer")]
    Unresponsive,
    /// Nothing was received for the idle timeout.
    #[error("idle timeout")]
    Idle,
    /// A FIN arrived and data before it never did.
    #[error("stream truncated: data before the end was lost")]
    Truncated,
    /// Trust with the peer ended, or the network of the stream is not shared
    /// any more.
    #[error("trust ended")]
    Untrusted,
}

/// The rule that refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Neither a tunnel frame nor a beacon message.
    Malformed,
    /// A beacon message from another address than the beacon's.
    NotTheBeacon,
    /// A packet in the clear, or an unauthenticated key exchange.
    Unauthenticated,
    /// A key exchange whose identity or signature is wrong.
    BadIdentity,
    /// A key exchange with a key that was retired.
    RetiredKey,
    /// No session opens the frame.
    Undecryptable,
    /// The counter was seen before or is too old.
    Replay,
    /// The inner source or destination is not that of the tunnel.
    AddressMismatch,
    /// The peer is not trusted and the port not 444.
    Untrusted,
    /// The peer is blocked.
    Blocked,
    /// Too many SYNs.
    SynRate,
    /// A stream limit is reached.
    StreamLimit,
    /// Nothing listens on the port.
    NoListener,
    /// A stream packet outside the window or for no stream.
    OutOfState,
    /// A table of pending exchanges is full.
    Overload,
    /// The packet is for a network that the peer and this node do not share.
    NotShared,
    /// Too many broadcasts of one peer.
    BroadcastRate,
    /// A broadcast of a peer that may not broadcast in the network.
    BroadcastRight,
}

impl Refusal {
    /// Every rule.
    pub const ALL: [Self; 18] = [
        Self::Malformed,
        Self::NotTheBeacon,
        Self::Unauthenticated,
        Self::BadIdentity,
        Self::RetiredKey,
        Self::Undecryptable,
        Self::Replay,
        Self::AddressMismatch,
        Self::Untrusted,
        Self::Blocked,
        Self::SynRate,
        Self::StreamLimit,
        Self::NoListener,
        Self::OutOfState,
        Self::Overload,
        Self::NotShared,
        Self::BroadcastRate,
        Self::BroadcastRight,
    ];

    /// The name used in counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotTheBeacon => "not_the_beacon",
            Self::Unauthenticated => "unauthenticated",
            Self::BadIdentity => "bad_identity",
            Self::RetiredKey => "retired_key",
            Self::Undecryptable => "undecryptable",
            Self::Replay => "replay",
            Self::AddressMismatch => "address_mismatch",
            Self::Untrusted => "untrusted",
            Self::Blocked => "blocked",
            Self::SynRate => "syn_rate",
            Self::StreamLimit => "stream_limit",
            Self::NoListener => "no_listener",
            Self::OutOfState => "out_of_state",
            Self::Overload => "overload",
            Self::NotShared => "not_shared",
            Self::BroadcastRate => "broadcast_rate",
            Self::BroadcastRight => "broadcast_right",
        }
    }
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The next bytes in order.
    Data(Bytes),
    /// Nothing yet; [`Event::Readable`] will come.
    Blocked,
    /// The peer finished, and everything was read.
    End,
}
