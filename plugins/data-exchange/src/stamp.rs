//! Moments as they stand in file names and messages.

use std::time::{SystemTime, UNIX_EPOCH};

use pilot_plugin::wire::service::rfc3339;

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
        let whole = rfc3339::format(self.unix_millis / 1000);
        format!("{}.{:03}Z", whole.trim_end_matches('Z'), self.unix_millis % 1000)
    }
}

/// As in `20261120-133700.123`.
impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.rfc3339().replace(['-', ':', 'Z'], "");
        f.write_str(&text.replace('T', "-"))
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
