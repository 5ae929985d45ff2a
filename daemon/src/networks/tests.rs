//! Networks against a registry that is played: joining with every proof,
//! back-off, terms that end without a registry, who is permitted when, and what
//! may be said to all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pilot_wire::registry::network::NetworkRef;
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};

use super::*;
use crate::config::Proof;
use crate::control::tests::mock::{Mock, until};
use crate::control::tests::{Rig, Setting, rig_of};

const LAB: u16 = 5;
const PEER: NodeId = NodeId(9);

fn membership(expires: Option<u64>) -> Value {
    json!({"network": LAB, "name": "lab", "address": "5:0005.0000.0007", "joined": 1,
           "expires": expires, "tags": ["red"], "may_broadcast": true})
}

fn sync(memberships: &[Value]) -> Value {
    json!({"kind": "sync", "trust": [], "revoked_by": [], "handshakes": false,
           "memberships": memberships, "peers": [], "invitations": []})
}

fn wanted(proofs: &[(&str, Proof)]) -> WantedNetwork {
    let proofs = proofs.iter().map(|(rule, proof)| ((*rule).to_owned(), proof.clone())).collect();
    WantedNetwork { network: NetworkRef::Name("lab".to_owned()), proofs }
}

async fn registry(memberships: &[Value]) -> Mock {
    let mock = Mock::started().await;
    mock.state().epoch = "e1".to_owned();
    mock.state().first = Some(sync(memberships));
    mock
}

fn status(rig: &Rig) -> Value {
    rig.networks.status()[0].clone()
}

fn denied(message: &str) -> Value {
    json!({"type": "error", "error": "request failed", "code": "join_denied", "message": message})
}

#[tokio::test]
async fn what_the_configuration_names_is_joined_with_its_proofs() {
    let mock = registry(&[]).await;
    mock.state().answers.insert("network_join".into(), json!({"membership": membership(None)}));
    let wanted = wanted(&[
        ("token", Proof::Value("secret".into())),
        ("word", Proof::Command(vec!["echo".into(), "said".into()])),
    ]);
    let rig = rig_of(&mock, Setting { wanted: vec![wanted], ..Setting::default() });
    until("joined", || status(&rig)["state"] == "joined").await;
    let asked = mock.last("network_join").unwrap();
    assert_eq!(asked["network"], "lab");
    assert_eq!(asked["proofs"], json!({"token": "secret", "word": "said"}));
    let status = status(&rig);
    let shown = [&status["id"], &status["name"], &status["tags"], &status["address"]];
    assert_eq!(shown, [&json!(5), &json!("lab"), &json!(["red"]), &json!("5:0005.0000.0007")]);
    until("the loop is told", || rig.orders().contains(&"in [5]".to_owned())).await;
    assert_eq!(rig.store.memberships().len(), 1);
    until("an event", || rig.said.names().contains(&"network.joined".to_owned())).await;
    assert!(!format!("{:?}", rig.said.all()).contains("secret"));
}

#[tokio::test]
async fn a_refusal_is_said_and_tried_again() {
    let mock = registry(&[]).await;
    mock.state().answers.insert("network_join".into(), denied("the token is used up"));
    let rig = rig_of(&mock, Setting { wanted: vec![wanted(&[])], ..Setting::default() });
    until("refused", || status(&rig)["state"] == "refused").await;
    let first = status(&rig);
    assert!(first["reason"].as_str().unwrap().contains("the token is used up"), "{first}");
    let pause = first["next_try"].as_u64().unwrap() - first["since"].as_u64().unwrap();
    assert!(pause <= 6, "{first}");
    assert_eq!(mock.count("network_join"), 1);
    until("an event", || rig.said.names().contains(&"network.refused".to_owned())).await;
}

/// Back-off in virtual time: attempts fail before they reach the registry, which
/// is not spoken to in that time.
#[tokio::test]
async fn pauses_double_up_to_ten_minutes() {
    let mock = registry(&[]).await;
    let unset = wanted(&[("token", Proof::Env("NOWHERE".into()))]);
    let setting = Setting {
        wanted: vec![unset],
        clock: virtual_clock,
        calm: Duration::from_secs(100_000),
        ..Setting::default()
    };
    let rig = rig_of(&mock, setting);
    let said = || rig.said.names().iter().filter(|e| *e == "network.refused").count();
    until("the first attempt", || said() == 1).await;
    tokio::time::pause();
    let mut pauses = vec![tokio::time::Instant::now()];
    for n in 1..9 {
        while said() <= n {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        pauses.push(tokio::time::Instant::now());
    }
    let between: Vec<u64> = pauses.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
    let limits = [5, 10, 20, 40, 80, 160, 320, 600];
    for (pause, limit) in between.iter().zip(limits) {
        assert!((limit / 2 - 1..=limit + 1).contains(pause), "{between:?}");
    }
    let status = status(&rig);
    assert!(status["reason"].as_str().unwrap().contains("NOWHERE is not set"), "{status}");
    assert_eq!(mock.count("network_join"), 0);
}

/// Seconds of the runtime's own clock.
fn virtual_clock() -> u64 {
    static START: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(tokio::time::Instant::now).elapsed().as_secs() + 1_000_000
}

/// A clock that tests set.
static MOMENT: AtomicU64 = AtomicU64::new(1000);

fn set_clock() -> u64 {
    MOMENT.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_term_ends_without_the_registry_and_with_it_what_it_permitted() {
    let mock = Mock::reserved().await;
    let known = |store: &Store| {
        store.set_member(NodeId(7), Address::backbone(NodeId(7)));
        store.set_memberships(vec![serde_json::from_value(membership(Some(1100))).unwrap()]);
        store.set_shared(PEER, &BTreeSet::from([LAB, 6]));
    };
    let setting = Setting { prepare: Box::new(known), clock: set_clock, ..Setting::default() };
    let rig = rig_of(&mock, setting);
    let permitted = format!("{PEER} Trusted");
    until("from memory", || rig.orders().contains(&permitted)).await;
    assert_eq!(rig.orders()[..3], ["in [5]".to_owned(), format!("{PEER} shares [5]"), permitted]);
    assert_eq!(status(&rig)["state"], "joined");
    MOMENT.store(1100, Ordering::Relaxed);
    until("it ends by the clock", || rig.orders().contains(&format!("{PEER} Stranger"))).await;
    assert!(rig.orders().contains(&"in []".to_owned()));
    assert_eq!(
        (&status(&rig)["state"], &status(&rig)["reason"]),
        (&json!("left"), &json!("expired"))
    );
    assert_eq!(rig.store.memberships(), []);
}

#[tokio::test]
async fn whoever_is_removed_stays_out_and_who_expires_comes_back() {
    let mock = registry(&[membership(None)]).await;
    mock.state().answers.insert("network_join".into(), json!({"membership": membership(None)}));
    let rig = rig_of(&mock, Setting { wanted: vec![wanted(&[])], ..Setting::default() });
    until("in it already", || status(&rig)["state"] == "joined").await;
    assert_eq!(mock.count("network_join"), 0);
    let left = |reason| json!({"kind": "left", "network": LAB, "name": "lab", "reason": reason});
    mock.push(2, left("expired"));
    until("joined again", || mock.count("network_join") == 1).await;
    until("joined", || status(&rig)["state"] == "joined").await;
    mock.push(3, left("removed"));
    until("left", || status(&rig)["state"] == "left").await;
    assert_eq!(status(&rig)["reason"], "removed");
    until("the loop", || rig.orders().last() == Some(&"in []".to_owned())).await;
    // Another session that says so as well.
    mock.push(4, sync(&[]));
    mock.push(5, json!({"kind": "handshakes"}));
    until("handled", || mock.count("poll_handshakes") > 1).await;
    assert_eq!((mock.count("network_join"), &status(&rig)["state"]), (1, &json!("left")));
}

#[tokio::test]
async fn who_shares_a_network_is_permitted_before_its_key_is_told() {
    let mock = registry(&[membership(None)]).await;
    mock.state().keys.insert(PEER.0, key(9));
    mock.state().networks = vec![0, LAB, 77];
    let rig = rig_of(&mock, Setting::default());
    until("in it", || rig.orders().contains(&"in [5]".to_owned())).await;
    assert!(rig.handle.lookup_key(PEER));
    until("the key", || rig.orders().contains(&format!("{PEER} key"))).await;
    let orders = rig.orders();
    let at = |text: String| orders.iter().position(|o| *o == text).unwrap();
    assert!(at(format!("{PEER} Trusted")) < at(format!("{PEER} key")), "{orders:?}");
    assert!(at(format!("{PEER} shares [5]")) < at(format!("{PEER} key")), "{orders:?}");
    until("watched", || mock.count("session_watch") > 0).await;
    // The registry has the last word.
    let view = json!({"kind": "peer", "node_id": PEER, "registered": true, "public_key": key(9)});
    mock.push(2, view);
    until("not shared any more", || rig.orders().contains(&format!("{PEER} Stranger"))).await;
    assert_eq!(rig.store.shared(), []);
}

fn key(byte: u8) -> String {
    pilot_wire::registry::PublicKey([byte; 32]).to_string()
}

#[tokio::test]
async fn requests_of_applications_go_to_the_registry_and_count_at_once() {
    let mock = registry(&[]).await;
    mock.state().answers.insert("network_join".into(), json!({"membership": membership(None)}));
    let done = json!({"type": "done_ok", "network_id": LAB});
    mock.state().answers.insert("network_leave".into(), done);
    let view = json!({"id": LAB, "name": "lab", "members": 1, "join_rule": "open", "created": 1});
    mock.state().answers.insert("network_list".into(), json!({"networks": [view]}));
    let invitation =
        json!({"id": 1, "network": LAB, "name": "lab", "to": {"node": 3}, "expires": 9});
    mock.state().answers.insert("invite".into(), json!({"invitation": invitation}));
    let rig = rig_of(&mock, Setting::default());
    rig.joined().await;
    until("a session", || rig.handle.status().session == "open").await;
    let ask = async |body: Value| rig.networks.request(body.to_string().as_bytes()).await;
    let invite = json!({"type": "invite", "network": "lab", "to": {"node": 3}, "expires": 9});
    ask(invite).await.unwrap();
    let sent = mock.last("invite").unwrap();
    assert_eq!(sent["network"], LAB, "the number stands for the name");
    rig.signed(&sent["signature"], "invite:5:9:node:3");
    let join = json!({"type": "network_join", "network": "lab", "proofs": {"token": "x"}});
    let answer = ask(join).await.unwrap();
    assert_eq!(answer["membership"], membership(None));
    assert_eq!(rig.networks.ours(&[4, LAB]), [LAB]);
    let status = ask(json!({"type": "network_status"})).await.unwrap();
    assert_eq!(status["networks"][0]["state"], "joined");
    ask(json!({"type": "network_leave", "network": "lab"})).await.unwrap();
    assert_eq!(rig.networks.ours(&[LAB]), [0; 0]);
    mock.state().answers.insert("network_delete".into(), denied("you are not its owner"));
    let answer = ask(json!({"type": "network_delete", "network": 5})).await.unwrap();
    assert_eq!(answer, denied("you are not its owner"), "a refusal is an answer");
    let answer = ask(json!({"type": "invite", "network": "no", "to": {"node": 3}, "expires": 9}));
    assert_eq!(answer.await.unwrap()["code"], "unknown_network");
    let refused = [
        (json!({"type": "network_fly"}), "no such request"),
        (json!({"type": "session_challenge"}), "only the daemon"),
        (json!({"type": "network_join", "netwrk": 1}), "netwrk"),
        (json!([]), "no type"),
    ];
    for (body, text) in refused {
        let error = ask(body).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn without_a_session_requests_say_why() {
    let mut mock = Mock::started().await;
    let rig = rig_of(&mock, Setting { wanted: vec![wanted(&[])], ..Setting::default() });
    rig.joined().await;
    until("a published registry", || rig.handle.status().session == "unsupported").await;
    let ask = async || rig.networks.request(br#"{"type": "network_list"}"#).await.unwrap_err();
    assert_eq!(ask().await.to_string(), "network_list: this registry knows no networks");
    until("said", || status(&rig)["reason"] == "this registry knows no networks").await;
    assert_eq!(status(&rig)["state"], "waiting");
    mock.stop().await;
    until("down", || !rig.handle.status().up).await;
    let error = ask().await.to_string();
    assert!(error.starts_with("network_list: not connected"), "{error}");
}

#[tokio::test]
async fn broadcasts_are_for_members_and_not_for_floods() {
    let mock = registry(&[membership(None)]).await;
    let member = |node: u32, registered: bool| json!({"node_id": node, "address": "5:0005.0000.0001", "joined": 1, "registered": registered});
    let members =
        json!({"members": [member(1, true), member(2, false), member(7, true), member(8, true)]});
    mock.state().answers.insert("network_members".into(), members);
    let rig = rig_of(&mock, Setting::default());
    until("in it", || rig.orders().contains(&"in [5]".to_owned())).await;
    let all = |network| Address { network, node: NodeId::BROADCAST }.port(1000);
    let error = |network, len| match rig.networks.broadcast(all(network), &vec![0; len]) {
        Ok(_) => panic!("sent"),
        Err(refused) => refused.text,
    };
    assert_eq!(error(6, 1), "this node is not a member of network 6");
    assert!(error(LAB, 1025).contains("a broadcast takes 1024"));
    for _ in 0..5 {
        rig.networks.broadcast(all(LAB), b"x").unwrap().await.unwrap();
    }
    until("sent", || rig.orders().iter().filter(|o| *o == "broadcast to [1, 8]").count() == 5)
        .await;
    assert_eq!(mock.count("network_members"), 1, "the list is kept for a while");
    let sent = (0..40).filter(|_| rig.networks.broadcast(all(LAB), b"x").is_ok()).count();
    assert!((15..20).contains(&sent), "{sent}");
    assert!(error(LAB, 1).contains("broadcasts a second"));
}

#[tokio::test]
async fn too_many_members_are_too_many() {
    let mock = registry(&[membership(None)]).await;
    let member = |node: u32| json!({"node_id": node, "address": "5:0005.0000.0001", "joined": 1, "registered": true});
    let members: Vec<Value> = (100..5000).map(member).collect();
    mock.state().answers.insert("network_members".into(), json!({"members": members}));
    let rig = rig_of(&mock, Setting::default());
    until("in it", || rig.orders().contains(&"in [5]".to_owned())).await;
    let to = Address { network: LAB, node: NodeId::BROADCAST }.port(1000);
    let refused = rig.networks.broadcast(to, b"x").unwrap().await.unwrap_err();
    assert!(refused.text.contains("more than 4096 members"), "{refused}");
}

/// A membership that is over when it comes, as with clocks that differ, does not
/// make a loop of joining.
#[tokio::test]
async fn a_membership_that_comes_expired_is_not_asked_for_again_at_once() {
    let mock = registry(&[]).await;
    let over = json!({"membership": membership(Some(5))});
    mock.state().answers.insert("network_join".into(), over);
    let rig = rig_of(&mock, Setting { wanted: vec![wanted(&[])], ..Setting::default() });
    until("it came and went", || {
        let names = rig.said.names();
        names.iter().any(|n| n == "network.left") && !status(&rig)["next_try"].is_null()
    })
    .await;
    assert_eq!(
        (&status(&rig)["state"], &status(&rig)["reason"]),
        (&json!("waiting"), &json!("expired"))
    );
    let beats = mock.count("heartbeat");
    until("time passes", || mock.count("heartbeat") > beats + 10).await;
    assert_eq!(mock.count("network_join"), 1);
}

/// What the configuration names is joined at every start, also when the
/// registry has forgotten it meanwhile.
#[tokio::test]
async fn a_start_joins_what_was_lost_meanwhile() {
    let mock = registry(&[]).await;
    mock.state().answers.insert("network_join".into(), json!({"membership": membership(None)}));
    let known = |store: &Store| {
        store.set_member(NodeId(7), Address::backbone(NodeId(7)));
        store.set_epoch("e1".to_owned());
        store.set_memberships(vec![serde_json::from_value(membership(None)).unwrap()]);
    };
    let setting =
        Setting { wanted: vec![wanted(&[])], prepare: Box::new(known), ..Setting::default() };
    let rig = rig_of(&mock, setting);
    until("joined", || mock.count("network_join") == 1 && status(&rig)["state"] == "joined").await;
}

/// A peer that is not registered may be back in a moment, unless it was shut
/// out: then it is in no network any more.
#[tokio::test]
async fn an_unregistered_peer_stays_permitted_while_it_is_a_member() {
    let mock = registry(&[membership(None)]).await;
    let members = |node: u32| json!({"members": [{"node_id": node, "address": "5:0005.0000.0009", "joined": 1}]});
    mock.state().answers.insert("network_members".into(), members(PEER.0));
    let rig = rig_of(&mock, Setting::default());
    until("in it", || rig.orders().contains(&"in [5]".to_owned())).await;
    let view = |registered: bool| {
        let mut view = json!({"kind": "peer", "node_id": PEER, "registered": registered});
        if registered {
            view["public_key"] = key(9).into();
            view["shared_networks"] = json!([LAB]);
        }
        view
    };
    mock.push(2, view(true));
    until("permitted", || rig.orders().contains(&format!("{PEER} Trusted"))).await;
    mock.push(3, view(false));
    until("asked", || mock.count("network_members") == 1).await;
    let asked = mock.last("network_members").unwrap();
    assert_eq!((&asked["after"], &asked["limit"]), (&json!(8), &json!(1)));
    mock.state().answers.insert("network_members".into(), members(PEER.0 + 1));
    mock.push(4, view(false));
    until("shut out", || rig.orders().last() == Some(&format!("{PEER} Stranger"))).await;
    assert_eq!(rig.orders().iter().filter(|o| **o == format!("{PEER} Stranger")).count(), 1);
    until("forgotten", || rig.store.shared().is_empty()).await;
}

/// One network under its name and its number is joined once.
#[tokio::test]
async fn a_network_configured_twice_is_a_duplicate() {
    let mock = registry(&[membership(None)]).await;
    let by_number = WantedNetwork { network: NetworkRef::Id(LAB), ..wanted(&[]) };
    let setting = Setting { wanted: vec![wanted(&[]), by_number], ..Setting::default() };
    let rig = rig_of(&mock, setting);
    until("joined", || status(&rig)["state"] == "joined").await;
    until("said", || rig.networks.status()[1]["reason"] == "duplicate of lab").await;
    assert_eq!(mock.count("network_join"), 0);
}

/// What the registry said later counts, in whatever order it is read.
#[tokio::test]
async fn an_answer_that_is_overtaken_does_not_count() {
    let mock = registry(&[]).await;
    let rig = rig_of(&mock, Setting::default());
    rig.joined().await;
    until("a session", || rig.handle.status().session == "open").await;
    let lab = || serde_json::from_value::<Membership>(membership(None)).unwrap();
    rig.networks.left(LAB, "lab".to_owned(), "removed".to_owned(), 1000).await;
    rig.networks.joined(lab(), 999).await;
    assert_eq!(rig.networks.ours(&[LAB]), [0; 0]);
    rig.networks.joined(lab(), 1001).await;
    assert_eq!(rig.networks.ours(&[LAB]), [LAB]);
    rig.networks.withdrawn().await;
    assert_eq!(rig.networks.ours(&[LAB]), [0; 0]);
}

/// A peer that is not watched any more is not told of: what it shares counts no
/// longer, until it is found again.
#[tokio::test]
async fn who_is_not_watched_any_more_is_not_permitted() {
    let mock = registry(&[membership(None)]).await;
    let rig = rig_of(&mock, Setting::default());
    until("in it", || rig.orders().contains(&"in [5]".to_owned())).await;
    rig.networks.found(PEER, &[LAB]).await;
    until("permitted", || rig.orders().contains(&format!("{PEER} Trusted"))).await;
    for node in 100..100 + 2048 {
        rig.networks.watched().touch(NodeId(node));
    }
    until("forgotten", || rig.orders().contains(&format!("{PEER} Stranger"))).await;
    until("on disk", || rig.store.shared().is_empty()).await;
    rig.networks.shares(PEER, &[LAB], &[]).await;
    assert_eq!(rig.store.shared(), [], "what was on its way does not count");
    assert!(rig.networks.was_forgotten(PEER));
    rig.networks.found(PEER, &[LAB]).await;
    rig.networks.found(PEER, &[]).await;
    until("a lookup ends it", || rig.orders().last() == Some(&format!("{PEER} Stranger"))).await;
}
