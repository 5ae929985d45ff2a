//! Scripted peers against a session on a folder of its own.

use std::fs;
use std::path::Path;

use pilot_plugin::json::Value;
use pilot_plugin::wire::service::data_exchange::{Have, file_prefix, hash_to_hex};
use pilot_plugin::wire::{NodeId, SocketAddress};
use sha2::{Digest, Sha256};

use super::*;

fn keep() -> Keep {
    Keep { time: Duration::from_secs(3600), bytes: 1 << 30 }
}

struct World {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::new(dir.path().join("received"), dir.path().join("inbox"), limits, keep());
        Self { dir, store: Arc::new(store) }
    }

    fn session(&self, node: u32) -> Session {
        let peer = Peer::at(SocketAddress { address: Address::backbone(NodeId(node)), port: 9 });
        Session::new(Arc::clone(&self.store), Sender::of(&peer))
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join(folder)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn only(&self, folder: &str) -> Vec<u8> {
        let files = self.files(folder);
        assert_eq!(files.len(), 1, "{files:?}");
        fs::read(self.dir.path().join(folder).join(&files[0])).unwrap()
    }
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = FrameHeader { kind, len: payload.len() }.encode().to_vec();
    out.extend_from_slice(payload);
    out
}

fn feed(session: &mut Session, data: &[u8]) {
    assert_eq!(session.take(data, Instant::now()).unwrap(), Taken::All);
}

fn answers(session: &mut Session) -> Vec<String> {
    let all = session.take_answers();
    let mut rest = &all[..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let header = FrameHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
        assert_eq!(header.kind, Kind::Text);
        let end = HEADER_LEN + header.len;
        out.push(String::from_utf8(rest[HEADER_LEN..end].to_vec()).unwrap());
        rest = &rest[end..];
    }
    out
}

fn say(session: &mut Session, kind: Kind, payload: &[u8]) -> Vec<String> {
    feed(session, &frame(kind, payload));
    answers(session)
}

fn offer(name: &str, contents: &[u8], resume: bool) -> Vec<u8> {
    let sha256 = Some(hash_to_hex(&Sha256::digest(contents).into()));
    let size = contents.len() as u64;
    json::to_vec(&FileOffer { name: name.into(), size, sha256, resume, ..Default::default() })
        .unwrap()
}

#[test]
fn published_frames_are_answered_as_published_however_they_are_cut() {
    let vectors = include_str!("../../../../tests/vectors/dataexchange.json");
    let vectors: Value = json::from_str(vectors).unwrap();
    let hex = |v: &Value| hex::decode(v.as_str().unwrap()).unwrap();
    for cut in [1, 3, 8, 9, usize::MAX] {
        for vector in vectors["frames"].as_array().unwrap() {
            let world = World::new(Limits::default());
            let mut session = world.session(1);
            for piece in hex(&vector["wire"]).chunks(cut) {
                feed(&mut session, piece);
            }
            let payload = hex(&vector["decoded_payload"]);
            let kind = vector["type_name"].as_str().unwrap();
            let expected = format!("ACK {kind} {} bytes", payload.len());
            assert_eq!(answers(&mut session), [expected], "{vector}");
            assert!(!session.is_inside_frame());
            let named = vector["decoded_filename"].as_str().is_some_and(|name| !name.is_empty());
            match kind {
                "FILE" if named => assert_eq!(world.only("received"), payload),
                "FILE" => assert!(world.files("received").is_empty()),
                _ => {
                    let saved: Value = json::from_slice(&world.only("inbox")).unwrap();
                    assert_eq!(saved["bytes"], payload.len());
                    assert_eq!(saved["data"], String::from_utf8_lossy(&payload).as_ref());
                    assert_eq!(saved["type"], kind);
                    assert_eq!(saved["from"], "0:0000.0000.0001");
                }
            }
        }
        for vector in vectors["decode"].as_array().unwrap() {
            let world = World::new(Limits::default());
            let mut session = world.session(1);
            let wire = hex(&vector["wire"]);
            let taken = session.take(&wire, Instant::now());
            match vector["accepted"].as_bool().unwrap() {
                true => {
                    let payload = hex(&vector["payload"]).len();
                    let kind = vector["type_name"].as_str().unwrap();
                    assert_eq!(answers(&mut session), [format!("ACK {kind} {payload} bytes")]);
                }
                // Too long, or cut.
                false => assert!(taken.is_err() || session.is_inside_frame(), "{vector}"),
            }
        }
    }
}

#[test]
fn a_binary_message_keeps_its_bytes() {
    let world = World::new(Limits::default());
    let mut session = world.session(1);
    say(&mut session, Kind::Binary, &[0, 255, 254]);
    let saved: Value = json::from_slice(&world.only("inbox")).unwrap();
    assert_eq!(saved["data_base64"], "AP/+");
    let happened = session.take_happened();
    assert_eq!(happened, [Happened::Message { kind: Kind::Binary, size: 3 }]);
}

#[test]
fn a_large_file_comes_in_chunks_and_is_checked() {
    let world = World::new(Limits::default());
    let mut session = world.session(1);
    let contents = vec![7; 3 << 20];
    let old = json::to_vec(&json!({ "name": "../x.bin", "size": contents.len() })).unwrap();
    let begun = say(&mut session, Kind::FileBegin, &old);
    assert_eq!(begun, [format!("ACK FILE-BEGIN {} bytes", old.len())]);
    for chunk in contents.chunks(1 << 20) {
        assert!(say(&mut session, Kind::FileChunk, chunk).is_empty());
    }
    let done = say(&mut session, Kind::FileEnd, &Sha256::digest(&contents));
    assert_eq!(done, [format!("ACK FILE {} bytes", contents.len())]);
    assert_eq!(world.only("received"), contents);
    let happened = session.take_happened();
    let Happened::File { name, size, path } = &happened[0] else { panic!("{happened:?}") };
    assert_eq!((name.as_str(), *size), ("../x.bin", 3 << 20));
    assert_eq!(path.parent(), Some(world.dir.path().join("received").as_path()));
}

#[test]
fn what_is_wrong_with_an_offer_is_said_and_the_stream_stays_in_step() {
    let world = World::new(Limits { max_file_bytes: Some(1000), ..Limits::default() });
    let mut session = world.session(1);
    let refused = |answers: Vec<String>, with: &str| {
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!(answers[0].starts_with("ERR ") && answers[0].contains(with), "{answers:?}");
    };
    refused(say(&mut session, Kind::FileEnd, &[0; 32]), "no file was offered");
    refused(say(&mut session, Kind::FileBegin, b"{"), "the offer is not valid");
    refused(say(&mut session, Kind::FileBegin, &vec![b' '; MAX_OFFER + 1]), "the limit is");
    refused(say(&mut session, Kind::FileBegin, &offer("a", &[1; 1001], true)), "more than");
    say(&mut session, Kind::FileBegin, &offer("a", b"abc", true));
    refused(say(&mut session, Kind::FileEnd, &[0; 31]), "SHA-256 of 32");
    say(&mut session, Kind::FileBegin, &offer("a", b"abc", true));
    say(&mut session, Kind::FileChunk, b"abcd");
    refused(say(&mut session, Kind::FileEnd, &Sha256::digest(b"abc")), "4 bytes came");
    say(&mut session, Kind::FileBegin, &offer("a", b"abc", true));
    say(&mut session, Kind::FileChunk, b"abd");
    refused(say(&mut session, Kind::FileEnd, &Sha256::digest(b"abc")), "mismatch");
    say(&mut session, Kind::FileBegin, &offer("a", b"abc", true));
    say(&mut session, Kind::FileChunk, b"abd");
    refused(say(&mut session, Kind::FileEnd, &Sha256::digest(b"abd")), "not that of the offer");
    say(&mut session, Kind::FileBegin, &offer("a", b"abc", true));
    say(&mut session, Kind::FileChunk, b"ab");
    refused(say(&mut session, Kind::FileEnd, &Sha256::digest(b"abc")), "2 bytes came");
    assert!(world.files("received").is_empty(), "{:?}", world.files("received"));
    assert_eq!(say(&mut session, Kind::Text, b"x"), ["ACK TEXT 1 bytes"]);
}

/// Offers, and reads what is there.
fn have(session: &mut Session, offer: &[u8]) -> Option<Have> {
    let answers = say(session, Kind::FileBegin, offer);
    match BeginAnswer::parse(&answers[0]) {
        BeginAnswer::Accepted(have) => have,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broken_file_is_continued_by_its_sender_only() {
    let world = World::new(Limits { max_bytes: Some(100), ..Limits::default() });
    let contents: Vec<u8> = (0..60).collect();
    let offered = offer("f", &contents, true);
    let mut first = world.session(1);
    assert_eq!(have(&mut first, &offered), None);
    // Cut within a chunk.
    feed(&mut first, &frame(Kind::FileChunk, &contents)[..8 + 25]);
    assert!(first.is_inside_frame());
    // While it runs, another stream cannot have it.
    let mut second = world.session(1);
    let busy = say(&mut second, Kind::FileBegin, &offered);
    assert!(busy[0].starts_with("ERR") && busy[0].contains("limit of 100"), "{busy:?}");
    first.finish();
    assert_eq!(world.files("received").len(), 1);

    let mut stranger = world.session(2);
    assert_eq!(have(&mut stranger, &offered), None);
    stranger.finish();
    let mut other_name = world.session(1);
    assert_eq!(have(&mut other_name, &offer("g", &contents, true)), None);
    other_name.finish();

    let mut again = world.session(1);
    let there = have(&mut again, &offered).unwrap();
    assert_eq!(there.bytes, 25);
    assert_eq!(there.sha256, <[u8; 32]>::from(Sha256::digest(&contents[..25])));
    feed(&mut again, &frame(Kind::FileChunk, &contents[25..]));
    let done = say(&mut again, Kind::FileEnd, &Sha256::digest(&contents));
    assert_eq!(done, ["ACK FILE 60 bytes"]);
    again.finish();
    assert_eq!(world.only("received"), contents);
}

#[test]
fn without_resume_it_starts_over() {
    let world = World::new(Limits::default());
    let contents: Vec<u8> = (0..60).collect();
    let mut first = world.session(1);
    have(&mut first, &offer("f", &contents, true));
    feed(&mut first, &frame(Kind::FileChunk, &[9; 25]));
    first.finish();
    let mut again = world.session(1);
    // The sender sees that it is not its own, and offers anew.
    let there = have(&mut again, &offer("f", &contents, true)).unwrap();
    assert_ne!(there.sha256, <[u8; 32]>::from(Sha256::digest(&contents[..25])));
    assert_eq!(have(&mut again, &offer("f", &contents, false)), None);
    feed(&mut again, &frame(Kind::FileChunk, &contents));
    let done = say(&mut again, Kind::FileEnd, &Sha256::digest(&contents));
    assert_eq!(done, ["ACK FILE 60 bytes"]);
    assert_eq!(world.only("received"), contents);
}

#[test]
fn a_file_without_a_hash_is_not_kept_when_its_stream_breaks() {
    let world = World::new(Limits::default());
    let mut session = world.session(1);
    let offer = json::to_vec(&FileOffer::new("f", 10)).unwrap();
    say(&mut session, Kind::FileBegin, &offer);
    say(&mut session, Kind::FileChunk, b"abc");
    assert_eq!(world.files("received").len(), 1);
    session.finish();
    assert!(world.files("received").is_empty());
    let mut published = world.session(1);
    let mut payload = file_prefix("f");
    payload.extend_from_slice(b"0123456789");
    feed(&mut published, &frame(Kind::File, &payload)[..15]);
    published.finish();
    assert!(world.files("received").is_empty());
}

#[test]
fn what_came_outlives_a_restart_and_ends_with_its_time() {
    let world = World::new(Limits::default());
    let contents = [5; 40];
    let mut first = world.session(1);
    have(&mut first, &offer("f", &contents, true));
    feed(&mut first, &frame(Kind::FileChunk, &contents[..10]));
    first.finish();
    let received = world.dir.path().join("received");
    let reopen = |keep| {
        let inbox = world.dir.path().join("inbox");
        Arc::new(Store::new(received.clone(), inbox, Limits::default(), keep))
    };
    let world_again = |store| {
        let peer = Peer::at(SocketAddress { address: Address::backbone(NodeId(1)), port: 9 });
        Session::new(store, Sender::of(&peer))
    };
    let mut again = world_again(reopen(keep()));
    assert_eq!(have(&mut again, &offer("f", &contents, true)).unwrap().bytes, 10);
    again.finish();
    let mut gone = world_again(reopen(Keep { bytes: 9, ..keep() }));
    assert_eq!(have(&mut gone, &offer("f", &contents, true)), None);
    gone.finish();
    assert!(Path::new(&received).exists() && world.files("received").is_empty());
}

#[test]
fn messages_wait_for_memory() {
    let world = World::new(Limits::default());
    let header = FrameHeader { kind: Kind::Text, len: 16 << 20 }.encode();
    let mut holders: Vec<_> = (0..4).map(|n| world.session(n)).collect();
    for session in &mut holders {
        feed(session, &header);
        assert!(session.deadline().is_some());
    }
    let mut waiting = world.session(9);
    let wire = frame(Kind::Text, b"hello");
    let now = Instant::now();
    assert_eq!(waiting.take(&wire, now).unwrap(), Taken::Starved(HEADER_LEN));
    assert_eq!(waiting.take(&wire[HEADER_LEN..], now).unwrap(), Taken::Starved(0));
    assert!(waiting.deadline().is_none());
    drop(holders.pop());
    feed(&mut waiting, &wire[HEADER_LEN..]);
    assert_eq!(answers(&mut waiting), ["ACK TEXT 5 bytes"]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Whatever comes: no panic, and how it is cut makes no difference.
    #[test]
    fn any_bytes_are_taken_alike_however_cut(
        frames in proptest::collection::vec(
            (0usize..9, proptest::collection::vec(proptest::num::u8::ANY, 0..80)), 0..8),
        tail in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        cut in 1usize..50,
    ) {
        let kinds = [
            Kind::Text, Kind::Binary, Kind::Json, Kind::File, Kind::FileBegin, Kind::FileChunk,
            Kind::FileEnd, Kind::Unknown(0), Kind::Unknown(77),
        ];
        let mut wire: Vec<u8> =
            frames.iter().flat_map(|(kind, payload)| frame(kinds[*kind], payload)).collect();
        wire.extend(tail);
        let run = |cut: usize| {
            let world = World::new(Limits::default());
            let mut session = world.session(1);
            let mut failed = false;
            for piece in wire.chunks(cut) {
                failed |= session.take(piece, Instant::now()).is_err();
                if failed { break; }
            }
            (failed, answers(&mut session), session.is_inside_frame())
        };
        let (whole, pieces) = (run(usize::MAX), run(cut));
        proptest::prop_assert_eq!((whole.0, &whole.1), (pieces.0, &pieces.1));
        if !whole.0 {
            proptest::prop_assert_eq!(whole.2, pieces.2);
        }
    }
}
