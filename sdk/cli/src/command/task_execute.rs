//! `task execute`: begins with the next accepted task.

use pilot_wire::service::tasks::Status;
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::spec::Spec;
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task execute",
    usage: "task execute",
    about: "Begin with the next accepted task and show it",
    returns: "task_id, task_description, status, from",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let accepted =
        tasks::all(cx, Folder::Received)?.into_iter().find(|t| t.status == Status::Accepted);
    let mut task = accepted.ok_or_else(|| {
        Failure::not_found("no accepted task waits")
            .hint("accept one first: pilotctl task accept --id <task_id>")
    })?;
    let (started, now) = tasks::now();
    task.status = Status::Executing;
    task.status_justification = "Task execution started".to_owned();
    task.execute_started_at = started;
    task.time_staged_ms = tasks::since(&task.staged_at, now);
    // Written first: the work can be done while its submitter is away, who
    // will see the results.
    tasks::save(cx, Folder::Received, &task)?;
    let told = match cx.client().await {
        Ok(client) => tasks::tell(&client, &task).await.map(|_| ()),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = told {
        cx.out.remark(&format!("{} was not told: {}", task.from, failure.text()));
    }
    let text = format!("task {} of {}\n{}", task.task_id, task.from, task.task_description);
    let data = json!({
        "task_id": task.task_id,
        "task_description": task.task_description,
        "status": task.status,
        "from": task.from,
    });
    Ok(Answer::new(data, printable(&text)))
}
