//! The session: opened on each connection, its news in order, its end, and what
//! becomes of a registry that falls silent.

use super::*;
use crate::trust::Trusted;

const PEER: NodeId = NodeId(9);

fn sync(more: Value) -> Value {
    let mut news = json!({"kind": "sync", "trust": [], "revoked_by": [], "handshakes": false,
                          "memberships": [], "peers": [], "invitations": []});
    for (key, value) in more.as_object().unwrap() {
        news[key] = value.clone();
    }
    news
}

async fn registry() -> Mock {
    let mock = Mock::started().await;
    mock.state().epoch = "e1".to_owned();
    mock.state().first = Some(sync(json!({})));
    mock
}

async fn opened(rig: &Rig) {
    rig.joined().await;
    until("a session", || rig.handle.status().session == "open").await;
}

fn trusting(keys: &[(NodeId, [u8; 32])]) -> TrustState {
    let trusted = |key| Trusted { key: Some(key), approved_at: 0, mutual: true, network: 0 };
    let trusted = keys.iter().map(|(node, key)| (*node, trusted(*key))).collect();
    TrustState::new(trusted, Default::default(), Default::default(), Default::default())
}

fn revocations(rig: &Rig) -> Vec<(NodeId, u64)> {
    let commands = rig.commands.lock().unwrap();
    let revoked = |c: &Command| match c {
        Command::RevokedByPeer { node, young } => Some((*node, *young)),
        _ => None,
    };
    commands.iter().filter_map(revoked).collect()
}

#[tokio::test]
async fn a_session_is_opened_on_each_connection_and_goes_on_where_it_was() {
    let mut mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    let open = mock.last("session_open").unwrap();
    assert_eq!(
        (&open["node_id"], &open["epoch"], &open["since"]),
        (&json!(7), &json!(""), &json!(0))
    );
    rig.signed(&open["signature"], "session:7:bm9uY2U=");
    mock.push(41, json!({"kind": "trust", "node_id": 3, "mutual": true, "revoked": false}));
    mock.push(42, json!({"kind": "no_such_news"}));
    mock.push(43, json!({"kind": "handshakes"}));
    let polls = mock.count("poll_handshakes");
    until("fetched", || mock.count("poll_handshakes") > polls).await;
    mock.stop().await;
    until("down", || rig.handle.status().session == "none").await;
    mock.state().first = None;
    mock.start().await;
    until("again", || mock.count("session_open") == 2).await;
    let open = mock.last("session_open").unwrap();
    assert_eq!((&open["epoch"], &open["since"]), (&json!("e1"), &json!(43)));
    until("open", || rig.handle.status().session == "open").await;
    assert_eq!(rig.store.epoch().as_deref(), Some("e1"));
    assert_eq!(mock.count("register"), 1);
}

#[tokio::test]
async fn heartbeats_ride_on_it_and_handshakes_are_not_polled_for() {
    let mock = registry().await;
    let setting = Setting { calm: Duration::ZERO, ..Setting::default() };
    let rig = rig_of(&mock, setting);
    opened(&rig).await;
    until("beats", || mock.count("heartbeat") > 2).await;
    let polls = mock.count("poll_handshakes");
    until("more beats", || mock.count("heartbeat") > 8).await;
    assert_eq!(mock.count("poll_handshakes"), polls);
    assert_eq!(mock.count("session_open"), 1);
}

#[tokio::test]
async fn a_published_registry_is_asked_once_per_connection_and_polled() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    until("polled", || mock.count("poll_handshakes") > 4).await;
    assert_eq!((mock.count("session_challenge"), mock.count("session_open")), (1, 0));
    assert_eq!(rig.handle.status().session, "unsupported");
}

#[tokio::test]
async fn a_revocation_is_handed_to_trust_at_once() {
    let mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    mock.push(2, json!({"kind": "trust", "node_id": 3, "mutual": true, "revoked": false}));
    mock.push(3, json!({"kind": "trust", "node_id": 3, "mutual": false, "revoked": true}));
    mock.push(4, json!({"kind": "trust", "node_id": 4, "mutual": false, "revoked": true}));
    until("both", || revocations(&rig).len() == 2).await;
    // Trust that was never seen to be mutual may be about to be stated.
    assert_eq!(revocations(&rig), [(NodeId(3), 0), (NodeId(4), 60)]);
}

#[tokio::test]
async fn a_registry_with_another_state_is_told_of_trust_again_and_not_believed() {
    let mut mock = registry().await;
    mock.state().first = Some(sync(json!({"revoked_by": [3]})));
    let prepare = |store: &Store| store.set_epoch("e1".to_owned());
    let rig = rig_of(&mock, Setting { prepare: Box::new(prepare), ..Setting::default() });
    until("believed", || revocations(&rig) == [(NodeId(3), 60)]).await;
    let joins = || {
        rig.commands
            .lock()
            .unwrap()
            .iter()
            .filter(|c| matches!(c, Command::Joined { all: true }))
            .count()
    };
    let before = joins();
    mock.stop().await;
    until("down", || !rig.handle.status().up).await;
    mock.state().epoch = "e2".to_owned();
    mock.state().first = Some(sync(json!({"revoked_by": [3, 4], "handshakes": true})));
    mock.start().await;
    until("open", || rig.store.epoch().as_deref() == Some("e2")).await;
    until("stated again", || joins() > before).await;
    // A later frame of the same session: all before it was handled.
    mock.push(9, json!({"kind": "trust", "node_id": 5, "mutual": false, "revoked": true}));
    until("handled", || revocations(&rig).len() == 2).await;
    assert_eq!(revocations(&rig), [(NodeId(3), 60), (NodeId(5), 60)]);
}

#[tokio::test]
async fn a_changed_key_ends_the_tunnel_and_a_pinned_one_stays() {
    let mock = registry().await;
    let pinned = NodeId(8);
    let trust = trusting(&[(pinned, key(8))]);
    let prepare = |store: &Store| store.set_peer_key(PEER, key(1));
    let rig = rig_of(&mock, Setting { trust, prepare: Box::new(prepare), ..Setting::default() });
    opened(&rig).await;
    let view = |node: NodeId, byte: u8, endpoint: &str| {
        json!({"kind": "peer", "node_id": node, "registered": true,
               "public_key": PublicKey(key(byte)), "endpoint": endpoint})
    };
    mock.push(2, view(PEER, 2, "127.0.0.1:1000"));
    mock.push(3, view(PEER, 2, "127.0.0.1:1000"));
    mock.push(4, view(PEER, 2, "127.0.0.1:2000"));
    mock.push(5, view(pinned, 66, "127.0.0.1:3000"));
    mock.push(6, view(pinned, 66, "127.0.0.1:3000"));
    mock.push(7, json!({"kind": "peer", "node_id": pinned, "registered": false}));
    mock.push(8, view(NodeId(10), 3, "127.0.0.1:4000"));
    let last = ControlEvent::Endpoint { node: NodeId(10), endpoint: Some(endpoint(4000)) };
    until("all are handled", || rig.has(&last)).await;
    let new = ControlEvent::IdentityKey { node: PEER, key: Some(key(2)) };
    assert_eq!(rig.count(|e| *e == new), 1);
    assert_eq!(rig.store.peer(PEER).unwrap().key, Some(key(2)));
    for port in [1000, 2000] {
        let moved = ControlEvent::Endpoint { node: PEER, endpoint: Some(endpoint(port)) };
        assert_eq!(rig.count(|e| *e == moved), 1);
    }
    assert_eq!(rig.orders().iter().filter(|o| **o == format!("{pinned} forgotten")).count(), 1);
    assert_eq!(
        rig.count(|e| matches!(e, ControlEvent::IdentityKey { node, .. } if *node == pinned)),
        0
    );
    let refused = |h: &Happening| {
        matches!(h, Happening::SecurityRefused { rule, peer_node_id, .. }
            if rule == "pinned_key" && *peer_node_id == pinned)
    };
    assert_eq!(rig.said.all().iter().filter(|h| refused(h)).count(), 1);
}

#[tokio::test]
async fn what_the_registry_ends_is_opened_again() {
    let mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    mock.push(2, json!({"kind": "ended", "code": "deregistered"}));
    until("registered and open", || mock.count("register") == 2 && mock.count("session_open") == 2)
        .await;
    mock.push(3, json!({"kind": "ended", "code": "slow"}));
    until("open again", || mock.count("session_open") == 3).await;
    assert_eq!(mock.state().connections, 1);
}

/// Another daemon with this identity has taken the session, and the registry closed
/// the connection: the next one has none for a while, and is used all the same.
#[tokio::test]
async fn who_is_replaced_does_not_come_back_at_once() {
    let mut mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    mock.push(2, json!({"kind": "ended", "code": "replaced"}));
    until("ended", || rig.handle.status().session == "none").await;
    mock.stop().await;
    until("down", || !rig.handle.status().up).await;
    mock.start().await;
    let beats = mock.count("heartbeat");
    until("heartbeats", || mock.count("heartbeat") > beats + 5).await;
    let kinds: Vec<String> = mock.state().log.iter().map(|r| r["type"].to_string()).collect();
    assert_eq!(mock.count("session_open"), 1, "{kinds:?}");
}

/// What waits behind a join waits as long as the join may take; alone it does not.
#[tokio::test]
async fn a_slow_join_keeps_its_session() {
    let mock = registry().await;
    let identity = Identity::generate().unwrap();
    let address = Some(mock.address.to_string());
    let member = Member::with_limits(address, None, identity, Limits::DEFAULT);
    member.set_node(NodeId(7));
    mock.state().known.insert(7);
    let (opened, connection) = member.open_session(Vec::new()).await.unwrap();
    member.session().opened(connection, opened.epoch, true, false);
    mock.state().mood = Mood::Silent;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let network = pilot_wire::registry::network::NetworkRef::Id(5);
    let join = member.join_network(network, serde_json::Map::new());
    let beat = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        member.beat().await
    };
    let (joined, beat) = tokio::join!(join, beat);
    assert!(matches!(joined, Err(RegistryError::Unreachable(_))), "{joined:?}");
    assert!(matches!(beat, Err(RegistryError::Unreachable(_))), "{beat:?}");
    let passed = start.elapsed();
    assert!(passed >= Limits::DEFAULT.join, "{passed:?} of virtual time");
    assert!(passed <= Limits::DEFAULT.join + Duration::from_secs(1), "{passed:?}");
}

/// A registry that had sessions and refuses them is not believed: it is said, and
/// what networks permit ends.
#[tokio::test]
async fn a_registry_that_lost_its_sessions_is_not_taken_silently() {
    let mock = Mock::started().await;
    let prepare = |store: &Store| store.set_epoch("e1".to_owned());
    let rig = rig_of(&mock, Setting { prepare: Box::new(prepare), ..Setting::default() });
    until("said", || rig.handle.status().warning.is_some()).await;
    assert_eq!(rig.handle.status().session, "unsupported");
    until("an event", || rig.said.names().contains(&"registry.sessions_refused".to_owned())).await;
}

/// The same state of the registry on the next connection: trust that it has taken
/// is not told again.
#[tokio::test]
async fn trust_is_told_again_only_to_a_registry_that_may_have_lost_it() {
    let mut mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    until("stored", || rig.store.epoch().is_some()).await;
    mock.stop().await;
    until("down", || !rig.handle.status().up).await;
    mock.start().await;
    let joins = || {
        let commands = rig.commands.lock().unwrap();
        let joins = commands.iter().filter_map(|c| match c {
            Command::Joined { all } => Some(*all),
            _ => None,
        });
        joins.collect::<Vec<_>>()
    };
    until("told", || joins().len() == 2).await;
    assert_eq!(joins(), [true, false]);
}

#[tokio::test]
async fn who_is_revoked_stays_away_and_says_so() {
    let mock = registry().await;
    let rig = rig(&mock);
    opened(&rig).await;
    mock.push(2, json!({"kind": "ended", "code": "revoked"}));
    until("said", || rig.handle.status().revoked.is_some()).await;
    let status = rig.handle.status();
    assert!(!status.registered && status.revoked.unwrap().contains("administrator"));
    let (beats, registers) = (mock.count("heartbeat"), mock.count("register"));
    rig.handle.observed(endpoint(5));
    rig.handle.call(Call::ResolveHostname("x".into())).await.unwrap();
    // Nothing is awaited here: for several intervals nothing is sent.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(mock.count("heartbeat") <= beats + 1);
    assert_eq!(mock.count("register"), registers);
}

/// With the real limits, in virtual time: a registry that stops answering is
/// down within 10 seconds of its last word.
#[tokio::test]
async fn silence_is_noticed_within_ten_seconds() {
    let mock = registry().await;
    let identity = Identity::generate().unwrap();
    let address = Some(mock.address.to_string());
    let member = Member::with_limits(address, None, identity, Limits::DEFAULT);
    member.set_node(NodeId(7));
    mock.state().known.insert(7);
    member.open_session(Vec::new()).await.unwrap();
    member.beat().await.unwrap();
    let mut link = member.registry().link();
    mock.state().mood = Mood::Silent;
    tokio::time::pause();
    // The longest that can pass: it fell silent just after it had answered.
    let start = tokio::time::Instant::now();
    tokio::time::sleep(member.registry().limits().beat_interval).await;
    let (beat, down) = tokio::join!(member.beat(), link.wait_for(|link| !link.up));
    assert!(down.is_ok() && matches!(beat, Err(RegistryError::Unreachable(_))), "{beat:?}");
    let passed = start.elapsed();
    assert!(passed <= Duration::from_secs(10), "{passed:?} of virtual time");
}

#[tokio::test]
async fn news_that_nobody_handles_end_the_connection() {
    let mock = registry().await;
    let member = {
        let identity = Identity::generate().unwrap();
        Member::with_limits(Some(mock.address.to_string()), None, identity, LIMITS)
    };
    member.set_node(NodeId(7));
    member.open_session(Vec::new()).await.unwrap();
    let mut link = member.registry().link();
    for seq in 2..=4200 {
        mock.push(seq, json!({"kind": "handshakes"}));
    }
    let ended = link.wait_for(|link| link.error.is_some());
    let ended =
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap().clone();
    assert!(ended.error.unwrap().contains("more news"));
}

#[tokio::test]
async fn only_the_registry_with_the_pinned_certificate_is_spoken_to() {
    let mock = registry().await;
    let server = pilot_tls::ServerIdentity::ephemeral().unwrap();
    mock.state().tls = Some(server.acceptor(None).unwrap());
    let member = |pin| {
        let identity = Identity::generate().unwrap();
        let member = Member::with_limits(Some(mock.address.to_string()), pin, identity, LIMITS);
        member.set_node(NodeId(7));
        member
    };
    let good = member(Some(server.fingerprint()));
    assert_eq!(good.open_session(Vec::new()).await.unwrap().0.epoch, "e1");
    let wrong: pilot_tls::Pin = "ab".repeat(32).parse().unwrap();
    for (pin, expected) in [(Some(wrong), "fingerprint"), (None, "")] {
        let error = member(pin).open_session(Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(mock.count("session_open"), 1);
}
