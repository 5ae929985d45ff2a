//! What went wrong in a script, with file, line and traceback, and nothing of
//! the machine around it.

use std::fmt;

use mlua::Error;

use super::LuaError;

/// Longest message and longest traceback that are kept; a script can raise
/// strings as long as its memory.
const MAX_MESSAGE: usize = 2048;
const MAX_TRACEBACK: usize = 4096;
/// The chunk names of code around the script.
const INNER: &[&str] = &["[C]", "__mlua", "=prelude", "prelude:"];

/// A failure in a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScriptError {
    /// One line: `FILE:LINE: what`, as far as the line is known.
    pub(crate) message: String,
    /// Lines of `FILE:LINE: in function ...`, innermost first; may be empty.
    pub(crate) traceback: String,
    /// The script declares what cannot be: `place` and reason, in `message`.
    declaration: bool,
}

impl ScriptError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), traceback: String::new(), declaration: false }
    }

    /// A wrong declaration at `place`.
    pub(crate) fn declaration(place: &str, reason: impl fmt::Display) -> Self {
        Self { declaration: true, ..Self::new(format!("{place}: {reason}")) }
    }

    /// What an error of the machine says about the script in `file`.
    pub(crate) fn of(error: &Error, file: &str) -> Self {
        let mut trace = String::new();
        let text = innermost(error, &mut trace);
        let (text, own_trace) = match text.split_once("\nstack traceback:") {
            Some((text, trace)) => (text.to_owned(), trace.to_owned()),
            None => (text, String::new()),
        };
        let trace = if own_trace.trim().is_empty() { trace } else { own_trace };
        Self::located(text, &trace, file)
    }

    /// A text that may lack its place, which the traceback then gives.
    pub(crate) fn located(text: String, trace: &str, file: &str) -> Self {
        let lines: Vec<&str> = trace
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && *line != "stack traceback:")
            .filter(|line| !INNER.iter().any(|inner| line.starts_with(inner)))
            .collect();
        let mut message = shorten(text.trim_end(), MAX_MESSAGE);
        let here = format!("{file}:");
        if !message.starts_with(&here)
            && let Some(place) = lines.iter().find_map(|line| place(line, &here))
        {
            message = format!("{place}: {message}");
        }
        if !message.starts_with(&here) {
            message = format!("{file}: {message}");
        }
        let traceback = shorten(&lines.join("\n"), MAX_TRACEBACK);
        Self { message, traceback, declaration: false }
    }

    pub(super) fn into_lua_error(self, name: &str) -> LuaError {
        if !self.declaration {
            return LuaError::Failed { message: self.message, traceback: self.traceback };
        }
        match self.message.split_once(": ") {
            Some((place, reason)) => {
                LuaError::Declaration { place: place.to_owned(), reason: reason.to_owned() }
            }
            None => LuaError::Declaration { place: name.to_owned(), reason: self.message },
        }
    }
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for line in self.traceback.lines() {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Whether the machine had no memory left.
pub(super) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::CallbackError { cause, .. } | Error::BadArgument { cause, .. } => {
            is_out_of_memory(cause)
        }
        Error::RuntimeError(text) => text.starts_with("not enough memory"),
        _ => false,
    }
}

/// The text for a script that caught an error: one line, with its place.
pub(super) fn caught(error: &Error, file: &str) -> String {
    ScriptError::of(error, file).message
}

fn innermost(error: &Error, trace: &mut String) -> String {
    match error {
        Error::CallbackError { traceback, cause } => {
            if trace.is_empty() {
                traceback.clone_into(trace);
            }
            innermost(cause, trace)
        }
        Error::BadArgument { to, pos, cause, .. } => {
            let cause = innermost(cause, trace);
            match to {
                // Method names come with the type's name, which says nothing here.
                Some(to) => {
                    let name = to.rsplit('.').next().unwrap_or(to);
                    format!("bad argument #{pos} to {name}: {cause}")
                }
                None => format!("bad argument #{pos}: {cause}"),
            }
        }
        Error::FromLuaConversionError { from, to, message } => {
            let to = match to.as_str() {
                "Option<LuaString>" | "LuaString" | "String" => "string",
                "Table" | "Option<Table>" => "table",
                "Function" => "function",
                "usize" | "u64" | "u16" | "f64" | "i64" | "i32" => "number",
                other => other,
            };
            match message {
                Some(message) => format!("a {to} is needed, this is a {from} ({message})"),
                None => format!("a {to} is needed, this is a {from}"),
            }
        }
        Error::RuntimeError(text)
        | Error::SyntaxError { message: text, .. }
        | Error::MemoryError(text) => shorten(text, MAX_MESSAGE + MAX_TRACEBACK),
        other => other.to_string(),
    }
}

/// `FILE:LINE` of a line of a traceback.
fn place(line: &str, here: &str) -> Option<String> {
    let rest = line.strip_prefix(here)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then(|| format!("{here}{digits}"))
}

fn shorten(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}... ({} bytes)", &text[..end], text.len())
}
