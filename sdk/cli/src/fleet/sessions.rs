//! Sessions of simulated nodes: opened, kept alive, and counting what they are
//! told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pilot_tls::Stream;
use pilot_wire::NodeId;
use pilot_wire::registry::session::{News, Push};
use pilot_wire::registry::{
    Envelope, Extended, FrameBuffer, Reply, ReplyError, Request, SessionChallenged, SessionOpened,
    Signature, challenge, parse_reply,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until, timeout};

use super::measure::{Phase, Tally};
use super::pump::{connect, send};
use super::{Nodes, Plan};
use crate::failure::Failure;

/// Peers that a session watches.
const WATCHED: u64 = 8;
/// Read at once.
const READ_SIZE: usize = 4 << 10;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nothing has come for so long: what was to come has come.
const QUIET: Duration = Duration::from_millis(300);
/// Longest wait for that.
const SETTLING: Duration = Duration::from_secs(10);

/// One session.
pub(super) struct Session {
    stream: Stream,
    frames: FrameBuffer,
    node: NodeId,
    /// Good for every heartbeat.
    heartbeat: Signature,
    /// It ends when nothing comes for so long.
    idle: Duration,
}

impl Session {
    /// Opens the session of the node at `place`, watching `peers`.
    pub(super) async fn open(
        plan: &Plan,
        nodes: &Nodes,
        place: u64,
        peers: Vec<NodeId>,
    ) -> Result<Self, Failure> {
        let node = nodes.number(place);
        let key = nodes.keys.key(place);
        let mut session = Self {
            stream: connect(&plan.registry, plan.pin.as_ref()).await?,
            frames: FrameBuffer::new(),
            node,
            heartbeat: key.sign(&challenge::heartbeat(node)),
            idle: Duration::MAX,
        };
        let nonce = session.ask::<SessionChallenged>(Extended::SessionChallenge {}).await?.nonce;
        let opened: SessionOpened = session
            .ask(Extended::SessionOpen {
                node_id: node,
                signature: key.sign(&challenge::session(node, &nonce)),
                epoch: String::new(),
                since: 0,
                peers,
            })
            .await?;
        session.idle = Duration::from_secs(opened.idle_secs.max(3));
        Ok(session)
    }

    /// Asks, and skips what is told in between.
    pub(super) async fn ask<T: Reply>(&mut self, request: Extended) -> Result<T, Failure> {
        let what = T::KIND.trim_end_matches("_ok");
        let mut frame = Vec::new();
        Envelope::new(request)
            .append_to(&mut frame)
            .map_err(|e| Failure::internal(format!("{what}: {e}")))?;
        let talk = async {
            send(&mut self.stream, &frame).await?;
            loop {
                while let Some(body) = self.frames.next_body().map_err(std::io::Error::other)? {
                    if !is_push(body) {
                        return Ok::<_, std::io::Error>(parse_reply(body));
                    }
                }
                if self.stream.read_buf(self.frames.space(READ_SIZE)).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let reply = match timeout(PATIENCE, talk).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(e)) => {
                let text = format!("{what}: the registry ended a connection");
                return Err(Failure::connection(text)
                    .reason(e)
                    .hint("see its log, and whether -max-connections allows so many"));
            }
            Err(_) => {
                let text = format!("{what}: no answer within {} s", PATIENCE.as_secs());
                return Err(Failure::timeout(text));
            }
        };
        reply.map_err(|e| match e {
            ReplyError::Refused(reply) => Failure::refused(what, &reply),
            e => Failure::connection(format!("{what}: {e}")),
        })
    }

    /// Lets go at once, so that the port can be used again.
    pub(super) fn drop_at_once(self) {
        let socket = match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_ref().0,
        };
        // Only ports are at stake.
        let _ = socket.set_zero_linger();
    }

    /// Stays open until `over`, or until the registry ends it: then says why.
    async fn stay(mut self, told: &Told, mut over: watch::Receiver<bool>) -> Option<String> {
        let mut beats = interval(self.idle / 3);
        beats.tick().await;
        let mut heartbeat = Vec::new();
        let request = Request::Heartbeat { node_id: self.node, signature: self.heartbeat };
        if request.append_to(&mut heartbeat).is_err() {
            return Some("unserialisable".to_owned());
        }
        loop {
            while let Ok(Some(body)) = self.frames.next_body() {
                if let Some(code) = told.take(body) {
                    return Some(code);
                }
            }
            tokio::select! {
                n = self.stream.read_buf(self.frames.space(READ_SIZE)) => match n {
                    Ok(0) => return Some("closed".to_owned()),
                    Ok(_) => {}
                    Err(e) => return Some(e.kind().to_string()),
                },
                _ = beats.tick() => if let Err(e) = send(&mut self.stream, &heartbeat).await {
                    return Some(e.kind().to_string());
                },
                _ = async { over.wait_for(|over| *over).await.map(drop) } => return None,
            }
        }
    }
}

fn is_push(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_slice::<Kind>(body).is_ok_and(|k| k.kind == "push")
}

/// What all sessions were told.
#[derive(Default)]
struct Told {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// By kind; there are as many as [`News`] has.
    news: BTreeMap<&'static str, u64>,
    last: Option<Instant>,
}

impl Told {
    /// Counts news; the code if it is the session's end.
    fn take(&self, body: &[u8]) -> Option<String> {
        if !is_push(body) {
            return None;
        }
        let push: Result<Push, _> = serde_json::from_slice(body);
        let (kind, end) = match push.map(|p| p.news) {
            Ok(News::Sync(_)) => ("sync", None),
            Ok(News::Trust(_)) => ("trust", None),
            Ok(News::Handshakes {}) => ("handshakes", None),
            Ok(News::Peer(_)) => ("peer", None),
            Ok(News::Joined(_)) => ("joined", None),
            Ok(News::Left { .. }) => ("left", None),
            Ok(News::Invited(_)) => ("invited", None),
            Ok(News::Ended { code }) => ("ended", Some(code)),
            Err(_) => ("unknown", None),
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.news.entry(kind).or_default() += 1;
        counts.last = Some(Instant::now());
        end
    }

    fn with<T>(&self, f: impl FnOnce(&Counts) -> T) -> T {
        f(&self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sessions that stay open.
pub(super) struct Watchers {
    opened: u32,
    told: Arc<Told>,
    /// Why sessions ended, by reason; bounded, for reasons are few.
    lost: Arc<Mutex<BTreeMap<String, u64>>>,
    over: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Watchers {
    /// Opens the sessions of the first nodes.
    pub(super) async fn open(
        plan: &Plan,
        nodes: &Arc<Nodes>,
        bar: &ProgressBar,
    ) -> Result<(Self, Phase), Failure> {
        let (over, _) = watch::channel(false);
        let mut watchers = Self {
            opened: 0,
            told: Arc::default(),
            lost: Arc::default(),
            over,
            tasks: JoinSet::new(),
        };
        let turns = Arc::new(Semaphore::new(plan.connections as usize));
        let start = Instant::now();
        let mut tally = Tally::new()?;
        let mut opening = JoinSet::new();
        for place in 0..u64::from(plan.watchers) {
            // Never closed.
            let turn = Arc::clone(&turns).acquire_owned().await;
            let (plan, nodes, bar) = (plan.clone(), Arc::clone(nodes), bar.clone());
            opening.spawn(async move {
                let _turn = turn;
                pace(start, place, plan.rate).await;
                let since = Instant::now();
                let peers = (1..=WATCHED.min(nodes.count() - 1))
                    .map(|distance| nodes.number(place + distance))
                    .collect();
                let session = Session::open(&plan, &nodes, place, peers).await?;
                bar.inc(1);
                Ok((session, since.elapsed()))
            });
            while let Some(done) = opening.try_join_next() {
                watchers.keep(done, &mut tally)?;
            }
        }
        while let Some(done) = opening.join_next().await {
            watchers.keep(done, &mut tally)?;
        }
        Ok((watchers, Phase::new("session", start.elapsed(), tally)))
    }

    fn keep(&mut self, opened: Opened, tally: &mut Tally) -> Result<(), Failure> {
        let (session, time) = opened.map_err(|e| Failure::internal(format!("session: {e}")))??;
        tally.took(time);
        self.opened += 1;
        let (told, lost) = (Arc::clone(&self.told), Arc::clone(&self.lost));
        let over = self.over.subscribe();
        self.tasks.spawn(async move {
            if let Some(reason) = session.stay(&told, over).await {
                let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
                *lost.entry(reason).or_default() += 1;
            }
        });
        Ok(())
    }

    /// Waits until nothing more comes.
    pub(super) async fn settle(&self) {
        let deadline = Instant::now() + SETTLING;
        let quiet = |counts: &Counts| counts.last.is_none_or(|last| last.elapsed() >= QUIET);
        sleep(QUIET).await;
        while !self.told.with(quiet) && Instant::now() < deadline {
            sleep(QUIET / 4).await;
        }
    }

    /// Ends the sessions.
    pub(super) async fn close(&mut self) {
        // Nobody listens when all have ended already.
        let _ = self.over.send(true);
        while self.tasks.join_next().await.is_some() {}
    }

    pub(super) fn to_json(&self) -> Value {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "opened": self.opened,
            "news": self.told.with(|counts| counts.news.clone()),
            "lost": lost.values().sum::<u64>(),
            "lost_because": lost,
        })
    }

    pub(super) fn summary(&self) -> String {
        let news = self.told.with(|counts| {
            counts.news.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>()
        });
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("{} sessions, told of: {}", self.opened, news.join(", "));
        for (reason, n) in lost.iter() {
            text.push_str(&format!("\n{n} sessions ended: {reason}"));
        }
        text
    }
}

/// What became of opening a session, and how long it took.
type Opened = Result<Result<(Session, Duration), Failure>, tokio::task::JoinError>;

/// Waits until it is this one's turn.
pub(super) async fn pace(start: Instant, index: u64, rate: Option<f64>) {
    if let Some(rate) = rate {
        sleep_until((start + Duration::from_secs_f64(index as f64 / rate)).into()).await;
    }
}
