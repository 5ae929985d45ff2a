//! Requests to answers, bytes to bytes. Knows nothing of streams; what it needs
//! from elsewhere it says by a [`Step`].
//!
//! As published a request comes alone and without an end of line. A request
//! that ends with one is of the pipelined form: more may follow on the stream,
//! each answer ends with `\n` too, and the lines of a `QUERY S` end with an
//! empty one.

use std::io::Write;

use pilot_plugin::wire::service::nameserver::{MAX_ANSWER, MAX_REQUEST, Request};

use crate::hostnames::{Hostnames, is_hostname};
use crate::zone::{Refusal, Value, Who, Zone};

/// Answers are handed over when they are this long, in bytes.
const FULL: usize = 1 << 20;

/// Why answering stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All whole requests are answered.
    Done,
    /// The answers should be sent before more are made.
    Full,
    /// The registry has to be asked for this hostname; then the same request
    /// again.
    Ask(String),
    /// A request is too long: the answer says so, and the stream must end.
    TooLong,
}

/// Something to tell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Registered { name: String, value: Value },
    Refused { name: String, reason: Refusal },
}

/// Who asks, and under which circumstances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) who: &'a Who,
    /// Unix seconds.
    pub(crate) now: u64,
    /// Every registration is refused for this reason. There must be none that
    /// is not settled then.
    pub(crate) refuse: Option<&'a Refusal>,
    /// What the registry has just said of a hostname.
    pub(crate) said: Option<&'a (String, Answer)>,
}

/// What asking for a hostname gave: whether there is one; `Err` when too much
/// is being asked already.
pub(crate) type Answer = Result<Option<pilot_plugin::wire::Address>, Busy>;

/// The registry was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

/// Names and what is remembered of the registry's.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) zone: Zone,
    pub(crate) hostnames: Hostnames,
    /// Whether the registry may be asked.
    pub(crate) asks: bool,
    /// What happened since it was last taken.
    pub(crate) notes: Vec<Note>,
}

impl Server {
    /// Answers the requests of the pipelined form in `input` from `*at` on,
    /// and moves `*at` behind what was answered.
    pub(crate) fn lines(
        &mut self,
        call: Call<'_>,
        input: &[u8],
        at: &mut usize,
        out: &mut Vec<u8>,
    ) -> Step {
        loop {
            if out.len() >= FULL {
                return Step::Full;
            }
            let rest = input.get(*at..).unwrap_or_default();
            let end = rest.iter().position(|b| *b == b'\n');
            if end.unwrap_or(rest.len()) > MAX_REQUEST {
                let _ = writeln!(out, "ERR request too long: at most {MAX_REQUEST} bytes");
                return Step::TooLong;
            }
            let Some(end) = end else { return Step::Done };
            match self.answer(call, &rest[..end], out) {
                Ok(list) => out.extend_from_slice(if list { b"\n\n" } else { b"\n" }),
                Err(hostname) => return Step::Ask(hostname),
            }
            *at += end + 1;
        }
    }

    /// Answers a request of the published form.
    pub(crate) fn single(&mut self, call: Call<'_>, request: &[u8], out: &mut Vec<u8>) -> Step {
        let request = &request[..request.len().min(MAX_REQUEST)];
        match self.answer(call, request, out) {
            Ok(_) => Step::Done,
            Err(hostname) => Step::Ask(hostname),
        }
    }

    /// Whether the answer is a list, or the hostname to ask for.
    fn answer(&mut self, call: Call<'_>, line: &[u8], out: &mut Vec<u8>) -> Result<bool, String> {
        if let Some(query) = Query::read(line) {
            return self.query(call, query, out);
        }
        let text = String::from_utf8_lossy(line);
        match Request::parse(&text) {
            Ok(Request::QueryA { name }) => return self.query(call, Query::A(&name), out),
            Ok(Request::QueryN { name }) => return self.query(call, Query::N(&name), out),
            Ok(Request::QueryS { network, port }) => {
                return self.query(call, Query::S { network, port }, out);
            }
            Ok(Request::RegisterA { name, address }) => {
                self.register(call, name, Value::A(address), out)?;
            }
            Ok(Request::RegisterN { name, network }) => {
                self.register(call, name, Value::N(network), out)?;
            }
            Ok(Request::RegisterS(s)) => {
                let value = Value::S { address: s.address, network: s.network, port: s.port };
                self.register(call, s.name, value, out)?;
            }
            Err(why) => put(out, format_args!("ERR {why}")),
        }
        Ok(false)
    }

    fn query(&self, call: Call<'_>, query: Query<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        match query {
            Query::A(name) => match self.address(call, name)? {
                Some(address) => put(out, format_args!("A {name} {address}")),
                None => put(out, format_args!("ERR name \"{name}\" not found")),
            },
            Query::N(name) => match self.zone.network(name, call.now) {
                Some(network) => put(out, format_args!("N {name} {network}")),
                None => put(out, format_args!("ERR network \"{name}\" not found")),
            },
            Query::S { network, port } => {
                let start = out.len();
                for (name, address) in self.zone.services(network, port, call.now) {
                    let before = out.len();
                    if before > start {
                        out.push(b'\n');
                    }
                    put(out, format_args!("S {name} {address} {port}"));
                    // What a client reads at the most; the rest is left out.
                    if out.len() - start > MAX_ANSWER {
                        out.truncate(before);
                        break;
                    }
                }
                if out.len() == start {
                    out.push(b'S');
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn address(
        &self,
        call: Call<'_>,
        name: &str,
    ) -> Result<Option<pilot_plugin::wire::Address>, String> {
        if let Some(address) = self.zone.address(name, call.now) {
            return Ok(Some(address));
        }
        Ok(self.hostname(call, name)?.unwrap_or_default())
    }

    /// What the registry knows of a name, or the hostname to ask for.
    fn hostname(&self, call: Call<'_>, name: &str) -> Result<Answer, String> {
        if !self.asks || !is_hostname(name) {
            return Ok(Ok(None));
        }
        if let Some((_, answer)) = call.said.filter(|(asked, _)| asked == name) {
            return Ok(*answer);
        }
        self.hostnames.get(name, call.now).map(Ok).ok_or_else(|| name.to_owned())
    }

    fn register(
        &mut self,
        call: Call<'_>,
        name: String,
        value: Value,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        // A hostname of the registry is its node's, also while it has no
        // record here.
        let mut done = match self.hostname(call, &name)? {
            Err(Busy) => Err(Refusal::Busy),
            Ok(Some(address)) if call.who.node != Some(address.node) => {
                Err(Refusal::Taken(name.clone()))
            }
            Ok(_) => self.zone.register(call.who, &name, value, call.now),
        };
        // Refused only where it would be taken otherwise.
        if let Some(reason) = call.refuse.filter(|_| done.is_ok()) {
            self.zone.roll_back();
            done = Err(reason.clone());
        }
        match done {
            Ok(news) => {
                out.extend_from_slice(b"OK");
                if news {
                    self.notes.push(Note::Registered { name, value });
                }
            }
            Err(reason) => {
                put(out, format_args!("ERR {reason}"));
                self.notes.push(Note::Refused { name, reason });
            }
        }
        Ok(())
    }
}

/// A question as it stands in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Query<'a> {
    A(&'a str),
    N(&'a str),
    S { network: u16, port: u16 },
}

impl<'a> Query<'a> {
    /// Reads a question in plain ASCII without errors, which nearly all are;
    /// anything else is left to [`Request::parse`].
    fn read(line: &'a [u8]) -> Option<Self> {
        if !line.is_ascii() {
            return None;
        }
        // Of ASCII alone, so it is text.
        let line = std::str::from_utf8(line).ok()?;
        // White space as Unicode has it within ASCII: also the vertical tab.
        let mut words =
            line.split([' ', '\t', '\n', '\x0b', '\x0c', '\r']).filter(|w| !w.is_empty());
        let command = words.next()?;
        if !command.eq_ignore_ascii_case("QUERY") {
            return None;
        }
        match words.next()? {
            "A" | "a" => Some(Self::A(words.next()?)),
            "N" | "n" => Some(Self::N(words.next()?)),
            "S" | "s" => {
                let (network, port) = (number(words.next()?)?, number(words.next()?)?);
                Some(Self::S { network, port })
            }
            _ => None,
        }
    }
}

fn number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}
