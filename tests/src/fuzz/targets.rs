//! The decoders, and what must hold of what they accept.

use pilot_wire::ipc::{self, Command, Event};
use pilot_wire::options::{MAX_ENCODED_LEN, Options};
use pilot_wire::packet::{HEADER_LEN, Packet};
use pilot_wire::registry::{self, FrameBuffer};
use pilot_wire::sack::{Blocks, MAX_BLOCKS, MAX_PUBLISHED_BLOCKS, looks_like_list};
use pilot_wire::service::{data_exchange, handshake};
use pilot_wire::tunnel::{self, Frame};
use pilot_wire::{Address, SocketAddress, beacon};

use super::{Target, acks, core, corpus, lane};

/// Every target, in the order of the layers.
pub fn all() -> Vec<Target> {
    let target = |name, corpus, repair, run| Target { name, corpus, repair, run };
    vec![
        target("address", corpus::addresses, None, address),
        target("packet", corpus::packets, Some(packet_checksum), packet),
        target("tunnel", corpus::datagrams, None, tunnel_frame),
        target("beacon", corpus::beacon, None, beacon_message),
        target("sack", corpus::sack, None, sack),
        target("options", options_corpus, None, options),
        target("driver-command", commands_corpus, None, driver_command),
        target("driver-event", events_corpus, None, driver_event),
        target("driver-stream", driver_stream_corpus, None, driver_stream),
        target("lane", lane::corpus, None, lane::rings),
        target("data-exchange", corpus::data_exchange, None, data_exchange_frame),
        target("handshake", corpus::handshakes, None, handshake_message),
        target("registry-stream", registry_stream_corpus, None, registry_stream),
        target("registry-request", corpus::registry_bodies, None, registry_request),
        target("registry-reply", corpus::registry_bodies, None, registry_reply),
        target("core-datagram", corpus::datagram_runs, None, core::datagrams),
        target("core-session", corpus::sessions, None, core::session),
        target("core-acks", acks::corpus, None, acks::acknowledgements),
    ]
}

fn address(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        assert!(text.is_ascii(), "an address has no {text:?}");
    }
    if let Ok(address) = text.parse::<SocketAddress>() {
        assert_eq!(address.to_string().parse::<SocketAddress>(), Ok(address));
    }
}

/// CRC-32 (IEEE), here once more so that the check does not check itself.
pub(super) fn packet_checksum(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN {
        return;
    }
    let declared = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let payload = declared.min(bytes.len() - HEADER_LEN);
    let field = u16::try_from(payload).unwrap_or(u16::MAX);
    bytes[2..4].copy_from_slice(&field.to_be_bytes());
    bytes[30..34].fill(0);
    let mut crc = u32::MAX;
    for byte in &bytes[..HEADER_LEN + payload] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ 0xEDB8_8320 & (crc & 1).wrapping_neg();
        }
    }
    bytes[30..34].copy_from_slice(&(!crc).to_be_bytes());
}

fn packet(input: &[u8]) {
    let Ok(packet) = Packet::decode(input) else { return };
    let mut expected = input[..HEADER_LEN + packet.payload.len()].to_vec();
    // The version nibble is not looked at, and written as ours.
    expected[0] = expected[0] & 0xF | 0x10;
    let version_differs = expected[0] != input[0];
    let again = packet.header.to_packet(packet.payload);
    assert_eq!(again[..30], expected[..30]);
    assert_eq!(again == expected, !version_differs);
    assert_eq!(Packet::decode(&again), Ok(packet));
}

fn tunnel_frame(input: &[u8]) {
    match Frame::parse(input) {
        Ok(Frame::Plain(packet)) => {
            assert_eq!(packet, &input[4..]);
            let _ = Packet::decode(packet);
        }
        Ok(Frame::Sealed { sender, nonce }) => {
            let mut header = [0; tunnel::SEALED_HEADER_LEN];
            tunnel::write_sealed_header(&mut header, sender, nonce);
            assert_eq!(header, input[..tunnel::SEALED_HEADER_LEN]);
            assert!(input.len() >= tunnel::SEALED_HEADER_LEN + tunnel::TAG_LEN);
        }
        Ok(Frame::Compact { sender, prefix, counter }) => {
            let mut header = [0; tunnel::COMPACT_HEADER_LEN];
            let nonce = tunnel::Nonce::near(prefix, counter, 0);
            tunnel::write_compact_header(&mut header, sender, nonce);
            assert_eq!(header, input[..tunnel::COMPACT_HEADER_LEN]);
            assert!(input.len() >= tunnel::COMPACT_HEADER_LEN + tunnel::TAG_LEN);
            let body = &input[tunnel::COMPACT_HEADER_LEN..];
            if let Ok(packet) = Packet::decode_compact(body, sender, sender) {
                let mut again = [0; pilot_wire::packet::COMPACT_LEN];
                packet.header.write_compact(&mut again);
                assert_eq!(again, body[..again.len()]);
            }
        }
        Ok(Frame::AuthKey(auth)) => {
            assert_eq!(auth.to_frame(), input[..tunnel::AUTH_KEY_LEN]);
        }
        Ok(Frame::Key { sender, key }) => {
            assert_eq!(tunnel::key_frame(sender, &key), input[..tunnel::KEY_LEN]);
        }
        Ok(Frame::Punch) => assert_eq!(&input[..4], b"PILP"),
        Err(_) => {}
    }
}

fn beacon_message(input: &[u8]) {
    let Ok(message) = beacon::Message::parse(input) else { return };
    assert!(input[0] < beacon::TYPE_LIMIT);
    let mut out = Vec::new();
    message.encode(&mut out);
    let again = beacon::Message::parse(&out).expect("what was written reads");
    let mut twice = Vec::new();
    again.encode(&mut twice);
    assert_eq!(out, twice);
    if let beacon::Message::Sync { nodes, .. } = message {
        assert_eq!(nodes.iter().count(), nodes.len());
    }
}

fn sack(input: &[u8]) {
    let recognised = Blocks::recognise(input);
    assert_eq!(recognised.is_some(), looks_like_list(input));
    if let Some(blocks) = recognised {
        assert!((1..=MAX_PUBLISHED_BLOCKS).contains(&blocks.as_slice().len()));
        let mut out = Vec::new();
        blocks.encode_published(&mut out);
        assert!(input.starts_with(&out));
        assert_eq!(Blocks::recognise_exact(input).is_some(), input.len() == out.len());
    } else {
        assert!(Blocks::recognise_exact(input).is_none());
    }
    if let Some(blocks) = Blocks::decode(input) {
        assert!(blocks.as_slice().len() <= MAX_BLOCKS);
        let mut out = Vec::new();
        blocks.encode(&mut out);
        assert!(input.is_empty() || input.starts_with(&out));
    }
}

fn options_corpus() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for bits in 0..32u16 {
        let mut out = Vec::new();
        let options = Options {
            max_segment: (bits & 8 != 0).then_some(1200 + bits),
            stream_ack: bits & 1 != 0,
            half_close: bits & 2 != 0,
            byte_window: bits & 4 != 0,
            compact: bits & 16 != 0,
        };
        options.encode(&mut out);
        all.push(out);
    }
    all
}

fn options(input: &[u8]) {
    let Some(options) = Options::decode(input) else { return };
    let mut out = Vec::new();
    options.encode(&mut out);
    assert!(out.len() <= MAX_ENCODED_LEN);
    assert_eq!(Options::decode(&out), Some(options));
}

fn bodies(messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    messages.into_iter().filter_map(|m| Some(m.get(ipc::LENGTH_LEN..)?.to_vec())).collect()
}

fn commands_corpus() -> Vec<Vec<u8>> {
    let mut all = bodies(corpus::driver("driver-to-daemon"));
    for code in 0x40..0x50 {
        all.push(vec![code, 0, 1, 0, 0, 0, 15, 0, 0, 16, 0]);
    }
    all
}

fn events_corpus() -> Vec<Vec<u8>> {
    let mut all = bodies(corpus::driver("daemon-to-driver"));
    for code in 0x40..0x50 {
        all.push(vec![code, 0, 1, 0, 0, 0, 15, 0, 0, 16, 0]);
    }
    all
}

fn driver_command(input: &[u8]) {
    match Command::parse(input) {
        Ok(command) => {
            let mut out = Vec::new();
            command.encode(&mut out);
            assert_eq!(Command::parse(&out[ipc::LENGTH_LEN..]), Ok(command));
            if let Command::Request { command, .. } = command {
                let _ = Command::parse(command);
            }
        }
        // The text goes to the client.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn driver_event(input: &[u8]) {
    match Event::parse(input) {
        Ok(event) => {
            let mut out = Vec::new();
            event.encode(&mut out);
            assert_eq!(Event::parse(&out[ipc::LENGTH_LEN..]), Ok(event));
            if let Event::Reply { event, .. } = event {
                let _ = Event::parse(event);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn driver_stream_corpus() -> Vec<Vec<u8>> {
    let messages = corpus::driver("driver-to-daemon");
    messages.chunks(5).map(<[Vec<u8>]>::concat).chain(messages.clone()).collect()
}

fn driver_stream(input: &[u8]) {
    let mut rest = input;
    loop {
        match ipc::split_message(rest) {
            Ok(Some((body, used))) => {
                assert_eq!(body.len() + ipc::LENGTH_LEN, used);
                assert_eq!(body, &rest[ipc::LENGTH_LEN..used]);
                driver_command(body);
                rest = &rest[used..];
            }
            Ok(None) => return,
            Err(len) => {
                assert!(len > ipc::MAX_MESSAGE);
                return;
            }
        }
    }
}

fn data_exchange_frame(input: &[u8]) {
    let Some((header, payload)) = input.split_first_chunk() else { return };
    match data_exchange::FrameHeader::decode(*header) {
        Ok(parsed) => {
            assert!(parsed.len <= data_exchange::MAX_PAYLOAD);
            assert_eq!(parsed.encode(), *header);
        }
        Err(too_long) => assert!(too_long.0 as usize > data_exchange::MAX_PAYLOAD),
    }
    let (name, contents) = data_exchange::split_file(payload);
    let prefix = name.map_or(0, |n| n.len() + 2);
    assert_eq!(contents, &payload[prefix..]);
    let _ = serde_json::from_slice::<data_exchange::FileOffer>(payload);
}

fn handshake_message(input: &[u8]) {
    let Ok(message) = serde_json::from_slice::<handshake::Message>(input) else { return };
    let json = serde_json::to_vec(&message).expect("plain fields are JSON");
    let again: handshake::Message = serde_json::from_slice(&json).expect("ours reads");
    assert_eq!(again, message);
}

fn registry_stream_corpus() -> Vec<Vec<u8>> {
    let framed = |body: &Vec<u8>| {
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        [&len.to_be_bytes()[..], body].concat()
    };
    let all: Vec<Vec<u8>> = corpus::registry_bodies().iter().map(framed).collect();
    all.chunks(3).map(<[Vec<u8>]>::concat).collect()
}

/// Whole and in pieces, the same bodies come out.
fn registry_stream(input: &[u8]) {
    let read = |piece: usize| {
        let (mut buffer, mut bodies) = (FrameBuffer::new(), Vec::new());
        for part in input.chunks(piece) {
            buffer.push(part);
            loop {
                match buffer.next_body() {
                    Ok(Some(body)) => bodies.push(body.to_vec()),
                    Ok(None) => break,
                    Err(error) => return (bodies, Some(error)),
                }
            }
        }
        (bodies, None)
    };
    let whole = read(input.len().max(1));
    assert_eq!(read(7), whole);
    for body in whole.0 {
        let _ = registry::Fields::parse(&body);
    }
}

fn registry_request(input: &[u8]) {
    if let Ok(fields) = registry::Fields::parse(input) {
        assert!(fields.tags.len() <= registry::MAX_TEXTS);
        let _ = registry::PublicKey::from_base64(&fields.public_key);
        let _ = registry::Signature::from_base64(&fields.signature);
    }
}

fn registry_reply(input: &[u8]) {
    fn read<T: registry::Reply>(input: &[u8]) {
        if let Err(error) = registry::parse_reply::<T>(input) {
            assert!(!error.to_string().is_empty());
        }
    }
    read::<registry::Registered>(input);
    read::<registry::Lookup>(input);
    read::<registry::Resolved>(input);
    read::<registry::ResolvedHostname>(input);
    read::<registry::Heartbeat>(input);
    read::<registry::VisibilitySet>(input);
    read::<registry::HostnameSet>(input);
    read::<registry::TagsSet>(input);
    read::<registry::TaskExecSet>(input);
    read::<registry::Handshakes>(input);
    read::<registry::HandshakeAnswered>(input);
    read::<registry::HandshakeDelivered>(input);
    read::<registry::KeyRotated>(input);
    read::<registry::Punch>(input);
    read::<registry::NetworkList>(input);
    read::<registry::BeaconList>(input);
    read::<registry::PoloScore>(input);
}
