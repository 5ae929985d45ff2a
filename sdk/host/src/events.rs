//! What happens on a node, one documented variant an event: its name, the keys
//! of its data, and their types (`docs/EVENTS.md`; protocol page "Services",
//! section 10, for those that are published). Who emits, keeps or delivers them
//! is not known here.

mod format;
mod kinds;
mod schema;
mod time;

use std::fmt;

use serde_json::{Map, Value};

pub use format::{Format, Json, Stamp};
pub use kinds::{ApprovalReason, Happening};
pub use schema::{reference, schema};
pub use time::Timestamp;

/// Longest name of an event, in bytes.
pub const NAME_MAX: usize = 96;

/// First parts of names that only the process itself emits: a plugin or script
/// must not be able to say that a tunnel was lost or a rule refused somebody.
pub const RESERVED: &[&str] = &[
    "config",
    "conn",
    "daemon",
    "data",
    "events",
    "handshake",
    "node",
    "plugin",
    "registry",
    "security",
    "sink",
    "trust",
    "tunnel",
];

/// Why a name and its data are no event; the text is for whoever emitted it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The name does not have the form of one.
    #[error(
        "{0:?} is no name of an event: two or more parts of a-z, 0-9 and _, joined by dots, \
         at most {NAME_MAX} bytes, as in \"orders.received\""
    )]
    Name(String),
    /// The name is for the process itself.
    #[error("{name:?} cannot be emitted from here: names under \"{part}.\" are the daemon's own")]
    Reserved {
        /// The name.
        name: String,
        /// Its first part.
        part: &'static str,
    },
    /// The data does not fit the documented event of this name.
    #[error("the data of {name:?} does not fit docs/EVENTS.md: {reason}")]
    Data {
        /// The name.
        name: String,
        /// Which key, and what is wrong with it.
        reason: String,
    },
}

impl Happening {
    /// An event of a plugin or script: any well-formed name outside
    /// [`RESERVED`]. When the name is a documented one the data has to fit it.
    ///
    /// # Errors
    /// When it is no event, or not one for a plugin.
    pub fn of_plugin(name: &str, data: Map<String, Value>) -> Result<Self, EventError> {
        let part = name.split('.').next().unwrap_or_default();
        if let Some(part) = RESERVED.iter().find(|reserved| **reserved == part) {
            return Err(EventError::Reserved { name: name.to_owned(), part });
        }
        Self::parse(name, Some(data))
    }

    /// An event by its name and data: a documented one becomes its variant,
    /// every other one [`Happening::Other`]. Keys beyond the documented ones are
    /// kept, for which the event stays an `Other`.
    ///
    /// # Errors
    /// When the name is malformed, or the data does not fit.
    pub fn parse(name: &str, data: Option<Map<String, Value>>) -> Result<Self, EventError> {
        if !well_formed(name) {
            return Err(EventError::Name(name.to_owned()));
        }
        let other = |data| Self::Other { name: name.to_owned(), data };
        if !Self::NAMES.contains(&name) {
            return Ok(other(data));
        }
        let tagged = match &data {
            Some(data) => serde_json::json!({ "event": name, "data": data }),
            None => serde_json::json!({ "event": name }),
        };
        let typed = serde_json::from_value::<Self>(tagged).map_err(|error| EventError::Data {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(if typed.data() == data { typed } else { other(data) })
    }

    /// What it is about, as it is published; `None` for events without data.
    pub fn data(&self) -> Option<Map<String, Value>> {
        if let Self::Other { data, .. } = self {
            return data.clone();
        }
        // Fields are numbers, texts and lists of them: they always serialise.
        match serde_json::to_value(self).ok()? {
            Value::Object(mut tagged) => match tagged.remove("data") {
                Some(Value::Object(data)) => Some(data),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn well_formed(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    name.len() <= NAME_MAX && name.contains('.') && name.split('.').all(part)
}

#[cfg(test)]
mod tests;
