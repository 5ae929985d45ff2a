//! The driver against a daemon in memory.

mod mock;

use std::time::Duration;

use mock::{Behaviour, MockDaemon};
use pilot_sdk::{Client, Congestion, ErrorKind, Options, Stream};
use pilot_wire::ipc::{ErrorCode, Event, Features};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);

/// Every test ends, if by failing.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: no end"))
}

/// Waits for a condition of the mock.
async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn client(daemon: &MockDaemon) -> Client {
    Client::connect_to(daemon.socket()).await.expect("connect")
}

/// Bytes that tell their own place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(0x9E37_79B1).to_be_bytes()[0]).collect()
}

async fn join(client: &Client, port: u16) -> (Stream, Stream) {
    let listener = client.listen(port).await.expect("listen");
    let dialled = client.dial(format!("1:{port}")).await.expect("dial");
    let (accepted, _) = listener.accept().await.expect("accept");
    (dialled, accepted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_returns_every_byte_and_the_end() {
    for behaviour in [Behaviour::default(), Behaviour { send_credit: 1000, ..Behaviour::default() }]
    {
        let daemon = MockDaemon::start(behaviour);
        let client = client(&daemon).await;
        let stream = client.dial("agent-b:7").await.expect("dial");
        assert_eq!(stream.remote_addr().to_string(), "0:0000.0000.0002:7");
        let data = pattern(5_000_000);
        let (mut read, mut write) = stream.into_split();
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.expect("write");
            write.shutdown().await.expect("shutdown");
        });
        let mut echoed = Vec::new();
        within("echo", read.read_to_end(&mut echoed)).await.expect("read");
        assert!(echoed == data, "bytes differ");
        writer.await.expect("writer");
        assert_eq!(daemon.violations(), 0, "credit must be kept");
        drop(read);
        until("connections go", || daemon.connections() == 0).await;
    }
}

#[tokio::test]
async fn small_messages_keep_their_order() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let (mut a, mut b) = join(&client, 1000).await;
    let mut expected = Vec::new();
    for (i, len) in [1, 30_000, 5, 16_384, 16_385, 3, 60_000, 2].into_iter().enumerate() {
        let part = vec![i as u8; len];
        expected.extend_from_slice(&part);
        a.write_all(&part).await.expect("write");
    }
    a.shutdown().await.expect("shutdown");
    let mut chunks = Vec::new();
    while let Some(chunk) = within("chunk", b.read_chunk()).await.expect("read") {
        chunks.extend_from_slice(&chunk);
    }
    assert!(chunks == expected, "bytes differ");
    // The other direction is still open.
    b.write_all(b"late answer").await.expect("write after the peer's end");
    b.shutdown().await.expect("shutdown");
    let mut answer = String::new();
    within("answer", a.read_to_string(&mut answer)).await.expect("read");
    assert_eq!(answer, "late answer");
    let error = a.write_all(b"x").await.expect_err("after shutdown");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    until("both sides ended", || daemon.connections() == 0).await;
}

#[tokio::test]
async fn vectored_writes_arrive_whole() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let (mut a, mut b) = join(&client, 1000).await;
    assert!(tokio::io::AsyncWrite::is_write_vectored(&a));
    let parts: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 100]).collect();
    let slices: Vec<_> = parts.iter().map(|p| std::io::IoSlice::new(p)).collect();
    let n = a.write_vectored(&slices).await.expect("write");
    assert_eq!(n, 1600, "sixteen slices to a message");
    let mut got = vec![0; n];
    within("read", b.read_exact(&mut got)).await.expect("read");
    assert!(got == parts.concat()[..n]);
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let daemon = MockDaemon::start(Behaviour { send_credit: 100_000, ..Behaviour::default() });
    let options = Options::default().with_receive_credit(50_000);
    let client = Client::connect_with(daemon.socket(), options).await.expect("connect");
    let (mut a, mut b) = join(&client, 1000).await;
    let data = pattern(1_000_000);
    let sent = data.clone();
    let mut writer = tokio::spawn(async move {
        a.write_all(&sent).await.expect("write");
        a.shutdown().await.expect("shutdown");
    });
    // 50,000 bytes wait in the client, 100,000 in the daemon, no more.
    until("the daemon holds all it allowed", || daemon.waiting() == 100_000).await;
    let blocked = tokio::time::timeout(Duration::from_millis(50), &mut writer).await;
    assert!(blocked.is_err(), "the writer must wait");
    assert_eq!(daemon.waiting(), 100_000);
    let mut got = Vec::new();
    within("the rest", b.read_to_end(&mut got)).await.expect("read");
    assert!(got == data, "bytes differ");
    writer.await.expect("writer");
    assert_eq!(daemon.violations(), 0);
}

#[tokio::test]
async fn requests_overlap() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.dial("8:7").await }
    });
    for _ in 0..10 {
        within("info meanwhile", client.info()).await.expect("info");
    }
    assert!(!slow.is_finished());
    daemon.release_dial();
    within("slow dial", slow).await.expect("task").expect("dial");
}

#[tokio::test]
async fn a_dial_nobody_waits_for_is_closed() {
    for behaviour in [Behaviour::default(), Behaviour::published()] {
        let daemon = MockDaemon::start(behaviour);
        let client = client(&daemon).await;
        let dial = client.dial("8:7");
        tokio::time::timeout(Duration::from_millis(20), dial).await.expect_err("given up");
        daemon.release_dial();
        // The next request of a published daemon waits for that answer.
        within("info", client.info()).await.expect("info");
        until("closed", || daemon.connections() == 0).await;
    }
}

#[tokio::test]
async fn errors_say_what_and_what_to_do() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    for (target, kind, text) in [
        ("2:9", ErrorKind::Refused, "connection refused"),
        ("2:5999", ErrorKind::Timeout, "dial timeout"),
        ("2:5998", ErrorKind::Untrusted, "no trust with node 2"),
        ("nobody:7", ErrorKind::NotFound, "resolve_hostname: registry: request failed"),
        ("agent-b", ErrorKind::InvalidArgument, "missing port in \"agent-b\""),
    ] {
        let error = client.dial(target).await.expect_err(target);
        assert_eq!(error.kind(), kind, "{target}");
        assert!(error.to_string().starts_with(text), "{target}: {error}");
    }
    let error = client.listen(7).await.expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn no_daemon_names_the_socket() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("none.sock");
    let error = Client::connect_to(&path).await.expect_err("no daemon");
    assert!(error.to_string().contains("none.sock"), "{error}");
    assert_eq!(error.code(), "not_running");
    assert_eq!(error.hint(), "start the daemon with: pilotctl daemon start");
}

#[tokio::test]
async fn a_reset_reaches_both_directions_after_the_data() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let (mut a, mut b) = join(&client, 1000).await;
    a.write_all(b"before").await.expect("write");
    let mut one = [0; 1];
    within("first byte", b.read_exact(&mut one)).await.expect("read");
    daemon.reset(b.id(), ErrorCode::UNTRUSTED, "trust with node 1 has ended");
    let mut rest = Vec::new();
    let error = within("reset", b.read_to_end(&mut rest)).await.expect_err("reset");
    assert_eq!(rest, b"efore");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("trust with node 1 has ended"), "{error}");
    let error = b.write_all(b"x").await.expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_fails_everything_that_waits() {
    let mut daemon = MockDaemon::start(Behaviour { send_credit: 10_000, ..Behaviour::default() });
    let client = client(&daemon).await;
    let listener = client.listen(1000).await.expect("listen");
    let mut dialled = client.dial("1:1000").await.expect("dial");
    let (mut accepted, _) = listener.accept().await.expect("accept");
    let writer = tokio::spawn(async move {
        let data = vec![0; 50_000_000];
        dialled.write_all(&data).await.expect_err("mid-write")
    });
    let mut some = vec![0; 5_000];
    accepted.read_exact(&mut some).await.expect("data flows");
    let other = client.clone();
    let request = tokio::spawn(async move { other.dial("8:7").await.expect_err("no answer") });
    let accept = tokio::spawn(async move { listener.accept().await.expect_err("no daemon") });
    let mut datagrams = client.datagrams();
    client.info().await.expect("everything is under way");
    daemon.kill().await;
    let error = within("writer", writer).await.expect("task");
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::BrokenPipe
        ),
        "{error:?}"
    );
    for error in [
        within("request", request).await.expect("task"),
        within("accept", accept).await.expect("task"),
        within("datagrams", datagrams.recv()).await.expect_err("no daemon"),
        client.info().await.expect_err("no daemon"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        assert!(error.to_string().starts_with("daemon disconnected"), "{error}");
    }
    let mut rest = Vec::new();
    within("reader", accepted.read_to_end(&mut rest)).await.expect_err("no daemon");
}

#[tokio::test]
async fn dropping_a_listener_frees_its_port() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    for _ in 0..3 {
        let listener = client.listen(1000).await.expect("listen");
        let _waiting = client.dial("1:1000").await.expect("dial");
        drop(listener);
        until("unbound", || daemon.ports().is_empty()).await;
    }
    until("streams nobody took are closed", || daemon.connections() == 0).await;
}

/// Polls a future once, so that its request is on its way, and drops it.
async fn give_up<F: Future>(future: F) {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_listener_nobody_waits_for_frees_its_port() {
    for behaviour in [Behaviour::default(), Behaviour::published()] {
        let daemon = MockDaemon::start(behaviour);
        let client = client(&daemon).await;
        give_up(client.listen(1000)).await;
        // Answered after the binding, so that is over.
        within("info", client.info()).await.expect("info");
        if behaviour.hello {
            until("unbound", || daemon.ports().is_empty()).await;
        }
        let listener = within("listen", client.listen(1000)).await.expect("listen");
        let _dialled = client.dial("1:1000").await.expect("dial");
        within("accept", listener.accept()).await.expect("accept");
    }
}

#[tokio::test]
async fn a_dropped_read_half_holds_nothing_up() {
    let daemon = MockDaemon::start(Behaviour::published());
    let options = Options::default().with_receive_credit(50_000);
    let client = Client::connect_with(daemon.socket(), options).await.expect("connect");
    let (mut a, b) = join(&client, 1000).await;
    let (read, mut write) = b.into_split();
    drop(read);
    within("write", a.write_all(&pattern(500_000))).await.expect("write");
    within("info", client.info()).await.expect("the socket is still read");
    write.write_all(b"still open").await.expect("write");
    let mut got = [0; 10];
    within("read", a.read_exact(&mut got)).await.expect("read");
    assert_eq!(&got, b"still open");
}

#[tokio::test]
async fn the_socket_ends_with_the_last_handle() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let (mut a, mut b) = join(&client, 1000).await;
    drop(client);
    a.write_all(&pattern(100_000)).await.expect("a stream outlives its client");
    let mut got = vec![0; 100_000];
    within("read", b.read_exact(&mut got)).await.expect("read");
    drop((a, b));
    until("closed", || daemon.connections() == 0 && daemon.ports().is_empty()).await;
}

#[tokio::test]
async fn disconnect_closes_by_number() {
    for behaviour in [Behaviour::default(), Behaviour::published()] {
        let daemon = MockDaemon::start(behaviour);
        let client = client(&daemon).await;
        let mut stream = client.dial("2:7").await.expect("dial");
        within("disconnect", client.disconnect(stream.id())).await.expect("disconnect");
        let mut rest = Vec::new();
        within("end", stream.read_to_end(&mut rest)).await.expect("end of stream");
        within("unknown", client.disconnect(999)).await.expect("as published");
        within("info", client.info()).await.expect("the next request is answered");
    }
}

#[tokio::test]
async fn settings_and_typed_answers() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let stream = client.dial("2:7").await.expect("dial");
    stream.set_no_delay(true).expect("set");
    let other = client.dial("2:7").await.expect("dial");
    stream.set_congestion(Congestion::Bbr).expect("set");
    let info = client.info().await.expect("info");
    assert_eq!(info.node_id.0, 1);
    assert_eq!(info.extra["version"], "mock", "unknown keys are kept");
    assert_eq!(info.conn_list[0].id, stream.id());
    assert_eq!(info.conn_list[0].extra["no_delay"], true);
    assert_eq!(info.conn_list[0].congestion, "bbr");
    assert_eq!(
        (info.conn_list[1].id, info.conn_list[1].congestion.as_str()),
        (other.id(), "cubic")
    );
    assert_eq!(info.peer_list[0].extra["relay"], false);
    assert_eq!(client.info_json().await.expect("info")["uptime_secs"], 61);
    assert_eq!(client.resolve("agent-b").await.expect("resolve").node_id.0, 2);
    assert_eq!(client.pending().await.expect("pending")[0].justification, "let me in");
    assert_eq!(client.approve(7).await.expect("approve").status, "approved");
    assert_eq!(client.trusted().await.expect("trusted")[0].node_id.0, 7);
    assert_eq!(client.revoke(7).await.expect("revoke").status, "revoked");
    let error = client.revoke(7).await.expect_err("not trusted");
    assert_eq!(error.message(), "handshake revoke: node 7 was not trusted");
    assert_eq!(client.reject(7, "no").await.expect("reject").status, "rejected");
    assert_eq!(client.handshake_request(2, "hi").await.expect("request").status, "sent");
    assert_eq!(client.set_tags(&["#web"]).await.expect("tags")["tags"][0], "web");
    assert_eq!(client.set_hostname("x").await.expect("hostname")["hostname"], "x");
    assert_eq!(client.set_visibility(true).await.expect("public")["visibility"], "public");
    assert_eq!(client.deregister().await.expect("deregister")["type"], "deregister_ok");
}

#[tokio::test]
async fn datagrams_come_and_go() {
    let daemon = MockDaemon::start(Behaviour::default());
    let client = client(&daemon).await;
    let mut datagrams = client.datagrams();
    client.send_datagram("agent-b:9", b"hello").await.expect("send");
    let got = within("datagram", datagrams.recv()).await.expect("datagram");
    assert_eq!((got.destination_port, &got.data[..]), (9, &b"hello"[..]));
    assert_eq!(got.source.port, 49152);
    // What does not fit the queue is dropped and counted.
    let event = Event::ReceiveDatagram { source: got.source, destination_port: 1, data: b"x" };
    (0..1100).for_each(|_| daemon.datagram(&event));
    client.info().await.expect("all are read");
    assert_eq!(datagrams.dropped(), 76);
    // The reason of a refused one comes with the next.
    client.send_datagram("4294967295:9", b"all").await.expect("sent to the daemon");
    client.info().await.expect("the refusal is read");
    let error = client.send_datagram("2:9", b"x").await.expect_err("refused before");
    assert!(error.message().starts_with("sendto: broadcast"), "{error}");
    client.send_datagram("2:9", b"x").await.expect("told once");
    let long = vec![0; 1 << 20];
    let error = client.send_datagram("2:9", &long).await.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_daemon() {
    let daemon = MockDaemon::start(Behaviour::published());
    let options = Options::default().with_receive_credit(50_000);
    let client = Client::connect_with(daemon.socket(), options).await.expect("connect");
    assert_eq!(client.features(), Features::default());
    let (mut a, mut b) = join(&client, 1000).await;
    assert_eq!(a.set_no_delay(true).expect_err("unknown there").kind(), ErrorKind::Unsupported);
    let error = a.set_congestion(Congestion::Bbr).expect_err("unknown there");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // A reader that is behind stops the whole socket, and nothing is lost.
    let data = pattern(2_000_000);
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        a.write_all(&sent).await.expect("write");
        a.shutdown().await.expect("shutdown");
    });
    let mut got = Vec::new();
    within("data", b.read_to_end(&mut got)).await.expect("read");
    assert!(got == data, "bytes differ");
    writer.await.expect("writer");
    drop(b);
    // Requests take turns, and an error belongs to the one outstanding.
    let many = (0..20).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            let port = if i % 2 == 0 { 7 } else { 9 };
            client.dial(format!("2:{port}")).await.is_ok() == (port == 7)
        })
    });
    for task in many.collect::<Vec<_>>() {
        assert!(within("dial", task).await.expect("task"));
    }
    // The port stays bound there; it can be listened on again all the same.
    let listener = client.listen(1000).await.expect("again");
    let _a = client.dial("1:1000").await.expect("dial");
    within("accept", listener.accept()).await.expect("accept");
}

#[tokio::test]
async fn errors_of_sends_are_not_taken_for_answers() {
    let daemon = MockDaemon::start(Behaviour::published());
    let client = client(&daemon).await;
    let mut stream = client.dial("2:7").await.expect("dial");
    client.disconnect(stream.id()).await.expect("closed behind its back");
    // Whether the end or the error of the send comes first, the dial behind
    // it gets its own answer.
    let _ = stream.write_all(b"x").await;
    within("dial", client.dial("2:7")).await.expect("dial");
    client.send_datagram("4294967295:9", b"all").await.expect("sent to the daemon");
    within("dial", client.dial("2:7")).await.expect("dial");
}
