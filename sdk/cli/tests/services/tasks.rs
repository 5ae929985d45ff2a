//! The `task` commands of a submitter and an executor, each with a home.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pilot_sdk::Client;
use pilot_wire::service::tasks::{
    FrameHeader, HEADER_LEN, Kind, PORT, RECEIVED_TEXT, REFUSED, Results, Status, StatusUpdate,
    Submit, SubmitAnswer, TaskFile, check_scores, frame, parse,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::User;
use crate::mock::{Behaviour, MockDaemon};

/// What came to port 1003: one frame per connection, as published.
type Frames = Arc<Mutex<Vec<(Kind, Vec<u8>)>>>;

/// The task service of both nodes: keeps received tasks below `home`, notes
/// every frame, and refuses the task `too hard`.
async fn service(socket: &Path, home: &Path) -> Frames {
    let frames = Frames::default();
    let client = Client::connect_to(socket).await.expect("connects");
    let listener = client.listen(PORT).await.expect("listens");
    let (notes, dir) = (Arc::clone(&frames), home.join("tasks/received"));
    fs::create_dir_all(&dir).expect("a folder");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut header = [0; HEADER_LEN];
            if stream.read_exact(&mut header).await.is_err() {
                continue;
            }
            let header = FrameHeader::decode(header).expect("a header");
            let mut body = vec![0; header.len];
            stream.read_exact(&mut body).await.expect("a body");
            if header.kind == Kind::Submit {
                let submit: Submit = parse(&body).expect("a submission");
                let refused = submit.task_description == "too hard";
                let answer = SubmitAnswer {
                    task_id: submit.task_id.to_string(),
                    status: if refused { REFUSED } else { 200 },
                    message: match refused {
                        true => check_scores(0, 3).expect_err("too low"),
                        false => RECEIVED_TEXT.to_owned(),
                    },
                };
                if !refused {
                    let (created, _) = now();
                    let file = TaskFile::new(
                        submit.task_id,
                        submit.task_description,
                        created,
                        submit.from_addr,
                        submit.to_addr,
                    );
                    fs::write(dir.join(file.file_name()), file.to_text()).expect("written");
                }
                let bytes = frame(Kind::Submit, &answer).expect("short");
                stream.write_all(&bytes).await.expect("an answer");
            }
            notes.lock().expect("notes").push((header.kind, body));
        }
    });
    frames
}

fn now() -> (String, i64) {
    let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let seconds = i64::try_from(since).expect("a time");
    (pilot_wire::service::rfc3339::format(seconds), seconds)
}

fn task_file(home: &Path, folder: &str, id: &str) -> TaskFile {
    let path = home.join("tasks").join(folder).join(format!("{id}.json"));
    serde_json::from_slice(&fs::read(path).expect("a task file")).expect("a task")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_from_submission_to_results() {
    let daemon = MockDaemon::start(Behaviour::default());
    let socket = daemon.socket();
    let (here, there) = (tempfile::tempdir().expect("home"), tempfile::tempdir().expect("home"));
    let submitter = User::new(here.path(), &socket);
    let executor = User::new(there.path(), &socket);
    let frames = service(&socket, there.path()).await;

    let data = submitter.run(&["task", "submit", "2", "--task", "do <it>"]).await.data();
    let id = data["task_id"].as_str().expect("an ID").to_owned();
    assert_eq!(
        data,
        json!({"target": "0:0000.0000.0002", "task_id": id, "task": "do <it>", "status": 200,
               "message": "Task received with status NEW", "accepted": true})
    );
    let kept = task_file(here.path(), "submitted", &id);
    assert_eq!((kept.status, kept.from.as_str()), (Status::New, "0:0000.0000.0001"));
    let list = submitter.run(&["task", "list"]).await.data();
    let entry = |category: &str, status: &str| {
        json!({"task_id": id, "description": "do <it>", "status": status,
               "from": "0:0000.0000.0001", "to": "0:0000.0000.0002",
               "created_at": kept.created_at, "category": category})
    };
    assert_eq!(list, json!({"tasks": [entry("submitted", "NEW")]}));
    assert_eq!(
        submitter.run(&["task", "list", "--type", "received"]).await.data()["tasks"],
        json!([])
    );

    let error = executor.run(&["task", "execute"]).await.error();
    assert_eq!(error["code"], "not_found");
    let data = executor.run(&["task", "accept", "--id", &id]).await.data();
    assert_eq!(data, json!({"task_id": id, "status": "ACCEPTED", "message": "Task accepted"}));
    let error = executor.run(&["task", "accept", "--id", &id]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("invalid_state"), &json!(format!("task {id} is already ACCEPTED")))
    );
    let data = executor.run(&["task", "queue"]).await.data();
    let created = task_file(there.path(), "received", &id).created_at;
    assert_eq!(
        data,
        json!({"count": 1, "queue": [{"task_id": id, "description": "do <it>",
               "from": "0:0000.0000.0001", "created_at": created}]})
    );
    let error =
        executor.run(&["task", "send-results", "--id", &id, "--results", "x"]).await.error();
    assert_eq!(error["code"], "invalid_state");
    let data = executor.run(&["task", "execute"]).await.data();
    assert_eq!(
        data,
        json!({"task_id": id, "task_description": "do <it>", "status": "EXECUTING",
               "from": "0:0000.0000.0001"})
    );
    assert_eq!(executor.run(&["task", "queue"]).await.data(), json!({"queue": []}));
    let data =
        executor.run(&["task", "send-results", "--id", &id, "--results", "done"]).await.data();
    assert_eq!(
        data,
        json!({"task_id": id, "status": "SUCCEEDED", "sent_to": "0:0000.0000.0001",
               "sent_type": "text"})
    );
    let kept = task_file(there.path(), "received", &id);
    assert_eq!(kept.status, Status::Succeeded);
    assert!(!kept.completed_at.is_empty() && !kept.execute_started_at.is_empty());

    let frames = std::mem::take(&mut *frames.lock().expect("notes"));
    let kinds: Vec<Kind> = frames.iter().map(|(kind, _)| *kind).collect();
    let update = Kind::StatusUpdate;
    assert_eq!(kinds, [Kind::Submit, update, update, Kind::SendResults]);
    let accepted: StatusUpdate = parse(&frames[1].1).expect("an update");
    assert_eq!(
        (accepted.status, accepted.justification.as_str()),
        (Status::Accepted, "Task accepted")
    );
    let started: StatusUpdate = parse(&frames[2].1).expect("an update");
    assert_eq!(started.status, Status::Executing);
    let results: Results = parse(&frames[3].1).expect("results");
    assert_eq!((results.task_id.as_str(), results.result_text.as_str()), (&*id, "done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals() {
    let daemon = MockDaemon::start(Behaviour::default());
    let socket = daemon.socket();
    let home = tempfile::tempdir().expect("home");
    let user = User::new(home.path(), &socket);
    let error = user.run(&["task", "submit", "2", "--task", "x"]).await.error();
    assert_eq!(error["code"], "connection_failed", "nobody listens there");
    assert_eq!(user.run(&["task", "list"]).await.data()["tasks"], json!([]), "nothing is kept");
    let frames = service(&socket, home.path()).await;
    let data = user.run(&["task", "submit", "2", "--task", "too hard"]).await.data();
    assert_eq!((&data["status"], &data["accepted"]), (&json!(400), &json!(false)));
    assert_eq!(data["message"], "Polo score too low: submitter=0, receiver=3");
    assert_eq!(user.run(&["task", "list"]).await.data()["tasks"], json!([]), "nothing is kept");

    let id = "0a1b2c3d-1122-3344-5566-77889900aabb";
    let write = |created: &str, status: Status| {
        let mut file = TaskFile::new(
            id.parse().expect("an ID"),
            "d",
            created,
            "0:0000.0000.0001",
            "0:0000.0000.0002",
        );
        file.status = status;
        let path = home.path().join("tasks/received").join(file.file_name());
        fs::write(path, file.to_text()).expect("written");
    };
    write("2025-01-02T03:04:05Z", Status::New);
    let error = user.run(&["task", "accept", "--id", id]).await.error();
    assert_eq!(error["code"], "expired");
    let data = user.run(&["task", "decline", "--id", id, "--justification", "busy"]).await.data();
    assert_eq!(
        data,
        json!({"task_id": id, "status": "DECLINED", "message": "Task declined",
               "justification": "busy"})
    );
    let last = frames.lock().expect("notes").last().cloned().expect("an update");
    let update: StatusUpdate = parse(&last.1).expect("an update");
    assert_eq!((update.status, update.justification.as_str()), (Status::Declined, "busy"));
    let error = user.run(&["task", "decline", "--id", id, "--justification", "x"]).await.error();
    assert_eq!(error["code"], "invalid_state");
    for id in ["nope", "../../../etc/passwd", "00000000-0000-0000-0000-000000000000"] {
        let error = user.run(&["task", "accept", "--id", id]).await.error();
        assert_eq!(
            (&error["code"], &error["message"], &error["hint"]),
            (
                &json!("not_found"),
                &json!(format!("task not found: {id}")),
                &json!("check pilotctl task list --type received")
            )
        );
    }
    for wrong in [
        &["task", "submit", "2"][..],
        &["task", "accept"],
        &["task", "decline", "--id", id],
        &["task", "send-results", "--id", id],
        &["task", "send-results", "--id", id, "--results", "x", "--file", "y.md"],
        &["task", "list", "--type", "all"],
    ] {
        assert_eq!(user.run(wrong).await.error()["code"], "invalid_argument", "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_in_a_file() {
    let daemon = MockDaemon::start(Behaviour::default());
    let socket = daemon.socket();
    let home = tempfile::tempdir().expect("home");
    let user = User::new(home.path(), &socket);
    let frames = service(&socket, home.path()).await;
    let id = "0a1b2c3d-1122-3344-5566-77889900aabb";
    let (created, _) = now();
    let mut file = TaskFile::new(id.parse().expect("an ID"), "d", created, "0:0000.0000.0001", "");
    file.status = Status::Executing;
    let path = home.path().join("tasks/received").join(file.file_name());
    fs::write(path, file.to_text()).expect("written");
    let at = |name: &str, contents: &[u8]| {
        let path = home.path().join(name);
        fs::write(&path, contents).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let refused = async |path: &str| -> Value {
        user.run(&["task", "send-results", "--id", id, "--file", path]).await.error()
    };
    let error = refused(&at("run.exe", b"x")).await;
    assert!(error["hint"].as_str().expect("a hint").contains("md, txt"), "{error}");
    assert_eq!(refused(&at("large.bin", &vec![0; 12_600_000])).await["code"], "invalid_argument");
    assert_eq!(refused("/nonexistent/x.md").await["code"], "not_found");
    assert_eq!(refused(&at(".hidden.md", b"x")).await["code"], "invalid_argument");
    let path = at("out.CSV", b"a,b\n");
    let data = user.run(&["task", "send-results", "--id", id, "--file", &path]).await.data();
    assert_eq!(
        data,
        json!({"task_id": id, "status": "SUCCEEDED", "sent_to": "0:0000.0000.0001",
               "sent_type": "file", "filename": "out.CSV", "file_size": 4})
    );
    let last = frames.lock().expect("notes").last().cloned().expect("results");
    let results: Results = parse(&last.1).expect("results");
    assert_eq!(results.file_bytes().expect("base64"), b"a,b\n");
    assert_eq!(results.filename, "out.CSV");
}
