//! The rules of trust, case by case, and what no sequence of messages may do.

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

use super::*;

const ME: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const NOW: i64 = 1_700_000_000;

fn key(node: NodeId) -> SigningKey {
    SigningKey::from_bytes(&[u8::try_from(node.0 % 251).unwrap(); 32])
}

fn public(node: NodeId) -> [u8; 32] {
    key(node).verifying_key().to_bytes()
}

fn message(from: NodeId, kind: Kind) -> Message {
    let signature = key(from).sign(handshake::challenge(from, ME).as_bytes()).to_bytes();
    Message {
        kind,
        node_id: from,
        public_key: registry::PublicKey(public(from)).to_string(),
        justification: String::new(),
        signature: registry::Signature(signature).to_string(),
        reason: String::new(),
        timestamp: NOW,
    }
}

fn arrived(message: Message) -> Input {
    Input::Message { from: message.node_id, key: Some(public(message.node_id)), message }
}

fn heard(state: &mut TrustState, kind: Kind) -> Result<Vec<Action>, Refused> {
    state.handle(arrived(message(PEER, kind)), ME, NOW)
}

fn asked() -> TrustState {
    let mut state = TrustState::default();
    let actions = state.handle(Input::Request { node: PEER }, ME, NOW).unwrap();
    assert_eq!(actions, [Action::Save, send(PEER, Kind::Request, "")]);
    state
}

fn trusting() -> TrustState {
    let mut state = asked();
    heard(&mut state, Kind::Accept).unwrap();
    state
}

fn granted() -> Vec<Action> {
    vec![Action::Save, Action::Permit(PEER), Action::Report(PEER)]
}

#[test]
fn a_request_waits_until_it_is_approved() {
    let mut state = TrustState::default();
    assert_eq!(heard(&mut state, Kind::Request).unwrap(), [Action::Save]);
    assert_eq!(state.pending()[&PEER].key, Some(public(PEER)));
    assert!(state.trusted().is_empty());
    let mut expected = granted();
    expected.push(send(PEER, Kind::Accept, ""));
    assert_eq!(state.handle(Input::Approve { node: PEER }, ME, NOW).unwrap(), expected);
    assert_eq!(state.trusted()[&PEER].key, Some(public(PEER)));
    assert!(state.pending().is_empty());
    let again = state.handle(Input::Approve { node: PEER }, ME, NOW);
    assert_eq!(again, Err(Refused::NotPending));
}

#[test]
fn a_request_can_be_rejected() {
    let mut state = TrustState::default();
    heard(&mut state, Kind::Request).unwrap();
    let actions = state.handle(Input::Reject { node: PEER, reason: "no".into() }, ME, NOW).unwrap();
    assert_eq!(actions, [Action::Save, send(PEER, Kind::Reject, "no")]);
    assert_eq!(state.pending().len() + state.trusted().len(), 0);
}

#[test]
fn only_asked_for_answers_count() {
    for kind in [Kind::Accept, Kind::Reject] {
        let mut state = TrustState::default();
        assert_eq!(heard(&mut state, kind), Err(Refused::Unsolicited));
    }
    let mut state = asked();
    assert_eq!(heard(&mut state, Kind::Accept).unwrap(), granted());
    assert!(state.trusted()[&PEER].mutual && state.outstanding().is_empty());
    let mut state = asked();
    assert_eq!(heard(&mut state, Kind::Reject).unwrap(), [Action::Save]);
    assert_eq!(heard(&mut state, Kind::Accept), Err(Refused::Unsolicited));
}

#[test]
fn relayed_answers_follow_the_same_rule_and_come_twice() {
    let answer = |accept| Input::RelayedAnswer { from: PEER, accept, key: Some(public(PEER)) };
    let mut state = TrustState::default();
    assert_eq!(state.handle(answer(true), ME, NOW), Err(Refused::Unsolicited));
    let mut state = asked();
    assert_eq!(state.handle(answer(true), ME, NOW).unwrap(), granted());
    assert_eq!(state.handle(answer(true), ME, NOW).unwrap(), []);
    assert_eq!(heard(&mut state, Kind::Accept).unwrap(), []);
}

#[test]
fn asking_one_another_is_agreement() {
    let mut state = asked();
    let mut expected = granted();
    expected.push(send(PEER, Kind::Accept, ""));
    assert_eq!(heard(&mut state, Kind::Request).unwrap(), expected);
    assert!(state.trusted()[&PEER].mutual);

    let mut state = TrustState::default();
    heard(&mut state, Kind::Request).unwrap();
    assert_eq!(state.handle(Input::Request { node: PEER }, ME, NOW).unwrap(), expected);
    assert!(state.trusted()[&PEER].mutual && state.outstanding().is_empty());

    let mut state = asked();
    let relayed = Input::RelayedRequest { from: PEER, justification: String::new(), key: None };
    let mut expected = granted();
    expected.push(Action::Respond { to: PEER, accept: true });
    assert_eq!(state.handle(relayed, ME, NOW).unwrap(), expected);
}

#[test]
fn who_is_trusted_is_told_again() {
    let mut state = trusting();
    assert_eq!(heard(&mut state, Kind::Request).unwrap(), [send(PEER, Kind::Accept, "")]);
    assert_eq!(state.handle(Input::Request { node: PEER }, ME, NOW).unwrap(), []);
}

#[test]
fn trust_ends_from_either_side() {
    let mut state = trusting();
    let parted = |tell| vec![Action::Save, Action::Forbid(PEER), Action::Part { from: PEER, tell }];
    assert_eq!(state.handle(Input::Revoke { node: PEER }, ME, NOW).unwrap(), parted(true));
    assert!(state.trusted().is_empty() && state.revocations().contains(&PEER));
    let again = state.handle(Input::Revoke { node: PEER }, ME, NOW);
    assert_eq!(again, Err(Refused::NotTrusted));
    state.handle(Input::RevocationKnown { node: PEER }, ME, NOW).unwrap();
    assert!(state.revocations().is_empty());

    let mut state = trusting();
    assert_eq!(heard(&mut state, Kind::Revoke).unwrap(), parted(false));
    assert!(state.trusted().is_empty());
    // What was asked is withdrawn as well, so that a late accept is unasked.
    let mut state = asked();
    assert_eq!(heard(&mut state, Kind::Revoke).unwrap(), [Action::Save]);
    assert_eq!(heard(&mut state, Kind::Accept), Err(Refused::Unsolicited));
}

#[test]
fn a_message_must_be_its_senders() {
    let good = message(PEER, Kind::Accept);
    let cases: [(Input, Refused); 8] = [
        (
            Input::Message { from: NodeId(3), key: Some(public(NodeId(3))), message: good.clone() },
            Refused::WrongNode,
        ),
        (Input::Message { from: PEER, key: None, message: good.clone() }, Refused::WrongKey),
        (
            Input::Message { from: PEER, key: Some(public(NodeId(9))), message: good.clone() },
            Refused::WrongKey,
        ),
        (arrived(Message { public_key: String::new(), ..good.clone() }), Refused::WrongKey),
        (arrived(Message { signature: String::new(), ..good.clone() }), Refused::BadSignature),
        (
            arrived(Message {
                signature: message(NodeId(3), Kind::Accept).signature,
                ..good.clone()
            }),
            Refused::BadSignature,
        ),
        (arrived(Message { timestamp: NOW - 301, ..good.clone() }), Refused::Stale),
        (arrived(Message { timestamp: NOW + 31, ..good.clone() }), Refused::Stale),
    ];
    for (input, refused) in cases {
        let mut state = asked();
        let before = state.clone();
        assert_eq!(state.handle(input.clone(), ME, NOW), Err(refused), "{input:?}");
        assert_eq!(state, before);
    }
    let mut state = asked();
    let edge = Message { timestamp: NOW - 300, ..good };
    assert_eq!(state.handle(arrived(edge), ME, NOW).unwrap(), granted());
}

#[test]
fn a_message_for_another_node_does_not_verify_here() {
    let mut state = asked();
    let elsewhere = state.handle(arrived(message(PEER, Kind::Accept)), NodeId(7), NOW);
    assert_eq!(elsewhere, Err(Refused::BadSignature));
}

#[test]
fn a_message_counts_once() {
    let mut state = TrustState::default();
    heard(&mut state, Kind::Request).unwrap();
    assert_eq!(heard(&mut state, Kind::Request), Err(Refused::Replay));
    let later = Message { timestamp: NOW + 1, ..message(PEER, Kind::Request) };
    state.handle(arrived(later), ME, NOW + 1).unwrap();
    let mut last = Ok(Vec::new());
    for n in 0..MAX_SEEN_PER_NODE {
        let justification = format!("again {n}");
        let next = Message { justification, ..message(PEER, Kind::Request) };
        last = state.handle(arrived(next), ME, NOW);
    }
    assert_eq!(last, Err(Refused::Replay), "one node fills the memory of messages");
    let other = message(NodeId(3), Kind::Request);
    assert!(state.handle(arrived(other), ME, NOW).is_ok());
}

#[test]
fn a_pinned_key_stands() {
    let mut state = trusting();
    let mut forged = message(PEER, Kind::Revoke);
    let other = key(NodeId(9));
    forged.public_key = registry::PublicKey(public(NodeId(9))).to_string();
    forged.signature =
        registry::Signature(other.sign(handshake::challenge(PEER, ME).as_bytes()).to_bytes())
            .to_string();
    let input = Input::Message { from: PEER, message: forged, key: Some(public(NodeId(9))) };
    assert_eq!(state.handle(input, ME, NOW), Err(Refused::WrongKey));
    assert!(state.trusted().contains_key(&PEER));
    let learned = Input::KeyLearned { node: PEER, key: [9; 32] };
    assert_eq!(state.handle(learned, ME, NOW).unwrap(), []);
    assert_eq!(state.trusted()[&PEER].key, Some(public(PEER)));
}

#[test]
fn a_missing_key_is_learned_once() {
    let mut state = asked();
    let answer = Input::RelayedAnswer { from: PEER, accept: true, key: None };
    state.handle(answer, ME, NOW).unwrap();
    assert_eq!(state.trusted()[&PEER].key, None);
    let learned = Input::KeyLearned { node: PEER, key: public(PEER) };
    assert_eq!(state.handle(learned, ME, NOW).unwrap(), [Action::Save]);
    assert_eq!(state.trusted()[&PEER].key, Some(public(PEER)));
}

#[test]
fn auto_approval_grants_valid_requests_only() {
    let mut state = TrustState::default().auto_approve(true);
    assert_eq!(heard(&mut state, Kind::Accept), Err(Refused::Unsolicited));
    let mut expected = granted();
    expected.push(send(PEER, Kind::Accept, ""));
    assert_eq!(heard(&mut state, Kind::Request).unwrap(), expected);
    let forged = Message { signature: String::new(), ..message(NodeId(3), Kind::Request) };
    assert_eq!(state.handle(arrived(forged), ME, NOW), Err(Refused::BadSignature));
}

#[test]
fn tables_are_bounded() {
    let mut state = TrustState::default();
    for n in 0..=u32::try_from(MAX_PENDING).unwrap() {
        let from = NodeId(10 + n);
        let input = Input::RelayedRequest { from, justification: "x".repeat(2000), key: None };
        let full = state.pending().len() == MAX_PENDING;
        let result = state.handle(input, ME, NOW);
        assert_eq!(result.err(), full.then_some(Refused::Full));
    }
    assert!(state.pending().values().all(|p| p.justification.len() <= handshake::MAX_TEXT));
    let mut state = TrustState::default();
    for n in 0..=u32::try_from(MAX_OUTSTANDING).unwrap() {
        let at = NOW + i64::from(n);
        state.handle(Input::Request { node: NodeId(10 + n) }, ME, at).unwrap();
    }
    assert_eq!(state.outstanding().len(), MAX_OUTSTANDING);
    assert!(!state.outstanding().contains_key(&NodeId(10)), "the oldest goes");
    for node in [ME, NodeId(0), NodeId::BROADCAST] {
        assert_eq!(state.handle(Input::Request { node }, ME, NOW), Err(Refused::Itself));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(u32),
    Approve(u32),
    Reject(u32),
    Revoke(u32),
    Failed(u32),
    Message(u32, u8, i64, bool),
    RelayedRequest(u32),
    RelayedAnswer(u32, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 2u32..5;
    prop_oneof![
        node.clone().prop_map(Step::Request),
        node.clone().prop_map(Step::Approve),
        node.clone().prop_map(Step::Reject),
        node.clone().prop_map(Step::Revoke),
        node.clone().prop_map(Step::Failed),
        (node.clone(), 0u8..4, -400i64..60, any::<bool>())
            .prop_map(|(n, k, t, good)| Step::Message(n, k, t, good)),
        node.clone().prop_map(Step::RelayedRequest),
        (node, any::<bool>()).prop_map(|(n, a)| Step::RelayedAnswer(n, a)),
    ]
}

fn input(step: &Step, now: i64) -> Input {
    match *step {
        Step::Request(n) => Input::Request { node: NodeId(n) },
        Step::Approve(n) => Input::Approve { node: NodeId(n) },
        Step::Reject(n) => Input::Reject { node: NodeId(n), reason: String::new() },
        Step::Revoke(n) => Input::Revoke { node: NodeId(n) },
        Step::Failed(n) => Input::RequestFailed { node: NodeId(n) },
        Step::Message(n, kind, offset, good) => {
            let kind = [Kind::Request, Kind::Accept, Kind::Reject, Kind::Revoke][usize::from(kind)];
            let mut message = message(NodeId(n), kind);
            message.timestamp = now + offset;
            if !good {
                message.signature.replace_range(0..1, "!");
            }
            arrived(message)
        }
        Step::RelayedRequest(n) => {
            let (from, key) = (NodeId(n), Some(public(NodeId(n))));
            Input::RelayedRequest { from, justification: String::new(), key }
        }
        Step::RelayedAnswer(n, accept) => {
            Input::RelayedAnswer { from: NodeId(n), accept, key: Some(public(NodeId(n))) }
        }
    }
}

proptest! {
    /// A node becomes trusted only if this side's user asked for it or
    /// approved it, and never stays trusted after a revocation; permissions
    /// follow trust exactly.
    #[test]
    fn nobody_is_trusted_unasked(steps in prop::collection::vec(step(), 1..60)) {
        let mut state = TrustState::default();
        let mut wanted = BTreeSet::new();
        let mut permitted = BTreeSet::new();
        for (n, step) in steps.iter().enumerate() {
            let now = NOW + i64::try_from(n).unwrap();
            let before = state.clone();
            if let Step::Request(n) | Step::Approve(n) = step {
                wanted.insert(NodeId(*n));
            }
            match state.handle(input(step, now), ME, now) {
                Ok(actions) => {
                    let mut unsaved = state.clone();
                    unsaved.seen = before.seen.clone();
                    prop_assert_eq!(actions.contains(&Action::Save), unsaved != before);
                    for action in actions {
                        match action {
                            Action::Permit(node) => { permitted.insert(node); }
                            Action::Forbid(node) => { permitted.remove(&node); }
                            _ => {}
                        }
                    }
                }
                Err(_) => {
                    let mut now = state.clone();
                    now.seen = before.seen.clone();
                    prop_assert_eq!(&now, &before);
                }
            }
            let trusted: BTreeSet<_> = state.trusted().keys().copied().collect();
            prop_assert!(trusted.is_subset(&wanted), "{:?} were never wanted", trusted);
            prop_assert_eq!(&trusted, &permitted);
            if let Step::Revoke(n) = step {
                prop_assert!(!trusted.contains(&NodeId(*n)));
            }
        }
    }

    /// The same messages again, at any time, change nothing but what this
    /// side's user did in between.
    #[test]
    fn replays_change_nothing(
        steps in prop::collection::vec((2u32..5, 0u8..4, -300i64..30), 1..20),
        later in 0i64..900,
    ) {
        let mut state = TrustState::default();
        for node in 2..5 {
            state.handle(Input::Request { node: NodeId(node) }, ME, NOW).unwrap();
        }
        let messages: Vec<_> = steps
            .iter()
            .map(|(n, kind, offset)| input(&Step::Message(*n, *kind, *offset, true), NOW))
            .collect();
        for message in &messages {
            let _ = state.handle(message.clone(), ME, NOW);
        }
        let before = (state.trusted.clone(), state.pending.clone(), state.outstanding.clone());
        for message in &messages {
            let again = state.handle(message.clone(), ME, NOW + later);
            prop_assert!(matches!(again, Err(Refused::Replay | Refused::Stale)), "{:?}", again);
        }
        prop_assert_eq!(before, (state.trusted, state.pending, state.outstanding));
    }
}

#[test]
fn a_justification_holds_no_control_characters() {
    let mut state = TrustState::default();
    let justification = "let me in\u{1b}[2J\nplease\0".to_owned();
    let input = Input::RelayedRequest { from: PEER, justification, key: None };
    state.handle(input, ME, NOW).unwrap();
    assert_eq!(state.pending()[&PEER].justification, "let me in [2J please ");
}

#[test]
fn what_the_registry_says_ends_trust_that_is_not_young() {
    let mut state = trusting();
    let revoked = |young| Input::RevokedByPeer { node: PEER, young };
    assert_eq!(state.handle(revoked(60), ME, NOW + 59), Err(Refused::Young));
    assert!(state.trusted().contains_key(&PEER));
    let actions = state.handle(revoked(60), ME, NOW + 60).unwrap();
    assert_eq!(actions, [Action::Save, Action::Forbid(PEER), Action::Drop(PEER)]);
    assert!(state.revocations().is_empty(), "the registry knows");
    assert_eq!(state.handle(revoked(0), ME, NOW + 60), Err(Refused::NotTrusted));
}
