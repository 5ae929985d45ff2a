//! A lane: memory that a client and the daemon share, with a ring of bytes in
//! each direction (layout and rules: `pilot_wire::ipc::lane`).
//!
//! Neither side trusts the other. Each keeps its own index itself; the other's
//! is checked whenever it is read, and what breaks the rules ends the stream
//! with a [`LaneFault`]. Bytes are copied out of the shared memory before
//! anybody looks at them. The file is sealed against a change of its size, so
//! that no access can fault. Who waits says so in the shared page, and the other
//! side then sends a kick over the socket; this crate only says when.

mod memory;
mod ring;

pub use memory::Memory;
pub use pilot_wire::ipc::lane::{Direction, LaneFault};
pub use ring::{Consumer, Producer};

/// Whether this system has what lanes need.
pub const SUPPORTED: bool = cfg!(target_os = "linux");
