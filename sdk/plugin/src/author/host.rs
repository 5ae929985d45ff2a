//! What the host does for a plugin.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::error::Error;
use super::instance::Shared;
use super::store::Store;
use super::stream::Stream;
use crate::abi;

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something a person should look at.
    Warn,
    /// What happened.
    Info,
    /// Details.
    Debug,
}

/// The host, as one instance sees it. Cheap to clone; stays on the instance's
/// thread.
#[derive(Clone)]
pub struct Host {
    pub(super) shared: Rc<Shared>,
}

impl Host {
    /// Writes a line to the host's log, under the plugin's name.
    pub fn log(&self, level: Level, text: impl AsRef<str>) {
        let level = match level {
            Level::Error => abi::LOG_ERROR,
            Level::Warn => abi::LOG_WARN,
            Level::Info => abi::LOG_INFO,
            Level::Debug => abi::LOG_DEBUG,
        };
        self.shared.raw.log(level, text.as_ref());
    }

    /// Runs a future beside the others until it ends or the instance does.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.shared.tasks.spawn(future);
    }

    /// Waits.
    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Unpin + use<> {
        Sleep { shared: Rc::clone(&self.shared), time, token: None }
    }

    /// The result of `future`, or `None` when it takes longer.
    pub async fn timeout<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        let (mut future, mut sleep) = (pin!(future), pin!(self.sleep(time)));
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Does work that blocks (files, lookups) on another thread. A panic there
    /// is one here.
    ///
    /// # Errors
    /// When no thread can be made.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.shared.pool.run(work)?;
        Ok(done.await)
    }

    /// Opens a stream to `ADDRESS:PORT` or `HOSTNAME:PORT`.
    ///
    /// # Errors
    /// When the peer cannot be found, does not answer or refuses, and when the
    /// configuration does not grant `dial`.
    pub async fn dial(&self, to: &str) -> Result<Stream, Error> {
        let token = self.shared.dial_token();
        let asked = self.shared.raw.dial(token, to);
        let (status, body) = self.answer(token, asked).await;
        let text = String::from_utf8_lossy(&body);
        if status != abi::OK {
            return Err(Error::new(format!("cannot dial {to}: {}", say(status, &text))));
        }
        let id = text.parse()?;
        let (stream, user) = Stream::adopt(&self.shared, id, 0);
        match self.shared.raw.attach(id, user) {
            Ok(()) => Ok(stream),
            Err(status) => Err(Error::new(format!("cannot dial {to}: {}", say(status, "")))),
        }
    }

    /// Asks the host for something by name (`docs/PLUGINS.md`, "Host methods").
    ///
    /// # Errors
    /// When the host has no such method, the configuration does not grant it,
    /// or it fails.
    pub async fn call(&self, method: &str, request: impl Serialize) -> Result<Value, Error> {
        let request = serde_json::to_string(&request)?;
        let token = self.shared.token();
        let asked = self.shared.raw.call(token, method, &request);
        let (status, body) = self.answer(token, asked).await;
        if status != abi::OK {
            let text = String::from_utf8_lossy(&body);
            return Err(Error::new(format!("{method}: {}", say(status, &text))));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Sends a datagram to `ADDRESS:PORT`, not acknowledged.
    ///
    /// # Errors
    /// When it is not even tried.
    pub fn send_datagram(&self, to: &str, source_port: u16, data: &[u8]) -> Result<(), Error> {
        self.shared
            .raw
            .send_datagram(to, source_port, data)
            .map_err(|status| Error::new(format!("datagram to {to}: {}", say(status, ""))))
    }

    /// Emits an event; `data` becomes a JSON object.
    ///
    /// # Errors
    /// When it is not an object, or the plugin emits more than it may.
    pub fn emit(&self, name: &str, data: impl Serialize) -> Result<(), Error> {
        let data = serde_json::to_string(&data)?;
        self.shared
            .raw
            .emit(name, &data)
            .map_err(|status| Error::new(format!("event {name}: {}", say(status, ""))))
    }

    /// Adds to a counter of the plugin.
    pub fn count(&self, name: &str, n: u64) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        self.shared.raw.metric(abi::METRIC_COUNTER, name, n as f64);
    }

    /// Sets a gauge of the plugin.
    pub fn gauge(&self, name: &str, value: f64) {
        self.shared.raw.metric(abi::METRIC_GAUGE, name, value);
    }

    /// The plugin's own store.
    pub fn store(&self) -> Store {
        Store { shared: Rc::clone(&self.shared) }
    }

    async fn answer(&self, token: u64, asked: Result<(), i32>) -> (i32, Vec<u8>) {
        if let Err(status) = asked {
            self.shared.forget(token);
            return (status, Vec::new());
        }
        let waiting = Waiting { shared: &self.shared, token };
        std::future::poll_fn(|cx| waiting.shared.poll_answer(token, cx)).await
    }
}

/// A question under way; dropped, nobody waits for its answer.
struct Waiting<'a> {
    shared: &'a Shared,
    token: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.token);
    }
}

struct Sleep {
    shared: Rc<Shared>,
    time: Duration,
    /// Once it is set.
    token: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let token = match self.token {
            Some(token) => token,
            None => {
                let token = self.shared.token();
                // The largest takes a timer back.
                let nanos = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
                self.token = Some(token);
                if let Err(status) = self.shared.raw.timer(token, nanos.min(u64::MAX - 1)) {
                    // To wait for ever, or not at all, would be worse.
                    panic!("the host sets no timer: {}", say(status, ""));
                }
                token
            }
        };
        self.shared.poll_answer(token, cx).map(drop)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            // There may be none.
            let _ = self.shared.raw.timer(token, u64::MAX);
            self.shared.forget(token);
        }
    }
}

fn say(status: i32, text: &str) -> String {
    if !text.is_empty() {
        return text.to_owned();
    }
    match status {
        abi::DENIED => "the configuration does not grant it (key `grants` of the plugin)",
        abi::UNSUPPORTED => "the host does not do that",
        abi::LIMIT => "a limit of the plugin is reached",
        abi::INVALID => "the host does not understand it",
        _ => "the host could not",
    }
    .to_owned()
}
