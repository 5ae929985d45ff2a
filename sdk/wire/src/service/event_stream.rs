//! Event stream, port 1002 (protocol page "Services", section 6), and what we
//! add to it.
//!
//! An event is topic length (2), topic, payload length (4), payload. The first
//! event of a connection subscribes to its topic, every later one is published
//! to the other connections whose subscription matches. As published a
//! subscription matches its very topic, or everything if it is `*`.
//!
//! # The extension
//!
//! Published brokers ignore the payload of the subscribing event, and published
//! subscribers leave it empty. So a subscriber of ours puts [`Options`] there,
//! behind [`MARK`]; a subscription without the mark gets exactly what the
//! published protocol gives it, also when its topic looks like a pattern. To a
//! marked subscriber our broker
//!
//! 1. says first that the subscription stands, by an event on
//!    [`SUBSCRIBED_TOPIC`] (a published broker never does, which is how the
//!    subscriber knows that patterns and notices are not to be had there);
//! 2. delivers what its *pattern* matches: segments are separated by dots, a
//!    segment `*` or `abc*` stands for one segment (that begins with `abc`), a
//!    last segment `>` for one or more. `sensors.*`, `sensors.>`,
//!    `sensors.temp*`. A topic `*` alone still means everything. A `*` or `>`
//!    elsewhere is an ordinary character;
//! 3. says how many events it had to leave out because the subscriber was too
//!    slow, by an event on [`DROPPED_TOPIC`] with [`Dropped`] as JSON, before
//!    the next event that it delivers;
//! 4. never delivers what *peers* publish on these two topics, so that nobody
//!    can make up a notice. Unmarked subscribers get it like any other event.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::pending::Pending;
use crate::reader::Reader;

/// The port of the event stream.
pub const PORT: u16 = 1002;
/// Longest topic, in bytes; more fails the connection.
pub const MAX_TOPIC: usize = 1024;
/// Longest payload, in bytes; more fails the connection.
pub const MAX_PAYLOAD: usize = 16_777_216;
/// The topic that matches everything.
pub const ALL: &[u8] = b"*";
/// Begins the payload of a subscribing event that carries [`Options`].
pub const MARK: &[u8; 8] = b"\0PILOTE1";
/// Longest [`Options`], in bytes of JSON; longer ones count as none.
pub const MAX_OPTIONS: usize = 4096;
/// Where our broker tells a marked subscriber that its subscription stands;
/// the payload is [`Options`] as the broker understood them.
pub const SUBSCRIBED_TOPIC: &[u8] = b"pilot.subscribed";
/// Where our broker tells a marked subscriber what it left out.
pub const DROPPED_TOPIC: &[u8] = b"pilot.dropped";

/// One event, or the subscription that begins a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Topic: by convention UTF-8, but any bytes are passed on.
    pub topic: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// A length in an event exceeds its limit; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLong {
    /// The topic.
    #[error("event topic of {0} bytes, the limit is 1024")]
    Topic(usize),
    /// The payload, and the limit that it exceeds.
    #[error("event payload of {0} bytes, the limit is {1}")]
    Payload(usize, usize),
}

impl Event {
    /// An event on a topic.
    pub fn new(topic: impl Into<Vec<u8>>, payload: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.into(), payload: payload.into() }
    }

    /// The topic for people; what is no UTF-8 is replaced.
    pub fn topic_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.topic)
    }

    /// The bytes on the wire. Encoding what was decoded gives the same bytes.
    ///
    /// # Errors
    /// When topic or payload exceed their limit.
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        let (topic, payload) = (self.topic.len(), self.payload.len());
        let topic_len = u16::try_from(topic)
            .ok()
            .filter(|_| topic <= MAX_TOPIC)
            .ok_or(TooLong::Topic(topic))?;
        let payload_len = u32::try_from(payload)
            .ok()
            .filter(|_| payload <= MAX_PAYLOAD)
            .ok_or(TooLong::Payload(payload, MAX_PAYLOAD))?;
        let mut out = Vec::with_capacity(6 + topic + payload);
        out.extend_from_slice(&topic_len.to_be_bytes());
        out.extend_from_slice(&self.topic);
        out.extend_from_slice(&payload_len.to_be_bytes());
        out.extend_from_slice(&self.payload);
        Ok(out)
    }
}

/// Takes events out of a stream, however it is cut. Holds at most one event
/// that is not whole yet and what was pushed last.
#[derive(Debug)]
pub struct Decoder {
    pending: Pending,
    max_payload: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_PAYLOAD)
    }
}

impl Decoder {
    /// A decoder that takes payloads up to `max_payload` bytes, at most
    /// [`MAX_PAYLOAD`].
    pub fn new(max_payload: usize) -> Self {
        Self { pending: Pending::default(), max_payload: max_payload.min(MAX_PAYLOAD) }
    }

    /// Takes the next bytes of the stream. Call [`Self::next_event`] until it
    /// gives nothing before pushing more.
    pub fn push(&mut self, data: &[u8]) {
        self.pending.push(data);
    }

    /// The next whole event, if there is one.
    ///
    /// # Errors
    /// When a length exceeds its limit. There is no way back into step: every
    /// later call fails too.
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLong> {
        let bytes = self.pending.peek();
        let mut r = Reader::new(bytes);
        let Some(topic_len) = r.u16().map(usize::from) else { return Ok(None) };
        if topic_len > MAX_TOPIC {
            return Err(TooLong::Topic(topic_len));
        }
        let Some(topic) = r.take(topic_len) else { return Ok(None) };
        let Some(payload_len) = r.u32() else { return Ok(None) };
        let payload_len = usize::try_from(payload_len).unwrap_or(usize::MAX);
        if payload_len > self.max_payload {
            return Err(TooLong::Payload(payload_len, self.max_payload));
        }
        let Some(payload) = r.take(payload_len) else { return Ok(None) };
        let event = Event::new(topic, payload);
        let used = bytes.len() - r.rest().len();
        self.pending.consume(used);
        Ok(Some(event))
    }

    /// Whether a part of an event has come, so that an end now cuts it.
    pub fn is_inside(&self) -> bool {
        !self.pending.peek().is_empty()
    }
}

/// What a subscriber of ours asks for, as JSON behind [`MARK`] in the payload
/// of its subscribing event. Unknown keys are ignored, absent ones are `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// The topic is a pattern.
    pub patterns: bool,
    /// Tell how many events were left out.
    pub dropped: bool,
    /// Deliver nothing: the connection only publishes.
    pub publish_only: bool,
}

impl Options {
    /// The payload of a subscribing event that carries these options.
    pub fn to_payload(self) -> Vec<u8> {
        let mut out = MARK.to_vec();
        out.extend_from_slice(&self.to_json());
        out
    }

    /// The options in the payload of a subscribing event; `None` for a
    /// subscription as published.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let json = payload.strip_prefix(MARK)?;
        if json.len() > MAX_OPTIONS {
            return None;
        }
        serde_json::from_slice(json).ok()
    }

    /// What the broker says on [`SUBSCRIBED_TOPIC`].
    pub fn to_event(self) -> Event {
        Event::new(SUBSCRIBED_TOPIC, self.to_json())
    }

    /// What the broker said, if the event is that.
    pub fn from_event(event: &Event) -> Option<Self> {
        if event.topic != SUBSCRIBED_TOPIC || event.payload.len() > MAX_OPTIONS {
            return None;
        }
        serde_json::from_slice(&event.payload).ok()
    }

    fn to_json(self) -> Vec<u8> {
        let Self { patterns, dropped, publish_only } = self;
        format!("{{\"patterns\":{patterns},\"dropped\":{dropped},\"publish_only\":{publish_only}}}")
            .into_bytes()
    }
}

/// How many events a subscriber did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Events left out since the last notice, or since the subscription.
    pub count: u64,
}

impl Dropped {
    /// The notice.
    pub fn to_event(self) -> Event {
        Event::new(DROPPED_TOPIC, format!("{{\"count\":{}}}", self.count).into_bytes())
    }

    /// The notice in an event that came from a broker of ours.
    pub fn from_event(event: &Event) -> Option<Self> {
        if event.topic != DROPPED_TOPIC || event.payload.len() > MAX_OPTIONS {
            return None;
        }
        serde_json::from_slice(&event.payload).ok()
    }
}

/// Whether the topic is one that a broker of ours speaks on itself.
pub fn is_reserved(topic: &[u8]) -> bool {
    topic == SUBSCRIBED_TOPIC || topic == DROPPED_TOPIC
}

/// What a connection has subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    topic: Vec<u8>,
    options: Option<Options>,
}

impl Subscription {
    /// The subscription that the first event of a connection makes.
    pub fn new(first: &Event) -> Self {
        Self { topic: first.topic.clone(), options: Options::from_payload(&first.payload) }
    }

    /// Its topic, or pattern.
    pub fn topic(&self) -> &[u8] {
        &self.topic
    }

    /// What the subscriber asked for; `None` if it subscribed as published.
    pub fn options(&self) -> Option<Options> {
        self.options
    }

    /// Whether the topic is read as a pattern, and is one: such a subscription
    /// must be tried on every event, any other can be found by its topic.
    pub fn is_pattern(&self) -> bool {
        self.options.is_some_and(|o| o.patterns) && self.topic != ALL && is_pattern(&self.topic)
    }

    /// Whether an event that a peer published on `topic` is for it.
    pub fn matches(&self, topic: &[u8]) -> bool {
        if let Some(options) = self.options
            && (options.publish_only || is_reserved(topic))
        {
            return false;
        }
        if self.topic == ALL || self.topic == topic {
            return true;
        }
        // As published, an event on `*` is for subscribers of `*` alone.
        topic != ALL && self.is_pattern() && pattern_matches(&self.topic, topic)
    }
}

/// Whether a topic contains a wildcard, read as a pattern.
pub fn is_pattern(topic: &[u8]) -> bool {
    let mut segments = topic.split(|b| *b == b'.').peekable();
    while let Some(segment) = segments.next() {
        if segment.ends_with(b"*") || (segment == b">" && segments.peek().is_none()) {
            return true;
        }
    }
    false
}

/// Whether a pattern matches a topic. Takes time linear in both.
pub fn pattern_matches(pattern: &[u8], topic: &[u8]) -> bool {
    let mut topic = topic.split(|b| *b == b'.');
    let mut pattern = pattern.split(|b| *b == b'.').peekable();
    while let Some(want) = pattern.next() {
        let Some(have) = topic.next() else { return false };
        if want == b">" && pattern.peek().is_none() {
            return true;
        }
        let fits = match want.strip_suffix(b"*") {
            Some(prefix) => have.starts_with(prefix),
            None => want == have,
        };
        if !fits {
            return false;
        }
    }
    topic.next().is_none()
}
