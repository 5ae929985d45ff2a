//! Why a request is refused. Published clients only see "request failed";
//! the code and the text go out as extra keys.

use pilot_wire::NodeId;
use pilot_wire::registry::ErrorReply;

/// What every refusal says in the published key.
const PUBLISHED_ERROR: &str = "request failed";

/// One variant per reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such node is registered now.
    #[error("node {0} is not registered")]
    UnknownNode(NodeId),
    /// Nobody has this name.
    #[error("no node has the hostname {0:?}")]
    UnknownHostname(String),
    /// The signature is missing, malformed or not by the node's key.
    #[error("the signature is missing or not by the key of node {0}")]
    BadSignature(NodeId),
    /// Not base64 of 32 bytes.
    #[error("the public key is missing or not 32 bytes of padded base64")]
    BadKey,
    /// Another node has the key.
    #[error("the new public key belongs to another node")]
    KeyInUse,
    /// The key must come with a fresh proof of possession.
    #[error("this key registers only with a proof made in the last 5 minutes")]
    ProofRequired,
    /// A proof came that does not verify.
    #[error("the proof is not a signature of this key over time and listen address")]
    BadProof,
    /// Too many registrations from one address.
    #[error("too many registrations from this address")]
    RateLimited,
    /// A table is full.
    #[error("the registry holds no more {0}")]
    Full(&'static str),
    /// The owner text is too long.
    #[error("the owner is longer than {} bytes", super::MAX_OWNER)]
    OwnerTooLong,
    /// Malformed name.
    #[error("hostname must be lowercase alphanumeric with hyphens, start/end with alphanumeric")]
    BadHostname,
    /// A name nobody can have.
    #[error("hostname {0:?} is reserved")]
    ReservedHostname(String),
    /// Another node has the name.
    #[error("hostname {0:?} is taken")]
    HostnameTaken(String),
    /// Malformed or too many tags.
    #[error("{0}")]
    BadTags(&'static str),
    /// The target is private and does not trust the requester.
    #[error("node {0} is private and there is no mutual trust")]
    Private(NodeId),
    /// Punch is for one of the two.
    #[error("the requester is not one of the two nodes")]
    Outsider,
    /// There is nothing to revoke.
    #[error("there is no trust with node {0}")]
    NoTrust(NodeId),
    /// A node cannot trust itself.
    #[error("a node cannot have trust with itself")]
    Oneself,
    /// One request per sender waits already.
    #[error("a handshake request for node {0} is waiting already")]
    AlreadyAsked(NodeId),
    /// The target's requests are not being taken.
    #[error("too many handshake requests are waiting for node {0}")]
    InboxFull(NodeId),
    /// A required value is missing.
    #[error("{0} is missing or not valid")]
    Missing(&'static str),
    /// Network management is not part of this version.
    #[error("networks cannot be changed in this version")]
    NetworksDisabled,
    /// No such network can be listed.
    #[error("network {0} cannot be listed")]
    UnknownNetwork(u16),
    /// No such request.
    #[error("unknown request type {0:?}")]
    UnknownType(String),
    /// The state file cannot be written; nothing was changed.
    #[error("the registry cannot write its state")]
    Storage,
}

impl Refusal {
    /// Stable reason for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownNode(_) => "unknown_node",
            Self::UnknownHostname(_) => "unknown_hostname",
            Self::BadSignature(_) => "bad_signature",
            Self::BadKey => "bad_key",
            Self::KeyInUse => "key_in_use",
            Self::ProofRequired => "proof_required",
            Self::BadProof => "bad_proof",
            Self::RateLimited => "rate_limited",
            Self::Full(_) => "registry_full",
            Self::OwnerTooLong => "owner_too_long",
            Self::BadHostname => "bad_hostname",
            Self::ReservedHostname(_) => "reserved_hostname",
            Self::HostnameTaken(_) => "hostname_taken",
            Self::BadTags(_) => "bad_tags",
            Self::Private(_) => "private",
            Self::Outsider => "outsider",
            Self::NoTrust(_) => "no_trust",
            Self::Oneself => "oneself",
            Self::AlreadyAsked(_) => "already_asked",
            Self::InboxFull(_) => "inbox_full",
            Self::Missing(_) => "missing_field",
            Self::NetworksDisabled => "networks_disabled",
            Self::UnknownNetwork(_) => "unknown_network",
            Self::UnknownType(_) => "unknown_type",
            Self::Storage => "storage",
        }
    }

    /// Whether it can mean an attack, or that something is full or broken, so
    /// that whoever runs the registry wants to know. Others are daily business.
    pub(crate) const fn is_notable(&self) -> bool {
        matches!(
            self,
            Self::BadSignature(_)
                | Self::KeyInUse
                | Self::ProofRequired
                | Self::BadProof
                | Self::RateLimited
                | Self::Full(_)
                | Self::InboxFull(_)
                | Self::Storage
        )
    }

    /// What to do about it, where there is something.
    const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::UnknownNode(_) => Some("register it, or wait until it registers again"),
            Self::BadSignature(_) => Some("check the identity file, or register again"),
            Self::ProofRequired => Some("check the clock; send timestamp and proof"),
            Self::RateLimited => Some("try again in a minute"),
            Self::HostnameTaken(_) => Some("choose another hostname"),
            Self::Private(_) => Some("both nodes must approve a handshake first"),
            Self::InboxFull(_) | Self::Storage => Some("try again later"),
            _ => None,
        }
    }

    /// The reply to send.
    pub fn reply(&self) -> ErrorReply {
        ErrorReply {
            error: PUBLISHED_ERROR.to_owned(),
            code: Some(self.code().to_owned()),
            message: Some(self.to_string()),
            hint: self.hint().map(str::to_owned),
        }
    }
}
