//! The event journal of the daemon: what the daemon and its plugins say goes
//! in, sinks of plugins take it out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use pilot_host::events::Happening;
use pilot_host::journal::{Attached, Journal, JournalLimits, SinkSettings};
use pilot_host::{Deliver, SinkHandle, Sinks};
use pilot_wire::NodeId;
use serde_json::Value;

use crate::events::{EventLog, Events};

/// Longest wait for the journal to write its rest at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The journal. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct EventJournal {
    journal: Journal,
    /// There is a sink, or there was one that may come back.
    wanted: Arc<AtomicBool>,
}

impl EventJournal {
    /// Opens the journal in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let (journal, found) = Journal::open(folder, JournalLimits::default()).context("events")?;
        if let Some((aside, problem)) = found.moved_aside {
            tracing::warn!(
                "events: the journal was damaged ({problem}) and begins anew; what there was is {}",
                aside.display()
            );
        }
        let wanted = Arc::new(AtomicBool::new(!found.sinks.is_empty()));
        Ok(Self { journal, wanted })
    }

    /// By which the daemon says what happens.
    pub fn events(&self) -> Events {
        Events::to(Arc::new(self.clone()))
    }

    /// By which sinks take it.
    pub fn sinks(&self) -> Arc<dyn Sinks> {
        Arc::new(self.clone())
    }

    /// How it stands: `emitted`, `lost`, `sinks` with what waits for each.
    pub fn status(&self) -> Value {
        serde_json::to_value(self.journal.status()).unwrap_or_default()
    }

    /// Keeps nothing for these sinks any more.
    pub(super) async fn forget(&self, sinks: Vec<String>) {
        let journal = self.journal.clone();
        let forget = move || sinks.iter().try_for_each(|sink| journal.forget(sink));
        match tokio::task::spawn_blocking(forget).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("events: {error}"),
            Err(error) => tracing::warn!("events: forgetting a sink was interrupted: {error}"),
        }
    }

    /// Writes what was emitted, and ends.
    pub async fn close(self) {
        let close = tokio::task::spawn_blocking(move || self.journal.close(Duration::ZERO));
        match tokio::time::timeout(CLOSE_LIMIT, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("events: closing was interrupted: {error}"),
            Err(_) => tracing::warn!("events: the disk did not take the rest in time"),
        }
    }
}

impl EventLog for EventJournal {
    fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    fn emit(&self, happening: Happening) {
        self.journal.emit(happening);
    }

    fn set_node(&self, node: NodeId) {
        self.journal.set_node(node);
    }
}

impl Sinks for EventJournal {
    fn attach(
        &self,
        sink: &str,
        settings: &Value,
        deliver: Deliver,
    ) -> Result<Box<dyn SinkHandle>, String> {
        let settings = parse(settings)?;
        // Before: what happens from now on is for this sink.
        self.wanted.store(true, Ordering::Relaxed);
        let attached = self.journal.attach(sink, settings, deliver).map_err(|e| e.to_string())?;
        Ok(Box::new(Sink(attached)))
    }
}

/// A sink that is being delivered to.
struct Sink(Attached);

impl SinkHandle for Sink {
    fn replace(&mut self, settings: &Value, deliver: Deliver) -> Result<(), String> {
        self.0.replace(parse(settings)?, deliver).map_err(|e| e.to_string())
    }

    fn detach(self: Box<Self>) {
        self.0.detach();
    }

    fn status(&self) -> Value {
        serde_json::to_value(self.0.status()).unwrap_or_default()
    }
}

fn parse(settings: &Value) -> Result<SinkSettings, String> {
    match settings {
        Value::Null => Ok(SinkSettings::default()),
        given => serde_json::from_value(given.clone()).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use pilot_plugin::Delivery;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_said_reaches_a_sink_and_is_made_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let journal = EventJournal::open(&dir.path().join("events")).unwrap();
        let events = journal.events();
        assert!(!events.wanted());
        events.emit(|| panic!("made for nobody"));
        let wrong = json!({ "bacth": 5 });
        let ignore: Deliver = Arc::new(|_| Box::pin(async { Ok(Delivery::Ack) }));
        let sinks = journal.sinks();
        let refused = sinks.attach("s", &wrong, Arc::clone(&ignore)).err().unwrap();
        assert!(refused.contains("bacth"), "{refused}");

        let (heard, hears) = mpsc::channel();
        let deliver: Deliver = Arc::new(move |batch| {
            let names: Vec<_> = batch.events().map(|e| (e.event, e.node_id)).collect();
            let heard = heard.clone();
            Box::pin(async move {
                // The test may have ended.
                let _ = heard.send(names);
                Ok(Delivery::Ack)
            })
        });
        let sink = sinks.attach("s", &Value::Null, deliver).unwrap();
        assert!(events.wanted());
        events.set_node(NodeId(7));
        events.emit(|| Happening::NodeDeregistered);
        let got = hears.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(got.contains(&("node.deregistered".to_owned(), 7)), "{got:?}");
        assert_eq!(journal.status()["sinks"][0]["sink"], "s");
        sink.detach();
        drop((events, sinks, journal));
        // It may come back, so events are kept for it.
        let journal = EventJournal::open(&dir.path().join("events")).unwrap();
        assert!(journal.events().wanted());
    }
}
