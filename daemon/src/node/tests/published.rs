//! Clients of the published protocol.

use super::*;

const GENERAL: ErrorCode = ErrorCode::GENERAL;

#[test]
fn dial_accept_and_data_both_ways() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.client().await, b.client().await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let data = pattern(8 << 20, 1);
        let hash = sha256(&data);
        let (_, got) =
            tokio::join!(send_all(&mut ca.writer, ia, &data), cb.receive(ib, data.len(), false),);
        assert_eq!(got, hash);
        let (_, got) =
            tokio::join!(send_all(&mut cb.writer, ib, &data), ca.receive(ia, data.len(), false),);
        assert_eq!(got, hash);
        let info = a.info().await;
        assert_eq!(info["connections"], 1);
        assert_eq!(info["authenticated_peers"], 1);
        let conn = &info["conn_list"][0];
        assert_eq!(conn["state"], "ESTABLISHED");
        assert!(conn["path_mtu"].as_u64().unwrap() >= 1232, "{conn}");
        for key in [
            "mss",
            "delivery_rate",
            "pacing_rate",
            "min_rtt_us",
            "rto_ms",
            "timeouts",
            "spurious",
            "gso_batch",
        ] {
            assert!(conn[key].is_number(), "{key}: {conn}");
        }
        assert!(conn["congestion"].is_string(), "{conn}");
        assert!(info["peer_list"][0]["offload"].is_boolean(), "{info}");
        let udp = &info["udp"];
        assert!(udp["segments"].as_u64().unwrap() >= udp["sends"].as_u64().unwrap(), "{udp}");
        assert!(udp["sends"].as_u64().unwrap() > 0, "{udp}");
        assert!(udp["receive_buffer"].as_u64().unwrap() > 0, "{udp}");
        let snapshot = a.handle.snapshot(10).await.unwrap();
        assert_eq!(snapshot.streams.states.get("ESTABLISHED"), Some(&1));
        assert_eq!(snapshot.busiest.len(), 1);
        assert!(snapshot.busiest[0].bytes_sent >= 8 << 20);
        assert!(a.handle.snapshot(0).await.unwrap().busiest.is_empty());
        assert_eq!(*a.plane.noted.borrow(), [b.id]);
    });
}

#[test]
fn close_is_told_twice_to_the_closer_and_once_to_the_peer() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.client().await, b.client().await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        ca.tell(&Command::Send { connection: ia, data: b"last words" }).await;
        ca.tell(&Command::Close { connection: ia }).await;
        ca.hears(Event::Closed { connection: ia }).await;
        ca.hears(Event::Closed { connection: ia }).await;
        cb.hears(Event::Receive { connection: ib, data: b"last words" }).await;
        cb.hears(Event::Closed { connection: ib }).await;
        for (client, connection) in [(&mut ca, ia), (&mut cb, ib)] {
            client.tell(&Command::Send { connection, data: b"late" }).await;
            client.hears_error(GENERAL, "send: connection not established").await;
        }
        // An answer, and nothing more, for what is not there.
        ca.tell(&Command::Close { connection: 999 }).await;
        ca.tell(&Command::Send { connection: 999, data: b"x" }).await;
        ca.hears(Event::Closed { connection: 999 }).await;
        ca.hears_error(GENERAL, "connection 999 not found").await;
    });
}

#[test]
fn another_client_may_close_by_id() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut other) = (a.client().await, a.client().await);
        let id = ca.dial(b.at(7)).await;
        other.tell(&Command::Close { connection: id }).await;
        other.hears(Event::Closed { connection: id }).await;
        ca.hears(Event::Closed { connection: id }).await;
    });
}

#[test]
fn errors_have_the_published_texts() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        let table: [(&[u8], &str); 14] = [
            (&[0x55], "unknown command: 0x55"),
            (&[0x01], "bind: missing port"),
            (&[0x03, 0, 0], "dial: missing address/port"),
            (&[0x06, 1], "send: missing conn_id"),
            (&[0x08, 1, 2], "close: missing conn_id"),
            (&[0x0B], "sendto: missing address/port"),
            (&[0x0F], "handshake: missing sub-command"),
            (&[0x0F, 0x77], "handshake: unknown sub-command 0x77"),
            (&[0x0F, 1], "handshake request: missing node_id"),
            (&[0x11], "resolve_hostname: missing hostname"),
            (&[0x15], "set_visibility: missing value"),
            (&[0x1D], "set_task_exec: missing value"),
            (&[0x19, b'['], "set_tags: invalid JSON: EOF while parsing a list at line 1 column 1"),
            (b"\x19[\"a\",\"b\",\"c\",\"d\"]", "set_tags: maximum 3 tags allowed"),
        ];
        for (message, text) in table {
            let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(message);
            client.writer.raw(&bytes).await;
            client.hears_error(GENERAL, text).await;
        }
        client.tell(&Command::ResolveHostname("nobody")).await;
        client.hears_error(GENERAL, "resolve_hostname: registry: request failed").await;
        client.tell(&Command::Dial { to: b.at(999) }).await;
        client.hears_error(GENERAL, "connection refused").await;
        let nobody = Address::backbone(NodeId(77)).port(1);
        client.tell(&Command::Dial { to: nobody }).await;
        client.hears_error(GENERAL, "resolve node 77: registry: request failed").await;
        let everybody = Address::backbone(NodeId::BROADCAST).port(1);
        client.tell(&Command::SendDatagram { to: everybody, data: b"x" }).await;
        let text = "sendto: broadcast is not available — custom networks are WIP";
        client.hears_error(GENERAL, text).await;
        let elsewhere = Address { network: 6, node: NodeId::BROADCAST }.port(1);
        client.tell(&Command::SendDatagram { to: elsewhere, data: b"x" }).await;
        client.hears_error(GENERAL, "sendto: this node is not a member of network 6").await;
        let in_five = Address { network: 5, node: NodeId::BROADCAST }.port(1);
        client.tell(&Command::SendDatagram { to: in_five, data: b"" }).await;
        let text = "sendto: the members of network 5 are not known";
        client.hears_error(GENERAL, text).await;
        client.tell(&Command::Dial { to: Address { network: 5, node: b.id }.port(7) }).await;
        client.hears_error(GENERAL, "dial: this node is not a member of network 5").await;
        client.bind(1234).await;
        client.tell(&Command::Bind { port: 1234 }).await;
        client.hears_error(GENERAL, "port 1234 already bound").await;
    });
}

#[test]
fn a_dial_holds_up_nothing_else_and_answers_keep_their_order() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        client.tell(&Command::ResolveHostname("slow")).await;
        client.tell(&Command::ResolveHostname("fast")).await;
        client.tell(&Command::Dial { to: b.at(7) }).await;
        client.tell(&Command::Info).await;
        let mut codes = Vec::new();
        let mut names = Vec::new();
        for _ in 0..4 {
            let message = client.hear().await;
            codes.push(message.0[0]);
            if let Event::Json { code: 0x12, body } = message.event() {
                let value: Value = serde_json::from_slice(body).unwrap();
                names.push(value["hostname"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(codes[0], 0x0E, "info waits for nothing");
        assert_eq!(names, ["slow", "fast"]);
        assert!(codes.contains(&0x04));
    });
}

#[test]
fn a_reader_that_stops_holds_up_its_writer_and_loses_nothing() {
    run_test(async {
        let config = Config { send_buffer: 1 << 20, receive_buffer: 1 << 20, ..Config::default() };
        let (a, b) = pair_with(config).await;
        let (mut ca, mut cb) = (a.client().await, b.client().await);
        cb.bind(1000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let total = 48 << 20;
        let data = Rc::new(pattern(total, 3));
        let sent = Rc::new(RefCell::new(0));
        let writing = {
            let (data, sent) = (Rc::clone(&data), Rc::clone(&sent));
            tokio::task::spawn_local(async move {
                for part in data.chunks(60_000) {
                    let mut bytes = Vec::new();
                    Command::Send { connection: ia, data: part }.encode(&mut bytes);
                    ca.writer.writer.write_all(&bytes).await.unwrap();
                    *sent.borrow_mut() += part.len();
                }
                ca
            })
        };
        // Nobody reads at the far end: the writer has to come to a halt.
        let mut last = usize::MAX;
        while last != *sent.borrow() {
            last = *sent.borrow();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(last < 16 << 20, "{last} bytes were taken from a writer nobody reads");
        // The node is not held up.
        assert_eq!(a.info().await["connections"], 1);
        let hash = cb.receive(ib, total, false).await;
        assert_eq!(hash, sha256(&data));
        writing.await.unwrap();
    });
}

#[test]
fn datagrams_reach_every_client() {
    run_test(async {
        let (a, b) = pair().await;
        let mut sender = a.client().await;
        let (mut one, mut two) = (b.client().await, b.hello_client(1).await);
        // An answer shows that the first is connected.
        one.tell(&Command::Close { connection: 1 }).await;
        one.hears(Event::Closed { connection: 1 }).await;
        sender.tell(&Command::SendDatagram { to: b.at(4000), data: b"hello all" }).await;
        for client in [&mut one, &mut two] {
            let message = client.hear().await;
            let Event::ReceiveDatagram { source, destination_port, data } = message.event() else {
                panic!("{:?}", message.event())
            };
            assert_eq!(source.address.node, a.id);
            assert_eq!((destination_port, data), (4000, b"hello all".as_slice()));
        }
    });
}

#[test]
fn what_a_client_wrote_before_it_left_is_delivered_and_its_port_is_free() {
    run_test(async {
        let (a, b) = pair().await;
        let mut cb = b.client().await;
        cb.bind(1000).await;
        let data = pattern(3 << 20, 9);
        let mut ca = a.client().await;
        ca.bind(2000).await;
        let ia = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        let hash = sha256(&data);
        let sending = async {
            send_all(&mut ca.writer, ia, &data).await;
            drop(ca);
        };
        let (_, got) = tokio::join!(sending, cb.receive(ib, 3 << 20, false));
        assert_eq!(got, hash);
        cb.hears(Event::Closed { connection: ib }).await;
        let mut next = a.client().await;
        next.bind(2000).await;
    });
}
