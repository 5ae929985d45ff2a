//! Round trips of every type, and decoders that survive any bytes.

use std::net::{IpAddr, SocketAddr};

use pilot_wire::ipc::{Command, Congestion, ErrorCode, Event, Features, Handshake, Setting};
use pilot_wire::options::{MAX_ENCODED_LEN, Options};
use pilot_wire::packet::{COMPACT_LEN, Flags, HEADER_LEN, Header, Packet, Protocol};
use pilot_wire::sack::{self, Block, Blocks, MAX_BLOCKS, MAX_PUBLISHED_BLOCKS};
use pilot_wire::service::data_exchange::{self, FileOffer, FrameHeader, Kind};
use pilot_wire::service::handshake;
use pilot_wire::tunnel::{self, AuthKey, Frame, Nonce};
use pilot_wire::{Address, NodeId, SocketAddress, beacon, ipc, registry};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = Address> {
    (any::<u16>(), any::<u32>()).prop_map(|(network, node)| Address { network, node: NodeId(node) })
}

fn socket_address() -> impl Strategy<Value = SocketAddress> {
    (address(), any::<u16>()).prop_map(|(address, port)| address.port(port))
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    // Mapped addresses are written as IPv4 and so come back as such.
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn header() -> impl Strategy<Value = Header> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u16>());
    (0u8..16, any::<u8>(), socket_address(), socket_address(), numbers).prop_map(
        |(flags, protocol, source, destination, (seq, ack, window))| Header {
            flags: Flags::from_bits(flags),
            protocol: Protocol::from_number(protocol),
            source,
            destination,
            seq,
            ack,
            window,
        },
    )
}

fn block_list(max: usize) -> impl Strategy<Value = Vec<Block>> {
    let block = (any::<u32>(), any::<u32>()).prop_map(|(left, right)| Block { left, right });
    prop::collection::vec(block, 0..=max)
}

fn blocks_of(list: &[Block]) -> Blocks {
    let mut blocks = Blocks::default();
    for block in list {
        assert!(blocks.push(*block));
    }
    blocks
}

/// Every command, built from parts that the caller owns.
fn commands<'a>(
    n: u32,
    port: u16,
    to: SocketAddress,
    text: &'a str,
    data: &'a [u8],
) -> Vec<Command<'a>> {
    let node = NodeId(n);
    let flag = n % 2 == 1;
    let congestion = Congestion::ALL[n as usize % Congestion::ALL.len()];
    let mut all = vec![
        Command::Bind { port },
        Command::Dial { to },
        Command::Send { connection: n, data },
        Command::Close { connection: n },
        Command::SendDatagram { to, data },
        Command::Info,
        Command::Handshake(Handshake::Request { node, justification: text }),
        Command::Handshake(Handshake::Approve { node }),
        Command::Handshake(Handshake::Reject { node, reason: text }),
        Command::Handshake(Handshake::Pending),
        Command::Handshake(Handshake::Trusted),
        Command::Handshake(Handshake::Revoke { node }),
        Command::SetHostname(text),
        Command::SetVisibility { public: flag },
        Command::Deregister,
        Command::SetTags(data),
        Command::SetWebhook(text),
        Command::SetTaskExec { enabled: flag },
        Command::Hello { version: port, features: Features(n), receive_credit: !n },
        Command::Request { id: n, command: data },
        Command::Credit { connection: n, bytes: !n },
        Command::Shutdown { connection: n },
        Command::Unbind { port },
        Command::Set { connection: n, setting: Setting::NoDelay(flag) },
        Command::LaneTake { connection: n },
        Command::LaneBegin { connection: n },
        Command::LaneKick { connection: n },
        Command::Set { connection: n, setting: Setting::Congestion(congestion) },
    ];
    if !text.is_empty() {
        all.push(Command::ResolveHostname(text));
    }
    all
}

fn events<'a>(
    n: u32,
    port: u16,
    remote: SocketAddress,
    text: &'a str,
    data: &'a [u8],
) -> Vec<Event<'a>> {
    let json = (ipc::json::INFO..=ipc::json::SET_TASK_EXEC).step_by(2);
    let mut all = vec![
        Event::BindOk { port },
        Event::DialOk { connection: n },
        Event::Accept { local_port: port, connection: n, remote },
        Event::Receive { connection: n, data },
        Event::Closed { connection: n },
        Event::Error { code: ErrorCode(port), text },
        Event::ReceiveDatagram { source: remote, destination_port: port, data },
        Event::HelloOk { version: port, features: Features(n), send_credit: !n },
        Event::Reply { id: n, event: data },
        Event::Credit { connection: n, bytes: !n },
        Event::End { connection: n },
        Event::Reset { connection: n, code: ErrorCode(port), text },
        Event::UnbindOk { port },
        Event::LaneOffer { connection: n },
        Event::Lane { connection: n, granted: n % 2 == 1 },
        Event::LaneKick { connection: n },
    ];
    all.extend(json.map(|code| Event::Json { code, body: data }));
    all
}

proptest! {
    #[test]
    fn addresses_round_trip(a in socket_address()) {
        prop_assert_eq!(a.to_string().parse::<SocketAddress>().unwrap(), a);
        prop_assert_eq!(a.address.to_string().parse::<Address>().unwrap(), a.address);
        prop_assert_eq!(a.address.to_string().to_lowercase().parse::<Address>().unwrap(), a.address);
        prop_assert_eq!(Address::from_bytes(a.address.to_bytes()), a.address);
        let json = serde_json::to_string(&a.address).unwrap();
        prop_assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), a.address);
    }

    #[test]
    fn address_text_never_panics(text in "[0-9a-fA-F:.é +-]{0,40}", any in ".{0,40}") {
        for text in [text, any] {
            if let Ok(a) = text.parse::<SocketAddress>() {
                prop_assert_eq!(a.to_string().parse::<SocketAddress>().unwrap(), a);
            }
            if let Ok(a) = text.parse::<Address>() {
                prop_assert_eq!(a.to_string().parse::<Address>().unwrap(), a);
            }
        }
    }

    #[test]
    fn packets_round_trip(header in header(), payload in blob(), trailing in blob()) {
        let wire = header.to_packet(&payload);
        prop_assert_eq!(wire.len(), HEADER_LEN + payload.len());
        let packet = Packet::decode(&wire).unwrap();
        prop_assert_eq!(packet, Packet { header, payload: &payload });
        for cut in 0..wire.len() {
            prop_assert!(Packet::decode(&wire[..cut]).is_err());
        }
        let mut longer = wire.clone();
        longer.extend(&trailing);
        prop_assert_eq!(Packet::decode(&longer).unwrap().payload, &payload[..]);
    }

    #[test]
    fn a_damaged_packet_is_refused(header in header(), payload in blob(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut wire = header.to_packet(&payload);
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        // CRC-32 finds every single flipped bit.
        prop_assert!(Packet::decode(&wire).is_err());
    }

    #[test]
    fn tunnel_frames_round_trip(sender: u32, key: [u8; 32], identity: [u8; 32], half: [u8; 32], prefix: [u8; 4], counter: u64, tail in blob()) {
        let sender = NodeId(sender);
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&half);
        let auth = AuthKey { sender, key, identity, signature };
        let mut wire = auth.to_frame().to_vec();
        prop_assert_eq!(Frame::parse(&wire), Ok(Frame::AuthKey(auth)));
        prop_assert!(Frame::parse(&wire[..wire.len() - 1]).is_err());
        wire.extend(&tail);
        prop_assert_eq!(Frame::parse(&wire), Ok(Frame::AuthKey(auth)));

        let mut wire = tunnel::key_frame(sender, &key).to_vec();
        prop_assert_eq!(Frame::parse(&wire), Ok(Frame::Key { sender, key }));
        prop_assert!(Frame::parse(&wire[..wire.len() - 1]).is_err());
        wire.extend(&tail);
        prop_assert_eq!(Frame::parse(&wire), Ok(Frame::Key { sender, key }));

        let nonce = Nonce { prefix, counter };
        let mut head = [0; tunnel::SEALED_HEADER_LEN];
        tunnel::write_sealed_header(&mut head, sender, nonce);
        let mut wire = head.to_vec();
        wire.resize(tunnel::SEALED_HEADER_LEN + tunnel::TAG_LEN, 0);
        prop_assert!(Frame::parse(&wire[..wire.len() - 1]).is_err());
        wire.extend(&tail);
        prop_assert_eq!(Frame::parse(&wire), Ok(Frame::Sealed { sender, nonce }));

        let challenge = tunnel::auth_challenge(sender, &key);
        prop_assert_eq!(&challenge[..4], b"auth");
        prop_assert_eq!(&challenge[4..8], &sender.0.to_be_bytes());
        prop_assert_eq!(&challenge[8..], &key);
    }

    #[test]
    fn beacon_messages_round_trip(a: u32, b: u32, endpoint in endpoint(), frame in blob(), ids in prop::collection::vec(any::<u32>(), 0..50)) {
        let (sender, destination) = (NodeId(a), NodeId(b));
        let list: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let nodes = beacon::NodeList::new(&list);
        prop_assert_eq!(nodes.len(), ids.len());
        prop_assert!(nodes.iter().map(|n| n.0).eq(ids.iter().copied()));
        let all = [
            beacon::Message::Discover { node: sender },
            beacon::Message::DiscoverReply { endpoint },
            beacon::Message::PunchRequest { requester: sender, target: destination },
            beacon::Message::PunchCommand { endpoint },
            beacon::Message::Relay { sender, destination, frame: &frame },
            beacon::Message::RelayDeliver { sender, frame: &frame },
            beacon::Message::Sync { beacon: b, nodes },
        ];
        for message in all {
            let mut wire = Vec::new();
            message.encode(&mut wire);
            prop_assert_eq!(beacon::Message::parse(&wire), Ok(message));
            prop_assert!(wire[0] < beacon::TYPE_LIMIT);
        }
    }

    #[test]
    fn published_sack_lists_round_trip(list in block_list(MAX_BLOCKS), tail in blob()) {
        let mut wire = Vec::new();
        blocks_of(&list).encode_published(&mut wire);
        let kept = &list[..list.len().min(MAX_PUBLISHED_BLOCKS)];
        prop_assert_eq!(wire.is_empty(), kept.is_empty());
        prop_assert_eq!(sack::looks_like_list(&wire), !kept.is_empty());
        if !kept.is_empty() {
            prop_assert!(Blocks::recognise_exact(&wire).unwrap().as_slice() == kept);
            prop_assert!(Blocks::recognise(&wire[..wire.len() - 1]).is_none());
            wire.extend(&tail);
            prop_assert!(Blocks::recognise(&wire).unwrap().as_slice() == kept);
            prop_assert_eq!(Blocks::recognise_exact(&wire).is_some(), tail.is_empty());
        }
    }

    #[test]
    fn sack_lists_round_trip(list in block_list(MAX_BLOCKS)) {
        let mut blocks = blocks_of(&list);
        let mut wire = Vec::new();
        blocks.encode(&mut wire);
        prop_assert!(Blocks::decode(&wire).unwrap().as_slice() == list);
        while blocks.as_slice().len() < MAX_BLOCKS {
            prop_assert!(blocks.push(Block::default()));
        }
        prop_assert!(!blocks.push(Block::default()), "a full list takes no more");
        prop_assert_eq!(blocks.as_slice().len(), MAX_BLOCKS);
    }

    #[test]
    fn compact_packets_round_trip(
        flags in 0u8..16, ack: bool, ports: (u16, u16), seq: u32, number: u32, window: u16,
        payload in prop::collection::vec(any::<u8>(), 0..50), first: u8,
    ) {
        let (from, to) = (NodeId(7), NodeId(9));
        let header = Header {
            flags: Flags::from_bits(flags),
            protocol: if ack { Protocol::StreamAck } else { Protocol::Stream },
            source: Address::backbone(from).port(ports.0),
            destination: Address::backbone(to).port(ports.1),
            seq,
            ack: number,
            window,
        };
        let mut wire = vec![0; COMPACT_LEN];
        header.write_compact(wire.first_chunk_mut().unwrap());
        wire.extend(&payload);
        let packet = Packet::decode_compact(&wire, from, to).unwrap();
        prop_assert_eq!((packet.header, packet.payload), (header, &payload[..]));
        prop_assert!(Packet::decode_compact(&wire[..COMPACT_LEN - 1], from, to).is_err());
        wire[0] = first;
        prop_assert_eq!(Packet::decode_compact(&wire, from, to).is_ok(), first < 0x20);
    }

    #[test]
    fn options_round_trip(max in any::<Option<u16>>(), stream_ack: bool, half_close: bool, byte_window: bool, compact: bool, kind in 100u8.., value in prop::collection::vec(any::<u8>(), 0..20)) {
        let options = Options { max_segment: max, stream_ack, half_close, byte_window, compact };
        let mut wire = Vec::new();
        options.encode(&mut wire);
        prop_assert!(wire.len() <= MAX_ENCODED_LEN);
        prop_assert_eq!(Options::decode(&wire), Some(options));
        for cut in 0..wire.len() {
            prop_assert_eq!(Options::decode(&wire[..cut]), None);
        }
        // An option of a later version is skipped.
        wire.extend([kind, u8::try_from(value.len()).unwrap()]);
        wire.extend(&value);
        let len = u16::try_from(wire.len() - 6).unwrap().to_be_bytes();
        wire[4..6].copy_from_slice(&len);
        prop_assert_eq!(Options::decode(&wire), Some(options));
        // A known one with a length that is not its own spoils the block.
        for (known, len) in [(1u8, 2usize), (2, 0), (3, 0), (4, 0)] {
            if value.len() != len {
                let mut block = b"PLO1\0\0".to_vec();
                block.extend([known, u8::try_from(value.len()).unwrap()]);
                block.extend(&value);
                block[5] = u8::try_from(block.len() - 6).unwrap();
                prop_assert_eq!(Options::decode(&block), None);
            }
        }
    }

    #[test]
    fn driver_messages_round_trip(n: u32, port: u16, to in socket_address(), text in ".{0,40}", data in blob()) {
        for command in commands(n, port, to, &text, &data) {
            let mut wire = Vec::new();
            command.encode(&mut wire);
            let (body, used) = ipc::split_message(&wire).unwrap().unwrap();
            prop_assert_eq!(used, wire.len());
            prop_assert_eq!(Command::parse(body), Ok(command));
        }
        for event in events(n, port, to, &text, &data) {
            let mut wire = Vec::new();
            event.encode(&mut wire);
            let (body, used) = ipc::split_message(&wire).unwrap().unwrap();
            prop_assert_eq!(used, wire.len());
            prop_assert_eq!(Event::parse(body), Ok(event));
        }
        let mut wire = Vec::new();
        Command::Send { connection: n, data: &data }.encode(&mut wire);
        prop_assert_eq!(&ipc::send_header(n, data.len())[..], &wire[..ipc::DATA_HEADER_LEN]);
        wire.clear();
        Event::Receive { connection: n, data: &data }.encode(&mut wire);
        prop_assert_eq!(&ipc::receive_header(n, data.len())[..], &wire[..ipc::DATA_HEADER_LEN]);
    }

    #[test]
    fn service_frames_round_trip(kind: u32, len in 0..=data_exchange::MAX_PAYLOAD, name in ".{0,60}", contents in blob(), node: u32, time: i64, texts in prop::array::uniform4(".{0,60}")) {
        let header = FrameHeader { kind: Kind::from_number(kind), len };
        prop_assert_eq!(header.kind.number(), kind);
        prop_assert_eq!(FrameHeader::decode(header.encode()), Ok(header));
        let mut payload = data_exchange::file_prefix(&name);
        payload.extend(&contents);
        prop_assert_eq!(data_exchange::split_file(&payload), (Some(name.as_bytes()), &contents[..]));
        let offer = FileOffer::new(name, u64::from(kind) << 8);
        let json = serde_json::to_vec(&offer).unwrap();
        prop_assert_eq!(serde_json::from_slice::<FileOffer>(&json).unwrap(), offer);

        use handshake::Kind::{Accept, Reject, Request, Revoke};
        let [public_key, justification, signature, reason] = texts;
        for kind in [Request, Accept, Reject, Revoke] {
            let message = handshake::Message {
                kind,
                node_id: NodeId(node),
                public_key: public_key.clone(),
                justification: justification.clone(),
                signature: signature.clone(),
                reason: reason.clone(),
                timestamp: time,
            };
            let json = serde_json::to_vec(&message).unwrap();
            prop_assert_eq!(serde_json::from_slice::<handshake::Message>(&json).unwrap(), message);
        }
    }

    /// What decodes encodes to the same meaning again; what does not is
    /// refused without a panic.
    #[test]
    fn any_bytes_are_survived(mut bytes in blob(), lead in 0usize..16) {
        const LEADS: [&[u8]; 10] = [
            b"PILT", b"PILS", b"PILA", b"PILK", b"PILP", b"SACK", b"PLO1", &[0, 0, 0, 9], &[5], &[2],
        ];
        if let Some(lead) = LEADS.get(lead) {
            bytes.splice(0..0, lead.iter().copied());
        }
        let mut out = Vec::new();
        if let Ok(packet) = Packet::decode(&bytes) {
            let again = packet.header.to_packet(packet.payload);
            prop_assert_eq!(Packet::decode(&again), Ok(packet));
        }
        let _ = Frame::parse(&bytes);
        if let Ok(message) = beacon::Message::parse(&bytes) {
            message.encode(&mut out);
            prop_assert!(beacon::Message::parse(&out).is_ok());
        }
        let _ = Blocks::decode(&bytes);
        let _ = Blocks::recognise(&bytes);
        let _ = Blocks::recognise_exact(&bytes);
        if let Some(options) = Options::decode(&bytes) {
            out.clear();
            options.encode(&mut out);
            prop_assert_eq!(Options::decode(&out), Some(options));
        }
        if let Ok(command) = Command::parse(&bytes) {
            out.clear();
            command.encode(&mut out);
            prop_assert_eq!(Command::parse(&out[ipc::LENGTH_LEN..]), Ok(command));
        }
        if let Ok(event) = Event::parse(&bytes) {
            out.clear();
            event.encode(&mut out);
            prop_assert_eq!(Event::parse(&out[ipc::LENGTH_LEN..]), Ok(event));
        }
        match ipc::split_message(&bytes) {
            Ok(Some((body, used))) => prop_assert_eq!(body.len() + ipc::LENGTH_LEN, used),
            Ok(None) => {}
            Err(len) => prop_assert!(len > ipc::MAX_MESSAGE),
        }
        if let Some((head, payload)) = bytes.split_first_chunk() {
            if let Ok(header) = FrameHeader::decode(*head) {
                prop_assert_eq!(header.encode(), *head);
            }
            let (name, contents) = data_exchange::split_file(payload);
            prop_assert!(name.map_or(0, |n| n.len() + 2) + contents.len() == payload.len());
        }
        let _ = serde_json::from_slice::<handshake::Message>(&bytes);
        let mut buffer = registry::FrameBuffer::new();
        buffer.push(&bytes);
        while let Ok(Some(body)) = buffer.next_body() {
            let _ = registry::Fields::parse(body);
        }
    }
}
