//! `send-file` over connections that break.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pilot_sdk::{Client, Stream};
use pilot_wire::ipc::ErrorCode;
use pilot_wire::service::data_exchange::{
    BeginAnswer, FileOffer, FrameHeader, HEADER_LEN, Have, Kind, PORT, hash_to_hex,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::User;
use crate::mock::{Behaviour, MockDaemon};

/// What a receiver does with a stream.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// Resets it after so many bytes of chunks.
    BreakAfter(usize),
    /// Takes the file, then resets it instead of answering the end.
    BreakAtEnd,
    Serve,
}

/// A receiver as the exchange describes it, of one file at a time.
#[derive(Default)]
struct Receiver {
    plans: VecDeque<Plan>,
    /// What has come of the offered file.
    kept: Vec<u8>,
    key: Option<[u8; 32]>,
    finished: Vec<Vec<u8>>,
    /// Where each accepted offer began, and whether it was a retry.
    begins: Vec<(u64, bool)>,
}

async fn receive(daemon: &MockDaemon, socket: &Path, plans: &[Plan]) -> Arc<Mutex<Receiver>> {
    let receiver = Receiver { plans: plans.iter().copied().collect(), ..Receiver::default() };
    let shared = Arc::new(Mutex::new(receiver));
    let client = Client::connect_to(socket).await.expect("connects");
    let listener = client.listen(PORT).await.expect("listens");
    let (state, resets) = (Arc::clone(&shared), daemon.resetter());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let plan = state.lock().expect("state").plans.pop_front().unwrap_or(Plan::Serve);
            if serve(&mut stream, &state, plan).await.is_none() {
                // The sender's end; ours has the next number.
                resets(stream.id() - 1, ErrorCode::GENERAL, "peer went away");
            }
        }
    });
    shared
}

/// `None` when the stream is to be broken.
async fn serve(stream: &mut Stream, state: &Mutex<Receiver>, plan: Plan) -> Option<()> {
    let mut got = 0;
    loop {
        let mut header = [0; HEADER_LEN];
        if stream.read_exact(&mut header).await.is_err() {
            return Some(());
        }
        let header = FrameHeader::decode(header).expect("a header");
        let mut left = header.len;
        let mut body = Vec::new();
        while left > 0 {
            let mut piece = vec![0; left.min(10_000)];
            stream.read_exact(&mut piece).await.expect("a body");
            left -= piece.len();
            if header.kind == Kind::FileChunk {
                got += piece.len();
                state.lock().expect("state").kept.extend(&piece);
            } else {
                body.extend(&piece);
            }
            if matches!(plan, Plan::BreakAfter(limit) if got >= limit) {
                return None;
            }
        }
        let answer = {
            let mut state = state.lock().expect("state");
            match header.kind {
                Kind::FileBegin => state.begin(&body),
                Kind::FileEnd => state.end(&body),
                Kind::FileChunk => continue,
                kind => format!("ERR {kind} save failed: unexpected"),
            }
        };
        if header.kind == Kind::FileEnd && matches!(plan, Plan::BreakAtEnd) {
            return None;
        }
        let frame = FrameHeader { kind: Kind::Text, len: answer.len() }.encode();
        stream.write_all(&[&frame[..], answer.as_bytes()].concat()).await.expect("an answer");
    }
}

impl Receiver {
    fn begin(&mut self, body: &[u8]) -> String {
        let offer: FileOffer = serde_json::from_slice(body).expect("an offer");
        if offer.name == "unwanted" {
            return "ERR FILE-BEGIN save failed: no room".to_owned();
        }
        let whole = self
            .finished
            .last()
            .filter(|f| offer.retry && offer.resumable() == Some(Sha256::digest(f).into()));
        if let Some(whole) = whole {
            self.kept.clone_from(whole);
            self.key = offer.resumable();
        }
        if offer.resumable().is_none() || offer.resumable() != self.key {
            self.kept.clear();
            self.key = offer.resumable();
        }
        let bytes = self.kept.len() as u64;
        self.begins.push((bytes, offer.retry));
        let have = (bytes > 0).then(|| Have { bytes, sha256: Sha256::digest(&self.kept).into() });
        BeginAnswer::accept(body.len(), have)
    }

    fn end(&mut self, hash: &[u8]) -> String {
        let kept = std::mem::take(&mut self.kept);
        self.key = None;
        if Sha256::digest(&kept)[..] != *hash {
            return "ERR FILE save failed: the SHA-256 differs".to_owned();
        }
        let answer = format!("ACK FILE {} bytes", kept.len());
        if self.finished.last() != Some(&kept) {
            self.finished.push(kept);
        }
        answer
    }
}

fn contents(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn file(home: &Path, name: &str, contents: &[u8]) -> String {
    let path = home.join(name);
    std::fs::write(&path, contents).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_replaced_and_the_file_continued() {
    let daemon = MockDaemon::start(Behaviour { exchange: false, ..Behaviour::default() });
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let data = contents(5_000_000);
    let path = file(home, "large.bin", &data);
    let plans = [Plan::BreakAfter(1_500_000), Plan::BreakAfter(1_200_000), Plan::BreakAtEnd];
    let receiver = receive(&daemon, &socket, &plans).await;
    let run = user.run(&["--json=false", "send-file", "1", &path]).await;
    assert_eq!(run.exit, 0, "{run:?}");
    assert!(run.stderr.contains("trying again in 0.5 s (1 of 5)"), "{run:?}");
    let state = receiver.lock().expect("state");
    assert_eq!(state.finished, [data], "whole, and once");
    let [first, second, third, last] = state.begins[..] else { panic!("{:?}", state.begins) };
    assert_eq!(first, (0, false));
    assert!(second.0 >= 1_500_000 && second.0 < 1_600_000 && second.1, "{second:?}");
    assert!(third.0 >= second.0 + 1_200_000 && third.1, "{third:?}");
    assert_eq!(last, (5_000_000, true), "only the answer was missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_run_is_continued_only_with_the_same_bytes() {
    let daemon = MockDaemon::start(Behaviour { exchange: false, ..Behaviour::default() });
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let data = contents(3_000_000);
    let path = file(home, "a.bin", &data);
    let receiver = receive(&daemon, &socket, &[]).await;
    let keep = |kept: &[u8]| {
        let mut state = receiver.lock().expect("state");
        state.kept = kept.to_vec();
        state.key = Some(Sha256::digest(&data).into());
    };
    keep(&data[..2_000_000]);
    let sent = user.run(&["send-file", "1", &path]).await.data();
    assert_eq!(
        (&sent["resumed"], &sent["ack"], &sent["bytes"]),
        (&json!(2_000_000), &json!("ACK FILE 3000000 bytes"), &json!(3_000_000))
    );
    assert_eq!(sent["sha256"], hash_to_hex(&Sha256::digest(&data).into()));
    // What is there is not the beginning of the file: sent from the start.
    keep(&vec![7; 1_000_000]);
    let sent = user.run(&["send-file", "1", &path]).await.data();
    assert_eq!(sent["resumed"], 0);
    // More than the file has.
    keep(&contents(4_000_000));
    let sent = user.run(&["send-file", "1", &path]).await.data();
    assert_eq!(sent["resumed"], 0);
    let empty = file(home, "empty", b"");
    assert_eq!(user.run(&["send-file", "1", &empty]).await.data()["ack"], "ACK FILE 0 bytes");
    let unwanted = file(home, "unwanted", b"x");
    let error = user.run(&["send-file", "1", &unwanted]).await.error();
    assert_eq!(error["reason"], "ERR FILE-BEGIN save failed: no room");
    let state = receiver.lock().expect("state");
    assert_eq!(state.finished, [data, Vec::new()], "the same file is whole each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_peers_get_one_frame() {
    let daemon = MockDaemon::start(Behaviour::published());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    let path = file(home, "f.txt", b"0123456789");
    let sent = user.run(&["send-file", "2", &path]).await.data();
    assert_eq!(
        (&sent["ack"], &sent["filename"], &sent["destination"], &sent["resumed"]),
        (&json!("ACK FILE 10 bytes"), &json!("f.txt"), &json!("0:0000.0000.0002"), &json!(0))
    );
}
