//! JSON and Lua values, both ways, with bounds: a Lua table can contain itself,
//! or a million references to one.

use mlua::{Error, Lua, LuaSerdeExt, Table, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

/// Deepest nesting, both ways.
const MAX_DEPTH: usize = 100;
/// Most bytes that one value may come to as JSON, about; more is refused.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// The JSON of a Lua value.
///
/// A table with elements 1 to n and nothing else is a list, as is an empty one
/// that `json.decode` or `json.array` made; every other table has text keys.
pub(super) fn to_json(lua: &Lua, value: &Value) -> mlua::Result<Json> {
    let mut writer = Writer { list: lua.array_metatable(), left: MAX_BYTES };
    writer.value(value, 0)
}

/// The JSON object of a Lua table; of none for nil.
pub(super) fn to_object(lua: &Lua, table: Option<&Table>) -> mlua::Result<Map<String, Json>> {
    let Some(table) = table else { return Ok(Map::new()) };
    match to_json(lua, &Value::Table(table.clone()))? {
        Json::Object(map) => Ok(map),
        _ => Err(Error::runtime("a table with text keys is needed, this is a list")),
    }
}

/// The Lua value of a JSON text.
pub(super) fn parse(lua: &Lua, text: &[u8]) -> mlua::Result<Value> {
    if text.len() > MAX_BYTES {
        return Err(Error::runtime(format!("JSON text longer than {MAX_BYTES} bytes")));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Seed { lua, depth: 0, element: false }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| Error::runtime(format!("not JSON: {e}")))
}

/// The Lua value of a JSON value.
pub(super) fn from_json(lua: &Lua, value: &Json) -> mlua::Result<Value> {
    Seed { lua, depth: 0, element: false }
        .deserialize(value)
        .map_err(|e| Error::runtime(e.to_string()))
}

/// As [`from_json`], in tables that cannot be changed.
pub(super) fn from_json_frozen(lua: &Lua, value: &Json) -> mlua::Result<Value> {
    let value = from_json(lua, value)?;
    freeze(&value)?;
    Ok(value)
}

fn freeze(value: &Value) -> mlua::Result<()> {
    let Value::Table(table) = value else { return Ok(()) };
    for pair in table.pairs::<Value, Value>() {
        freeze(&pair?.1)?;
    }
    table.set_readonly(true);
    Ok(())
}

struct Writer {
    list: Table,
    left: usize,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> mlua::Result<Json> {
        if depth > MAX_DEPTH {
            return Err(Error::runtime(format!(
                "nested deeper than {MAX_DEPTH}: does a table contain itself?"
            )));
        }
        self.spend(8)?;
        Ok(match value {
            Value::Nil => Json::Null,
            Value::Boolean(b) => Json::Bool(*b),
            Value::Integer(n) => Json::from(*n),
            Value::Number(n) => Number::from_f64(*n)
                .map(Json::Number)
                .ok_or_else(|| Error::runtime(format!("{n} has no form in JSON")))?,
            Value::String(text) => {
                self.spend(text.as_bytes().len())?;
                Json::String(text.to_str().map_err(not_text)?.to_owned())
            }
            Value::Table(table) => self.table(table, depth + 1)?,
            null if *null == Value::NULL => Json::Null,
            other => {
                let kind = other.type_name();
                return Err(Error::runtime(format!("a {kind} has no form in JSON")));
            }
        })
    }

    fn table(&mut self, table: &Table, depth: usize) -> mlua::Result<Json> {
        let length = table.raw_len();
        let marked = table.metatable().is_some_and(|meta| meta == self.list);
        if length > 0 || marked {
            let mut list = Vec::new();
            for at in 1..=length {
                list.push(self.value(&table.raw_get::<Value>(at)?, depth)?);
            }
            if table.pairs::<Value, Value>().count() > length {
                return Err(Error::runtime(
                    "a table is either a list or has text keys, this one is both",
                ));
            }
            return Ok(Json::Array(list));
        }
        let mut map = Map::new();
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            let Value::String(key) = key else {
                let kind = key.type_name();
                return Err(Error::runtime(format!("keys are text in JSON, this one is a {kind}")));
            };
            self.spend(key.as_bytes().len())?;
            let value = self.value(&value, depth)?;
            map.insert(key.to_str().map_err(not_text)?.to_owned(), value);
        }
        Ok(Json::Object(map))
    }

    fn spend(&mut self, bytes: usize) -> mlua::Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            Error::runtime(format!("comes to more than {MAX_BYTES} bytes of JSON"))
        })?;
        Ok(())
    }
}

fn not_text(_: Error) -> Error {
    Error::runtime("this text is not UTF-8, as JSON must be; base64.encode it")
}

/// Builds Lua values while JSON is read, so that what is built counts as
/// memory of the machine.
#[derive(Clone, Copy)]
struct Seed<'a> {
    lua: &'a Lua,
    depth: usize,
    /// Null in a list keeps its place as `json.null`; elsewhere it is nil.
    element: bool,
}

impl<'a> Seed<'a> {
    fn inner<E: serde::de::Error>(self, element: bool) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self { lua: self.lua, depth: self.depth + 1, element })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Boolean(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Integer(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        // Lua's numbers are doubles; so is what comes of it.
        #[expect(clippy::cast_precision_loss, reason = "Lua has no other numbers")]
        Ok(i64::try_from(v).map_or(Value::Number(v as f64), Value::Integer))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Number(v))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        self.lua.create_string(v).map(Value::String).map_err(E::custom)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(if self.element { Value::NULL } else { Value::Nil })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        use serde::de::Error as _;
        let inner = self.inner(true)?;
        let table = self.lua.create_table().map_err(A::Error::custom)?;
        let mut at = 0i64;
        while let Some(value) = seq.next_element_seed(inner)? {
            at += 1;
            table.raw_set(at, value).map_err(A::Error::custom)?;
        }
        table.set_metatable(Some(self.lua.array_metatable())).map_err(A::Error::custom)?;
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        use serde::de::Error as _;
        let inner = self.inner(false)?;
        let table = self.lua.create_table().map_err(A::Error::custom)?;
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let value = map.next_value_seed(inner)?;
            table.raw_set(key.as_ref(), value).map_err(A::Error::custom)?;
        }
        Ok(Value::Table(table))
    }
}
