//! What records say (`drafts`), and how they are kept (`keeping`).

mod drafts;
mod keeping;

use std::net::SocketAddr;

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use pilot_wire::registry::audit::AuditRecord;

use super::*;
use crate::state::{Command, Op, Origin, Register, Signer};

/// Applies commands to a state and gives their records.
#[derive(Default)]
struct World {
    state: State,
    commands: Vec<Command>,
}

impl World {
    fn apply(&mut self, op: Op) -> Vec<AuditRecord> {
        let origin = Origin { source: Some(source()), request: String::new() };
        let command = Command { at: 1000 + self.commands.len() as u64, origin, op };
        self.commands.push(command.clone());
        let mut records = Vec::new();
        let draft = Draft::look(&self.state, &command);
        let outcome = self.state.apply(&command);
        if let Some(draft) = draft {
            draft.finish(&self.state, &outcome, &mut records);
        }
        records
    }
}

fn source() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 5555))
}

fn register(key: u8) -> Register {
    Register {
        key: PublicKey([key; 32]),
        endpoint: SocketAddr::from(([192, 0, 2, 1], 4000)),
        owner: String::new(),
        hostname: String::new(),
        proven: true,
        takeover: false,
    }
}

fn by(node: u8) -> Signer {
    Signer { node: NodeId(u32::from(node)), key: PublicKey([node; 32]) }
}
