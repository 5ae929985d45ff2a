//! What a script sees beside the language: one file per group of functions.
//! `docs/LUA.md` lists them for authors.

mod codec;
mod host;
mod http;
mod log;
mod store;
mod time;

use std::sync::Arc;

use mlua::{Error, Lua, Table, Value};
use pilot_plugin::Peer;

use super::gauge::Callback;
use super::guard::Guard;
use super::link::{Link, StreamHandle};
use super::live::Live;
use crate::instance::Context;

/// Gives a machine its functions.
pub(super) fn install(lua: &Lua, live: &Arc<Live>, guard: &Arc<Guard>) -> mlua::Result<()> {
    let api = Api { live: Arc::clone(live), guard: Arc::clone(guard) };
    codec::install(lua)?;
    log::install(lua, &api)?;
    time::install(lua, &api)?;
    store::install(lua, &api)?;
    http::install(lua, &api)?;
    host::install(lua, &api)?;
    // Methods of streams are made with the first stream, out of `coroutine` as
    // it is then: now, while it is the machine's own.
    lua.create_userdata(StreamHandle(Link::closed(guard)))?;
    Ok(())
}

/// What the functions need.
#[derive(Clone)]
struct Api {
    live: Arc<Live>,
    guard: Arc<Guard>,
}

impl Api {
    /// The process around the script, for `function`; none while the file is
    /// only being loaded.
    fn context(&self, function: &str) -> mlua::Result<&Context> {
        match &self.live.context {
            Some(context) if self.guard.callback() != Some(Callback::Load) => Ok(context),
            _ => Err(Error::runtime(format!(
                "{function} cannot be used while the file is loaded, only in a callback"
            ))),
        }
    }

    /// Refuses what the configuration does not grant.
    fn needs_grant(&self, function: &str, grant: &str) -> mlua::Result<()> {
        if self.live.granted(grant) {
            return Ok(());
        }
        Err(Error::runtime(format!(
            "{function}: the configuration of {:?} does not grant {grant:?}",
            self.live.name()
        )))
    }
}

/// The peer of a stream, as a script sees it.
pub(super) fn peer(lua: &Lua, peer: &Peer) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, 9)?;
    table.raw_set("address", peer.address.address.to_string())?;
    table.raw_set("port", peer.address.port)?;
    table.raw_set("node", peer.node().0)?;
    table.raw_set("trusted", peer.trusted)?;
    table.raw_set("networks", peer.networks.as_slice())?;
    table.raw_set("tags", peer.tags.as_slice())?;
    table.raw_set("hostname", peer.hostname.as_deref())?;
    table.raw_set("public_key", peer.public_key.as_deref())?;
    table.raw_set("external_identity", peer.external_identity.as_deref())?;
    Ok(table)
}

/// A result of the kind that Lua programs expect: a value, or nil and why.
type Outcome = mlua::Result<(Value, Option<String>)>;

fn refused(reason: impl Into<String>) -> Outcome {
    Ok((Value::Nil, Some(reason.into())))
}
