//! Congestion control: how much may be in flight, and how fast it may leave.
//! Sizes are payload bytes, rates bytes per second.

mod bbr;
mod cubic;
mod hystart;
mod new_reno;

use std::fmt;
use std::time::Duration;

use super::send::RateSample;
use crate::config::CongestionControl;
use crate::time::Time;

/// Initial window in segments (RFC 6928).
const INITIAL_SEGMENTS: usize = 10;
/// With segments of tens of kilobytes, ten of them would be more than a small
/// socket buffer holds.
const INITIAL_MAX: usize = 256 << 10;
/// The window before the first segment shows its size.
const INITIAL_SEGMENT: usize = 1200;
/// Smallest window after a loss, in segments (RFC 5681, section 3.1).
const MIN_SEGMENTS: usize = 2;
/// Round trips shorter than this are not paced: the window alone spaces what
/// is sent, and no timer is that fine.
const UNPACED: Duration = Duration::from_millis(1);

/// What an acknowledgement, or a loss found by a timer, tells a controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) now: Time,
    /// Bytes newly known to have arrived.
    pub(crate) acked: usize,
    /// Bytes newly taken for lost.
    pub(crate) lost: usize,
    /// Size of a full segment.
    pub(crate) segment: usize,
    /// A round trip measured by this acknowledgement.
    pub(crate) rtt: Option<Duration>,
    /// Smoothed round trip.
    pub(crate) smoothed: Duration,
    /// First offset not acknowledged, and next to be sent: they count rounds.
    pub(crate) una: u64,
    pub(crate) next: u64,
    /// Bytes in flight after this acknowledgement.
    pub(crate) in_flight: usize,
    /// Total bytes delivered.
    pub(crate) delivered: u64,
    /// The delivery rate it shows.
    pub(crate) rate: RateSample,
    /// Whether the window was what limited sending.
    pub(crate) limited: bool,
    /// Outside a loss episode, or in one that a timeout began: a window that
    /// counts acknowledgements may grow.
    pub(crate) growing: bool,
}

/// A congestion controller.
pub(crate) trait Controller: fmt::Debug + Send {
    /// Its name, for statistics.
    fn name(&self) -> &'static str;
    /// Bytes that may be in flight.
    fn window(&self) -> usize;
    /// The slow-start threshold, for statistics; `usize::MAX` when there is
    /// none.
    fn threshold(&self) -> usize;
    /// Bytes per second at which to send; `None` without limit.
    fn pacing(&self, smoothed: Option<Duration>) -> Option<u64>;
    /// The size of full segments is known now, before any was acknowledged.
    fn on_segment_size(&mut self, segment: usize);
    /// Bytes arrived, or were taken for lost, or both.
    fn on_ack(&mut self, sample: &Sample);
    /// Loss was detected; once per loss episode, before its sample.
    fn on_loss(&mut self, in_flight: usize, segment: usize, now: Time);
    /// The retransmission timer fired; `first` in this loss episode.
    fn on_timeout(&mut self, in_flight: usize, segment: usize, first: bool, now: Time);
    /// The loss episode is over.
    fn on_recovered(&mut self);
    /// The last episode's losses were none: as if it had not begun.
    fn undo(&mut self);
    /// Whether the controller keeps the stream below what the path could
    /// carry, so that rates measured now say nothing.
    fn holds_back(&self) -> bool {
        false
    }
}

/// The controller of that name. `seed` spreads what probes at random.
pub(crate) fn controller(kind: CongestionControl, seed: u32) -> Box<dyn Controller> {
    match kind {
        CongestionControl::Cubic => Box::new(cubic::Cubic::new()),
        CongestionControl::NewReno => Box::new(new_reno::NewReno::new()),
        CongestionControl::Bbr => Box::new(bbr::Bbr::new(seed)),
    }
}

/// The window to start with.
fn initial_window(segment: usize) -> usize {
    let segment = segment.max(INITIAL_SEGMENT);
    (INITIAL_SEGMENTS * segment).min(INITIAL_MAX.max(2 * segment))
}

/// The pacing of a controller that has a window only: a window per round trip,
/// and more, so that the window stays what limits; twice as much while it may
/// double in a round.
fn window_pacing(window: usize, doubling: bool, smoothed: Option<Duration>) -> Option<u64> {
    let smoothed = smoothed.filter(|s| *s >= UNPACED)?;
    let (gain, of) = if doubling { (2, 1) } else { (5, 4) };
    let rate = window as u128 * gain * 1_000_000_000 / of / smoothed.as_nanos();
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}
