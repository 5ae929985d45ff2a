//! The captured runs of the published CLI, against a daemon in memory: the
//! same exit status, error codes, hints and shapes of `data`.

mod common;
#[path = "../../client/tests/mock/mod.rs"]
mod mock;

use common::{Run, User};
use mock::{Behaviour, MockDaemon};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Commands of later releases, and `broadcast`, which only refuses there.
const NOT_YET: &[&str] = &["broadcast", "gateway", "register", "rotate-key", "traceroute"];

/// Runs that need a state the mock is not in, by their words; each is covered
/// by a test of its own.
const ELSEWHERE: &[&str] = &[
    "daemon start",
    "daemon stop",
    "config",
    "config --set foo=bar",
    "config --set nope",
    "peers",
    "recv",
    "listen",
    "connect 2 5000",
    "init",
    "received",
    "inbox",
    "disconnect 999",
    "publish 2 alerts --data boom",
    "subscribe",
    "task submit",
    "task list",
    "task accept",
    "task queue",
    "task execute",
    "task send-results",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_runs() {
    let text = include_str!("../../../tests/vectors/cli_live.json");
    let vectors: Value = serde_json::from_str(text).expect("vectors");
    let daemon = MockDaemon::start(Behaviour::default());
    let home = tempfile::tempdir().expect("temporary directory");
    std::fs::write(home.path().join("f.txt"), "0123456789").expect("write");
    let none = home.path().join("none.sock");
    let socket = daemon.socket();
    let mut compared = 0;
    for run in vectors["runs"].as_array().expect("runs") {
        let args: Vec<String> = run["args"]
            .as_array()
            .expect("args")
            .iter()
            .map(|a| {
                a.as_str().expect("text").replace("~/", &format!("{}/", home.path().display()))
            })
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let words: Vec<&str> = args.iter().copied().filter(|a| *a != "--json").collect();
        let line = words.join(" ");
        if words.first().is_some_and(|w| NOT_YET.contains(w))
            || ELSEWHERE.iter().any(|e| line == *e || line.starts_with(&format!("{e} ")))
            || run["exit"].is_null()
        {
            continue;
        }
        // Without a daemon where the captured run had none.
        let absent = run["stderr"].as_str().is_some_and(|e| e.contains("not_running"))
            || run["stdout"].as_str().is_some_and(|o| o.contains("\"responsive\":false"))
            || line == "daemon status --check" && run["exit"] == 1;
        let mut user = User::new(home.path(), if absent { &none } else { &socket });
        user.registry = registry().await;
        if line == "untrust 2" {
            // Trusted in the captured run.
            user.run(&["approve", "2"]).await.data();
        }
        let got = user.run_with(&args, run["stdin"].as_str().unwrap_or_default()).await;
        compare(&line, run, &got);
        compared += 1;
    }
    assert!(compared >= 55, "only {compared} runs were compared");
}

/// A registry for one request: it knows nodes 1 and 2.
async fn registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut len = [0; 4];
            stream.read_exact(&mut len).await.expect("length");
            let mut body = vec![0; u32::from_be_bytes(len) as usize];
            stream.read_exact(&mut body).await.expect("body");
            let request: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(request["type"], "lookup");
            let node = request["node_id"].as_u64().expect("a number");
            let mut answer = serde_json::json!({
                "type": "lookup_ok", "node_id": node, "address": format!("0:0000.0000.{node:04X}"),
                "networks": [0], "polo_score": 0, "public": node == 2, "public_key": "AAAA",
            });
            if node == 2 {
                answer["hostname"] = "agent-b".into();
                answer["real_addr"] = "127.0.0.1:24002".into();
            }
            if node > 2 {
                answer = serde_json::json!({"type": "error", "error": "request failed"});
            }
            let answer = answer.to_string();
            let len = u32::try_from(answer.len()).expect("short").to_be_bytes();
            stream.write_all(&[&len, answer.as_bytes()].concat()).await.expect("write");
        }
    });
    address
}

fn compare(line: &str, expected: &Value, got: &Run) {
    let exit = i32::try_from(expected["exit"].as_i64().expect("exit")).expect("small");
    assert_eq!(got.exit, exit, "{line}: {got:?}");
    let out = expected["stdout"].as_str().expect("text");
    let err = expected["stderr"].as_str().expect("text");
    if let Ok(expected) = serde_json::from_str::<Value>(out) {
        shape(line, "data", &expected["data"], &got.data());
    }
    if let Ok(expected) = serde_json::from_str::<Value>(err) {
        let got = got.error();
        assert_eq!(got["code"], expected["code"], "{line}");
        if !expected["hint"].is_null() {
            assert_eq!(got["hint"], expected["hint"], "{line}");
        }
        // The words of another language's number parser are not imitated.
        let message = expected["message"].as_str().expect("text");
        if !message.contains("strconv") {
            let mask = |text: &str| match text.find("file not found") {
                Some(_) => "file not found".to_owned(),
                None => text.to_owned(),
            };
            assert_eq!(mask(got["message"].as_str().expect("text")), mask(message), "{line}");
        }
    }
    if err == "<usage text>" {
        assert!(got.stderr.contains("usage: pilotctl"), "{line}: {got:?}");
        assert_eq!(got.stdout, "", "{line}");
    }
}

/// Every expected key is there with a value of the same type.
fn shape(line: &str, at: &str, expected: &Value, got: &Value) {
    match (expected, got) {
        (Value::Object(e), Value::Object(g)) => {
            for (key, value) in e {
                let found = g.get(key).unwrap_or_else(|| panic!("{line}: no {at}.{key}: {got}"));
                shape(line, &format!("{at}.{key}"), value, found);
            }
        }
        (Value::Array(e), Value::Array(g)) => {
            if let (Some(e), Some(g)) = (e.first(), g.first()) {
                shape(line, &format!("{at}[0]"), e, g);
            }
        }
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => {}
        _ => panic!("{line}: {at} is {got}, expected {expected}"),
    }
}
