//! Who may join: the shipped rules as real plugins, rules of scripts, rules that
//! fail, and what membership opens and closes.

mod client;

use std::path::Path;

use client::networks::{ADMIN, Admin, Node, denied, joinable, rules, unix_now};
use client::plugins::{plugin, shipped};
use client::{Client, Program, eventually, with_registry};
use pilot_host::Settings;
use pilot_registry::Config;
use pilot_wire::NodeId;
use pilot_wire::registry::network::Invitee;
use serde_json::{Value, json};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");

fn node(id: u64) -> Invitee {
    Invitee::Node(NodeId(u32::try_from(id).unwrap()))
}

fn lookup(client: &mut Client, id: u64) -> Value {
    client.ask(json!({"type": "lookup", "node_id": id}))["networks"].clone()
}

#[test]
fn a_shared_network_opens_addresses_until_it_is_left() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let open = admin.network("lab", &rules(&["open"]));
        let (mut a, mut b) = (Node::new(addr, 1), Node::new(addr, 2));
        assert_eq!(a.resolves(b.id), "private");
        let membership = a.enter(open, json!({}));
        assert_eq!(membership["network"], open);
        assert_eq!(membership["name"], "lab");
        assert!(membership["address"].as_str().unwrap().starts_with(&format!("{open}:")));
        assert!(membership.get("expires").is_none() && membership["may_broadcast"] == false);
        assert_eq!(a.resolves(b.id), "private");
        b.enter("lab", json!({"open": null, "no-such-rule": "x"}));
        assert_eq!(a.resolves(b.id), Value::Null);
        let mut client = Client::connect(addr);
        assert_eq!(lookup(&mut client, b.id), json!([0, open]));
        // Again: judged anew, still one membership.
        b.enter(open, json!({}));
        let left = b.ask(&json!({"type": "network_leave", "network": "lab"}));
        assert_eq!(left, json!({"type": "done_ok", "network_id": open}));
        assert_eq!(a.resolves(b.id), "private");
        assert_eq!(lookup(&mut client, b.id), json!([0]));
        let again = b.ask(&json!({"type": "network_leave", "network": open}));
        assert_eq!(again["code"], "not_member");
    });
}

#[test]
fn a_membership_ends_in_time_and_what_it_opened_is_closed() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let config = json!({"tags": ["guest"], "expires_secs": 2});
        let join = json!({"rules": [{"rule": "open", "config": config}]});
        let open = admin.network("short", &join);
        let lasting = admin.network("long", &rules(&["open"]));
        let (mut a, mut b) = (Node::new(addr, 1), Node::new(addr, 2));
        let before = unix_now();
        let membership = a.enter(open, json!({}));
        assert_eq!(membership["tags"], json!(["guest"]));
        let ends = membership["expires"].as_u64().unwrap();
        assert!((before + 2..=unix_now() + 2).contains(&ends), "{membership}");
        b.enter(open, json!({}));
        a.enter(lasting, json!({}));
        assert_eq!(a.resolves(b.id), Value::Null);
        a.session.until("it is told that it ended", |view| view.left.contains_key(&open));
        assert_eq!(a.session.view.left[&open], "expired");
        assert!(unix_now() >= ends, "not before its time");
        eventually("the other one is out as well", || a.resolves(b.id) == "private");
        let mut client = Client::connect(addr);
        assert_eq!(lookup(&mut client, a.id), json!([0, lasting]));
        // It can come back.
        a.enter(open, json!({}));
    });
}

#[test]
fn tokens_let_in_as_often_as_they_say() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["token"]));
        let other = admin.network("other", &rules(&["token"]));
        let (_, secret) = admin.token(lab, json!({"uses": 2, "tags": ["gpu", "#eu"]}));
        assert!(secret.starts_with("pjt_") && secret.len() == 4 + 43, "{secret}");
        let mut nodes: Vec<_> = (1..=3).map(|seed| Node::new(addr, seed)).collect();

        let wrong = nodes[0].join(lab, json!({"token": "pjt_wrong"}));
        assert!(denied(&wrong, "token").contains("wrong"));
        for proofs in [json!({}), json!({"token": 7}), json!({"open": secret})] {
            let none = nodes[0].join(lab, proofs);
            assert!(denied(&none, "token").contains("has to be shown"));
        }
        let elsewhere = nodes[0].join(other, json!({"token": secret}));
        assert!(denied(&elsewhere, "token").contains("wrong"));

        let membership = nodes[0].enter(lab, json!({"token": secret}));
        assert_eq!(membership["tags"], json!(["gpu", "eu"]));
        let tokens = admin.ok(json!({"type": "token_list", "network": lab}));
        assert_eq!(tokens["tokens"][0]["uses_left"], 1);
        assert!(!tokens.to_string().contains("hash") && !tokens.to_string().contains(&secret));
        nodes[1].enter(lab, json!({"token": {"token": secret}}));
        let gone = nodes[2].join(lab, json!({"token": secret}));
        assert!(denied(&gone, "token").contains("used up"));

        let (id, revoked) = admin.token(lab, json!({}));
        let revoke = json!({"type": "token_revoke", "network": lab, "id": id});
        assert_eq!(admin.ok(revoke.clone())["network_id"], lab);
        assert_eq!(admin.ask(revoke)["code"], "token_gone");
        denied(&nodes[2].join(lab, json!({"token": revoked})), "token");

        let (_, short) = admin.token(lab, json!({"expires": unix_now() + 1}));
        eventually("it expires", || {
            let reply = nodes[2].join(lab, json!({"token": short}));
            let done = reply["code"] == "not_admitted";
            if !done {
                let left = nodes[2].ask(&json!({"type": "network_leave", "network": lab}));
                assert_eq!(left["type"], "done_ok", "{reply}");
            }
            done
        });
        let tokens = admin.ok(json!({"type": "token_list", "network": lab}));
        assert_eq!(tokens["tokens"], json!([]));
    });
}

#[test]
fn exactly_as_many_get_in_as_a_token_says_however_many_try_at_once() {
    const NODES: u32 = 32;
    const USES: usize = 5;
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["token"]));
        let (_, secret) = admin.token(lab, json!({"uses": USES}));
        let mut nodes: Vec<_> = (1..=NODES).map(|seed| Node::new(addr, seed)).collect();
        let request = json!({"type": "network_join", "network": lab, "proofs": {"token": secret}});
        for node in &mut nodes {
            node.session.client.send_raw(request.to_string().as_bytes());
        }
        let replies: Vec<_> = nodes.iter_mut().map(|node| node.session.answer()).collect();
        let entered = replies.iter().filter(|reply| reply["type"] == "network_join_ok").count();
        assert_eq!(entered, USES, "{replies:?}");
        for reply in replies.iter().filter(|reply| reply["type"] == "error") {
            let code = reply["code"].as_str().unwrap();
            assert!(matches!(code, "token_gone" | "not_admitted"), "{reply}");
        }
        let members = admin.ok(json!({"type": "network_members", "network": lab}));
        assert_eq!(members["members"].as_array().unwrap().len(), USES);
        assert!(members["members"].as_array().unwrap().iter().all(|m| m["rule"] == "token"));
    });
}

#[test]
fn invitations_let_in_whom_they_name_once() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["invite"]));
        let later = unix_now() + 3600;
        let invite = |to: &Invitee, tags: &[&str]| json!({"type": "invite", "network": lab, "to": to, "expires": later, "tags": tags});
        let (mut a, mut b, mut c) = (Node::new(addr, 1), Node::new(addr, 2), Node::new(addr, 3));
        assert!(denied(&a.join(lab, json!({})), "invite").contains("no invitation"));
        let made = admin.ok(invite(&node(a.id), &["staff"]));
        assert_eq!(made["invitation"]["tags"], json!(["staff"]));
        assert!(made["invitation"].get("from").is_none(), "{made}");
        let listed = a.ask(&json!({"type": "invitation_list"}));
        assert_eq!(listed["invitations"][0], made["invitation"]);
        denied(&b.join(lab, json!({})), "invite");
        assert_eq!(a.enter(lab, json!({}))["tags"], json!(["staff"]));
        // Used once.
        denied(&a.join(lab, json!({})), "invite");
        assert_eq!(a.ask(&json!({"type": "invitation_list"}))["invitations"], json!([]));

        // A member invites with its signature, and gives no tags.
        let good = a.invites(lab, &node(b.id), later);
        let mut tagged = good.clone();
        tagged["tags"] = json!(["boss"]);
        assert_eq!(a.ask(&tagged)["code"], "not_owner");
        for (key, value) in [
            ("to", json!({"node": c.id})),
            ("expires", json!(later + 1)),
            ("signature", c.invites(lab, &node(b.id), later)["signature"].clone()),
            ("signature", Value::Null),
        ] {
            let mut forged = good.clone();
            forged[key] = value;
            assert_eq!(a.ask(&forged)["code"], "bad_signature", "{forged}");
        }
        assert_eq!(c.ask(&c.invites(lab, &node(b.id), later))["code"], "not_member");
        let mut past = a.invites(lab, &node(b.id), 5);
        assert_eq!(a.ask(&past)["code"], "invalid");
        past = a.invites(lab, &Invitee::Node(NodeId(99)), later);
        assert_eq!(a.ask(&past)["code"], "unknown_node");
        let made = a.ask(&good);
        assert_eq!(
            (&made["type"], &made["invitation"]["from"]),
            (&json!("invite_ok"), &json!(a.id))
        );

        // Declined by who is invited, by nobody else.
        let id = &made["invitation"]["id"];
        let decline = json!({"type": "invitation_decline", "id": id});
        assert_eq!(c.ask(&decline)["code"], "invitation_gone");
        assert_eq!(b.ask(&decline)["type"], "done_ok");
        denied(&b.join(lab, json!({})), "invite");

        // Revoked by who made it; the invited one chooses by number.
        let second = a.ask(&good)["invitation"]["id"].clone();
        let revoke = json!({"type": "invitation_revoke", "id": second});
        assert_eq!(c.ask(&revoke)["code"], "invitation_gone");
        assert_eq!(a.ask(&revoke)["type"], "done_ok");
        let third = admin.ok(invite(&node(b.id), &[]))["invitation"]["id"].clone();
        denied(&b.join(lab, json!({"invite": {"id": second}})), "invite");
        b.enter(lab, json!({"invite": {"id": third}}));

        // Expired.
        let soon = json!({"type": "invite", "network": lab, "to": node(c.id),
                          "expires": unix_now() + 1});
        admin.ok(soon);
        eventually("it is over", || {
            c.ask(&json!({"type": "invitation_list"}))["invitations"] == json!([])
        });
        denied(&c.join(lab, json!({})), "invite");
    });
}

#[test]
fn an_owner_is_invited_by_proven_keys_only() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["invite"]));
        let to = Invitee::Owner("ann@example.org".to_owned());
        let invite = json!({"type": "invite", "network": lab, "to": to,
                            "expires": unix_now() + 3600, "tags": ["ann"]});
        admin.ok(invite);
        let mut claims = Node::unproven(addr, 1, "ann@example.org");
        assert_eq!(claims.ask(&json!({"type": "invitation_list"}))["invitations"], json!([]));
        denied(&claims.join(lab, json!({})), "invite");
        let mut other = Node::owned(addr, 2, "bob@example.org");
        denied(&other.join(lab, json!({})), "invite");
        let mut ann = Node::owned(addr, 3, "ann@example.org");
        assert_eq!(ann.enter(lab, json!({}))["tags"], json!(["ann"]));
        let mut again = Node::owned(addr, 4, "ann@example.org");
        denied(&again.join(lab, json!({})), "invite");
    });
}

#[test]
fn rules_are_combined() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let policy = |combine: &str| {
            json!({"combine": combine, "rules": [
                {"rule": "token", "config": {"tags": ["t", "both"], "expires_secs": 900}},
                {"rule": "invite", "config": {"tags": ["both", "i"], "expires_secs": 60}},
            ]})
        };
        let any = admin.network("any", &policy("any"));
        let all = admin.network("all", &policy("all"));
        let mut a = Node::new(addr, 1);
        let message = denied(&a.join(any, json!({})), "token");
        assert!(message.contains("rule \"invite\": there is no invitation"), "{message}");
        let tokens = [any, all].map(|network| admin.token(network, json!({"uses": 1})).1);

        // The first that allows is enough; the other is not used up.
        for network in [any, all] {
            admin.ok(json!({"type": "invite", "network": network, "to": node(a.id),
                            "expires": unix_now() + 3600}));
        }
        let membership = a.enter(any, json!({"token": tokens[0]}));
        assert_eq!(membership["tags"], json!(["t", "both"]));
        let left = a.ask(&json!({"type": "invitation_list"}));
        assert_eq!(left["invitations"].as_array().unwrap().len(), 2);
        let membership = a.enter(any, json!({}));
        assert_eq!(membership["tags"], json!(["both", "i"]));

        let mut b = Node::new(addr, 2);
        let message = denied(&b.join(all, json!({"token": tokens[1]})), "invite");
        assert!(!message.contains("\"token\""), "{message}");
        let before = unix_now();
        let membership = a.enter(all, json!({"token": tokens[1]}));
        assert_eq!(membership["tags"], json!(["t", "both", "i"]));
        let expires = membership["expires"].as_u64().unwrap();
        assert!((before + 60..=unix_now() + 60).contains(&expires), "the earliest: {membership}");
        let members = admin.ok(json!({"type": "network_members", "network": all}));
        assert_eq!(members["members"][0]["rule"], "token+invite");
    });
}

fn with_plugins(dir: &Path, text: &str) -> Config {
    Config {
        data: Some(dir.join("data")),
        plugins: Settings::parse(text, &dir.join("c.yaml")).unwrap(),
        ..joinable()
    }
}

#[test]
fn a_rule_that_hangs_panics_or_fails_denies_and_is_named() {
    let library = plugin("pilot-hostile-plugin");
    for (mode, why) in [
        ("panic-validate", "crashed"),
        ("fail-validate", "cannot read the list"),
        ("never-validate", "within 300 ms"),
        ("well", "wrong word"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "plugins:\n  hostile:\n    file: {}\n    limits: {{validate: 300ms}}\n    \
             config: {{mode: {mode}}}\n",
            library.display()
        );
        with_registry(with_plugins(dir.path(), &text), |addr| {
            let mut admin = Admin::new(addr);
            let lab = admin.network("lab", &rules(&["hostile"]));
            let mut a = Node::new(addr, 1);
            let message = denied(&a.join(lab, json!({"hostile": "please"})), "hostile");
            assert!(message.contains(why), "{mode}: {message}");
            // Whoever else is asked is asked still.
            let other = admin.network("other", &rules(&["hostile", "open"]));
            a.enter(other, json!({"hostile": "please"}));
        });
    }
}

#[test]
fn a_script_is_a_rule_and_without_it_nobody_joins() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("badge.lua");
    let text = "return { kind = 'rule', validate = function(r)
      if r.config.badge ~= r.proof then return false, 'not the badge' end
      return { allow = true, tags = r.config.tags, external_identity = 'badge:' .. r.proof }
    end }";
    std::fs::write(&script, text).unwrap();
    let store = Some(dir.path().join("r.db"));
    let configured = format!("scripts:\n  badge:\n    file: {}\n", script.display());
    let config = Config { store: store.clone(), ..with_plugins(dir.path(), &configured) };
    let lab = std::sync::Mutex::new(0);
    with_registry(config, |addr| {
        let mut admin = Admin::new(addr);
        let unknown = json!({"type": "network_create", "name": "x", "join": rules(&["bagde"])});
        let refused = admin.ask(unknown)["message"].as_str().unwrap().to_owned();
        assert!(
            refused.starts_with("join.rules[0].rule: \"bagde\": no plugin provides it")
                && refused.contains("there are: badge, invite, open, token"),
            "{refused}"
        );
        let config = json!({"badge": "b7", "tags": ["seventh"]});
        let join = json!({"rules": [{"rule": "badge", "config": config}]});
        *lab.lock().unwrap() = admin.network("lab", &join);
        let mut a = Node::new(addr, 1);
        let denial = denied(&a.join("lab", json!({"badge": "b8"})), "badge");
        assert!(denial.contains("not the badge"), "{denial}");
        let membership = a.enter("lab", json!({"badge": "b7"}));
        assert_eq!(membership["tags"], json!(["seventh"]));
        assert_eq!(membership["external_identity"], "badge:b7");
    });
    let config = Config { store, ..with_plugins(dir.path(), "") };
    with_registry(config, |addr| {
        let mut b = Node::new(addr, 2);
        let denial = denied(&b.join(*lab.lock().unwrap(), json!({"badge": "b7"})), "badge");
        assert!(denial.contains("no plugin provides it; load one"), "{denial}");
        // Who was in is in.
        let members = Admin::new(addr).ok(json!({"type": "network_members", "network": "lab"}));
        assert_eq!(members["members"][0]["external_identity"], "badge:b7");
    });
}

#[test]
fn a_store_alone_is_enough_for_the_shipped_rules() {
    // Where the program looks by itself is the folder of the program.
    for rule in ["open", "token", "invite"] {
        plugin(&format!("pilot-plugin-join-{rule}"));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("r.db");
    for args in [&["-store", store.to_str().unwrap()][..], &[]] {
        let common = ["-addr", "127.0.0.1:0", "-admin-token", ADMIN];
        let running = Program::start(REGISTRY, &[&common[..], args].concat());
        let addr = running.addr("addr");
        let mut admin = Admin::new(addr);
        for rule in ["open", "token", "invite"] {
            let made = admin.ok(json!({"type": "network_create", "name": rule,
                                       "join": rules(&[rule])}));
            assert_eq!(made["network"]["join_rule"], rule);
        }
        let (_, secret) = admin.token(2, json!({}));
        let mut a = Node::new(addr, 1);
        admin.ok(json!({"type": "invite", "network": "invite", "to": node(a.id),
                        "expires": unix_now() + 60}));
        for rule in ["open", "token", "invite"] {
            a.enter(rule, json!({"token": secret}));
        }
        assert!(running.terminate());
    }
    assert!(shipped().is_dir());
}
