//! States made by numbered commands, and the files they are in.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use pilot_registry::state::{Command, Op, Register, Row, Signer, State, Table};
use pilot_registry::store::{CommandLog as _, SqliteLog, restore};
use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;

/// What tells two states apart, but for the name of the history.
pub(crate) type Rows = Vec<Row>;

/// Without the row that is there from the first moment on, but once.
pub(crate) fn rows(state: &State) -> Rows {
    let mut rows: Vec<_> = state.all_rows().filter(|row| row.table != Table::Meta).collect();
    rows.sort();
    rows
}

fn key(n: u32) -> PublicKey {
    let mut key = [3; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey(key)
}

/// Command number `n` of a history that is always the same: registrations, and
/// changes of what is registered, of every size.
pub(crate) fn command(n: u32) -> Command {
    let register = |n: u32| {
        Op::Register(Register {
            key: key(n),
            endpoint: SocketAddr::from(([127, 0, 0, 1], 1)),
            owner: if n.is_multiple_of(5) {
                format!("owner-{n}@example.org")
            } else {
                String::new()
            },
            hostname: format!("n{n}"),
            proven: n.is_multiple_of(3),
            takeover: false,
        })
    };
    // Numbers of nodes are given in order of their registrations, of which
    // three in five commands are one.
    let registered = n / 5 * 3;
    let by = |node: u32| Signer { node: NodeId(node + 1), key: key(node / 3 * 5 + node % 3) };
    let op = match n % 5 {
        0..3 => register(n),
        3 if registered > 3 => Op::SetTags {
            by: by(registered / 2),
            tags: (0..n % 10).map(|tag| format!("t{n}-{tag}")).collect(),
        },
        4 if registered > 6 => match n % 4 {
            0 => Op::Deregister { by: by(registered / 3) },
            _ => Op::ReportTrust { by: by(registered - 1), peer: NodeId(registered / 4 + 1) },
        },
        _ => Op::SetPoloScore { node: NodeId(1), polo_score: i64::from(n) },
    };
    Command::own(1_000 + u64::from(n), op)
}

/// Opens or makes a file.
pub(crate) fn open(path: &Path) -> (SqliteLog, State) {
    let mut log = SqliteLog::open(path).unwrap();
    let state = restore(&mut log, &Default::default()).unwrap();
    (log, state)
}

/// Appends and applies commands, so many at a time.
pub(crate) fn write(log: &mut SqliteLog, state: &mut State, numbers: Range<u32>, batch: usize) {
    let commands: Vec<_> = numbers.map(command).collect();
    for commands in commands.chunks(batch) {
        log.append(state.applied() + 1, commands).unwrap();
        for command in commands {
            let _ = state.apply(command);
        }
    }
}
