//! An instance as the manager holds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Verdict};
use pilot_wire::SocketAddress;
use tokio::sync::oneshot;

use super::messages::Message;
use super::shared::{Asked, Shared};
use crate::instance::{BoxFuture, Failure, Instance, Stats};
use crate::stream::BoxStream;

/// A handle; dropping it ends the instance.
pub(super) struct NativeInstance {
    pub(super) shared: Arc<Shared>,
    pub(super) manifest: Manifest,
}

impl Instance for NativeInstance {
    fn open(&self, mut stream: BoxStream) {
        let (shared, limits) = (&self.shared, &self.shared.context.limits);
        let name = &shared.context.name;
        let open = shared.counters.streams.load(std::sync::atomic::Ordering::Relaxed);
        if open >= limits.streams {
            let text = format!("plugin {name} has {open} streams, its limit");
            shared.note_error(&text);
            return stream.reset(&text);
        }
        if let Err(Message::Open(mut stream)) =
            shared.queue.push_limited(Message::Open(stream), limits.queue)
        {
            let text = format!("plugin {name} does not keep up, or has ended");
            shared.note_error(&text);
            stream.reset(&text);
        }
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes) {
        let message = Message::Datagram { from, port, data };
        if self.shared.queue.push_limited(message, self.shared.context.limits.queue).is_err() {
            self.shared.note_error("a datagram was dropped: the queue is full");
        }
    }

    fn validate(&self, request: JoinRequest) -> BoxFuture<Result<Verdict, Failure>> {
        if !self.manifest.rules.iter().any(|rule| rule.name == request.rule) {
            return Box::pin(std::future::ready(Err(Failure::Unsupported)));
        }
        let limit = self.shared.context.limits.validate;
        self.ask(limit, Asked::Verdict, |question| Message::Validate {
            question,
            request: Box::new(request),
        })
    }

    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>> {
        if !self.manifest.sinks.iter().any(|sink| sink.name == batch.sink) {
            return Box::pin(std::future::ready(Err(Failure::Unsupported)));
        }
        let limit = self.shared.context.limits.deliver;
        self.ask(limit, Asked::Delivery, |question| Message::Deliver { question, batch })
    }

    fn drain(&self, deadline: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(deadline).unwrap_or(now);
        self.shared.queue.push(Message::Drain { deadline });
    }

    fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl NativeInstance {
    fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        asked: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Asked,
        message: impl FnOnce(u64) -> Message,
    ) -> BoxFuture<Result<T, Failure>> {
        let (sender, answer) = oneshot::channel();
        if let Some(question) = self.shared.ask(asked(sender), limit) {
            let message = message(question);
            let full = self.shared.queue.push_limited(message, self.shared.context.limits.queue);
            if full.is_err() {
                let text = "its queue is full, or it has ended".to_owned();
                self.shared.fail_question(question, Failure::Failed(text));
            }
        }
        Box::pin(async move { answer.await.unwrap_or(Err(Failure::Ended)) })
    }
}

impl Drop for NativeInstance {
    fn drop(&mut self) {
        self.shared.queue.push(Message::Stop);
    }
}
