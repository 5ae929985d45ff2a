//! `network create|update|delete|list|rules`: networks and who may join them.

use pilot_wire::registry::network::{
    BroadcastRight, Combine, JoinPolicy, NetworkRef, NetworkView, RuleUse,
};
use pilot_wire::registry::{Extended, NetworkDone, NetworkMade, NetworkViews};
use serde_json::{Value, json};

use super::{broadcast, moment, named, until};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line};
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

const RULE: Flag = Flag::value(
    "rule",
    "rule",
    "who may join, such as open, token, invite or a plugin's; may be given again; \
     a new network without any has invite",
);
const ALL: Flag = Flag::switch("all", "every rule has to let a node in, not one of them");
const RULE_CONFIG: Flag =
    Flag::value("rule-config", "rule=json", "what a rule is told of this network");
const BROADCAST: Flag = Flag::value(
    "broadcast",
    "nobody|owner|members|tag:TAG",
    "who may send to all members at once; a new network has nobody",
);

pub(crate) const CREATE: Spec = Spec {
    name: "network create",
    usage: "network create <name> [--rule <rule>]... [--all] [--rule-config <rule=json>]... [--broadcast nobody|owner|members|tag:TAG] [--admin-token <token>]",
    about: "Make a network and say who may join it",
    returns: "the registry's answer: network (id, name, members, join_rule, join, broadcast, owner, created, membership)",
    flags: &[RULE, ALL, RULE_CONFIG, BROADCAST, ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(create(cx, args)),
};

pub(crate) const UPDATE: Spec = Spec {
    name: "network update",
    usage: "network update <network> [--rule <rule>]... [--all] [--rule-config <rule=json>]... [--broadcast nobody|owner|members|tag:TAG] [--admin-token <token>]",
    about: "Change who may join a network or broadcast in it; members stay",
    returns: "the registry's answer: network, as of network create",
    flags: &[RULE, ALL, RULE_CONFIG, BROADCAST, ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(update(cx, args)),
};

pub(crate) const DELETE: Spec = Spec {
    name: "network delete",
    usage: "network delete <network> [--admin-token <token>]",
    about: "End a network with all memberships, tokens and invitations",
    returns: "the registry's answer: network_id",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(delete(cx, args)),
};

pub(crate) const LIST: Spec = Spec {
    name: "network list",
    usage: "network list [--admin-token <token>]",
    about: "List the registry's networks",
    returns: "the registry's answer: networks, each as of network create",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (0, 0),
    run: |cx, args| Box::pin(list(cx, args)),
};

pub(crate) const RULES: Spec = Spec {
    name: "network rules",
    usage: "network rules <network> [--admin-token <token>]",
    about: "Show the rules by which nodes join a network; whole for its owner and administrators",
    returns: "network_id, name, join_rule, join (combine, rules (rule, config); null if not shown)",
    flags: &[ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(rules(cx, args)),
};

async fn create(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let join = policy(args)?.unwrap_or_else(|| JoinPolicy::of("invite"));
    let broadcast = right(args)?.unwrap_or_default();
    let name = args.at(0)?.to_owned();
    let request = Extended::NetworkCreate { name, join, broadcast };
    let mut asker = Asker::open(cx, args).await?;
    let (data, made) = asker.ask::<NetworkMade>("network create", request).await?;
    Ok(Answer::new(data, details(cx, &made.network)))
}

async fn update(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let (join, broadcast) = (policy(args)?, right(args)?);
    if join.is_none() && broadcast.is_none() {
        return Err(
            Failure::invalid("nothing to change").hint("say what with --rule or --broadcast")
        );
    }
    let request = Extended::NetworkUpdate { network: named(args.at(0)?), join, broadcast };
    let mut asker = Asker::open(cx, args).await?;
    let (data, made) = asker.ask::<NetworkMade>("network update", request).await?;
    Ok(Answer::new(data, details(cx, &made.network)))
}

async fn delete(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let request = Extended::NetworkDelete { network: named(args.at(0)?) };
    let mut asker = Asker::open(cx, args).await?;
    let (data, done) = asker.ask::<NetworkDone>("network delete", request).await?;
    Ok(Answer::new(data, format!("network {} is no more", done.network_id)))
}

async fn list(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let mut asker = Asker::open(cx, args).await?;
    let (data, views) = asker.ask::<NetworkViews>("network list", Extended::NetworkList {}).await?;
    let rows: Vec<Vec<String>> = views
        .networks
        .iter()
        .map(|n| {
            vec![
                n.id.to_string(),
                printable_line(&n.name),
                n.members.to_string(),
                or_dash(&printable_line(&n.join_rule)),
                broadcast(&n.broadcast),
                owner(n),
                membership(n),
            ]
        })
        .collect();
    let header = ["ID", "NAME", "MEMBERS", "RULE", "BROADCAST", "OWNER", "THIS NODE"];
    let text = match rows.is_empty() {
        true => "no networks; make one with: pilotctl network create <name>".to_owned(),
        false => cx.out.table(&header, &rows),
    };
    Ok(Answer::new(data, text))
}

async fn rules(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let wanted = named(args.at(0)?);
    let mut asker = Asker::open(cx, args).await?;
    let (_, views) = asker.ask::<NetworkViews>("network rules", Extended::NetworkList {}).await?;
    let network = find(views.networks, &wanted).ok_or_else(|| {
        Failure::not_found(format!("there is no network {wanted}"))
            .hint("see: pilotctl network list")
    })?;
    let data = json!({
        "network_id": network.id,
        "name": network.name,
        "join_rule": network.join_rule,
        "join": network.join,
    });
    let text = match &network.join {
        None => format!(
            "{}\n\nonly its owner and administrators see more",
            or_dash(&printable_line(&network.join_rule))
        ),
        Some(join) if join.rules.is_empty() => "no rules: nobody can join".to_owned(),
        Some(join) => {
            let rows: Vec<_> = join.rules.iter().map(|r| vec![name(r), config(r)]).collect();
            let table = cx.out.table(&["RULE", "CONFIGURATION"], &rows);
            match join.combine {
                _ if rows.len() == 1 => table,
                Combine::Any => format!("one of them has to let a node in\n\n{table}"),
                Combine::All => format!("all of them have to let a node in\n\n{table}"),
            }
        }
    };
    Ok(Answer::new(data, text))
}

/// The network that is meant among all.
fn find(networks: Vec<NetworkView>, wanted: &NetworkRef) -> Option<NetworkView> {
    networks.into_iter().find(|n| match wanted {
        NetworkRef::Id(id) => n.id == *id,
        NetworkRef::Name(name) => n.name == *name,
    })
}

/// The number of a network, asked for if only its name is known.
pub(super) async fn number(
    asker: &mut Asker,
    what: &str,
    network: NetworkRef,
) -> Result<NetworkRef, Failure> {
    if matches!(network, NetworkRef::Id(_)) {
        return Ok(network);
    }
    let (_, views) = asker.ask::<NetworkViews>(what, Extended::NetworkList {}).await?;
    let found = find(views.networks, &network).map(|n| NetworkRef::Id(n.id));
    // If it is not shown, the registry says what it thinks of the name.
    Ok(found.unwrap_or(network))
}

fn details(cx: &Cx, n: &NetworkView) -> String {
    let mut fields = vec![
        ("network", cx.out.strong(&printable_line(&n.name))),
        ("number", n.id.to_string()),
        ("members", n.members.to_string()),
        ("rule", or_dash(&printable_line(&n.join_rule))),
    ];
    for rule in n.join.iter().flat_map(|j| &j.rules).filter(|r| !r.config.is_null()) {
        fields.push(("", format!("{}: {}", name(rule), config(rule))));
    }
    fields.extend([
        ("broadcast", broadcast(&n.broadcast)),
        ("owner", owner(n)),
        ("made", moment(n.created)),
        ("this node", membership(n)),
    ]);
    cx.out.fields(&fields)
}

fn name(rule: &RuleUse) -> String {
    or_dash(&printable_line(&rule.rule))
}

fn config(rule: &RuleUse) -> String {
    match &rule.config {
        Value::Null => "-".to_owned(),
        config => printable_line(&config.to_string()),
    }
}

fn owner(n: &NetworkView) -> String {
    n.owner.map_or_else(|| "administrator".to_owned(), |owner| format!("node {owner}"))
}

fn membership(n: &NetworkView) -> String {
    match &n.membership {
        None => "-".to_owned(),
        Some(m) => match m.expires {
            None => "member".to_owned(),
            expires => format!("member, ends {}", until(expires)),
        },
    }
}

/// What `--rule`, `--all` and `--rule-config` say, if they say something.
fn policy(args: &Args) -> Result<Option<JoinPolicy>, Failure> {
    let mut rules: Vec<RuleUse> = args
        .values("rule")
        .iter()
        .map(|rule| RuleUse { rule: rule.clone(), config: Value::Null })
        .collect();
    for text in args.values("rule-config") {
        let (rule, config) = text.split_once('=').ok_or_else(|| {
            Failure::invalid("--rule-config has no =").hint("write --rule-config RULE=JSON")
        })?;
        // The content may be a secret: only the place of a mistake is told.
        let config = serde_json::from_str(config)
            .map_err(|e| Failure::invalid(format!("--rule-config {rule}: not JSON")).reason(e))?;
        let named = rules.iter_mut().find(|r| r.rule == rule).ok_or_else(|| {
            Failure::invalid(format!("--rule-config {rule}: there is no --rule {rule}"))
        })?;
        named.config = config;
    }
    let all = args.is_set("all");
    if rules.is_empty() {
        return match all {
            true => Err(Failure::invalid("--all is for --rule, which is not there")),
            false => Ok(None),
        };
    }
    let combine = if all { Combine::All } else { Combine::Any };
    Ok(Some(JoinPolicy { combine, rules }))
}

/// What `--broadcast` says.
fn right(args: &Args) -> Result<Option<BroadcastRight>, Failure> {
    let Some(text) = args.value("broadcast") else { return Ok(None) };
    Ok(Some(match text {
        "nobody" => BroadcastRight::Nobody,
        "owner" => BroadcastRight::Owner,
        "members" => BroadcastRight::Members,
        _ => match text.strip_prefix("tag:").filter(|tag| !tag.is_empty()) {
            Some(tag) => BroadcastRight::Tagged(tag.to_owned()),
            None => {
                return Err(Failure::invalid(format!("invalid --broadcast {text:?}"))
                    .hint("write nobody, owner, members or tag:TAG"));
            }
        },
    }))
}
