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

/// Times of one event.
#[derive(Clone, Copy, Debug)]
pub struct EventTimes {
    /// A wake-up that concerns nobody: one call into the plugin and back.
    pub call: Duration,
    /// A stream that may be read: the call, the poll of a future, and its
    /// question to the host for data, of which there is none.
    pub read: Duration,
}

/// Sends an instance of the library at `path` each kind of event `rounds`
/// times.
///
/// # Errors
/// When the library cannot be opened or does not start.
pub fn time_events(path: &Path, context: Context, rounds: u32) -> Result<EventTimes, String> {
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
            thread.call(Callback::Wake, |c, h| c.wake(h, u64::MAX));
        }
        let call = begun.elapsed() / rounds.max(1);
        let begun = Instant::now();
        for _ in 0..rounds {
            thread.call(Callback::StreamReady, |c, h| c.stream_ready(h, id, user, READABLE));
        }
        let read = begun.elapsed() / rounds.max(1);
        thread.end();
        set_current(None);
        Ok(EventTimes { call, read })
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
