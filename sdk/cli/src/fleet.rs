//! A simulated fleet against a real registry, to find out what it carries:
//! nodes register, open sessions, join networks, trust each other and send
//! heartbeats. There are no daemons: only the registry is real.
//!
//! What is kept of a node is its number (4 bytes) and, when there are
//! heartbeats, its signature (64 bytes); keys are derived from the seed each
//! time. Frames are made in batches, at most two per connection.

mod keys;
mod limits;
mod measure;
mod members;
mod pump;
mod sessions;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pilot_tls::Pin;
use pilot_wire::NodeId;
use pilot_wire::registry::network::{JoinPolicy, NetworkRef};
use pilot_wire::registry::{Extended, NetworkDone, NetworkMade, NetworkViews};
use serde_json::{Value, json};

use crate::cx::Cx;
use crate::failure::Failure;
use crate::progress;
use crate::registry::{Asker, Link};
use keys::Keys;
pub(crate) use measure::Phase;
use pump::{Load, Work};
use sessions::Watchers;

/// Files that are open beside the fleet's sockets.
const OTHER_FILES: u64 = 64;

/// What the fleet is to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) registry: String,
    pub(crate) pin: Option<Pin>,
    pub(crate) admin_token: Option<String>,
    pub(crate) nodes: u32,
    pub(crate) connections: u32,
    /// Unanswered requests on each connection.
    pub(crate) pipelined: u32,
    pub(crate) trust_pairs: u64,
    pub(crate) networks: u16,
    /// In each network.
    pub(crate) members: u32,
    pub(crate) watchers: u32,
    /// How long heartbeats are sent.
    pub(crate) heartbeats: Option<Duration>,
    /// Requests a second at most.
    pub(crate) rate: Option<f64>,
    pub(crate) seed: u64,
    /// Whether registrations prove their key, as daemons do.
    pub(crate) proof: bool,
}

/// The simulated nodes.
pub(crate) struct Nodes {
    keys: Keys,
    /// As the registry numbered them; 0 before it has.
    numbers: Vec<AtomicU32>,
}

impl Nodes {
    fn count(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// The number of the node that comes at this place, in a circle.
    fn number(&self, index: u64) -> NodeId {
        NodeId(self.numbers[self.place(index)].load(Ordering::Relaxed))
    }

    fn place(&self, index: u64) -> usize {
        // Less than the length, which is one of a vector.
        usize::try_from(index % self.count()).unwrap_or(0)
    }
}

/// A fleet at work.
pub(crate) struct Fleet<'a> {
    cx: &'a Cx,
    plan: Plan,
    nodes: Arc<Nodes>,
    watchers: Option<Watchers>,
    networks: Vec<u16>,
    phases: Vec<Phase>,
}

impl<'a> Fleet<'a> {
    /// Checks what can be checked before anything is sent.
    pub(crate) fn new(cx: &'a Cx, plan: Plan) -> Result<Self, Failure> {
        check(&plan)?;
        limits::allow_files(u64::from(plan.connections) + u64::from(plan.watchers) + OTHER_FILES)?;
        let numbers = (0..plan.nodes).map(|_| AtomicU32::new(0)).collect();
        let nodes = Arc::new(Nodes { keys: Keys::new(plan.seed), numbers });
        Ok(Self { cx, plan, nodes, watchers: None, networks: Vec::new(), phases: Vec::new() })
    }

    /// Brings the fleet up and has it do what was planned.
    pub(crate) async fn run(&mut self) -> Result<(), Failure> {
        self.register().await?;
        // Before the sessions that stay: a node has one, and joins with it.
        self.make_networks().await?;
        self.watch().await?;
        self.trust().await?;
        self.beat().await?;
        if let Some(watchers) = &self.watchers {
            watchers.settle().await;
        }
        Ok(())
    }

    async fn register(&mut self) -> Result<(), Failure> {
        let work = work::Register { nodes: self.nodes(), proof: self.plan.proof };
        let phase = self.phase("register", Arc::new(work), u64::from(self.plan.nodes)).await?;
        if let Some((code, n)) = phase.refusals().next() {
            return Err(Failure::connection(format!(
                "{n} of {} registrations were refused: {code}",
                self.plan.nodes
            )));
        }
        self.phases.push(phase);
        Ok(())
    }

    /// Opens the sessions that stay.
    async fn watch(&mut self) -> Result<(), Failure> {
        if self.plan.watchers == 0 {
            return Ok(());
        }
        let bar = self.bar("sessions", u64::from(self.plan.watchers));
        let (watchers, phase) = Watchers::open(&self.plan, &self.nodes, &bar).await?;
        bar.finish_and_clear();
        self.phases.push(phase);
        self.watchers = Some(watchers);
        Ok(())
    }

    async fn make_networks(&mut self) -> Result<(), Failure> {
        if self.plan.networks == 0 {
            return Ok(());
        }
        let mut asker = self.admin().await?;
        for n in 0..self.plan.networks {
            self.networks.push(make_network(&mut asker, self.plan.seed, n).await?);
        }
        let joins = u64::from(self.plan.networks) * u64::from(self.plan.members);
        if joins > 0 {
            let bar = self.bar("join", joins);
            let phase = members::join(&self.plan, &self.nodes, &self.networks, &bar).await?;
            bar.finish_and_clear();
            self.phases.push(phase);
        }
        Ok(())
    }

    async fn trust(&mut self) -> Result<(), Failure> {
        if self.plan.trust_pairs == 0 {
            return Ok(());
        }
        // Both sides of each pair state it.
        let work = Arc::new(work::Trust { nodes: self.nodes() });
        let phase = self.phase("trust", work, self.plan.trust_pairs * 2).await?;
        self.phases.push(phase);
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), Failure> {
        let Some(span) = self.plan.heartbeats else { return Ok(()) };
        let work = Arc::new(work::Heartbeats::new(self.nodes()));
        let load = Load { until: Some(Instant::now() + span), ..self.load("heartbeat") };
        let bar = self.bar("heartbeat", span.as_secs());
        let phase = load.run(work, u64::MAX, &bar).await?;
        bar.finish_and_clear();
        self.phases.push(phase);
        Ok(())
    }

    /// Removes what the fleet made.
    pub(crate) async fn clean_up(&mut self) -> Result<(), Failure> {
        if let Some(watchers) = &mut self.watchers {
            watchers.close().await;
        }
        if !self.networks.is_empty() {
            let mut asker = self.admin().await?;
            // They stay in the report.
            for id in self.networks.iter().copied() {
                let network = NetworkRef::Id(id);
                asker
                    .ask::<NetworkDone>("network delete", Extended::NetworkDelete { network })
                    .await?;
            }
        }
        let work = Arc::new(work::Deregister { nodes: self.nodes() });
        let phase = self.phase("deregister", work, u64::from(self.plan.nodes)).await?;
        self.phases.push(phase);
        Ok(())
    }

    /// What was measured.
    pub(crate) fn report(&self) -> Value {
        let phases: serde_json::Map<_, _> =
            self.phases.iter().map(|p| (p.name.to_owned(), p.to_json())).collect();
        json!({
            "registry": self.plan.registry,
            "seed": self.plan.seed,
            "nodes": self.plan.nodes,
            "networks": self.networks,
            "phases": phases,
            "watchers": self.watchers.as_ref().map(Watchers::to_json),
        })
    }

    /// The same for people.
    pub(crate) fn table(&self) -> String {
        let rows: Vec<_> = self.phases.iter().map(Phase::row).collect();
        let header = ["WHAT", "REQUESTS", "SECONDS", "PER SECOND", "P50", "P99", "MAX", "REFUSED"];
        let mut text = self.cx.out.table(&header, &rows);
        for phase in &self.phases {
            for (code, n) in phase.refusals() {
                text.push_str(&format!("\n{}: {n} times {code}", phase.name));
            }
        }
        if let Some(watchers) = &self.watchers {
            text.push_str(&format!("\n\n{}", watchers.summary()));
        }
        text
    }

    fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes)
    }

    fn load(&self, name: &'static str) -> Load {
        Load {
            name,
            registry: self.plan.registry.clone(),
            pin: self.plan.pin,
            connections: self.plan.connections,
            pipelined: self.plan.pipelined,
            rate: self.plan.rate,
            until: None,
        }
    }

    async fn phase(
        &self,
        name: &'static str,
        work: Arc<dyn Work>,
        count: u64,
    ) -> Result<Phase, Failure> {
        let bar = self.bar(name, count);
        let phase = self.load(name).run(work, count, &bar).await;
        bar.finish_and_clear();
        phase
    }

    fn bar(&self, name: &'static str, total: u64) -> ProgressBar {
        progress::count(&self.cx.out, name, total)
    }

    async fn admin(&self) -> Result<Asker, Failure> {
        let token = self.plan.admin_token.clone().ok_or_else(|| {
            Failure::invalid("networks are made by an administrator")
                .hint("put the registry's admin-token into PILOT_ADMIN_TOKEN")
        })?;
        let link = Link::open(&self.plan.registry, self.plan.pin.as_ref()).await?;
        Ok(Asker::Admin { link, token })
    }
}

fn check(plan: &Plan) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::invalid(text));
    if plan.nodes == 0 || plan.connections == 0 || plan.pipelined == 0 {
        return refuse("--nodes, --connections and --pipelined must not be 0".to_owned());
    }
    let most = work::most_pairs(u64::from(plan.nodes));
    if plan.trust_pairs > most {
        return refuse(format!("--trust-pairs: {} nodes make {most} pairs at most", plan.nodes));
    }
    for (flag, wanted) in [("members", plan.members), ("watchers", plan.watchers)] {
        if wanted > plan.nodes {
            return refuse(format!("--{flag} {wanted}: there are {} nodes", plan.nodes));
        }
    }
    if plan.members > 0 && plan.networks == 0 {
        return refuse("--members is for --networks, which is not there".to_owned());
    }
    if plan.networks > 0 && plan.admin_token.is_none() {
        return Err(Failure::invalid("networks are made by an administrator")
            .hint("put the registry's admin-token into PILOT_ADMIN_TOKEN"));
    }
    Ok(())
}

/// A network that every node may join; one that an earlier fleet of this seed
/// has left is taken.
async fn make_network(asker: &mut Asker, seed: u64, n: u16) -> Result<u16, Failure> {
    let (what, name) = ("network create", format!("fleet-{seed}-{n}"));
    let request = Extended::NetworkCreate {
        name: name.clone(),
        join: JoinPolicy::of("open"),
        broadcast: Default::default(),
    };
    match asker.ask::<NetworkMade>(what, request).await {
        Ok((_, made)) => Ok(made.network.id),
        Err(failure) if failure.code == "network_exists" => {
            let (_, views) = asker.ask::<NetworkViews>(what, Extended::NetworkList {}).await?;
            let found = views.networks.into_iter().find(|view| view.name == name);
            found.map(|view| view.id).ok_or(failure)
        }
        Err(failure) => Err(failure),
    }
}
