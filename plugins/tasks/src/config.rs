//! What the operator may set.

use std::path::PathBuf;

use pilot_plugin::Error;
use pilot_plugin::wire::service::tasks::MAX_PAYLOAD;
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of task submission.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Folder of task files, absolute. Not set, `tasks` in the node's folder.
    pub(crate) folder: Option<PathBuf>,
    /// Tasks that wait; more are refused.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) max_queue: usize,
    /// Tasks of one submitter that wait; more are refused.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) max_per_node: usize,
    /// Files of received tasks, old ones included; for more the oldest settled
    /// ones go, and without such they are refused.
    #[schemars(range(min = 1))]
    pub(crate) max_received: usize,
    /// Longest description of a task, in bytes.
    #[schemars(range(min = 1, max = 8_388_608))]
    pub(crate) max_description: usize,
    /// Longest frame with results, in bytes; base64 makes a file a third longer.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub(crate) max_results: usize,
    /// Bytes of all results kept; what would exceed it is refused.
    #[schemars(range(min = 1))]
    pub(crate) max_results_kept: u64,
    /// Bytes of frames that have not come whole, of all connections; a
    /// connection that would exceed it is reset.
    #[schemars(range(min = 65_536))]
    pub(crate) max_begun: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            folder: None,
            max_queue: 1000,
            max_per_node: 32,
            max_received: 10_000,
            max_description: 256 << 10,
            max_results: MAX_PAYLOAD,
            max_results_kept: 1 << 30,
            max_begun: 64 << 20,
        }
    }
}

impl Config {
    /// What a schema cannot say, or a host did not check.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.folder.as_ref().is_some_and(|folder| folder.is_relative()) {
            return Err(Error::new("folder must be an absolute path"));
        }
        Ok(())
    }
}
