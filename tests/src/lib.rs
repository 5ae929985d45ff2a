//! What the tests of the whole share: real processes, benches, a peer that
//! speaks only the published protocol.

pub mod bench;
pub mod fuzz;
pub mod harness;
pub mod peer;
