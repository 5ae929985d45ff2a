//! What the tests of the whole share: real processes, benches, a bad
//! network, a peer that speaks only the published protocol.

pub mod bench;
pub mod fuzz;
pub mod harness;
pub mod impair;
pub mod peer;
pub mod plot;
pub mod soak;
