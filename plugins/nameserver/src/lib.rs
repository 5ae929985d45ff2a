//! Port 53: names of addresses, networks and services (protocol page
//! "Services", section 8), and our pipelined form of it (see `protocol`).
//!
//! This file moves bytes between streams, the store, the registry and the
//! logic in `protocol` and `zone`. Each identity's names are one value of the
//! store, so that whatever one read of a stream registers is made durable by
//! one write, before any of it is acknowledged.
#![forbid(unsafe_code)]

mod config;
mod hostnames;
mod protocol;
#[cfg(test)]
mod tests;
mod zone;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::future::poll_fn;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_plugin::json::{self, Value as Json, json};
use pilot_plugin::wire::service::nameserver::{self as wire, PORT, SWEEP_INTERVAL};
use pilot_plugin::wire::{Address, NodeId};
use pilot_plugin::{Error, Host, Level, Manifest, Peer, Plugin, Stream};

use config::Config;
use hostnames::Hostnames;
use protocol::{Answer, Busy, Call, Note, Server, Step};
use zone::{Owner, Refusal, Rules, Value, Who, Zone};

/// Keys of the store begin with this; the owner follows.
const KEY: &str = "owner/";
/// The registry is asked for so many hostnames at a time; beyond that a name
/// without a record is not found, which is not remembered.
const QUESTIONS: usize = 64;
/// So many of them for one node; beyond that as above.
const QUESTIONS_PER_NODE: usize = QUESTIONS / 4;
/// Writes of the store that one node may cause in a second, each of which is
/// waited for; beyond that its streams wait.
const WRITES: u32 = 32;
/// How long such a stream waits before it looks again.
const WRITES_AGAIN: Duration = Duration::from_millis(200);
/// Owners without names that the store forgets in one go; the rest waits.
const FORGET: usize = 32;
/// Refusals of one stream that become events; the rest is counted.
const REFUSED_EVENTS: u32 = 16;
/// Reads answered before other streams have their turn.
const TURN: u32 = 8;
/// A stream that says nothing for so long at its beginning is closed.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// How often the records file is written, if anything has changed.
const EXPORT_EVERY: Duration = Duration::from_secs(5);
/// Longest records file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

struct Nameserver {
    state: Rc<State>,
}

struct State {
    host: Host,
    config: Config,
    server: RefCell<Server>,
    /// The store has been read.
    loaded: Cell<bool>,
    draining: Cell<bool>,
    questions: Cell<usize>,
    /// Of them, those for each node.
    asking: RefCell<HashMap<NodeId, usize>>,
    /// Writes that nodes have caused in this second.
    writes: RefCell<(u64, HashMap<NodeId, u32>)>,
    /// Owners that the store may forget.
    gone: RefCell<Vec<Owner>>,
}

impl Plugin for Nameserver {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("nameserver", env!("CARGO_PKG_VERSION"))
            .describe("names of addresses, networks and services")
            .service("nameserver", &[PORT])
            .needs("registry.resolve_hostname")
            .needs("node.status")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        config.check()?;
        let rules = Rules {
            ttl: config.ttl,
            grace: config.grace,
            max_records: config.max_records,
            per_node: config.per_node,
        };
        let server = Server {
            zone: Zone::new(rules),
            hostnames: Hostnames::default(),
            asks: config.hostnames,
            notes: Vec::new(),
        };
        // A store or a file that cannot be read is better known now.
        host.store().keys(KEY)?;
        if let Some(path) = &config.records_file {
            read_file(path)?;
        }
        let state = Rc::new(State {
            host: host.clone(),
            config,
            server: RefCell::new(server),
            loaded: Cell::new(false),
            draining: Cell::new(false),
            questions: Cell::new(0),
            asking: RefCell::default(),
            writes: RefCell::default(),
            gone: RefCell::default(),
        });
        host.spawn(keep_own_name(Rc::clone(&state)));
        host.spawn(sweep(Rc::clone(&state)));
        if let Some(path) = state.config.records_file.clone() {
            host.spawn(export(Rc::clone(&state), path));
        }
        Ok(Self { state })
    }

    async fn serve(&self, mut stream: Stream, peer: Peer) -> Result<(), Error> {
        let state = &*self.state;
        state.load()?;
        let Some(first) = state.host.timeout(FIRST_REQUEST, stream.recv()).await else {
            return Ok(());
        };
        let Some(mut data) = first? else { return Ok(()) };
        let mut session = Session { who: Who::peer(&peer), peer, refused: 0 };
        if !data.contains(&b'\n') {
            let (_, _, out) = session.answer(state, &data, true, None).await?;
            stream.send(out).await?;
            return Ok(());
        }
        // A request of which only the beginning has come.
        let mut begun = Vec::new();
        let mut turns = 0;
        loop {
            let ends = if begun.is_empty() {
                let (used, ends, out) =
                    session.answer(state, &data, false, Some(&mut stream)).await?;
                begun.extend_from_slice(&data[used..]);
                stream.send(out).await?;
                ends
            } else {
                begun.extend_from_slice(&data);
                let (used, ends, out) =
                    session.answer(state, &begun, false, Some(&mut stream)).await?;
                begun.drain(..used);
                stream.send(out).await?;
                ends
            };
            if ends {
                return Ok(());
            }
            turns += 1;
            if turns % TURN == 0 {
                others().await;
            }
            match stream.recv().await? {
                Some(next) => data = next,
                None => break,
            }
        }
        // The last one may lack its end of line.
        if !begun.is_empty() {
            begun.push(b'\n');
            let (_, _, out) = session.answer(state, &begun, false, None).await?;
            stream.send(out).await?;
        }
        Ok(())
    }

    fn drain(&self) {
        self.state.draining.set(true);
    }
}

/// One stream.
struct Session {
    who: Who,
    peer: Peer,
    /// Refusals so far.
    refused: u32,
}

impl Session {
    /// Answers what is in `input`: how much of it was used, whether the stream
    /// ends, and answers that are not sent yet.
    async fn answer(
        &mut self,
        state: &State,
        input: &[u8],
        single: bool,
        mut stream: Option<&mut Stream>,
    ) -> Result<(usize, bool, Vec<u8>), Error> {
        let (mut at, mut out, mut said) = (0, Vec::new(), None);
        loop {
            while state.writes_of(self.peer.node()) >= WRITES {
                state.host.sleep(WRITES_AGAIN).await;
            }
            match self.step(state, input, single, &mut at, &mut out, said.as_ref()) {
                Step::Done => return Ok((at, state.draining.get(), out)),
                Step::TooLong => return Ok((at, true, out)),
                Step::Ask(name) => {
                    let answer = state.ask(&name, self.peer.node()).await;
                    said = Some((name, answer));
                }
                Step::Full => {
                    if let Some(stream) = &mut stream {
                        stream.send(std::mem::take(&mut out)).await?;
                    }
                }
            }
        }
    }

    /// One step of the logic, made durable.
    fn step(
        &mut self,
        state: &State,
        input: &[u8],
        single: bool,
        at: &mut usize,
        out: &mut Vec<u8>,
        said: Option<&(String, Answer)>,
    ) -> Step {
        let mut server = state.server.borrow_mut();
        let begin = (*at, out.len());
        let replaced = state.draining.get().then_some(&Refusal::Replaced);
        let mut call = Call { who: &self.who, now: unix_now(), refuse: replaced, said };
        let run = |server: &mut Server, call: Call<'_>, at: &mut usize, out: &mut Vec<u8>| {
            if single {
                server.single(call, input, out)
            } else {
                server.lines(call, input, at, out)
            }
        };
        let mut step = run(&mut server, call, at, out);
        let stored = state.store(&mut server.zone);
        if matches!(stored, Ok(true)) {
            state.note_write(self.peer.node());
        }
        if let Err(why) = stored {
            state.host.log(Level::Error, format!("registrations are refused: {why}"));
            server.zone.roll_back();
            server.notes.clear();
            *at = begin.0;
            out.truncate(begin.1);
            call.refuse = Some(&Refusal::NotStored);
            step = run(&mut server, call, at, out);
        }
        server.zone.settle();
        let notes = std::mem::take(&mut server.notes);
        drop(server);
        for note in notes {
            self.tell(state, note);
        }
        step
    }

    fn tell(&mut self, state: &State, note: Note) {
        match note {
            Note::Registered { name, value } => {
                state.tell_registered(&name, value, &self.peer.address.to_string());
            }
            Note::Refused { name, reason } => {
                state.host.count("refused", 1);
                self.refused = self.refused.saturating_add(1);
                if self.refused <= REFUSED_EVENTS {
                    let (reason, from) = (reason.to_string(), self.peer.address);
                    let data = json!({ "name": name, "reason": reason, "from": from });
                    state.emit("name.refused", &data);
                }
            }
        }
    }
}

impl State {
    /// Reads what is stored, once: not before the first stream, because until
    /// then an earlier generation may still write.
    fn load(&self) -> Result<(), Error> {
        if self.loaded.get() {
            return Ok(());
        }
        let (store, now) = (self.host.store(), unix_now());
        let mut server = self.server.borrow_mut();
        for key in store.keys(KEY)? {
            let Some(owner) = key.strip_prefix(KEY).and_then(Owner::parse) else { continue };
            let Some(text) = store.get(&key)? else { continue };
            if let Err(why) = server.zone.load(&owner, &text, now) {
                // Names of one owner: the others are served.
                self.host.log(Level::Error, format!("the stored names of {owner}: {why}"));
            }
        }
        if let Some(path) = &self.config.records_file {
            let (taken, left) = server.zone.import(&read_file(path)?, now);
            let path = path.display();
            let text = format!("{path}: {taken} records read, {left} left: the name is held");
            self.host.log(Level::Debug, text);
        }
        self.host.log(Level::Info, format!("{} records", server.zone.size()));
        self.loaded.set(true);
        Ok(())
    }

    /// Writes what has changed; says whether anything has.
    fn store(&self, zone: &mut Zone) -> Result<bool, Error> {
        let (store, unsettled) = (self.host.store(), zone.unsettled());
        if unsettled.is_empty() {
            return Ok(false);
        }
        for owner in unsettled {
            let key = format!("{KEY}{owner}");
            match zone.stored(&owner) {
                Some(names) => store.put(&key, &names)?,
                None => store.delete(&key)?,
            }
        }
        zone.wrote();
        Ok(true)
    }

    fn writes_of(&self, node: NodeId) -> u32 {
        let (second, writes) = &*self.writes.borrow();
        if *second == unix_now() { writes.get(&node).copied().unwrap_or_default() } else { 0 }
    }

    fn note_write(&self, node: NodeId) {
        let (second, writes) = &mut *self.writes.borrow_mut();
        let now = unix_now();
        if std::mem::replace(second, now) != now {
            writes.clear();
        }
        *writes.entry(node).or_default() += 1;
    }

    /// Asks the registry for a hostname. Anything but an answer counts as "no
    /// such name" for a moment.
    async fn ask(&self, name: &str, node: NodeId) -> Answer {
        let of_node = self.asking.borrow().get(&node).copied().unwrap_or_default();
        if self.questions.get() >= QUESTIONS || of_node >= QUESTIONS_PER_NODE {
            self.host.count("questions_refused", 1);
            return Err(Busy);
        }
        let open = Open::new(self, node);
        let answer = self.host.call("registry.resolve_hostname", json!({ "hostname": name })).await;
        drop(open);
        let address = match answer {
            Ok(answer) => address_in(&answer),
            Err(why) => {
                self.host.log(Level::Debug, format!("hostname {name}: {why}"));
                None
            }
        };
        self.server.borrow_mut().hostnames.put(name, address, unix_now());
        Ok(address)
    }

    fn tell_registered(&self, name: &str, value: Value, from: &str) {
        self.host.count("registered", 1);
        let stands_for = match value {
            Value::A(address) => address.to_string(),
            Value::N(network) => network.to_string(),
            Value::S { address, port, .. } => address.port(port).to_string(),
        };
        let record = value.kind();
        let data = json!({ "name": name, "record": record, "address": stands_for, "from": from });
        self.emit("name.registered", &data);
    }

    fn emit(&self, name: &str, data: &Json) {
        if self.host.emit(name, data).is_err() {
            self.host.count("events_refused", 1);
        }
    }
}

/// Counts a question while it is open, also when nobody waits for it any more.
struct Open<'a>(&'a State, NodeId);

impl<'a> Open<'a> {
    fn new(state: &'a State, node: NodeId) -> Self {
        state.questions.set(state.questions.get() + 1);
        *state.asking.borrow_mut().entry(node).or_default() += 1;
        Self(state, node)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let Self(state, node) = self;
        state.questions.set(state.questions.get() - 1);
        let mut asking = state.asking.borrow_mut();
        if let Some(count) = asking.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                asking.remove(node);
            }
        }
    }
}

/// Registers this node's own hostname, and renews it.
async fn keep_own_name(state: Rc<State>) {
    let mut taken = None;
    while !state.draining.get() {
        match state.host.call("node.status", json!({})).await {
            Ok(status) => {
                let name = status.get("hostname").and_then(Json::as_str).unwrap_or_default();
                if let Some(address) = address_in(&status).filter(|_| !name.is_empty()) {
                    let mut server = state.server.borrow_mut();
                    // The records file may have it for this node's number.
                    let who = Who { owner: Owner::Local, node: Some(address.node) };
                    let done = server.zone.register(&who, name, Value::A(address), unix_now());
                    server.zone.settle();
                    drop(server);
                    match done {
                        Ok(true) => {
                            state.tell_registered(name, Value::A(address), &address.to_string());
                        }
                        Ok(false) => {}
                        Err(why) if taken.as_deref() != Some(name) => {
                            let text = format!("this node's hostname is not registered: {why}");
                            state.host.log(Level::Warn, text);
                            taken = Some(name.to_owned());
                        }
                        Err(_) => {}
                    }
                }
            }
            Err(why) => state.host.log(Level::Debug, format!("own hostname: {why}")),
        }
        let every = Duration::from_secs((state.config.ttl / 3).clamp(1, 60));
        state.host.sleep(every).await;
    }
}

/// Drops what has expired.
async fn sweep(state: Rc<State>) {
    loop {
        state.host.sleep(SWEEP_INTERVAL).await;
        if state.draining.get() {
            return;
        }
        let mut server = state.server.borrow_mut();
        let mut gone = state.gone.borrow_mut();
        gone.extend(server.zone.sweep(unix_now()));
        for _ in 0..FORGET {
            let Some(owner) = gone.pop() else { break };
            // It may have come back.
            if !server.zone.has(&owner)
                && let Err(why) = state.host.store().delete(&format!("{KEY}{owner}"))
            {
                state.host.log(Level::Warn, why.to_string());
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge for people")]
        state.host.gauge("records", server.zone.size() as f64);
    }
}

/// Writes the records file after changes.
async fn export(state: Rc<State>, path: PathBuf) {
    let mut written = 0;
    loop {
        state.host.sleep(EXPORT_EVERY).await;
        if state.draining.get() {
            return;
        }
        // Before the file was read it must not be written over.
        if !state.loaded.get() {
            continue;
        }
        let (zone, version) = {
            let zone = &state.server.borrow().zone;
            (zone.version() != written)
                .then(|| zone.export(unix_now()))
                .map(|z| (z, zone.version()))
        }
        .unzip();
        let (Some(zone), Some(version)) = (zone, version) else { continue };
        let to = path.clone();
        let done = state.host.blocking(move || write_file(&to, &zone)).await;
        match done {
            Ok(Ok(())) => written = version,
            Ok(Err(why)) => {
                state.host.log(Level::Warn, format!("records-file {}: {why}", path.display()));
            }
            Err(why) => state.host.log(Level::Warn, why.to_string()),
        }
    }
}

/// The records of a file; none when there is no file.
fn read_file(path: &Path) -> Result<wire::Zone, Error> {
    let fail =
        |why: &dyn std::fmt::Display| Error::new(format!("records-file {}: {why}", path.display()));
    match fs::metadata(path) {
        Ok(about) if about.len() > MAX_FILE => return Err(fail(&"more than 64 MiB")),
        Ok(_) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(wire::Zone::default()),
        Err(why) => return Err(fail(&why)),
    }
    let text = fs::read(path).map_err(|why| fail(&why))?;
    json::from_slice(&text).map_err(|why| fail(&why))
}

/// Writes a file beside it and puts it in its place.
fn write_file(path: &Path, zone: &wire::Zone) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&json::to_vec_pretty(zone)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// The address in an answer of the host, or that of the node in it.
fn address_in(answer: &Json) -> Option<Address> {
    if let Some(address) = answer.get("address").and_then(Json::as_str) {
        return address.parse().ok();
    }
    let node = answer.get("node_id")?.as_u64()?;
    u32::try_from(node).ok().filter(|node| *node != 0).map(|n| Address::backbone(NodeId(n)))
}

/// Lets what else is ready run.
async fn others() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn unix_now() -> u64 {
    // A clock before 1970 counts as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pilot_plugin::export_plugin!(Nameserver);
