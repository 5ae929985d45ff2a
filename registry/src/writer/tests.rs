//! The thread under faults.
