//! The join rule `invite`: who is invited may join. The registry shows the
//! invitations that are for the node; the proof is nothing, or `{"id": N}` for
//! one of several.
#![forbid(unsafe_code)]

use pilot_plugin::json::{self, Value};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::{Error, Host, JoinRequest, JsonSchema, Manifest, Plugin, Verdict};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Tags for who joins, beside those of the invitation.
    tags: Vec<String>,
    /// Seconds after which a membership ends; none for never.
    expires_secs: Option<u64>,
}

/// What the registry keeps for this rule.
#[derive(Default, Deserialize)]
#[serde(crate = "pilot_plugin::serde", default)]
struct Kept {
    invitations: Vec<Invitation>,
}

#[derive(Deserialize)]
#[serde(crate = "pilot_plugin::serde")]
struct Invitation {
    id: u64,
    expires_at_ms: u64,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(crate = "pilot_plugin::serde", deny_unknown_fields)]
struct Proof {
    id: Option<u64>,
}

struct Invited {
    config: Config,
}

impl Plugin for Invited {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("join-invite", env!("CARGO_PKG_VERSION"))
            .describe("the join rule invite: who is invited may join")
            .rule("invite")
    }

    fn start(_: Host, config: Config) -> Result<Self, Error> {
        Ok(Self { config })
    }

    async fn validate(&self, request: JoinRequest) -> Result<Verdict, Error> {
        Ok(judge(&self.config, &request).unwrap_or_else(Verdict::deny))
    }
}

fn judge(default: &Config, request: &JoinRequest) -> Result<Verdict, String> {
    let proof: Option<Proof> = json::from_value(request.proof.clone())
        .map_err(|error| format!("the proof is nothing, or {{\"id\": N}}: {error}"))?;
    let config = match &request.config {
        Value::Null => default.clone(),
        own => json::from_value(own.clone())
            .map_err(|error| format!("the network's configuration of it: {error}"))?,
    };
    let kept: Option<Kept> = json::from_value(request.kept.clone())
        .map_err(|error| format!("what the registry keeps for it: {error}"))?;
    let wanted = proof.and_then(|proof| proof.id);
    let mut invitations = kept.unwrap_or_default().invitations.into_iter();
    let found = invitations.find(|invitation| {
        invitation.expires_at_ms > request.at_ms && wanted.is_none_or(|id| id == invitation.id)
    });
    let Some(Invitation { id, tags: more, .. }) = found else {
        let which =
            wanted.map_or_else(|| "no invitation".to_owned(), |id| format!("no invitation {id}"));
        return Err(format!("there is {which} for this node; ask a member to invite it"));
    };
    let Config { mut tags, expires_secs } = config;
    tags.extend(more);
    let expires_at_ms =
        expires_secs.map(|secs| request.at_ms.saturating_add(secs.saturating_mul(1000)));
    Ok(Verdict::Allow { tags, expires_at_ms, external_identity: None, uses: Some(id.to_string()) })
}

pilot_plugin::export_plugin!(Invited);

#[cfg(test)]
mod tests {
    use pilot_plugin::json::json;

    use super::*;

    fn ask(proof: &Value, config: &Value, kept: &Value) -> Result<Verdict, String> {
        let request = json::from_value(json!({
            "rule": "invite", "network": 3, "node": 7, "address": "0:0000.0000.0007",
            "public_key": "", "proof": proof, "config": config, "kept": kept, "at_ms": 5000,
        }));
        judge(&Config::default(), &request.unwrap())
    }

    fn allowed(tags: &[&str], expires_at_ms: Option<u64>, id: &str) -> Verdict {
        Verdict::Allow {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            expires_at_ms,
            external_identity: None,
            uses: Some(id.to_owned()),
        }
    }

    fn invitations() -> Value {
        json!({"invitations": [
            {"id": 1, "expires_at_ms": 5000, "from": null},
            {"id": 2, "expires_at_ms": 5001, "tags": ["x"], "from": 9},
            {"id": 3, "expires_at_ms": 9000, "from": 9},
        ]})
    }

    #[test]
    fn the_first_one_that_is_good_is_used_or_the_one_that_is_named() {
        let kept = invitations();
        let config = json!({"tags": ["all"], "expires_secs": 1});
        let first = ask(&Value::Null, &config, &kept);
        assert_eq!(first, Ok(allowed(&["all", "x"], Some(6000), "2")));
        assert_eq!(ask(&json!({}), &Value::Null, &kept), Ok(allowed(&["x"], None, "2")));
        assert_eq!(ask(&json!({"id": 3}), &Value::Null, &kept), Ok(allowed(&[], None, "3")));
    }

    #[test]
    fn nobody_else_is_let_in() {
        let kept = invitations();
        let denied = |proof: Value, kept: &Value| ask(&proof, &Value::Null, kept).unwrap_err();
        assert!(denied(json!({"id": 1}), &kept).contains("no invitation 1"));
        assert!(denied(json!({"id": 4}), &kept).contains("no invitation 4"));
        for none in [json!(null), json!({}), json!({"invitations": []})] {
            assert!(denied(Value::Null, &none).contains("no invitation"), "{none}");
        }
        for wrong in [json!("x"), json!({"id": "3"}), json!({"no": 1}), json!(3)] {
            assert!(denied(wrong, &kept).contains("the proof is nothing"));
        }
        assert!(denied(Value::Null, &json!({"invitations": [{"id": "x"}]})).contains("keeps"));
        let wrong = ask(&Value::Null, &json!({"x": 1}), &kept).unwrap_err();
        assert!(wrong.contains("configuration"), "{wrong}");
    }
}
