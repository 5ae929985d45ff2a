//! `set-private`: who may resolve this node.

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "set-private",
    usage: "set-private",
    about: "Let only trusted nodes resolve this one",
    returns: "the registry's answer",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.set_visibility(false).await;
    let answer = answer.map_err(|e| Failure::daemon("set-private", &e))?;
    Ok(Answer::new(answer, "this node is private"))
}
