//! Acknowledged means durable: what writes is killed at random moments, again
//! and again, and what the system had not yet synced is torn; after each start
//! every acknowledged write is there, and none half done.
//!
//! `PILOT_KILLS` sets how often (25).

mod client;
mod stored;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{Client, Identity, PATIENCE, Program, eventually};
use pilot_registry::state::{Command, Op, State};
use pilot_registry::store::{CommandLog as _, Reader};
use pilot_wire::registry::{FrameBuffer, append_frame};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use stored::{command, open, rows};

const CONNECTIONS: u32 = 6;
/// Registrations, and as many other changes, of a connection at a time.
const PIPELINE: u32 = 8;

fn kills() -> u32 {
    let text = std::env::var("PILOT_KILLS").unwrap_or_else(|_| "25".to_owned());
    text.parse().expect("PILOT_KILLS is a number")
}

/// Where a file of SQLite's log ends, and where its last whole transaction
/// begins, in bytes (SQLite's file format, "The Write-Ahead Log").
struct Wal {
    last_begins: usize,
    ends: usize,
}

impl Wal {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().expect("4 bytes")))
        };
        let page = number(8)? as usize;
        let salt = bytes.get(16..24)?;
        let mut ends = vec![32];
        let mut at = 32;
        while let Some(frame) = bytes.get(at..at + 24 + page) {
            // What is left of an earlier round has other salts.
            if &frame[8..16] != salt {
                break;
            }
            at += frame.len();
            if frame[4..8] != [0; 4] {
                ends.push(at);
            }
        }
        let last = ends.pop()?;
        Some(Self { last_begins: *ends.last().unwrap_or(&32), ends: last })
    }
}

/// Does to the file what a lost power does to what was written and not synced.
/// If anything of the last batch was acknowledged, that batch was synced.
fn tear(store: &Path, random: &mut StdRng, acknowledged: impl Fn(&[Command]) -> bool) {
    let wal = store.with_file_name("registry.db-wal");
    let Ok(mut bytes) = std::fs::read(&wal) else { return };
    let Some(parts) = Wal::parse(&bytes) else { return };
    let last: Option<Vec<Command>> = {
        let db = rusqlite::Connection::open_with_flags(
            store,
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        )
        .unwrap();
        let sql = "SELECT commands FROM log ORDER BY first DESC LIMIT 1";
        let stored = db.query_row(sql, [], |row| row.get::<_, Vec<u8>>(0));
        stored.ok().map(|bytes| serde_json::from_slice(&bytes).unwrap())
    };
    // Without a batch the last transaction is a checkpoint, which says nothing
    // that was not there before.
    let synced = match last {
        Some(last) if acknowledged(&last) => parts.ends,
        Some(_) => parts.last_begins,
        None => parts.ends,
    };
    let cut = random.random_range(synced..=bytes.len());
    match random.random_range(0..3) {
        // The file was never made so long.
        0 => bytes.truncate(cut),
        // It was, and the blocks were never written.
        1 => bytes[cut..].fill(0),
        _ => {
            let tail = bytes.len() - cut;
            if tail > 0 {
                let from = cut + random.random_range(0..tail);
                let to = from + random.random_range(0..=bytes.len() - from);
                bytes[from..to].fill(0xA5);
            }
        }
    }
    std::fs::write(&wal, bytes).unwrap();
    // Memory that does not outlive the machine.
    let _ = std::fs::remove_file(store.with_file_name("registry.db-shm"));
}

/// What one connection was told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Key and hostname by node.
    nodes: BTreeMap<u64, (String, String)>,
    /// Of the connection's first node: its number, the number of the last
    /// change acknowledged, and of the last one sent.
    tagged: Option<(u64, u32, u32)>,
}

/// Registers nodes and changes the first one until the far end is dead.
fn write_until_killed(addr: SocketAddr, lane: u32, count: &AtomicUsize) -> Told {
    let mut told = Told::default();
    // Others may have been quick, and it is dead already.
    let Ok(mut stream) = TcpStream::connect(addr) else { return told };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut input = FrameBuffer::new();
    let first = Identity::new(lane << 16);
    for batch in 0u32.. {
        let mut out = Vec::new();
        let mut tags = Vec::new();
        for n in 0..PIPELINE {
            let serial = (lane << 16) + batch * PIPELINE + n;
            let mut request = Identity::new(serial).register();
            request["hostname"] = format!("n{serial}").into();
            append_frame(&mut out, &request).unwrap();
            if let Some((node, _, sent)) = &mut told.tagged {
                *sent += 1;
                let tag = [format!("a{sent}"), format!("b{sent}")];
                let request = first.signed("set_tags", *node, json!({"tags": tag}));
                append_frame(&mut out, &request).unwrap();
                tags.push(*sent);
            }
        }
        if stream.write_all(&out).is_err() {
            return told;
        }
        let mut tags = tags.into_iter();
        let expected = PIPELINE as usize + tags.len();
        for _ in 0..expected {
            let Some(reply) = next_reply(&mut stream, &mut input) else { return told };
            if reply["type"] == "set_tags_ok" {
                if let (Some(tagged), Some(n)) = (&mut told.tagged, tags.next()) {
                    tagged.1 = n;
                }
            } else {
                assert_eq!(reply["type"], "register_ok", "{reply}");
                let text = |key: &str| reply[key].as_str().unwrap().to_owned();
                let node = reply["node_id"].as_u64().unwrap();
                let given = told.nodes.insert(node, (text("public_key"), text("hostname")));
                assert_eq!(given, None, "a number was given twice");
                if told.tagged.is_none() {
                    told.tagged = Some((node, 0, 0));
                }
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    told
}

/// The next whole answer; none once the far end is dead.
fn next_reply(stream: &mut TcpStream, input: &mut FrameBuffer) -> Option<Value> {
    use std::io::Read as _;
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(body) = input.next_body().unwrap() {
            return Some(serde_json::from_slice(body).unwrap());
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => input.push(&chunk[..n]),
            _ => return None,
        }
    }
}

fn lookups(client: &mut Client, nodes: impl Iterator<Item = u64>) -> Vec<Value> {
    let requests: Vec<_> = nodes.map(|id| json!({"type": "lookup", "node_id": id})).collect();
    requests.chunks(256).flat_map(|chunk| client.ask_all(chunk)).collect()
}

fn verify(addr: SocketAddr, all: &[Told]) {
    let mut client = Client::connect(addr);
    for told in all {
        let replies = lookups(&mut client, told.nodes.keys().copied());
        for ((id, (key, hostname)), reply) in told.nodes.iter().zip(replies) {
            assert_eq!(reply["public_key"], key.as_str(), "node {id} was lost: {reply}");
            assert_eq!(reply["hostname"], hostname.as_str(), "name of node {id} was lost");
        }
        let Some((node, acknowledged, sent)) = told.tagged else { continue };
        let reply = lookups(&mut client, std::iter::once(node)).remove(0);
        let tag = |at: usize| reply["tags"][at].as_str().map_or(0, |t| t[1..].parse().unwrap());
        let (a, b): (u32, u32) = (tag(0), tag(1));
        assert_eq!(a, b, "half a change of node {node}: {reply}");
        assert!((acknowledged..=sent).contains(&a), "{acknowledged} <= {a} <= {sent}");
    }
}

fn start(store: &Path) -> Program {
    let store = store.to_str().unwrap();
    Program::start(
        env!("CARGO_BIN_EXE_pilot-registry"),
        &["-addr", "127.0.0.1:0", "-store", store, "--register-rate=0"],
    )
}

#[test]
fn kill_9_and_torn_writes_lose_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db");
    let mut random = StdRng::seed_from_u64(0x0DD5);
    let mut all: Vec<Told> = Vec::new();
    for kill in 0..kills() {
        let registry = start(&store);
        let addr = registry.addr("addr");
        verify(addr, &all);
        let count = AtomicUsize::new(0);
        let enough = random.random_range(20..900);
        // Anywhere within a write, which takes some of these.
        let then = Duration::from_micros(random.random_range(0..4000));
        let told: Vec<Told> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..CONNECTIONS)
                .map(|lane| {
                    let (count, lane) = (&count, 1 + kill * CONNECTIONS + lane);
                    scope.spawn(move || write_until_killed(addr, lane, count))
                })
                .collect();
            eventually("enough writes are acknowledged", || {
                count.load(Ordering::Relaxed) >= enough
            });
            std::thread::sleep(then);
            registry.kill();
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
        });
        all.extend(told);
        let is_acknowledged = |commands: &[Command]| {
            commands.iter().any(|command| match &command.op {
                Op::Register(register) => all
                    .iter()
                    .any(|told| told.nodes.values().any(|(_, name)| *name == register.hostname)),
                Op::SetTags { by, tags } => all.iter().any(|told| {
                    let number = tags[0][1..].parse::<u32>().unwrap();
                    told.tagged.is_some_and(|(node, acknowledged, _)| {
                        node == u64::from(by.node.0) && number <= acknowledged
                    })
                }),
                _ => false,
            })
        };
        tear(&store, &mut random, is_acknowledged);
    }
    let registry = start(&store);
    verify(registry.addr("addr"), &all);
    assert!(registry.terminate());
    let acknowledged: usize = all.iter().map(|told| told.nodes.len()).sum();
    assert!(acknowledged > 20 * kills() as usize / 2, "{acknowledged}");
}

/// Set for the process that is killed: the file it writes to.
const CHILD: &str = "PILOT_CRASH_CHILD";
/// Commands of a batch of it at most, and after how many a checkpoint comes.
const BATCH: u32 = 24;
const CHECKPOINT: u64 = 300;

/// Writes numbered commands, with a checkpoint every few batches, and says
/// after each batch what is acknowledged.
fn write_for_ever(store: &Path) {
    let (log, mut state) = open(store);
    let mut log = log.checkpoint_after(CHECKPOINT);
    loop {
        let from = u32::try_from(state.applied()).unwrap();
        let commands: Vec<_> = (from..from + 1 + from % BATCH).map(command).collect();
        log.append(state.applied() + 1, &commands).unwrap();
        for command in &commands {
            let _ = state.apply(command);
        }
        println!("\nacknowledged {}", state.applied());
        if log.wants_checkpoint() {
            log.checkpoint(state.applied(), &state.take_dirty()).unwrap();
        }
    }
}

/// The same below the server, where checkpoints are as frequent as batches and
/// the whole state can be compared: it is that of the first so many commands.
#[test]
fn checkpoints_cut_off_anywhere_are_whole_or_not_there() {
    if let Some(store) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&store));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db");
    let mut random = StdRng::seed_from_u64(0xC4EC);
    let mut expected = State::default();
    let mut acknowledged = 0;
    for kill in 0..kills() {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoints_cut_off_anywhere_are_whole_or_not_there"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, &store)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let enough = acknowledged + random.random_range(1..900);
        let then = Duration::from_micros(random.random_range(0..3000));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut follow = |acknowledged: &mut u64| {
            let line = lines.next()?.ok()?;
            if let Some(number) = line.strip_prefix("acknowledged ") {
                *acknowledged = number.parse().ok()?;
            }
            Some(())
        };
        while acknowledged < enough {
            follow(&mut acknowledged).expect("the child ended by itself");
        }
        std::thread::sleep(then);
        child.kill().unwrap();
        child.wait().unwrap();
        while follow(&mut acknowledged).is_some() {}
        tear(&store, &mut random, |commands| {
            // They are stamped with their numbers, which begin with 0.
            commands.iter().any(|command| command.at - 1_000 < acknowledged)
        });
        let (state, _) = Reader::open(&store).unwrap().state().unwrap();
        assert!(state.applied() >= acknowledged, "kill {kill}: {acknowledged}");
        while expected.applied() < state.applied() {
            let next = u32::try_from(expected.applied()).unwrap();
            let _ = expected.apply(&command(next));
        }
        assert!(expected.applied() == state.applied(), "kill {kill}: a batch went back");
        assert!(rows(&state) == rows(&expected), "kill {kill}: another state");
        acknowledged = state.applied();
    }
    let (_log, state) = open(&store);
    assert_eq!(rows(&state), rows(&expected));
}
