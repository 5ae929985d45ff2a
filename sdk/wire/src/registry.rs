//! Registry requests and replies: JSON objects behind a 4-byte length
//! (protocol page "Registry").
//!
//! Both sides live here: [`Request`] is what a client writes, [`Fields`] is how
//! a server reads it (leniently, as published), the reply structs serve both.

pub mod challenge;
mod fields;
mod frame;
mod key;
mod reply;
mod request;

pub use fields::{Fields, FieldsError, MAX_TEXTS};
pub use frame::{FRAME_HEADER_LEN, FrameBuffer, FrameError, MAX_BODY_LEN, append_frame};
pub use key::{PublicKey, Signature};
pub use reply::{
    Acknowledged, Beacon, BeaconList, BeaconRegistered, Deregistered, ErrorReply, HandshakeAnswer,
    HandshakeAnswered, HandshakeDelivered, HandshakeRequest, Handshakes, Heartbeat, HostnameSet,
    KeyRotated, Lookup, Network, NetworkList, PoloScore, PoloScoreSet, PoloScoreUpdated, Punch,
    Registered, Reply, ReplyError, Resolved, ResolvedHostname, TagsSet, TaskExecSet, TrustReported,
    TrustRevoked, VisibilitySet, parse_reply,
};
pub use request::Request;

#[cfg(test)]
mod tests;
