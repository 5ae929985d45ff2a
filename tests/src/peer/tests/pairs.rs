//! Two published peers with each other, over loopback.

use std::sync::Arc;
use std::time::Duration;

use pilot_wire::{Address, NodeId};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::super::registry::base64;
use super::super::send::SEGMENT;
use super::super::{Config, Counters, DialError, PublishedPeer, Rendezvous, Stream};

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(40);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn config(rendezvous: &Rendezvous) -> Config {
    let mut config = Config::new(&rendezvous.registry, Some(rendezvous.beacon));
    config.switches.public = true;
    config.switches.max_fin_answers = Some(1);
    config.switches.heartbeat = Duration::from_millis(200);
    // Loopback drops what the receiver's buffer cannot hold, and published
    // recovery from that takes seconds.
    config.switches.max_congestion_window = 256 * 1024;
    config
}

async fn pair(rendezvous: &Rendezvous) -> (PublishedPeer, PublishedPeer) {
    let a = PublishedPeer::start_with(config(rendezvous)).await.unwrap();
    let b = PublishedPeer::start_with(config(rendezvous)).await.unwrap();
    (a, b)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i * 31 / 7 + i / 4096) as u8 ^ seed).collect()
}

async fn exchange(near: Stream, far: Stream, len: usize) {
    let (near, far) = (Arc::new(near), Arc::new(far));
    let mut tasks = Vec::new();
    for (from, to, seed) in [(&near, &far, 1), (&far, &near, 2)] {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        tasks.push(tokio::spawn(async move {
            let data = pattern(len, seed);
            let (sent, received) = tokio::join!(from.write(&data), to.read_exact(len));
            sent.unwrap();
            assert_eq!(Sha256::digest(received.unwrap()), Sha256::digest(&data));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn accept(streams: &mut mpsc::Receiver<Stream>) -> Stream {
    within("a stream to be accepted", streams.recv()).await.unwrap()
}

#[tokio::test]
async fn first_contact_is_as_captured() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let (a, b) = pair(&rendezvous).await;
    let echo = a.dial(b.node(), 7).await.unwrap();
    echo.write(b"hello").await.unwrap();
    assert_eq!(within("the echo", echo.read()).await.unwrap(), Some(b"hello".to_vec()));
    let (at_a, at_b) = (a.counters(), b.counters());
    assert_eq!(at_a.plain_sent, 1, "the SYN, in the clear as well");
    assert_eq!(at_b.plain_received, 1);
    // On adding the peer, with the SYN, and as answer to the new key.
    assert_eq!(at_a.auth_keys_sent, 3);
    assert_eq!(at_b.auth_keys_sent, 1);
    assert_eq!(at_b.auth_keys_accepted, 3);
    assert!(at_a.sealed_sent >= 2 && at_b.sealed_sent >= 2);
    assert!(at_a.replays <= 1, "the SYN-ACK sent again under a new prefix");
}

#[tokio::test]
async fn data_flows_both_ways_and_one_close_ends_both() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let (a, b) = pair(&rendezvous).await;
    let mut accepted = b.listen(1000).await.unwrap();
    assert!(b.listen(1000).await.is_err());
    let near = a.dial(b.node(), 1000).await.unwrap();
    let far = accept(&mut accepted).await;
    assert_eq!(far.remote(), a.address().port(near.local_port()));
    within("a MiB each way", exchange(near, far, 1 << 20)).await;
    for counters in [a.counters(), b.counters()] {
        assert_eq!(counters.queue_overruns, 0, "{counters:?}");
        assert_eq!((counters.undecryptable, counters.bad_packets), (0, 0));
        assert_eq!(counters.longest_segment, SEGMENT);
    }
    let near = a.dial(b.node(), 1000).await.unwrap();
    let far = accept(&mut accepted).await;
    near.write(b"last words").await.unwrap();
    assert_eq!(within("data", far.read()).await.unwrap(), Some(b"last words".to_vec()));
    near.close().await;
    assert_eq!(within("the end", far.read()).await.unwrap(), None);
    assert!(far.write(b"too late").await.is_err());
    // FIN, its answer, the answer to that; then the switch ends it.
    let fins = |c: Counters| c.fins_sent;
    until("the FINs to be answered", || fins(a.counters()) + fins(b.counters()) == 3).await;
    assert!(matches!(a.dial(b.node(), 999).await, Err(DialError::Refused)));
    let unknown = a.dial(NodeId(77), 7).await.err().unwrap().to_string();
    assert_eq!(unknown, "resolve node 77: registry: request failed");
}

#[tokio::test]
async fn two_that_answer_every_fin_never_end() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let mut endless = config(&rendezvous);
    endless.switches.max_fin_answers = None;
    let a = PublishedPeer::start_with(endless).await.unwrap();
    let mut bounded = config(&rendezvous);
    bounded.switches.max_fin_answers = Some(500);
    let b = PublishedPeer::start_with(bounded).await.unwrap();
    let near = a.dial(b.node(), 7).await.unwrap();
    near.close().await;
    until("the storm", || b.counters().fins_sent == 500).await;
    // Each answer is answered, until the switch stops one side.
    until("the last answer", || a.counters().fins_sent >= 501).await;
}

#[tokio::test]
async fn datagrams_arrive_whatever_is_bound() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let (a, b) = pair(&rendezvous).await;
    a.send_datagram(b.node(), 5001, b"ping").await.unwrap();
    let datagram = within("a datagram", b.datagram()).await.unwrap();
    assert_eq!((datagram.destination_port, &datagram.data[..]), (5001, &b"ping"[..]));
    assert_eq!(datagram.source.address, a.address());
    let before = a.counters().sealed_received;
    a.ping(b.node(), b"payload").await.unwrap();
    until("the pong", || a.counters().sealed_received > before).await;
}

#[tokio::test]
async fn a_restarted_peer_is_heard_only_when_it_speaks() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let (a, b) = pair(&rendezvous).await;
    let node = b.node();
    let stream = a.dial(node, 7).await.unwrap();
    stream.write(b"before").await.unwrap();
    assert_eq!(within("the echo", stream.read()).await.unwrap(), Some(b"before".to_vec()));
    let b = PublishedPeer::start_with(b.kill().await).await.unwrap();
    assert_eq!(b.node(), node, "the same key is the same node");
    let back = b.dial(a.node(), 7).await.unwrap();
    back.write(b"after").await.unwrap();
    assert_eq!(within("the echo", back.read()).await.unwrap(), Some(b"after".to_vec()));
    assert_eq!(a.counters().rekeys, 1);
    let config = b.stop().await.unwrap();
    assert!(a.dial(node, 7).await.is_err(), "deregistered");
    assert_eq!(config.registry, rendezvous.registry);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_leads_to_the_relay() {
    let rendezvous = Rendezvous::start().await.unwrap();
    // Bound and never read.
    let nowhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut hidden = config(&rendezvous);
    hidden.switches.advertise = Some(nowhere.local_addr().unwrap());
    let a = PublishedPeer::start_with(hidden.clone()).await.unwrap();
    hidden.seed = rand::random();
    let b = PublishedPeer::start_with(hidden).await.unwrap();
    let stream = within("the dial", a.dial(b.node(), 7)).await.unwrap();
    stream.write(b"round about").await.unwrap();
    assert_eq!(within("the echo", stream.read()).await.unwrap(), Some(b"round about".to_vec()));
    for counters in [a.counters(), b.counters()] {
        assert_eq!(counters.relay_marks, 1);
        assert!(counters.relayed_sent > 0 && counters.relayed_received > 0);
    }
}

#[tokio::test]
async fn trust_is_made_directly_and_through_the_registry() {
    let rendezvous = Rendezvous::start().await.unwrap();
    let (a, b) = pair(&rendezvous).await;
    a.handshake(b.node(), "please").await.unwrap();
    until("the request", || b.pending().contains_key(&a.node())).await;
    let pending = b.pending();
    assert_eq!(pending[&a.node()].justification, "please");
    assert_eq!(pending[&a.node()].public_key, base64(a.shared.identity.verifying_key().as_bytes()));
    b.approve(a.node()).await.unwrap();
    assert!(!b.trusted()[&a.node()].mutual);
    until("the accept", || a.trusted().contains_key(&b.node())).await;
    a.revoke(b.node()).await.unwrap();
    assert!(a.revoke(b.node()).await.is_err());

    let mut private = config(&rendezvous);
    private.switches.public = false;
    let c = PublishedPeer::start_with(private).await.unwrap();
    a.handshake(c.node(), "through the registry").await.unwrap();
    until("the request", || c.pending().contains_key(&a.node())).await;
    assert_eq!(c.pending()[&a.node()].public_key, "");
    c.approve(a.node()).await.unwrap();
    until("the answer", || a.trusted().contains_key(&c.node())).await;
    assert!(a.dial(c.node(), 7).await.is_ok(), "the pair opens resolve");
    a.handshake(b.node(), "again").await.unwrap();
    until("the request", || {
        b.pending().contains_key(&a.node()) || b.trusted().contains_key(&a.node())
    })
    .await;
    b.reject(a.node(), "no").await;
    assert!(b.pending().is_empty());
    assert_eq!(Address::backbone(b.node()), b.address());
}
