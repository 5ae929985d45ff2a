//! The published vectors: what other implementations put on the wire is read
//! and written here to the byte.

use std::net::SocketAddr;

use pilot_wire::packet::{Header, Packet, PacketError, Protocol};
use pilot_wire::sack::{self, Block, Blocks};
use pilot_wire::service::{data_exchange, handshake};
use pilot_wire::tunnel::{self, AuthKey, Frame, FrameError, Nonce};
use pilot_wire::{Address, NodeId, SocketAddress, beacon, ipc, registry};
use serde_json::Value;

fn vector(name: &str) -> Value {
    let path = format!("{}/../../tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap_or_else(|| panic!("no list {key}"));
    assert!(!list.is_empty(), "{key} is empty");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

fn number(value: &Value, key: &str) -> u32 {
    let n = value[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {value}"));
    u32::try_from(n).unwrap()
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex::decode(text(value, key)).unwrap()
}

fn fixed<const N: usize>(value: &Value, key: &str) -> [u8; N] {
    bytes(value, key).try_into().unwrap()
}

#[test]
fn addresses() {
    let v = vector("addresses");
    for case in list(&v, "addr_valid") {
        let address: Address = text(case, "text").parse().unwrap();
        assert_eq!(address.to_string(), text(case, "canonical"));
        assert_eq!(address.to_bytes(), fixed(case, "hex"));
        assert_eq!(Address::from_bytes(fixed(case, "hex")), address);
        assert_eq!(u32::from(address.network), number(case, "network"));
        assert_eq!(address.node.0, number(case, "node"));
        assert_eq!(address.is_broadcast(), case["is_broadcast"], "{case}");
        assert_eq!(address.is_unspecified(), case["is_zero"], "{case}");
    }
    for case in list(&v, "addr_invalid") {
        let text = text(case, "text");
        let error = text.parse::<Address>().expect_err(text).to_string();
        assert_eq!(error, format!("invalid address: {text:?} (expected N:XXXX.YYYY.YYYY)"));
    }
    for case in list(&v, "socket_valid") {
        let address: SocketAddress = text(case, "text").parse().unwrap();
        assert_eq!(address.to_string(), text(case, "canonical"));
        assert_eq!(address.address.to_bytes(), fixed(case, "addr_hex"));
        assert_eq!(u32::from(address.port), number(case, "port"));
    }
    for case in list(&v, "socket_invalid") {
        assert!(text(case, "text").parse::<SocketAddress>().is_err(), "{case}");
    }
}

#[test]
fn packets() {
    let v = vector("packets");
    for case in list(&v, "packets") {
        let wire = bytes(case, "wire");
        let packet = Packet::decode(&wire).unwrap();
        let Header { flags, protocol, source, destination, seq, ack, window } = packet.header;
        assert_eq!(u32::from(flags.bits()), number(case, "flags"));
        assert_eq!(u32::from(protocol.number()), number(case, "protocol"));
        assert_eq!(source.address.to_string(), text(case, "src"));
        assert_eq!(u32::from(source.port), number(case, "src_port"));
        assert_eq!(destination.address.to_string(), text(case, "dst"));
        assert_eq!(u32::from(destination.port), number(case, "dst_port"));
        assert_eq!(seq, number(case, "seq"));
        assert_eq!(ack, number(case, "ack"));
        assert_eq!(u32::from(window), number(case, "window"));
        assert_eq!(packet.payload, bytes(case, "payload"));
        assert_eq!(wire[30..34], bytes(case, "checksum"));
        assert_eq!(packet.header.to_packet(packet.payload), wire, "{}", case["name"]);
    }
    for case in list(&v, "decode") {
        let wire = bytes(case, "wire");
        let decoded = Packet::decode(&wire);
        assert_eq!(decoded.is_ok(), case["accepted"], "{case}");
        match text(case, "name") {
            "empty" => assert_eq!(decoded, Err(PacketError::Header { got: 0 })),
            "truncated" => {
                assert_eq!(decoded, Err(PacketError::Payload { declared: 2, got: 1 }));
            }
            "bad-checksum" | "corrupt-payload" => assert_eq!(decoded, Err(PacketError::Checksum)),
            "trailing-bytes" => assert_eq!(decoded.unwrap().payload, b"hi"),
            "protocol-9" => {
                assert_eq!(decoded.unwrap().header.protocol, Protocol::Unknown(9));
            }
            _ => {}
        }
    }
}

#[test]
fn tunnel_frames() {
    let v = vector("tunnel");
    assert_eq!(tunnel::KEY_DERIVATION_PREFIX, text(&v, "kdf_prefix_ascii").as_bytes());
    for (node, key_frame, auth_frame) in [("a", "pilk_a", "pila_a"), ("b", "pilk_b", "pila_b")] {
        let sender = NodeId(number(&v[node], "node_id"));
        let key = fixed(&v[node], "x25519_public");
        let plain = bytes(&v, key_frame);
        assert_eq!(Frame::parse(&plain), Ok(Frame::Key { sender, key }));
        assert_eq!(tunnel::key_frame(sender, &key), plain[..]);

        let signed = bytes(&v, auth_frame);
        let identity = fixed(&v[node], "ed25519_public");
        let signature = signed[72..].try_into().unwrap();
        let auth = AuthKey { sender, key, identity, signature };
        assert_eq!(Frame::parse(&signed), Ok(Frame::AuthKey(auth)));
        assert_eq!(auth.to_frame(), signed[..]);
    }
    let challenge = tunnel::auth_challenge(NodeId(1), &fixed(&v["a"], "x25519_public"));
    assert_eq!(challenge, bytes(&v, "pila_signed_bytes_a")[..]);

    // Which of these are genuine is for the receiver's cryptography; here only
    // the one that is too short may fail.
    for case in list(&v, "pila_acceptance") {
        let frame = bytes(case, "frame");
        let parsed = Frame::parse(&frame);
        if text(case, "name") == "135 bytes" {
            assert_eq!(parsed, Err(FrameError::Truncated { frame: "PILA", need: 136, got: 135 }));
        } else {
            assert!(matches!(parsed, Ok(Frame::AuthKey(_))), "{case}");
        }
    }
    for case in list(&v, "pils") {
        let frame = bytes(case, "frame");
        let nonce: [u8; 12] = fixed(case, "nonce");
        let Ok(Frame::Sealed { sender, nonce: parsed }) = Frame::parse(&frame) else {
            panic!("not sealed: {case}");
        };
        assert_eq!(sender.0, number(case, "sender_node_id"));
        assert_eq!(parsed.to_bytes(), nonce);
        assert_eq!(frame[tunnel::SEALED_HEADER_LEN..], bytes(case, "ciphertext_and_tag"));
        let mut header = [0; tunnel::SEALED_HEADER_LEN];
        tunnel::write_sealed_header(&mut header, sender, parsed);
        assert_eq!(header, frame[..tunnel::SEALED_HEADER_LEN]);
        let declared = bytes(case, "plaintext").len() + tunnel::TAG_LEN;
        assert_eq!(frame.len(), tunnel::SEALED_HEADER_LEN + declared);
    }
    assert_eq!(Frame::parse(&bytes(&v, "pilp")), Ok(Frame::Punch));
    let plain = bytes(&v, "pilt_syn");
    assert_eq!(Frame::parse(&plain), Ok(Frame::Plain(&plain[4..])));
    assert_eq!(plain[..4], tunnel::MAGIC_PLAIN);

    let relay = bytes(&v, "relay_1_to_2");
    let Ok(beacon::Message::Relay { sender, destination, frame }) = beacon::Message::parse(&relay)
    else {
        panic!("not a relay message");
    };
    assert_eq!((sender, destination), (NodeId(1), NodeId(2)));
    assert_eq!(beacon::relay_header(sender, destination), relay[..beacon::RELAY_HEADER_LEN]);
    let delivered = bytes(&v, "relay_deliver_from_1");
    let expected = beacon::Message::RelayDeliver { sender, frame };
    assert_eq!(beacon::Message::parse(&delivered), Ok(expected));
}

fn blocks(value: &Value) -> Vec<Block> {
    let block = |b| Block { left: number(b, "left"), right: number(b, "right") };
    value.as_array().unwrap().iter().map(block).collect()
}

#[test]
fn sack_lists() {
    let v = vector("sack");
    for case in list(&v, "encode") {
        let mut ours = Blocks::default();
        for block in blocks(&case["blocks"]) {
            assert!(ours.push(block));
        }
        let mut out = Vec::new();
        ours.encode_published(&mut out);
        assert_eq!(out, bytes(case, "payload"));
        assert!(Blocks::recognise_exact(&out).is_some());
    }
    for case in list(&v, "decode") {
        let payload = bytes(case, "payload");
        let read = Blocks::recognise(&payload);
        assert_eq!(read.is_some(), case["is_sack"], "{case}");
        assert_eq!(sack::looks_like_list(&payload), case["is_sack"], "{case}");
        if let Some(read) = read {
            assert_eq!(read.as_slice(), blocks(&case["blocks"]), "{case}");
            // Published senders write nothing behind the blocks, so text that
            // merely starts like a list can be told apart by its length.
            let exact = payload.len() == 5 + 8 * read.as_slice().len();
            assert_eq!(Blocks::recognise_exact(&payload).is_some(), exact, "{case}");
        }
    }
    let ack = vector("packets")["packets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "ack-with-sack")
        .map(|p| bytes(p, "payload"))
        .unwrap();
    let held = Blocks::recognise_exact(&ack).unwrap();
    assert_eq!(held.as_slice(), [Block { left: 4097, right: 8193 }]);
}

#[test]
fn beacon_messages() {
    for case in list(&vector("beacon"), "messages") {
        let (note, frame) = (text(case, "note"), bytes(case, "frame"));
        let parsed = beacon::Message::parse(&frame);
        match note {
            "discover with 3 byte id: ignored" => {
                assert_eq!(parsed, Err(beacon::MessageError::Truncated("discover")));
                continue;
            }
            "unknown type 0x09: ignored" => {
                assert_eq!(parsed, Err(beacon::MessageError::Type));
                continue;
            }
            _ => {}
        }
        let message = parsed.unwrap_or_else(|e| panic!("{note}: {e}"));
        let mut out = Vec::new();
        message.encode(&mut out);
        match note {
            "discover with trailing bytes" => assert_eq!(out, frame[..5]),
            _ => assert_eq!(out, frame, "{note}"),
        }
        let kind = note.split([' ', ':', ',']).next().unwrap();
        let as_noted = match message {
            beacon::Message::Discover { .. } | beacon::Message::DiscoverReply { .. } => "discover",
            beacon::Message::PunchRequest { .. } | beacon::Message::PunchCommand { .. } => "punch",
            beacon::Message::Relay { .. } | beacon::Message::RelayDeliver { .. } => "relay",
            beacon::Message::Sync { .. } => "sync",
        };
        assert!(
            kind == as_noted || ["forwarded", "gossip", "message"].contains(&kind),
            "{note}: read as {message:?}"
        );
    }
    let v6 = beacon::Message::DiscoverReply { endpoint: "[::1]:41071".parse().unwrap() };
    let mut out = Vec::new();
    v6.encode(&mut out);
    assert_eq!(hex::encode(&out), "021000000000000000000000000000000001a06f");
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:25201".parse().unwrap();
    out.clear();
    beacon::Message::DiscoverReply { endpoint: mapped }.encode(&mut out);
    assert_eq!(hex::encode(&out), "02047f0000016271");
}

/// The one-line description that captures carry, made from what was parsed.
fn describe(frame: &[u8]) -> String {
    if frame.first().is_some_and(|b| *b < beacon::TYPE_LIMIT) {
        let message = beacon::Message::parse(frame).unwrap();
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, frame);
        return match message {
            beacon::Message::Relay { sender, destination, frame } => {
                format!("RELAY {sender}->{destination} [{}]", describe(frame))
            }
            beacon::Message::RelayDeliver { sender, frame } => {
                format!("DELIVER from {sender} [{}]", describe(frame))
            }
            _ => hex::encode(&again),
        };
    }
    let len = frame.len();
    match Frame::parse(frame).unwrap() {
        Frame::Plain(packet) => format!("PILT {}", describe_packet(packet)),
        Frame::Sealed { sender, nonce: Nonce { prefix, counter } } => {
            format!("PILS node={sender} prefix={} ctr={counter} len={len}", hex::encode(prefix))
        }
        Frame::AuthKey(auth) => {
            assert_eq!(auth.to_frame(), frame);
            format!("PILA node={} x25519={}.. len={len}", auth.sender, hex::encode(&auth.key[..4]))
        }
        Frame::Key { sender, key } => {
            format!("PILK node={sender} x25519={}.. len={len}", hex::encode(&key[..4]))
        }
        Frame::Punch => "PILP".to_owned(),
        // No published frame starts with its byte.
        Frame::Compact { sender, .. } => format!("compact node={sender} len={len}"),
    }
}

fn describe_packet(bytes: &[u8]) -> String {
    let packet = Packet::decode(bytes).unwrap();
    let h = packet.header;
    assert_eq!(h.to_packet(packet.payload), bytes);
    let flags = format!("{:?}", h.flags);
    let flags = flags.trim_matches('-');
    let end = |a: SocketAddress| format!("{}:{}:{}", a.address.network, a.address.node, a.port);
    format!(
        "{flags} seq={} ack={} win={} {}>{} len={}",
        h.seq,
        h.ack,
        h.window,
        end(h.source),
        end(h.destination),
        packet.payload.len()
    )
}

/// A captured datagram. Of long ones the capture keeps the first 64 bytes; the
/// rest is the text `abcabc…` of 9000 bytes whose sending started at sequence
/// number 6, and the checksum proves that it is.
fn captured(case: &Value) -> Vec<u8> {
    const PLAIN_HEADER: usize = 4 + 34;
    if case.get("frame").is_some() {
        return bytes(case, "frame");
    }
    let start = bytes(case, "frame_first_64");
    let len = usize::try_from(number(case, "frame_length")).unwrap();
    let seq = u32::from_be_bytes(start[24..28].try_into().unwrap());
    let text = b"abc".iter().cycle().skip(usize::try_from(seq - 6).unwrap());
    let mut frame = start[..PLAIN_HEADER].to_vec();
    frame.extend(text.take(len - PLAIN_HEADER));
    assert_eq!(frame[..start.len()], start);
    frame
}

#[test]
fn captured_datagrams() {
    for name in ["transport_flow", "tunnel_flow", "relay_flow"] {
        for case in list(&vector(name), "frames") {
            assert_eq!(describe(&captured(case)), text(case, "what"), "{name}");
        }
    }
}

#[test]
fn captured_session() {
    for case in list(&vector("tunnel_session"), "frames") {
        let described = describe(&bytes(case, "frame"));
        let note = text(case, "note");
        if let Some((expected, _)) = note.split_once(" {") {
            let (expected, described) = (expected.split(' '), described.split(' '));
            let parts = expected.zip(described.filter(|p| !p.starts_with("node=")));
            for (expected, described) in parts {
                assert_eq!(described, expected, "{note}");
            }
        } else {
            let magic = note.split([' ', ',']).next().unwrap();
            let expected = if magic.starts_with("PIL") { magic } else { "PILS" };
            assert!(described.starts_with(expected), "{note}: {described}");
        }
        if let Some(plaintext) = case["plaintext"].as_str() {
            describe_packet(&hex::decode(plaintext).unwrap());
        }
    }
}

#[test]
fn captured_driver_messages() {
    let v = vector("ipc_live");
    let (mut commands, mut events, mut refused) = (0, 0, Vec::new());
    for case in list(&v, "frames").iter().filter(|f| f.get("frame").is_some()) {
        let frame = bytes(case, "frame");
        let (body, used) = ipc::split_message(&frame).unwrap().expect("a whole message");
        assert_eq!(used, frame.len());
        for cut in 0..frame.len() {
            assert_eq!(ipc::split_message(&frame[..cut]), Ok(None));
        }
        let mut out = Vec::new();
        if text(case, "direction") == "daemon-to-driver" {
            let event = ipc::Event::parse(body).unwrap();
            if let ipc::Event::Error { code, text } = event {
                assert_eq!(code, ipc::ErrorCode::GENERAL);
                // Malformed commands come with the text that ours produces.
                if let Some(error) = refused.pop() {
                    assert_eq!(error, text);
                }
            }
            event.encode(&mut out);
            events += 1;
        } else {
            commands += 1;
            match ipc::Command::parse(body) {
                Ok(command) => command.encode(&mut out),
                Err(ipc::CommandError::Empty) => continue,
                Err(error) => {
                    refused.push(error.to_string());
                    continue;
                }
            }
        }
        assert_eq!(out, frame, "{case}");
    }
    assert!(refused.is_empty(), "no answer to {refused:?}");
    assert!(commands > 50 && events > 50, "{commands} commands, {events} events");
}

#[test]
fn data_exchange_frames() {
    let v = vector("dataexchange");
    for case in list(&v, "frames").iter().chain(list(&v, "decode")) {
        let wire = bytes(case, "wire");
        let (header, payload) = wire.split_first_chunk().unwrap();
        let complete = |h: &data_exchange::FrameHeader| h.len <= payload.len();
        let parsed = data_exchange::FrameHeader::decode(*header).ok().filter(complete);
        assert_eq!(parsed.is_some(), case["accepted"].as_bool().unwrap_or(true), "{case}");
        let Some(parsed) = parsed else { continue };
        assert_eq!(parsed.encode(), *header);
        assert_eq!(parsed.kind.number(), number(case, "type"));
        assert_eq!(parsed.kind.to_string(), text(case, "type_name"));
        let contents_key =
            if case.get("decoded_payload").is_some() { "decoded_payload" } else { "payload" };
        if parsed.kind == data_exchange::Kind::File {
            let (name, contents) = data_exchange::split_file(payload);
            let name = name.unwrap_or_default();
            assert_eq!(name, text(case, "filename").as_bytes(), "{case}");
            assert_eq!(contents, bytes(case, contents_key), "{case}");
            if case.get("decoded_filename").is_some() {
                let mut again = data_exchange::file_prefix(text(case, "filename"));
                again.extend(contents);
                assert_eq!(again, payload);
            }
        } else {
            assert_eq!(payload, bytes(case, contents_key), "{case}");
        }
    }
    assert_eq!(
        data_exchange::FrameHeader::decode([0, 0, 0, 1, 1, 0, 0, 1]),
        Err(data_exchange::TooLong(16_777_217))
    );
}

#[test]
fn handshake_messages() {
    for case in list(&vector("signatures"), "handshake_messages") {
        let payload = bytes(case, "payload_hex");
        let message: handshake::Message = serde_json::from_slice(&payload).unwrap();
        let original: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), original);
        assert_eq!(serde_json::to_value(message.kind).unwrap(), case["type"]);
        assert_eq!(message.node_id.0, number(case, "from_node_id"));
        assert_eq!(message.signature, text(case, "signature"));
        let to = NodeId(number(case, "to_node_id"));
        assert_eq!(handshake::challenge(message.node_id, to), text(case, "challenge"));
    }
}

#[test]
fn registry_frames() {
    let v = vector("registry_live");
    let mut stream = registry::FrameBuffer::new();
    for case in list(&v, "frames") {
        let body = text(case, "json");
        let prefix = bytes(case, "length_prefix");
        assert_eq!(prefix, u32::try_from(body.len()).unwrap().to_be_bytes());
        stream.push(&prefix);
        assert_eq!(stream.next_body(), Ok(None));
        stream.push(body.as_bytes());
        assert_eq!(stream.next_body(), Ok(Some(body.as_bytes())));
        assert!(!stream.is_partial());
        let value: Value = serde_json::from_str(body).unwrap();
        if text(case, "direction") == "request" {
            let fields = registry::Fields::parse(body.as_bytes()).unwrap();
            assert_eq!(fields.kind, text(&value, "type"));
        }
    }
}
