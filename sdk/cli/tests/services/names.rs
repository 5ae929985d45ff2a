//! `resolve` and `name-register`.

use std::path::Path;
use std::sync::{Arc, Mutex};

use pilot_sdk::Client;
use pilot_wire::service::nameserver::{Answer, PORT, Request, ServiceLine};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::User;
use crate::mock::{Behaviour, MockDaemon};

/// A nameserver that knows `web` and one service, takes every registration but
/// that of node 9, and notes what it was asked.
async fn nameserver(socket: &Path) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let client = Client::connect_to(socket).await.expect("connects");
    let listener = client.listen(PORT).await.expect("listens");
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.expect("a request");
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let answer = match Request::parse(&text) {
                Ok(Request::QueryA { name }) if name == "web" => {
                    Answer::A { name, address: "0:0000.0000.0001".parse().expect("an address") }
                }
                Ok(Request::QueryA { name }) if name == "odd" => Answer::Ok,
                Ok(Request::QueryA { name }) => Answer::no_name(&name),
                Ok(Request::QueryN { name }) => Answer::N { name, network: 7 },
                Ok(Request::QueryS { port: 80, .. }) => Answer::S(vec![ServiceLine {
                    name: "api".to_owned(),
                    address: "1:0001.0000.0002".parse().expect("an address"),
                    port: 80,
                }]),
                Ok(Request::QueryS { .. }) => Answer::S(Vec::new()),
                Ok(Request::RegisterA { address, .. }) if address.node.0 == 9 => {
                    Answer::foreign_address()
                }
                Ok(_) => Answer::Ok,
                Err(e) => Answer::Error(e.to_string()),
            };
            notes.lock().expect("notes").push(text);
            stream.write_all(answer.to_string().as_bytes()).await.expect("writes");
        }
    });
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_registered_and_resolved() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let asked = nameserver(&socket).await;
    let server = "0:0000.0000.0002";
    let own = "0:0000.0000.0001";
    for (args, data) in [
        (
            &["resolve", "2", "A", "web"][..],
            json!({"nameserver": server, "record": "A", "name": "web", "address": own}),
        ),
        (
            &["resolve", "2", "n", "lab"],
            json!({"nameserver": server, "record": "N", "name": "lab", "network": 7}),
        ),
        (
            &["resolve", "2", "S", "1", "80"],
            json!({"nameserver": server, "record": "S", "network": 1, "port": 80, "services":
                [{"name": "api", "address": "1:0001.0000.0002", "port": 80}]}),
        ),
        (
            &["resolve", "2", "S", "1", "81"],
            json!({"nameserver": server, "record": "S", "network": 1, "port": 81, "services": []}),
        ),
        (
            &["name-register", "2", "A", "me"],
            json!({"nameserver": server, "record": "A", "name": "me", "address": own, "lives_secs": 300}),
        ),
        (
            &["name-register", "2", "A", "me", "0:0000.0000.0003"],
            json!({"nameserver": server, "record": "A", "name": "me", "address": "0:0000.0000.0003", "lives_secs": 300}),
        ),
        (
            &["name-register", "2", "N", "lab", "7"],
            json!({"nameserver": server, "record": "N", "name": "lab", "network": 7, "lives_secs": 300}),
        ),
        (
            &["name-register", "2", "S", "api", "1", "80"],
            json!({"nameserver": server, "record": "S", "name": "api", "address": own, "network": 1, "port": 80, "lives_secs": 300}),
        ),
    ] {
        assert_eq!(user.run(args).await.data(), data, "{args:?}");
    }
    let asked = std::mem::take(&mut *asked.lock().expect("notes"));
    assert_eq!(
        asked,
        [
            "QUERY A web",
            "QUERY N lab",
            "QUERY S 1 80",
            "QUERY S 1 81",
            "REGISTER A me 0:0000.0000.0001",
            "REGISTER A me 0:0000.0000.0003",
            "REGISTER N lab 7",
            "REGISTER S api 0:0000.0000.0001 1 80",
        ]
    );
    let run = user.run(&["--json=false", "resolve", "2", "A", "web"]).await;
    assert_eq!(run.stdout, "0:0000.0000.0001\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_nameserver_refuses() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let error = user.run(&["resolve", "2", "A", "web"]).await.error();
    assert_eq!(error["code"], "connection_failed", "nobody listens there");
    let _asked = nameserver(&socket).await;
    let error = user.run(&["resolve", "2", "A", "nope"]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("not_found"), &json!("name \"nope\" not found"))
    );
    let error = user.run(&["name-register", "2", "A", "x", "0:0000.0000.0009"]).await.error();
    assert_eq!(error["reason"], "cannot register address for another node");
    let error = user.run(&["resolve", "2", "A", "odd"]).await.error();
    assert_eq!(error["code"], "connection_failed");
    for wrong in [
        &["resolve", "2", "X", "web"][..],
        &["resolve", "2", "A", "two words"],
        &["resolve", "2", "A", "web", "more"],
        &["resolve", "2", "S", "1"],
        &["resolve", "2", "S", "1", "70000"],
        &["name-register", "2", "N", "lab"],
        &["name-register", "2", "S", "api", "1"],
        &["name-register", "2", "A", "me", "nowhere"],
        &["name-register", "2", "A", "me", "0:0000.0000.0003", "more"],
    ] {
        assert_eq!(user.run(wrong).await.error()["code"], "invalid_argument", "{wrong:?}");
    }
}
