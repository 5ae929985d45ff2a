//! `fleet`: a simulated fleet, to find out what a registry carries.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::fleet::{Fleet, Plan};
use crate::output::Answer;
use crate::registry::{self, ADMIN_TOKEN, FINGERPRINT};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "fleet",
    usage: "fleet --nodes <n> [--connections <n>] [--pipelined <n>] [--trust-pairs <n>] [--networks <n>] [--members <n>] [--watchers <n>] [--heartbeats <dur>] [--rate <n>] [--seed <n>] [--proof] [--hold] [--keep] [--admin-token <token>]",
    about: "Simulate many nodes against a registry, to see how much it carries",
    returns: "registry, seed, nodes, networks (numbers), phases (register, join, session, trust, heartbeat, deregister: requests, seconds, per_second, p50_ms, p99_ms, max_ms, refused, refusals by code), watchers (opened, news by kind, lost, lost_because)",
    flags: &[
        Flag::value("nodes", "n", "how many nodes register"),
        Flag::value("connections", "n", "connections at a time, default 64"),
        Flag::value("pipelined", "n", "unanswered requests on each, default 16"),
        Flag::value("trust-pairs", "n", "pairs of nodes that trust each other"),
        Flag::value("networks", "n", "networks that are made, as an administrator"),
        Flag::value("members", "n", "nodes that join each network"),
        Flag::value("watchers", "n", "nodes that keep a session open and are told of changes"),
        Flag::value("heartbeats", "dur", "send heartbeats of all nodes for so long"),
        Flag::value("rate", "n", "requests a second at most, in each phase"),
        Flag::value("seed", "n", "makes the keys; the same seed is the same fleet, default 1"),
        Flag::switch("proof", "prove keys on registering, as daemons do"),
        Flag::switch("hold", "report, then keep the sessions open until SIGINT or SIGTERM"),
        Flag::switch("keep", "leave nodes and networks in the registry at the end"),
        ADMIN_TOKEN,
        FINGERPRINT,
    ],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let plan = plan(cx, args)?;
    let mut fleet = Fleet::new(cx, plan)?;
    let keep = args.is_set("keep");
    if let Err(failure) = fleet.run().await {
        if !keep {
            // What went wrong first is what counts.
            let _ = fleet.clean_up().await;
        }
        return Err(failure);
    }
    let hold = args.is_set("hold");
    if hold {
        // At once: who waits for it cannot wait for the end.
        cx.out.answer(&Answer::new(fleet.report(), fleet.table()));
        interrupted().await?;
    }
    if !keep {
        fleet.clean_up().await?;
    }
    if hold {
        return Ok(Answer::done());
    }
    Ok(Answer::new(fleet.report(), fleet.table()))
}

fn plan(cx: &Cx, args: &Args) -> Result<Plan, Failure> {
    let nodes = args.number("nodes")?.ok_or_else(|| args.usage())?;
    let heartbeats = match args.value("heartbeats") {
        Some(_) => Some(args.duration("heartbeats", Duration::ZERO)?),
        None => None,
    };
    let rate: Option<f64> = args.number("rate")?;
    if rate.is_some_and(|rate| !rate.is_finite() || rate < 0.001) {
        return Err(Failure::invalid("invalid --rate: write requests a second, like 1000"));
    }
    Ok(Plan {
        registry: cx.registry()?,
        pin: registry::fingerprint(cx, args)?,
        admin_token: registry::admin_token(args),
        nodes,
        connections: args.number("connections")?.unwrap_or(64),
        pipelined: args.number("pipelined")?.unwrap_or(16),
        trust_pairs: args.number("trust-pairs")?.unwrap_or(0),
        networks: args.number("networks")?.unwrap_or(0),
        members: args.number("members")?.unwrap_or(0),
        watchers: args.number("watchers")?.unwrap_or(0),
        heartbeats,
        rate,
        seed: args.number("seed")?.unwrap_or(1),
        proof: args.is_set("proof"),
    })
}

async fn interrupted() -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::internal("cannot wait for a signal").reason(e));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
