//! `clear-webhook`: has the daemon deliver events to no webhook any more.

use super::set_webhook;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "clear-webhook",
    usage: "clear-webhook",
    about: "Have events delivered to no webhook any more",
    returns: "webhook (empty), applied (whether a running daemon took it)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    set_webhook::apply(cx, "").await
}
