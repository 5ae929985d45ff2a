//! Nodes join networks, each on a session of its own: only the node itself can.

use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use pilot_wire::registry::network::NetworkRef;
use pilot_wire::registry::{ErrorReply, Extended, NetworkJoined};
use serde_json::Map;
use tokio::task::JoinSet;

use super::measure::{Phase, Tally};
use super::sessions::{Session, pace};
use super::{Nodes, Plan};
use crate::failure::Failure;

/// Joins `plan.members` nodes to each network; the next network goes on with
/// the node after.
pub(super) async fn join(
    plan: &Plan,
    nodes: &Arc<Nodes>,
    networks: &[u16],
    bar: &ProgressBar,
) -> Result<Phase, Failure> {
    let start = Instant::now();
    let joins = networks.len() as u64 * u64::from(plan.members);
    let lanes = u64::from(plan.connections).min(joins);
    let mut tasks = JoinSet::new();
    for first in 0..lanes {
        let (plan, nodes, networks) = (plan.clone(), Arc::clone(nodes), networks.to_vec());
        let bar = bar.clone();
        tasks.spawn(async move {
            let mut tally = Tally::new()?;
            let mut index = first;
            while let Some(network) = network_of(&plan, &networks, index) {
                pace(start, index, plan.rate).await;
                one(&plan, &nodes, index, network, &mut tally).await?;
                bar.inc(1);
                index += lanes;
            }
            Ok::<_, Failure>(tally)
        });
    }
    let mut all = Tally::new()?;
    while let Some(done) = tasks.join_next().await {
        all.add(&done.map_err(|e| Failure::internal(format!("join: {e}")))??)?;
    }
    Ok(Phase::new("join", start.elapsed(), all))
}

fn network_of(plan: &Plan, networks: &[u16], index: u64) -> Option<u16> {
    let place = usize::try_from(index / u64::from(plan.members)).ok()?;
    networks.get(place).copied()
}

/// What is measured is the joining, not the session.
async fn one(
    plan: &Plan,
    nodes: &Nodes,
    index: u64,
    network: u16,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let place = nodes.place(index) as u64;
    let mut session = Session::open(plan, nodes, place, Vec::new()).await?;
    let request = Extended::NetworkJoin { network: NetworkRef::Id(network), proofs: Map::new() };
    let since = Instant::now();
    let joined = session.ask::<NetworkJoined>(request).await;
    tally.took(since.elapsed());
    session.drop_at_once();
    match joined {
        Ok(_) => {}
        Err(failure) if failure.is_refusal() => {
            let code = Some(failure.code.into_owned());
            tally.refused(&ErrorReply { code, ..ErrorReply::default() });
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}
