//! One machine with the script loaded: what is in it, and calls into it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlua::chunk::ChunkMode;
use mlua::{Function, IntoLuaMulti, Lua, LuaOptions, MultiValue, StdLib, Value};
use pilot_plugin::{Batch, JoinRequest};
use serde_json::Value as Json;

use super::declaration::{self, Declaration, Functions};
use super::error::{ScriptError, caught, is_out_of_memory};
use super::gauge::{Callback, Gauge};
use super::guard::{Guard, Guarded, turn};
use super::live::Live;
use super::{api, value};

/// What a text and a pattern may come to, multiplied (steps of a search that
/// does not look at the time).
const LONGEST_SEARCH: f64 = 268_435_456.0;
/// Memory beyond the limit for telling where the limit was reached.
const TELLING: usize = 1 << 20;
/// Globals that a script does not get: ways out, ways around the guard, and
/// ways to the innards. `xpcall` runs its handler where an error is raised.
const REMOVED: &[&str] = &[
    "os",
    "io",
    "require",
    "loadstring",
    "load",
    "loadfile",
    "dofile",
    "collectgarbage",
    "gcinfo",
    "getfenv",
    "setfenv",
    "newproxy",
    "xpcall",
];

/// A coroutine that runs a function of the script.
pub(super) type Running = Guarded<mlua::thread::AsyncThread<MultiValue>>;

/// One machine.
pub(super) struct Vm {
    pub(super) lua: Lua,
    pub(super) guard: Arc<Guard>,
    pub(super) functions: Functions,
    live: Arc<Live>,
    traceback: Function,
    ask: Function,
}

impl Vm {
    /// Makes a machine and evaluates the script in it.
    pub(super) fn load(
        live: &Arc<Live>,
        gauge: Arc<Gauge>,
        config: &Json,
    ) -> Result<(Self, Declaration), ScriptError> {
        let file = live.source.name.as_str();
        let inner = |e: mlua::Error| ScriptError::of(&e, file);
        let libraries = StdLib::COROUTINE
            | StdLib::TABLE
            | StdLib::STRING
            | StdLib::UTF8
            | StdLib::MATH
            | StdLib::BIT
            | StdLib::BUFFER
            | StdLib::VECTOR
            | StdLib::DEBUG;
        let lua = Lua::new_with(libraries, LuaOptions::new()).map_err(inner)?;
        let guard = Guard::new(gauge);
        let limit = usize::try_from(live.limits.memory).unwrap_or(usize::MAX);
        lua.set_memory_limit(limit).map_err(inner)?;
        let (traceback, ask) = close(&lua, live, &guard, config).map_err(inner)?;
        guard.watch(&lua);
        guard.set_limit(live.limits.start);

        let chunk = lua
            .load(live.source.text.as_slice())
            .set_name(format!("={file}"))
            .set_mode(ChunkMode::Text)
            .into_function()
            .map_err(inner)?;
        let returned: Value =
            turn(&lua, &guard, Callback::Load, || chunk.call(())).map_err(|e| {
                if is_out_of_memory(&e) {
                    let limit = live.limits.memory;
                    let text =
                        format!("out of memory while it was loaded: its limit is {limit} bytes");
                    return ScriptError::located(text, "", file);
                }
                inner(e)
            })?;
        let (declaration, functions) = declaration::read(&lua, &returned, &live.source)?;
        guard.set_limit(live.limits.callback);
        Ok((Self { lua, guard, functions, live: Arc::clone(live), traceback, ask }, declaration))
    }

    /// Begins a call; it goes on when the future is polled.
    pub(super) fn begin(
        &self,
        callback: Callback,
        function: &Function,
        args: impl IntoLuaMulti,
    ) -> Result<Running, ScriptError> {
        self.live.calls.fetch_add(1, Ordering::Relaxed);
        let begin = || {
            let thread = self.lua.create_thread(function.clone())?;
            let inner = thread.clone().into_async(args)?;
            Ok(Guarded {
                lua: self.lua.clone(),
                guard: Arc::clone(&self.guard),
                callback,
                thread,
                inner,
            })
        };
        begin().map_err(|e| self.failed(&e, None))
    }

    /// Begins to ask the rule; none if the script is none.
    pub(super) fn begin_validate(&self, r: &JoinRequest) -> Option<Result<Running, ScriptError>> {
        let validate = self.functions.validate.as_ref()?;
        let of = |json| value::from_json(&self.lua, json);
        let values = of(&r.proof).and_then(|proof| Ok((proof, of(&r.config)?, of(&r.kept)?)));
        let (proof, config, kept) = match values {
            Ok(values) => values,
            Err(error) => return Some(Err(self.failed(&error, None))),
        };
        // Milliseconds since 1970 are far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "Lua has no other numbers")]
        let at_ms = r.at_ms as f64;
        let args = (
            validate,
            r.rule.as_str(),
            r.network,
            r.network_name.as_str(),
            r.node.0,
            r.address.to_string(),
            r.public_key.as_str(),
            r.owner.as_str(),
            r.hostname.as_str(),
            r.tags.as_slice(),
            proof,
            config,
            kept,
            r.source.as_str(),
            at_ms,
        );
        Some(self.begin(Callback::Validate, &self.ask, args))
    }

    /// Begins to give events to the sink; none if the script is none.
    pub(super) fn begin_deliver(&self, batch: &Batch) -> Option<Result<Running, ScriptError>> {
        let deliver = self.functions.deliver.as_ref()?;
        let events = || {
            let events = self.lua.create_table()?;
            for line in batch.json() {
                events.raw_push(value::parse(&self.lua, line.as_bytes())?)?;
            }
            Ok(events)
        };
        Some(match events() {
            Ok(events) => self.begin(Callback::Deliver, deliver, events),
            Err(error) => Err(self.failed(&error, None)),
        })
    }

    /// Runs a call that has begun to its end.
    pub(super) async fn finish(&self, mut running: Running) -> Result<MultiValue, ScriptError> {
        let result = (&mut running).await;
        result.map_err(|e| self.failed(&e, Some(&running)))
    }

    /// What to say of an error. A machine without memory is worn.
    pub(super) fn failed(&self, error: &mlua::Error, running: Option<&Running>) -> ScriptError {
        let file = self.live.source.name.as_str();
        if !is_out_of_memory(error) {
            return ScriptError::of(error, file);
        }
        self.guard.wear();
        let limit = usize::try_from(self.live.limits.memory).unwrap_or(usize::MAX);
        // The machine makes no traceback when memory is short; the coroutine
        // still stands where it failed.
        let trace = running
            .and_then(|running| {
                self.lua.set_memory_limit(self.lua.used_memory().max(limit) + TELLING).ok()?;
                let trace = self.traceback.call::<String>(running.thread.clone()).ok();
                // Back to what it was; that cannot fail where it just worked.
                let _ = self.lua.set_memory_limit(limit);
                trace
            })
            .unwrap_or_default();
        let text = format!("out of memory: the limit is {limit} bytes");
        ScriptError::located(text, &trace, file)
    }

    /// What to say of a wrong answer of `callback`.
    pub(super) fn wrong_answer(&self, callback: Callback, reason: &str) -> ScriptError {
        let file = &self.live.source.name;
        let place = self.live.source.place_of(callback.name());
        ScriptError::located(format!("{place}: `{}` {reason}", callback.name()), "", file)
    }
}

impl Drop for Vm {
    /// Nothing that was given to this machine is left; what the script began
    /// by itself ends with it.
    fn drop(&mut self) {
        self.guard.kill();
    }
}

/// Gives the machine its functions, takes what must not be there, and closes
/// it. Gives the function that makes the traceback of a coroutine, and the one
/// that asks a rule.
fn close(
    lua: &Lua,
    live: &Arc<Live>,
    guard: &Arc<Guard>,
    config: &Json,
) -> mlua::Result<(Function, Function)> {
    let globals = lua.globals();
    api::install(lua, live, guard)?;
    let empty = Json::Object(serde_json::Map::new());
    let config = if config.is_null() { &empty } else { config };
    globals.set("config", value::from_json_frozen(lua, config)?)?;

    let debug: mlua::Table = globals.get("debug")?;
    let traceback: Function = debug.get("traceback")?;
    globals.set("debug", lua.create_table_from([("traceback", traceback.clone())])?)?;
    for name in REMOVED {
        globals.set(*name, Value::Nil)?;
    }

    let check = {
        let guard = Arc::clone(guard);
        lua.create_function(move |lua, ()| guard.check(lua))?
    };
    let text = {
        let live = Arc::clone(live);
        lua.create_function(move |_, error: Value| match error {
            Value::Error(error) => Ok(Some(caught(&error, &live.source.name))),
            other => Ok(Some(other.to_string()?)),
        })?
    };
    let ask = lua
        .load(include_str!("prelude.luau"))
        .set_name("=prelude")
        .set_mode(ChunkMode::Text)
        .call((Value::LightUserData(Lua::poll_pending()), check, text, LONGEST_SEARCH))?;
    lua.sandbox(true)?;
    Ok((traceback, ask))
}
