//! What [`super::Command::Set`] changes: properties of one connection.

use std::fmt;
use std::str::FromStr;

use super::command::CommandError;

const NO_DELAY: u8 = 1;
const CONGESTION: u8 = 2;

/// A property of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Send small writes at once instead of gathering them (Nagle off).
    NoDelay(bool),
    /// How the connection shares a bottleneck. Only for a daemon that granted
    /// [`super::Features::CONGESTION`]; an older one answers with an error.
    Congestion(Congestion),
}

/// A congestion controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Congestion {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    #[default]
    Cubic,
    /// NewReno, as the published protocol describes it.
    NewReno,
    /// BBR version 3 (draft-ietf-ccwg-bbr).
    Bbr,
}

/// A word that names no congestion controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}, expected cubic, newreno or bbr")]
pub struct UnknownCongestion(pub String);

impl Setting {
    /// From the two fields of a message.
    pub(super) fn decode(kind: u8, value: u32) -> Result<Self, CommandError> {
        Ok(match kind {
            NO_DELAY => Self::NoDelay(value != 0),
            CONGESTION => Self::Congestion(
                Congestion::ALL
                    .into_iter()
                    .find(|c| c.number() == value)
                    .ok_or(CommandError::UnknownCongestion(value))?,
            ),
            other => return Err(CommandError::UnknownSetting(other)),
        })
    }

    /// The two fields of a message.
    pub(super) fn encode(self) -> (u8, u32) {
        match self {
            Self::NoDelay(on) => (NO_DELAY, u32::from(on)),
            Self::Congestion(congestion) => (CONGESTION, congestion.number()),
        }
    }
}

impl Congestion {
    /// Every controller.
    pub const ALL: [Self; 3] = [Self::Cubic, Self::NewReno, Self::Bbr];

    /// The name that people write and `info` shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::NewReno => "newreno",
            Self::Bbr => "bbr",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Cubic => 1,
            Self::NewReno => 2,
            Self::Bbr => 3,
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(text: &str) -> Result<Self, UnknownCongestion> {
        let named = Self::ALL.into_iter().find(|c| c.name() == text);
        named.ok_or_else(|| UnknownCongestion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, LENGTH_LEN};
    use super::*;

    #[test]
    fn names_go_both_ways_and_others_are_refused_by_name() {
        for congestion in Congestion::ALL {
            assert_eq!(congestion.to_string().parse(), Ok(congestion));
        }
        for wrong in ["", "CUBIC", "bbr3", " bbr"] {
            let text = wrong.parse::<Congestion>().unwrap_err().to_string();
            assert_eq!(text, format!("is {wrong:?}, expected cubic, newreno or bbr"));
        }
    }

    #[test]
    fn unknown_numbers_are_refused_by_number() {
        let setting = Setting::Congestion(Congestion::Bbr);
        let mut message = Vec::new();
        Command::Set { connection: 9, setting }.encode(&mut message);
        let body = &mut message[LENGTH_LEN..];
        assert_eq!(body, [0x4B, 0, 0, 0, 9, 2, 0, 0, 0, 3]);
        for wrong in [0, 4, 255] {
            body[9] = wrong;
            let error = Command::parse(body).unwrap_err();
            assert_eq!(error, CommandError::UnknownCongestion(wrong.into()));
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("set: unknown congestion control {wrong};")),
                "{text}"
            );
        }
    }
}
