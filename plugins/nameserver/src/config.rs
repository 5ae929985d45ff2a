//! What the operator may set.

use std::path::PathBuf;

use pilot_plugin::Error;
use pilot_plugin::wire::service::nameserver::RECORD_LIFE;
use schemars::JsonSchema;
use serde::Deserialize;

/// Records kept unless configured otherwise.
const MAX_RECORDS: usize = 100_000;
/// Records of one identity unless configured otherwise: all of them are written
/// together when one changes.
const PER_NODE: usize = 256;
/// A day, in seconds.
const DAY: u64 = 86_400;

/// Configuration of the nameserver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Seconds that a record lives unless it is registered again.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub(crate) ttl: u64,
    /// Seconds for which a name still belongs to its owner after its last
    /// record has expired.
    #[schemars(range(max = 315_360_000))]
    pub(crate) grace: u64,
    /// Records kept in all; more are refused.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(crate) max_records: usize,
    /// Records and kept names of one identity; more are refused.
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) per_node: usize,
    /// A file of records in the published JSON form: read at the start, written
    /// after changes.
    pub(crate) records_file: Option<PathBuf>,
    /// Whether a name without a record is looked for among the registry's
    /// hostnames.
    pub(crate) hostnames: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl: RECORD_LIFE.as_secs(),
            grace: DAY,
            max_records: MAX_RECORDS,
            per_node: PER_NODE,
            records_file: None,
            hostnames: true,
        }
    }
}

impl Config {
    /// What a schema cannot say, or a host did not check.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.ttl == 0 || self.max_records == 0 || self.per_node == 0 {
            return Err(Error::new("ttl, max-records and per-node must be at least 1"));
        }
        if self.records_file.as_ref().is_some_and(|path| path.is_relative()) {
            return Err(Error::new("records-file must be an absolute path"));
        }
        Ok(())
    }
}
