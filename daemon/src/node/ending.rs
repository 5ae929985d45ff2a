//! The graceful end of a node: what clients had written goes out, what peers
//! had sent is passed on, and whoever is still connected then is told.

use std::time::{Duration, Instant};

use pilot_core::StreamId;
use tokio::sync::oneshot;

use super::turn::Node;

/// Turns in which clients are still read from: what they wrote before the end
/// was ordered may lie in their sockets, which hold less than these turns take.
const READING_TURNS: u32 = 4;
/// Between two looks at how the streams get on.
const LOOK: Duration = Duration::from_millis(150);
/// Looks without any change after which nobody waits for more. Together longer
/// than a lost FIN takes to be repeated.
const QUIET_LOOKS: u32 = 4;
/// For so long a peer may go on sending to a stream whose own data has gone.
const ARRIVING: Duration = Duration::from_secs(3);
/// Drains that carry the last resets away.
const LAST_DRAINS: u32 = 64;

/// A graceful end under way.
pub(super) struct Ending {
    pub(super) deadline: Instant,
    pub(super) done: Vec<oneshot::Sender<()>>,
    reading: u32,
    /// From then on only own data is waited for.
    arrived: Instant,
    next_look: Instant,
    seen: Vec<Standing>,
    quiet: u32,
}

/// How far a stream is.
#[derive(PartialEq, Eq)]
struct Standing {
    id: StreamId,
    /// Own data or the FIN after it is still to be sent or acknowledged.
    sending: bool,
    in_flight: usize,
    received: u64,
    /// Changes when a client reads.
    receive_window: usize,
}

impl Ending {
    /// When the loop has to look again.
    pub(super) fn wake_at(&self) -> Instant {
        self.deadline.min(self.next_look)
    }
}

impl Node {
    /// Ends the node at the latest after `deadline`.
    pub(super) fn begin_end(&mut self, deadline: Duration, done: oneshot::Sender<()>) {
        let now = Instant::now();
        let deadline = now + deadline;
        if let Some(ending) = &mut self.ending {
            ending.deadline = ending.deadline.min(deadline);
            ending.done.push(done);
            return;
        }
        self.ending = Some(Ending {
            deadline,
            done: vec![done],
            reading: READING_TURNS,
            arrived: now + ARRIVING,
            next_look: now + LOOK,
            seen: Vec::new(),
            quiet: 0,
        });
        self.hub.ending = true;
        self.hub.displaced.clear();
        for (port, _) in self.hub.ports.drain() {
            self.hub.core.unlisten(port);
        }
    }

    /// Called in every turn after clients were read from. Finishes the streams
    /// once nothing is left to read; whether there is more to read.
    pub(super) fn end_turn(&mut self) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        if ending.reading == 0 {
            return false;
        }
        ending.reading -= 1;
        if ending.reading > 0 {
            self.clients.touch_all(|client| client.notify());
            return true;
        }
        let now = self.hub.now();
        self.hub.finish_lanes(now);
        for stream in self.hub.core.streams() {
            if stream.half_close {
                self.hub.core.shutdown(stream.id, now);
            } else {
                // A published peer knows only the end of both directions.
                self.hub.core.close(stream.id, now);
            }
        }
        false
    }

    /// Whether the loop may stop: all streams are over, or nothing moves any
    /// more on those that are left, or time is up.
    pub(super) fn has_ended(&mut self) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        let now = Instant::now();
        if now >= ending.deadline {
            return true;
        }
        if ending.reading > 0 {
            return false;
        }
        if self.hub.core.open_streams() == 0 && self.blocked.is_none() {
            return true;
        }
        if now < ending.next_look {
            return false;
        }
        ending.next_look = now + LOOK;
        let streams = self.hub.core.streams();
        let standing: Vec<Standing> = streams
            .into_iter()
            .filter(|s| s.state != "TIME_WAIT")
            .map(|s| Standing {
                id: s.id,
                sending: s.state != "FIN_WAIT" || s.in_flight > 0,
                in_flight: s.in_flight,
                received: s.bytes_recv,
                receive_window: s.recv_win,
            })
            .collect();
        let sent = !standing.iter().any(|s| s.sending);
        ending.quiet = if standing == ending.seen { ending.quiet + 1 } else { 0 };
        ending.seen = standing;
        sent && (ending.quiet >= QUIET_LOOKS || now >= ending.arrived)
    }

    /// Tells the peers and clients of the streams that are left.
    pub(super) fn reset_the_rest(&mut self) {
        for stream in self.hub.core.streams() {
            if stream.state != "TIME_WAIT" {
                self.hub.core.reset(stream.id);
            }
        }
        for _ in 0..LAST_DRAINS {
            if !self.drain() {
                break;
            }
        }
        self.pass_on();
    }
}
