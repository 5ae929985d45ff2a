//! `network join|leave|members|remove`: who is in a network.

use std::time::Duration;

use pilot_wire::NodeId;
use pilot_wire::registry::network::{MemberView, Membership};
use pilot_wire::registry::{Extended, Members, NetworkDone, NetworkJoined};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::status::is_joined;
use super::{named, node, tags, until};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line};
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

/// Longest file that holds a token.
const MAX_TOKEN_FILE: u64 = 64 << 10;
/// How long `--wait` waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries of it.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) const JOIN: Spec = Spec {
    name: "network join",
    usage: "network join <network> [--token-file <file> | --token-env <name> | --token <token>] [--proof <rule=json>]... [--wait] [--timeout <dur>]",
    about: "Join a network, or renew a membership",
    returns: "the registry's answer: membership (network, name, address, joined, expires, tags, external_identity, may_broadcast)",
    flags: &[
        Flag::value("token-file", "file", "file with a join token; - is standard input"),
        Flag::value("token-env", "name", "environment variable with a join token"),
        Flag::value(
            "token",
            "token",
            "a join token; every user of this machine can see it in the list of processes: \
             rather --token-file or --token-env",
        ),
        Flag::value("proof", "rule=json", "what is shown to another rule; may be given again"),
        Flag::switch("wait", "until the registry answers and the daemon is in"),
        Flag::value("timeout", "dur", "how long --wait waits, default 30s"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(join(cx, args)),
};

pub(crate) const LEAVE: Spec = Spec {
    name: "network leave",
    usage: "network leave <network>",
    about: "Leave a network; trust that came from it ends",
    returns: "the registry's answer: network_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(leave(cx, args)),
};

pub(crate) const MEMBERS: Spec = Spec {
    name: "network members",
    usage: "network members <network> [--admin-token <token>]",
    about: "List the members of a network",
    returns: "the registry's answers as one: members (node_id, address, hostname, registered, joined, expires, tags, external_identity, rule)",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(members(cx, args)),
};

pub(crate) const REMOVE: Spec = Spec {
    name: "network remove",
    usage: "network remove <network> <node_id|address|hostname> [--admin-token <token>]",
    about: "Remove a member from a network",
    returns: "the registry's answer: network_id",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (2, 2),
    run: |cx, args| Box::pin(remove(cx, args)),
};

async fn join(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let request = Extended::NetworkJoin { network: named(args.at(0)?), proofs: proofs(args)? };
    let wait = args.is_set("wait");
    let deadline = Instant::now() + args.duration("timeout", PATIENCE)?;
    let mut asker = Asker::node(cx).await?;
    let (data, joined) = loop {
        match asker.ask::<NetworkJoined>("network join", request.clone()).await {
            Ok(done) => break done,
            // The registry cannot be reached now; that it says no is final.
            Err(e) if wait && e.code == "connection_failed" && Instant::now() < deadline => {
                sleep(PAUSE).await;
            }
            Err(e) => return Err(e),
        }
    };
    let Membership { network, name, .. } = &joined.membership;
    while wait && !is_joined(&asker, *network).await? {
        if Instant::now() >= deadline {
            let text = format!("the registry took this node into {name}, the daemon is not in yet");
            return Err(Failure::timeout(text).hint("see: pilotctl network status").data(data));
        }
        sleep(PAUSE).await;
    }
    let text = details(cx, &joined.membership);
    Ok(Answer::new(data, text))
}

async fn leave(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let request = Extended::NetworkLeave { network: named(args.at(0)?) };
    let mut asker = Asker::node(cx).await?;
    let (data, done) = asker.ask::<NetworkDone>("network leave", request).await?;
    Ok(Answer::new(data, format!("left network {}", done.network_id)))
}

async fn members(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let network = named(args.at(0)?);
    let mut asker = Asker::open(cx, args).await?;
    let (mut all, mut kind) = (Vec::<MemberView>::new(), Value::Null);
    let mut after = Some(NodeId(0));
    while let Some(from) = after {
        let request = Extended::NetworkMembers { network: network.clone(), after: from, limit: 0 };
        let (mut data, page) = asker.ask::<Members>("network members", request).await?;
        kind = data["type"].take();
        all.extend(page.members);
        // A registry that does not get on would be asked for ever.
        after = page.next.filter(|next| *next > from);
    }
    let rows: Vec<Vec<String>> = all.iter().map(|m| row(cx, m)).collect();
    let text = match rows.is_empty() {
        true => "no members".to_owned(),
        false => cx.out.table(
            &["NODE", "ADDRESS", "HOSTNAME", "RULE", "ENDS", "TAGS", "IDENTITY", "STATE"],
            &rows,
        ),
    };
    Ok(Answer::new(json!({"type": kind, "members": all}), text))
}

async fn remove(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node_id = node(cx, args.at(1)?).await?;
    let request = Extended::NetworkRemove { network: named(args.at(0)?), node_id };
    let mut asker = Asker::open(cx, args).await?;
    let (data, done) = asker.ask::<NetworkDone>("network remove", request).await?;
    let text = format!("node {node_id} is no longer in network {}", done.network_id);
    Ok(Answer::new(data, text))
}

fn row(cx: &Cx, m: &MemberView) -> Vec<String> {
    // Colour only in the last column: its width does not matter.
    let state = if m.registered { cx.out.good("registered") } else { cx.out.bad("away") };
    vec![
        m.node_id.to_string(),
        m.address.to_string(),
        optional(&m.hostname),
        or_dash(&printable_line(&m.rule)),
        until(m.expires),
        tags(&m.tags),
        optional(&m.external_identity),
        state,
    ]
}

fn optional(text: &Option<String>) -> String {
    or_dash(&printable_line(text.as_deref().unwrap_or_default()))
}

fn details(cx: &Cx, m: &Membership) -> String {
    cx.out.fields(&[
        ("network", cx.out.strong(&printable_line(&m.name))),
        ("number", m.network.to_string()),
        ("address", m.address.to_string()),
        ("ends", until(m.expires)),
        ("tags", tags(&m.tags)),
        ("identity", optional(&m.external_identity)),
        ("broadcast", if m.may_broadcast { "yes" } else { "no" }.to_owned()),
    ])
}

/// What is shown to each rule.
fn proofs(args: &Args) -> Result<Map<String, Value>, Failure> {
    let mut proofs = Map::new();
    for text in args.values("proof") {
        let (rule, proof) = text
            .split_once('=')
            .ok_or_else(|| Failure::invalid("--proof has no =").hint("write --proof RULE=JSON"))?;
        // The content may be a secret: only the place of a mistake is told.
        let proof = serde_json::from_str(proof).map_err(|e| {
            Failure::invalid(format!("--proof {rule}: not JSON"))
                .reason(e)
                .hint("text is JSON in quotes: --proof 'RULE=\"text\"'")
        })?;
        if proofs.insert(rule.to_owned(), proof).is_some() {
            return Err(Failure::invalid(format!("--proof {rule}: given twice")));
        }
    }
    if let Some(token) = token(args)?
        && proofs.insert("token".to_owned(), json!(token)).is_some()
    {
        return Err(Failure::invalid("a token and --proof token exclude each other"));
    }
    Ok(proofs)
}

/// The join token, from where it was said to be.
fn token(args: &Args) -> Result<Option<String>, Failure> {
    let sources = ["token", "token-file", "token-env"];
    let given: Vec<_> = sources.into_iter().filter(|s| args.value(s).is_some()).collect();
    let token = match (given.as_slice(), given.first().and_then(|s| args.value(s))) {
        ([], _) | (_, None) => return Ok(None),
        (["token"], Some(token)) => token.to_owned(),
        (["token-file"], Some(path)) => read_token(path)?,
        (["token-env"], Some(name)) => std::env::var(name)
            .map_err(|e| Failure::not_found(format!("--token-env {name}")).reason(e))?,
        _ => {
            let names = given.join(" and --");
            return Err(Failure::invalid(format!("--{names} exclude each other")));
        }
    };
    let token = token.trim();
    if token.is_empty() {
        return Err(Failure::invalid(format!("--{}: the token is empty", given[0])));
    }
    Ok(Some(token.to_owned()))
}

fn read_token(path: &str) -> Result<String, Failure> {
    use std::io::Read;
    let failed = |e: std::io::Error| {
        Failure::not_found(format!("cannot read --token-file {path}")).reason(e)
    };
    let mut text = String::new();
    let read = match path {
        "-" => std::io::stdin().take(MAX_TOKEN_FILE).read_to_string(&mut text),
        _ => std::fs::File::open(path)
            .and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text)),
    };
    read.map_err(failed)?;
    Ok(text)
}
