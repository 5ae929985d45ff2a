//! Clients that said hello: tags, credit, half-close, codes.

use pilot_core::CongestionControl;
use pilot_wire::ipc::{Congestion, Setting};

use super::*;

const CREDIT: u32 = 256 << 10;

/// Sends within the credit; gives the connection's events that are not credit.
async fn send_with_credit(client: &mut TestClient, connection: u32, data: &[u8]) -> Vec<Message> {
    let mut credit = client.first_credit as usize;
    let mut others = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        if credit == 0 {
            let message = client.hear().await;
            match message.event() {
                Event::Credit { connection: c, bytes } if c == connection => {
                    credit += bytes as usize;
                }
                _ => others.push(message),
            }
            continue;
        }
        let (now, later) = rest.split_at(rest.len().min(credit).min(100_000));
        client.tell(&Command::Send { connection, data: now }).await;
        credit -= now.len();
        rest = later;
    }
    others
}

#[test]
fn data_both_ways_with_credit_and_half_close() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.hello_client(CREDIT).await, b.hello_client(CREDIT).await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let data = pattern(8 << 20, 5);
        let hash = sha256(&data);

        let forth = async {
            send_with_credit(&mut ca, ia, &data).await;
            ca.tell(&Command::Shutdown { connection: ia }).await;
        };
        let (_, got) = tokio::join!(forth, cb.receive(ib, data.len(), true));
        assert_eq!(got, hash);
        cb.hears(Event::End { connection: ib }).await;

        // The other half is still open.
        let back = async {
            send_with_credit(&mut cb, ib, &data).await;
            cb.tell(&Command::Shutdown { connection: ib }).await;
        };
        let (_, got) = tokio::join!(back, ca.receive(ia, data.len(), true));
        assert_eq!(got, hash);
        loop {
            let message = ca.hear().await;
            match message.event() {
                Event::Credit { .. } => {}
                Event::End { connection } => {
                    assert_eq!(connection, ia);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        ca.hears(Event::Closed { connection: ia }).await;
        loop {
            let message = cb.hear().await;
            match message.event() {
                Event::Credit { .. } => {}
                Event::Closed { connection } => {
                    assert_eq!(connection, ib);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_connection_gets_another_congestion_control_and_the_rest_keep_theirs() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut other) = (a.hello_client(CREDIT).await, a.hello_client(CREDIT).await);
        let changed = ca.dial(b.at(7)).await;
        let kept = ca.dial(b.at(7)).await;
        let foreign = other.dial(b.at(7)).await;
        let set = |connection, congestion| {
            let setting = Setting::Congestion(congestion);
            Command::Set { connection, setting }
        };
        ca.tell(&set(changed, Congestion::NewReno)).await;
        ca.tell(&set(changed, Congestion::Bbr)).await;
        // Another client's connection, and none: without effect.
        ca.tell(&set(foreign, Congestion::Bbr)).await;
        ca.tell(&set(4242, Congestion::Bbr)).await;
        // What is not known is refused, and the connection goes on.
        let mut unknown = Vec::new();
        set(changed, Congestion::Cubic).encode(&mut unknown);
        *unknown.last_mut().unwrap() = 77;
        ca.writer.writer.write_all(&unknown).await.unwrap();
        let text = "set: unknown congestion control 77; 1 is cubic, 2 newreno, 3 bbr";
        ca.hears(Event::Error { code: ErrorCode::INVALID_ARGUMENT, text }).await;
        let info = a.info().await;
        let of = |id: u32| {
            let list = info["conn_list"].as_array().unwrap();
            list.iter().find(|c| c["id"] == id).unwrap()["congestion"].clone()
        };
        assert_eq!(
            (of(changed), of(kept), of(foreign)),
            ("bbr".into(), "cubic".into(), "cubic".into())
        );
        let data = pattern(CREDIT as usize, 3);
        send_with_credit(&mut ca, changed, &data).await;
        assert_eq!(ca.receive(changed, data.len(), false).await, sha256(&data));
    });
}

#[test]
fn a_node_starts_its_connections_with_the_configured_congestion_control() {
    run_test(async {
        let config = Config { congestion: CongestionControl::Bbr, ..Config::default() };
        let (a, b) = pair_with(config).await;
        let mut ca = a.client().await;
        ca.dial(b.at(7)).await;
        assert_eq!(a.info().await["conn_list"][0]["congestion"], "bbr");
        assert_eq!(b.info().await["conn_list"][0]["congestion"], "bbr");
    });
}

#[test]
fn no_more_is_passed_than_the_client_has_credit_for() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.hello_client(CREDIT).await, b.hello_client(50_000).await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let data = pattern(200_000, 6);
        ca.tell(&Command::Send { connection: ia, data: &data }).await;
        let first = cb.receive(ib, 50_000, false).await;
        assert_eq!(first, sha256(&data[..50_000]));
        // An answer comes, data does not.
        cb.tell(&Command::Close { connection: 4242 }).await;
        cb.hears(Event::Closed { connection: 4242 }).await;
        cb.tell(&Command::Credit { connection: ib, bytes: 1 }).await;
        cb.hears(Event::Receive { connection: ib, data: &data[50_000..50_001] }).await;
        cb.tell(&Command::Credit { connection: ib, bytes: 1 << 20 }).await;
        let rest = cb.receive(ib, 149_999, false).await;
        assert_eq!(rest, sha256(&data[50_001..]));
    });
}

#[test]
fn more_than_the_credit_breaks_the_connection_and_says_why() {
    run_test(async {
        let config = Config { send_buffer: 128 << 10, ..Config::default() };
        let (a, b) = pair_with(config).await;
        let (mut ca, mut cb) = (a.hello_client(0).await, b.hello_client(0).await);
        assert_eq!(ca.send_credit, 64 << 10);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        send_all(&mut ca.writer, ia, &pattern(1 << 20, 1)).await;
        loop {
            let message = ca.hear().await;
            match message.event() {
                Event::Credit { .. } => {}
                Event::Reset { connection, code, text } => {
                    assert_eq!((connection, code), (ia, ErrorCode::INVALID_ARGUMENT));
                    assert!(text.contains("credit"), "{text}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        ca.hears(Event::Closed { connection: ia }).await;
        let message = cb.hear().await;
        assert!(
            matches!(message.event(), Event::Reset { connection, .. } if connection == ib),
            "{:?}",
            message.event()
        );
        cb.hears(Event::Closed { connection: ib }).await;
    });
}

#[test]
fn tagged_requests_overlap_and_errors_have_codes() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.hello_client(CREDIT).await;
        let nobody = Address::backbone(NodeId(77)).port(1);
        let requests = [
            (1, Command::ResolveHostname("slow")),
            (2, Command::ResolveHostname("fast")),
            (3, Command::Dial { to: b.at(7) }),
            (4, Command::Dial { to: b.at(999) }),
            (5, Command::Dial { to: nobody }),
            (6, Command::Unbind { port: 5 }),
            (7, Command::Shutdown { connection: 1 }),
        ];
        for (id, command) in requests {
            client.tell(&Command::Request { id, command: &body(&command) }).await;
        }
        let mut order = Vec::new();
        while order.len() < requests.len() {
            let message = client.hear().await;
            if matches!(message.event(), Event::Credit { .. }) {
                continue;
            }
            let Event::Reply { id, event } = message.event() else { panic!() };
            order.push(id);
            let event = Event::parse(event).unwrap();
            let code = match event {
                Event::Error { code, .. } => code.0,
                _ => 0,
            };
            let expected = match id {
                4 => ErrorCode::REFUSED.0,
                5 | 6 => ErrorCode::NOT_FOUND.0,
                7 => ErrorCode::INVALID_ARGUMENT.0,
                _ => 0,
            };
            assert_eq!(code, expected, "{id} {event:?}");
        }
        assert_eq!(*order.last().unwrap(), 1, "the slow one comes last: {order:?}");
        // Half a hello, or a second one, changes nothing.
        client.tell(&Command::Hello { version: 1, features: Features(0), receive_credit: 0 }).await;
        client
            .hears_error(ErrorCode::INVALID_ARGUMENT, "hello: must be the first message, once")
            .await;
    });
}

#[test]
fn a_port_can_be_given_back() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.hello_client(CREDIT).await, b.hello_client(CREDIT).await);
        cb.bind(1000).await;
        cb.tell(&Command::Unbind { port: 1000 }).await;
        cb.hears(Event::UnbindOk { port: 1000 }).await;
        ca.tell(&Command::Dial { to: b.at(1000) }).await;
        ca.hears_error(ErrorCode::REFUSED, "connection refused").await;
        cb.bind(1000).await;
        ca.dial(b.at(1000)).await;
    });
}

#[test]
fn many_streams_of_one_client_share_it() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.hello_client(CREDIT).await;
        let mut streams = HashMap::new();
        for i in 0..50 {
            let id = client.dial(b.at(7)).await;
            streams.insert(id, (pattern(100_000, i), 0));
        }
        for (id, (data, _)) in &streams {
            client.tell(&Command::Send { connection: *id, data }).await;
        }
        let mut open = streams.len();
        while open > 0 {
            let message = client.hear().await;
            match message.event() {
                Event::Receive { connection, data } => {
                    let (expected, got) = streams.get_mut(&connection).unwrap();
                    assert_eq!(&expected[*got..*got + data.len()], data);
                    *got += data.len();
                    if *got == expected.len() {
                        open -= 1;
                    }
                }
                Event::Credit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_graceful_end_delivers_what_was_written() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.hello_client(CREDIT).await, b.hello_client(CREDIT).await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let data = pattern(2 << 20, 8);
        send_all(&mut ca.writer, ia, &data).await;
        let reading = async {
            let hash = cb.receive(ib, data.len(), true).await;
            assert_eq!(hash, sha256(&data));
            cb.hears(Event::End { connection: ib }).await;
            cb.tell(&Command::Close { connection: ib }).await;
            // Answered, so that what came before it is done.
            cb.hears(Event::Closed { connection: ib }).await;
        };
        let ending = async {
            // Close is answered once the data before it has been taken.
            ca.tell(&Command::Close { connection: 0 }).await;
            loop {
                if let Event::Closed { connection: 0 } = ca.hear().await.event() {
                    break;
                }
            }
            a.end(Duration::from_secs(10)).await;
        };
        tokio::join!(reading, ending);
        assert!(!a.socket.exists());
        let refused = a.handle.dial(b.at(7)).await.err();
        assert_eq!(refused, Some(DialFailure::ShuttingDown));
    });
}
