//! Conditions and ranges of a request (RFC 9110, sections 13 and 14).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{self, HeaderName};

/// What of a file is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Whole,
    /// `len` is not 0.
    Part {
        from: u64,
        len: u64,
    },
    NotModified,
    OutOfRange,
}

/// Judges the request for a file of `len` bytes.
pub(crate) fn judge(headers: &HeaderMap, etag: &str, modified: SystemTime, len: u64) -> Outcome {
    let modified = seconds(modified);
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |text: &str| httpdate::parse_http_date(text).ok().map(seconds);
    let unchanged = match text(header::IF_NONE_MATCH) {
        Some(tags) => tags.trim() == "*" || tags.split(',').any(|tag| is_same(tag, etag)),
        None => text(header::IF_MODIFIED_SINCE).and_then(date).is_some_and(|at| modified <= at),
    };
    if unchanged {
        return Outcome::NotModified;
    }
    let Some(range) = text(header::RANGE) else { return Outcome::Whole };
    let still = text(header::IF_RANGE)
        .is_none_or(|known| known.trim() == etag || date(known) == Some(modified));
    if still { part(range, len) } else { Outcome::Whole }
}

/// Weak comparison.
fn is_same(tag: &str, etag: &str) -> bool {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag) == etag
}

/// HTTP knows whole seconds.
fn seconds(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// One range of bytes. Several, other units and what is no range get the whole,
/// as a server may do.
fn part(range: &str, len: u64) -> Outcome {
    let Some((first, last)) =
        range.trim().strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Outcome::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (from, to) = match (number(first.trim()), number(last.trim())) {
        (Some(from), Some(to)) if from <= to => (from, to),
        (Some(from), None) if last.trim().is_empty() => (from, u64::MAX),
        // The last bytes.
        (None, Some(0)) if first.trim().is_empty() => return Outcome::OutOfRange,
        (None, Some(n)) if first.trim().is_empty() => (len.saturating_sub(n), u64::MAX),
        _ => return Outcome::Whole,
    };
    if from >= len {
        return Outcome::OutOfRange;
    }
    Outcome::Part { from, len: to.min(len - 1) - from + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(fields: &[(&str, &str)]) -> Outcome {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        // Half a second after the last that HTTP can name.
        let modified = UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        judge(&headers, "\"e\"", modified, 100)
    }

    const AT: &str = "Mon, 12 Jan 1970 13:46:40 GMT";
    const BEFORE: &str = "Mon, 12 Jan 1970 13:46:39 GMT";

    #[test]
    fn what_the_peer_has_is_not_sent_again() {
        assert_eq!(judged(&[]), Outcome::Whole);
        for tags in ["\"e\"", "W/\"e\"", "\"x\", \"e\"", "*"] {
            assert_eq!(judged(&[("if-none-match", tags)]), Outcome::NotModified, "{tags}");
        }
        assert_eq!(judged(&[("if-none-match", "\"x\"")]), Outcome::Whole);
        assert_eq!(judged(&[("if-modified-since", AT)]), Outcome::NotModified);
        assert_eq!(judged(&[("if-modified-since", BEFORE)]), Outcome::Whole);
        assert_eq!(judged(&[("if-modified-since", "yesterday")]), Outcome::Whole);
        // The tag decides where both are given.
        let both = [("if-none-match", "\"x\""), ("if-modified-since", AT)];
        assert_eq!(judged(&both), Outcome::Whole);
    }

    #[test]
    fn one_range_is_served() {
        let part = |from, len| Outcome::Part { from, len };
        for (range, outcome) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=10-19", part(10, 10)),
            ("bytes=90-", part(90, 10)),
            ("bytes=90-1000", part(90, 10)),
            ("bytes=-10", part(90, 10)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=0-99999999999999999999999", part(0, 100)),
            ("bytes=100-", Outcome::OutOfRange),
            ("bytes=-0", Outcome::OutOfRange),
            ("bytes=99999999999999999999-", Outcome::OutOfRange),
            ("bytes=5-4", Outcome::Whole),
            ("bytes=0-1,3-4", Outcome::Whole),
            ("bytes=a-b", Outcome::Whole),
            ("bytes=+1-2", Outcome::Whole),
            ("lines=0-1", Outcome::Whole),
            ("bytes=", Outcome::Whole),
            ("bytes=-", Outcome::Whole),
        ] {
            assert_eq!(judged(&[("range", range)]), outcome, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_gets_the_whole() {
        let range = ("range", "bytes=1-2");
        let part = Outcome::Part { from: 1, len: 2 };
        assert_eq!(judged(&[range, ("if-range", "\"e\"")]), part);
        assert_eq!(judged(&[range, ("if-range", AT)]), part);
        for other in ["\"x\"", "W/\"e\"", BEFORE] {
            assert_eq!(judged(&[range, ("if-range", other)]), Outcome::Whole, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_range_leaves_the_file(range in "(bytes=)?[-0-9, a]{0,30}", len in 0u64..50) {
            if let Outcome::Part { from, len: part } = part(&range, len) {
                proptest::prop_assert!(part > 0 && from + part <= len);
            }
        }
    }
}
