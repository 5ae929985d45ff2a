//! The handle by which the driver socket, metrics and methods ask about what
//! runs. Before plugins have been started, and in a daemon without them, it
//! says so.

use std::sync::{Arc, OnceLock};

use pilot_host::{Manager, PluginStatus, ReloadResult};
use pilot_wire::ipc::ErrorCode;
use serde_json::{Value, json};

use super::EventJournal;
use crate::node::Refused;

/// The plugin that delivers to a webhook.
pub(super) const WEBHOOK: &str = "sink-webhook";

/// What runs. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Plugins(Arc<OnceLock<Running>>);

struct Running {
    manager: Manager,
    journal: EventJournal,
}

impl Plugins {
    /// From now on it speaks of these. A second call changes nothing.
    pub fn started(&self, manager: Manager, journal: EventJournal) {
        // Only one start per daemon.
        let _ = self.0.set(Running { manager, journal });
    }

    /// The manager, once it runs.
    pub fn manager(&self) -> Option<&Manager> {
        self.0.get().map(|running| &running.manager)
    }

    /// How every plugin stands; empty before they run.
    pub fn list(&self) -> Vec<PluginStatus> {
        self.manager().map(Manager::list).unwrap_or_default()
    }

    /// How the event journal stands; null before it is open.
    pub fn events(&self) -> Value {
        self.0.get().map_or(Value::Null, |running| running.journal.status())
    }

    /// The short form for `info`, in bounded size.
    pub fn summary(&self) -> Value {
        let short = |p: PluginStatus| {
            json!({
                "name": p.name,
                "state": p.state,
                "generation": p.generation,
                "streams": p.streams,
                "streams_total": p.streams_total,
                "errors": p.errors,
                "cpu_ms": p.cpu_ms,
                "queue": p.queue,
            })
        };
        Value::Array(self.list().into_iter().take(LISTED).map(short).collect())
    }

    /// `{"plugins": [..]}`, or of one plugin everything.
    ///
    /// # Errors
    /// When there is no such plugin, or none runs yet.
    pub fn describe(&self, name: &str) -> Result<Value, Refused> {
        let manager = self.running("plugins")?;
        if name.is_empty() {
            return Ok(json!({ "plugins": manager.list() }));
        }
        match manager.status(name) {
            Some(status) => Ok(json!(status)),
            None => {
                let known: Vec<String> = manager.list().into_iter().map(|p| p.name).collect();
                let known = match known.as_slice() {
                    [] => "there are none".to_owned(),
                    known => format!("there are {}", known.join(", ")),
                };
                let text = format!("plugins: there is no plugin or script {name:?}; {known}");
                Err(Refused { code: ErrorCode::NOT_FOUND, text })
            }
        }
    }

    /// Looks at configuration and files again, and says what came of it.
    ///
    /// # Errors
    /// When plugins do not run yet.
    pub async fn reload(&self) -> Result<Value, Refused> {
        let manager = self.running("reload")?;
        Ok(json!(manager.reload().await))
    }

    /// Has events delivered to `url` from now on; an empty one ends that.
    ///
    /// # Errors
    /// When the plugin does not take the URL, or is not there.
    pub async fn set_webhook(&self, url: &str) -> Result<Value, Refused> {
        let manager = self.running("set_webhook")?;
        let sinks = manager.status(WEBHOOK).map(|status| status.sink_status);
        let failed = |reason: String| Refused {
            code: ErrorCode::INVALID_ARGUMENT,
            text: format!("set_webhook: {reason}"),
        };
        let done = manager.set_entry(WEBHOOK, webhook_entry(url)).await.map_err(failed)?;
        if matches!(done.result, ReloadResult::Kept | ReloadResult::Failed) {
            return Err(failed(done.error.unwrap_or_else(|| format!("{WEBHOOK} does not run"))));
        }
        if let Some(running) = self.0.get().filter(|_| url.is_empty()) {
            // Who clears it does not want to hear later what happens meanwhile.
            running.journal.forget(sinks.unwrap_or_default().into_keys().collect()).await;
        }
        Ok(json!({ "webhook": url }))
    }

    fn running(&self, what: &str) -> Result<&Manager, Refused> {
        self.manager().ok_or_else(|| Refused {
            code: ErrorCode::GENERAL,
            text: format!("{what}: plugins are still being started; try again"),
        })
    }
}

/// Plugins in `info`; the whole list is asked for with `plugins`.
const LISTED: usize = 200;

/// What stands over the configuration of the webhook sink for `url`.
pub(super) fn webhook_entry(url: &str) -> Value {
    if url.is_empty() {
        json!({ "enabled": false })
    } else {
        json!({ "enabled": true, "config": { "url": url } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_plugins_run_it_says_so() {
        let plugins = Plugins::default();
        assert!(plugins.list().is_empty() && plugins.events().is_null());
        assert_eq!(plugins.summary(), json!([]));
        let refused = plugins.describe("").unwrap_err();
        assert_eq!(refused.text, "plugins: plugins are still being started; try again");
    }
}
