//! Requests and their answers, without streams and hosts.

use pilot_plugin::json::{Map, Value, json};

/// Services named in an answer at the most.
const MAX_SERVICES: usize = 256;

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Ping,
    Version,
    Status,
    Peers,
    Services,
}

impl Request {
    /// The host method whose answer [`render`] needs.
    pub(crate) const fn method(self) -> Option<&'static str> {
        match self {
            Self::Ping | Self::Version => None,
            Self::Status | Self::Peers => Some("node.status"),
            Self::Services => Some("plugins.list"),
        }
    }
}

/// The request in a line; none in an empty one.
///
/// # Errors
/// A text for the peer when it is unknown.
pub(crate) fn parse(line: &[u8]) -> Result<Option<Request>, String> {
    let word = line.trim_ascii().to_ascii_uppercase();
    Ok(Some(match word.as_slice() {
        b"" => return Ok(None),
        b"PING" => Request::Ping,
        b"VERSION" => Request::Version,
        b"STATUS" => Request::Status,
        b"PEERS" => Request::Peers,
        b"SERVICES" => Request::Services,
        _ => return Err("unknown request; known are PING, VERSION, STATUS, PEERS, SERVICES".into()),
    }))
}

/// The answer, from what the host said.
pub(crate) fn render(request: Request, facts: &Value) -> Value {
    match request {
        Request::Ping => json!({ "pong": true }),
        Request::Version => json!({ "name": "pilot", "version": env!("CARGO_PKG_VERSION") }),
        Request::Status => {
            let kept = ["node_id", "address", "hostname", "registry", "uptime_secs"];
            let mut all = pick(facts, &kept);
            all.extend(counts(facts, &["peers", "streams"]));
            Value::Object(all)
        }
        Request::Peers => Value::Object(counts(facts, &["peers", "encrypted_peers"])),
        Request::Services => json!({ "services": services(facts) }),
    }
}

/// Plain values only: nothing that lists others slips through.
fn pick(facts: &Value, keys: &[&str]) -> Map<String, Value> {
    let plain = |key: &&str| {
        let value = facts.get(*key)?;
        (value.is_string() || value.is_number()).then(|| ((*key).to_owned(), value.clone()))
    };
    keys.iter().filter_map(plain).collect()
}

/// Numbers, and lists as their length.
fn counts(facts: &Value, keys: &[&str]) -> Map<String, Value> {
    let count = |key: &&str| {
        let value = match facts.get(*key)? {
            Value::Array(list) => list.len().into(),
            Value::Object(map) => map.len().into(),
            number @ Value::Number(_) => number.clone(),
            _ => return None,
        };
        Some(((*key).to_owned(), value))
    };
    keys.iter().filter_map(count).collect()
}

/// Name and ports of every service that answers, in the host's list of plugins.
fn services(facts: &Value) -> Vec<Value> {
    let plugins = facts["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let answers =
        |plugin: &&Value| matches!(plugin["state"].as_str(), Some("running" | "over-budget"));
    let all = plugins.iter().filter(answers);
    all.filter_map(|plugin| plugin["provides"]["services"].as_array())
        .flatten()
        .filter(|service| service["name"].is_string())
        .take(MAX_SERVICES)
        .map(|service| json!({ "name": service["name"], "ports": service["ports"] }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_words_in_any_case() {
        assert_eq!(parse(b"ping"), Ok(Some(Request::Ping)));
        assert_eq!(parse(b" Status \r"), Ok(Some(Request::Status)));
        assert_eq!(parse(b"  "), Ok(None));
        assert!(parse(b"STATUS NOW").is_err());
        assert!(parse(&[0xff, 0]).is_err());
    }

    #[test]
    fn peers_are_counted_and_never_named() {
        let facts = json!({
            "node_id": 7, "address": "0:0000.0000.0007", "hostname": "h", "uptime_secs": 5,
            "registry": "up", "peers": [{ "node_id": 8 }, { "node_id": 9 }], "streams": 3,
            "peer_list": [{ "node_id": 8 }], "owner": "somebody@example.org",
            "encrypted_peers": 2,
        });
        let status = render(Request::Status, &facts);
        assert_eq!(
            status,
            json!({
                "node_id": 7, "address": "0:0000.0000.0007", "hostname": "h", "uptime_secs": 5,
                "registry": "up", "peers": 2, "streams": 3,
            })
        );
        let peers = render(Request::Peers, &facts);
        assert_eq!(peers, json!({ "peers": 2, "encrypted_peers": 2 }));
        // A host that names what should be plain is not passed on either.
        let odd = json!({ "hostname": ["a"], "peers": "0:0000.0000.0008" });
        assert_eq!(render(Request::Status, &odd), json!({}));
    }

    #[test]
    fn services_are_those_that_answer() {
        let service =
            |name: &str, ports: &[u16]| json!({ "name": name, "ports": ports, "datagrams": false });
        let plugins = json!({ "plugins": [
            { "name": "echo", "state": "running",
              "provides": { "services": [service("echo", &[7])], "rules": [], "sinks": [] } },
            { "name": "rule", "state": "running" },
            { "name": "off", "state": "off", "provides": { "services": [service("x", &[9])] } },
            { "name": "two", "state": "over-budget",
              "provides": { "services": [service("a", &[1, 2]), {}] } },
        ]});
        let expected = json!({ "services": [
            { "name": "echo", "ports": [7] }, { "name": "a", "ports": [1, 2] },
        ]});
        assert_eq!(render(Request::Services, &plugins), expected);
        assert_eq!(render(Request::Services, &json!(null)), json!({ "services": [] }));
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            if let Ok(Some(request)) = parse(&line) {
                proptest::prop_assert!(!render(request, &Value::Null).to_string().contains('\n'));
            }
        }
    }
}
