//! The driver against daemons that say anything.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use pilot_sdk::{Client, ErrorKind, Options};
use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Command, ErrorCode, Event, Features, LENGTH_LEN, split_message};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Accepts one client and answers its hello; `answer` may be anything.
struct Daemon {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = UnixListener::bind(dir.path().join("p.sock")).expect("bind");
        Self { dir, listener }
    }

    async fn connect(&self) -> (Client, UnixStream) {
        let serve = async {
            let (mut socket, _) = self.listener.accept().await.expect("accept");
            read_command(&mut socket).await;
            socket.write_all(&hello_ok()).await.expect("write");
            socket
        };
        let path = self.dir.path().join("p.sock");
        let (client, socket) = tokio::join!(Client::connect_to(path), serve);
        (client.expect("connect"), socket)
    }
}

fn encode(event: &Event<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    event.encode(&mut out);
    out
}

fn hello_ok() -> Vec<u8> {
    encode(&Event::HelloOk { version: 1, features: Features::ALL, send_credit: 1 << 20 })
}

/// Reads up to the first request and gives its tag, or what comes at once
/// when there is none.
async fn read_command(socket: &mut UnixStream) -> Option<u32> {
    let mut buffer = bytes::BytesMut::new();
    loop {
        while let Some((body, used)) = split_message(&buffer).expect("length") {
            if let Command::Request { id, .. } = Command::parse(body).expect("a command") {
                return Some(id);
            }
            let _ = buffer.split_to(used);
            if buffer.is_empty() {
                return None;
            }
        }
        assert_ne!(socket.read_buf(&mut buffer).await.expect("read"), 0, "client went away");
    }
}

fn reply(id: u32, event: &Event<'_>) -> Vec<u8> {
    encode(&Event::Reply { id, event: &encode(event)[LENGTH_LEN..] })
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("{what}: no end"))
}

#[tokio::test]
async fn data_right_behind_the_answer_is_kept() {
    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    let serve = async {
        let tag = read_command(&mut socket).await.expect("tagged");
        let mut burst = reply(tag, &Event::DialOk { connection: 5 });
        burst.extend(encode(&Event::Receive { connection: 5, data: b"early" }));
        burst.extend(encode(&Event::End { connection: 5 }));
        socket.write_all(&burst).await.expect("write");
        socket
    };
    let (stream, _socket) = tokio::join!(client.dial("2:1000"), serve);
    let mut text = String::new();
    within("read", stream.expect("dial").read_to_string(&mut text)).await.expect("read");
    assert_eq!(text, "early");
}

/// As a daemon of the published protocol does, which takes no more while one
/// of its clients does not read.
#[tokio::test]
async fn what_was_written_is_delivered_to_a_daemon_that_writes_first() {
    let daemon = Daemon::new();
    let path = daemon.dir.path().join("p.sock");
    let options = Options::default().with_features(Features::default());
    let client = Client::connect_with(path, options).await.expect("connect");
    let (mut socket, _) = daemon.listener.accept().await.expect("accept");
    let serve = async {
        read_command(&mut socket).await;
        let answer = encode(&Event::DialOk { connection: 5 });
        socket.write_all(&answer).await.expect("write");
    };
    let (stream, ()) = tokio::join!(client.dial("2:1000"), serve);
    let mut stream = stream.expect("dial");
    let data = vec![7; 30_000];
    let mut written = 0;
    std::future::poll_fn(|cx| {
        while let Poll::Ready(n) = Pin::new(&mut stream).poll_write(cx, &data) {
            written += n.expect("write");
        }
        Poll::Ready(())
    })
    .await;
    drop((stream, client));
    let flood = encode(&Event::Receive { connection: 5, data: &[1; 60_000] });
    for _ in 0..100 {
        within("daemon's write", socket.write_all(&flood)).await.expect("write");
    }
    let mut rest = Vec::new();
    within("daemon's read", socket.read_to_end(&mut rest)).await.expect("read");
    let mut rest = rest.as_slice();
    while let Some((body, used)) = split_message(rest).expect("length") {
        match Command::parse(body).expect("a command") {
            Command::Send { connection: 5, data } => written -= data.len(),
            Command::Close { connection: 5 } => assert_eq!(written, 0, "bytes are missing"),
            other => panic!("{other:?}"),
        }
        rest = &rest[used..];
    }
    assert!(rest.is_empty() && written == 0);
}

#[tokio::test]
async fn more_than_the_credit_breaks_that_stream_only() {
    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    let serve = async {
        for connection in [5, 6] {
            let tag = read_command(&mut socket).await.expect("tagged");
            socket.write_all(&reply(tag, &Event::DialOk { connection })).await.expect("write");
        }
        let data = vec![1; 600_000];
        for _ in 0..2 {
            let flood = encode(&Event::Receive { connection: 5, data: &data });
            socket.write_all(&flood).await.expect("write");
        }
        let fine = encode(&Event::Receive { connection: 6, data: b"fine" });
        socket.write_all(&fine).await.expect("write");
        socket
    };
    let dials = async { (client.dial("2:1000").await, client.dial("2:1000").await) };
    let ((flooded, other), _socket) = tokio::join!(dials, serve);
    let mut four = [0; 4];
    within("other", other.expect("dial").read_exact(&mut four)).await.expect("read");
    let mut rest = Vec::new();
    let error = within("flooded", flooded.expect("dial").read_to_end(&mut rest)).await;
    let error = error.expect_err("protocol error");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    assert_eq!(rest.len(), 600_000, "what was allowed is kept");
}

#[tokio::test]
async fn a_message_too_long_ends_the_client() {
    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    socket.write_all(&[0, 0x10, 0, 1, 0x0E]).await.expect("write");
    let error = within("info", client.info()).await.expect_err("protocol error");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("1048577"), "{error}");
}

#[tokio::test]
async fn a_malformed_message_ends_the_client_and_an_unknown_one_does_not() {
    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    // Unknown, empty, then answers to requests never made.
    socket.write_all(&[0, 0, 0, 2, 0xEE, 1, 0, 0, 0, 0]).await.expect("write");
    socket.write_all(&reply(77, &Event::DialOk { connection: 1 })).await.expect("write");
    socket.write_all(&encode(&Event::DialOk { connection: 2 })).await.expect("write");
    let serve = async {
        // The stream nobody asked for is closed first.
        let tag = read_command(&mut socket).await;
        let tag = match tag {
            Some(tag) => tag,
            None => read_command(&mut socket).await.expect("the request"),
        };
        let info = Event::Json { code: 0x0E, body: b"{\"node_id\":9}" };
        socket.write_all(&reply(tag, &info)).await.expect("write");
        socket
    };
    let ask = async {
        // Everything above is read before this request is written.
        tokio::task::yield_now().await;
        client.info().await
    };
    let (info, mut socket) = within("info", async { tokio::join!(ask, serve) }).await;
    assert_eq!(info.expect("still alive").node_id.0, 9);
    socket.write_all(&[0, 0, 0, 2, 0x05, 1]).await.expect("write");
    let error = within("info", client.info()).await.expect_err("protocol error");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn what_is_no_daemon_is_said_so() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\0\0\0\x01\x0e", b""] {
        let daemon = Daemon::new();
        let serve = async {
            let (mut socket, _) = daemon.listener.accept().await.expect("accept");
            read_command(&mut socket).await;
            socket.write_all(answer).await.expect("write");
        };
        let connect = Client::connect_to(daemon.dir.path().join("p.sock"));
        let (result, ()) = tokio::join!(connect, serve);
        let error = result.expect_err("no daemon").to_string();
        assert!(error.contains("does not speak the daemon's protocol"), "{error}");
        assert!(error.contains("p.sock"), "{error}");
    }
}

/// A conversation with every kind of message in it.
fn conversation() -> Vec<u8> {
    let remote = SocketAddress::default();
    let events = [
        Event::Reply { id: 1, event: &[0x04, 0, 0, 0, 5] },
        Event::Receive { connection: 5, data: &[7; 300] },
        Event::Credit { connection: 5, bytes: 100 },
        Event::Accept { local_port: 1000, connection: 6, remote },
        Event::Receive { connection: 6, data: &[8; 20_000] },
        Event::ReceiveDatagram { source: remote, destination_port: 3, data: b"datagram" },
        Event::Error { code: ErrorCode::GENERAL, text: "connection 6 not found" },
        Event::Json { code: 0x0E, body: b"{}" },
        Event::End { connection: 5 },
        Event::Reset { connection: 5, code: ErrorCode::CLOSED, text: "over" },
        Event::Closed { connection: 5 },
        Event::Reply { id: 2, event: &[0x0E, b'{', b'}'] },
    ];
    events.iter().flat_map(encode).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_mutations_end_in_answers_or_errors() {
    let whole = conversation();
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at] = rng.random(),
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let end = (at + rng.random_range(0..40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let daemon = Daemon::new();
        let (client, mut socket) = daemon.connect().await;
        let mut datagrams = client.datagrams();
        let dial = async {
            if let Ok(mut stream) = client.dial("2:1000").await {
                let mut sink = Vec::new();
                let _ = stream.write_all(b"hello").await;
                let _ = stream.read_to_end(&mut sink).await;
            }
        };
        let ask = async { drop(client.info().await) };
        let listen = async {
            if let Ok(listener) = client.listen(1000).await {
                let _ = listener.accept().await;
            }
        };
        let hear = async { while datagrams.recv().await.is_ok() {} };
        let serve = async {
            socket.write_all(&bytes).await.expect("write");
            // Then the daemon goes, and with it everything that waits.
            drop(socket);
        };
        let all = async { tokio::join!(dial, ask, listen, hear, serve) };
        within(&format!("seed {seed}"), all).await;
    }
}

/// A daemon that offers a lane and answers with `file`, or grants without one.
#[cfg(target_os = "linux")]
async fn lane_from(file: Option<std::os::fd::OwnedFd>) -> (Client, pilot_sdk::Stream, UnixStream) {
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    let serve = async {
        let tag = read_command(&mut socket).await.expect("tagged");
        let mut burst = reply(tag, &Event::DialOk { connection: 5 });
        burst.extend(encode(&Event::Receive { connection: 5, data: b"before " }));
        burst.extend(encode(&Event::LaneOffer { connection: 5 }));
        socket.write_all(&burst).await.expect("write");
        let expected = {
            let mut out = Vec::new();
            Command::LaneTake { connection: 5 }.encode(&mut out);
            out
        };
        let mut got = vec![0; expected.len()];
        within("lane take", socket.read_exact(&mut got)).await.expect("read");
        assert_eq!(got, expected);
        let answer = encode(&Event::Lane { connection: 5, granted: true });
        if let Some(file) = file {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let files = [file.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&files));
            let slices = [std::io::IoSlice::new(&answer)];
            rustix::net::sendmsg(&socket, &slices, &mut control, SendFlags::empty())
                .expect("send the lane");
        } else {
            socket.write_all(&answer).await.expect("write");
        }
        socket
    };
    let (stream, socket) = tokio::join!(client.dial("2:1000"), serve);
    (client, stream.expect("dial"), socket)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lane_that_is_none_ends_its_stream_with_an_error() {
    let unsealed = tempfile::tempfile().expect("temporary file");
    let (pipe, _write) = std::io::pipe().expect("pipe");
    for file in [None, Some(unsealed.into()), Some(pipe.into())] {
        let (client, mut stream, mut socket) = lane_from(file).await;
        let mut text = String::new();
        let error = within("read", stream.read_to_string(&mut text)).await.expect_err("no lane");
        assert!(error.to_string().contains("lane"), "{error}");
        // The client itself goes on: it closes the stream and asks for another.
        let mut rest = bytes::BytesMut::new();
        let asked = async {
            loop {
                let commands = split_message(&rest).expect("length");
                if let Some((body, used)) = commands {
                    if let Command::Request { .. } = Command::parse(body).expect("a command") {
                        return;
                    }
                    let _ = rest.split_to(used);
                    continue;
                }
                assert_ne!(socket.read_buf(&mut rest).await.expect("read"), 0, "it is gone");
            }
        };
        tokio::select! {
            _ = client.dial("2:1") => panic!("nobody answers"),
            () = within("another request", asked) => {}
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lane_carries_both_ways_until_its_daemon_lies() {
    use std::sync::Arc;

    use pilot_lane::{Consumer, Direction, Memory, Producer};
    use pilot_wire::ipc::lane::{CAPACITY, Index};

    let (memory, file) = Memory::create().expect("lane");
    let liar = rustix::io::dup(&file).expect("dup");
    let memory = Arc::new(memory);
    let mut down = Producer::new(Arc::clone(&memory), Direction::Down);
    let mut up = Consumer::new(memory, Direction::Up);
    let (_client, mut stream, mut socket) = lane_from(Some(file)).await;

    assert_eq!(down.write(b"and through the lane"), Ok(20));
    let mut text = [0; 27];
    within("read", stream.read_exact(&mut text)).await.expect("read");
    assert_eq!(&text, b"before and through the lane");

    // The reader's sleep is told of, and a kick ends it.
    let read = async {
        let mut more = [0; 4];
        within("read", stream.read_exact(&mut more)).await.expect("read");
        more
    };
    let write = async {
        tokio::task::yield_now().await;
        assert_eq!(down.write(b"more"), Ok(4));
        if down.must_kick() {
            socket.write_all(&encode(&Event::LaneKick { connection: 5 })).await.expect("write");
        }
    };
    let (more, ()) = tokio::join!(read, write);
    assert_eq!(&more, b"more");

    stream.write_all(b"upwards").await.expect("write");
    let mut begin = Vec::new();
    Command::LaneBegin { connection: 5 }.encode(&mut begin);
    let mut got = vec![0; begin.len()];
    within("begin", socket.read_exact(&mut got)).await.expect("read");
    assert_eq!(got, begin);
    assert_eq!(up.take(100).expect("sound"), b"upwards");

    let lie = |direction: Direction, index: Index| {
        let value = (CAPACITY * 2 + 9).to_ne_bytes();
        rustix::io::pwrite(&liar, &value, direction.index(index) as u64).expect("lie");
    };
    lie(Direction::Down, Index::Head);
    let error = within("read", stream.read(&mut [0; 10])).await.expect_err("a lie");
    assert!(error.to_string().contains("lane"), "{error}");
    lie(Direction::Up, Index::Tail);
    let error = within("write", stream.write(b"x")).await.expect_err("a lie");
    assert!(error.to_string().contains("lane"), "{error}");
}

#[tokio::test]
async fn a_lane_nobody_asked_for_is_ignored() {
    let daemon = Daemon::new();
    let (client, mut socket) = daemon.connect().await;
    let serve = async {
        let tag = read_command(&mut socket).await.expect("tagged");
        let mut burst = reply(tag, &Event::DialOk { connection: 5 });
        burst.extend(encode(&Event::Lane { connection: 5, granted: true }));
        burst.extend(encode(&Event::LaneKick { connection: 5 }));
        burst.extend(encode(&Event::LaneKick { connection: 6 }));
        burst.extend(encode(&Event::LaneOffer { connection: 6 }));
        burst.extend(encode(&Event::Receive { connection: 5, data: b"as before" }));
        burst.extend(encode(&Event::End { connection: 5 }));
        socket.write_all(&burst).await.expect("write");
        socket
    };
    let (stream, _socket) = tokio::join!(client.dial("2:1000"), serve);
    let mut text = String::new();
    within("read", stream.expect("dial").read_to_string(&mut text)).await.expect("read");
    assert_eq!(text, "as before");
}
