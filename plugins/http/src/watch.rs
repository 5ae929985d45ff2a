//! Who is too slow: a request that does not come to its end, a reader that
//! takes nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pilot_plugin::Host;

/// For a request to come, from the end of the one before.
const REQUEST: Duration = Duration::from_secs(30);
/// For an answer to go on.
const STALL: Duration = Duration::from_secs(60);

/// Until when something has to happen on a stream.
pub(crate) struct Watch {
    until: Cell<Instant>,
    answering: Cell<bool>,
}

impl Watch {
    pub(crate) fn new() -> Rc<Self> {
        let watch = Self { until: Cell::new(Instant::now()), answering: Cell::new(false) };
        watch.extend(REQUEST);
        Rc::new(watch)
    }

    /// A whole request is here.
    pub(crate) fn answering(&self) {
        self.answering.set(true);
        self.extend(STALL);
    }

    /// Its answer is given.
    pub(crate) fn answered(&self) {
        self.answering.set(false);
        self.extend(REQUEST);
    }

    /// The peer took bytes.
    pub(crate) fn wrote(&self) {
        if self.answering.get() {
            self.extend(STALL);
        }
    }

    fn extend(&self, time: Duration) {
        self.until.set(Instant::now() + time);
    }

    /// Waits until the peer is late.
    pub(crate) async fn late(&self, host: &Host) {
        loop {
            let left = self.until.get().saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            host.sleep(left).await;
        }
    }
}
