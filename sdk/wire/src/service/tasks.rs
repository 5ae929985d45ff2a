//! Task submission, port 1003 (protocol page "Services", section 7): frames,
//! their JSON, the task file that both sides keep, and the rules for scores.
//!
//! A frame is type (4), length (4), JSON. The executor handles one frame per
//! connection. Task IDs and file names come from peers and become parts of
//! paths, so they are types here that cannot leave their folder: [`TaskId`] is
//! 32 hex digits as 8-4-4-4-12, and [`file_name`] takes one path component.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The port of task submission.
pub const PORT: u16 = 1003;
/// Type and length before every JSON text.
pub const HEADER_LEN: usize = 8;
/// Longest JSON, in bytes; more fails the connection.
pub const MAX_PAYLOAD: usize = 16_777_216;
/// Longest file that fits a result frame, in bytes: base64 takes 4 bytes for
/// 3, and 64 KiB are left for the rest.
pub const MAX_FILE: usize = (MAX_PAYLOAD - (64 << 10)) / 4 * 3;
/// `status` of an accepted submission.
pub const ACCEPTED: u16 = 200;
/// `status` of a refused submission.
pub const REFUSED: u16 = 400;
/// `message` of an accepted submission.
pub const RECEIVED_TEXT: &str = "Task received with status NEW";
/// `message` of a submission whose scores could not be looked up.
pub const UNVERIFIED_TEXT: &str = "Failed to verify polo score";
/// `status_justification` of a new task file.
pub const NEW_TEXT: &str = "A new task was created";
/// `status_justification` of a task that nobody took in time.
pub const CANCELLED_TEXT: &str = "Task cancelled: no response within 1 minute";
/// A task still [`Status::New`] after so many seconds is cancelled.
pub const NEW_SECS: u64 = 60;
/// How often, in seconds, new tasks are looked at.
pub const NEW_CHECK_SECS: u64 = 10;
/// A task at the head of the queue for so many seconds expires.
pub const STAGED_SECS: u64 = 3600;
/// How often, in seconds, the head of the queue is looked at.
pub const STAGED_CHECK_SECS: u64 = 30;
/// What an expired task costs the executor.
pub const EXPIRED_COST: i64 = 1;
/// What a completed task costs the submitter.
pub const SUBMITTER_COST: i64 = 1;
/// Extensions of result files, in lower case.
pub const FILE_EXTENSIONS: [&str; 24] = [
    "md",
    "txt",
    "rtf",
    "docx",
    "pdf",
    "pptx",
    "pth",
    "pt",
    "onnx",
    "h5",
    "pb",
    "ckpt",
    "safetensors",
    "bin",
    "csv",
    "parquet",
    "xlsx",
    "xls",
    "jpg",
    "jpeg",
    "png",
    "svg",
    "gif",
    "webp",
];
/// Longest file name, in bytes: common file systems take 255, and the task's
/// ID and an underscore stand before it.
pub const MAX_FILE_NAME: usize = 255 - 37;

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Submit`], or in the other direction [`SubmitAnswer`].
    Submit,
    /// Not used.
    Result,
    /// [`StatusUpdate`].
    StatusUpdate,
    /// [`Results`].
    SendResults,
    /// Not known.
    Unknown(u32),
}

impl Kind {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::Submit => 1,
            Self::Result => 2,
            Self::StatusUpdate => 3,
            Self::SendResults => 4,
            Self::Unknown(n) => n,
        }
    }

    /// The type with this number.
    pub const fn from_number(n: u32) -> Self {
        match n {
            1 => Self::Submit,
            2 => Self::Result,
            3 => Self::StatusUpdate,
            4 => Self::SendResults,
            n => Self::Unknown(n),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submit => "SUBMIT",
            Self::Result => "RESULT",
            Self::StatusUpdate => "STATUS_UPDATE",
            Self::SendResults => "SEND_RESULTS",
            Self::Unknown(n) => return write!(f, "UNKNOWN({n})"),
        })
    }
}

/// Type and length of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Type.
    pub kind: Kind,
    /// Bytes of JSON.
    pub len: usize,
}

/// The length exceeds [`MAX_PAYLOAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task frame of {0} bytes, the limit is 16777216")]
pub struct TooLong(pub usize);

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the length exceeds the limit; the connection must then be closed.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, TooLong> {
        let [k0, k1, k2, k3, l0, l1, l2, l3] = bytes;
        let len = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD {
            return Err(TooLong(len));
        }
        Ok(Self { kind: Kind::from_number(u32::from_be_bytes([k0, k1, k2, k3])), len })
    }
}

/// A frame with `message` as JSON.
///
/// # Errors
/// When the JSON exceeds the limit.
pub fn frame<T: Serialize>(kind: Kind, message: &T) -> Result<Vec<u8>, TooLong> {
    let json = to_json(message);
    let len = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_PAYLOAD);
    let len = len.ok_or(TooLong(json.len()))?;
    let mut out = Vec::with_capacity(HEADER_LEN + json.len());
    out.extend_from_slice(&kind.number().to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(json.as_bytes());
    Ok(out)
}

/// A message in the JSON of a frame.
///
/// # Errors
/// When it is not such a message; the text says which key is wrong.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json)
}

/// JSON as published peers write it: on one line, with `<`, `>`, `&` and the
/// two line separators escaped.
pub fn to_json<T: Serialize>(message: &T) -> String {
    // The messages are structs of text and numbers: writing them cannot fail.
    let plain = serde_json::to_string(message).unwrap_or_default();
    escape(&plain)
}

/// Outside of texts JSON has none of these characters.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// The name of a task: 32 hex digits as 8-4-4-4-12. Safe as a part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(String);

/// Not a task ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid task ID: 32 hex digits as 8-4-4-4-12 are expected")]
pub struct InvalidTaskId;

impl TaskId {
    /// The ID made of 16 random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        let mut text = String::with_capacity(36);
        for (i, byte) in random.into_iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = InvalidTaskId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            });
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidTaskId) }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Asks the executor to take a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Made by the submitter.
    pub task_id: TaskId,
    /// What is to be done.
    #[serde(default)]
    pub task_description: String,
    /// The submitter's address as it says itself; what counts is the address
    /// of the connection.
    #[serde(default)]
    pub from_addr: String,
    /// The executor's address.
    #[serde(default)]
    pub to_addr: String,
}

/// The executor's answer to [`Submit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitAnswer {
    /// The task's, as it came; empty where a refused ID was none.
    #[serde(default)]
    pub task_id: String,
    /// [`ACCEPTED`] or [`REFUSED`].
    pub status: u16,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// Tells the submitter of a new status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusUpdate {
    /// The task.
    pub task_id: TaskId,
    /// Its status.
    pub status: Status,
    /// Why.
    #[serde(default)]
    pub justification: String,
}

/// What [`Results`] carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultType {
    /// `result_text`.
    Text,
    /// `filename` and `file_data`.
    File,
}

/// The results of a task, for its submitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// The task.
    pub task_id: TaskId,
    /// What they are.
    pub result_type: ResultType,
    /// The text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result_text: String,
    /// The file's name; check it with [`file_name`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// The file's contents, base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file_data: String,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub completed_at: String,
    /// Milliseconds from creation to acceptance.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_idle_ms: i64,
    /// Milliseconds at the head of the queue.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_staged_ms: i64,
    /// Milliseconds of execution.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_cpu_ms: i64,
}

impl Results {
    /// The file's contents.
    ///
    /// # Errors
    /// When they are not base64.
    pub fn file_bytes(&self) -> Result<Vec<u8>, base64::DecodeError> {
        BASE64.decode(&self.file_data)
    }

    /// Contents as they stand in `file_data`.
    pub fn encode_file(contents: &[u8]) -> String {
        BASE64.encode(contents)
    }

    /// The name of the file that keeps them: `<task_id>_result.txt` or
    /// `<task_id>_<filename>`; `None` when the file's name is not to be used.
    pub fn stored_name(&self) -> Option<String> {
        match self.result_type {
            ResultType::Text => Some(format!("{}_result.txt", self.task_id)),
            ResultType::File => Some(format!("{}_{}", self.task_id, file_name(&self.filename)?)),
        }
    }

    /// What the executor earns by the times in it.
    pub fn reward(&self) -> i64 {
        reward(self.time_cpu_ms, self.time_idle_ms, self.time_staged_ms)
    }
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Nobody has answered.
    New,
    /// The executor will do it.
    Accepted,
    /// The executor will not.
    Declined,
    /// The executor is at it.
    Executing,
    /// The submitter has the results.
    Completed,
    /// The executor has sent the results.
    Succeeded,
    /// Nobody answered in time.
    Cancelled,
    /// It was at the head of the queue for too long.
    Expired,
}

impl Status {
    /// Whether nothing changes any more.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::New | Self::Accepted | Self::Executing)
    }

    /// Whether a task in this status may get that one. Stricter than
    /// published, where anything may follow anything; what published executors
    /// send in order is allowed.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::New => !matches!(next, Self::New),
            Self::Accepted => !matches!(next, Self::New | Self::Accepted),
            Self::Executing => matches!(
                next,
                Self::Completed
                    | Self::Succeeded
                    | Self::Declined
                    | Self::Cancelled
                    | Self::Expired
            ),
            // The final update may follow the results, and the other way.
            Self::Completed => matches!(next, Self::Succeeded),
            Self::Succeeded => matches!(next, Self::Completed),
            Self::Declined | Self::Cancelled | Self::Expired => false,
        }
    }

    /// The word in files and frames.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Accepted => "ACCEPTED",
            Self::Declined => "DECLINED",
            Self::Executing => "EXECUTING",
            Self::Completed => "COMPLETED",
            Self::Succeeded => "SUCCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A task as both sides keep it, in `tasks/received` and `tasks/submitted`.
/// Times are RFC 3339 in UTC, empty while unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// The task.
    pub task_id: TaskId,
    /// What is to be done.
    #[serde(default)]
    pub task_description: String,
    /// When it was submitted.
    #[serde(default)]
    pub created_at: String,
    /// Where it is.
    pub status: Status,
    /// Why it is there.
    #[serde(default)]
    pub status_justification: String,
    /// The submitter's address.
    #[serde(default)]
    pub from: String,
    /// The executor's address.
    #[serde(default)]
    pub to: String,
    /// When it was accepted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accepted_at: String,
    /// When it came to the head of the queue.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub staged_at: String,
    /// When work on it began.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub execute_started_at: String,
    /// When it was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub completed_at: String,
    /// Milliseconds from creation to acceptance.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_idle_ms: i64,
    /// Milliseconds at the head of the queue.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_staged_ms: i64,
    /// Milliseconds of execution.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_cpu_ms: i64,
}

impl TaskFile {
    /// A new task, submitted at `created_at`.
    pub fn new(
        task_id: TaskId,
        description: impl Into<String>,
        created_at: impl Into<String>,
        from: impl Into<String>,
        to: impl Into<String>,
    ) -> Self {
        Self {
            task_id,
            task_description: description.into(),
            created_at: created_at.into(),
            status: Status::New,
            status_justification: NEW_TEXT.to_owned(),
            from: from.into(),
            to: to.into(),
            accepted_at: String::new(),
            staged_at: String::new(),
            execute_started_at: String::new(),
            completed_at: String::new(),
            time_idle_ms: 0,
            time_staged_ms: 0,
            time_cpu_ms: 0,
        }
    }

    /// The file's name in its folder.
    pub fn file_name(&self) -> String {
        format!("{}.json", self.task_id)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        // A struct of text and numbers: writing it cannot fail.
        escape(&serde_json::to_string_pretty(self).unwrap_or_default())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// A name from a peer as the name of a result file: one path component without
/// control characters, not hidden, at most [`MAX_FILE_NAME`] bytes.
pub fn file_name(name: &str) -> Option<&str> {
    let safe = !name.is_empty()
        && name.len() <= MAX_FILE_NAME
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control);
    safe.then_some(name)
}

/// Whether the extension of a result file is one of [`FILE_EXTENSIONS`].
pub fn has_known_extension(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_lowercase());
    extension.is_some_and(|e| FILE_EXTENSIONS.contains(&e.as_str()))
}

/// Whether an executor takes a task from a submitter, by their scores.
///
/// # Errors
/// The `message` of the refusal.
pub fn check_scores(submitter: i64, receiver: i64) -> Result<(), String> {
    if submitter >= receiver {
        return Ok(());
    }
    Err(format!("Polo score too low: submitter={submitter}, receiver={receiver}"))
}

/// What an executor earns: more the longer it worked, less the longer the task
/// waited for it, at least 1. All in milliseconds; negative ones count as 0.
pub fn reward(cpu_ms: i64, idle_ms: i64, staged_ms: i64) -> i64 {
    let bonus = (1.0 + cpu_ms.max(0) as f64 / 60_000.0).log2();
    let idle = (idle_ms as f64 / 60_000.0).clamp(0.0, 1.0) * 0.3;
    let staged = (staged_ms as f64 / 600_000.0).clamp(0.0, 1.0) * 0.3;
    let raw = (1.0 + bonus) * (1.0 - idle - staged).max(0.4);
    // At most 1 + log2(2^63 / 60000), so it fits.
    ((raw + 0.5).floor() as i64).max(1)
}
