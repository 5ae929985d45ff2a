//! A record as an event for sinks, with its place in the chain. An absent value
//! is an empty text or 0, so that every event has every key.

use pilot_host::events::Happening;
use pilot_wire::registry::audit::{AuditActor, AuditRecord, AuditResult};

pub(super) fn happening(record: &AuditRecord) -> Happening {
    let AuditRecord {
        seq,
        time,
        command,
        actor,
        source,
        operation,
        object,
        result,
        code,
        rule,
        detail,
        request_id,
        count,
        previous,
        hash,
    } = record.clone();
    let AuditActor { kind, name, node_id, address, public_key, owner, external_identity } = actor;
    Happening::RegistryAudit {
        actor_address: address.map(|a| a.to_string()).unwrap_or_default(),
        actor_external_identity: external_identity,
        actor_kind: kind,
        actor_name: name,
        actor_node_id: node_id.unwrap_or_default(),
        actor_owner: owner,
        actor_public_key: public_key,
        code,
        command,
        count,
        detail,
        hash,
        object,
        operation,
        previous,
        request_id,
        result: match result {
            AuditResult::Allowed => "allowed",
            AuditResult::Denied => "denied",
        }
        .to_owned(),
        rule,
        seq,
        source,
        time,
    }
}
