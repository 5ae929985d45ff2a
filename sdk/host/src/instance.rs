//! One running generation of a plugin or script, whatever runs it, and what
//! the manager tells it and hears from it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Verdict};
use pilot_wire::SocketAddress;
use serde_json::Value;

use crate::platform::Platform;
use crate::stream::BoxStream;

/// An answer in a while, on any executor.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Something that was opened, and checked as far as that goes without running
/// it: a library, a child process, a script.
pub trait Backend: Send + Sync {
    /// What it says of itself.
    fn manifest(&self) -> &Manifest;

    /// Makes an instance, and has it test itself. `config` has passed the
    /// manifest's schema. May block, as long as `context.limits` allow.
    ///
    /// # Errors
    /// When it refuses, fails, panics or takes too long.
    fn start(&self, config: &Value, context: Context) -> Result<Arc<dyn Instance>, StartError>;
}

/// Why an instance did not start; the earlier one goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// It does not want this configuration, or cannot work.
    #[error("it did not start: {0}")]
    Refused(String),
    /// It started and its self-test failed.
    #[error("its self-test failed: {0}")]
    SelfTest(String),
    /// It panicked, crashed or broke the contract.
    #[error("it crashed while starting: {0}")]
    Crashed(String),
    /// It did not answer in time.
    #[error("it did not start within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// What an instance is made with.
#[derive(Clone)]
pub struct Context {
    /// Name of the plugin or script, unique in this process.
    pub name: Arc<str>,
    /// Counts the instances of this name, from 1.
    pub generation: u64,
    /// The process around it.
    pub platform: Arc<dyn Platform>,
    /// Its own key-value store.
    pub store: Arc<dyn KeyValue>,
    /// Told what goes wrong.
    pub observer: Arc<dyn Observer>,
    /// What it may use.
    pub limits: Limits,
    /// Host methods it may call; `*` is all.
    pub granted: Arc<[String]>,
}

/// What an instance may use. Reached limits are reported, see each.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Open streams; one more is reset.
    pub streams: usize,
    /// Messages waiting for its thread; one more stream or datagram is refused.
    pub queue: usize,
    /// Time for starting and the self-test.
    pub start: Duration,
    /// Time that one callback may take: beyond it the instance counts as hung.
    pub callback: Duration,
    /// Time for the verdict of a join rule; then it denies.
    pub validate: Duration,
    /// Time for the answer to a batch; then it is tried again.
    pub deliver: Duration,
    /// Share of one core over ten seconds; beyond it no new streams are given.
    pub cpu: f64,
    /// Bytes of memory: of a child process, or of a script's VM.
    pub memory: u64,
    /// Events emitted a second; more are refused.
    pub events: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 4096,
            queue: 16_384,
            start: Duration::from_secs(10),
            callback: Duration::from_secs(5),
            validate: Duration::from_secs(5),
            deliver: Duration::from_secs(60),
            cpu: 0.9,
            memory: 256 << 20,
            events: 1000,
        }
    }
}

/// A running generation. No method blocks; all may be called on any thread.
pub trait Instance: Send + Sync {
    /// Gives it a stream that came in on one of its ports. It takes it over,
    /// or resets it when it cannot.
    fn open(&self, stream: BoxStream);

    /// Gives it a datagram.
    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes);

    /// Asks a join rule.
    fn validate(&self, request: JoinRequest) -> BoxFuture<Result<Verdict, Failure>>;

    /// Gives a sink its next batch.
    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>>;

    /// No new streams come. After `deadline` those that are left are reset, and
    /// the instance ends; earlier when none is left.
    fn drain(&self, deadline: Duration);

    /// How it stands.
    fn stats(&self) -> Stats;
}

/// A join rule or sink gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It does not provide this.
    #[error("it does not provide this")]
    Unsupported,
    /// It returned an error.
    #[error("{0}")]
    Failed(String),
    /// It panicked or crashed.
    #[error("it crashed: {0}")]
    Crashed(String),
    /// It did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// It is ending or has ended.
    #[error("it has ended")]
    Ended,
}

/// How an instance stands.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Streams open now.
    pub streams: usize,
    /// Streams since it started.
    pub streams_total: u64,
    /// Messages waiting for its thread.
    pub queue: usize,
    /// Processor time used since it started.
    pub cpu: Duration,
    /// Calls into it since it started.
    pub calls: u64,
    /// Streams, verdicts and batches that failed since it started.
    pub errors: u64,
    /// The last failure: for a script with file, line and traceback.
    pub last_error: Option<String>,
    /// The callback that is running, and since when.
    pub running: Option<(&'static str, Instant)>,
    /// Bytes of memory, where that is known.
    pub memory: Option<u64>,
    /// Whether it has ended, in order or not.
    pub ended: bool,
}

/// Hears what happens to instances. No method blocks.
pub trait Observer: Send + Sync {
    /// Something went wrong with generation `generation` of `name`.
    fn incident(&self, name: &str, generation: u64, incident: Incident);
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incident {
    /// A callback panicked; the instance should be replaced.
    Panicked {
        /// Which one.
        callback: &'static str,
        /// What it said.
        text: String,
    },
    /// A callback takes too long; the instance takes nothing more, its streams
    /// are reset, and it should be replaced.
    Hung {
        /// Which one.
        callback: &'static str,
    },
    /// It has ended although nobody asked for it; its streams are reset.
    Died {
        /// Why: signal, exit code, out of memory.
        text: String,
    },
    /// A stream, verdict or batch failed. The instance goes on.
    Failed {
        /// What, with script and line where there are any.
        text: String,
    },
}

/// A small durable store with a quota, one per plugin; generations share it.
/// Calls may block on the disk.
pub trait KeyValue: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sets a value; durable when it returns.
    ///
    /// # Errors
    /// When the quota does not allow it, or the disk fails.
    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// Removes a key; that there was none is no error.
    ///
    /// # Errors
    /// When the disk fails.
    fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError>;
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Beyond the quota; nothing was written.
    #[error("the store of {plugin} would take {wanted} bytes, its quota is {quota}")]
    Quota {
        /// Whose.
        plugin: String,
        /// Bytes that it would take.
        wanted: u64,
        /// Bytes that it may take.
        quota: u64,
    },
    /// The key is empty or too long.
    #[error("a key has 1 to 256 bytes, this one {0}")]
    Key(usize),
    /// The disk.
    #[error("the store cannot be used: {0}")]
    Disk(String),
}

/// Longest name of a plugin, service, rule or sink, in bytes.
const MAX_NAME: usize = 64;
/// Services, rules and sinks of one plugin, each; ports of one service.
const MAX_PROVIDED: usize = 64;

/// Whether a manifest can be used.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_manifest(manifest: &Manifest) -> Result<(), String> {
    let name = |what: &str, name: &str| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
            return Err(format!(
                "the name of {what} is {name:?}; a name has 1 to {MAX_NAME} lower-case letters, \
                 digits, '-', '_' or '.'"
            ));
        }
        Ok(())
    };
    name("the plugin", &manifest.name)?;
    for service in &manifest.services {
        name("a service", &service.name)?;
        if service.ports.len() > MAX_PROVIDED {
            return Err(format!("service {} has more than {MAX_PROVIDED} ports", service.name));
        }
    }
    for rule in &manifest.rules {
        name("a rule", &rule.name)?;
    }
    for sink in &manifest.sinks {
        name("a sink", &sink.name)?;
    }
    for (what, many) in [
        ("services", manifest.services.len()),
        ("rules", manifest.rules.len()),
        ("sinks", manifest.sinks.len()),
    ] {
        if many > MAX_PROVIDED {
            return Err(format!("it provides {many} {what}, {MAX_PROVIDED} are allowed"));
        }
    }
    if manifest.services.is_empty() && manifest.rules.is_empty() && manifest.sinks.is_empty() {
        return Err("it provides no service, no rule and no sink".to_owned());
    }
    Ok(())
}
