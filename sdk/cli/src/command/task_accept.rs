//! `task accept`: says that this node will do a task.

use pilot_wire::service::tasks::{NEW_SECS, Status};
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task accept",
    usage: "task accept --id <task_id>",
    about: "Take a task that a peer has submitted",
    returns: "task_id, status, message",
    flags: &[Flag::value("id", "task_id", "the task")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

const MESSAGE: &str = "Task accepted";

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = args.value("id").ok_or_else(|| Failure::invalid("--id is required"))?;
    let mut task = tasks::received(cx, id)?;
    tasks::expect(&task, Status::New)?;
    let (accepted_at, now) = tasks::now();
    let idle = tasks::since(&task.created_at, now);
    if idle / 1000 >= i64::try_from(NEW_SECS).unwrap_or(i64::MAX) {
        return Err(Failure::new(
            "expired",
            format!("task {id} has expired: no response within 1 minute"),
        )
        .hint("ask the submitter to submit it again"));
    }
    task.status = Status::Accepted;
    task.status_justification = MESSAGE.to_owned();
    task.accepted_at = accepted_at;
    task.time_idle_ms = idle;
    // Told before it is written: a submitter that cannot be reached can be
    // tried again.
    let from = tasks::tell(&cx.client().await?, &task).await?;
    tasks::save(cx, Folder::Received, &task)?;
    let data = json!({"task_id": task.task_id, "status": task.status, "message": MESSAGE});
    Ok(Answer::new(data, format!("task {id} of {from} accepted")))
}
