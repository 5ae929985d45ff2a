//! `json`, `base64`, `sha256`, `hmac_sha256`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mlua::{Error, Lua, LuaSerdeExt, LuaString, Table, Value};
use sha2::{Digest, Sha256};

use crate::lua::value;

/// Block of SHA-256 (FIPS 180-4), which HMAC pads its key to (RFC 2104).
const BLOCK: usize = 64;

pub(super) fn install(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();

    let json = lua.create_table()?;
    json.set(
        "encode",
        lua.create_function(|lua, value: Value| {
            let json = value::to_json(lua, &value)?;
            lua.create_string(json.to_string())
        })?,
    )?;
    json.set(
        "decode",
        lua.create_function(|lua, text: LuaString| value::parse(lua, &text.as_bytes()))?,
    )?;
    json.set(
        "array",
        lua.create_function(|lua, table: Option<Table>| {
            let table = table.map_or_else(|| lua.create_table(), Ok)?;
            table.set_metatable(Some(lua.array_metatable()))?;
            Ok(table)
        })?,
    )?;
    json.set("null", Value::NULL)?;
    globals.set("json", json)?;

    let base64 = lua.create_table()?;
    base64.set(
        "encode",
        lua.create_function(|_, data: LuaString| Ok(STANDARD.encode(&*data.as_bytes())))?,
    )?;
    base64.set(
        "decode",
        lua.create_function(|lua, text: LuaString| match STANDARD.decode(&*text.as_bytes()) {
            Ok(data) => Ok((Some(lua.create_string(data)?), None)),
            Err(e) => Ok((None, Some(format!("not base64: {e}")))),
        })?,
    )?;
    globals.set("base64", base64)?;

    globals.set(
        "sha256",
        lua.create_function(|lua, (data, form): (LuaString, Option<String>)| {
            shown(lua, &Sha256::digest(&*data.as_bytes()), form.as_deref())
        })?,
    )?;
    globals.set(
        "hmac_sha256",
        lua.create_function(|lua, (key, data, form): (LuaString, LuaString, Option<String>)| {
            shown(lua, &hmac(&key.as_bytes(), &data.as_bytes()), form.as_deref())
        })?,
    )
}

/// A digest in the form that was asked for.
fn shown(lua: &Lua, digest: &[u8], form: Option<&str>) -> mlua::Result<LuaString> {
    match form.unwrap_or("hex") {
        "hex" => lua.create_string(hex::encode(digest)),
        "base64" => lua.create_string(STANDARD.encode(digest)),
        "raw" => lua.create_string(digest),
        other => Err(Error::runtime(format!(
            "there is no form {other:?}: it is \"hex\", \"base64\" or \"raw\""
        ))),
    }
}

/// RFC 2104.
fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let keyed = |pad: u8| {
        let mut hash = Sha256::new();
        hash.update(block.map(|b| b ^ pad));
        hash
    };
    let inner = keyed(0x36).chain_update(data).finalize();
    keyed(0x5c).chain_update(inner).finalize().into()
}
