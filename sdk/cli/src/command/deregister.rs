//! `deregister`: leaves the registry.

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "deregister",
    usage: "deregister",
    about: "Leave the registry",
    returns: "the registry's answer",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.deregister().await;
    let answer = answer.map_err(|e| Failure::daemon("deregister", &e))?;
    Ok(Answer::new(answer, "deregistered"))
}
