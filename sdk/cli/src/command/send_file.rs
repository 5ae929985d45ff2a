//! `send-file`: sends a file to a peer's data exchange port.
//!
//! The file is offered with its SHA-256. A peer of ours takes it in chunks,
//! checks it, and can be given the rest after the connection broke; a published
//! one does not know the offer and gets one frame, if the file fits. The
//! exchange stands at [`pilot_wire::service::data_exchange`].

mod source;

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pilot_sdk::{Address, Stream};
use pilot_wire::service::data_exchange::{
    BeginAnswer, CHUNK_LEN, FileOffer, FrameHeader, HASH_LEN, HEADER_LEN, Have, Kind, MAX_PAYLOAD,
    file_prefix, hash_to_hex,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes};
use crate::spec::Spec;
use crate::{peer, progress};

use source::Source;

pub(crate) const SPEC: Spec = Spec {
    name: "send-file",
    usage: "send-file <address|hostname> <path>",
    about: "Send a file to a peer, and continue when the connection breaks",
    returns: "filename, bytes, destination, ack, sha256, seconds, mb_per_s, resumed (bytes that were there already)",
    flags: &[],
    positionals: (2, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

pub(super) use pilot_wire::service::data_exchange::PORT;

/// How long a peer may take to answer when it has everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to look for the reason when sending breaks off.
const REASON_PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// Chunks that are read ahead of the network.
const READ_AHEAD: usize = 4;
/// How often a broken connection is replaced without the peer having got at
/// least [`CHUNK_LEN`] bytes more; then the command fails.
const RETRIES: u32 = 5;
/// Pause before the first of them, doubled before each next.
const PAUSE: Duration = Duration::from_millis(500);

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let source = Source::open(Path::new(args.at(1)?))?;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let start = Instant::now();
    // Before the file is hashed: a peer that is away is told of at once.
    let stream = peer::dial(&client, address, PORT).await?;
    let hashing = progress::bar(&cx.out, &format!("hashing {}", source.name), source.size);
    let seen = hashing.clone();
    let hasher = source.hash(source.size, move |n| seen.inc(n)).await?;
    hashing.finish_and_clear();
    let hash: [u8; HASH_LEN] = hasher.finalize().into();
    let bar = progress::bar(&cx.out, &source.name, source.size);
    let sent = deliver(cx, address, stream, &source, hash, &bar).await;
    bar.finish_and_clear();
    let Sent { ack, resumed } = sent?;
    let seconds = start.elapsed().as_secs_f64();
    let Source { name, size, .. } = source;
    let rate = (size - resumed) as f64 / 1e6 / seconds.max(1e-9);
    let data = json!({
        "filename": name,
        "bytes": size,
        "destination": address,
        "ack": ack,
        "sha256": hash_to_hex(&hash),
        "seconds": seconds,
        "mb_per_s": rate,
        "resumed": resumed,
    });
    let before = match resumed {
        0 => String::new(),
        n => format!(", {} of them were there already", bytes(n)),
    };
    let text = format!(
        "sent {name} ({}) to {address} in {seconds:.2} s, {rate:.1} MB/s{before}\nsha256 {}",
        bytes(size),
        hash_to_hex(&hash)
    );
    Ok(Answer::new(data, text))
}

/// What became of a file that arrived.
struct Sent {
    ack: String,
    /// Bytes that an earlier run had brought there.
    resumed: u64,
}

/// Why an attempt ended without.
enum Trouble {
    /// Another attempt would end the same way.
    Final(Failure),
    /// The connection broke.
    Broken(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

/// Sends the file over `stream`, and over others when it breaks.
async fn deliver(
    cx: &Cx,
    address: Address,
    mut stream: Stream,
    source: &Source,
    hash: [u8; HASH_LEN],
    bar: &ProgressBar,
) -> Result<Sent, Failure> {
    let (mut tries, mut before, mut resumed) = (0, 0, None);
    loop {
        let mut attempt = Attempt { stream, address, source, hash, bar, at: 0, again: tries > 0 };
        let broken = match attempt.run().await {
            Ok(ack) => return Ok(Sent { ack, resumed: resumed.unwrap_or(attempt.at) }),
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Broken(failure)) => failure,
        };
        // What the first answer said, whatever this run has added since.
        let at = attempt.at;
        resumed.get_or_insert(at);
        if at >= before + CHUNK_LEN as u64 {
            tries = 0;
        }
        before = before.max(at);
        let mut failure = broken;
        stream = loop {
            if tries == RETRIES {
                return Err(failure.hint(format!(
                    "gave up after {RETRIES} tries; the same command continues where the peer is"
                )));
            }
            let pause = PAUSE * 2u32.pow(tries);
            tries += 1;
            let line = format!(
                "connection to {address} broke at {} of {}, trying again in {} s ({tries} of {RETRIES})",
                bytes(bar.position()),
                bytes(source.size),
                pause.as_secs_f64()
            );
            bar.suspend(|| cx.out.remark(&line));
            sleep(pause).await;
            // Through a new client: the daemon may have been restarted.
            let dialled = match cx.client().await {
                Ok(client) => peer::dial(&client, address, PORT).await,
                Err(failure) => Err(failure),
            };
            match dialled {
                Ok(stream) => break stream,
                Err(next) => failure = next,
            }
        };
    }
}

/// The file on its way over one stream.
struct Attempt<'a> {
    stream: Stream,
    address: Address,
    source: &'a Source,
    hash: [u8; HASH_LEN],
    bar: &'a ProgressBar,
    /// Where the peer said it was.
    at: u64,
    /// Not the first.
    again: bool,
}

impl Attempt<'_> {
    /// Gives the peer's last word.
    async fn run(&mut self) -> Result<String, Trouble> {
        let ack = match self.offer(true).await? {
            BeginAnswer::Accepted(have) => {
                let hasher = self.start(have).await?;
                let hash = self.contents(hasher, true).await?;
                self.check(hash)?;
                let header = FrameHeader { kind: Kind::FileEnd, len: HASH_LEN }.encode();
                self.write(&[&header[..], &hash].concat()).await?;
                self.answer().await?
            }
            BeginAnswer::Unknown => {
                // Nothing can be continued there, and a second attempt could
                // leave the file twice.
                let sent = self.one_frame().await;
                sent.map_err(|(Trouble::Final(f) | Trouble::Broken(f))| Trouble::Final(f))?
            }
            BeginAnswer::Refused(answer) => return Err(self.refused(&answer).into()),
        };
        if ack.starts_with("ACK") { Ok(ack) } else { Err(self.refused(&ack).into()) }
    }

    /// Offers the file and gives the answer.
    async fn offer(&mut self, resume: bool) -> Result<BeginAnswer, Trouble> {
        let offer = FileOffer {
            sha256: Some(hash_to_hex(&self.hash)),
            resume,
            retry: self.again,
            ..FileOffer::new(&*self.source.name, self.source.size)
        };
        let offer = serde_json::to_vec(&offer)
            .map_err(|e| Failure::internal("cannot describe the file").reason(e))?;
        let header = FrameHeader { kind: Kind::FileBegin, len: offer.len() }.encode();
        self.write(&[&header[..], &offer].concat()).await?;
        Ok(BeginAnswer::parse(&self.answer().await?))
    }

    /// Goes to where the peer is, if what it has is the beginning of this
    /// file, and gives the hash so far.
    async fn start(&mut self, have: Option<Have>) -> Result<Sha256, Trouble> {
        if let Some(have) = have
            && have.bytes <= self.source.size
        {
            let hasher = self.source.hash(have.bytes, |_| {}).await?;
            if <[u8; HASH_LEN]>::from(hasher.clone().finalize()) == have.sha256 {
                self.at = have.bytes;
                self.bar.set_position(have.bytes);
                return Ok(hasher);
            }
        }
        self.bar.set_position(0);
        if have.is_some() {
            // What is there is something else: another offer replaces it.
            match self.offer(false).await? {
                BeginAnswer::Accepted(None) => {}
                BeginAnswer::Refused(answer) => return Err(self.refused(&answer).into()),
                _ => {
                    return Err(Failure::connection(format!(
                        "{} does not take {} from the start",
                        self.address, self.source.name
                    ))
                    .into());
                }
            }
        }
        Ok(Sha256::new())
    }

    /// The published way: name and contents in one frame.
    async fn one_frame(&mut self) -> Result<String, Trouble> {
        let prefix = file_prefix(&self.source.name);
        let frame = prefix.len() as u64 + self.source.size;
        let len = usize::try_from(frame).ok().filter(|len| *len <= MAX_PAYLOAD);
        let Some(len) = len else {
            return Err(Failure::invalid(format!(
                "{} is too large for {}: it takes files up to 16 MiB, this one has {}",
                self.source.name,
                self.address,
                bytes(self.source.size)
            ))
            .hint("split the file, for example with: split -b 15M")
            .into());
        };
        let header = FrameHeader { kind: Kind::File, len }.encode();
        self.write(&[&header[..], &prefix].concat()).await?;
        let hash = self.contents(Sha256::new(), false).await?;
        self.check(hash)?;
        self.answer().await
    }

    /// Sends the contents from where the peer is, in chunks or as they are,
    /// and gives the hash of the whole.
    async fn contents(&mut self, hasher: Sha256, chunks: bool) -> Result<[u8; HASH_LEN], Trouble> {
        let (pieces, mut next) = mpsc::channel::<Vec<u8>>(READ_AHEAD);
        let (give_back, used) = std::sync::mpsc::sync_channel(READ_AHEAD);
        let (source, from) = (self.source.clone(), self.at);
        let reading =
            tokio::task::spawn_blocking(move || source.read(from, hasher, &pieces, &used));
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
        let hash = reading.await;
        Ok(hash.map_err(|e| Failure::internal("reading the file failed").reason(e))??)
    }

    /// The file must be what was offered.
    fn check(&self, hash: [u8; HASH_LEN]) -> Result<(), Failure> {
        if hash == self.hash { Ok(()) } else { Err(self.source.changed("changed")) }
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Trouble> {
        match self.stream.write_all(data).await {
            Ok(()) => Ok(()),
            Err(e) => Err(self.why(&e).await),
        }
    }

    /// A peer that gives up says why, and closes.
    async fn why(&mut self, error: &std::io::Error) -> Trouble {
        match timeout(REASON_PATIENCE, next_answer(&mut self.stream)).await {
            Ok(Ok(answer)) if !answer.starts_with("ACK") => Trouble::Final(self.refused(&answer)),
            _ => Trouble::Broken(peer::broken(self.address, "sending to", error)),
        }
    }

    async fn answer(&mut self) -> Result<String, Trouble> {
        match timeout(PATIENCE, next_answer(&mut self.stream)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(peer::broken(self.address, "hearing from", &e).into())
            }
            Ok(Err(e)) => Err(Trouble::Broken(peer::broken(self.address, "hearing from", &e))),
            Err(_) => Err(silent(self.address).into()),
        }
    }

    fn refused(&self, answer: &str) -> Failure {
        Failure::connection(format!("{} did not take {}", self.address, self.source.name))
            .reason(answer)
            .hint("check free space and limits at the peer")
    }
}

/// The text of the next frame the peer sends.
pub(super) async fn read_answer(stream: &mut Stream, address: Address) -> Result<String, Failure> {
    match timeout(PATIENCE, next_answer(stream)).await {
        Ok(answer) => answer.map_err(|e| peer::broken(address, "hearing from", &e)),
        Err(_) => Err(silent(address)),
    }
}

async fn next_answer(stream: &mut Stream) -> std::io::Result<String> {
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
}

fn silent(address: Address) -> Failure {
    Failure::timeout(format!("no answer from {address} within {} s", PATIENCE.as_secs()))
        .hint(format!("check peer: pilotctl ping {address}"))
}
