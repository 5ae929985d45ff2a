//! `set-webhook`: has the daemon deliver events to a URL, now and after the
//! next start.

use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "set-webhook",
    usage: "set-webhook <url>",
    about: "Have events delivered to a URL",
    returns: "webhook, applied (whether a running daemon took it)",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let url = args.at(0)?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Failure::invalid("webhook URL must start with http:// or https://"));
    }
    apply(cx, url).await
}

/// Keeps `url` for the next start and tells a running daemon; empty is none.
pub(super) async fn apply(cx: &Cx, url: &str) -> Result<Answer, Failure> {
    let mut applied = false;
    match cx.client().await {
        // A URL that the daemon refuses is not kept either.
        Ok(client) => {
            client.set_webhook(url).await.map_err(|e| Failure::daemon("set-webhook", &e))?;
            applied = true;
        }
        Err(failure) if failure.code == "not_running" => {}
        Err(failure) => return Err(failure),
    }
    let mut config = cx.home.config()?;
    if url.is_empty() {
        config.remove("webhook");
    } else {
        config.insert("webhook".to_owned(), Value::from(url));
    }
    cx.home.save_config(&config)?;
    let what = match url {
        "" => "events are delivered to no webhook".to_owned(),
        url => format!("events are delivered to {url}"),
    };
    let when = if applied { "" } else { " once the daemon is started" };
    Ok(Answer::new(json!({"webhook": url, "applied": applied}), format!("{what}{when}")))
}
