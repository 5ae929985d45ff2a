//! What the daemon says to a client: answers and notifications.

use super::command::{put_socket_address, socket_address};
use super::{ErrorCode, Features, put_message};
use crate::address::{Address, SocketAddress};
use crate::reader::Reader;

const BIND_OK: u8 = 0x02;
const DIAL_OK: u8 = 0x04;
const ACCEPT: u8 = 0x05;
pub(super) const RECEIVE: u8 = 0x07;
const CLOSED: u8 = 0x09;
const ERROR: u8 = 0x0A;
const RECEIVE_DATAGRAM: u8 = 0x0C;
const HELLO_OK: u8 = 0x41;
const REPLY: u8 = 0x43;
const CREDIT: u8 = 0x44;
const END: u8 = 0x46;
const RESET: u8 = 0x47;
const UNBIND_OK: u8 = 0x49;
const LANE_OFFER: u8 = 0x4C;
const LANE: u8 = 0x4D;
const LANE_KICK: u8 = 0x4F;

/// Codes of the JSON answers; the request's code is one less.
pub mod json {
    /// Answer to info.
    pub const INFO: u8 = 0x0E;
    /// Answer to a handshake sub-command.
    pub const HANDSHAKE: u8 = 0x10;
    /// Answer to resolve hostname.
    pub const RESOLVE_HOSTNAME: u8 = 0x12;
    /// Answer to set hostname.
    pub const SET_HOSTNAME: u8 = 0x14;
    /// Answer to set visibility.
    pub const SET_VISIBILITY: u8 = 0x16;
    /// Answer to deregister.
    pub const DEREGISTER: u8 = 0x18;
    /// Answer to set tags.
    pub const SET_TAGS: u8 = 0x1A;
    /// Answer to set webhook.
    pub const SET_WEBHOOK: u8 = 0x1C;
    /// Answer to set task execution.
    pub const SET_TASK_EXEC: u8 = 0x1E;
    /// Answer to plugins.
    pub const PLUGINS: u8 = 0x51;
    /// Answer to reload.
    pub const RELOAD: u8 = 0x53;
    /// Answer to registry.
    pub const REGISTRY: u8 = 0x55;
}

/// A message from the daemon; data, text and JSON borrow from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The port is bound.
    BindOk {
        /// Virtual port.
        port: u16,
    },
    /// The stream is open.
    DialOk {
        /// Connection ID.
        connection: u32,
    },
    /// A peer opened a stream to a bound port.
    Accept {
        /// The bound port.
        local_port: u16,
        /// Connection ID.
        connection: u32,
        /// The peer's address and port.
        remote: SocketAddress,
    },
    /// Stream data.
    Receive {
        /// Connection ID.
        connection: u32,
        /// Bytes received.
        data: &'a [u8],
    },
    /// The stream has ended, or close was answered.
    Closed {
        /// Connection ID.
        connection: u32,
    },
    /// A request failed.
    Error {
        /// Always 1 for clients of the published protocol.
        code: ErrorCode,
        /// What failed.
        text: &'a str,
    },
    /// A datagram came.
    ReceiveDatagram {
        /// Sending address and port.
        source: SocketAddress,
        /// The port it was sent to.
        destination_port: u16,
        /// Its payload.
        data: &'a [u8],
    },
    /// A JSON answer; see [`json`] for the codes.
    Json {
        /// Which answer.
        code: u8,
        /// The JSON text.
        body: &'a [u8],
    },
    /// Answer to hello.
    HelloOk {
        /// Version of the daemon's hello.
        version: u16,
        /// What it grants.
        features: Features,
        /// Bytes the client may send on each new connection before it is
        /// given more credit.
        send_credit: u32,
    },
    /// Answer to a tagged request.
    Reply {
        /// The client's tag.
        id: u32,
        /// The answer: its code and payload.
        event: &'a [u8],
    },
    /// The client may send more on a connection.
    Credit {
        /// Connection ID.
        connection: u32,
        /// Bytes more.
        bytes: u32,
    },
    /// The peer will send no more; everything it sent has been passed on.
    End {
        /// Connection ID.
        connection: u32,
    },
    /// The stream broke.
    Reset {
        /// Connection ID.
        connection: u32,
        /// Why, as a code.
        code: ErrorCode,
        /// Why, for a person.
        text: &'a str,
    },
    /// The port is free again.
    UnbindOk {
        /// Virtual port.
        port: u16,
    },
    /// The connection carries much: the client may take a lane for it.
    LaneOffer {
        /// Connection ID.
        connection: u32,
    },
    /// Answer to lane take. When granted, a descriptor of the lane's memory
    /// comes with it (`SCM_RIGHTS`), and data for the client comes through the
    /// lane from here on.
    Lane {
        /// Connection ID.
        connection: u32,
        /// Whether there is a lane.
        granted: bool,
    },
    /// The daemon has written to or read from a lane whose other side waits.
    LaneKick {
        /// Connection ID.
        connection: u32,
    },
}

/// Why a message is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// No such code.
    #[error("unknown message 0x{0:02X} from the daemon")]
    Unknown(u8),
    /// Fields are missing or text is not UTF-8.
    #[error("malformed message 0x{0:02X} from the daemon")]
    Malformed(u8),
    /// Not even a code; to be ignored.
    #[error("empty message from the daemon")]
    Empty,
}

impl<'a> Event<'a> {
    /// Parses a message body: code and payload.
    ///
    /// # Errors
    /// When the code is unknown or a field is missing.
    pub fn parse(body: &'a [u8]) -> Result<Self, EventError> {
        let (&code, payload) = body.split_first().ok_or(EventError::Empty)?;
        if is_json(code) {
            return Ok(Self::Json { code, body: payload });
        }
        parse_fields(code, Reader::new(payload))
            .ok_or(EventError::Malformed(code))?
            .ok_or(EventError::Unknown(code))
    }

    /// Appends the whole message, length included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::BindOk { port } => put_message(out, BIND_OK, |o| o.extend(port.to_be_bytes())),
            Self::DialOk { connection } => put_id(out, DIAL_OK, connection),
            Self::Accept { local_port, connection, remote } => put_message(out, ACCEPT, |o| {
                o.extend(local_port.to_be_bytes());
                o.extend(connection.to_be_bytes());
                put_socket_address(o, remote);
            }),
            Self::Receive { connection, data } => put_message(out, RECEIVE, |o| {
                o.extend(connection.to_be_bytes());
                o.extend_from_slice(data);
            }),
            Self::Closed { connection } => put_id(out, CLOSED, connection),
            Self::Error { code, text } => put_message(out, ERROR, |o| {
                o.extend(code.0.to_be_bytes());
                o.extend_from_slice(text.as_bytes());
            }),
            Self::ReceiveDatagram { source, destination_port, data } => {
                put_message(out, RECEIVE_DATAGRAM, |o| {
                    put_socket_address(o, source);
                    o.extend(destination_port.to_be_bytes());
                    o.extend_from_slice(data);
                });
            }
            Self::Json { code, body } => put_message(out, code, |o| o.extend_from_slice(body)),
            Self::HelloOk { version, features, send_credit } => put_message(out, HELLO_OK, |o| {
                o.extend(version.to_be_bytes());
                o.extend(features.0.to_be_bytes());
                o.extend(send_credit.to_be_bytes());
            }),
            Self::Reply { id, event } => put_message(out, REPLY, |o| {
                o.extend(id.to_be_bytes());
                o.extend_from_slice(event);
            }),
            Self::Credit { connection, bytes } => put_message(out, CREDIT, |o| {
                o.extend(connection.to_be_bytes());
                o.extend(bytes.to_be_bytes());
            }),
            Self::End { connection } => put_id(out, END, connection),
            Self::Reset { connection, code, text } => put_message(out, RESET, |o| {
                o.extend(connection.to_be_bytes());
                o.extend(code.0.to_be_bytes());
                o.extend_from_slice(text.as_bytes());
            }),
            Self::UnbindOk { port } => {
                put_message(out, UNBIND_OK, |o| o.extend(port.to_be_bytes()));
            }
            Self::LaneOffer { connection } => put_id(out, LANE_OFFER, connection),
            Self::Lane { connection, granted } => put_message(out, LANE, |o| {
                o.extend(connection.to_be_bytes());
                o.push(u8::from(granted));
            }),
            Self::LaneKick { connection } => put_id(out, LANE_KICK, connection),
        }
    }
}

const fn is_json(code: u8) -> bool {
    code >= json::INFO && code <= json::SET_TASK_EXEC && code.is_multiple_of(2)
        || matches!(code, json::PLUGINS | json::RELOAD | json::REGISTRY)
}

/// Outer `None`: malformed. Inner `None`: no such code.
fn parse_fields(code: u8, mut r: Reader<'_>) -> Option<Option<Event<'_>>> {
    Some(Some(match code {
        BIND_OK => Event::BindOk { port: r.u16()? },
        DIAL_OK => Event::DialOk { connection: r.u32()? },
        ACCEPT => Event::Accept {
            local_port: r.u16()?,
            connection: r.u32()?,
            remote: socket_address(&mut r)?,
        },
        RECEIVE => Event::Receive { connection: r.u32()?, data: r.rest() },
        CLOSED => Event::Closed { connection: r.u32()? },
        ERROR => {
            Event::Error { code: ErrorCode(r.u16()?), text: std::str::from_utf8(r.rest()).ok()? }
        }
        RECEIVE_DATAGRAM => Event::ReceiveDatagram {
            source: Address::from_bytes(r.array()?).port(r.u16()?),
            destination_port: r.u16()?,
            data: r.rest(),
        },
        HELLO_OK => Event::HelloOk {
            version: r.u16()?,
            features: Features(r.u32()?),
            send_credit: r.u32()?,
        },
        REPLY => Event::Reply { id: r.u32()?, event: r.rest() },
        CREDIT => Event::Credit { connection: r.u32()?, bytes: r.u32()? },
        END => Event::End { connection: r.u32()? },
        RESET => Event::Reset {
            connection: r.u32()?,
            code: ErrorCode(r.u16()?),
            text: std::str::from_utf8(r.rest()).ok()?,
        },
        UNBIND_OK => Event::UnbindOk { port: r.u16()? },
        LANE_OFFER => Event::LaneOffer { connection: r.u32()? },
        LANE => Event::Lane { connection: r.u32()?, granted: r.u8()? == 1 },
        LANE_KICK => Event::LaneKick { connection: r.u32()? },
        _ => return Some(None),
    }))
}

fn put_id(out: &mut Vec<u8>, code: u8, connection: u32) {
    put_message(out, code, |o| o.extend(connection.to_be_bytes()));
}
