//! The largest value of the present period and the one before.

/// A windowed maximum in two slots: exact to one period, and constant space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots([u64; 2]);

impl Slots {
    pub(super) fn max(&self) -> u64 {
        self.0[0].max(self.0[1])
    }

    pub(super) fn note(&mut self, value: u64) {
        self.0[1] = self.0[1].max(value);
    }

    /// The present period ends, unless nothing was seen in it.
    pub(super) fn advance(&mut self) {
        if self.0[1] > 0 {
            self.0 = [self.0[1], 0];
        }
    }
}
