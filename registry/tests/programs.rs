//! The binaries: ready lines, one clear line and status 1 on failure, and the
//! rendezvous with beacons that find each other through it.

mod client;

use std::net::UdpSocket;
use std::process::Command;

use client::{Client, Identity, PATIENCE, Program, eventually};
use pilot_wire::NodeId;
use pilot_wire::beacon::Message;
use serde_json::json;

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");
const RENDEZVOUS: &str = env!("CARGO_BIN_EXE_pilot-rendezvous");

/// The one line a failing start prints.
fn failure(binary: &str, args: &[&str]) -> String {
    let output = Command::new(binary).args(args).args(["-log-level", "error"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn failures_are_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let running = Program::start(REGISTRY, &["-addr", "127.0.0.1:0", "-store", &path("a.db")]);
    assert_eq!(running.ready["ready"], "pilot-registry");
    let used = running.addr("addr").to_string();

    let text = failure(REGISTRY, &["-addr", &used]);
    assert!(text.contains(&used) && text.contains("cannot listen"), "{text}");
    let text = failure(REGISTRY, &["-addr", "127.0.0.1:0", "-store", &path("a.db")]);
    assert!(text.contains("a.db") && text.contains("in use by another process"), "{text}");
    std::fs::write(path("bad.db"), "not a database, but long enough to be looked at").unwrap();
    let text = failure(REGISTRY, &["-addr", "127.0.0.1:0", "-store", &path("bad.db")]);
    assert!(text.contains("bad.db") && text.contains("backup"), "{text}");
    let text = failure(REGISTRY, &["-addr", "127.0.0.1:0", "-store", &path("no/folder.db")]);
    assert!(text.contains("no/folder.db") && text.contains("cannot be opened"), "{text}");
    std::fs::write(path("c.yaml"), "addr: 127.0.0.1:0\nstor: x\n").unwrap();
    let text = failure(REGISTRY, &["-config", &path("c.yaml")]);
    assert!(text.contains("line 2") && text.contains("did you mean store?"), "{text}");
    std::fs::write(path("c.yaml"), "max_connections: many\n").unwrap();
    let text = failure(REGISTRY, &["-config", &path("c.yaml")]);
    assert!(
        text.contains("line 1") && text.contains("max_connections")
            || text.contains("max-connections"),
        "{text}"
    );
    for args in
        [["-tls-key", "x"], ["-tls-cert", "x"], ["-owner-recovery", "maybe"], ["-addr", "9000"]]
    {
        assert!(failure(REGISTRY, &args).contains(args[0]), "{args:?}");
    }
    assert!(failure(RENDEZVOUS, &["-standby", "127.0.0.1:0"]).contains("not available yet"));
    assert!(running.terminate());
}

#[test]
fn a_file_sets_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.yaml");
    std::fs::write(&config, "register-rate: 0\naddr: 127.0.0.1:0\n").unwrap();
    let running = Program::start(REGISTRY, &["-config", config.to_str().unwrap()]);
    let mut client = Client::connect(running.addr("addr"));
    for n in 1..=30 {
        assert_eq!(client.register(&Identity::new(n)), u64::from(n));
    }
    assert!(running.terminate());
}

#[test]
fn rendezvous_serves_both_and_lists_beacons() {
    let rendezvous = Program::start(
        RENDEZVOUS,
        &["-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0"],
    );
    assert_eq!(rendezvous.ready["ready"], "pilot-rendezvous");
    let registry = rendezvous.addr("registry_addr");
    let mut client = Client::connect(registry);
    assert_eq!(client.register(&Identity::new(1)), 1);

    let node = UdpSocket::bind("127.0.0.1:0").unwrap();
    node.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut out = Vec::new();
    Message::Discover { node: NodeId(1) }.encode(&mut out);
    node.send_to(&out, rendezvous.addr("beacon_addr")).unwrap();
    let mut buffer = [0; 64];
    let n = node.recv(&mut buffer).unwrap();
    let endpoint = node.local_addr().unwrap();
    assert_eq!(Message::parse(&buffer[..n]), Ok(Message::DiscoverReply { endpoint }));

    // A beacon that is told of the registry shows up in its list.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config = pilot_beacon::Config {
        beacon_id: 5,
        registry: Some(registry.to_string()),
        ..pilot_beacon::Config::at("127.0.0.1:0")
    };
    let beacon = runtime.block_on(pilot_beacon::Beacon::bind(config)).unwrap();
    let addr = beacon.local_addr().to_string();
    runtime.spawn(beacon.run(std::future::pending()));
    eventually("the beacon is listed", || {
        let list = client.ask(json!({"type": "beacon_list"}));
        list["beacons"] == json!([{"addr": addr, "id": 5}])
    });
    assert!(rendezvous.terminate());
}
