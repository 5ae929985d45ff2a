//! Registry messages.
