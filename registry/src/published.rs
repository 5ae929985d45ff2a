//! The published registry's state file (protocol page "Registry", section 7),
//! read into what an empty registry is told, and written from a state. Files
//! themselves are not touched here.

mod reading;
mod writing;

pub use reading::{PublishedError, Reading, read};
pub use writing::write;

#[cfg(test)]
mod tests;
