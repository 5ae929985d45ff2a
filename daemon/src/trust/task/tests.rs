//! What the trust task does with the loop, the registry and the disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ed25519_dalek::{Verifier, VerifyingKey};
use pilot_core::{Permission, StreamId};
use serde_json::json;

use super::super::handle;
use super::*;
use crate::control;
use crate::control::tests::mock::{Mock, until};
use crate::events::tests::Heard;
use crate::identity::Identity;
use crate::node::ready::{Notifier, ReadyList, Token};
use crate::node::{self, DialFailure, Order};
use crate::service::{LocalStream, StreamShared};

const PEER: NodeId = NodeId(2);

/// What the fake loop was asked.
#[derive(Debug, PartialEq)]
enum Asked {
    Dial(NodeId, u16),
    Permission(NodeId, Permission),
    Forget(NodeId),
}

struct Rig {
    trust: TrustHandle,
    mock: Mock,
    identity: Identity,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Streams dialled; when empty, dials fail.
    streams: Arc<Mutex<VecDeque<Arc<StreamShared>>>>,
    dialled: Arc<Mutex<Vec<Arc<StreamShared>>>>,
    path: PathBuf,
    pins: Pins,
    said: Arc<Heard>,
    _tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

/// A trust task of node 7 that knows `state`.
async fn rig(state: TrustState) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept/trust.json");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let mock = Mock::started().await;
    let identity = Identity::generate().unwrap();
    let member = Member::new(Some(mock.address.to_string()), None, identity.clone());
    member.set_node(NodeId(7));
    // Nothing answers the control plane's questions; nothing here needs them.
    let (control, _) = control::channel();
    let (node, mut orders) = node::channel();
    let (trust, inbox) = handle::channel(control.clone());
    let (asked, dialled) = (Arc::default(), Arc::default());
    let streams: Arc<Mutex<VecDeque<Arc<StreamShared>>>> = Arc::default();
    let mut tasks = JoinSet::new();
    let (log, free, used): (Arc<Mutex<Vec<_>>>, _, Arc<Mutex<Vec<_>>>) =
        (Arc::clone(&asked), Arc::clone(&streams), Arc::clone(&dialled));
    tasks.spawn(async move {
        while let Some(order) = orders.orders.recv().await {
            let entry = match order {
                Order::Dial { to, answer } => {
                    let stream = free.lock().unwrap().pop_front();
                    let result = match stream {
                        Some(shared) => {
                            used.lock().unwrap().push(Arc::clone(&shared));
                            Ok(LocalStream::new(shared, StreamId(1), 0, to))
                        }
                        None => Err(DialFailure::Peer(pilot_core::DialFailure::Unresolved)),
                    };
                    let _ = answer.send(result);
                    Asked::Dial(to.address.node, to.port)
                }
                Order::Permission { node, permission } => Asked::Permission(node, permission),
                Order::Forget { node } => Asked::Forget(node),
                _ => continue,
            };
            log.lock().unwrap().push(entry);
        }
    });
    let pins = Pins::default();
    let said = Arc::new(Heard::default());
    let parts = TrustParts {
        file: TrustFile::at(path.clone()),
        permits: Permits::new(node.clone(), state.trusted().keys().copied()),
        state,
        pins: pins.clone(),
        member,
        node,
        control,
        handle: trust.clone(),
        events: said.events(),
    };
    tasks.spawn(run(parts, inbox));
    Rig {
        trust,
        mock,
        identity,
        asked,
        streams,
        dialled,
        path,
        pins,
        said,
        _tasks: tasks,
        _dir: dir,
    }
}

impl Rig {
    fn reachable(&self) {
        let notifier = Notifier::new(Arc::new(ReadyList::default()), Token::Local(1));
        self.streams.lock().unwrap().push_back(StreamShared::new(notifier));
    }

    /// What was written to the stream dialled last.
    fn written(&self) -> Option<Message> {
        let shared = self.dialled.lock().unwrap().last()?.clone();
        let mut pieces = Vec::new();
        shared.take_outgoing(usize::MAX, &mut pieces);
        let [bytes] = pieces.as_slice() else { return None };
        assert!(bytes.len() <= handshake::MAX_MESSAGE);
        Some(serde_json::from_slice(bytes).unwrap())
    }

    fn was_asked(&self, asked: &Asked) -> bool {
        self.asked.lock().unwrap().contains(asked)
    }

    fn stored(&self) -> TrustState {
        TrustFile::at(self.path.clone()).load().unwrap()
    }

    async fn ask_for(&self, command: impl FnOnce(Answer) -> Command) -> Result<Value, CallError> {
        let (answer, result) = tokio::sync::oneshot::channel();
        self.trust.send(command(answer)).await;
        result.await.unwrap()
    }

    async fn approve(&self) -> Result<Value, CallError> {
        self.ask_for(|answer| Command::Approve { node: PEER, answer }).await
    }
}

fn relayed() -> Command {
    Command::RelayedRequest { from: PEER, justification: "why".into(), key: Some([2; 32]) }
}

#[tokio::test]
async fn a_request_goes_directly_when_it_can() {
    let rig = rig(TrustState::default()).await;
    rig.reachable();
    let text = "\u{1}".repeat(handshake::MAX_TEXT);
    let answer = rig.trust.request(PEER, text).await.unwrap();
    assert_eq!(answer, json!({"status": "sent", "node_id": 2}));
    assert!(rig.was_asked(&Asked::Dial(PEER, 444)));
    let message = rig.written().unwrap();
    assert_eq!((message.kind, message.node_id), (Kind::Request, NodeId(7)));
    assert!(!message.justification.is_empty());
    let key = VerifyingKey::from_bytes(&rig.identity.public_key().0).unwrap();
    let signature = pilot_wire::registry::Signature::from_base64(&message.signature).unwrap();
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify(b"handshake:7:2", &signature).unwrap();
    assert_eq!(rig.mock.count("request_handshake"), 0);
    assert!(rig.stored().outstanding().contains_key(&PEER));
}

#[tokio::test]
async fn a_request_goes_through_the_registry_when_it_must() {
    let mut rig = rig(TrustState::default()).await;
    rig.trust.request(PEER, "why".into()).await.unwrap();
    let request = rig.mock.last("request_handshake").unwrap();
    assert_eq!((&request["from_node_id"], &request["to_node_id"]), (&json!(7), &json!(2)));
    assert_eq!(request["justification"], "why");

    rig.mock.stop().await;
    let error = rig.trust.request(NodeId(3), "why".into()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::REGISTRY);
    assert!(error.message.starts_with("handshake request: handshake relay: registry"), "{error}");
    until("what went nowhere is not outstanding", || rig.stored().outstanding().keys().eq([&PEER]))
        .await;
    let long = rig.trust.request(PEER, "x".repeat(handshake::MAX_TEXT + 1)).await.unwrap_err();
    assert_eq!(long.code, ErrorCode::INVALID_ARGUMENT);
}

#[tokio::test]
async fn approval_is_written_permitted_reported_and_sent() {
    let rig = rig(TrustState::default()).await;
    rig.trust.send(relayed()).await;
    let pending = rig.ask_for(|answer| Command::Pending { answer }).await.unwrap();
    let waiting = &pending["pending"][0];
    assert_eq!((&waiting["node_id"], &waiting["justification"]), (&json!(2), &json!("why")));
    assert_eq!(rig.approve().await.unwrap(), json!({"status": "approved", "node_id": 2}));
    assert!(rig.was_asked(&Asked::Permission(PEER, Permission::Trusted)));
    assert!(rig.stored().trusted().contains_key(&PEER));
    assert_eq!(rig.pins.key(PEER), Some([2; 32]));
    until("reported and answered", || {
        rig.mock.count("report_trust") == 1 && rig.mock.count("respond_handshake") == 1
    })
    .await;
    assert_eq!(rig.mock.last("respond_handshake").unwrap()["accept"], true);
    let trusted = rig.ask_for(|answer| Command::Trusted { answer }).await.unwrap();
    let listed = &trusted["trusted"][0];
    assert_eq!((&listed["node_id"], &listed["mutual"]), (&json!(2), &json!(false)));
    assert!(listed["approved_at"].as_i64().unwrap() > 1_600_000_000);
    // Nothing pending is no error, as published.
    assert_eq!(rig.approve().await.unwrap()["status"], "approved");
    let reject = |answer| Command::Reject { node: PEER, reason: String::new(), answer };
    assert_eq!(rig.ask_for(reject).await.unwrap()["status"], "rejected");
    // Once, and nothing of the request, which came through the registry.
    assert_eq!(rig.said.all(), [Happening::HandshakeApproved { peer_node_id: PEER }]);
}

#[tokio::test]
async fn requests_over_a_stream_are_told_of() {
    let rig = rig(TrustState::default()).await;
    let peer = Identity::generate().unwrap();
    let request = |text: &str, offset: i64| {
        let message = Message {
            kind: Kind::Request,
            node_id: PEER,
            public_key: peer.public_key().to_string(),
            justification: text.to_owned(),
            signature: peer.sign(&handshake::challenge(PEER, NodeId(7))).to_string(),
            reason: String::new(),
            timestamp: i64::try_from(unix_now()).unwrap() + offset,
        };
        Command::Received { from: PEER, message, key: Some(peer.public_key().0) }
    };
    let (peer_node_id, why) = (PEER, || "why".to_owned());
    rig.trust.send(request("why", 0)).await;
    let reject = |answer| Command::Reject { node: PEER, reason: "no thanks".into(), answer };
    rig.ask_for(reject).await.unwrap();
    let expected = [
        Happening::HandshakeReceived { justification: why(), peer_node_id },
        Happening::HandshakePending { justification: why(), peer_node_id },
        Happening::HandshakeRejected { peer_node_id, reason: "no thanks".into() },
    ];
    assert_eq!(rig.said.all(), expected);

    rig.trust.request(PEER, "me too".into()).await.unwrap();
    rig.trust.send(request("again", 1)).await;
    until("trusted", || rig.pins.is_trusted(PEER)).await;
    rig.trust.revoke(PEER).await.unwrap();
    let reason = ApprovalReason::Mutual;
    let expected = [
        Happening::HandshakeReceived { justification: "again".into(), peer_node_id },
        Happening::HandshakeAutoApproved { peer_node_id, reason },
        Happening::TrustRevoked { peer_node_id },
    ];
    assert_eq!(rig.said.all()[3..], expected);
}

#[tokio::test]
async fn revocation_takes_effect_here_and_is_told_there() {
    let rig = rig(TrustState::default()).await;
    rig.trust.send(relayed()).await;
    rig.approve().await.unwrap();
    until("reported", || rig.mock.count("respond_handshake") == 1).await;
    rig.reachable();
    let revoked = rig.trust.revoke(PEER).await.unwrap();
    assert_eq!(revoked, json!({"status": "revoked", "node_id": 2}));
    assert!(rig.was_asked(&Asked::Permission(PEER, Permission::Stranger)));
    assert!(rig.stored().trusted().is_empty() && !rig.pins.is_trusted(PEER));
    until("told the registry", || rig.mock.count("revoke_trust") == 1).await;
    until("forgotten", || rig.was_asked(&Asked::Forget(PEER))).await;
    let message = rig.written().unwrap();
    assert_eq!((message.kind, message.reason.as_str()), (Kind::Revoke, "trust revoked"));
    until("nothing left to tell", || rig.stored().revocations().is_empty()).await;
    let error = rig.trust.revoke(PEER).await.unwrap_err();
    assert_eq!(error.message, "handshake revoke: node 2 was not trusted");
}

#[tokio::test]
async fn what_cannot_be_written_does_not_take_place_but_trust_ends() {
    let rig = rig(TrustState::default()).await;
    rig.trust.send(relayed()).await;
    let _ = rig.ask_for(|answer| Command::Pending { answer }).await;
    let folder = rig.path.parent().unwrap();
    let aside = folder.with_file_name("aside");
    std::fs::rename(folder, &aside).unwrap();
    let error = rig.approve().await.unwrap_err();
    assert!(error.message.contains("trust.json"), "{error}");
    let trusted = rig.ask_for(|answer| Command::Trusted { answer }).await.unwrap();
    assert_eq!(trusted, json!({"trusted": []}));
    assert!(!rig.was_asked(&Asked::Permission(PEER, Permission::Trusted)));

    std::fs::rename(&aside, folder).unwrap();
    rig.approve().await.unwrap();
    std::fs::rename(folder, &aside).unwrap();
    assert!(rig.trust.revoke(PEER).await.is_err());
    assert!(rig.was_asked(&Asked::Permission(PEER, Permission::Stranger)));
    assert!(!rig.pins.is_trusted(PEER));
}

#[tokio::test]
async fn a_new_registration_repeats_what_the_registry_must_know() {
    let first = rig(TrustState::default()).await;
    first.trust.send(relayed()).await;
    first.approve().await.unwrap();
    let state = first.stored();
    let rig = rig(state).await;
    rig.trust.send(Command::Joined { all: true }).await;
    until("reported", || rig.mock.count("report_trust") == 1).await;
    // What it has taken is not told again unless it may have lost it.
    rig.trust.send(Command::Joined { all: false }).await;
    rig.trust.send(Command::Joined { all: true }).await;
    until("reported again", || rig.mock.count("report_trust") == 2).await;
    assert_eq!(rig.mock.last("report_trust").unwrap()["peer_id"], 2);
}

#[tokio::test]
async fn trust_that_the_registry_says_is_over_ends_without_telling_anybody() {
    let trusted = super::super::Trusted { key: None, approved_at: 1, mutual: true, network: 0 };
    let state = TrustState::new(
        [(PEER, trusted.clone()), (NodeId(3), trusted)].into_iter().collect(),
        Default::default(),
        Default::default(),
        Default::default(),
    );
    let rig = rig(state).await;
    rig.trust.send(Command::RevokedByPeer { node: PEER, young: 60 }).await;
    until("dropped", || rig.was_asked(&Asked::Forget(PEER))).await;
    let asked = rig.asked.lock().unwrap().remove(0);
    assert_eq!(asked, Asked::Permission(PEER, Permission::Stranger), "first of all");
    until("said", || rig.said.names() == ["trust.revoked_by_peer"]).await;
    // A second time, and of a stranger: nothing.
    for node in [PEER, NodeId(9)] {
        rig.trust.send(Command::RevokedByPeer { node, young: 0 }).await;
    }
    let list = rig.trust.trusted().await.unwrap();
    assert_eq!(list["trusted"].as_array().unwrap().len(), 1);
    assert!(rig.stored().trusted().keys().eq([&NodeId(3)]));
    assert!(rig.stored().revocations().is_empty());
    assert_eq!(rig.said.names().len(), 1);
    assert_eq!((rig.mock.count("revoke_trust"), rig.mock.count("report_trust")), (0, 0));
    assert!(rig.dialled.lock().unwrap().is_empty());
}

/// A slow or broken disk does not keep anything open.
#[tokio::test]
async fn what_is_open_ends_before_the_end_is_written() {
    let trusted = super::super::Trusted { key: None, approved_at: 1, mutual: true, network: 0 };
    let state = TrustState::new(
        [(PEER, trusted)].into_iter().collect(),
        Default::default(),
        Default::default(),
        Default::default(),
    );
    let rig = rig(state).await;
    let folder = rig.path.parent().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    rig.trust.send(Command::RevokedByPeer { node: PEER, young: 0 }).await;
    until("ended", || rig.was_asked(&Asked::Permission(PEER, Permission::Stranger))).await;
    until("dropped", || rig.was_asked(&Asked::Forget(PEER))).await;
    assert!(!rig.pins.is_trusted(PEER));
}
