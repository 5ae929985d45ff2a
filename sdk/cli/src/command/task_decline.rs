//! `task decline`: says that this node will not do a task.

use pilot_wire::service::tasks::Status;
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task decline",
    usage: "task decline --id <task_id> --justification <text>",
    about: "Refuse a task that a peer has submitted",
    returns: "task_id, status, message, justification",
    flags: &[Flag::value("id", "task_id", "the task"), Flag::value("justification", "text", "why")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = args.value("id").ok_or_else(|| Failure::invalid("--id is required"))?;
    let justification = args
        .value("justification")
        .ok_or_else(|| Failure::invalid("--justification is required"))?;
    let mut task = tasks::received(cx, id)?;
    tasks::expect(&task, Status::New)?;
    task.status = Status::Declined;
    task.status_justification = justification.to_owned();
    let from = tasks::tell(&cx.client().await?, &task).await?;
    tasks::save(cx, Folder::Received, &task)?;
    let data = json!({
        "task_id": task.task_id,
        "status": task.status,
        "message": "Task declined",
        "justification": justification,
    });
    Ok(Answer::new(data, format!("task {id} of {from} declined")))
}
