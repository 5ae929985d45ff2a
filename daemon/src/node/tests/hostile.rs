//! Clients and datagrams that are wrong, in thousands of seeded ways, against
//! a running node; afterwards it still serves.

use pilot_wire::ipc::{Congestion, Setting};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Messages that mean something, to be damaged.
fn sound(to: SocketAddress) -> Vec<Vec<u8>> {
    let inner = body(&Command::Dial { to });
    let commands = [
        Command::Bind { port: 4000 },
        Command::Unbind { port: 4000 },
        Command::Dial { to },
        Command::Send { connection: 1, data: &[7; 300] },
        Command::Close { connection: 2 },
        Command::SendDatagram { to, data: b"datagram" },
        Command::Info,
        Command::ResolveHostname("name"),
        Command::SetTags(b"[\"a\"]"),
        Command::SetWebhook("http://127.0.0.1/"),
        Command::Hello { version: 1, features: Features::ALL, receive_credit: 1 << 20 },
        Command::Request { id: 5, command: &inner },
        Command::Credit { connection: 1, bytes: u32::MAX },
        Command::Shutdown { connection: 1 },
        Command::LaneTake { connection: 1 },
        Command::LaneBegin { connection: 1 },
        Command::LaneKick { connection: 1 },
        Command::Set { connection: 1, setting: Setting::NoDelay(true) },
        Command::Set { connection: 1, setting: Setting::Congestion(Congestion::Bbr) },
    ];
    let encode = |command: &Command<'_>| {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        bytes
    };
    commands.iter().map(encode).collect()
}

fn damage(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len().max(1));
        match rng.random_range(0..5) {
            0 if !bytes.is_empty() => bytes[at] = rng.random(),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), rng.random()),
            _ => bytes.extend((0..rng.random_range(0..40)).map(|_| rng.random::<u8>())),
        }
    }
}

async fn still_serves(a: &TestNode, b: &TestNode) {
    let mut client = a.client().await;
    let id = client.dial(b.at(7)).await;
    client.tell(&Command::Send { connection: id, data: b"still there?" }).await;
    let mut got = Vec::new();
    while got.len() < 12 {
        let message = client.hear().await;
        match message.event() {
            Event::Receive { connection, data } if connection == id => got.extend_from_slice(data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, b"still there?");
}

#[test]
fn damaged_messages_harm_nobody_else() {
    run_test(async {
        let (a, b) = pair().await;
        let messages = sound(b.at(7));
        let mut damaged = 0;
        for seed in 0..400u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let stream = UnixStream::connect(&a.socket).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let writing = async {
                for _ in 0..20 {
                    let mut bytes = messages[rng.random_range(0..messages.len())].clone();
                    if rng.random_range(0..4) > 0 {
                        damage(&mut bytes, &mut rng);
                        damaged += 1;
                    }
                    // The daemon may have hung up on what came before.
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                drop(writer);
            };
            let reading = async {
                let mut sink = Vec::new();
                // Whatever it says: it must end once the client has.
                let _ = reader.read_to_end(&mut sink).await;
            };
            let both = async { tokio::join!(writing, reading) };
            tokio::time::timeout(STEP, both).await.unwrap_or_else(|_| panic!("seed {seed} hangs"));
        }
        assert!(damaged > 5000, "{damaged}");
        still_serves(&a, &b).await;
        let info = a.info().await;
        assert_eq!(info["clients"], 1, "clients that left are forgotten");
        assert_eq!(info["ports"], 1, "so are their ports");
    });
}

#[test]
fn an_oversized_message_ends_only_its_client() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        client.writer.raw(&[0, 0x10, 0, 1, 0x06, 0, 0, 0, 1]).await;
        assert!(client.reader.next().await.is_none());
        still_serves(&a, &b).await;
    });
}

#[test]
fn damaged_datagrams_are_counted_and_dropped() {
    run_test(async {
        let (a, b) = pair().await;
        still_serves(&a, &b).await;
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..5000 {
            let mut datagram = match round % 6 {
                0 => b"PILT".to_vec(),
                1 => b"PILS".to_vec(),
                2 => b"PILK".to_vec(),
                3 => b"PILA".to_vec(),
                4 => b"PILP".to_vec(),
                _ => vec![rng.random_range(0..10)],
            };
            let len = rng.random_range(0..300);
            datagram.extend((0..len).map(|_| rng.random::<u8>()));
            damage(&mut datagram, &mut rng);
            socket.send_to(&datagram, b.udp).await.unwrap();
            if round % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        still_serves(&a, &b).await;
        let refused = b.info().await["refused"].clone();
        let total: u64 = refused.as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
        assert!(total > 1000, "{refused}");
    });
}

#[test]
fn a_client_that_never_reads_is_bounded_and_ended() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        // Every answer is a few hundred bytes; nobody reads them.
        let mut infos = Vec::new();
        for _ in 0..1000 {
            Command::Info.encode(&mut infos);
        }
        let mut stuck = false;
        for _ in 0..1000 {
            let write = client.writer.writer.write_all(&infos);
            match tokio::time::timeout(Duration::from_secs(2), write).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    stuck = true;
                    break;
                }
            }
        }
        assert!(stuck, "a client that does not read must not be read from for ever");
        still_serves(&a, &b).await;
    });
}

#[test]
fn a_client_too_many_is_hung_up_on() {
    run_test(async {
        let (a, b) = pair().await;
        let mut clients = Vec::new();
        for _ in 0..64 {
            let mut client = a.client().await;
            client.tell(&Command::Close { connection: 1 }).await;
            client.hears(Event::Closed { connection: 1 }).await;
            clients.push(client);
        }
        assert!(a.client().await.reader.next().await.is_none());
        let id = clients[0].dial(b.at(7)).await;
        assert!(id > 0);
        clients.truncate(1);
        loop {
            clients[0].tell(&Command::Info).await;
            let message = clients[0].hear().await;
            let Event::Json { body, .. } = message.event() else { panic!() };
            let info: Value = serde_json::from_slice(body).unwrap();
            if info["clients"] == 1 {
                break;
            }
        }
        still_serves(&a, &b).await;
    });
}

#[test]
fn what_a_client_wrote_before_it_went_is_delivered() {
    run_test(async {
        const SENDS: usize = 2000;
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.hello_client(1 << 20).await, b.hello_client(1 << 20).await);
        cb.bind(1000).await;
        let id = ca.dial(b.at(1000)).await;
        let ib = cb.accept(1000).await;
        // An answer that nobody reads, and more than is read in one turn.
        let mut bytes = Vec::new();
        Command::Info.encode(&mut bytes);
        let data = pattern(SENDS * 40, 9);
        for part in data.chunks(40) {
            Command::Send { connection: id, data: part }.encode(&mut bytes);
        }
        ca.writer.raw(&bytes).await;
        drop(ca);
        assert_eq!(cb.receive(ib, data.len(), false).await, sha256(&data));
        cb.hears(Event::End { connection: ib }).await;
    });
}

#[test]
fn a_question_that_is_not_taken_counts_as_answered() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        a.plane.busy.set(true);
        client.tell(&Command::Dial { to: b.at(7) }).await;
        let text = "resolve node 2: registry: request failed";
        client.hears_error(ErrorCode::GENERAL, text).await;
        a.plane.busy.set(false);
        // A key is asked for again with the next exchange.
        b.plane.busy.set(true);
        client.tell(&Command::Dial { to: b.at(7) }).await;
        let declined = async {
            while b.plane.declined.get() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(STEP, declined).await.unwrap();
        b.plane.busy.set(false);
        assert!(matches!(client.hear().await.event(), Event::DialOk { .. }));
    });
}

#[test]
fn datagrams_that_cannot_be_sent_are_shown() {
    run_test(async {
        let (a, _b) = pair().await;
        let nowhere = SocketAddr::from(([255, 255, 255, 255], 9));
        a.plane.directory.nodes.borrow_mut().insert(NodeId(5), (nowhere, [0; 32]));
        let mut client = a.client().await;
        client.tell(&Command::Dial { to: Address::backbone(NodeId(5)).port(7) }).await;
        let counted = async {
            while a.info().await["udp"]["send_errors"] == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(STEP, counted).await.unwrap();
    });
}
