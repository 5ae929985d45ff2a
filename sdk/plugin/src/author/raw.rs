//! The host's table with a safe face: every call of a function pointer of the
//! host is here.

#![expect(unsafe_code, reason = "calls functions of the host's table")]

use std::ffi::c_void;

use super::buffer::Buffer;
use crate::abi::{self, PilotBuffer, PilotContext, PilotHost, PilotSlice};

/// The table and context of one instance.
#[derive(Clone, Copy)]
pub(super) struct Raw {
    host: *const PilotHost,
    context: *const PilotContext,
}

// SAFETY: the ABI keeps both pointers valid for the life of the process.
// `wake` and `log` may be called on any thread, and what is called on the wrong
// one is refused by the host.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// A status of the ABI that is not success.
pub(super) type Status = i32;

impl Raw {
    /// # Safety
    /// Both pointers come from the host's call of `start`, and `host` is of our
    /// major version.
    pub(super) unsafe fn new(host: *const PilotHost, context: *const PilotContext) -> Self {
        Self { host, context }
    }

    fn table(&self) -> &PilotHost {
        // SAFETY: valid for the life of the process, see `new`.
        unsafe { &*self.host }
    }

    pub(super) fn log(&self, level: u32, text: &str) {
        // SAFETY: a function of the table, with a slice valid during the call.
        // The same holds for every call below.
        unsafe { (self.table().log)(self.context, level, slice(text)) }
    }

    pub(super) fn wake(&self, token: u64) {
        // SAFETY: see `log`.
        unsafe { (self.table().wake)(self.context, token) }
    }

    pub(super) fn timer(&self, token: u64, nanos: u64) -> Result<(), Status> {
        // SAFETY: see `log`.
        ok(unsafe { (self.table().timer)(self.context, token, nanos) })
    }

    pub(super) fn read(&self, stream: u64) -> Result<Buffer, Status> {
        self.buffer(|out| {
            // SAFETY: see `log`; `out` is ours to write to.
            unsafe { (self.table().stream_read)(self.context, stream, out) }
        })
    }

    pub(super) fn write(&self, stream: u64, data: &[u8]) -> Result<usize, Status> {
        let mut written = 0;
        let data = PilotSlice::new(data);
        // SAFETY: see `log`; `written` is ours to write to.
        let status =
            unsafe { (self.table().stream_write)(self.context, stream, data, &mut written) };
        ok(status).map(|()| written)
    }

    /// Gives the buffer back when it was not taken.
    pub(super) fn write_buffer(&self, stream: u64, data: Buffer) -> Result<(), (Status, Buffer)> {
        let mut raw = data.into_raw();
        // SAFETY: see `log`; the host takes the buffer only with OK.
        let status = unsafe { (self.table().stream_write_buffer)(self.context, stream, &mut raw) };
        // SAFETY: it was not taken, so it is ours as before.
        ok(status).map_err(|status| (status, unsafe { Buffer::from_raw(raw) }))
    }

    pub(super) fn shutdown(&self, stream: u64) {
        // SAFETY: see `log`.
        unsafe { (self.table().stream_shutdown)(self.context, stream) };
    }

    pub(super) fn close(&self, stream: u64) {
        // SAFETY: see `log`.
        unsafe { (self.table().stream_close)(self.context, stream) };
    }

    pub(super) fn reset(&self, stream: u64, reason: &str) {
        // SAFETY: see `log`.
        unsafe { (self.table().stream_reset)(self.context, stream, slice(reason)) };
    }

    pub(super) fn dial(&self, token: u64, to: &str) -> Result<(), Status> {
        // SAFETY: see `log`.
        ok(unsafe { (self.table().dial)(self.context, token, slice(to)) })
    }

    /// `user` is a number, never used as a pointer.
    pub(super) fn attach(&self, stream: u64, user: usize) -> Result<(), Status> {
        let user = std::ptr::without_provenance_mut::<c_void>(user);
        // SAFETY: see `log`.
        ok(unsafe { (self.table().stream_attach)(self.context, stream, user) })
    }

    pub(super) fn call(&self, token: u64, method: &str, request: &str) -> Result<(), Status> {
        // SAFETY: see `log`.
        ok(unsafe { (self.table().call)(self.context, token, slice(method), slice(request)) })
    }

    pub(super) fn send_datagram(&self, to: &str, port: u16, data: &[u8]) -> Result<(), Status> {
        let data = PilotSlice::new(data);
        // SAFETY: see `log`.
        ok(unsafe { (self.table().send_datagram)(self.context, slice(to), port, data) })
    }

    pub(super) fn emit(&self, name: &str, data: &str) -> Result<(), Status> {
        // SAFETY: see `log`.
        ok(unsafe { (self.table().emit)(self.context, slice(name), slice(data)) })
    }

    pub(super) fn metric(&self, kind: u32, name: &str, value: f64) {
        // SAFETY: see `log`. A metric that is refused is no error of the caller.
        unsafe { (self.table().metric)(self.context, kind, slice(name), value) };
    }

    pub(super) fn store_get(&self, key: &str) -> Result<Buffer, Status> {
        self.buffer(|out| {
            // SAFETY: see `read`.
            unsafe { (self.table().store_get)(self.context, slice(key), out) }
        })
    }

    pub(super) fn store_put(&self, key: &str, value: &[u8]) -> Result<(), Status> {
        let value = PilotSlice::new(value);
        // SAFETY: see `log`.
        ok(unsafe { (self.table().store_put)(self.context, slice(key), value) })
    }

    pub(super) fn store_delete(&self, key: &str) -> Result<(), Status> {
        // SAFETY: see `log`.
        ok(unsafe { (self.table().store_delete)(self.context, slice(key)) })
    }

    pub(super) fn store_keys(&self, prefix: &str) -> Result<Buffer, Status> {
        self.buffer(|out| {
            // SAFETY: see `read`.
            unsafe { (self.table().store_keys)(self.context, slice(prefix), out) }
        })
    }

    pub(super) fn reply(&self, question: u64, body: &str) {
        // SAFETY: see `log`. A late reply is ignored by the host.
        unsafe { (self.table().reply)(self.context, question, slice(body)) };
    }

    fn buffer(&self, call: impl FnOnce(*mut PilotBuffer) -> i32) -> Result<Buffer, Status> {
        let mut out = PilotBuffer::EMPTY;
        let status = call(&mut out);
        // SAFETY: the host has filled it or left it empty.
        let buffer = unsafe { Buffer::from_raw(out) };
        ok(status).map(|()| buffer)
    }
}

fn ok(status: i32) -> Result<(), Status> {
    if status == abi::OK { Ok(()) } else { Err(status) }
}

fn slice(text: &str) -> PilotSlice {
    PilotSlice::new(text.as_bytes())
}
