//! The formats of the well-known services: the published vectors to the byte,
//! round trips of what is ours, and decoders that survive any bytes.

use pilot_wire::service::data_exchange::{self, BeginAnswer, FileOffer, Have};
use pilot_wire::service::event_stream::{self as events, Dropped, Event, Subscription};
use pilot_wire::service::nameserver::{Answer, Request, Service, ServiceLine, Zone};
use pilot_wire::service::rfc3339;
use pilot_wire::service::secure::{self, Binding, Frame, NonceCheck, NonceSource, Role};
use pilot_wire::service::tasks::{self, Kind, Results, Status, Submit, TaskFile, TaskId};
use pilot_wire::{Address, NodeId};
use proptest::prelude::*;
use serde_json::{Value, json};

fn vector(name: &str) -> Value {
    let path = format!("{}/../../tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap_or_else(|| panic!("no list {key}"));
    assert!(!list.is_empty(), "{key} is empty");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex::decode(text(value, key)).unwrap()
}

#[test]
fn events_as_published() {
    let v = vector("eventstream");
    let mut all = Vec::new();
    for case in list(&v, "events") {
        let event = Event::new(text(case, "topic"), bytes(case, "payload"));
        let wire = bytes(case, "wire");
        assert_eq!(event.encode().unwrap(), wire, "{case}");
        let mut decoder = events::Decoder::default();
        // Byte by byte, as the worst of networks.
        for (i, byte) in wire.iter().enumerate() {
            assert_eq!(decoder.next_event().unwrap(), None);
            assert_eq!(decoder.is_inside(), i > 0);
            decoder.push(&[*byte]);
        }
        assert_eq!(decoder.next_event().unwrap().unwrap(), event);
        assert!(!decoder.is_inside());
        all.extend(wire);
    }
    let mut decoder = events::Decoder::default();
    decoder.push(&all);
    let mut seen = 0;
    while decoder.next_event().unwrap().is_some() {
        seen += 1;
    }
    assert_eq!(seen, list(&v, "events").len());
}

#[test]
fn event_limits() {
    let limits = &vector("eventstream")["limits"];
    for (len, key) in [(1024, "topic_1024_accepted"), (1025, "topic_1025_accepted")] {
        let event = Event::new(vec![b't'; len], "");
        assert_eq!(event.encode().is_ok(), limits[key], "{key}");
        let mut wire = u16::try_from(len).unwrap().to_be_bytes().to_vec();
        wire.extend(vec![b't'; len]);
        wire.extend([0; 4]);
        let mut decoder = events::Decoder::default();
        decoder.push(&wire);
        assert_eq!(decoder.next_event().is_ok(), limits[key], "{key}");
    }
    let mut decoder = events::Decoder::default();
    // Refused at the length, before anything of the payload is there.
    decoder.push(&[0, 1, b'x', 1, 0, 0, 1]);
    assert_eq!(
        decoder.next_event(),
        Err(events::TooLong::Payload(16_777_217, events::MAX_PAYLOAD))
    );
    decoder.push(&[0; 100]);
    assert!(decoder.next_event().is_err(), "there is no way back into step");
    assert_eq!(limits["payload_2^24+1_accepted"], false);
    let mut small = events::Decoder::new(10);
    small.push(&[0, 0, 0, 0, 0, 11]);
    assert_eq!(small.next_event(), Err(events::TooLong::Payload(11, 10)));
}

fn subscription(topic: &str, options: Option<events::Options>) -> Subscription {
    let payload = options.map(events::Options::to_payload).unwrap_or_default();
    Subscription::new(&Event::new(topic, payload))
}

#[test]
fn published_subscriptions_are_never_patterns() {
    for (topic, published, matches) in [
        ("alerts", "alerts", true),
        ("alerts", "alert", false),
        ("*", "alerts", true),
        ("*", "*", true),
        ("alerts", "*", false),
        ("sensors.*", "sensors.temp", false),
        ("sensors.*", "sensors.*", true),
        ("sensors.>", "sensors.temp", false),
        ("", "", true),
        ("pilot.dropped", "pilot.dropped", true),
        ("*", "pilot.dropped", true),
    ] {
        let subscription = subscription(topic, None);
        assert_eq!(subscription.matches(published.as_bytes()), matches, "{topic} {published}");
        assert!(!subscription.is_pattern());
    }
}

#[test]
fn patterns_of_marked_subscriptions() {
    let options = events::Options { patterns: true, dropped: true, publish_only: false };
    for (topic, published, matches) in [
        ("sensors.*", "sensors.temp", true),
        ("sensors.*", "sensors.temp.a", false),
        ("sensors.*", "sensors", false),
        ("sensors.*", "sensors.", true),
        ("sensors.>", "sensors.temp.a", true),
        ("sensors.>", "sensors", false),
        ("sensors.>", "sensor.temp", false),
        ("sensors.t*", "sensors.temp", true),
        ("sensors.t*", "sensors.hum", false),
        ("*.temp", "room.temp", true),
        ("*.temp", "room.hum", false),
        ("a.*.c", "a.b.c", true),
        ("a.*.c", "a.b.d", false),
        ("*.*", "a.b", true),
        ("*.*", "a", false),
        ("a*b", "axb", false),
        ("a*b", "a*b", true),
        (">.a", "b.a", false),
        (">", "a.b.c", true),
        (">", "*", false),
        ("temp*", "*", false),
        ("*", "*", true),
        ("*", "anything", true),
        // Notices are the broker's alone.
        ("*", "pilot.dropped", false),
        ("pilot.*", "pilot.subscribed", false),
        ("pilot.dropped", "pilot.dropped", false),
    ] {
        let subscription = subscription(topic, Some(options));
        assert_eq!(subscription.matches(published.as_bytes()), matches, "{topic} {published}");
    }
    let silent = events::Options { publish_only: true, ..options };
    assert!(!subscription("a", Some(silent)).matches(b"a"));
    let exact = events::Options { patterns: false, ..options };
    assert!(!subscription("a.*", Some(exact)).matches(b"a.b"));
}

#[test]
fn the_mark_is_invisible_and_tolerant() {
    let options = events::Options { patterns: true, dropped: true, publish_only: false };
    let payload = options.to_payload();
    assert_eq!(events::Options::from_payload(&payload), Some(options));
    let newer = [events::MARK.as_slice(), br#"{"patterns":true,"later":[1]}"#].concat();
    assert!(events::Options::from_payload(&newer).is_some_and(|o| o.patterns && !o.dropped));
    for none in [&b""[..], b"hello", br#"{"patterns":true}"#, events::MARK, b"\0PILOTE1{"] {
        assert_eq!(events::Options::from_payload(none), None);
    }
    let long = [events::MARK.as_slice(), &vec![b' '; 5000], b"{}"].concat();
    assert_eq!(events::Options::from_payload(&long), None);
    assert_eq!(events::Options::from_event(&options.to_event()), Some(options));
    let dropped = Dropped { count: u64::MAX };
    assert_eq!(Dropped::from_event(&dropped.to_event()), Some(dropped));
    assert_eq!(dropped.to_event().payload, br#"{"count":18446744073709551615}"#);
    assert_eq!(Dropped::from_event(&Event::new("x", r#"{"count":1}"#)), None);
}

#[test]
fn tasks_as_published() {
    let v = vector("tasksubmit");
    for case in list(&v, "frames") {
        let wire = bytes(case, "wire");
        let (header, payload) = wire.split_first_chunk().unwrap();
        let header = tasks::FrameHeader::decode(*header).unwrap();
        assert_eq!(u64::from(header.kind.number()), case["type"].as_u64().unwrap());
        assert_eq!(header.kind.to_string(), text(case, "type_name"));
        assert_eq!(header.len, payload.len());
        assert_eq!(payload, text(case, "json").as_bytes());
        let kind = header.kind;
        let again = match kind {
            Kind::Submit if text(case, "json").contains("status") => {
                tasks::frame(kind, &tasks::parse::<tasks::SubmitAnswer>(payload).unwrap())
            }
            Kind::Submit => tasks::frame(kind, &tasks::parse::<Submit>(payload).unwrap()),
            Kind::StatusUpdate => {
                tasks::frame(kind, &tasks::parse::<tasks::StatusUpdate>(payload).unwrap())
            }
            Kind::SendResults => tasks::frame(kind, &tasks::parse::<Results>(payload).unwrap()),
            other => panic!("{other}"),
        };
        assert_eq!(again.unwrap(), wire, "{case}");
    }
    for case in list(&v, "polo_reward") {
        let time = |key: &str| case[key].as_i64().unwrap();
        let reward =
            tasks::reward(time("time_cpu_ms"), time("time_idle_ms"), time("time_staged_ms"));
        assert_eq!(reward, case["reward"].as_i64().unwrap(), "{case}");
    }
    let new = text(&v, "task_file_new");
    let file: TaskFile = serde_json::from_str(new).unwrap();
    assert_eq!(file.to_text(), new);
    let made = TaskFile::new(
        "0a1b2c3d-1122-3344-5566-77889900aabb".parse().unwrap(),
        "d",
        "2025-01-02T03:04:05Z",
        "0:0000.0000.0001",
        "0:0000.0000.0002",
    );
    assert_eq!(made.to_text(), new);
    assert_eq!(made.file_name(), "0a1b2c3d-1122-3344-5566-77889900aabb.json");
}

#[test]
fn task_rules() {
    assert_eq!(tasks::check_scores(3, 3), Ok(()));
    assert_eq!(
        tasks::check_scores(0, 3).unwrap_err(),
        "Polo score too low: submitter=0, receiver=3"
    );
    assert_eq!(tasks::check_scores(-5, -7), Ok(()));
    for good in ["a.md", "b.SafeTensors", "x.y.JPG"] {
        assert!(tasks::has_known_extension(good), "{good}");
    }
    for bad in ["a.exe", "md", "a.", "a.md.sh"] {
        assert!(!tasks::has_known_extension(bad), "{bad}");
    }
    for bad in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\0b", &"x".repeat(219)] {
        assert_eq!(tasks::file_name(bad), None, "{bad:?}");
    }
    for bad in ["", "nope", "../../../../../../../../../../../../etc", "0a1b2c3d-1122-3344-5566"] {
        assert!(bad.parse::<TaskId>().is_err(), "{bad}");
    }
    let error = tasks::parse::<Submit>(br#"{"task_id":"../../x"}"#).unwrap_err();
    assert!(error.to_string().contains("invalid task ID"), "{error}");
    assert_eq!(TaskId::from_random([0xab; 16]).as_str(), "abababab-abab-abab-abab-abababababab");
    assert!(Status::New.may_become(Status::Accepted));
    assert!(Status::Executing.may_become(Status::Completed));
    assert!(Status::Completed.may_become(Status::Succeeded));
    assert!(!Status::Declined.may_become(Status::Completed));
    assert!(!Status::Completed.may_become(Status::New));
    for status in ["NEW", "EXPIRED", "SUCCEEDED"] {
        let parsed: Status = serde_json::from_value(json!(status)).unwrap();
        assert_eq!(parsed.to_string(), status);
    }
    assert!(serde_json::from_value::<Status>(json!("BOGUS")).is_err());
    let mut results: Results = tasks::parse(
        br#"{"task_id":"0a1b2c3d-1122-3344-5566-77889900aabb","result_type":"file","filename":"../x.csv"}"#,
    )
    .unwrap();
    assert_eq!(results.stored_name(), None);
    results.filename = "x.csv".to_owned();
    results.file_data = Results::encode_file(b"a,b\n");
    assert_eq!(
        results.stored_name().as_deref(),
        Some("0a1b2c3d-1122-3344-5566-77889900aabb_x.csv")
    );
    assert_eq!(results.file_bytes().unwrap(), b"a,b\n");
    // A file of the announced limit fits a frame.
    results.file_data = "A".repeat(tasks::MAX_FILE.div_ceil(3) * 4);
    assert!(tasks::frame(Kind::SendResults, &results).is_ok());
    results.file_data = "A".repeat(tasks::MAX_PAYLOAD);
    assert!(tasks::frame(Kind::SendResults, &results).is_err());
}

#[test]
fn times() {
    for (text, millis) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-20T12:10:31Z", 1_795_176_631_000),
        ("2000-02-29T00:00:00.5Z", 951_782_400_500),
        ("2026-11-20T13:10:31.123456789+01:00", 1_795_176_631_123),
        ("2026-11-20T10:40:31-01:30", 1_795_176_631_000),
        ("1969-12-31T23:59:59Z", -1000),
    ] {
        assert_eq!(rfc3339::parse(text), Some(millis), "{text}");
    }
    for bad in [
        "",
        "2026",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00Zx",
        "2026-01-01T00:00:00+1:00",
        "2026-01-01T00:00:00+24:00",
        "é026-01-01T00:00:00Z",
    ] {
        assert_eq!(rfc3339::parse(bad), None, "{bad}");
    }
}

#[test]
fn nameserver_as_published() {
    let v = vector("nameserver");
    let mut refused = 0;
    for case in list(&v, "requests") {
        let parsed = Request::parse(text(case, "text"));
        if case["ok"] == false {
            let answer = Answer::Error(parsed.unwrap_err().to_string());
            assert_eq!(answer.to_string(), text(case, "reply"), "{case}");
            refused += 1;
            continue;
        }
        let (command, record) = (text(case, "command"), text(case, "record"));
        let name = text(case, "name").to_owned();
        let number = |key: &str| u16::try_from(case[key].as_u64().unwrap()).unwrap();
        let address = || text(case, "address").parse::<Address>().unwrap();
        let (network, port) = (number("net_id"), number("port"));
        let expected = match (command, record) {
            ("QUERY", "A") => Request::QueryA { name },
            ("QUERY", "N") => Request::QueryN { name },
            ("QUERY", "S") => Request::QueryS { network, port },
            ("REGISTER", "A") => Request::RegisterA { name, address: address() },
            ("REGISTER", "N") => Request::RegisterN { name, network },
            ("REGISTER", "S") => {
                Request::RegisterS(Service { name, address: address(), network, port })
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(parsed.unwrap(), expected, "{case}");
        assert_eq!(Request::parse(&expected.to_string()).unwrap(), expected);
        let canonical = format!("{command} {record}");
        assert!(expected.to_string().starts_with(&canonical));
    }
    assert!(refused >= 8, "only {refused}");
    let replies = &v["replies"];
    let address = |text: &str| text.parse::<Address>().unwrap();
    let line = |name: &str, at: &str, port| ServiceLine {
        name: name.to_owned(),
        address: address(at),
        port,
    };
    for (key, answer) in [
        ("a", Answer::A { name: "web".into(), address: address("0:0000.0000.0001") }),
        ("err", Answer::no_name("web")),
        ("n", Answer::N { name: "lab".into(), network: 7 }),
        ("ok", Answer::Ok),
        ("s_none", Answer::S(Vec::new())),
        (
            "s_two",
            Answer::S(vec![
                line("api", "0:0000.0000.0001", 80),
                line("api2", "1:0001.0000.0002", 80),
            ]),
        ),
    ] {
        assert_eq!(answer.to_string(), text(replies, key));
        assert_eq!(Answer::parse(text(replies, key)).unwrap(), answer);
    }
    for bad in ["", "X", "A web", "A web nowhere", "N lab x", "S api", "S a 0:0000.0000.0001 1\nT"]
    {
        assert!(Answer::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn zone_file() {
    let text = r#"{"a_records":[{"name":"web","address":"0:0000.0000.0001"}],"n_records":[{"name":"lab","network_id":7}],"s_records":[{"name":"api","address":"0:0000.0000.0001","network_id":1,"port":80}]}"#;
    let zone: Zone = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&zone).unwrap(), text);
    assert_eq!(serde_json::from_str::<Zone>(r#"{"a_records":null}"#).unwrap(), Zone::default());
}

#[test]
fn secure_frames_as_published() {
    let v = vector("secure_channel");
    assert_eq!(text(&v, "kdf_prefix_ascii").as_bytes(), secure::KDF_PREFIX);
    let mut check = [NonceCheck::new(Role::Client), NonceCheck::new(Role::Server)];
    let mut source = [NonceSource::new(Role::Client), NonceSource::new(Role::Server)];
    for case in list(&v, "frames") {
        let from = usize::from(text(case, "direction") == "server-to-client");
        let wire = bytes(case, "frame");
        let mut decoder = secure::Decoder::default();
        for byte in &wire {
            assert_eq!(decoder.next_frame().unwrap(), None);
            decoder.push(&[*byte]);
        }
        let frame = decoder.next_frame().unwrap().unwrap();
        assert!(!decoder.is_inside());
        assert_eq!(frame.nonce.to_vec(), bytes(case, "nonce"));
        assert_eq!(frame.sealed.len(), bytes(case, "plaintext").len() + secure::TAG_LEN);
        assert_eq!(frame.encode().unwrap(), wire);
        assert_eq!(source[from].next_nonce(), Some(frame.nonce));
        let other = &mut check[1 - from];
        assert!(other.accept(&frame.nonce).is_err(), "reflected");
        check[from].accept(&frame.nonce).unwrap();
        assert!(check[from].accept(&frame.nonce).is_err(), "replayed");
    }
    let mut ahead = NonceCheck::new(Role::Client);
    assert!(ahead.accept(&Role::Client.nonce(2)).is_err(), "reordered");
    for (length, error) in [(11u32, true), (12, false), (16_777_216, false), (16_777_217, true)] {
        let mut decoder = secure::Decoder::default();
        decoder.push(&length.to_be_bytes());
        assert_eq!(decoder.next_frame().is_err(), error, "{length}");
    }
    let mut small = secure::Decoder::new(100);
    small.push(&101u32.to_be_bytes());
    assert_eq!(small.next_frame(), Err(secure::FrameError::Limit(101, 100)));
    let long = Frame { nonce: [0; 12], sealed: vec![0; secure::MAX_FRAME - 11] };
    assert!(long.encode().is_err());
}

#[test]
fn bindings() {
    // Published keys never announce.
    let v = vector("secure_channel");
    for case in list(&v, "handshake") {
        let key: [u8; 32] = bytes(case, "bytes").try_into().unwrap();
        assert!(!secure::is_announced(&key));
        assert!(secure::is_announced(&secure::announce(key)));
        assert_eq!(secure::without_announcement(secure::announce(key)), key);
    }
    let seen = |client, server| Binding {
        client_key: secure::announce([1; 32]),
        server_key: secure::announce([2; 32]),
        client: NodeId(client),
        server: NodeId(server),
    };
    let client = seen(1, 2);
    assert!(client.is_due());
    assert!(!Binding { server_key: [2; 32], ..client }.is_due(), "a published server");
    let said = client.confirmation(Role::Client);
    assert!(seen(1, 2).is_confirmed_by(Role::Client, &said));
    assert!(!seen(1, 2).is_confirmed_by(Role::Server, &said), "reflected");
    // Node 3 forwards: the client dialled it, the server was dialled by it.
    assert!(!seen(3, 2).is_confirmed_by(Role::Client, &seen(1, 3).confirmation(Role::Client)));
    let other = Binding { client_key: secure::announce([9; 32]), ..client };
    assert!(!other.is_confirmed_by(Role::Client, &said), "another exchange");
    assert!(!client.is_confirmed_by(Role::Client, &said[1..]));
    assert!(!client.is_confirmed_by(Role::Client, b""));
}

#[test]
fn file_offers_of_older_and_newer_peers() {
    let plain = FileOffer::new("a.bin", 5);
    assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"name":"a.bin","size":5}"#);
    assert_eq!(plain.resumable(), None);
    let hash = [0xcd; 32];
    let sha256 = Some(data_exchange::hash_to_hex(&hash));
    let offer = FileOffer { sha256, resume: true, ..plain.clone() };
    let json = serde_json::to_string(&offer).unwrap();
    assert_eq!(serde_json::from_str::<FileOffer>(&json).unwrap(), offer);
    assert_eq!(offer.resumable(), Some(hash));
    assert_eq!(FileOffer { resume: false, ..offer.clone() }.resumable(), None);
    assert_eq!(FileOffer { sha256: Some("zz".into()), ..offer }.resumable(), None);

    let have = Have { bytes: 1 << 40, sha256: hash };
    let text = BeginAnswer::accept(31, Some(have));
    // What a sender that knows no HAVE looks for.
    assert!(text.starts_with("ACK FILE-BEGIN 31 bytes"), "{text}");
    assert_eq!(BeginAnswer::parse(&text), BeginAnswer::Accepted(Some(have)));
    let old = BeginAnswer::accept(31, None);
    assert_eq!(old, "ACK FILE-BEGIN 31 bytes");
    assert_eq!(BeginAnswer::parse(&old), BeginAnswer::Accepted(None));
    for none in ["HAVE", "HAVE x", "HAVE 5", "HAVE 5 zz", "HAVE -1 00"] {
        let text = format!("{old} {none}");
        assert_eq!(BeginAnswer::parse(&text), BeginAnswer::Accepted(None), "{text}");
    }
    assert_eq!(BeginAnswer::parse("ACK UNKNOWN(20481) 31 bytes"), BeginAnswer::Unknown);
    let refused = "ERR FILE-BEGIN save failed: no space";
    assert_eq!(BeginAnswer::parse(refused), BeginAnswer::Refused(refused.to_owned()));
}

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9.é_-]{1,20}"
}

fn address() -> impl Strategy<Value = Address> {
    (any::<u16>(), any::<u32>()).prop_map(|(network, node)| Address { network, node: NodeId(node) })
}

fn request() -> impl Strategy<Value = Request> {
    (0..6u8, word(), address(), any::<u16>(), any::<u16>()).prop_map(
        |(which, name, address, network, port)| match which {
            0 => Request::QueryA { name },
            1 => Request::QueryN { name },
            2 => Request::QueryS { network, port },
            3 => Request::RegisterA { name, address },
            4 => Request::RegisterN { name, network },
            _ => Request::RegisterS(Service { name, address, network, port }),
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    let services = prop::collection::vec((word(), address(), any::<u16>()), 0..5);
    (0..5u8, word(), address(), any::<u16>(), services).prop_map(
        |(which, name, address, network, services)| match which {
            0 => Answer::Ok,
            1 => Answer::A { name, address },
            2 => Answer::N { name, network },
            3 => Answer::Error(name),
            _ => {
                let line = |(name, address, port)| ServiceLine { name, address, port };
                Answer::S(services.into_iter().map(line).collect())
            }
        },
    )
}

/// The bytes in pieces of these lengths, the rest at the end.
fn pieces(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut out = Vec::new();
    for cut in cuts {
        let (head, tail) = rest.split_at((*cut).min(rest.len()));
        out.push(head.to_vec());
        rest = tail;
    }
    out.push(rest.to_vec());
    out
}

proptest! {
    #[test]
    fn events_survive_any_cut(
        events in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
        cuts in prop::collection::vec(0usize..60, 0..20),
    ) {
        let events: Vec<Event> = events.into_iter().map(|(t, p)| Event::new(t, p)).collect();
        let wire: Vec<u8> = events.iter().flat_map(|e| e.encode().unwrap()).collect();
        let mut decoder = events::Decoder::default();
        let mut got = Vec::new();
        for piece in pieces(&wire, &cuts) {
            decoder.push(&piece);
            while let Some(event) = decoder.next_event().unwrap() {
                got.push(event);
            }
        }
        prop_assert_eq!(got, events);
        prop_assert!(!decoder.is_inside());
    }

    #[test]
    fn secure_frames_survive_any_cut(
        frames in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
        cuts in prop::collection::vec(0usize..60, 0..20),
    ) {
        let frame = |(counter, sealed)| Frame { nonce: Role::Client.nonce(counter), sealed };
        let frames: Vec<Frame> = frames.into_iter().map(frame).collect();
        let wire: Vec<u8> = frames.iter().flat_map(|f| f.encode().unwrap()).collect();
        let mut decoder = secure::Decoder::default();
        let mut got = Vec::new();
        for piece in pieces(&wire, &cuts) {
            decoder.push(&piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn nameserver_round_trips(request in request(), answer in answer()) {
        prop_assert_eq!(Request::parse(&request.to_string()), Ok(request));
        prop_assert_eq!(Answer::parse(&answer.to_string()), Ok(answer));
    }

    #[test]
    fn tasks_round_trip(id: [u8; 16], description in "\\PC{0,60}", time in 0i64..i64::MAX, unix in -60_000_000_000i64..250_000_000_000) {
        let task_id = TaskId::from_random(id);
        prop_assert_eq!(task_id.as_str().parse::<TaskId>(), Ok(task_id.clone()));
        let mut file = TaskFile::new(task_id.clone(), description.clone(), rfc3339::format(unix), "a", "b");
        file.time_cpu_ms = time;
        prop_assert_eq!(serde_json::from_str::<TaskFile>(&file.to_text()).unwrap(), file);
        let submit = Submit { task_id, task_description: description, from_addr: String::new(), to_addr: String::new() };
        let frame = tasks::frame(Kind::Submit, &submit).unwrap();
        prop_assert_eq!(tasks::parse::<Submit>(&frame[8..]).unwrap(), submit);
    }

    #[test]
    fn times_round_trip(unix in -62_000_000_000i64..250_000_000_000) {
        prop_assert_eq!(rfc3339::parse(&rfc3339::format(unix)), Some(unix * 1000));
    }

    #[test]
    fn rewards_are_bounded(cpu: i64, idle: i64, staged: i64) {
        let reward = tasks::reward(cpu, idle, staged);
        prop_assert!((1..=64).contains(&reward), "{}", reward);
    }

    /// Nothing panics, and a decoder holds no more than what was pushed.
    #[test]
    fn any_bytes_are_survived(
        data in prop::collection::vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..400),
        cuts in prop::collection::vec(0usize..60, 0..10),
    ) {
        let mut events = events::Decoder::default();
        let mut frames = secure::Decoder::default();
        for piece in pieces(&data, &cuts) {
            events.push(&piece);
            let mut taken = 0;
            while let Ok(Some(event)) = events.next_event() {
                taken += 6 + event.topic.len() + event.payload.len();
                let subscription = Subscription::new(&event);
                let _ = subscription.matches(&data);
                let _ = Dropped::from_event(&event);
            }
            prop_assert!(taken <= data.len());
            frames.push(&piece);
            let mut taken = 0;
            while let Ok(Some(frame)) = frames.next_frame() {
                taken += 16 + frame.sealed.len();
                let _ = NonceCheck::new(Role::Client).accept(&frame.nonce);
            }
            prop_assert!(taken <= data.len());
        }
        if let Some((head, rest)) = data.split_first_chunk() {
            let _ = tasks::FrameHeader::decode(*head);
            let _ = tasks::parse::<Submit>(rest);
            let _ = tasks::parse::<Results>(rest);
            let _ = tasks::parse::<TaskFile>(rest);
        }
        let _ = events::pattern_matches(&data, &data);
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,80}", words in "(QUERY|register|S|A|N|OK|ERR|ACK FILE-BEGIN|HAVE|[0-9]{1,7}| |\n|[a-f0-9:.]{1,20}){0,12}") {
        for text in [&text, &words] {
            if let Ok(request) = Request::parse(text) {
                prop_assert_eq!(Request::parse(&request.to_string()), Ok(request));
            }
            let _ = Answer::parse(text);
            let _ = BeginAnswer::parse(text);
            let _ = rfc3339::parse(text);
            let _ = text.parse::<TaskId>();
            if let Some(name) = tasks::file_name(text) {
                prop_assert!(!name.contains('/') && name != "..");
            }
            let _ = tasks::has_known_extension(text);
            let _ = data_exchange::hash_from_hex(text);
            let _ = serde_json::from_str::<Zone>(text);
        }
    }

    /// The mark changes nothing for topics that are no patterns.
    #[test]
    fn exact_subscriptions_agree(topic in "[a-c.]{0,6}", published in "[a-c.*>]{0,6}") {
        let options = events::Options { patterns: true, dropped: true, publish_only: false };
        let marked = subscription(&topic, Some(options));
        let plain = subscription(&topic, None);
        prop_assert_eq!(marked.matches(published.as_bytes()), plain.matches(published.as_bytes()));
    }

    #[test]
    fn file_answers_round_trip(len in 0usize..70_000, bytes: u64, sha256: [u8; 32]) {
        let have = Have { bytes, sha256 };
        prop_assert_eq!(BeginAnswer::parse(&BeginAnswer::accept(len, Some(have))), BeginAnswer::Accepted(Some(have)));
        prop_assert_eq!(data_exchange::hash_from_hex(&data_exchange::hash_to_hex(&sha256)), Some(sha256));
    }
}
