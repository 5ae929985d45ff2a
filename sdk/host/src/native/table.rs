//! The functions that an instance calls. Each checks what it is given, and
//! does nothing on the wrong thread.

#![expect(unsafe_code, reason = "reads what a plugin passes by pointer")]

use std::ffi::c_void;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Weak;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use pilot_plugin::abi::{
    self, ABI_MAJOR, ABI_MINOR, PilotBuffer, PilotContext, PilotHost, PilotSlice,
};
use serde_json::{Map, Value};

use super::library::User;
use super::local::{Local, Outcome, current};
use super::shared::{Asked, Shared};
use crate::instance::{Failure, StoreError};
use crate::platform::CallError;
use crate::stream::BoxStream;

/// Longest text taken from a plugin: a log line, a reason, a name.
const MAX_TEXT: usize = 64 << 10;
/// Longest request, answer or event taken from a plugin.
const MAX_JSON: usize = 16 << 20;
/// Metrics of one plugin.
const MAX_METRICS: usize = 256;

/// What [`PilotContext`] points to. Never freed, so that a plugin may use it
/// at any time; small, and one per instance.
struct Inner {
    shared: Weak<Shared>,
}

/// A context for a new instance.
pub(super) fn context(shared: Weak<Shared>) -> *const PilotContext {
    std::ptr::from_ref(Box::leak(Box::new(Inner { shared }))).cast()
}

/// The table that every instance gets.
pub(super) static HOST: PilotHost = PilotHost {
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    #[expect(clippy::cast_possible_truncation, reason = "a few hundred bytes")]
    struct_size: size_of::<PilotHost>() as u32,
    log,
    wake,
    timer,
    stream_read,
    stream_write,
    stream_write_buffer,
    stream_shutdown,
    stream_close,
    stream_reset,
    dial,
    stream_attach,
    call,
    send_datagram,
    emit,
    metric,
    store_get,
    store_put,
    store_delete,
    store_keys,
    reply,
};

unsafe extern "C" fn log(context: *const PilotContext, level: u32, message: PilotSlice) {
    guard(|| {
        // SAFETY: `context` is one of ours, which are never freed.
        let Some(inner) = (unsafe { context.cast::<Inner>().as_ref() }) else {
            return abi::INVALID;
        };
        let Some(shared) = inner.shared.upgrade() else { return abi::INVALID };
        // SAFETY: valid during the call. The same holds for all slices below.
        let Some(message) = (unsafe { lossy(message) }) else { return abi::INVALID };
        if let Some(local) = current(context) {
            if level == abi::LOG_ERROR {
                local.last_line.borrow_mut().clone_from(&message);
            }
            if !local.may_log() {
                return abi::LIMIT;
            }
        }
        let plugin = &*shared.context.name;
        match level {
            abi::LOG_ERROR => tracing::error!(plugin, "{message}"),
            abi::LOG_WARN => tracing::warn!(plugin, "{message}"),
            abi::LOG_INFO => tracing::info!(plugin, "{message}"),
            _ => tracing::debug!(plugin, "{message}"),
        }
        abi::OK
    });
}

unsafe extern "C" fn wake(context: *const PilotContext, token: u64) {
    guard(|| {
        // SAFETY: `context` is one of ours, which are never freed.
        let inner = unsafe { context.cast::<Inner>().as_ref() };
        if let Some(shared) = inner.and_then(|inner| inner.shared.upgrade()) {
            shared.queue.wake(token);
        }
        abi::OK
    });
}

unsafe extern "C" fn timer(context: *const PilotContext, token: u64, nanos: u64) -> i32 {
    local(context, |local| {
        let after = (nanos != u64::MAX).then(|| Duration::from_nanos(nanos));
        if local.set_timer(token, after) { abi::OK } else { abi::LIMIT }
    })
}

unsafe extern "C" fn stream_read(
    context: *const PilotContext,
    stream: u64,
    data: *mut PilotBuffer,
) -> i32 {
    local(context, |local| {
        if data.is_null() {
            return abi::INVALID;
        }
        let read = local.with_stream(stream, |stream, cell| {
            stream.poll_read(&mut TaskContext::from_waker(&cell.reader))
        });
        match read {
            None => abi::INVALID,
            Some(Poll::Pending) => abi::WOULD_BLOCK,
            Some(Poll::Ready(Ok(None))) => abi::END,
            Some(Poll::Ready(Err(_))) => abi::CLOSED,
            Some(Poll::Ready(Ok(Some(bytes)))) => {
                // SAFETY: the plugin gives room for a buffer.
                unsafe { data.write(lend(bytes)) };
                abi::OK
            }
        }
    })
}

unsafe extern "C" fn stream_write(
    context: *const PilotContext,
    stream: u64,
    data: PilotSlice,
    written: *mut usize,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(data) = (unsafe { bytes(data, usize::MAX) }) else { return abi::INVALID };
        if written.is_null() {
            return abi::INVALID;
        }
        let wrote = local.with_stream(stream, |stream, cell| {
            let room = stream.poll_room(&mut TaskContext::from_waker(&cell.writer));
            room.map_ok(|room| {
                let n = room.min(data.len());
                stream.write(Bytes::copy_from_slice(&data[..n]));
                n
            })
        });
        match state(wrote) {
            Ok(n) => {
                // SAFETY: the plugin gives room for a number.
                unsafe { written.write(n) };
                abi::OK
            }
            Err(status) => status,
        }
    })
}

unsafe extern "C" fn stream_write_buffer(
    context: *const PilotContext,
    stream: u64,
    data: *mut PilotBuffer,
) -> i32 {
    local(context, |local| {
        // SAFETY: the plugin passes a buffer of its own.
        let Some(buffer) = (unsafe { data.as_mut() }) else { return abi::INVALID };
        if !valid(buffer.data, buffer.len) {
            return abi::INVALID;
        }
        let wrote = local.with_stream(stream, |stream, cell| {
            let room = stream.poll_room(&mut TaskContext::from_waker(&cell.writer));
            room.map_ok(|_| {
                let taken = std::mem::replace(buffer, PilotBuffer::EMPTY);
                if taken.len == 0 {
                    drop(Foreign(taken));
                } else {
                    stream.write(take(taken));
                }
            })
        });
        state(wrote).err().unwrap_or(abi::OK)
    })
}

unsafe extern "C" fn stream_shutdown(context: *const PilotContext, stream: u64) -> i32 {
    local(context, |local| {
        let shut = local.with_stream(stream, |stream, _| stream.shutdown());
        if shut.is_some() { abi::OK } else { abi::INVALID }
    })
}

unsafe extern "C" fn stream_close(context: *const PilotContext, stream: u64) -> i32 {
    local(context, |local| {
        // Dropped, it closes after what was written.
        let closed = local.remove_stream(stream);
        if closed.is_some() { abi::OK } else { abi::INVALID }
    })
}

unsafe extern "C" fn stream_reset(
    context: *const PilotContext,
    stream: u64,
    reason: PilotSlice,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(reason) = (unsafe { lossy(reason) }) else { return abi::INVALID };
        let Some((stream, _)) = local.remove_stream(stream) else { return abi::INVALID };
        reset(local, stream, &reason);
        abi::OK
    })
}

/// Resets a stream for a reason that the operator should see.
pub(super) fn reset(local: &Local, mut stream: BoxStream, reason: &str) {
    local.shared.failed(&format!("stream of {}: {reason}", stream.remote()));
    stream.reset(reason);
}

unsafe extern "C" fn dial(context: *const PilotContext, token: u64, to: PilotSlice) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(to) = (unsafe { text(to, MAX_TEXT) }) else { return abi::INVALID };
        if !granted(local, "dial") {
            return abi::DENIED;
        }
        let dialled = local.shared.context.platform.dial(to);
        let future = Box::pin(async move {
            match dialled.await {
                Ok(stream) => Outcome::Stream(stream),
                Err(why) => Outcome::Answer { status: abi::ERROR, body: why },
            }
        });
        if local.pend(token, future) { abi::OK } else { abi::LIMIT }
    })
}

unsafe extern "C" fn stream_attach(
    context: *const PilotContext,
    stream: u64,
    user: *mut c_void,
) -> i32 {
    local(context, |local| if local.attach(stream, User(user)) { abi::OK } else { abi::INVALID })
}

unsafe extern "C" fn call(
    context: *const PilotContext,
    token: u64,
    method: PilotSlice,
    request: PilotSlice,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let (method, request) = unsafe { (text(method, MAX_TEXT), text(request, MAX_JSON)) };
        let (Some(method), Some(request)) = (method, request) else { return abi::INVALID };
        let Ok(request) = serde_json::from_str::<Value>(request) else { return abi::INVALID };
        if !granted(local, method) {
            return abi::DENIED;
        }
        let called = local.shared.context.platform.call(method, request);
        let future = Box::pin(async move {
            match called.await {
                Ok(value) => Outcome::Answer { status: abi::OK, body: value.to_string() },
                Err(e @ CallError::Unknown(_)) => {
                    Outcome::Answer { status: abi::UNSUPPORTED, body: e.to_string() }
                }
                Err(CallError::Failed(why)) => Outcome::Answer { status: abi::ERROR, body: why },
            }
        });
        if local.pend(token, future) { abi::OK } else { abi::LIMIT }
    })
}

unsafe extern "C" fn send_datagram(
    context: *const PilotContext,
    to: PilotSlice,
    source_port: u16,
    data: PilotSlice,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let (to, data) = unsafe { (text(to, MAX_TEXT), bytes(data, usize::from(u16::MAX))) };
        let (Some(to), Some(data)) = (to.and_then(|to| to.parse().ok()), data) else {
            return abi::INVALID;
        };
        let data = Bytes::copy_from_slice(data);
        match local.shared.context.platform.send_datagram(to, source_port, data) {
            Ok(()) => abi::OK,
            Err(_) => abi::ERROR,
        }
    })
}

unsafe extern "C" fn emit(context: *const PilotContext, name: PilotSlice, data: PilotSlice) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let (name, data) = unsafe { (text(name, MAX_TEXT), text(data, MAX_JSON)) };
        let (Some(name), Some(data)) = (name, data) else { return abi::INVALID };
        let Ok(data) = serde_json::from_str::<Map<String, Value>>(data) else {
            return abi::INVALID;
        };
        if !local.may_emit() {
            return abi::LIMIT;
        }
        local.shared.context.platform.emit(name, data);
        abi::OK
    })
}

unsafe extern "C" fn metric(
    context: *const PilotContext,
    kind: u32,
    name: PilotSlice,
    value: f64,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(name) = (unsafe { text(name, MAX_TEXT) }) else { return abi::INVALID };
        let mut metrics = local.metrics.borrow_mut();
        if metrics.len() >= MAX_METRICS && !metrics.contains_key(name) {
            return abi::LIMIT;
        }
        let slot = metrics.entry(name.to_owned()).or_default();
        match kind {
            abi::METRIC_COUNTER => *slot += value,
            abi::METRIC_GAUGE => *slot = value,
            _ => return abi::UNSUPPORTED,
        }
        abi::OK
    })
}

unsafe extern "C" fn store_get(
    context: *const PilotContext,
    key: PilotSlice,
    value: *mut PilotBuffer,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(key) = (unsafe { text(key, MAX_TEXT) }) else { return abi::INVALID };
        match local.shared.context.store.get(key) {
            Ok(None) => abi::NOT_FOUND,
            // SAFETY: the plugin gives room for a buffer, or null.
            Ok(Some(found)) => unsafe { give(value, found) },
            Err(e) => refused(local, &e),
        }
    })
}

unsafe extern "C" fn store_put(
    context: *const PilotContext,
    key: PilotSlice,
    value: PilotSlice,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let (key, value) = unsafe { (text(key, MAX_TEXT), bytes(value, MAX_JSON)) };
        let (Some(key), Some(value)) = (key, value) else { return abi::INVALID };
        let put = local.shared.context.store.put(key, value);
        put.map_or_else(|e| refused(local, &e), |()| abi::OK)
    })
}

unsafe extern "C" fn store_delete(context: *const PilotContext, key: PilotSlice) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(key) = (unsafe { text(key, MAX_TEXT) }) else { return abi::INVALID };
        let deleted = local.shared.context.store.delete(key);
        deleted.map_or_else(|e| refused(local, &e), |()| abi::OK)
    })
}

unsafe extern "C" fn store_keys(
    context: *const PilotContext,
    prefix: PilotSlice,
    keys: *mut PilotBuffer,
) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(prefix) = (unsafe { text(prefix, MAX_TEXT) }) else { return abi::INVALID };
        match local.shared.context.store.keys(prefix) {
            // SAFETY: the plugin gives room for a buffer, or null.
            Ok(found) => unsafe { give(keys, Value::from(found).to_string().into_bytes()) },
            Err(e) => refused(local, &e),
        }
    })
}

unsafe extern "C" fn reply(context: *const PilotContext, question: u64, body: PilotSlice) -> i32 {
    local(context, |local| {
        // SAFETY: see `log`.
        let Some(body) = (unsafe { text(body, MAX_JSON) }) else { return abi::INVALID };
        let Some(asked) = local.shared.take_question(question) else { return abi::INVALID };
        answer(&local.shared, asked, body);
        abi::OK
    })
}

/// Passes an answer on; what is not one is a failure.
fn answer(shared: &Shared, asked: Asked, body: &str) {
    let note = |failure: &Failure| shared.failed(&failure.to_string());
    // Nobody may wait any more.
    match asked {
        Asked::Verdict(sender) => {
            drop(sender.send(parse(body, "verdict").inspect_err(note)));
        }
        Asked::Delivery(sender) => {
            drop(sender.send(parse(body, "delivery").inspect_err(note)));
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &str, what: &str) -> Result<T, Failure> {
    serde_json::from_str(body).map_err(|e| {
        let value = serde_json::from_str::<Value>(body).unwrap_or_default();
        Failure::Failed(match value.get("error").and_then(Value::as_str) {
            Some(error) => error.to_owned(),
            None => format!("the answer is not a {what}: {e}"),
        })
    })
}

fn granted(local: &Local, what: &str) -> bool {
    local.shared.context.granted.iter().any(|granted| granted == what || granted == "*")
}

fn refused(local: &Local, error: &StoreError) -> i32 {
    local.shared.note_error(&error.to_string());
    match error {
        StoreError::Quota { .. } => abi::LIMIT,
        StoreError::Key(_) => abi::INVALID,
        StoreError::Disk(_) => abi::ERROR,
    }
}

/// What a stream said, as a status.
fn state<T>(polled: Option<Poll<io::Result<T>>>) -> Result<T, i32> {
    match polled {
        None => Err(abi::INVALID),
        Some(Poll::Pending) => Err(abi::WOULD_BLOCK),
        Some(Poll::Ready(Err(_))) => Err(abi::CLOSED),
        Some(Poll::Ready(Ok(value))) => Ok(value),
    }
}

/// Calls `f` with the instance, on its own thread only.
fn local(context: *const PilotContext, f: impl FnOnce(&Rc<Local>) -> i32) -> i32 {
    guard(|| match current(context) {
        Some(local) if !local.shared.is_abandoned() => f(&local),
        _ => abi::INVALID,
    })
}

/// A panic of ours must not cross into the plugin.
fn guard(f: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(abi::ERROR)
}

/// Whether this can be a slice at all.
fn valid(data: *const u8, len: usize) -> bool {
    len == 0 || (!data.is_null() && isize::try_from(len).is_ok())
}

/// # Safety
/// A slice that a plugin passes is valid during the call.
unsafe fn bytes<'a>(slice: PilotSlice, max: usize) -> Option<&'a [u8]> {
    if slice.len > max || !valid(slice.data, slice.len) {
        return None;
    }
    if slice.len == 0 {
        return Some(&[]);
    }
    // SAFETY: as promised.
    Some(unsafe { std::slice::from_raw_parts(slice.data, slice.len) })
}

/// # Safety
/// As for [`bytes`].
unsafe fn text<'a>(slice: PilotSlice, max: usize) -> Option<&'a str> {
    // SAFETY: as promised.
    std::str::from_utf8(unsafe { bytes(slice, max) }?).ok()
}

/// Text for a person: cut when it is long, and made valid.
///
/// # Safety
/// As for [`bytes`].
unsafe fn lossy(slice: PilotSlice) -> Option<String> {
    // SAFETY: as promised.
    let text = unsafe { bytes(slice, usize::MAX) }?;
    Some(String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT)]).into_owned())
}

/// # Safety
/// `out` is null or room for a buffer.
unsafe fn give(out: *mut PilotBuffer, value: Vec<u8>) -> i32 {
    if out.is_null() {
        return abi::INVALID;
    }
    // SAFETY: as promised.
    unsafe { out.write(lend(Bytes::from(value))) };
    abi::OK
}

/// Bytes of ours as a buffer for a plugin.
fn lend(bytes: Bytes) -> PilotBuffer {
    let (data, len) = (bytes.as_ptr(), bytes.len());
    let owner = Box::into_raw(Box::new(bytes)).cast();
    PilotBuffer { data, len, owner, release: Some(release) }
}

/// The release of [`lend`]'s buffers.
unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: made by `lend`, and released once.
    drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
}

/// A plugin's buffer as bytes of ours. One that was ours before costs nothing.
fn take(buffer: PilotBuffer) -> Bytes {
    let ours = buffer
        .release
        .is_some_and(|f| std::ptr::fn_addr_eq(f, release as unsafe extern "C" fn(*mut c_void)));
    if !ours {
        return Bytes::from_owner(Foreign(buffer));
    }
    // SAFETY: made by `lend`, and taken instead of released.
    let bytes = *unsafe { Box::from_raw(buffer.owner.cast::<Bytes>()) };
    let start = bytes.as_ptr().addr();
    let at = buffer.data.addr().wrapping_sub(start);
    // The plugin may have narrowed it, and nothing else.
    match at.checked_add(buffer.len) {
        Some(end) if end <= bytes.len() => bytes.slice(at..end),
        _ => Bytes::new(),
    }
}

/// A buffer that belongs to a plugin.
struct Foreign(PilotBuffer);

// SAFETY: the ABI lets any thread read and release a buffer.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl AsRef<[u8]> for Foreign {
    fn as_ref(&self) -> &[u8] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: the ABI: `len` bytes at `data` are readable until `release`.
        unsafe { std::slice::from_raw_parts(self.0.data, self.0.len) }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(release) = self.0.release.take() {
            // SAFETY: held here, and released once.
            unsafe { release(self.0.owner) };
        }
    }
}
