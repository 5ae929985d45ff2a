//! Virtual addresses: 16-bit network, 32-bit node, text `N:NNNN.HHHH.LLLL`
//! (protocol page "Addresses and packets", section 1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A node's number, unique in its registry. Zero means "none".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The broadcast node of every network.
    pub const BROADCAST: Self = Self(u32::MAX);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u32> for NodeId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

/// A 48-bit virtual address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Network number; 0 is the backbone that every node belongs to.
    pub network: u16,
    /// Node number.
    pub node: NodeId,
}

/// Length of an address on the wire, in bytes.
pub const ADDRESS_LEN: usize = 6;

impl Address {
    /// The address of `node` on the backbone.
    pub const fn backbone(node: NodeId) -> Self {
        Self { network: 0, node }
    }

    /// Reads the six wire bytes: network (2), node (4).
    pub const fn from_bytes(b: [u8; ADDRESS_LEN]) -> Self {
        Self {
            network: u16::from_be_bytes([b[0], b[1]]),
            node: NodeId(u32::from_be_bytes([b[2], b[3], b[4], b[5]])),
        }
    }

    /// The six wire bytes: network (2), node (4).
    pub const fn to_bytes(self) -> [u8; ADDRESS_LEN] {
        let n = self.network.to_be_bytes();
        let i = self.node.0.to_be_bytes();
        [n[0], n[1], i[0], i[1], i[2], i[3]]
    }

    /// Whether every field is zero ("unspecified").
    pub const fn is_unspecified(self) -> bool {
        self.network == 0 && self.node.0 == 0
    }

    /// Whether this addresses every node of its network.
    pub const fn is_broadcast(self) -> bool {
        self.node.0 == NodeId::BROADCAST.0
    }

    /// This address with a port.
    pub const fn port(self, port: u16) -> SocketAddress {
        SocketAddress { address: self, port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, i) = (self.network, self.node.0);
        write!(f, "{n}:{n:04X}.{:04X}.{:04X}", i >> 16, i & 0xFFFF)
    }
}

/// Text that is not a virtual address; the message shows the text and the form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address: {text:?} (expected N:XXXX.YYYY.YYYY)")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_address(text).ok_or_else(|| AddressError { text: text.to_owned() })
    }
}

fn parse_address(text: &str) -> Option<Address> {
    let (network, groups) = text.split_once(':')?;
    let network = u16::try_from(parse_digits(network)?).ok()?;
    let mut groups = groups.split('.');
    let (repeat, high, low) = (groups.next()?, groups.next()?, groups.next()?);
    if groups.next().is_some() || hex_group(repeat)? != network {
        return None;
    }
    let node = u32::from(hex_group(high)?) << 16 | u32::from(hex_group(low)?);
    Some(Address { network, node: NodeId(node) })
}

/// ASCII digits with any number of leading zeros, saturating.
fn parse_digits(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0u64, |value, b| {
        b.is_ascii_digit().then(|| value.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    })
}

fn hex_group(text: &str) -> Option<u16> {
    if text.len() != 4 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(text, 16).ok()
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A virtual address with a port, text `<address>:<port>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketAddress {
    /// The node's address.
    pub address: Address,
    /// The virtual port.
    pub port: u16,
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// Text that is not `<address>:<port>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketAddressError {
    /// There is no colon, so no port.
    #[error("missing port in {0:?} (expected N:XXXX.YYYY.YYYY:PORT)")]
    MissingPort(String),
    /// What stands before the last colon is not an address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// What stands after the last colon is not a number up to 65535.
    #[error("invalid port in {0:?} (expected a number from 0 to 65535)")]
    Port(String),
}

impl FromStr for SocketAddress {
    type Err = SocketAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, port) = text
            .rsplit_once(':')
            .ok_or_else(|| SocketAddressError::MissingPort(text.to_owned()))?;
        let address = address.parse()?;
        let port = parse_digits(port)
            .and_then(|p| u16::try_from(p).ok())
            .ok_or_else(|| SocketAddressError::Port(text.to_owned()))?;
        Ok(Self { address, port })
    }
}

impl Serialize for SocketAddress {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SocketAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
