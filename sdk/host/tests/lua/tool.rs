//! `pilot-plugin-host script`, as a person runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn tool(args: &[&str]) -> Ran {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_pilot-plugin-host")).args(args).output().unwrap();
    Ran {
        status: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn ready(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(file);
    path.to_str().unwrap().to_owned()
}

fn written(folder: &Path, text: &str) -> String {
    let path = folder.join("mine.lua");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_says_what_it_is() {
    let ran = tool(&["script", "check", &ready("kv.lua")]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.out.contains("service \"kv\", version 1.0"), "{}", ran.out);
    assert!(ran.out.contains("ports: 2001"), "{}", ran.out);
    assert!(ran.out.contains("configuration: read_only, shared"), "{}", ran.out);
    let ran = tool(&["script", "check", &ready("kv.lua"), "--json"]);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(told["data"]["services"][0]["ports"], json!([2001]));
    let ran = tool(&["script", "check", &ready("kv.lua"), "--config", "{\"shared\": true}"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let ran = tool(&["script", "check", &ready("kv.lua"), "--config", "{\"shared\": 5}"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("the configuration at /shared"), "{}", ran.err);
    let ran = tool(&["script", "check", &ready("echo.lua"), "--config", "{\"x\": 5}"]);
    assert!(ran.err.contains("takes no configuration"), "{}", ran.err);
}

#[test]
fn check_says_where_it_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [
        (
            "return {\n  kind = 'service',\n  prot = 5,\n  serve = print }",
            "mine.lua:3: unknown key `prot`; did you mean `port`?",
        ),
        ("return {\n  kind = 'service'", "mine.lua:2: "),
        ("\n\nnope()", "mine.lua:3: attempt to call a nil value"),
    ] {
        let ran = tool(&["script", "check", &written(folder.path(), text)]);
        assert_eq!(ran.status, 1);
        assert!(ran.err.contains(expected), "{text}: {}", ran.err);
        assert_eq!(ran.out, "");
    }
    let ran = tool(&["script", "check", "/nowhere/none.lua"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("/nowhere/none.lua: cannot be read"), "{}", ran.err);
}

#[test]
fn run_tries_all_three_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let ran = tool(&["script", "run", &ready("echo.lua"), "--input", "hello"]);
    assert_eq!((ran.status, ran.out.as_str()), (0, "hello"), "{}", ran.err);
    let file = folder.path().join("input");
    std::fs::write(&file, "SET a b\nGET a\n").unwrap();
    let input = format!("@{}", file.to_str().unwrap());
    let ran = tool(&["script", "run", &ready("kv.lua"), "--input", &input]);
    assert_eq!((ran.status, ran.out.as_str()), (0, "OK\nVALUE b\n"), "{}", ran.err);

    let hours = ready("business_hours_rule.lua");
    let ran = tool(&["script", "run", &hours, "--input", "{\"at_ms\": 1700000000000}"]);
    assert!(ran.out.starts_with("deny: nodes join from 09:00"), "{}{}", ran.out, ran.err);
    let ran = tool(&["script", "run", &hours, "--input={\"at_ms\": 1699956000000}", "--json"]);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(told["data"]["verdict"]["verdict"], "allow");

    let sink = "return { kind = 'sink', deliver = function(events)
      emit('seen', { count = #events })
      return { retry_after = 2, accepted = 1, reason = events[2].event }
    end }";
    let sink = written(folder.path(), sink);
    let ran = tool(&["script", "run", &sink, "--input", "[{}, {\"event\": \"x\"}]"]);
    assert_eq!(ran.out, "again in 2000 ms after 1 events: x\n", "{}", ran.err);
    assert!(ran.err.contains("event {\"data\":{\"count\":2},\"event\":\"seen\"}"), "{}", ran.err);
    let ran = tool(&["script", "run", &sink, "--input", "{}\n{\"event\": \"y\"}\n"]);
    assert_eq!(ran.out, "again in 2000 ms after 1 events: y\n", "{}", ran.err);
}

#[test]
fn run_shows_who_where_and_how_far() {
    let folder = tempfile::tempdir().unwrap();
    let text = "return { kind = 'service', port = 5, serve = function(stream, peer)
      log.info('port', stream.port)
      stream:write(peer.address)
    end }";
    let script = written(folder.path(), text);
    let ran = tool(&["script", "run", &script, "--input=", "--peer", "0:0000.0000.00FF"]);
    assert_eq!(ran.out, "0:0000.0000.00FF", "{}", ran.err);
    assert!(ran.err.contains("port 5"), "{}", ran.err);

    let text = "local function f(x)\n  return x.y.z\nend\nreturn { kind = 'service', port = 5, serve = function(stream)\n  stream:write(f({}))\nend }";
    let script = written(folder.path(), text);
    let ran = tool(&["script", "run", &script, "--input", "x"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("error: mine.lua:2: attempt to index nil with 'z'"), "{}", ran.err);
    assert!(ran.err.contains("mine.lua:5:"), "the traceback is missing: {}", ran.err);

    let text =
        "return { kind = 'service', port = 5, serve = function(stream) time.sleep(100) end }";
    let script = written(folder.path(), text);
    let ran = tool(&["script", "run", &script, "--input", "x", "--timeout", "0.1"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("did not end its stream within 0.1 s"), "{}", ran.err);

    let text = "return { kind = 'rule', validate = function() local s, why = dial('x:1') return false, why end }";
    let script = written(folder.path(), text);
    let ran = tool(&["script", "run", &script, "--input", "{}"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("does not grant \"dial\""), "{}", ran.err);
    let ran = tool(&["script", "run", &script, "--input", "{}", "--grant", "other,dial"]);
    assert!(ran.out.starts_with("deny: x:1: there is no network"), "{}{}", ran.out, ran.err);
}

#[test]
fn wrong_usage_is_told() {
    for (args, expected) in [
        (&["script"][..], "needs `check` or `run`"),
        (&["script", "fly"], "no `script fly`"),
        (&["script", "check"], "no script was named"),
        (&["script", "check", "a", "b"], "one script at a time"),
        (&["script", "check", "a", "--input", "x"], "unknown flag --input"),
        (&["script", "run", "a"], "needs --input"),
        (&["script", "run", "a", "--input"], "--input needs a value"),
        (&["script", "run", "a", "--input", "x", "--config", "{"], "--config is not JSON"),
        (&["script", "run", "a", "--input", "x", "--peer", "me"], "--peer: "),
        (&["script", "run", "a", "--input", "x", "--timeout", "long"], "no number of seconds"),
        (&["nonsense"], "usage: "),
        (&[], "usage: "),
    ] {
        let ran = tool(args);
        assert_eq!(ran.status, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(expected), "{args:?}: {}", ran.err);
    }
}
