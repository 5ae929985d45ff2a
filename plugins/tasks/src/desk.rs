//! What becomes of a task: decisions on task files. Knows nothing of streams,
//! folders and clocks; moments are arguments.
//!
//! Stricter than published: a status or a result counts only from the node that
//! the task was sent to, results come once, and an executor cannot have worked
//! for longer than the task exists.

use pilot_plugin::wire::service::rfc3339;
use pilot_plugin::wire::service::tasks::{
    self, NEW_SECS, ResultType, Results, STAGED_SECS, Status, StatusUpdate, Submit, TaskFile,
    TaskId,
};
use pilot_plugin::wire::{Address, NodeId};

/// `status_justification` of a task with results.
const COMPLETED_TEXT: &str = "Task completed: the results have come";
/// `status_justification` of an expired task.
pub(crate) const EXPIRED_TEXT: &str = "Task expired: at the head of the queue for over 1 hour";

/// Why a message of a peer has no effect; for the log and the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no task {0} was submitted from here")]
    Unknown(TaskId),
    #[error("task {task} was sent to {sent_to:?}, not to node {node}")]
    NotExecutor { task: TaskId, sent_to: String, node: NodeId },
    #[error("a task that is {from} does not become {to}")]
    Order { from: Status, to: Status },
    #[error("the results of task {0} have come before")]
    Again(TaskId),
    #[error("{0:?} is not to be used as the name of a file")]
    FileName(String),
    #[error("the file is not base64: {0}")]
    Contents(String),
    #[error("{0:?} exists and is not written over")]
    Exists(String),
    #[error("more than {0} bytes of results would be kept (key `max-results-kept`)")]
    Room(u64),
    #[error("{0}")]
    Disk(String),
}

/// The file of a task that was submitted to us. Its sender is the node of the
/// connection, whatever the message says; of several addresses of that node
/// the message may name one.
pub(crate) fn received(submit: Submit, from: Address, own: Option<Address>, unix: i64) -> TaskFile {
    let named = |text: &str| text.parse::<Address>().ok();
    let from = named(&submit.from_addr).filter(|a| a.node == from.node).unwrap_or(from);
    let to = named(&submit.to_addr).or(own).map(|a| a.to_string()).unwrap_or_default();
    let Submit { task_id, task_description, .. } = submit;
    TaskFile::new(task_id, task_description, rfc3339::format(unix), from.to_string(), to)
}

/// Sets the status in the file of a task that we submitted.
///
/// # Errors
/// When it does not count; the file is as before.
pub(crate) fn update(
    file: &mut TaskFile,
    update: &StatusUpdate,
    node: NodeId,
) -> Result<(), Refusal> {
    check_executor(file, node)?;
    if !file.status.may_become(update.status) {
        return Err(Refusal::Order { from: file.status, to: update.status });
    }
    file.status = update.status;
    file.status_justification.clone_from(&update.justification);
    Ok(())
}

/// Results for a task that we submitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Name of the file that keeps them.
    pub(crate) name: String,
    pub(crate) contents: Vec<u8>,
    /// What the executor earns.
    pub(crate) reward: i64,
    /// The submitter's address, in the task file.
    pub(crate) from: String,
}

/// Takes results into the file of a task that we submitted.
///
/// # Errors
/// When they do not count; the file is as before.
pub(crate) fn complete(
    file: &mut TaskFile,
    results: &Results,
    node: NodeId,
    unix: i64,
) -> Result<Done, Refusal> {
    check_executor(file, node)?;
    if !file.completed_at.is_empty() {
        return Err(Refusal::Again(results.task_id.clone()));
    }
    // An update to the final status may have come before the results.
    let done = matches!(file.status, Status::Completed | Status::Succeeded);
    if !done && !file.status.may_become(Status::Completed) {
        return Err(Refusal::Order { from: file.status, to: Status::Completed });
    }
    let Some(name) = results.stored_name() else {
        return Err(Refusal::FileName(results.filename.chars().take(80).collect()));
    };
    let contents = match results.result_type {
        ResultType::Text => results.result_text.clone().into_bytes(),
        ResultType::File => {
            results.file_bytes().map_err(|why| Refusal::Contents(why.to_string()))?
        }
    };
    let created = rfc3339::parse(&file.created_at);
    let exists = created.map_or(0, |ms| unix.saturating_mul(1000).saturating_sub(ms).max(0));
    let worked = results.time_cpu_ms.clamp(0, exists);
    file.status = Status::Completed;
    COMPLETED_TEXT.clone_into(&mut file.status_justification);
    let said = rfc3339::parse(&results.completed_at).is_some();
    file.completed_at = if said { results.completed_at.clone() } else { rfc3339::format(unix) };
    file.time_idle_ms = results.time_idle_ms;
    file.time_staged_ms = results.time_staged_ms;
    file.time_cpu_ms = worked;
    let reward = tasks::reward(worked, results.time_idle_ms, results.time_staged_ms);
    Ok(Done { name, contents, reward, from: file.from.clone() })
}

/// What is to be done about a task that somebody submitted to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// Nothing yet.
    Stay,
    /// Note in its file since when it is at the head.
    Stage,
    /// It was there for too long.
    Expire,
    /// Its place in the queue is free.
    Leave,
}

/// Looks at the head of the queue, which it has been since `since`.
pub(crate) fn head(file: Option<&TaskFile>, since: i64, unix: i64) -> Head {
    let Some(file) = file else { return Head::Leave };
    let waits = matches!(file.status, Status::New | Status::Accepted);
    if !waits {
        return Head::Leave;
    }
    if unix.saturating_sub(since) > i64::try_from(STAGED_SECS).unwrap_or(i64::MAX) {
        return Head::Expire;
    }
    let staged = file.status == Status::New || !file.staged_at.is_empty();
    if staged { Head::Stay } else { Head::Stage }
}

/// When a task that came in at `created_at` is to be cancelled unless somebody
/// answers; one without a moment at once.
pub(crate) fn cancel_at(file: &TaskFile) -> i64 {
    let life = i64::try_from(NEW_SECS).unwrap_or(i64::MAX);
    rfc3339::parse(&file.created_at).map_or(i64::MIN, |ms| ms.div_euclid(1000).saturating_add(life))
}

fn check_executor(file: &TaskFile, node: NodeId) -> Result<(), Refusal> {
    let sent_to = file.to.parse::<Address>().ok();
    if sent_to.is_some_and(|address| address.node == node) {
        return Ok(());
    }
    Err(Refusal::NotExecutor { task: file.task_id.clone(), sent_to: file.to.clone(), node })
}
