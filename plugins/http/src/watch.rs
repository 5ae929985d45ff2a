//! Who is too slow: a request that does not come to its end, a reader that
//! takes nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pilot_plugin::Host;

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a request to come whole, from the end of the one before.
    pub(crate) request: Duration,
    /// For an answer to go on.
    pub(crate) stall: Duration,
}

/// Until when something has to happen on a stream.
pub(crate) struct Watch {
    until: Cell<Instant>,
    answering: Cell<bool>,
    patience: Patience,
}

impl Watch {
    pub(crate) fn new(patience: Patience) -> Rc<Self> {
        let (until, answering) = (Cell::new(Instant::now()), Cell::new(false));
        let watch = Self { until, answering, patience };
        watch.extend(patience.request);
        Rc::new(watch)
    }

    /// A whole request is here.
    pub(crate) fn answering(&self) {
        self.answering.set(true);
        self.extend(self.patience.stall);
    }

    /// Its answer is given.
    pub(crate) fn answered(&self) {
        self.answering.set(false);
        self.extend(self.patience.request);
    }

    /// The peer took bytes.
    pub(crate) fn wrote(&self) {
        if self.answering.get() {
            self.extend(self.patience.stall);
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
