//! The registry as a host of real plugins: events that reach a sink, rules that
//! are asked, reloads, and configurations that are refused.

mod client;

use std::path::Path;
use std::process::Command;

use client::plugins::plugin;
use client::{Client, Identity, Program, eventually};
use pilot_host::{Settings, State};
use pilot_plugin::{JoinRequest, Verdict};
use pilot_registry::{Config, Registry};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");
const RENDEZVOUS: &str = env!("CARGO_BIN_EXE_pilot-rendezvous");

/// Events in a file of the plugin sink-file; none before there is a file.
fn events(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has(file: &Path, name: &str, about: &str) -> bool {
    let is = |e: &Value| e["event"] == name && (about.is_empty() || e["data"]["name"] == about);
    events(file).iter().any(is)
}

fn hang_up(program: &Program) {
    let pid = program.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

/// The one line a failing start prints.
fn failure(args: &[&str]) -> String {
    let output = Command::new(REGISTRY).args(args).args(["-log-level", "error"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    text
}

#[test]
fn a_sink_is_told_what_happens_also_what_it_missed() {
    let library = plugin("pilot-plugin-sink-file");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let told = dir.path().join("told.jsonl");
    let config = format!(
        "addr: 127.0.0.1:0\nstore: {}\nregister-rate: 2\nplugins:\n  sink-file:\n    \
         file: {}\n    config: {{path: {}}}\n",
        path("r.db"),
        library.display(),
        told.display()
    );
    std::fs::write(path("c.yaml"), config).unwrap();
    let running = Program::start(REGISTRY, &["-config", &path("c.yaml")]);
    eventually("it says that it serves", || has(&told, "registry.started", ""));

    let mut client = Client::connect(running.addr("addr"));
    let (a, b) = (Identity::new(1), Identity::new(2));
    let (ia, ib) = (client.register(&a), client.register(&b));
    assert_eq!(client.ask(Identity::new(3).register())["code"], "rate_limited");
    assert_eq!(client.register(&a), ia);
    let report = a.about("report_trust", "report_trust", ia, ib, json!({}));
    assert_eq!(client.ask(report)["type"], "report_trust_ok");
    let wrong = b.signed("deregister", ia, json!({}));
    assert_eq!(client.ask(wrong)["code"], "bad_signature");
    assert_eq!(client.ask(b.signed("deregister", ib, json!({})))["type"], "deregister_ok");
    eventually("it says that b left", || has(&told, "node.deregistered", ""));
    let names = |events: &[Value]| {
        let name = |e: &Value| e["event"].as_str().unwrap().to_owned();
        events.iter().map(name).collect::<Vec<_>>()
    };
    let all = events(&told);
    let from = names(&all).iter().position(|n| n == "registry.started").unwrap();
    // Refusals are told by the connection, the rest by the writer: each in
    // order, and both side by side.
    let told_of = all[from..].iter().filter(|e| e["event"] != "registry.audit").cloned();
    let (refused, done): (Vec<_>, Vec<_>) = told_of.partition(|e| e["event"] == "registry.refused");
    let expected = [
        "registry.started",
        "node.registered",
        "node.registered",
        "node.reregistered",
        "registry.trust_reported",
        "node.deregistered",
    ];
    assert_eq!(names(&done), expected);
    let codes: Vec<_> = refused.iter().map(|e| e["data"]["code"].clone()).collect();
    assert_eq!(codes, ["rate_limited", "bad_signature"]);
    assert_eq!(all[from]["data"]["listen"], running.ready["addr"]);
    assert_eq!(done[1]["data"]["endpoint"], "127.0.0.1:4000");
    let left = &done[5]["data"];
    assert_eq!(
        *left,
        json!({"address": Address::backbone(NodeId(2)).to_string(), "reason": "asked"})
    );

    drop(client);
    assert!(running.terminate());
    // What it said at its end waits for the sink.
    let running = Program::start(REGISTRY, &["-config", &path("c.yaml")]);
    eventually("it says that it serves again", || {
        events(&told).iter().filter(|e| e["event"] == "registry.started").count() == 2
    });
    let all = events(&told);
    let stopping = all.iter().position(|e| e["event"] == "registry.stopping").unwrap();
    let audited = all[from..stopping].iter().filter(|e| e["event"] == "registry.audit").count();
    assert_eq!(stopping, from + expected.len() + codes.len() + audited);
    let again = all.iter().rfind(|e| e["event"] == "registry.started").unwrap();
    assert_eq!(again["data"]["nodes"], 1);
    for (before, after) in all.iter().zip(&all[1..]) {
        assert_eq!((&before["node_id"], &after["node_id"]), (&json!(0), &json!(0)));
        let number = |e: &Value| e["event_id"].as_u64().unwrap();
        assert_eq!(number(before) + 1, number(after), "no gap");
    }
    assert!(running.terminate());
}

#[test]
fn sighup_looks_again_and_a_wrong_file_changes_nothing() {
    let library = plugin("pilot-plugin-sink-file");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let told = dir.path().join("told.jsonl");
    // Plugins are started in the order of their names: the first one hears of
    // what becomes of the second one.
    let config = format!(
        "addr: 127.0.0.1:0\ndata: {data}\nplugins:\n  a-witness:\n    file: {so}\n    \
         config: {{path: {told}}}\n  sink-file:\n    file: {so}\n    \
         config: {{path: {late}}}\n",
        data = path("data"),
        so = library.display(),
        told = told.display(),
        late = path("late/told.jsonl"),
    );
    std::fs::write(path("c.yaml"), &config).unwrap();
    let running = Program::start(REGISTRY, &["-config", &path("c.yaml")]);
    eventually("it fails", || has(&told, "plugin.reload_failed", "sink-file"));
    // Nobody watches that folder.
    std::fs::create_dir(path("late")).unwrap();
    hang_up(&running);
    eventually("it is tried again", || has(&told, "plugin.loaded", "sink-file"));

    std::fs::write(path("c.yaml"), config + "scripts:\n  x:\n    fiel: x.lua\n").unwrap();
    hang_up(&running);
    eventually("the file is refused", || has(&told, "config.refused", ""));
    let all = events(&told);
    let refused = all.iter().find(|e| e["event"] == "config.refused").unwrap();
    let reason = refused["data"]["reason"].as_str().unwrap();
    assert!(reason.contains("line 12") && reason.contains("did you mean file?"), "{reason}");
    // Both go on.
    let mut client = Client::connect(running.addr("addr"));
    client.register(&Identity::new(1));
    for file in [&told, &dir.path().join("late/told.jsonl")] {
        eventually("both sinks hear of it", || has(file, "node.registered", ""));
    }
    assert!(running.terminate());

    // Nothing is hosted here: nothing to look at, and no reason to end.
    let addr = ["-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0"];
    let rendezvous = Program::start(RENDEZVOUS, &addr);
    hang_up(&rendezvous);
    let mut client = Client::connect(rendezvous.addr("registry_addr"));
    assert_eq!(client.register(&Identity::new(1)), 1);
    assert!(rendezvous.terminate());
}

#[test]
fn wrong_configurations_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let refused = |text: &str| {
        std::fs::write(path("c.yaml"), text).unwrap();
        failure(&["-config", &path("c.yaml")])
    };
    let text = refused("addr: 127.0.0.1:0\nplugins:\n  gate:\n    isolatoin: process\n");
    assert!(text.contains("line 4") && text.contains("did you mean isolation?"), "{text}");
    let text = refused("addr: 127.0.0.1:0\npluginns: {}\n");
    assert!(text.contains("line 2") && text.contains("did you mean plugins?"), "{text}");
    let text = refused("trusted-keys: [abc]\naddr: 127.0.0.1:0\n");
    assert!(text.contains("line 1") && text.contains("trusted-keys"), "{text}");
    // Two would number the same events.
    let data = ["-addr", "127.0.0.1:0", "-data", &path("data")];
    let running = Program::start(REGISTRY, &data);
    let text = failure(&data);
    assert!(text.contains("in use by another process") && text.contains("-data"), "{text}");
    assert!(running.terminate());
}

fn request(rule: &str, proof: &str) -> JoinRequest {
    JoinRequest {
        rule: rule.to_owned(),
        network: 7,
        network_name: "seven".to_owned(),
        node: NodeId(1),
        address: Address::backbone(NodeId(1)),
        public_key: Identity::new(1).public(),
        owner: String::new(),
        hostname: String::new(),
        tags: Vec::new(),
        proof: proof.into(),
        source: "127.0.0.1".to_owned(),
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: 0,
    }
}

/// A registry whose plugins are these, and have been started.
async fn hosting(dir: &Path, plugins: &str) -> Registry {
    let file = dir.join("c.yaml");
    let config = Config {
        data: Some(dir.join("data")),
        plugins: Settings::parse(plugins, &file).unwrap(),
        // What ships with Pilot is not there.
        plugin_path: Some(Vec::new()),
        ..client::config()
    };
    let registry = Registry::start(config).await.unwrap();
    registry.plugins().ready().await;
    registry
}

fn denied(verdict: Verdict) -> String {
    match verdict {
        Verdict::Deny { reason } => reason,
        allowed @ Verdict::Allow { .. } => panic!("{allowed:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_are_judged_by_a_plugin_and_denied_without_a_verdict() {
    let library = plugin("pilot-hostile-plugin");
    let echo = plugin("pilot-plugin-echo");
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "plugins:\n  hostile:\n    file: {}\n    config: {{mode: well}}\n  echo:\n    file: {}\n",
        library.display(),
        echo.display()
    );
    let registry = hosting(dir.path(), &text).await;
    let service = registry.service();
    assert_eq!(service.join_rules(), ["hostile"]);
    assert_eq!(service.validate(request("hostile", "open sesame")).await, Verdict::allow());
    assert_eq!(denied(service.validate(request("hostile", "please")).await), "wrong word");
    let reason = denied(service.validate(request("nobody", "open sesame")).await);
    assert_eq!(reason, "no plugin provides the join rule \"nobody\"");

    // Its service is listed, and not served.
    let status = |name: &str| {
        registry.plugins().list().into_iter().find(|plugin| plugin.name == name).unwrap()
    };
    let hostile = status("hostile");
    assert_eq!(hostile.state, State::Running);
    assert_eq!(hostile.provides.services[0].name, "hostile");
    assert!(hostile.provides.services[0].ports.is_empty());
    assert_eq!(hostile.provides.sinks, ["hostile"]);
    let echo = status("echo");
    let reason = echo.reason.unwrap();
    assert_eq!(echo.state, State::Failed);
    assert!(reason.contains("nothing but services") && reason.contains("no ports"), "{reason}");

    for (mode, why) in [
        ("panic-validate", "crashed"),
        ("fail-validate", "cannot read the list"),
        ("never-validate", "within 300 ms"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "plugins:\n  hostile:\n    file: {}\n    limits: {{validate: 300ms}}\n    \
             config: {{mode: {mode}}}\n",
            library.display()
        );
        let registry = hosting(dir.path(), &text).await;
        let reason = denied(registry.service().validate(request("hostile", "open sesame")).await);
        assert!(reason.contains("hostile") && reason.contains(why), "{mode}: {reason}");
    }

    // None is there.
    let config = Config { plugin_path: Some(Vec::new()), ..client::config() };
    let registry = Registry::start(config).await.unwrap();
    registry.plugins().ready().await;
    let reason = denied(registry.service().validate(request("hostile", "open sesame")).await);
    assert_eq!(reason, "no plugin provides the join rule \"hostile\"");
    assert!(registry.service().join_rules().is_empty());
    let failed = registry.plugins().list();
    assert_eq!(failed.len(), 3, "the shipped join rules: {failed:?}");
    assert!(failed.iter().all(|plugin| plugin.state == State::Failed), "{failed:?}");
}
