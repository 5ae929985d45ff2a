//! Port 1001: files and messages from peers, kept in the data folder
//! (protocol page "Services", section 5).
//!
//! Files go to `received/` as they arrive, through a temporary name, and get
//! theirs only when they are whole; messages go to `inbox/` as JSON. Nothing
//! is ever overwritten. File work is done on tokio's blocking threads.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes};
use pilot_wire::service::data_exchange::{FileOffer, FrameHeader, HEADER_LEN, Kind};
use pilot_wire::{Address, SocketAddress};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::save::{self, Incoming, Quota, SaveError};
use super::stamp::Stamp;
use super::{LocalStream, Service};

/// The port of the data exchange service.
const PORT: u16 = 1001;
/// Longest JSON of a file offer.
const MAX_OFFER: usize = 64 << 10;
/// Bytes of SHA-256.
const HASH_LEN: usize = 32;
/// Bytes of messages held in memory at once, all peers together, until they
/// are saved; a peer beyond it waits. Files are not held.
const MESSAGE_MEMORY: usize = 64 << 20;
/// A message must be whole within this time, so that nobody holds the memory
/// for ever: 16 MiB at half a megabit a second.
const MESSAGE_TIME: Duration = Duration::from_secs(300);

/// What data exchange may use.
#[derive(Clone, Copy, Debug, Default)]
pub struct DataExchangeLimits {
    /// Bytes that saved files and messages may take in all, those of earlier
    /// runs included; what would exceed it is refused with an answer. No limit
    /// by default: then the file system is the limit.
    pub max_bytes: Option<u64>,
}

/// The data exchange service. Clones share their limits.
#[derive(Clone)]
pub struct DataExchange {
    shared: Arc<Shared>,
}

struct Shared {
    received: PathBuf,
    inbox: PathBuf,
    quota: Arc<Quota>,
    message_memory: Semaphore,
}

impl DataExchange {
    /// Keeps what comes below the folder `data`. Unfinished files of an
    /// earlier run are removed.
    pub fn new(data: &Path, limits: DataExchangeLimits) -> Self {
        let (received, inbox) = (data.join("received"), data.join("inbox"));
        save::remove_unfinished(&received);
        save::remove_unfinished(&inbox);
        let quota = Quota::new(limits.max_bytes, vec![received.clone(), inbox.clone()]);
        Self {
            shared: Arc::new(Shared {
                received,
                inbox,
                quota,
                message_memory: Semaphore::new(MESSAGE_MEMORY),
            }),
        }
    }
}

impl Service for DataExchange {
    fn name(&self) -> &'static str {
        "data exchange"
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: LocalStream) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
        let from = stream.remote();
        let session = Session {
            shared: Arc::clone(&self.shared),
            input: Input { stream, rest: Bytes::new() },
            from,
            offered: None,
        };
        Box::pin(session.run())
    }
}

/// A file offered in frames of our own, on its way.
struct Offered {
    name: String,
    size: u64,
    state: Result<Incoming, SaveError>,
}

/// One stream from a peer. Holds at most two batches of a file or one message.
struct Session {
    shared: Arc<Shared>,
    input: Input,
    from: SocketAddress,
    offered: Option<Offered>,
}

impl Session {
    async fn run(mut self) -> io::Result<()> {
        while let Some(header) = self.input.header().await? {
            let answer = match header.kind {
                Kind::Text | Kind::Binary | Kind::Json => Some(self.message(header).await?),
                Kind::File => Some(self.file(header.len).await?),
                Kind::FileBegin => Some(self.begin(header.len).await?),
                Kind::FileChunk => {
                    self.chunk(header.len).await?;
                    None
                }
                Kind::FileEnd => Some(self.end(header.len).await?),
                Kind::Unknown(_) => {
                    self.input.discard(header.len).await?;
                    Some(acknowledged(header.kind, header.len as u64))
                }
            };
            if let Some(answer) = answer {
                self.answer(&answer).await?;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, text: &str) -> io::Result<()> {
        let header = FrameHeader { kind: Kind::Text, len: text.len() }.encode();
        let frame: Vec<u8> = header.iter().chain(text.as_bytes()).copied().collect();
        self.input.stream.write_bytes(frame.into()).await
    }

    /// A published file frame: name and contents in one payload.
    async fn file(&mut self, len: usize) -> io::Result<String> {
        let Some((name, contents)) = self.file_name(len).await? else {
            return Ok(acknowledged(Kind::File, len as u64));
        };
        if name.is_empty() {
            self.input.discard(contents).await?;
            return Ok(acknowledged(Kind::File, contents as u64));
        }
        let mut state =
            Incoming::create(&self.shared.received, &self.shared.quota, contents as u64).await;
        self.save(&mut state, contents).await?;
        let placed = match state {
            Ok(incoming) => incoming.place(&name, None).await,
            Err(e) => Err(e),
        };
        Ok(self.told(&name, contents as u64, placed))
    }

    /// The name in a file frame of `len` bytes and the length of what follows
    /// it; `None`, with everything read, when there is no name.
    async fn file_name(&mut self, len: usize) -> io::Result<Option<(String, usize)>> {
        if len < 2 {
            self.input.discard(len).await?;
            return Ok(None);
        }
        let prefix = self.input.take(2).await?;
        let name_len = usize::from(u16::from_be_bytes([prefix[0], prefix[1]]));
        let Some(contents) = (len - 2).checked_sub(name_len) else {
            self.input.discard(len - 2).await?;
            return Ok(None);
        };
        let name = self.input.take(name_len).await?;
        Ok(Some((String::from_utf8_lossy(&name).into_owned(), contents)))
    }

    async fn begin(&mut self, len: usize) -> io::Result<String> {
        self.offered = None;
        if len > MAX_OFFER {
            self.input.discard(len).await?;
            let reason = format!("the offer has {len} bytes, the limit is {MAX_OFFER}");
            return Ok(refused(Kind::FileBegin, &reason));
        }
        let payload = self.input.take(len).await?;
        let offer: FileOffer = match serde_json::from_slice(&payload) {
            Ok(offer) => offer,
            Err(e) => return Ok(refused(Kind::FileBegin, &format!("the offer is not valid: {e}"))),
        };
        match Incoming::create(&self.shared.received, &self.shared.quota, offer.size).await {
            Ok(incoming) => {
                self.offered =
                    Some(Offered { name: offer.name, size: offer.size, state: Ok(incoming) });
                Ok(acknowledged(Kind::FileBegin, len as u64))
            }
            Err(e) => {
                warn!(from = %self.from, error = %e, "offered file refused");
                Ok(refused(Kind::FileBegin, &e.to_string()))
            }
        }
    }

    /// The next bytes of the offered file. Without one they are read and
    /// dropped; the end frame is then answered with an error.
    async fn chunk(&mut self, len: usize) -> io::Result<()> {
        let Some(mut offered) = self.offered.take() else { return self.input.discard(len).await };
        let read = self.save(&mut offered.state, len).await;
        self.offered = Some(offered);
        read
    }

    async fn end(&mut self, len: usize) -> io::Result<String> {
        if len != HASH_LEN {
            self.input.discard(len).await?;
            self.offered = None;
            let reason = format!("the end carries {len} bytes instead of a SHA-256 of {HASH_LEN}");
            return Ok(refused(Kind::File, &reason));
        }
        let hash = self.input.take(HASH_LEN).await?;
        let Some(offered) = self.offered.take() else {
            return Ok(refused(Kind::File, "no file was offered"));
        };
        let placed = match offered.state {
            Ok(incoming) => incoming.place(&offered.name, Some(&hash)).await,
            Err(e) => Err(e),
        };
        Ok(self.told(&offered.name, offered.size, placed))
    }

    /// Moves `len` bytes from the stream to the file. A failed file takes its
    /// bytes too: the stream stays in step.
    async fn save(
        &mut self,
        state: &mut Result<Incoming, SaveError>,
        mut len: usize,
    ) -> io::Result<()> {
        while len > 0 {
            let data = self.input.some(len).await?;
            len -= data.len();
            if let Ok(incoming) = state
                && let Err(e) = incoming.write(data).await
            {
                *state = Err(e);
            }
        }
        Ok(())
    }

    fn told(&self, name: &str, len: u64, placed: Result<PathBuf, SaveError>) -> String {
        match placed {
            Ok(path) => {
                info!(from = %self.from, bytes = len, path = %path.display(), "file received");
                acknowledged(Kind::File, len)
            }
            Err(e) => {
                warn!(from = %self.from, name, error = %e, "file not saved");
                refused(Kind::File, &e.to_string())
            }
        }
    }

    async fn message(&mut self, header: FrameHeader) -> io::Result<String> {
        let shared = Arc::clone(&self.shared);
        // The limit of a frame is below the limit of all, so this succeeds.
        let permits = u32::try_from(header.len).unwrap_or(u32::MAX);
        let _memory =
            shared.message_memory.acquire_many(permits).await.map_err(io::Error::other)?;
        let data = tokio::time::timeout(MESSAGE_TIME, self.input.take(header.len))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the message stalled"))??;
        let saved = self.save_message(header.kind, data).await;
        Ok(match saved {
            Ok(path) => {
                debug!(from = %self.from, path = %path.display(), "message received");
                acknowledged(header.kind, header.len as u64)
            }
            Err(e) => {
                warn!(from = %self.from, kind = %header.kind, error = %e, "message not saved");
                refused(header.kind, &e.to_string())
            }
        })
    }

    async fn save_message(&self, kind: Kind, data: Vec<u8>) -> Result<PathBuf, SaveError> {
        let (stamp, from) = (Stamp::now(), self.from.address);
        // Sixteen megabytes of text take longer than the loop may wait.
        let text = save::blocking(move || Ok(render(kind, &data, from, stamp))).await?;
        let mut incoming =
            Incoming::create(&self.shared.inbox, &self.shared.quota, text.len() as u64).await?;
        incoming.write(text).await?;
        incoming.place_at(kind.to_string(), stamp, ".json".to_owned(), None).await
    }
}

/// A message as it lies in the inbox.
fn render(kind: Kind, data: &[u8], from: Address, stamp: Stamp) -> Bytes {
    let mut message = serde_json::json!({
        "bytes": data.len(),
        "data": String::from_utf8_lossy(data),
        "from": from,
        "received_at": stamp.rfc3339(),
        "type": kind.to_string(),
    });
    if kind == Kind::Binary {
        // Binary data does not survive the text above.
        message["data_base64"] = BASE64.encode(data).into();
    }
    message.to_string().into()
}

fn acknowledged(kind: Kind, len: u64) -> String {
    format!("ACK {kind} {len} bytes")
}

fn refused(kind: Kind, reason: &str) -> String {
    format!("ERR {kind} save failed: {reason}")
}

/// The peer's bytes, in the pieces they came in.
struct Input {
    stream: LocalStream,
    rest: Bytes,
}

impl Input {
    /// The next frame's header; `None` when the peer ended between frames.
    async fn header(&mut self) -> io::Result<Option<FrameHeader>> {
        if self.rest.is_empty() {
            match self.stream.read_bytes().await? {
                Some(data) => self.rest = data,
                None => return Ok(None),
            }
        }
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&self.take(HEADER_LEN).await?);
        FrameHeader::decode(bytes)
            .map(Some)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// At least one byte and at most `max`, which is not 0.
    async fn some(&mut self, max: usize) -> io::Result<Bytes> {
        while self.rest.is_empty() {
            self.rest = self.stream.read_bytes().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        Ok(self.rest.split_to(max.min(self.rest.len())))
    }

    /// Exactly `len` bytes, in memory that grows as they come.
    async fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < len {
            let part = self.some(len - out.len()).await?;
            out.extend_from_slice(part.chunk());
        }
        Ok(out)
    }

    async fn discard(&mut self, mut len: usize) -> io::Result<()> {
        while len > 0 {
            len -= self.some(len).await?.len();
        }
        Ok(())
    }
}
