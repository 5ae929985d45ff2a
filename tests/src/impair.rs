//! A bad network on one machine: a user-space UDP relay with a bottleneck,
//! delay, jitter, loss, reordering, duplication, a bounded queue and an MTU.
//!
//! `link` decides what happens to each datagram and when, in virtual time;
//! `relay` moves bytes between sockets and asks it; `units` reads what people
//! write. None of them knows what the datagrams mean.

mod link;
mod relay;
mod units;

pub use link::{Counters, Dropped, HEADERS, Link, Profile, Queue};
pub use relay::{Lateness, Relay, RelayError, Statistics};
pub use units::{UnitError, parse_duration, parse_queue, parse_rate, parse_share};
