//! A child that keeps to nothing, played by the test.

use std::collections::BTreeMap;

use pilot_plugin::Peer;
use pilot_wire::Address;
use serde_json::{Map, json};

use super::*;
use crate::events::Happening;
use crate::instance::Observer;
use crate::platform::{Platform, PortService};

/// A platform that counts what reaches it.
#[derive(Default)]
struct World {
    calls: Mutex<Vec<String>>,
    events: AtomicUsize,
    incidents: Mutex<Vec<Incident>>,
    values: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Platform for World {
    fn address(&self) -> Option<Address> {
        None
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer::at(remote)
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        self.calls.lock().unwrap().push(format!("dial {to}"));
        Box::pin(std::future::ready(Err("nobody is there".to_owned())))
    }

    fn send_datagram(&self, _: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Ok(())
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        self.calls.lock().unwrap().push(method.to_owned());
        Box::pin(std::future::ready(Ok(request)))
    }

    fn emit(&self, _: &str, _: Map<String, Value>) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    fn tell(&self, _: Happening) {}

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, _: u16) {}
}

impl Observer for World {
    fn incident(&self, _: &str, _: u64, incident: Incident) {
        self.incidents.lock().unwrap().push(incident);
    }
}

impl KeyValue for World {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.values.lock().unwrap().get(key).cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.values.lock().unwrap().insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.values.lock().unwrap().remove(key);
        Ok(())
    }

    fn keys(&self, _: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.values.lock().unwrap().keys().cloned().collect())
    }
}

/// Plays the child with `play` while a parent runs; gives what is left.
fn played<F: Future<Output = ()>>(
    limits: Limits,
    early: Vec<Frame>,
    play: impl FnOnce(UnixStream) -> F,
) -> (Arc<World>, Arc<Shared>) {
    let world = Arc::new(World::default());
    let shared = Arc::new(Shared::new(Context {
        name: "played".into(),
        generation: 1,
        platform: Arc::clone(&world) as _,
        store: Arc::clone(&world) as _,
        observer: Arc::clone(&world) as _,
        limits,
        granted: ["test.echo".to_owned()].into(),
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let (stdin, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let process = Process::spawn(Path::new("sleep"), "1000", stdin.into()).unwrap();
        let (_orders, inbox) = channel(ORDERS);
        let begun = Begun { process, socket, early };
        let parent = Parent::run(begun, Arc::clone(&shared), inbox);
        let both = async { tokio::join!(parent, play(theirs)) };
        // Its process is not of ours, and has to be killed after a while.
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the parent ends");
    });
    (world, shared)
}

async fn answer(socket: &mut UnixStream) -> String {
    let frame = frames::read(socket).await.unwrap().unwrap();
    assert_eq!(frame.kind, Kind::Answer);
    String::from_utf8_lossy(&frame.body[4..]).into_owned()
}

fn called(token: u64, method: &str) -> Frame {
    let called = Called { method: method.to_owned(), request: json!({ "n": 1 }) };
    Frame::json(Kind::Call, token, &called)
}

#[test]
fn what_is_not_granted_is_refused_and_what_came_early_is_answered() {
    let (world, shared) = played(Limits::default(), vec![called(1, "test.echo")], async |mut s| {
        assert!(answer(&mut s).await.contains(r#"{"n":1}"#));
        frames::write(&mut s, &called(2, "registry.forget")).await.unwrap();
        let text = answer(&mut s).await;
        assert!(text.contains("registry.forget is not granted to plugin played"), "{text}");
        frames::write(&mut s, &Frame::new(Kind::Dial, 3, "a:1")).await.unwrap();
        let text = answer(&mut s).await;
        assert!(text.contains("dial is not granted"), "{text}");
        let stats = StatsTold { queue: usize::MAX, errors: u64::MAX, ..StatsTold::default() };
        frames::write(&mut s, &Frame::json(Kind::Stats, 0, &stats)).await.unwrap();
        // Nothing of a parent's is for a parent.
        frames::write(&mut s, &Frame::new(Kind::Drain, 0, "")).await.unwrap();
    });
    assert_eq!(*world.calls.lock().unwrap(), ["test.echo"]);
    let incidents = world.incidents.lock().unwrap();
    assert!(
        matches!(&incidents[..], [Incident::Died { text }] if text.contains("broke the contract")),
        "{incidents:?}"
    );
    shared.note_error("one more");
    let instance = IsolatedInstance {
        shared,
        orders: channel(1).0,
        manifest: serde_json::from_value(json!({ "name": "played", "version": "1" })).unwrap(),
    };
    assert_eq!((instance.stats().queue, instance.stats().errors), (usize::MAX, u64::MAX));
}

#[test]
fn events_and_failures_are_held_to_their_rates() {
    let limits = Limits { events: 5, ..Limits::default() };
    let (world, shared) = played(limits, Vec::new(), async |mut s| {
        let event = Emitted { name: "x".to_owned(), data: Map::new() };
        let failed = IncidentTold::Failed { text: "y".repeat(MAX_TEXT + 1) };
        for _ in 0..2000 {
            frames::write(&mut s, &Frame::json(Kind::Emit, 0, &event)).await.unwrap();
        }
        for _ in 0..1000 {
            frames::write(&mut s, &Frame::json(Kind::Incident, 0, &failed)).await.unwrap();
        }
    });
    let events = world.events.load(Ordering::Relaxed);
    assert!((10..2000).contains(&events), "{events}");
    let incidents = world.incidents.lock().unwrap();
    assert!(incidents.iter().all(|i| match i {
        Incident::Failed { text } => text.len() == MAX_TEXT,
        other => matches!(other, Incident::Died { .. }),
    }));
    assert!(incidents.len() > 100);
    let errors = shared.errors.load(Ordering::Relaxed);
    assert!(errors > 1, "what was left out is told");
}

#[test]
fn a_child_that_does_not_read_is_killed_and_fills_nothing() {
    let (world, _) = played(Limits::default(), Vec::new(), async |mut s| {
        let body = "z".repeat(1 << 20);
        let mut sent = 0;
        for token in 0..400 {
            let called = Called { method: "test.echo".to_owned(), request: json!(body) };
            if frames::write(&mut s, &Frame::json(Kind::Call, token, &called)).await.is_err() {
                break;
            }
            sent += 1;
        }
        assert!(sent < 200, "all was taken");
    });
    let incidents = world.incidents.lock().unwrap();
    assert!(
        matches!(&incidents[..], [Incident::Died { text }] if text.contains("has not read")),
        "{incidents:?}"
    );
}
