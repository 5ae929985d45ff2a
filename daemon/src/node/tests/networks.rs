//! Addresses in a network beside the backbone, between nodes and their clients.

use pilot_core::Permission;

use super::*;

const LAB: u16 = 5;

fn in_lab(node: &TestNode, port: u16) -> SocketAddress {
    Address { network: LAB, node: node.id }.port(port)
}

/// Nodes 1 to 3, which share network 5 and so may reach each other; the first
/// has so many workers.
async fn lab(workers: usize) -> [TestNode; 3] {
    let directory = Rc::new(Directory::default());
    let (spread, config) = (Spread::over(workers), Config::default());
    let nodes = [
        TestNode::start_spread(1, &directory, config.clone(), spread, spread).await,
        TestNode::start(2, &directory, config.clone()).await,
        TestNode::start(3, &directory, config).await,
    ];
    for node in &nodes {
        node.handle.set_networks(vec![LAB]).await;
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.handle.set_shared(other.id, vec![LAB], vec![LAB]).await;
            node.handle.set_permission(other.id, Permission::Trusted).await;
        }
    }
    nodes
}

async fn say_to_all(workers: usize) {
    let [a, b, c] = lab(workers).await;
    let mut sender = a.hello_client(1 << 20).await;
    let mut hearers = [b.client().await, c.client().await];
    for (node, hearer) in [&b, &c].into_iter().zip(&mut hearers) {
        // A stream in the network, after which the tunnel is up.
        hearer.bind(1000).await;
        let id = sender.dial(in_lab(node, 1000)).await;
        let message = hearer.hear().await;
        let Event::Accept { connection, remote, .. } = message.event() else {
            panic!("{:?}", message.event())
        };
        assert_eq!(remote.address, in_lab(&a, 0).address);
        sender.tell(&Command::Send { connection: id, data: b"hello" }).await;
        hearer.hears(Event::Receive { connection, data: b"hello" }).await;
    }
    let all = Address { network: LAB, node: NodeId::BROADCAST }.port(4000);
    sender.tell(&Command::SendDatagram { to: all, data: b"all of you" }).await;
    for hearer in &mut hearers {
        let message = hearer.hear().await;
        let Event::ReceiveDatagram { source, destination_port, data } = message.event() else {
            panic!("{:?}", message.event())
        };
        assert_eq!((source.address, destination_port), (in_lab(&a, 0).address, 4000));
        assert_eq!(data, b"all of you");
    }
}

#[test]
fn members_hear_what_is_said_to_all() {
    run_test(say_to_all(1));
}

#[test]
fn members_of_every_worker_hear_it() {
    run_test(say_to_all(2));
}

#[test]
fn streams_of_a_network_end_with_it() {
    run_test(async {
        let [a, b, _c] = lab(1).await;
        let (mut sender, mut hearer) = (a.hello_client(1 << 20).await, b.client().await);
        hearer.bind(1000).await;
        sender.dial(in_lab(&b, 1000)).await;
        let message = hearer.hear().await;
        let Event::Accept { connection, .. } = message.event() else { panic!() };
        b.handle.set_networks(Vec::new()).await;
        hearer.hears(Event::Closed { connection }).await;
        let message = sender.hear().await;
        assert!(matches!(message.event(), Event::Reset { .. }), "{:?}", message.event());
    });
}
