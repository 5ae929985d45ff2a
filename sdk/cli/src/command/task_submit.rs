//! `task submit`: asks a peer to do a task.

use aws_lc_rs::rand;
use pilot_wire::service::tasks::{ACCEPTED, Kind, Submit, SubmitAnswer, TaskFile, TaskId, parse};
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::peer;
use crate::spec::{Flag, Spec};
use crate::tasks::{self, Folder};

pub(crate) const SPEC: Spec = Spec {
    name: "task submit",
    usage: "task submit <address|hostname> --task <description>",
    about: "Ask a peer to do a task",
    returns: "target, task_id, task, status (200 accepted, 400 refused), message, accepted",
    flags: &[Flag::value("task", "description", "what is to be done")],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let description = args.value("task").ok_or_else(|| Failure::invalid("--task is required"))?;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let info = client.info().await.map_err(|e| Failure::daemon("info", &e))?;
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| Failure::internal("the system gives no random numbers"))?;
    let task_id = TaskId::from_random(random);
    let submit = Submit {
        task_id: task_id.clone(),
        task_description: description.to_owned(),
        from_addr: info.address.clone(),
        to_addr: address.to_string(),
    };
    let frame = tasks::encode(Kind::Submit, &submit)?;
    // Written first: the executor's next word may come before this returns.
    let (created, _) = tasks::now();
    let to = address.to_string();
    let file = TaskFile::new(task_id.clone(), description, created, info.address, to);
    tasks::save(cx, Folder::Submitted, &file)?;
    let answer = match tasks::ask(&client, address, &frame).await {
        Ok((Kind::Submit, json)) => parse::<SubmitAnswer>(&json).map_err(|e| {
            Failure::connection(format!("{address} did not answer as an executor does")).reason(e)
        }),
        Ok((kind, _)) => {
            Err(Failure::connection(format!("{address} answered with a frame of type {kind}")))
        }
        Err(failure) => Err(failure),
    };
    let accepted = answer.as_ref().is_ok_and(|a| a.status == ACCEPTED);
    if !accepted {
        tasks::remove(cx, Folder::Submitted, &file);
    }
    let SubmitAnswer { status, message, .. } = answer?;
    let what = if accepted { "accepted" } else { "refused" };
    let text = format!("task {task_id} {what} by {address}: {}", printable(&message));
    let data = json!({
        "target": address,
        "task_id": task_id,
        "task": description,
        "status": status,
        "message": message,
        "accepted": accepted,
    });
    Ok(Answer::new(data, text))
}
