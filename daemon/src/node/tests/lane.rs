//! Clients that share memory with the node, honest ones and others.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pilot_lane::{Consumer, Direction, Memory, Producer};
use pilot_wire::ipc::lane::{CAPACITY, Index};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::*;

const CREDIT: u32 = 1 << 20;
/// Enough for an offer.
const BULK: usize = 600 << 10;

/// A client's end of a lane.
struct ClientLane {
    id: u32,
    up: Producer,
    down: Consumer,
    file: OwnedFd,
}

impl ClientLane {
    /// Says that the other index is somewhere else.
    fn lie(&self, direction: Direction, index: Index, value: u32) {
        let at = direction.index(index) as u64;
        rustix::io::pwrite(&self.file, &value.to_ne_bytes(), at).unwrap();
    }

    /// Writes all of `data`, waiting for kicks.
    async fn send(&mut self, client: &mut TestClient, data: &[u8]) {
        let mut sent = 0;
        while sent < data.len() {
            let n = self.up.write(&data[sent..]).unwrap();
            sent += n;
            if n > 0 && self.up.must_kick() {
                client.tell(&Command::LaneKick { connection: self.id }).await;
            }
            if n == 0 && self.up.wait().unwrap() {
                client.hears(Event::LaneKick { connection: self.id }).await;
            }
        }
    }

    /// Reads `total` bytes, waiting for kicks; gives their hash.
    async fn receive(&mut self, client: &mut TestClient, total: usize) -> [u8; 32] {
        let (mut hash, mut got) = (Sha256::new(), 0);
        while got < total {
            let data = self.down.take(100_000).unwrap();
            got += data.len();
            hash.update(&data);
            if !data.is_empty() && self.down.must_kick() {
                client.tell(&Command::LaneKick { connection: self.id }).await;
            }
            if data.is_empty() && self.down.sleep().unwrap() {
                client.hears(Event::LaneKick { connection: self.id }).await;
            }
        }
        assert_eq!(got, total);
        hash.finalize().into()
    }
}

impl TestNode {
    async fn lane_client(&self) -> TestClient {
        self.client_with(CREDIT, Features::ALL).await
    }
}

impl TestClient {
    /// Hears until an offer for `id` has come; credit does not matter.
    async fn offered(&mut self, id: u32) {
        loop {
            let message = self.hear().await;
            match message.event() {
                Event::LaneOffer { connection } if connection == id => return,
                Event::Credit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes what was offered.
    async fn take_lane(&mut self, id: u32) -> ClientLane {
        self.tell(&Command::LaneTake { connection: id }).await;
        let mut files: Vec<OwnedFd> = Vec::new();
        while files.is_empty() {
            self.receive_with_files(&mut files).await;
        }
        loop {
            let message = self.hear().await;
            match message.event() {
                Event::Credit { .. } => {}
                Event::Lane { connection, granted: true } if connection == id => break,
                other => panic!("{other:?}"),
            }
        }
        let file = files.remove(0);
        let memory = Arc::new(Memory::open(&file).unwrap());
        let up = Producer::new(Arc::clone(&memory), Direction::Up);
        ClientLane { id, up, down: Consumer::new(memory, Direction::Down), file }
    }

    async fn receive_with_files(&mut self, files: &mut Vec<OwnedFd>) {
        let socket = self.reader.reader.as_ref();
        tokio::time::timeout(STEP, socket.readable()).await.expect("no lane").unwrap();
        let mut bytes = [0; 4096];
        let got = socket.try_io(tokio::io::Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = rustix::net::recvmsg(socket, &mut slices, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    files.extend(received);
                }
            }
            Ok(got.bytes)
        });
        match got {
            Ok(n) => self.reader.buffer.extend_from_slice(&bytes[..n]),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

/// Two nodes, a client each, and a stream between them that has a lane at its
/// first end only.
struct Scene {
    a: TestNode,
    b: TestNode,
    ca: TestClient,
    cb: TestClient,
    lane: ClientLane,
    ib: u32,
}

async fn scene() -> Scene {
    let (a, b) = pair().await;
    let (mut ca, mut cb) = (a.lane_client().await, b.hello_client(u32::MAX).await);
    cb.bind(1000).await;
    let ia = ca.dial(b.at(1000)).await;
    let ib = cb.accept(1000).await;
    send_all(&mut ca.writer, ia, &vec![0; BULK]).await;
    cb.receive(ib, BULK, false).await;
    ca.offered(ia).await;
    let lane = ca.take_lane(ia).await;
    Scene { a, b, ca, cb, lane, ib }
}

/// Hears of the end of all on a connection; what else comes on the way is not
/// of interest.
async fn hears_reset(client: &mut TestClient, id: u32) -> (ErrorCode, String) {
    loop {
        let message = client.hear().await;
        if let Event::Reset { connection, code, text } = message.event() {
            assert_eq!(connection, id);
            return (code, text.to_owned());
        }
    }
}

async fn still_serves(a: &TestNode, b: &TestNode) {
    let mut client = a.client().await;
    let id = client.dial(b.at(7)).await;
    client.tell(&Command::Send { connection: id, data: b"still there?" }).await;
    client.hears(Event::Receive { connection: id, data: b"still there?" }).await;
}

#[test]
fn data_crosses_both_ways_and_ends_where_it_should() {
    run_test(async {
        let Scene { mut ca, mut cb, mut lane, ib, a: _a, b: _b } = scene().await;
        let id = lane.id;
        let data = pattern(8 << 20, 3);
        let forth = async {
            // The last bytes through the socket come before the first in the ring.
            ca.tell(&Command::Send { connection: id, data: &data[..1000] }).await;
            ca.tell(&Command::LaneBegin { connection: id }).await;
            lane.send(&mut ca, &data[1000..]).await;
            ca.tell(&Command::Shutdown { connection: id }).await;
        };
        let (_, got) = tokio::join!(forth, cb.receive(ib, data.len(), false));
        assert_eq!(got, sha256(&data));
        cb.hears(Event::End { connection: ib }).await;

        let mut credit = cb.first_credit as usize;
        let back = async {
            for part in data.chunks(60_000) {
                while credit < part.len() {
                    let message = cb.hear().await;
                    let Event::Credit { bytes, .. } = message.event() else { continue };
                    credit += bytes as usize;
                }
                credit -= part.len();
                cb.tell(&Command::Send { connection: ib, data: part }).await;
            }
            cb.tell(&Command::Shutdown { connection: ib }).await;
        };
        let (_, got) = tokio::join!(back, lane.receive(&mut ca, data.len()));
        assert_eq!(got, sha256(&data));
        loop {
            let message = ca.hear().await;
            match message.event() {
                Event::LaneKick { .. } => {}
                Event::End { connection } => {
                    assert_eq!(connection, id);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(lane.down.available(), Ok(0), "nothing comes after the end");
        ca.hears(Event::Closed { connection: id }).await;
    });
}

#[test]
fn what_lies_in_the_ring_is_delivered_however_the_client_ends() {
    for way in ["shutdown", "close", "death"] {
        run_test(async {
            let Scene { mut ca, mut cb, mut lane, ib, a: _a, b: _b } = scene().await;
            let id = lane.id;
            let data = pattern(CAPACITY as usize, 4);
            ca.tell(&Command::LaneBegin { connection: id }).await;
            // A whole ring without a kick: only the end tells of it.
            assert_eq!(lane.up.write(&data), Ok(data.len()));
            match way {
                "shutdown" => ca.tell(&Command::Shutdown { connection: id }).await,
                "close" => ca.tell(&Command::Close { connection: id }).await,
                _ => drop(ca),
            }
            assert_eq!(cb.receive(ib, data.len(), false).await, sha256(&data), "{way}");
            cb.hears(Event::End { connection: ib }).await;
        });
    }
}

#[test]
fn indices_that_cannot_be_break_their_connection_alone() {
    for (direction, index) in [(Direction::Up, Index::Head), (Direction::Down, Index::Tail)] {
        run_test(async {
            let Scene { a, b, mut ca, mut cb, lane, ib } = scene().await;
            let id = lane.id;
            ca.tell(&Command::LaneBegin { connection: id }).await;
            lane.lie(direction, index, CAPACITY * 3 + 1);
            // Gives the node a reason to look at each direction.
            cb.tell(&Command::Send { connection: ib, data: b"hello" }).await;
            ca.tell(&Command::LaneKick { connection: id }).await;
            let (code, text) = hears_reset(&mut ca, id).await;
            assert_eq!(code, ErrorCode::INVALID_ARGUMENT);
            assert!(text.starts_with("lane: "), "{text}");
            hears_reset(&mut cb, ib).await;
            still_serves(&a, &b).await;
        });
    }
}

#[test]
fn flags_and_bytes_may_be_anything_at_any_time() {
    run_test(async {
        let Scene { a, b, mut ca, mut cb, mut lane, ib } = scene().await;
        let id = lane.id;
        ca.tell(&Command::LaneBegin { connection: id }).await;
        let data = pattern(4 << 20, 5);
        let forth = async {
            for (n, part) in data.chunks(10_000).enumerate() {
                for direction in [Direction::Up, Direction::Down] {
                    lane.lie(direction, Index::Sleeps, n as u32 * 7);
                    lane.lie(direction, Index::Waits, u32::MAX - n as u32);
                }
                let mut sent = 0;
                while sent < part.len() {
                    sent += lane.up.write(&part[sent..]).unwrap();
                    ca.tell(&Command::LaneKick { connection: id }).await;
                }
            }
        };
        let (_, got) = tokio::join!(forth, cb.receive(ib, data.len(), false));
        assert_eq!(got, sha256(&data));
        still_serves(&a, &b).await;
    });
}

#[test]
fn lane_messages_without_a_lane_do_nothing() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.lane_client().await;
        let id = client.dial(b.at(7)).await;
        for connection in [id, 0, u32::MAX] {
            client.tell(&Command::LaneTake { connection }).await;
            client.hears(Event::Lane { connection, granted: false }).await;
            for _ in 0..2000 {
                client.tell(&Command::LaneKick { connection }).await;
                client.tell(&Command::LaneBegin { connection }).await;
            }
        }
        client.tell(&Command::Send { connection: id, data: b"echo" }).await;
        client.hears(Event::Receive { connection: id, data: b"echo" }).await;
        still_serves(&a, &b).await;
    });
}

#[test]
fn a_lane_is_taken_once() {
    run_test(async {
        let Scene { a, b, mut ca, lane, cb: _cb, ib: _ } = scene().await;
        let connection = lane.id;
        for _ in 0..100 {
            ca.tell(&Command::LaneTake { connection }).await;
            ca.hears(Event::Lane { connection, granted: false }).await;
        }
        still_serves(&a, &b).await;
    });
}

#[test]
fn lanes_of_a_client_are_bounded_and_come_back() {
    run_test(async {
        let (a, b) = pair().await;
        let (mut ca, mut cb) = (a.lane_client().await, b.hello_client(u32::MAX).await);
        cb.bind(1000).await;
        let mut streams = Vec::new();
        for _ in 0..17 {
            let ia = ca.dial(b.at(1000)).await;
            let ib = cb.accept(1000).await;
            streams.push((ia, ib));
        }
        let data = vec![1; BULK];
        for (n, &(ia, ib)) in streams.iter().enumerate() {
            send_all(&mut ca.writer, ia, &data).await;
            cb.receive(ib, BULK, false).await;
            if n < 16 {
                ca.offered(ia).await;
            }
        }
        let (last, last_ib) = streams[16];
        // An answer comes, an offer did not.
        ca.tell(&Command::LaneTake { connection: last }).await;
        loop {
            let message = ca.hear().await;
            match message.event() {
                Event::Credit { .. } => {}
                Event::Lane { connection, granted: false } if connection == last => break,
                other => panic!("{other:?}"),
            }
        }
        // The first one ends, and its lane with it.
        let (first, first_ib) = streams[0];
        ca.tell(&Command::Shutdown { connection: first }).await;
        cb.hears(Event::End { connection: first_ib }).await;
        cb.tell(&Command::Shutdown { connection: first_ib }).await;
        cb.hears(Event::Closed { connection: first_ib }).await;
        while ca.hear().await.event() != (Event::Closed { connection: first }) {}
        send_all(&mut ca.writer, last, &data).await;
        cb.receive(last_ib, BULK, false).await;
        ca.offered(last).await;
    });
}

#[test]
fn a_full_ring_stops_its_own_stream_only() {
    run_test(async {
        let Scene { b, mut ca, mut cb, mut lane, ib, a: _a } = scene().await;
        // More than the ring holds, and within the first credit.
        let data = pattern(900 << 10, 6);
        send_all(&mut cb.writer, ib, &data).await;
        let other = ca.dial(b.at(7)).await;
        ca.tell(&Command::Send { connection: other, data: b"through" }).await;
        loop {
            let message = ca.hear().await;
            match message.event() {
                Event::LaneKick { .. } => {}
                Event::Receive { connection, data } => {
                    assert_eq!((connection, data), (other, &b"through"[..]));
                    break;
                }
                event => panic!("{event:?}"),
            }
        }
        assert!(lane.down.available().unwrap() <= CAPACITY as usize);
        assert_eq!(lane.receive(&mut ca, data.len()).await, sha256(&data));
    });
}
