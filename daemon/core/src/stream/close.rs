//! How a stream ends: half-close and FIN between peers of ours, the published
//! close, RST, and what the application is told.

use pilot_wire::packet::{Flags, Header};

use super::{Fin, Reaction, State, Stream};
use crate::event::{CloseReason, Event};
use crate::time::Time;

/// What is left of an ended stream: enough to answer late packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) ours: bool,
    /// Answered for until then; every late packet starts the time anew.
    pub(crate) until: Time,
}

impl Stream {
    /// The application writes no more: FIN after all data.
    pub(crate) fn shut_down(&mut self, now: Time) {
        self.shutdown = true;
        self.settle(now);
    }

    /// The application is done with the stream: FIN after all data, and what
    /// still arrives is thrown away.
    pub(crate) fn release(&mut self, now: Time) {
        self.released = true;
        self.recv.discard();
        if self.state == State::SynSent {
            self.abort(CloseReason::Aborted);
            return;
        }
        self.timers.released(now);
        self.shut_down(now);
    }

    /// Ends the stream with a RST.
    pub(crate) fn abort(&mut self, reason: CloseReason) {
        if self.state == State::Dead {
            return;
        }
        self.reset_due = self.state != State::TimeWait;
        self.die(reason);
    }

    pub(super) fn die(&mut self, reason: CloseReason) {
        self.state = State::Dead;
        self.ending.get_or_insert(reason);
        self.send.discard();
    }

    /// A RST that belongs to this stream. One from a peer of ours must carry
    /// the number expected next, or answer our SYN.
    pub(crate) fn on_reset(&mut self, header: &Header) -> Reaction {
        if self.state == State::SynSent {
            if header.ack != 0 && header.ack != self.iss.wrapping_add(1) {
                return Reaction::OutOfState;
            }
            self.fail_dial(crate::event::DialFailure::Refused);
            return Reaction::None;
        }
        let expected = self.receive_seq(self.recv.next());
        let near = header.seq.wrapping_sub(expected).cast_signed();
        if self.ours.is_some() && !(-1..=1 << 26).contains(&near) {
            return Reaction::OutOfState;
        }
        // Our FIN was the last thing missing: the peer has finished too.
        let complete = self.fin != Fin::None && self.send.all_acked() && self.recv.finished();
        self.die(if complete { CloseReason::Finished } else { CloseReason::Reset });
        Reaction::None
    }

    /// FIN of a peer of ours: the end lies behind this packet's payload.
    pub(super) fn on_fin(&mut self, header: &Header, payload_len: usize) {
        let end = self.receive_offset(header.seq) + i64::try_from(payload_len).unwrap_or(0);
        if let Ok(end) = u64::try_from(end) {
            self.recv.set_end_within(end);
        }
    }

    /// FIN of a published peer, plain or as answer to ours.
    pub(super) fn on_published_fin(&mut self, header: &Header, now: Time) -> Reaction {
        let answer = header.flags.contains(Flags::ACK);
        if answer && self.fin == Fin::Sent {
            self.fin = Fin::Acked;
        }
        if let Ok(end) = u64::try_from(self.receive_offset(header.seq)) {
            self.recv.set_end(end);
            self.recv.ack_sent();
            if !self.recv.finished() {
                self.timers.gap_before_end(&self.rtt, now);
            }
        }
        if !answer {
            self.fin_answer = Some(header.seq.wrapping_add(1));
        }
        self.settle(now);
        Reaction::None
    }

    /// Whether a published peer has finished, after which it reads nothing.
    pub(super) fn write_side_over(&self) -> bool {
        self.ours.is_none() && self.recv.end().is_some()
    }

    /// Makes the transitions that are possible now.
    pub(super) fn settle(&mut self, now: Time) {
        if self.state != State::Open {
            return;
        }
        if self.ours.is_some() {
            if self.shutdown && self.fin == Fin::None {
                self.fin = Fin::Due;
            }
            if self.fin == Fin::Acked && self.recv.finished() {
                self.finish(CloseReason::Finished, now);
            }
            return;
        }
        if self.released && self.fin == Fin::None {
            self.fin = Fin::Due;
        }
        if self.recv.finished() && self.fin_answer.is_none() {
            // It reads no more: what was not acknowledged is lost to it.
            let lost = !self.send.all_acked();
            self.finish(if lost { CloseReason::Reset } else { CloseReason::Finished }, now);
        } else if self.fin == Fin::Acked {
            self.finish(CloseReason::Finished, now);
        }
    }

    fn finish(&mut self, reason: CloseReason, now: Time) {
        self.ending.get_or_insert(reason);
        self.send.discard();
        self.timers.finished(now);
        self.state = State::TimeWait;
    }

    /// A FIN came, and data before it did not in time.
    pub(super) fn truncate(&mut self, now: Time) {
        self.recv.truncate();
        self.finish(CloseReason::Truncated, now);
    }

    /// A packet in TIME_WAIT: answer a repeated FIN.
    pub(super) fn late_packet(&mut self, header: &Header) {
        if !header.flags.contains(Flags::FIN) {
            return;
        }
        if self.ours.is_some() {
            self.recv.demand_ack();
        } else if !header.flags.contains(Flags::ACK) {
            self.fin_answer = Some(header.seq.wrapping_add(1));
        }
    }

    /// Whether nothing is left to tell or send, so that only [`Remains`] need
    /// to be kept.
    pub(crate) fn is_over(&self) -> bool {
        self.closed_announced && matches!(self.state, State::TimeWait | State::Dead)
    }

    /// What to keep for late packets; `None` when nothing can come.
    pub(crate) fn remains(&self, until: Time) -> Option<Remains> {
        // The side that closed last has seen its FIN acknowledged: the peer
        // sends nothing more.
        (self.state == State::TimeWait && !self.timers.closed_last).then(|| Remains {
            seq: self.seq_of(self.send.end()).wrapping_add(u32::from(self.ours.is_some())),
            ack: self.ack_number(),
            ours: self.ours.is_some(),
            until,
        })
    }

    /// Notes which side finished first; called when our FIN is sent.
    pub(super) fn note_close_order(&mut self) {
        self.timers.closed_last = self.recv.finished();
    }

    /// Appends the end of the stream when the application may hear of it.
    pub(super) fn take_closed(&mut self, events: &mut impl Extend<Event>) {
        let Some(reason) = self.ending else { return };
        // What arrived whole before the peer's end is not taken away by a reset
        // of the other direction.
        let orderly = matches!(reason, CloseReason::Finished | CloseReason::Truncated)
            || (reason == CloseReason::Reset && self.recv.finished());
        let unread = self.recv.has_data() && !self.released;
        // In good order the application reads to the end first.
        let over = matches!(self.state, State::TimeWait | State::Dead);
        if self.closed_announced || !over || (orderly && unread) {
            return;
        }
        self.closed_announced = true;
        events.extend([Event::Closed { stream: self.id, reason }]);
    }
}
