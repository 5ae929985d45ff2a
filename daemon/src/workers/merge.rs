//! One `info` answer out of those of all workers.

use serde_json::{Map, Value, json};

/// What is the same in every worker, though it is a number: taken from one.
const SAME: [&str; 7] = [
    "node_id",
    "uptime_secs",
    "ports",
    "clients",
    "buffer_wanted",
    "receive_buffer",
    "send_buffer",
];
/// What the answer says of each worker on its own.
const EACH: [&str; 6] =
    ["peers", "connections", "bytes_sent", "bytes_recv", "pkts_sent", "pkts_recv"];
/// What is said of the whole daemon, the same in every worker.
const WHOLE: [&str; 4] = ["registry", "networks", "plugins", "events"];

/// Adds up counters, joins lists, and takes the rest from the first answer.
/// `workers` lists what each worker has.
pub(crate) fn merge(answers: Vec<(usize, Value)>) -> Value {
    let each: Vec<Value> = answers.iter().map(|(worker, answer)| of_one(*worker, answer)).collect();
    let mut all = Value::Null;
    for (_, answer) in answers {
        add("", &mut all, answer);
    }
    if let Value::Object(all) = &mut all {
        all.insert("workers".to_owned(), Value::Array(each));
    }
    all
}

fn of_one(worker: usize, answer: &Value) -> Value {
    let mut one = Map::from_iter([("worker".to_owned(), json!(worker))]);
    for key in EACH {
        one.insert(key.to_owned(), answer[key].clone());
    }
    for key in ["strayed", "strayed_dropped"] {
        one.insert(key.to_owned(), answer["udp"][key].clone());
    }
    Value::Object(one)
}

fn add(key: &str, to: &mut Value, more: Value) {
    match (to, more) {
        (to @ Value::Null, more) => *to = more,
        (Value::Object(to), Value::Object(more)) if !WHOLE.contains(&key) => {
            for (key, value) in more {
                let slot = to.entry(key.clone()).or_insert(Value::Null);
                add(&key, slot, value);
            }
        }
        (Value::Array(to), Value::Array(more)) if !WHOLE.contains(&key) => to.extend(more),
        (to @ Value::Number(_), Value::Number(more)) if !SAME.contains(&key) => {
            *to = match (to.as_u64(), more.as_u64()) {
                (Some(a), Some(b)) => json!(a.saturating_add(b)),
                _ => json!(to.as_f64().unwrap_or(0.0) + more.as_f64().unwrap_or(0.0)),
            };
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_lists_are_joined_and_facts_stay() {
        let answer = |n: u64| {
            json!({
                "node_id": 7, "hostname": "a", "ports": 3, "uptime_secs": 60, "encrypt": true,
                "peers": n, "bytes_sent": 100 * n, "refused": {"replay": n},
                "registry": {"state": "up", "since_secs": 5},
                "plugins": [{"name": "echo", "streams": 2}], "events": {"emitted": 9},
                "udp": {
                    "sends": n, "segments": 40 * n, "send_errors": n,
                    "buffer_wanted": 8, "receive_buffer": 4, "send_buffer": 8,
                    "buffer_shortfall": "4 of 8", "strayed": n, "strayed_dropped": 0,
                },
                "peer_list": [
                    {"node_id": n, "worker": n - 1, "path_mtu": 1200 + n, "offload": n == 2},
                ],
            })
        };
        let all = merge(vec![(0, answer(1)), (1, answer(2))]);
        assert_eq!(all["node_id"], 7);
        assert_eq!((&all["ports"], &all["uptime_secs"]), (&json!(3), &json!(60)));
        assert_eq!((&all["peers"], &all["bytes_sent"]), (&json!(3), &json!(300)));
        assert_eq!((&all["refused"]["replay"], &all["udp"]["send_errors"]), (&json!(3), &json!(3)));
        assert_eq!(all["registry"], json!({"state": "up", "since_secs": 5}));
        assert_eq!(all["plugins"], json!([{"name": "echo", "streams": 2}]));
        assert_eq!(all["events"], json!({"emitted": 9}));
        let peer = |n: u64, m: u64, o: bool| json!({"node_id": n, "worker": n - 1, "path_mtu": m, "offload": o});
        assert_eq!(all["peer_list"], json!([peer(1, 1201, false), peer(2, 1202, true)]));
        assert_eq!((&all["udp"]["sends"], &all["udp"]["segments"]), (&json!(3), &json!(120)));
        let buffers = ["buffer_wanted", "receive_buffer", "send_buffer", "buffer_shortfall"];
        let buffers = buffers.map(|key| all["udp"][key].clone());
        assert_eq!(buffers, [json!(8), json!(4), json!(8), json!("4 of 8")]);
        assert_eq!(all["workers"][1]["peers"], 2);
        assert_eq!(all["workers"][1]["strayed"], 2);
    }
}
