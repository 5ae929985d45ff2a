//! `isolation: process`: the same library in a child process, which runs it
//! just as `native` does here. `frames` is what passes over the socket pair,
//! `parent` this side, `child` the other.
//!
//! A child that is killed by a signal, does not answer or takes too much memory
//! costs its own streams; the parent says what happened.

mod carry;
mod child;
mod frames;
mod own;
mod parent;
mod pipe;
mod queue;
mod rate;
mod talk;

pub use child::run_child;
pub use parent::{ProcessError, open_process};
