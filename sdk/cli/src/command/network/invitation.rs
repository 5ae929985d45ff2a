//! `network invite|invitations|decline|uninvite`: invitations. The invited node
//! accepts by joining.

use std::time::Duration;

use pilot_wire::registry::network::{InvitationView, Invitee};
use pilot_wire::registry::{Extended, InvitationMade, Invitations, NetworkDone};

use super::manage::number as network_number;
use super::{TAG, expiry, named, node, tags, until};
use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

/// How long an invitation is good unless something else is said.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

pub(crate) const INVITE: Spec = Spec {
    name: "network invite",
    usage: "network invite <network> <node_id|address|hostname|owner:TEXT> [--expires <dur>] [--tag <tag>]... [--admin-token <token>]",
    about: "Invite a node, or any node of an owner, into a network",
    returns: "the registry's answer: invitation (id, network, name, to, from, key, signature, expires, tags)",
    flags: &[
        Flag::value("expires", "dur", "how long it can be accepted, default 7d"),
        TAG,
        ADMIN_TOKEN,
        FINGERPRINT,
    ],
    positionals: (2, 2),
    run: |cx, args| Box::pin(invite(cx, args)),
};

pub(crate) const LIST: Spec = Spec {
    name: "network invitations",
    usage: "network invitations [network] [--admin-token <token>]",
    about: "List the invitations for this node, or those of a network",
    returns: "the registry's answer: invitations, each as of network invite",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (0, 1),
    run: |cx, args| Box::pin(list(cx, args)),
};

pub(crate) const DECLINE: Spec = Spec {
    name: "network decline",
    usage: "network decline <invitation_id>",
    about: "Decline an invitation",
    returns: "the registry's answer: network_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(decline(cx, args)),
};

pub(crate) const UNINVITE: Spec = Spec {
    name: "network uninvite",
    usage: "network uninvite <invitation_id> [--admin-token <token>]",
    about: "Take an invitation back",
    returns: "the registry's answer: network_id",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(uninvite(cx, args)),
};

async fn invite(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let to = match args.at(1)? {
        text if text.starts_with("owner:") => Invitee::Owner(text["owner:".len()..].to_owned()),
        text => Invitee::Node(node(cx, text).await?),
    };
    let expires = expiry(args, LIFETIME)?.ok_or_else(|| {
        Failure::invalid("an invitation has to end").hint("write --expires 7d or the like")
    })?;
    let mut asker = Asker::open(cx, args).await?;
    let what = "network invite";
    // The inviting node signs the number.
    let network = network_number(&mut asker, what, named(args.at(0)?)).await?;
    let tags = args.values("tag").to_vec();
    let request = Extended::Invite { network, to, expires, tags, signature: None };
    let (data, made) = asker.ask::<InvitationMade>(what, request).await?;
    let i = &made.invitation;
    let text = cx.out.fields(&[
        ("invitation", i.id.to_string()),
        ("network", printable_line(&i.name)),
        ("for", printable_line(&i.to.to_string())),
        ("ends", until(Some(i.expires))),
        ("tags", super::tags(&i.tags)),
    ]);
    Ok(Answer::new(data, text))
}

async fn list(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let network = args.get(0).map(named);
    // Without a network it is about this node, which an administrator is not.
    let mut asker = match network {
        Some(_) => Asker::open(cx, args).await?,
        None => Asker::node(cx).await?,
    };
    let request = Extended::InvitationList { network };
    let (data, list) = asker.ask::<Invitations>("network invitations", request).await?;
    let rows: Vec<_> = list.invitations.iter().map(row).collect();
    let text = match rows.is_empty() {
        true => "no invitations".to_owned(),
        false => {
            cx.out.table(&["INVITATION", "NETWORK", "NAME", "FOR", "FROM", "ENDS", "TAGS"], &rows)
        }
    };
    Ok(Answer::new(data, text))
}

fn row(i: &InvitationView) -> Vec<String> {
    vec![
        i.id.to_string(),
        i.network.to_string(),
        printable_line(&i.name),
        printable_line(&i.to.to_string()),
        i.from.map_or_else(|| "administrator".to_owned(), |from| format!("node {from}")),
        until(Some(i.expires)),
        tags(&i.tags),
    ]
}

async fn decline(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = number("invitation_id", args.at(0)?)?;
    let mut asker = Asker::node(cx).await?;
    let request = Extended::InvitationDecline { id };
    let (data, _) = asker.ask::<NetworkDone>("network decline", request).await?;
    Ok(Answer::new(data, format!("invitation {id} declined")))
}

async fn uninvite(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id = number("invitation_id", args.at(0)?)?;
    let mut asker = Asker::open(cx, args).await?;
    let request = Extended::InvitationRevoke { id };
    let (data, _) = asker.ask::<NetworkDone>("network uninvite", request).await?;
    Ok(Answer::new(data, format!("invitation {id} taken back")))
}
