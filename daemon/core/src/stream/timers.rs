//! Every timer of a stream, and what happens when one fires.

use std::time::Duration;

use super::rtt::Rtt;
use super::{Fin, State, Stream};
use crate::config::Config;
use crate::event::{CloseReason, DialFailure};
use crate::time::Time;

/// SYN is repeated after these pauses (protocol page "Transport layer",
/// section 3); after the last the dial has failed.
const SYN_PAUSES: [u64; 7] = [1, 2, 4, 8, 8, 8, 8];
/// The same after the switch to the relay, which comes after three SYNs.
const RELAY_SYN_PAUSES: [u64; 4] = [2, 4, 8, 8];
const SYNS_BEFORE_RELAY: usize = 3;
/// A dial that never got a key or an endpoint fails after this.
const DIAL_LIMIT: Duration = Duration::from_secs(39);
/// Small writes are held back at most this long (Nagle flush, section 1).
const NAGLE_FLUSH: Duration = Duration::from_millis(40);
/// Pauses between probes of a closed window (section 1).
const PERSIST_FIRST: Duration = Duration::from_millis(500);
const PERSIST_MAX: Duration = Duration::from_secs(30);
/// A published peer's FIN that overtook data is believed after this, at the
/// least.
const GAP_WAIT: Duration = Duration::from_millis(300);
/// FINs sent to a published peer before its silence is taken for an answer.
const PUBLISHED_FINS: u32 = 8;
/// Timeouts in a row that make the path or the peer suspect.
const SUSPECT_TIMEOUTS: u32 = 2;
/// The same for the size of what is sent: two happen by chance where a few per
/// cent are lost.
const BLACK_HOLE_TIMEOUTS: u32 = 3;

/// What the core must do after a timer fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Alarm {
    /// Three SYNs stayed unanswered: go through the beacon.
    pub(crate) relay: bool,
    /// The peer acknowledges nothing: new keys may help.
    pub(crate) silent: bool,
    /// Large segments seem not to pass.
    pub(crate) black_hole: bool,
}

#[derive(Debug)]
pub(super) struct Timers {
    keepalive: Duration,
    idle: Duration,
    give_up: Duration,
    orphan: Duration,

    pub(super) syn_due: bool,
    pub(super) syn_ack_due: bool,
    /// When the only SYN-ACK so far was sent, until it is answered.
    syn_ack_at: Option<Time>,
    syn_acks: u32,
    pub(super) probe_due: bool,
    pub(super) tail_probe_due: bool,
    syns: usize,
    /// The peer may have answered before, and sent data since.
    doubtful_start: bool,
    relayed_at: Option<usize>,
    syn_at: Option<Time>,
    syn_first: Option<Time>,
    dial_until: Option<Time>,

    rto_at: Option<Time>,
    tail_probe_at: Option<Time>,
    tail_probed: bool,
    timeouts: u32,
    /// A bare acknowledgement came since the last timeout.
    pub(super) answered: bool,
    last_progress: Time,
    persist_at: Option<Time>,
    persist_pause: Duration,
    small_since: Option<Time>,
    /// End of the last segment that was smaller than a full one.
    pub(super) small_until: u64,
    /// Small writes were held back long enough.
    pub(super) flush: bool,
    gap_until: Option<Time>,
    released_at: Option<Time>,
    pub(super) closed_last: bool,
    finished_at: Option<Time>,
    time_wait: Duration,

    pub(super) last_sent: Time,
    last_heard: Time,
    /// Largest segment sent so far.
    pub(super) last_segment: usize,
}

impl Timers {
    pub(super) fn new(config: &Config, now: Time) -> Self {
        Self {
            keepalive: config.keepalive,
            idle: config.idle_timeout,
            give_up: config.give_up,
            orphan: config.time_wait,
            syn_due: false,
            syn_ack_due: false,
            syn_ack_at: None,
            syn_acks: 0,
            probe_due: false,
            tail_probe_due: false,
            syns: 0,
            doubtful_start: false,
            relayed_at: None,
            syn_at: None,
            syn_first: None,
            dial_until: None,
            rto_at: None,
            tail_probe_at: None,
            tail_probed: false,
            timeouts: 0,
            answered: false,
            last_progress: now,
            persist_at: None,
            persist_pause: PERSIST_FIRST,
            small_since: None,
            small_until: 0,
            flush: false,
            gap_until: None,
            released_at: None,
            closed_last: false,
            finished_at: None,
            time_wait: config.time_wait,
            last_sent: now,
            last_heard: now,
            last_segment: 0,
        }
    }

    pub(super) fn start_dial(&mut self, now: Time) {
        self.syn_due = true;
        self.dial_until = Some(now + DIAL_LIMIT);
    }

    /// The dial starts again from another port.
    pub(super) fn restart_dial(&mut self) {
        self.syn_due = true;
        self.doubtful_start = false;
    }

    pub(super) fn doubt_start(&mut self) {
        self.doubtful_start = true;
    }

    pub(super) fn start_is_doubtful(&self) -> bool {
        self.doubtful_start
    }

    /// A SYN leaves now.
    pub(super) fn syn_sent(&mut self, now: Time) {
        self.syn_due = false;
        self.syns += 1;
        self.syn_first.get_or_insert(now);
        let pause = match self.relayed_at {
            Some(at) => RELAY_SYN_PAUSES[(self.syns - at - 1).min(RELAY_SYN_PAUSES.len() - 1)],
            None => SYN_PAUSES[(self.syns - 1).min(SYN_PAUSES.len() - 1)],
        };
        self.syn_at = Some(now + Duration::from_secs(pause));
    }

    /// The SYN-ACK came.
    pub(super) fn dialled(&mut self, rtt: &mut Rtt, now: Time) {
        if self.syns == 1
            && let Some(sent) = self.syn_first
        {
            rtt.sample(now.since(sent));
        }
        self.syn_due = false;
        self.syn_at = None;
        self.dial_until = None;
        self.heard(now);
        self.last_progress = now;
    }

    /// A SYN-ACK leaves now.
    pub(super) fn syn_ack_sent(&mut self, now: Time) {
        self.syn_ack_due = false;
        self.syn_acks += 1;
        self.syn_ack_at = (self.syn_acks == 1).then_some(now);
    }

    /// The first packet after the SYN: the side that accepts measures a round
    /// trip as well, which its window needs before it ever sends.
    pub(super) fn syn_ack_answered(&mut self, rtt: &mut Rtt, now: Time) {
        if let Some(sent) = self.syn_ack_at.take() {
            rtt.sample(now.since(sent));
        }
    }

    pub(super) fn heard(&mut self, now: Time) {
        self.last_heard = now;
    }

    /// The retransmission timer has fired since the last progress.
    pub(super) fn timed_out(&self) -> bool {
        self.timeouts > 0
    }

    /// The timer has fired more than once without progress.
    pub(super) fn in_silence(&self) -> bool {
        self.timeouts >= SUSPECT_TIMEOUTS
    }

    /// New data was acknowledged.
    pub(super) fn progress(&mut self, now: Time) {
        self.last_progress = now;
        self.timeouts = 0;
        self.tail_probe_due = false;
        self.tail_probed = false;
    }

    pub(super) fn window_opened(&mut self) {
        self.persist_at = None;
        self.persist_pause = PERSIST_FIRST;
    }

    /// The application wrote: small writes wait from now on.
    pub(super) fn hold_small(&mut self, now: Time) {
        self.small_since.get_or_insert(now);
    }

    /// New data was sent; `left` says whether more waits.
    pub(super) fn sent_new(&mut self, left: bool, now: Time) {
        self.flush = false;
        self.small_since = left.then_some(now);
    }

    pub(super) fn gap_before_end(&mut self, rtt: &Rtt, now: Time) {
        let wait = rtt.smoothed().map_or(GAP_WAIT, |srtt| GAP_WAIT.max(srtt * 2));
        self.gap_until.get_or_insert(now + wait);
    }

    pub(super) fn released(&mut self, now: Time) {
        self.released_at.get_or_insert(now);
    }

    pub(super) fn finished(&mut self, now: Time) {
        self.finished_at.get_or_insert(now);
    }
}

impl Stream {
    /// Data or FIN is in flight or not, after an acknowledgement or a sending.
    pub(super) fn rearm(&mut self, now: Time) {
        let outstanding = self.send.segments() > 0 || self.fin == Fin::Sent;
        if self.timers.rto_at.is_none() {
            self.timers.last_progress = now;
        }
        self.timers.rto_at = outstanding.then(|| now + self.rtt.timeout());
        self.arm_tail_probe();
    }

    /// A data segment was sent.
    pub(super) fn sent_data(&mut self, now: Time) {
        self.timers.tail_probe_due = false;
        if self.timers.rto_at.is_none() {
            self.timers.rto_at = Some(now + self.rtt.timeout());
            self.timers.last_progress = now;
        }
        self.arm_tail_probe();
    }

    /// RFC 8985, section 7.2: only outside recovery, and once per flight.
    fn arm_tail_probe(&mut self) {
        let wanted = !self.recovery.active()
            && self.send.in_flight() > 0
            && !self.send.has_lost()
            && self.rtt.backoff() == 0
            && !self.timers.tail_probed;
        self.timers.tail_probe_at = if wanted {
            self.send
                .newest_sent()
                .zip(self.send.probe_timeout(&self.rtt))
                .map(|(sent, pause)| sent + pause)
                .filter(|at| self.timers.rto_at.is_none_or(|rto| *at < rto))
        } else {
            None
        };
    }

    /// The earliest moment at which [`Stream::on_timeout`] may have to act.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let t = &self.timers;
        let earliest = |times: &[Option<Time>]| times.iter().flatten().min().copied();
        match self.state {
            State::Dead => None,
            State::TimeWait => t.finished_at.map(|at| at + t.time_wait),
            State::SynSent => earliest(&[t.syn_at, t.dial_until]),
            State::Open => {
                let flush = t.small_since.map(|at| at + NAGLE_FLUSH);
                let orphan =
                    t.released_at.filter(|_| self.fin == Fin::Acked).map(|at| at + t.orphan);
                earliest(&[
                    t.rto_at,
                    t.tail_probe_at,
                    self.send.reordering_deadline(),
                    self.recv.ack_deadline(),
                    t.persist_at,
                    self.paced_until(),
                    flush,
                    t.gap_until,
                    orphan,
                    Some(t.last_sent + self.keepalive_pause()),
                    Some(t.last_heard + t.idle),
                ])
            }
        }
    }

    /// Acts on every timer that is due.
    pub(crate) fn on_timeout(&mut self, now: Time) -> Alarm {
        let mut alarm = Alarm::default();
        match self.state {
            State::Dead => {}
            State::TimeWait => self.time_wait_over(now),
            State::SynSent => self.syn_timeout(&mut alarm, now),
            State::Open => {
                self.open_timeout(&mut alarm, now);
                self.settle(now);
            }
        }
        alarm
    }

    fn time_wait_over(&mut self, now: Time) {
        if self.timers.finished_at.is_some_and(|at| now >= at + self.timers.time_wait) {
            // The application has not read to the end yet; the handle stays,
            // late packets are no longer answered.
            self.timers.finished_at = None;
        }
    }

    fn syn_timeout(&mut self, alarm: &mut Alarm, now: Time) {
        let t = &mut self.timers;
        if t.dial_until.is_some_and(|at| now >= at) {
            self.dial_failure = Some(DialFailure::Timeout);
            self.state = State::Dead;
            return;
        }
        if t.syn_at.is_none_or(|at| now < at) {
            return;
        }
        t.syn_at = None;
        let since_relay = t.relayed_at.map(|at| t.syns - at);
        let exhausted = match since_relay {
            Some(n) => n >= RELAY_SYN_PAUSES.len(),
            None => t.syns >= SYN_PAUSES.len(),
        };
        if exhausted {
            self.dial_failure = Some(DialFailure::Timeout);
            self.state = State::Dead;
            return;
        }
        t.syn_due = true;
        t.doubtful_start = true;
        alarm.silent = true;
        alarm.relay = t.syns == SYNS_BEFORE_RELAY;
    }

    /// The SYNs sent so far could not be opened: send one now.
    pub(crate) fn repeat_syn(&mut self) {
        if self.timers.syn_at.take().is_some() {
            let t = &mut self.timers;
            t.syns -= 1;
            // The wait so far was for keys and is no round trip.
            t.syn_first = None;
            t.relayed_at = t.relayed_at.map(|at| at.min(t.syns));
            t.syn_due = true;
        }
    }

    /// The path now leads through the beacon: the SYN clock starts again.
    pub(crate) fn relayed(&mut self) {
        if self.state == State::SynSent && self.timers.relayed_at.is_none() {
            self.timers.relayed_at = Some(self.timers.syns);
        }
    }

    fn open_timeout(&mut self, alarm: &mut Alarm, now: Time) {
        let due = |at: Option<Time>| at.is_some_and(|at| now >= at);
        self.pacer.expire(now);
        if due(self.timers.rto_at) {
            self.retransmission_timeout(alarm, now);
        }
        if due(self.timers.tail_probe_at) {
            self.timers.tail_probe_at = None;
            self.timers.tail_probe_due = true;
            self.timers.tail_probed = true;
        }
        if due(self.send.reordering_deadline()) {
            let in_flight = self.send.in_flight();
            if self.send.detect_losses(&self.rtt, self.recovery.active(), now) > 0 {
                self.enter_recovery(in_flight, now);
            }
        }
        if due(self.timers.small_since.map(|at| at + NAGLE_FLUSH)) {
            self.timers.small_since = None;
            self.timers.flush = self.send.next() < self.send.end();
        }
        self.recv.expire_ack(now);
        self.persist(now);
        if due(self.timers.gap_until) {
            self.timers.gap_until = None;
            if !self.recv.finished() {
                self.truncate(now);
                return;
            }
        }
        let orphaned = self.timers.released_at.is_some_and(|at| now >= at + self.timers.orphan);
        if orphaned && self.fin == Fin::Acked {
            self.abort(CloseReason::Finished);
            return;
        }
        self.keep_alive(now);
    }

    fn retransmission_timeout(&mut self, alarm: &mut Alarm, now: Time) {
        self.timers.rto_at = None;
        self.timers.tail_probe_at = None;
        if now.since(self.timers.last_progress) >= self.timers.give_up
            && now.since(self.timers.last_heard) >= self.timers.give_up.min(self.timers.idle)
        {
            self.abort(CloseReason::Unresponsive);
            return;
        }
        self.time_out(now);
        self.timers.timeouts += 1;
        alarm.silent = self.timers.timeouts >= SUSPECT_TIMEOUTS;
        // Who answers has got the segment, and refused it for want of memory.
        let answered = std::mem::take(&mut self.timers.answered);
        alarm.black_hole =
            !answered && self.timers.timeouts >= BLACK_HOLE_TIMEOUTS && self.send.segments() > 0;
        if self.fin == Fin::Sent && self.send.all_acked() {
            if self.ours.is_none() && self.timers.timeouts >= PUBLISHED_FINS {
                self.fin = Fin::Acked;
                return;
            }
            self.fin = Fin::Due;
        }
        // Until the repetition is sent, so that an absent tunnel cannot stall.
        self.timers.rto_at = Some(now + self.rtt.timeout());
    }

    /// The peer took a new key of ours. A published one held no other since
    /// that was sent, so what was repeated meanwhile is lost: it goes again at
    /// once, or every repetition would meet the exchange that it brings about.
    /// Returns whether there is something to send.
    pub(crate) fn keys_replaced(&mut self, now: Time) -> bool {
        let lost = self.ours.is_none() && self.state == State::Open && self.timers.timeouts > 0;
        if lost {
            self.send.lose_all();
            self.timers.rto_at = Some(now + self.rtt.timeout());
        }
        lost
    }

    fn persist(&mut self, now: Time) {
        if !self.window_closed() {
            self.timers.persist_at = None;
            return;
        }
        match self.timers.persist_at {
            Some(at) if now < at => {}
            Some(_) => {
                self.timers.probe_due = true;
                self.timers.persist_pause = (self.timers.persist_pause * 2).min(PERSIST_MAX);
                self.timers.persist_at = Some(now + self.timers.persist_pause);
            }
            None => self.timers.persist_at = Some(now + self.timers.persist_pause),
        }
    }

    /// Starts the probing of a closed window when that is what data waits for.
    pub(crate) fn watch_window(&mut self, now: Time) {
        if self.window_closed() {
            self.persist(now);
        }
    }

    /// A published peer answers no probe, so one that has forgotten the stream
    /// can only be told by the probes that it does not send. It sends them when
    /// it has heard nothing for its keepalive time; so ours come later, and its
    /// own are answered.
    fn keepalive_pause(&self) -> Duration {
        if self.ours.is_some() { self.timers.keepalive } else { self.timers.keepalive * 3 }
    }

    /// A published peer's keepalive probe. Not answered when we have just sent,
    /// so that two who answer probes do not keep each other busy.
    pub(super) fn answer_keepalive(&mut self, now: Time) {
        if now.since(self.timers.last_sent) >= self.timers.keepalive / 3 {
            self.timers.probe_due = true;
        }
    }

    fn keep_alive(&mut self, now: Time) {
        if now.since(self.timers.last_sent) >= self.keepalive_pause() {
            self.timers.probe_due = true;
            // Again after another interval, also if this one cannot be sent.
            self.timers.last_sent = now;
        }
        if now.since(self.timers.last_heard) >= self.timers.idle {
            self.abort(CloseReason::Idle);
        }
    }

    /// The path takes less than before.
    pub(crate) fn path_shrank(&mut self, max_payload: usize) {
        if self.ours.is_some() {
            self.send.recut(max_payload);
            self.timers.last_segment = self.timers.last_segment.min(max_payload);
        }
    }
}
