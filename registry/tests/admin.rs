//! The administration over HTTP: what anybody sees, what administrators see and
//! do, its bounds, and its end.

mod client;
mod site;

use std::io::{BufRead as _, BufReader, Write as _};

use client::networks::{Node, unix_now};
use client::plugins::shipped;
use client::{Client, Identity};
use pilot_registry::Config;
use serde_json::{Value, json};
use site::{Site, TOKEN, config, connect, get, head, send};

/// Nodes 1 to 3 are public, 4 and 5 are not; 1 trusts 2 and 4, both ways.
fn populated(site: &Site) -> (Client, Vec<Identity>) {
    let mut client = Client::connect(site.addr);
    let keys: Vec<Identity> = (1..=5).map(Identity::new).collect();
    for (n, key) in (1..).zip(&keys) {
        assert_eq!(client.register(key), n);
    }
    for (n, key) in (1..=3).zip(&keys) {
        ok(&client.ask(key.signed("set_visibility", n, json!({ "public": true }))));
    }
    ok(&client.ask(keys[0].signed("set_hostname", 1, json!({ "hostname": "ada" }))));
    ok(&client.ask(keys[0].signed("set_tags", 1, json!({ "tags": ["gpu", "eu"] }))));
    ok(&client.ask(keys[3].signed("set_tags", 4, json!({ "tags": ["secret"] }))));
    ok(&client.ask(keys[1].signed("set_task_exec", 2, json!({ "enabled": true }))));
    for (a, b) in [(1, 2), (2, 1), (1, 4), (4, 1)] {
        let key = &keys[a as usize - 1];
        ok(&client.ask(key.about("report_trust", "report_trust", a, b, json!({}))));
    }
    (client, keys)
}

fn ok(reply: &Value) {
    assert!(reply["type"].as_str().unwrap().ends_with("_ok"), "{reply}");
}

fn address(n: u32) -> String {
    pilot_wire::Address::backbone(pilot_wire::NodeId(n)).to_string()
}

#[test]
fn anybody_sees_counts_and_what_is_public() {
    let site = Site::start(config());
    let empty = site.get("/api/stats").json();
    for list in ["nodes", "edges"] {
        assert_eq!(empty[list], json!([]));
    }
    let _nodes = populated(&site);
    // What anybody sees is kept for a moment.
    client::eventually("the nodes are counted", || {
        site.get("/api/stats").json()["total_trust_links"] == 2
    });
    let reply = site.get("/api/stats");
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let stats = reply.json();
    let published = [
        "total_nodes",
        "active_nodes",
        "total_trust_links",
        "total_requests",
        "unique_tags",
        "task_executors",
        "networks",
        "nodes",
        "edges",
        "uptime_secs",
    ];
    assert!(published.iter().all(|key| !stats[key].is_null()), "{stats}");
    assert_eq!((&stats["total_nodes"], &stats["active_nodes"]), (&json!(5), &json!(5)));
    assert_eq!((&stats["unique_tags"], &stats["task_executors"]), (&json!(3), &json!(1)));
    assert_eq!(
        stats["networks"],
        json!([{ "id": 0, "name": "backbone", "members": 5, "online_members": 5 }])
    );
    let nodes = stats["nodes"].as_array().unwrap();
    let addresses: Vec<_> = nodes.iter().map(|n| n["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, [address(1), address(2), address(3)]);
    let first = &nodes[0];
    assert_eq!(first["tags"], json!(["gpu", "eu"]));
    assert_eq!((&first["online"], &first["trust_links"]), (&json!(true), &json!(2)));
    assert_eq!((&first["task_exec"], &first["polo_score"]), (&json!(false), &json!(0)));
    assert_eq!(nodes[2]["tags"], json!([]));
    assert_eq!(stats["edges"], json!([{ "source": address(1), "target": address(2) }]));
    assert!(!reply.text().contains("secret") && !reply.text().contains(&address(4)));

    let all = site.admin("/api/stats").json();
    assert_eq!(all["nodes"].as_array().unwrap().len(), 5);
    assert_eq!(all["edges"].as_array().unwrap().len(), 2);
    site.end();
}

#[test]
fn badges_are_as_published() {
    let site = Site::start(config());
    for (name, label, colour) in [
        ("nodes", "online nodes", "#9f9f9f"),
        ("requests", "requests", "#a855f7"),
        ("tags", "tags", "#9f9f9f"),
    ] {
        let reply = site.get(&format!("/api/badge/{name}"));
        assert_eq!(reply.header("content-type"), Some("image/svg+xml"));
        assert_eq!(reply.header("cache-control"), Some("no-cache, no-store, must-revalidate"));
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        assert!(reply.text().contains(label) && reply.text().contains(colour), "{reply:?}");
    }
    let _nodes = populated(&site);
    for (name, text) in [
        ("nodes", "online nodes: 5<"),
        ("trust", "trust links: 2<"),
        ("tags", "tags: 3<"),
        ("task-executors", "task executors: 1<"),
    ] {
        client::eventually(text, || site.get(&format!("/api/badge/{name}")).text().contains(text));
    }
    assert_eq!(site.get("/api/badge/other").status, 404);
    site.end();
}

#[test]
fn addresses_and_methods_that_are_not_there_are_refused() {
    let site = Site::start(config());
    for path in ["/other", "/api", "/api/v1", "/api/v1/nodes/1/2", "/debug/pprof/", "//", "/%2e"] {
        let reply = site.get(path);
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.json()["code"], "unknown_path");
    }
    let reply = send(site.http, "DELETE", "/api/stats", &[], b"");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    let reply = get(site.http, "/api/v1/request", &[]);
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let reply = send(site.http, "HEAD", "/healthz", &[], b"");
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_eq!(site.admin("/api/v1/nodes?limt=3").status, 400);
    assert_eq!(site.admin("/api/v1/nodes?limit=0").status, 400);
    assert_eq!(site.admin("/api/v1/nodes/x").status, 400);
    assert_eq!(site.get("/").header("content-type"), Some("text/html; charset=utf-8"));
    site.end();
}

#[test]
fn metrics_are_for_this_machine_and_for_administrators() {
    let site = Site::start(config());
    let (mut client, _) = populated(&site);
    client.ask(json!({ "type": "no\"such{type}" }));
    client::eventually("the nodes are counted", || {
        site.get("/metrics").text().contains("pilot_nodes_total 5\n")
    });
    let reply = site.get("/metrics");
    assert!(reply.header("content-type").unwrap().contains("version=0.0.4"));
    for wanted in [
        "pilot_requests_total{type=\"register\"} 5\n",
        "pilot_requests_total{type=\"unknown\"} 1\n",
        "pilot_errors_total{type=\"unknown\"} 1\n",
        "pilot_request_duration_seconds_count{type=\"register\"} 5\n",
        "pilot_registrations_total 5\n",
        "pilot_trust_reports_total 4\n",
        "pilot_nodes_online 5\n",
        "pilot_trust_links 2\n",
        "pilot_task_executors 1\n",
        "pilot_connections 1\n",
        "pilot_store_failing 0\n",
        "pilot_sessions 0\n",
    ] {
        assert!(reply.text().contains(wanted), "{wanted:?} is missing in\n{}", reply.text());
    }
    assert!(!reply.text().contains("such{type}"));
    // The header only takes away.
    for header in ["X-Real-IP", "X-Forwarded-For"] {
        assert_eq!(get(site.http, "/metrics", &[(header, "127.0.0.1")]).status, 403);
    }
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("X-Real-IP", "192.0.2.1"), ("Authorization", &*bearer)];
    assert_eq!(get(site.http, "/metrics", &headers).status, 200);
    site.end();
}

#[test]
fn only_the_token_opens_the_administration_and_guessing_is_slowed() {
    let site = Site::start(config());
    for path in ["/api/v1/nodes", "/api/v1/networks", "/api/v1/audit", "/api/v1/events"] {
        let reply = site.get(path);
        assert_eq!((reply.status, &reply.json()["code"]), (401, &json!("admin_only")), "{path}");
        assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    assert_eq!(site.admin("/api/v1/nodes").status, 200);
    let wrong = |token: &str| get(site.http, "/api/stats", &[("Authorization", token)]);
    for n in 0..10 {
        let token = if n == 0 { format!("Basic {TOKEN}") } else { format!("Bearer {n}{TOKEN}") };
        let reply = wrong(&token);
        assert_eq!((reply.status, &reply.json()["code"]), (401, &json!("bad_admin_token")));
    }
    let reply = wrong("Bearer 0123456789abcdef");
    assert_eq!((reply.status, &reply.json()["code"]), (429, &json!("rate_limited")));
    // Whoever shows no token is not concerned.
    assert_eq!(site.get("/api/stats").status, 200);
    assert!(site.get("/metrics").text().contains("pilot_admin_denied_total 15\n"));
    site.end();
}

#[test]
fn without_a_token_nobody_is_an_administrator() {
    let site = Site::start(Config { admin_token: None, ..config() });
    let shown = [("Authorization", "Bearer "), ("Authorization", "Bearer x")];
    for header in shown {
        assert_eq!(get(site.http, "/api/v1/nodes", &[header]).status, 401);
    }
    assert_eq!(site.get("/api/v1/nodes").status, 401);
    site.end();
}

#[test]
fn nodes_come_in_pages_and_by_what_they_are() {
    let site = Site::start(config());
    let _nodes = populated(&site);
    let ids = |reply: &Value| -> Vec<u64> {
        let nodes = reply["nodes"].as_array().unwrap();
        nodes.iter().map(|n| n["node_id"].as_u64().unwrap()).collect()
    };
    let page = site.admin("/api/v1/nodes?limit=2").json();
    assert_eq!((ids(&page), &page["next"]), (vec![1, 2], &json!(2)));
    let page = site.admin("/api/v1/nodes?limit=3&after=2").json();
    assert_eq!((ids(&page), &page["next"]), (vec![3, 4, 5], &Value::Null));
    for (filter, wanted) in [
        ("tag=%23gpu", vec![1]),
        ("tag=secret", vec![4]),
        ("hostname=ada", vec![1]),
        ("hostname=ad*", vec![1]),
        ("hostname=other", vec![]),
        ("public=false", vec![4, 5]),
        ("owner=nobody", vec![]),
    ] {
        let page = site.admin(&format!("/api/v1/nodes?{filter}")).json();
        assert_eq!(ids(&page), wanted, "{filter}");
    }
    let node = site.admin("/api/v1/nodes/1").json();
    assert_eq!((&node["hostname"], &node["trusted"]), (&json!("ada"), &json!([2, 4])));
    assert_eq!(node["endpoint"], "127.0.0.1:4000");
    assert_eq!(site.admin(&format!("/api/v1/nodes/{}", address(1))).json(), node);
    let reply = site.admin("/api/v1/nodes/77");
    assert_eq!((reply.status, &reply.json()["code"]), (404, &json!("unknown_node")));
    site.end();
}

#[test]
fn what_an_administrator_does_is_in_the_audit_log() {
    let site = Site::start(config());
    let _nodes = populated(&site);
    let revoked = site.request(&json!({
        "type": "node_revoke", "node_id": 5, "reason": "lost", "request_id": "ticket-7",
    }));
    assert_eq!(revoked.status, 200, "{revoked:?}");
    assert_eq!(revoked.json()["type"], "node_revoke_ok");
    let again = site.request(&json!({ "type": "node_revoke", "node_id": 5 }));
    assert_eq!((again.status, &again.json()["code"]), (403, &json!("revoked")));
    // One that left can be shut out too.
    let mut client = Client::connect(site.addr);
    let key = Identity::new(4);
    ok(&client.ask(key.signed("deregister", 4, json!({}))));
    assert_eq!(site.request(&json!({ "type": "node_revoke", "node_id": 4 })).status, 200);
    assert_eq!(client.ask(key.register())["code"], "revoked");
    let unknown = site.request(&json!({ "type": "node_revoke", "node_id": 99 }));
    assert_eq!(unknown.json()["code"], "unknown_node");
    let refused = site.request(&json!({ "type": "network_delete", "network": "lab" }));
    assert_eq!((refused.status, &refused.json()["code"]), (404, &json!("unknown_network")));
    let gone = site.admin("/api/v1/nodes/5");
    assert_eq!(gone.status, 404);
    let list = site.admin("/api/v1/networks").json();
    assert_eq!(list, json!({ "networks": [], "next": null }));
    let reply = site.admin("/api/v1/networks/lab");
    assert_eq!((reply.status, &reply.json()["code"]), (404, &json!("unknown_network")));
    client::eventually("the audit log has it", || {
        let page = site.admin("/api/v1/audit?operation=node_revoke").json();
        let records = page["records"].as_array().unwrap();
        records.len() == 3
            && records[0]["actor"]["name"] == "admin"
            && records[0]["request_id"] == "ticket-7"
            && records[0]["result"] == "allowed"
    });
    let newest = site.admin("/api/v1/audit?newest=1").json();
    assert_eq!(newest["records"].as_array().unwrap().len(), 1);
    // A wrong token is in it as well.
    let wrong = [("Authorization", "Bearer 0123456789abcdef")];
    assert_eq!(get(site.http, "/api/v1/nodes", &wrong).status, 401);
    client::eventually("the audit log has the denial", || {
        let page = site.admin("/api/v1/audit?result=denied").json();
        let records = page["records"].as_array().unwrap();
        let has = |code: &str, object: &str| {
            records.iter().any(|r| r["code"] == code && r["object"] == object)
        };
        has("bad_admin_token", "") && has("unknown_network", "network \"lab\"")
    });
    site.end();
}

#[test]
fn bodies_are_bounded_and_must_be_what_they_are() {
    let site = Site::start(config());
    let bearer = format!("Bearer {TOKEN}");
    let post = |kind: &str, body: &[u8]| {
        let headers = [("Authorization", &*bearer), ("Content-Type", kind)];
        send(site.http, "POST", "/api/v1/request", &headers, body)
    };
    assert_eq!(post("text/plain", b"{}").status, 415);
    assert_eq!(post("application/json", b"{").status, 400);
    let unknown = post("application/json; charset=utf-8", br#"{"type":"lookup"}"#);
    assert_eq!(unknown.status, 400);
    let unknown_key = post("application/json", br#"{"type":"network_list","x":1}"#);
    assert!(unknown_key.text().contains('x') && unknown_key.status == 400);
    let large = post("application/json", &vec![b' '; (1 << 20) + 1]);
    assert_eq!((large.status, &large.json()["code"]), (413, &json!("too_large")));
    let session = post("application/json", br#"{"type":"session_challenge"}"#);
    assert_eq!(session.status, 403, "{session:?}");
    let long = "x".repeat(64 * 1024);
    assert_eq!(get(site.http, "/", &[("Long", &long)]).status, 431);
    site.end();
}

#[test]
fn health_is_told() {
    let site = Site::start(config());
    assert_eq!(site.get("/healthz").json()["alive"], true);
    let ready = site.get("/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    let proxied = get(site.http, "/readyz", &[("X-Forwarded-For", "192.0.2.1")]);
    assert_eq!((proxied.status, &proxied.json()["ready"]), (200, &json!(true)));
    site.end();
}

#[test]
fn events_are_told_as_they_happen_and_end_with_the_registry() {
    let site = Site::start(config());
    let mut lines = connect(site.http);
    let bearer = format!("Bearer {TOKEN}");
    let head = head("GET", "/api/v1/events", &[("Authorization", &bearer)], 0) + "\r\n";
    lines.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(lines);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).map(|n| (n > 0).then_some(line))
    };
    let mut until = |wanted: &str| loop {
        match line().unwrap() {
            Some(line) if line.contains(wanted) => return line,
            Some(_) => {}
            None => panic!("the end came before {wanted:?}"),
        }
    };
    until("application/x-ndjson");
    // The first piece, which is an empty line: from now on it listens.
    while until("\n").trim() != "1" {}
    let _nodes = populated(&site);
    let event = until("node.registered");
    let event: Value = serde_json::from_str(event.trim()).unwrap();
    assert_eq!(event["data"]["address"], address(1));
    let ending = site.stop();
    while let Ok(Some(_)) = line() {}
    ending.ended();
}

#[test]
fn listeners_are_bounded() {
    let site = Site::start(config());
    let bearer = format!("Bearer {TOKEN}");
    let head = head("GET", "/api/v1/events", &[("Authorization", &bearer)], 0) + "\r\n";
    let mut listening = Vec::new();
    for _ in 0..16 {
        let mut stream = connect(site.http);
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = String::new();
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut first).unwrap();
        assert!(first.contains("200"), "{first}");
        listening.push(stream);
    }
    assert_eq!(site.admin("/api/v1/events").status, 429);
    drop(listening);
    site.end();
}

#[test]
fn what_can_change_while_running_changes() {
    let site = Site::start(config());
    let reload = site.reload.clone().unwrap();
    let mut new = Config {
        register_rate: 1,
        max_connections: 1000,
        admin_token: Some("another-token-0123".to_owned()),
        any_node_makes_networks: true,
        audit_bytes: Some(1 << 20),
        ..config()
    };
    let reloaded = reload.apply(&new);
    assert_eq!(
        reloaded.taken,
        ["register-rate", "max-connections", "admin-token", "audit-megabytes"]
    );
    assert_eq!(reloaded.restart, ["network-creation"]);
    assert_eq!(reloaded.failed, [""; 0]);
    assert_eq!(site.admin("/api/v1/nodes").status, 401);
    let bearer = [("Authorization", "Bearer another-token-0123")];
    assert_eq!(get(site.http, "/api/v1/nodes", &bearer).status, 200);
    let mut client = Client::connect(site.addr);
    client.register(&Identity::new(1));
    let limited = client.ask(Identity::new(2).register());
    assert_eq!(limited["code"], "rate_limited");
    // Named until the registry is restarted.
    assert_eq!(reload.apply(&new).restart, ["network-creation"]);
    new.any_node_makes_networks = false;
    assert_eq!(reload.apply(&new), pilot_registry::reload::Reloaded::default());
    drop((client, reload));
    site.end();
}

#[test]
fn a_request_in_flight_is_finished_at_the_end() {
    let site = Site::start(config());
    let body = br#"{"type":"network_list"}"#;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
    let mut stream = connect(site.http);
    let head = head("POST", "/api/v1/request", &headers, body.len()) + "\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body[..5]).unwrap();
    // Answered, so the half request before it is being handled as well.
    client::eventually("it is counted", || site.get("/healthz").status == 200);
    let http = site.http;
    let ending = site.stop();
    client::eventually("nobody listens any more", || std::net::TcpStream::connect(http).is_err());
    stream.write_all(&body[5..]).unwrap();
    let reply = site::Reply::read(stream);
    assert_eq!((reply.status, &reply.json()["type"]), (200, &json!("network_list_ok")));
    ending.ended();
}

#[test]
fn networks_are_made_and_read_over_http() {
    let site = Site::start(Config { plugin_path: Some(vec![shipped().to_owned()]), ..config() });
    let create = json!({
        "type": "network_create", "name": "lab", "join": { "rules": [{ "rule": "open" }] },
    });
    let made = site.request(&create);
    assert_eq!((made.status, &made.json()["type"]), (200, &json!("network_ok")), "{made:?}");
    let again = site.request(&create);
    assert_eq!((again.status, &again.json()["code"]), (409, &json!("network_exists")));
    let mut nodes: Vec<Node> = (1..=3).map(|n| Node::new(site.addr, n)).collect();
    for node in &mut nodes {
        node.enter("lab", json!({}));
    }
    let list = site.admin("/api/v1/networks").json();
    let lab = &list["networks"][0];
    assert_eq!((&lab["name"], &lab["members"]), (&json!("lab"), &json!(3)));
    let id = lab["id"].as_u64().unwrap();
    let page = site.admin("/api/v1/networks/lab?limit=2").json();
    let ids = |page: &Value| -> Vec<u64> {
        let members = page.as_array().unwrap();
        members.iter().map(|m| m["node_id"].as_u64().unwrap()).collect()
    };
    assert_eq!((ids(&page["members_page"]), &page["next"]), (vec![1, 2], &json!(2)));
    let rest = site.admin(&format!("/api/v1/networks/{id}/members?after=2")).json();
    assert_eq!((ids(&rest["members"]), &rest["next"]), (vec![3], &Value::Null));
    assert_eq!(site.admin("/api/v1/nodes/1").json()["networks"], json!([0, id]));

    let token = site.request(&json!({ "type": "token_create", "network": "lab", "uses": 2 }));
    let secret = token.json()["secret"].as_str().unwrap().to_owned();
    let tokens = site.admin("/api/v1/networks/lab/tokens");
    assert_eq!(tokens.json()["tokens"][0]["uses_left"], 2);
    for hidden in [secret.as_str(), "salt", "hash"] {
        assert!(!tokens.text().contains(hidden), "{hidden}");
    }
    let invite = site.request(&json!({
        "type": "invite", "network": "lab", "to": { "owner": "ann" }, "expires": unix_now() + 600,
    }));
    assert_eq!(invite.status, 200, "{invite:?}");
    let invitations = site.admin("/api/v1/networks/lab/invitations").json();
    assert_eq!(invitations["invitations"][0]["to"], json!({ "owner": "ann" }));
    client::eventually("the network is counted", || {
        let stats = site.get("/api/stats").json();
        stats["networks"][1]
            == json!({ "id": id, "name": "lab", "members": 3, "online_members": 3 })
    });
    drop(nodes);
    site.end();
}
