//! Another configuration while the registry runs: what can be taken is taken,
//! what cannot is named. Plugins look at the file by themselves.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use pilot_tls::Pin;
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::Retention;
use crate::config::Config;
use crate::limits::Places;
use crate::server::connections;
use crate::service::Service;
use crate::tls::{Door, Identity};

/// What can be changed, and what is so now.
#[derive(Debug)]
pub struct Reload {
    pub(crate) service: Arc<Service>,
    pub(crate) places: Arc<Places>,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) doors: Vec<Arc<Door>>,
    pub(crate) config: Mutex<Config>,
}

/// What came of another configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys with another value, which counts from now on.
    pub taken: Vec<&'static str>,
    /// Keys with another value, which counts after a restart.
    pub restart: Vec<&'static str>,
    /// What could not be read; what was before stays.
    pub failed: Vec<String>,
}

impl Reload {
    pub(crate) fn fingerprint(&self) -> Option<Pin> {
        self.identity.as_ref().map(|identity| identity.fingerprint())
    }

    /// Takes `new` as far as it can be taken, and reads the certificates again.
    pub fn apply(&self, new: &Config) -> Reloaded {
        let mut old = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reloaded = Reloaded::default();
        if old.register_rate != new.register_rate {
            self.service.set_register_rate(new.register_rate);
            old.register_rate = new.register_rate;
            reloaded.taken.push("register-rate");
        }
        if old.max_connections != new.max_connections {
            self.places.set_most(connections(new.max_connections));
            old.max_connections = new.max_connections;
            reloaded.taken.push("max-connections");
        }
        if old.admin_token != new.admin_token {
            self.service.admins().set_token(new.admin_token.as_deref());
            old.admin_token.clone_from(&new.admin_token);
            reloaded.taken.push("admin-token");
        }
        if old.audit_age != new.audit_age {
            old.audit_age = new.audit_age;
            reloaded.taken.push("audit-days");
        }
        if old.audit_bytes != new.audit_bytes {
            old.audit_bytes = new.audit_bytes;
            reloaded.taken.push("audit-megabytes");
        }
        let retention = Retention { age: old.audit_age, bytes: old.audit_bytes };
        self.service.audit().set_retention(retention);
        let before = self.fingerprint();
        let certificate = self.identity.iter().map(|identity| identity.reload());
        let doors = self.doors.iter().map(|door| door.reload());
        let failed = certificate.chain(doors).filter_map(Result::err);
        reloaded.failed.extend(failed.map(|e| format!("tls: {e}")));
        if before != self.fingerprint() {
            reloaded.taken.push("tls-cert");
        }
        reloaded.restart = needs_restart(&old, new);
        reloaded
    }

    /// Applies what `load` gives at every SIGHUP from now on, as long as the
    /// runtime lasts. None of it changes nothing.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn on_hangup(
        self: &Arc<Self>,
        load: impl Fn() -> anyhow::Result<Option<Config>> + Send + Sync + 'static,
    ) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        // The registry ends when nobody else has its parts.
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let Some(this) = this.upgrade() else { return };
                match load() {
                    Ok(Some(config)) => this.apply(&config).log(),
                    Ok(None) => {}
                    Err(e) => tracing::error!("SIGHUP: the configuration stays as it was: {e:#}"),
                }
            }
        });
        Ok(())
    }
}

impl Reloaded {
    fn log(&self) {
        for failed in &self.failed {
            tracing::error!("SIGHUP: {failed}; what was before stays");
        }
        if !self.restart.is_empty() {
            let keys = self.restart.join(", ");
            tracing::warn!("SIGHUP: changed, but needs a restart: {keys}");
        }
        match self.taken[..] {
            [] => tracing::info!("SIGHUP: no key that can change while running has changed"),
            _ => tracing::info!("SIGHUP: changed from now on: {}", self.taken.join(", ")),
        }
    }
}

/// Keys of which the running registry has another value.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        (old.addr_key, old.addr != new.addr),
        ("store", old.store != new.store),
        ("data", old.data != new.data),
        ("plugin-path", old.plugin_path != new.plugin_path),
        ("owner-recovery", old.owner_recovery != new.owner_recovery),
        ("tls", old.tls != new.tls),
        ("http", old.http != new.http),
        ("admin-ca", old.admin_ca != new.admin_ca),
        ("network-creation", old.any_node_makes_networks != new.any_node_makes_networks),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}
