//! The control plane against a registry that behaves and one that does not.

pub(crate) mod mock;
mod sessions;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ed25519_dalek::{Verifier, VerifyingKey};
use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::{PublicKey, Signature, challenge};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};

use self::mock::{Mock, Mood, until};
use super::registry::{Limits, Registry};
use super::*;
use crate::config::{Plaintext, WantedNetwork};
use crate::events::tests::Heard;
use crate::identity::Identity;
use crate::networks::{self, Networks, NetworksParts, Permits};
use crate::node::{self, Order};
use crate::state::Store;
use crate::trust::{self, Command, Pins, TrustState};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(2),
    answer: Duration::from_millis(300),
    join: Duration::from_secs(2),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(50),
    beat: Duration::from_millis(200),
    beat_interval: Duration::from_millis(40),
    spread: Duration::from_millis(30),
};

/// A control plane with everything around it recorded.
pub(crate) struct Rig {
    pub(crate) handle: ControlHandle,
    pub(crate) control: Control,
    pub(crate) networks: Networks,
    pub(crate) store: Store,
    pub(crate) identity: Identity,
    pub(crate) events: Arc<Mutex<Vec<ControlEvent>>>,
    /// What the loop was told, as text.
    orders: Arc<Mutex<Vec<String>>>,
    pub(crate) commands: Arc<Mutex<Vec<Command>>>,
    pub(crate) said: Arc<Heard>,
    _tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

/// How a rig is set up.
pub(crate) struct Setting {
    pub(crate) prepare: Box<dyn FnOnce(&Store)>,
    pub(crate) trust: TrustState,
    pub(crate) beacon: Option<String>,
    pub(crate) wanted: Vec<WantedNetwork>,
    pub(crate) clock: fn() -> u64,
    /// No request is made by itself for so long; zero for the usual intervals.
    pub(crate) calm: Duration,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            prepare: Box::new(|_| {}),
            trust: TrustState::default(),
            beacon: None,
            wanted: Vec::new(),
            clock: unix_now,
            calm: Duration::ZERO,
        }
    }
}

fn endpoint(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn key(byte: u8) -> [u8; 32] {
    [byte; 32]
}

fn rig(mock: &Mock) -> Rig {
    rig_of(mock, Setting::default())
}

fn rig_with(
    mock: &Mock,
    prepare: impl FnOnce(&Store) + 'static,
    trust: &TrustState,
    beacon: Option<&str>,
) -> Rig {
    let (prepare, trust) = (Box::new(prepare), trust.clone());
    let beacon = beacon.map(str::to_owned);
    rig_of(mock, Setting { prepare, trust, beacon, ..Setting::default() })
}

/// An order to the loop, where it is about who may reach the node.
fn shown(order: &Order) -> Option<String> {
    Some(match order {
        Order::Permission { node, permission } => format!("{node} {permission:?}"),
        Order::Shared { node, networks, .. } => format!("{node} shares {networks:?}"),
        Order::Networks(networks) => format!("in {networks:?}"),
        Order::Broadcast { recipients, .. } => {
            format!("broadcast to {:?}", recipients.iter().map(|n| n.0).collect::<Vec<_>>())
        }
        Order::Forget { node } => format!("{node} forgotten"),
        Order::Control(ControlEvent::IdentityKey { node, .. }) => format!("{node} key"),
        _ => return None,
    })
}

pub(crate) fn rig_of(mock: &Mock, setting: Setting) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::load(&dir.path().join("state.json")).unwrap();
    (setting.prepare)(&store);
    let identity = Identity::generate().unwrap();
    let limits = match setting.calm {
        Duration::ZERO => LIMITS,
        calm => Limits { answer: calm, beat: calm, beat_interval: calm, ..LIMITS },
    };
    let address = Some(mock.address.to_string());
    let member = Member::with_limits(address, None, identity.clone(), limits);
    let pins = Pins::default();
    pins.follow(&setting.trust);
    let (handle, inbox) = channel();
    let (node, mut inbox_of_node) = node::channel();
    let (trust, mut commands) = trust::channel(handle.clone());
    let (events, orders, heard) = (Arc::default(), Arc::default(), Arc::default());
    let mut tasks = JoinSet::new();
    let (sink, order_sink): (Arc<Mutex<Vec<_>>>, Arc<Mutex<Vec<_>>>) =
        (Arc::clone(&events), Arc::clone(&orders));
    let trust_sink: Arc<Mutex<Vec<_>>> = Arc::clone(&heard);
    tasks.spawn(async move {
        while let Some(order) = inbox_of_node.orders.recv().await {
            order_sink.lock().unwrap().extend(shown(&order));
            if let Order::Control(event) = order {
                sink.lock().unwrap().push(event);
            }
        }
    });
    tasks.spawn(async move {
        while let Some(command) = commands.commands.recv().await {
            trust_sink.lock().unwrap().push(command);
        }
    });
    let said = Arc::new(Heard::default());
    let settings = ControlSettings {
        registry: Some(mock.address.to_string()),
        beacon: setting.beacon,
        listen: endpoint(4444),
        endpoint: None,
        owner: "me".to_owned(),
        keepalive: Duration::from_millis(40).max(setting.calm),
    };
    let (networks, inbox_of_networks) = networks::channel(NetworksParts {
        wanted: setting.wanted,
        member: member.clone(),
        store: store.clone(),
        permits: Permits::new(node.clone(), pins.trusted()),
        node: node.clone(),
        events: said.events(),
        environment: Arc::new(|_| None),
        clock: setting.clock,
        plaintext: Plaintext::Fine,
    });
    tasks.spawn(inbox_of_networks.run());
    let parts = ControlParts {
        settings,
        networks: networks.clone(),
        member,
        store: store.clone(),
        peers: PeerBook::new(pins.clone(), store.clone()),
        pins,
        node,
        trust,
        events: said.events(),
    };
    let control = spawn(parts, inbox);
    Rig {
        handle,
        control,
        networks,
        store,
        identity,
        events,
        orders,
        commands: heard,
        said,
        _tasks: tasks,
        _dir: dir,
    }
}

impl Rig {
    pub(crate) fn has(&self, event: &ControlEvent) -> bool {
        self.events.lock().unwrap().contains(event)
    }

    pub(crate) fn count(&self, wanted: impl Fn(&ControlEvent) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|e| wanted(e)).count()
    }

    /// What the loop was told of who may reach the node.
    pub(crate) fn orders(&self) -> Vec<String> {
        self.orders.lock().unwrap().clone()
    }

    pub(crate) fn signed(&self, signature: &Value, text: &str) {
        assert_signed(&self.identity, signature, text);
    }

    pub(crate) async fn joined(&self) {
        until("registered", || self.handle.status().registered && self.handle.status().up).await;
    }
}

fn registered(node: u32) -> ControlEvent {
    let node = NodeId(node);
    ControlEvent::Registered { node, address: Address::backbone(node) }
}

#[tokio::test]
async fn joins_restores_and_stays() {
    let mock = Mock::started().await;
    let rig = rig_with(
        &mock,
        |store| {
            store.wish(|w| {
                w.hostname = "agent".into();
                w.public = true;
                w.tags = vec!["t".into()];
                w.task_exec = true;
            });
        },
        &TrustState::default(),
        None,
    );
    rig.joined().await;
    let register = mock.last("register").unwrap();
    assert_eq!(
        (&register["listen_addr"], &register["owner"]),
        (&json!("127.0.0.1:4444"), &json!("me"))
    );
    let text = challenge::register(register["timestamp"].as_u64().unwrap(), "127.0.0.1:4444");
    assert_signed(&rig.identity, &register["proof"], &text);
    let hostname = mock.last("set_hostname").unwrap();
    assert_eq!((&hostname["hostname"], &hostname["node_id"]), (&json!("agent"), &json!(7)));
    assert_signed(&rig.identity, &hostname["signature"], "set_hostname:7");
    assert_eq!(mock.last("set_visibility").unwrap()["public"], true);
    assert_eq!(mock.last("set_tags").unwrap()["tags"], json!(["t"]));
    assert_eq!(mock.last("set_task_exec").unwrap()["enabled"], true);
    until("events", || rig.has(&registered(7)) && rig.has(&ControlEvent::RegistryUp)).await;
    until("trust is told", || {
        rig.commands.lock().unwrap().iter().any(|c| matches!(c, Command::Joined { .. }))
    })
    .await;
    until("heartbeats", || mock.count("heartbeat") > 3 && mock.count("poll_handshakes") > 3).await;
    assert_signed(&rig.identity, &mock.last("heartbeat").unwrap()["signature"], "heartbeat:7");
    assert_eq!((mock.count("register"), mock.state().connections), (1, 1));
    assert_eq!(rig.store.member(), Some((NodeId(7), Address::backbone(NodeId(7)))));
    rig.control.leave().await;
    assert_signed(&rig.identity, &mock.last("deregister").unwrap()["signature"], "deregister:7");
}

fn assert_signed(identity: &Identity, signature: &Value, text: &str) {
    let key = VerifyingKey::from_bytes(&identity.public_key().0).unwrap();
    let signature = Signature::from_base64(signature.as_str().unwrap()).unwrap();
    key.verify(text.as_bytes(), &ed25519_dalek::Signature::from_bytes(&signature.0)).unwrap();
}

#[tokio::test]
async fn starts_from_memory_while_the_registry_is_away() {
    let mut mock = Mock::reserved().await;
    let rig = rig_with(
        &mock,
        |store| {
            store.set_member(NodeId(5), Address::backbone(NodeId(5)));
            store.set_peer_key(NodeId(9), key(9));
            store.set_peer_endpoint(NodeId(9), endpoint(9));
        },
        &TrustState::default(),
        None,
    );
    until("memory", || rig.has(&registered(5))).await;
    until("down", || rig.count(|e| matches!(e, ControlEvent::RegistryDown { .. })) == 1).await;
    let status = rig.handle.status();
    assert!(!status.up && !status.registered && status.node == Some(NodeId(5)));
    assert!(status.last_error.unwrap().contains(&mock.address.to_string()));
    assert!(rig.handle.resolve_endpoint(NodeId(9)));
    assert!(rig.handle.lookup_key(NodeId(9)));
    assert!(rig.handle.lookup_key(NodeId(10)));
    let found = ControlEvent::Endpoint { node: NodeId(9), endpoint: Some(endpoint(9)) };
    until("endpoint from memory", || rig.has(&found)).await;
    until("keys from memory", || {
        rig.has(&ControlEvent::IdentityKey { node: NodeId(9), key: Some(key(9)) })
            && rig.has(&ControlEvent::IdentityKey { node: NodeId(10), key: None })
    })
    .await;
    let error = rig.handle.call(Call::SetHostname("x".into())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::REGISTRY);
    assert!(error.message.starts_with("set_hostname: registry 127.0.0.1:"), "{error}");

    // Another number than remembered: the new one is used.
    mock.start().await;
    rig.joined().await;
    until("new number", || rig.has(&registered(7))).await;
    assert_eq!(rig.store.member().unwrap().0, NodeId(7));
    assert_eq!(rig.store.peer(NodeId(9)), None, "numbers of another registry");
}

#[tokio::test]
async fn comes_back_after_a_registry_that_forgot_everything() {
    let mut mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    rig.handle.call(Call::SetHostname("set-later".into())).await.unwrap();
    rig.handle.call(Call::SetVisibility(true)).await.unwrap();
    rig.handle.call(Call::SetTags(vec!["a".into()])).await.unwrap();
    mock.stop().await;
    until("down", || rig.count(|e| matches!(e, ControlEvent::RegistryDown { .. })) == 1).await;
    mock.state().known.clear();
    mock.state().log.clear();
    mock.start().await;
    until("registered again", || mock.count("set_tags") == 1).await;
    rig.joined().await;
    assert_eq!(mock.last("set_hostname").unwrap()["hostname"], "set-later");
    assert_eq!(mock.last("set_visibility").unwrap()["public"], true);
    assert_eq!(rig.count(|e| *e == ControlEvent::RegistryUp), 2);
    let said: Vec<_> =
        rig.said.names().into_iter().filter(|name| name.starts_with("node.")).collect();
    assert_eq!(said, ["node.registered", "node.reregistered"]);
    let said: Vec<_> =
        rig.said.names().into_iter().filter(|name| name.starts_with("registry.")).collect();
    assert_eq!(said, ["registry.up", "registry.down", "registry.up"]);
    let joins =
        rig.commands.lock().unwrap().iter().filter(|c| matches!(c, Command::Joined { .. })).count();
    assert_eq!(joins, 2);
}

#[tokio::test]
async fn after_a_restart_the_registry_is_told_everything_again() {
    let mut mock = Mock::started().await;
    let wish = |store: &Store| store.wish(|w| w.hostname = "agent".into());
    let rig = rig_with(&mock, wish, &TrustState::default(), None);
    let reports = || {
        rig.commands.lock().unwrap().iter().filter(|c| matches!(c, Command::Joined { .. })).count()
    };
    rig.joined().await;
    until("told", || reports() == 1).await;
    mock.stop().await;
    until("down", || !rig.handle.status().up).await;
    mock.start().await;
    until("told again", || reports() == 2).await;
    // Nothing was forgotten, so the node need not register.
    assert_eq!((mock.count("register"), mock.count("set_hostname")), (1, 2));
    let beats = mock.count("heartbeat");
    until("beats", || mock.count("heartbeat") > beats + 2).await;
    assert_eq!((reports(), mock.count("set_hostname")), (2, 2), "once per connection");
}

#[tokio::test]
async fn a_hostname_that_is_taken_is_a_warning() {
    let mock = Mock::started().await;
    mock.state().refuse.insert("set_hostname".into());
    let wish = |store: &Store| store.wish(|w| w.hostname = "taken".into());
    let rig = rig_with(&mock, wish, &TrustState::default(), None);
    rig.joined().await;
    let status = rig.handle.status();
    assert_eq!(status.hostname, "");
    assert!(status.hostname_error.unwrap().contains("\"taken\""));
    let error = rig.handle.call(Call::SetHostname("taken".into())).await.unwrap_err();
    assert_eq!(error.message, "set_hostname: registry: request failed");
    assert_eq!(error.code, ErrorCode::ALREADY_EXISTS);
}

#[tokio::test]
async fn silence_and_nonsense_end_the_connection_and_nothing_else() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    let moods = [
        Mood::Silent,
        Mood::Nonsense(b"\0\0\0\x05hello".to_vec()),
        Mood::Nonsense(b"\xFF\xFF\xFF\xFF".to_vec()),
        Mood::Nonsense(b"\0\0\0\x04null".to_vec()),
        Mood::Nonsense(b"\0\0\0\x02[]".to_vec()),
        Mood::Nonsense(b"\0\0\0\x13{\"type\":\"other_ok\"}".to_vec()),
        Mood::Nonsense(b"\0\0\0\x02{}\0\0\0\x02{}".to_vec()),
    ];
    for mood in moods {
        mock.state().mood = mood.clone();
        let error = rig.handle.call(Call::ResolveHostname("x".into())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::REGISTRY, "{mood:?}: {error}");
        mock.state().mood = Mood::Fine;
        until("up again", || rig.handle.status().up).await;
        let answer = rig.handle.call(Call::ResolveHostname("x".into())).await;
        assert_eq!(answer.unwrap()["node_id"], 9, "{mood:?}");
    }
    assert!(mock.state().connections > 6);
}

#[tokio::test]
async fn a_request_lost_with_its_connection_is_repeated_once() {
    let mock = Mock::started().await;
    let registry = Registry::spawn(Some(mock.address.to_string()), None, LIMITS);
    let request = pilot_wire::registry::Request::ResolveHostname { hostname: "x" };
    registry.call::<pilot_wire::registry::ResolvedHostname>(&request).await.unwrap();
    mock.state().mood = Mood::Hangup(1);
    registry.call::<pilot_wire::registry::ResolvedHostname>(&request).await.unwrap();
    assert_eq!(mock.count("resolve_hostname"), 3);
    mock.state().mood = Mood::Hangup(2);
    let twice = registry.call::<pilot_wire::registry::ResolvedHostname>(&request).await;
    assert!(matches!(twice, Err(RegistryError::Unreachable(_))), "{twice:?}");
}

#[tokio::test]
async fn many_requests_share_one_connection_and_keep_their_answers() {
    let mock = Mock::started().await;
    for node in 1..=200 {
        mock.state().endpoints.insert(node, format!("127.0.0.1:{node}"));
        mock.state().keys.insert(node, PublicKey(key(1)).to_string());
    }
    let rig = rig(&mock);
    rig.joined().await;
    for node in 1..=200 {
        assert!(rig.handle.resolve_endpoint(NodeId(node)));
    }
    for node in 1..=200 {
        let port = u16::try_from(node).unwrap();
        let event = ControlEvent::Endpoint { node: NodeId(node), endpoint: Some(endpoint(port)) };
        until("its own answer", || rig.has(&event)).await;
    }
    assert_eq!(mock.state().connections, 1);
    let resolve = mock.last("resolve").unwrap();
    assert_signed(
        &rig.identity,
        &resolve["signature"],
        &format!("resolve:7:{}", resolve["node_id"]),
    );
    // What the registry refuses is not answered from memory.
    mock.state().endpoints.clear();
    assert!(rig.handle.resolve_endpoint(NodeId(1)));
    let none = ControlEvent::Endpoint { node: NodeId(1), endpoint: None };
    until("refused", || rig.has(&none)).await;
}

#[tokio::test]
async fn keys_are_asked_for_once() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    mock.state().keys.insert(2, PublicKey(key(2)).to_string());
    let known = ControlEvent::IdentityKey { node: NodeId(2), key: Some(key(2)) };
    let unknown = ControlEvent::IdentityKey { node: NodeId(3), key: None };
    for _ in 0..20 {
        assert!(rig.handle.lookup_key(NodeId(2)));
        assert!(rig.handle.lookup_key(NodeId(3)));
    }
    until("both are answered", || rig.has(&known) && rig.has(&unknown)).await;
    for n in 1..10 {
        assert!(rig.handle.lookup_key(NodeId(2)));
        assert!(rig.handle.lookup_key(NodeId(3)));
        until("from memory", || rig.count(|e| *e == known) > n && rig.count(|e| *e == unknown) > n)
            .await;
    }
    assert_eq!(mock.count("lookup"), 2);
}

#[tokio::test]
async fn strangers_cannot_flood_the_registry_with_lookups() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    for node in 100..1000 {
        assert!(rig.handle.lookup_key(NodeId(node)));
    }
    until("all are answered", || {
        rig.count(|e| matches!(e, ControlEvent::IdentityKey { key: None, .. })) == 900
    })
    .await;
    assert!((100..400).contains(&mock.count("lookup")), "{}", mock.count("lookup"));
}

#[tokio::test]
async fn the_pinned_key_of_a_trusted_peer_stands() {
    let mock = Mock::started().await;
    mock.state().keys.insert(2, PublicKey(key(66)).to_string());
    mock.state().keys.insert(3, PublicKey(key(3)).to_string());
    let trusted = |key| trust::Trusted { key, approved_at: 0, mutual: true, network: 0 };
    let trust = TrustState::new(
        [(NodeId(2), trusted(Some(key(2)))), (NodeId(3), trusted(None))].into_iter().collect(),
        Default::default(),
        Default::default(),
        Default::default(),
    );
    let rig = rig_with(&mock, |_| {}, &trust, None);
    rig.joined().await;
    for _ in 0..2 {
        assert!(rig.handle.lookup_key(NodeId(2)));
        until("the background check", || mock.count("lookup") == 1).await;
    }
    until("both answers", || {
        rig.count(|e| *e == ControlEvent::IdentityKey { node: NodeId(2), key: Some(key(2)) }) == 2
    })
    .await;
    assert_eq!(rig.handle.key_of(NodeId(2)).await, Some(key(2)));
    assert_eq!(rig.handle.key_of(NodeId(3)).await, Some(key(3)));
    until("a missing key is learned", || {
        let learned = |c: &Command| matches!(c, Command::KeyLearned { node: NodeId(3), .. });
        rig.commands.lock().unwrap().iter().any(learned)
    })
    .await;
}

#[tokio::test]
async fn another_endpoint_is_registered() {
    let mock = Mock::started().await;
    let rig = rig_with(&mock, |_| {}, &TrustState::default(), Some("127.0.0.1:1"));
    until("asks the beacon", || rig.has(&ControlEvent::Discover)).await;
    assert!(rig.has(&ControlEvent::Beacon(Some(endpoint(1)))));
    rig.handle.observed(endpoint(1111));
    rig.joined().await;
    assert_eq!(mock.last("register").unwrap()["listen_addr"], "127.0.0.1:1111");
    rig.handle.observed(endpoint(1111));
    rig.handle.observed(endpoint(2222));
    until("registered again", || mock.count("register") == 2).await;
    assert_eq!(mock.last("register").unwrap()["listen_addr"], "127.0.0.1:2222");
    until("status", || rig.handle.status().endpoint == Some(endpoint(2222))).await;
}

#[tokio::test]
async fn relayed_handshakes_reach_trust_with_their_keys() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    mock.state().keys.insert(2, PublicKey(key(2)).to_string());
    mock.state().requests = vec![
        json!({"from_node_id": 2, "justification": "why", "timestamp": 1}),
        json!({"from_node_id": 0, "timestamp": 1}),
        json!({"from_node_id": 7, "timestamp": 1}),
    ];
    mock.state().responses = vec![json!({"from_node_id": 4, "accept": true, "timestamp": 1})];
    rig.handle.poll_handshakes().await;
    let got = || {
        let mut commands = rig.commands.lock().unwrap();
        commands.retain(|c| !matches!(c, Command::Joined { .. }));
        format!("{commands:?}")
    };
    let request = format!(
        "RelayedRequest {{ from: NodeId(2), justification: \"why\", key: Some({:?}) }}",
        key(2)
    );
    let answer = "RelayedAnswer { from: NodeId(4), accept: true, key: None }";
    until("handed over", || got() == format!("[{request}, {answer}]")).await;
}

#[tokio::test]
async fn who_leaves_stays_away() {
    let mock = Mock::started().await;
    let rig = rig(&mock);
    rig.joined().await;
    let answer = rig.handle.call(Call::Deregister).await.unwrap();
    assert_eq!(answer, json!({"type": "deregister_ok"}));
    until("left", || !rig.handle.status().registered).await;
    let (before, registers) = (mock.count("heartbeat"), mock.count("register"));
    rig.handle.observed(endpoint(5));
    assert!(rig.handle.resolve_endpoint(NodeId(3)));
    until("still answering", || mock.count("resolve") == 1).await;
    // Nothing is awaited here: for several keepalive intervals nothing is sent.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(mock.count("heartbeat") <= before + 1);
    assert_eq!(mock.count("register"), registers);
}

#[tokio::test]
async fn without_a_registry_everything_says_so() {
    let registry = Registry::spawn(None, None, LIMITS);
    let request = pilot_wire::registry::Request::ResolveHostname { hostname: "x" };
    let error = registry
        .call::<pilot_wire::registry::ResolvedHostname>(&request)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not configured"), "{error}");
}
