//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, before
//! the queue overflows.

use std::time::Duration;

use super::Sample;

/// RFC 9406, section 4.3.
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: usize = 4;
const CSS_ROUNDS: u32 = 5;
/// Without pacing the window grows by at most this many segments per
/// acknowledgement; with it there is no such limit.
const L: usize = 8;

/// What slow start should do with an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// Grow the window by this many bytes.
    By(usize),
    /// Grow, then leave slow start: the queue is building.
    Leave(usize),
}

#[derive(Debug, Default)]
pub(crate) struct HyStart {
    round_end: u64,
    samples: u32,
    last_min: Option<Duration>,
    current_min: Option<Duration>,
    /// Conservative slow start: rounds done, and the round trip before it.
    conservative: Option<(u32, Duration)>,
}

impl HyStart {
    pub(crate) fn on_ack(&mut self, s: &Sample, paced: bool) -> Growth {
        if s.una >= self.round_end {
            self.next_round(s.next);
            if let Some((rounds, _)) = &mut self.conservative {
                *rounds += 1;
                if *rounds > CSS_ROUNDS {
                    return Growth::Leave(0);
                }
            }
        }
        if let Some(rtt) = s.rtt {
            self.samples += 1;
            self.current_min = Some(self.current_min.map_or(rtt, |min| min.min(rtt)));
        }
        self.look_at_round_trips();
        let grown = if paced { s.acked } else { s.acked.min(L * s.segment) };
        match self.conservative {
            Some(_) => Growth::By(grown / CSS_GROWTH_DIVISOR),
            None => Growth::By(grown),
        }
    }

    fn next_round(&mut self, next: u64) {
        self.round_end = next;
        self.last_min = self.current_min.or(self.last_min);
        self.current_min = None;
        self.samples = 0;
    }

    fn look_at_round_trips(&mut self) {
        let (Some(current), Some(last)) = (self.current_min, self.last_min) else { return };
        if self.samples < N_RTT_SAMPLE {
            return;
        }
        match self.conservative {
            None => {
                let thresh = (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if current >= last + thresh {
                    self.conservative = Some((0, current));
                }
            }
            // It was a spike: back to slow start.
            Some((_, baseline)) if current < baseline => self.conservative = None,
            Some(_) => {}
        }
    }
}
