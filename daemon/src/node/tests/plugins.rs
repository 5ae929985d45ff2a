//! What answers on a port from another thread, as plugins do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use pilot_host::{BoxStream, PortService};

use super::*;

/// What the thread is given.
enum Work {
    Stream(BoxStream),
    Datagram(SocketAddress, u16, Bytes),
    Wake,
}

/// Sends back what comes, on a thread of its own, and what it hears to the
/// test. Told to by [`BREAK`], it resets a stream.
pub(super) struct ThreadEcho {
    work: mpsc::Sender<Work>,
    datagrams: bool,
}

struct Wakes {
    work: mpsc::Sender<Work>,
    woken: AtomicBool,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // The thread may have ended with its node.
            let _ = self.work.send(Work::Wake);
        }
    }
}

const BREAK: &[u8] = b"break";

pub(super) fn thread_echo(
    datagrams: bool,
) -> (Arc<ThreadEcho>, mpsc::Receiver<(SocketAddress, u16, Bytes)>) {
    let (work, inbox) = mpsc::channel();
    let (heard, hears) = mpsc::channel();
    let wakes = Arc::new(Wakes { work: work.clone(), woken: AtomicBool::new(false) });
    std::thread::spawn(move || {
        let waker = Waker::from(Arc::clone(&wakes));
        let mut streams: Vec<(BoxStream, Option<Bytes>)> = Vec::new();
        while let Ok(work) = inbox.recv() {
            match work {
                Work::Stream(stream) => streams.push((stream, None)),
                // The test may not listen.
                Work::Datagram(from, port, data) => drop(heard.send((from, port, data))),
                Work::Wake => wakes.woken.store(false, Ordering::Release),
            }
            let mut cx = Context::from_waker(&waker);
            streams.retain_mut(|(stream, held)| echo(stream, held, &mut cx).is_pending());
        }
    });
    (Arc::new(ThreadEcho { work, datagrams }), hears)
}

fn echo(stream: &mut BoxStream, held: &mut Option<Bytes>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        if held.is_some() {
            match stream.poll_room(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(_)) => stream.write(held.take().unwrap()),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
        match stream.poll_read(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(data))) if data == BREAK => {
                stream.reset("told to");
                return Poll::Ready(());
            }
            Poll::Ready(Ok(Some(data))) => *held = Some(data),
            Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(()),
        }
    }
}

impl PortService for ThreadEcho {
    fn name(&self) -> &str {
        "thread-echo"
    }

    fn open(&self, stream: BoxStream) {
        let _ = self.work.send(Work::Stream(stream));
    }

    fn takes_datagrams(&self) -> bool {
        self.datagrams
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes) {
        let _ = self.work.send(Work::Datagram(from, port, data));
    }
}

/// Sends `data` and reads as much back.
pub(super) async fn exchange(a: &TestNode, to: SocketAddress, data: &[u8]) {
    let mut client = a.client().await;
    let id = client.dial(to).await;
    let TestClient { reader, writer, .. } = &mut client;
    let receiving = async {
        let (mut hash, mut got) = (Sha256::new(), 0);
        while got < data.len() {
            let message = reader.next().await.unwrap();
            let Event::Receive { data, .. } = message.event() else {
                panic!("{:?}", message.event())
            };
            got += data.len();
            hash.update(data);
        }
        <[u8; 32]>::from(hash.finalize())
    };
    let (_, got) = tokio::join!(send_all(writer, id, data), receiving);
    assert_eq!(got, sha256(data));
}

#[test]
fn a_service_on_another_thread_gives_everything_back() {
    run_test(async {
        let (a, b) = pair().await;
        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        let data = pattern(8 << 20, 5);
        let several = (0..4).map(|_| exchange(&a, b.at(2000), &data));
        futures_join(several.collect()).await;
        // What it dials itself is a stream as well.
        let mut dialled = b.handle.dial(a.at(7)).await.unwrap();
        dialled.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        dialled.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
    });
}

/// Waits for all.
async fn futures_join(all: Vec<impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.into_iter().map(|f| Some(Box::pin(f))).collect();
    std::future::poll_fn(|cx| {
        for slot in &mut all {
            if slot.as_mut().is_some_and(|f| f.as_mut().poll(cx).is_ready()) {
                *slot = None;
            }
        }
        if all.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[test]
fn a_reset_reaches_the_peer() {
    run_test(async {
        let (a, b) = pair().await;
        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        let mut client = a.hello_client(1 << 20).await;
        let id = client.dial(b.at(2000)).await;
        client.tell(&Command::Send { connection: id, data: BREAK }).await;
        loop {
            let message = client.hear().await;
            match message.event() {
                Event::Reset { connection, text, .. } => {
                    assert_eq!((connection, text), (id, "reset by peer"));
                    break;
                }
                Event::Credit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        info_settles(&b, |info| info["connections"] == 0).await;
    });
}

async fn info_settles(node: &TestNode, ready: impl Fn(&Value) -> bool) {
    let wait = async {
        while !ready(&node.info().await) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(STEP, wait).await.expect("info never says what it should");
}

#[test]
fn a_port_has_one_owner() {
    run_test(async {
        let (a, b) = pair().await;
        let mut agent = b.client().await;
        agent.bind(3000).await;
        let refused = b.handle.listen(3000, thread_echo(false).0).await.unwrap_err();
        assert!(refused.contains("port 3000") && refused.contains("agent"), "{refused}");
        let refused = b.handle.listen(7, thread_echo(false).0).await.unwrap_err();
        assert!(refused.contains("port 7") && refused.contains("echo service"), "{refused}");
        // Nor is a port taken away from an agent by letting go of it.
        b.handle.unlisten(3000).await;
        let mut other = a.client().await;
        other.dial(b.at(3000)).await;

        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        agent.tell(&Command::Bind { port: 2000 }).await;
        // The accept of the stream above may come first.
        loop {
            let message = agent.hear().await;
            match message.event() {
                Event::Accept { local_port: 3000, .. } => {}
                event => {
                    let text = "port 2000 already bound";
                    assert_eq!(event, Event::Error { code: ErrorCode::GENERAL, text });
                    break;
                }
            }
        }
    });
}

#[test]
fn an_agent_takes_a_port_that_yields_and_gives_it_back() {
    run_test(async {
        let (a, b) = pair().await;
        b.handle.listen(1000, thread_echo(false).0).await.unwrap();
        exchange(&a, b.at(1000), b"plugin").await;
        let mut agent = b.client().await;
        agent.bind(1000).await;
        let mut other = a.client().await;
        other.dial(b.at(1000)).await;
        assert!(matches!(agent.hear().await.event(), Event::Accept { local_port: 1000, .. }));
        // A newer generation waits as well.
        b.handle.listen(1000, thread_echo(false).0).await.unwrap();
        other.dial(b.at(1000)).await;
        assert!(matches!(agent.hear().await.event(), Event::Accept { local_port: 1000, .. }));
        agent.tell(&Command::Unbind { port: 1000 }).await;
        while !matches!(agent.hear().await.event(), Event::UnbindOk { port: 1000 }) {}
        exchange(&a, b.at(1000), b"plugin again").await;
        // So does the end of the agent.
        let mut agent = b.client().await;
        agent.bind(1000).await;
        drop(agent);
        let mut client = a.client().await;
        loop {
            let id = client.dial(b.at(1000)).await;
            client.tell(&Command::Send { connection: id, data: b"x" }).await;
            let back = loop {
                match client.hear().await.event() {
                    Event::Receive { connection, .. } if connection == id => break true,
                    Event::Closed { connection } if connection == id => break false,
                    _ => {}
                }
            };
            if back {
                break;
            }
        }
        b.handle.unlisten(1000).await;
    });
}

#[test]
fn a_new_service_takes_over_and_running_streams_stay() {
    run_test(async {
        let (a, b) = pair().await;
        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        let mut before = a.handle.dial(b.at(2000)).await.unwrap();
        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        exchange(&a, b.at(2000), &pattern(100_000, 1)).await;
        before.write_all(b"still here").await.unwrap();
        let mut got = [0; 10];
        before.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still here");

        b.handle.unlisten(2000).await;
        let refused = a.handle.dial(b.at(2000)).await.err();
        assert_eq!(refused, Some(pilot_core::DialFailure::Refused.into()));
        before.write_all(b"even so").await.unwrap();
        before.read_exact(&mut got[..7]).await.unwrap();
        assert_eq!(&got[..7], b"even so");
        let mut agent = b.client().await;
        agent.bind(2000).await;
    });
}

#[test]
fn datagrams_reach_a_service_that_takes_them_and_every_client() {
    run_test(async {
        let (a, b) = pair().await;
        let (takes, heard) = thread_echo(true);
        let (takes_none, unheard) = thread_echo(false);
        b.handle.listen(2000, takes).await.unwrap();
        b.handle.listen(2001, takes_none).await.unwrap();
        // Datagrams to a peer that is not yet reached may be lost.
        exchange(&a, b.at(2000), b"hello").await;
        let mut agent = b.client().await;
        agent.tell(&Command::Info).await;
        agent.hear().await;
        a.handle.send_datagram(b.at(2001), 4242, Bytes::from_static(b"one")).unwrap();
        a.handle.send_datagram(b.at(2000), 4242, Bytes::from_static(b"two")).unwrap();
        for (destination_port, data) in [(2001, b"one"), (2000, b"two")] {
            let source = a.at(4242);
            agent.hears(Event::ReceiveDatagram { source, destination_port, data }).await;
        }
        let (from, port, data) = heard.recv_timeout(STEP).unwrap();
        assert_eq!((from, port, &*data), (a.at(4242), 2000, b"two".as_slice()));
        assert!(unheard.try_recv().is_err());
    });
}

#[test]
fn a_service_answers_in_every_worker_or_in_none() {
    run_test(async {
        let directory = Rc::new(Directory::default());
        let (two, one) = (Spread::over(2), Spread::over(1));
        let hub = TestNode::start_spread(100, &directory, Config::default(), two, two).await;
        let mut peers = Vec::new();
        for number in [1, 2] {
            let peer =
                TestNode::start_spread(number, &directory, Config::default(), one, one).await;
            hub.handle.set_permission(peer.id, Permission::Trusted).await;
            peer.handle.set_permission(hub.id, Permission::Trusted).await;
            peers.push(peer);
        }
        hub.handle.listen(2000, thread_echo(false).0).await.unwrap();
        for peer in &peers {
            exchange(peer, hub.at(2000), &pattern(300_000, peer.id.0)).await;
        }
        let info = hub.handle.info().await.unwrap();
        assert_eq!((&info["peers"], &info["node_id"]), (&json!(2), &json!(100)));
        // An agent that has the port in one worker only, as while it binds.
        let (in_second, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        hub.handle.serve_client(1, theirs).await;
        in_second.set_nonblocking(true).unwrap();
        let (reader, writer) = UnixStream::from_std(in_second).unwrap().into_split();
        let mut agent = TestClient {
            reader: Reader { reader, buffer: BytesMut::new() },
            writer: Writer { writer },
            send_credit: 0,
            first_credit: 0,
        };
        agent.bind(3000).await;
        hub.handle.listen(3000, thread_echo(false).0).await.unwrap_err();
        let refused = peers[1].handle.dial(hub.at(3000)).await.err();
        assert_eq!(refused, Some(pilot_core::DialFailure::Refused.into()), "the first worker");
    });
}

#[test]
fn nothing_listens_any_more_at_the_end() {
    run_test(async {
        let (_a, b) = pair().await;
        b.handle.listen(2000, thread_echo(false).0).await.unwrap();
        b.end(Duration::from_secs(5)).await;
        let refused = b.handle.listen(2001, thread_echo(false).0).await.unwrap_err();
        assert_eq!(refused, "the daemon is shutting down");
        let data = Bytes::new();
        assert!(b.handle.send_datagram(Address::backbone(NodeId(1)).port(1), 0, data).is_err());
        assert!(b.handle.info().await.is_none());
    });
}
