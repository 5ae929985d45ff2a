//! The protocol core of a Pilot node: tunnels, paths, streams, ports and
//! permissions, without I/O and without a clock.
//!
//! The driver puts what happens into [`Core::handle`], calls the application's
//! methods, and drains [`Core::poll_output`] until it says [`Output::Wait`].
//! Time is an argument and randomness comes from a seed, so that everything
//! here can be replayed.

mod config;
mod core;
mod event;
mod info;
mod memory;
mod networks;
mod peer;
mod ports;
mod receive;
mod stream;
mod time;
mod timer;
mod transmit;
mod tunnel;

pub use config::{Config, CongestionControl, StreamNumbers};
pub use core::{Core, DatagramError, DialError, ListenError, StreamError};
pub use event::{
    CloseReason, DialFailure, Event, Input, Output, Permission, Read, Refusal, RefusalDetail,
    StreamId, Transmit,
};
pub use info::{Counters, PeerInfo, StreamInfo};
pub use networks::MAX_BROADCAST;
pub use time::Time;
