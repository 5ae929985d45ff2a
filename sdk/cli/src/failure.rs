//! How a command fails: a code for programs, a sentence and a hint for people.

use std::borrow::Cow;

use pilot_sdk::{ConnectError, ErrorKind};
use pilot_wire::registry::ErrorReply;
use serde_json::{Map, Value, json};

/// A failed command. The codes are `invalid_argument`, `not_found`,
/// `already_exists`, `not_running`, `connection_failed`, `timeout`, `internal`,
/// of the task commands `invalid_state` and `expired`, and those of a registry
/// that refuses.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    /// Why, where the message has a fixed text.
    pub(crate) reason: Option<Box<str>>,
    pub(crate) hint: Option<Box<str>>,
    /// What there is to tell all the same.
    pub(crate) data: Option<Box<Value>>,
    /// Nothing is printed; only the exit status tells.
    pub(crate) silent: bool,
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        let (code, message) = (Cow::Borrowed(code), message.into());
        Self { code, message, reason: None, hint: None, data: None, silent: false }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid_argument", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new("not_found", message)
    }

    pub(crate) fn not_running(message: impl Into<String>) -> Self {
        Self::new("not_running", message)
    }

    pub(crate) fn connection(message: impl Into<String>) -> Self {
        Self::new("connection_failed", message)
    }

    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new("timeout", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new("internal", message)
    }

    pub(crate) fn silent() -> Self {
        Self { silent: true, ..Self::internal("") }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    pub(crate) fn reason(mut self, reason: impl ToString) -> Self {
        self.reason = Some(reason.to_string().into());
        self
    }

    pub(crate) fn data(mut self, data: Value) -> Self {
        self.data = Some(Box::new(data));
        self
    }

    /// A request the daemon refused; `what` is what was asked.
    pub(crate) fn daemon(what: &str, error: &pilot_sdk::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::InvalidArgument => "invalid_argument",
            ErrorKind::Timeout => "timeout",
            _ => "connection_failed",
        };
        let failure = Self::new(code, format!("{what}: daemon: {error}"));
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// A registry that refused `what`. Its code is shown to people as well: pages
    /// and audit logs speak of it.
    pub(crate) fn refused(what: &str, reply: &ErrorReply) -> Self {
        let code = reply.code.clone().unwrap_or_else(|| "connection_failed".to_owned());
        let failure = Self {
            code: Cow::Owned(code),
            ..Self::new("", format!("{what}: registry: {}", reply.text()))
        };
        match reply.hint.as_deref().or_else(|| advice(&failure.code)) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Whether a registry refused, and is no worse for it.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self.code, Cow::Owned(_))
    }

    /// The message and its reason, as one line.
    pub(crate) fn text(&self) -> String {
        let code = match &self.code {
            Cow::Owned(code) => format!(" [{code}]"),
            Cow::Borrowed(_) => String::new(),
        };
        match &self.reason {
            Some(reason) => format!("error: {}{code}: {reason}", self.message),
            None => format!("error: {}{code}", self.message),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("status".into(), json!("error"));
        map.insert("code".into(), json!(self.code));
        map.insert("message".into(), json!(self.message));
        for (key, value) in [("reason", &self.reason), ("hint", &self.hint)] {
            if let Some(value) = value {
                map.insert(key.into(), json!(value));
            }
        }
        if let Some(data) = &self.data {
            map.insert("data".into(), Value::clone(data));
        }
        Value::Object(map)
    }
}

/// What to do about a refusal, in terms of this program.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "admin_only" | "bad_admin_token" => {
            "put the registry's admin-token into PILOT_ADMIN_TOKEN and try again"
        }
        "not_owner" => "ask its owner (pilotctl network list), or set PILOT_ADMIN_TOKEN",
        "unknown_network" => "see: pilotctl network list",
        "network_exists" => "choose another name, or see: pilotctl network list",
        "not_member" => "join first: pilotctl network join",
        "not_admitted" => "see which rules it has: pilotctl network list",
        "token_gone" => "ask the network's owner for a new token",
        "invitation_gone" => "see what waits: pilotctl network invitations",
        "unknown_type" => "this registry knows no such request; update it",
        _ => return None,
    })
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let failure = match &error {
            ConnectError::NotRunning { path, .. } => Self::not_running("daemon is not running")
                .reason(format!("no answer on {}", path.display())),
            _ => Self::new(error.code(), error.to_string()),
        };
        failure.hint(error.hint())
    }
}
