//! Acknowledgements: what they free, what they show to be lost, and whether
//! that was a mistake.

use pilot_wire::packet::Header;
use pilot_wire::sack::{Block, Blocks};

use super::congestion::Sample;
use super::send::Acked;
use super::{DUPLICATE_THRESHOLD, Fin, Reaction, Stream};
use crate::time::Time;

/// A loss episode, and whether it may turn out to have been none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recovery {
    /// The episode lasts until everything before this is acknowledged.
    point: Option<u64>,
    /// It began with a timeout: the window grows from one segment.
    timeout: bool,
    /// Segments sent again in it that the peer has not reported as received
    /// twice. At zero the losses were none (RFC 3708 and RFC 2883).
    unproven: Option<u32>,
    /// End of the last tail loss probe: its double receipt proves nothing.
    probed: u64,
}

impl Recovery {
    pub(super) fn active(&self) -> bool {
        self.point.is_some()
    }

    pub(super) fn by_timeout(&self) -> bool {
        self.point.is_some() && self.timeout
    }

    /// A segment leaves again.
    pub(super) fn sent_again(&mut self, end: u64, probe: bool) {
        if probe {
            self.probed = end;
        } else if let Some(unproven) = &mut self.unproven {
            *unproven += 1;
        }
    }

    fn begin(&mut self, point: u64, timeout: bool) {
        self.point = Some(point);
        self.timeout = timeout;
        self.unproven = Some(0);
    }
}

impl Stream {
    pub(super) fn on_ack(
        &mut self,
        header: &Header,
        blocks: Option<&Blocks>,
        pure: bool,
        now: Time,
    ) -> Reaction {
        let fin = u64::from(self.ours.is_some() && matches!(self.fin, Fin::Sent | Fin::Acked));
        let Some(mut ack) = self.ack_offset(header.ack) else { return Reaction::OutOfState };
        if ack > self.send.next() + fin {
            self.recv.demand_ack();
            return Reaction::OutOfState;
        }
        if ack > self.send.next() {
            ack = self.send.next();
            self.fin = Fin::Acked;
        }
        let stale = ack < self.send.una();
        if !stale {
            self.update_window(header, ack);
        }
        let in_flight = self.send.in_flight();
        let duplicate = !stale
            && ack == self.send.una()
            && pure
            && self.send.segments() > 0
            && header.window == self.peer_window;
        self.peer_window = header.window;
        self.timers.answered |= pure;
        let min_rtt = self.rtt.min();
        let mut acked = Acked::default();
        if ack > self.send.una() {
            acked = self.send.acknowledge(ack, min_rtt, now);
        }
        self.take_blocks(blocks.map_or(&[][..], Blocks::as_slice), ack, &mut acked, now);
        if duplicate {
            self.stats.dup_acks += 1;
            self.duplicates += 1;
        }
        self.after_ack(&acked, in_flight, blocks.is_none(), now);
        Reaction::None
    }

    fn take_blocks(&mut self, blocks: &[Block], ack: u64, acked: &mut Acked, now: Time) {
        let min_rtt = self.rtt.min();
        for (i, block) in blocks.iter().enumerate() {
            self.stats.sack_recv += 1;
            let (Some(left), Some(right)) =
                (self.ack_offset(block.left), self.ack_offset(block.right))
            else {
                continue;
            };
            // The first block may report what came twice (RFC 2883, section 4).
            let inside = blocks.get(1).is_some_and(|next| {
                let edges = (self.ack_offset(next.left), self.ack_offset(next.right));
                matches!(edges, (Some(l), Some(r)) if l <= left && right <= r)
            });
            if i == 0 && self.ours.is_some() && left < right && (right <= ack || inside) {
                self.received_twice(right);
            } else {
                self.send.sack((left, right), min_rtt, now, acked);
            }
        }
    }

    /// The peer has received the segment that ends at `end` twice.
    fn received_twice(&mut self, end: u64) {
        if end == self.recovery.probed {
            return;
        }
        self.send.widen_reordering();
        let Some(unproven) = &mut self.recovery.unproven else { return };
        if *unproven == 1 && !self.recovery.timeout {
            self.undo();
        } else {
            *unproven = unproven.saturating_sub(1);
        }
    }

    /// The episode's losses were none.
    fn undo(&mut self) {
        self.stats.spurious += 1;
        self.recovery = Recovery { probed: self.recovery.probed, ..Recovery::default() };
        self.congestion.undo();
    }

    fn after_ack(&mut self, acked: &Acked, prior_flight: usize, no_list: bool, now: Time) {
        let segment = self.segment_guess();
        let min_rtt = self.rtt.min();
        if let Some(rtt) = acked.rtt {
            self.rtt.sample(rtt);
        }
        if acked.freed > 0 {
            if acked.original && self.recovery.by_timeout() && self.timers.timed_out() {
                // What arrived was sent before the timeout (RFC 5682).
                self.send.unlose();
                self.undo();
            }
            self.freed += acked.freed;
            self.duplicates = 0;
            self.rtt.reset_backoff();
            self.timers.progress(now);
        }
        let mut lost = self.send.detect_losses(&self.rtt, self.recovery.active(), now);
        if no_list && self.duplicates == DUPLICATE_THRESHOLD {
            lost += self.send.lose_first();
        }
        self.end_recovery();
        if lost > 0 {
            self.enter_recovery(prior_flight, now);
        }
        if acked.delivered > 0 || lost > 0 {
            let rate = self.send.rate_sample(acked, min_rtt);
            if let Some(measured) = rate.rate
                && (!rate.app_limited || measured > self.delivery_rate)
            {
                self.delivery_rate = measured;
            }
            self.congestion.on_ack(&Sample {
                now,
                acked: acked.delivered,
                lost,
                segment,
                rtt: acked.rtt,
                smoothed: self.rtt.smoothed().unwrap_or_default(),
                una: self.send.una(),
                next: self.send.next(),
                in_flight: self.send.in_flight(),
                delivered: self.send.total_delivered(),
                rate,
                // Half a window in flight: batches never fill it to the byte.
                limited: prior_flight * 2 >= self.congestion.window(),
                growing: !self.recovery.active() || self.recovery.timeout,
            });
            if self.congestion.holds_back() {
                self.send.note_app_limited();
            }
        }
        if acked.delivered > 0 || self.fin == Fin::Acked {
            self.rearm(now);
        }
    }

    fn end_recovery(&mut self) {
        if self.recovery.point.is_none_or(|point| self.send.una() < point) {
            return;
        }
        if self.recovery.unproven == Some(0) && !self.recovery.timeout {
            // Everything taken for lost arrived before it was sent again.
            self.undo();
        } else {
            self.congestion.on_recovered();
        }
        self.recovery.point = None;
        self.send.recovered();
    }

    /// Segments were found lost while `in_flight` bytes were out.
    pub(super) fn enter_recovery(&mut self, in_flight: usize, now: Time) {
        self.stats.fast_retx += 1;
        // What goes again now is no probe.
        self.timers.tail_probe_due = false;
        if !self.recovery.active() {
            self.recovery.begin(self.send.next(), false);
            self.congestion.on_loss(in_flight, self.segment_guess(), now);
        }
    }

    /// The retransmission timer fired: everything in flight is lost, and one
    /// segment leaves. Window and timeout react once in an episode (protocol
    /// page "Transport layer", section 6); once nothing at all is acknowledged,
    /// the timeout doubles each time (RFC 6298, section 5.5), or repetitions
    /// would keep in step with the key exchanges that they bring about.
    pub(super) fn time_out(&mut self, now: Time) {
        let in_flight = self.send.in_flight();
        let first = !self.recovery.by_timeout();
        self.congestion.on_timeout(in_flight, self.segment_guess(), first, now);
        if first || self.ours.is_none() || self.timers.in_silence() {
            self.rtt.back_off();
        }
        if first {
            self.recovery.begin(self.send.next(), true);
        }
        self.stats.timeouts += 1;
        self.send.lose_all();
    }
}
