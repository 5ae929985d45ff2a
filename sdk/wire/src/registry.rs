//! Registry requests and replies: JSON objects behind a 4-byte length
//! (protocol page "Registry").
//!
//! Both sides live here: [`Request`] is what a client writes, [`Fields`] is how
//! a server reads it (leniently, as published), the reply structs serve both.

pub mod audit;
pub mod challenge;
mod extended;
mod fields;
mod frame;
mod key;
pub mod network;
mod reply;
mod request;
pub mod session;

pub use extended::{Envelope, Extended};
pub use fields::{Fields, FieldsError, MAX_TEXTS};
pub use frame::{FRAME_HEADER_LEN, FrameBuffer, FrameError, MAX_BODY_LEN, append_frame};
pub use key::{PublicKey, Signature};
pub use reply::{
    Acknowledged, AuditPage, Beacon, BeaconList, BeaconRegistered, Deregistered, ErrorReply,
    HandshakeAnswer, HandshakeAnswered, HandshakeDelivered, HandshakeRequest, Handshakes,
    Heartbeat, HostnameSet, InvitationMade, Invitations, JoinedNetwork, KeyRotated, LeftNetwork,
    ListedNode, Lookup, Members, Network, NetworkCreated, NetworkDone, NetworkJoined, NetworkList,
    NetworkMade, NetworkViews, NodeList, NodeRevoked, PoloScore, PoloScoreSet, PoloScoreUpdated,
    Punch, Registered, Reply, ReplyError, Resolved, ResolvedHostname, SessionChallenged,
    SessionOpened, SessionWatched, TagsSet, TaskExecSet, TokenMade, Tokens, TrustReported,
    TrustRevoked, VisibilitySet, parse_reply,
};
pub use request::Request;

#[cfg(test)]
mod tests;
