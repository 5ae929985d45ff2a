//! What the loop keeps per stream: who owns it, and what may be passed on.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use pilot_core::CloseReason;
use pilot_host::events::Happening;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ErrorCode;
use tokio::sync::oneshot;

use super::handle::DialFailure;
use super::lane::Lane;
use crate::events::Events;
use crate::ipc::client::Tag;
use crate::service::{LocalStream, StreamShared};

/// Ended streams remembered, so that a late send is answered as published:
/// `connection not established` instead of `not found`. The oldest is
/// forgotten.
const ENDED: usize = 4096;

/// One stream of the core, by its handle's number.
pub(crate) struct Conn {
    pub(crate) owner: Owner,
    pub(crate) remote: SocketAddress,
    /// The own port; 0 while a dial waits.
    pub(crate) local_port: u16,
    /// This side has said that it will write no more.
    pub(crate) finished: bool,
    /// The core has something to read; it says so once until a read found
    /// nothing.
    pub(crate) readable: bool,
    /// It is in its client's queue of readable connections.
    pub(crate) queued: bool,
    /// The end of the peer's data was passed on.
    pub(crate) ended: bool,
    /// It was closed here or given up: nothing more is passed on or taken.
    pub(crate) over: bool,
    /// The client was told of the end of all.
    pub(crate) closed_told: bool,
    /// Bytes that may be passed to the client.
    pub(crate) receive_credit: u64,
    /// Bytes the client may still send.
    pub(crate) send_credit: u64,
    /// That, and what it sent that the peer has not acknowledged.
    pub(crate) allowance: u64,
    /// Bytes freed in the core and not yet granted again.
    pub(crate) freed: u64,
    /// Why the daemon itself broke it.
    pub(crate) fault: Option<(ErrorCode, &'static str)>,
    /// Shared memory instead of the socket.
    pub(crate) lane: Lane,
}

/// Whose a stream is.
pub(crate) enum Owner {
    /// A client waits for its dial.
    DialClient { client: u64, tag: Tag },
    /// A service waits for its dial.
    DialLocal { answer: oneshot::Sender<Result<LocalStream, DialFailure>> },
    /// A client has it.
    Client(u64),
    /// A service has it.
    Local {
        /// Its queues.
        shared: Arc<StreamShared>,
        /// The core was told that no more will be written.
        shut: bool,
    },
}

impl Conn {
    pub(crate) fn new(owner: Owner, remote: SocketAddress) -> Self {
        Self {
            owner,
            remote,
            local_port: 0,
            finished: false,
            readable: false,
            queued: false,
            ended: false,
            over: false,
            closed_told: false,
            receive_credit: u64::MAX,
            send_credit: 0,
            allowance: 0,
            freed: 0,
            fault: None,
            lane: Lane::Counting(0),
        }
    }

    /// Says that the peer finished, when it was the first to do so.
    pub(crate) fn say_finished(&self, events: &Events, id: u32) {
        if !self.finished && !self.over {
            events.emit(|| Happening::ConnFin {
                conn_id: u64::from(id),
                local_port: self.local_port,
                remote_addr: self.remote.address,
                remote_port: self.remote.port,
            });
        }
    }

    /// Says how a stream broke, where that is published.
    pub(crate) fn say_broken(&self, events: &Events, id: u32, reason: CloseReason) {
        let (conn_id, local_port) = (u64::from(id), self.local_port);
        let SocketAddress { address: remote_addr, port: remote_port } = self.remote;
        match reason {
            CloseReason::Reset => {
                events.emit(|| Happening::ConnRst { conn_id, local_port, remote_addr, remote_port })
            }
            CloseReason::Idle => events.emit(|| Happening::ConnIdleTimeout {
                conn_id,
                local_port,
                remote_addr,
                remote_port,
            }),
            _ => {}
        }
    }

    /// The client that has it open.
    pub(crate) fn client(&self) -> Option<u64> {
        match self.owner {
            Owner::Client(id) => Some(id),
            _ => None,
        }
    }
}

/// Numbers of streams that ended lately.
#[derive(Default)]
pub(crate) struct Ended {
    order: VecDeque<u32>,
    set: HashSet<u32>,
}

impl Ended {
    pub(crate) fn insert(&mut self, id: u32) {
        if !self.set.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.set.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_end_is_forgotten() {
        let mut ended = Ended::default();
        for id in 0..=ENDED as u32 {
            ended.insert(id);
        }
        assert!(!ended.contains(0));
        assert!(ended.contains(1) && ended.contains(ENDED as u32));
        assert_eq!((ended.order.len(), ended.set.len()), (ENDED, ENDED));
    }
}
