//! The requests of one client that workers answer: which worker each message
//! is for, and one answer out of several, in the order that was promised.
//!
//! It does no I/O. Every request goes to its workers under a tag of the
//! desk's own, so an answer is known by its tag whatever the client sent; the
//! answers then reach the client as a single loop would have given them.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pilot_wire::ipc::{Command, ErrorCode, Event, Features, LENGTH_LEN, json};
use serde_json::Value;

use super::merge::merge;
use super::spread::Spread;
use crate::ipc::client::{Replies, Tag};
use crate::node::render_info;

/// The worker that does what does not concern a peer.
const FIRST: usize = 0;
/// What a client gets through the router. What needs memory or descriptors
/// shared with a single loop is not among it.
const FEATURES: Features = Features(
    Features::TAGGED.0
        | Features::CREDIT.0
        | Features::HALF_CLOSE.0
        | Features::CODES.0
        | Features::CONGESTION.0
        | Features::PLUGINS.0
        | Features::NETWORKS.0,
);

/// Info answers that a client waits for; one beyond it is refused. Each worker's
/// is held, up to 1 MiB, until all have answered.
const MAX_INFOS: usize = 8;

/// Which client of the daemon has which port: a bind has to succeed in all
/// workers or in none.
#[derive(Default)]
pub(super) struct Claims(HashMap<u16, u64>);

/// What to do with a message of the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Pass it on as it is to this worker.
    Pass(usize),
    /// Send this message to this worker instead.
    One(usize, Vec<u8>),
    /// Send this message to all workers instead.
    All(Vec<u8>),
    /// It has been answered.
    Done,
}

/// What a request needs besides passing its answer on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Hello,
    Bind(u16),
    Unbind(u16),
    Info,
}

/// A request under way.
struct Pending {
    tag: Tag,
    kind: Kind,
    /// One bit for each worker that has not answered.
    waiting: u64,
    answers: Vec<(usize, Vec<u8>)>,
}

/// The requests of one client.
pub(super) struct Desk {
    client: u64,
    spread: Spread,
    claims: Rc<RefCell<Claims>>,
    replies: Replies,
    /// By the desk's own tag; as many as `replies` has room for.
    pending: HashMap<u32, Pending>,
    next: u32,
    greeted: bool,
    /// It has dialled or bound, after which hello comes too late.
    used: bool,
    codes: bool,
    /// Ports it has bound.
    bound: HashSet<u16>,
    /// Workers that have ended.
    gone: u64,
}

impl Desk {
    pub(super) fn new(client: u64, spread: Spread, claims: Rc<RefCell<Claims>>) -> Self {
        Self {
            client,
            spread,
            claims,
            replies: Replies::default(),
            pending: HashMap::new(),
            next: 0,
            greeted: false,
            used: false,
            codes: false,
            bound: HashSet::new(),
            gone: 0,
        }
    }

    /// Looks at one message of the client; what the desk itself answers is
    /// added to `out`.
    pub(super) fn command(&mut self, body: &[u8], out: &mut Vec<u8>) -> Step {
        match Command::parse(body) {
            Ok(Command::Request { id, command }) => self.request(command, Some(id), out),
            Ok(
                Command::Send { connection, .. }
                | Command::Close { connection }
                | Command::Credit { connection, .. }
                | Command::Shutdown { connection }
                | Command::Set { connection, .. }
                | Command::LaneTake { connection }
                | Command::LaneBegin { connection }
                | Command::LaneKick { connection },
            ) => Step::Pass(self.spread.of_connection(connection)),
            Ok(Command::SendDatagram { to, .. }) => {
                Step::Pass(self.spread.of_node(to.address.node))
            }
            Ok(_) => self.request(body, None, out),
            // A worker says what is wrong with it.
            Err(_) => Step::Pass(FIRST),
        }
    }

    /// A message that is answered.
    fn request(&mut self, body: &[u8], tag: Option<u32>, out: &mut Vec<u8>) -> Step {
        let one = |worker| (Kind::Single, Some(worker));
        let mut body = body;
        let mut masked = Vec::new();
        let (kind, worker) = match Command::parse(body) {
            Ok(Command::Dial { to }) => {
                self.used = true;
                one(self.spread.of_node(to.address.node))
            }
            Ok(Command::Close { connection }) => one(self.spread.of_connection(connection)),
            Ok(Command::Info) => (Kind::Info, None),
            Ok(Command::Hello { version, features, receive_credit }) => {
                if self.greeted || self.used {
                    let text = "hello: must be the first message, once";
                    return self.refuse(tag, ErrorCode::INVALID_ARGUMENT, text, out);
                }
                self.greeted = true;
                let features = features.and(FEATURES);
                Command::Hello { version, features, receive_credit }.encode(&mut masked);
                body = masked.get(LENGTH_LEN..).unwrap_or_default();
                (Kind::Hello, None)
            }
            Ok(Command::Bind { port }) => {
                let owner = self.claims.borrow().0.get(&port).copied();
                if owner.is_some_and(|owner| owner != self.client) {
                    let text = format!("port {port} already bound");
                    return self.refuse(tag, ErrorCode::ALREADY_EXISTS, &text, out);
                }
                self.used = true;
                (Kind::Bind(port), None)
            }
            Ok(Command::Unbind { port }) => (Kind::Unbind(port), None),
            // What does not concern a peer, and what a worker refuses.
            _ => one(FIRST),
        };
        let infos = || self.pending.values().filter(|p| p.kind == Kind::Info).count();
        if !self.replies.has_room() || kind == Kind::Info && infos() >= MAX_INFOS {
            let text = "too many requests of this client wait for an answer";
            return self.refuse(tag, ErrorCode::LIMIT, text, out);
        }
        let all = u64::MAX >> (64 - self.spread.workers().clamp(1, 64));
        let waiting = worker.map_or(all, bit) & !self.gone;
        if waiting == 0 {
            return self.refuse(tag, ErrorCode::SHUTDOWN, "the daemon is shutting down", out);
        }
        if let Kind::Bind(port) = kind {
            self.claims.borrow_mut().0.insert(port, self.client);
        }
        let code = body.first().copied().unwrap_or_default();
        let tag = self.replies.open(code, tag);
        let id = self.free_tag();
        self.pending.insert(id, Pending { tag, kind, waiting, answers: Vec::new() });
        let mut message = Vec::with_capacity(body.len() + 16);
        Command::Request { id, command: body }.encode(&mut message);
        match worker {
            Some(worker) => Step::One(worker, message),
            None => Step::All(message),
        }
    }

    fn free_tag(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            if !self.pending.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    /// Whether a connection to this port from a worker must wait: that worker
    /// has bound it, and the client has not been told yet. One that comes before
    /// the worker's answer belongs to an earlier binding; holding it would hold
    /// the answer behind it too.
    pub(super) fn holds(&self, worker: usize, port: u16) -> bool {
        let answered = |p: &Pending| p.waiting & bit(worker) == 0;
        self.pending.values().any(|p| p.kind == Kind::Bind(port) && answered(p))
    }

    /// A worker's answer to the request with this tag.
    pub(super) fn reply(&mut self, worker: usize, id: u32, answer: &[u8], out: &mut Vec<u8>) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        if pending.waiting & bit(worker) == 0 {
            return;
        }
        pending.waiting &= !bit(worker);
        pending.answers.push((worker, answer.to_vec()));
        self.finish(id, out);
    }

    /// A worker has ended: it answers nothing any more.
    pub(super) fn gone(&mut self, worker: usize, out: &mut Vec<u8>) {
        self.gone |= bit(worker);
        let mut ids: Vec<u32> = self.pending.keys().copied().collect();
        // The order of requests.
        ids.sort_unstable();
        for id in ids {
            let mut answer = Vec::new();
            let code = self.told(ErrorCode::SHUTDOWN);
            Event::Error { code, text: "the daemon is shutting down" }.encode(&mut answer);
            self.reply(worker, id, answer.get(LENGTH_LEN..).unwrap_or_default(), out);
        }
    }

    /// Answers the client when every worker has answered.
    fn finish(&mut self, id: u32, out: &mut Vec<u8>) {
        if self.pending.get(&id).is_none_or(|p| p.waiting != 0) {
            return;
        }
        let Some(Pending { tag, kind, answers, .. }) = self.pending.remove(&id) else { return };
        let answer = match kind {
            Kind::Info => merged(answers),
            _ => decisive(answers),
        };
        let event = Event::parse(&answer);
        let failed = matches!(event, Ok(Event::Error { .. }));
        match kind {
            Kind::Hello => {
                self.greeted = !failed;
                if let Ok(Event::HelloOk { features, .. }) = event {
                    self.codes = features.contains(Features::CODES);
                }
            }
            Kind::Bind(port) => {
                if !failed {
                    self.bound.insert(port);
                }
                self.release(port);
            }
            Kind::Unbind(port) => {
                if !failed {
                    self.bound.remove(&port);
                }
                self.release(port);
            }
            Kind::Single | Kind::Info => {}
        }
        self.emit(tag, &answer, out);
    }

    /// Lets a port go that the client neither has nor waits for.
    fn release(&mut self, port: u16) {
        let binding = self.pending.values().any(|p| p.kind == Kind::Bind(port));
        if !self.bound.contains(&port) && !binding {
            let mut claims = self.claims.borrow_mut();
            if claims.0.get(&port) == Some(&self.client) {
                claims.0.remove(&port);
            }
        }
    }

    fn told(&self, code: ErrorCode) -> ErrorCode {
        if self.codes { code } else { ErrorCode::GENERAL }
    }

    fn refuse(&mut self, tag: Option<u32>, code: ErrorCode, text: &str, out: &mut Vec<u8>) -> Step {
        let event = Event::Error { code: self.told(code), text };
        let Some(id) = tag else {
            event.encode(out);
            return Step::Done;
        };
        let mut answer = Vec::new();
        event.encode(&mut answer);
        Event::Reply { id, event: answer.get(LENGTH_LEN..).unwrap_or_default() }.encode(out);
        Step::Done
    }

    fn emit(&mut self, tag: Tag, answer: &[u8], out: &mut Vec<u8>) {
        match tag {
            Tag::Tagged(id) => {
                self.replies.close_tagged();
                Event::Reply { id, event: answer }.encode(out);
            }
            Tag::InOrder(number) => {
                let mut message =
                    u32::try_from(answer.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
                message.extend_from_slice(answer);
                self.replies.complete(number, message, |m| out.extend_from_slice(m));
            }
        }
    }
}

/// Every port that the client had is free again. To be dropped when all
/// workers have let go of the client.
impl Drop for Desk {
    fn drop(&mut self) {
        self.claims.borrow_mut().0.retain(|_, client| *client != self.client);
    }
}

fn bit(worker: usize) -> u64 {
    1u64.checked_shl(u32::try_from(worker).unwrap_or(u32::MAX)).unwrap_or(0)
}

/// The first refusal, or else the first answer.
fn decisive(mut answers: Vec<(usize, Vec<u8>)>) -> Vec<u8> {
    let refusal =
        answers.iter().position(|(_, a)| matches!(Event::parse(a), Ok(Event::Error { .. })));
    answers.swap_remove(refusal.unwrap_or(0)).1
}

/// One info out of those that there are; a refusal when there is none.
fn merged(mut answers: Vec<(usize, Vec<u8>)>) -> Vec<u8> {
    answers.sort_by_key(|(worker, _)| *worker);
    let infos: Vec<(usize, Value)> = answers
        .iter()
        .filter_map(|(worker, answer)| match Event::parse(answer) {
            Ok(Event::Json { code: json::INFO, body }) => {
                serde_json::from_slice(body).ok().map(|info| (*worker, info))
            }
            _ => None,
        })
        .collect();
    if infos.is_empty() {
        return decisive(answers);
    }
    let mut answer = vec![json::INFO];
    answer.extend_from_slice(render_info(merge(infos)).as_bytes());
    answer
}

#[cfg(test)]
#[path = "desk/tests.rs"]
mod tests;
