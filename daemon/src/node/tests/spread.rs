//! A node with several workers behind its driver socket: for a client it is
//! one daemon.

use super::*;
use pilot_wire::ipc::MAX_MESSAGE;
use pilot_wire::tunnel::MAGIC_SEALED;

/// A node with `workers` workers and a peer for each of them, all trusted.
async fn star(workers: usize, config: Config) -> (TestNode, Vec<TestNode>) {
    star_sorted(workers, workers, config).await
}

/// The same with a kernel that sorts datagrams for fewer workers.
async fn star_sorted(workers: usize, sorted: usize, config: Config) -> (TestNode, Vec<TestNode>) {
    let directory = Rc::new(Directory::default());
    let (spread, sorted) = (Spread::over(workers), Spread::over(sorted));
    let hub = TestNode::start_spread(100, &directory, config.clone(), spread, sorted).await;
    let mut peers = Vec::new();
    let one = Spread::over(1);
    for number in 1..=workers as u32 {
        let peer = TestNode::start_spread(number, &directory, config.clone(), one, one).await;
        hub.handle.set_permission(peer.id, Permission::Trusted).await;
        peer.handle.set_permission(hub.id, Permission::Trusted).await;
        peers.push(peer);
    }
    (hub, peers)
}

/// Asks `info` until `ready` holds for it.
async fn info_when(node: &TestNode, ready: impl Fn(&Value) -> bool) -> Value {
    let wait = async {
        loop {
            let info = node.info().await;
            if ready(&info) {
                return info;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(STEP, wait).await.expect("info never says what it should")
}

#[test]
fn data_goes_both_ways_between_a_client_and_peers_of_every_worker() {
    run_test(async {
        let (hub, peers) = star(3, Config::default()).await;
        let mut client = hub.client().await;
        let mut others = Vec::new();
        for peer in &peers {
            let mut other = peer.client().await;
            other.bind(1000).await;
            let id = client.dial(peer.at(1000)).await;
            assert_eq!(id % 3, peer.id.0 % 3, "the worker is in the ID");
            let theirs = other.accept(1000).await;
            let data = pattern(3 << 20, id);
            let forth = send_all(&mut client.writer, id, &data);
            let (_, got) = tokio::join!(forth, other.receive(theirs, data.len(), false));
            assert_eq!(got, sha256(&data));
            let back = send_all(&mut other.writer, theirs, &data);
            let (_, got) = tokio::join!(back, client.receive(id, data.len(), false));
            assert_eq!(got, sha256(&data));
            others.push(other);
        }
        let info = hub.info().await;
        assert_eq!((&info["connections"], &info["peers"]), (&json!(3), &json!(3)));
        for peer in info["peer_list"].as_array().unwrap() {
            let number = peer["node_id"].as_u64().unwrap();
            assert_eq!(peer["worker"].as_u64().unwrap(), number % 3, "{peer}");
        }
        let each = info["workers"].as_array().unwrap();
        assert!(each.iter().all(|w| w["peers"] == 1 && w["connections"] == 1), "{each:?}");
        assert_eq!(info["udp"]["strayed"], 0, "the kernel sorts them");
    });
}

#[test]
fn peers_of_every_worker_reach_a_port_that_is_bound_once() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let mut client = hub.client().await;
        client.bind(1000).await;
        let mut second = hub.client().await;
        second.tell(&Command::Bind { port: 1000 }).await;
        second.hears_error(ErrorCode::GENERAL, "port 1000 already bound").await;
        // A service has it in all workers.
        second.tell(&Command::Bind { port: 7 }).await;
        second.hears_error(ErrorCode::GENERAL, "port 7 already bound").await;
        let mut others = Vec::new();
        for peer in &peers {
            let mut other = peer.client().await;
            let theirs = other.dial(hub.at(1000)).await;
            let id = client.accept(1000).await;
            other.tell(&Command::Send { connection: theirs, data: b"hello" }).await;
            client.hears(Event::Receive { connection: id, data: b"hello" }).await;
            others.push(other);
        }
        // The port is free again once its client has gone from every worker.
        drop(client);
        let wait = async {
            loop {
                second.tell(&Command::Bind { port: 1000 }).await;
                if (second.hear().await).event() == (Event::BindOk { port: 1000 }) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(STEP, wait).await.unwrap();
        second.tell(&Command::Unbind { port: 1000 }).await;
        second.hears(Event::UnbindOk { port: 1000 }).await;
        second.bind(1000).await;
    });
}

#[test]
fn answers_of_one_kind_keep_the_order_of_requests_over_workers() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let mut other = peers[0].client().await;
        other.bind(1000).await;
        let mut client = hub.client().await;
        // Nobody is there: this one fails late, by the first worker.
        let nobody = Address::backbone(NodeId(200)).port(1);
        client.tell(&Command::Dial { to: peers[1].at(2000) }).await;
        client.tell(&Command::Dial { to: peers[0].at(1000) }).await;
        client.tell(&Command::Dial { to: nobody }).await;
        client.tell(&Command::Info).await;
        let mut answers = Vec::new();
        while answers.len() < 4 {
            let message = client.hear().await;
            answers.push(match message.event() {
                Event::Error { text, .. } => text.to_owned(),
                Event::DialOk { .. } => "open".to_owned(),
                Event::Json { .. } => continue_with_info(&message),
                other => panic!("{other:?}"),
            });
        }
        answers.retain(|a| a != "info");
        let failed = "resolve node 200: registry: request failed";
        assert_eq!(answers, ["connection refused", "open", failed]);
    });
}

fn continue_with_info(message: &Message) -> String {
    let Event::Json { code: 0x0E, body } = message.event() else { panic!() };
    let info: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(info["node_id"], 100);
    "info".to_owned()
}

#[test]
fn tags_credit_and_codes_work_through_the_router() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let mut client = hub.hello_client(1 << 20).await;
        let mut others = Vec::new();
        for (tag, peer) in peers.iter().enumerate() {
            let mut other = peer.client().await;
            other.bind(1000).await;
            let command = body(&Command::Dial { to: peer.at(1000) });
            client.tell(&Command::Request { id: tag as u32, command: &command }).await;
            let message = client.hear().await;
            let Event::Reply { id, event } = message.event() else { panic!("{message:?}") };
            let Ok(Event::DialOk { connection }) = Event::parse(event) else { panic!() };
            assert_eq!(id, tag as u32);
            let theirs = other.accept(1000).await;
            let data = pattern(2 << 20, 9);
            let send = send_all(&mut other.writer, theirs, &data);
            let (_, got) = tokio::join!(send, client.receive(connection, data.len(), true));
            assert_eq!(got, sha256(&data));
            others.push(other);
        }
        // The same tag twice at once is the client's affair; both are answered.
        for port in [2000, 2000] {
            let command = body(&Command::Bind { port });
            client.tell(&Command::Request { id: 5, command: &command }).await;
        }
        let mut codes = Vec::new();
        for _ in 0..2 {
            let message = client.hear().await;
            let Event::Reply { id: 5, event } = message.event() else { panic!("{message:?}") };
            codes.push(match Event::parse(event) {
                Ok(Event::BindOk { port: 2000 }) => None,
                Ok(Event::Error { code, .. }) => Some(code),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(codes, [None, Some(ErrorCode::ALREADY_EXISTS)]);
        client
            .tell(&Command::Hello { version: 1, features: Features::ALL, receive_credit: 1 })
            .await;
        client
            .hears_error(ErrorCode::INVALID_ARGUMENT, "hello: must be the first message, once")
            .await;
    });
}

#[test]
fn a_client_that_goes_while_it_dials_leaves_nothing_behind() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        for peer in &peers {
            let mut client = hub.client().await;
            client.tell(&Command::Dial { to: peer.at(1000) }).await;
            client.tell(&Command::Dial { to: peer.at(7) }).await;
        }
        info_when(&hub, |info| info["clients"] == 1 && info["connections"] == 0).await;
    });
}

#[test]
fn what_a_client_wrote_before_it_went_still_arrives() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        for peer in &peers {
            let mut other = peer.client().await;
            other.bind(1000).await;
            let mut client = hub.client().await;
            let id = client.dial(peer.at(1000)).await;
            let theirs = other.accept(1000).await;
            let data = pattern(1 << 20, 3);
            let sends = async {
                send_all(&mut client.writer, id, &data).await;
                drop(client);
            };
            let (_, got) = tokio::join!(sends, other.receive(theirs, data.len(), false));
            assert_eq!(got, sha256(&data));
            other.hears(Event::Closed { connection: theirs }).await;
        }
    });
}

#[test]
fn a_client_that_does_not_read_stops_nobody_else() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let mut slow = hub.client().await;
        let mut others = Vec::new();
        for peer in &peers {
            let mut other = peer.client().await;
            other.bind(1000).await;
            slow.dial(peer.at(1000)).await;
            let theirs = other.accept(1000).await;
            others.push((other, theirs));
        }
        let mut writers = Vec::new();
        for (mut other, theirs) in others {
            // Far more than all buffers hold.
            let data = pattern(32 << 20, 4);
            writers.push(tokio::task::spawn_local(async move {
                for part in data.chunks(60_000) {
                    let send = Command::Send { connection: theirs, data: part };
                    let mut bytes = Vec::new();
                    send.encode(&mut bytes);
                    // Without the limit of a step: it is to wait.
                    let _ = other.writer.writer.write_all(&bytes).await;
                }
            }));
        }
        let mut client = hub.client().await;
        for peer in &peers {
            let id = client.dial(peer.at(7)).await;
            for data in pattern(2 << 20, 5).chunks(60_000) {
                client.tell(&Command::Send { connection: id, data }).await;
                assert_eq!(client.receive(id, data.len(), false).await, sha256(data));
            }
        }
        assert!(writers.iter().all(|w| !w.is_finished()), "nobody reads what they write");
        writers.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn a_client_that_breaks_the_protocol_is_thrown_out_alone() {
    run_test(async {
        let (hub, _peers) = star(2, Config::default()).await;
        let mut client = hub.client().await;
        let mut villain = hub.client().await;
        villain.writer.raw(&(MAX_MESSAGE as u32 + 1).to_be_bytes()).await;
        assert!(villain.reader.next().await.is_none());
        client.writer.raw(&[0, 0, 0, 1, 0x55]).await;
        client.hears_error(ErrorCode::GENERAL, "unknown command: 0x55").await;
        client.writer.raw(&[0, 0, 0, 0]).await;
        client.writer.raw(&[0, 0, 0, 2, 0x06, 0]).await;
        client.hears_error(ErrorCode::GENERAL, "send: missing conn_id").await;
    });
}

#[test]
fn every_worker_ends_and_its_clients_are_told() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let mut client = hub.client().await;
        let mut others = Vec::new();
        for peer in &peers {
            let mut other = peer.client().await;
            other.bind(1000).await;
            let id = client.dial(peer.at(1000)).await;
            let theirs = other.accept(1000).await;
            client.tell(&Command::Send { connection: id, data: b"the last words" }).await;
            others.push((other, theirs));
        }
        let ended = hub.end(Duration::from_secs(10));
        let told = async {
            for (other, theirs) in &mut others {
                let connection = *theirs;
                other.hears(Event::Receive { connection, data: b"the last words" }).await;
                other.hears(Event::Closed { connection }).await;
            }
        };
        tokio::join!(ended, told);
        // Both connections are over, then the daemon hangs up.
        let mut closed = 0;
        while let Some(message) = client.reader.next().await {
            closed += u32::from(matches!(message.event(), Event::Closed { .. }));
        }
        assert_eq!(closed, 2);
    });
}

#[test]
fn datagrams_at_the_wrong_socket_still_reach_their_worker() {
    run_test(async {
        // Everything comes to the first worker's socket.
        let (hub, peers) = star_sorted(2, 1, Config::default()).await;
        let mut client = hub.client().await;
        for peer in &peers {
            let id = client.dial(peer.at(7)).await;
            for data in pattern(1 << 20, 6).chunks(60_000) {
                client.tell(&Command::Send { connection: id, data }).await;
                assert_eq!(client.receive(id, data.len(), false).await, sha256(data));
            }
        }
        let info = hub.info().await;
        let strayed = |worker: usize| info["workers"][worker]["strayed"].as_u64().unwrap();
        assert!(strayed(0) > 0 && strayed(1) == 0, "{info}");
        assert_eq!(info["udp"]["strayed"].as_u64().unwrap(), strayed(0));
    });
}

#[test]
fn a_forged_frame_is_counted_by_the_worker_it_names() {
    run_test(async {
        let (hub, peers) = star(2, Config::default()).await;
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for peer in &peers {
            let forged = [&MAGIC_SEALED[..], &peer.id.0.to_be_bytes(), &[0; 40]].concat();
            socket.send_to(&forged, hub.udp).await.unwrap();
        }
        let counted = |info: &Value| info["refused"]["undecryptable"] == 2;
        let info = info_when(&hub, counted).await;
        assert_eq!(info["udp"]["strayed"], 0);
    });
}
