//! Two nodes over loopback, driven by clients that speak the wire messages.
