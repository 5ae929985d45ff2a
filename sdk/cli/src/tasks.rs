//! Task files in the Pilot home, and frames to the other side of a task
//! (protocol page "Services", section 7).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_sdk::{Address, Client, Stream};
use pilot_wire::service::rfc3339;
use pilot_wire::service::tasks::{
    FrameHeader, HEADER_LEN, Kind, PORT, Status, StatusUpdate, TaskFile, TaskId, frame,
};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::cx::Cx;
use crate::failure::Failure;
use crate::peer;

/// How long the other side may take to answer, or to end after it has read.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest task file that is read, in bytes: a description and little else.
const MAX_FILE: u64 = 32 << 20;

/// Where tasks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folder {
    Received,
    Submitted,
}

impl Folder {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Submitted => "submitted",
        }
    }

    fn dir(self, cx: &Cx) -> PathBuf {
        cx.home.dir.join("tasks").join(self.name())
    }
}

/// The tasks in a folder, by file name. A file that cannot be read is left out
/// with a remark.
pub(crate) fn all(cx: &Cx, folder: Folder) -> Result<Vec<TaskFile>, Failure> {
    let dir = folder.dir(cx);
    let failed =
        |e: io::Error| Failure::internal(format!("cannot read {}", dir.display())).reason(e);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".json") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    let mut tasks = Vec::new();
    for name in names {
        match read(&dir.join(&name)) {
            Ok(Some(task)) => tasks.push(task),
            // It has gone meanwhile.
            Ok(None) => {}
            Err(reason) => cx.out.remark(&format!("{name} cannot be read: {reason}")),
        }
    }
    Ok(tasks)
}

/// The received task that `--id` names.
pub(crate) fn received(cx: &Cx, id: &str) -> Result<TaskFile, Failure> {
    let missing = || {
        Failure::not_found(format!("task not found: {id}"))
            .hint("check pilotctl task list --type received")
    };
    let id: TaskId = id.parse().map_err(|_| missing())?;
    let path = Folder::Received.dir(cx).join(format!("{id}.json"));
    let task = read(&path).map_err(|reason| {
        Failure::internal(format!("cannot read {}", path.display())).reason(reason)
    })?;
    task.filter(|task| task.task_id == id).ok_or_else(missing)
}

fn read(path: &PathBuf) -> Result<Option<TaskFile>, String> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => return Err(format!("it has {} bytes", meta.len())),
        Ok(_) => fs::read(path),
        Err(e) => Err(e),
    };
    match text {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| e.to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Writes a task file, making its folder.
pub(crate) fn save(cx: &Cx, folder: Folder, task: &TaskFile) -> Result<(), Failure> {
    let dir = folder.dir(cx);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| Failure::internal(format!("cannot create {}", dir.display())).reason(e))?;
    cx.home.write(&dir.join(task.file_name()), task.to_text().as_bytes(), 0o600)
}

/// Removes a task file that came to nothing.
pub(crate) fn remove(cx: &Cx, folder: Folder, task: &TaskFile) {
    // What remains is a task that stays NEW; the failure is told anyway.
    let _ = fs::remove_file(folder.dir(cx).join(task.file_name()));
}

/// Refuses a task that is not in the status it must be in.
pub(crate) fn expect(task: &TaskFile, status: Status) -> Result<(), Failure> {
    if task.status == status {
        return Ok(());
    }
    Err(Failure::new("invalid_state", format!("task {} is already {}", task.task_id, task.status)))
}

/// The moment as a task file has it, and in Unix milliseconds.
pub(crate) fn now() -> (String, i64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    (rfc3339::format(millis.div_euclid(1000)), millis)
}

/// Milliseconds from a moment in a task file until `now`; 0 if it is not there.
pub(crate) fn since(moment: &str, now: i64) -> i64 {
    rfc3339::parse(moment).map_or(0, |then| now.saturating_sub(then).max(0))
}

/// The submitter of a received task.
pub(crate) fn submitter(task: &TaskFile) -> Result<Address, Failure> {
    task.from.parse().map_err(|e| {
        Failure::internal(format!("task {} does not say who submitted it", task.task_id)).reason(e)
    })
}

/// The frame that tells of the status that a task has now.
pub(crate) fn status_frame(task: &TaskFile) -> Result<Vec<u8>, Failure> {
    let update = StatusUpdate {
        task_id: task.task_id.clone(),
        status: task.status,
        justification: task.status_justification.clone(),
    };
    encode(Kind::StatusUpdate, &update)
}

pub(crate) fn encode<T: Serialize>(kind: Kind, message: &T) -> Result<Vec<u8>, Failure> {
    frame(kind, message).map_err(|e| Failure::invalid(e.to_string()))
}

/// Tells the submitter of the status that a received task has now.
pub(crate) async fn tell(client: &Client, task: &TaskFile) -> Result<Address, Failure> {
    let (address, frame) = (submitter(task)?, status_frame(task)?);
    deliver(client, address, &[frame]).await?;
    Ok(address)
}

/// Sends frames that are not answered and waits until the peer has ended,
/// which it does after it has read the first. Only the first must arrive: a
/// published peer reads no other.
pub(crate) async fn deliver(
    client: &Client,
    address: Address,
    frames: &[Vec<u8>],
) -> Result<(), Failure> {
    let mut stream = peer::dial(client, address, PORT).await?;
    for (i, frame) in frames.iter().enumerate() {
        match stream.write_all(frame).await {
            Err(e) if i == 0 => return Err(peer::broken(address, "sending to", &e)),
            Err(_) => return Ok(()),
            Ok(()) => {}
        }
    }
    let _ = stream.shutdown().await;
    // How it ends does not matter, and an older peer may keep it open.
    let _ = timeout(PATIENCE, stream.read(&mut [0; 1])).await;
    Ok(())
}

/// Sends a frame and gives the JSON of the answer.
pub(crate) async fn ask(
    client: &Client,
    address: Address,
    frame: &[u8],
) -> Result<(Kind, Vec<u8>), Failure> {
    let mut stream = peer::dial(client, address, PORT).await?;
    let sent = stream.write_all(frame).await;
    sent.map_err(|e| peer::broken(address, "sending to", &e))?;
    match timeout(PATIENCE, answer(&mut stream)).await {
        Ok(answer) => answer.map_err(|e| peer::broken(address, "hearing from", &e)),
        Err(_) => Err(Failure::timeout(format!(
            "no answer from {address} within {} s",
            PATIENCE.as_secs()
        ))
        .hint(format!("check peer: pilotctl ping {address}"))),
    }
}

async fn answer(stream: &mut Stream) -> io::Result<(Kind, Vec<u8>)> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::decode(header).map_err(|e| invalid(e.to_string()))?;
    if header.len > MAX_ANSWER {
        return Err(invalid(format!("its answer of {} bytes is too long", header.len)));
    }
    let mut json = vec![0; header.len];
    stream.read_exact(&mut json).await?;
    Ok((header.kind, json))
}
