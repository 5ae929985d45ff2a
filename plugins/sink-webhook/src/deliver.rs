//! A batch of events: posted in order, until one does not arrive. A refused
//! batch is split, so that one bad event costs no other. No I/O of its own.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::Delivery;

use crate::format::{self, Format};

/// What became of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    /// It arrived.
    Accepted,
    /// It did not, and may later.
    Later {
        /// Pause that the receiver asked for.
        after: Option<Duration>,
        /// For the operator.
        reason: String,
    },
    /// The receiver does not take it, whatever we do.
    Refused {
        /// For the operator.
        reason: String,
    },
}

/// Posts bodies.
pub(crate) trait Post {
    /// Posts one; `id` names what is in it.
    fn post(&mut self, id: &str, body: Bytes) -> impl Future<Output = Posted> + Send;
}

/// Delivers events, each the JSON of one, oldest first. When `budget` is over,
/// what has arrived by then is reported, so that the host does not take a slow
/// delivery for a hung one and send all of it again.
pub(crate) async fn deliver(
    post: &mut impl Post,
    format: Format,
    events: &[&str],
    budget: Duration,
) -> Delivery {
    let started = Instant::now();
    let mut accepted = 0;
    // Ends the range that was refused as a whole, of which it is not known yet
    // what is wrong with it.
    let mut refused_to: Option<usize> = None;
    while accepted < events.len() {
        if accepted > 0 && started.elapsed() >= budget {
            let reason = format!("{accepted} of {} events arrived so far", events.len());
            return Delivery::Retry { accepted, after_ms: Some(0), reason };
        }
        let length = match refused_to {
            Some(end) => ((end - accepted) / 2).max(1),
            None => (events.len() - accepted).min(format.events()),
        };
        let part = &events[accepted..accepted + length];
        match post.post(&format::id(part), format.encode(part)).await {
            Posted::Accepted => {
                accepted += length;
                if refused_to == Some(accepted) {
                    refused_to = None;
                }
            }
            Posted::Later { after, reason } => {
                let after_ms = after.and_then(|after| u64::try_from(after.as_millis()).ok());
                return Delivery::Retry { accepted, after_ms, reason };
            }
            Posted::Refused { reason } if length == 1 => {
                return Delivery::Reject { accepted, rejected: 1, reason };
            }
            Posted::Refused { .. } => refused_to = Some(accepted + length),
        }
    }
    Delivery::Ack
}
