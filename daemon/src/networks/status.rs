//! How a network stands, for people and programs.

use pilot_wire::Address;
use serde::Serialize;

/// One network that is wanted or joined. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Status {
    /// Its name, once known.
    pub(super) name: Option<String>,
    /// Its number, once known.
    pub(super) id: Option<u16>,
    pub(super) state: State,
    /// Why it stands as it does.
    pub(super) reason: Option<String>,
    /// Since when it stands so.
    pub(super) since: u64,
    /// When joining is tried again.
    pub(super) next_try: Option<u64>,
    /// Whether the configuration names it.
    pub(super) configured: bool,
    pub(super) expires: Option<u64>,
    pub(super) tags: Vec<String>,
    pub(super) address: Option<Address>,
    pub(super) external_identity: Option<String>,
    pub(super) may_broadcast: bool,
}

/// Where joining has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// This node is in it.
    Joined,
    /// The registry has been asked.
    Joining,
    /// It was refused, and is tried again.
    Refused,
    /// It is over, and not tried again.
    Left,
    /// The registry cannot be asked.
    Waiting,
}
