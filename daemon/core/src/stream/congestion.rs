//! Congestion control: how much may be in flight. Sizes are payload bytes.

mod cubic;
mod hystart;
mod new_reno;

use std::fmt;
use std::time::Duration;

pub(crate) use cubic::Cubic;
pub(crate) use new_reno::NewReno;

use crate::time::Time;

/// Initial window in segments (RFC 6928).
const INITIAL_SEGMENTS: usize = 10;
/// The published initial window: ten segments of 4096 bytes.
const INITIAL_BYTES: usize = 40_960;
/// With segments of tens of kilobytes, ten of them would be more than a small
/// socket buffer holds.
const INITIAL_MAX: usize = 256 << 10;
/// Smallest window after a loss, in segments.
const MIN_SEGMENTS: usize = 2;

/// What an acknowledgement tells a controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) now: Time,
    /// Bytes newly known to have arrived.
    pub(crate) acked: usize,
    /// Size of a full segment.
    pub(crate) segment: usize,
    /// A round trip measured by this acknowledgement.
    pub(crate) rtt: Option<Duration>,
    /// Smoothed round trip.
    pub(crate) smoothed: Duration,
    /// First offset not acknowledged, and next to be sent: they count rounds.
    pub(crate) una: u64,
    pub(crate) next: u64,
    /// Whether the window was what limited sending.
    pub(crate) limited: bool,
}

/// A congestion controller.
pub(crate) trait Controller: fmt::Debug + Send {
    /// Bytes that may be in flight.
    fn window(&self) -> usize;
    /// The slow-start threshold, for statistics.
    fn threshold(&self) -> usize;
    /// The size of full segments is known now, before any was acknowledged.
    fn on_segment_size(&mut self, segment: usize);
    /// Bytes left the network outside a loss episode.
    fn on_ack(&mut self, sample: Sample);
    /// Loss was detected; once per loss episode.
    fn on_loss(&mut self, in_flight: usize, segment: usize, now: Time);
    /// The retransmission timer fired; once per loss episode.
    fn on_timeout(&mut self, in_flight: usize, segment: usize, now: Time);
}

/// The window to start with.
fn initial_window(segment: usize) -> usize {
    (INITIAL_SEGMENTS * segment).clamp(INITIAL_BYTES, INITIAL_MAX)
}
