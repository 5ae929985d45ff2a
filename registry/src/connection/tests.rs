//! A connection over a pipe, in virtual time.

use std::net::SocketAddr;
use std::sync::RwLock;

use pilot_wire::registry::PublicKey;
use pilot_wire::registry::session::{News, Push};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

use super::*;
use crate::events::Events;
use crate::limits::Places;
use crate::push::Since;
use crate::state::{Command, Op, Register, Signer, State};
use crate::store::MemoryLog;
use crate::writer::Followers;

struct World {
    state: Arc<RwLock<State>>,
    shared: Arc<Shared>,
    /// Node 1.
    signer: Signer,
}

/// With one node, and nobody else.
fn world() -> World {
    let key = PublicKey([7; 32]);
    let mut state = State::default();
    state.new_epoch("this".to_owned());
    let register = Register {
        key,
        endpoint: SocketAddr::from(([127, 0, 0, 1], 4000)),
        owner: String::new(),
        hostname: String::new(),
        proven: false,
        takeover: false,
    };
    state.apply(&Command::own(1, Op::Register(register))).unwrap();
    state.take_changes();
    let state = Arc::new(RwLock::new(state));
    let hub = Hub::at(1);
    let followers = Followers { hub: hub.clone(), ..Followers::default() };
    let (writer, _) = Writer::start(Arc::clone(&state), Box::new(MemoryLog), followers).unwrap();
    let service = Arc::new(Service::new(Arc::clone(&state), 0, false));
    let (denials, _) = Denials::new(Events::default());
    let shared = Shared::new(service, writer, hub, denials, Duration::from_secs(300));
    World { state, shared: Arc::new(shared), signer: Signer { node: NodeId(1), key } }
}

const SOURCE: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

impl World {
    fn serve(&self, room: usize) -> (DuplexStream, watch::Sender<bool>) {
        let (near, far) = duplex(room);
        let (stop, stopped) = watch::channel(false);
        let place = Places::new(1).take(SocketAddr::from(SOURCE).ip()).unwrap();
        tokio::spawn(serve(far, SOURCE.into(), place, Arc::clone(&self.shared), stopped));
        (near, stop)
    }

    fn connection(&self, stream: DuplexStream) -> Connection<DuplexStream> {
        let opened = self.shared.hub.open(&self.state, self.signer, Since::default(), vec![]);
        Connection {
            stream,
            asker: Asker { source: SOURCE.into(), session: Some(self.signer) },
            meter: Meter::new(Arc::clone(self.shared.service.metrics())),
            shared: Arc::clone(&self.shared),
            pending: Vec::new(),
            out: Vec::new(),
            served: 0,
            nonce: None,
            live: Some(opened.unwrap().live),
        }
    }

    /// A change of node 1, as the writer does it.
    fn state_trust(&self) {
        let mut state = self.state.write().unwrap();
        let register = Register {
            key: PublicKey([8; 32]),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 4000)),
            owner: String::new(),
            hostname: String::new(),
            proven: false,
            takeover: false,
        };
        state.apply(&Command::own(1, Op::Register(register))).unwrap();
        let by = Signer { node: NodeId(2), key: PublicKey([8; 32]) };
        state.apply(&Command::own(1, Op::ReportTrust { by, peer: NodeId(1) })).unwrap();
        state.apply(&Command::own(1, Op::RevokeTrust { by, peer: NodeId(1) })).unwrap();
        drop(state);
        self.shared.hub.follow(&self.state);
    }
}

fn frame(request: &Value) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, request).unwrap();
    frame
}

async fn receive(stream: &mut DuplexStream) -> Option<Value> {
    let len = stream.read_u32().await.ok()?;
    let mut body = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    Some(serde_json::from_slice(&body).unwrap())
}

async fn news(stream: &mut DuplexStream) -> News {
    serde_json::from_value::<Push>(receive(stream).await.unwrap()).unwrap().news
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_trickles_in_is_not_waited_for() {
    let world = world();
    let (mut stream, _stop) = world.serve(4096);
    let request = frame(&json!({"type": "lookup", "node_id": 1, "padding": "x".repeat(500)}));
    // Whole requests may be as far apart as they like below the idle limit.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(200)).await;
        stream.write_all(&request).await.unwrap();
        assert_eq!(receive(&mut stream).await.unwrap()["type"], "lookup_ok");
    }
    let begun = Instant::now();
    for byte in &request {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(receive(&mut stream).await, None);
    let waited = begun.elapsed();
    assert!(waited >= FRAME_LIMIT && waited < FRAME_LIMIT * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_long_is_refused_in_its_place() {
    let world = world();
    let (mut near, far) = duplex(64 * 1024);
    let mut connection = world.connection(far);
    connection.append(&json!({"number": 1}));
    connection.append(&json!({"text": "x".repeat(pilot_wire::registry::MAX_BODY_LEN)}));
    connection.append(&json!({"number": 3}));
    assert!(connection.send().await.is_ok());
    assert_eq!(receive(&mut near).await.unwrap(), json!({"number": 1}));
    let refused = receive(&mut near).await.unwrap();
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("too_large")));
    assert!(refused["hint"].as_str().unwrap().contains("fewer"), "{refused}");
    assert_eq!(receive(&mut near).await.unwrap(), json!({"number": 3}));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_cut_off() {
    let world = world();
    let (mut stream, _stop) = world.serve(1024);
    let request = frame(&json!({"type": "lookup", "node_id": 1}));
    let begun = Instant::now();
    while stream.write_all(&request).await.is_ok() {}
    assert!(begun.elapsed() >= WRITE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn news_are_told_while_an_answer_takes_long() {
    let world = world();
    let (mut near, far) = duplex(64 * 1024);
    let mut connection = world.connection(far);
    let (done, work) = tokio::sync::oneshot::channel();
    let waiting = tokio::spawn(async move {
        let done = connection.meanwhile(work).await;
        (done.is_ok(), connection)
    });
    assert!(matches!(news(&mut near).await, News::Sync(_)));
    world.state_trust();
    let News::Trust(trust) = news(&mut near).await else { panic!("not trust") };
    assert!(trust.node_id == NodeId(2) && trust.revoked);
    done.send(()).unwrap();
    let (finished, connection) = waiting.await.unwrap();
    assert!(finished);
    drop(connection);
    // A session that ends meanwhile takes the work with it.
    let (mut near, far) = duplex(64 * 1024);
    let mut connection = world.connection(far);
    let (_done, work) = tokio::sync::oneshot::channel::<()>();
    let waiting = tokio::spawn(async move { connection.meanwhile(work).await.is_ok() });
    assert!(matches!(news(&mut near).await, News::Sync(_)));
    let other = world.shared.hub.open(&world.state, world.signer, Since::default(), vec![]);
    assert_eq!(news(&mut near).await, News::Ended { code: "replaced".to_owned() });
    assert_eq!(receive(&mut near).await, None);
    assert!(!waiting.await.unwrap());
    drop(other);
    assert!(world.shared.hub.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_is_closed_when_nothing_comes() {
    let world = world();
    let (mut near, far) = duplex(64 * 1024);
    let mut connection = world.connection(far);
    let (_stop, mut stopped) = watch::channel(false);
    let begun = Instant::now();
    let served = tokio::spawn(async move { connection.run(&mut stopped).await.is_ok() });
    assert!(matches!(news(&mut near).await, News::Sync(_)));
    // News to it say nothing about whether it is there.
    tokio::time::sleep(SESSION_IDLE / 2).await;
    world.state_trust();
    assert!(matches!(news(&mut near).await, News::Trust(_)));
    assert_eq!(receive(&mut near).await, None);
    assert!(!served.await.unwrap());
    assert!(begun.elapsed() >= SESSION_IDLE && begun.elapsed() < SESSION_IDLE * 2);
}
