//! `task queue`: the accepted tasks that wait to be done.

use pilot_wire::service::tasks::Status;
use serde_json::json;

use super::task_list::short;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::Spec;
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task queue",
    usage: "task queue",
    about: "List the accepted tasks that wait, in the order of task execute",
    returns: "queue (task_id, description, from, created_at), count if there are any",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let mut tasks = tasks::all(cx, Folder::Received)?;
    tasks.retain(|task| task.status == Status::Accepted);
    if tasks.is_empty() {
        return Ok(Answer::new(json!({"queue": []}), "no task waits"));
    }
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|t| {
            let (from, created) = (printable_line(&t.from), printable_line(&t.created_at));
            vec![t.task_id.to_string(), from, created, short(&t.task_description)]
        })
        .collect();
    let text = cx.out.table(&["ID", "FROM", "CREATED", "TASK"], &rows);
    let queue: Vec<_> = tasks
        .iter()
        .map(|t| {
            json!({
                "task_id": t.task_id,
                "description": t.task_description,
                "from": t.from,
                "created_at": t.created_at,
            })
        })
        .collect();
    Ok(Answer::new(json!({"count": queue.len(), "queue": queue}), text))
}
