//! What a client says to the daemon.

use super::{Features, Setting, put_message};
use crate::address::{Address, NodeId, SocketAddress};
use crate::reader::Reader;

const BIND: u8 = 0x01;
const DIAL: u8 = 0x03;
pub(super) const SEND: u8 = 0x06;
const CLOSE: u8 = 0x08;
pub(super) const SEND_DATAGRAM: u8 = 0x0B;
const INFO: u8 = 0x0D;
const HANDSHAKE: u8 = 0x0F;
const RESOLVE_HOSTNAME: u8 = 0x11;
const SET_HOSTNAME: u8 = 0x13;
const SET_VISIBILITY: u8 = 0x15;
const DEREGISTER: u8 = 0x17;
const SET_TAGS: u8 = 0x19;
const SET_WEBHOOK: u8 = 0x1B;
const SET_TASK_EXEC: u8 = 0x1D;
const HELLO: u8 = 0x40;
const REQUEST: u8 = 0x42;
const CREDIT: u8 = 0x44;
const SHUTDOWN: u8 = 0x45;
const UNBIND: u8 = 0x48;
const SET: u8 = 0x4B;
const LANE_TAKE: u8 = 0x4D;
const LANE_BEGIN: u8 = 0x4E;
const LANE_KICK: u8 = 0x4F;
const PLUGINS: u8 = 0x50;
const RELOAD: u8 = 0x52;
const REGISTRY: u8 = 0x54;

/// A message from a client; data and text borrow from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Listen on a port. Answer: bind ok.
    Bind {
        /// Virtual port.
        port: u16,
    },
    /// Open a stream. Answer: dial ok.
    Dial {
        /// Where to.
        to: SocketAddress,
    },
    /// Stream data; no answer when it succeeds.
    Send {
        /// Connection ID.
        connection: u32,
        /// Bytes to send.
        data: &'a [u8],
    },
    /// Close a stream. Answer: closed.
    Close {
        /// Connection ID.
        connection: u32,
    },
    /// Send one datagram; no answer when it succeeds.
    SendDatagram {
        /// Where to.
        to: SocketAddress,
        /// Its payload.
        data: &'a [u8],
    },
    /// Ask for the daemon's state. Answer: JSON.
    Info,
    /// Trust commands. Answer: JSON.
    Handshake(Handshake<'a>),
    /// Look a hostname up. Answer: JSON.
    ResolveHostname(&'a str),
    /// Set the own hostname; empty clears. Answer: JSON.
    SetHostname(&'a str),
    /// Become public or private. Answer: JSON.
    SetVisibility {
        /// Whether any registered node may resolve this one.
        public: bool,
    },
    /// Leave the registry. Answer: JSON.
    Deregister,
    /// Set tags: a JSON array of strings. Answer: JSON.
    SetTags(&'a [u8]),
    /// Set the webhook URL; empty clears. Answer: JSON.
    SetWebhook(&'a str),
    /// Switch task execution. Answer: JSON.
    SetTaskExec {
        /// Whether tasks are taken.
        enabled: bool,
    },
    /// First message of a client that knows more than the published protocol.
    /// Answer: hello ok. A published daemon answers with an error.
    Hello {
        /// Version of the client's hello.
        version: u16,
        /// What it asks for.
        features: Features,
        /// Bytes the daemon may send on each new connection before it is
        /// given more credit.
        receive_credit: u32,
    },
    /// Another command with a tag; its answer comes as a tagged reply.
    Request {
        /// The client's tag.
        id: u32,
        /// Command byte and payload.
        command: &'a [u8],
    },
    /// The daemon may send more on a connection.
    Credit {
        /// Connection ID.
        connection: u32,
        /// Bytes more.
        bytes: u32,
    },
    /// The client will write no more on a connection; it goes on reading.
    Shutdown {
        /// Connection ID.
        connection: u32,
    },
    /// Stop listening on a port. Answer: unbind ok.
    Unbind {
        /// Virtual port.
        port: u16,
    },
    /// Change a property of a connection; no answer.
    Set {
        /// Connection ID.
        connection: u32,
        /// What to change.
        setting: Setting,
    },
    /// The client wants the lane it was offered. Answer: lane, which may refuse.
    LaneTake {
        /// Connection ID.
        connection: u32,
    },
    /// What the client writes from here on comes through the lane.
    LaneBegin {
        /// Connection ID.
        connection: u32,
    },
    /// The client has written to or read from a lane whose other side waits.
    LaneKick {
        /// Connection ID.
        connection: u32,
    },
    /// How a plugin or script stands; all of them without a name. Answer: JSON.
    Plugins(&'a str),
    /// Look at the configuration and the files of plugins and scripts again.
    /// Answer: JSON.
    Reload,
    /// A request for the registry as this node, one of
    /// [`crate::registry::Extended`] as a JSON object, or
    /// `{"type": "network_status"}` for the networks of this node as the daemon
    /// keeps them. Answer: JSON, the registry's.
    Registry(&'a [u8]),
}

/// Sub-commands of [`Command::Handshake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake<'a> {
    /// Ask a node for trust.
    Request {
        /// Whom.
        node: NodeId,
        /// Why, for the person who approves.
        justification: &'a str,
    },
    /// Approve a pending request.
    Approve {
        /// Whose.
        node: NodeId,
    },
    /// Reject a pending request.
    Reject {
        /// Whose.
        node: NodeId,
        /// Why.
        reason: &'a str,
    },
    /// List what waits for approval.
    Pending,
    /// List trusted nodes.
    Trusted,
    /// End trust.
    Revoke {
        /// With whom.
        node: NodeId,
    },
}

/// Why a message is not a command. The texts are the published ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command byte.
    #[error("unknown command: 0x{0:02X}")]
    Unknown(u8),
    /// A field is missing.
    #[error("{command}: missing {field}")]
    Missing {
        /// Command name.
        command: &'static str,
        /// Field name.
        field: &'static str,
    },
    /// No such handshake sub-command.
    #[error("handshake: unknown sub-command 0x{0:02X}")]
    UnknownHandshake(u8),
    /// Text is not UTF-8.
    #[error("{command}: {field} is not UTF-8")]
    Utf8 {
        /// Command name.
        command: &'static str,
        /// Field name.
        field: &'static str,
    },
    /// No such connection property.
    #[error("set: unknown setting 0x{0:02X}")]
    UnknownSetting(u8),
    /// No such congestion controller.
    #[error("set: unknown congestion control {0}; 1 is cubic, 2 newreno, 3 bbr")]
    UnknownCongestion(u32),
    /// The message has not even a command byte; it is to be ignored.
    #[error("empty message")]
    Empty,
}

impl<'a> Command<'a> {
    /// Parses a message body: command byte and payload.
    ///
    /// # Errors
    /// When the command is unknown or a field is missing; the text is what the
    /// client is told.
    pub fn parse(body: &'a [u8]) -> Result<Self, CommandError> {
        let (&code, payload) = body.split_first().ok_or(CommandError::Empty)?;
        let mut r = Reader::new(payload);
        let missing = |command, field| CommandError::Missing { command, field };
        Ok(match code {
            BIND => Self::Bind { port: r.u16().ok_or(missing("bind", "port"))? },
            DIAL => {
                Self::Dial { to: socket_address(&mut r).ok_or(missing("dial", "address/port"))? }
            }
            SEND => Self::Send {
                connection: r.u32().ok_or(missing("send", "conn_id"))?,
                data: r.rest(),
            },
            CLOSE => Self::Close { connection: r.u32().ok_or(missing("close", "conn_id"))? },
            SEND_DATAGRAM => Self::SendDatagram {
                to: socket_address(&mut r).ok_or(missing("sendto", "address/port"))?,
                data: r.rest(),
            },
            INFO => Self::Info,
            HANDSHAKE => Self::Handshake(Handshake::parse(r)?),
            RESOLVE_HOSTNAME if payload.is_empty() => {
                return Err(missing("resolve_hostname", "hostname"));
            }
            RESOLVE_HOSTNAME => {
                Self::ResolveHostname(text(payload, "resolve_hostname", "hostname")?)
            }
            SET_HOSTNAME => Self::SetHostname(text(payload, "set_hostname", "hostname")?),
            SET_VISIBILITY => {
                let value = r.u8().ok_or(missing("set_visibility", "value"))?;
                Self::SetVisibility { public: value == 1 }
            }
            DEREGISTER => Self::Deregister,
            SET_TAGS => Self::SetTags(payload),
            SET_WEBHOOK => Self::SetWebhook(text(payload, "set_webhook", "url")?),
            SET_TASK_EXEC => {
                let value = r.u8().ok_or(missing("set_task_exec", "value"))?;
                Self::SetTaskExec { enabled: value == 1 }
            }
            HELLO => Self::Hello {
                version: r.u16().ok_or(missing("hello", "version"))?,
                features: Features(r.u32().ok_or(missing("hello", "features"))?),
                receive_credit: r.u32().ok_or(missing("hello", "receive credit"))?,
            },
            REQUEST => {
                Self::Request { id: r.u32().ok_or(missing("request", "id"))?, command: r.rest() }
            }
            CREDIT => Self::Credit {
                connection: r.u32().ok_or(missing("credit", "conn_id"))?,
                bytes: r.u32().ok_or(missing("credit", "bytes"))?,
            },
            SHUTDOWN => {
                Self::Shutdown { connection: r.u32().ok_or(missing("shutdown", "conn_id"))? }
            }
            UNBIND => Self::Unbind { port: r.u16().ok_or(missing("unbind", "port"))? },
            SET => {
                let connection = r.u32().ok_or(missing("set", "conn_id"))?;
                let (kind, value) = r.u8().zip(r.u32()).ok_or(missing("set", "setting"))?;
                Self::Set { connection, setting: Setting::decode(kind, value)? }
            }
            LANE_TAKE => {
                Self::LaneTake { connection: r.u32().ok_or(missing("lane take", "conn_id"))? }
            }
            LANE_BEGIN => {
                Self::LaneBegin { connection: r.u32().ok_or(missing("lane begin", "conn_id"))? }
            }
            LANE_KICK => {
                Self::LaneKick { connection: r.u32().ok_or(missing("lane kick", "conn_id"))? }
            }
            PLUGINS => Self::Plugins(text(payload, "plugins", "name")?),
            RELOAD => Self::Reload,
            REGISTRY => Self::Registry(payload),
            other => return Err(CommandError::Unknown(other)),
        })
    }

    /// Appends the whole message, length included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Bind { port } => put_message(out, BIND, |o| o.extend(port.to_be_bytes())),
            Self::Dial { to } => put_message(out, DIAL, |o| put_socket_address(o, to)),
            Self::Send { connection, data } => put_message(out, SEND, |o| {
                o.extend(connection.to_be_bytes());
                o.extend_from_slice(data);
            }),
            Self::Close { connection } => {
                put_message(out, CLOSE, |o| o.extend(connection.to_be_bytes()));
            }
            Self::SendDatagram { to, data } => put_message(out, SEND_DATAGRAM, |o| {
                put_socket_address(o, to);
                o.extend_from_slice(data);
            }),
            Self::Info => put_message(out, INFO, |_| {}),
            Self::Handshake(h) => put_message(out, HANDSHAKE, |o| h.encode(o)),
            Self::ResolveHostname(t) => put_text(out, RESOLVE_HOSTNAME, t),
            Self::SetHostname(t) => put_text(out, SET_HOSTNAME, t),
            Self::SetVisibility { public } => {
                put_message(out, SET_VISIBILITY, |o| o.push(u8::from(public)));
            }
            Self::Deregister => put_message(out, DEREGISTER, |_| {}),
            Self::SetTags(json) => put_message(out, SET_TAGS, |o| o.extend_from_slice(json)),
            Self::SetWebhook(t) => put_text(out, SET_WEBHOOK, t),
            Self::SetTaskExec { enabled } => {
                put_message(out, SET_TASK_EXEC, |o| o.push(u8::from(enabled)));
            }
            Self::Hello { version, features, receive_credit } => put_message(out, HELLO, |o| {
                o.extend(version.to_be_bytes());
                o.extend(features.0.to_be_bytes());
                o.extend(receive_credit.to_be_bytes());
            }),
            Self::Request { id, command } => put_message(out, REQUEST, |o| {
                o.extend(id.to_be_bytes());
                o.extend_from_slice(command);
            }),
            Self::Credit { connection, bytes } => put_message(out, CREDIT, |o| {
                o.extend(connection.to_be_bytes());
                o.extend(bytes.to_be_bytes());
            }),
            Self::Shutdown { connection } => {
                put_message(out, SHUTDOWN, |o| o.extend(connection.to_be_bytes()));
            }
            Self::Unbind { port } => put_message(out, UNBIND, |o| o.extend(port.to_be_bytes())),
            Self::Set { connection, setting } => put_message(out, SET, |o| {
                o.extend(connection.to_be_bytes());
                let (kind, value) = setting.encode();
                o.push(kind);
                o.extend(value.to_be_bytes());
            }),
            Self::LaneTake { connection } => {
                put_message(out, LANE_TAKE, |o| o.extend(connection.to_be_bytes()));
            }
            Self::LaneBegin { connection } => {
                put_message(out, LANE_BEGIN, |o| o.extend(connection.to_be_bytes()));
            }
            Self::LaneKick { connection } => {
                put_message(out, LANE_KICK, |o| o.extend(connection.to_be_bytes()));
            }
            Self::Plugins(name) => put_text(out, PLUGINS, name),
            Self::Reload => put_message(out, RELOAD, |_| {}),
            Self::Registry(json) => put_message(out, REGISTRY, |o| o.extend(json)),
        }
    }
}

impl<'a> Handshake<'a> {
    fn parse(mut r: Reader<'a>) -> Result<Self, CommandError> {
        let missing = |command, field| CommandError::Missing { command, field };
        let sub = r.u8().ok_or(missing("handshake", "sub-command"))?;
        let mut node =
            |command| r.u32().map(NodeId).ok_or(missing(command, "node_id")).map(|n| (n, r.rest()));
        Ok(match sub {
            1 => {
                let (node, rest) = node("handshake request")?;
                let justification = text(rest, "handshake request", "justification")?;
                Self::Request { node, justification }
            }
            2 => Self::Approve { node: node("handshake approve")?.0 },
            3 => {
                let (node, rest) = node("handshake reject")?;
                Self::Reject { node, reason: text(rest, "handshake reject", "reason")? }
            }
            4 => Self::Pending,
            5 => Self::Trusted,
            6 => Self::Revoke { node: node("handshake revoke")?.0 },
            other => return Err(CommandError::UnknownHandshake(other)),
        })
    }

    fn encode(self, out: &mut Vec<u8>) {
        let (sub, node, text) = match self {
            Self::Request { node, justification } => (1, Some(node), justification),
            Self::Approve { node } => (2, Some(node), ""),
            Self::Reject { node, reason } => (3, Some(node), reason),
            Self::Pending => (4, None, ""),
            Self::Trusted => (5, None, ""),
            Self::Revoke { node } => (6, Some(node), ""),
        };
        out.push(sub);
        if let Some(node) = node {
            out.extend(node.0.to_be_bytes());
        }
        out.extend_from_slice(text.as_bytes());
    }
}

fn text<'a>(
    bytes: &'a [u8],
    command: &'static str,
    field: &'static str,
) -> Result<&'a str, CommandError> {
    std::str::from_utf8(bytes).map_err(|_| CommandError::Utf8 { command, field })
}

fn put_text(out: &mut Vec<u8>, code: u8, text: &str) {
    put_message(out, code, |o| o.extend_from_slice(text.as_bytes()));
}

pub(super) fn socket_address(r: &mut Reader<'_>) -> Option<SocketAddress> {
    Some(Address::from_bytes(r.array()?).port(r.u16()?))
}

pub(super) fn put_socket_address(out: &mut Vec<u8>, a: SocketAddress) {
    out.extend(a.address.to_bytes());
    out.extend(a.port.to_be_bytes());
}
