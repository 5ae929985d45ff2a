//! Echo, data exchange, and streams that services dial.

use std::fs;
use std::path::Path;

use pilot_wire::service::data_exchange::{FrameHeader, Kind, file_prefix};

use super::*;
use crate::service::LocalStream;

#[test]
fn echo_gives_everything_back() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        let id = client.dial(b.at(7)).await;
        let data = pattern(8 << 20, 2);
        let hash = sha256(&data);
        let TestClient { reader, writer, .. } = &mut client;
        let sending = send_all(writer, id, &data);
        let receiving = async {
            let mut hash = Sha256::new();
            let mut got = 0;
            while got < 8 << 20 {
                let message = reader.next().await.unwrap();
                let Event::Receive { data, .. } = message.event() else { panic!() };
                got += data.len();
                hash.update(data);
            }
            <[u8; 32]>::from(hash.finalize())
        };
        let (_, got) = tokio::join!(sending, receiving);
        assert_eq!(got, hash);
    });
}

#[test]
fn a_service_can_dial_and_is_refused_like_anybody() {
    run_test(async {
        let (a, b) = pair().await;
        let mut stream = a.handle.dial(b.at(7)).await.unwrap();
        assert_eq!(stream.remote(), b.at(7));
        stream.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut got).await.unwrap(), 0);

        let refused = a.handle.dial(b.at(999)).await.err();
        assert_eq!(refused, Some(pilot_core::DialFailure::Refused.into()));
        let unknown = a.handle.dial(Address::backbone(NodeId(9)).port(7)).await.err();
        assert_eq!(unknown, Some(pilot_core::DialFailure::Unresolved.into()));
    });
}

#[test]
fn a_stranger_reaches_nothing() {
    run_test(async {
        let (a, b) = pair().await;
        a.handle.dial(b.at(7)).await.unwrap();
        b.handle.set_permission(a.id, Permission::Stranger).await;
        let mut client = a.client().await;
        client.tell(&Command::Dial { to: b.at(7) }).await;
        // Silence, not refusal: the port's existence is not told.
        let info = loop {
            let info = b.info().await;
            if info["refused"]["untrusted"].as_u64().unwrap() > 0 {
                break info;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(info["connections"], 0);
    });
}

struct Sender {
    stream: LocalStream,
}

impl Sender {
    async fn frame(&mut self, kind: Kind, payload: &[u8]) {
        let header = FrameHeader { kind, len: payload.len() }.encode();
        self.stream.write_all(&header).await.unwrap();
        self.stream.write_all(payload).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).await.unwrap();
        let header = FrameHeader::decode(header).unwrap();
        assert_eq!(header.kind, Kind::Text);
        let mut text = vec![0; header.len];
        self.stream.read_exact(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    async fn asks(&mut self, kind: Kind, payload: &[u8]) -> String {
        self.frame(kind, payload).await;
        self.answer().await
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    paths.sort();
    paths
}

#[test]
fn published_files_and_messages_are_kept() {
    run_test(async {
        let (a, b) = pair().await;
        let mut sender = Sender { stream: a.handle.dial(b.at(1001)).await.unwrap() };
        let contents = pattern(5 << 20, 4);
        let mut payload = file_prefix("../report.txt");
        payload.extend_from_slice(&contents);
        let answer = sender.asks(Kind::File, &payload).await;
        assert_eq!(answer, format!("ACK FILE {} bytes", contents.len()));
        let received = files(&b.folder.path().join("received"));
        assert_eq!(received.len(), 1);
        let name = received[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("report-") && name.ends_with(".txt"), "{name}");
        assert_eq!(fs::read(&received[0]).unwrap(), contents);

        // Without a name: answered, not kept.
        assert_eq!(sender.asks(Kind::File, b"\x00\xffab").await, "ACK FILE 4 bytes");
        assert_eq!(sender.asks(Kind::File, b"A").await, "ACK FILE 1 bytes");
        assert_eq!(sender.asks(Kind::File, b"\x00\x00abc").await, "ACK FILE 3 bytes");
        assert_eq!(sender.asks(Kind::Unknown(9), b"A").await, "ACK UNKNOWN(9) 1 bytes");
        assert_eq!(files(&b.folder.path().join("received")).len(), 1);

        assert_eq!(sender.asks(Kind::Text, "häh".as_bytes()).await, "ACK TEXT 4 bytes");
        assert_eq!(sender.asks(Kind::Text, b"").await, "ACK TEXT 0 bytes");
        assert_eq!(sender.asks(Kind::Json, b"{}").await, "ACK JSON 2 bytes");
        assert_eq!(sender.asks(Kind::Binary, b"\x00\xff").await, "ACK BINARY 2 bytes");
        let inbox = files(&b.folder.path().join("inbox"));
        assert_eq!(inbox.len(), 4);
        let binary: Value = serde_json::from_slice(&fs::read(&inbox[0]).unwrap()).unwrap();
        assert_eq!(binary["type"], "BINARY");
        assert_eq!(binary["from"], "0:0000.0000.0001");
        assert_eq!(binary["bytes"], 2);
        assert_eq!(binary["data"], "\0\u{FFFD}");
        assert_eq!(binary["data_base64"], "AP8=");
    });
}

#[test]
fn an_offered_file_is_kept_when_its_hash_is_right() {
    run_test(async {
        let (a, b) = pair().await;
        let folder = b.folder.path().join("received");
        let mut sender = Sender { stream: a.handle.dial(b.at(1001)).await.unwrap() };
        let contents = pattern(20 << 20, 11);
        let offer = json!({ "name": "big.bin", "size": contents.len() }).to_string();
        let begun = sender.asks(Kind::FileBegin, offer.as_bytes()).await;
        assert!(begun.starts_with("ACK FILE-BEGIN"), "{begun}");
        for chunk in contents.chunks(1 << 20) {
            sender.frame(Kind::FileChunk, chunk).await;
        }
        let answer = sender.asks(Kind::FileEnd, &sha256(&contents)).await;
        assert_eq!(answer, format!("ACK FILE {} bytes", contents.len()));
        let kept = files(&folder);
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read(&kept[0]).unwrap(), contents);

        let offer = json!({ "name": "bad.bin", "size": 3 }).to_string();
        for (chunk, hash) in
            [(b"abc".as_slice(), [0; 32]), (b"ab", sha256(b"ab")), (b"abcd", sha256(b"abcd"))]
        {
            assert!(sender.asks(Kind::FileBegin, offer.as_bytes()).await.starts_with("ACK"));
            sender.frame(Kind::FileChunk, chunk).await;
            let answer = sender.asks(Kind::FileEnd, &hash).await;
            assert!(answer.starts_with("ERR FILE save failed: "), "{answer}");
        }
        assert!(sender.asks(Kind::FileEnd, &[0; 32]).await.contains("no file was offered"));
        assert!(sender.asks(Kind::FileEnd, &[0; 3]).await.starts_with("ERR"));
        assert!(sender.asks(Kind::FileBegin, b"{").await.starts_with("ERR FILE-BEGIN"));
        // Failed files are removed beside.
        let removed = async {
            while files(&folder) != kept {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(STEP, removed).await.unwrap();

        // A sender that goes away leaves nothing behind.
        assert!(sender.asks(Kind::FileBegin, offer.as_bytes()).await.starts_with("ACK"));
        assert_eq!(files(&folder).len(), 2);
        drop(sender);
        while files(&folder).len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_frame_beyond_the_limit_ends_its_stream_only() {
    run_test(async {
        let (a, b) = pair().await;
        let mut stream = a.handle.dial(b.at(1001)).await.unwrap();
        stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 1]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        let mut sender = Sender { stream: a.handle.dial(b.at(1001)).await.unwrap() };
        assert_eq!(sender.asks(Kind::Text, b"still here").await, "ACK TEXT 10 bytes");
    });
}

#[test]
fn what_an_earlier_run_left_unfinished_goes() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["received", "inbox"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join(".incoming-1-1"), "half").unwrap();
        fs::write(dir.path().join(folder).join("whole"), "whole").unwrap();
    }
    DataExchange::new(dir.path(), DataExchangeLimits::default());
    for folder in ["received", "inbox"] {
        let names: Vec<_> = fs::read_dir(dir.path().join(folder)).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{folder}");
        assert_eq!(names[0].file_name(), "whole");
    }
}
