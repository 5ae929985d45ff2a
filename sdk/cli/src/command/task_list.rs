//! `task list`: the tasks that were received and submitted.

use pilot_wire::service::tasks::TaskFile;
use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::{Flag, Spec};
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task list",
    usage: "task list [--type received|submitted]",
    about: "List the tasks that were received and submitted",
    returns: "tasks (task_id, description, status, from, to, created_at, category)",
    flags: &[Flag::value("type", "type", "only received, or only submitted")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Longest description in the table.
const MAX_TEXT: usize = 50;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let folders: &[Folder] = match args.value("type") {
        None | Some("") => &[Folder::Received, Folder::Submitted],
        Some("received") => &[Folder::Received],
        Some("submitted") => &[Folder::Submitted],
        Some(other) => {
            let message = format!("unknown type {other:?} (use received or submitted)");
            return Err(Failure::invalid(message));
        }
    };
    let (mut list, mut rows) = (Vec::new(), Vec::new());
    for folder in folders {
        for task in tasks::all(cx, *folder)? {
            list.push(entry(&task, *folder));
            rows.push(vec![
                task.task_id.to_string(),
                folder.name().to_owned(),
                task.status.to_string(),
                printable_line(if *folder == Folder::Received { &task.from } else { &task.to }),
                printable_line(&task.created_at),
                short(&task.task_description),
            ]);
        }
    }
    let text = match rows.is_empty() {
        true => "no tasks".to_owned(),
        false => cx.out.table(&["ID", "CATEGORY", "STATUS", "PEER", "CREATED", "TASK"], &rows),
    };
    Ok(Answer::new(json!({ "tasks": list }), text))
}

fn entry(task: &TaskFile, folder: Folder) -> Value {
    json!({
        "task_id": task.task_id,
        "description": task.task_description,
        "status": task.status,
        "from": task.from,
        "to": task.to,
        "created_at": task.created_at,
        "category": folder.name(),
    })
}

/// A description in a table.
pub(super) fn short(text: &str) -> String {
    let text = printable_line(text);
    match text.chars().count() > MAX_TEXT {
        true => text.chars().take(MAX_TEXT).chain("...".chars()).collect(),
        false => text,
    }
}
