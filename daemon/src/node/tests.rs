//! Two nodes in one process over loopback UDP, without a registry, and clients
//! that speak the wire messages of the driver socket.

mod happenings;
mod hello;
mod hosted;
mod hostile;
mod lane;
mod networks;
mod plugins;
mod published;
mod services;
mod spread;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Permission, StreamNumbers};
use pilot_wire::ipc::{Command, Event, Features, HELLO_VERSION, LENGTH_LEN, split_message};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::LocalSet;

use super::*;
use crate::control::ControlEvent;
use crate::events::tests::Heard;
use crate::ipc::IpcListener;
use crate::service::Echo;
use crate::udp::Udp;
use crate::workers::{Settling, Spread};
use pilot_wire::ipc::ErrorCode;

/// The most any single step may take.
const STEP: Duration = Duration::from_secs(20);

/// Runs a test on one thread, as the daemon runs.
fn run_test(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(120), test).await.unwrap() };
    LocalSet::new().block_on(&runtime, test);
}

/// What the nodes of a test know of each other.
#[derive(Default)]
struct Directory {
    nodes: RefCell<HashMap<NodeId, (SocketAddr, [u8; 32])>>,
}

/// A control plane that answers from the directory.
struct FakePlane {
    node: NodeId,
    directory: Rc<Directory>,
    handle: NodeHandle,
    noted: RefCell<Vec<NodeId>>,
    /// It takes no questions.
    busy: Cell<bool>,
    /// Questions it did not take.
    declined: Cell<u32>,
}

impl FakePlane {
    fn tell(&self, event: ControlEvent) -> bool {
        if self.busy.get() {
            self.declined.set(self.declined.get() + 1);
            return false;
        }
        let handle = self.handle.clone();
        tokio::task::spawn_local(async move { handle.control(event).await });
        true
    }
}

impl Plane for FakePlane {
    fn resolve_endpoint(&self, node: NodeId) -> bool {
        let endpoint = self.directory.nodes.borrow().get(&node).map(|n| n.0);
        self.tell(ControlEvent::Endpoint { node, endpoint })
    }

    fn lookup_key(&self, node: NodeId) -> bool {
        let key = self.directory.nodes.borrow().get(&node).map(|n| n.1);
        self.tell(ControlEvent::IdentityKey { node, key })
    }

    fn observed(&self, _: SocketAddr) {}

    fn note_peer(&self, node: NodeId, _: SocketAddr) {
        self.noted.borrow_mut().push(node);
    }

    fn met(&self, _: NodeId) {}

    /// Member of network 5 with nodes 1 to 3, as far as the rest of the
    /// directory goes.
    fn broadcast(&self, to: SocketAddress, data: &[u8]) -> Result<Answer, Refused> {
        if to.address.network != 5 {
            let text = format!("this node is not a member of network {}", to.address.network);
            return Err(Refused { code: ErrorCode::NOT_FOUND, text });
        }
        let (handle, data) = (self.handle.clone(), bytes::Bytes::copy_from_slice(data));
        let others = [1, 2, 3].map(NodeId).into_iter().filter(|n| *n != self.node);
        let recipients: Vec<_> = others.collect();
        Ok(Box::pin(async move {
            if data.is_empty() {
                let text = "the members of network 5 are not known".to_owned();
                return Err(Refused { code: ErrorCode::REGISTRY, text });
            }
            handle.broadcast(to, &recipients, data).await;
            Ok(Value::Null)
        }))
    }

    /// Slow for hostnames that say so, to show what overlaps.
    fn request(&self, request: Request) -> Answer {
        Box::pin(async move {
            match request {
                Request::ResolveHostname(name) if name == "nobody" => Err(Refused {
                    code: ErrorCode::NOT_FOUND,
                    text: "resolve_hostname: registry: request failed".to_owned(),
                }),
                Request::ResolveHostname(name) => {
                    if name == "slow" {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Ok(json!({ "type": "resolve_hostname_ok", "hostname": name }))
                }
                other => Ok(json!({ "asked": format!("{other:?}") })),
            }
        })
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            node_id: self.node,
            address: Some(Address::backbone(self.node)),
            hostname: format!("node-{}", self.node),
            registry: json!({ "state": "off" }),
            ..NodeFacts::default()
        }
    }
}

/// A running node.
struct TestNode {
    id: NodeId,
    handle: NodeHandle,
    plane: Rc<FakePlane>,
    socket: PathBuf,
    udp: SocketAddr,
    folder: tempfile::TempDir,
    /// What it said that happened.
    said: Arc<Heard>,
    /// What has to be done for clients of several workers at the end.
    router: RefCell<Option<RouterEnd>>,
}

/// How a router is ended.
struct RouterEnd {
    settling: Rc<Settling>,
    stop: tokio::sync::oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

impl TestNode {
    async fn start(number: u32, directory: &Rc<Directory>, config: Config) -> Self {
        let workers = std::env::var("PILOT_TEST_WORKERS").ok().and_then(|n| n.parse().ok());
        let spread = Spread::over(workers.unwrap_or(1));
        Self::start_spread(number, directory, config, spread, spread).await
    }

    /// A node with several workers, which all run on the test's thread. The
    /// kernel sorts datagrams by `sorted`.
    async fn start_spread(
        number: u32,
        directory: &Rc<Directory>,
        config: Config,
        spread: Spread,
        sorted: Spread,
    ) -> Self {
        let id = NodeId(number);
        let key = SigningKey::from_bytes(&[number as u8; 32]);
        let workers = spread.workers();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let udp: Vec<Udp> = if workers == 1 {
            vec![Udp::bind(any).unwrap()]
        } else {
            let sockets = crate::workers::bind(any, spread).unwrap();
            crate::workers::attach(&sockets[0], sorted).unwrap();
            sockets.into_iter().map(|s| Udp::from_socket(s, any).unwrap()).collect()
        };
        let address = udp[0].local_addr().unwrap();
        let public = key.verifying_key().to_bytes();
        directory.nodes.borrow_mut().insert(id, (address, public));
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("pilot.sock");
        let (handle, inboxes) = channels(spread);
        let plane = Rc::new(FakePlane {
            node: id,
            directory: Rc::clone(directory),
            handle: handle.clone(),
            noted: RefCell::default(),
            busy: Cell::default(),
            declined: Cell::default(),
        });
        let said = Arc::new(Heard::default());
        let mut listener = Some(IpcListener::bind(&socket).unwrap());
        for ((udp, inbox), edge) in udp.into_iter().zip(inboxes).zip(crate::workers::edges(spread))
        {
            let numbers = StreamNumbers { step: workers as u32, rest: edge.worker() as u32 };
            let config = Config { stream_numbers: numbers, ..config.clone() };
            let parts = NodeParts {
                send_buffer: config.send_buffer,
                core: Core::new(config, key.clone(), rand::random()),
                udp,
                listener: if workers == 1 { listener.take() } else { None },
                edge: (workers > 1).then_some(edge),
                inbox,
                plane: Rc::clone(&plane) as Rc<dyn Plane>,
                services: vec![Rc::new(Echo)],
                max_clients: 64,
                max_lanes: 64,
                events: said.events(),
            };
            tokio::task::spawn_local(run(parts));
        }
        let router = listener.map(|listener| {
            let router = crate::workers::Router::new(spread, handle.clone(), 64);
            let settling = router.settling();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let ended = tokio::task::spawn_local(router.run(listener, stopped));
            RouterEnd { settling, stop, ended }
        });
        let address_event = ControlEvent::Registered { node: id, address: Address::backbone(id) };
        handle.control(address_event).await;
        let router = RefCell::new(router);
        Self { id, handle, plane, socket, udp: address, folder, said, router }
    }

    /// Ends the node as the daemon does.
    async fn end(&self, deadline: Duration) {
        let router = self.router.borrow_mut().take();
        if let Some(router) = &router {
            router.settling.settle().await;
        }
        self.handle.begin_shutdown(deadline).await;
        if let Some(RouterEnd { stop, ended, .. }) = router {
            let _ = stop.send(());
            ended.await.unwrap();
        }
    }

    fn at(&self, port: u16) -> SocketAddress {
        Address::backbone(self.id).port(port)
    }

    /// A client of the published protocol.
    async fn client(&self) -> TestClient {
        let (reader, writer) = UnixStream::connect(&self.socket).await.unwrap().into_split();
        TestClient {
            reader: Reader { reader, buffer: BytesMut::new() },
            writer: Writer { writer },
            send_credit: 0,
            first_credit: 0,
        }
    }

    /// A client with every feature that needs no shared memory.
    async fn hello_client(&self, receive_credit: u32) -> TestClient {
        self.client_with(receive_credit, Features(Features::ALL.0 & !Features::LANE.0)).await
    }

    async fn client_with(&self, receive_credit: u32, features: Features) -> TestClient {
        let mut client = self.client().await;
        let hello = Command::Hello { version: HELLO_VERSION, features, receive_credit };
        client.tell(&hello).await;
        let message = client.hear().await;
        let Event::HelloOk { version: 1, features: granted, send_credit } = message.event() else {
            panic!("{:?}", message.event())
        };
        assert_eq!(granted, features);
        client.send_credit = send_credit;
        client
    }

    async fn info(&self) -> Value {
        let mut client = self.client().await;
        client.tell(&Command::Info).await;
        let message = client.hear().await;
        let Event::Json { code: 0x0E, body } = message.event() else { panic!() };
        serde_json::from_slice(body).unwrap()
    }
}

/// Two nodes that trust each other.
async fn pair() -> (TestNode, TestNode) {
    pair_with(Config::default()).await
}

async fn pair_with(config: Config) -> (TestNode, TestNode) {
    let directory = Rc::new(Directory::default());
    let a = TestNode::start(1, &directory, config.clone()).await;
    let b = TestNode::start(2, &directory, config).await;
    a.handle.set_permission(b.id, Permission::Trusted).await;
    b.handle.set_permission(a.id, Permission::Trusted).await;
    (a, b)
}

/// A message from the daemon.
#[derive(Clone, Debug)]
struct Message(Vec<u8>);

impl Message {
    fn event(&self) -> Event<'_> {
        Event::parse(&self.0).unwrap()
    }
}

struct Reader {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let whole =
                split_message(&self.buffer).unwrap().map(|(body, used)| (body.to_vec(), used));
            if let Some((body, used)) = whole {
                self.buffer.advance(used);
                return Some(Message(body));
            }
            let read = tokio::time::timeout(STEP, self.reader.read_buf(&mut self.buffer));
            match read.await.expect("the daemon says nothing") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

struct Writer {
    writer: OwnedWriteHalf,
}

impl Writer {
    async fn tell(&mut self, command: &Command<'_>) {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        self.raw(&bytes).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        tokio::time::timeout(STEP, self.writer.write_all(bytes)).await.unwrap().unwrap();
    }
}

struct TestClient {
    reader: Reader,
    writer: Writer,
    /// What hello said; nothing without hello.
    send_credit: u32,
    /// What the newest connection may send at first.
    first_credit: u32,
}

impl TestClient {
    async fn tell(&mut self, command: &Command<'_>) {
        self.writer.tell(command).await;
    }

    async fn hear(&mut self) -> Message {
        self.reader.next().await.expect("the daemon hung up")
    }

    async fn hears(&mut self, expected: Event<'_>) {
        let message = self.hear().await;
        assert_eq!(message.event(), expected);
    }

    async fn hears_error(&mut self, code: ErrorCode, text: &str) {
        self.hears(Event::Error { code, text }).await;
    }

    async fn bind(&mut self, port: u16) {
        self.tell(&Command::Bind { port }).await;
        self.hears(Event::BindOk { port }).await;
    }

    async fn dial(&mut self, to: SocketAddress) -> u32 {
        self.tell(&Command::Dial { to }).await;
        let message = self.hear().await;
        let Event::DialOk { connection } = message.event() else { panic!("{:?}", message.event()) };
        self.hear_first_credit(connection).await;
        connection
    }

    async fn accept(&mut self, port: u16) -> u32 {
        let message = self.hear().await;
        let Event::Accept { local_port, connection, .. } = message.event() else {
            panic!("{:?}", message.event())
        };
        assert_eq!(local_port, port);
        self.hear_first_credit(connection).await;
        connection
    }

    /// What a new connection may send beyond what hello said comes right after
    /// it.
    async fn hear_first_credit(&mut self, connection: u32) {
        if self.send_credit > 0 {
            let message = self.hear().await;
            let Event::Credit { connection: c, bytes } = message.event() else {
                panic!("{:?}", message.event())
            };
            assert_eq!(c, connection);
            self.first_credit = self.send_credit + bytes;
        }
    }

    /// Reads `total` bytes of one connection and nothing else, granting credit
    /// as it goes when `grant` is set; gives their hash.
    async fn receive(&mut self, connection: u32, total: usize, grant: bool) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut got = 0;
        while got < total {
            let message = self.hear().await;
            match message.event() {
                Event::Receive { connection: c, data } if c == connection => {
                    got += data.len();
                    hash.update(data);
                    if grant {
                        let bytes = data.len() as u32;
                        self.tell(&Command::Credit { connection, bytes }).await;
                    }
                }
                Event::Credit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, total);
        hash.finalize().into()
    }
}

/// Sends `data` as a client without credit does: until the socket is full.
async fn send_all(writer: &mut Writer, connection: u32, data: &[u8]) {
    for part in data.chunks(60_000) {
        writer.tell(&Command::Send { connection, data: part }).await;
    }
}

/// Bytes that differ everywhere.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// The message body of a command, as a tagged request carries it.
fn body(command: &Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    bytes.split_off(LENGTH_LEN)
}
