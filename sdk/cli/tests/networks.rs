//! Networks, invitations, tokens, broadcasts and the audit log, against a
//! daemon in memory and a registry that answers what a test wants.

mod common;
#[path = "../../client/tests/mock/mod.rs"]
mod mock;

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Run, User};
use mock::{Behaviour, MockDaemon};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SECRET: &str = "pnt_0123456789abcdef";
const ADMIN: &str = "an administrator's own token";

/// A registry with one network, as the wire describes its answers.
fn registry(request: &Value) -> Value {
    let membership = json!({"network": 3, "name": "ops", "address": "3:0003.0000.0001",
        "joined": 1_795_176_631, "tags": ["db"], "may_broadcast": true});
    let network = json!({"id": 3, "name": "ops", "members": 2, "join_rule": "token&invite",
        "join": {"combine": "all", "rules": [{"rule": "token"},
            {"rule": "invite", "config": {"by": "owner"}}]},
        "broadcast": {"tagged": "db"}, "owner": 1, "created": 1_795_176_631,
        "membership": membership});
    let backbone = json!({"id": 0, "name": "backbone", "members": 7, "join_rule": "open",
        "broadcast": "nobody", "created": 0});
    let invitation = json!({"id": 12, "network": 3, "name": "ops", "to": {"node": 7}, "from": 1,
        "expires": 4_000_000_000_u64});
    let token = json!({"id": "t1", "network": 3, "created": 1_795_176_631, "uses_left": 2});
    let unknown = ["network", "name"].iter().any(|key| request[key] == "nowhere");
    match request["type"].as_str().expect("a type") {
        _ if unknown => json!({"type": "error", "error": "request failed",
            "code": "unknown_network", "message": "there is no network \"nowhere\""}),
        "network_create" | "network_update" => json!({"type": "network_ok", "network": network}),
        "network_list" => json!({"type": "network_list_ok", "networks": [backbone, network]}),
        "network_join" if request["proofs"]["token"] == "wrong" => json!({"type": "error",
            "error": "request failed", "code": "not_admitted", "hint": "ask for another token",
            "message": "network 3 does not admit this node: no such token"}),
        "network_join" => json!({"type": "network_join_ok", "membership": membership}),
        "network_members" if request["after"] == 0 => json!({"type": "network_members_ok",
            "members": [{"node_id": 1, "address": "3:0003.0000.0001", "hostname": "agent-a",
                "registered": true, "joined": 5, "tags": ["db"], "rule": "token"}], "next": 1}),
        "network_members" => json!({"type": "network_members_ok",
            "members": [{"node_id": 2, "address": "3:0003.0000.0002", "joined": 6,
                "external_identity": "spiffe://x/\u{1b}y", "rule": "invite"}]}),
        "token_create" => json!({"type": "token_create_ok", "token": token, "secret": SECRET}),
        "token_list" => json!({"type": "token_list_ok", "tokens": [token]}),
        "invite" => json!({"type": "invite_ok", "invitation": invitation}),
        "invitation_list" => {
            json!({"type": "invitation_list_ok", "invitations": [invitation]})
        }
        "node_revoke" => json!({"type": "node_revoke_ok", "node_id": request["node_id"]}),
        "audit_query" => audit(request),
        "network_status" => json!({"type": "network_status_ok", "networks": [
            {"name": "ops", "id": 3, "state": "joined"},
            {"name": "lab", "state": "refused", "reason": "no\nsuch token"}]}),
        _ => json!({"type": "done_ok", "network_id": 3}),
    }
}

/// Three records, two at a time.
fn audit(request: &Value) -> Value {
    let record = |seq: u64| {
        json!({"seq": seq, "time": 1_795_176_631, "command": seq,
            "actor": {"kind": "node", "node_id": 7, "owner": "ops"}, "source": "10.0.0.1:5",
            "operation": "network_join", "object": "node 7 in network 3",
            "result": if seq == 2 { "denied" } else { "allowed" },
            "code": if seq == 2 { "not_admitted" } else { "" }, "rule": "token"})
    };
    let after = request["after"].as_u64().unwrap_or(0);
    let limit = request["limit"].as_u64().expect("a limit").min(2);
    let seqs: Vec<u64> = (after + 1..=3).take(usize::try_from(limit).expect("small")).collect();
    let next = seqs.last().copied().filter(|last| *last < 3);
    let records: Vec<Value> = seqs.into_iter().map(record).collect();
    json!({"type": "audit_query_ok", "records": records, "next": next})
}

fn daemon() -> MockDaemon {
    MockDaemon::start(Behaviour { registry, ..Behaviour::default() })
}

/// A registry that is asked directly, and what it was asked.
async fn direct() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut len = [0; 4];
                while stream.read_exact(&mut len).await.is_ok() {
                    let mut body = vec![0; u32::from_be_bytes(len) as usize];
                    stream.read_exact(&mut body).await.expect("body");
                    let request: Value = serde_json::from_slice(&body).expect("JSON");
                    let answer = match request["admin_token"] == ADMIN {
                        true => registry(&request).to_string(),
                        false => json!({"type": "error", "error": "request failed",
                            "code": "bad_admin_token",
                            "message": "the admin token is not right"})
                        .to_string(),
                    };
                    all.lock().expect("not poisoned").push(request);
                    let len = u32::try_from(answer.len()).expect("short").to_be_bytes();
                    stream.write_all(&[&len, answer.as_bytes()].concat()).await.expect("write");
                }
            });
        }
    });
    (address, asked)
}

async fn as_admin(user: &User<'_>, token: &str, args: &[&str]) -> Run {
    let output = user.command(args).env("PILOT_ADMIN_TOKEN", token).output().await.expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let exit = output.status.code().unwrap_or(-1);
    Run { exit, stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[tokio::test]
async fn requests_are_what_was_typed() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let none = json!({"combine": "any", "rules": [{"rule": "invite"}]});
    for (line, expected) in [
        (
            "network create ops",
            json!({"type": "network_create", "name": "ops", "join": none,
            "broadcast": "nobody"}),
        ),
        (
            "network create ops --rule token --rule x --all --rule-config x={\"a\":1} --broadcast tag:db",
            json!({"type": "network_create", "name": "ops", "broadcast": {"tagged": "db"},
                "join": {"combine": "all", "rules": [{"rule": "token"},
                    {"rule": "x", "config": {"a": 1}}]}}),
        ),
        (
            "network update 3 --broadcast members",
            json!({"type": "network_update", "network": 3, "broadcast": "members"}),
        ),
        ("network delete ops", json!({"type": "network_delete", "network": "ops"})),
        ("network leave 3", json!({"type": "network_leave", "network": 3})),
        (
            "network remove ops 0:0000.0000.0007",
            json!({"type": "network_remove", "network": "ops", "node_id": 7}),
        ),
        (
            "network join ops --proof x={\"a\":1} --token abc",
            json!({"type": "network_join", "network": "ops",
                "proofs": {"x": {"a": 1}, "token": "abc"}}),
        ),
        (
            "network token create ops --uses 2 --expires never --tag db --tag eu",
            json!({"type": "token_create", "network": "ops", "uses": 2, "expires": null,
                "tags": ["db", "eu"]}),
        ),
        (
            "network token revoke ops t1",
            json!({"type": "token_revoke", "network": "ops", "id": "t1"}),
        ),
        ("network invitations", json!({"type": "invitation_list", "network": null})),
        ("network decline 12", json!({"type": "invitation_decline", "id": 12})),
        ("network uninvite 12", json!({"type": "invitation_revoke", "id": 12})),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        user.run(&words).await.data();
        assert_eq!(daemon.asked().last(), Some(&expected), "{line}");
    }
    // The inviting node signs the network's number.
    user.run(&["network", "invite", "ops", "owner:a team", "--expires", "1h"]).await.data();
    let asked = daemon.asked().pop().expect("asked");
    assert_eq!((&asked["network"], &asked["to"]), (&json!(3), &json!({"owner": "a team"})));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let left = asked["expires"].as_u64().expect("a time") - now;
    assert!((3000..=3600).contains(&left), "{asked}");
}

#[tokio::test]
async fn mistakes_are_found_before_anything_is_asked() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    for (line, message) in [
        ("network update ops", "nothing to change"),
        ("network update ops --all", "--all is for --rule, which is not there"),
        ("network create ops --rule a --rule-config b=1", "--rule-config b: there is no --rule b"),
        ("network create ops --broadcast all", "invalid --broadcast \"all\""),
        ("network join ops --token a --token-env B", "--token and --token-env exclude each other"),
        (
            "network join ops --proof token=\"a\" --token b",
            "a token and --proof token exclude each other",
        ),
        ("network token create ops --uses 0", "invalid --uses 0: it would let nobody in"),
        ("network invite ops 7 --expires never", "an invitation has to end"),
        ("node revoke 7", "--reason is missing"),
        ("node revoke 7 --reason left", "this is for administrators of the registry"),
        ("audit", "this is for administrators of the registry"),
        ("fleet --nodes 2 --trust-pairs 9", "--trust-pairs: 2 nodes make 0 pairs at most"),
        ("fleet --nodes 2 --watchers 3", "--watchers 3: there are 2 nodes"),
        ("fleet --nodes 2 --networks 1", "networks are made by an administrator"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let error = user.run(&words).await.error();
        assert_eq!(error["message"], message, "{line}");
        assert_eq!(error["code"], "invalid_argument", "{line}");
    }
    assert_eq!(daemon.asked(), Vec::<Value>::new());
}

#[tokio::test]
async fn text_for_people() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let text = async |line: &str| {
        let words: Vec<&str> = ["--json=false"].into_iter().chain(line.split(' ')).collect();
        let run = user.run(&words).await;
        assert_eq!(run.exit, 0, "{run:?}");
        run.stdout
    };
    assert_eq!(
        text("network list").await,
        "ID  NAME      MEMBERS  RULE          BROADCAST  OWNER          THIS NODE\n\
         0   backbone  7        open          nobody     administrator  -\n\
         3   ops       2        token&invite  tag:db     node 1         member\n"
    );
    assert_eq!(
        text("network rules ops").await,
        "all of them have to let a node in\n\n\
         RULE    CONFIGURATION\n\
         token   -\n\
         invite  {\"by\":\"owner\"}\n"
    );
    assert!(text("network rules 0").await.starts_with("open\n\nonly its owner"));
    assert_eq!(
        text("network members ops").await,
        "NODE  ADDRESS           HOSTNAME  RULE    ENDS   TAGS  IDENTITY       STATE\n\
         1     3:0003.0000.0001  agent-a   token   never  db    -              registered\n\
         2     3:0003.0000.0002  -         invite  never  -     spiffe://x/\u{fffd}y  away\n"
    );
    assert_eq!(
        text("network join ops --wait").await,
        "network    ops\nnumber     3\naddress    3:0003.0000.0001\nends       never\n\
         tags       db\nidentity   -\nbroadcast  yes\n"
    );
    assert_eq!(
        text("network status").await,
        "NETWORK  ID  ENDS   NEXT TRY  STATE\n\
         ops      3   never  -         joined\n\
         lab      -   never  -         refused: no such token\n"
    );
    assert!(
        text("network invitations")
            .await
            .starts_with("INVITATION  NETWORK  NAME  FOR     FROM    ENDS ")
    );
    assert_eq!(
        text("network token list ops").await.lines().nth(1).map(str::trim_end),
        Some("t1     2026-11-20T12:10:31Z  never  2          -")
    );
    let info = text("info").await;
    let up = "registry     up, session open, for 1m 1s, 127.0.0.1:9000\n";
    assert!(info.contains(up), "{info}");
    assert!(info.contains("lab      -   never  -         refused: the token is used up"), "{info}");
}

#[tokio::test]
async fn secrets_are_shown_once_and_never_in_errors() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let run = user.run(&["--json=false", "network", "token", "create", "ops"]).await;
    assert_eq!(run.stdout.matches(SECRET).count(), 1, "{run:?}");
    assert_eq!(run.stderr, "this secret is not shown again:\n");
    let listed = user.run(&["network", "token", "list", "ops"]).await;
    assert!(!listed.stdout.contains(SECRET), "{listed:?}");
    // A refused token is not repeated, whichever way it came.
    std::fs::write(home.join("token"), "wrong\n").expect("write");
    let path = home.join("token");
    let path = path.to_str().expect("UTF-8");
    for args in [
        &["network", "join", "ops", "--token", "wrong"][..],
        &["network", "join", "ops", "--token-file", path],
    ] {
        let run = user.run(&[&["--json=false"], args].concat()).await;
        assert_eq!(
            run.stderr,
            "error: network join: registry: network 3 does not admit this node: no such token \
             [not_admitted]\nhint:  ask for another token\n"
        );
    }
    for args in [
        &["network", "join", "ops", SECRET][..],
        &["network", "join", "ops", "--proof", &format!("x={SECRET}")],
        &["network", "join", "ops", "--token-env", "NOT_SET"],
    ] {
        let error = user.run(args).await.error();
        assert!(!error.to_string().contains(SECRET), "{error}");
    }
    let help = user.run(&["network", "join", "--help"]).await.stdout;
    assert!(help.contains("list of processes"), "{help}");
}

#[tokio::test]
async fn refusals_have_message_code_and_hint() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let error = user.run(&["network", "delete", "nowhere"]).await.error();
    assert_eq!(error["code"], "unknown_network");
    assert_eq!(error["message"], "network delete: registry: there is no network \"nowhere\"");
    assert_eq!(error["hint"], "see: pilotctl network list");
    // A published registry says nothing but that.
    let published = MockDaemon::start(Behaviour::default());
    let socket = published.socket();
    let error = User::new(home, &socket).run(&["network", "list"]).await.error();
    assert_eq!(error["message"], "network list: registry: request failed");
    // A daemon of the published protocol cannot be asked at all.
    let published = MockDaemon::start(Behaviour::published());
    let socket = published.socket();
    let error = User::new(home, &socket).run(&["network", "list"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("knows no networks"), "{error}");
}

#[tokio::test]
async fn an_administrator_asks_the_registry_itself() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let mut user = User::new(home, &socket);
    let (address, asked) = direct().await;
    user.registry = address;
    let data = as_admin(&user, ADMIN, &["network", "list"]).await.data();
    assert_eq!(data["networks"][1]["name"], "ops");
    let args = ["node", "revoke", "7", "--reason", "stolen"];
    assert_eq!(as_admin(&user, ADMIN, &args).await.data()["node_id"], 7);
    assert_eq!(
        asked.lock().expect("not poisoned").pop(),
        Some(json!({"type": "node_revoke", "node_id": 7, "reason": "stolen",
            "admin_token": ADMIN}))
    );
    let flag = format!("--admin-token={ADMIN}");
    user.run(&["network", "members", "ops", &flag]).await.data();
    assert_eq!(daemon.asked(), Vec::<Value>::new(), "the daemon was asked");
    let wrong = as_admin(&user, "a guess at it, no more", &["network", "list"]).await.error();
    assert_eq!(wrong["code"], "bad_admin_token");
    assert!(wrong["hint"].as_str().expect("a hint").contains("PILOT_ADMIN_TOKEN"), "{wrong}");
    assert!(!wrong.to_string().contains("a guess"), "{wrong}");
    // What only a node can do goes through the daemon all the same.
    as_admin(&user, ADMIN, &["network", "leave", "ops"]).await.data();
    assert_eq!(daemon.asked().len(), 1);
    let error = user.run(&["lookup", "2", "--fingerprint", "abc"]).await.error();
    assert!(error["message"].as_str().expect("text").contains("--fingerprint"), "{error}");
}

#[tokio::test]
async fn the_audit_log_comes_page_by_page_as_lines() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut user = User::new(home.path(), std::path::Path::new("/nonexistent/p.sock"));
    let (address, asked) = direct().await;
    user.registry = address;
    let run = as_admin(&user, ADMIN, &["audit", "--actor", "7", "--result", "denied"]).await;
    let seqs: Vec<Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["seq"].take())
        .collect();
    assert_eq!((run.exit, seqs), (0, vec![json!(1), json!(2), json!(3)]), "{:?}", run.stderr);
    {
        let asked = asked.lock().expect("not poisoned");
        assert_eq!(asked.len(), 2);
        assert_eq!((&asked[0]["actor"], &asked[0]["result"]), (&json!("7"), &json!("denied")));
        assert_eq!((&asked[0]["after"], &asked[1]["after"]), (&Value::Null, &json!(2)));
    }
    let run = as_admin(&user, ADMIN, &["--json=false", "audit", "--limit", "2"]).await;
    assert_eq!(
        run.stdout.lines().nth(1),
        Some(
            "      2  2026-11-20T12:10:31Z  denied   network_join          node 7 (ops)              \
             node 7 in network 3  code=not_admitted  rule=token  from 10.0.0.1:5"
        )
    );
    assert_eq!(run.stderr, "2 shown, there may be more: see --limit and --since\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_goes_to_a_network() {
    let daemon = daemon();
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let mut inbox = pilot_sdk::Client::connect_to(&socket).await.expect("connects").datagrams();
    let data = user.run(&["broadcast", "ops", "5000", "hello all"]).await.data();
    assert_eq!(data, json!({"network": 3, "port": 5000, "bytes": 9}));
    let datagram = inbox.recv().await.expect("arrives");
    assert_eq!((datagram.destination_port, &datagram.data[..]), (5000, &b"hello all"[..]));
    let error = user.run(&["broadcast", "9", "5000", "x"]).await.error();
    assert_eq!(error["message"], "broadcast: daemon: sendto: broadcast is not available");
    let error = user.run(&["broadcast", "lab", "5000", "x"]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("not_found"), &json!("there is no network lab"))
    );
}
