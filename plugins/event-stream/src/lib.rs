//! Port 1002: the event stream (protocol page "Services", section 6), with the
//! extension of `pilot_plugin::wire::service::event_stream`.
//!
//! This file moves bytes between streams and the `broker`. A connection is one
//! future with two halves: one publishes what comes in, the other writes what
//! waits for it. The first to end ends both.
#![forbid(unsafe_code)]

mod broker;
mod config;
mod frames;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use pilot_plugin::json::{Value, json};
use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::event_stream::{Event, PORT};
use pilot_plugin::{Buffer, Error, Host, Level, Manifest, Peer, Plugin, Reader, Stream, Writer};

use broker::{Batch, Bounds, Broker, Id};
use config::{Config, Rights};
use frames::Frame;

/// Bytes of events that are written to a subscriber at once.
const ROOM: usize = 64 << 10;
/// Reads published before other streams have their turn.
const TURN: u32 = 8;
/// An event that has begun and of which nothing comes for so long resets its
/// connection; so does a first event that does not come.
const STALL: Duration = Duration::from_secs(60);
/// An unfinished event up to this many bytes does not count against
/// `max-begun`.
const FREE: usize = 16 << 10;

struct EventStream {
    state: Rc<State>,
}

struct State {
    host: Host,
    config: Config,
    broker: RefCell<Broker>,
    /// Connections by node.
    nodes: RefCell<HashMap<NodeId, usize>>,
    connections: Cell<usize>,
    /// Bytes of unfinished events of all connections.
    begun: Cell<usize>,
    draining: Cell<bool>,
}

impl Plugin for EventStream {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("event-stream", env!("CARGO_PKG_VERSION"))
            .describe("events by topic, for whoever subscribes")
            .service("event-stream", &[PORT])
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        config.check()?;
        let bounds = Bounds { bytes: config.queue_bytes, events: config.queue_events };
        let state = State {
            host,
            config,
            broker: RefCell::new(Broker::new(bounds)),
            nodes: RefCell::default(),
            connections: Cell::new(0),
            begun: Cell::new(0),
            draining: Cell::new(false),
        };
        Ok(Self { state: Rc::new(state) })
    }

    async fn serve(&self, stream: Stream, peer: Peer) -> Result<(), Error> {
        let state = &*self.state;
        let _place = Place::take(state, peer.node())?;
        let (reader, writer) = stream.into_split();
        let rights = Rights::of(&peer, state.config.publish.as_deref());
        let mut publisher =
            Publisher { state, peer: &peer, rights, reader, begun: Begun::new(state), refused: 0 };
        let Some(first) = publisher.first().await? else { return Ok(()) };
        let subscriber = Subscriber::new(state, &peer, &first);
        either(publisher.publish(subscriber.id), subscriber.deliver(writer)).await
    }

    /// Publishers and subscribers of two generations do not meet, so all are to
    /// connect again, once they have what waits for them.
    fn drain(&self) {
        self.state.draining.set(true);
        self.state.broker.borrow_mut().call_all();
    }
}

/// Counts a connection while it lasts.
struct Place<'a> {
    state: &'a State,
    node: NodeId,
}

impl<'a> Place<'a> {
    fn take(state: &'a State, node: NodeId) -> Result<Self, Error> {
        let Config { max_subscribers, max_per_node, .. } = state.config;
        let mut nodes = state.nodes.borrow_mut();
        let of_node = nodes.get(&node).copied().unwrap_or_default();
        if state.connections.get() >= max_subscribers {
            state.host.count("connections_refused", 1);
            return Err(Error::new(format!("more than {max_subscribers} connections")));
        }
        if of_node >= max_per_node {
            state.host.count("connections_refused", 1);
            return Err(Error::new(format!("more than {max_per_node} connections of node {node}")));
        }
        nodes.insert(node, of_node + 1);
        state.connections.set(state.connections.get() + 1);
        Ok(Self { state, node })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self { state, node } = self;
        state.connections.set(state.connections.get() - 1);
        let mut nodes = state.nodes.borrow_mut();
        if let Some(count) = nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(node);
            }
        }
    }
}

/// The event of a connection that has not come whole.
struct Begun<'a> {
    state: &'a State,
    bytes: Vec<u8>,
    counted: usize,
}

impl<'a> Begun<'a> {
    const fn new(state: &'a State) -> Self {
        Self { state, bytes: Vec::new(), counted: 0 }
    }

    fn push(&mut self, data: &[u8]) -> Result<(), Error> {
        self.bytes.extend_from_slice(data);
        self.count()
    }

    fn count(&mut self) -> Result<(), Error> {
        let others = self.state.begun.get() - self.counted;
        self.counted = self.bytes.len().saturating_sub(FREE);
        self.state.begun.set(others + self.counted);
        let max = self.state.config.max_begun;
        if self.counted > 0 && others + self.counted > max {
            return Err(Error::new(format!("more than {max} bytes of events that are not whole")));
        }
        Ok(())
    }

    /// Drops what was used.
    fn consume(&mut self, n: usize) -> Result<(), Error> {
        self.bytes.drain(..n.min(self.bytes.len()));
        if self.bytes.is_empty() {
            // A long event is not to hold its memory for ever.
            self.bytes.shrink_to(FREE);
        }
        self.count()
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.state.begun.set(self.state.begun.get() - self.counted);
    }
}

/// The half that publishes.
struct Publisher<'a> {
    state: &'a State,
    peer: &'a Peer,
    rights: Rights,
    reader: Reader,
    begun: Begun<'a>,
    /// Publications that were not allowed.
    refused: u64,
}

impl Publisher<'_> {
    /// The subscribing event; `None` when the stream ends before.
    async fn first(&mut self) -> Result<Option<Event>, Error> {
        while let Some(data) = self.next(true).await? {
            self.begun.push(&data)?;
            if let Some(frame) = Frame::read(&self.begun.bytes, self.state.config.max_payload)? {
                let event = Event::new(frame.topic, frame.payload);
                let used = frame.bytes.len();
                self.begun.consume(used)?;
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The next bytes; with a limit when something is owed.
    async fn next(&mut self, owed: bool) -> Result<Option<Buffer>, Error> {
        if !owed {
            return Ok(self.reader.recv().await?);
        }
        let host = &self.state.host;
        match host.timeout(STALL, self.reader.recv()).await {
            Some(data) => Ok(data?),
            None => Err(Error::new("an event did not come to its end in time")),
        }
    }

    async fn publish(mut self, id: Id) -> Result<(), Error> {
        // More may have come with the first event.
        let bytes = std::mem::take(&mut self.begun.bytes);
        let used = self.publish_all(id, &bytes).await?;
        self.begun.push(&bytes[used..])?;
        let mut turns = 0;
        while let Some(data) = self.next(!self.begun.bytes.is_empty()).await? {
            if self.begun.bytes.is_empty() {
                let used = self.publish_all(id, &data).await?;
                self.begun.push(&data[used..])?;
            } else {
                self.begun.push(&data)?;
                let bytes = std::mem::take(&mut self.begun.bytes);
                let used = self.publish_all(id, &bytes).await?;
                self.begun.bytes = bytes;
                self.begun.consume(used)?;
            }
            turns += 1;
            if turns % TURN == 0 {
                others().await;
            }
        }
        Ok(())
    }

    /// Publishes the whole events in `bytes`; gives how long they are.
    async fn publish_all(&mut self, id: Id, bytes: &[u8]) -> Result<usize, Error> {
        let Self { state, peer, .. } = *self;
        let mut used = 0;
        while let Some(event) = Frame::read(&bytes[used..], state.config.max_payload)? {
            used += event.bytes.len();
            if !self.rights.allow(event.topic) {
                self.refuse(event.topic)?;
                continue;
            }
            let published = state.broker.borrow_mut().publish(id, event);
            if published.dropped > 0 {
                state.host.count("dropped", published.dropped);
            }
            let topic = String::from_utf8_lossy(event.topic);
            let (size, from) = (event.payload.len(), peer.address);
            let data = json!({ "topic": topic, "size": size, "from": from });
            state.emit("pubsub.published", &data);
            if published.crowded {
                others().await;
            }
        }
        Ok(used)
    }

    fn refuse(&mut self, topic: &[u8]) -> Result<(), Error> {
        let state = self.state;
        state.host.count("publications_refused", 1);
        self.refused += 1;
        let topic = String::from_utf8_lossy(topic);
        let text = format!("{} may not publish on {topic:?} (key `publish`)", self.peer.address);
        if state.config.reset_refused {
            return Err(Error::new(text));
        }
        if self.refused == 1 {
            state.host.log(Level::Warn, text);
        }
        Ok(())
    }
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        if self.refused > 1 {
            let (address, refused) = (self.peer.address, self.refused);
            let text = format!("{address}: {refused} publications were not allowed");
            self.state.host.log(Level::Warn, text);
        }
    }
}

/// The half that delivers; subscribed as long as it lives.
struct Subscriber<'a> {
    state: &'a State,
    peer: &'a Peer,
    id: Id,
    topic: String,
}

impl<'a> Subscriber<'a> {
    fn new(state: &'a State, peer: &'a Peer, first: &Event) -> Self {
        let mut broker = state.broker.borrow_mut();
        let id = broker.subscribe(first);
        #[expect(clippy::cast_precision_loss, reason = "a gauge for people")]
        state.host.gauge("subscribers", broker.len() as f64);
        drop(broker);
        let topic = first.topic_text().into_owned();
        let data = json!({ "topic": topic, "remote": peer.address });
        state.emit("pubsub.subscribed", &data);
        Self { state, peer, id, topic }
    }

    async fn deliver(&self, mut writer: Writer) -> Result<(), Error> {
        loop {
            let batch = poll_fn(|cx| {
                match self.state.broker.borrow_mut().take(self.id, ROOM, cx.waker()) {
                    Some(batch) => Poll::Ready(Some(batch)),
                    None if self.state.draining.get() => Poll::Ready(None),
                    None => Poll::Pending,
                }
            });
            let Some(batch) = batch.await else { return Ok(()) };
            match batch {
                Batch::Many(events) => writer.send(events).await?,
                Batch::One(event) => writer.write_all(&event).await?,
            }
        }
    }
}

impl Drop for Subscriber<'_> {
    fn drop(&mut self) {
        let Self { state, peer, id, topic } = self;
        let mut broker = state.broker.borrow_mut();
        broker.unsubscribe(*id);
        #[expect(clippy::cast_precision_loss, reason = "a gauge for people")]
        state.host.gauge("subscribers", broker.len() as f64);
        drop(broker);
        state.emit("pubsub.unsubscribed", &json!({ "topic": topic, "remote": peer.address }));
    }
}

impl State {
    fn emit(&self, name: &str, data: &Value) {
        if self.host.emit(name, data).is_err() {
            self.host.count("events_refused", 1);
        }
    }
}

/// The result of whichever ends first.
async fn either<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(value),
        Poll::Pending => b.as_mut().poll(cx),
    })
    .await
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

pilot_plugin::export_plugin!(EventStream);
