//! Requests about networks: without networks beyond the backbone.

use pilot_wire::registry::{Envelope, Fields, Network, NetworkList};

use super::{Admitted, Asker, Service, reply};
use crate::state::Refusal;

impl Service {
    /// Judges a request beyond the published ones. It may take as long as a
    /// join rule.
    ///
    /// # Errors
    /// Says why it is refused.
    pub async fn extended(
        &self,
        _envelope: Envelope,
        _asker: &Asker,
        _now: u64,
    ) -> Result<Admitted, Refusal> {
        Err(Refusal::UnknownType("network request".to_owned()))
    }

    /// Judges a published request about networks.
    ///
    /// # Errors
    /// Says why it is refused.
    pub async fn published_network(
        &self,
        fields: &Fields<'_>,
        _asker: &Asker,
        _now: u64,
    ) -> Result<Admitted, Refusal> {
        match fields.kind.as_ref() {
            "list_networks" => {
                let members = self.state().len() as u64;
                let name = "backbone".to_owned();
                let backbone = Network { id: 0, name, members, join_rule: "open".to_owned() };
                Ok(reply(NetworkList { networks: vec![backbone] }))
            }
            "list_nodes" => Err(Refusal::UnknownNetwork(fields.network_id)),
            _ => Err(Refusal::NetworksDisabled),
        }
    }
}
