//! `log` and `print`: lines in the log of the process, under the script's name.

use mlua::{Lua, MultiValue};

use super::Api;

/// Longest line.
const MAX_LINE: usize = 8192;

#[derive(Clone, Copy)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

pub(super) fn install(lua: &Lua, api: &Api) -> mlua::Result<()> {
    let log = lua.create_table()?;
    for (name, level) in [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
    ] {
        let api = api.clone();
        log.set(name, lua.create_function(move |_, parts: MultiValue| line(&api, level, &parts))?)?;
    }
    let globals = lua.globals();
    globals.set("log", log)?;
    let api = api.clone();
    globals.set(
        "print",
        lua.create_function(move |_, parts: MultiValue| line(&api, Level::Info, &parts))?,
    )
}

fn line(api: &Api, level: Level, parts: &MultiValue) -> mlua::Result<()> {
    let Some(dropped) = api.live.may_log() else { return Ok(()) };
    let script = api.live.name();
    if dropped > 0 {
        tracing::warn!(target: "pilot::script", script, "{dropped} lines of this script were dropped");
    }
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(&part.to_string()?);
        if text.len() > MAX_LINE {
            let end = (0..=MAX_LINE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push_str("...");
            break;
        }
    }
    match level {
        Level::Error => tracing::error!(target: "pilot::script", script, "{text}"),
        Level::Warn => tracing::warn!(target: "pilot::script", script, "{text}"),
        Level::Info => tracing::info!(target: "pilot::script", script, "{text}"),
        Level::Debug => tracing::debug!(target: "pilot::script", script, "{text}"),
    }
    Ok(())
}
