//! The services that work with files, programs and local servers, as plugins
//! in a host: ports 1, 80, 443, 1000 and 1001.

mod world;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use pilot_host::{Instance, Limits, open_native};
use pilot_wire::NodeId;
use pilot_wire::service::data_exchange::{
    BeginAnswer, FileOffer, FrameHeader, HEADER_LEN, Kind, hash_to_hex,
};
use pilot_wire::service::secure::{
    Binding, Decoder, Frame, KDF_PREFIX, NonceCheck, NonceSource, Role, announce, is_announced,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use world::{Far, World, plugin, stream, wait_for};
use x25519_dalek::{PublicKey, StaticSecret};

fn start(world: &Arc<World>, name: &str, config: &Value) -> Arc<dyn Instance> {
    let backend = open_native(&plugin(&format!("pilot-plugin-{name}"))).unwrap();
    backend.start(config, world.context(name, Limits::default())).unwrap()
}

fn open(instance: &Arc<dyn Instance>, port: u16) -> Far {
    let (near, far) = stream(port);
    instance.open(near);
    far
}

/// What a stream brings, however it is cut.
struct Input<'a> {
    far: &'a Far,
    rest: Vec<u8>,
}

impl<'a> Input<'a> {
    fn new(far: &'a Far) -> Self {
        Self { far, rest: Vec::new() }
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        while self.rest.len() < n {
            self.rest.extend(self.far.recv().unwrap().expect("more bytes"));
        }
        self.rest.drain(..n).collect()
    }

    fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.rest.windows(end.len()).position(|window| window == end) {
                return self.rest.drain(..at + end.len()).collect();
            }
            self.rest.extend(self.far.recv().unwrap().expect("more bytes"));
        }
    }

    /// The next answer of data exchange.
    fn answer(&mut self) -> String {
        let header = self.take(HEADER_LEN).try_into().unwrap();
        let header = FrameHeader::decode(header).unwrap();
        assert_eq!(header.kind, Kind::Text);
        String::from_utf8(self.take(header.len)).unwrap()
    }

    /// The next response: its head and a body of the length it says.
    fn response(&mut self) -> (String, Vec<u8>) {
        let head = String::from_utf8(self.until(b"\r\n\r\n")).unwrap().to_ascii_lowercase();
        let len = head
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let body = self.take(len);
        (head, body)
    }
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = FrameHeader { kind, len: payload.len() }.encode().to_vec();
    out.extend_from_slice(payload);
    out
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn data_exchange_keeps_messages_and_files_and_continues_them() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let config = json!({ "folder": dir.path(), "keep-free-bytes": 0 });
    let instance = start(&world, "data-exchange", &config);
    let far = open(&instance, 1001);
    let mut input = Input::new(&far);
    far.send(frame(Kind::Text, b"hello")).unwrap();
    assert_eq!(input.answer(), "ACK TEXT 5 bytes");
    let inbox = files(&dir.path().join("inbox"));
    let saved = fs::read(dir.path().join("inbox").join(&inbox[0])).unwrap();
    let saved: Value = serde_json::from_slice(&saved).unwrap();
    assert_eq!((&saved["data"], &saved["from"]), (&json!("hello"), &json!("0:0000.0000.004D")));

    let contents: Vec<u8> = (0..9_000_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let hash = Sha256::digest(&contents);
    let offer = serde_json::to_vec(&FileOffer {
        sha256: Some(hash_to_hex(&hash.into())),
        resume: true,
        ..FileOffer::new("../data.bin", 9_000_000)
    });
    let offer = frame(Kind::FileBegin, &offer.unwrap());
    far.send(offer.clone()).unwrap();
    assert!(matches!(BeginAnswer::parse(&input.answer()), BeginAnswer::Accepted(None)));
    for piece in frame(Kind::FileChunk, &contents[..4_000_000]).chunks(100_000) {
        far.send(piece.to_vec()).unwrap();
    }
    // Cut within a frame: the stream is reset, and what came is kept.
    far.send(frame(Kind::FileChunk, &contents[..10])[..12].to_vec()).unwrap();
    far.finish();
    assert!(far.recv().is_err());

    let have = std::cell::Cell::new(None);
    let received = dir.path().join("received");
    let again = open(&instance, 1001);
    let mut input = Input::new(&again);
    // Until the first stream has let go, the offer begins anew.
    wait_for("what came before", || {
        again.send(offer.clone()).unwrap();
        let BeginAnswer::Accepted(there) = BeginAnswer::parse(&input.answer()) else {
            panic!("refused");
        };
        have.set(there);
        there.is_some()
    });
    let have = have.get().unwrap();
    let from = usize::try_from(have.bytes).unwrap();
    assert!(from == 4_000_004, "{from}");
    for chunk in contents[4_000_000..].chunks(1 << 20) {
        again.send(frame(Kind::FileChunk, chunk)).unwrap();
    }
    again.send(frame(Kind::FileEnd, &hash)).unwrap();
    // Four bytes too many: found, and nothing is kept.
    assert!(input.answer().starts_with("ERR FILE"));
    again.send(offer).unwrap();
    assert!(matches!(BeginAnswer::parse(&input.answer()), BeginAnswer::Accepted(None)));
    for chunk in contents.chunks(1 << 20) {
        again.send(frame(Kind::FileChunk, chunk)).unwrap();
    }
    again.send(frame(Kind::FileEnd, &hash)).unwrap();
    assert_eq!(input.answer(), "ACK FILE 9000000 bytes");
    let names = files(&received);
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with("data-") && names[0].ends_with(".bin"), "{names:?}");
    assert!(fs::read(received.join(&names[0])).unwrap() == contents);
    again.finish();
    assert!(again.recv().unwrap().is_none());
    let events = world.events.lock().unwrap();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["message.received", "file.received"]);
    assert_eq!(events[0].1["type"], "TEXT");
    assert_eq!(
        (&events[1].1["filename"], &events[1].1["size"]),
        (&json!("../data.bin"), &json!(9_000_000))
    );
}

#[test]
fn http_serves_files_and_the_node() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    fs::write(dir.path().join("large.bin"), &large).unwrap();
    fs::write(dir.path().join(".secret"), "secret").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let instance = start(&world, "http", &json!({ "folder": dir.path() }));
    let far = open(&instance, 80);
    let mut input = Input::new(&far);
    let ask = |request: &str| far.send(format!("{request}\r\nHost: node\r\n\r\n")).unwrap();

    // All on one connection.
    ask("GET /status.json HTTP/1.1");
    let (head, body) = input.response();
    assert!(head.starts_with("http/1.1 200") && head.contains("application/json"), "{head}");
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&status["node_id"], &status["hostname"]), (&json!(1), &json!("near")));
    ask("GET / HTTP/1.1");
    let (head, body) = input.response();
    assert!(head.contains("text/html") && head.contains("content-security-policy"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("<h1>near</h1>"));
    ask("GET /large.bin HTTP/1.1");
    let (head, body) = input.response();
    assert!(head.contains("accept-ranges: bytes") && head.contains("last-modified: "), "{head}");
    assert!(body == large);
    let etag = head.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap();
    ask("GET /large.bin HTTP/1.1\r\nRange: bytes=1000000-1999999");
    let (head, body) = input.response();
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert!(head.contains("content-range: bytes 1000000-1999999/3000000"), "{head}");
    assert!(body == large[1_000_000..2_000_000]);
    ask(&format!("GET /large.bin HTTP/1.1\r\nIf-None-Match: {etag}"));
    assert!(input.response().0.starts_with("http/1.1 304"));
    ask("GET /large.bin HTTP/1.1\r\nRange: bytes=3000000-");
    assert!(input.response().0.starts_with("http/1.1 416"));
    ask("GET /sub HTTP/1.1");
    assert!(input.response().0.contains("location: /sub/\r\n"));
    for path in ["/.secret", "/../x", "/none", "/sub/", "/%2e%2e/x"] {
        ask(&format!("GET {path} HTTP/1.1"));
        let (head, _) = input.response();
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
    }
    ask("DELETE /large.bin HTTP/1.1");
    let (head, _) = input.response();
    assert!(head.starts_with("http/1.1 405") && head.contains("allow: get, head"), "{head}");
    far.send("HEAD /large.bin HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").unwrap();
    let head = String::from_utf8(input.until(b"\r\n\r\n")).unwrap().to_ascii_lowercase();
    assert!(head.contains("content-length: 3000000"), "{head}");
    assert!(input.rest.is_empty() && far.recv().unwrap().is_none());

    let refused = |request: String, status: &str| {
        let far = open(&instance, 80);
        far.send(request).unwrap();
        let head = String::from_utf8(Input::new(&far).until(b"\r\n\r\n")).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    };
    refused("nonsense\r\n\r\n".into(), "400");
    refused("POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n".into(), "413");
    let long = "x".repeat(20_000);
    refused(format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), "431");
}

#[test]
fn http_turns_away_what_is_too_much() {
    let world = World::new();
    let instance = start(&world, "http", &json!({ "max-streams": 1 }));
    let first = open(&instance, 80);
    first.send("GET /none HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
    assert!(Input::new(&first).response().0.starts_with("http/1.1 404"));
    let second = open(&instance, 80);
    assert!(String::from_utf8(second.recv_all().unwrap()).unwrap().starts_with("HTTP/1.1 503"));
    first.finish();
    assert!(first.recv().unwrap().is_none());
    let third = open(&instance, 80);
    third.send("GET /none HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
    assert!(Input::new(&third).response().0.starts_with("http/1.1 404"));
}

#[test]
fn http_lets_go_of_who_is_too_slow() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("large.bin"), vec![0; 4 << 20]).unwrap();
    let config = json!({ "folder": dir.path(), "request-seconds": 1, "stall-seconds": 1 });
    let instance = start(&world, "http", &config);
    let far = open(&instance, 80);
    far.send("GET / HTTP/1.1\r\nHo").unwrap();
    assert!(far.recv().is_err());
    // A reader that takes nothing.
    let far = open(&instance, 80);
    far.send("GET /large.bin HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
    wait_for("the end of the stream", || instance.stats().streams == 0);
    assert!(far.recv_all().is_err());
}

/// A client of the secure channel, ours or a published one.
struct Client<'a> {
    far: &'a Far,
    input: Input<'a>,
    cipher: Aes256Gcm,
    decoder: Decoder,
    nonces: NonceSource,
    check: NonceCheck,
}

impl<'a> Client<'a> {
    fn connect(far: &'a Far, ours: bool) -> Self {
        let secret = StaticSecret::from([42; 32]);
        let public = PublicKey::from(&secret).to_bytes();
        let client_key = if ours { announce(public) } else { public };
        far.send(client_key.to_vec()).unwrap();
        let mut input = Input::new(far);
        let server_key: [u8; 32] = input.take(32).try_into().unwrap();
        assert_eq!(is_announced(&server_key), ours);
        let shared = secret.diffie_hellman(&PublicKey::from(server_key));
        let key: [u8; 32] = Sha256::new()
            .chain_update(KDF_PREFIX)
            .chain_update(shared.as_bytes())
            .finalize()
            .into();
        let mut client = Self {
            far,
            input,
            cipher: Aes256Gcm::new(&key.into()),
            decoder: Decoder::default(),
            nonces: NonceSource::new(Role::Client),
            check: NonceCheck::new(Role::Server),
        };
        if ours {
            // As the world says who is at both ends.
            let (client_node, server) = (NodeId(77), NodeId(1));
            let binding = Binding { client_key, server_key, client: client_node, server };
            client.send(&binding.confirmation(Role::Client));
            assert!(binding.is_confirmed_by(Role::Server, &client.recv()));
        }
        client
    }

    fn send(&mut self, plaintext: &[u8]) {
        let nonce = self.nonces.next_nonce().unwrap();
        let sealed = self.cipher.encrypt(&Nonce::from(nonce), plaintext).unwrap();
        self.far.send(Frame { nonce, sealed }.encode().unwrap()).unwrap();
    }

    fn recv(&mut self) -> Vec<u8> {
        loop {
            self.decoder.push(&std::mem::take(&mut self.input.rest));
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                self.check.accept(&frame.nonce).unwrap();
                return self.cipher.decrypt(&Nonce::from(frame.nonce), &frame.sealed[..]).unwrap();
            }
            self.input.rest = self.far.recv().unwrap().expect("a frame").to_vec();
        }
    }
}

#[test]
fn a_secure_channel_echoes_to_ours_and_to_published_clients() {
    let world = World::new();
    let instance = start(&world, "secure", &json!({}));
    for ours in [false, true] {
        let far = open(&instance, 443);
        let mut client = Client::connect(&far, ours);
        for len in [5, 0, 300_000] {
            let message = vec![7; len];
            client.send(&message);
            assert!(client.recv() == message);
        }
        far.finish();
        assert!(far.recv().unwrap().is_none());
    }
    // A frame again is the end of the channel.
    let far = open(&instance, 443);
    let mut client = Client::connect(&far, false);
    client.send(b"once");
    client.nonces = NonceSource::new(Role::Client);
    assert_eq!(client.recv(), b"once");
    client.send(b"once");
    assert!(far.recv().is_err());
    // So is a key that leads to no secret.
    let far = open(&instance, 443);
    far.send(vec![0; 32]).unwrap();
    assert!(far.recv().is_err());
}

#[test]
fn a_secure_channel_has_ten_seconds_for_its_keys() {
    let world = World::new();
    let instance = start(&world, "secure", &json!({}));
    let far = open(&instance, 443);
    far.send(vec![1; 31]).unwrap();
    let error = far.recv().unwrap_err().to_string();
    assert!(error.contains("10 s"), "{error}");
}

#[test]
fn a_secure_channel_leads_to_a_local_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all.to_ascii_uppercase()).unwrap();
    });
    let world = World::new();
    let to = format!("unix:{}", path.display());
    let instance = start(&world, "secure", &json!({ "forward": { "to": to } }));
    let far = open(&instance, 443);
    let mut client = Client::connect(&far, true);
    client.send(b"hello ");
    client.send(b"server");
    far.finish();
    let mut all = Vec::new();
    while all.len() < 12 {
        all.extend(client.recv());
    }
    assert_eq!(all, b"HELLO SERVER");
    assert!(far.recv().unwrap().is_none());
    server.join().unwrap();
}

#[test]
fn standard_io_logs_lines_and_runs_programs() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let file = dir.path().join("stdio.log");
    let instance = start(&world, "stdio", &json!({ "file": file }));
    let far = open(&instance, 1000);
    assert!(far.exchange(b"hello\nwithout end").unwrap().is_empty());
    let log = fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].ends_with(" 0:0000.0000.004D:40000 hello"), "{log}");
    assert!(lines[1].ends_with(" 0:0000.0000.004D:40000 without end"), "{log}");

    let command = json!({ "mode": "command", "command": ["tr", "a-z", "A-Z"] });
    let instance = start(&world, "stdio", &command);
    let text = b"all work and no play\n".repeat(50_000);
    let answer = open(&instance, 1000).exchange(&text).unwrap();
    assert!(answer == text.to_ascii_uppercase());

    let instance = start(&world, "stdio", &json!({ "mode": "echo" }));
    assert_eq!(open(&instance, 1000).exchange(b"back").unwrap(), b"back");

    let backend = open_native(&plugin("pilot-plugin-stdio")).unwrap();
    let context = world.context("stdio", Limits::default());
    let error = backend.start(&json!({ "mode": "command" }), context).err().unwrap();
    assert!(error.to_string().contains("command: [PROGRAM"), "{error}");
}

#[test]
fn the_control_port_answers_lines() {
    let world = World::new();
    let instance = start(&world, "control", &json!({}));
    let answers = open(&instance, 1).exchange(b"ping\r\nSTATUS\n\nfly\nSERVICES\n").unwrap();
    let answers = String::from_utf8(answers).unwrap();
    let lines: Vec<Value> = answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{answers}");
    assert_eq!(lines[0], json!({ "pong": true }));
    assert_eq!(lines[1], json!({ "node_id": 1, "hostname": "near" }));
    assert!(lines[2]["error"].as_str().unwrap().contains("unknown request"));
    // The world knows no plugins; the stream goes on all the same.
    assert!(lines[3]["error"].as_str().unwrap().contains("plugins.list"));
}
