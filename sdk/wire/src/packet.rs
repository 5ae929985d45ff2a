//! The 34-byte packet header and its checksum (protocol page "Addresses and
//! packets", section 2).

use std::fmt;
use std::ops::BitOr;

use crate::address::{Address, NodeId, SocketAddress};

/// Length of the header in bytes; the payload follows it.
pub const HEADER_LEN: usize = 34;

/// Length of the compact form that peers of ours use inside compact frames:
/// flags and kind (1), source port (2), destination port (2), sequence (4),
/// acknowledgement (4), window (2); the payload follows it.
pub const COMPACT_LEN: usize = 15;
/// Bit of a compact packet's first byte: [`Protocol::StreamAck`].
const COMPACT_ACK: u8 = 0x10;

/// The largest payload the length field can name.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;

/// The version this implementation writes. It is not checked on receipt.
pub const VERSION: u8 = 1;

/// Well-known virtual ports (protocol page "Addresses and packets", section 3).
pub mod port {
    /// Control ping; protocol 3 only.
    pub const PING: u16 = 0;
    /// Echo service.
    pub const ECHO: u16 = 7;
    /// HTTP over a stream.
    pub const HTTP: u16 = 80;
    /// Trust handshake, the one port that strangers may reach.
    pub const TRUST: u16 = 444;
    /// Standard input and output text.
    pub const STDIO: u16 = 1000;
    /// Data exchange.
    pub const DATA_EXCHANGE: u16 = 1001;
    /// First ephemeral port; they end at 65535.
    pub const EPHEMERAL_FIRST: u16 = 49152;
}

/// The four flag bits of a stream packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Opens a stream.
    pub const SYN: Self = Self(0x1);
    /// The acknowledgement field is valid.
    pub const ACK: Self = Self(0x2);
    /// The sender has finished.
    pub const FIN: Self = Self(0x4);
    /// The stream is gone.
    pub const RST: Self = Self(0x8);

    /// The low nibble of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0xF)
    }

    /// The flags as the low nibble.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every flag of `other` is set here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is set here.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for (flag, name) in [(Self::SYN, "S"), (Self::ACK, "A"), (Self::FIN, "F"), (Self::RST, "R")]
        {
            if self.contains(flag) {
                any = true;
                f.write_str(name)?;
            }
        }
        if any { Ok(()) } else { f.write_str("-") }
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Reliable byte stream.
    Stream,
    /// One unreliable message.
    Datagram,
    /// Ping and tunnel control.
    Control,
    /// Acknowledgement of a stream with ranges outside the payload of data
    /// packets. Sent only to peers that asked for it when the stream opened
    /// (`options`); other implementations drop unknown protocols.
    StreamAck,
    /// A number without a handler; such packets decode and are then dropped.
    Unknown(u8),
}

impl Protocol {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Stream => 1,
            Self::Datagram => 2,
            Self::Control => 3,
            Self::StreamAck => 4,
            Self::Unknown(n) => n,
        }
    }

    /// The protocol with this number.
    pub const fn from_number(n: u8) -> Self {
        match n {
            1 => Self::Stream,
            2 => Self::Datagram,
            3 => Self::Control,
            4 => Self::StreamAck,
            n => Self::Unknown(n),
        }
    }
}

/// Every header field but the lengths and the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Flag bits.
    pub flags: Flags,
    /// What the payload is.
    pub protocol: Protocol,
    /// Sending node and port.
    pub source: SocketAddress,
    /// Receiving node and port.
    pub destination: SocketAddress,
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Next byte expected from the other side.
    pub ack: u32,
    /// Receive window in segments of 4096 bytes.
    pub window: u16,
}

/// A decoded packet; the payload borrows from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The header fields.
    pub header: Header,
    /// Exactly the declared payload.
    pub payload: &'a [u8],
}

/// Why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than the header.
    #[error("packet header needs 34 bytes, got {got}")]
    Header {
        /// Bytes at hand.
        got: usize,
    },
    /// Shorter than the length field says.
    #[error("payload length field says {declared} bytes, {got} are there")]
    Payload {
        /// What the field says.
        declared: usize,
        /// Bytes at hand after the header.
        got: usize,
    },
    /// A compact packet that is too short or has unknown bits.
    #[error("compact packet is too short or has unknown bits")]
    Compact,
    /// The checksum field does not match the content.
    #[error("checksum field does not match the packet")]
    Checksum,
}

impl<'a> Packet<'a> {
    /// Decodes and checks one packet. Bytes after the declared payload are
    /// ignored, and the version nibble is not looked at.
    ///
    /// # Errors
    /// When `bytes` is truncated or the checksum is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let Some((h, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(PacketError::Header { got: bytes.len() });
        };
        let declared = usize::from(u16::from_be_bytes([h[2], h[3]]));
        let Some(payload) = rest.get(..declared) else {
            return Err(PacketError::Payload { declared, got: rest.len() });
        };
        if checksum(h, payload) != u32::from_be_bytes([h[30], h[31], h[32], h[33]]) {
            return Err(PacketError::Checksum);
        }
        Ok(Self { header: Header::read(h), payload })
    }
}

impl<'a> Packet<'a> {
    /// Decodes a compact packet between `from` and `to`, the nodes of the
    /// tunnel that its frame came through; both on the backbone.
    ///
    /// # Errors
    /// When it is truncated or its first byte has unknown bits.
    pub fn decode_compact(bytes: &'a [u8], from: NodeId, to: NodeId) -> Result<Self, PacketError> {
        let Some((h, payload)) = bytes.split_first_chunk::<COMPACT_LEN>() else {
            return Err(PacketError::Compact);
        };
        if h[0] & !(COMPACT_ACK | 0x0F) != 0 {
            return Err(PacketError::Compact);
        }
        let u16_at = |i: usize| u16::from_be_bytes([h[i], h[i + 1]]);
        let u32_at = |i: usize| u32::from_be_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
        let ack = h[0] & COMPACT_ACK != 0;
        let header = Header {
            flags: Flags::from_bits(h[0]),
            protocol: if ack { Protocol::StreamAck } else { Protocol::Stream },
            source: Address::backbone(from).port(u16_at(1)),
            destination: Address::backbone(to).port(u16_at(3)),
            seq: u32_at(5),
            ack: u32_at(9),
            window: u16_at(13),
        };
        Ok(Self { header, payload })
    }
}

impl Header {
    fn read(h: &[u8; HEADER_LEN]) -> Self {
        let u16_at = |i: usize| u16::from_be_bytes([h[i], h[i + 1]]);
        let u32_at = |i: usize| u32::from_be_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
        let address_at = |i: usize| Address { network: u16_at(i), node: NodeId(u32_at(i + 2)) };
        Self {
            flags: Flags::from_bits(h[0]),
            protocol: Protocol::from_number(h[1]),
            source: address_at(4).port(u16_at(16)),
            destination: address_at(10).port(u16_at(18)),
            seq: u32_at(20),
            ack: u32_at(24),
            window: u16_at(28),
        }
    }

    /// Writes this header, with lengths and checksum, over the first 34 bytes
    /// of `packet`, whose remaining bytes are the payload already in place.
    ///
    /// # Panics
    /// When `packet` is shorter than the header or its payload longer than
    /// [`MAX_PAYLOAD`]: both are sizes that the caller chose.
    pub fn write(&self, packet: &mut [u8]) {
        let Some((h, payload)) = packet.split_first_chunk_mut::<HEADER_LEN>() else {
            panic!("a packet buffer holds at least the header");
        };
        assert!(payload.len() <= MAX_PAYLOAD, "payload exceeds the length field");
        h[0] = VERSION << 4 | self.flags.bits();
        h[1] = self.protocol.number();
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        h[2..4].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        h[4..10].copy_from_slice(&self.source.address.to_bytes());
        h[10..16].copy_from_slice(&self.destination.address.to_bytes());
        h[16..18].copy_from_slice(&self.source.port.to_be_bytes());
        h[18..20].copy_from_slice(&self.destination.port.to_be_bytes());
        h[20..24].copy_from_slice(&self.seq.to_be_bytes());
        h[24..28].copy_from_slice(&self.ack.to_be_bytes());
        h[28..30].copy_from_slice(&self.window.to_be_bytes());
        let sum = checksum(h, payload);
        h[30..34].copy_from_slice(&sum.to_be_bytes());
    }

    /// Writes the compact form of this header, [`COMPACT_LEN`] bytes; the
    /// payload follows it directly. Length, addresses and checksum are those of
    /// the frame around it.
    pub fn write_compact(&self, out: &mut [u8; COMPACT_LEN]) {
        let ack = if self.protocol == Protocol::StreamAck { COMPACT_ACK } else { 0 };
        out[0] = self.flags.bits() | ack;
        out[1..3].copy_from_slice(&self.source.port.to_be_bytes());
        out[3..5].copy_from_slice(&self.destination.port.to_be_bytes());
        out[5..9].copy_from_slice(&self.seq.to_be_bytes());
        out[9..13].copy_from_slice(&self.ack.to_be_bytes());
        out[13..15].copy_from_slice(&self.window.to_be_bytes());
    }

    /// A new buffer with this header and `payload`. For tests, control packets
    /// and other places off the data path.
    pub fn to_packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_LEN + payload.len()];
        packet[HEADER_LEN..].copy_from_slice(payload);
        self.write(&mut packet);
        packet
    }
}

/// CRC-32 (IEEE 802.3) of the header, its checksum field taken as zero, and
/// the payload.
fn checksum(header: &[u8; HEADER_LEN], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    let mut zeroed = *header;
    zeroed[30..34].fill(0);
    crc.update(&zeroed);
    crc.update(payload);
    crc.finalize()
}
