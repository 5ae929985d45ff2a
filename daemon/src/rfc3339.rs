//! Unix seconds as RFC 3339 text and back: written in UTC, read with any
//! offset.

const DAY: i64 = 86_400;

/// Seconds since 1970 as `YYYY-MM-DDTHH:MM:SSZ`.
pub(crate) fn format(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (y, m, d) = date(days);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Reads what the format allows; fractions of a second are cut.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let part = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark =
        |at: usize, marks: &[u8]| text.as_bytes().get(at).filter(|b| marks.contains(b)).map(drop);
    mark(4, b"-")
        .and(mark(7, b"-"))
        .and(mark(10, b"Tt "))
        .and(mark(13, b":"))
        .and(mark(16, b":"))?;
    let (y, m, d) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let valid = (1..=12).contains(&m) && (1..=31).contains(&d) && hour < 24 && minute < 60;
    if !valid || second > 60 {
        return None;
    }
    let mut zone = text.get(19..)?;
    if let Some(fraction) = zone.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        zone = fraction.get(end..)?;
    }
    Some(days(y, m, d) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?)
}

fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number = |text: &str| -> Option<i64> {
        (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    Some(sign * (number(hours)? * 3600 + number(minutes)? * 60))
}

/// Days since 1970-01-01 to year, month, day, in eras of 400 years that begin
/// on 1 March (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub(crate) fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let d = in_year - (153 * month + 2) / 5 + 1;
    let m = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(m <= 2), m, d)
}

fn days(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let (era, year) = (y.div_euclid(400), y.rem_euclid(400));
    let month = if m > 2 { m - 3 } else { m + 9 };
    let in_year = (153 * month + 2) / 5 + d - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + in_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(format(0), "1970-01-01T00:00:00Z");
        assert_eq!(format(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(format(4_102_444_799), "2099-12-31T23:59:59Z");
        assert_eq!(parse("2000-02-29T13:34:56.789+01:00"), Some(951_827_696));
        assert_eq!(parse("2000-02-29T07:04:56-05:30"), Some(951_827_696));
        for bad in
            ["", "2000", "2000-13-01T00:00:00Z", "2000-01-01T00:00:00", "2000-01-01T00:00:00+1:00"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in 0i64..253_402_300_799) {
            prop_assert_eq!(parse(&format(seconds)), Some(seconds));
        }

        #[test]
        fn anything_is_read_without_panic(text in ".{0,40}", near in "[0-9TZ:.+-]{15,35}") {
            let _ = (parse(&text), parse(&near));
        }
    }
}
