//! Lanes: connections that carry much leave the driver socket for memory shared
//! with their client (`pilot_lane`).
//!
//! A lane is offered by the socket's traffic, taken by the client, and goes with
//! its connection. Messages keep their meaning: what the client wrote before a
//! shutdown, a close or its own end is taken out of the ring first, and the end
//! of the peer's data is told after all of it is in the ring. The ring is the
//! credit: what the core does not take stays there.

mod pool;

use std::sync::Arc;

use bytes::Bytes;
use pilot_core::{Core, Read, StreamId, Time};
use pilot_lane::{Consumer, Direction, LaneFault, Memory, Producer};
use pilot_wire::ipc::{ErrorCode, Event, Features};
use tracing::{debug, warn};

use self::pool::Pool;
use super::conn::Conn;
use super::hub::Hub;
use crate::ipc::client::Client;

/// A connection is offered a lane when it has moved so many bytes: setting one
/// up costs about as much as that through the socket.
const BULK: u32 = 512 << 10;
/// Lanes of one client; its other connections stay with the socket.
const CLIENT_LANES: usize = 16;
/// Bytes taken out of one ring before others have their turn.
const PASS: usize = 512 << 10;
/// Bytes per piece handed to the core. Larger ones would each be a mapping of
/// their own for the allocator.
const PIECE: usize = 64 << 10;
/// A piece of at least this size lies in a buffer of the lane's pool.
const POOLED: usize = PIECE / 2;
/// What a client needs to have for a lane.
const NEEDED: Features = Features(Features::LANE.0 | Features::CREDIT.0 | Features::HALF_CLOSE.0);
/// What is told when a ring's indices cannot be.
const LIED: &str =
    "lane: the client wrote indices that cannot be; each side may move its own index only";

/// How far a connection is on its way to a lane.
pub(crate) enum Lane {
    /// Bytes moved through the socket so far.
    Counting(u32),
    /// The client may take one.
    Offered(Box<Permit>),
    /// There will be none.
    Refused,
    /// In use.
    Open(Box<OpenLane>),
}

/// The daemon's ends.
pub(crate) struct OpenLane {
    up: Consumer,
    down: Producer,
    pool: Arc<Pool>,
    from: Source,
    _permit: Box<Permit>,
}

/// Where the client's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Still from the socket.
    Socket,
    /// From the ring.
    Ring,
    /// From nowhere: its writing side has ended.
    Nowhere,
}

/// Counts for the daemon and for the client, until it is dropped.
pub(crate) struct Permit {
    _all: Arc<()>,
    _client: Arc<()>,
}

/// How many lanes there may be.
pub(crate) struct Lanes {
    max: usize,
    taken: Arc<()>,
}

impl Lanes {
    pub(crate) fn new(max: usize) -> Self {
        Self { max: if pilot_lane::SUPPORTED { max } else { 0 }, taken: Arc::default() }
    }

    /// Counts bytes that went through the socket, and offers a lane when they
    /// are many.
    pub(crate) fn count(&self, client: &mut Client, id: u32, conn: &mut Conn, bytes: usize) {
        let Lane::Counting(moved) = &mut conn.lane else { return };
        *moved = moved.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if *moved < BULK || !client.has(NEEDED) {
            return;
        }
        let free = Arc::strong_count(&self.taken) <= self.max
            && Arc::strong_count(&client.lane_permits) <= CLIENT_LANES;
        if !free {
            // To be looked at again.
            *moved = 0;
            return;
        }
        let permit = Permit { _all: self.taken.clone(), _client: Arc::clone(&client.lane_permits) };
        conn.lane = Lane::Offered(Box::new(permit));
        client.send(&Event::LaneOffer { connection: id });
    }
}

impl Lane {
    /// The lane, if the client's bytes come through it.
    fn begun(&mut self) -> Option<&mut OpenLane> {
        match self {
            Self::Open(lane) if lane.from == Source::Ring => Some(lane),
            _ => None,
        }
    }

    /// Whether the client needs no credit any more.
    pub(crate) fn is_credit(&self) -> bool {
        matches!(self, Self::Open(lane) if lane.from != Source::Socket)
    }

    /// Hands everything that the client has written to the core: at most a ring
    /// more than the core's send buffer, once, before the writing side ends.
    pub(crate) fn finish(&mut self, core: &mut Core, id: u32, now: Time) {
        let Some(lane) = self.begun() else { return };
        // Not more than one ring, even if a client goes on writing.
        for _ in 0..pilot_wire::ipc::lane::CAPACITY as usize / PIECE + 1 {
            match lane.next_piece(PIECE) {
                Ok(data) if data.is_empty() => break,
                Ok(data) => {
                    if core.write(StreamId(id), data, now).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    debug!(connection = id, %error, "what a client left in its lane is lost");
                    core.reset(StreamId(id));
                    break;
                }
            }
        }
        lane.from = Source::Nowhere;
    }
}

/// What became of a pass.
struct Passed {
    /// The client waits and is to be kicked.
    kick: bool,
    /// There is more to do.
    more: bool,
}

impl OpenLane {
    /// What lies next in the ring, `max` bytes at most; empty when nothing does.
    fn next_piece(&mut self, max: usize) -> Result<Bytes, LaneFault> {
        let max = max.min(PIECE);
        if self.up.available()?.min(max) < POOLED {
            return Ok(self.up.take(max)?.into());
        }
        let mut buffer = self.pool.buffer();
        buffer.reserve_exact(PIECE);
        self.up.append(max, &mut buffer)?;
        Ok(self.pool.lend(buffer))
    }

    /// From the client to the core.
    fn pass_up(&mut self, core: &mut Core, id: u32, now: Time) -> Result<Passed, LaneFault> {
        let stream = StreamId(id);
        let mut passed = 0;
        let more = loop {
            let room = core.writable(stream);
            if room == 0 {
                // The core tells when there is some.
                break false;
            }
            if passed >= PASS {
                break true;
            }
            let data = self.next_piece(room)?;
            if data.is_empty() {
                if self.up.sleep()? {
                    break false;
                }
                continue;
            }
            passed += data.len();
            if core.write(stream, data, now).is_err() {
                break false;
            }
        };
        Ok(Passed { kick: passed > 0 && self.up.must_kick(), more })
    }

    /// From the core to the client. The second value is whether the peer's data
    /// has ended.
    fn pass_down(
        &mut self,
        core: &mut Core,
        id: u32,
        readable: &mut bool,
    ) -> Result<(Passed, bool), LaneFault> {
        let stream = StreamId(id);
        let (mut passed, mut end) = (0, false);
        let more = loop {
            let room = self.down.room()?;
            if room == 0 {
                if self.down.wait()? {
                    break false;
                }
                continue;
            }
            if passed >= PASS {
                break true;
            }
            match core.read(stream, room) {
                Read::Data(data) => passed += self.down.write(&data)?,
                Read::Blocked => {
                    *readable = false;
                    break false;
                }
                Read::End => {
                    *readable = false;
                    end = true;
                    break false;
                }
            }
        };
        Ok((Passed { kick: passed > 0 && self.down.must_kick(), more }, end))
    }
}

impl Hub {
    /// The client wants the lane it was offered.
    pub(crate) fn lane_take(&mut self, client: &mut Client, id: u32) {
        let granted = self.open_lane(client, id);
        if !granted {
            client.send(&Event::Lane { connection: id, granted: false });
        }
    }

    fn open_lane(&mut self, client: &mut Client, id: u32) -> bool {
        let Some(conn) = self.owned(client, id) else { return false };
        if !matches!(conn.lane, Lane::Offered(_)) {
            return false;
        }
        let Lane::Offered(permit) = std::mem::replace(&mut conn.lane, Lane::Refused) else {
            return false;
        };
        let (memory, file) = match Memory::create() {
            Ok((memory, file)) => (Arc::new(memory), file),
            Err(error) => {
                warn!(connection = id, %error, "no lane can be made; the socket is used");
                return false;
            }
        };
        let up = Consumer::new(Arc::clone(&memory), Direction::Up);
        let down = Producer::new(memory, Direction::Down);
        conn.lane = Lane::Open(Box::new(OpenLane {
            up,
            down,
            pool: Arc::default(),
            from: Source::Socket,
            _permit: permit,
        }));
        // The ring is the credit from here on.
        conn.receive_credit = u64::MAX;
        client.send_descriptor(&Event::Lane { connection: id, granted: true }, file);
        self.lane_kick(client, id);
        true
    }

    /// What the client writes from here on is in the ring.
    pub(crate) fn lane_begin(&mut self, client: &mut Client, id: u32) {
        let Some(conn) = self.owned(client, id) else { return };
        if let Lane::Open(lane) = &mut conn.lane
            && lane.from == Source::Socket
        {
            lane.from = Source::Ring;
            self.pass_up(client, id);
        }
    }

    /// The client has moved an index of a ring that was waited for.
    pub(crate) fn lane_kick(&mut self, client: &mut Client, id: u32) {
        let Some(conn) = self.owned(client, id) else { return };
        if !matches!(conn.lane, Lane::Open(_)) {
            return;
        }
        if conn.readable && !conn.queued {
            conn.queued = true;
            client.readable.push_back(id);
        }
        self.pass_up(client, id);
    }

    /// Passes on what a client has written to its ring.
    pub(crate) fn pass_up(&mut self, client: &mut Client, id: u32) {
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !conn.over) else { return };
        let Some(lane) = conn.lane.begun() else { return };
        match lane.pass_up(&mut self.core, id, now) {
            Ok(passed) => {
                if passed.kick {
                    client.send(&Event::LaneKick { connection: id });
                }
                if passed.more {
                    // At most as many as it has lanes.
                    if !client.lanes.contains(&id) {
                        client.lanes.push(id);
                    }
                    client.notify();
                }
            }
            Err(error) => self.lane_fault(id, error),
        }
    }

    /// Passes on what the peer has sent on a connection with a lane.
    pub(crate) fn pass_down(&mut self, client: &mut Client, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Lane::Open(lane) = &mut conn.lane else { return };
        match lane.pass_down(&mut self.core, id, &mut conn.readable) {
            Ok((passed, end)) => {
                if passed.kick {
                    client.send(&Event::LaneKick { connection: id });
                }
                if passed.more {
                    conn.queued = true;
                    client.readable.push_back(id);
                }
                if end && !conn.ended {
                    conn.ended = true;
                    conn.say_finished(&self.events, id);
                    client.send(&Event::End { connection: id });
                }
            }
            Err(error) => self.lane_fault(id, error),
        }
    }

    /// Hands everything that clients have written to the core.
    pub(crate) fn finish_lanes(&mut self, now: Time) {
        for (id, conn) in &mut self.conns {
            if !conn.over {
                conn.lane.finish(&mut self.core, *id, now);
            }
        }
    }

    fn lane_fault(&mut self, id: u32, error: LaneFault) {
        debug!(connection = id, %error, "a client broke its lane");
        self.break_conn(id, ErrorCode::INVALID_ARGUMENT, LIED);
    }
}
