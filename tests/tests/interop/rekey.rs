//! Our keys are replaced by age and by count while a stream to a published
//! peer is busy. The core is driven directly, since no setting of the daemon
//! makes it happen within a test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Read, StreamId, Time};
use pilot_tests::harness::Pattern;
use pilot_tests::peer::{PublishedPeer, Rendezvous, register};
use pilot_wire::NodeId;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::{PORT, within};

const LEN: usize = 8 << 20;

/// The core on a socket, with an application that sends back what it gets.
struct Node {
    core: Core,
    socket: UdpSocket,
    start: Instant,
    peer: (NodeId, SocketAddr, [u8; 32]),
    backlog: Vec<(StreamId, bytes::Bytes)>,
    rekeys: watch::Sender<u32>,
}

impl Node {
    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn run(mut self) -> Result<()> {
        let mut buffer = vec![0; 65_573];
        let mut out = Vec::new();
        loop {
            let wake = self.drain(&mut out).await?;
            let now = self.now();
            let pause = wake.map_or(Duration::from_secs(1), |at| at.since(now));
            match tokio::time::timeout(pause, self.socket.recv_from(&mut buffer)).await {
                Ok(received) => {
                    let (len, from) = received?;
                    let now = self.now();
                    self.core.handle(Input::Datagram { from, data: &mut buffer[..len] }, now);
                }
                Err(_) => {
                    let now = self.now();
                    self.core.handle(Input::Timeout, now);
                }
            }
        }
    }

    async fn drain(&mut self, out: &mut Vec<u8>) -> Result<Option<Time>> {
        loop {
            let now = self.now();
            match self.core.poll_output(now, out) {
                Output::Transmit(transmit) => {
                    for datagram in out[..transmit.len].chunks(transmit.segment) {
                        self.socket.send_to(datagram, transmit.to).await?;
                    }
                }
                Output::Event(event) => self.event(event, now),
                Output::Wait(deadline) => return Ok(deadline),
            }
        }
    }

    fn event(&mut self, event: Event, now: Time) {
        match event {
            Event::NeedKey { node } => {
                let key = (node == self.peer.0).then_some(self.peer.2);
                self.core.handle(Input::IdentityKey { node, key }, now);
            }
            Event::NeedEndpoint { node } => {
                let endpoint = (node == self.peer.0).then_some(self.peer.1);
                self.core.handle(Input::Endpoint { node, endpoint }, now);
            }
            Event::TunnelUp { rekeyed: true, .. } => self.rekeys.send_modify(|n| *n += 1),
            Event::Readable { stream } | Event::Writable { stream, .. } => self.pump(stream, now),
            _ => {}
        }
    }

    fn pump(&mut self, stream: StreamId, now: Time) {
        loop {
            let waiting = self.backlog.iter().position(|(s, _)| *s == stream);
            let mut data = match waiting {
                Some(at) => self.backlog.remove(at).1,
                None => match self.core.read(stream, 65_536) {
                    Read::Data(data) => data,
                    Read::Blocked | Read::End => return,
                },
            };
            let fits = data.split_to(data.len().min(self.core.writable(stream)));
            if !fits.is_empty() {
                self.core.write(stream, fits, now).expect("it is open and has room");
            }
            if !data.is_empty() {
                self.backlog.push((stream, data));
                return;
            }
        }
    }
}

async fn busy_stream(config: Config, least: u32) -> Result<()> {
    let rendezvous = Rendezvous::start().await?;
    let mut published = pilot_tests::peer::Config::new(&rendezvous.registry, None);
    published.switches.public = true;
    let key = SigningKey::from_bytes(&published.seed).verifying_key().to_bytes();
    let peer = PublishedPeer::start_with(published).await?;

    let identity = SigningKey::from_bytes(&[42; 32]);
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20);
    let node = register(&rendezvous.registry, &identity, socket.local_addr()?, true).await?;
    let mut core = Core::new(config, identity, rand::random());
    core.handle(Input::LocalNode(node), Time::ZERO);
    let permission = Permission::Trusted;
    core.handle(Input::Permission { node: peer.node(), permission }, Time::ZERO);
    core.listen(PORT)?;
    let (rekeys, seen) = watch::channel(0);
    let start = Instant::now();
    let peer_facts = (peer.node(), peer.endpoint(), key);
    let running = Node { core, socket, start, peer: peer_facts, backlog: Vec::new(), rekeys };
    let running = tokio::spawn(running.run());

    let stream = Arc::new(within("the dial", peer.dial(node, PORT)).await??);
    // Until enough keys have been replaced under it, and at least LEN.
    let mut total = 0;
    while total < LEN || *seen.borrow() < least {
        let data = Pattern::new(total as u64).bytes(256 * 1024);
        let (sent, back) = within("a round trip", async {
            tokio::join!(stream.write(&data), stream.read_exact(data.len()))
        })
        .await?;
        let context =
            || format!("after {total} bytes, {} keys: {:?}", *seen.borrow(), peer.counters());
        sent.with_context(context)?;
        ensure!(back.with_context(context)? == data, "the echo differs, {}", context());
        total += data.len();
        ensure!(start.elapsed() < super::LIMIT, "only {} new keys", *seen.borrow());
    }
    let counters = peer.counters();
    ensure!(counters.rekeys >= u64::from(least), "{counters:?}");
    ensure!(counters.plain_received == 0 && counters.bad_packets == 0, "{counters:?}");
    ensure!(!running.is_finished(), "the core's loop has ended");
    running.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_replaced_by_age_under_a_busy_stream() -> Result<()> {
    busy_stream(Config { rekey_after: Duration::from_millis(700), ..Config::default() }, 4).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_replaced_by_count_under_a_busy_stream() -> Result<()> {
    busy_stream(Config { rekey_frames: 2000, ..Config::default() }, 3).await
}
