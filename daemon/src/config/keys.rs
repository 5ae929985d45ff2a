//! The table of keys: names, defaults, one line each for people. The published
//! flags (protocol page "Programs, flags and the CLI", section 2) and our own.

/// The program's name.
pub const PROGRAM: &str = "pilot-daemon";

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Name with dashes.
    pub(super) name: &'static str,
    /// Text that stands in when nothing is given.
    pub(super) default: &'static str,
    /// One line for people.
    pub(super) help: &'static str,
    /// Whether the flag alone means `true`.
    pub(super) switch: bool,
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, default, help, switch: false }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, default, help, switch: true }
}

/// Every key.
pub(super) const KEYS: &[Key] = &[
    value("config", "", "YAML or JSON file with these keys"),
    value("registry", "127.0.0.1:9000", "registry, host:port; empty = none"),
    value("beacon", "127.0.0.1:9001", "beacon, host:port; empty = none"),
    value("listen", "", "UDP address of tunnels [loopback if registry and beacon are, else :0]"),
    value("endpoint", "", "host:port to register instead of what the beacon sees"),
    value("socket", "/tmp/pilot.sock", "Unix socket for agents"),
    value("data", "", "folder of everything kept [~/.pilot]"),
    value(
        "identity",
        "",
        "identity file; trust.json and state.json lie beside it [DATA/identity.key]",
    ),
    value("owner", "", "free text naming the owner"),
    value("hostname", "", "hostname to take"),
    switch("public", "false", "let every registered node resolve this one"),
    switch("trust-auto-approve", "false", "grant every valid request for trust, for test swarms"),
    value("keepalive", "30s", "time between heartbeats, and between probes of idle streams"),
    value("idle-timeout", "120s", "a silent stream is reset after this"),
    value("time-wait", "10s", "how long an ended stream answers late packets"),
    value("syn-rate-limit", "100", "new streams accepted per second"),
    value("syn-rate-per-node", "100", "new streams accepted per second from one node"),
    value("max-conns-per-port", "1024", "streams per listening port"),
    value("max-conns-total", "4096", "streams in all"),
    value("workers", "1", "threads that peers are spread over, at most 64"),
    switch("no-lanes", "false", "share no memory with agents; all data goes through the socket"),
    value("congestion", "cubic", "congestion control of streams: cubic, newreno or bbr"),
    switch("no-echo", "false", "do not answer on port 7"),
    switch("no-dataexchange", "false", "do not accept files and messages on port 1001"),
    value(
        "max-received-bytes",
        "",
        "space for received files and messages, e.g. 500M or 2G [no limit]",
    ),
    switch("no-eventstream", "false", "do not serve events on port 1002"),
    switch("no-plugins", "false", "run none of the plugins that ship with Pilot by default"),
    value(
        "plugin-path",
        "",
        "folders of the plugins that ship with Pilot, separated by : [beside the program]",
    ),
    switch("encrypt", "true", "tunnels are always encrypted; only true is accepted"),
    switch("registry-tls", "false", "speak TLS to the registry; needs registry-fingerprint"),
    value("registry-fingerprint", "", "SHA-256 of the registry's certificate, which prints it"),
    value(
        "networks-over-plaintext",
        "warn",
        "networks of a registry without TLS that is not on this machine: warn or refuse",
    ),
    value("webhook", "", "URL that events are delivered to, by the plugin sink-webhook"),
    value("metrics-listen", "", "TCP address that serves /metrics and /healthz; empty = none"),
    switch("metrics-allow-remote", "false", "let metrics-listen be reachable from other machines"),
    value("log-level", "info", "debug, info, warn or error"),
    value("log-format", "text", "text or json, to standard error"),
];
