//! What a plugin or script declares of itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a plugin is and provides. Unknown keys are ignored, so that a plugin
/// can be newer than its host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Short name: lower-case letters, digits and hyphens.
    pub name: String,
    /// Version of the plugin, as text.
    pub version: String,
    /// One line for a person.
    #[serde(default)]
    pub description: String,
    /// Port services.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Join rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Event sinks.
    #[serde(default)]
    pub sinks: Vec<Sink>,
    /// Host methods that it calls (`PilotHost::call`), each to be granted by
    /// the configuration unless the plugin ships with Pilot.
    #[serde(default)]
    pub needs: Vec<String>,
    /// JSON Schema (2020-12) of its configuration; none means that it takes no
    /// configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<Value>,
}

/// A port service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name, for logs and the configuration.
    pub name: String,
    /// Virtual ports it answers on unless the configuration says otherwise.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Whether datagrams to these ports are for it as well.
    #[serde(default)]
    pub datagrams: bool,
}

/// A join rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name by which a network asks for it.
    pub name: String,
}

/// An event sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sink {
    /// Name, for logs and the configuration.
    pub name: String,
    /// Events wanted at the most in one batch; 0 leaves it to the host.
    #[serde(default)]
    pub max_batch: usize,
}

impl Manifest {
    /// A plugin that provides nothing yet.
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), ..Self::default() }
    }

    /// With a line that says what it is for.
    #[must_use]
    pub fn describe(mut self, text: &str) -> Self {
        text.clone_into(&mut self.description);
        self
    }

    /// With a port service on these ports.
    #[must_use]
    pub fn service(mut self, name: &str, ports: &[u16]) -> Self {
        self.services.push(Service {
            name: name.to_owned(),
            ports: ports.to_vec(),
            datagrams: false,
        });
        self
    }

    /// With a join rule.
    #[must_use]
    pub fn rule(mut self, name: &str) -> Self {
        self.rules.push(Rule { name: name.to_owned() });
        self
    }

    /// With an event sink.
    #[must_use]
    pub fn sink(mut self, name: &str) -> Self {
        self.sinks.push(Sink { name: name.to_owned(), max_batch: 0 });
        self
    }

    /// With a host method that it calls.
    #[must_use]
    pub fn needs(mut self, method: &str) -> Self {
        self.needs.push(method.to_owned());
        self
    }
}
