//! The join rule `open`: whoever asks may join. What it adds to a membership, a
//! network says in the rule's configuration; the plugin's own configuration,
//! which has the same keys, is for networks that say nothing.
#![forbid(unsafe_code)]

use pilot_plugin::json::{self, Value};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::{Error, Host, JoinRequest, JsonSchema, Manifest, Plugin, Verdict};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Tags for who joins.
    tags: Vec<String>,
    /// Seconds after which a membership ends; none for never.
    expires_secs: Option<u64>,
}

struct Open {
    config: Config,
}

impl Plugin for Open {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("join-open", env!("CARGO_PKG_VERSION"))
            .describe("the join rule open: whoever asks may join")
            .rule("open")
    }

    fn start(_: Host, config: Config) -> Result<Self, Error> {
        Ok(Self { config })
    }

    async fn validate(&self, request: JoinRequest) -> Result<Verdict, Error> {
        Ok(judge(&self.config, &request))
    }
}

fn judge(default: &Config, request: &JoinRequest) -> Verdict {
    let config = match &request.config {
        Value::Null => default.clone(),
        own => match json::from_value(own.clone()) {
            Ok(config) => config,
            Err(error) => {
                return Verdict::deny(format!("the network's configuration of it: {error}"));
            }
        },
    };
    let Config { tags, expires_secs } = config;
    let expires_at_ms =
        expires_secs.map(|secs| request.at_ms.saturating_add(secs.saturating_mul(1000)));
    Verdict::Allow { tags, expires_at_ms, external_identity: None, uses: None }
}

pilot_plugin::export_plugin!(Open);

#[cfg(test)]
mod tests {
    use pilot_plugin::json::json;

    use super::*;

    fn request(config: &Value) -> JoinRequest {
        json::from_value(json!({
            "rule": "open", "network": 3, "node": 7, "address": "0:0000.0000.0007",
            "public_key": "", "config": config, "at_ms": 5000,
        }))
        .unwrap()
    }

    #[test]
    fn everybody_may_join_with_what_the_network_adds() {
        let default = Config { tags: vec!["guest".into()], expires_secs: Some(10) };
        let allowed = |tags: &[&str], expires_at_ms| Verdict::Allow {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            expires_at_ms,
            external_identity: None,
            uses: None,
        };
        let none = Config::default();
        assert_eq!(judge(&none, &request(&Value::Null)), Verdict::allow());
        assert_eq!(judge(&default, &request(&Value::Null)), allowed(&["guest"], Some(15_000)));
        assert_eq!(judge(&default, &request(&json!({}))), Verdict::allow());
        let own = json!({"tags": ["a", "b"], "expires_secs": 2});
        assert_eq!(judge(&default, &request(&own)), allowed(&["a", "b"], Some(7000)));
        let long = json!({"expires_secs": u64::MAX});
        assert_eq!(judge(&none, &request(&long)), allowed(&[], Some(u64::MAX)));
    }

    #[test]
    fn a_wrong_configuration_denies_and_names_the_key() {
        for (config, why) in [
            (json!({"tagz": []}), "tagz"),
            (json!({"expires_secs": -1}), "-1"),
            (json!("open"), "open"),
        ] {
            match judge(&Config::default(), &request(&config)) {
                Verdict::Deny { reason } => assert!(reason.contains(why), "{reason}"),
                allowed @ Verdict::Allow { .. } => panic!("{config}: {allowed:?}"),
            }
        }
    }
}
