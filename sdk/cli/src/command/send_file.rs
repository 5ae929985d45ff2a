//! `send-file`: sends a file to a peer's data exchange port.
//!
//! Up to the published frame limit it goes as one frame that every peer knows;
//! a larger one is offered, sent in chunks and checked by its SHA-256.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use pilot_sdk::{Address, Stream};
use pilot_wire::service::data_exchange::{
    CHUNK_LEN, FileOffer, FrameHeader, HEADER_LEN, Kind, MAX_PAYLOAD, file_prefix,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes};
use crate::spec::Spec;
use crate::{peer, progress};

pub(crate) const SPEC: Spec = Spec {
    name: "send-file",
    usage: "send-file <address|hostname> <path>",
    about: "Send a file to a peer",
    returns: "filename, bytes, destination, ack, sha256, seconds, mb_per_s",
    flags: &[],
    positionals: (2, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// The data exchange port.
pub(super) const PORT: u16 = 1001;
/// How long a peer may take to answer when it has everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to look for the reason when sending breaks off.
const REASON_PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// Chunks that are read ahead of the network.
const READ_AHEAD: usize = 4;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let source = Source::open(Path::new(args.at(1)?))?;
    let (name, size) = (source.name.clone(), source.size);
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let start = Instant::now();
    let mut stream = peer::dial(&client, address, PORT).await?;
    let prefix = file_prefix(&name);
    let frame = prefix.len() as u64 + size;
    let bar = progress::bar(&cx.out, &name, size);
    let mut sending = Sending { stream: &mut stream, address, bar: &bar };
    let hash = if frame <= MAX_PAYLOAD as u64 {
        // Fits, so it fits usize.
        let len = usize::try_from(frame).unwrap_or(MAX_PAYLOAD);
        let mut head = FrameHeader { kind: Kind::File, len }.encode().to_vec();
        head.extend_from_slice(&prefix);
        sending.write(&head).await?;
        sending.contents(source, false).await?
    } else {
        sending.offer(&name, size).await?;
        let hash = sending.contents(source, true).await?;
        let mut end = FrameHeader { kind: Kind::FileEnd, len: hash.len() }.encode().to_vec();
        end.extend_from_slice(&hash);
        sending.write(&end).await?;
        hash
    };
    bar.finish_and_clear();
    let ack = read_answer(&mut stream, address).await?;
    let seconds = start.elapsed().as_secs_f64();
    if !ack.starts_with("ACK") {
        return Err(refused(&name, address, &ack));
    }
    let rate = size as f64 / 1e6 / seconds.max(1e-9);
    let data = json!({
        "filename": name,
        "bytes": size,
        "destination": address,
        "ack": ack,
        "sha256": hex(&hash),
        "seconds": seconds,
        "mb_per_s": rate,
    });
    let text = format!(
        "sent {name} ({}) to {address} in {seconds:.2} s, {rate:.1} MB/s\nsha256 {}",
        bytes(size),
        hex(&hash)
    );
    Ok(Answer::new(data, text))
}

/// The file that is sent.
struct Source {
    file: std::fs::File,
    name: String,
    size: u64,
    path: String,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display().to_string();
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found(format!("file not found: {shown}")),
            _ => Failure::internal(format!("cannot read {shown}")).reason(e),
        };
        // Asked before it is opened: opening a pipe waits for its writer.
        let meta = std::fs::metadata(path).map_err(failed)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        match name {
            Some(name) if meta.is_file() => {
                let file = std::fs::File::open(path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                Ok(Self { file, name, size, path: shown })
            }
            _ => Err(Failure::invalid(format!("not a file: {shown}"))
                .hint("pack a folder first, for example with tar")),
        }
    }

    /// Reads the file on a thread of its own, hashing as it goes, and hands
    /// out pieces with room for a frame header before each.
    fn read(
        self,
        pieces: mpsc::Sender<Vec<u8>>,
        used: std::sync::mpsc::Receiver<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let Self { mut file, size, path, .. } = self;
        let changed = |what: &str| {
            Failure::internal(format!("{path} {what} while it was sent")).hint("send it again")
        };
        let mut hasher = Sha256::new();
        let mut left = size;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN);
            let mut piece = used.try_recv().unwrap_or_default();
            piece.resize(HEADER_LEN + len, 0);
            file.read_exact(&mut piece[HEADER_LEN..]).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => changed("became shorter"),
                _ => Failure::internal(format!("cannot read {path}")).reason(e),
            })?;
            hasher.update(&piece[HEADER_LEN..]);
            left -= len as u64;
            if pieces.blocking_send(piece).is_err() {
                // Sending has failed, and says why.
                break;
            }
        }
        if left == 0 && file.read(&mut [0]).is_ok_and(|n| n > 0) {
            return Err(changed("became longer"));
        }
        Ok(hasher.finalize().to_vec())
    }
}

/// A file on its way.
struct Sending<'a> {
    stream: &'a mut Stream,
    address: Address,
    bar: &'a indicatif::ProgressBar,
}

impl Sending<'_> {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        match self.stream.write_all(data).await {
            Ok(()) => Ok(()),
            Err(e) => Err(self.why(&e).await),
        }
    }

    /// A peer that gives up says why, and closes.
    async fn why(&mut self, error: &std::io::Error) -> Failure {
        match timeout(REASON_PATIENCE, read_answer(self.stream, self.address)).await {
            Ok(Ok(answer)) if !answer.starts_with("ACK") => {
                refused("the file", self.address, &answer)
            }
            _ => peer::broken(self.address, "sending to", error),
        }
    }

    /// Asks whether the peer takes a file beyond the frame limit.
    async fn offer(&mut self, name: &str, size: u64) -> Result<(), Failure> {
        let offer = serde_json::to_vec(&FileOffer::new(name, size))
            .map_err(|e| Failure::internal("cannot describe the file").reason(e))?;
        let mut frame = FrameHeader { kind: Kind::FileBegin, len: offer.len() }.encode().to_vec();
        frame.extend_from_slice(&offer);
        self.write(&frame).await?;
        let answer = read_answer(self.stream, self.address).await?;
        if answer.starts_with(&format!("ACK {}", Kind::FileBegin)) {
            return Ok(());
        }
        if answer.starts_with("ACK UNKNOWN") {
            return Err(Failure::invalid(format!(
                "{name} is too large for {}: it takes files up to 16 MiB, this one has {}",
                self.address,
                bytes(size)
            ))
            .hint("split the file, for example with: split -b 15M"));
        }
        Err(refused(name, self.address, &answer))
    }

    /// Sends the contents, in chunks or as they are, and gives their hash.
    async fn contents(&mut self, source: Source, chunks: bool) -> Result<Vec<u8>, Failure> {
        let (pieces, mut next) = mpsc::channel::<Vec<u8>>(READ_AHEAD);
        let (give_back, used) = std::sync::mpsc::sync_channel(READ_AHEAD);
        let reading = tokio::task::spawn_blocking(move || source.read(pieces, used));
        while let Some(mut piece) = next.recv().await {
            let len = piece.len() - HEADER_LEN;
            if chunks {
                let header = FrameHeader { kind: Kind::FileChunk, len }.encode();
                piece[..HEADER_LEN].copy_from_slice(&header);
                self.write(&piece).await?;
            } else {
                self.write(&piece[HEADER_LEN..]).await?;
            }
            self.bar.inc(len as u64);
            // The reader takes a new buffer when this does not fit.
            let _ = give_back.try_send(piece);
        }
        reading.await.map_err(|e| Failure::internal("reading the file failed").reason(e))?
    }
}

/// The text of the next frame the peer sends.
pub(super) async fn read_answer(stream: &mut Stream, address: Address) -> Result<String, Failure> {
    let read = async {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let len = FrameHeader::decode(header).map_or(usize::MAX, |h| h.len);
        if len > MAX_ANSWER {
            let text = format!("its answer of {len} bytes is too long");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
        }
        let mut text = vec![0; len];
        stream.read_exact(&mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    match timeout(PATIENCE, read).await {
        Ok(answer) => answer.map_err(|e| peer::broken(address, "hearing from", &e)),
        Err(_) => Err(Failure::timeout(format!(
            "no answer from {address} within {} s",
            PATIENCE.as_secs()
        ))
        .hint(format!("check peer: pilotctl ping {address}"))),
    }
}

fn refused(name: &str, address: Address, answer: &str) -> Failure {
    Failure::connection(format!("{address} did not take {name}"))
        .reason(answer)
        .hint("check free space and limits at the peer")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
