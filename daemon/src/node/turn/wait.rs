//! What the loop waits for between turns, and how clients are taken in.

use std::future::Future;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pilot_core::{Input, Time};
use tokio::net::UnixStream;
use tracing::{debug, warn};

use super::{Ending, Node};
use crate::ipc::client::DATA_BOUND;

/// Clients accepted per turn.
const ACCEPTS: usize = 16;
/// Pause after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

impl Node {
    /// Until a turn has something to do.
    pub(super) async fn wait(&mut self) {
        let start = Instant::now();
        if let Some(until) = self.spin.until(start) {
            while Instant::now() < until {
                if std::future::poll_fn(|cx| Poll::Ready(self.poll_wait(cx).is_ready())).await {
                    return self.spin.waited(start.elapsed());
                }
                // Whoever is to answer may need this core.
                std::thread::yield_now();
                // The runtime asks the system what is ready.
                tokio::task::yield_now().await;
            }
        }
        std::future::poll_fn(|cx| self.poll_wait(cx)).await;
        self.spin.waited(start.elapsed());
    }

    /// Ready when a turn has something to do.
    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ready = self.ready.register(cx.waker());
        ready |= self.udp.poll_readable(cx).is_ready();
        if self.blocked.is_some() {
            ready |= self.udp.poll_writable(cx).is_ready();
        }
        ready |= self.poll_accept(cx) | self.poll_strayed(cx);
        // Taken here because a receiver has no way to be only asked.
        while let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) {
            self.order(order);
            ready = true;
        }
        while let Poll::Ready(Some(answered)) = self.answers.poll_recv(cx) {
            self.answered(&answered);
            ready = true;
        }
        ready |= self.poll_sleep(cx);
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    fn poll_sleep(&mut self, cx: &mut Context<'_>) -> bool {
        let end = self.ending.as_ref().map(Ending::wake_at);
        let ours = [end, self.accept_again].into_iter().flatten().map(|at| self.hub.time_of(at));
        let Some(at) = self.wake_at.into_iter().chain(ours).min() else { return false };
        // An earlier alarm does no harm, and most deadlines only move back.
        if self.armed.is_none_or(|armed| at < armed) {
            let instant = self.hub.started + at.since(Time::ZERO);
            self.sleep.as_mut().reset(instant.into());
            self.armed = Some(at);
        }
        if self.sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.armed = None;
        true
    }

    /// Takes new clients in; whether any came.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> bool {
        if self.accept_again.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.accept_again = None;
        let mut accepted = false;
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else { return accepted };
            match listener.poll_accept(cx) {
                Poll::Pending => return accepted,
                Poll::Ready(Ok(stream)) => {
                    accepted = true;
                    self.accept(stream);
                }
                Poll::Ready(Err(error)) => {
                    warn!(%error, "driver socket cannot accept; trying again in a second");
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return accepted;
                }
            }
        }
        // The budget is used up and the listener not asked to its end.
        cx.waker().wake_by_ref();
        accepted
    }

    /// Datagrams handed over by other workers; whether any came.
    fn poll_strayed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(edge) = &mut self.edge else { return false };
        let now = self.hub.now();
        let mut came = false;
        while let Poll::Ready((from, mut data)) = edge.poll_strayed(cx) {
            self.hub.core.handle(Input::Datagram { from, data: &mut data }, now);
            came = true;
        }
        came
    }

    /// A client that came another way than over the driver socket.
    pub(super) fn take_client(&mut self, stream: std::os::unix::net::UnixStream) {
        match UnixStream::from_std(stream) {
            Ok(stream) => self.accept(stream),
            Err(error) => warn!(%error, "a client cannot be served"),
        }
    }

    fn accept(&mut self, stream: UnixStream) {
        if self.clients.len() >= self.max_clients || self.ending.is_some() {
            warn!(limit = self.max_clients, "client refused: too many, or the node is ending");
            return;
        }
        enlarge_buffers(&stream);
        let id = self.clients.add(stream, &self.ready);
        self.hub.counters.clients = self.clients.len();
        debug!(client = id, "client connected");
    }
}

/// A larger socket buffer spares both sides wake-ups; the system may give less.
fn enlarge_buffers(stream: &UnixStream) {
    let _ = socket2::SockRef::from(stream).set_send_buffer_size(DATA_BOUND);
}
