//! Commands against a daemon in memory.

mod common;
#[path = "../../client/tests/mock/mod.rs"]
mod mock;

use std::path::Path;
use std::time::Duration;

use common::User;
use mock::{Behaviour, MockDaemon};
use pilot_wire::ipc::{Event, Features};
use pilot_wire::{Address, NodeId};
use serde_json::json;

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn exit_status_and_usage() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    for (args, exit) in [
        (&[][..], 2),
        (&["--json"], 2),
        (&["bogus"], 2),
        (&["--json", "bogus"], 1),
        (&["--help"], 0),
        (&["help", "ping"], 0),
        (&["ping", "--help"], 0),
        (&["daemon", "--help"], 0),
        (&["--version"], 0),
        (&["info"], 1),
        (&["ping"], 1),
        (&["ping", "x", "--nope"], 1),
    ] {
        let run = user.run(args).await;
        assert_eq!(run.exit, exit, "{args:?}: {run:?}");
    }
    let help = user.run(&["--help"]).await.stdout;
    assert!(help.contains("exit status: 0 success, 1 failure, 2"), "{help}");
    assert!(!help.contains("_daemon-run"), "{help}");
    let run = user.run(&["pign", "x"]).await;
    assert!(run.stderr.contains("did you mean ping?"), "{run:?}");
    let error = user.run(&["ping", "x", "--cuont=3"]).await.error();
    assert_eq!(error["hint"], "did you mean --count?");
}

#[tokio::test]
async fn no_daemon_names_the_socket_and_what_to_do() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    // Not a terminal, so JSON without being asked.
    let error = user.run(&["info"]).await.error();
    assert_eq!(error["code"], "not_running");
    assert!(error["reason"].as_str().expect("text").contains("/nonexistent/p.sock"), "{error}");
    let run = user.run(&["--json=false", "info", "--socket", "/nonexistent/q.sock"]).await;
    assert_eq!(
        run.stderr,
        "error: daemon is not running: no answer on /nonexistent/q.sock\n\
         hint:  start the daemon with: pilotctl daemon start\n"
    );
    let error = user.run(&["lookup", "2"]).await.error();
    assert_eq!(error["message"], "cannot reach registry at 127.0.0.1:1");
    assert_eq!(
        error["hint"],
        "check that the registry is running at 127.0.0.1:1, or set PILOT_REGISTRY"
    );
}

#[tokio::test]
async fn configuration_is_written_and_kept() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    let data = user.run(&["init", "--hostname", "me", "--socket=/run/x.sock"]).await.data();
    assert_eq!(data["hostname"], "me");
    assert_eq!(data["socket"], "/run/x.sock");
    assert_eq!(data["registry"], "127.0.0.1:9000");
    assert_eq!(data["beacon"], "127.0.0.1:9001");
    let data = user.run(&["config", "--set", "foo=bar=baz"]).await.data();
    assert_eq!(data, json!({"key": "foo", "value": "bar=baz"}));
    let data = user.run(&["config"]).await.data();
    assert_eq!((&data["foo"], &data["hostname"]), (&json!("bar=baz"), &json!("me")));
    for key in ["config_path", "pid_file", "log_file"] {
        assert!(
            data[key].as_str().expect("text").starts_with(home.path().to_str().expect("UTF-8"))
        );
    }
    let error = user.run(&["config", "--set", "nope"]).await.error();
    assert_eq!(error["message"], "usage: pilotctl config --set key=value");
    std::fs::write(home.path().join("config.json"), "{ broken").expect("write");
    let error = user.run(&["config"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("config.json"), "{error}");
    let kept = std::fs::read_to_string(home.path().join("config.json")).expect("read");
    assert_eq!(kept, "{ broken", "a broken file is not overwritten");
}

#[tokio::test]
async fn text_for_people() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let text = async |args: &[&str]| {
        let run = user.run(&[&["--json=false"], args].concat()).await;
        assert_eq!(run.exit, 0, "{run:?}");
        assert!(!run.stdout.contains('\u{1b}'), "no colour without a terminal: {run:?}");
        run.stdout
    };
    let info = text(&["info"]).await;
    assert!(info.starts_with("address      0:0000.0000.0001\n"), "{info}");
    assert!(info.contains("uptime       1m 1s\n"), "{info}");
    let peers = text(&["peers"]).await;
    assert_eq!(
        peers,
        "PEER  ENDPOINT        PATH    MTU   OFFLOAD  ENCRYPTED  AUTHENTICATED\n\
         2     127.0.0.1:4000  direct  1452  yes      yes        yes\n"
    );
    assert_eq!(text(&["connections"]).await, "no connections\n");
    assert!(text(&["pending"]).await.contains("let me in"));
    assert!(text(&["trust"]).await.starts_with("no trusted nodes"));
    assert_eq!(text(&["connect", "2", "7", "--message", "hi"]).await, "hi\n");
    let ping = text(&["ping", "agent-b", "--count", "1"]).await;
    assert!(ping.starts_with("1 of 1 answered"), "{ping}");
}

#[tokio::test]
async fn peers_can_be_searched() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let data = user.run(&["peers"]).await.data();
    assert_eq!(data["total"], 1);
    assert_eq!(data["peers"][0]["relay"], false, "unknown keys are passed on");
    assert_eq!(user.run(&["peers", "--search", "4000"]).await.data()["total"], 1);
    let data = user.run(&["peers", "--search", "zzz"]).await.data();
    assert_eq!(data, json!({"peers": null, "total": 0}));
}

#[tokio::test]
async fn a_peer_that_does_not_echo_is_a_failure() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let error = user.run(&["ping", "8", "--timeout", "100ms"]).await.error();
    assert_eq!(error["code"], "timeout");
    assert_eq!(error["message"], "no echo from 0:0000.0000.0008");
    assert_eq!(error["data"]["timeout"], true);
    let error = user.run(&["send", "2", "5998", "--data", "x"]).await.error();
    assert_eq!(error["reason"], "no trust with node 2");
    assert_eq!(error["hint"], "establish trust first: pilotctl handshake 2 \"reason\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recv_takes_what_send_sends() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let receiving = user.run(&["recv", "5000", "--count", "2", "--timeout", "20s"]);
    let sending = async {
        until("recv listens", || daemon.ports().contains(&5000)).await;
        let long = "x".repeat(20_000);
        let first = user.run(&["send", "1", "5000", "--data", "to recv"]).await.data();
        assert_eq!(first["response"], "");
        user.run(&["connect", "1", "5000", "--message", &long]).await.data();
    };
    let (received, ()) = tokio::join!(receiving, sending);
    let data = received.data();
    assert_eq!(data["timeout"], false);
    let first = json!({"seq": 0, "port": 5000, "data": "to recv", "bytes": 7});
    assert_eq!(data["messages"][0], first);
    assert_eq!(data["messages"][1]["bytes"], 20_000);
    let data = user.run(&["recv", "5001", "--timeout", "50ms"]).await.data();
    assert_eq!(data, json!({"messages": null, "timeout": true}));
    let error = user.run(&["recv", "7"]).await.error();
    assert_eq!(error["message"], "listen: bind: daemon: port 7 already bound");
    assert_eq!(error["code"], "connection_failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_shows_datagrams_of_its_port() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let feed = async {
        let source = Address::backbone(NodeId(2)).port(99);
        loop {
            for port in [5006, 5005] {
                let event =
                    Event::ReceiveDatagram { source, destination_port: port, data: b"hello" };
                daemon.datagram(&event);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let listening = user.run(&["listen", "5005", "--count", "2", "--timeout", "20s"]);
    let data = tokio::select! {
        run = listening => run.data(),
        () = feed => unreachable!("it goes on for ever"),
    };
    let message =
        json!({"src_addr": "0:0000.0000.0002", "src_port": 99, "data": "hello", "bytes": 5});
    assert_eq!(data, json!({"messages": [message, message], "timeout": false}));
    let data = user.run(&["listen", "5005", "--count", "1", "--timeout", "50ms"]).await.data();
    assert_eq!(data, json!({"messages": null, "timeout": true}));
    let run = user.run(&["listen", "5005", "--timeout", "50ms"]).await;
    assert_eq!((run.exit, run.stdout.as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_small_and_large() {
    let daemon = MockDaemon::start(Behaviour { send_credit: 100_000, ..Behaviour::default() });
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let write = |name: &str, len: usize| {
        let path = home.join(name);
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("write");
        path.to_str().expect("UTF-8").to_owned()
    };
    let empty = write("empty", 0);
    let small = write("small.bin", 3_000_000);
    let limit = write("limit", 16_777_216 - 2 - 5);
    let large = write("large", 16_777_216 - 2 - 5 + 1);
    for (path, bytes) in
        [(&empty, 0), (&small, 3_000_000), (&limit, 16_777_209), (&large, 16_777_210)]
    {
        let data = user.run(&["send-file", "agent-b", path]).await.data();
        assert_eq!(data["ack"], format!("ACK FILE {bytes} bytes"), "{path}");
        assert_eq!(
            (&data["bytes"], &data["destination"]),
            (&json!(bytes), &json!("0:0000.0000.0002"))
        );
        assert!(data["seconds"].as_f64().is_some() && data["mb_per_s"].as_f64().is_some());
    }
    let data = user.run(&["send-file", "2", &empty]).await.data();
    // SHA-256 of nothing (FIPS 180-4).
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(data["sha256"], nothing);
    assert_eq!(daemon.violations(), 0);
    let error = user.run(&["send-file", "2", home.to_str().expect("UTF-8")]).await.error();
    assert_eq!(error["code"], "invalid_argument");
    drop(daemon);

    // A peer of the published protocol takes what one frame holds.
    let daemon = MockDaemon::start(Behaviour::published());
    let socket = daemon.socket();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("large");
    std::fs::write(&path, vec![0; 17_000_000]).expect("write");
    let user = User::new(dir.path(), &socket);
    let error = user.run(&["send-file", "2", path.to_str().expect("UTF-8")]).await.error();
    assert!(error["message"].as_str().expect("text").contains("up to 16 MiB"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_streams_both_ways_at_once() {
    for behaviour in [
        Behaviour { send_credit: 50_000, ..Behaviour::default() },
        Behaviour { features: Features::TAGGED, ..Behaviour::default() },
        Behaviour::published(),
    ] {
        let daemon = MockDaemon::start(behaviour);
        let (home, socket) = (daemon.dir(), daemon.socket());
        let data = User::new(home, &socket).run(&["bench", "2", "10"]).await.data();
        assert_eq!(
            (&data["sent_bytes"], &data["recv_bytes"]),
            (&json!(10 << 20), &json!(10 << 20))
        );
        assert!(data["send_mbps"].as_f64().is_some_and(|r| r > 0.0), "{data}");
        assert!(data["total_duration_ms"].as_u64() >= data["send_duration_ms"].as_u64(), "{data}");
        assert_eq!(
            (&data["retransmits"], &data["srtt_us"], &data["min_rtt_us"]),
            (&json!(0), &json!(1250), &json!(900)),
            "{data}"
        );
        let samples = data["samples"].as_array().expect("samples");
        let (first, last) = (&samples[0], &samples[samples.len() - 1]);
        assert_eq!((&first["t_ms"], &first["sent"]), (&json!(0), &json!(0)));
        assert_eq!((&last["sent"], &last["received"]), (&json!(10 << 20), &json!(10 << 20)));
        assert_eq!((&last["cwnd"], &last["srtt_us"]), (&json!(65_536), &json!(1250)));
        assert_eq!(daemon.violations(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_for_a_time() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let data = user.run(&["bench", "2", "--duration", "400ms"]).await.data();
    assert!(data["sent_bytes"].as_u64() > Some(0), "{data}");
    assert_eq!(data["sent_bytes"], data["recv_bytes"]);
    assert!(data["send_duration_ms"].as_u64() >= Some(400), "{data}");
    let samples = data["samples"].as_array().expect("samples");
    let at = |key: &str| samples.iter().map(|s| s[key].as_u64()).collect::<Vec<_>>();
    for key in ["t_ms", "sent", "received"] {
        assert!(at(key).is_sorted() && at(key)[0] == Some(0), "{key}: {data}");
    }
    assert!(samples.len() > 2, "taken while it ran: {data}");
    let error = user.run(&["bench", "2", "10", "--duration", "1s"]).await.error();
    assert_eq!(error["code"], "invalid_argument");
    let error = user.run(&["bench", "2", "--duration", "0"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("--duration"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_with_another_congestion_control() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let path = home.join("bench.svg");
    let file = path.to_str().expect("UTF-8");
    let user = User::new(home, &socket);
    let error = user.run(&["bench", "2", "--congestion", "vegas"]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (
            &json!("invalid_argument"),
            &json!("--congestion is \"vegas\", expected cubic, newreno or bbr")
        )
    );
    user.run(&["bench", "2", "1", "--congestion", "bbr", "--plot", file]).await.data();
    let svg = std::fs::read_to_string(&path).expect("the plot");
    assert!(svg.contains("congestion control bbr"), "{svg}");
    // A daemon that does not know the setting.
    for behaviour in
        [Behaviour { features: Features(15), ..Behaviour::default() }, Behaviour::published()]
    {
        let daemon = MockDaemon::start(behaviour);
        let (home, socket) = (daemon.dir(), daemon.socket());
        let user = User::new(home, &socket);
        let error = user.run(&["bench", "2", "--congestion=bbr"]).await.error();
        let message = error["message"].as_str().expect("text");
        assert!(message.starts_with("--congestion bbr: daemon: "), "{error}");
        assert!(error["hint"].as_str().expect("text").contains("--congestion"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_draws_and_replaces_nothing_unasked() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let path = home.join("bench.svg");
    let file = path.to_str().expect("UTF-8");
    let read = || std::fs::read_to_string(&path).expect("the plot");
    let data = user.run(&["bench", "agent-b", "2", "--plot", file]).await.data();
    assert_eq!(data["plot"], file);
    let svg = read();
    roxmltree::Document::parse(&svg).expect("XML");
    for part in ["pilotctl bench agent-b (0:0000.0000.0002)", "congestion control cubic", "1452"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    std::fs::write(&path, "precious").expect("write");
    let error = user.run(&["bench", "2", "--plot", file]).await.error();
    assert_eq!(error["code"], "already_exists");
    assert!(error["hint"].as_str().expect("text").contains("--force"), "{error}");
    assert_eq!(read(), "precious");
    assert_eq!(daemon.connections(), 0, "it is refused before anything is sent");
    user.run(&["bench", "2", "--plot", file, "--force"]).await.data();
    assert!(read().starts_with("<svg "));
    let nowhere = home.join("no/such/x.svg");
    let error = user.run(&["bench", "2", "--plot", nowhere.to_str().expect("UTF-8")]).await.error();
    assert_eq!(error["code"], "not_found");
    let error = user.run(&["bench", "2", "--plot", home.to_str().expect("UTF-8")]).await.error();
    assert_eq!(error["code"], "invalid_argument");
    let error = user.run(&["bench", "2", "--force"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("--plot"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_text_without_a_terminal_is_the_result_alone() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let run = User::new(home, &socket).run(&["--json=false", "bench", "2", "1"]).await;
    assert_eq!((run.exit, run.stderr.as_str()), (0, ""), "{run:?}");
    let names: Vec<&str> =
        run.stdout.lines().map(|l| l.split("  ").next().unwrap_or_default()).collect();
    assert_eq!(names, ["sent", "echoed", "retransmitted", "round trip", "path"], "{run:?}");
    assert!(run.stdout.contains(" 1048576 bytes in "), "{run:?}");
    assert!(run.stdout.contains("1.25 ms, shortest 900 us\n"), "{run:?}");
    assert!(run.stdout.ends_with("MTU 1452 bytes, congestion control cubic\n"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_in_full() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let client = pilot_sdk::Client::connect_to(&socket).await.expect("connects");
    let stream = client.dial("2:7").await.expect("dials");
    let id = stream.id().to_string();
    let data = user.run(&["connections", &id]).await.data();
    assert_eq!(data["connection"]["id"], stream.id());
    assert_eq!(data["connection"]["path_mtu"], 1452);
    let run = user.run(&["--json=false", "connections", &id]).await;
    let fields: Vec<(&str, &str)> = run
        .stdout
        .lines()
        .filter_map(|l| l.split_once("  ").map(|(name, value)| (name, value.trim_start())))
        .collect();
    for field in [
        ("remote", "0:0000.0000.0002:7"),
        ("congestion", "cubic"),
        ("path MTU", "1452 bytes"),
        ("segment", "-"),
        ("shortest", "900 us"),
        // A key that this version does not know.
        ("no_delay", "null"),
    ] {
        assert!(fields.contains(&field), "{field:?}: {run:?}");
    }
    assert!(run.stdout.contains("1.25 ms, varies by 0 ms\n"), "{run:?}");
    let table = user.run(&["--json=false", "connections"]).await.stdout;
    assert!(table.starts_with("CONNECTION  PORT ") && table.contains("1.25 ms"), "{table}");
    let error = user.run(&["connections", "99"]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("not_found"), &json!("no connection 99"))
    );
    let error = user.run(&["connections", "x"]).await.error();
    assert_eq!(error["code"], "invalid_argument");
}

#[tokio::test]
async fn received_and_inbox() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    for command in ["received", "inbox"] {
        assert_eq!(user.run(&[command]).await.data()["total"], 0);
        assert_eq!(user.run(&[command, "--clear"]).await.error()["code"], "not_found");
        std::fs::create_dir(home.path().join(command)).expect("create");
    }
    std::fs::write(home.path().join("received/b.txt"), "12345").expect("write");
    std::fs::write(home.path().join("received/a.txt"), "1").expect("write");
    std::fs::write(home.path().join("received/.a.part"), "1").expect("write");
    let data = user.run(&["received"]).await.data();
    assert_eq!(data["total"], 2);
    assert_eq!(
        (&data["files"][0]["name"], &data["files"][1]["bytes"]),
        (&json!("a.txt"), &json!(5))
    );
    let message = r#"{"type":"TEXT","from":"0:0000.0000.0001","data":"hello","bytes":5}"#;
    std::fs::write(home.path().join("inbox/TEXT-1.json"), message).expect("write");
    let data = user.run(&["inbox"]).await.data();
    assert_eq!((&data["total"], &data["messages"][0]["data"]), (&json!(1), &json!("hello")));
    assert_eq!(user.run(&["inbox", "--clear"]).await.data(), json!({"cleared": 1}));
    assert_eq!(user.run(&["received", "--clear"]).await.data(), json!({"cleared": 2}));
    assert!(home.path().join("received/.a.part").exists(), "what arrives is left alone");
}

#[tokio::test]
async fn hostnames_are_saved() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let data = user.run(&["set-hostname", "cli-two"]).await.data();
    assert_eq!(data, json!({"hostname": "cli-two", "node_id": 1}));
    assert_eq!(user.run(&["config"]).await.data()["hostname"], "cli-two");
    assert_eq!(user.run(&["clear-hostname"]).await.data(), json!({"hostname": ""}));
    assert_eq!(user.run(&["config"]).await.data().get("hostname"), None);
    let data = user.run(&["disconnect", "999"]).await.data();
    assert_eq!(data, json!({"conn_id": 999}));
}

#[tokio::test]
async fn completions_and_context_cover_every_command() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    let context = user.run(&["context"]).await.data();
    let commands = context["commands"].as_object().expect("an object");
    for key in ["version", "error_codes", "global_flags", "environment", "config_file"] {
        assert!(!context[key].is_null(), "{key}");
    }
    for command in ["ping", "daemon start", "send-file", "completions"] {
        let entry = &commands[command];
        assert!(entry["args"].is_string() && entry["description"].is_string(), "{command}");
        assert!(entry["returns"].is_string(), "{command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let run = user.run(&["completions", shell]).await;
        assert_eq!(run.exit, 0);
        for name in commands.keys().flat_map(|name| name.split(' ')) {
            assert!(run.stdout.contains(name), "{shell}: {name}");
        }
        let data = user.run(&["--json", "completions", shell]).await.data();
        assert_eq!(data["script"], run.stdout);
    }
    assert_eq!(user.run(&["completions", "tcsh"]).await.error()["code"], "invalid_argument");
}

#[tokio::test]
async fn a_pipe_is_no_file() {
    let home = tempfile::tempdir().expect("temporary directory");
    let user = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    let pipe = home.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let error = user.run(&["send-file", "2", pipe.to_str().expect("UTF-8")]).await.error();
    assert_eq!(error["code"], "invalid_argument");
}

#[tokio::test]
async fn plugins_are_listed_and_explained() {
    let daemon = MockDaemon::start(Behaviour::default());
    let home = tempfile::tempdir().expect("temporary directory");
    let socket = daemon.socket();
    let user = User::new(home.path(), &socket);
    let data = user.run(&["plugins"]).await.data();
    assert_eq!(data["plugins"][1]["name"], "echo");
    let run = user.run(&["--json=false", "plugins"]).await;
    let lines: Vec<Vec<&str>> =
        run.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..5], ["broken", "backing-off", "2000", "1.0.0", "3"], "{run:?}");
    assert_eq!(lines[2][..5], ["echo", "running", "7", "1.0.0", "3"], "{run:?}");
    assert_eq!(user.run(&["plugins", "echo"]).await.data()["generation"], 3);
    let run = user.run(&["--json=false", "plugins", "broken"]).await;
    for part in [
        "kept (file) at 2026-11-20T12:10:31Z",
        "generation 2 has 1 streams",
        "last error:\n  broken.lua:3: no such field\n    in serve (line 3)",
        "1.25 s",
    ] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    let error = user.run(&["plugins", "other"]).await.error();
    assert_eq!(
        (&error["code"], &error["hint"]),
        (&json!("not_found"), &json!("see: pilotctl plugins"))
    );
    let published = MockDaemon::start(Behaviour::published());
    let socket = published.socket();
    let error = User::new(home.path(), &socket).run(&["plugins"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("knows no plugins"), "{error}");
}

#[tokio::test]
async fn a_reload_that_fails_is_a_failure_that_tells_all() {
    let home = tempfile::tempdir().expect("temporary directory");
    let daemon = MockDaemon::start(Behaviour::default());
    let socket = daemon.socket();
    let data = User::new(home.path(), &socket).run(&["reload"]).await.data();
    assert_eq!(data["plugins"][0]["result"], "reloaded");
    let daemon = MockDaemon::start(Behaviour { reload_fails: true, ..Behaviour::default() });
    let socket = daemon.socket();
    let error = User::new(home.path(), &socket).run(&["reload"]).await.error();
    assert_eq!(error["message"], "could not be reloaded: broken");
    assert_eq!(error["reason"], "broken: broken.lua:3: no such field");
    assert_eq!(error["hint"], "see: pilotctl plugins broken");
    assert_eq!(error["data"]["plugins"][1]["result"], "unchanged");
}

#[tokio::test]
async fn a_webhook_is_kept_and_applied() {
    let home = tempfile::tempdir().expect("temporary directory");
    let daemon = MockDaemon::start(Behaviour::default());
    let socket = daemon.socket();
    let user = User::new(home.path(), &socket);
    let data = user.run(&["set-webhook", "https://h/x"]).await.data();
    assert_eq!(data, json!({"webhook": "https://h/x", "applied": true}));
    assert_eq!(user.run(&["config"]).await.data()["webhook"], "https://h/x");
    let absent = User::new(home.path(), Path::new("/nonexistent/p.sock"));
    let data = absent.run(&["clear-webhook"]).await.data();
    assert_eq!(data, json!({"webhook": "", "applied": false}));
    assert!(user.run(&["config"]).await.data()["webhook"].is_null());
}
