//! One client of the driver socket: its connection, its buffers, and what it
//! owns. What its commands do is decided by the loop.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pilot_wire::ipc::{ErrorCode, Event, Features, LENGTH_LEN};
use tokio::net::UnixStream;

pub(crate) use super::inbox::{Inbox, Next};
use super::outbox::Outbox;
pub(crate) use super::replies::{Replies, Tag};
use crate::node::ready::Notifier;

/// Stream data is added only while less than this waits; what does not fit
/// stays in the core, whose receive window then closes towards the peer.
pub(crate) const DATA_BOUND: usize = 1 << 20;
/// Datagrams for a client with this much waiting are dropped and counted.
pub(crate) const DATAGRAM_BOUND: usize = 2 << 20;
/// A client with this much waiting is not read from.
pub(crate) const COMMAND_BOUND: usize = 4 << 20;
/// A client with this much waiting has stopped reading for good: what else is
/// added are notices that cannot be held back. It is disconnected.
pub(crate) const HARD_BOUND: usize = 16 << 20;

/// A connected client.
pub(crate) struct Client {
    pub(crate) id: u64,
    stream: UnixStream,
    notifier: Arc<Notifier>,
    waker: Waker,
    pub(crate) inbox: Inbox,
    outbox: Outbox,
    pub(crate) replies: Replies,
    /// What hello granted; nothing for a client of the published protocol.
    pub(crate) features: Features,
    pub(crate) greeted: bool,
    /// Bytes that may be passed on for a new connection.
    pub(crate) receive_credit: u32,
    /// Connections with something to pass on, each at most once.
    pub(crate) readable: VecDeque<u32>,
    /// Connections whose lanes have more than one pass took.
    pub(crate) lanes: Vec<u32>,
    /// One holder besides this for each lane it has.
    pub(crate) lane_permits: Arc<()>,
    /// Connections it owns; bounded by the core's streams.
    pub(crate) connections: HashSet<u32>,
    /// Ports it bound.
    pub(crate) ports: Vec<u16>,
    /// A send to this connection does not fit: nothing more is read until it
    /// does.
    pub(crate) blocked_on: Option<u32>,
    /// It is not read from until its outbox has drained.
    pub(crate) paused: bool,
    /// It is on the list of clients to flush at the end of the turn.
    pub(crate) dirty: bool,
    scratch: Vec<u8>,
}

impl Client {
    pub(crate) fn new(id: u64, stream: UnixStream, notifier: Arc<Notifier>) -> Self {
        let waker = Waker::from(Arc::clone(&notifier));
        Self {
            id,
            stream,
            notifier,
            waker,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            replies: Replies::default(),
            features: Features::default(),
            greeted: false,
            receive_credit: u32::MAX,
            readable: VecDeque::new(),
            lanes: Vec::new(),
            lane_permits: Arc::default(),
            connections: HashSet::new(),
            ports: Vec::new(),
            blocked_on: None,
            paused: false,
            dirty: false,
            scratch: Vec::new(),
        }
    }

    /// Has the loop serve this client again.
    pub(crate) fn notify(&self) {
        self.notifier.notify();
    }

    /// To be called when it was taken off the ready list.
    pub(crate) fn taken(&self) {
        self.notifier.taken();
    }

    pub(crate) fn has(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }

    /// Bytes that wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Reads once; pending means that the loop is told when there is more.
    pub(crate) fn poll_read(&mut self) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(&self.waker);
        self.inbox.poll_read(&mut self.stream, &mut cx)
    }

    /// Writes what the socket takes; pending likewise.
    pub(crate) fn poll_flush(&mut self) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(&self.waker);
        self.outbox.poll_flush(&mut self.stream, &mut cx)
    }

    /// Adds a notification, or an answer that nothing can come before.
    pub(crate) fn send(&mut self, event: &Event<'_>) {
        self.outbox.messages(|run| event.encode(run));
    }

    /// Adds a message that is already encoded.
    pub(crate) fn send_encoded(&mut self, message: &[u8]) {
        self.outbox.messages(|run| run.extend_from_slice(message));
    }

    /// Adds a notification that carries a descriptor.
    pub(crate) fn send_descriptor(&mut self, event: &Event<'_>, file: OwnedFd) {
        let mut message = Vec::new();
        event.encode(&mut message);
        self.outbox.descriptor(message, file);
    }

    /// Adds stream data.
    pub(crate) fn send_data(&mut self, connection: u32, pieces: &mut Vec<Bytes>) {
        self.outbox.receive(connection, pieces);
    }

    /// Answers a request at once, under its tag if it has one.
    pub(crate) fn answer_now(&mut self, tag: Option<u32>, event: &Event<'_>) {
        let Some(id) = tag else { return self.send(event) };
        self.scratch.clear();
        event.encode(&mut self.scratch);
        let body = self.scratch.get(LENGTH_LEN..).unwrap_or_default();
        self.outbox.messages(|run| Event::Reply { id, event: body }.encode(run));
    }

    /// Refuses a request at once.
    pub(crate) fn refuse_now(&mut self, tag: Option<u32>, code: ErrorCode, text: &str) {
        let code = self.told(code);
        self.answer_now(tag, &Event::Error { code, text });
    }

    /// Answers a request that had to wait, in its order.
    pub(crate) fn answer(&mut self, tag: Tag, event: &Event<'_>) {
        match tag {
            Tag::Tagged(id) => {
                self.replies.close_tagged();
                self.answer_now(Some(id), event);
            }
            Tag::InOrder(number) => {
                let mut message = Vec::new();
                event.encode(&mut message);
                let outbox = &mut self.outbox;
                self.replies.complete(number, message, |answer| {
                    outbox.messages(|run| run.extend_from_slice(answer));
                });
            }
        }
    }

    /// Refuses a request that had to wait, in its order.
    pub(crate) fn refuse(&mut self, tag: Tag, code: ErrorCode, text: &str) {
        let code = self.told(code);
        self.answer(tag, &Event::Error { code, text });
    }

    /// The code as this client knows it.
    fn told(&self, code: ErrorCode) -> ErrorCode {
        if self.has(Features::CODES) { code } else { ErrorCode::GENERAL }
    }
}
