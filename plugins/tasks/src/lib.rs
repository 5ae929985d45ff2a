//! Port 1003: task submission (protocol page "Services", section 7).
//!
//! This file moves frames between streams and the task files, and keeps time.
//! Decisions are in `desk`, files in `folder`, what waits in `queue`. A
//! connection carries one frame, as published.
#![forbid(unsafe_code)]

mod config;
mod desk;
mod folder;
mod queue;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_plugin::json::{self, Value, json};
use pilot_plugin::wire::service::tasks::{
    self, ACCEPTED, CANCELLED_TEXT, EXPIRED_COST, FrameHeader, HEADER_LEN, Kind, NEW_CHECK_SECS,
    PORT, RECEIVED_TEXT, REFUSED, Results, STAGED_CHECK_SECS, SUBMITTER_COST, Status, StatusUpdate,
    Submit, SubmitAnswer, TaskId, UNVERIFIED_TEXT,
};
use pilot_plugin::wire::{Address, NodeId};
use pilot_plugin::{Error, Host, Level, Manifest, Peer, Plugin, Stream};

use config::Config;
use desk::{EXPIRED_TEXT, Head};
use folder::{Folder, Unanswered};
use queue::{Queue, Scores};

/// Keys of the store.
const QUEUE: &str = "queue";
const SCORES: &str = "scores";
/// A frame that has not come whole after this resets its connection.
const FRAME_TIME: Duration = Duration::from_secs(120);
/// The registry's answer is waited for so long.
const REGISTRY_TIME: Duration = Duration::from_secs(10);
/// Longest frame of a status, in bytes.
const MAX_STATUS: usize = 64 << 10;
/// Room in the frame of a submission beside the description, in bytes.
const SUBMIT_REST: usize = 64 << 10;
/// JSON takes up to so many bytes for one of a text.
const ESCAPED: usize = 6;
/// Unanswered tasks looked at in one go; the rest is next time.
const CANCEL: usize = 256;
/// Tasks that leave the head of the queue in one go.
const LEAVE: usize = 256;

struct Tasks {
    state: Rc<State>,
}

struct State {
    host: Host,
    config: Config,
    /// Once it was opened and the store was read.
    folder: RefCell<Option<Arc<Folder>>>,
    queue: RefCell<Queue>,
    scores: RefCell<Scores>,
    /// Received tasks that nobody has answered, and when they are cancelled.
    unanswered: RefCell<BTreeMap<TaskId, i64>>,
    /// This node, once it is known.
    own: Cell<Option<Address>>,
    /// Bytes of frames that have not come whole.
    begun: Cell<usize>,
    /// The registry is being told of points.
    telling: Cell<bool>,
    draining: Cell<bool>,
}

impl Plugin for Tasks {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("tasks", env!("CARGO_PKG_VERSION"))
            .describe("takes tasks from peers, and results of tasks sent to them")
            .service("tasks", &[PORT])
            .needs("node.folders")
            .needs("node.status")
            .needs("registry.polo_score")
            .needs("registry.update_polo_score")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        config.check()?;
        // A store that cannot be read is better known now.
        host.store().get(QUEUE)?;
        let state = Rc::new(State {
            host: host.clone(),
            config,
            folder: RefCell::default(),
            queue: RefCell::default(),
            scores: RefCell::default(),
            unanswered: RefCell::default(),
            own: Cell::new(None),
            begun: Cell::new(0),
            telling: Cell::new(false),
            draining: Cell::new(false),
        });
        host.spawn(keep_time(Rc::clone(&state)));
        Ok(Self { state })
    }

    async fn serve(&self, mut stream: Stream, peer: Peer) -> Result<(), Error> {
        let state = &self.state;
        let frame = state.host.timeout(FRAME_TIME, state.read(&mut stream)).await;
        let (kind, body) = match frame {
            Some(frame) => frame?,
            None => return Err(Error::new("no whole frame within 2 minutes")),
        };
        match kind {
            Kind::Submit => {
                let answer = state.submit(&body, &peer).await;
                let answer = tasks::frame(Kind::Submit, &answer)?;
                stream.send(answer).await?;
            }
            Kind::StatusUpdate => {
                let update: StatusUpdate = tasks::parse(&body)?;
                state.update(update, &peer).await?;
            }
            Kind::SendResults => {
                let results: Results = tasks::parse(&body)?;
                drop(body);
                state.complete(results, &peer).await?;
            }
            // Nothing is said on these, as published.
            Kind::Result | Kind::Unknown(_) => state.host.count("frames_ignored", 1),
        }
        Ok(())
    }

    fn drain(&self) {
        self.state.draining.set(true);
    }
}

/// Counts the bytes of a frame while it is read.
struct Begun<'a> {
    count: &'a Cell<usize>,
    bytes: Vec<u8>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.count.set(self.count.get() - self.bytes.len());
    }
}

/// The registry is being told of points until this is dropped.
struct Telling<'a>(&'a Cell<bool>);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl State {
    /// The frame of a connection.
    async fn read(&self, stream: &mut Stream) -> Result<(Kind, Vec<u8>), Error> {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let FrameHeader { kind, len } = FrameHeader::decode(header)?;
        let max = match kind {
            Kind::Submit => self.config.max_description.saturating_mul(ESCAPED) + SUBMIT_REST,
            Kind::SendResults => self.config.max_results,
            Kind::StatusUpdate | Kind::Result | Kind::Unknown(_) => MAX_STATUS,
        };
        if len > max {
            return Err(Error::new(format!("a {kind} frame of {len} bytes, at most {max}")));
        }
        let mut begun = Begun { count: &self.begun, bytes: Vec::new() };
        while begun.bytes.len() < len {
            let Some(data) = stream.recv().await? else {
                return Err(Error::new(format!("the stream ended within a {kind} frame")));
            };
            // What follows the frame is not looked at.
            let part = &data[..data.len().min(len - begun.bytes.len())];
            begun.bytes.extend_from_slice(part);
            self.begun.set(self.begun.get() + part.len());
            let max = self.config.max_begun;
            if self.begun.get() > max {
                return Err(Error::new(format!("more than {max} bytes of unfinished frames")));
            }
        }
        self.begun.set(self.begun.get() - begun.bytes.len());
        Ok((kind, std::mem::take(&mut begun.bytes)))
    }

    /// Takes a task, or says why not.
    async fn submit(&self, body: &[u8], peer: &Peer) -> SubmitAnswer {
        let submit: Submit = match tasks::parse(body) {
            Ok(submit) => submit,
            Err(why) => {
                let message = format!("Invalid submission: {why}");
                self.tell_refused(peer, &message);
                return SubmitAnswer { task_id: String::new(), status: REFUSED, message };
            }
        };
        let id = submit.task_id.clone();
        let (status, message) = match self.take(submit, peer).await {
            Ok(()) => {
                self.host.count("received", 1);
                let from = peer.address.address;
                self.emit("task.received", &json!({ "task_id": id, "from": from }));
                (ACCEPTED, RECEIVED_TEXT.to_owned())
            }
            Err(message) => {
                self.tell_refused(peer, &message);
                (REFUSED, message)
            }
        };
        SubmitAnswer { task_id: id.as_str().to_owned(), status, message }
    }

    async fn take(&self, submit: Submit, peer: &Peer) -> Result<(), String> {
        let max = self.config.max_description;
        if submit.task_description.len() > max {
            return Err(format!("The description is too long: at most {max} bytes"));
        }
        if self.draining.get() {
            return Err("The executor is being replaced, try again".to_owned());
        }
        let folder = self.folder().await.map_err(|why| {
            self.host.log(Level::Error, why.to_string());
            "The task could not be stored".to_owned()
        })?;
        self.check_scores(peer.node()).await?;
        // The score took a while, and a new generation counts from the store.
        if self.draining.get() {
            return Err("The executor is being replaced, try again".to_owned());
        }
        let (id, unix) = (submit.task_id.clone(), unix_now());
        let Config { max_queue, max_per_node, max_received, .. } = self.config;
        let begun = self.queue.borrow_mut().begin(&id, peer.node(), max_queue, max_per_node, unix);
        begun.map_err(|full| full.to_string())?;
        let file = desk::received(submit, peer.address.address, self.own.get(), unix);
        let cancel_at = desk::cancel_at(&file);
        let done = self.host.blocking(move || folder.receive(&file, max_received)).await;
        let done = done.map_err(|why| why.to_string()).and_then(|done| done);
        if let Err(why) = done {
            self.queue.borrow_mut().remove(&id, unix);
            return Err(why);
        }
        self.unanswered.borrow_mut().insert(id.clone(), cancel_at);
        self.queue.borrow_mut().finish(&id);
        if let Err(why) = self.keep_queue() {
            // Its file is cancelled in a minute.
            self.queue.borrow_mut().remove(&id, unix);
            self.host.log(Level::Error, why.to_string());
            return Err("The task could not be stored".to_owned());
        }
        Ok(())
    }

    async fn check_scores(&self, submitter: NodeId) -> Result<(), String> {
        let scores = async {
            let own = self.own().await?.node;
            Ok::<_, Error>((self.score(submitter).await?, self.score(own).await?))
        };
        match self.host.timeout(REGISTRY_TIME, scores).await {
            Some(Ok((submitter, receiver))) => tasks::check_scores(submitter, receiver),
            Some(Err(why)) => {
                self.host.log(Level::Warn, format!("polo scores: {why}"));
                Err(UNVERIFIED_TEXT.to_owned())
            }
            None => Err(UNVERIFIED_TEXT.to_owned()),
        }
    }

    async fn score(&self, node: NodeId) -> Result<i64, Error> {
        let answer = self.host.call("registry.polo_score", json!({ "node_id": node })).await?;
        let score = answer.get("polo_score").and_then(Value::as_i64);
        score.ok_or_else(|| Error::new("registry.polo_score: no polo_score in the answer"))
    }

    /// This node's address.
    async fn own(&self) -> Result<Address, Error> {
        if let Some(own) = self.own.get() {
            return Ok(own);
        }
        let status = self.host.call("node.status", json!({})).await?;
        let node = status.get("node_id").and_then(Value::as_u64);
        let node = node.and_then(|n| u32::try_from(n).ok()).filter(|n| *n != 0);
        let text = status.get("address").and_then(Value::as_str);
        let address = text.and_then(|text| text.parse().ok());
        let own = address.or_else(|| node.map(|n| Address::backbone(NodeId(n))));
        let own = own.ok_or_else(|| Error::new("this node has no address yet"))?;
        self.own.set(Some(own));
        Ok(own)
    }

    /// Takes the status of a task that was sent from here.
    async fn update(&self, update: StatusUpdate, peer: &Peer) -> Result<(), Error> {
        let (folder, node) = (self.folder().await?, peer.node());
        let (id, status, reason) =
            (update.task_id.clone(), update.status, update.justification.clone());
        match self.host.blocking(move || folder.update(&update, node)).await? {
            Ok(from) => {
                let data = json!({ "task_id": id, "from": from });
                match status {
                    Status::Accepted => self.emit("task.accepted", &data),
                    Status::Declined => {
                        let data = json!({ "task_id": id, "from": from, "reason": reason });
                        self.emit("task.declined", &data);
                    }
                    // The others go with what the executor sends next.
                    _ => {}
                }
            }
            Err(why) => self.tell_refused(peer, &why.to_string()),
        }
        Ok(())
    }

    /// Takes the results of a task that was sent from here.
    async fn complete(&self, results: Results, peer: &Peer) -> Result<(), Error> {
        let (folder, node) = (self.folder().await?, peer.node());
        let (id, max, unix) = (results.task_id.clone(), self.config.max_results_kept, unix_now());
        let done = self.host.blocking(move || folder.complete(&results, node, max, unix)).await?;
        match done {
            Ok(done) => {
                self.host.count("completed", 1);
                let data = json!({ "task_id": id, "from": done.from });
                self.emit("task.completed", &data);
                self.owe(&[(None, -SUBMITTER_COST), (Some(node), done.reward)]);
                self.tell_scores().await;
            }
            Err(why) => self.tell_refused(peer, &why.to_string()),
        }
        Ok(())
    }

    /// The folder; opened, and the store read, when it is first needed, since
    /// until then an earlier generation may still write.
    async fn folder(&self) -> Result<Arc<Folder>, Error> {
        if let Some(folder) = &*self.folder.borrow() {
            return Ok(Arc::clone(folder));
        }
        let root = match &self.config.folder {
            Some(root) => root.clone(),
            None => {
                let folders = self.host.call("node.folders", json!({})).await?;
                let tasks = folders.get("tasks").and_then(Value::as_str).map(PathBuf::from);
                tasks
                    .ok_or_else(|| Error::new("node.folders: no folder \"tasks\", set `folder`"))?
            }
        };
        let shown = root.display().to_string();
        let opened = self.host.blocking(move || {
            let folder = Folder::open(root)?;
            let unanswered = folder.unanswered()?;
            Ok::<_, std::io::Error>((folder, unanswered))
        });
        let opened = opened.await?;
        let (folder, unanswered) =
            opened.map_err(|why| Error::new(format!("folder {shown}: {why}")))?;
        // Another connection may have been quicker.
        if let Some(folder) = &*self.folder.borrow() {
            return Ok(Arc::clone(folder));
        }
        let store = self.host.store();
        if let Some(text) = store.get(QUEUE)? {
            *self.queue.borrow_mut() = json::from_slice(&text)?;
        }
        if let Some(text) = store.get(SCORES)? {
            *self.scores.borrow_mut() = json::from_slice(&text)?;
        }
        self.unanswered.borrow_mut().extend(unanswered);
        let folder = Arc::new(folder);
        *self.folder.borrow_mut() = Some(Arc::clone(&folder));
        Ok(folder)
    }

    fn keep_queue(&self) -> Result<(), Error> {
        let queue = self.queue.borrow();
        #[expect(clippy::cast_precision_loss, reason = "a gauge for people")]
        self.host.gauge("queue", queue.len() as f64);
        self.host.store().put(QUEUE, &json::to_vec(&*queue)?)
    }

    /// Notes changes of points, for [`State::tell_scores`].
    fn owe(&self, changes: &[(Option<NodeId>, i64)]) {
        let mut scores = self.scores.borrow_mut();
        for (node, delta) in changes {
            scores.push(*node, *delta);
        }
        self.keep_scores(&scores);
    }

    fn keep_scores(&self, scores: &Scores) {
        let kept = json::to_vec(scores).map_err(Error::from);
        if let Err(why) = kept.and_then(|text| self.host.store().put(SCORES, &text)) {
            self.host.log(Level::Error, format!("points are not kept: {why}"));
        }
    }

    /// Tells the registry what is owed. What it does not take stays for the
    /// next time; a crash between its answer and our note of it counts twice.
    async fn tell_scores(&self) {
        if self.telling.replace(true) {
            return;
        }
        // Also when this is dropped half-way.
        let _telling = Telling(&self.telling);
        loop {
            let first = self.scores.borrow().first();
            let Some((node, delta)) = first else { break };
            let told = async {
                let node = match node {
                    Some(node) => node,
                    None => self.own().await?.node,
                };
                let change = json!({ "node_id": node, "delta": delta });
                self.host.call("registry.update_polo_score", change).await
            };
            match self.host.timeout(REGISTRY_TIME, told).await {
                Some(Ok(_)) => {
                    let mut scores = self.scores.borrow_mut();
                    scores.pop();
                    self.keep_scores(&scores);
                }
                Some(Err(why)) => {
                    self.host.log(Level::Warn, format!("points are told later: {why}"));
                    break;
                }
                None => break,
            }
        }
    }

    /// Cancels tasks that nobody has answered in time.
    async fn cancel_unanswered(&self, folder: &Arc<Folder>) -> Result<(), Error> {
        let unix = unix_now();
        let due: Vec<_> = {
            let all = self.unanswered.borrow();
            let due = all.iter().filter(|(_, at)| **at <= unix);
            due.map(|(id, _)| id.clone()).take(CANCEL).collect()
        };
        if due.is_empty() {
            return Ok(());
        }
        let folder = Arc::clone(folder);
        let work = move || due.into_iter().map(|id| (folder.cancel(&id), id)).collect::<Vec<_>>();
        let mut left = false;
        for (done, id) in self.host.blocking(work).await? {
            match done {
                Ok(Unanswered::Cancelled(from)) => {
                    left |= self.queue.borrow_mut().remove(&id, unix);
                    self.tell_expired(&id, &from, CANCELLED_TEXT);
                }
                Ok(Unanswered::Settled) => {}
                Err(why) => self.host.log(Level::Warn, format!("task {id}: {why}")),
            }
            self.unanswered.borrow_mut().remove(&id);
        }
        if left { self.keep_queue() } else { Ok(()) }
    }

    /// Looks at the head of the queue, and at the next one when it has left.
    async fn check_head(&self, folder: &Arc<Folder>) -> Result<(), Error> {
        let mut left = false;
        for _ in 0..LEAVE {
            let head = self.queue.borrow().head().map(|(id, since)| (id.clone(), since));
            let Some((id, since)) = head else { break };
            let (folder, task, unix) = (Arc::clone(folder), id.clone(), unix_now());
            let done = self.host.blocking(move || folder.head(&task, since, unix)).await?;
            match done {
                Ok((Head::Stay | Head::Stage, _)) => break,
                Ok((Head::Leave, _)) => {}
                Ok((Head::Expire, from)) => {
                    self.tell_expired(&id, &from, EXPIRED_TEXT);
                    self.owe(&[(None, -EXPIRED_COST)]);
                }
                Err(why) => self.host.log(Level::Warn, format!("task {id}: {why}")),
            }
            left |= self.queue.borrow_mut().remove(&id, unix);
        }
        if left { self.keep_queue() } else { Ok(()) }
    }

    fn tell_refused(&self, peer: &Peer, reason: &str) {
        self.host.count("refused", 1);
        self.emit("task.refused", &json!({ "from": peer.address.address, "reason": reason }));
    }

    fn tell_expired(&self, id: &TaskId, from: &str, reason: &str) {
        let data = json!({ "task_id": id, "from": from, "reason": reason });
        self.emit("task.expired", &data);
    }

    fn emit(&self, name: &str, data: &Value) {
        if self.host.emit(name, data).is_err() {
            self.host.count("events_refused", 1);
        }
    }
}

/// Does what is due.
async fn keep_time(state: Rc<State>) {
    let mut heads = 0;
    // What was said last, so that a lasting fault is said once.
    let mut said = String::new();
    loop {
        state.host.sleep(Duration::from_secs(NEW_CHECK_SECS)).await;
        if state.draining.get() {
            return;
        }
        heads += NEW_CHECK_SECS;
        let due = heads >= STAGED_CHECK_SECS;
        if due {
            heads = 0;
        }
        let done = async {
            let folder = state.folder().await?;
            state.cancel_unanswered(&folder).await?;
            if due {
                state.check_head(&folder).await?;
                state.tell_scores().await;
            }
            Ok::<_, Error>(())
        };
        let text = done.await.map_or_else(|why| why.to_string(), |()| String::new());
        if text != said && !text.is_empty() {
            state.host.log(Level::Error, &text);
        }
        said = text;
    }
}

fn unix_now() -> i64 {
    // A clock before 1970 counts as 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

pilot_plugin::export_plugin!(Tasks);
