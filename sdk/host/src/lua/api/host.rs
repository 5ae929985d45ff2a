//! `emit`, `call`, `dial` and `spawn`: what the process around the script does
//! for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlua::{Error, Function, Lua, MultiValue, Table, Value};

use super::{Api, Outcome, refused};
use crate::lua::error::{ScriptError, is_out_of_memory};
use crate::lua::gauge::Callback;
use crate::lua::guard::Guarded;
use crate::lua::link::{Link, StreamHandle};
use crate::lua::value;

/// Functions that one machine may have under way by `spawn`; one more raises.
const MAX_SPAWNED: usize = 1024;
/// Longest name of an event.
const MAX_NAME: usize = 128;

pub(super) fn install(lua: &Lua, api: &Api) -> mlua::Result<()> {
    let globals = lua.globals();
    let own = api.clone();
    globals.set(
        "emit",
        lua.create_function(move |lua, (name, data): (String, Option<Table>)| -> Outcome {
            let context = own.context("emit")?;
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(Error::runtime(format!(
                    "emit: the name of an event has 1 to {MAX_NAME} bytes"
                )));
            }
            let data = value::to_object(lua, data.as_ref())?;
            if !own.live.may_emit() {
                let most = own.live.limits.events;
                return refused(format!("more than {most} events a second"));
            }
            context.platform.emit(&name, data);
            Ok((Value::Boolean(true), None))
        })?,
    )?;
    let own = api.clone();
    globals.set(
        "call",
        lua.create_async_function(move |lua, (method, request): (String, Option<Table>)| {
            let api = own.clone();
            async move {
                let context = api.context("call")?;
                api.needs_grant("call", &method)?;
                let request = value::to_object(&lua, request.as_ref())?;
                match context.platform.call(&method, request.into()).await {
                    Ok(answer) => Ok((value::from_json(&lua, &answer)?, None)),
                    Err(e) => refused(e.to_string()),
                }
            }
        })?,
    )?;
    let own = api.clone();
    globals.set(
        "dial",
        lua.create_async_function(move |lua, to: String| {
            let api = own.clone();
            async move { dial(&lua, &api, &to).await }
        })?,
    )?;
    let own = api.clone();
    globals.set(
        "spawn",
        lua.create_function(move |lua, (function, args): (Function, MultiValue)| {
            own.context("spawn")?;
            spawn(lua, &own, function, args)
        })?,
    )
}

async fn dial(lua: &Lua, api: &Api, to: &str) -> Outcome {
    let context = api.context("dial")?;
    api.needs_grant("dial", "dial")?;
    let most = api.live.limits.streams;
    if api.live.dialled.fetch_add(1, Ordering::Relaxed) >= most {
        api.live.dialled.fetch_sub(1, Ordering::Relaxed);
        return refused(format!("{most} dialled streams are open already; close some"));
    }
    let counted = Counted(api);
    match context.platform.dial(to).await {
        Ok(stream) => {
            let link = Link::dialled(stream, &api.guard, &api.live);
            std::mem::forget(counted);
            Ok((Value::UserData(lua.create_userdata(StreamHandle(link))?), None))
        }
        Err(reason) => refused(reason),
    }
}

/// A dialled stream that is not there yet; also if nobody waits any more.
struct Counted<'a>(&'a Api);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.live.dialled.fetch_sub(1, Ordering::Relaxed);
    }
}

fn spawn(lua: &Lua, api: &Api, function: Function, args: MultiValue) -> mlua::Result<()> {
    let thread = lua.create_thread(function)?;
    let inner = thread.clone().into_async::<()>(args)?;
    let running = Guarded {
        lua: lua.clone(),
        guard: Arc::clone(&api.guard),
        callback: Callback::Spawn,
        thread,
        inner,
    };
    let (live, guard) = (Arc::clone(&api.live), Arc::clone(&api.guard));
    let begun = api.guard.own(MAX_SPAWNED, || {
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = running.await {
                if is_out_of_memory(&error) {
                    guard.wear();
                }
                live.fail(&ScriptError::of(&error, &live.source.name));
            }
        });
        task.abort_handle()
    });
    if begun {
        return Ok(());
    }
    Err(Error::runtime(format!("spawn: {MAX_SPAWNED} functions are under way already")))
}
