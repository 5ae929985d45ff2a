//! Moments as they stand in file names and messages.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::rfc3339::date;

/// A moment in UTC, to the millisecond.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    unix_millis: i64,
}

impl Stamp {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { unix_millis: i64::try_from(since.as_millis()).unwrap_or(i64::MAX) }
    }

    /// As in `2026-11-20T13:37:00.123Z`.
    pub(crate) fn rfc3339(self) -> String {
        let (y, mo, d, h, mi, s, ms) = self.parts();
        format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{ms:03}Z")
    }

    fn parts(self) -> (i64, i64, i64, i64, i64, i64, i64) {
        let seconds = self.unix_millis / 1000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (y, m, d) = date(days);
        (y, m, d, second / 3600, second / 60 % 60, second % 60, self.unix_millis % 1000)
    }
}

/// As in `20261120-133700.123`.
impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (y, mo, d, h, mi, s, ms) = self.parts();
        write!(f, "{y:04}{mo:02}{d:02}-{h:02}{mi:02}{s:02}.{ms:03}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let stamp = |unix_millis| Stamp { unix_millis };
        assert_eq!(stamp(0).rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(stamp(951_782_400_123).rfc3339(), "2000-02-29T00:00:00.123Z");
        assert_eq!(stamp(1_793_583_420_001).to_string(), "20261102-013700.001");
    }
}
