//! Linearizability: concurrent clients use the same names, keys, pairs and
//! tokens of the real program, which is killed (SIGKILL) in between and comes
//! back on its file. Each object's history must be explained by some order of
//! its operations; see `checker`.

#[path = "../client/mod.rs"]
mod client;

mod checker;
mod models;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use checker::{Call, check};
use client::{Identity, PATIENCE, Program, eventually};
use models::{Answer, KeyModel, NameModel, NetworkModel, Op, TrustModel};
use pilot_wire::registry::{FrameBuffer, append_frame};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const ADMIN: &str = "a-token-for-this-test-alone";
const THREADS: u64 = 4;
/// Operations of a thread; a history has at most four times as many.
const STEPS: u64 = 30;
const ROUNDS: u64 = 6;
/// Joins that the token of a round allows.
const USES: u32 = 9;

type History = Mutex<Vec<Call<Op, Answer>>>;

/// The objects of one round.
#[derive(Default)]
struct Histories {
    key: History,
    name: History,
    trust: History,
    network: History,
}

/// Where the registry is now; it moves when it comes back.
struct Place(Mutex<SocketAddr>);

impl Place {
    fn now(&self) -> SocketAddr {
        *self.0.lock().unwrap()
    }
}

/// A connection of one node that survives the registry.
struct Node<'a> {
    place: &'a Place,
    key: Identity,
    id: u64,
    link: Option<(TcpStream, FrameBuffer)>,
}

impl Node<'_> {
    /// One answer, or none when the connection broke and nobody knows.
    fn ask(&mut self, request: &Value) -> Option<Value> {
        self.connect();
        let answer = exchange(self.link.as_mut()?, request);
        if answer.is_none() {
            self.link = None;
        }
        answer
    }

    /// Connects and opens a session, however long the registry is away.
    fn connect(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.link.is_none() {
            assert!(Instant::now() < deadline, "the registry does not come back");
            self.link = self.session();
            if self.link.is_none() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn session(&self) -> Option<(TcpStream, FrameBuffer)> {
        let stream = TcpStream::connect(self.place.now()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut link = (stream, FrameBuffer::new());
        let nonce = exchange(&mut link, &json!({"type": "session_challenge"}))?;
        let text = format!("session:{}:{}", self.id, nonce["nonce"].as_str()?);
        let open = json!({"type": "session_open", "node_id": self.id,
                          "signature": self.key.sign(&text)});
        let opened = exchange(&mut link, &open)?;
        assert_eq!(opened["type"], "session_open_ok", "{opened}");
        Some(link)
    }
}

/// Asks and takes the answer, past any news.
fn exchange(link: &mut (TcpStream, FrameBuffer), request: &Value) -> Option<Value> {
    let (stream, input) = link;
    let mut out = Vec::new();
    append_frame(&mut out, request).unwrap();
    stream.write_all(&out).ok()?;
    let mut chunk = [0; 16 * 1024];
    loop {
        while let Some(body) = input.next_body().unwrap() {
            let answer: Value = serde_json::from_slice(body).unwrap();
            if answer["type"] != "push" {
                return Some(answer);
            }
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => input.push(&chunk[..n]),
            _ => return None,
        }
    }
}

fn start(store: &str) -> Program {
    let binary = env!("CARGO_BIN_EXE_pilot-registry");
    let args = ["-addr", "127.0.0.1:0", "-store", store, "-register-rate=0", "-admin-token", ADMIN];
    Program::start(binary, &args)
}

fn admin(place: &Place, mut request: Value) -> Value {
    request["admin_token"] = ADMIN.into();
    let mut answer = None;
    eventually("an administrator is answered", || {
        let Ok(stream) = TcpStream::connect(place.now()) else { return false };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        answer = exchange(&mut (stream, FrameBuffer::new()), &request);
        answer.is_some()
    });
    answer.unwrap()
}

/// A random request about one of the objects.
fn pick(rng: &mut StdRng, node: &Node<'_>, round: &Round, key: &Identity) -> (Op, Value) {
    let (id, peer) = (node.id, round.ids[usize::from(node.id == round.ids[0])]);
    let pair = round.ids[..2].contains(&id);
    let name = format!("name-{}", round.number);
    match rng.random_range(0..12) {
        0 => (Op::Register, key.register()),
        1 | 2 => (Op::Claim(id), node.key.signed("set_hostname", id, json!({"hostname": name}))),
        3 => (Op::Unclaim(id), node.key.signed("set_hostname", id, json!({"hostname": ""}))),
        4 => (Op::WhoHas, json!({"type": "resolve_hostname", "hostname": name})),
        // The pair stays out of the network, where trust is not needed to resolve.
        5 | 8 | 10 if pair => {
            (Op::Report(id), node.key.about("report_trust", "report_trust", id, peer, json!({})))
        }
        6 | 11 if pair => {
            (Op::Revoke(id), node.key.about("revoke_trust", "revoke_trust", id, peer, json!({})))
        }
        7 if pair => (Op::Resolve(id), node.key.resolve(id, peer)),
        8 => (Op::Leave(id), json!({"type": "network_leave", "network": round.network})),
        9 => (
            Op::Members,
            json!({"type": "network_members", "network": round.network, "admin_token": ADMIN}),
        ),
        _ => (
            Op::Join(id),
            json!({"type": "network_join", "network": round.network,
                   "proofs": {"token": round.secret}}),
        ),
    }
}

struct Round {
    number: u64,
    ids: Vec<u64>,
    network: u64,
    secret: String,
}

fn work(round: &Round, histories: &Histories, node: &mut Node<'_>, seed: u64, clock: Instant) {
    let mut rng = StdRng::seed_from_u64(seed);
    // One key that every thread registers.
    let shared = Identity::new(0xA000_0000 + u32::try_from(round.number).unwrap());
    let now = || u64::try_from(clock.elapsed().as_nanos()).unwrap();
    for _ in 0..STEPS {
        let (op, request) = pick(&mut rng, node, round, &shared);
        // Not part of the operation: it may take as long as the registry is away.
        node.connect();
        let called = now();
        let answer = node.ask(&request).map(|reply| Answer::read(&op, &reply));
        let returned = answer.map(|answer| (now(), answer));
        let history = match op {
            Op::Register => &histories.key,
            Op::Claim(_) | Op::Unclaim(_) | Op::WhoHas => &histories.name,
            Op::Report(_) | Op::Revoke(_) | Op::Resolve(_) => &histories.trust,
            Op::Join(_) | Op::Leave(_) | Op::Members => &histories.network,
        };
        history.lock().unwrap().push(Call { called, op, returned });
    }
}

#[test]
fn histories_are_explained_by_some_order_across_kills() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("r.db");
    let store = store.to_str().unwrap();
    let mut program = start(store);
    let place = Place(Mutex::new(program.addr("addr")));
    let clock = Instant::now();
    let mut unknown = 0;
    for number in 0..ROUNDS {
        let made = admin(
            &place,
            json!({"type": "network_create", "name": format!("net-{number}"),
                   "join": {"rules": [{"rule": "token"}]}}),
        );
        assert_eq!(made["type"], "network_ok", "{made}");
        let network = made["network"]["id"].as_u64().unwrap();
        let token = json!({"type": "token_create", "network": network, "uses": USES});
        let token = admin(&place, token);
        let secret = token["secret"].as_str().unwrap_or_else(|| panic!("{token}")).to_owned();
        let mut nodes: Vec<Node<'_>> = (0..THREADS)
            .map(|n| {
                let key = Identity::new(u32::try_from(number * THREADS + n).unwrap());
                let reply = admin(&place, key.register());
                let id = reply["node_id"].as_u64().unwrap();
                Node { place: &place, key, id, link: None }
            })
            .collect();
        let ids = nodes.iter().map(|n| n.id).collect();
        let round = Round { number, ids, network, secret };
        let histories = Histories::default();
        thread::scope(|scope| {
            for (n, node) in (0u64..).zip(&mut nodes) {
                let (round, histories) = (&round, &histories);
                scope.spawn(move || work(round, histories, node, number * 100 + n, clock));
            }
            // Killed after some operations have returned, at another time each round.
            let done = || histories.network.lock().unwrap().len() as u64;
            eventually("the round is under way", || done() > number * 5);
            program.child.kill().unwrap();
            program.child.wait().unwrap();
            program = start(store);
            *place.0.lock().unwrap() = program.addr("addr");
        });
        let explain = |what: &str, result: Result<(), String>| {
            result.unwrap_or_else(|e| panic!("round {number}, {what}: {e}"));
        };
        let taken = |history: &History| std::mem::take(&mut *history.lock().unwrap());
        let all = [
            taken(&histories.key),
            taken(&histories.name),
            taken(&histories.trust),
            taken(&histories.network),
        ];
        unknown += all.iter().flatten().filter(|c| c.returned.is_none()).count();
        explain("one key", check(&KeyModel, &all[0]));
        explain("one name", check(&NameModel, &all[1]));
        explain("one pair", check(&TrustModel([round.ids[0], round.ids[1]]), &all[2]));
        explain("one network", check(&NetworkModel { uses: USES }, &all[3]));
    }
    println!("{unknown} operations were under way when the registry was killed");
}
