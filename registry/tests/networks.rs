//! Requests about networks over real connections: who may do what, what is
//! refused and how, and the published shapes.

mod client;

use std::collections::BTreeSet;

use client::networks::{ADMIN, Admin, Node, joinable, rules, unix_now};
use client::{Client, Identity, config, with_registry};
use pilot_registry::Config;
use pilot_wire::NodeId;
use pilot_wire::registry::network::Invitee;
use serde_json::{Value, json};

/// How a request ended: its refusal's code, or the type of its answer.
fn end(reply: &Value) -> String {
    reply["code"].as_str().or(reply["type"].as_str()).unwrap().to_owned()
}

/// Who asks in the matrix of rights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// Nobody: a connection without a session.
    Nobody,
    /// A node that is not in the network.
    Stranger,
    /// A node that is in it.
    Member,
    /// The node that made it.
    Owner,
    Admin,
    /// An administrator's token that is wrong.
    Impostor,
}

const ALL: [Who; 6] =
    [Who::Nobody, Who::Stranger, Who::Member, Who::Owner, Who::Admin, Who::Impostor];

/// The nodes and things that the requests of the matrix are about.
struct World {
    nobody: Client,
    stranger: Node,
    member: Node,
    owner: Node,
    admin: Admin,
    network: u16,
    /// A member that does nothing.
    quiet: u64,
}

impl World {
    fn ask(&mut self, who: Who, mut request: Value) -> Value {
        match who {
            Who::Nobody => self.nobody.ask(request),
            Who::Stranger => self.stranger.ask(&request),
            Who::Member => self.member.ask(&request),
            Who::Owner => self.owner.ask(&request),
            Who::Admin => self.admin.ask(request),
            Who::Impostor => {
                request["admin_token"] = "an admin token that is wrong".into();
                self.nobody.ask(request)
            }
        }
    }
}

/// One line of the matrix: what is asked, made anew for each asker, and how it
/// ends for each of `ALL`.
type Line = (&'static str, fn(&mut World, Who) -> Value, [&'static str; 6]);

fn later() -> u64 {
    unix_now() + 3600
}

const MATRIX: &[Line] = &[
    (
        "network_create",
        |_, who| {
            let name = format!("made-by-{who:?}").to_lowercase();
            json!({"type": "network_create", "name": name, "join": rules(&["open"])})
        },
        [
            "session_required",
            "network_ok",
            "network_ok",
            "network_ok",
            "network_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_update",
        |w, _| json!({"type": "network_update", "network": w.network, "broadcast": "members"}),
        [
            "session_required",
            "not_owner",
            "not_owner",
            "network_ok",
            "network_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_list",
        |_, _| json!({"type": "network_list"}),
        [
            "session_required",
            "network_list_ok",
            "network_list_ok",
            "network_list_ok",
            "network_list_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_members",
        |w, _| json!({"type": "network_members", "network": w.network}),
        [
            "session_required",
            "not_member",
            "network_members_ok",
            "network_members_ok",
            "network_members_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_remove",
        |w, _| {
            let join = json!({"type": "join_network", "node_id": w.quiet,
                              "network_id": w.network});
            let reply = w.admin.ask(join);
            assert!(["join_network_ok", "already_member"].contains(&end(&reply).as_str()));
            json!({"type": "network_remove", "network": w.network, "node_id": w.quiet})
        },
        ["session_required", "not_owner", "not_owner", "done_ok", "done_ok", "bad_admin_token"],
    ),
    (
        "token_create",
        |w, _| json!({"type": "token_create", "network": w.network}),
        [
            "session_required",
            "not_owner",
            "not_owner",
            "token_create_ok",
            "token_create_ok",
            "bad_admin_token",
        ],
    ),
    (
        "token_list",
        |w, _| json!({"type": "token_list", "network": w.network}),
        [
            "session_required",
            "not_owner",
            "not_owner",
            "token_list_ok",
            "token_list_ok",
            "bad_admin_token",
        ],
    ),
    (
        "token_revoke",
        |w, _| {
            let (id, _) = w.admin.token(w.network, json!({}));
            json!({"type": "token_revoke", "network": w.network, "id": id})
        },
        ["session_required", "not_owner", "not_owner", "done_ok", "done_ok", "bad_admin_token"],
    ),
    (
        "invite",
        |w, who| {
            let to = Invitee::Node(NodeId(1));
            match who {
                Who::Stranger => w.stranger.invites(w.network, &to, later()),
                Who::Member => w.member.invites(w.network, &to, later()),
                Who::Owner => w.owner.invites(w.network, &to, later()),
                Who::Nobody | Who::Admin | Who::Impostor => {
                    json!({"type": "invite", "network": w.network, "to": to, "expires": later()})
                }
            }
        },
        [
            "session_required",
            "not_member",
            "invite_ok",
            "invite_ok",
            "invite_ok",
            "bad_admin_token",
        ],
    ),
    (
        "invitation_list",
        |_, _| json!({"type": "invitation_list"}),
        [
            "session_required",
            "invitation_list_ok",
            "invitation_list_ok",
            "invitation_list_ok",
            "session_required",
            "bad_admin_token",
        ],
    ),
    (
        "invitation_list of a network",
        |w, _| json!({"type": "invitation_list", "network": w.network}),
        [
            "session_required",
            "not_member",
            "invitation_list_ok",
            "invitation_list_ok",
            "invitation_list_ok",
            "bad_admin_token",
        ],
    ),
    (
        "invitation_decline",
        |w, _| {
            let id = invited(w, w.stranger.id);
            json!({"type": "invitation_decline", "id": id})
        },
        [
            "session_required",
            "done_ok",
            "invitation_gone",
            "invitation_gone",
            "session_required",
            "bad_admin_token",
        ],
    ),
    (
        "invitation_revoke of an administrator's",
        |w, _| {
            let id = invited(w, w.stranger.id);
            json!({"type": "invitation_revoke", "id": id})
        },
        [
            "session_required",
            "invitation_gone",
            "invitation_gone",
            "done_ok",
            "done_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_join",
        |w, _| json!({"type": "network_join", "network": w.network}),
        [
            "session_required",
            "network_join_ok",
            "network_join_ok",
            "network_join_ok",
            "session_required",
            "bad_admin_token",
        ],
    ),
    (
        "network_leave",
        |w, _| json!({"type": "network_leave", "network": w.network}),
        [
            "session_required",
            "done_ok",
            "done_ok",
            "done_ok",
            "session_required",
            "bad_admin_token",
        ],
    ),
    (
        "node_revoke",
        |w, _| json!({"type": "node_revoke", "node_id": w.quiet, "reason": "for a test"}),
        [
            "admin_only",
            "admin_only",
            "admin_only",
            "admin_only",
            "node_revoke_ok",
            "bad_admin_token",
        ],
    ),
    (
        "audit_query",
        |_, _| json!({"type": "audit_query"}),
        [
            "admin_only",
            "admin_only",
            "admin_only",
            "admin_only",
            "audit_query_ok",
            "bad_admin_token",
        ],
    ),
    (
        "network_delete",
        |w, who| {
            // Each deletes another one, which the owner made.
            let name = format!("doomed-{who:?}").to_lowercase();
            let made = w.owner.ask(&json!({"type": "network_create", "name": name,
                                           "join": rules(&["open"])}));
            json!({"type": "network_delete", "network": made["network"]["id"]})
        },
        ["session_required", "not_owner", "not_owner", "done_ok", "done_ok", "bad_admin_token"],
    ),
];

/// An invitation of an administrator for a node.
fn invited(w: &mut World, node: u64) -> Value {
    let to = Invitee::Node(NodeId(u32::try_from(node).unwrap()));
    let request = json!({"type": "invite", "network": w.network, "to": to, "expires": later()});
    w.admin.ok(request)["invitation"]["id"].clone()
}

#[test]
fn everybody_may_do_what_is_theirs_and_no_more() {
    let config = Config { any_node_makes_networks: true, ..joinable() };
    with_registry(config, |addr| {
        let mut owner = Node::new(addr, 1);
        let made = owner.ask(&json!({"type": "network_create", "name": "lab",
                                     "join": rules(&["open", "invite", "token"])}));
        let network = u16::try_from(made["network"]["id"].as_u64().unwrap()).unwrap();
        assert_eq!(made["network"]["owner"], owner.id);
        let mut member = Node::new(addr, 2);
        member.enter(network, json!({}));
        let mut world = World {
            nobody: Client::connect(addr),
            stranger: Node::new(addr, 3),
            member,
            owner,
            admin: Admin::new(addr),
            network,
            quiet: Client::connect(addr).register(&Identity::new(4)),
        };
        for (name, request, ends) in MATRIX {
            for (who, expected) in ALL.into_iter().zip(ends) {
                let request = request(&mut world, who);
                let reply = world.ask(who, request.clone());
                assert_eq!(end(&reply), *expected, "{name} by {who:?}: {request} -> {reply}");
            }
        }
    });
}

#[test]
fn nodes_make_networks_only_where_they_may() {
    with_registry(joinable(), |addr| {
        let create = json!({"type": "network_create", "name": "x", "join": rules(&["open"])});
        let mut node = Node::new(addr, 1);
        for reply in [node.ask(&create), Client::connect(addr).ask(create.clone())] {
            assert_eq!(reply["code"], "admin_only");
            assert!(reply["hint"].as_str().unwrap().contains("network-creation"), "{reply}");
        }
        let made = Admin::new(addr).ok(create);
        assert!(made["network"].get("owner").is_none(), "{made}");
    });
    // Without administrators no token is right.
    let config = Config { admin_token: None, ..joinable() };
    with_registry(config, |addr| {
        let create = json!({"type": "network_create", "name": "x", "join": rules(&["open"])});
        assert_eq!(Admin::new(addr).ask(create)["code"], "bad_admin_token");
    });
}

#[test]
fn only_who_manages_a_network_sees_how_its_rules_are_configured() {
    let config = Config { any_node_makes_networks: true, ..joinable() };
    with_registry(config, |addr| {
        let mut owner = Node::new(addr, 1);
        let join = json!({"combine": "any", "rules": [
            {"rule": "open", "config": {"tags": ["in-the-config"]}}, {"rule": "invite"}]});
        let made = owner.ask(&json!({"type": "network_create", "name": "lab", "join": join,
                                     "broadcast": {"tagged": "#boss"}}));
        assert_eq!(made["network"]["join"], join);
        assert_eq!(made["network"]["broadcast"], json!({"tagged": "boss"}));
        let id = &made["network"]["id"];
        let mut member = Node::new(addr, 2);
        member.enter(id.clone(), json!({}));
        let list = json!({"type": "network_list"});
        let (seen, own) = (member.ask(&list), owner.ask(&list));
        assert_eq!(seen["networks"][0]["join_rule"], "open|invite");
        assert_eq!(seen["networks"][0]["members"], 1);
        assert_eq!(seen["networks"][0]["membership"]["tags"], json!(["in-the-config"]));
        assert!(seen["networks"][0].get("join").is_none(), "{seen}");
        assert_eq!(own["networks"][0]["join"], join);
        assert!(own["networks"][0].get("membership").is_none(), "{own}");
        assert_eq!(Admin::new(addr).ok(list)["networks"][0]["join"], join);
        // Members stay when the rules change; who comes is judged by the new ones.
        let update = json!({"type": "network_update", "network": "lab", "join": rules(&["token"])});
        assert_eq!(owner.ask(&update)["network"]["members"], 1);
        assert_eq!(Node::new(addr, 3).join("lab", json!({}))["code"], "not_admitted");
        let members = member.ask(&json!({"type": "network_members", "network": "lab"}));
        let seen = &members["members"][0];
        assert_eq!((&seen["node_id"], &seen["rule"]), (&json!(member.id), &json!("open")));
        assert_eq!(seen["registered"], true);
    });
}

#[test]
fn what_cannot_be_is_refused_by_its_key() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["token"]));
        let create =
            |name: &str, join: Value| json!({"type": "network_create", "name": name, "join": join});
        let long = "x".repeat(16 * 1024);
        let nine: Vec<_> = (0..9).map(|n| json!({"rule": format!("r{n}")})).collect();
        let tags: Vec<_> = (0..33).map(|n| format!("t{n}")).collect();
        let token = |more: Value| {
            let mut request = json!({"type": "token_create", "network": lab});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            request
        };
        for (request, code, about) in [
            (create("Lab", rules(&["open"])), "invalid", "name"),
            (create("", rules(&["open"])), "invalid", "name"),
            (create("backbone", rules(&["open"])), "invalid", "reserved"),
            (create("lab", rules(&["open"])), "network_exists", "lab"),
            (create("x", json!({})), "invalid", "join.rules"),
            (create("x", json!({ "rules": nine })), "invalid", "join.rules"),
            (create("x", rules(&["open", "nope"])), "invalid", "join.rules[1].rule"),
            (create("x", rules(&["open", "open"])), "invalid", "named twice"),
            (
                create("x", json!({"rules": [{"rule": "open", "config": long}]})),
                "invalid",
                "join.rules[0].config",
            ),
            (create("x", json!({"rules": [{"rule": "open", "confg": 1}]})), "invalid", "confg"),
            (create("x", json!({"combine": "most", "rules": []})), "invalid", "most"),
            (
                json!({"type": "network_create", "name": "x", "join": rules(&["open"]),
                       "broadcast": {"tagged": "No Tag"}}),
                "invalid",
                "broadcast.tagged",
            ),
            (json!({"type": "network_update", "network": lab}), "invalid", "nothing to change"),
            (
                json!({"type": "network_update", "network": lab, "join": rules(&["nope"])}),
                "invalid",
                "there are: invite, open, token",
            ),
            (json!({"type": "network_delete", "network": 0}), "unknown_network", "backbone"),
            (json!({"type": "network_delete", "network": "nope"}), "unknown_network", "nope"),
            (
                json!({"type": "network_remove", "network": lab, "node_id": 9}),
                "not_member",
                "node 9",
            ),
            (token(json!({"uses": 0})), "invalid", "uses"),
            (token(json!({"expires": 5})), "invalid", "expires"),
            (token(json!({"tags": ["No Tag"]})), "invalid", "tags"),
            (token(json!({ "tags": tags })), "invalid", "more than 32"),
            (
                json!({"type": "token_revoke", "network": lab, "id": "nope"}),
                "token_gone",
                "revoked",
            ),
            (
                json!({"type": "invite", "network": lab, "to": {"owner": ""}, "expires": later()}),
                "invalid",
                "to.owner",
            ),
            (
                json!({"type": "invite", "network": lab, "to": {"owner": "a"}, "expires": later(),
                       "signature": "A".repeat(86) + "=="}),
                "invalid",
                "signature",
            ),
            (json!({"type": "invitation_revoke", "id": 77}), "invitation_gone", "invitation"),
            (json!({"type": "node_revoke", "node_id": 9}), "unknown_node", "node 9"),
        ] {
            let reply = admin.ask(request.clone());
            assert_eq!(reply["code"], code, "{request} -> {reply}");
            let message = reply["message"].as_str().unwrap();
            assert!(message.contains(about), "{request} -> {message}");
            assert_eq!(
                (&reply["error"], &reply["type"]),
                (&json!("request failed"), &json!("error"))
            );
        }
        assert_eq!(
            admin.ok(json!({"type": "network_list"}))["networks"].as_array().unwrap().len(),
            1
        );
    });
}

/// Good requests, of which each key is set to something wrong.
fn good() -> Vec<Value> {
    vec![
        json!({"type": "network_create", "name": "x", "join": rules(&["open"]),
               "broadcast": "nobody"}),
        json!({"type": "network_update", "network": 1, "join": rules(&["open"]),
               "broadcast": "members"}),
        json!({"type": "network_delete", "network": 1}),
        json!({"type": "network_join", "network": 1, "proofs": {}}),
        json!({"type": "network_leave", "network": 1}),
        json!({"type": "network_remove", "network": 1, "node_id": 1}),
        json!({"type": "network_list"}),
        json!({"type": "network_members", "network": 1, "after": 0, "limit": 10}),
        json!({"type": "token_create", "network": 1, "uses": 1, "expires": 1, "tags": []}),
        json!({"type": "token_list", "network": 1}),
        json!({"type": "token_revoke", "network": 1, "id": "x"}),
        json!({"type": "invite", "network": 1, "to": {"node": 1}, "expires": 1, "tags": [],
               "signature": null}),
        json!({"type": "invitation_list", "network": 1}),
        json!({"type": "invitation_decline", "id": 1}),
        json!({"type": "invitation_revoke", "id": 1}),
        json!({"type": "node_revoke", "node_id": 1, "reason": "x"}),
        json!({"type": "audit_query", "since": 1, "until": 1, "actor": "x", "operation": "x",
               "object": "x", "result": "denied", "after": 1, "limit": 1}),
    ]
}

#[test]
fn wrong_types_are_refused_and_close_nothing() {
    with_registry(joinable(), |addr| {
        let mut client = Client::connect(addr);
        let mut asked = 0;
        let mut kinds = BTreeSet::new();
        for good in good() {
            let kind = good["type"].as_str().unwrap().to_owned();
            let mut refused = |request: &Value, about: &str| {
                let reply = client.ask(request.clone());
                assert_eq!(reply["code"], "invalid", "{request} -> {reply}");
                let message = reply["message"].as_str().unwrap();
                assert!(message.contains(about), "{request} -> {message}");
                asked += 1;
            };
            let mut unknown = good.clone();
            unknown["surprise"] = 1.into();
            refused(&unknown, "surprise");
            let keys: Vec<_> =
                good.as_object().unwrap().keys().filter(|key| *key != "type").cloned().collect();
            for key in &keys {
                for wrong in [json!(true), json!([[]]), json!(-1.5), json!({"no": {"such": 1}})] {
                    // An object of any values.
                    if key == "proofs" && wrong.is_object() {
                        continue;
                    }
                    // Of a key within the value the inner one is named.
                    let inner = key == "join" && wrong.is_object();
                    let mut request = good.clone();
                    request[key] = wrong;
                    refused(&request, if inner { "`no`" } else { key });
                }
            }
            kinds.insert(kind);
        }
        assert!(asked > 100 && kinds.len() == 17, "{asked} {kinds:?}");
        // The connection is as good as before.
        assert_eq!(client.ask(json!({"type": "list_networks"}))["type"], "list_networks_ok");
    });
}

#[test]
fn the_published_requests_have_their_published_shapes() {
    with_registry(joinable(), |addr| {
        let mut client = Client::connect(addr);
        let (one, two, three) = (
            client.register(&Identity::new(1)),
            client.register(&Identity::new(2)),
            client.register(&Identity::new(3)),
        );
        let create = |name: &str, rule: &str, token: &str| {
            json!({"type": "create_network", "node_id": one, "name": name, "join_rule": rule,
                   "token": token, "admin_token": ADMIN})
        };
        let join = |node: u64, network: u64, token: &str, inviter: u64| {
            json!({"type": "join_network", "node_id": node, "network_id": network, "token": token,
                   "inviter_id": inviter, "admin_token": ADMIN})
        };
        let leave = |node: u64, network: u64| {
            json!({"type": "leave_network", "node_id": node, "network_id": network,
                   "admin_token": ADMIN})
        };
        let failed = |reply: &Value, code: &str| {
            assert_eq!(
                (&reply["error"], &reply["type"], &reply["code"]),
                (&json!("request failed"), &json!("error"), &json!(code)),
                "{reply}"
            );
        };
        // Who is no administrator does none of it.
        for mut request in [create("lab", "open", ""), join(two, 1, "", 0), leave(two, 1)] {
            request["admin_token"] = "wrong".into();
            failed(&client.ask(request.clone()), "bad_admin_token");
            request.as_object_mut().unwrap().remove("admin_token");
            failed(&client.ask(request), "admin_only");
        }
        assert_eq!(
            client.ask(create("lab", "open", "")),
            json!({"type": "create_network_ok", "network_id": 1, "name": "lab"})
        );
        assert_eq!(
            client.ask(create("vault", "token", "sesame")),
            json!({"type": "create_network_ok", "network_id": 2, "name": "vault"})
        );
        assert_eq!(client.ask(create("club", "invite", ""))["network_id"], 3);
        failed(&client.ask(create("lab", "open", "")), "network_exists");
        failed(&client.ask(create("backbone", "open", "")), "invalid");
        failed(&client.ask(create("Lab", "open", "")), "invalid");
        failed(&client.ask(create("x", "closed", "")), "invalid");
        failed(&client.ask(create("x", "token", "")), "invalid");

        let joined = client.ask(join(two, 1, "", 0));
        assert_eq!(
            joined,
            json!({"type": "join_network_ok", "network_id": 1, "address": "1:0001.0000.0002"})
        );
        failed(&client.ask(join(two, 1, "", 0)), "already_member");
        failed(&client.ask(join(99, 1, "", 0)), "unknown_node");
        failed(&client.ask(join(two, 77, "", 0)), "unknown_network");
        failed(&client.ask(join(two, 0, "", 0)), "unknown_network");
        failed(&client.ask(join(two, 2, "", 0)), "not_admitted");
        failed(&client.ask(join(two, 2, "Sesame", 0)), "not_admitted");
        assert_eq!(client.ask(join(two, 2, "sesame", 0))["type"], "join_network_ok");
        failed(&client.ask(join(one, 3, "", two)), "not_admitted");

        // Its token is good for nodes with a session as well, and not shown.
        let mut node = Node::new(addr, 9);
        assert_eq!(node.join(2, json!({"token": "Sesame"}))["code"], "not_admitted");
        node.enter(2, json!({"token": "sesame"}));
        let listed = Admin::new(addr).ok(json!({"type": "network_list"})).to_string();
        assert!(listed.contains("hashed") && !listed.contains("sesame"), "{listed}");
        // Tokens that count nothing are good here as well, others are not.
        let mut admin = Admin::new(addr);
        let (_, counted) = admin.token(2, json!({"uses": 9}));
        let (_, any) = admin.token(2, json!({}));
        failed(&client.ask(join(three, 2, &counted, 0)), "not_admitted");
        assert_eq!(client.ask(join(three, 2, &any, 0))["network_id"], 2);
        // A member lets others in.
        admin.ok(json!({"type": "invite", "network": 3, "to": {"node": node.id},
                        "expires": later()}));
        node.enter("club", json!({}));
        assert_eq!(client.ask(join(one, 3, "", node.id))["type"], "join_network_ok");

        let networks = client.ask(json!({"type": "list_networks"}));
        assert_eq!(
            networks,
            json!({"type": "list_networks_ok", "networks": [
                {"id": 0, "name": "backbone", "members": 4, "join_rule": "open"},
                {"id": 1, "name": "lab", "members": 1, "join_rule": "open"},
                {"id": 2, "name": "vault", "members": 3, "join_rule": "token"},
                {"id": 3, "name": "club", "members": 2, "join_rule": "invite"},
            ]})
        );
        let list = |network: u64| json!({"type": "list_nodes", "network_id": network});
        failed(&client.ask(list(0)), "unknown_network");
        failed(&client.ask(list(2)), "session_required");
        let public = Identity::new(2).signed("set_visibility", two, json!({"public": true}));
        assert_eq!(client.ask(public)["visibility"], "public");
        let named = Identity::new(2).signed("set_hostname", two, json!({"hostname": "two"}));
        assert_eq!(client.ask(named)["hostname"], "two");
        assert_eq!(
            client.ask(list(1)),
            json!({"type": "list_nodes_ok", "nodes": [{"node_id": two,
                   "address": "1:0001.0000.0002", "hostname": "two",
                   "real_addr": "127.0.0.1:4000"}]})
        );
        // What not everybody may join, members and administrators list.
        assert_eq!(node.ask(&list(2))["nodes"].as_array().unwrap().len(), 3);
        assert_eq!(admin.ok(list(3))["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(client.ask(leave(two, 1)), json!({"type": "leave_network_ok", "network_id": 1}));
        failed(&client.ask(leave(two, 1)), "not_member");
        failed(&client.ask(leave(two, 0)), "unknown_network");
        assert_eq!(client.ask(list(1)), json!({"type": "list_nodes_ok", "nodes": []}));
        // In which closed networks a node is, those see who are in them too.
        let found = json!({"type": "lookup", "node_id": two});
        assert_eq!(client.ask(found.clone())["networks"], json!([0]));
        assert_eq!(node.ask(&found)["networks"], json!([0, 2]));
        client.ask(join(two, 1, "", 0));
        assert_eq!(client.ask(found)["networks"], json!([0, 1]));
    });
}

#[test]
fn long_lists_come_in_pages() {
    const NODES: u32 = 1005;
    let config = Config { admin_token: Some(ADMIN.to_owned()), ..joinable() };
    with_registry(config, |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["open"]));
        let mut client = Client::connect(addr);
        let registered: Vec<_> = (1..=NODES).map(|seed| Identity::new(seed).register()).collect();
        let ids: Vec<_> =
            client.ask_all(&registered).iter().map(|r| r["node_id"].as_u64().unwrap()).collect();
        let joins: Vec<_> = ids
            .iter()
            .map(|id| {
                json!({"type": "join_network", "node_id": id, "network_id": lab,
                       "admin_token": ADMIN})
            })
            .collect();
        for reply in client.ask_all(&joins) {
            assert_eq!(reply["type"], "join_network_ok", "{reply}");
        }
        let mut listed = |kind: &str, key: &str, limit: Option<u32>| {
            let (mut seen, mut pages, mut after) = (Vec::new(), 0, Value::from(0));
            loop {
                let mut request = json!({"type": kind, "network": lab, "after": after});
                if kind == "list_nodes" {
                    request = json!({"type": kind, "network_id": lab, "after": after});
                }
                if let Some(limit) = limit {
                    request["limit"] = limit.into();
                }
                let reply = admin.ok(request);
                let page = reply[key].as_array().unwrap();
                seen.extend(page.iter().map(|one| one["node_id"].as_u64().unwrap()));
                pages += 1;
                after = reply["next"].clone();
                if after.is_null() {
                    return (seen, pages);
                }
                assert_eq!(after, page.last().unwrap()["node_id"]);
            }
        };
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert_eq!(listed("list_nodes", "nodes", None), (sorted.clone(), 2));
        assert_eq!(listed("network_members", "members", None), (sorted.clone(), 2));
        assert_eq!(listed("network_members", "members", Some(400)), (sorted.clone(), 3));
        assert_eq!(listed("network_members", "members", Some(u32::MAX)), (sorted, 2));
    });
}

#[test]
fn a_session_whose_key_was_replaced_acts_no_more() {
    with_registry(joinable(), |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["open"]));
        let mut a = Node::new(addr, 1);
        a.enter(lab, json!({}));
        let other = Identity::new(77);
        let rotate = json!({"type": "rotate_key", "node_id": a.id,
                            "new_public_key": other.public(),
                            "signature": a.key.sign(&format!("rotate:{}", a.id))});
        assert_eq!(Client::connect(addr).ask(rotate)["type"], "rotate_key_ok");
        // It is ended; what came before the end is refused.
        let request = json!({"type": "network_members", "network": lab});
        a.session.client.send_raw(request.to_string().as_bytes());
        while let Some(frame) = a.session.client.receive() {
            assert!(frame["type"] == "push" || frame["code"] == "session_required", "{frame}");
        }
        // A membership is the node's, whatever its key.
        let members = admin.ok(json!({"type": "network_members", "network": lab}));
        assert_eq!(members["members"][0]["node_id"], a.id);
    });
}

#[test]
fn a_registry_without_plugins_keeps_its_networks() {
    let dir = tempfile::tempdir().unwrap();
    let store = Some(dir.path().join("r.db"));
    with_registry(Config { store: store.clone(), ..joinable() }, |addr| {
        let mut admin = Admin::new(addr);
        let lab = admin.network("lab", &rules(&["open"]));
        Node::new(addr, 1).enter(lab, json!({}));
    });
    let bare = Config {
        store,
        plugin_path: Some(Vec::new()),
        admin_token: Some(ADMIN.to_owned()),
        ..config()
    };
    with_registry(bare, |addr| {
        let mut admin = Admin::new(addr);
        let reply = Node::new(addr, 2).join("lab", json!({}));
        let message = reply["message"].as_str().unwrap();
        assert!(message.contains("\"open\"") && message.contains("there is none"), "{message}");
        let members = admin.ok(json!({"type": "network_members", "network": "lab"}));
        assert_eq!(members["members"].as_array().unwrap().len(), 1);
    });
}
