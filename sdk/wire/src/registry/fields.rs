//! How a server reads a request: every known key at once, missing and wrongly
//! typed values as 0, empty or false, the last of equal keys wins.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};

/// Most elements kept of a list of strings; later ones are counted in nothing.
/// Above every limit a server sets, so that "too many" is still seen.
pub const MAX_TEXTS: usize = 64;

/// The body is not a JSON object (nor `null`); the connection is to be closed.
#[derive(Debug, thiserror::Error)]
#[error("registry request is not a JSON object: {0}")]
pub struct FieldsError(#[from] serde_json::Error);

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $key:literal, $read:ident;)+) => {
        /// The fields of any request, borrowed from its body where possible.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Fields<'a> {
            $($(#[$doc])* pub $name: $ty,)+
        }

        impl<'de> de::Visitor<'de> for ObjectVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Fields<'de>, E> {
                Ok(Fields::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(Key(key)) = map.next_key()? {
                    match key.as_ref() {
                        $($key => fields.$name = $read(map.next_value()?),)+
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }
    };
}

fields! {
    /// The request's type.
    kind: Cow<'a, str> = "type", text;
    /// The node that acts or is asked about.
    node_id: u32 = "node_id", id;
    /// Who resolves or punches.
    requester_id: u32 = "requester_id", id;
    /// The other side of a trust pair or handshake.
    peer_id: u32 = "peer_id", id;
    /// Sender of a handshake request.
    from_node_id: u32 = "from_node_id", id;
    /// Target of a handshake request.
    to_node_id: u32 = "to_node_id", id;
    /// First node of a punch.
    node_a: u32 = "node_a", id;
    /// Second node of a punch.
    node_b: u32 = "node_b", id;
    /// A network's number.
    network_id: u16 = "network_id", id16;
    /// A beacon's number.
    beacon_id: u32 = "beacon_id", id;
    /// A beacon's address.
    addr: Cow<'a, str> = "addr", text;
    /// Where the registering node listens.
    listen_addr: Cow<'a, str> = "listen_addr", text;
    /// The registering key, base64.
    public_key: Cow<'a, str> = "public_key", text;
    /// The key to rotate to, base64.
    new_public_key: Cow<'a, str> = "new_public_key", text;
    /// Free text naming the owner.
    owner: Cow<'a, str> = "owner", text;
    /// A hostname to set or ask for.
    hostname: Cow<'a, str> = "hostname", text;
    /// Signature of the challenge, base64.
    signature: Cow<'a, str> = "signature", text;
    /// Visibility.
    public: bool = "public", flag;
    /// Task execution.
    enabled: bool = "enabled", flag;
    /// Answer to a handshake request.
    accept: bool = "accept", flag;
    /// Why a handshake is asked for.
    justification: Cow<'a, str> = "justification", text;
    /// Tags; elements of other types are left out, at most [`MAX_TEXTS`] kept.
    tags: Vec<Cow<'a, str>> = "tags", texts;
    /// Change of the polo score.
    delta: Option<i64> = "delta", number;
    /// New polo score.
    polo_score: Option<i64> = "polo_score", number;
    /// When a proof of possession was made, Unix seconds (extension).
    timestamp: Option<i64> = "timestamp", number;
    /// Proof of possession of the registering key, base64 (extension).
    proof: Cow<'a, str> = "proof", text;
    /// Replication or network token.
    token: Cow<'a, str> = "token", text;
    /// What makes the asker an administrator.
    admin_token: Cow<'a, str> = "admin_token", text;
    /// A network's name.
    name: Cow<'a, str> = "name", text;
    /// Who may join a network: `open`, `token` or `invite`.
    join_rule: Cow<'a, str> = "join_rule", text;
    /// A member that invites.
    inviter_id: u32 = "inviter_id", id;
    /// Nodes after this one (extension).
    after: u32 = "after", id;
    /// A text for the audit log (extension).
    request_id: Cow<'a, str> = "request_id", text;
}

impl<'a> Fields<'a> {
    /// Reads one body.
    ///
    /// # Errors
    /// When the body is not JSON, or neither an object nor `null`.
    pub fn parse(body: &'a [u8]) -> Result<Self, FieldsError> {
        let mut de = serde_json::Deserializer::from_slice(body);
        let fields = de.deserialize_any(ObjectVisitor)?;
        de.end()?;
        Ok(fields)
    }
}

struct ObjectVisitor;

/// An object key, without a copy unless it holds escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Value::deserialize(d).map(|v| Key(text(v)))
    }
}

/// Any JSON value, reduced to what the lenient rules need.
enum Value<'a> {
    Flag(bool),
    Number(f64),
    Text(Cow<'a, str>),
    Texts(Vec<Cow<'a, str>>),
    Other,
}

fn text(value: Value<'_>) -> Cow<'_, str> {
    match value {
        Value::Text(text) => text,
        _ => Cow::Borrowed(""),
    }
}

fn texts(value: Value<'_>) -> Vec<Cow<'_, str>> {
    match value {
        Value::Texts(texts) => texts,
        _ => Vec::new(),
    }
}

fn flag(value: Value<'_>) -> bool {
    matches!(value, Value::Flag(true))
}

/// Fractions are cut; numbers are finite here, the conversion saturates.
#[expect(clippy::cast_possible_truncation, reason = "fractions are cut as published")]
fn number(value: Value<'_>) -> Option<i64> {
    match value {
        Value::Number(n) => Some(n as i64),
        _ => None,
    }
}

fn id(value: Value<'_>) -> u32 {
    number(value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn id16(value: Value<'_>) -> u16 {
    number(value).and_then(|n| u16::try_from(n).ok()).unwrap_or(0)
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: de::Error>(self, b: bool) -> Result<Value<'de>, E> {
        Ok(Value::Flag(b))
    }

    #[expect(clippy::cast_precision_loss, reason = "numbers are doubles in the protocol")]
    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number(n as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "numbers are doubles in the protocol")]
    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(n as f64))
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<Value<'de>, E> {
        Ok(Value::Number(n))
    }

    fn visit_borrowed_str<E: de::Error>(self, s: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(s)))
    }

    fn visit_str<E: de::Error>(self, s: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(s.to_owned())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        let mut texts = Vec::new();
        while texts.len() < MAX_TEXTS {
            match seq.next_element()? {
                Some(Value::Text(text)) => texts.push(text),
                Some(_) => {}
                None => return Ok(Value::Texts(texts)),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Texts(texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}
