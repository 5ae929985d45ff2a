//! `task send-results`: sends what came of a task to its submitter.

use std::path::Path;

use pilot_wire::service::tasks::{
    FILE_EXTENSIONS, Kind, MAX_FILE, ResultType, Results, Status, file_name, has_known_extension,
};
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes};
use crate::spec::{Flag, Spec};
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task send-results",
    usage: "task send-results --id <task_id> --results <text> | --file <path>",
    about: "Send what came of a task to its submitter",
    returns: "task_id, status, sent_to, sent_type (text or file); for a file: filename, file_size",
    flags: &[
        Flag::value("id", "task_id", "the task"),
        Flag::value("results", "text", "the results"),
        Flag::value("file", "path", "a file with the results, up to 11 MiB"),
    ],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = args.value("id").ok_or_else(|| Failure::invalid("--id is required"))?;
    let what = match (args.value("results"), args.value("file")) {
        (Some(text), None) => What::Text(text.to_owned()),
        (None, Some(path)) => What::read(Path::new(path))?,
        (None, None) => return Err(Failure::invalid("--results or --file is required")),
        _ => return Err(Failure::invalid("--results and --file exclude each other")),
    };
    let mut task = tasks::received(cx, id)?;
    if task.status != Status::Executing {
        let message = format!("task {id} is {}, not {}", task.status, Status::Executing);
        return Err(Failure::new("invalid_state", message)
            .hint("begin with it first: pilotctl task execute"));
    }
    let (completed_at, now) = tasks::now();
    task.time_cpu_ms = tasks::since(&task.execute_started_at, now);
    task.completed_at = completed_at;
    task.status = Status::Succeeded;
    task.status_justification = "Results sent".to_owned();
    let mut results = Results {
        task_id: task.task_id.clone(),
        result_type: ResultType::Text,
        result_text: String::new(),
        filename: String::new(),
        file_data: String::new(),
        completed_at: task.completed_at.clone(),
        time_idle_ms: task.time_idle_ms,
        time_staged_ms: task.time_staged_ms,
        time_cpu_ms: task.time_cpu_ms,
    };
    let mut data = json!({
        "task_id": task.task_id,
        "status": task.status,
        "sent_to": task.from,
        "sent_type": "text",
    });
    let mut text = format!("results of task {id} sent to {}", task.from);
    match what {
        What::Text(text) => results.result_text = text,
        What::File { name, contents } => {
            results.result_type = ResultType::File;
            results.file_data = Results::encode_file(&contents);
            data["sent_type"] = json!("file");
            data["filename"] = json!(name);
            data["file_size"] = json!(contents.len());
            text.push_str(&format!(": {name} ({})", bytes(contents.len() as u64)));
            results.filename = name;
        }
    }
    let frames = [tasks::encode(Kind::SendResults, &results)?, tasks::status_frame(&task)?];
    tasks::deliver(&cx.client().await?, tasks::submitter(&task)?, &frames).await?;
    tasks::save(cx, Folder::Received, &task)?;
    Ok(Answer::new(data, text))
}

enum What {
    Text(String),
    File { name: String, contents: Vec<u8> },
}

impl What {
    fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found(format!("file not found: {shown}")),
            _ => Failure::internal(format!("cannot read {shown}")).reason(e),
        };
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !has_known_extension(&name) {
            return Err(Failure::invalid(format!("file type of {shown} is not allowed"))
                .hint(format!("allowed: {}", FILE_EXTENSIONS.join(", "))));
        }
        if file_name(&name).is_none() {
            return Err(Failure::invalid(format!("{name:?} is no name for a result file"))
                .hint("give the file a shorter name that does not begin with a dot"));
        }
        // Asked before it is opened: opening a pipe waits for its writer.
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_file() {
            return Err(Failure::invalid(format!("not a file: {shown}")));
        }
        if meta.len() > MAX_FILE as u64 {
            let message = format!(
                "{shown} is too large: {}, results take up to {}",
                bytes(meta.len()),
                bytes(MAX_FILE as u64)
            );
            return Err(Failure::invalid(message)
                .hint("send it with pilotctl send-file, and --results with its name"));
        }
        Ok(Self::File { name, contents: std::fs::read(path).map_err(failed)? })
    }
}
