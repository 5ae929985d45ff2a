//! Rates, sizes, shares and times as people write them.

use std::time::Duration;

use super::link::Queue;

/// A value is not written as expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {what}; write it like {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// A number that is finite and not negative, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let value: f64 = digits.parse().ok()?;
    value.is_finite().then(|| (value, unit.trim()))
}

fn parse<T>(
    text: &str,
    what: &'static str,
    example: &'static str,
    read: impl FnOnce(f64, &str) -> Option<T>,
) -> Result<T, UnitError> {
    number(text.trim())
        .and_then(|(value, unit)| read(value, &unit.to_ascii_lowercase()))
        .ok_or_else(|| UnitError { text: text.to_owned(), what, example })
}

/// Bits per second; `unlimited` is `None`.
///
/// # Errors
/// When it is not a rate above zero.
pub fn parse_rate(text: &str) -> Result<Option<u64>, UnitError> {
    if text.trim().eq_ignore_ascii_case("unlimited") {
        return Ok(None);
    }
    parse(text, "a rate", "100mbit, 512kbit, 1gbit or unlimited", |value, unit| {
        let factor = match unit {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return None,
        };
        let rate = value * factor;
        (1.0..=1e15).contains(&rate).then_some(Some(rate as u64))
    })
}

/// A span of time of at most an hour.
///
/// # Errors
/// When it is not one.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, "a time of at most an hour", "50ms, 1.5s or 200us", |value, unit| {
        let seconds = match unit {
            "us" => value / 1e6,
            "ms" => value / 1e3,
            "s" => value,
            _ => return None,
        };
        (seconds <= 3600.0).then(|| Duration::from_secs_f64(seconds))
    })
}

/// A share of datagrams, 0 to 1.
///
/// # Errors
/// When it is not 0 to 100 with a percent sign.
pub fn parse_share(text: &str) -> Result<f64, UnitError> {
    parse(text, "a share of 0 to 100 percent", "1% or 0.1%", |value, unit| {
        (unit == "%" && value <= 100.0).then_some(value / 100.0)
    })
}

/// A queue in bytes or BDPs.
///
/// # Errors
/// When it is neither.
pub fn parse_queue(text: &str) -> Result<Queue, UnitError> {
    parse(text, "a queue length", "1bdp, 64KiB, 1MiB or 65536", |value, unit| {
        let factor = match unit {
            "bdp" => return Some(Queue::Bdp(value)),
            "" | "b" => 1.0,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            _ => return None,
        };
        Some(Queue::Bytes((value * factor) as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        assert_eq!(parse_rate("100mbit"), Ok(Some(100_000_000)));
        assert_eq!(parse_rate("1.5Gbit"), Ok(Some(1_500_000_000)));
        assert_eq!(parse_rate("unlimited"), Ok(None));
        assert_eq!(parse_duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse_duration("0.5 s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_share("1%"), Ok(0.01));
        assert_eq!(parse_share("0%"), Ok(0.0));
        assert_eq!(parse_queue("1bdp"), Ok(Queue::Bdp(1.0)));
        assert_eq!(parse_queue("64KiB"), Ok(Queue::Bytes(65_536)));
        assert_eq!(parse_queue("1000"), Ok(Queue::Bytes(1000)));
    }

    #[test]
    fn what_means_nothing_is_refused_with_an_example() {
        for text in ["", "100", "0mbit", "-1mbit", "mbit", "1..2mbit", "infmbit", "1e9gbit"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        for text in ["50", "-1ms", "ms", "2h", "3601s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["1", "101%", "-1%", "%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        for text in ["", "1kb", "-1", "bdp"] {
            assert!(parse_queue(text).is_err(), "{text}");
        }
        let said = parse_share("0.5").unwrap_err().to_string();
        assert!(said.contains("\"0.5\"") && said.contains("1%"), "{said}");
    }
}
