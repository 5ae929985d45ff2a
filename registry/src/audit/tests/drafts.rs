//! What each command leaves behind, and what leaves nothing.

use pilot_wire::registry::Signature;
use pilot_wire::registry::audit::AuditResult;
use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy, RuleUse};
use serde_json::json;

use super::*;
use crate::state::{Actor, Admission, Denial};

/// Operation, object, code and detail.
fn told(records: &[AuditRecord]) -> Vec<(&str, &str, &str, &str)> {
    for r in records {
        assert_eq!(r.code.is_empty(), r.result == AuditResult::Allowed);
        assert_eq!(r.request_id, format!("c{}", r.command));
        assert_eq!(r.source, source().to_string());
    }
    records
        .iter()
        .map(|r| (r.operation.as_str(), r.object.as_str(), r.code.as_str(), r.detail.as_str()))
        .collect()
}

#[test]
fn registrations_are_told_when_they_are_news() {
    let mut world = World::default();
    let mut first = register(1);
    first.hostname = "alice".to_owned();
    let records = world.apply(Op::Register(first.clone()));
    let detail = "first registration, endpoint 192.0.2.1:4000, hostname \"alice\", key proven";
    assert_eq!(told(&records), [("register", "node 1", "", detail)]);
    let actor = &records[0].actor;
    assert_eq!((actor.kind.as_str(), actor.node_id), ("node", Some(NodeId(1))));
    assert_eq!(actor.public_key, first.key.to_string());
    // Again, and from another port: daily business.
    first.endpoint.set_port(4001);
    assert_eq!(world.apply(Op::Register(first.clone())), []);
    first.endpoint.set_ip([192, 0, 2, 9].into());
    let moved = "endpoint 192.0.2.9:4001, was 192.0.2.1:4001";
    assert_eq!(
        told(&world.apply(Op::Register(first.clone()))),
        [("register", "node 1", "", moved)]
    );
    first.owner = "ops".to_owned();
    let owned = world.apply(Op::Register(first.clone()));
    assert_eq!(told(&owned), [("register", "node 1", "", "owner \"ops\"")]);
    assert_eq!(owned[0].actor.owner, "ops");
    // Another key takes the node over by its owner text.
    let taker = Register { takeover: true, proven: false, owner: "ops".to_owned(), ..register(2) };
    let taken = world.apply(Op::Register(taker));
    assert_eq!(taken[0].object, "node 1");
    assert_eq!(taken[0].actor.kind, "unknown", "its key was not proven");
    let was = PublicKey([1; 32]);
    assert!(taken[0].detail.starts_with(&format!("taken over by its owner text, was key {was}")));
    // Without a proof, a key that was proven once is refused.
    world.apply(Op::Register(register(3)));
    let refused = world.apply(Op::Register(Register { proven: false, ..register(3) }));
    assert_eq!(told(&refused)[0].2, "proof_required");
    assert_eq!(refused[0].object, "node 2");
    // Gone and back.
    let left = world.apply(Op::Deregister { by: Signer { node: NodeId(2), ..by(3) } });
    assert_eq!(told(&left), [("deregister", "node 2", "", "")]);
    assert_eq!(left[0].actor.public_key, PublicKey([3; 32]).to_string());
    let back = world.apply(Op::Register(register(3)));
    assert_eq!(back[0].detail, "registered again, endpoint 192.0.2.1:4000");
    let registered_by = world.state.node(NodeId(2)).unwrap().record.registered_by;
    let silent = vec![(NodeId(2), registered_by), (NodeId(1), 1), (NodeId(9), 1)];
    let reaped = world.apply(Op::Reap { silent });
    assert_eq!(told(&reaped), [("reap", "node 2", "", "silent for too long")]);
    assert_eq!(reaped[0].actor.kind, "registry");
}

#[test]
fn changes_of_nodes_are_told_once() {
    let mut world = World::default();
    world.apply(Op::Register(register(1)));
    let public = Op::SetVisibility { by: by(1), public: true };
    assert_eq!(told(&world.apply(public.clone())), [("set_visibility", "node 1", "", "public")]);
    assert_eq!(world.apply(public), []);
    let name = Op::SetHostname { by: by(1), hostname: "bob".to_owned() };
    let named = world.apply(name.clone());
    assert_eq!(told(&named), [("set_hostname", "node 1", "", "hostname \"bob\", was \"\"")]);
    assert_eq!(world.apply(name), []);
    world.apply(Op::Register(register(2)));
    let taken = world.apply(Op::SetHostname { by: by(2), hostname: "bob".to_owned() });
    assert_eq!(told(&taken)[0].2, "hostname_taken");
    let tags = Op::SetTags { by: by(1), tags: vec!["gpu".to_owned(), "web".to_owned()] };
    assert_eq!(told(&world.apply(tags.clone())), [("set_tags", "node 1", "", "tags [gpu, web]")]);
    assert_eq!(world.apply(tags), []);
    let tasks = Op::SetTaskExec { by: by(1), enabled: true };
    assert_eq!(
        told(&world.apply(tasks.clone())),
        [("set_task_exec", "node 1", "", "executes tasks")]
    );
    assert_eq!(world.apply(tasks), []);
    let score = Op::SetPoloScore { node: NodeId(1), polo_score: 7 };
    assert_eq!(world.apply(score), [], "anybody can, unsigned");
    let worse = Op::UpdatePoloScore { node: NodeId(1), delta: -2 };
    assert_eq!(world.apply(worse), []);
    assert_eq!(world.apply(Op::UpdatePoloScore { node: NodeId(8), delta: 1 }), []);
    let new_key = PublicKey([9; 32]);
    let rotated = world.apply(Op::RotateKey { by: by(1), new_key });
    let detail = format!("new key {new_key}");
    assert_eq!(told(&rotated), [("rotate_key", "node 1", "", detail.as_str())]);
    assert_eq!(rotated[0].actor.public_key, PublicKey([1; 32]).to_string());
    let late = world.apply(Op::SetVisibility { by: by(1), public: false });
    assert_eq!(told(&late)[0].2, "bad_signature");
}

#[test]
fn trust_is_told_without_justifications() {
    let mut world = World::default();
    world.apply(Op::Register(register(1)));
    world.apply(Op::Register(register(2)));
    let secret = "between us".to_owned();
    let ask = Op::RequestHandshake { by: by(1), to: NodeId(2), justification: secret };
    let asked = world.apply(ask.clone());
    assert_eq!(told(&asked), [("request_handshake", "node 2", "", "")]);
    assert_eq!(asked[0].actor.node_id, Some(NodeId(1)));
    assert_eq!(told(&world.apply(ask))[0].2, "already_asked");
    assert_eq!(world.apply(Op::TakeHandshakes { by: by(2) }), []);
    let answer = Op::RespondHandshake { by: by(2), peer: NodeId(1), accept: true };
    assert_eq!(told(&world.apply(answer)), [("respond_handshake", "node 1", "", "accepted")]);
    let report = Op::ReportTrust { by: by(1), peer: NodeId(2) };
    assert_eq!(world.apply(report.clone()), [], "asking was stating");
    let revoke = Op::RevokeTrust { by: by(1), peer: NodeId(2) };
    assert_eq!(told(&world.apply(revoke.clone())), [("revoke_trust", "node 2", "", "")]);
    assert_eq!(told(&world.apply(revoke))[0].2, "no_trust");
    assert_eq!(told(&world.apply(report.clone())), [("report_trust", "node 2", "", "")]);
    assert_eq!(world.apply(report), []);
    assert_eq!(world.apply(Op::Expire {}), []);
}

/// Whatever comes of them: of secrets there is nothing, and the actor is named.
#[test]
fn networks_are_told_without_secrets() {
    let mut world = World::default();
    world.apply(Op::Register(Register { owner: "ops".to_owned(), ..register(1) }));
    let admin = || Actor::Admin("root".to_owned());
    let config = json!({"client_secret": "hush"});
    let rules = vec![RuleUse { rule: "oidc".to_owned(), config }];
    let join = JoinPolicy { rules, ..JoinPolicy::default() };
    let name = "lab".to_owned();
    let broadcast = BroadcastRight::Members;
    let made = world.apply(Op::CreateNetwork { by: admin(), name, join: join.clone(), broadcast });
    assert_eq!(
        (made[0].operation.as_str(), made[0].actor.name.as_str()),
        ("network_create", "root")
    );
    let changed = world.apply(Op::UpdateNetwork {
        by: admin(),
        network: 77,
        join: Some(join),
        broadcast: None,
    });
    assert_eq!(changed[0].object, "network 77");
    let token = world.apply(Op::CreateToken {
        by: Actor::Node(by(1)),
        network: 77,
        id: "ci".to_owned(),
        salt: [0xAB; 32],
        hash: [0xCD; 32],
        uses: Some(3),
        expires: Some(9999),
        tags: vec!["gpu".to_owned()],
    });
    assert_eq!(token[0].object, "token ci in network 77");
    assert_eq!(token[0].actor.owner, "ops");
    let invite = world.apply(Op::Invite {
        by: Actor::Node(by(1)),
        network: 77,
        to: Invitee::Owner("dev".to_owned()),
        expires: 9999,
        tags: Vec::new(),
        signature: Some(Signature([7; 64])),
    });
    assert_eq!((invite[0].operation.as_str(), invite[0].object.as_str()), ("invite", "network 77"));
    let admission = Admission {
        rule: "token+oidc".to_owned(),
        tokens: vec!["ci".to_owned()],
        external_identity: Some("alice@example.com".to_owned()),
        ..Admission::default()
    };
    let joined = world.apply(Op::JoinNetwork { by: by(1), network: 77, admission });
    assert_eq!(joined[0].object, "node 1 in network 77");
    assert_eq!(joined[0].rule, "token+oidc");
    assert_eq!(joined[0].actor.external_identity, "alice@example.com");
    let leave = |by, node| Op::LeaveNetwork { by, node: NodeId(node), network: 77 };
    assert_eq!(world.apply(leave(Actor::Node(by(1)), 1))[0].operation, "network_leave");
    assert_eq!(world.apply(leave(admin(), 1))[0].operation, "network_remove");
    let reason = "stolen".to_owned();
    let revoked = world.apply(Op::RevokeNode { by: admin(), node: NodeId(42), reason });
    assert_eq!(
        (revoked[0].operation.as_str(), revoked[0].object.as_str()),
        ("node_revoke", "node 42")
    );
    let all = [made, changed, token, invite, joined, revoked].concat();
    let text = serde_json::to_string(&all).unwrap();
    for secret in ["hush", "client_secret", "abab", "cdcd", &Signature([7; 64]).to_string()] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn denials_are_told_as_they_came_and_within_bounds() {
    let mut world = World::default();
    world.apply(Op::Register(register(1)));
    let denial = Denial {
        operation: "set_hostname".to_owned(),
        claimed: Some(NodeId(1)),
        by: None,
        object: "node 1".to_owned(),
        code: "bad_signature".to_owned(),
        reason: "é".repeat(2000),
        rule: String::new(),
        count: 25,
    };
    let records = world.apply(Op::Deny(denial));
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.result, record.count, record.command), (AuditResult::Denied, 25, 2));
    assert_eq!(record.actor.kind, "unknown", "what a request claims proves nothing");
    assert_eq!(record.actor.node_id, Some(NodeId(1)));
    assert_eq!(record.code, "bad_signature");
    assert_eq!(record.detail, "é".repeat(512));
    // The client's own text stands for the request.
    let origin = Origin { source: None, request: "r-7".to_owned() };
    let command = Command { at: 5, origin, op: Op::Register(register(5)) };
    let draft = Draft::look(&world.state, &command).unwrap();
    let outcome = world.state.apply(&command);
    let mut records = Vec::new();
    draft.finish(&world.state, &outcome, &mut records);
    assert_eq!((records[0].request_id.as_str(), records[0].source.as_str()), ("r-7", ""));
}
