//! The join rule `token`: who shows a token of the network may join. The proof is
//! the token as a text, or `{"token": TEXT}`.
//!
//! Only salts and hashes come here: tokens that the registry keeps, which it
//! counts and ends itself, and under `hashed` those that the network's
//! configuration names, which are good until it is changed. All are compared,
//! each in constant time.
#![forbid(unsafe_code)]

use std::hint::black_box;

use pilot_plugin::json::{self, Value};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::{Error, Host, JoinRequest, JsonSchema, Manifest, Plugin, Verdict};
use sha2::{Digest as _, Sha256};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Tags for who joins, beside those of the token.
    tags: Vec<String>,
    /// Seconds after which a membership ends; none for never.
    expires_secs: Option<u64>,
    /// Tokens that are good for any number of nodes.
    hashed: Vec<Hashed>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", deny_unknown_fields)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Hashed {
    /// 32 bytes, hex.
    salt: String,
    /// SHA-256 over salt and token, hex.
    hash: String,
}

/// What the registry keeps for this rule.
#[derive(Default, Deserialize)]
#[serde(crate = "pilot_plugin::serde", default)]
struct Kept {
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(crate = "pilot_plugin::serde")]
struct Token {
    id: String,
    salt: String,
    hash: String,
    #[serde(default)]
    expires_at_ms: Option<u64>,
    #[serde(default)]
    uses_left: Option<u32>,
    #[serde(default)]
    tags: Vec<String>,
}

struct ByToken {
    config: Config,
}

impl Plugin for ByToken {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("join-token", env!("CARGO_PKG_VERSION"))
            .describe("the join rule token: who shows a token may join")
            .rule("token")
    }

    fn start(_: Host, config: Config) -> Result<Self, Error> {
        Ok(Self { config })
    }

    async fn validate(&self, request: JoinRequest) -> Result<Verdict, Error> {
        Ok(judge(&self.config, &request).unwrap_or_else(Verdict::deny))
    }
}

fn judge(default: &Config, request: &JoinRequest) -> Result<Verdict, String> {
    let secret = match &request.proof {
        Value::String(secret) => secret.as_str(),
        proof => proof["token"].as_str().unwrap_or_default(),
    };
    if secret.is_empty() {
        return Err("a token has to be shown, as a text or as {\"token\": TEXT}".to_owned());
    }
    let config = match &request.config {
        Value::Null => default.clone(),
        own => json::from_value(own.clone())
            .map_err(|error| format!("the network's configuration of it: {error}"))?,
    };
    let kept: Kept = match &request.kept {
        Value::Null => Kept::default(),
        kept => json::from_value(kept.clone())
            .map_err(|error| format!("what the registry keeps for it: {error}"))?,
    };
    let mut named = false;
    for one in &config.hashed {
        named |= is(&one.salt, &one.hash, secret);
    }
    let found = kept
        .tokens
        .iter()
        .fold(None, |found, token| is(&token.salt, &token.hash, secret).then_some(token).or(found));
    let mut tags = config.tags;
    let uses = match found {
        Some(token) if token.expires_at_ms.is_some_and(|ms| ms <= request.at_ms) => {
            return Err("the token has expired; ask for another".to_owned());
        }
        Some(Token { uses_left: Some(0), .. }) => {
            return Err("the token is used up; ask for another".to_owned());
        }
        Some(token) => {
            tags.extend(token.tags.iter().cloned());
            Some(token.id.clone())
        }
        None if named => None,
        None => {
            return Err("the token is wrong, used up, expired or revoked; ask for another".into());
        }
    };
    let expires_at_ms =
        config.expires_secs.map(|secs| request.at_ms.saturating_add(secs.saturating_mul(1000)));
    Ok(Verdict::Allow { tags, expires_at_ms, external_identity: None, uses })
}

/// Whether salt and hash are those of the secret. Takes the same time wherever
/// the hashes differ.
fn is(salt: &str, hash: &str, secret: &str) -> bool {
    let (Ok(salt), Ok(hash)) = (hex::decode(salt), hex::decode(hash)) else { return false };
    let ours = Sha256::new().chain_update(salt).chain_update(secret).finalize();
    hash.len() == ours.len()
        && black_box(ours.iter().zip(&hash).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

pilot_plugin::export_plugin!(ByToken);

#[cfg(test)]
mod tests {
    use pilot_plugin::json::json;

    use super::*;

    fn hashed(secret: &str) -> (String, String) {
        let salt = [7; 32];
        let hash = Sha256::new().chain_update(salt).chain_update(secret).finalize();
        (hex::encode(salt), hex::encode(hash))
    }

    fn token(id: &str, secret: &str, more: &Value) -> Value {
        let (salt, hash) = hashed(secret);
        let mut token = json!({"id": id, "salt": salt, "hash": hash});
        token.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        token
    }

    fn ask(proof: &Value, config: &Value, tokens: &Value) -> Result<Verdict, String> {
        let request = json::from_value(json!({
            "rule": "token", "network": 3, "node": 7, "address": "0:0000.0000.0007",
            "public_key": "", "proof": proof, "config": config, "kept": {"tokens": tokens},
            "at_ms": 5000,
        }));
        judge(&Config::default(), &request.unwrap())
    }

    fn allowed(tags: &[&str], expires_at_ms: Option<u64>, uses: Option<&str>) -> Verdict {
        Verdict::Allow {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            expires_at_ms,
            external_identity: None,
            uses: uses.map(str::to_owned),
        }
    }

    #[test]
    fn the_right_token_is_found_in_both_forms() {
        let tokens = json!([
            token("a", "one", &json!({"tags": ["x"], "uses_left": 1, "expires_at_ms": 5001})),
            token("b", "two", &json!({"uses_left": null, "expires_at_ms": null})),
        ]);
        let config = json!({"tags": ["all"], "expires_secs": 2});
        let one = allowed(&["all", "x"], Some(7000), Some("a"));
        assert_eq!(ask(&json!("one"), &config, &tokens), Ok(one.clone()));
        assert_eq!(ask(&json!({"token": "one"}), &config, &tokens), Ok(one));
        assert_eq!(ask(&json!("two"), &Value::Null, &tokens), Ok(allowed(&[], None, Some("b"))));
    }

    #[test]
    fn tokens_of_the_configuration_count_nothing() {
        let (salt, hash) = hashed("three");
        let config = json!({"hashed": [{"salt": salt, "hash": hash}]});
        assert_eq!(ask(&json!("three"), &config, &json!([])), Ok(Verdict::allow()));
        assert!(ask(&json!("four"), &config, &json!([])).is_err());
        let config = json!({"hashed": [{"salt": "zz", "hash": ""}]});
        assert!(ask(&json!("three"), &config, &json!([])).is_err());
    }

    #[test]
    fn what_is_not_a_good_token_is_denied() {
        let tokens = json!([
            token("a", "late", &json!({"expires_at_ms": 5000})),
            token("b", "empty", &json!({"uses_left": 0})),
        ]);
        let denied = |proof: Value| ask(&proof, &Value::Null, &tokens).unwrap_err();
        assert!(denied(json!("late")).contains("expired"));
        assert!(denied(json!("empty")).contains("used up"));
        assert!(denied(json!("nope")).contains("wrong"));
        for nothing in
            [json!(null), json!(""), json!({}), json!({"token": 5}), json!([1]), json!(7)]
        {
            assert!(denied(nothing).contains("has to be shown"));
        }
        let wrong = ask(&json!("x"), &json!({"tagz": 1}), &tokens).unwrap_err();
        assert!(wrong.contains("tagz"), "{wrong}");
        let wrong = ask(&json!("x"), &Value::Null, &json!([{"id": 5}])).unwrap_err();
        assert!(wrong.contains("keeps for it"), "{wrong}");
    }
}
