//! The C ABI, version 1.0: the types and tables that cross between a plugin
//! and its host, and nothing else. `include/pilot_plugin.h` is generated from
//! this file.
//!
//! Both tables begin with the version and their own size. Within a major
//! version they only grow at the end: a reader looks at `struct_size` before it
//! uses a field that 1.0 did not have. Unknown codes and flags are ignored.
//!
//! Threads: the host calls a plugin instance on one thread of its own, one call
//! at a time. Functions of [`PilotHost`] are for that thread, except
//! [`PilotHost::wake`] and [`PilotHost::log`], which any thread may call at any
//! time, also after `stop`.
//!
//! Memory: a slice is valid during the call it is passed to. A buffer belongs
//! to who holds it, who gives it on or calls `release`. Streams, tokens and
//! questions are numbers: one that is not (or no longer) known is refused with
//! [`INVALID`] and does no harm.

use std::ffi::c_void;

/// Major version: tables of another one are refused.
pub const ABI_MAJOR: u16 = 1;
/// Minor version: what was added at the end of the tables.
pub const ABI_MINOR: u16 = 0;
/// Name of the one symbol that a plugin exports, a [`PilotEntry`].
pub const ENTRY_SYMBOL: &str = "pilot_plugin_v1";

/// It worked.
pub const OK: i32 = 0;
/// Nothing now; [`PilotPlugin::stream_ready`] or [`PilotPlugin::wake`] tells when.
pub const WOULD_BLOCK: i32 = 1;
/// The peer will send no more.
pub const END: i32 = 2;
/// It failed; an error text says why where there is room for one.
pub const ERROR: i32 = -1;
/// The stream is closed or broken.
pub const CLOSED: i32 = -2;
/// An argument makes no sense: an unknown number, text that is not UTF-8, a
/// call on the wrong thread.
pub const INVALID: i32 = -3;
/// A quota or bound is reached.
pub const LIMIT: i32 = -4;
/// The configuration does not grant it.
pub const DENIED: i32 = -5;
/// The callback panicked; the host replaces the instance.
pub const PANIC: i32 = -6;
/// This host or plugin does not do that.
pub const UNSUPPORTED: i32 = -7;
/// There is no such key.
pub const NOT_FOUND: i32 = -8;

/// The stream has data, or its end, to read.
pub const READABLE: u32 = 1;
/// The stream takes data again.
pub const WRITABLE: u32 = 2;
/// The stream is gone; its number is not valid after this call, which is the
/// last one for it.
pub const GONE: u32 = 4;

/// Levels of [`PilotHost::log`].
pub const LOG_ERROR: u32 = 1;
/// Something a person should look at.
pub const LOG_WARN: u32 = 2;
/// What happened.
pub const LOG_INFO: u32 = 3;
/// Details.
pub const LOG_DEBUG: u32 = 4;

/// Kinds of [`PilotHost::metric`]: adds to a counter.
pub const METRIC_COUNTER: u32 = 1;
/// Sets a gauge.
pub const METRIC_GAUGE: u32 = 2;

/// Bytes that are valid during a call. `data` may be null when `len` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PilotSlice {
    /// First byte.
    pub data: *const u8,
    /// Number of bytes.
    pub len: usize,
}

/// Bytes with an owner. Whoever holds it calls `release(owner)` once, if it is
/// set, on any thread; `data` and `len` may be narrowed before. `release` must
/// not wait for anything: it may run on the thread that moves all data.
#[repr(C)]
#[derive(Debug)]
pub struct PilotBuffer {
    /// First byte.
    pub data: *const u8,
    /// Number of bytes.
    pub len: usize,
    /// Passed to `release`.
    pub owner: *mut c_void,
    /// Frees what `owner` stands for.
    pub release: Option<unsafe extern "C" fn(owner: *mut c_void)>,
}

/// The host's side of an instance; opaque. It stays valid as long as the
/// process lives.
#[derive(Debug)]
pub struct PilotContext {
    _private: [u8; 0],
}

/// What a host gives to a plugin.
#[repr(C)]
#[derive(Debug)]
pub struct PilotHost {
    /// [`ABI_MAJOR`] of the host.
    pub abi_major: u16,
    /// [`ABI_MINOR`] of the host.
    pub abi_minor: u16,
    /// Bytes of this table.
    pub struct_size: u32,
    /// Writes a line to the host's log under the plugin's name. Any thread.
    pub log: unsafe extern "C" fn(*const PilotContext, level: u32, text: PilotSlice),
    /// Has [`PilotPlugin::wake`] called with `token` soon, once for several
    /// calls with one token before it. Any thread.
    pub wake: unsafe extern "C" fn(*const PilotContext, token: u64),
    /// Has [`PilotPlugin::wake`] called with `token` after `nanos`. Setting a
    /// token again moves it; `u64::MAX` takes it back.
    pub timer: unsafe extern "C" fn(*const PilotContext, token: u64, nanos: u64) -> i32,
    /// Takes what has arrived, a piece at a time: [`OK`] and a buffer,
    /// [`WOULD_BLOCK`], [`END`], or [`CLOSED`] for a broken stream.
    pub stream_read:
        unsafe extern "C" fn(*const PilotContext, stream: u64, data: *mut PilotBuffer) -> i32,
    /// Copies bytes to the stream, as many as there is room for, and says how
    /// many; [`WOULD_BLOCK`] when there is none.
    pub stream_write: unsafe extern "C" fn(
        *const PilotContext,
        stream: u64,
        data: PilotSlice,
        written: *mut usize,
    ) -> i32,
    /// Gives a buffer to the stream without a copy. The buffer is taken, and
    /// set to empty, only with [`OK`].
    pub stream_write_buffer:
        unsafe extern "C" fn(*const PilotContext, stream: u64, data: *mut PilotBuffer) -> i32,
    /// No more will be written; reading goes on.
    pub stream_shutdown: unsafe extern "C" fn(*const PilotContext, stream: u64) -> i32,
    /// Lets go of the stream: what was written is delivered, then it closes.
    /// Its number is not valid any more.
    pub stream_close: unsafe extern "C" fn(*const PilotContext, stream: u64) -> i32,
    /// Breaks the stream, with a reason for the log. Its number is not valid
    /// any more.
    pub stream_reset:
        unsafe extern "C" fn(*const PilotContext, stream: u64, reason: PilotSlice) -> i32,
    /// Opens a stream to `ADDRESS:PORT` or `HOSTNAME:PORT`. The answer comes to
    /// [`PilotPlugin::answer`] with `token`: the new stream's number as decimal
    /// text. The stream has the `user` pointer null until
    /// [`PilotHost::stream_attach`].
    pub dial: unsafe extern "C" fn(*const PilotContext, token: u64, to: PilotSlice) -> i32,
    /// Sets the pointer that comes with the events of a stream.
    pub stream_attach:
        unsafe extern "C" fn(*const PilotContext, stream: u64, user: *mut c_void) -> i32,
    /// Asks the host for something by name, with JSON; the JSON answer comes to
    /// [`PilotPlugin::answer`] with `token`. An unknown method is answered with
    /// [`UNSUPPORTED`], one that the configuration does not grant with [`DENIED`].
    pub call: unsafe extern "C" fn(
        *const PilotContext,
        token: u64,
        method: PilotSlice,
        request: PilotSlice,
    ) -> i32,
    /// Sends a datagram to `ADDRESS:PORT` from `source_port`. Not
    /// acknowledged.
    pub send_datagram: unsafe extern "C" fn(
        *const PilotContext,
        to: PilotSlice,
        source_port: u16,
        data: PilotSlice,
    ) -> i32,
    /// Emits an event: a name and a JSON object. [`LIMIT`] when the plugin
    /// emits faster than it may.
    pub emit: unsafe extern "C" fn(*const PilotContext, name: PilotSlice, data: PilotSlice) -> i32,
    /// Adds to a counter or sets a gauge of the plugin.
    pub metric:
        unsafe extern "C" fn(*const PilotContext, kind: u32, name: PilotSlice, value: f64) -> i32,
    /// Reads a key of the plugin's own store: [`OK`] and a buffer, or [`NOT_FOUND`].
    pub store_get:
        unsafe extern "C" fn(*const PilotContext, key: PilotSlice, value: *mut PilotBuffer) -> i32,
    /// Writes a key; durable when it returns [`OK`], [`LIMIT`] beyond the quota.
    pub store_put:
        unsafe extern "C" fn(*const PilotContext, key: PilotSlice, value: PilotSlice) -> i32,
    /// Removes a key; [`OK`] also when there was none.
    pub store_delete: unsafe extern "C" fn(*const PilotContext, key: PilotSlice) -> i32,
    /// The keys that begin with `prefix`, in order, as a JSON array of strings.
    pub store_keys: unsafe extern "C" fn(
        *const PilotContext,
        prefix: PilotSlice,
        keys: *mut PilotBuffer,
    ) -> i32,
    /// Answers [`PilotPlugin::validate`] or [`PilotPlugin::deliver`]: JSON of a
    /// verdict or a delivery. Late answers are ignored.
    pub reply: unsafe extern "C" fn(*const PilotContext, question: u64, body: PilotSlice) -> i32,
}

/// What a plugin gives to a host. Callbacks return [`OK`], [`ERROR`],
/// [`PANIC`] or [`UNSUPPORTED`]; a missing one counts as [`UNSUPPORTED`].
#[repr(C)]
#[derive(Debug)]
pub struct PilotPlugin {
    /// [`ABI_MAJOR`] that the plugin was built with.
    pub abi_major: u16,
    /// [`ABI_MINOR`] that the plugin was built with.
    pub abi_minor: u16,
    /// Bytes of this table.
    pub struct_size: u32,
    /// JSON of a [`crate::Manifest`], valid as long as the library is loaded.
    pub manifest: PilotSlice,
    /// Makes an instance. `config` is JSON that the manifest's schema accepts.
    /// `host` and `context` are valid from now on. On failure `error` may be
    /// set to a text.
    pub start: Option<
        unsafe extern "C" fn(
            host: *const PilotHost,
            context: *const PilotContext,
            config: PilotSlice,
            instance: *mut *mut c_void,
            error: *mut PilotBuffer,
        ) -> i32,
    >,
    /// Ends an instance; the last call for it.
    pub stop: Option<unsafe extern "C" fn(instance: *mut c_void)>,
    /// Whether the instance is fit to take over.
    pub self_test:
        Option<unsafe extern "C" fn(instance: *mut c_void, error: *mut PilotBuffer) -> i32>,
    /// A stream has come in. `peer` is JSON of a [`crate::Peer`]. `*user` comes
    /// back with every event of the stream. Anything but [`OK`] resets it.
    pub stream_open: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            stream: u64,
            port: u16,
            peer: PilotSlice,
            user: *mut *mut c_void,
        ) -> i32,
    >,
    /// [`READABLE`], [`WRITABLE`], [`GONE`] or several. The first comes by itself
    /// after [`PilotPlugin::stream_open`] or [`PilotHost::stream_attach`], the
    /// next after the plugin has been told [`WOULD_BLOCK`]. Anything but [`OK`]
    /// resets the stream.
    pub stream_ready: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            stream: u64,
            user: *mut c_void,
            what: u32,
        ) -> i32,
    >,
    /// A datagram has come in on a port of a service that takes them.
    pub datagram: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            port: u16,
            source_port: u16,
            peer: PilotSlice,
            data: PilotSlice,
        ) -> i32,
    >,
    /// A timer or [`PilotHost::wake`].
    pub wake: Option<unsafe extern "C" fn(instance: *mut c_void, token: u64) -> i32>,
    /// The answer to [`PilotHost::call`] or [`PilotHost::dial`]: [`OK`] and its
    /// body, or another status and a text.
    pub answer: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            token: u64,
            status: i32,
            body: PilotSlice,
        ) -> i32,
    >,
    /// May this node join? `request` is JSON of a [`crate::JoinRequest`]; the
    /// verdict goes to [`PilotHost::reply`], now or later.
    pub validate: Option<
        unsafe extern "C" fn(instance: *mut c_void, question: u64, request: PilotSlice) -> i32,
    >,
    /// Take these events: one JSON object of a [`crate::Event`] a line. The
    /// delivery goes to [`PilotHost::reply`], now or later. One batch is under
    /// way at a time.
    pub deliver: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            question: u64,
            sink: PilotSlice,
            events: PilotSlice,
        ) -> i32,
    >,
    /// No more streams will come; those that are open may finish.
    pub drain: Option<unsafe extern "C" fn(instance: *mut c_void) -> i32>,
}

// SAFETY: the table is never written after it was made, and its pointers are to
// functions and to text that lives as long as the library.
#[expect(unsafe_code, reason = "tables are statics of the library")]
unsafe impl Sync for PilotPlugin {}

/// Type of the exported symbol [`ENTRY_SYMBOL`]. The table must stay valid as
/// long as the library is loaded. Null means that the plugin refuses to load.
pub type PilotEntry = unsafe extern "C" fn() -> *const PilotPlugin;

impl PilotSlice {
    /// No bytes.
    pub const EMPTY: Self = Self { data: std::ptr::null(), len: 0 };

    /// These bytes, for the duration of a call.
    pub const fn new(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() }
    }
}

impl PilotBuffer {
    /// No bytes, nothing to release.
    pub const EMPTY: Self =
        Self { data: std::ptr::null(), len: 0, owner: std::ptr::null_mut(), release: None };
}
