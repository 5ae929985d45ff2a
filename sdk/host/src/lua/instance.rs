//! An instance: its threads, what is given to which, and how it stands.

use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use pilot_wire::SocketAddress;
use serde_json::Value as Json;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::STACK;
use super::declaration::Kind;
use super::error::ScriptError;
use super::gauge::Gauge;
use super::live::Live;
use super::worker::{self, Job, Phase, Start};
use crate::instance::{BoxFuture, Failure, Instance, StartError, Stats};
use crate::stream::BoxStream;

/// Threads of a service, so that a stream that computes does not hold up all
/// others. A rule or a sink has one, and with it one set of variables.
const SERVICE_THREADS: usize = 2;
/// Longest time that is waited for anything.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// Time without waiting after which a thread is given streams last.
const COMPUTES: Duration = Duration::from_millis(50);

/// A running script.
pub(super) struct ScriptInstance {
    live: Arc<Live>,
    kind: Kind,
    threads: Vec<Thread>,
    /// Threads that have not ended.
    alive: Arc<AtomicUsize>,
    draining: AtomicBool,
}

struct Thread {
    gauge: Arc<Gauge>,
    jobs: mpsc::Sender<Job>,
    phase: watch::Sender<Phase>,
}

impl ScriptInstance {
    /// Starts the threads and waits until each has loaded the script.
    pub(super) fn start(live: &Arc<Live>, kind: Kind, config: &Json) -> Result<Self, StartError> {
        let count = if kind == Kind::Service { SERVICE_THREADS } else { 1 };
        let config = Arc::new(config.clone());
        let limit = live.limits.start.min(LONGEST);
        let deadline = Instant::now() + limit;
        let mut instance = Self {
            live: Arc::clone(live),
            kind,
            threads: Vec::new(),
            alive: Arc::default(),
            draining: AtomicBool::new(false),
        };
        let (ready, started) = blocking::sync_channel(count);
        for number in 0..count {
            // Dropping the instance ends those that did start.
            instance.spawn(number, &config, ready.clone())?;
        }
        drop(ready);
        for _ in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            match started.recv_timeout(left) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(blocking::RecvTimeoutError::Timeout) => return Err(StartError::Timeout(limit)),
                Err(blocking::RecvTimeoutError::Disconnected) => {
                    return Err(StartError::Crashed("its thread ended".into()));
                }
            }
        }
        Ok(instance)
    }

    fn spawn(
        &mut self,
        number: usize,
        config: &Arc<Json>,
        ready: blocking::SyncSender<Result<(), ScriptError>>,
    ) -> Result<(), StartError> {
        let gauge = Arc::new(Gauge::default());
        let (jobs, receiver) = mpsc::channel(self.live.limits.queue.max(1));
        let (phase, phases) = watch::channel(Phase::Serving);
        let start = Start {
            live: Arc::clone(&self.live),
            gauge: Arc::clone(&gauge),
            config: Arc::clone(config),
            jobs: receiver,
            phase: phases,
            ready,
        };
        let alive = Arc::clone(&self.alive);
        alive.fetch_add(1, Ordering::Relaxed);
        // The system keeps 15 bytes of a name.
        let name: String = self.live.name().chars().take(10).collect();
        let spawned = thread::Builder::new()
            .name(format!("lua-{name}{number}"))
            .stack_size(STACK)
            .spawn(move || {
                worker::run(start);
                alive.fetch_sub(1, Ordering::Release);
            });
        if let Err(e) = spawned {
            self.alive.fetch_sub(1, Ordering::Relaxed);
            return Err(StartError::Refused(format!("no thread for it: {e}")));
        }
        self.threads.push(Thread { gauge, jobs, phase });
        Ok(())
    }

    /// The thread with the fewest streams, of those that do not compute.
    fn least_busy(&self) -> Option<&Thread> {
        let now = Instant::now();
        self.threads.iter().min_by_key(|thread| {
            let computes = thread
                .gauge
                .running()
                .is_some_and(|(_, since)| now.saturating_duration_since(since) > COMPUTES);
            (computes, thread.gauge.streams.load(Ordering::Relaxed))
        })
    }

    fn open_streams(&self) -> usize {
        self.threads.iter().map(|thread| thread.gauge.streams.load(Ordering::Relaxed)).sum()
    }

    /// Gives a question to the one thread of a rule or sink.
    fn ask<T: Send + 'static>(
        &self,
        kind: Kind,
        job: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Job,
    ) -> BoxFuture<Result<T, Failure>> {
        if self.kind != kind {
            return Box::pin(ready(Err(Failure::Unsupported)));
        }
        let Some(thread) = self.threads.first() else {
            return Box::pin(ready(Err(Failure::Ended)));
        };
        let (reply, answer) = oneshot::channel();
        match thread.jobs.try_send(job(reply)) {
            Ok(()) => Box::pin(async move { answer.await.unwrap_or(Err(Failure::Ended)) }),
            Err(TrySendError::Full(_)) => {
                let most = self.live.limits.queue;
                let text = format!("{most} questions wait for the script already");
                Box::pin(ready(Err(Failure::Failed(text))))
            }
            Err(TrySendError::Closed(_)) => Box::pin(ready(Err(Failure::Ended))),
        }
    }
}

impl Instance for ScriptInstance {
    fn open(&self, mut stream: BoxStream) {
        if self.draining.load(Ordering::Acquire) {
            return stream.reset("the script is ending");
        }
        let most = self.live.limits.streams;
        if self.open_streams() >= most {
            return stream.reset(&format!("the script has {most} streams already"));
        }
        let Some(thread) = self.least_busy().filter(|_| self.kind == Kind::Service) else {
            return stream.reset("the script is no service");
        };
        thread.gauge.streams.fetch_add(1, Ordering::Relaxed);
        self.live.streams.fetch_add(1, Ordering::Relaxed);
        let (job, reason) = match thread.jobs.try_send(Job::Stream(stream)) {
            Ok(()) => return,
            Err(TrySendError::Full(job)) => (job, "too much waits for the script"),
            Err(TrySendError::Closed(job)) => (job, "the script has ended"),
        };
        thread.gauge.streams.fetch_sub(1, Ordering::Relaxed);
        if let Job::Stream(mut stream) = job {
            stream.reset(reason);
        }
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes) {
        if self.draining.load(Ordering::Acquire) || self.kind != Kind::Service {
            return;
        }
        if let Some(thread) = self.threads.iter().max_by_key(|thread| thread.jobs.capacity()) {
            // A datagram for which there is no room is lost, as on any network.
            let _ = thread.jobs.try_send(Job::Datagram { from, port, data });
        }
    }

    fn validate(&self, request: JoinRequest) -> BoxFuture<Result<Verdict, Failure>> {
        self.ask(Kind::Rule, |reply| Job::Validate(Box::new(request), reply))
    }

    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>> {
        self.ask(Kind::Sink, |reply| Job::Deliver(batch, reply))
    }

    fn drain(&self, deadline: Duration) {
        self.draining.store(true, Ordering::Release);
        let at = tokio::time::Instant::now() + deadline.min(LONGEST);
        for thread in &self.threads {
            thread.phase.send_replace(Phase::Draining(at));
        }
    }

    fn stats(&self) -> Stats {
        let gauges = || self.threads.iter().map(|thread| &*thread.gauge);
        Stats {
            streams: self.open_streams(),
            streams_total: self.live.streams.load(Ordering::Relaxed),
            queue: self
                .threads
                .iter()
                .map(|thread| thread.jobs.max_capacity() - thread.jobs.capacity())
                .sum(),
            cpu: gauges().map(Gauge::cpu).sum(),
            calls: self.live.calls.load(Ordering::Relaxed),
            errors: self.live.errors(),
            last_error: self.live.last_error(),
            running: gauges().filter_map(Gauge::running).min_by_key(|(_, since)| *since),
            memory: Some(gauges().map(Gauge::memory).sum()),
            ended: self.alive.load(Ordering::Acquire) == 0,
        }
    }
}

impl Drop for ScriptInstance {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.gauge.halt.store(true, Ordering::Relaxed);
            thread.phase.send_replace(Phase::Stopped);
        }
    }
}
