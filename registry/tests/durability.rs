//! What was written outlives an orderly end, and a registry that cannot write
//! any more ends and says so. Disorderly ends are in `crash.rs`.

mod client;
mod stored;

use client::{Client, Identity, Program, ready_line};
use serde_json::json;

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");

fn start(store: &str) -> Program {
    Program::start(REGISTRY, &["-addr", "127.0.0.1:0", "-store", store, "--register-rate=0"])
}

#[test]
fn everything_survives_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db").to_str().unwrap().to_owned();
    let (a, b) = (Identity::new(1), Identity::new(2));
    let registry = start(&store);
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!((client.register(&a), client.register(&b)), (1, 2));
    for request in [
        a.signed("set_hostname", 1, json!({"hostname": "alice"})),
        a.signed("set_tags", 1, json!({"tags": ["gpu", "web"]})),
        a.signed("set_task_exec", 1, json!({"enabled": true})),
        a.signed("set_visibility", 1, json!({"public": true})),
        a.about("report_trust", "report_trust", 1, 2, json!({})),
        b.about("report_trust", "report_trust", 2, 1, json!({})),
        b.about("respond_handshake", "respond", 2, 1, json!({"accept": true})),
        json!({"type": "set_polo_score", "node_id": 1, "polo_score": -3}),
    ] {
        let reply = client.ask(request);
        assert!(reply.get("error").is_none(), "{reply}");
    }
    let lookup = json!({"type": "lookup", "node_id": 1});
    let before = client.ask(lookup.clone());
    assert!(registry.terminate());
    let held = pilot_registry::store::Reader::open(store.as_ref()).unwrap().state().unwrap().1;
    assert_eq!((held.checkpoint, held.commands), (10, 0), "nothing is left to replay");

    let registry = start(&store);
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!(client.ask(lookup), before);
    assert_eq!(before["tags"], json!(["gpu", "web"]));
    assert_eq!(client.ask(a.resolve(1, 2))["real_addr"], "127.0.0.1:4000");
    let waiting = client.ask(a.signed("poll_handshakes", 1, json!({})));
    assert_eq!(waiting["responses"][0]["from_node_id"], 2);
    assert_eq!(client.register(&Identity::new(3)), 3);
    assert!(registry.terminate());
}

/// Two writers on one file would each acknowledge what the other overwrites.
#[test]
fn a_registry_whose_file_has_another_owner_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db");
    let mut first = std::process::Command::new(REGISTRY)
        .args(["-addr", "127.0.0.1:0", "--register-rate=0", "-store"])
        .arg(&store)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let addr = ready_line(&mut first)["addr"].as_str().unwrap().parse().unwrap();
    let mut client = Client::connect(addr);
    assert_eq!(client.register(&Identity::new(1)), 1);
    // The lock is gone with its file, as on a file system that knows none.
    std::fs::remove_file(dir.path().join("registry.db.lock")).unwrap();
    let (mut second, mut state) = stored::open(&store);
    assert_eq!(state.len(), 1);
    let refused = client.ask(Identity::new(2).register());
    assert_eq!(refused["code"], "storage", "{refused}");
    let output = first.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("registry.db") && last.contains("another registry"), "{text}");
    // The other one is not disturbed by it.
    stored::write(&mut second, &mut state, 0..10, 5);
    drop(second);
    assert_eq!(stored::open(&store).1.applied(), 11);
}
