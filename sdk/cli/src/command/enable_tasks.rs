//! `enable-tasks`: tells the registry whether this node takes tasks.

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "enable-tasks",
    usage: "enable-tasks",
    about: "Take tasks from peers",
    returns: "the registry's answer",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.set_task_exec(true).await;
    let answer = answer.map_err(|e| Failure::daemon("enable-tasks", &e))?;
    Ok(Answer::new(answer, "this node takes tasks"))
}
