//! Public keys and signatures as they stand in JSON: standard base64 with
//! padding. Bytes only; whether they are a point or verify is not known here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! base64_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal, $text_len:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Reads base64 text; `None` when it is malformed or of another length.
            pub fn from_base64(text: &str) -> Option<Self> {
                if text.len() != $text_len {
                    return None;
                }
                // The decoder wants room for its estimate, which rounds up.
                let mut buffer = [0; $len + 2];
                let n = STANDARD.decode_slice(text, &mut buffer).ok()?;
                let bytes = buffer.get(..n)?.try_into().ok()?;
                Some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                let mut text = [0; $text_len];
                let n = STANDARD
                    .encode_slice(self.0, &mut text)
                    .map_err(serde::ser::Error::custom)?;
                let text = std::str::from_utf8(&text[..n]).map_err(serde::ser::Error::custom)?;
                s.serialize_str(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::from_base64(text)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                }
                d.deserialize_str(Visitor)
            }
        }
    };
}

base64_bytes!(
    /// An Ed25519 public key.
    PublicKey, 32, 44, "32 bytes of padded base64"
);
base64_bytes!(
    /// An Ed25519 signature.
    Signature, 64, 88, "64 bytes of padded base64"
);
