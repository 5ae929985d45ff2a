//! `store`: the script's own durable keys and values.

use std::sync::Arc;

use mlua::{Lua, LuaString, Value};

use super::{Api, Outcome, refused};
use crate::instance::{KeyValue, StoreError};

pub(super) fn install(lua: &Lua, api: &Api) -> mlua::Result<()> {
    let store = lua.create_table()?;
    let own = api.clone();
    store.set(
        "get",
        lua.create_function(move |lua, key: String| -> Outcome {
            match own.context("store.get")?.store.get(&key) {
                Ok(Some(value)) => Ok((Value::String(lua.create_string(value)?), None)),
                Ok(None) => Ok((Value::Nil, None)),
                Err(e) => refused(e.to_string()),
            }
        })?,
    )?;
    let own = api.clone();
    store.set(
        "keys",
        lua.create_function(move |lua, prefix: Option<String>| -> Outcome {
            match own.context("store.keys")?.store.keys(prefix.as_deref().unwrap_or("")) {
                Ok(keys) => Ok((Value::Table(lua.create_sequence_from(keys)?), None)),
                Err(e) => refused(e.to_string()),
            }
        })?,
    )?;
    let own = api.clone();
    store.set(
        "put",
        lua.create_async_function(move |_, (key, value): (String, LuaString)| {
            let api = own.clone();
            async move {
                let store = Arc::clone(&api.context("store.put")?.store);
                let value = value.as_bytes().to_vec();
                written(store, move |store| store.put(&key, &value)).await
            }
        })?,
    )?;
    let own = api.clone();
    store.set(
        "delete",
        lua.create_async_function(move |_, key: String| {
            let api = own.clone();
            async move {
                let store = Arc::clone(&api.context("store.delete")?.store);
                written(store, move |store| store.delete(&key)).await
            }
        })?,
    )?;
    lua.globals().set("store", store)
}

/// Waits for the disk elsewhere, so that other streams of the script go on.
async fn written(
    store: Arc<dyn KeyValue>,
    write: impl FnOnce(&dyn KeyValue) -> Result<(), StoreError> + Send + 'static,
) -> Outcome {
    match tokio::task::spawn_blocking(move || write(&*store)).await {
        Ok(Ok(())) => Ok((Value::Boolean(true), None)),
        Ok(Err(e)) => refused(e.to_string()),
        Err(e) => refused(format!("the store did not answer: {e}")),
    }
}
