//! `/api/v1/events`: events as they happen, a line of JSON each, or as
//! server-sent events for who asks for them. An empty line, or a comment, every
//! [`BEAT`] shows that the connection lives.
//!
//! Bounds: as many listeners as the site has places for; a listener that is too
//! far behind is told so and the answer ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use hyper::StatusCode;
use hyper::body::{Body, Frame};
use hyper::header::{ACCEPT, HeaderMap};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};

use super::Site;
use super::answer::{Answer, Problem, of};

/// Time after which a sign of life is sent.
const BEAT: Duration = Duration::from_secs(15);
/// Pieces on their way to a listener's connection.
const PIECES: usize = 4;
/// Events in one piece.
const EVENTS: usize = 256;

/// An answer that goes on.
#[derive(Debug)]
pub(super) struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug)]
enum Form {
    Lines,
    ServerSent,
}

impl Form {
    fn append(self, out: &mut Vec<u8>, event: &[u8]) {
        match self {
            Self::Lines => {
                out.extend_from_slice(event);
                out.push(b'\n');
            }
            Self::ServerSent => {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(event);
                out.extend_from_slice(b"\n\n");
            }
        }
    }

    const fn beat(self) -> &'static [u8] {
        match self {
            Self::Lines => b"\n",
            Self::ServerSent => b":\n\n",
        }
    }
}

/// Begins to tell events.
pub(super) fn events(site: &Site, headers: &HeaderMap) -> Result<Answer, Problem> {
    let Ok(place) = Arc::clone(&site.listeners).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_listeners",
            format!("{} listen to live events already", super::LISTENERS),
            "end one of them, or read events from a sink",
        ));
    };
    let wanted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let form = match wanted.contains("text/event-stream") {
        true => Form::ServerSent,
        false => Form::Lines,
    };
    let mut heard = site.service.events().live().listen();
    let (pieces, answered) = mpsc::channel(PIECES);
    let metrics = Arc::clone(site.service.metrics());
    let mut stop = site.stop.clone();
    tokio::spawn(async move {
        let _place = place;
        // The head of the answer leaves with the first piece.
        let mut piece = form.beat().to_vec();
        loop {
            if pieces.send(piece.into()).await.is_err() {
                return;
            }
            piece = Vec::new();
            let next = tokio::select! {
                next = tokio::time::timeout(BEAT, heard.recv()) => next,
                () = pieces.closed() => return,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let lost = match next {
                Err(_) => {
                    piece.extend_from_slice(form.beat());
                    None
                }
                Ok(Ok(event)) => {
                    form.append(&mut piece, &event);
                    gather(&mut heard, form, &mut piece)
                }
                Ok(Err(RecvError::Lagged(lost))) => Some(lost),
                Ok(Err(RecvError::Closed)) => return,
            };
            if let Some(lost) = lost {
                metrics.admin.slow.fetch_add(1, Relaxed);
                let note = format!(
                    "{{\"error\":\"too slow: {lost} events are not told, and this is the end\",\
                     \"lost\":{lost}}}"
                );
                form.append(&mut piece, note.as_bytes());
                // Whoever is gone needs no note.
                let _ = pieces.send(piece.into()).await;
                return;
            }
        }
    });
    let kind = match form {
        Form::Lines => "application/x-ndjson",
        Form::ServerSent => "text/event-stream",
    };
    Ok(of(kind, Either::Right(Stream(answered))))
}

/// Appends what waits, up to a piece; how many were lost, if any.
fn gather(heard: &mut broadcast::Receiver<Bytes>, form: Form, piece: &mut Vec<u8>) -> Option<u64> {
    for _ in 1..EVENTS {
        match heard.try_recv() {
            Ok(event) => form.append(piece, &event),
            Err(TryRecvError::Lagged(lost)) => return Some(lost),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    None
}
