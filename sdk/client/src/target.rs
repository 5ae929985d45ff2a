//! What a person writes to name a peer: `agent-b:1000`,
//! `0:0000.0000.0002:1000` or `2:1000`.

use std::fmt;
use std::str::FromStr;

use pilot_wire::{Address, NodeId};

/// A peer, before its hostname is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address, or a decimal node number on the backbone.
    Address(Address),
    /// A name only the daemon can resolve.
    Name(String),
}

/// A peer and a port on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which peer.
    pub host: Host,
    /// Which of its virtual ports.
    pub port: u16,
}

/// Text that is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no port.
    #[error("missing port in {0:?} (expected NAME:PORT, like agent-b:1000)")]
    MissingPort(String),
    /// The port is not a number up to 65535.
    #[error("invalid port in {0:?} (expected a number from 0 to 65535)")]
    Port(String),
    /// There is no peer.
    #[error("missing peer in {0:?} (expected an address, a node number or a hostname)")]
    MissingHost(String),
}

impl FromStr for Host {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(TargetError::MissingHost(text.to_owned()));
        }
        Ok(match (text.parse::<Address>(), text.parse::<u32>()) {
            (Ok(address), _) => Self::Address(address),
            (_, Ok(node)) => Self::Address(Address::backbone(NodeId(node))),
            _ => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An address alone has a colon of its own.
        if text.parse::<Address>().is_ok() {
            return Err(TargetError::MissingPort(text.to_owned()));
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| TargetError::MissingPort(text.to_owned()))?;
        if host.is_empty() {
            return Err(TargetError::MissingHost(text.to_owned()));
        }
        let port = port.parse().map_err(|_| TargetError::Port(text.to_owned()))?;
        Ok(Self { host: host.parse()?, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(node: u32) -> Host {
        Host::Address(Address::backbone(NodeId(node)))
    }

    #[test]
    fn three_forms() {
        let parse = |t: &str| t.parse::<Target>();
        assert_eq!(parse("2:1000"), Ok(Target { host: address(2), port: 1000 }));
        assert_eq!(parse("0:0000.0000.0002:7"), Ok(Target { host: address(2), port: 7 }));
        let named = Target { host: Host::Name("agent-b".into()), port: 80 };
        assert_eq!(parse("agent-b:80"), Ok(named));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, part) in [
            ("agent-b", "missing port"),
            ("0:0000.0000.0002", "missing port"),
            ("agent-b:http", "invalid port"),
            ("agent-b:70000", "invalid port"),
            (":80", "missing peer"),
            ("", "missing port"),
        ] {
            let error = text.parse::<Target>().expect_err(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
