//! Random commands against the model: same outcome, same view, and what the
//! state says it changed is what somebody can see changed.

use std::collections::{BTreeMap, BTreeSet};

use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy};
use proptest::prelude::*;

use super::super::*;
use super::model::{KeyOf, Model, NetworkOf, NodeOf, View};
use super::{key, loaded, records, registration, rows, signer};

/// Numbers that nodes of a test can have, and some that they have not.
const IDS: std::ops::Range<u32> = 0..14;
/// Keys of a test.
const KEYS: std::ops::Range<u8> = 1..13;

/// All that can be seen of a state, found by asking for it.
fn view(state: &State) -> View {
    let ids = || IDS.map(NodeId);
    let mut view = View::default();
    for id in ids() {
        if let Ok(node) = state.node(id) {
            let r = &node.record;
            assert_eq!(r.id, id);
            let node = NodeOf {
                key: r.key,
                endpoint: r.endpoint,
                owner: r.owner.clone(),
                hostname: r.hostname.clone(),
                public: r.public,
                tags: r.tags.clone(),
                task_exec: r.task_exec,
                score: r.polo_score,
            };
            view.nodes.insert(id, node);
        }
        for peer in ids() {
            if state.has_stated(id, peer) {
                view.stated.insert((id, peer));
            }
            if state.has_withdrawn(id, peer) {
                view.withdrawn.insert((id, peer));
            }
        }
        for (network, member) in state.memberships(id) {
            view.members.insert((network.record.id, id), member.clone());
        }
    }
    for n in KEYS {
        if let Some(entry) = state.key(&key(n)) {
            let (proven, revoked) = (entry.proven, entry.revoked);
            let former = view.keys.insert(entry.node, KeyOf { key: key(n), proven, revoked });
            assert_eq!(former, None, "two keys of one node");
            assert_eq!(state.is_revoked(entry.node), revoked);
        }
    }
    view.owners = state.owners.iter().map(|(text, id)| (text.to_string(), *id)).collect();
    for (id, inbox) in state.inboxes.iter() {
        let requests = inbox.requests.iter().map(|r| (r.from_node_id, r.timestamp));
        let answers = inbox.answers.iter().map(|a| (a.from_node_id, a.accept, a.timestamp));
        if !inbox.requests.is_empty() {
            view.requests.insert(*id, requests.collect());
        }
        if !inbox.answers.is_empty() {
            view.answers.insert(*id, answers.collect());
        }
    }
    for network in state.networks() {
        let r = &network.record;
        let found = state.find_network(&NetworkRef::Name(r.name.clone())).unwrap();
        assert_eq!(found.record.id, r.id);
        let (name, join) = (r.name.clone(), r.join.clone());
        let (owner, broadcast, created) = (r.owner, r.broadcast.clone(), r.created);
        let policy = network.policy();
        let of = NetworkOf { name, owner, join, broadcast, created, policy };
        view.networks.insert(r.id, of);
        for token in network.tokens.values() {
            view.tokens.insert((r.id, token.id.clone()), token.clone());
        }
        for invitation in state.invitations_to(r.id) {
            view.invitations.insert(invitation.id, invitation.clone());
        }
        for node in network.members.keys() {
            assert!(view.members.contains_key(&(r.id, *node)), "found by node as well");
        }
    }
    view
}

/// Everything that is derived from the view is as the plain way derives it.
fn agrees(state: &State, view: &View) {
    let ids = || IDS.map(NodeId);
    for a in ids() {
        let trusted: Vec<_> = ids().filter(|b| view.both(a, *b)).collect();
        assert_eq!(state.trusted_by(a), trusted);
        let ended: Vec<_> = ids().filter(|b| view.withdrawn.contains(&(*b, a))).collect();
        assert_eq!(state.revoked_by(a), ended);
        let waits = view.requests.contains_key(&a) || view.answers.contains_key(&a);
        assert_eq!(state.has_handshakes(a), waits);
        let invited: BTreeSet<_> = state.invitations_for(a).iter().map(|i| i.id).collect();
        assert_eq!(invited, view.invitations_for(a));
        for b in ids() {
            let shared = view.shared(a, b);
            assert_eq!(state.shared_networks(a, b), shared);
            if let Ok(target) = state.node(b) {
                let public = view.nodes[&b].public;
                let may = public || view.both(a, b) || !shared.is_empty();
                assert_eq!(state.may_resolve(a, target), may);
            }
        }
        for id in view.networks.keys() {
            let membership = state.network(*id).unwrap().membership(a);
            assert_eq!(membership, view.membership(*id, a));
        }
    }
    for (id, node) in &view.nodes {
        if !node.hostname.is_empty() {
            assert_eq!(state.named(&node.hostname).unwrap().record.id, *id);
        }
    }
    for name in ["a", "b", "c"] {
        let there = view.nodes.values().any(|n| n.hostname == name);
        assert_eq!(state.named(name).is_ok(), there);
    }
    let nodes = || view.nodes.values();
    assert_eq!(state.len(), view.nodes.len());
    assert_eq!(state.census().public(), nodes().filter(|n| n.public).count());
    assert_eq!(state.census().task_executors(), nodes().filter(|n| n.task_exec).count());
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    nodes().flat_map(|n| &n.tags).for_each(|tag| *tags.entry(tag).or_default() += 1);
    assert_eq!(state.census().tags().collect::<BTreeMap<_, _>>(), tags);
    assert_eq!(state.census().unique_tags(), tags.len());
    let pair = |(a, b): &(NodeId, NodeId)| (*a.min(b), *a.max(b));
    let pairs: BTreeSet<_> = view.stated.iter().map(pair).collect();
    assert_eq!(state.trust_pairs(), pairs.len());
    assert_eq!(state.mutual_pairs(), pairs.iter().filter(|(a, b)| view.both(*a, *b)).count());
    assert_eq!(state.keys(), view.keys.len());
    let ends = view.members.values().filter_map(|m| m.expires);
    let ends = ends.chain(view.tokens.values().filter_map(|t| t.expires));
    let ends = ends.chain(view.invitations.values().map(|i| i.expires));
    assert_eq!(state.next_end(), ends.min());
}

/// What must be told, going by what can be seen before and after.
fn differences(before: &View, after: &View, by: Option<NodeId>) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    let mut tell = |change: Change| {
        told.insert(format!("{change:?}"));
    };
    for id in IDS.map(NodeId) {
        let seen = |v: &View| {
            let node = v.nodes.get(&id);
            node.map(|n| (n.key, n.endpoint, n.hostname.clone(), n.public, n.tags.clone()))
        };
        // For whom invitations of an owner are.
        let owned = |v: &View| {
            let owned = v.nodes.get(&id).is_some_and(|n| !n.owner.is_empty());
            owned && v.keys.get(&id).is_some_and(|k| k.proven)
        };
        let newly_owned = !owned(before) && owned(after);
        if seen(before) != seen(after) || newly_owned {
            tell(Change::Node(id));
        }
        let good = |v: &View| v.keys.get(&id).map(|k| (k.key, k.revoked));
        if before.keys.contains_key(&id) && good(before) != good(after) {
            tell(Change::Key(id));
        }
        for peer in IDS.map(NodeId).filter(|peer| id < *peer) {
            let says = |v: &View| {
                [&v.stated, &v.withdrawn]
                    .map(|set| [set.contains(&(id, peer)), set.contains(&(peer, id))])
            };
            if says(before) != says(after) {
                let first = if by == Some(peer) { (peer, id) } else { (id, peer) };
                tell(Change::Trust(first.0, first.1));
            }
        }
        let asked = |v: &View| v.requests.get(&id).cloned().unwrap_or_default();
        let answered = |v: &View| v.answers.get(&id).cloned().unwrap_or_default();
        if asked(after).iter().any(|r| !asked(before).contains(r))
            || answered(after).iter().any(|a| !answered(before).contains(a))
        {
            tell(Change::Handshakes(id));
        }
        for invitation in after.invitations_for(id).difference(&before.invitations_for(id)) {
            tell(Change::Invited(*invitation));
        }
        let networks = before.networks.keys().chain(after.networks.keys());
        for network in networks.copied().collect::<BTreeSet<_>>() {
            let entry = |v: &View| v.members.get(&(network, id)).cloned();
            let now = after.membership(network, id);
            if now.is_some()
                && (before.membership(network, id) != now || entry(before) != entry(after))
            {
                tell(Change::Joined { network, node: id });
            }
        }
    }
    for id in after.invitations.keys().filter(|id| !before.invitations.contains_key(id)) {
        tell(Change::Invited(*id));
    }
    told
}

/// Who is out of which network, and why.
fn left(before: &View, after: &View, op: &Op) -> BTreeSet<String> {
    let gone = before.members.keys().filter(|key| !after.members.contains_key(key));
    let reason = |node: NodeId| match op {
        Op::Expire {} => LeaveReason::Expired,
        Op::DeleteNetwork { .. } => LeaveReason::Deleted,
        Op::LeaveNetwork { by: Actor::Node(signer), .. } if signer.node == node => {
            LeaveReason::Left
        }
        _ => LeaveReason::Removed,
    };
    gone.map(|(network, node)| {
        let name = before.networks[network].name.clone();
        let (network, node, reason) = (*network, *node, reason(*node));
        format!("{:?}", Change::Left { network, name, node, reason })
    })
    .collect()
}

fn any_node() -> impl Strategy<Value = NodeId> {
    prop_oneof![9 => 1u32..6, 1 => 0u32..13].prop_map(NodeId)
}

/// Mostly with the key that the node registered first.
fn any_signer() -> impl Strategy<Value = Signer> {
    prop_oneof![
        9 => (1u32..6).prop_map(|n| signer(n, u8::try_from(n).unwrap())),
        1 => (0u32..8, KEYS).prop_map(|(node, key)| signer(node, key)),
    ]
}

fn any_actor() -> impl Strategy<Value = Actor> {
    prop_oneof![
        6 => any_signer().prop_map(Actor::Node),
        3 => Just(Actor::Admin("ops".into())),
        1 => Just(Actor::Registry),
    ]
}

fn any_policy() -> impl Strategy<Value = JoinPolicy> {
    prop::sample::select(vec!["open", "token", "invite"]).prop_map(JoinPolicy::of)
}

fn any_right() -> impl Strategy<Value = BroadcastRight> {
    prop::sample::select(vec![
        BroadcastRight::Nobody,
        BroadcastRight::Owner,
        BroadcastRight::Members,
        BroadcastRight::Tagged("red".into()),
    ])
}

fn any_tags() -> impl Strategy<Value = Vec<String>> {
    let tag = prop::sample::select(vec!["red".to_owned(), "blue".to_owned()]);
    prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(tag, 1..3)]
}

fn any_invitee() -> impl Strategy<Value = Invitee> {
    prop_oneof![
        2 => any_node().prop_map(Invitee::Node),
        1 => prop::sample::select(vec!["alice", "bob", ""]).prop_map(|o| Invitee::Owner(o.into())),
    ]
}

/// Around the times of the commands.
fn any_end() -> impl Strategy<Value = u64> {
    0u64..400
}

fn any_admission() -> impl Strategy<Value = Admission> {
    let token = prop::sample::select(vec!["t1".to_owned(), "t2".to_owned(), "t3".to_owned()]);
    let tokens = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(token, 1..3)];
    let invitations = prop_oneof![3 => Just(vec![]), 2 => prop::collection::vec(1u64..8, 1..3)];
    let expires = prop::option::of(any_end());
    let identity = prop::option::of(Just("spiffe://x/y".to_owned()));
    // The networks that every run begins with are made by commands 6 and 7.
    let judged = prop_oneof![3 => Just((0, None)), 2 => (6u64..8, prop::option::of(8u64..12))];
    (tokens, invitations, expires, any_tags(), identity, judged).prop_map(
        |(tokens, invitations, expires, tags, external_identity, (policy, renews))| Admission {
            rule: "open".into(),
            tags,
            expires,
            external_identity,
            tokens,
            invitations,
            policy,
            renews,
        },
    )
}

fn network_op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["lab", "ops", "dev", "-x", "backbone"]);
    let network = || prop_oneof![12 => 1u16..3, 2 => 3u16..5, 1 => 0u16..9];
    let token = || prop::sample::select(vec!["t1", "t2", "t3"]);
    let uses = prop_oneof![Just(None), (0u32..4).prop_map(Some)];
    prop_oneof![
        4 => (any_actor(), name, any_policy(), any_right()).prop_map(
            |(by, name, join, broadcast)| Op::CreateNetwork {
                by, name: name.into(), join, broadcast
            }),
        2 => (any_actor(), network(), prop::option::of(any_policy()), prop::option::of(any_right()))
            .prop_map(|(by, network, join, broadcast)| Op::UpdateNetwork {
                by, network, join, broadcast
            }),
        1 => (any_actor(), network()).prop_map(|(by, network)| Op::DeleteNetwork { by, network }),
        8 => (any_signer(), network(), any_admission()).prop_map(
            |(by, network, admission)| Op::JoinNetwork { by, network, admission }),
        3 => (any_actor(), any_node(), network()).prop_map(
            |(by, node, network)| Op::AddMember { by, node, network }),
        3 => (any_actor(), any_node(), network()).prop_map(
            |(by, node, network)| Op::LeaveNetwork { by, node, network }),
        1 => Just(Op::Expire {}),
        4 => (any_actor(), network(), token(), uses, prop::option::of(any_end()), any_tags())
            .prop_map(|(by, network, id, uses, expires, tags)| Op::CreateToken {
                by, network, id: id.into(), salt: [1; 32], hash: [2; 32], uses, expires, tags
            }),
        1 => (any_actor(), network(), token()).prop_map(
            |(by, network, id)| Op::RevokeToken { by, network, id: id.into() }),
        5 => (any_actor(), network(), any_invitee(), any_end(), any_tags()).prop_map(
            |(by, network, to, expires, tags)| Op::Invite {
                by, network, to, expires, tags, signature: None
            }),
        2 => (any_actor(), 1u64..8).prop_map(|(by, id)| Op::EndInvitation { by, id }),
        1 => (any_actor(), any_node()).prop_map(
            |(by, node)| Op::RevokeNode { by, node, reason: "stolen".into() }),
        1 => Just(Op::Deny(Denial {
            operation: "network_join".into(), claimed: None, by: None,
            object: "network 1".into(),
            code: "not_admitted".into(), reason: "no".into(), rule: "open".into(), count: 2,
        })),
        1 => Just(Op::Import(Box::default())),
    ]
}

fn node_op() -> impl Strategy<Value = Op> {
    let hostname = || prop::sample::select(vec!["", "a", "b", "c", "Bad_Name", "localhost"]);
    let owner = prop::sample::select(vec!["", "alice", "bob"]);
    prop_oneof![
        6 => (KEYS, owner, hostname(), any::<bool>(), any::<bool>(), 1u16..3).prop_map(
            |(n, owner, hostname, proven, takeover, port)| Op::Register(Register {
                owner: owner.into(), hostname: hostname.into(), proven, takeover,
                endpoint: ([127, 0, 0, 1], port).into(),
                ..registration(n)
            })),
        1 => any_signer().prop_map(|by| Op::Deregister { by }),
        1 => (any_signer(), any::<bool>())
            .prop_map(|(by, public)| Op::SetVisibility { by, public }),
        1 => (any_signer(), any::<bool>())
            .prop_map(|(by, enabled)| Op::SetTaskExec { by, enabled }),
        1 => (any_signer(), any_tags()).prop_map(|(by, tags)| Op::SetTags { by, tags }),
        2 => (any_signer(), hostname())
            .prop_map(|(by, hostname)| Op::SetHostname { by, hostname: hostname.into() }),
        4 => (any_signer(), any_node()).prop_map(|(by, peer)| Op::ReportTrust { by, peer }),
        2 => (any_signer(), any_node()).prop_map(|(by, peer)| Op::RevokeTrust { by, peer }),
        3 => (any_signer(), any_node())
            .prop_map(|(by, to)| Op::RequestHandshake { by, to, justification: "j".into() }),
        3 => (any_signer(), any_node(), any::<bool>())
            .prop_map(|(by, peer, accept)| Op::RespondHandshake { by, peer, accept }),
        1 => any_signer().prop_map(|by| Op::TakeHandshakes { by }),
        1 => (any_signer(), KEYS).prop_map(|(by, n)| Op::RotateKey { by, new_key: key(n) }),
        1 => (any_node(), any::<i64>())
            .prop_map(|(node, delta)| Op::UpdatePoloScore { node, delta }),
        1 => (any_node(), any::<i64>())
            .prop_map(|(node, polo_score)| Op::SetPoloScore { node, polo_score }),
        1 => prop::collection::vec((any_node(), 0u64..60), 0..4)
            .prop_map(|silent| Op::Reap { silent }),
    ]
}

/// Five nodes, two of them of an owner, and two networks with what belongs to
/// them; then anything.
fn any_commands() -> impl Strategy<Value = Vec<Command>> {
    let op = prop_oneof![2 => node_op(), 3 => network_op()];
    // Time passes, more or less.
    let later = prop::collection::vec((op, 1u64..8), 0..100);
    later.prop_map(move |later| {
        let mut at = 0;
        let first = first().into_iter().map(|op| (op, 1));
        let all = first.chain(later).map(|(op, pause)| {
            at += pause;
            Command::own(at, op)
        });
        all.collect()
    })
}

fn first() -> Vec<Op> {
    let admin = || Actor::Admin("ops".into());
    let owner = || Actor::Node(signer(1, 1));
    let mut ops: Vec<_> = (1u8..6)
        .map(|n| {
            let owner = if n < 3 { "alice" } else { "" }.to_owned();
            Op::Register(Register { owner, proven: n == 1, ..registration(n) })
        })
        .collect();
    for (by, name, rule) in [(owner(), "lab", "invite"), (admin(), "ops", "token")] {
        let (name, join, broadcast) = (name.into(), JoinPolicy::of(rule), BroadcastRight::Owner);
        ops.push(Op::CreateNetwork { by, name, join, broadcast });
    }
    for (by, network, node) in [(owner(), 1, 1), (owner(), 1, 2), (admin(), 2, 2), (admin(), 2, 3)]
    {
        ops.push(Op::AddMember { by, node: NodeId(node), network });
    }
    for (id, uses) in [("t1", Some(2)), ("t2", None)] {
        let (id, salt, hash) = (id.into(), [1; 32], [2; 32]);
        let (expires, tags) = (Some(150), vec!["red".into()]);
        ops.push(Op::CreateToken { by: admin(), network: 2, id, salt, hash, uses, expires, tags });
    }
    for to in [Invitee::Node(NodeId(3)), Invitee::Node(NodeId(4)), Invitee::Owner("alice".into())] {
        let (tags, signature) = (vec![], None);
        ops.push(Op::Invite { by: owner(), network: 1, to, expires: 200, tags, signature });
    }
    ops
}

/// The signer of a command, if there is one.
fn signer_of(op: &mut Op) -> Option<&mut Signer> {
    match op {
        Op::Deregister { by }
        | Op::SetVisibility { by, .. }
        | Op::SetHostname { by, .. }
        | Op::SetTags { by, .. }
        | Op::SetTaskExec { by, .. }
        | Op::ReportTrust { by, .. }
        | Op::RevokeTrust { by, .. }
        | Op::RequestHandshake { by, .. }
        | Op::RespondHandshake { by, .. }
        | Op::TakeHandshakes { by }
        | Op::RotateKey { by, .. }
        | Op::JoinNetwork { by, .. } => Some(by),
        Op::CreateNetwork { by, .. }
        | Op::UpdateNetwork { by, .. }
        | Op::DeleteNetwork { by, .. }
        | Op::AddMember { by, .. }
        | Op::LeaveNetwork { by, .. }
        | Op::CreateToken { by, .. }
        | Op::RevokeToken { by, .. }
        | Op::Invite { by, .. }
        | Op::EndInvitation { by, .. }
        | Op::RevokeNode { by, .. } => match by {
            Actor::Node(signer) => Some(signer),
            Actor::Admin(_) | Actor::Registry => None,
        },
        _ => None,
    }
}

/// Of two commands that are signed, one is signed with the node's own key.
fn sign(command: &mut Command, state: &State) {
    if command.at.is_multiple_of(2)
        && let Some(by) = signer_of(&mut command.op)
        && let Ok(node) = state.node(by.node)
    {
        by.key = node.record.key;
    }
}

/// The node that acts on its own, if one does.
fn acting(op: &Op) -> Option<NodeId> {
    match op {
        Op::ReportTrust { by, .. }
        | Op::RevokeTrust { by, .. }
        | Op::RequestHandshake { by, .. }
        | Op::RespondHandshake { by, .. } => Some(by.node),
        Op::RevokeNode { node, .. } => Some(*node),
        _ => None,
    }
}

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

fn keep(kept: &mut Rows, changed: Vec<Row>) {
    for row in changed {
        match row.value {
            Some(value) => drop(kept.insert((row.table, row.key), value)),
            None => drop(kept.remove(&(row.table, row.key))),
        }
    }
}

fn whole(state: &State) -> Rows {
    let mut all = Rows::new();
    keep(&mut all, state.all_rows().collect());
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_state_does_as_the_model(commands in any_commands(), step in 1usize..12) {
        let mut state = State::default();
        state.new_epoch("e1".into());
        state.track_dirty(true);
        let mut replayed = State::default();
        replayed.new_epoch("e1".into());
        let mut model = Model::default();
        let mut kept = whole(&state);
        let mut before = view(&state);
        for (i, mut command) in commands.into_iter().enumerate() {
            sign(&mut command, &state);
            let command = &command;
            let unchanged = records(&state);
            let outcome = state.apply(command);
            let expected = model.apply(command);
            prop_assert_eq!(
                outcome.as_ref().map(|_| ()).map_err(Refusal::code), expected,
                "{:?} -> {:?}", command, outcome
            );
            let after = view(&state);
            prop_assert_eq!(&after, &model.view, "after {:?}", command);
            agrees(&state, &after);

            let told: Vec<_> = state.take_changes().iter().map(|c| format!("{c:?}")).collect();
            if outcome.is_err() {
                prop_assert_eq!(&unchanged, &records(&state), "{:?}", command);
            }
            let mut due = differences(&before, &after, acting(&command.op));
            due.extend(left(&before, &after, &command.op));
            let once: BTreeSet<_> = told.iter().cloned().collect();
            prop_assert_eq!(once.len(), told.len(), "told twice: {:?}", told);
            prop_assert_eq!(once, due, "after {:?}", command);
            before = after;

            // A checkpoint now and then, and at once what it stored is all.
            if i % step == 0 {
                keep(&mut kept, state.take_dirty());
                prop_assert_eq!(&kept, &whole(&state), "after {:?}", command);
            }
            // The log holds JSON: what is replayed went through it.
            let json = serde_json::to_vec(command).unwrap();
            let _ = replayed.apply(&serde_json::from_slice(&json).unwrap());
            // A restart changes nothing.
            if i % 17 == 16 {
                replayed = loaded(replayed.all_rows()).unwrap();
            }
        }
        keep(&mut kept, state.take_dirty());
        prop_assert_eq!(&kept, &whole(&state));
        prop_assert_eq!(rows(&replayed), rows(&state));
        let back = loaded(state.all_rows()).unwrap();
        prop_assert_eq!(view(&back), before);
        agrees(&back, &view(&back));
        prop_assert_eq!(state.take_dirty().len(), 1, "only where it stands");
    }
}
