//! Bounds and timers of a core, with their defaults.

use std::time::Duration;

/// Congestion control of a node's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CongestionControl {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    #[default]
    Cubic,
    /// NewReno, as the published protocol describes it.
    NewReno,
    /// BBR version 3 (draft-ietf-ccwg-bbr).
    Bbr,
}

/// What a core may use and how long it waits. Every field has a default; the
/// driver overrides what its own configuration names.
#[derive(Clone, Debug)]
pub struct Config {
    /// Streams in all, those in TIME_WAIT not counted. A SYN beyond it is
    /// answered with RST, a dial refused.
    pub max_streams: usize,
    /// Streams per local listening port; a SYN beyond it is answered with RST.
    pub max_streams_per_port: usize,
    /// SYNs per second in all; those beyond are dropped.
    pub syn_rate: u32,
    /// SYNs per second per source node; those beyond are dropped.
    pub syn_rate_per_node: u32,
    /// What all streams together hold in their buffers, in bytes. Every stream
    /// has a floor of 8 KiB in each direction in it, so it should be well above
    /// 16 KiB times `max_streams`.
    pub buffer_memory: usize,
    /// Largest send buffer of a stream, in bytes: written and not yet
    /// acknowledged.
    pub send_buffer: usize,
    /// Largest receive buffer of a stream, in bytes: received and not yet read.
    pub receive_buffer: usize,
    /// What of it a stream starts with; it grows while the peer makes use of it
    /// within a round trip.
    pub initial_window: usize,
    /// Largest stream payload per segment offered to our own peers, in bytes.
    /// The path may allow less.
    pub max_segment: u16,
    /// A keepalive probe is sent when nothing was sent for this long.
    pub keepalive: Duration,
    /// A stream is reset when nothing was received for this long.
    pub idle_timeout: Duration,
    /// How long an ended stream answers late packets.
    pub time_wait: Duration,
    /// Data unacknowledged for this long ends the stream.
    pub give_up: Duration,
    /// A session's keys are replaced after this long.
    pub rekey_after: Duration,
    /// A session's keys are replaced after this many sealed frames.
    pub rekey_frames: u64,
    /// Peers with tunnel state; beyond it the one unheard for longest goes.
    pub max_peers: usize,
    /// How streams share a bottleneck.
    pub congestion: CongestionControl,
    /// Whether small writes are gathered (Nagle) unless a stream opts out.
    pub nagle: bool,
    /// Which numbers the handles of streams get.
    pub stream_numbers: StreamNumbers,
}

/// Every `step`-th number, so that several cores of one node never give out
/// the same: those that leave `rest` when divided by `step`, 0 never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamNumbers {
    /// Distance between two numbers; at least 1.
    pub step: u32,
    /// Below `step`.
    pub rest: u32,
}

impl Default for StreamNumbers {
    fn default() -> Self {
        Self { step: 1, rest: 0 }
    }
}

impl StreamNumbers {
    /// The smallest.
    pub(crate) const fn first(self) -> u32 {
        if self.rest == 0 { self.step } else { self.rest }
    }

    /// The one after `number`; after the largest comes the smallest.
    pub(crate) const fn after(self, number: u32) -> u32 {
        match number.checked_add(self.step) {
            Some(next) => next,
            None => self.first(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 4096,
            max_streams_per_port: 1024,
            syn_rate: 1000,
            syn_rate_per_node: 500,
            buffer_memory: 1 << 30,
            send_buffer: 16 << 20,
            receive_buffer: 16 << 20,
            initial_window: 1 << 20,
            max_segment: u16::MAX,
            keepalive: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            time_wait: Duration::from_secs(10),
            give_up: Duration::from_secs(60),
            rekey_after: Duration::from_secs(3600),
            rekey_frames: 1 << 32,
            max_peers: 65_536,
            congestion: CongestionControl::default(),
            nagle: true,
            stream_numbers: StreamNumbers::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_numbers_keep_their_rest_and_are_never_zero() {
        for (step, rest) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (64, 63)] {
            let numbers = StreamNumbers { step, rest };
            let mut number = numbers.first();
            for _ in 0..10 {
                assert!(number != 0 && number % step == rest, "{number} of {numbers:?}");
                number = numbers.after(number);
            }
            // The last one that fits 32 bits is followed by the first.
            let last = (u32::MAX - step + 1..=u32::MAX).find(|n| n % step == rest);
            assert_eq!(numbers.after(last.unwrap_or_default()), numbers.first(), "{numbers:?}");
        }
    }
}
