//! One stream as published: states, acknowledgements, timers, and a close
//! that answers every FIN, whatever else it carries. No I/O and no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::SocketAddress;
use pilot_wire::packet::{Flags, Packet};
use pilot_wire::sack::Blocks;

use super::Switches;
use super::counters::Counters;
use super::receive::{End, Inbox, Receiver};
use super::send::{Sender, Timeout};

const DELAYED_ACK: Duration = Duration::from_millis(40);
const RETRANSMISSION_CHECK: Duration = Duration::from_millis(100);

/// The states a connection can really be in; closed ones are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    SynSent,
    Established,
    TimeWait,
    Closed,
}

/// The fields of a packet that a connection decides on.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) flags: Flags,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) payload: Vec<u8>,
}

/// Where the repetition of a SYN stands.
struct Syn {
    sent: u32,
    pause: Duration,
    next: Instant,
}

/// What the clock asks of the node, beyond packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Three SYNs went unanswered: use the relay from now on.
    Relay,
    /// The dial has failed.
    DialTimeout,
    /// The entry is to be removed.
    Remove,
}

pub(super) struct Connection {
    pub(super) local_port: u16,
    pub(super) remote: SocketAddress,
    pub(super) state: State,
    pub(super) inbox: Arc<Inbox>,
    sender: Sender,
    receiver: Receiver,
    syn: Option<Syn>,
    unacknowledged: u32,
    ack_at: Option<Instant>,
    retransmission_check: Instant,
    last_activity: Instant,
    probed: bool,
    fin_answers: u32,
}

impl Connection {
    fn new(
        local_port: u16,
        remote: SocketAddress,
        state: State,
        next: u32,
        switches: &Switches,
        now: Instant,
    ) -> Self {
        Self {
            local_port,
            remote,
            state,
            inbox: Arc::default(),
            sender: Sender::new(next, switches.max_congestion_window),
            receiver: Receiver::default(),
            syn: None,
            unacknowledged: 0,
            ack_at: None,
            retransmission_check: now + RETRANSMISSION_CHECK,
            last_activity: now,
            probed: false,
            fin_answers: 0,
        }
    }

    /// A dialled connection and its SYN.
    pub(super) fn dial(
        local_port: u16,
        remote: SocketAddress,
        switches: &Switches,
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Self {
        let isn = switches.initial_sequence;
        let mut new =
            Self::new(local_port, remote, State::SynSent, isn.wrapping_add(1), switches, now);
        let pause = Duration::from_secs(1);
        new.syn = Some(Syn { sent: 1, pause, next: now + pause });
        out.push(new.syn_packet());
        new
    }

    /// An accepted connection and its SYN-ACK; established at once.
    pub(super) fn accept(
        packet: &Packet<'_>,
        switches: &Switches,
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Self {
        let header = packet.header;
        let next = switches.initial_sequence.wrapping_add(1);
        let mut new = Self::new(
            header.destination.port,
            header.source,
            State::Established,
            next,
            switches,
            now,
        );
        new.receiver = Receiver::new(header.seq.wrapping_add(1));
        new.sender.peer_window(header.window);
        out.push(new.syn_ack());
        new
    }

    fn syn_packet(&self) -> Out {
        self.out(Flags::SYN, self.sender.next.wrapping_sub(1), 0, Vec::new())
    }

    /// Also the answer to a SYN for an entry that exists, in any state.
    pub(super) fn syn_ack(&self) -> Out {
        let seq = self.sender.next.wrapping_sub(1);
        self.out(Flags::SYN | Flags::ACK, seq, self.receiver.expected, Vec::new())
    }

    fn out(&self, flags: Flags, seq: u32, ack: u32, payload: Vec<u8>) -> Out {
        Out { flags, seq, ack, window: self.inbox.free(), payload }
    }

    fn ack(&mut self, counters: &mut Counters) -> Out {
        self.unacknowledged = 0;
        self.ack_at = None;
        let mut payload = Vec::new();
        if self.receiver.buffered() > 0 {
            self.receiver.blocks().encode_published(&mut payload);
            counters.sack_lists_sent += 1;
        }
        self.out(Flags::ACK, self.sender.next, self.receiver.expected, payload)
    }

    /// Handles every packet but SYNs, which the node looks at first.
    pub(super) fn receive(
        &mut self,
        packet: &Packet<'_>,
        switches: &Switches,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        let header = packet.header;
        let flags = header.flags;
        if flags.contains(Flags::RST) {
            self.state = State::Closed;
            self.end(End::Reset);
        } else if flags.contains(Flags::SYN | Flags::ACK) {
            self.syn_acked(header.seq, header.window, now, counters, out);
        } else if flags.contains(Flags::FIN) {
            self.finished(header.seq, switches, now, counters, out);
        } else if flags.contains(Flags::ACK) {
            self.last_activity = now;
            self.probed = false;
            self.sender.peer_window(header.window);
            if header.ack != 0 {
                let pure = packet.payload.is_empty();
                let again = self.sender.acknowledge(header.ack, pure, now);
                self.transmit(again, counters, out);
            }
            if let Some(blocks) = Blocks::recognise(packet.payload) {
                counters.sack_lists_received += 1;
                self.sender.sacked(blocks.as_slice());
            } else if !packet.payload.is_empty() && self.state == State::Established {
                self.deliver(header.seq, packet.payload, now, counters, out);
            }
            self.flush(now, counters, out);
        }
    }

    fn syn_acked(
        &mut self,
        seq: u32,
        window: u16,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        if self.state != State::SynSent {
            return;
        }
        self.state = State::Established;
        self.syn = None;
        self.last_activity = now;
        self.receiver = Receiver::new(seq.wrapping_add(1));
        self.sender.peer_window(window);
        out.push(self.ack(counters));
    }

    fn deliver(
        &mut self,
        seq: u32,
        data: &[u8],
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        let inbox = &self.inbox;
        self.receiver.segment(seq, data, |segment| {
            let room = inbox.push(segment);
            counters.queue_overruns += u64::from(!room);
            room
        });
        self.unacknowledged += 1;
        if self.receiver.buffered() > 0 || self.unacknowledged >= 2 {
            out.push(self.ack(counters));
        } else {
            self.ack_at.get_or_insert(now + DELAYED_ACK);
        }
    }

    fn finished(
        &mut self,
        seq: u32,
        switches: &Switches,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        counters.fins_received += 1;
        self.end(End::Finished);
        self.state = State::TimeWait;
        self.last_activity = now;
        if switches.max_fin_answers.is_some_and(|max| self.fin_answers >= max) {
            return;
        }
        self.fin_answers += 1;
        counters.fins_sent += 1;
        let mut answer =
            self.out(Flags::FIN | Flags::ACK, self.sender.next, seq.wrapping_add(1), Vec::new());
        answer.window = 0;
        out.push(answer);
    }

    fn end(&mut self, end: End) {
        self.inbox.end(end);
        self.sender.abandon();
    }

    /// The application writes.
    pub(super) fn write(
        &mut self,
        data: &[u8],
        done: tokio::sync::oneshot::Sender<bool>,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        if self.state != State::Established {
            let _ = done.send(false);
            return;
        }
        self.sender.write(data, done, now);
        self.flush(now, counters, out);
    }

    /// The application closes: one FIN, whatever is still on its way.
    pub(super) fn close(&mut self, now: Instant, counters: &mut Counters, out: &mut Vec<Out>) {
        if self.state == State::Established {
            counters.fins_sent += 1;
            let mut fin = self.out(Flags::FIN, self.sender.next, 0, Vec::new());
            fin.window = 0;
            out.push(fin);
            self.state = State::TimeWait;
            self.last_activity = now;
            self.end(End::Finished);
        }
    }

    fn flush(&mut self, now: Instant, counters: &mut Counters, out: &mut Vec<Out>) {
        while self.state == State::Established {
            let Some(segment) = self.sender.poll(now) else { return };
            self.last_activity = now;
            self.transmit(Some(segment), counters, out);
        }
    }

    fn transmit(
        &mut self,
        segment: Option<(u32, Vec<u8>)>,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) {
        let Some((seq, data)) = segment else { return };
        self.unacknowledged = 0;
        self.ack_at = None;
        counters.segments_sent += 1;
        out.push(self.out(Flags::ACK, seq, self.receiver.expected, data));
    }

    /// Timers other than the sweep.
    pub(super) fn tick(
        &mut self,
        relayed: bool,
        beacon: bool,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) -> Due {
        if self.state == State::SynSent {
            return self.repeat_syn(relayed, beacon, now, out);
        }
        if self.state != State::Established {
            return Due::Nothing;
        }
        if self.ack_at.is_some_and(|at| now >= at) {
            out.push(self.ack(counters));
        }
        self.flush(now, counters, out);
        if now < self.retransmission_check {
            return Due::Nothing;
        }
        self.retransmission_check = now + RETRANSMISSION_CHECK;
        match self.sender.timeout(now) {
            Timeout::None => {}
            Timeout::Probe => {
                let ack = self.receiver.expected;
                out.push(self.out(Flags::ACK, self.sender.next, ack, Vec::new()));
            }
            Timeout::Again(segment) => self.transmit(Some(segment), counters, out),
            Timeout::GiveUp => {
                let mut reset = self.out(Flags::RST, 0, 0, Vec::new());
                reset.window = 0;
                out.push(reset);
                counters.gave_up += 1;
                self.state = State::Closed;
                self.end(End::Reset);
                return Due::Remove;
            }
        }
        Due::Nothing
    }

    /// 1, 3, 7 s directly, then through the relay from a pause of 1 s again;
    /// without a beacon, or in relay already, the pauses just double to 8 s.
    fn repeat_syn(&mut self, relayed: bool, beacon: bool, now: Instant, out: &mut Vec<Out>) -> Due {
        let Some(syn) = &mut self.syn else { return Due::Nothing };
        if now < syn.next {
            return Due::Nothing;
        }
        if syn.sent == 7 {
            return Due::DialTimeout;
        }
        syn.sent += 1;
        let to_relay = syn.sent == 4 && beacon && !relayed;
        // The pause restarts at 1 s with the relay and has doubled by now.
        let doubled = (syn.pause * 2).min(Duration::from_secs(8));
        syn.pause = if to_relay { Duration::from_secs(2) } else { doubled };
        syn.next = now + syn.pause;
        out.push(self.syn_packet());
        if to_relay { Due::Relay } else { Due::Nothing }
    }

    /// The sweep over idle and old connections.
    pub(super) fn sweep(
        &mut self,
        switches: &Switches,
        now: Instant,
        counters: &mut Counters,
        out: &mut Vec<Out>,
    ) -> Due {
        let idle = now.saturating_duration_since(self.last_activity);
        match self.state {
            State::TimeWait if idle > switches.time_wait => return Due::Remove,
            State::Established if idle > switches.idle_timeout => self.close(now, counters, out),
            State::Established if idle > switches.keepalive && !self.probed => {
                self.probed = true;
                let ack = self.receiver.expected;
                let mut probe = self.out(Flags::ACK, self.sender.next, ack, Vec::new());
                probe.window = 0;
                out.push(probe);
            }
            _ => {}
        }
        Due::Nothing
    }

    /// Segments sent more than once.
    pub(super) fn retransmits(&self) -> u64 {
        self.sender.retransmits
    }
}
