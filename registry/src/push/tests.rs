use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy};
use pilot_wire::registry::session::Push;
use pilot_wire::registry::{FrameBuffer, PublicKey, append_frame};
use proptest::prelude::*;

use self::view::View;
use super::*;
use crate::state::{Actor, Admission, Command, Op, Register};

#[path = "../../tests/client/view.rs"]
mod view;

const NODES: u8 = 6;

/// A client of each node, the hub and the state, without anything between.
struct World {
    state: RwLock<State>,
    hub: Hub,
    clients: BTreeMap<NodeId, Client>,
    /// Seconds.
    now: u64,
    /// Keys that were taken, so that none is taken twice.
    keys: u8,
    names: u32,
}

#[derive(Default)]
struct Client {
    view: View,
    watched: BTreeSet<NodeId>,
    live: Option<Live>,
}

/// What can happen. Numbers are reduced to what there is.
#[derive(Clone, Debug)]
enum Step {
    Register {
        node: u8,
        owner: u8,
        proven: bool,
    },
    Deregister(u8),
    Public(u8, bool),
    Tags(u8, u8),
    Name(u8),
    Trust(u8, u8),
    Revoke(u8, u8),
    Ask(u8, u8),
    Respond(u8, u8, bool),
    Poll(u8),
    Rotate(u8),
    Create(u8),
    Broadcast(u8, u8),
    Delete(u8),
    Join {
        node: u8,
        network: u8,
        tag: u8,
        expires: u8,
    },
    Leave(u8, u8),
    Invite {
        network: u8,
        to: u8,
        owner: bool,
    },
    Decline(u8),
    RevokeNode(u8),
    Pass(u8),
    Follow,
    Open {
        node: u8,
        watched: u8,
    },
    Watch {
        node: u8,
        add: u8,
        remove: u8,
    },
    /// Takes at most so many bytes at a time, and loses the connection before
    /// the last `lost` frames.
    Take {
        node: u8,
        limit: u16,
        lost: Option<u8>,
    },
    Close(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        (node(), 0..3u8, any::<bool>()).prop_map(|(node, owner, proven)| Step::Register {
            node,
            owner,
            proven
        }),
        node().prop_map(Step::Deregister),
        (node(), any::<bool>()).prop_map(|(n, public)| Step::Public(n, public)),
        (node(), any::<u8>()).prop_map(|(n, tag)| Step::Tags(n, tag)),
        node().prop_map(Step::Name),
        (node(), node()).prop_map(|(a, b)| Step::Trust(a, b)),
        (node(), node()).prop_map(|(a, b)| Step::Trust(a, b)),
        (node(), node()).prop_map(|(a, b)| Step::Revoke(a, b)),
        (node(), node()).prop_map(|(a, b)| Step::Ask(a, b)),
        (node(), node(), any::<bool>()).prop_map(|(a, b, yes)| Step::Respond(a, b, yes)),
        node().prop_map(Step::Poll),
        node().prop_map(Step::Rotate),
        node().prop_map(Step::Create),
        (0..3u8, 0..4u8).prop_map(|(network, right)| Step::Broadcast(network, right)),
        (0..3u8).prop_map(Step::Delete),
        (node(), 0..3u8, any::<u8>(), 0..20u8).prop_map(|(node, network, tag, expires)| {
            Step::Join { node, network, tag, expires }
        }),
        (node(), 0..3u8, any::<u8>(), 0..20u8).prop_map(|(node, network, tag, expires)| {
            Step::Join { node, network, tag, expires }
        }),
        (node(), 0..3u8).prop_map(|(n, network)| Step::Leave(n, network)),
        (0..3u8, node(), any::<bool>()).prop_map(|(network, to, owner)| Step::Invite {
            network,
            to,
            owner
        }),
        any::<u8>().prop_map(Step::Decline),
        node().prop_map(Step::RevokeNode),
        (1..10u8).prop_map(Step::Pass),
        Just(Step::Follow),
        Just(Step::Follow),
        (node(), any::<u8>()).prop_map(|(node, watched)| Step::Open { node, watched }),
        (node(), any::<u8>()).prop_map(|(node, watched)| Step::Open { node, watched }),
        (node(), any::<u8>(), any::<u8>()).prop_map(|(node, add, remove)| Step::Watch {
            node,
            add,
            remove
        }),
        (node(), 1..2000u16, proptest::option::of(0..4u8))
            .prop_map(|(node, limit, lost)| Step::Take { node, limit, lost }),
        node().prop_map(Step::Close),
    ]
}

fn key(seed: u8) -> PublicKey {
    PublicKey([seed; 32])
}

/// The nodes of a bit set.
fn members(bits: u8) -> BTreeSet<NodeId> {
    (0..NODES).filter(|n| bits & (1 << n) != 0).map(|n| NodeId(u32::from(n) + 1)).collect()
}

impl World {
    fn new() -> Self {
        let mut state = State::default();
        state.new_epoch("this".to_owned());
        Self {
            state: RwLock::new(state),
            hub: Hub::default(),
            clients: BTreeMap::new(),
            now: 100,
            keys: NODES,
            names: 0,
        }
    }

    fn apply(&self, op: Op) {
        // Refusals are part of the game.
        let _ = write(&self.state).apply(&Command::own(self.now, op));
    }

    fn node(&self, n: u8) -> NodeId {
        NodeId(u32::from(n) + 1)
    }

    fn signer(&self, node: NodeId) -> Option<Signer> {
        let state = read(&self.state);
        state.node(node).ok().map(|n| Signer { node, key: n.record.key })
    }

    fn network(&self, n: u8) -> Option<u16> {
        let state = read(&self.state);
        state.networks().map(|network| network.record.id).nth(usize::from(n))
    }

    fn signed(&self, n: u8, op: impl FnOnce(Signer) -> Op) {
        if let Some(by) = self.signer(self.node(n)) {
            self.apply(op(by));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Register { node, owner, proven } => {
                let known = self.signer(self.node(node)).map(|s| s.key);
                self.apply(Op::Register(Register {
                    key: known.unwrap_or_else(|| key(node)),
                    endpoint: SocketAddr::from(([10, 0, 0, 1], u16::from(owner) + 1)),
                    owner: if owner == 0 { String::new() } else { format!("owner-{owner}") },
                    hostname: String::new(),
                    proven,
                    takeover: false,
                }));
            }
            Step::Deregister(n) => self.signed(n, |by| Op::Deregister { by }),
            Step::Public(n, public) => self.signed(n, |by| Op::SetVisibility { by, public }),
            Step::Tags(n, tag) => {
                self.signed(n, |by| Op::SetTags { by, tags: vec![format!("tag-{tag}")] });
            }
            Step::Name(n) => {
                self.names += 1;
                let hostname = format!("name-{}", self.names % 5);
                self.signed(n, |by| Op::SetHostname { by, hostname });
            }
            Step::Trust(a, b) => {
                let peer = self.node(b);
                self.signed(a, |by| Op::ReportTrust { by, peer });
            }
            Step::Revoke(a, b) => {
                let peer = self.node(b);
                self.signed(a, |by| Op::RevokeTrust { by, peer });
            }
            Step::Ask(a, b) => {
                let (to, justification) = (self.node(b), String::new());
                self.signed(a, |by| Op::RequestHandshake { by, to, justification });
            }
            Step::Respond(a, b, accept) => {
                let peer = self.node(b);
                self.signed(a, |by| Op::RespondHandshake { by, peer, accept });
            }
            Step::Poll(n) => {
                let Some(by) = self.signer(self.node(n)) else { return };
                self.apply(Op::TakeHandshakes { by });
                self.clients.entry(by.node).or_default().view.handshakes = false;
            }
            Step::Rotate(n) => {
                self.keys += 1;
                let new_key = key(self.keys);
                self.signed(n, |by| Op::RotateKey { by, new_key });
            }
            Step::Create(n) => {
                self.names += 1;
                let name = format!("network-{}", self.names);
                let (join, broadcast) = (JoinPolicy::of("open"), BroadcastRight::Owner);
                self.signed(n, |by| Op::CreateNetwork {
                    by: Actor::Node(by),
                    name,
                    join,
                    broadcast,
                });
            }
            Step::Broadcast(network, right) => {
                let Some(network) = self.network(network) else { return };
                let broadcast = Some(match right {
                    0 => BroadcastRight::Nobody,
                    1 => BroadcastRight::Owner,
                    2 => BroadcastRight::Members,
                    _ => BroadcastRight::Tagged("tag-7".to_owned()),
                });
                let by = Actor::Admin("admin".to_owned());
                self.apply(Op::UpdateNetwork { by, network, join: None, broadcast });
            }
            Step::Delete(network) => {
                let Some(network) = self.network(network) else { return };
                let by = Actor::Admin("admin".to_owned());
                self.apply(Op::DeleteNetwork { by, network });
            }
            Step::Join { node, network, tag, expires } => {
                let Some(network) = self.network(network) else { return };
                let admission = Admission {
                    rule: "open".to_owned(),
                    tags: vec![format!("tag-{}", tag % 10)],
                    expires: (expires > 0).then(|| self.now + u64::from(expires)),
                    external_identity: (tag % 2 == 0).then(|| format!("who-{tag}")),
                    ..Admission::default()
                };
                self.signed(node, |by| Op::JoinNetwork { by, network, admission });
            }
            Step::Leave(n, network) => {
                let Some(network) = self.network(network) else { return };
                let node = self.node(n);
                self.signed(n, |by| Op::LeaveNetwork { by: Actor::Node(by), node, network });
            }
            Step::Invite { network, to, owner } => {
                let Some(network) = self.network(network) else { return };
                let to = if owner {
                    Invitee::Owner(format!("owner-{}", to % 3))
                } else {
                    Invitee::Node(self.node(to))
                };
                let by = Actor::Admin("admin".to_owned());
                let (expires, tags) = (self.now + 15, Vec::new());
                self.apply(Op::Invite { by, network, to, expires, tags, signature: None });
            }
            Step::Decline(n) => {
                let by = Actor::Admin("admin".to_owned());
                self.apply(Op::EndInvitation { by, id: u64::from(n % 16) + 1 });
            }
            Step::RevokeNode(n) => {
                // Seldom, as it is for ever.
                self.names += 1;
                if self.names.is_multiple_of(4) {
                    let (by, node) = (Actor::Admin("admin".to_owned()), self.node(n));
                    self.apply(Op::RevokeNode { by, node, reason: String::new() });
                }
            }
            Step::Pass(seconds) => {
                self.now += u64::from(seconds);
                self.apply(Op::Expire {});
            }
            Step::Follow => self.hub.follow(&self.state),
            Step::Open { node, watched } => self.open(self.node(node), members(watched)),
            Step::Watch { node, add, remove } => self.watch(node, members(add), members(remove)),
            Step::Take { node, limit, lost } => {
                self.take(self.node(node), usize::from(limit), lost.map(usize::from));
            }
            Step::Close(n) => {
                let node = self.node(n);
                self.clients.entry(node).or_default().live = None;
            }
        }
    }

    fn open(&mut self, node: NodeId, watched: BTreeSet<NodeId>) {
        let Some(signer) = self.signer(node) else { return };
        let client = self.clients.entry(node).or_default();
        client.live = None;
        let first = client.view.epoch.is_empty();
        client.watched = watched;
        let since = Since { epoch: &client.view.epoch, seq: client.view.since };
        let peers = client.watched.iter().copied().collect();
        let opened = self.hub.open(&self.state, signer, since, peers).unwrap();
        assert!(!first || !opened.resumed);
        client.view.epoch = opened.epoch;
        client.view.ended = None;
        client.live = Some(opened.live);
    }

    fn watch(&mut self, n: u8, add: BTreeSet<NodeId>, remove: BTreeSet<NodeId>) {
        let node = self.node(n);
        let client = self.clients.entry(node).or_default();
        let Some(live) = &client.live else { return };
        let [adding, removing]: [Vec<_>; 2] =
            [&add, &remove].map(|set| set.iter().copied().collect());
        let watched = self.hub.watch(live, &adding, &removing).unwrap();
        client.watched.retain(|peer| !remove.contains(peer));
        client.watched.extend(add);
        assert_eq!(watched, client.watched.len());
    }

    /// Takes all news; loses the connection and the last `lost` frames.
    fn take(&mut self, node: NodeId, limit: usize, lost: Option<usize>) {
        let client = self.clients.entry(node).or_default();
        let Some(live) = &mut client.live else { return };
        let mut frames = Vec::new();
        loop {
            let mut out = Vec::new();
            let filled = live.fill(&self.state, &mut out, limit);
            let mut input = FrameBuffer::new();
            input.push(&out);
            while let Some(body) = input.next_body().unwrap() {
                frames.push(serde_json::from_slice::<Push>(body).unwrap());
            }
            if filled != Filled::More {
                break;
            }
        }
        if let Some(lost) = lost {
            frames.truncate(frames.len().saturating_sub(lost));
            client.live = None;
        }
        frames.into_iter().for_each(|push| client.view.apply(push));
        if client.view.ended.is_some() {
            client.live = None;
        }
    }

    /// What every node that listens believes is so.
    fn check(&mut self) {
        self.hub.follow(&self.state);
        let nodes: Vec<_> = (0..NODES).map(|n| self.node(n)).collect();
        for node in nodes {
            self.take(node, 500, None);
            if self.clients.get(&node).is_none_or(|c| c.live.is_none()) {
                self.open(node, members(0b0010_1011));
                self.take(node, 500, None);
            }
            let Some(client) = self.clients.get(&node) else { continue };
            let state = read(&self.state);
            let Ok(found) = state.node(node) else {
                assert!(client.live.is_none(), "{node} is gone and has a session");
                continue;
            };
            let live = client.live.as_ref().unwrap();
            assert_eq!(live.link().signer().key, found.record.key);
            let watched: Vec<_> = client.watched.iter().copied().collect();
            assert_eq!(self.hub.watched(live.link()), watched);
            check_view(&client.view, &state, node, &watched);
        }
    }
}

fn check_view(view: &View, state: &State, node: NodeId, watched: &[NodeId]) {
    let so = level::sync(state, node, watched);
    assert_eq!(view.trust, so.trust.into_iter().collect(), "trust of {node}");
    assert_eq!(view.revoked_by, so.revoked_by.into_iter().collect(), "revoked by, {node}");
    assert!(view.handshakes || !so.handshakes, "handshakes of {node}");
    let memberships = so.memberships.into_iter().map(|m| (m.network, m)).collect();
    assert_eq!(view.memberships, memberships, "memberships of {node}");
    for peer in so.peers {
        assert_eq!(view.peers.get(&peer.node_id), Some(&peer), "peer of {node}");
    }
    for invitation in so.invitations {
        let known = view.invitations.get(&invitation.id);
        assert_eq!(known, Some(&invitation), "invitation of {node}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn what_sessions_are_told_is_what_is_so(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        (0..NODES).for_each(|node| {
            world.step(&Step::Register { node, owner: node % 3, proven: node % 2 == 0 });
        });
        for (n, step) in steps.iter().enumerate() {
            world.step(step);
            if n % 40 == 39 {
                world.check();
            }
        }
        world.check();
    }
}

fn register(state: &mut State, seed: u32) -> Signer {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&seed.to_be_bytes());
    let key = PublicKey(bytes);
    let register = Register {
        key,
        endpoint: SocketAddr::from(([10, 0, 0, 1], 4000)),
        owner: String::new(),
        hostname: String::new(),
        proven: false,
        takeover: false,
    };
    state.apply(&Command::own(1, Op::Register(register))).unwrap();
    Signer { node: state.key(&key).unwrap().node, key }
}

fn frames(live: &mut Live, state: &RwLock<State>) -> (Vec<Push>, Filled) {
    let mut out = Vec::new();
    let filled = loop {
        match live.fill(state, &mut out, 1024) {
            Filled::More => {
                // As if it were sent; the frames are kept.
                let mut more = Vec::new();
                let filled = live.fill(state, &mut more, usize::MAX);
                out.append(&mut more);
                if filled != Filled::More {
                    break filled;
                }
            }
            filled => break filled,
        }
    };
    let mut input = FrameBuffer::new();
    input.push(&out);
    let mut frames = Vec::new();
    while let Some(body) = input.next_body().unwrap() {
        frames.push(serde_json::from_slice(body).unwrap());
    }
    (frames, filled)
}

#[test]
fn who_does_not_listen_is_ended_and_holds_up_nobody() {
    let mut state = State::default();
    state.new_epoch("this".to_owned());
    let slow = register(&mut state, 0);
    let others: Vec<_> =
        (1..=u32::try_from(MAX_TOPICS).unwrap() + 1).map(|n| register(&mut state, n)).collect();
    state.take_changes();
    let (state, hub) = (RwLock::new(state), Hub::at(0));
    let mut live = hub.open(&state, slow, Since::default(), Vec::new()).unwrap().live;
    assert_eq!(frames(&mut live, &state).1, Filled::Done);
    let revoke = |by: Signer| {
        let mut state = write(&state);
        let trust = Op::ReportTrust { by, peer: slow.node };
        state.apply(&Command::own(2, trust)).unwrap();
        let revoke = Op::RevokeTrust { by, peer: slow.node };
        state.apply(&Command::own(2, revoke)).unwrap();
    };
    for by in &others[1..] {
        revoke(*by);
    }
    hub.follow(&state);
    // As many as there may be are told.
    let (told, filled) = frames(&mut live, &state);
    assert_eq!((told.len(), filled), (MAX_TOPICS, Filled::Done));
    for by in &others {
        revoke(*by);
    }
    hub.follow(&state);
    let (told, filled) = frames(&mut live, &state);
    assert_eq!(filled, Filled::Ended);
    let slow_end = pilot_wire::registry::session::News::Ended { code: "slow".to_owned() };
    assert_eq!(told.last().unwrap().news, slow_end);
    assert_eq!(told.len(), 1);
    drop(live);
    assert!(hub.is_empty());
}

#[test]
fn lists_of_whom_to_watch_are_bounded() {
    let mut state = State::default();
    let node = register(&mut state, 0);
    let (state, hub) = (RwLock::new(state), Hub::default());
    hub.follow(&state);
    let opened = hub.open(&state, node, Since::default(), vec![NodeId(7)]).unwrap();
    let many = vec![NodeId(7); MAX_WATCHED + 1];
    assert!(hub.watch(&opened.live, &many, &[]).is_err());
    assert!(hub.watch(&opened.live, &[], &many).is_err());
    assert_eq!(hub.watch(&opened.live, &[NodeId(8)], &[]), Ok(2), "nothing was changed");
    assert_eq!(hub.watch(&opened.live, &[NodeId(9)], &many[1..]), Ok(2));
}

#[test]
fn a_long_sync_comes_in_parts_that_each_fit_a_frame() {
    let mut state = State::default();
    state.new_epoch("this".to_owned());
    let node = register(&mut state, 0);
    let watched: Vec<_> = (1..=MAX_WATCHED)
        .map(|n| {
            let by = register(&mut state, u32::try_from(n).unwrap());
            let tags = (0..10).map(|t| format!("{t}{}", "x".repeat(31))).collect();
            state.apply(&Command::own(1, Op::SetTags { by, tags })).unwrap();
            let hostname = format!("{n:x>63}");
            state.apply(&Command::own(1, Op::SetHostname { by, hostname })).unwrap();
            by.node
        })
        .collect();
    let (state, hub) = (RwLock::new(state), Hub::default());
    hub.follow(&state);
    let applied = read(&state).applied();
    let opened = hub.open(&state, node, Since::default(), watched.clone()).unwrap();
    let mut live = opened.live;
    let (told, _) = frames(&mut live, &state);
    // Each is a frame, which none longer than allowed would be.
    assert_eq!(told.len(), 1 + MAX_WATCHED);
    let mut view = View::default();
    let last = told.len() - 1;
    for (n, push) in told.into_iter().enumerate() {
        // Who breaks off in between begins again.
        assert_eq!(push.seq, if n == last { applied } else { 0 });
        view.apply(push);
    }
    check_view(&view, &read(&state), node.node, &watched);
    let one = append_frame(&mut Vec::new(), &level::sync(&read(&state), node.node, &watched));
    assert!(one.is_err());
}
