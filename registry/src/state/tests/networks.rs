//! Rules of networks one by one: what random commands do not reach, above all
//! the bounds, and what is best read as a story.

use pilot_wire::registry::Acknowledged;
use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy, RuleUse};
use serde_json::Value;

use super::super::*;
use super::{command, key, records, register, registration, signer, three};

fn admin() -> Actor {
    Actor::Admin("ops".into())
}

fn node(n: u8) -> Actor {
    Actor::Node(signer(n.into(), n))
}

fn create(by: Actor, name: &str, rule: &str) -> Op {
    let (name, join) = (name.into(), JoinPolicy::of(rule));
    Op::CreateNetwork { by, name, join, broadcast: BroadcastRight::Nobody }
}

fn made(state: &mut State, op: Op) -> u16 {
    match state.apply(&command(op)) {
        Ok(Acknowledged::NetworkMade(made)) => made.network.id,
        other => panic!("{other:?}"),
    }
}

fn token(id: &str, uses: Option<u32>, expires: Option<u64>) -> Op {
    let (by, id, tags) = (admin(), id.into(), vec!["red".into()]);
    Op::CreateToken { by, network: 1, id, salt: [7; 32], hash: [8; 32], uses, expires, tags }
}

fn join(n: u8, admission: Admission) -> Op {
    Op::JoinNetwork { by: signer(n.into(), n), network: 1, admission }
}

fn by_token(id: &str) -> Admission {
    Admission { rule: "token".into(), tokens: vec![id.into()], ..Admission::default() }
}

fn invite(by: Actor, to: Invitee) -> Op {
    Op::Invite { by, network: 1, to, expires: 2000, tags: vec![], signature: None }
}

fn at(at: u64, op: Op) -> Command {
    Command::own(at, op)
}

#[test]
fn numbers_come_in_order_and_again_only_after_all_others() {
    let mut state = State::default();
    assert_eq!(made(&mut state, create(admin(), "first", "open")), 1);
    for expected in 2..=u16::MAX {
        assert_eq!(made(&mut state, create(admin(), "passing", "open")), expected);
        let delete = Op::DeleteNetwork { by: admin(), network: expected };
        state.apply(&command(delete)).unwrap();
    }
    assert_eq!(made(&mut state, create(admin(), "second", "open")), 2, "1 is used");
    assert_eq!(made(&mut state, create(admin(), "third", "open")), 3);
}

#[test]
fn networks_are_bounded() {
    let mut state = State::default();
    for n in 0..MAX_NETWORKS {
        made(&mut state, create(admin(), &format!("n{n}"), "open"));
    }
    let more = command(create(admin(), "more", "open"));
    let before = records(&state);
    assert_eq!(state.apply(&more), Err(Refusal::Full("networks")));
    assert_eq!(before, records(&state));
    state.apply(&command(Op::DeleteNetwork { by: admin(), network: 9 })).unwrap();
    state.apply(&more).unwrap();
}

#[test]
fn memberships_of_a_node_are_bounded_and_renewing_is_not_one_more() {
    let mut state = three();
    for n in 1..=u16::try_from(MAX_MEMBERSHIPS + 1).unwrap() {
        made(&mut state, create(admin(), &format!("n{n}"), "open"));
        let add = Op::AddMember { by: admin(), node: NodeId(1), network: n };
        let full = Err(Refusal::Full("memberships of one node"));
        let added = state.apply(&command(add)).map(|_| ());
        assert_eq!(added, if usize::from(n) > MAX_MEMBERSHIPS { full } else { Ok(()) });
    }
    state.apply(&command(join(1, Admission::default()))).unwrap();
    let last = u16::try_from(MAX_MEMBERSHIPS + 1).unwrap();
    let (by, admission) = (signer(1, 1), Admission::default());
    let one_more = Op::JoinNetwork { by, network: last, admission };
    let full = Err(Refusal::Full("memberships of one node"));
    assert_eq!(state.apply(&command(one_more)), full);
}

#[test]
fn tokens_are_bounded() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "token"));
    for n in 0..MAX_TOKENS {
        state.apply(&command(token(&format!("t{n}"), None, None))).unwrap();
    }
    let full = Err(Refusal::Full("join tokens of one network"));
    assert_eq!(state.apply(&command(token("more", None, None))), full);
    let revoke = Op::RevokeToken { by: admin(), network: 1, id: "t0".into() };
    state.apply(&command(revoke)).unwrap();
    let Ok(Acknowledged::TokenMade(made)) = state.apply(&command(token("more", Some(3), None)))
    else {
        panic!()
    };
    assert_eq!((made.secret.as_str(), made.token.uses_left), ("", Some(3)));
}

#[test]
fn invitations_are_bounded_for_a_network_and_for_an_invitee() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "invite"));
    let to = |n: usize| invite(admin(), Invitee::Owner(format!("owner {n}")));
    for n in 0..MAX_INVITATIONS {
        state.apply(&command(to(n))).unwrap();
    }
    let full = Err(Refusal::Full("invitations to one network"));
    assert_eq!(state.apply(&command(to(MAX_INVITATIONS))), full);
    state.apply(&command(to(7))).unwrap();
    assert!(state.invitation(8).is_none(), "the newer takes the place of the older");
    assert_eq!(state.invitations_to(1).count(), MAX_INVITATIONS);
    state.apply(&command(Op::EndInvitation { by: admin(), id: 4 })).unwrap();
    state.apply(&command(to(MAX_INVITATIONS))).unwrap();
}

fn invite_to(by: Actor, network: u16, to: Invitee) -> Op {
    Op::Invite { by, network, to, expires: 2000, tags: vec![], signature: None }
}

#[test]
fn members_do_not_keep_owners_and_administrators_from_inviting() {
    let mut state = nodes(200);
    let networks = u16::try_from(MAX_INVITATIONS_EACH).unwrap() + 1;
    for n in 1..=networks {
        made(&mut state, create(admin(), &format!("n{n}"), "invite"));
    }
    let third = || Invitee::Node(NodeId(3));
    // Each member is in as many networks as it may invite to.
    for n in 1..networks {
        let member = u8::try_from(10 + n / 60).unwrap();
        let add = Op::AddMember { by: admin(), node: NodeId(member.into()), network: n };
        state.apply(&command(add)).unwrap();
        state.apply(&command(invite_to(node(member), n, third()))).unwrap();
    }
    let add = Op::AddMember { by: admin(), node: NodeId(20), network: networks };
    state.apply(&command(add)).unwrap();
    let more = |by| command(invite_to(by, networks, third()));
    let full = Err(Refusal::Full("invitations for one invitee"));
    assert_eq!(state.apply(&more(node(20))), full);
    state.apply(&more(admin())).unwrap();
    assert!(state.invitation(1).is_none(), "the oldest of a member made room");
    assert_eq!(state.invitations_for(NodeId(3)).len(), MAX_INVITATIONS_EACH);
    match state.apply(&more(node(20))) {
        Err(Refusal::Invalid { key, .. }) => assert_eq!(key, "to", "no member replaces it"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn invitations_of_one_node_are_bounded_and_last_a_year() {
    let mut state = three();
    made(&mut state, create(node(1), "lab", "invite"));
    let to = |n: usize| invite(node(1), Invitee::Owner(format!("owner {n}")));
    for n in 0..MAX_INVITATIONS_FROM {
        state.apply(&command(to(n))).unwrap();
    }
    let full = Err(Refusal::Full("invitations by one node"));
    assert_eq!(state.apply(&command(to(MAX_INVITATIONS_FROM))), full);
    state.apply(&command(to(0))).unwrap();
    let late = |expires| {
        let (by, network, to, tags) = (admin(), 1, Invitee::Node(NodeId(2)), vec![]);
        command(Op::Invite { by, network, to, expires, tags, signature: None })
    };
    match state.apply(&late(1001 + MAX_INVITATION_TIME)) {
        Err(Refusal::Invalid { key, .. }) => assert_eq!(key, "expires"),
        other => panic!("{other:?}"),
    }
    state.apply(&late(1000 + MAX_INVITATION_TIME)).unwrap();
}

#[test]
fn who_is_out_has_no_way_back_by_invitations() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "invite"));
    let (two, three) = (|| Invitee::Node(NodeId(2)), || Invitee::Node(NodeId(3)));
    let add = |n| command(Op::AddMember { by: admin(), node: NodeId(n), network: 1 });
    state.apply(&add(2)).unwrap();
    let already = Err(Refusal::AlreadyMember { network: 1, node: NodeId(2) });
    assert_eq!(state.apply(&command(invite(node(2), two()))), already, "for itself");
    assert_eq!(state.apply(&command(invite(admin(), two()))), already);
    state.apply(&command(invite(node(2), three()))).unwrap();
    let remove = |n| command(Op::LeaveNetwork { by: admin(), node: NodeId(n), network: 1 });
    state.apply(&remove(2)).unwrap();
    assert_eq!(state.invitations_to(1).count(), 0, "what a friend holds ends too");

    // One that was made before its invitee was put in.
    state.apply(&command(invite(admin(), three()))).unwrap();
    state.apply(&add(3)).unwrap();
    state.apply(&remove(3)).unwrap();
    let by = |id| Admission { invitations: vec![id], ..Admission::default() };
    assert_eq!(state.apply(&command(join(3, by(2)))), Err(Refusal::InvitationGone));

    // Expiry ends them as well.
    let until = Admission { expires: Some(1500), ..Admission::default() };
    state.apply(&command(join(2, until))).unwrap();
    state.apply(&command(invite(node(2), three()))).unwrap();
    state.apply(&at(1500, Op::Expire {})).unwrap();
    assert_eq!(state.invitations_to(1).count(), 0);

    // Nor does the one of a member count whose key is another by now.
    state.apply(&add(2)).unwrap();
    state.apply(&command(invite(node(2), three()))).unwrap();
    let id = state.invitations_for(NodeId(3))[0].id;
    let rotate = Op::RotateKey { by: signer(2, 2), new_key: key(9) };
    state.apply(&command(rotate)).unwrap();
    assert!(!state.is_backed(state.invitation(id).unwrap()));
    assert_eq!(state.apply(&command(join(3, by(id)))), Err(Refusal::InvitationGone));
    let again = Actor::Node(signer(2, 9));
    state.apply(&command(invite(again, three()))).unwrap();
    state.apply(&command(join(3, by(id + 1)))).unwrap();
}

#[test]
fn networks_of_one_owner_are_bounded() {
    let mut state = three();
    for n in 0..MAX_NETWORKS_OF_OWNER {
        made(&mut state, create(node(1), &format!("n{n}"), "open"));
    }
    let more = command(create(node(1), "more", "open"));
    assert_eq!(state.apply(&more), Err(Refusal::Full("networks of one owner")));
    made(&mut state, create(node(2), "other", "open"));
    made(&mut state, create(admin(), "ops", "open"));
    state.apply(&command(Op::DeleteNetwork { by: node(1), network: 3 })).unwrap();
    state.apply(&more).unwrap();
}

/// That many registered nodes; the first 255 have their number as key.
fn nodes(count: u32) -> State {
    let mut state = State::default();
    for n in 1..=count {
        let key = match u8::try_from(n) {
            Ok(n) => key(n),
            Err(_) => {
                let mut key = [0; 32];
                key[..4].copy_from_slice(&n.to_be_bytes());
                PublicKey(key)
            }
        };
        register(&mut state, Register { key, ..registration(1) }).unwrap();
    }
    state
}

#[test]
fn a_big_network_ends_in_steps_and_is_gone_at_once() {
    let count = MAX_LEAVING * 2 + 7;
    let mut state = nodes(u32::try_from(count).unwrap());
    state.track_dirty(true);
    made(&mut state, create(node(1), "lab", "open"));
    for node in (1..).map(NodeId).take(count) {
        state.apply(&command(Op::AddMember { by: admin(), node, network: 1 })).unwrap();
    }
    assert!(super::may(&state, 1, 2));
    state.take_changes();
    state.apply(&command(Op::DeleteNetwork { by: node(1), network: 1 })).unwrap();
    let gone = |state: &State| {
        assert_eq!(state.networks().count(), 0);
        assert_eq!(state.network(1), Err(Refusal::UnknownNetwork(1)));
        let (last, other) = (u32::try_from(count).unwrap(), u32::try_from(count - 1).unwrap());
        assert_eq!(state.memberships(NodeId(last)).count(), 0);
        assert!(!super::may(state, last, other));
    };
    gone(&state);
    assert_eq!(made(&mut state, create(node(1), "lab", "open")), 2, "the name is free");
    state.apply(&command(Op::DeleteNetwork { by: node(1), network: 2 })).unwrap();
    let mut told = state.take_changes();
    assert_eq!(told.len(), 2 * MAX_LEAVING, "as the second deletion took its turn too");
    assert_eq!(state.next_end(), Some(0));

    // A restart goes on where it was.
    let mut state = super::loaded(state.all_rows()).unwrap();
    gone(&state);
    assert_eq!(state.next_end(), Some(0));
    let before = rows_of_members(&state);
    assert_eq!(before, 7);
    state.apply(&at(1001, Op::Expire {})).unwrap();
    told.extend(state.take_changes());
    assert_eq!(rows_of_members(&state), 0);
    assert_eq!(state.next_end(), None);
    let left: std::collections::BTreeSet<_> = told
        .iter()
        .map(|change| match change {
            Change::Left { network: 1, name, node, reason: LeaveReason::Deleted } => {
                assert_eq!(name, "lab");
                *node
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((left.len(), told.len()), (count, count), "everybody is told once");
    assert!(!state.all_rows().any(|row| row.table == Table::Network));
}

fn rows_of_members(state: &State) -> usize {
    state.all_rows().filter(|row| row.table == Table::Member).count()
}

#[test]
fn what_was_judged_by_other_rules_lets_nobody_in() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "open"));
    let judged = |state: &State, n: u32| {
        let network = state.network(1).unwrap();
        let renews = network.members.get(&NodeId(n)).map(|member| member.joined);
        Admission { policy: network.policy(), renews, ..Admission::default() }
    };
    let refused = |outcome: Result<Acknowledged, Refusal>| match outcome {
        Err(Refusal::NotAdmitted { network: 1, reason, .. }) => {
            assert_eq!(reason, "the network's rules changed while they were asked; try again");
        }
        other => panic!("{other:?}"),
    };
    let early = judged(&state, 1);
    state.apply(&command(join(1, early.clone()))).unwrap();
    let (by, broadcast) = (admin(), Some(BroadcastRight::Members));
    let update = Op::UpdateNetwork { by, network: 1, join: None, broadcast };
    state.apply(&command(update)).unwrap();
    let renewal = judged(&state, 1);
    state.apply(&command(join(1, renewal.clone()))).unwrap();
    let remove = Op::LeaveNetwork { by: admin(), node: NodeId(1), network: 1 };
    state.apply(&command(remove)).unwrap();
    refused(state.apply(&command(join(1, renewal))));
    let by_open = judged(&state, 2);
    let (by, join_policy) = (admin(), Some(JoinPolicy::of("token")));
    let update = Op::UpdateNetwork { by, network: 1, join: join_policy, broadcast: None };
    state.apply(&command(update)).unwrap();
    refused(state.apply(&command(join(2, by_open))));
    assert!(state.network(1).unwrap().members.is_empty());
    let mut state = super::loaded(state.all_rows()).unwrap();
    refused(state.apply(&command(join(2, early))));
    state.apply(&command(join(2, judged(&state, 2)))).unwrap();
}

/// As deep as is allowed is read back from the log; deeper is refused.
#[test]
fn a_configuration_is_nested_as_deep_as_can_be_read_back() {
    let nested = |depth| (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    let rule = |config| RuleUse { rule: "open".into(), config };
    let create = |configs: Vec<Value>| {
        let rules = configs.into_iter().map(rule).collect();
        let join = JoinPolicy { rules, ..JoinPolicy::default() };
        let (by, broadcast) = (admin(), BroadcastRight::Nobody);
        command(Op::CreateNetwork { by, name: "lab".into(), join, broadcast })
    };
    let mut state = State::default();
    let refused = |outcome: Result<Acknowledged, Refusal>, expected: &str| match outcome {
        Err(Refusal::Invalid { key, .. }) => assert_eq!(key, expected),
        other => panic!("{other:?}"),
    };
    let deeper = create(vec![Value::Null, nested(MAX_CONFIG_DEPTH + 1)]);
    refused(state.apply(&deeper), "join.rules[1].config");
    let object = serde_json::json!({ "a": nested(MAX_CONFIG_DEPTH) });
    refused(state.apply(&create(vec![object])), "join.rules[0].config");
    let long = || Value::from("x".repeat(MAX_RULE_CONFIG - 2));
    refused(state.apply(&create(vec![long(), long(), Value::Null])), "join.rules");
    let deepest = create(vec![nested(MAX_CONFIG_DEPTH)]);
    let json = serde_json::to_vec(&deepest).unwrap();
    assert_eq!(serde_json::from_slice::<Command>(&json).unwrap(), deepest);
    state.apply(&deepest).unwrap();
    super::loaded(state.all_rows()).unwrap();
}

#[test]
fn statements_and_withdrawals_of_one_node_are_bounded() {
    let most = u32::try_from(MAX_STATEMENTS_OF_NODE).unwrap();
    assert_eq!(MAX_STATEMENTS_OF_NODE, MAX_WITHDRAWALS_OF_NODE);
    let mut state = nodes(most + 4);
    let states = |peer| command(Op::ReportTrust { by: signer(1, 1), peer: NodeId(peer) });
    for peer in 2..most + 2 {
        state.apply(&states(peer)).unwrap();
    }
    let more = most + 2;
    let full = Err(Refusal::Full("trust statements of one node"));
    assert_eq!(state.apply(&states(more)), full);
    state.apply(&states(2)).unwrap();
    super::report(&mut state, 2, 1);
    state.apply(&states(more)).unwrap();
    assert_eq!(state.apply(&states(more + 1)), full, "only the one that was returned is free");

    let mut state = super::loaded(state.all_rows()).unwrap();
    assert_eq!(state.apply(&states(more + 1)), full, "after a restart too");
    let ends = |peer| command(Op::RevokeTrust { by: signer(1, 1), peer: NodeId(peer) });
    for peer in 2..most + 2 {
        state.apply(&ends(peer)).unwrap();
    }
    let before = records(&state);
    let full = Err(Refusal::Full("withdrawals of trust of one node"));
    assert_eq!(state.apply(&ends(more)), full);
    assert_eq!(before, records(&state));
    state.apply(&states(2)).unwrap();
    state.apply(&ends(more)).unwrap();
}

#[test]
fn answers_go_to_who_asked_and_the_newest_counts() {
    let mut state = three();
    let answer = |by: u8, peer, accept| {
        command(Op::RespondHandshake { by: signer(by.into(), by), peer: NodeId(peer), accept })
    };
    let ask = |by: u8, to| {
        let (by, justification) = (signer(by.into(), by), String::new());
        command(Op::RequestHandshake { by, to: NodeId(to), justification })
    };
    let take = |state: &mut State, n: u8| {
        let by = signer(n.into(), n);
        match state.apply(&command(Op::TakeHandshakes { by })) {
            Ok(Acknowledged::Handshakes(taken)) => {
                taken.responses.iter().map(|a| (a.from_node_id.0, a.accept)).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    state.apply(&answer(1, 2, false)).unwrap();
    assert!(!state.has_withdrawn(NodeId(1), NodeId(2)), "there was nothing to refuse");
    state.apply(&answer(1, 2, true)).unwrap();
    assert!(state.has_stated(NodeId(1), NodeId(2)));
    assert_eq!(take(&mut state, 2), [], "it did not ask");
    state.apply(&ask(2, 3)).unwrap();
    state.apply(&answer(3, 2, false)).unwrap();
    state.apply(&answer(3, 2, true)).unwrap();
    assert_eq!(take(&mut state, 2), [(3, true)], "while the request waits, the newest");
    state.apply(&ask(3, 1)).unwrap();
    assert_eq!(take(&mut state, 1), []);
    state.apply(&answer(1, 3, true)).unwrap();
    assert_eq!(take(&mut state, 3), [(1, true)], "when the request was taken");
    // One whose request states nothing any more.
    state.apply(&command(Op::RevokeTrust { by: signer(3, 3), peer: NodeId(1) })).unwrap();
    state.apply(&ask(3, 1)).unwrap();
    assert_eq!(take(&mut state, 1), []);
    state.apply(&answer(1, 3, true)).unwrap();
    assert_eq!(take(&mut state, 3), [(1, true)]);
}

/// What is found by sender follows whatever is put in and taken.
#[test]
fn what_waits_from_a_revoked_node_is_dropped_everywhere() {
    let mut state = nodes(120);
    let ask = |by: u8, to| {
        let (by, justification) = (signer(by.into(), by), String::new());
        command(Op::RequestHandshake { by, to: NodeId(to), justification })
    };
    for to in 2..=120 {
        state.apply(&ask(1, to)).unwrap();
        super::report(&mut state, to, 1);
    }
    for to in 2..=60 {
        let accept = Op::RespondHandshake { by: signer(1, 1), peer: NodeId(to), accept: true };
        state.apply(&command(accept)).unwrap();
    }
    state.apply(&command(Op::TakeHandshakes { by: signer(9, 9) })).unwrap();
    state.apply(&ask(5, 6)).unwrap();
    let mut state = super::loaded(state.all_rows()).unwrap();
    let revoke = Op::RevokeNode { by: admin(), node: NodeId(1), reason: String::new() };
    state.apply(&command(revoke)).unwrap();
    let waiting: Vec<_> = (1..=120).map(NodeId).filter(|n| state.has_handshakes(*n)).collect();
    assert_eq!(waiting, [NodeId(6)], "only what another has sent");
}

#[test]
fn a_policy_is_bounded() {
    let mut state = State::default();
    let rule = |config| RuleUse { rule: "open".into(), config };
    let policy = |rules| JoinPolicy { rules, ..JoinPolicy::default() };
    let create = |join| {
        let broadcast = BroadcastRight::Nobody;
        Op::CreateNetwork { by: admin(), name: "lab".into(), join, broadcast }
    };
    let many = policy(vec![rule(Value::Null); MAX_RULES + 1]);
    let long = policy(vec![rule(Value::from("x".repeat(MAX_RULE_CONFIG)))]);
    for (join, key) in [(many, "join.rules"), (long, "join.rules[0].config")] {
        match state.apply(&command(create(join))) {
            Err(Refusal::Invalid { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{other:?}"),
        }
    }
    let most = policy(vec![rule(Value::Null); MAX_RULES]);
    state.apply(&command(create(most))).unwrap();
}

#[test]
fn a_token_is_used_up_and_ends_in_time() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "token"));
    state.apply(&command(token("twice", Some(2), None))).unwrap();
    state.apply(&command(token("brief", None, Some(1500)))).unwrap();
    state.apply(&command(join(1, by_token("twice")))).unwrap();
    let mut both = by_token("twice");
    both.tokens.push("no such".into());
    let before = records(&state);
    assert_eq!(state.apply(&command(join(2, both))), Err(Refusal::TokenGone));
    assert_eq!(before, records(&state), "the good one is not counted");
    state.apply(&command(join(2, by_token("twice")))).unwrap();
    assert_eq!(state.apply(&command(join(3, by_token("twice")))), Err(Refusal::TokenGone));
    assert!(!state.network(1).unwrap().tokens.contains_key("twice"));
    state.apply(&at(1499, join(3, by_token("brief")))).unwrap();
    assert_eq!(state.apply(&at(1500, join(3, by_token("brief")))), Err(Refusal::TokenGone));
    assert_eq!(state.next_end(), Some(1500));
    state.apply(&at(1500, Op::Expire {})).unwrap();
    assert_eq!(state.next_end(), None);
    assert!(state.network(1).unwrap().tokens.is_empty());
}

#[test]
fn joining_again_renews_and_keeps_when_it_began() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "open"));
    let until = |expires| Admission { expires: Some(expires), ..Admission::default() };
    state.apply(&at(10, join(1, until(100)))).unwrap();
    state.take_changes();
    state.apply(&at(50, join(1, until(100)))).unwrap();
    assert!(state.take_changes().is_empty(), "the same again is no news");
    state.apply(&at(60, join(1, until(200)))).unwrap();
    assert_eq!(state.take_changes(), [Change::Joined { network: 1, node: NodeId(1) }]);
    let member = state.network(1).unwrap().members[&NodeId(1)].clone();
    assert_eq!((member.joined, member.expires), (10, Some(200)));
    state.apply(&at(100, Op::Expire {})).unwrap();
    assert_eq!(state.memberships(NodeId(1)).count(), 1);
    state.apply(&at(200, Op::Expire {})).unwrap();
    let (network, name, node) = (1, "lab".to_owned(), NodeId(1));
    let left = Change::Left { network, name, node, reason: LeaveReason::Expired };
    assert_eq!(state.take_changes(), [left]);
    let over = state.apply(&at(300, join(1, until(300)))).unwrap_err();
    assert_eq!(over.code(), "not_admitted");
}

#[test]
fn what_ends_at_once_is_bounded_and_the_rest_ends_next() {
    let mut state = three();
    let networks = MAX_ENDED.div_ceil(MAX_TOKENS) + 1;
    for n in 0..networks {
        let network = made(&mut state, create(admin(), &format!("n{n}"), "token"));
        for t in 0..MAX_TOKENS {
            let Op::CreateToken { by, id, salt, hash, uses, expires, tags, .. } =
                token(&format!("t{t}"), None, Some(1500))
            else {
                panic!()
            };
            let op = Op::CreateToken { by, network, id, salt, hash, uses, expires, tags };
            state.apply(&command(op)).unwrap();
        }
    }
    let left = |state: &State| state.networks().map(|n| n.tokens.len()).sum::<usize>();
    state.apply(&at(1500, Op::Expire {})).unwrap();
    assert_eq!(left(&state), networks * MAX_TOKENS - MAX_ENDED);
    assert_eq!(state.next_end(), Some(1500));
    state.apply(&at(1500, Op::Expire {})).unwrap();
    assert_eq!((left(&state), state.next_end()), (0, None));
}

#[test]
fn a_membership_outlives_the_registration() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "open"));
    state.apply(&command(join(1, Admission::default()))).unwrap();
    state.apply(&command(join(2, Admission::default()))).unwrap();
    state.apply(&command(Op::Deregister { by: signer(1, 1) })).unwrap();
    assert!(state.network(1).unwrap().members.contains_key(&NodeId(1)));
    register(&mut state, registration(1)).unwrap();
    assert_eq!(state.shared_networks(NodeId(1), NodeId(2)), [1]);
    let target = state.node(NodeId(1)).unwrap();
    assert!(state.may_resolve(NodeId(2), target) && !state.may_resolve(NodeId(3), target));
}

/// An owner is but a text, which anybody can register.
#[test]
fn an_invitation_for_an_owner_is_for_proven_keys() {
    let mut state = three();
    made(&mut state, create(admin(), "lab", "invite"));
    let invited = || invite(admin(), Invitee::Owner("alice".into()));
    state.apply(&command(invited())).unwrap();
    let owned = Register { owner: "alice".into(), ..registration(1) };
    register(&mut state, owned.clone()).unwrap();
    assert!(state.invitations_for(NodeId(1)).is_empty());
    let accept = Admission { invitations: vec![1], ..Admission::default() };
    assert_eq!(state.apply(&command(join(1, accept.clone()))), Err(Refusal::InvitationGone));
    state.take_changes();
    register(&mut state, Register { proven: true, ..owned }).unwrap();
    assert_eq!(state.take_changes(), [Change::Node(NodeId(1)), Change::Invited(1)]);
    let decline = Op::EndInvitation { by: node(2), id: 1 };
    assert_eq!(state.apply(&command(decline)), Err(Refusal::InvitationGone));
    state.apply(&command(join(1, accept.clone()))).unwrap();
    assert_eq!(state.apply(&command(join(1, accept))), Err(Refusal::InvitationGone));
}

#[test]
fn members_invite_where_the_rules_say_so_and_give_no_tags() {
    let mut state = three();
    made(&mut state, create(node(1), "lab", "open"));
    state.apply(&command(join(2, Admission::default()))).unwrap();
    let third = || Invitee::Node(NodeId(3));
    let by = |n| command(invite(node(n), third()));
    assert_eq!(state.apply(&by(2)), Err(Refusal::NotOwner(1)));
    state.apply(&by(1)).unwrap();
    let join = Some(JoinPolicy::of("invite"));
    let update = Op::UpdateNetwork { by: node(1), network: 1, join, broadcast: None };
    state.apply(&command(update)).unwrap();
    match state.apply(&by(2)) {
        Err(Refusal::Invalid { key, .. }) => assert_eq!(key, "to", "the owner has invited it"),
        other => panic!("{other:?}"),
    }
    state.apply(&command(Op::EndInvitation { by: node(1), id: 1 })).unwrap();
    state.apply(&by(2)).unwrap();
    let not_member = Refusal::NotMember { network: 1, node: NodeId(3) };
    assert_eq!(state.apply(&by(3)), Err(not_member));
    let mut tagged = invite(node(2), third());
    if let Op::Invite { tags, .. } = &mut tagged {
        tags.push("boss".into());
    }
    assert_eq!(state.apply(&command(tagged)), Err(Refusal::NotOwner(1)));
    let from = state.invitation(2).unwrap().from;
    assert_eq!(from, Some((NodeId(2), key(2))));
}

#[test]
fn a_right_to_broadcast_is_told_to_whom_it_concerns() {
    let mut state = three();
    made(&mut state, create(node(1), "lab", "open"));
    for n in 1..=2 {
        let tags = if n == 2 { vec!["loud".into()] } else { vec![] };
        state.apply(&command(join(n, Admission { tags, ..Admission::default() }))).unwrap();
    }
    state.take_changes();
    let mut set = |right| {
        let by = node(1);
        let update = Op::UpdateNetwork { by, network: 1, join: None, broadcast: Some(right) };
        state.apply(&command(update)).unwrap();
        state.take_changes()
    };
    let joined = |node| Change::Joined { network: 1, node: NodeId(node) };
    assert_eq!(set(BroadcastRight::Tagged("loud".into())), [joined(2)]);
    assert_eq!(set(BroadcastRight::Members), [joined(1)]);
    assert_eq!(set(BroadcastRight::Members), []);
    assert_eq!(set(BroadcastRight::Owner), [joined(2)]);
}

#[test]
fn a_revoked_node_is_out_for_ever() {
    let mut state = State::default();
    for n in 1..=3 {
        let (owner, hostname) = (format!("owner {n}"), format!("host-{n}"));
        register(&mut state, Register { owner, hostname, ..registration(n) }).unwrap();
    }
    made(&mut state, create(node(2), "lab", "open"));
    state.apply(&command(invite(node(2), Invitee::Node(NodeId(1))))).unwrap();
    for n in 1..=3 {
        state.apply(&command(join(n, Admission::default()))).unwrap();
    }
    for (by, peer) in [(1, 2), (2, 1), (3, 1)] {
        super::report(&mut state, by, peer);
    }
    for (by, to) in [(1, 3), (2, 1)] {
        let by = signer(by, u8::try_from(by).unwrap());
        let ask = Op::RequestHandshake { by, to: NodeId(to), justification: String::new() };
        state.apply(&command(ask)).unwrap();
    }
    state.take_changes();
    let revoke = |by| command(Op::RevokeNode { by, node: NodeId(1), reason: "stolen".into() });
    assert_eq!(state.apply(&revoke(node(2))), Err(Refusal::AdminOnly("node_revoke")));
    state.apply(&revoke(admin())).unwrap();
    let changes = state.take_changes();
    for change in [
        Change::Key(NodeId(1)),
        Change::Node(NodeId(1)),
        Change::Trust(NodeId(1), NodeId(2)),
        Change::Trust(NodeId(1), NodeId(3)),
    ] {
        assert!(changes.contains(&change), "{change:?} in {changes:?}");
    }
    assert_eq!(state.apply(&revoke(admin())), Err(Refusal::Revoked(NodeId(1))));
    assert!(state.node(NodeId(1)).is_err() && state.named("host-1").is_err());
    assert_eq!(state.memberships(NodeId(1)).count(), 0);
    assert_eq!(state.revoked_by(NodeId(2)), [NodeId(1)]);
    assert_eq!(state.revoked_by(NodeId(1)), [NodeId(2), NodeId(3)]);
    assert!(!state.has_handshakes(NodeId(1)) && !state.has_handshakes(NodeId(3)));
    assert!(state.invitation(1).is_none());

    assert_eq!(register(&mut state, registration(1)), Err(Refusal::KeyRevoked));
    let takeover = Register { owner: "owner 1".into(), takeover: true, ..registration(4) };
    assert_eq!(register(&mut state, takeover), Ok(NodeId(4)), "its owner gets another number");
    let rotate = |new| command(Op::RotateKey { by: signer(2, 2), new_key: key(new) });
    assert_eq!(state.apply(&rotate(1)), Err(Refusal::KeyRevoked));
    let leave = command(Op::Deregister { by: signer(1, 1) });
    assert_eq!(state.apply(&leave), Err(Refusal::Revoked(NodeId(1))));
    let by = signer(2, 2);
    let accept = Op::RespondHandshake { by, peer: NodeId(1), accept: true };
    assert_eq!(state.apply(&command(accept)), Err(Refusal::Revoked(NodeId(1))));
    state = super::loaded(state.all_rows()).unwrap();
    assert_eq!(register(&mut state, registration(1)), Err(Refusal::KeyRevoked));
    assert!(state.is_revoked(NodeId(1)));
}

#[test]
fn who_is_absent_can_be_revoked_and_who_never_was_cannot() {
    let mut state = three();
    let revoke = |n| command(Op::RevokeNode { by: admin(), node: NodeId(n), reason: "".into() });
    state.apply(&command(Op::Deregister { by: signer(2, 2) })).unwrap();
    state.apply(&revoke(2)).unwrap();
    assert_eq!(register(&mut state, registration(2)), Err(Refusal::KeyRevoked));
    assert_eq!(state.apply(&revoke(4)), Err(Refusal::UnknownNode(NodeId(4))));
    assert_eq!(state.apply(&revoke(0)), Err(Refusal::UnknownNode(NodeId(0))));
}

fn imported() -> Imported {
    let record = |n: u8, hostname: &str| NodeRecord {
        id: NodeId(n.into()),
        key: key(n),
        endpoint: ([127, 0, 0, 1], 4000).into(),
        registered_by: 99,
        owner: "alice".into(),
        hostname: hostname.into(),
        public: n == 1,
        tags: vec!["blue".into()],
        polo_score: 5,
        task_exec: true,
    };
    let network = NetworkRecord {
        id: 7,
        name: "lab".into(),
        join: JoinPolicy::of("open"),
        broadcast: BroadcastRight::Nobody,
        owner: None,
        created: 3,
    };
    let member = Member {
        node: NodeId(3),
        joined: 3,
        rule: "open".into(),
        expires: None,
        tags: vec![],
        external_identity: None,
    };
    Imported {
        next_node: 9,
        nodes: vec![record(2, "two"), record(1, "one")],
        keys: (1..=3).map(|n| (key(n), NodeId(n.into()))).collect(),
        trust: vec![(NodeId(1), NodeId(3))],
        requests: vec![],
        answers: vec![],
        networks: vec![(network, vec![member])],
    }
}

#[test]
fn an_import_begins_an_empty_registry() {
    let mut state = State::default();
    state.new_epoch("e".into());
    state.track_dirty(true);
    let import = command(Op::Import(Box::new(imported())));
    state.apply(&import).unwrap();
    assert_eq!((state.epoch(), state.applied(), state.len()), ("e", 1, 2));
    assert!(state.is_mutual(NodeId(1), NodeId(3)), "a published pair is stated by both");
    assert_eq!(state.silent_since(1000), [], "all have just been heard of");
    assert_eq!(state.census().unique_tags(), 1);
    let mut stored = state.take_dirty();
    stored.sort();
    assert_eq!(stored, super::rows(&state), "all of it is new");
    assert_eq!(register(&mut state, registration(3)), Ok(NodeId(3)), "an old key, its number");
    assert_eq!(register(&mut state, registration(4)), Ok(NodeId(9)));
    assert_eq!(made(&mut state, create(admin(), "next", "open")), 8);
    let takeover = Register { owner: "alice".into(), takeover: true, ..registration(5) };
    assert_eq!(register(&mut state, takeover), Ok(NodeId(1)), "the first node of the owner");
    assert_eq!(state.apply(&import), Err(Refusal::NotEmpty));
}

#[test]
fn an_import_that_contradicts_itself_is_refused_whole() {
    type Spoil = fn(&mut Imported);
    let spoil: [(&str, Spoil); 9] = [
        ("number", |i| i.next_node = 2),
        ("key", |i| i.keys.truncate(1)),
        ("two keys", |i| i.keys.push((key(9), NodeId(3)))),
        ("hostname", |i| i.nodes[1].hostname = "two".into()),
        ("bad hostname", |i| i.nodes[1].hostname = "Two".into()),
        ("itself", |i| i.trust.push((NodeId(2), NodeId(2)))),
        ("member", |i| i.networks[0].1[0].node = NodeId(30)),
        ("name", |i| i.networks[0].0.name = "backbone".into()),
        ("twice", |i| i.networks.extend(i.networks.clone())),
    ];
    for (what, spoil) in spoil {
        let mut state = State::default();
        let before = records(&state);
        let mut spoiled = imported();
        spoil(&mut spoiled);
        let refused = state.apply(&command(Op::Import(Box::new(spoiled))));
        assert!(refused.is_err(), "{what}");
        assert_eq!(before, records(&state), "{what}");
    }
}
