//! A stream as a script has it: what arrived and was not read yet, and the
//! operations that wait.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use mlua::{Error, Lua, LuaString, UserData, UserDataFields, UserDataMethods};

use super::guard::Guard;
use super::live::{Charge, Live, lock};
use crate::stream::BoxStream;

/// Bytes that `read` gives at the most unless told otherwise.
const READ: usize = 128 << 10;
/// Bytes that `read` gives at the most.
const MAX_READ: usize = 256 << 10;
/// A piece of this size is given as it came; smaller ones are put together.
const WHOLE: usize = 32 << 10;
/// Longest line of `read_line`.
const MAX_LINE: usize = 64 << 10;
/// Most bytes of `read_exactly`; they are outside of the machine until they
/// are all there.
const MAX_EXACT: usize = 4 << 20;
/// A stream may hold so much for the script also when all together hold more
/// than they may; then reading what is longer fails.
const ALWAYS: usize = 16 << 10;
/// Bytes that a piece takes beside its own.
const PIECE: usize = 64;
/// Bytes that are given to the stream in one piece.
const WRITE: usize = 256 << 10;

/// A result of the kind that Lua programs expect: a value, or nil and why.
type Outcome<T> = mlua::Result<(Option<T>, Option<String>)>;

fn refused<T>(reason: impl Into<String>) -> Outcome<T> {
    Ok((None, Some(reason.into())))
}

/// One stream.
pub(super) struct Link {
    state: Mutex<State>,
    guard: Arc<Guard>,
    port: u16,
    remote: String,
    /// A dialled stream is counted here.
    dialled: Option<Arc<Live>>,
}

#[derive(Default)]
struct State {
    /// None once it is closed.
    stream: Option<BoxStream>,
    arrived: Arrived,
    ended: bool,
    broken: Option<String>,
}

impl Link {
    /// A stream that came in.
    pub(super) fn accepted(stream: BoxStream, guard: &Arc<Guard>, live: &Live) -> Arc<Self> {
        Self::of(stream, guard, live, None)
    }

    /// A stream that the script dialled, and that was counted.
    pub(super) fn dialled(stream: BoxStream, guard: &Arc<Guard>, live: &Arc<Live>) -> Arc<Self> {
        Self::of(stream, guard, live, Some(Arc::clone(live)))
    }

    fn of(
        stream: BoxStream,
        guard: &Arc<Guard>,
        live: &Live,
        dialled: Option<Arc<Live>>,
    ) -> Arc<Self> {
        let arrived = Arrived { charge: Charge::of(&live.held), ..Arrived::default() };
        Arc::new(Self {
            guard: Arc::clone(guard),
            port: stream.local_port(),
            remote: stream.remote().to_string(),
            state: Mutex::new(State { stream: Some(stream), arrived, ..State::default() }),
            dialled,
        })
    }

    /// No stream; it makes the machine learn the methods of streams before a
    /// script can get in between.
    pub(super) fn closed(guard: &Arc<Guard>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            guard: Arc::clone(guard),
            port: 0,
            remote: String::new(),
            dialled: None,
        })
    }

    /// Lets go of the stream; what was written is delivered.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.stream = None;
        state.arrived = Arrived::default();
    }

    /// Breaks the stream.
    pub(super) fn reset(&self, reason: &str) {
        let mut state = self.state();
        if let Some(mut stream) = state.stream.take() {
            stream.reset(reason);
        }
        state.arrived = Arrived::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn read(&self, lua: &Lua, most: usize) -> Outcome<LuaString> {
        self.guard.breathe().await;
        let data: Result<Option<Bytes>, String> = poll_fn(|cx| {
            let mut state = self.state();
            if state.arrived.length == 0 && !ready!(state.poll_more(cx)?) {
                return Poll::Ready(Ok(None));
            }
            while state.arrived.length < most.min(WHOLE) {
                // An end or a break shows again at the next read.
                match state.poll_more(cx) {
                    Poll::Ready(Ok(true)) => {}
                    _ => break,
                }
            }
            Poll::Ready(Ok(Some(state.arrived.take(most))))
        })
        .await;
        match data {
            Ok(Some(data)) => Ok((Some(lua.create_string(data)?), None)),
            Ok(None) => Ok((None, None)),
            Err(reason) => refused::<LuaString>(reason),
        }
    }

    async fn read_line(&self, lua: &Lua) -> Outcome<LuaString> {
        self.guard.breathe().await;
        let line: Result<Option<Bytes>, String> = poll_fn(|cx| {
            let mut state = self.state();
            loop {
                if let Some(at) = state.arrived.newline() {
                    if at > MAX_LINE {
                        return Poll::Ready(Err(too_long()));
                    }
                    let mut line = state.arrived.take(at + 1);
                    line.truncate(at);
                    if line.last() == Some(&b'\r') {
                        line.truncate(at - 1);
                    }
                    return Poll::Ready(Ok(Some(line)));
                }
                if state.arrived.length > MAX_LINE {
                    return Poll::Ready(Err(too_long()));
                }
                if !ready!(state.poll_more(cx)?) {
                    let rest = state.arrived.length;
                    let rest = (rest > 0).then(|| state.arrived.take(rest));
                    return Poll::Ready(Ok(rest));
                }
            }
        })
        .await;
        match line {
            Ok(Some(line)) => Ok((Some(lua.create_string(line)?), None)),
            Ok(None) => Ok((None, None)),
            Err(reason) => refused::<LuaString>(reason),
        }
    }

    async fn read_exactly(&self, lua: &Lua, count: usize) -> Outcome<LuaString> {
        if count > MAX_EXACT {
            return Err(Error::runtime(format!(
                "read_exactly gives up to {MAX_EXACT} bytes; read what is longer in pieces"
            )));
        }
        self.guard.breathe().await;
        let data: Result<Bytes, String> = poll_fn(|cx| {
            let mut state = self.state();
            while state.arrived.length < count {
                if !ready!(state.poll_more(cx)?) {
                    let length = state.arrived.length;
                    return Poll::Ready(Err(format!(
                        "the stream ended after {length} of {count} bytes"
                    )));
                }
            }
            Poll::Ready(Ok(state.arrived.take(count)))
        })
        .await;
        match data {
            Ok(data) => Ok((Some(lua.create_string(data)?), None)),
            Err(reason) => refused::<LuaString>(reason),
        }
    }

    async fn write(&self, data: LuaString) -> Outcome<bool> {
        self.guard.breathe().await;
        let length = data.as_bytes().len();
        let mut at = 0;
        while at < length {
            let room = poll_fn(|cx| {
                let mut state = self.state();
                let Some(stream) = &mut state.stream else {
                    return Poll::Ready(Err("the stream is closed".to_owned()));
                };
                if ready!(stream.poll_room(cx)).map_err(|e| e.to_string())? == 0 {
                    // Room of nothing: asked again when others had their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let end = length.min(at + WRITE);
                stream.write(Bytes::copy_from_slice(&data.as_bytes()[at..end]));
                at = end;
                Poll::Ready(Ok(()))
            })
            .await;
            if let Err(reason) = room {
                return refused(reason);
            }
        }
        Ok((Some(true), None))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(live) = &self.dialled {
            live.dialled.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn too_long() -> String {
    format!("the line is longer than {MAX_LINE} bytes")
}

impl State {
    /// Waits for more to arrive; false at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, String>> {
        if let Some(reason) = &self.broken {
            return Poll::Ready(Err(reason.clone()));
        }
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err("the stream is closed".into()));
        };
        // What did not ask for much goes on, so that few cannot stop all.
        if self.arrived.length > ALWAYS
            && let Some(reason) = self.arrived.charge.exceeded()
        {
            return Poll::Ready(Err(reason));
        }
        loop {
            match ready!(stream.poll_read(cx)) {
                // Nothing is no end.
                Ok(Some(data)) if data.is_empty() => {}
                Ok(Some(data)) => {
                    self.arrived.push(data);
                    return Poll::Ready(Ok(true));
                }
                Ok(None) => {
                    self.ended = true;
                    return Poll::Ready(Ok(false));
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.broken = Some(reason.clone());
                    return Poll::Ready(Err(reason));
                }
            }
        }
    }
}

/// Bytes in the pieces in which they arrived.
#[derive(Default)]
struct Arrived {
    pieces: VecDeque<Bytes>,
    length: usize,
    /// So many bytes hold no line end.
    searched: usize,
    charge: Charge,
}

impl Arrived {
    fn push(&mut self, data: Bytes) {
        self.length += data.len();
        self.pieces.push_back(data);
        self.recharge();
    }

    fn recharge(&mut self) {
        self.charge.set(self.length + self.pieces.len() * PIECE);
    }

    /// The first `most` bytes, or what there is.
    fn take(&mut self, most: usize) -> Bytes {
        let wanted = most.min(self.length);
        self.length -= wanted;
        self.searched = self.searched.saturating_sub(wanted);
        let mut whole = BytesMut::new();
        let mut left = wanted;
        while let Some(piece) = self.pieces.front_mut() {
            if left == 0 {
                break;
            }
            let part = if piece.len() <= left {
                self.pieces.pop_front().unwrap_or_default()
            } else {
                piece.split_to(left)
            };
            left -= part.len();
            if part.len() == wanted {
                self.recharge();
                return part;
            }
            whole.extend_from_slice(&part);
        }
        self.recharge();
        whole.freeze()
    }

    /// Where the first line end is.
    fn newline(&mut self) -> Option<usize> {
        let mut before = 0;
        for piece in &self.pieces {
            let skip = self.searched.saturating_sub(before).min(piece.len());
            if let Some(at) = piece[skip..].iter().position(|b| *b == b'\n') {
                return Some(before + skip + at);
            }
            before += piece.len();
        }
        self.searched = self.length;
        None
    }
}

/// The userdata `stream`.
pub(super) struct StreamHandle(pub(super) Arc<Link>);

impl UserData for StreamHandle {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        fields.add_field_method_get("port", |_, this| Ok(this.0.port));
        fields.add_field_method_get("remote", |_, this| Ok(this.0.remote.clone()));
    }

    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("read", |lua, this, most: Option<usize>| {
            let link = Arc::clone(&this.0);
            async move {
                let most = most.unwrap_or(READ);
                if most == 0 {
                    return Err(Error::runtime("read(0) would read nothing; use 1 or more"));
                }
                link.read(&lua, most.min(MAX_READ)).await
            }
        });
        methods.add_async_method("read_line", |lua, this, ()| {
            let link = Arc::clone(&this.0);
            async move { link.read_line(&lua).await }
        });
        methods.add_async_method("read_exactly", |lua, this, count: usize| {
            let link = Arc::clone(&this.0);
            async move { link.read_exactly(&lua, count).await }
        });
        methods.add_async_method("write", |_, this, data: LuaString| {
            let link = Arc::clone(&this.0);
            async move { link.write(data).await }
        });
        methods.add_method("shutdown", |_, this, ()| {
            if let Some(stream) = &mut this.0.state().stream {
                stream.shutdown();
            }
            Ok(())
        });
        methods.add_method("close", |_, this, ()| {
            this.0.close();
            Ok(())
        });
        methods.add_method("reset", |_, this, reason: Option<String>| {
            this.0.reset(reason.as_deref().unwrap_or("reset by the script"));
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lua::live::Held;

    #[test]
    fn what_arrived_is_charged_until_it_is_read_or_dropped() {
        let held = Arc::new(Held::new(10_000));
        let arrived = || Arrived { charge: Charge::of(&held), ..Arrived::default() };
        let (mut one, mut two) = (arrived(), arrived());
        one.push(Bytes::from(vec![0; 6000]));
        assert!(one.charge.exceeded().is_none());
        two.push(Bytes::from(vec![0; 6000]));
        assert!(one.charge.exceeded().is_some() && two.charge.exceeded().is_some());
        assert_eq!(two.take(3000).len(), 3000);
        assert!(one.charge.exceeded().is_none());
        two.push(Bytes::from(vec![0; 3000]));
        assert!(two.charge.exceeded().is_some());
        drop(one);
        assert!(two.charge.exceeded().is_none());
    }
}
