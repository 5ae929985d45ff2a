//! Frames between a host and its child: length (4, big-endian, of what follows
//! it), kind (1), number (8), body. Numbers name streams, questions and tokens.
//! Both ends are of one build, which the child checks (`talk::BUILD`).

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest body: a batch of events or an answer, with room.
const MAX_BODY: usize = 32 << 20;
/// Kind and number.
const HEAD: usize = 9;
/// Bytes of a stream that may be under way in one direction.
pub(super) const WINDOW: usize = 512 << 10;
/// Longest piece of stream data in one frame.
pub(super) const PIECE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the child, first: what to load and how.
    Load = 1,
    /// From the child: its manifest.
    Manifest,
    /// To the child: make the instance.
    Start,
    /// From the child: it runs, or why not.
    Started,
    /// To the child: a stream came in.
    Open,
    /// Bytes of a stream.
    Data,
    /// The sender will send no more on a stream.
    End,
    /// The stream broke, or is to be broken.
    Reset,
    /// From the child: the plugin let go of a stream.
    Close,
    /// So many bytes more may be sent on a stream.
    Credit,
    /// A datagram, in or out: head and data.
    Datagram,
    /// To the child: a question to a join rule.
    Validate,
    /// From the child: its answer.
    Verdict,
    /// To the child: a batch for a sink; head and lines.
    Deliver,
    /// From the child: how it went.
    Delivery,
    /// To the child: no new streams; the time until the end.
    Drain,
    /// From the child: a question to the platform.
    Call,
    /// From the child: open a stream to the name in the body.
    Dial,
    /// To the child: the answer to either, or to a store request; head and
    /// data.
    Answer,
    /// From the child: an event.
    Emit,
    /// From the child: a line for the log.
    Log,
    /// From the child: a request to the store; head and value.
    Store,
    /// From the child: something went wrong.
    Incident,
    /// From the child, every second: how it stands.
    Stats,
}

const KINDS: [Kind; 24] = [
    Kind::Load,
    Kind::Manifest,
    Kind::Start,
    Kind::Started,
    Kind::Open,
    Kind::Data,
    Kind::End,
    Kind::Reset,
    Kind::Close,
    Kind::Credit,
    Kind::Datagram,
    Kind::Validate,
    Kind::Verdict,
    Kind::Deliver,
    Kind::Delivery,
    Kind::Drain,
    Kind::Call,
    Kind::Dial,
    Kind::Answer,
    Kind::Emit,
    Kind::Log,
    Kind::Store,
    Kind::Incident,
    Kind::Stats,
];

#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) body: Bytes,
}

impl Frame {
    pub(super) fn new(kind: Kind, id: u64, body: impl Into<Bytes>) -> Self {
        Self { kind, id, body: body.into() }
    }

    pub(super) fn json(kind: Kind, id: u64, body: &impl Serialize) -> Self {
        // Our own types; none has a key that is no text.
        Self::new(kind, id, serde_json::to_vec(body).unwrap_or_default())
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|e| broken(&format!("a {:?} frame is not valid: {e}", self.kind)))
    }

    /// A JSON head with data behind it.
    pub(super) fn with_data(kind: Kind, id: u64, head: &impl Serialize, data: &[u8]) -> Self {
        let head = serde_json::to_vec(head).unwrap_or_default();
        let len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let mut body = Vec::with_capacity(4 + head.len() + data.len());
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(&head);
        body.extend_from_slice(data);
        Self::new(kind, id, body)
    }

    /// The parts of [`Frame::with_data`].
    pub(super) fn parse_with_data<T: DeserializeOwned>(&self) -> io::Result<(T, Bytes)> {
        let short = || broken(&format!("a {:?} frame is too short", self.kind));
        let (len, rest) = self.body.split_first_chunk::<4>().ok_or_else(short)?;
        let len = u32::from_be_bytes(*len) as usize;
        let head = rest.get(..len).ok_or_else(short)?;
        let head = serde_json::from_slice(head).map_err(|e| broken(&e.to_string()))?;
        Ok((head, self.body.slice(4 + len..)))
    }
}

pub(super) fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

/// The next frame; `None` when the other side has closed.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let len = match from.read_u32().await {
        Ok(len) => len as usize,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(body_len) = len.checked_sub(HEAD).filter(|len| *len <= MAX_BODY) else {
        return Err(broken(&format!("a frame says that it has {len} bytes")));
    };
    let kind = from.read_u8().await?;
    let kind = usize::from(kind).checked_sub(1).and_then(|index| KINDS.get(index));
    let kind = *kind.ok_or_else(|| broken("a frame of an unknown kind"))?;
    let id = from.read_u64().await?;
    let mut body = vec![0; body_len];
    from.read_exact(&mut body).await?;
    Ok(Some(Frame { kind, id, body: body.into() }))
}

/// Writes a frame; the caller flushes.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let len = u32::try_from(HEAD + frame.body.len()).unwrap_or(u32::MAX);
    to.write_u32(len).await?;
    to.write_u8(frame.kind as u8).await?;
    to.write_u64(frame.id).await?;
    to.write_all(&frame.body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_as_they_were() {
        for (index, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, index + 1);
            let mut bytes = Vec::new();
            write(&mut bytes, &Frame::new(kind, 7 << 40, "body")).await.unwrap();
            let frame = read(&mut bytes.as_slice()).await.unwrap().unwrap();
            assert_eq!((frame.kind, frame.id, &frame.body[..]), (kind, 7 << 40, &b"body"[..]));
        }
        assert!(read(&mut [].as_slice()).await.unwrap().is_none());
        assert!(read(&mut [0u8, 0, 0, 3, 1].as_slice()).await.is_err());
        assert!(read(&mut [255u8; 20].as_slice()).await.is_err());
    }
}
