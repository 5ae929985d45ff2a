//! What the loop says that happens, and when.

use pilot_host::events::Happening;

use super::*;

impl TestNode {
    /// Waits until it has said `event`.
    async fn says(&self, event: &Happening) {
        let said = async {
            while !self.said.all().contains(event) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(STEP, said).await.is_err() {
            panic!("{event:?} is not among {:?}", self.said.all());
        }
    }

    fn said_times(&self, name: &str) -> usize {
        self.said.names().iter().filter(|said| *said == name).count()
    }
}

#[test]
fn a_stream_is_told_of_where_it_is_published() {
    run_test(async {
        let (a, b) = pair().await;
        let mut stream = a.handle.dial(b.at(7)).await.unwrap();
        let ours = b.info().await["conn_list"][0].clone();
        let (conn_id, dst_port) = (ours["id"].as_u64().unwrap(), 7);
        let src_port = u16::try_from(ours["remote_port"].as_u64().unwrap()).unwrap();
        let src_addr = Address::backbone(a.id);
        b.says(&Happening::ConnSynReceived { conn_id, dst_port, src_addr, src_port }).await;
        b.says(&Happening::ConnEstablished { conn_id, dst_port, src_addr, src_port }).await;
        for (node, peer_node_id) in [(&a, b.id), (&b, a.id)] {
            node.says(&Happening::TunnelEstablished {
                authenticated: true,
                peer_node_id,
                rekeyed: false,
                relay: false,
            })
            .await;
        }
        let endpoint = b.udp.to_string();
        a.says(&Happening::TunnelPeerAdded { endpoint, peer_node_id: b.id }).await;
        assert_eq!(a.said_times("conn.established"), 0, "only where it is listened");

        stream.write_all(b"x").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"x");
        b.says(&Happening::ConnFin {
            conn_id,
            local_port: 7,
            remote_addr: src_addr,
            remote_port: src_port,
        })
        .await;
        drop(stream);
        assert_eq!(a.said_times("conn.fin"), 0, "not at the side that closed first");
        assert_eq!(a.said_times("tunnel.peer_added"), 1);
    });
}

#[test]
fn a_client_hears_the_end_first_and_only_the_other_side_tells_of_it() {
    run_test(async {
        let (a, b) = pair().await;
        let mut agent = b.hello_client(1 << 20).await;
        agent.bind(1000).await;
        let mut stream = a.handle.dial(b.at(1000)).await.unwrap();
        let theirs = agent.accept(1000).await;
        agent.tell(&Command::Shutdown { connection: theirs }).await;
        assert_eq!(stream.read_bytes().await.unwrap(), None);
        let conn_id = u64::from(stream.id());
        let (remote_addr, remote_port) = (Address::backbone(b.id), 1000);
        let ours = a.info().await["conn_list"][0].clone();
        let local_port = u16::try_from(ours["local_port"].as_u64().unwrap()).unwrap();
        a.says(&Happening::ConnFin { conn_id, local_port, remote_addr, remote_port }).await;
        stream.shutdown().await.unwrap();
        agent.hears(Event::End { connection: theirs }).await;
        agent.hears(Event::Closed { connection: theirs }).await;
        assert_eq!(b.said_times("conn.fin"), 0);
    });
}

#[test]
fn a_reset_and_a_datagram_are_told_of() {
    run_test(async {
        let (a, b) = pair().await;
        let mut stream = a.handle.dial(b.at(7)).await.unwrap();
        let ours = b.info().await["conn_list"][0].clone();
        pilot_host::HostStream::reset(&mut stream, "test");
        let conn_id = ours["id"].as_u64().unwrap();
        let remote_port = u16::try_from(ours["remote_port"].as_u64().unwrap()).unwrap();
        let remote_addr = Address::backbone(a.id);
        b.says(&Happening::ConnRst { conn_id, local_port: 7, remote_addr, remote_port }).await;
        assert_eq!(a.said_times("conn.rst"), 0, "it was not reset by its peer");

        let data = bytes::Bytes::from_static(b"12345");
        a.handle.send_datagram(b.at(9), 4000, data).unwrap();
        let (src_addr, src_port) = (Address::backbone(a.id), 4000);
        b.says(&Happening::DataDatagram { dst_port: 9, size: 5, src_addr, src_port }).await;
    });
}

#[test]
fn what_is_refused_is_told_of() {
    run_test(async {
        let (a, b) = pair().await;
        a.handle.dial(b.at(7)).await.unwrap();
        b.handle.set_permission(a.id, Permission::Stranger).await;
        let mut client = a.client().await;
        client.tell(&Command::Dial { to: b.at(7) }).await;
        let refused = |happening: &Happening| {
            matches!(happening, Happening::SecurityRefused { count: 1.., peer_node_id, port: 7, rule }
                if *peer_node_id == a.id && rule == "untrusted")
        };
        let told = async {
            while !b.said.all().iter().any(refused) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(STEP, told).await.unwrap();
    });
}

#[test]
fn too_many_syns_are_told_of_with_their_port() {
    run_test(async {
        let config = Config { syn_rate_per_node: 1, ..Config::default() };
        let (a, b) = pair_with(config).await;
        let mut client = a.client().await;
        for _ in 0..5 {
            client.tell(&Command::Dial { to: b.at(7) }).await;
        }
        let limited = async {
            while b.said_times("security.syn_rate_limited") == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(STEP, limited).await.unwrap();
        let event = b.said.all().into_iter().find_map(|h| match h {
            Happening::SecuritySynRateLimited { src_addr, src_port } => Some((src_addr, src_port)),
            _ => None,
        });
        let (address, port) = event.unwrap();
        assert_eq!(address, Address::backbone(a.id));
        assert!(port >= 49_152, "an ephemeral port of the peer, not {port}");
    });
}
