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
    /// Too many registrations, changes of scores or wrong admin tokens from one
    /// address.
    #[error("too many requests of this kind from this address")]
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
    /// There is no such network, or it is the backbone, which is not listed.
    #[error("network {0} cannot be listed or changed: it is the backbone, or there is none")]
    UnknownNetwork(u16),
    /// There is no network of that name.
    #[error("there is no network {0:?}")]
    UnknownNetworkName(String),
    /// Another network has the name.
    #[error("there is a network {0:?} already")]
    NetworkExists(String),
    /// The request is for administrators.
    #[error("{0} needs the registry's admin token")]
    AdminOnly(&'static str),
    /// The admin token is not the registry's.
    #[error("the admin token is wrong")]
    BadAdminToken,
    /// The request is for the network's owner and administrators.
    #[error("only the owner of network {0} and administrators may do that")]
    NotOwner(u16),
    /// The request is for members.
    #[error("node {node} is not a member of network {network}")]
    NotMember {
        /// The network.
        network: u16,
        /// Who is not in it.
        node: NodeId,
    },
    /// The published join request of a member.
    #[error("node {node} is a member of network {network} already")]
    AlreadyMember {
        /// The network.
        network: u16,
        /// Who is in it.
        node: NodeId,
    },
    /// The join rules did not let the node in.
    #[error("network {network} does not admit this node: {reason}")]
    NotAdmitted {
        /// The network.
        network: u16,
        /// The rule that denied, or the last one.
        rule: String,
        /// What the rules said.
        reason: String,
    },
    /// Too many joins are being judged.
    #[error("{all} joins are being judged, or {of_node} of this node; no more at once")]
    TooManyJoins {
        /// At once.
        all: u32,
        /// At once, of one node.
        of_node: u32,
    },
    /// A token is used up, expired or revoked.
    #[error("the join token is used up, expired or revoked")]
    TokenGone,
    /// An invitation was used, declined, revoked, is expired or for another.
    #[error("there is no such invitation for this node: it was used, ended or is for another")]
    InvitationGone,
    /// The node or its key was revoked by an administrator.
    #[error("the key of node {0} was revoked by an administrator")]
    Revoked(NodeId),
    /// The key was revoked by an administrator.
    #[error("this key was revoked by an administrator")]
    KeyRevoked,
    /// The request is for a session.
    #[error("{0} needs a session: a connection that proved its node's key")]
    SessionRequired(&'static str),
    /// The challenge of the session is not the connection's, or was used.
    #[error("there is no challenge to answer on this connection; ask for one first")]
    NoChallenge,
    /// A value of a request is not as it must be.
    #[error("{key}: {problem}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// The registry is not empty.
    #[error("the registry is not empty; import into a new state file")]
    NotEmpty,
    /// No such request.
    #[error("unknown request type {0:?}")]
    UnknownType(String),
    /// The answer is longer than a frame may be.
    #[error("the answer has more than {} bytes", pilot_wire::registry::MAX_BODY_LEN)]
    AnswerTooLong,
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
            Self::RateLimited | Self::TooManyJoins { .. } => "rate_limited",
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
            Self::UnknownNetwork(_) | Self::UnknownNetworkName(_) => "unknown_network",
            Self::NetworkExists(_) => "network_exists",
            Self::AdminOnly(_) => "admin_only",
            Self::BadAdminToken => "bad_admin_token",
            Self::NotOwner(_) => "not_owner",
            Self::NotMember { .. } => "not_member",
            Self::AlreadyMember { .. } => "already_member",
            Self::NotAdmitted { .. } => "not_admitted",
            Self::TokenGone => "token_gone",
            Self::InvitationGone => "invitation_gone",
            Self::Revoked(_) | Self::KeyRevoked => "revoked",
            Self::SessionRequired(_) => "session_required",
            Self::NoChallenge => "no_challenge",
            Self::Invalid { .. } => "invalid",
            Self::NotEmpty => "not_empty",
            Self::UnknownType(_) => "unknown_type",
            Self::AnswerTooLong => "too_large",
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
                | Self::BadAdminToken
                | Self::NotAdmitted { .. }
                | Self::Revoked(_)
                | Self::KeyRevoked
                | Self::Storage
        )
    }

    /// Whether the audit log is to hold it: what is notable, and what somebody
    /// asked for who has no right to it. Mistakes in a request, and what is not
    /// there, are not.
    pub(crate) const fn is_audited(&self) -> bool {
        if let Self::SessionRequired(request) = self {
            // Before its session is open a node may try what needs one.
            return !matches!(request.as_bytes(), b"session_watch" | b"list_nodes");
        }
        self.is_notable()
            || matches!(
                self,
                Self::AdminOnly(_)
                    | Self::NotOwner(_)
                    | Self::NotMember { .. }
                    | Self::AlreadyMember { .. }
                    | Self::Outsider
                    | Self::Private(_)
                    | Self::NoChallenge
                    | Self::TokenGone
                    | Self::InvitationGone
                    | Self::NetworkExists(_)
                    | Self::UnknownNetwork(_)
                    | Self::UnknownNetworkName(_)
                    | Self::TooManyJoins { .. }
            )
    }

    /// What to do about it, where there is something.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::UnknownNode(_) => Some("register it, or wait until it registers again"),
            Self::BadSignature(_) => Some("check the identity file, or register again"),
            Self::ProofRequired => Some("check the clock; send timestamp and proof"),
            Self::RateLimited => Some("try again in a minute"),
            Self::Full(_) => Some("ask whoever runs the registry; what is no longer used must go"),
            Self::OwnerTooLong => Some("shorten the owner text"),
            Self::AlreadyAsked(_) => Some("wait for the answer to the first one"),
            Self::UnknownNetwork(_) | Self::UnknownNetworkName(_) => {
                Some("network_list shows the networks there are")
            }
            Self::NetworkExists(_) => Some("choose another name"),
            Self::BadAdminToken => Some("send what the registry has as admin-token"),
            Self::NotOwner(_) => Some("ask the network's owner, or send admin_token"),
            Self::AlreadyMember { .. } => {
                Some("nothing is to be done; leave it first to join anew")
            }
            Self::Revoked(_) | Self::KeyRevoked => {
                Some("ask an administrator; the node needs a new identity")
            }
            Self::AnswerTooLong => Some("ask for fewer, with limit and after"),
            Self::HostnameTaken(_) => Some("choose another hostname"),
            Self::Private(_) => Some("both nodes must approve a handshake first"),
            Self::InboxFull(_) | Self::Storage => Some("try again later"),
            Self::TooManyJoins { .. } => Some("try again in a moment"),
            Self::AdminOnly("network_create") => {
                Some("ask an administrator, or have them set network-creation to any")
            }
            Self::AdminOnly(_) => Some("send admin_token"),
            Self::SessionRequired(_) => Some("open a session first, or send admin_token"),
            Self::TokenGone => Some("ask the network's owner for another token"),
            Self::InvitationGone => Some("ask to be invited again"),
            Self::NotMember { .. } => Some("join the network first"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_right_is_audited_and_who_errs_is_not() {
        for refusal in [
            Refusal::AdminOnly("node_revoke"),
            Refusal::BadAdminToken,
            Refusal::NotOwner(3),
            Refusal::Private(NodeId(1)),
            Refusal::Outsider,
            Refusal::NoChallenge,
            Refusal::SessionRequired("invite"),
            Refusal::UnknownNetwork(7),
            Refusal::RateLimited,
        ] {
            assert!(refusal.is_audited(), "{refusal}");
        }
        for refusal in [
            Refusal::UnknownNode(NodeId(1)),
            Refusal::BadHostname,
            Refusal::Missing("delta"),
            Refusal::SessionRequired("list_nodes"),
        ] {
            assert!(!refusal.is_audited(), "{refusal}");
        }
        // Events are for attacks and what is broken only.
        assert!(!Refusal::Private(NodeId(1)).is_notable());
    }
}
