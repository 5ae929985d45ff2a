//! `set-public`: who may resolve this node.

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "set-public",
    usage: "set-public",
    about: "Let every registered node resolve this one",
    returns: "the registry's answer",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.set_visibility(true).await;
    let answer = answer.map_err(|e| Failure::daemon("set-public", &e))?;
    Ok(Answer::new(answer, "this node is public"))
}
