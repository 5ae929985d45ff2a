//! Nameserver, port 53 (protocol page "Services", section 8): one text request
//! per connection in one write, one text answer, end.
//!
//! Words are separated by white space, extra words are ignored; command and
//! record type are read in any case, names keep theirs. Three records: `A` name
//! to address, `N` name to network, `S` network and port to the services there.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::address::Address;

/// The port of the nameserver.
pub const PORT: u16 = 53;
/// Longest request, in bytes: a published segment, which is what a published
/// server reads.
pub const MAX_REQUEST: usize = 4096;
/// Longest name that a server of ours registers, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest answer that a client of ours reads, in bytes.
pub const MAX_ANSWER: usize = 1 << 20;
/// How long a record lives unless it is registered again.
pub const RECORD_LIFE: Duration = Duration::from_secs(300);
/// How often records that have lived too long are looked for.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// A question or a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `QUERY A <name>`
    QueryA {
        /// The name.
        name: String,
    },
    /// `QUERY N <name>`
    QueryN {
        /// The name.
        name: String,
    },
    /// `QUERY S <network> <port>`
    QueryS {
        /// The network.
        network: u16,
        /// The port.
        port: u16,
    },
    /// `REGISTER A <name> <address>`
    RegisterA {
        /// The name.
        name: String,
        /// Its address.
        address: Address,
    },
    /// `REGISTER N <name> <network>`
    RegisterN {
        /// The name.
        name: String,
        /// Its network.
        network: u16,
    },
    /// `REGISTER S <name> <address> <network> <port>`
    RegisterS(Service),
}

/// A service record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The name.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// The network it is offered in.
    #[serde(rename = "network_id")]
    pub network: u16,
    /// Its port.
    pub port: u16,
}

/// Why a request is none, in the words of the answer `ERR <text>`: those are
/// published, so also the ones for numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Fewer than two words.
    #[error("too few fields")]
    TooFew,
    /// Neither `QUERY` nor `REGISTER`.
    #[error("unknown command: {0}")]
    Command(String),
    /// Neither `A`, `N` nor `S`.
    #[error("unknown record type: {0}")]
    RecordType(String),
    /// Words are missing; the text says which are needed.
    #[error("{0}")]
    Missing(&'static str),
    /// A word that should be an address.
    #[error("{0}")]
    Address(String),
    /// A word that should be a number from 0 to 65535.
    #[error("invalid {what}: strconv.ParseUint: parsing {text:?}: {}", reason(*.too_large))]
    Number {
        /// `net_id` or `port`.
        what: &'static str,
        /// The word.
        text: String,
        /// It is a number, above 65535.
        too_large: bool,
    },
}

fn reason(too_large: bool) -> &'static str {
    if too_large { "value out of range" } else { "invalid syntax" }
}

impl Request {
    /// Reads a request. What is no UTF-8 is replaced, and then fits no name.
    ///
    /// # Errors
    /// What to answer, as [`Answer::Error`].
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let mut words = text.split_whitespace();
        let (Some(command), Some(record)) = (words.next(), words.next()) else {
            return Err(RequestError::TooFew);
        };
        let (command, record) = (command.to_uppercase(), record.to_uppercase());
        let mut missing = Missing { words, needs: "" };
        match (command.as_str(), record.as_str()) {
            ("QUERY", "A") => {
                missing.needs = "QUERY A requires <name>";
                Ok(Self::QueryA { name: missing.word()?.to_owned() })
            }
            ("QUERY", "N") => {
                missing.needs = "QUERY N requires <name>";
                Ok(Self::QueryN { name: missing.word()?.to_owned() })
            }
            ("QUERY", "S") => {
                missing.needs = "QUERY S requires <net_id> <port>";
                let (network, port) = (missing.word()?, missing.word()?);
                Ok(Self::QueryS {
                    network: number("net_id", network)?,
                    port: number("port", port)?,
                })
            }
            ("REGISTER", "A") => {
                missing.needs = "REGISTER A requires <name> <address>";
                let (name, at) = (missing.word()?, missing.word()?);
                Ok(Self::RegisterA { name: name.to_owned(), address: address(at)? })
            }
            ("REGISTER", "N") => {
                missing.needs = "REGISTER N requires <name> <net_id>";
                let (name, network) = (missing.word()?, missing.word()?);
                Ok(Self::RegisterN { name: name.to_owned(), network: number("net_id", network)? })
            }
            ("REGISTER", "S") => {
                missing.needs = "REGISTER S requires <name> <address> <net_id> <port>";
                let (name, at) = (missing.word()?, missing.word()?);
                let (network, port) = (missing.word()?, missing.word()?);
                Ok(Self::RegisterS(Service {
                    name: name.to_owned(),
                    address: address(at)?,
                    network: number("net_id", network)?,
                    port: number("port", port)?,
                }))
            }
            ("QUERY" | "REGISTER", _) => Err(RequestError::RecordType(record)),
            _ => Err(RequestError::Command(command)),
        }
    }
}

/// The request as it is sent.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueryA { name } => write!(f, "QUERY A {name}"),
            Self::QueryN { name } => write!(f, "QUERY N {name}"),
            Self::QueryS { network, port } => write!(f, "QUERY S {network} {port}"),
            Self::RegisterA { name, address } => write!(f, "REGISTER A {name} {address}"),
            Self::RegisterN { name, network } => write!(f, "REGISTER N {name} {network}"),
            Self::RegisterS(Service { name, address, network, port }) => {
                write!(f, "REGISTER S {name} {address} {network} {port}")
            }
        }
    }
}

/// The words after command and record type.
struct Missing<'a> {
    words: std::str::SplitWhitespace<'a>,
    needs: &'static str,
}

impl<'a> Missing<'a> {
    fn word(&mut self) -> Result<&'a str, RequestError> {
        self.words.next().ok_or(RequestError::Missing(self.needs))
    }
}

fn number(what: &'static str, text: &str) -> Result<u16, RequestError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // A sign is no digit, so what fails with digits alone is too large.
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| RequestError::Number { what, text: text.to_owned(), too_large: digits })
}

fn address(text: &str) -> Result<Address, RequestError> {
    text.parse::<Address>().map_err(|e| RequestError::Address(e.to_string()))
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Registered.
    Ok,
    /// `A <name> <address>`
    A {
        /// The name.
        name: String,
        /// Its address.
        address: Address,
    },
    /// `N <name> <network>`
    N {
        /// The name.
        name: String,
        /// Its network.
        network: u16,
    },
    /// A line `S <name> <address> <port>` for each service, `S` for none.
    S(Vec<ServiceLine>),
    /// `ERR <text>`
    Error(String),
}

/// A service in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLine {
    /// The name.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// Its port.
    pub port: u16,
}

/// An answer that no server gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an answer of a nameserver: {0:?}")]
pub struct AnswerError(pub String);

impl Answer {
    /// No such name.
    pub fn no_name(name: &str) -> Self {
        Self::Error(format!("name \"{name}\" not found"))
    }

    /// No such network.
    pub fn no_network(name: &str) -> Self {
        Self::Error(format!("network \"{name}\" not found"))
    }

    /// The address of an `A` record is another node's.
    pub fn foreign_address() -> Self {
        Self::Error("cannot register address for another node".to_owned())
    }

    /// The address of an `S` record is another node's.
    pub fn foreign_service() -> Self {
        Self::Error("cannot register service for another node".to_owned())
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When it is none; with at most the first 80 characters of it.
    pub fn parse(text: &str) -> Result<Self, AnswerError> {
        let text = text.trim_end_matches(['\r', '\n']);
        Self::read(text).ok_or_else(|| AnswerError(text.chars().take(80).collect()))
    }

    fn read(text: &str) -> Option<Self> {
        if let Some(error) = text.strip_prefix("ERR ") {
            return Some(Self::Error(error.to_owned()));
        }
        let mut words = text.split_whitespace();
        match words.next()? {
            "OK" => Some(Self::Ok),
            "ERR" => Some(Self::Error(String::new())),
            "A" => Some(Self::A {
                name: words.next()?.to_owned(),
                address: words.next()?.parse().ok()?,
            }),
            "N" => Some(Self::N {
                name: words.next()?.to_owned(),
                network: words.next()?.parse().ok()?,
            }),
            "S" if words.next().is_none() => Some(Self::S(Vec::new())),
            "S" => text.lines().map(service_line).collect::<Option<Vec<_>>>().map(Self::S),
            _ => None,
        }
    }
}

fn service_line(line: &str) -> Option<ServiceLine> {
    let mut words = line.split_whitespace();
    (words.next()? == "S").then_some(())?;
    Some(ServiceLine {
        name: words.next()?.to_owned(),
        address: words.next()?.parse().ok()?,
        port: words.next()?.parse().ok()?,
    })
}

/// The answer as it is sent.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            Self::A { name, address } => write!(f, "A {name} {address}"),
            Self::N { name, network } => write!(f, "N {name} {network}"),
            Self::S(services) if services.is_empty() => f.write_str("S"),
            Self::S(services) => {
                for (i, ServiceLine { name, address, port }) in services.iter().enumerate() {
                    let end = if i == 0 { "" } else { "\n" };
                    write!(f, "{end}S {name} {address} {port}")?;
                }
                Ok(())
            }
            Self::Error(text) => write!(f, "ERR {text}"),
        }
    }
}

/// The file in which a server keeps its records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// Names of addresses.
    #[serde(deserialize_with = "null_as_empty")]
    pub a_records: Vec<ZoneA>,
    /// Names of networks.
    #[serde(deserialize_with = "null_as_empty")]
    pub n_records: Vec<ZoneN>,
    /// Services.
    #[serde(deserialize_with = "null_as_empty")]
    pub s_records: Vec<Service>,
}

/// An `A` record in a [`Zone`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneA {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: Address,
}

/// An `N` record in a [`Zone`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneN {
    /// The name.
    pub name: String,
    /// Its network.
    pub network_id: u16,
}

/// Published servers write a list without records as null.
fn null_as_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}
