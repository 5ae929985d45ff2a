//! The ready set in `scripts/`, each through its instance.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;

use pilot_host::{Limits, open_lua};
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use serde_json::{Value, json};

use crate::Script;
use crate::support::{World, any_stream, request, wait};

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(file)
}

fn start(file: &str, config: Value, granted: &[&str]) -> Script {
    let backend = open_lua(&path(file)).unwrap();
    if let Some(schema) = &backend.manifest().config_schema {
        assert!(jsonschema::is_valid(schema, &config), "{file}: {config}");
    }
    let world = World::new();
    let context = world.context("ready", Limits::default(), granted);
    let instance = backend.start(&config, context).unwrap();
    Script { world, instance }
}

#[test]
fn every_script_opens_and_says_what_it_is() {
    let mut files = 0;
    for entry in std::fs::read_dir(path("")).unwrap() {
        let path = entry.unwrap().path();
        let backend = open_lua(&path).unwrap();
        let manifest = backend.manifest();
        assert!(!manifest.description.is_empty(), "{path:?}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("-- Kind:"), "{path:?}");
        assert!(text.lines().nth(1).unwrap().starts_with("-- Config:"), "{path:?}");
        files += 1;
    }
    assert!(files >= 6);
}

#[test]
fn echo() {
    let script = start("echo.lua", Value::Null, &[]);
    assert_eq!(script.answer("hello\nworld"), "hello\nworld");
}

#[test]
fn kv() {
    let script = start("kv.lua", json!({}), &[]);
    assert_eq!(
        script.answer(
            "SET a one two\nget a\nGET b\nSET ab 2\nKEYS\nKEYS ab\nDEL a\nGET a\nQUIT\nGET a\n"
        ),
        "OK\nVALUE one two\nNONE\nOK\nKEYS 2\na\nab\nKEYS 1\nab\nOK\nNONE\nBYE\n"
    );
    let wrong = script.answer("nonsense\nSET\nGET\nGET a b\nDEL\n\n12\n");
    assert_eq!(wrong.lines().count(), 7, "{wrong}");
    assert!(wrong.lines().all(|line| line.starts_with("ERR ")), "{wrong}");
    let long = script.answer(&format!("SET {} v\n", "k".repeat(200)));
    assert_eq!(long, "ERR a key has at most 128 bytes\n");
    let full = script.answer(&format!("SET big {}\nGET big\n", "v".repeat(65_500)));
    assert!(full.starts_with("ERR the store of test would take"), "{full}");
    let endless = script.answer(&"x".repeat(70_000));
    assert_eq!(endless, "ERR the line is longer than 65536 bytes\n");
    // Another node has other keys, unless they are shared.
    let ask = |script: &Script, node: u32, input: &'static str| {
        let remote = crate::support::address(node).port(1);
        let (near, far) = crate::support::stream(remote, 2001);
        script.instance.open(near);
        far.send(input);
        far.end();
        far.receive_text()
    };
    assert_eq!(ask(&script, 8, "GET ab\n"), "NONE\n");
    let shared = start("kv.lua", json!({"shared": true}), &[]);
    assert_eq!(ask(&shared, 7, "SET x 1\n"), "OK\n");
    assert_eq!(ask(&shared, 8, "GET x\n"), "VALUE 1\n");
    let reading = start("kv.lua", json!({"read_only": ["gpu"]}), &[]);
    assert_eq!(
        ask(&reading, 7, "SET x 1\nDEL x\nGET x\n"),
        "ERR you may only read\nERR you may only read\nNONE\n"
    );
}

#[test]
fn json_rpc_agent() {
    let script = start("json_rpc_agent.lua", json!({"name": "bot"}), &[]);
    let ask = |input: &str| -> Vec<Value> {
        script.answer(input).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let call = |method: &str, params: Value| {
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        ask(&format!("{line}\n")).remove(0)
    };
    let described = call("agent.describe", json!({}));
    assert_eq!(described["result"]["name"], "bot");
    assert_eq!(
        described["result"]["methods"],
        json!(["agent.describe", "echo", "sum", "time.now"])
    );
    assert_eq!(described["id"], 1);
    assert_eq!(call("echo", json!({"a": [1, {}]}))["result"], json!({"a": [1, {}]}));
    assert_eq!(call("sum", json!([1, 2, 3.5]))["result"], 6.5);
    assert_eq!(call("sum", json!(["x"]))["error"]["code"], -32602);
    assert_eq!(call("nope", json!([]))["error"]["code"], -32601);
    // No result is null, not an absent key.
    let answer = &ask("{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"echo\"}\n")[0];
    assert_eq!(*answer, json!({"jsonrpc": "2.0", "id": "x", "result": null}));
    assert_eq!(ask("{\"jsonrpc\":\"2.0\",\"method\":\"echo\"}\n"), Vec::<Value>::new());
    assert_eq!(ask("{nonsense\n")[0]["error"]["code"], -32700);
    assert_eq!(ask("[]\n5\n\"x\"\n{\"id\":1}\n").len(), 4);
    let batch = "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":[1]},{\"jsonrpc\":\"2.0\",\"method\":\"echo\"},7]\n";
    let answers = &ask(batch)[0];
    assert_eq!(answers.as_array().unwrap().len(), 2);
    assert_eq!(answers[0]["result"], json!([1]));
    assert_eq!(answers[1]["error"]["code"], -32600);
    let strict = start("json_rpc_agent.lua", json!({"trusted_only": true}), &[]);
    let answer = strict.answer("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"time.now\"}\n");
    assert!(answer.contains("result"), "the test's peers are trusted: {answer}");
}

#[test]
fn rate_limit_rule() {
    let script = start("rate_limit_rule.lua", json!({"joins": 2, "seconds": 10}), &[]);
    let ask = |source: &str, second: u64| {
        let mut request = request("rate-limit-rule");
        request.source = source.into();
        request.at_ms = second * 1000;
        wait(script.instance.validate(request)).unwrap()
    };
    assert_eq!(ask("a", 100), Verdict::allow());
    assert_eq!(ask("a", 105), Verdict::allow());
    assert_eq!(ask("a", 106), Verdict::deny("more than 2 joins in 10 s; try again in 4 s"));
    assert_eq!(ask("b", 106), Verdict::allow());
    assert_eq!(ask("a", 110), Verdict::allow());
    assert!(matches!(ask("a", 111), Verdict::Deny { .. }));
    assert_eq!(ask("a", 116), Verdict::allow());

    // A flood of addresses is refused, and forgotten when its time is over.
    let script = start("rate_limit_rule.lua", json!({"joins": 1, "seconds": 1}), &[]);
    let flood: Vec<_> = (0..10_001)
        .map(|n| {
            let mut request = request("rate-limit-rule");
            request.source = n.to_string();
            request.at_ms = 5000;
            script.instance.validate(request)
        })
        .collect();
    let verdicts: Vec<_> = flood.into_iter().map(|answer| wait(answer).unwrap()).collect();
    assert!(verdicts[..10_000].iter().all(|verdict| *verdict == Verdict::allow()));
    assert!(matches!(verdicts[10_000], Verdict::Deny { .. }));
    let mut late = request("rate-limit-rule");
    late.at_ms = 7000;
    assert_eq!(wait(script.instance.validate(late)), Ok(Verdict::allow()));
}

#[test]
fn business_hours_rule() {
    // 2023-11-14 was a Tuesday.
    const TUESDAY: u64 = 1_699_920_000_000;
    let at = |day: u64, hour: u64, minute: u64| JoinRequest {
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: TUESDAY + ((day * 24 + hour) * 60 + minute) * 60_000,
        ..request("business-hours-rule")
    };
    let ask = |script: &Script, request: JoinRequest| {
        matches!(wait(script.instance.validate(request)).unwrap(), Verdict::Allow { .. })
    };
    let plain = start("business_hours_rule.lua", json!({}), &[]);
    assert!(!ask(&plain, at(0, 8, 59)));
    assert!(ask(&plain, at(0, 9, 0)));
    assert!(ask(&plain, at(0, 16, 59)));
    assert!(!ask(&plain, at(0, 17, 0)));
    assert!(ask(&plain, at(3, 12, 0)));
    assert!(!ask(&plain, at(4, 12, 0)), "a Saturday");
    assert!(!ask(&plain, at(5, 12, 0)), "a Sunday");
    match wait(plain.instance.validate(at(4, 12, 0))).unwrap() {
        Verdict::Deny { reason } => {
            assert_eq!(
                reason,
                "nodes join from 09:00 to 17:00; for them it is 2023-11-18T12:00:00Z"
            );
        }
        other => panic!("{other:?}"),
    }
    // One hour east; nights that begin on a Friday (6); those with a tag.
    let config = json!({
        "days": [6], "from": "22:00", "to": "06:00", "offset_minutes": 60, "until_closing": true,
    });
    let night = start("business_hours_rule.lua", config, &[]);
    assert!(!ask(&night, at(3, 20, 59)));
    assert!(ask(&night, at(3, 21, 0)));
    assert!(ask(&night, at(4, 4, 59)));
    assert!(!ask(&night, at(4, 5, 0)));
    assert!(!ask(&night, at(4, 21, 30)));
    match wait(night.instance.validate(at(3, 21, 30))).unwrap() {
        Verdict::Allow { expires_at_ms, .. } => assert_eq!(expires_at_ms, Some(at(4, 5, 0).at_ms)),
        other => panic!("{other:?}"),
    }
    let always = start("business_hours_rule.lua", json!({"always": ["gpu"]}), &[]);
    assert!(ask(&always, at(5, 3, 0)));
}

/// A chat that gives each post its answer and tells the posts' bodies.
fn chat(answers: Vec<&'static str>) -> (String, thread::JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        answers
            .into_iter()
            .map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut part = [0; 4096];
                loop {
                    let read = stream.read(&mut part).unwrap();
                    request.extend_from_slice(&part[..read]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
                    if let Some(Ok(body)) = body.map(|body| serde_json::from_str(&body)) {
                        stream.write_all(answer.as_bytes()).unwrap();
                        break body;
                    }
                    assert!(read > 0, "no body: {text}");
                }
            })
            .collect()
    });
    (url, server)
}

#[test]
fn chat_webhook_sink() {
    let end = "connection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = |head: &str| -> &'static str { format!("HTTP/1.1 {head}\r\n{end}").leak() };
    let (url, server) = chat(vec![
        answer("200 OK"),
        answer("429 Too Many Requests\r\nRetry-After: 7"),
        answer("503 Service Unavailable"),
        answer("404 Not Found"),
    ]);
    let config = json!({"url": url, "events": ["conn.*", "node.started"], "prefix": "[n1] "});
    let script = start("chat_webhook_sink.lua", config, &["http:127.0.0.1"]);
    let deliver = |names: &[&str]| {
        let lines = names.iter().enumerate().map(|(id, name)| {
            let event = json!({
                "event": name, "node_id": 1, "timestamp": "T", "event_id": id,
                "data": {"port": 7, "tags": ["a"]},
            });
            format!("{event}\n")
        });
        wait(script.instance.deliver(Batch { sink: "chat".into(), lines: lines.collect() }))
            .unwrap()
    };
    assert_eq!(deliver(&["conn.opened", "other", "node.started"]), Delivery::Ack);
    // Nothing of interest: nothing is posted.
    assert_eq!(deliver(&["node.started.not"]), Delivery::Ack);
    assert_eq!(
        deliver(&["conn.a"]),
        Delivery::Retry {
            accepted: 0,
            after_ms: Some(7000),
            reason: "the chat answered 429".into()
        }
    );
    assert_eq!(deliver(&["conn.b"]), Delivery::retry("the chat answered 503"));
    assert_eq!(deliver(&["conn.c"]), Delivery::reject("the chat answered 404"));
    let posts = server.join().unwrap();
    assert_eq!(
        posts[0]["text"],
        "[n1] T conn.opened port=7 tags=[\"a\"]\nT node.started port=7 tags=[\"a\"]"
    );
    // Nobody listens any more.
    assert!(matches!(deliver(&["conn.d"]), Delivery::Retry { accepted: 0, after_ms: None, .. }));
    // Without its grant it fails, which keeps the events.
    let script = start("chat_webhook_sink.lua", json!({"url": url}), &["*"]);
    let batch =
        Batch { sink: "chat".into(), lines: "{\"event\":\"x\",\"timestamp\":\"T\"}\n".into() };
    let failure = wait(script.instance.deliver(batch)).unwrap_err().to_string();
    assert!(failure.contains("grants neither \"http:127.0.0.1\""), "{failure}");
    let (near, far) = any_stream();
    script.instance.open(near);
    assert!(!far.reset_reason().is_empty());
}
