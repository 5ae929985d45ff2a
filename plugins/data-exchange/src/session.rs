//! The frames of one stream: takes bytes as they come, keeps files and
//! messages, and gives answers. It blocks on the disk and knows no stream.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pilot_plugin::Peer;
use pilot_plugin::json::{self, json};
use pilot_plugin::wire::Address;
use pilot_plugin::wire::service::data_exchange::{
    BeginAnswer, FileOffer, FrameHeader, HASH_LEN, HEADER_LEN, Kind, MAX_OFFER, hash_from_hex,
};

use crate::partial::{self, Keep, Key};
use crate::quota::{Limits, Quota};
use crate::save::{Incoming, SaveError};
use crate::stamp::Stamp;

/// Bytes of messages held in memory at once, all peers together, until they
/// are saved; a peer beyond it waits. Files are not held.
const MESSAGE_MEMORY: usize = 64 << 20;
/// A message must be whole within this time, so that nobody holds the memory
/// for ever: 16 MiB at half a megabit a second.
const MESSAGE_TIME: Duration = Duration::from_secs(300);

/// Where things are kept, for all streams.
pub(crate) struct Store {
    received: PathBuf,
    inbox: PathBuf,
    quota: Arc<Quota>,
    keep: Keep,
    message_memory: Arc<AtomicUsize>,
}

impl Store {
    /// Keeps files in `received` and messages in `inbox`. What earlier runs
    /// left unfinished and cannot be continued is removed.
    pub(crate) fn new(received: PathBuf, inbox: PathBuf, limits: Limits, keep: Keep) -> Self {
        let quota = Quota::new(limits, vec![received.clone(), inbox.clone()]);
        let store = Self { received, inbox, quota, keep, message_memory: Arc::default() };
        store.sweep();
        store
    }

    /// Removes what was left unfinished for too long.
    pub(crate) fn sweep(&self) -> usize {
        let now = SystemTime::now();
        [&self.received, &self.inbox].map(|f| partial::sweep(f, now, self.keep)).iter().sum()
    }
}

/// Part of [`MESSAGE_MEMORY`]; given back when it is dropped.
struct Memory {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Memory {
    fn take(used: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let more = |now: usize| now.checked_add(bytes).filter(|all| *all <= MESSAGE_MEMORY);
        used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self { used: Arc::clone(used), bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Who sends.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) address: Address,
    /// By which what came of a file is found again.
    identity: String,
}

impl Sender {
    pub(crate) fn of(peer: &Peer) -> Self {
        let key = peer.public_key.as_deref().unwrap_or_default();
        let identity = format!("{} {key}", peer.node());
        Self { address: peer.address.address, identity }
    }
}

/// What somebody outside may want to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// A file is in its place.
    File { name: String, size: u64, path: PathBuf },
    /// So is a message.
    Message { kind: Kind, size: usize },
    /// Something was not saved.
    Refused { what: String, why: String },
}

/// What [`Session::take`] did with the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All were used.
    All,
    /// This many were, then memory for a message was missing: the rest is to
    /// be offered again later.
    Starved(usize),
}

/// A file offered in frames of our own, on its way.
struct Offered {
    name: String,
    size: u64,
    hash: Option<[u8; HASH_LEN]>,
    state: Result<Incoming, SaveError>,
}

/// What the next bytes are.
enum State {
    Header(Vec<u8>),
    /// A whole payload (or a part with a meaning of its own) in memory.
    Collect {
        part: Part,
        len: usize,
        data: Vec<u8>,
    },
    /// Contents of a published file.
    Contents {
        name: String,
        len: usize,
        left: usize,
        state: Result<Incoming, SaveError>,
    },
    Chunk {
        left: usize,
    },
    Discard {
        left: usize,
        answer: Option<String>,
    },
}

enum Part {
    Message {
        kind: Kind,
        memory: Option<Memory>,
        since: Instant,
    },
    /// The length of a file's name, in a frame of so many bytes.
    NameLen {
        frame: usize,
    },
    Name {
        contents: usize,
    },
    Offer,
    End,
}

/// One stream from a peer.
pub(crate) struct Session {
    store: Arc<Store>,
    from: Sender,
    state: State,
    offered: Option<Offered>,
    answers: Vec<u8>,
    happened: VecDeque<Happened>,
}

impl Session {
    pub(crate) fn new(store: Arc<Store>, from: Sender) -> Self {
        Self {
            store,
            from,
            state: State::Header(Vec::new()),
            offered: None,
            answers: Vec::new(),
            happened: VecDeque::new(),
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// When a length is out of range: the stream is to be reset.
    pub(crate) fn take(&mut self, mut data: &[u8], now: Instant) -> io::Result<Taken> {
        let all = data.len();
        loop {
            let state = std::mem::replace(&mut self.state, State::Header(Vec::new()));
            self.state = match state {
                State::Header(mut bytes) => {
                    bytes.extend_from_slice(split(&mut data, HEADER_LEN - bytes.len()));
                    let Ok(header) = <[u8; HEADER_LEN]>::try_from(&bytes[..]) else {
                        self.state = State::Header(bytes);
                        return Ok(Taken::All);
                    };
                    let header = FrameHeader::decode(header)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    self.begin_frame(header, now)
                }
                State::Collect { mut part, len, data: mut collected } => {
                    if let Part::Message { memory: memory @ None, .. } = &mut part {
                        *memory = Memory::take(&self.store.message_memory, len);
                        if memory.is_none() {
                            self.state = State::Collect { part, len, data: collected };
                            return Ok(Taken::Starved(all - data.len()));
                        }
                    }
                    // Memory grows as the bytes come.
                    collected.extend_from_slice(split(&mut data, len - collected.len()));
                    if collected.len() < len {
                        self.state = State::Collect { part, len, data: collected };
                        return Ok(Taken::All);
                    }
                    self.collected(&part, collected)
                }
                State::Contents { name, len, mut left, mut state } => {
                    let part = split(&mut data, left);
                    left -= part.len();
                    write(&mut state, part);
                    if left > 0 {
                        self.state = State::Contents { name, len, left, state };
                        return Ok(Taken::All);
                    }
                    let placed = state.and_then(|incoming| incoming.place(&name, None));
                    self.placed(name, len as u64, placed);
                    State::Header(Vec::new())
                }
                State::Chunk { mut left } => {
                    let part = split(&mut data, left);
                    left -= part.len();
                    // Without an offer the end is answered with an error.
                    if let Some(offered) = &mut self.offered {
                        write(&mut offered.state, part);
                    }
                    if left > 0 {
                        self.state = State::Chunk { left };
                        return Ok(Taken::All);
                    }
                    State::Header(Vec::new())
                }
                State::Discard { mut left, answer } => {
                    left -= split(&mut data, left).len();
                    if left > 0 {
                        self.state = State::Discard { left, answer };
                        return Ok(Taken::All);
                    }
                    if let Some(answer) = answer {
                        self.answer(&answer);
                    }
                    State::Header(Vec::new())
                }
            };
        }
    }

    /// Answers since the last call, as frames.
    pub(crate) fn take_answers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.answers)
    }

    /// What happened since the last call.
    pub(crate) fn take_happened(&mut self) -> VecDeque<Happened> {
        std::mem::take(&mut self.happened)
    }

    /// When a message that has begun must be whole.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Collect { part: Part::Message { since, memory: Some(_), .. }, .. } => {
                since.checked_add(MESSAGE_TIME)
            }
            _ => None,
        }
    }

    /// Whether something has begun that holds memory, or room on the disk.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.is_inside_frame() || self.offered.is_some()
    }

    /// Whether an end of the stream would cut a frame.
    pub(crate) fn is_inside_frame(&self) -> bool {
        !matches!(&self.state, State::Header(bytes) if bytes.is_empty())
    }

    /// The stream is over. What came of an offered file stays for its sender
    /// to continue, within the bounds.
    pub(crate) fn finish(self) {
        let kept = self
            .offered
            .as_ref()
            .is_some_and(|offered| offered.state.as_ref().is_ok_and(Incoming::is_kept));
        let store = Arc::clone(&self.store);
        drop(self);
        if kept {
            store.sweep();
        }
    }

    fn begin_frame(&mut self, header: FrameHeader, now: Instant) -> State {
        let FrameHeader { kind, len } = header;
        let collect = |part, len| State::Collect { part, len, data: Vec::new() };
        match kind {
            Kind::Text | Kind::Binary | Kind::Json => {
                collect(Part::Message { kind, memory: None, since: now }, len)
            }
            Kind::File if len < 2 => discard(len, acknowledged(kind, len as u64)),
            Kind::File => collect(Part::NameLen { frame: len }, 2),
            Kind::FileBegin if len > MAX_OFFER => {
                self.drop_offer();
                let reason = format!("the offer has {len} bytes, the limit is {MAX_OFFER}");
                discard(len, refused(kind, &reason))
            }
            Kind::FileBegin => collect(Part::Offer, len),
            Kind::FileChunk => State::Chunk { left: len },
            Kind::FileEnd if len != HASH_LEN => {
                self.drop_offer();
                let reason =
                    format!("the end carries {len} bytes instead of a SHA-256 of {HASH_LEN}");
                discard(len, refused(Kind::File, &reason))
            }
            Kind::FileEnd => collect(Part::End, len),
            Kind::Unknown(_) => discard(len, acknowledged(kind, len as u64)),
        }
    }

    fn collected(&mut self, part: &Part, data: Vec<u8>) -> State {
        match part {
            Part::Message { kind, .. } => self.message(*kind, &data),
            Part::NameLen { frame } => {
                let rest = frame - 2;
                let name_len = data.iter().fold(0, |n, b| n << 8 | usize::from(*b));
                return match rest.checked_sub(name_len) {
                    Some(contents) => State::Collect {
                        part: Part::Name { contents },
                        len: name_len,
                        data: vec![],
                    },
                    // No name: the payload counts as a whole.
                    None => discard(rest, acknowledged(Kind::File, *frame as u64)),
                };
            }
            Part::Name { contents } => {
                let len = *contents;
                if data.is_empty() {
                    return discard(len, acknowledged(Kind::File, len as u64));
                }
                let name = String::from_utf8_lossy(&data).into_owned();
                let state = Incoming::create(&self.store.received, &self.store.quota, len as u64);
                return State::Contents { name, len, left: len, state };
            }
            Part::Offer => self.offer(&data),
            Part::End => self.end(&data),
        }
        State::Header(Vec::new())
    }

    fn offer(&mut self, payload: &[u8]) {
        self.drop_offer();
        let offer: FileOffer = match json::from_slice(payload) {
            Ok(offer) => offer,
            Err(e) => {
                let reason = format!("the offer is not valid: {e}");
                return self.answer(&refused(Kind::FileBegin, &reason));
            }
        };
        let hash = offer.sha256.as_deref().and_then(hash_from_hex);
        let Store { received, quota, .. } = &*self.store;
        let opened = match &hash {
            Some(hash) => {
                let key = Key::new(&self.from.identity, &offer, hash);
                Incoming::create_named(received, quota, offer.size, &key, offer.resume)
            }
            None => Incoming::create(received, quota, offer.size).map(|file| (file, None)),
        };
        match opened {
            Ok((incoming, have)) => {
                let FileOffer { name, size, .. } = offer;
                self.offered = Some(Offered { name, size, hash, state: Ok(incoming) });
                self.answer(&BeginAnswer::accept(payload.len(), have));
            }
            Err(e) => {
                self.answer(&refused(Kind::FileBegin, &e.to_string()));
                self.refused(format!("file {:?}", offer.name), &e);
            }
        }
    }

    fn end(&mut self, hash: &[u8]) {
        let Some(Offered { name, size, hash: offered, state }) = self.offered.take() else {
            return self.answer(&refused(Kind::File, "no file was offered"));
        };
        let placed = state.and_then(|incoming| {
            if offered.is_some_and(|offered| offered != hash) {
                incoming.discard();
                return Err(SaveError::OtherHash);
            }
            incoming.place(&name, Some(hash))
        });
        self.placed(name, size, placed);
    }

    /// Another offer replaces the one before.
    fn drop_offer(&mut self) {
        if let Some(Offered { state: Ok(incoming), .. }) = self.offered.take() {
            incoming.discard();
        }
    }

    fn placed(&mut self, name: String, size: u64, placed: Result<PathBuf, SaveError>) {
        match placed {
            Ok(path) => {
                self.answer(&acknowledged(Kind::File, size));
                self.happened.push_back(Happened::File { name, size, path });
            }
            Err(e) => {
                self.answer(&refused(Kind::File, &e.to_string()));
                self.refused(format!("file {name:?}"), &e);
            }
        }
    }

    fn message(&mut self, kind: Kind, data: &[u8]) {
        let stamp = Stamp::now();
        let text = render(kind, data, self.from.address, stamp);
        let Store { inbox, quota, .. } = &*self.store;
        let saved = Incoming::create(inbox, quota, text.len() as u64).and_then(|mut incoming| {
            incoming.write(text.as_bytes())?;
            incoming.place_at(&kind.to_string(), stamp, ".json", None)
        });
        match saved {
            Ok(_) => {
                self.answer(&acknowledged(kind, data.len() as u64));
                self.happened.push_back(Happened::Message { kind, size: data.len() });
            }
            Err(e) => {
                self.answer(&refused(kind, &e.to_string()));
                self.refused(format!("{kind} message"), &e);
            }
        }
    }

    fn refused(&mut self, what: String, why: &SaveError) {
        self.happened.push_back(Happened::Refused { what, why: why.to_string() });
    }

    fn answer(&mut self, text: &str) {
        self.answers.extend(FrameHeader { kind: Kind::Text, len: text.len() }.encode());
        self.answers.extend_from_slice(text.as_bytes());
    }
}

fn discard(left: usize, answer: String) -> State {
    State::Discard { left, answer: Some(answer) }
}

/// A file that failed takes its bytes too: the stream stays in step.
fn write(state: &mut Result<Incoming, SaveError>, data: &[u8]) {
    if let Ok(incoming) = state
        && let Err(e) = incoming.write(data)
    {
        *state = Err(e);
    }
}

/// Takes up to `n` bytes from the front.
fn split<'a>(data: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (front, rest) = data.split_at(n.min(data.len()));
    *data = rest;
    front
}

/// A message as it lies in the inbox.
fn render(kind: Kind, data: &[u8], from: Address, stamp: Stamp) -> String {
    let mut message = json!({
        "bytes": data.len(),
        "data": String::from_utf8_lossy(data),
        "from": from,
        "received_at": stamp.rfc3339(),
        "type": kind.to_string(),
    });
    if kind == Kind::Binary {
        // Binary data does not survive the text above.
        message["data_base64"] = BASE64.encode(data).into();
    }
    message.to_string()
}

fn acknowledged(kind: Kind, len: u64) -> String {
    format!("ACK {kind} {len} bytes")
}

fn refused(kind: Kind, reason: &str) -> String {
    format!("ERR {kind} save failed: {reason}")
}

#[cfg(test)]
mod tests;
