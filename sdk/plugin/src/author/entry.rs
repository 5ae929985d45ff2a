//! The callbacks that C sees, for any [`Plugin`]. Panics end here.

#![expect(unsafe_code, reason = "reads what the host passes by pointer")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Once, OnceLock};

use serde::Serialize;

use super::buffer::Buffer;
use super::error::Error;
use super::host::Host;
use super::instance::Shared;
use super::plugin::Plugin;
use super::raw::Raw;
use super::stream::Stream;
use super::task::{Panicked, RUN, caught, discard};
use crate::abi::{
    self, ABI_MAJOR, ABI_MINOR, PilotBuffer, PilotContext, PilotHost, PilotPlugin, PilotSlice,
};
use crate::{Batch, Manifest};

/// Exports a type that implements [`Plugin`] as the plugin of a `cdylib`.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        #[cfg(panic = "abort")]
        compile_error!("a plugin must be built with panic = \"unwind\": its panics are caught");

        /// The symbol that a host looks for.
        #[unsafe(no_mangle)]
        pub extern "C" fn pilot_plugin_v1() -> *const $crate::abi::PilotPlugin {
            static TABLE: $crate::entry::Table = $crate::entry::Table::new();
            TABLE.of::<$plugin>()
        }
    };
}

/// The table of one plugin, made once.
#[doc(hidden)]
pub struct Table {
    made: OnceLock<Made>,
}

struct Made {
    table: PilotPlugin,
    /// The table points into it.
    _manifest: String,
}

// SAFETY: the table is not written after it was made, and points to functions
// and to the text beside it.
unsafe impl Send for Made {}

impl Table {
    /// Not made yet.
    #[expect(clippy::new_without_default, reason = "a static needs a const function")]
    pub const fn new() -> Self {
        Self { made: OnceLock::new() }
    }

    /// The table for `P`; null when `P` cannot even say what it is.
    pub fn of<P: Plugin>(&'static self) -> *const PilotPlugin {
        note_panics();
        let made = caught(|| self.made.get_or_init(make::<P>));
        made.map_or(std::ptr::null(), |made| &raw const made.table)
    }
}

fn make<P: Plugin>() -> Made {
    let schema = serde_json::to_value(schemars::schema_for!(P::Config)).ok();
    let manifest = P::manifest();
    let manifest = Manifest { config_schema: manifest.config_schema.or(schema), ..manifest };
    let manifest = serde_json::to_string(&manifest).unwrap_or_default();
    let table = PilotPlugin {
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        struct_size: u32::try_from(size_of::<PilotPlugin>()).unwrap_or(u32::MAX),
        manifest: PilotSlice::new(manifest.as_bytes()),
        start: Some(start::<P>),
        stop: Some(stop::<P>),
        self_test: Some(self_test::<P>),
        stream_open: Some(stream_open::<P>),
        stream_ready: Some(stream_ready::<P>),
        datagram: Some(datagram::<P>),
        wake: Some(wake::<P>),
        answer: Some(answer::<P>),
        validate: Some(validate::<P>),
        deliver: Some(deliver::<P>),
        drain: Some(drain::<P>),
    };
    Made { table, _manifest: manifest }
}

/// What the host's instance pointer points to.
struct Instance<P> {
    shared: Rc<Shared>,
    plugin: Rc<P>,
}

unsafe extern "C" fn start<P: Plugin>(
    host: *const PilotHost,
    context: *const PilotContext,
    config: PilotSlice,
    instance: *mut *mut c_void,
    error: *mut PilotBuffer,
) -> i32 {
    let made = catch_unwind(|| {
        // SAFETY: the table begins with its version in every version.
        let (major, minor) = unsafe { ((*host).abi_major, (*host).abi_minor) };
        if major != ABI_MAJOR {
            return Err(Error::new(format!(
                "the host has plugin ABI {major}.{minor}, this plugin needs {ABI_MAJOR}.{ABI_MINOR}"
            )));
        }
        // SAFETY: the host's pointers, and the major version is ours.
        let shared = Shared::new(unsafe { Raw::new(host, context) });
        // SAFETY: valid during the call.
        let config = serde_json::from_slice(unsafe { bytes(config) })?;
        let plugin = P::start(Host { shared: Rc::clone(&shared) }, config)?;
        Ok(Box::new(Instance { shared, plugin: Rc::new(plugin) }))
    });
    match made {
        Ok(Ok(made)) => {
            let status = outcome(&made.shared, abi::OK);
            if status != abi::OK {
                // The host will not stop what did not start.
                // SAFETY: the host gives room for a text.
                unsafe { tell(error, last_panic()) };
                end(*made);
                return status;
            }
            // SAFETY: the host gives room for the pointer.
            unsafe { *instance = Box::into_raw(made).cast() };
            status
        }
        Ok(Err(why)) => {
            // SAFETY: the host gives room for a text.
            unsafe { tell(error, why.to_string()) };
            abi::ERROR
        }
        Err(payload) => {
            discard(payload);
            // SAFETY: as above.
            unsafe { tell(error, last_panic()) };
            abi::PANIC
        }
    }
}

unsafe extern "C" fn stop<P: Plugin>(instance: *mut c_void) {
    // SAFETY: made by `start`; this is the last call for it.
    end(*unsafe { Box::from_raw(instance.cast::<Instance<P>>()) });
}

/// Lets go of everything, each by itself, as destructors may panic.
fn end<P>(instance: Instance<P>) {
    let Instance { shared, plugin } = instance;
    shared.tasks.clear();
    caught(|| drop(plugin));
    // The author's type may have left something behind.
    shared.tasks.clear();
    shared.settle();
    caught(|| drop(shared));
}

unsafe extern "C" fn self_test<P: Plugin>(instance: *mut c_void, error: *mut PilotBuffer) -> i32 {
    // SAFETY: see `with`.
    unsafe {
        with::<P>(instance, |instance| match instance.plugin.self_test() {
            Ok(()) => abi::OK,
            Err(why) => {
                // SAFETY: the host gives room for a text.
                tell(error, why.to_string());
                abi::ERROR
            }
        })
    }
}

unsafe extern "C" fn stream_open<P: Plugin>(
    instance: *mut c_void,
    stream: u64,
    port: u16,
    peer: PilotSlice,
    user: *mut *mut c_void,
) -> i32 {
    // SAFETY: see `with`; `peer` is valid during the call, and `user` is room
    // for a pointer.
    unsafe {
        with::<P>(instance, |instance| {
            let Ok(peer) = serde_json::from_slice(bytes(peer)) else { return abi::INVALID };
            let Instance { shared, plugin } = instance;
            let (stream, number) = Stream::adopt(shared, stream, port);
            *user = std::ptr::without_provenance_mut(number);
            let (shared, plugin) = (Rc::clone(shared), Rc::clone(plugin));
            let tasks = Rc::clone(&shared);
            tasks.tasks.spawn(async move {
                let id = stream.id();
                if let Err(why) = plugin.serve(stream, peer).await {
                    shared.fail(id, &why.to_string());
                }
            });
            abi::OK
        })
    }
}

unsafe extern "C" fn stream_ready<P: Plugin>(
    instance: *mut c_void,
    stream: u64,
    user: *mut c_void,
    what: u32,
) -> i32 {
    // SAFETY: see `with`.
    unsafe {
        with::<P>(instance, |instance| {
            // Somebody else's number wakes nobody.
            let key = user.addr().wrapping_sub(1);
            let handle = instance.shared.streams.borrow().get(key).map(Rc::clone);
            if let Some(handle) = handle.filter(|handle| handle.id == stream) {
                handle.ready(what);
            }
            abi::OK
        })
    }
}

unsafe extern "C" fn datagram<P: Plugin>(
    instance: *mut c_void,
    port: u16,
    source_port: u16,
    peer: PilotSlice,
    data: PilotSlice,
) -> i32 {
    // The peer's address has its port in it.
    let _ = source_port;
    // SAFETY: see `with`; the slices are valid during the call.
    unsafe {
        with::<P>(instance, |instance| {
            let Ok(peer) = serde_json::from_slice(bytes(peer)) else { return abi::INVALID };
            let data = bytes(data).to_vec();
            let (host, plugin) = (host_of(instance), Rc::clone(&instance.plugin));
            instance.shared.tasks.spawn(async move {
                if let Err(why) = plugin.datagram(peer, port, data).await {
                    host.log(super::Level::Warn, format!("datagram: {why}"));
                }
            });
            abi::OK
        })
    }
}

unsafe extern "C" fn wake<P: Plugin>(instance: *mut c_void, token: u64) -> i32 {
    // SAFETY: see `with`.
    unsafe {
        with::<P>(instance, |instance| {
            if token != RUN {
                instance.shared.answered(token, abi::OK, &[]);
            }
            abi::OK
        })
    }
}

unsafe extern "C" fn answer<P: Plugin>(
    instance: *mut c_void,
    token: u64,
    status: i32,
    body: PilotSlice,
) -> i32 {
    // SAFETY: see `with`; `body` is valid during the call.
    unsafe {
        with::<P>(instance, |instance| {
            instance.shared.answered(token, status, bytes(body));
            abi::OK
        })
    }
}

unsafe extern "C" fn validate<P: Plugin>(
    instance: *mut c_void,
    question: u64,
    request: PilotSlice,
) -> i32 {
    // SAFETY: see `with`; `request` is valid during the call.
    unsafe {
        with::<P>(instance, |instance| {
            let Ok(request) = serde_json::from_slice(bytes(request)) else { return abi::INVALID };
            let (shared, plugin) = (Rc::clone(&instance.shared), Rc::clone(&instance.plugin));
            instance.shared.tasks.spawn(async move {
                reply(&shared, question, &plugin.validate(request).await);
            });
            abi::OK
        })
    }
}

unsafe extern "C" fn deliver<P: Plugin>(
    instance: *mut c_void,
    question: u64,
    sink: PilotSlice,
    events: PilotSlice,
) -> i32 {
    // SAFETY: see `with`; the slices are valid during the call.
    unsafe {
        with::<P>(instance, |instance| {
            let text = |slice| String::from_utf8(bytes(slice).to_vec());
            let (Ok(sink), Ok(lines)) = (text(sink), text(events)) else { return abi::INVALID };
            let (shared, plugin) = (Rc::clone(&instance.shared), Rc::clone(&instance.plugin));
            instance.shared.tasks.spawn(async move {
                reply(&shared, question, &plugin.deliver(Batch { sink, lines }).await);
            });
            abi::OK
        })
    }
}

unsafe extern "C" fn drain<P: Plugin>(instance: *mut c_void) -> i32 {
    // SAFETY: see `with`.
    unsafe {
        with::<P>(instance, |instance| {
            instance.plugin.drain();
            abi::OK
        })
    }
}

/// Calls `f`, then polls futures; a panic of either becomes a status.
///
/// # Safety
/// `instance` was made by [`start`] of the same `P` and not stopped.
unsafe fn with<P: Plugin>(instance: *mut c_void, f: impl FnOnce(&Instance<P>) -> i32) -> i32 {
    // SAFETY: as promised; the host calls on one thread, one call at a time.
    let instance = unsafe { &*instance.cast::<Instance<P>>() };
    match catch_unwind(AssertUnwindSafe(|| f(instance))) {
        Ok(status) => outcome(&instance.shared, status),
        Err(payload) => {
            discard(payload);
            instance.shared.tasks.again();
            panicked(&instance.shared)
        }
    }
}

/// Polls futures; `status` unless one panics.
fn outcome(shared: &Rc<Shared>, status: i32) -> i32 {
    match shared.run() {
        Ok(()) => status,
        Err(Panicked(payload)) => {
            discard(payload);
            panicked(shared)
        }
    }
}

fn panicked(shared: &Shared) -> i32 {
    shared.raw.log(abi::LOG_ERROR, &last_panic());
    abi::PANIC
}

fn reply<T: Serialize>(shared: &Shared, question: u64, result: &Result<T, Error>) {
    let body = match result {
        Ok(value) => serde_json::to_string(value).unwrap_or_default(),
        Err(why) => serde_json::json!({ "error": why.to_string() }).to_string(),
    };
    shared.raw.reply(question, &body);
}

fn host_of<P>(instance: &Instance<P>) -> Host {
    Host { shared: Rc::clone(&instance.shared) }
}

/// # Safety
/// The slice is valid for as long as the result is used.
unsafe fn bytes<'a>(slice: PilotSlice) -> &'a [u8] {
    if slice.data.is_null() || slice.len == 0 {
        return &[];
    }
    // SAFETY: as promised.
    unsafe { std::slice::from_raw_parts(slice.data, slice.len) }
}

/// # Safety
/// `error` is null or room for a buffer.
unsafe fn tell(error: *mut PilotBuffer, text: String) {
    if !error.is_null() {
        // SAFETY: as promised; what was there is empty.
        unsafe { error.write(Buffer::from(text).into_raw()) };
    }
}

thread_local!(static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) });

/// Keeps what a panic said for the host's log, instead of standard error.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.payload_as_str().unwrap_or("no text");
            let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line()));
            let text = format!("panicked{}: {text}", place.unwrap_or_default());
            // A panic while the thread ends has nowhere to be kept.
            let _ = LAST_PANIC.try_with(|last| *last.borrow_mut() = text);
        }));
    });
}

fn last_panic() -> String {
    let text = LAST_PANIC.try_with(|last| std::mem::take(&mut *last.borrow_mut()));
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "panicked".to_owned())
}
