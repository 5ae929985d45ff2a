//! Against the published vectors, and two ends in memory.

use pilot_plugin::json::{self, Value};
use pilot_plugin::wire::service::secure::MAX_FRAME;

use super::*;

const RULES: Rules = Rules { strict: true, require_bound: false, max_frame: MAX_FRAME };
const ENDS: Ends = Ends { client: NodeId(7), server: NodeId(9) };

fn vectors() -> Value {
    json::from_str(include_str!("../../../../tests/vectors/secure_channel.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn key(value: &Value) -> [u8; 32] {
    hex(value).try_into().unwrap()
}

/// A client in memory: what it sends first, and its halves after the answer.
struct Client {
    secret: StaticSecret,
    key: [u8; 32],
}

impl Client {
    fn published() -> Self {
        let secret = StaticSecret::from([3; 32]);
        let key = PublicKey::from(&secret).to_bytes();
        Self { secret, key }
    }

    fn ours() -> Self {
        let Self { secret, key } = Self::published();
        Self { secret, key: announce(key) }
    }

    fn connect(&self, hello: &[u8], ends: Ends) -> (Opener, Sealer) {
        let server_key: [u8; 32] = hello[..32].try_into().unwrap();
        let shared = derive(&self.secret, server_key).unwrap();
        let Ends { client, server } = ends;
        let binding = Binding { client_key: self.key, server_key, client, server };
        let due = binding.is_due().then_some(binding);
        let (mut opener, sealer) = halves(Role::Client, &shared, due, RULES);
        opener.push(&hello[32..]);
        (opener, sealer)
    }
}

#[test]
fn published_vectors_come_out() {
    let vectors = vectors();
    let server = key(&vectors["server_x25519_private"]);
    let client_key = key(&vectors["client_x25519_public"]);
    let accepted = accept(client_key, server, Some(ENDS), RULES).unwrap();
    assert_eq!(accepted.hello, hex(&vectors["server_x25519_public"]));
    let derived = derive(&StaticSecret::from(server), client_key).unwrap();
    assert_eq!(derived, key(&vectors["aes256_key"]));

    let Accepted { mut opener, mut sealer, .. } = accepted;
    for frame in vectors["frames"].as_array().unwrap() {
        let (wire, plaintext) = (hex(&frame["frame"]), hex(&frame["plaintext"]));
        match frame["direction"].as_str().unwrap() {
            "client-to-server" => {
                for byte in wire {
                    assert_eq!(opener.open(), Ok(None));
                    opener.push(&[byte]);
                }
                assert_eq!(opener.open(), Ok(Some(plaintext)));
            }
            _ => assert_eq!(sealer.seal(&plaintext), Ok(wire)),
        }
    }
    assert!(!opener.is_inside_frame());
}

#[test]
fn what_published_receivers_take_is_refused() {
    let client = Client::published();
    let accepted = accept(client.key, [5; 32], Some(ENDS), RULES).unwrap();
    let (_, mut sealer) = client.connect(&accepted.hello, ENDS);
    let (one, two) = (sealer.seal(b"one").unwrap(), sealer.seal(b"two").unwrap());
    let server = || accept(client.key, [5; 32], Some(ENDS), RULES).unwrap();

    // Replayed.
    let mut opener = server().opener;
    opener.push(&one);
    opener.push(&one);
    assert_eq!(opener.open(), Ok(Some(b"one".to_vec())));
    assert_eq!(opener.open(), Err(FrameError::Nonce { expected: 2 }.into()));
    // Out of order.
    let mut opener = server().opener;
    opener.push(&two);
    assert_eq!(opener.open(), Err(FrameError::Nonce { expected: 1 }.into()));
    // Sent back.
    let Accepted { mut opener, mut sealer, .. } = server();
    opener.push(&sealer.seal(b"mine").unwrap());
    assert_eq!(opener.open(), Err(FrameError::Nonce { expected: 1 }.into()));
    // Changed.
    let mut opener = server().opener;
    let mut changed = one.clone();
    *changed.last_mut().unwrap() ^= 1;
    opener.push(&changed);
    assert_eq!(opener.open(), Err(ChannelError::Sealed));
    // Lengths out of range.
    for len in [11u32, 16_777_217] {
        let mut opener = server().opener;
        opener.push(&len.to_be_bytes());
        assert_eq!(opener.open(), Err(FrameError::Length(len).into()));
    }
}

#[test]
fn who_is_not_strict_takes_what_published_receivers_take() {
    let client = Client::published();
    let loose = Rules { strict: false, ..RULES };
    let accepted = accept(client.key, [5; 32], None, loose).unwrap();
    let (_, mut sealer) = client.connect(&accepted.hello, ENDS);
    let (one, two) = (sealer.seal(b"one").unwrap(), sealer.seal(b"two").unwrap());
    let mut opener = accepted.opener;
    for frame in [&two, &one, &one] {
        opener.push(frame);
    }
    let opened: Vec<_> = std::iter::from_fn(|| opener.open().unwrap()).collect();
    assert_eq!(opened, [b"two".to_vec(), b"one".to_vec(), b"one".to_vec()]);
}

#[test]
fn keys_without_a_secret_are_refused() {
    let one = std::array::from_fn(|i| u8::from(i == 0));
    for low_order in [[0; 32], one, announce([0; 32])] {
        let refused = accept(low_order, [5; 32], Some(ENDS), RULES).err();
        assert_eq!(refused, Some(ChannelError::NoSecret));
    }
}

#[test]
fn two_of_ours_bind_the_channel() {
    let client = Client::ours();
    let Accepted { hello, mut opener, mut sealer } =
        accept(client.key, [5; 32], Some(ENDS), Rules { require_bound: true, ..RULES }).unwrap();
    assert!(hello.len() > 32 && hello[31] & 0x80 != 0);
    let (mut c_open, mut c_seal) = client.connect(&hello, ENDS);
    let server_key = hello[..32].try_into().unwrap();
    let Ends { client: c, server: s } = ENDS;
    let binding = Binding { client_key: client.key, server_key, client: c, server: s };
    opener.push(&c_seal.seal(&binding.confirmation(Role::Client)).unwrap());
    assert_eq!(opener.open(), Ok(None));
    opener.push(&c_seal.seal(b"hi").unwrap());
    assert_eq!(opener.open(), Ok(Some(b"hi".to_vec())));
    assert_eq!(c_open.open(), Ok(None));
    c_open.push(&sealer.seal(b"ho").unwrap());
    assert_eq!(c_open.open(), Ok(Some(b"ho".to_vec())));
}

#[test]
fn who_passes_the_handshake_on_is_found_by_both() {
    let client = Client::ours();
    // The server sees node 8, in between; the client dialled node 8.
    let seen = Ends { client: NodeId(8), server: NodeId(9) };
    let dialled = Ends { client: NodeId(7), server: NodeId(8) };
    let Accepted { hello, mut opener, .. } =
        accept(client.key, [5; 32], Some(seen), RULES).unwrap();
    let (mut c_open, mut c_seal) = client.connect(&hello, dialled);
    assert_eq!(c_open.open(), Err(ChannelError::Passed));
    let server_key = hello[..32].try_into().unwrap();
    let Ends { client: c, server: s } = dialled;
    let binding = Binding { client_key: client.key, server_key, client: c, server: s };
    opener.push(&c_seal.seal(&binding.confirmation(Role::Client)).unwrap());
    assert_eq!(opener.open(), Err(ChannelError::Passed));
    // Data instead of a confirmation is found as well.
    let mut opener = accept(client.key, [5; 32], Some(seen), RULES).unwrap().opener;
    let (_, mut c_seal) = client.connect(&hello, dialled);
    opener.push(&c_seal.seal(b"data").unwrap());
    assert_eq!(opener.open(), Err(ChannelError::Passed));
}

#[test]
fn a_published_client_sees_a_published_server() {
    let client = Client::published();
    let accepted = accept(client.key, [5; 32], Some(ENDS), RULES).unwrap();
    assert_eq!(accepted.hello.len(), 32);
    assert_eq!(accepted.hello[31] & 0x80, 0);
    let bound = Rules { require_bound: true, ..RULES };
    let refused = accept(client.key, [5; 32], Some(ENDS), bound).err();
    assert_eq!(refused, Some(ChannelError::Unbound));
    // Nor can who does not know itself bind anything.
    let ours = Client::ours();
    assert_eq!(accept(ours.key, [5; 32], None, RULES).unwrap().hello.len(), 32);
}

proptest::proptest! {
    #[test]
    fn what_is_sealed_opens_however_it_is_cut(
        messages in proptest::collection::vec(
            proptest::collection::vec(proptest::num::u8::ANY, 0..300), 0..8),
        cut in 1usize..100,
    ) {
        let client = Client::published();
        let accepted = accept(client.key, [5; 32], None, RULES).unwrap();
        let (_, mut sealer) = client.connect(&accepted.hello, ENDS);
        let wire: Vec<u8> = messages.iter().flat_map(|m| sealer.seal(m).unwrap()).collect();
        let mut opener = accepted.opener;
        let mut opened = Vec::new();
        for piece in wire.chunks(cut) {
            opener.push(piece);
            while let Some(message) = opener.open().unwrap() {
                opened.push(message);
            }
        }
        proptest::prop_assert_eq!(opened, messages);
    }

    #[test]
    fn other_bytes_never_open(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let mut opener = accept(Client::published().key, [5; 32], None, RULES).unwrap().opener;
        opener.push(&data);
        proptest::prop_assert!(!matches!(opener.open(), Ok(Some(_))));
    }
}
