//! The published vectors, and scripts against the logic.

use pilot_plugin::Peer;
use pilot_plugin::json::{self, Value as Json};
use pilot_plugin::wire::service::nameserver as wire;
use pilot_plugin::wire::service::nameserver::{MAX_NAME, MAX_REQUEST, Request};
use pilot_plugin::wire::{Address, NodeId};
use proptest::prelude::*;

use crate::hostnames::Hostnames;
use crate::protocol::{Call, Note, Server, Step};
use crate::zone::{Owner, Refusal, Rules, Value, Who, Zone};

const NOW: u64 = 1_700_000_000;
const RULES: Rules = Rules { ttl: 300, grace: 1000, max_records: 100, per_node: 10 };

fn server(rules: Rules) -> Server {
    Server {
        zone: Zone::new(rules),
        hostnames: Hostnames::default(),
        asks: false,
        notes: Vec::new(),
    }
}

/// Node 1 is `0:0000.0000.0001`.
fn node(n: u32, key: Option<&str>) -> Who {
    let mut peer = Peer::at(Address::backbone(NodeId(n)).port(49152));
    peer.public_key = key.map(str::to_owned);
    Who::peer(&peer)
}

fn call(who: &Who, now: u64) -> Call<'_> {
    Call { who, now, refuse: None, said: None }
}

fn ask(server: &mut Server, who: &Who, now: u64, text: &str) -> String {
    let mut out = Vec::new();
    assert_eq!(server.single(call(who, now), text.as_bytes(), &mut out), Step::Done);
    server.zone.settle();
    String::from_utf8(out).unwrap()
}

fn vectors() -> Json {
    json::from_str(include_str!("../../../tests/vectors/nameserver.json")).unwrap()
}

#[test]
fn published_requests_get_published_answers() {
    let vectors = vectors();
    let one = node(1, None);
    for request in vectors["requests"].as_array().unwrap() {
        let text = request["text"].as_str().unwrap();
        let mut server = server(RULES);
        let answer = ask(&mut server, &one, NOW, text);
        if let Some(reply) = request["reply"].as_str() {
            assert_eq!(answer, reply, "{text:?}");
            continue;
        }
        let expected = match (request["command"].as_str(), request["record"].as_str()) {
            (Some("REGISTER"), _) => "OK".to_owned(),
            (_, Some("A")) => format!("ERR name {} not found", request["name"]),
            (_, Some("N")) => format!("ERR network {} not found", request["name"]),
            _ => "S".to_owned(),
        };
        assert_eq!(answer, expected, "{text:?}");
    }
}

#[test]
fn published_replies() {
    let replies = &vectors()["replies"];
    let mut server = server(RULES);
    let (one, other) = (node(1, None), node(2, None));
    assert_eq!(ask(&mut server, &one, NOW, "QUERY A web"), replies["err"]);
    assert_eq!(ask(&mut server, &one, NOW, "QUERY S 1 80"), replies["s_none"]);
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A web 0:0000.0000.0001"), replies["ok"]);
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N lab 7"), "OK");
    assert_eq!(ask(&mut server, &one, NOW, "register s api 0:0000.0000.0001 1 80"), "OK");
    assert_eq!(ask(&mut server, &other, NOW, "REGISTER S api2 1:0001.0000.0002 1 80"), "OK");
    assert_eq!(ask(&mut server, &one, NOW, "QUERY A web"), replies["a"]);
    assert_eq!(ask(&mut server, &one, NOW, "QUERY N lab"), replies["n"]);
    assert_eq!(ask(&mut server, &one, NOW, "QUERY S 1 80"), replies["s_two"]);
}

#[test]
fn several_requests_are_answered_in_order() {
    let mut server = server(RULES);
    let one = node(1, None);
    let input = b"REGISTER A web 0:0000.0000.0001\nquery a web\r\nQUERY S 0 80\n\
        REGISTER S api 0:0000.0000.0001 0 80\nQUERY S 0 80\nNONSENSE\n\nQUERY A w";
    let (mut at, mut out) = (0, Vec::new());
    assert_eq!(server.lines(call(&one, NOW), input, &mut at, &mut out), Step::Done);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "OK\nA web 0:0000.0000.0001\nS\n\nOK\nS api 0:0000.0000.0001 80\n\n\
         ERR too few fields\nERR too few fields\n"
    );
    assert_eq!(&input[at..], b"QUERY A w");
}

#[test]
fn a_request_has_a_longest() {
    let mut server = server(RULES);
    let one = node(1, None);
    for end in ["", "\n", " \n"] {
        let input = format!("QUERY A web\n{}{end}", "x".repeat(MAX_REQUEST + 1));
        let (mut at, mut out) = (0, Vec::new());
        let step = server.lines(call(&one, NOW), input.as_bytes(), &mut at, &mut out);
        assert_eq!(step, Step::TooLong);
        assert!(out.ends_with(b"\nERR request too long: at most 4096 bytes\n"));
    }
    let long = "n".repeat(MAX_NAME + 1);
    let answer = ask(&mut server, &one, NOW, &format!("REGISTER N {long} 1"));
    assert_eq!(answer, "ERR name too long: at most 255 bytes");
}

#[test]
fn many_answers_are_sent_in_parts() {
    let mut server = server(RULES);
    let one = node(1, None);
    let input = b"QUERY A a-name-that-is-not-there\n".repeat(60_000);
    let (mut at, mut parts, mut lines) = (0, 0, 0);
    loop {
        let mut out = Vec::new();
        let step = server.lines(call(&one, NOW), &input, &mut at, &mut out);
        lines += out.iter().filter(|b| **b == b'\n').count();
        parts += 1;
        if step == Step::Done {
            break;
        }
        assert_eq!(step, Step::Full);
        assert!(out.len() < (1 << 20) + 100);
    }
    assert_eq!((parts, lines), (3, 60_000));
}

#[test]
fn only_own_addresses() {
    let mut server = server(RULES);
    let one = node(1, None);
    assert_eq!(
        ask(&mut server, &one, NOW, "REGISTER A web 0:0000.0000.0002"),
        "ERR cannot register address for another node"
    );
    assert_eq!(
        ask(&mut server, &one, NOW, "REGISTER S web 0:0000.0000.0002 0 80"),
        "ERR cannot register service for another node"
    );
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A web 7:0007.0000.0001"), "OK");
    assert_eq!(server.zone.size(), 1);
}

#[test]
fn a_name_belongs_to_who_registered_it() {
    let mut server = server(RULES);
    let (one, two) = (node(1, Some("key one")), node(2, Some("key two")));
    let taken = "ERR name \"web\" belongs to another node";
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A web 0:0000.0000.0001"), "OK");
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER A web 0:0000.0000.0002"), taken);
    // Of any kind.
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER N web 3"), taken);
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER S web 0:0000.0000.0002 0 80"), taken);
    // The same node without its key, or with another.
    assert_eq!(ask(&mut server, &node(1, None), NOW, "REGISTER N web 3"), taken);
    assert_eq!(ask(&mut server, &node(1, Some("new")), NOW, "REGISTER N web 3"), taken);
    // The same key with another number.
    let moved = node(9, Some("key one"));
    assert_eq!(ask(&mut server, &moved, NOW, "REGISTER A web 0:0000.0000.0009"), "OK");
    // Expired, but held; renewing moves that.
    let end = NOW + RULES.ttl + RULES.grace;
    assert_eq!(ask(&mut server, &one, NOW + 300, "QUERY A web"), "ERR name \"web\" not found");
    assert_eq!(ask(&mut server, &two, end - 1, "REGISTER N web 3"), taken);
    assert_eq!(ask(&mut server, &two, end, "REGISTER N web 3"), "OK");
    assert_eq!(ask(&mut server, &one, end, "QUERY N web"), "N web 3");
    assert_eq!(ask(&mut server, &one, end, "REGISTER N web 4"), taken);
}

#[test]
fn renewing_keeps_a_record() {
    let mut server = server(RULES);
    let one = node(1, None);
    for now in [NOW, NOW + 299, NOW + 598] {
        assert_eq!(ask(&mut server, &one, now, "REGISTER A web 0:0000.0000.0001"), "OK");
    }
    assert_eq!(ask(&mut server, &one, NOW + 897, "QUERY A web"), "A web 0:0000.0000.0001");
    assert_eq!(ask(&mut server, &one, NOW + 898, "QUERY A web"), "ERR name \"web\" not found");
    // Only the first time is news.
    let web = Value::A("0:0000.0000.0001".parse().unwrap());
    assert_eq!(server.notes, [Note::Registered { name: "web".to_owned(), value: web }]);
}

#[test]
fn what_is_known_by_number_goes_over_to_the_key() {
    let mut server = server(RULES);
    let (plain, keyed) = (node(1, None), node(1, Some("key")));
    assert_eq!(ask(&mut server, &plain, NOW, "REGISTER N lab 1"), "OK");
    server.zone.register(&keyed, "lab", Value::N(2), NOW).unwrap();
    // The new place is written before the old one is emptied.
    assert_eq!(server.zone.unsettled(), [keyed.owner.clone(), plain.owner.clone()]);
    assert_eq!(server.zone.stored(&plain.owner), None);
    server.zone.settle();
    assert_eq!(
        ask(&mut server, &plain, NOW, "REGISTER N lab 3"),
        "ERR name \"lab\" belongs to another node"
    );
}

#[test]
fn bounds_hold() {
    let mut server = server(Rules { max_records: 12, ..RULES });
    let (one, two) = (node(1, None), node(2, None));
    for i in 0..10 {
        assert_eq!(ask(&mut server, &one, NOW, &format!("REGISTER N n{i} 1")), "OK");
    }
    let refused = "ERR too many records of one node: at most 10";
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N more 1"), refused);
    // Also within a name, but renewing is no more.
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A n1 0:0000.0000.0001"), refused);
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N n1 5"), "OK");
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER N m1 1"), "OK");
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER A m1 0:0000.0000.0002"), "OK");
    let full = "ERR too many records: this server keeps at most 12";
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER N m2 1"), full);
    // Names that are only held count too, until they are free.
    assert!(server.zone.sweep(NOW + 300).is_empty());
    assert_eq!(server.zone.size(), 11);
    let gone = server.zone.sweep(NOW + 1300);
    assert_eq!(gone, [one.owner, two.owner]);
    assert_eq!(server.zone.size(), 0);
}

#[test]
fn what_cannot_be_stored_did_not_happen() {
    let mut server = server(RULES);
    let one = node(1, None);
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N lab 1"), "OK");
    let input = b"REGISTER N lab 2\nREGISTER N lab 3\nREGISTER N new 4\nQUERY N lab\n";
    let (mut at, mut out) = (0, Vec::new());
    server.lines(call(&one, NOW), input, &mut at, &mut out);
    assert_eq!(out, b"OK\nOK\nOK\nN lab 3\n");
    assert_eq!(server.zone.unsettled(), std::slice::from_ref(&one.owner));
    server.zone.roll_back();
    let refuse = Some(&Refusal::NotStored);
    let (mut at, mut out) = (0, Vec::new());
    server.lines(Call { refuse, ..call(&one, NOW) }, input, &mut at, &mut out);
    let no = "ERR the record could not be stored, try again later\n";
    assert_eq!(String::from_utf8(out).unwrap(), format!("{no}{no}{no}N lab 1\n"));
    assert!(server.zone.unsettled().is_empty());
    assert_eq!(server.zone.size(), 1);
}

#[test]
fn names_outlive_a_restart() {
    let mut server = server(RULES);
    let (one, two) = (node(1, Some("a/b+c=")), node(2, None));
    for text in ["REGISTER A web 0:0000.0000.0001", "REGISTER S api 0:0000.0000.0001 1 80"] {
        assert_eq!(ask(&mut server, &one, NOW, text), "OK");
    }
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER N lab 7"), "OK");
    let mut after = Zone::new(RULES);
    for who in [&two, &one] {
        let owner = Owner::parse(&who.owner.to_string()).unwrap();
        assert_eq!(owner, who.owner);
        after.load(&owner, &server.zone.stored(&owner).unwrap(), NOW + 10).unwrap();
    }
    assert_eq!(after.export(NOW + 10), server.zone.export(NOW + 10));
    assert_eq!(after.size(), 3);
    assert_eq!(after.address("web", NOW + 299), Some("0:0000.0000.0001".parse().unwrap()));
    assert_eq!(after.address("web", NOW + 300), None);
    assert_eq!(after.register(&two, "web", Value::N(1), NOW), Err(Refusal::Taken("web".into())));
    assert!(after.load(&two.owner, b"nonsense", NOW).is_err());
}

#[test]
fn the_file_gives_names_to_the_nodes_in_it() {
    let text = r#"{"a_records":[{"name":"web","address":"0:0000.0000.0001"}],
        "n_records":[{"name":"lab","network_id":7}],
        "s_records":[{"name":"api","address":"0:0000.0000.0002","network_id":1,"port":80}]}"#;
    let zone: wire::Zone = json::from_str(text).unwrap();
    let mut server = server(RULES);
    assert_eq!(server.zone.import(&zone, NOW), (3, 0));
    assert_eq!(server.zone.export(NOW), zone);
    assert_eq!(server.zone.import(&zone, NOW), (3, 0));
    let (one, two) = (node(1, Some("key")), node(2, None));
    let taken = |name| format!("ERR name \"{name}\" belongs to another node");
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER A web 0:0000.0000.0002"), taken("web"));
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A web 0:0000.0000.0001"), "OK");
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N lab 1"), taken("lab"));
    // A name that somebody holds now stays as it is.
    assert_eq!(server.zone.import(&zone, NOW), (2, 1));
}

#[test]
fn the_registry_is_asked_for_what_has_no_record() {
    let mut server = server(RULES);
    server.asks = true;
    let one = node(1, None);
    let input = b"QUERY A a.b\nQUERY A web\nQUERY A web\n";
    let (mut at, mut out) = (0, Vec::new());
    let step = server.lines(call(&one, NOW), input, &mut at, &mut out);
    assert_eq!((step, at), (Step::Ask("web".to_owned()), 12));
    let said = ("web".to_owned(), "0:0000.0000.0007".parse().ok());
    server.hostnames.put("web", said.1, NOW);
    let said = (said.0, Ok(said.1));
    let again = Call { said: Some(&said), ..call(&one, NOW) };
    assert_eq!(server.lines(again, input, &mut at, &mut out), Step::Done);
    let answer = "A web 0:0000.0000.0007\n";
    let expected = format!("ERR name \"a.b\" not found\n{answer}{answer}");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    // A record beats it.
    let seven = node(7, None);
    assert_eq!(ask(&mut server, &seven, NOW, "REGISTER A web 1:0001.0000.0007"), "OK");
    assert_eq!(ask(&mut server, &one, NOW, "QUERY A web"), "A web 1:0001.0000.0007");
    // That there is none is remembered too.
    server.hostnames.put("none", None, NOW);
    assert_eq!(ask(&mut server, &one, NOW, "QUERY A none"), "ERR name \"none\" not found");
}

proptest! {
    /// The short way reads what the codec reads.
    #[test]
    fn the_short_way_answers_as_the_long_one(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "QUERY", "query", "REGISTER", "A", "a", "N", "S", "s", "web", "lab", "0", "80",
                "65536", "+1", "007", "0:0000.0000.0001", "tempé", "x",
            ]),
            0..6,
        ),
        gap in prop::sample::select(vec![" ", "\t", "  ", "\x0b", "\u{2003}", "\r"]),
    ) {
        let text = words.join(gap);
        let mut server = server(RULES);
        let one = node(1, None);
        for text in ["REGISTER A web 0:0000.0000.0001", "REGISTER N lab 7",
            "REGISTER S api 0:0000.0000.0001 0 80"] {
            prop_assert_eq!(ask(&mut server, &one, NOW, text), "OK");
        }
        let expected = match Request::parse(&text) {
            Ok(Request::QueryA { name }) if name == "web" =>
                "A web 0:0000.0000.0001".to_owned(),
            Ok(Request::QueryA { name }) => wire::Answer::no_name(&name).to_string(),
            Ok(Request::QueryN { name }) if name == "lab" => "N lab 7".to_owned(),
            Ok(Request::QueryN { name }) => wire::Answer::no_network(&name).to_string(),
            Ok(Request::QueryS { network: 0, port: 80 }) =>
                "S api 0:0000.0000.0001 80".to_owned(),
            Ok(Request::QueryS { .. }) => "S".to_owned(),
            Ok(_) => "OK".to_owned(),
            Err(why) => format!("ERR {why}"),
        };
        prop_assert_eq!(ask(&mut server, &one, NOW, &text), expected);
    }

    /// However a stream is cut, the answers are the same; and nothing panics.
    #[test]
    fn any_bytes_get_answers(
        input in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b' ')], 0..300),
        cut in 0usize..300,
    ) {
        let one = node(1, None);
        let (mut whole, mut parts) = (server(RULES), server(RULES));
        let (mut at, mut expected) = (0, Vec::new());
        whole.lines(call(&one, NOW), &input, &mut at, &mut expected);
        let (first, mut answers, mut used) = (cut.min(input.len()), Vec::new(), 0);
        parts.lines(call(&one, NOW), &input[..first], &mut used, &mut answers);
        parts.lines(call(&one, NOW), &input, &mut used, &mut answers);
        prop_assert_eq!((answers, used), (expected, at));
    }

    /// Sizes and indexes stay in step through changes that are undone.
    #[test]
    fn undoing_restores_everything(
        steps in prop::collection::vec((0u32..4, 0u8..6, 0u8..3, 0u64..2000, any::<bool>()), 1..40),
    ) {
        let mut zone = Zone::new(Rules { max_records: 8, per_node: 5, ..RULES });
        let mut now = NOW;
        for (who, name, kind, later, keep) in steps {
            now += later;
            let who = node(who + 1, None);
            let address = Address::backbone(who.node.unwrap());
            let value = match kind {
                0 => Value::A(address),
                1 => Value::N(u16::from(name)),
                _ => Value::S { address, network: 0, port: u16::from(name) % 2 },
            };
            let before = (zone.size(), zone.export(now), zone.services(0, 0, now).count());
            let done = zone.register(&who, &name.to_string(), value, now);
            if keep && done.is_ok() {
                zone.settle();
                let mut again = Zone::new(RULES);
                again.load(&who.owner, &zone.stored(&who.owner).unwrap(), now).unwrap();
                prop_assert!(again.has(&who.owner));
            } else {
                zone.roll_back();
                let after = (zone.size(), zone.export(now), zone.services(0, 0, now).count());
                prop_assert_eq!(after, before);
            }
            prop_assert!(zone.size() <= 8);
            if later > 1000 {
                zone.sweep(now);
            }
        }
        zone.sweep(now + 2000);
        prop_assert_eq!(zone.size(), 0);
    }
}

#[test]
fn a_hostname_of_the_registry_is_its_nodes() {
    let mut server = Server { asks: true, ..server(RULES) };
    let (one, two) = (node(1, None), node(2, None));
    let request = b"REGISTER A web 0:0000.0000.0001";
    let mut out = Vec::new();
    let step = server.single(call(&one, NOW), request, &mut out);
    assert_eq!(step, Step::Ask("web".to_owned()));
    let said = ("web".to_owned(), Err(crate::protocol::Busy));
    let busy = Call { said: Some(&said), ..call(&one, NOW) };
    assert_eq!(server.single(busy, request, &mut out), Step::Done);
    assert!(out.starts_with(b"ERR the registry"));
    server.hostnames.put("web", Some(Address::backbone(NodeId(2))), NOW);
    let taken = "ERR name \"web\" belongs to another node";
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER A web 0:0000.0000.0001"), taken);
    assert_eq!(ask(&mut server, &one, NOW, "REGISTER N web 7"), taken);
    assert_eq!(ask(&mut server, &two, NOW, "REGISTER A web 0:0000.0000.0002"), "OK");
}

#[test]
fn nobody_keeps_this_nodes_name_from_it() {
    let (one, own) = (node(1, None), Who { owner: Owner::Local, node: Some(NodeId(9)) });
    let (theirs, ours) = (Address::backbone(NodeId(1)), Address::backbone(NodeId(9)));
    let mut zone = Zone::new(RULES);
    zone.register(&one, "me", Value::A(theirs), NOW).unwrap();
    let stored = zone.stored(&one.owner).unwrap();
    assert_eq!(zone.register(&own, "me", Value::A(ours), NOW), Ok(true));
    assert_eq!(zone.address("me", NOW), Some(ours));
    zone.load(&one.owner, &stored, NOW).unwrap();
    assert_eq!(zone.address("me", NOW), Some(ours));
}

#[test]
fn a_mere_renewal_is_stored_once_in_a_while() {
    let (one, at) = (node(1, None), Address::backbone(NodeId(1)));
    let mut zone = Zone::new(RULES);
    let mut stores = |now| {
        zone.register(&one, "web", Value::A(at), now).unwrap();
        let stores = !zone.unsettled().is_empty();
        zone.wrote();
        zone.settle();
        stores
    };
    assert!(stores(NOW));
    assert!(!stores(NOW + 74));
    assert!(stores(NOW + 75));
    assert!(!stores(NOW + 149));
}

#[test]
fn what_may_be_half_written_is_written_again() {
    let (one, two) = (node(1, None), node(2, None));
    let mut zone = Zone::new(RULES);
    zone.register(&one, "a", Value::A(Address::backbone(NodeId(1))), NOW).unwrap();
    zone.roll_back();
    assert!(zone.unsettled().is_empty());
    zone.register(&two, "b", Value::A(Address::backbone(NodeId(2))), NOW).unwrap();
    assert_eq!(zone.unsettled(), [two.owner.clone(), one.owner.clone()]);
}
