//! Trust between two in-process nodes.
