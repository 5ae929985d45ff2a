//! `time`: the clock, a calendar, and pauses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mlua::{Error, Lua, Table};

use super::Api;
use crate::lua::gauge;

/// Longest pause, in seconds.
const MAX_SLEEP: f64 = 86_400.0;
/// Farthest offset from UTC, in minutes.
const MAX_OFFSET: i64 = 24 * 60;
/// Last second of the year 9999.
const MAX_TIME: f64 = 253_402_300_799.0;

pub(super) fn install(lua: &Lua, api: &Api) -> mlua::Result<()> {
    let time = lua.create_table()?;
    time.set("now", lua.create_function(|_, ()| Ok(now()))?)?;
    time.set(
        "monotonic",
        lua.create_function(|_, ()| Ok(Duration::from_nanos(gauge::now()).as_secs_f64()))?,
    )?;
    time.set(
        "date",
        lua.create_function(|lua, (at, offset): (Option<f64>, Option<i64>)| {
            date(lua, at.unwrap_or_else(now), offset.unwrap_or(0))
        })?,
    )?;
    let api = api.clone();
    time.set(
        "sleep",
        lua.create_async_function(move |_, seconds: f64| {
            let api = api.clone();
            async move {
                api.context("time.sleep")?;
                if !(0.0..=MAX_SLEEP).contains(&seconds) {
                    return Err(Error::runtime(format!(
                        "time.sleep takes 0 to {MAX_SLEEP} seconds, not {seconds}"
                    )));
                }
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                Ok(())
            }
        })?,
    )?;
    lua.globals().set("time", time)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The fields of Lua's `os.date("*t")`, and the text of RFC 3339.
fn date(lua: &Lua, at: f64, offset: i64) -> mlua::Result<Table> {
    if !(0.0..=MAX_TIME).contains(&at) || offset.abs() > MAX_OFFSET {
        return Err(Error::runtime(
            "time.date takes seconds since 1970 and minutes from UTC (-1440 to 1440)",
        ));
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let seconds = at as i64 + offset * 60;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let zone = match offset {
        0 => "Z".to_owned(),
        _ => {
            let sign = if offset < 0 { '-' } else { '+' };
            format!("{sign}{:02}:{:02}", offset.abs() / 60, offset.abs() % 60)
        }
    };
    let table = lua.create_table()?;
    table.raw_set("year", year)?;
    table.raw_set("month", month)?;
    table.raw_set("day", day)?;
    table.raw_set("hour", hour)?;
    table.raw_set("min", minute)?;
    table.raw_set("sec", second)?;
    // 1970-01-01 was a Thursday; Lua counts from Sunday as 1.
    table.raw_set("wday", (days + 4).rem_euclid(7) + 1)?;
    table.raw_set("yday", days - days_until(year) + 1)?;
    table.raw_set(
        "iso",
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{zone}"),
    )?;
    Ok(table)
}

/// Days from 1970 until the first of January of `year`.
fn days_until(year: i64) -> i64 {
    let before = year - 1;
    (year - 1970) * 365 + (before / 4 - before / 100 + before / 400)
        - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of a day since 1970, by the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_until(year + 1) <= days {
        year += 1;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_until(year);
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::{civil, days_until};

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(19_358), (2023, 1, 1));
        assert_eq!(civil(20_088), (2024, 12, 31));
        assert_eq!(civil(2_932_896), (9999, 12, 31));
        assert_eq!(days_until(2000), 10_957);
    }
}
