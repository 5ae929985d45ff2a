//! Verdicts as a registry without plugins meets them: rules are functions here.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use pilot_host::BoxFuture;
use pilot_wire::Address;
use pilot_wire::registry::PublicKey;
use pilot_wire::registry::network::{BroadcastRight, JoinPolicy};

use super::*;
use crate::rules::JoinRules;
use crate::state::{Actor, Command, Register};

type Rule = fn(&JoinRequest) -> Verdict;

#[derive(Default)]
struct Rules(BTreeMap<&'static str, Rule>);

impl JoinRules for Rules {
    fn validate(&self, request: JoinRequest) -> BoxFuture<Verdict> {
        Box::pin(ready(self.0[request.rule.as_str()](&request)))
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(|name| (*name).to_owned()).collect()
    }
}

const NOW: u64 = 1_000_000;

fn service(rules: &[(&'static str, Rule)]) -> Service {
    let rules = Rules(rules.iter().copied().collect());
    Service::new(Arc::new(RwLock::new(State::default())), 0, false).with_rules(Arc::new(rules))
}

fn question(rule: &str) -> JoinRequest {
    JoinRequest {
        rule: rule.to_owned(),
        network: 1,
        network_name: "lab".to_owned(),
        node: NodeId(1),
        address: Address::backbone(NodeId(1)),
        public_key: PublicKey([1; 32]).to_string(),
        owner: String::new(),
        hostname: String::new(),
        tags: Vec::new(),
        proof: Value::Null,
        config: Value::Null,
        kept: json!({"tokens": [{"id": "t1"}], "invitations": [{"id": 7}]}),
        source: "192.0.2.1".to_owned(),
        at_ms: NOW * 1000,
    }
}

fn allow(tags: &[&str], expires_in: Option<i64>, uses: Option<&str>) -> Verdict {
    Verdict::Allow {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        expires_at_ms: expires_in.map(|secs| NOW.checked_add_signed(secs).unwrap() * 1000),
        external_identity: None,
        uses: uses.map(str::to_owned),
    }
}

async fn judge(service: &Service, combine: Combine, rules: &[&str]) -> Result<Admission, Denied> {
    service.judge(combine, rules.iter().map(|rule| question(rule)).collect(), NOW).await
}

#[tokio::test]
async fn any_takes_the_first_that_allows_and_tells_what_all_said() {
    let service = service(&[
        ("no", |_| Verdict::deny("not you")),
        ("never", |_| Verdict::deny("nobody")),
        ("a", |_| allow(&["a"], None, None)),
        ("b", |_| allow(&["b"], None, None)),
    ]);
    let admitted = judge(&service, Combine::Any, &["no", "b", "a"]).await.unwrap();
    assert_eq!((admitted.rule.as_str(), admitted.tags), ("b", vec!["b".to_owned()]));
    let denied = judge(&service, Combine::Any, &["no", "never"]).await.unwrap_err();
    assert_eq!(denied.rule, "never");
    assert_eq!(denied.reason, "rule \"no\": not you; rule \"never\": nobody");
    for combine in [Combine::Any, Combine::All] {
        let denied = judge(&service, combine, &[]).await.unwrap_err();
        assert!(denied.reason.contains("no join rule"), "{denied:?}");
        let denied = judge(&service, combine, &["lost"]).await.unwrap_err();
        assert_eq!(denied.rule, "lost");
        assert!(
            denied.reason.contains("rule \"lost\": no plugin provides it")
                && denied.reason.contains("there are: a, b, never, no"),
            "{denied:?}"
        );
    }
}

#[tokio::test]
async fn all_adds_up_what_every_rule_grants() {
    let service = service(&[
        ("token", |_| allow(&["x", "x"], Some(90), Some("t1"))),
        ("invite", |_| allow(&["y"], None, Some("7"))),
        ("oidc", |_| Verdict::Allow {
            tags: vec!["#x".to_owned(), "z".to_owned()],
            expires_at_ms: Some((NOW + 60) * 1000 + 999),
            external_identity: Some("ann@example.org".to_owned()),
            uses: None,
        }),
        ("ca", |_| Verdict::Allow {
            tags: vec![],
            expires_at_ms: None,
            external_identity: Some("CN=ann".to_owned()),
            uses: None,
        }),
        ("no", |_| Verdict::deny("not you")),
    ]);
    let all = judge(&service, Combine::All, &["token", "invite", "oidc", "ca"]).await.unwrap();
    assert_eq!(
        all,
        Admission {
            rule: "token+invite+oidc+ca".to_owned(),
            tags: ["x", "y", "z"].map(str::to_owned).to_vec(),
            expires: Some(NOW + 60),
            external_identity: Some("ann@example.org".to_owned()),
            tokens: vec!["t1".to_owned()],
            invitations: vec![7],
            ..Admission::default()
        }
    );
    let denied = judge(&service, Combine::All, &["token", "no", "ca"]).await.unwrap_err();
    assert_eq!(denied, Denied { rule: "no".into(), reason: "rule \"no\": not you".into() });
}

/// What the state says while a rule is asked goes out with the verdict, so that
/// it is void when that changes.
#[tokio::test]
async fn an_admission_says_by_which_rules_and_for_which_membership_it_is() {
    let key = PublicKey([1; 32]);
    let (by, source) = (Signer { node: NodeId(1), key }, ([127, 0, 0, 1], 1).into());
    let asker = Asker { source, session: Some(by) };
    let service = service(&[("a", |_| allow(&[], None, None))]);
    let run = |at, op| {
        let mut state = service.state.write().unwrap();
        state.apply(&Command::own(at, op)).map(|_| state.applied())
    };
    let join = async || {
        let (network, proofs) = (NetworkRef::Id(1), Map::new());
        service.join(by, &network, &proofs, &asker, NOW).await.unwrap()
    };
    let judged = |op: &Op| match op {
        Op::JoinNetwork { admission, .. } => (admission.policy, admission.renews),
        other => panic!("{other:?}"),
    };
    let (owner, hostname, takeover) = (String::new(), String::new(), false);
    let register = Register { key, endpoint: source, owner, hostname, proven: true, takeover };
    run(1, Op::Register(register)).unwrap();
    let (name, policy) = ("lab".to_owned(), JoinPolicy::of("a"));
    let (admin, broadcast) = (|| Actor::Admin("ops".into()), BroadcastRight::Nobody);
    let create = Op::CreateNetwork { by: admin(), name, join: policy.clone(), broadcast };
    let made = run(2, create).unwrap();
    let early = join().await;
    assert_eq!(judged(&early), (made, None));
    run(3, early).unwrap();
    let renewal = join().await;
    assert_eq!(judged(&renewal), (made, Some(3)));
    let update = Op::UpdateNetwork { by: admin(), network: 1, join: Some(policy), broadcast: None };
    let updated = run(4, update).unwrap();
    assert_eq!(run(5, renewal).unwrap_err().code(), "not_admitted");
    let renewal = join().await;
    assert_eq!(judged(&renewal), (updated, Some(3)));
    run(6, renewal).unwrap();
}

#[tokio::test]
async fn what_a_rule_grants_is_checked() {
    let service = service(&[
        ("past", |_| allow(&[], Some(-5), None)),
        ("now", |_| allow(&[], Some(0), None)),
        ("shout", |_| allow(&["GPU"], None, None)),
        ("many", |_| Verdict::Allow {
            tags: (0..33).map(|n| format!("t{n}")).collect(),
            expires_at_ms: None,
            external_identity: None,
            uses: None,
        }),
        ("somebody", |_| Verdict::Allow {
            tags: vec![],
            expires_at_ms: None,
            external_identity: Some("x".repeat(513)),
            uses: None,
        }),
        ("token", |_| allow(&[], None, Some("t2"))),
        ("invite", |_| allow(&[], None, Some("t1"))),
        ("other", |_| allow(&[], None, Some("t1"))),
        ("silent", |_| Verdict::deny("")),
        ("chatty", |_| Verdict::deny("x".repeat(5000))),
    ]);
    for (rule, why) in [
        ("past", "over already"),
        ("now", "over already"),
        ("shout", "wrong tags"),
        ("many", "more than 32 tags"),
        ("somebody", "external identity"),
        ("token", "\"t2\" as used"),
        ("invite", "\"t1\" as used"),
        ("other", "\"t1\" as used"),
        ("silent", "no reason"),
        ("chatty", "xxx"),
    ] {
        let denied = judge(&service, Combine::Any, &[rule]).await.unwrap_err();
        assert!(denied.reason.contains(why) && denied.reason.len() < 600, "{denied:?}");
        assert!(denied.rule == rule && denied.reason.contains(rule), "{denied:?}");
    }
}

#[test]
fn joins_at_once_are_bounded() {
    let joins = Joins::default();
    let mut turns: Vec<_> = (0..4).map(|_| joins.enter(NodeId(1)).unwrap()).collect();
    assert_eq!(joins.enter(NodeId(1)).unwrap_err().code(), "rate_limited");
    turns.extend((0..60).map(|n| joins.enter(NodeId(2 + n)).unwrap()));
    assert_eq!(joins.enter(NodeId(99)).unwrap_err().code(), "rate_limited");
    drop(turns.pop());
    turns.push(joins.enter(NodeId(99)).unwrap());
    drop(turns);
    let judged = lock(&joins.0);
    assert_eq!((judged.all, judged.by_node.len()), (0, 0));
}

#[tokio::test]
async fn a_node_that_is_not_there_joins_nothing() {
    let service = service(&[]);
    let asker = Asker { source: SocketAddr::from(([192, 0, 2, 1], 1)), session: None };
    let by = Signer { node: NodeId(1), key: PublicKey([1; 32]) };
    let network = NetworkRef::Name("lab".to_owned());
    let refused = service.join(by, &network, &Map::new(), &asker, NOW).await.unwrap_err();
    assert_eq!(refused.code(), "unknown_network");
}
