//! Rules one by one, then random command sequences against invariants.

mod model;
mod networks;
mod random;
mod rows;

use std::collections::HashSet;
use std::net::SocketAddr;

use pilot_wire::registry::Acknowledged;
use proptest::prelude::*;

use super::*;

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn command(op: Op) -> Command {
    Command::own(1000, op)
}

fn registration(n: u8) -> Register {
    Register {
        key: key(n),
        endpoint: SocketAddr::from(([127, 0, 0, 1], u16::from(n))),
        owner: String::new(),
        hostname: String::new(),
        proven: false,
        takeover: false,
    }
}

fn register(state: &mut State, register: Register) -> Result<NodeId, Refusal> {
    match state.apply(&command(Op::Register(register)))? {
        Acknowledged::Registered(r) => Ok(r.node_id),
        other => panic!("{other:?}"),
    }
}

fn signer(node: u32, key_byte: u8) -> Signer {
    Signer { node: NodeId(node), key: key(key_byte) }
}

/// All of the state, in order.
fn rows(state: &State) -> Vec<Row> {
    let mut rows: Vec<_> = state.all_rows().collect();
    rows.sort_unstable();
    rows
}

/// The same without the count of commands.
fn records(state: &State) -> Vec<Row> {
    let mut rows = rows(state);
    let mut meta: super::rows::Meta =
        serde_json::from_slice(rows[0].value.as_deref().unwrap()).unwrap();
    meta.applied = 0;
    rows[0].value = Some(serde_json::to_vec(&meta).unwrap());
    rows
}

fn loaded(rows: impl IntoIterator<Item = Row>) -> Result<State, StateError> {
    let mut loading = Loading::default();
    rows.into_iter().try_for_each(|row| loading.row(row))?;
    loading.finish()
}

/// Nodes 1 to 3 with keys 1 to 3.
fn three() -> State {
    let mut state = State::default();
    for n in 1..=3 {
        assert_eq!(register(&mut state, registration(n)), Ok(NodeId(u32::from(n))));
    }
    state
}

fn may(state: &State, requester: u32, target: u32) -> bool {
    state.may_resolve(NodeId(requester), state.node(NodeId(target)).unwrap())
}

fn report(state: &mut State, by: u32, peer: u32) {
    let by = signer(by, u8::try_from(by).unwrap());
    state.apply(&command(Op::ReportTrust { by, peer: NodeId(peer) })).unwrap();
}

#[test]
fn trust_needs_both_sides() {
    let mut state = three();
    report(&mut state, 1, 2);
    assert!(!may(&state, 1, 2) && !may(&state, 2, 1));
    report(&mut state, 2, 1);
    assert!(may(&state, 1, 2) && may(&state, 2, 1) && !may(&state, 3, 1));
    let revoke = command(Op::RevokeTrust { by: signer(2, 2), peer: NodeId(1) });
    state.apply(&revoke).unwrap();
    assert!(!may(&state, 1, 2));
    assert_eq!(state.apply(&revoke), Err(Refusal::NoTrust(NodeId(1))));
    report(&mut state, 1, 2);
    assert!(!may(&state, 1, 2), "a revoked pair is not opened by one side");
}

#[test]
fn an_asked_for_accept_opens_and_an_unasked_one_does_not() {
    let mut state = three();
    let accept = |by, peer, accept| Op::RespondHandshake { by, peer: NodeId(peer), accept };
    let ask = |by, to| Op::RequestHandshake { by, to: NodeId(to), justification: "hi".into() };
    state.apply(&command(accept(signer(1, 1), 2, true))).unwrap();
    assert!(!may(&state, 1, 2) && !may(&state, 2, 1));
    state.apply(&command(ask(signer(3, 3), 1))).unwrap();
    assert!(!may(&state, 1, 3) && !may(&state, 3, 1));
    state.apply(&command(accept(signer(1, 1), 3, true))).unwrap();
    assert!(may(&state, 1, 3) && may(&state, 3, 1));
    state.apply(&command(accept(signer(1, 1), 3, false))).unwrap();
    assert!(may(&state, 3, 1), "a refused request does not end a standing pair");
    state.apply(&command(ask(signer(3, 3), 2))).unwrap();
    state.apply(&command(accept(signer(2, 2), 3, false))).unwrap();
    report(&mut state, 2, 3);
    assert!(!may(&state, 2, 3), "a refused request is no statement any more");
}

/// A refusal or revocation, sent directly, carries the very signature that
/// asks for trust; the peer could hand it in as a request.
#[test]
fn a_request_is_no_statement_of_who_has_refused_or_revoked() {
    let handed_in = |state: &mut State| {
        let by = signer(1, 1);
        let ask = Op::RequestHandshake { by, to: NodeId(2), justification: String::new() };
        state.apply(&command(ask)).unwrap();
        let take = Op::TakeHandshakes { by: signer(2, 2) };
        state.apply(&command(take)).unwrap();
    };
    let mut state = three();
    report(&mut state, 2, 1);
    let refuse = Op::RespondHandshake { by: signer(1, 1), peer: NodeId(2), accept: false };
    state.apply(&command(refuse)).unwrap();
    report(&mut state, 2, 1);
    handed_in(&mut state);
    assert!(!may(&state, 2, 1), "after a refusal");
    report(&mut state, 1, 2);
    assert!(may(&state, 2, 1), "the node itself may change its mind");
    let revoke = Op::RevokeTrust { by: signer(1, 1), peer: NodeId(2) };
    state.apply(&command(revoke)).unwrap();
    report(&mut state, 2, 1);
    handed_in(&mut state);
    assert!(!may(&state, 2, 1), "after a revocation");
    let accept = Op::RespondHandshake { by: signer(1, 1), peer: NodeId(2), accept: true };
    state.apply(&command(accept)).unwrap();
    assert!(may(&state, 2, 1));
}

#[test]
fn a_node_holds_one_owner_text() {
    let mut state = State::default();
    for n in 0..100 {
        let owned = Register { owner: format!("owner {n}"), ..registration(1) };
        assert_eq!(register(&mut state, owned), Ok(NodeId(1)));
        state.apply(&command(Op::Deregister { by: signer(1, 1) })).unwrap();
    }
    assert_eq!((state.owners.len(), state.owned.len()), (1, 1));
    let takeover = Register { owner: "owner 99".into(), takeover: true, ..registration(2) };
    assert_eq!(register(&mut state, takeover), Ok(NodeId(1)), "the last one counts");
}

#[test]
fn handshakes_wait_within_bounds_and_are_taken_once() {
    let mut state = State::default();
    for n in 1..=150 {
        register(&mut state, registration(n)).unwrap();
    }
    for n in 2..=150 {
        let by = signer(u32::from(n), n);
        let ask = Op::RequestHandshake { by, to: NodeId(1), justification: String::new() };
        let asked = state.apply(&command(ask.clone()));
        assert_eq!(asked.is_ok(), usize::from(n) < 2 + MAX_REQUESTS, "{n}");
        let again = state.apply(&command(ask)).unwrap_err();
        assert!(matches!(again, Refusal::AlreadyAsked(_) | Refusal::InboxFull(_)));
        report(&mut state, 1, n.into());
        let answer = Op::RespondHandshake { by, peer: NodeId(1), accept: false };
        state.apply(&command(answer)).unwrap();
    }
    let take = command(Op::TakeHandshakes { by: signer(1, 1) });
    let Ok(Acknowledged::Handshakes(taken)) = state.apply(&take) else { panic!() };
    assert_eq!((taken.requests.len(), taken.responses.len()), (MAX_REQUESTS, MAX_ANSWERS));
    assert_eq!(taken.responses.last().unwrap().from_node_id, NodeId(150));
    let Ok(Acknowledged::Handshakes(taken)) = state.apply(&take) else { panic!() };
    assert!(taken.requests.is_empty() && taken.responses.is_empty());
    assert!(!state.has_handshakes(NodeId(1)));
}

#[test]
fn an_owner_text_takes_nothing_over_unless_allowed() {
    let mut state = State::default();
    let owned = |n| Register { owner: "alice".into(), ..registration(n) };
    assert_eq!(register(&mut state, owned(1)), Ok(NodeId(1)));
    assert_eq!(register(&mut state, owned(2)), Ok(NodeId(2)));
    let takeover = Register { takeover: true, ..owned(3) };
    assert_eq!(register(&mut state, takeover.clone()), Ok(NodeId(1)));
    assert_eq!(state.node(NodeId(1)).unwrap().record.key, key(3));
    assert_eq!(register(&mut state, registration(1)), Ok(NodeId(3)));
    state.apply(&command(Op::Deregister { by: signer(1, 3) })).unwrap();
    let again = Register { takeover: true, ..owned(4) };
    assert_eq!(register(&mut state, again), Ok(NodeId(1)), "also when absent");
    assert!(state.key(&key(3)).is_none());
}

#[test]
fn a_proven_key_stays_proven() {
    let mut state = three();
    let proven = Register { proven: true, ..registration(1) };
    assert_eq!(register(&mut state, proven.clone()), Ok(NodeId(1)));
    assert_eq!(register(&mut state, registration(1)), Err(Refusal::ProofRequired));
    state.apply(&command(Op::Deregister { by: signer(1, 1) })).unwrap();
    assert_eq!(register(&mut state, registration(1)), Err(Refusal::ProofRequired));
    assert_eq!(register(&mut state, proven), Ok(NodeId(1)));
    let rotate = Op::RotateKey { by: signer(1, 1), new_key: key(9) };
    state.apply(&command(rotate)).unwrap();
    assert_eq!(register(&mut state, registration(9)), Err(Refusal::ProofRequired));
    assert_eq!(register(&mut state, registration(1)), Ok(NodeId(4)), "the old key is a new node");
}

#[test]
fn commands_signed_with_a_replaced_key_have_no_effect() {
    let mut state = three();
    let rotate = |new| command(Op::RotateKey { by: signer(1, 1), new_key: key(new) });
    assert_eq!(state.apply(&rotate(2)), Err(Refusal::KeyInUse));
    state.apply(&rotate(9)).unwrap();
    let before = records(&state);
    for op in [
        Op::Deregister { by: signer(1, 1) },
        Op::SetVisibility { by: signer(1, 1), public: true },
        Op::SetHostname { by: signer(1, 1), hostname: "x".into() },
        Op::RotateKey { by: signer(1, 1), new_key: key(10) },
    ] {
        assert_eq!(state.apply(&command(op)), Err(Refusal::BadSignature(NodeId(1))));
    }
    assert_eq!(before, records(&state));
}

#[test]
fn reaping_spares_who_registered_again() {
    let mut state = three();
    let silent = state.silent_since(1001);
    assert_eq!(silent.len(), 3);
    register(&mut state, registration(2)).unwrap();
    state.node(NodeId(3)).unwrap().touch(2000);
    assert_eq!(state.silent_since(1001).len(), 2);
    state.apply(&command(Op::Reap { silent })).unwrap();
    assert!(state.node(NodeId(1)).is_err() && state.node(NodeId(2)).is_ok());
    assert_eq!(register(&mut state, registration(1)), Ok(NodeId(1)), "the ID is kept");
}

#[test]
fn scores_do_not_overflow() {
    let mut state = three();
    let node = NodeId(1);
    state.apply(&command(Op::SetPoloScore { node, polo_score: i64::MAX })).unwrap();
    state.apply(&command(Op::UpdatePoloScore { node, delta: i64::MAX })).unwrap();
    assert_eq!(state.node(node).unwrap().record.polo_score, i64::MAX);
}

#[test]
fn names_follow_the_rules() {
    for good in ["a", "9", "a--b", "web-1", &"a".repeat(63)] {
        assert_eq!(check_hostname(good), Ok(()), "{good}");
    }
    for bad in ["", "-a", "a-", "A", "a.b", "café", "a_b", "localhost", &"a".repeat(64)] {
        assert!(check_hostname(bad).is_err(), "{bad}");
    }
    assert_eq!(check_tags(&["#a".into(), "b".into()]), Ok(vec!["a".into(), "b".into()]));
    for bad in [vec!["##a"], vec![""], vec!["#"], vec!["a"; 11]] {
        let bad: Vec<_> = bad.into_iter().map(Into::into).collect();
        assert!(check_tags(&bad).is_err(), "{bad:?}");
    }
}

fn any_signer() -> impl Strategy<Value = Signer> {
    (1u32..7, 1u8..7).prop_map(|(node, key)| signer(node, key))
}

fn any_op() -> impl Strategy<Value = Op> {
    let hostname = prop::sample::select(vec!["", "a", "b", "c", "Bad_Name", "localhost"]);
    let owner = prop::sample::select(vec!["", "", "alice", "bob"]);
    let node = || (0u32..8).prop_map(NodeId);
    prop_oneof![
        4 => (1u8..7, owner, hostname.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(n, owner, hostname, proven, takeover)| Op::Register(Register {
                owner: owner.into(), hostname: hostname.into(), proven, takeover,
                ..registration(n)
            })),
        1 => any_signer().prop_map(|by| Op::Deregister { by }),
        1 => (any_signer(), any::<bool>()).prop_map(|(by, public)| Op::SetVisibility { by, public }),
        3 => (any_signer(), hostname)
            .prop_map(|(by, hostname)| Op::SetHostname { by, hostname: hostname.into() }),
        2 => (any_signer(), node()).prop_map(|(by, peer)| Op::ReportTrust { by, peer }),
        1 => (any_signer(), node()).prop_map(|(by, peer)| Op::RevokeTrust { by, peer }),
        2 => (any_signer(), node())
            .prop_map(|(by, to)| Op::RequestHandshake { by, to, justification: "j".into() }),
        2 => (any_signer(), node(), any::<bool>())
            .prop_map(|(by, peer, accept)| Op::RespondHandshake { by, peer, accept }),
        1 => any_signer().prop_map(|by| Op::TakeHandshakes { by }),
        1 => (any_signer(), 1u8..9).prop_map(|(by, n)| Op::RotateKey { by, new_key: key(n) }),
        1 => (node(), any::<i64>()).prop_map(|(node, delta)| Op::UpdatePoloScore { node, delta }),
        1 => prop::collection::vec((node(), 0u64..40), 0..4).prop_map(|silent| Op::Reap { silent }),
    ]
}

/// Which pairs have been opened by statements of both sides, kept the plain way.
#[derive(Default)]
struct Statements {
    stated: HashSet<(NodeId, NodeId)>,
    withdrawn: HashSet<(NodeId, NodeId)>,
}

impl Statements {
    fn both(&self, a: NodeId, b: NodeId) -> bool {
        self.stated.contains(&(a, b)) && self.stated.contains(&(b, a))
    }

    /// `asked` says whether a request of the answered node waited.
    fn note(&mut self, op: &Op, asked: bool) {
        match *op {
            Op::RequestHandshake { by, to, .. } if self.withdrawn.contains(&(by.node, to)) => {}
            Op::RequestHandshake { by, to, .. } => drop(self.stated.insert((by.node, to))),
            Op::ReportTrust { by, peer } | Op::RespondHandshake { by, peer, accept: true } => {
                self.stated.insert((by.node, peer));
                self.withdrawn.remove(&(by.node, peer));
            }
            Op::RespondHandshake { by, peer, .. } if self.both(by.node, peer) => {}
            Op::RespondHandshake { by, peer, .. }
                if !asked
                    && !self.stated.contains(&(by.node, peer))
                    && !self.stated.contains(&(peer, by.node)) => {}
            Op::RespondHandshake { by, peer, .. } | Op::RevokeTrust { by, peer } => {
                self.stated.remove(&(by.node, peer));
                self.stated.remove(&(peer, by.node));
                self.withdrawn.insert((by.node, peer));
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn invariants_hold_and_replay_is_exact(ops in prop::collection::vec(any_op(), 0..120)) {
        let mut state = State::default();
        let mut replayed = State::default();
        let mut ids = HashSet::new();
        let mut statements = Statements::default();
        for (i, op) in ops.iter().enumerate() {
            let command = Command::own(i as u64, op.clone());
            let before = records(&state);
            let asked = match op {
                Op::RespondHandshake { by, peer, .. } => state.inboxes.asks(*peer, by.node),
                _ => false,
            };
            match state.apply(&command) {
                Ok(_) => statements.note(op, asked),
                Err(_) => prop_assert_eq!(before, records(&state)),
            }
            // The log holds JSON: what is replayed went through it.
            let json = serde_json::to_vec(&command).unwrap();
            let _ = replayed.apply(&serde_json::from_slice(&json).unwrap());
            // A restart in the middle changes nothing.
            if i % 17 == 0 {
                replayed = loaded(replayed.all_rows()).unwrap();
            }
            // Nor does one that reads what an older version wrote.
            if i % 23 == 0 {
                let json = serde_json::to_vec(&replayed.snapshot()).unwrap();
                replayed = State::try_from(serde_json::from_slice::<Snapshot>(&json).unwrap()).unwrap();
            }

            for node in state.nodes.iter() {
                let id = &node.record.id;
                ids.insert(*id);
                prop_assert!(id.0 > 0 && id.0 < state.next_node);
                prop_assert_eq!(state.keys[&node.record.key].node, *id);
                if !node.record.hostname.is_empty() {
                    prop_assert_eq!(state.named(&node.record.hostname).unwrap().record.id, *id);
                }
            }
            prop_assert_eq!(
                state.hostnames.len(),
                state.nodes.iter().filter(|n| !n.record.hostname.is_empty()).count()
            );
            let distinct: HashSet<_> = state.keys.values().map(|e| e.node).collect();
            prop_assert_eq!(distinct.len(), state.keys.len(), "two keys share a node");
            for a in 1..8 {
                for b in state.nodes.iter().filter(|b| !b.record.public && b.record.id.0 != a) {
                    let (a, id) = (NodeId(a), b.record.id);
                    prop_assert_eq!(state.may_resolve(a, b), statements.both(a, id));
                }
            }
        }
        prop_assert_eq!(rows(&state), rows(&replayed));
    }
}
