//! `network token create|list|revoke`: join tokens.

use std::time::Duration;

use pilot_wire::registry::network::TokenView;
use pilot_wire::registry::{Extended, NetworkDone, TokenMade, Tokens};

use super::{TAG, expiry, moment, named, tags, until};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

/// How long a token is good unless something else is said.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

pub(crate) const CREATE: Spec = Spec {
    name: "network token create",
    usage: "network token create <network> [--uses <n>] [--expires <dur>|never] [--tag <tag>]... [--admin-token <token>]",
    about: "Make a join token; its secret is shown once",
    returns: "the registry's answer: token (id, network, created, expires, uses_left, tags), secret",
    flags: &[
        Flag::value("uses", "n", "how many nodes it lets in, default any number"),
        Flag::value("expires", "dur", "how long it is good, default 24h; or never"),
        TAG,
        ADMIN_TOKEN,
        FINGERPRINT,
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(create(cx, args)),
};

pub(crate) const LIST: Spec = Spec {
    name: "network token list",
    usage: "network token list <network> [--admin-token <token>]",
    about: "List the join tokens of a network, without their secrets",
    returns: "the registry's answer: tokens (id, network, created, expires, uses_left, tags)",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(list(cx, args)),
};

pub(crate) const REVOKE: Spec = Spec {
    name: "network token revoke",
    usage: "network token revoke <network> <token_id> [--admin-token <token>]",
    about: "End a join token; who joined with it stays",
    returns: "the registry's answer: network_id",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (2, 2),
    run: |cx, args| Box::pin(revoke(cx, args)),
};

async fn create(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let uses: Option<u32> = args.number("uses")?;
    if uses == Some(0) {
        return Err(Failure::invalid("invalid --uses 0: it would let nobody in"));
    }
    let request = Extended::TokenCreate {
        network: named(args.at(0)?),
        uses,
        expires: expiry(args, LIFETIME)?,
        tags: args.values("tag").to_vec(),
    };
    let mut asker = Asker::open(cx, args).await?;
    let (data, made) = asker.ask::<TokenMade>("network token create", request).await?;
    cx.out.remark("this secret is not shown again:");
    let text = cx.out.fields(&[
        ("secret", cx.out.strong(&printable_line(&made.secret))),
        ("token", printable_line(&made.token.id)),
        ("uses", uses_left(&made.token)),
        ("ends", until(made.token.expires)),
        ("tags", tags(&made.token.tags)),
    ]);
    Ok(Answer::new(data, text))
}

async fn list(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let request = Extended::TokenList { network: named(args.at(0)?) };
    let mut asker = Asker::open(cx, args).await?;
    let (data, list) = asker.ask::<Tokens>("network token list", request).await?;
    let rows: Vec<Vec<String>> = list
        .tokens
        .iter()
        .map(|t| {
            vec![
                printable_line(&t.id),
                moment(t.created),
                until(t.expires),
                uses_left(t),
                tags(&t.tags),
            ]
        })
        .collect();
    let text = match rows.is_empty() {
        true => "no tokens".to_owned(),
        false => cx.out.table(&["TOKEN", "MADE", "ENDS", "USES LEFT", "TAGS"], &rows),
    };
    Ok(Answer::new(data, text))
}

async fn revoke(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = args.at(1)?.to_owned();
    let text = format!("token {} lets nobody in any more", printable_line(&id));
    let request = Extended::TokenRevoke { network: named(args.at(0)?), id };
    let mut asker = Asker::open(cx, args).await?;
    let (data, _) = asker.ask::<NetworkDone>("network token revoke", request).await?;
    Ok(Answer::new(data, text))
}

fn uses_left(token: &TokenView) -> String {
    token.uses_left.map_or_else(|| "any number".to_owned(), |left| left.to_string())
}
