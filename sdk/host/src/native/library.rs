//! Opening a library and reading its table. A library is never closed: code
//! that is still referred to somewhere stays where it is.

#![expect(unsafe_code, reason = "loads code and reads the table that it gives")]

use std::ffi::c_void;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use pilot_plugin::Manifest;
use pilot_plugin::abi::{
    self, ABI_MAJOR, ABI_MINOR, ENTRY_SYMBOL, PilotBuffer, PilotContext, PilotEntry, PilotHost,
    PilotPlugin, PilotSlice,
};
use serde_json::Value;

use super::{elf, thread};
use crate::instance::{Backend, Context, Instance, StartError};

/// How long the constructors of a library and its entry may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the table of version 1.0.
const TABLE_1_0: usize = size_of::<PilotPlugin>();
/// Longest manifest.
const MAX_MANIFEST: usize = 1 << 20;

/// Why a library cannot be used as a plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The system would not load it.
    #[error("{}: cannot be loaded: {why}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// It is a library, but not a plugin.
    #[error(
        "{}: exports no symbol {ENTRY_SYMBOL}, so it is not a plugin; in Rust, call \
         pilot_plugin::export_plugin!",
        path.display()
    )]
    NoEntry {
        /// The file.
        path: PathBuf,
    },
    /// Its entry gave no table.
    #[error("{}: refuses to load (its entry returned null)", path.display())]
    Refuses {
        /// The file.
        path: PathBuf,
    },
    /// Built for another major version.
    #[error(
        "{}: was built for plugin ABI {major}.{minor}, this host has {ABI_MAJOR}.{ABI_MINOR}; \
         rebuild it against pilot-plugin with ABI {ABI_MAJOR}",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// The table says that it is smaller than that of 1.0.
    #[error(
        "{}: its table has {size} bytes, that of ABI 1.0 has {TABLE_1_0}; it was not built with a \
         header of Pilot",
        path.display()
    )]
    Table {
        /// The file.
        path: PathBuf,
        /// What it says.
        size: u32,
    },
    /// The manifest makes no sense.
    #[error("{}: its manifest is not valid: {why}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its constructors or its entry do not come back.
    #[error("{}: does not finish loading within {} s", path.display(), OPEN_LIMIT.as_secs())]
    Hangs {
        /// The file.
        path: PathBuf,
    },
}

/// A loaded library.
struct Native {
    manifest: Manifest,
    callbacks: Callbacks,
}

/// Opens a library and reads its manifest. Its constructors and its entry run;
/// whoever calls this has decided to trust the file.
///
/// # Errors
/// When it cannot be loaded, is not a plugin, or is for another major version.
pub fn open_native(path: &Path) -> Result<Arc<dyn Backend>, OpenError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let owned = path.to_owned();
    // On a thread that can be left behind when the library hangs.
    let opening = std::thread::Builder::new().name("plugin-open".to_owned()).spawn(move || {
        // Nobody may wait any more.
        let _ = sender.send(open(&owned));
    });
    if let Err(e) = opening {
        return Err(OpenError::Load { path: path.to_owned(), why: format!("no thread: {e}") });
    }
    match receiver.recv_timeout(OPEN_LIMIT) {
        Ok(native) => native.map(|native| Arc::new(native) as Arc<dyn Backend>),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(OpenError::Hangs { path: path.to_owned() }),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(OpenError::Load { path: path.to_owned(), why: "loading it panicked".to_owned() })
        }
    }
}

fn open(path: &Path) -> Result<Native, OpenError> {
    let owned = || path.to_owned();
    let load = |why: String| OpenError::Load { path: owned(), why };
    let (head, len) = head(path).map_err(|e| load(e.to_string()))?;
    elf::check(&head, len).map_err(load)?;
    // SAFETY: running the library's constructors is what was asked for; what
    // they do is the library's.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|e| load(e.to_string()))?;
    // Never closed: thread-locals, released buffers and running threads may
    // refer to it for as long as the process lives.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the ABI gives this symbol this type.
    let entry = unsafe { library.get::<PilotEntry>(ENTRY_SYMBOL.as_bytes()) }
        .map_err(|_| OpenError::NoEntry { path: owned() })?;
    // SAFETY: the ABI lets it be called on any thread at any time.
    let table = unsafe { entry() };
    if table.is_null() {
        return Err(OpenError::Refuses { path: owned() });
    }
    // SAFETY: tables of all versions begin with these three fields.
    let (major, minor, size) =
        unsafe { ((*table).abi_major, (*table).abi_minor, (*table).struct_size) };
    if major != ABI_MAJOR {
        return Err(OpenError::Version { path: owned(), major, minor });
    }
    if (size as usize) < TABLE_1_0 {
        return Err(OpenError::Table { path: owned(), size });
    }
    let mut copy = MaybeUninit::<PilotPlugin>::uninit();
    // SAFETY: the table has at least this many bytes, which are the fields of
    // 1.0; what a newer plugin has behind them is left alone.
    let table = unsafe {
        std::ptr::copy_nonoverlapping(table, copy.as_mut_ptr(), 1);
        copy.assume_init()
    };
    let manifest =
        manifest(table.manifest).map_err(|why| OpenError::Manifest { path: owned(), why })?;
    Ok(Native { manifest, callbacks: Callbacks(Arc::new(Table(table))) })
}

/// The beginning of a file, and its length.
fn head(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    let file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(elf::HEAD).read_to_end(&mut head)?;
    Ok((head, len))
}

/// The callbacks of a library alone.
pub(super) fn load(path: &Path) -> Result<Callbacks, OpenError> {
    open(path).map(|native| native.callbacks)
}

fn manifest(text: PilotSlice) -> Result<Manifest, String> {
    if text.data.is_null() || text.len > MAX_MANIFEST {
        return Err(format!("it has {} bytes, {MAX_MANIFEST} are allowed", text.len));
    }
    // SAFETY: the ABI keeps the text valid as long as the library is loaded.
    let text = unsafe { std::slice::from_raw_parts(text.data, text.len) };
    let manifest: Manifest = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    crate::instance::check_manifest(&manifest)?;
    Ok(manifest)
}

impl Backend for Native {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn start(&self, config: &Value, context: Context) -> Result<Arc<dyn Instance>, StartError> {
        thread::start(self.callbacks.clone(), self.manifest.clone(), config, context)
    }
}

/// The callbacks of a library with a safe face. Every call into a plugin is
/// here.
#[derive(Clone)]
pub(super) struct Callbacks(Arc<Table>);

struct Table(PilotPlugin);

// SAFETY: the table is only read, and what it points to lives as long as the
// process.
unsafe impl Send for Table {}
// SAFETY: as above; the calls it makes are for the instance's thread, which is
// the only one that has a `Handle`.
unsafe impl Sync for Table {}

/// The plugin's instance; lives on its thread.
#[derive(Clone, Copy)]
pub(super) struct Handle(*mut c_void);

impl Callbacks {
    /// Makes an instance. On failure there is a text.
    pub(super) fn start(
        &self,
        host: &'static PilotHost,
        context: *const PilotContext,
        config: &str,
    ) -> Result<Handle, (i32, String)> {
        let Some(start) = self.0.0.start else {
            return Err((abi::UNSUPPORTED, "it has no start callback".to_owned()));
        };
        let mut instance = std::ptr::null_mut();
        let mut error = PilotBuffer::EMPTY;
        // SAFETY: a callback of the table, with pointers valid during the call
        // and `host` and `context` for ever. The same holds for all calls
        // below; `Handle` never leaves the instance's thread.
        let status = unsafe { start(host, context, slice(config), &mut instance, &mut error) };
        let text = take_text(error);
        if status == abi::OK { Ok(Handle(instance)) } else { Err((status, text)) }
    }

    pub(super) fn stop(&self, instance: Handle) {
        if let Some(stop) = self.0.0.stop {
            // SAFETY: see `start`; the caller does not use it again.
            unsafe { stop(instance.0) }
        }
    }

    pub(super) fn self_test(&self, instance: Handle) -> Result<(), (i32, String)> {
        let Some(self_test) = self.0.0.self_test else { return Ok(()) };
        let mut error = PilotBuffer::EMPTY;
        // SAFETY: see `start`.
        let status = unsafe { self_test(instance.0, &mut error) };
        let text = take_text(error);
        if matches!(status, abi::OK | abi::UNSUPPORTED) { Ok(()) } else { Err((status, text)) }
    }

    /// The status, and the plugin's pointer for the stream's events.
    pub(super) fn stream_open(
        &self,
        instance: Handle,
        stream: u64,
        port: u16,
        peer: &str,
    ) -> (i32, User) {
        let Some(open) = self.0.0.stream_open else { return (abi::UNSUPPORTED, User::NONE) };
        let mut user = std::ptr::null_mut();
        // SAFETY: see `start`.
        let status = unsafe { open(instance.0, stream, port, slice(peer), &mut user) };
        (status, User(user))
    }

    pub(super) fn stream_ready(&self, instance: Handle, stream: u64, user: User, what: u32) -> i32 {
        let Some(ready) = self.0.0.stream_ready else { return abi::OK };
        // SAFETY: see `start`.
        unsafe { ready(instance.0, stream, user.0, what) }
    }

    pub(super) fn datagram(
        &self,
        instance: Handle,
        port: u16,
        source_port: u16,
        peer: &str,
        data: &[u8],
    ) -> i32 {
        let Some(datagram) = self.0.0.datagram else { return abi::UNSUPPORTED };
        // SAFETY: see `start`.
        unsafe { datagram(instance.0, port, source_port, slice(peer), PilotSlice::new(data)) }
    }

    pub(super) fn wake(&self, instance: Handle, token: u64) -> i32 {
        let Some(wake) = self.0.0.wake else { return abi::OK };
        // SAFETY: see `start`.
        unsafe { wake(instance.0, token) }
    }

    pub(super) fn answer(&self, instance: Handle, token: u64, status: i32, body: &str) -> i32 {
        let Some(answer) = self.0.0.answer else { return abi::OK };
        // SAFETY: see `start`.
        unsafe { answer(instance.0, token, status, slice(body)) }
    }

    pub(super) fn validate(&self, instance: Handle, question: u64, request: &str) -> i32 {
        let Some(validate) = self.0.0.validate else { return abi::UNSUPPORTED };
        // SAFETY: see `start`.
        unsafe { validate(instance.0, question, slice(request)) }
    }

    pub(super) fn deliver(&self, instance: Handle, question: u64, sink: &str, events: &str) -> i32 {
        let Some(deliver) = self.0.0.deliver else { return abi::UNSUPPORTED };
        // SAFETY: see `start`.
        unsafe { deliver(instance.0, question, slice(sink), slice(events)) }
    }

    pub(super) fn drain(&self, instance: Handle) -> i32 {
        let Some(drain) = self.0.0.drain else { return abi::OK };
        // SAFETY: see `start`.
        unsafe { drain(instance.0) }
    }
}

/// A plugin's pointer for a stream: kept and given back, never followed.
#[derive(Clone, Copy)]
pub(super) struct User(pub(super) *mut c_void);

impl User {
    pub(super) const NONE: Self = Self(std::ptr::null_mut());

    pub(super) fn is_none(self) -> bool {
        self.0.is_null()
    }
}

fn slice(text: &str) -> PilotSlice {
    PilotSlice::new(text.as_bytes())
}

/// Longest error text taken from a plugin.
const MAX_TEXT: usize = 64 << 10;

/// Reads and releases an error text.
fn take_text(buffer: PilotBuffer) -> String {
    let text = if buffer.data.is_null() || buffer.len > MAX_TEXT {
        String::new()
    } else {
        // SAFETY: the ABI: the plugin has set it to text, or left it empty.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.data, buffer.len) };
        String::from_utf8_lossy(bytes).into_owned()
    };
    if let Some(release) = buffer.release {
        // SAFETY: the host holds the buffer and releases it once.
        unsafe { release(buffer.owner) };
    }
    text
}
