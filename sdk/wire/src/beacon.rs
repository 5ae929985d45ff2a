//! Messages to, from and between beacons (protocol page "Beacon").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::NodeId;
use crate::reader::Reader;

/// A datagram is a beacon message when its first byte is below this.
pub const TYPE_LIMIT: u8 = 0x10;
/// Bytes before the frame of a relay message: type, sender, destination.
pub const RELAY_HEADER_LEN: usize = 9;
/// Bytes before the frame of a relay deliver: type, sender.
pub const DELIVER_HEADER_LEN: usize = 5;

const DISCOVER: u8 = 0x01;
const DISCOVER_REPLY: u8 = 0x02;
const PUNCH_REQUEST: u8 = 0x03;
const PUNCH_COMMAND: u8 = 0x04;
const RELAY: u8 = 0x05;
/// Type byte of a relayed frame on its way to its receiver.
pub const RELAY_DELIVER: u8 = 0x06;
const SYNC: u8 = 0x07;

/// One beacon message; frames and lists borrow from the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A node asks under which address it is seen. Trailing bytes are ignored.
    Discover {
        /// The asking node; 0 before registration.
        node: NodeId,
    },
    /// The answer.
    DiscoverReply {
        /// Observed address.
        endpoint: SocketAddr,
    },
    /// A node asks that both sides punch.
    PunchRequest {
        /// Who asks.
        requester: NodeId,
        /// Whom it wants to reach.
        target: NodeId,
    },
    /// The beacon tells a node to punch.
    PunchCommand {
        /// Where to.
        endpoint: SocketAddr,
    },
    /// A frame to carry.
    Relay {
        /// Who sends it.
        sender: NodeId,
        /// Whom it is for.
        destination: NodeId,
        /// The tunnel frame; may be empty.
        frame: &'a [u8],
    },
    /// A carried frame.
    RelayDeliver {
        /// Who sent it, as claimed to the beacon.
        sender: NodeId,
        /// The tunnel frame.
        frame: &'a [u8],
    },
    /// One beacon's table for another.
    Sync {
        /// The sending beacon.
        beacon: u32,
        /// Its nodes.
        nodes: NodeList<'a>,
    },
}

/// Node IDs as they stand in a sync message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeList<'a>(&'a [u8]);

impl<'a> NodeList<'a> {
    /// Wraps wire bytes; a trailing part of an ID is left out.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(&bytes[..bytes.len() - bytes.len() % 4])
    }

    /// The IDs in order.
    pub fn iter(self) -> impl Iterator<Item = NodeId> + use<'a> {
        self.0.as_chunks::<4>().0.iter().map(|id| NodeId(u32::from_be_bytes(*id)))
    }

    /// How many there are.
    pub const fn len(self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// Why a datagram is not a beacon message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The type byte is missing or unknown.
    #[error("unknown beacon message type")]
    Type,
    /// The fields of this type are not all there.
    #[error("beacon {0} message is truncated")]
    Truncated(&'static str),
    /// The IP length is neither 4 nor 16.
    #[error("beacon {0} message has an IP length other than 4 and 16")]
    IpLength(&'static str),
}

impl<'a> Message<'a> {
    /// Parses one datagram.
    ///
    /// # Errors
    /// When the type is unknown or a field is missing.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        let mut r = Reader::new(datagram);
        match r.u8().ok_or(MessageError::Type)? {
            DISCOVER => r.u32().map(|node| Self::Discover { node: NodeId(node) }).ok_or("discover"),
            DISCOVER_REPLY => {
                return endpoint(r, "discover reply")
                    .map(|endpoint| Self::DiscoverReply { endpoint });
            }
            PUNCH_REQUEST => two_ids(&mut r)
                .map(|(requester, target)| Self::PunchRequest { requester, target })
                .ok_or("punch request"),
            PUNCH_COMMAND => {
                return endpoint(r, "punch command")
                    .map(|endpoint| Self::PunchCommand { endpoint });
            }
            RELAY => two_ids(&mut r)
                .map(|(sender, destination)| Self::Relay { sender, destination, frame: r.rest() })
                .ok_or("relay"),
            RELAY_DELIVER => r
                .u32()
                .map(|sender| Self::RelayDeliver { sender: NodeId(sender), frame: r.rest() })
                .ok_or("relay deliver"),
            SYNC => sync(r).ok_or("sync"),
            _ => return Err(MessageError::Type),
        }
        .map_err(MessageError::Truncated)
    }

    /// Appends the wire bytes to `out`. IPv4 addresses mapped into IPv6 are
    /// written as IPv4; a sync list is cut at 65,535 IDs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Discover { node } => {
                out.push(DISCOVER);
                put(out, node);
            }
            Self::DiscoverReply { endpoint } => put_endpoint(out, DISCOVER_REPLY, endpoint),
            Self::PunchRequest { requester, target } => {
                out.push(PUNCH_REQUEST);
                put(out, requester);
                put(out, target);
            }
            Self::PunchCommand { endpoint } => put_endpoint(out, PUNCH_COMMAND, endpoint),
            Self::Relay { sender, destination, frame } => {
                out.extend_from_slice(&relay_header(sender, destination));
                out.extend_from_slice(frame);
            }
            Self::RelayDeliver { sender, frame } => {
                out.push(RELAY_DELIVER);
                put(out, sender);
                out.extend_from_slice(frame);
            }
            Self::Sync { beacon, nodes } => {
                let count = u16::try_from(nodes.len()).unwrap_or(u16::MAX);
                out.push(SYNC);
                put(out, NodeId(beacon));
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(&nodes.0[..usize::from(count) * 4]);
            }
        }
    }
}

/// The bytes before a relayed frame, for senders that seal in place.
pub fn relay_header(sender: NodeId, destination: NodeId) -> [u8; RELAY_HEADER_LEN] {
    let (s, d) = (sender.0.to_be_bytes(), destination.0.to_be_bytes());
    [RELAY, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]]
}

fn two_ids(r: &mut Reader<'_>) -> Option<(NodeId, NodeId)> {
    Some((NodeId(r.u32()?), NodeId(r.u32()?)))
}

fn endpoint(mut r: Reader<'_>, name: &'static str) -> Result<SocketAddr, MessageError> {
    let truncated = MessageError::Truncated(name);
    let ip = match r.u8().ok_or(truncated)? {
        4 => IpAddr::from(r.array::<4>().ok_or(truncated)?),
        16 => IpAddr::from(r.array::<16>().ok_or(truncated)?),
        _ => return Err(MessageError::IpLength(name)),
    };
    Ok(SocketAddr::new(ip, r.u16().ok_or(truncated)?))
}

fn sync(mut r: Reader<'_>) -> Option<Message<'_>> {
    let beacon = r.u32()?;
    let count = usize::from(r.u16()?);
    Some(Message::Sync { beacon, nodes: NodeList(r.take(count * 4)?) })
}

fn put(out: &mut Vec<u8>, node: NodeId) {
    out.extend_from_slice(&node.0.to_be_bytes());
}

fn put_endpoint(out: &mut Vec<u8>, kind: u8, endpoint: SocketAddr) {
    out.push(kind);
    match canonical(endpoint.ip()) {
        Ok(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.octets());
        }
        Err(v6) => {
            out.push(16);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}

fn canonical(ip: IpAddr) -> Result<Ipv4Addr, Ipv6Addr> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => Ok(v4),
        IpAddr::V6(v6) => Err(v6),
    }
}
