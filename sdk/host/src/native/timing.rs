//! How long one event through the ABI takes, for the benches: what an
//! instance's thread does for each, without the thread.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::abi::READABLE;
use pilot_wire::SocketAddress;

use super::library::load;
use super::local::{Local, set_current};
use super::shared::{Callback, Shared};
use super::table::{self, HOST};
use super::thread::Thread;
use crate::instance::Context;
use crate::stream::HostStream;

/// Tells an instance of the library at `path`, `rounds` times, that a stream
/// may be read; each time it asks the host for data and hears that there is
/// none. The time of one round: two calls through the ABI, and the poll of a
/// future.
///
/// # Errors
/// When the library cannot be opened or does not start.
pub fn time_events(path: &Path, context: Context, rounds: u32) -> Result<Duration, String> {
    let callbacks = load(path).map_err(|e| e.to_string())?;
    let run = move || {
        let shared = Shared::new(context);
        let token = table::context(Arc::downgrade(&shared));
        let local = Local::new(Arc::clone(&shared), token);
        shared.queue.adopt();
        set_current(Some(Rc::clone(&local)));
        let handle = callbacks
            .start(&HOST, token, "{}")
            .map_err(|(status, text)| format!("it did not start: status {status}, {text}"))?;
        let thread = Thread { shared, local, callbacks, handle, draining: None };
        thread.open(Box::new(Silent));
        let id = *thread.local.stream_ids().first().ok_or("it did not take the stream")?;
        let (_, user) = thread.local.stream(id).ok_or("it let go of the stream")?;
        let begun = Instant::now();
        for _ in 0..rounds {
            thread.call(Callback::StreamReady, |c, h| c.stream_ready(h, id, user, READABLE));
        }
        let took = begun.elapsed();
        thread.end();
        set_current(None);
        Ok(took / rounds.max(1))
    };
    std::thread::spawn(run).join().map_err(|_| "it panicked".to_owned())?
}

/// A stream on which nothing ever happens.
struct Silent;

impl HostStream for Silent {
    fn remote(&self) -> SocketAddress {
        SocketAddress::default()
    }

    fn local_port(&self) -> u16 {
        7
    }

    fn poll_read(&mut self, _: &mut std::task::Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        Poll::Pending
    }

    fn poll_room(&mut self, _: &mut std::task::Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn write(&mut self, _: Bytes) {}

    fn shutdown(&mut self) {}

    fn reset(&mut self, _: &str) {}
}
