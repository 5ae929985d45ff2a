//! The mock's connections, ports, names and trust.

use std::collections::{BTreeMap, HashMap, VecDeque};

use pilot_wire::ipc::{
    Command, Congestion, ErrorCode, Event, Features, Handshake, LENGTH_LEN, Setting, json,
};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Behaviour;
use super::exchange::Exchange;

#[derive(Clone)]
pub struct Client {
    pub id: u32,
    pub out: mpsc::UnboundedSender<Vec<u8>>,
    pub features: Features,
    pub hello: bool,
    pub receive_credit: u64,
}

impl Client {
    pub fn send(&self, event: &Event<'_>) {
        let mut bytes = Vec::new();
        event.encode(&mut bytes);
        let _ = self.out.send(bytes);
    }

    pub fn reply(&self, tag: Option<u32>, event: &Event<'_>) {
        let Some(id) = tag else { return self.send(event) };
        let mut body = Vec::new();
        event.encode(&mut body);
        self.send(&Event::Reply { id, event: &body[LENGTH_LEN..] });
    }

    pub fn error(&self, tag: Option<u32>, code: ErrorCode, text: &str) {
        let coded = self.features.contains(Features::CODES);
        let code = if coded { code } else { ErrorCode::GENERAL };
        self.reply(tag, &Event::Error { code, text });
    }
}

enum Peer {
    Echo,
    Exchange(Exchange),
    Conn(u32),
}

enum Item {
    Data(Vec<u8>),
    End,
}

pub struct Conn {
    owner: Client,
    peer: Peer,
    /// What waits for the owner's credit.
    queue: VecDeque<Item>,
    out_credit: u64,
    /// What the owner may still send.
    allowance: u64,
    /// The owner has ended its side.
    shut: bool,
    /// End has been passed to the owner.
    ended: bool,
    no_delay: Option<bool>,
    congestion: Congestion,
}

pub struct State {
    behaviour: Behaviour,
    pub clients: HashMap<u32, Client>,
    pub conns: BTreeMap<u32, Conn>,
    pub ports: HashMap<u16, u32>,
    next: u32,
    hostname: String,
    pending: BTreeMap<u32, String>,
    trusted: BTreeMap<u32, i64>,
    /// What the registry was asked.
    pub asked: Vec<Value>,
}

impl State {
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            clients: HashMap::new(),
            conns: BTreeMap::new(),
            ports: HashMap::new(),
            next: 1,
            hostname: "cli-node".to_owned(),
            pending: BTreeMap::from([(7, "let me in".to_owned())]),
            trusted: BTreeMap::new(),
            asked: Vec::new(),
        }
    }

    pub fn waiting(&self) -> usize {
        let len = |item: &Item| if let Item::Data(d) = item { d.len() } else { 0 };
        self.conns.values().flat_map(|c| c.queue.iter().map(len)).sum()
    }

    pub fn broadcast(&self, event: &Event<'_>) {
        self.clients.values().for_each(|c| c.send(event));
    }

    pub fn forget_client(&mut self, id: u32) {
        self.clients.remove(&id);
        self.ports.retain(|_, owner| *owner != id);
        let own: Vec<u32> =
            self.conns.iter().filter(|(_, c)| c.owner.id == id).map(|(id, _)| *id).collect();
        own.into_iter().for_each(|id| self.close(id));
    }

    pub fn reset(&mut self, connection: u32, code: ErrorCode, text: &str) {
        if let Some(conn) = self.conns.remove(&connection) {
            conn.owner.send(&Event::Reset { connection, code, text });
        }
    }

    /// Gives the bytes beyond credit.
    pub fn command(&mut self, me: &Client, tag: Option<u32>, command: &Command<'_>) -> usize {
        match *command {
            Command::Bind { port }
                if port == 7
                    || (port == 1001 && self.behaviour.exchange)
                    || self.ports.contains_key(&port) =>
            {
                let text = format!("port {port} already bound");
                me.error(tag, ErrorCode::ALREADY_EXISTS, &text);
            }
            Command::Bind { port } => {
                self.ports.insert(port, me.id);
                me.reply(tag, &Event::BindOk { port });
            }
            Command::Unbind { port } => {
                self.ports.remove(&port);
                me.reply(tag, &Event::UnbindOk { port });
            }
            Command::Dial { to } => self.dial(me, tag, to),
            Command::Send { connection, data } => return self.sent(me, connection, data),
            Command::Credit { connection, bytes } => {
                if let Some(conn) = self.conns.get_mut(&connection) {
                    conn.out_credit += u64::from(bytes);
                }
                self.pump(connection);
            }
            Command::Shutdown { connection } => self.shutdown(connection),
            Command::Close { connection } => {
                if self.conns.contains_key(&connection) {
                    self.close(connection);
                }
                me.reply(tag, &Event::Closed { connection });
            }
            Command::Set { connection, setting } => {
                if let Some(conn) = self.conns.get_mut(&connection) {
                    match setting {
                        Setting::NoDelay(on) => conn.no_delay = Some(on),
                        Setting::Congestion(congestion) => conn.congestion = congestion,
                    }
                }
            }
            Command::SendDatagram { to, data } => {
                if to.address.is_broadcast() && to.address.network != 3 {
                    me.error(
                        None,
                        ErrorCode::INVALID_ARGUMENT,
                        "sendto: broadcast is not available",
                    );
                } else {
                    let source = self.address().port(49152);
                    self.broadcast(&Event::ReceiveDatagram {
                        source,
                        destination_port: to.port,
                        data,
                    });
                }
            }
            _ => self.answer(me, tag, command),
        }
        0
    }

    fn address(&self) -> Address {
        Address::backbone(NodeId(self.behaviour.node))
    }

    pub fn dial(&mut self, me: &Client, tag: Option<u32>, to: SocketAddress) {
        let bound = self.ports.get(&to.port).and_then(|id| self.clients.get(id)).cloned();
        let id = self.next;
        self.next += 2;
        match (to.port, bound) {
            (7, _) => self.add(id, me, Peer::Echo),
            (1001, _) if self.behaviour.exchange => {
                let exchange = Exchange::new(self.behaviour.large_files);
                self.add(id, me, Peer::Exchange(exchange));
            }
            (_, Some(owner)) => {
                self.add(id, me, Peer::Conn(id + 1));
                self.add(id + 1, &owner, Peer::Conn(id));
                me.reply(tag, &Event::DialOk { connection: id });
                return owner.send(&Event::Accept {
                    local_port: to.port,
                    connection: id + 1,
                    remote: self.address().port(40000),
                });
            }
            (5999, None) => return me.error(tag, ErrorCode::TIMEOUT, "dial timeout"),
            (5998, None) => {
                return me.error(tag, ErrorCode::UNTRUSTED, "no trust with node 2");
            }
            _ => return me.error(tag, ErrorCode::REFUSED, "connection refused"),
        }
        me.reply(tag, &Event::DialOk { connection: id });
    }

    fn add(&mut self, id: u32, owner: &Client, peer: Peer) {
        let credit = owner.features.contains(Features::CREDIT);
        let conn = Conn {
            owner: owner.clone(),
            peer,
            queue: VecDeque::new(),
            out_credit: owner.receive_credit,
            allowance: if credit { u64::from(self.behaviour.send_credit) } else { u64::MAX },
            shut: false,
            ended: false,
            no_delay: None,
            congestion: Congestion::default(),
        };
        self.conns.insert(id, conn);
    }

    fn sent(&mut self, me: &Client, id: u32, data: &[u8]) -> usize {
        let Some(conn) = self.conns.get_mut(&id) else {
            me.error(None, ErrorCode::NOT_FOUND, &format!("connection {id} not found"));
            return 0;
        };
        let len = data.len() as u64;
        let over = len.saturating_sub(conn.allowance);
        conn.allowance = conn.allowance.saturating_sub(len);
        match &mut conn.peer {
            Peer::Echo => {
                conn.queue.push_back(Item::Data(data.to_vec()));
                self.pump(id);
            }
            Peer::Exchange(exchange) => {
                let answers = exchange.push(data);
                conn.queue.push_back(Item::Data(answers));
                self.give_credit(id, data.len());
                self.pump(id);
            }
            Peer::Conn(peer) => {
                let peer = *peer;
                if let Some(other) = self.conns.get_mut(&peer) {
                    other.queue.push_back(Item::Data(data.to_vec()));
                }
                self.pump(peer);
            }
        }
        usize::try_from(over).unwrap_or(usize::MAX)
    }

    fn give_credit(&mut self, id: u32, bytes: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.owner.features.contains(Features::CREDIT) && bytes > 0 {
            conn.allowance += bytes as u64;
            let bytes = u32::try_from(bytes).expect("less than a message");
            conn.owner.send(&Event::Credit { connection: id, bytes });
        }
    }

    fn shutdown(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.shut = true;
        let target = match conn.peer {
            Peer::Conn(peer) => peer,
            _ => id,
        };
        if let Some(other) = self.conns.get_mut(&target) {
            other.queue.push_back(Item::End);
        }
        self.pump(target);
        self.finish(id);
    }

    fn close(&mut self, id: u32) {
        let Some(conn) = self.conns.remove(&id) else { return };
        conn.owner.send(&Event::Closed { connection: id });
        if let Peer::Conn(peer) = conn.peer
            && let Some(other) = self.conns.get_mut(&peer)
        {
            if !conn.shut {
                other.queue.push_back(Item::End);
            }
            self.pump(peer);
        }
    }

    /// Passes on what the owner's credit allows.
    fn pump(&mut self, id: u32) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let mut passed = 0;
            match conn.queue.pop_front() {
                Some(Item::Data(mut data)) => {
                    let room = usize::try_from(conn.out_credit).unwrap_or(usize::MAX);
                    let n = data.len().min(room);
                    let rest = data.split_off(n);
                    if n > 0 {
                        conn.out_credit -= n as u64;
                        conn.owner.send(&Event::Receive { connection: id, data: &data });
                        passed = n;
                    }
                    if !rest.is_empty() {
                        conn.queue.push_front(Item::Data(rest));
                    }
                }
                Some(Item::End) => {
                    conn.ended = true;
                    if conn.owner.features.contains(Features::HALF_CLOSE) {
                        conn.owner.send(&Event::End { connection: id });
                    } else {
                        // Without half-close the end of one side is the end.
                        self.close(id);
                    }
                    return self.finish(id);
                }
                None => return,
            }
            let source = match &conn.peer {
                Peer::Echo => Some(id),
                Peer::Conn(peer) => Some(*peer),
                Peer::Exchange(_) => None,
            };
            let blocked = passed == 0 && !conn.queue.is_empty() && conn.out_credit == 0;
            if let Some(source) = source {
                self.give_credit(source, passed);
            }
            if blocked {
                return;
            }
        }
    }

    /// A connection is over when both sides have ended.
    fn finish(&mut self, id: u32) {
        if self.conns.get(&id).is_some_and(|c| c.shut && c.ended) {
            self.close(id);
        }
    }

    fn answer(&mut self, me: &Client, tag: Option<u32>, command: &Command<'_>) {
        let node = self.behaviour.node;
        let (code, value) = match *command {
            Command::Info => (json::INFO, self.info()),
            Command::ResolveHostname(name) => {
                let id = match name {
                    "agent-a" => 1,
                    "agent-b" => 2,
                    _ => {
                        let text = "resolve_hostname: registry: request failed";
                        return me.error(tag, ErrorCode::NOT_FOUND, text);
                    }
                };
                let address = Address::backbone(NodeId(id)).to_string();
                (
                    json::RESOLVE_HOSTNAME,
                    json!({"type":"resolve_hostname_ok","hostname":name,"node_id":id,
                           "address":address,"public":true}),
                )
            }
            Command::SetHostname(name) => {
                self.hostname = name.to_owned();
                (
                    json::SET_HOSTNAME,
                    json!({"type":"set_hostname_ok","hostname":name,"node_id":node}),
                )
            }
            Command::SetVisibility { public } => {
                let visibility = if public { "public" } else { "private" };
                (
                    json::SET_VISIBILITY,
                    json!({"type":"set_visibility_ok","node_id":node,"visibility":visibility}),
                )
            }
            Command::Deregister => (json::DEREGISTER, json!({"type":"deregister_ok"})),
            Command::SetTags(tags) => {
                let tags: Value = serde_json::from_slice(tags).expect("JSON tags");
                let list = tags.as_array().expect("an array").clone();
                let tags = list
                    .iter()
                    .map(|t| json!(t.as_str().expect("text").trim_start_matches('#')))
                    .collect::<Vec<_>>();
                let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
                (json::SET_TAGS, json!({"type":"set_tags_ok","node_id":node,"tags":tags}))
            }
            Command::SetWebhook(url) => (json::SET_WEBHOOK, json!({ "webhook": url })),
            Command::Plugins("") => {
                (json::PLUGINS, json!({"plugins": [plugin("broken"), plugin("echo")]}))
            }
            Command::Plugins(name @ ("broken" | "echo")) => (json::PLUGINS, plugin(name)),
            Command::Plugins(name) => {
                let text = format!("plugins: there is no plugin or script {name:?}");
                return me.error(tag, ErrorCode::NOT_FOUND, &text);
            }
            Command::Reload => (json::RELOAD, reload(self.behaviour.reload_fails)),
            Command::Registry(request) => {
                let request: Value = serde_json::from_slice(request).expect("a JSON request");
                let answer = (self.behaviour.registry)(&request);
                self.asked.push(request);
                (json::REGISTRY, answer)
            }
            Command::SetTaskExec { enabled } => (
                json::SET_TASK_EXEC,
                json!({"type":"set_task_exec_ok","node_id":node,"task_exec":enabled}),
            ),
            Command::Handshake(h) => match self.handshake(h) {
                Ok(value) => (json::HANDSHAKE, value),
                Err(text) => return me.error(tag, ErrorCode::GENERAL, &text),
            },
            _ => return me.error(tag, ErrorCode::INVALID_ARGUMENT, "not for the mock"),
        };
        me.reply(tag, &Event::Json { code, body: value.to_string().as_bytes() });
    }

    fn handshake(&mut self, h: Handshake<'_>) -> Result<Value, String> {
        Ok(match h {
            Handshake::Request { node, .. } => json!({"status":"sent","node_id":node}),
            Handshake::Approve { node } => {
                self.pending.remove(&node.0);
                self.trusted.insert(node.0, 1_795_176_631);
                json!({"status":"approved","node_id":node})
            }
            Handshake::Reject { node, .. } => {
                self.pending.remove(&node.0);
                json!({"status":"rejected","node_id":node})
            }
            Handshake::Pending => {
                let list = self.pending.iter().map(|(node, why)| {
                    json!({"node_id":node,"public_key":"","justification":why,"received_at":1_795_176_631})
                });
                json!({"pending": list.collect::<Vec<_>>()})
            }
            Handshake::Trusted => {
                let list = self.trusted.iter().map(|(node, at)| {
                    json!({"node_id":node,"public_key":"","approved_at":at,"mutual":true,"network":0})
                });
                json!({"trusted": list.collect::<Vec<_>>()})
            }
            Handshake::Revoke { node } => {
                if self.trusted.remove(&node.0).is_none() {
                    return Err(format!("handshake revoke: node {node} was not trusted"));
                }
                json!({"status":"revoked","node_id":node})
            }
        })
    }

    fn info(&self) -> Value {
        let conns: Vec<Value> = self
            .conns
            .iter()
            .map(|(id, c)| {
                json!({"id":id,"local_port":40000,"remote_addr":"0:0000.0000.0002",
                       "remote_port":7,"state":"ESTABLISHED","cong_win":65536,"in_flight":0,
                       "srtt_ms":1,"srtt_us":1250,"min_rtt_us":900,"path_mtu":1452,
                       "congestion":c.congestion.name(),"bytes_sent":10,"bytes_recv":10,"retransmits":0,
                       "no_delay":c.no_delay})
            })
            .collect();
        json!({
            "node_id": self.behaviour.node, "address": self.address().to_string(),
            "hostname": self.hostname, "uptime_secs": 61, "connections": conns.len(),
            "ports": self.ports.len() + 2, "peers": 1, "encrypted_peers": 1,
            "authenticated_peers": 1, "encrypt": true, "identity": true,
            "public_key": "b3diX1maisstt+C7Yrt+aWCFqWZPL2bbNY3X2O5NlWg=", "owner": "",
            "bytes_sent": 10, "bytes_recv": 20, "pkts_sent": 1, "pkts_recv": 2,
            "peer_list": [{"node_id":2,"endpoint":"127.0.0.1:4000","encrypted":true,
                           "authenticated":true,"relay":false,"path_mtu":1452,"offload":true}],
            "conn_list": conns, "version": "mock",
            "registry": {"state": "up", "session": {"state": "open"}, "since_secs": 61,
                         "address": "127.0.0.1:9000"},
            "networks": [{"name": "ops", "id": 3, "state": "joined"},
                         {"name": "lab", "state": "refused", "reason": "the token is used up",
                          "next_try": null}],
        })
    }
}

/// How a plugin of the mock stands.
fn plugin(name: &str) -> Value {
    let broken = name == "broken";
    let error = broken.then_some("broken.lua:3: no such field\n  in serve (line 3)");
    json!({
        "name": name, "kind": if broken { "script" } else { "library" },
        "description": "of the mock",
        "provides": {
            "services": [{"name": name, "ports": [if broken { 2000 } else { 7 }], "datagrams": false}],
            "rules": [], "sinks": [],
        },
        "file": format!("/plugins/{name}"), "sha256": "ab", "version": "1.0.0",
        "generation": 3, "isolation": "none",
        "state": if broken { "backing-off" } else { "running" },
        "since_ms": 1_795_176_631_000_u64, "streams": 2, "streams_total": 5, "errors": 1,
        "last_error": error, "cpu_ms": 1250, "calls": 9, "queue": 0, "memory": null,
        "draining": [{"generation": 2, "streams": 1}], "hung": 0,
        "last_reload": {"at_ms": 1_795_176_631_000_u64, "cause": "file", "result": "kept", "error": error},
        "sink_status": {},
    })
}

fn reload(fails: bool) -> Value {
    let error = fails.then_some("broken.lua:3: no such field\n  in serve (line 3)");
    let result = if fails { "kept" } else { "reloaded" };
    json!({"plugins": [
        {"name": "broken", "result": result, "generation": 3, "error": error},
        {"name": "echo", "result": "unchanged", "generation": 1},
    ]})
}
