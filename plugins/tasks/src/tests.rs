//! The published vectors, decisions, the queue and the folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pilot_plugin::json::{self, Value, json};
use pilot_plugin::wire::service::rfc3339;
use pilot_plugin::wire::service::tasks::{
    self, FrameHeader, HEADER_LEN, Kind, Results, Status, StatusUpdate, Submit, SubmitAnswer,
    TaskFile, TaskId,
};
use pilot_plugin::wire::{Address, NodeId};

use crate::desk::{self, Head, Refusal};
use crate::folder::{Folder, Side, Unanswered};
use crate::queue::{Full, Queue, Scores};

const NOW: i64 = 1_735_787_045; // 2025-01-02T03:04:05Z
const EXECUTOR: NodeId = NodeId(2);
const MAX: u64 = 1 << 20;

fn id(n: u8) -> TaskId {
    TaskId::from_random([n; 16])
}

fn address(node: u32) -> Address {
    Address::backbone(NodeId(node))
}

/// A task that node 1 has sent to node 2.
fn task(n: u8, status: Status) -> TaskFile {
    let (from, to) = (address(1).to_string(), address(2).to_string());
    TaskFile { status, ..TaskFile::new(id(n), "d", rfc3339::format(NOW), from, to) }
}

fn status(n: u8, status: Status) -> StatusUpdate {
    StatusUpdate { task_id: id(n), status, justification: "because".to_owned() }
}

fn text_results(n: u8, text: &str) -> Results {
    let results = json!({ "task_id": id(n), "result_type": "text", "result_text": text,
        "completed_at": "2025-01-02T04:04:05Z", "time_cpu_ms": 600_000 });
    json::from_value(results).unwrap()
}

fn file_results(n: u8, name: &str, contents: &[u8]) -> Results {
    let data = Results::encode_file(contents);
    let results = json!({ "task_id": id(n), "result_type": "file", "filename": name,
        "file_data": data, "completed_at": "2025-01-02T04:04:05Z" });
    json::from_value(results).unwrap()
}

fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path().join("tasks")).unwrap();
    (dir, folder)
}

/// As the program that submits does.
fn submitted(dir: &Path, file: &TaskFile) {
    let at = dir.join("tasks/submitted").join(file.file_name());
    fs::write(at, file.to_text()).unwrap();
}

#[test]
fn published_frames_and_answers() {
    let vectors: Value =
        json::from_str(include_str!("../../../tests/vectors/tasksubmit.json")).unwrap();
    let wire = |i: usize| hex::decode(vectors["frames"][i]["wire"].as_str().unwrap()).unwrap();
    let submit = wire(0);
    let (header, body) = submit.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = FrameHeader::decode(*header).unwrap();
    assert_eq!((header.kind, header.len), (Kind::Submit, body.len()));
    let submit: Submit = tasks::parse(body).unwrap();
    let task_id = submit.task_id.to_string();
    let answer = |status, message: &str| {
        let (task_id, message) = (task_id.clone(), message.to_owned());
        tasks::frame(Kind::Submit, &SubmitAnswer { task_id, status, message }).unwrap()
    };
    assert_eq!(answer(tasks::ACCEPTED, tasks::RECEIVED_TEXT), wire(1));
    let why = tasks::check_scores(0, 3).unwrap_err();
    assert_eq!(answer(tasks::REFUSED, &why), wire(2));
    // The file that it makes, and where it lies.
    let (dir, folder) = folder();
    let submit = Submit { task_description: "d".to_owned(), ..submit };
    let file = desk::received(submit, address(1), Some(address(2)), NOW);
    folder.receive(&file, 10).unwrap();
    let at = dir.path().join(format!("tasks/received/{task_id}.json"));
    assert_eq!(fs::read_to_string(&at).unwrap(), vectors["task_file_new"]);
    assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o600);
    let parent = at.parent().unwrap();
    assert_eq!(fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(parent).unwrap().count(), 1);
}

#[test]
fn the_sender_is_the_node_of_the_connection() {
    let submit = |from: &str, to: &str| Submit {
        task_id: id(1),
        task_description: String::new(),
        from_addr: from.to_owned(),
        to_addr: to.to_owned(),
    };
    let file = |from, to| desk::received(submit(from, to), address(7), Some(address(2)), NOW);
    let forged = file("0:0000.0000.0001", "nonsense");
    assert_eq!((forged.from, forged.to), (address(7).to_string(), address(2).to_string()));
    let other = file("3:0003.0000.0007", "3:0003.0000.0002");
    assert_eq!((other.from.as_str(), other.to.as_str()), ("3:0003.0000.0007", "3:0003.0000.0002"));
}

#[test]
fn a_received_task_replaces_none() {
    let (_dir, folder) = folder();
    folder.receive(&task(1, Status::New), 2).unwrap();
    let mut other = task(1, Status::New);
    other.task_description = "other".to_owned();
    assert_eq!(folder.receive(&other, 2), Err("The task is known already".to_owned()));
    assert_eq!(folder.read(Side::Received, &id(1)).unwrap(), Some(task(1, Status::New)));
    folder.receive(&task(2, Status::New), 2).unwrap();
    assert_eq!(
        folder.receive(&task(3, Status::New), 2),
        Err("Too many tasks kept: at most 2".into())
    );
}

#[test]
fn only_the_executor_changes_a_status() {
    let (dir, folder) = folder();
    submitted(dir.path(), &task(1, Status::New));
    let accepted = status(1, Status::Accepted);
    let stranger = folder.update(&accepted, NodeId(3)).unwrap_err();
    assert!(matches!(stranger, Refusal::NotExecutor { node: NodeId(3), .. }), "{stranger}");
    let unknown = folder.update(&status(2, Status::Accepted), EXECUTOR);
    assert_eq!(unknown, Err(Refusal::Unknown(id(2))));
    folder.update(&accepted, EXECUTOR).unwrap();
    let file = folder.read(Side::Submitted, &id(1)).unwrap().unwrap();
    assert_eq!((file.status, file.status_justification.as_str()), (Status::Accepted, "because"));
    folder.update(&status(1, Status::Declined), EXECUTOR).unwrap();
    let back = folder.update(&status(1, Status::Executing), EXECUTOR);
    assert_eq!(back, Err(Refusal::Order { from: Status::Declined, to: Status::Executing }));
    // A task that we received is none that we sent.
    folder.receive(&task(4, Status::New), 10).unwrap();
    let received = folder.update(&status(4, Status::Accepted), EXECUTOR);
    assert_eq!(received, Err(Refusal::Unknown(id(4))));
}

#[test]
fn results_come_once_and_from_the_executor() {
    let (dir, folder) = folder();
    submitted(dir.path(), &task(1, Status::Executing));
    let results = text_results(1, "done");
    let take = |results: &Results, node| folder.complete(results, node, MAX, NOW + 3600);
    assert!(matches!(take(&results, NodeId(3)), Err(Refusal::NotExecutor { .. })));
    let done = take(&results, EXECUTOR).unwrap();
    assert_eq!((done.name.clone(), done.reward), (format!("{}_result.txt", id(1)), 4));
    let at = dir.path().join("tasks/results").join(done.name);
    assert_eq!(fs::read(&at).unwrap(), b"done");
    let file = folder.read(Side::Submitted, &id(1)).unwrap().unwrap();
    assert_eq!(file.status, Status::Completed);
    assert_eq!(file.completed_at, "2025-01-02T04:04:05Z");
    assert_eq!(file.time_cpu_ms, 600_000);
    // Not again, whatever they are called.
    let again = Err(Refusal::Again(id(1)));
    assert_eq!(take(&results, EXECUTOR), again);
    assert_eq!(take(&file_results(1, "more.txt", b"x"), EXECUTOR), again);
    // The last update may follow.
    folder.update(&status(1, Status::Succeeded), EXECUTOR).unwrap();
}

#[test]
fn the_last_status_may_come_before_the_results() {
    let (dir, folder) = folder();
    for (n, before) in [(1, Status::Succeeded), (2, Status::Completed)] {
        submitted(dir.path(), &task(n, before));
        folder.complete(&text_results(n, ""), EXECUTOR, MAX, NOW).unwrap();
    }
    for (n, before) in [(3, Status::Declined), (4, Status::Cancelled), (5, Status::Expired)] {
        submitted(dir.path(), &task(n, before));
        let refused = folder.complete(&text_results(n, ""), EXECUTOR, MAX, NOW);
        assert_eq!(refused, Err(Refusal::Order { from: before, to: Status::Completed }));
    }
}

#[test]
fn names_stay_in_their_folder_and_replace_nothing() {
    let (dir, folder) = folder();
    submitted(dir.path(), &task(1, Status::Executing));
    let take =
        |name: &str, max| folder.complete(&file_results(1, name, b"data"), EXECUTOR, max, NOW);
    for name in ["../x", "a/b", "", ".hidden", "..", "a\\b", "a\nb", &"n".repeat(300)] {
        assert!(matches!(take(name, MAX), Err(Refusal::FileName(_))), "{name:?}");
    }
    assert_eq!(take("out.csv", 3), Err(Refusal::Room(3)));
    let at = dir.path().join(format!("tasks/results/{}_out.csv", id(1)));
    fs::write(&at, "mine").unwrap();
    assert!(matches!(take("out.csv", MAX), Err(Refusal::Exists(_))));
    assert_eq!(fs::read(&at).unwrap(), b"mine");
    // What a crash left of this very result counts.
    fs::write(&at, "data").unwrap();
    take("out.csv", MAX).unwrap();
    // Not a step outside, not a file forgotten.
    let count = |name: &str| fs::read_dir(dir.path().join("tasks").join(name)).unwrap().count();
    assert_eq!((count("results"), count("submitted"), count("received")), (1, 1, 0));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    for bad in ["../../../../etc/passwd", "0a1b2c3d", ""] {
        assert!(tasks::parse::<Submit>(json!({ "task_id": bad }).to_string().as_bytes()).is_err());
    }
}

#[test]
fn nobody_works_longer_than_a_task_exists() {
    let mut results = text_results(1, "");
    results.time_cpu_ms = i64::MAX;
    results.completed_at = "yesterday".to_owned();
    let mut file = task(1, Status::Executing);
    let done = desk::complete(&mut file, &results, EXECUTOR, NOW + 60).unwrap();
    assert_eq!((done.reward, file.time_cpu_ms), (2, 60_000));
    assert_eq!(file.completed_at, rfc3339::format(NOW + 60));
    results.file_data = "%".to_owned();
    results.filename = "a.txt".to_owned();
    results.result_type = tasks::ResultType::File;
    let mut file = task(1, Status::Executing);
    let bad = desk::complete(&mut file, &results, EXECUTOR, NOW);
    assert!(matches!(bad, Err(Refusal::Contents(_))));
    assert_eq!(file, task(1, Status::Executing));
}

#[test]
fn what_nobody_answers_is_cancelled_also_after_a_restart() {
    let (dir, folder) = folder();
    folder.receive(&task(1, Status::New), 10).unwrap();
    folder.receive(&task(2, Status::Accepted), 10).unwrap();
    fs::write(dir.path().join("tasks/received/notes.txt"), "not ours").unwrap();
    let broken = dir.path().join(format!("tasks/received/{}.json", id(9)));
    fs::write(broken, "{").unwrap();
    drop(folder);
    let folder = Folder::open(dir.path().join("tasks")).unwrap();
    assert_eq!(folder.unanswered().unwrap(), [(id(1), NOW + 60)]);
    assert_eq!(folder.cancel(&id(1)), Ok(Unanswered::Cancelled(address(1).to_string())));
    let file = folder.read(Side::Received, &id(1)).unwrap().unwrap();
    assert_eq!(file.status, Status::Cancelled);
    assert_eq!(file.status_justification, "Task cancelled: no response within 1 minute");
    for n in [1, 2, 3] {
        assert_eq!(folder.cancel(&id(n)), Ok(Unanswered::Settled));
    }
    assert!(folder.unanswered().unwrap().is_empty());
    assert_eq!(desk::cancel_at(&TaskFile { created_at: String::new(), ..file }), i64::MIN);
}

#[test]
fn the_head_of_the_queue_expires_after_an_hour() {
    let (_dir, folder) = folder();
    folder.receive(&task(1, Status::Accepted), 10).unwrap();
    let from = address(1).to_string();
    let look = |n, at| folder.head(&id(n), NOW, at).unwrap();
    assert_eq!(look(1, NOW + 30), (Head::Stage, from.clone()));
    let file = folder.read(Side::Received, &id(1)).unwrap().unwrap();
    assert_eq!(file.staged_at, rfc3339::format(NOW));
    assert_eq!(look(1, NOW + 3600), (Head::Stay, from.clone()));
    assert_eq!(look(1, NOW + 3601), (Head::Expire, from.clone()));
    let file = folder.read(Side::Received, &id(1)).unwrap().unwrap();
    assert_eq!(file.status, Status::Expired);
    assert_eq!(look(1, NOW + 3602), (Head::Leave, from.clone()));
    assert_eq!(look(2, NOW), (Head::Leave, String::new()));
    folder.receive(&task(3, Status::Executing), 10).unwrap();
    assert_eq!(look(3, NOW + 9999), (Head::Leave, from.clone()));
    folder.receive(&task(4, Status::New), 10).unwrap();
    assert_eq!(look(4, NOW), (Head::Stay, from));
}

#[test]
fn the_queue_is_bounded_and_outlives_a_restart() {
    let mut queue = Queue::default();
    let mut begin = |n, node, at| queue.begin(&id(n), NodeId(node), 3, 2, at);
    begin(1, 7, NOW).unwrap();
    assert_eq!(begin(1, 8, NOW), Err(Full::Known));
    begin(2, 7, NOW + 1).unwrap();
    assert_eq!(begin(3, 7, NOW), Err(Full::Node(2)));
    begin(3, 8, NOW + 2).unwrap();
    assert_eq!(begin(4, 9, NOW), Err(Full::All(3)));
    // Its file is not there yet.
    assert_eq!(queue.head(), None);
    for n in [1, 2, 3] {
        queue.finish(&id(n));
    }
    assert_eq!(queue.head(), Some((&id(1), NOW)));
    // In the middle: the head is as old as before.
    assert!(queue.remove(&id(2), NOW + 10));
    assert_eq!(queue.head(), Some((&id(1), NOW)));
    assert!(queue.remove(&id(1), NOW + 20));
    let again: Queue = json::from_slice(&json::to_vec(&queue).unwrap()).unwrap();
    assert_eq!((again.head(), again.len()), (Some((&id(3), NOW + 20)), 1));
    assert!(!queue.remove(&id(1), NOW));
}

#[test]
fn points_wait_in_order() {
    let mut scores = Scores::default();
    scores.push(None, -1);
    scores.push(Some(NodeId(2)), 4);
    let text = json::to_vec(&scores).unwrap();
    let mut scores: Scores = json::from_slice(&text).unwrap();
    assert_eq!(scores.first(), Some((None, -1)));
    scores.pop();
    assert_eq!(scores.first(), Some((Some(NodeId(2)), 4)));
    for delta in 0..5000 {
        scores.push(None, delta);
    }
    assert_eq!(scores.first(), Some((None, 5000 - 4096)));
}

#[test]
fn settled_tasks_make_room() {
    let (dir, folder) = folder();
    let received = |n| dir.path().join("tasks/received").join(format!("{}.json", id(n)));
    folder.receive(&task(1, Status::New), 2).unwrap();
    folder.receive(&task(2, Status::New), 2).unwrap();
    assert!(folder.receive(&task(3, Status::New), 2).is_err());
    folder.cancel(&id(1)).unwrap();
    folder.receive(&task(3, Status::New), 2).unwrap();
    assert!(!received(1).exists() && received(2).exists() && received(3).exists());
}
