//! How a published peer behaves, and what of it a test may switch.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::packet::port;

/// Published behaviours that a test may want otherwise.
#[derive(Clone, Debug)]
pub struct Switches {
    /// Sequence number of every SYN and SYN-ACK; published: 0.
    pub initial_sequence: u32,
    /// First ephemeral port; published: 49152.
    pub first_port: u16,
    /// Send packets also in the clear while no key is held; published: yes.
    pub plaintext_copies: bool,
    /// How often one connection answers a FIN. Published: without end, which
    /// between two such peers is a storm.
    pub max_fin_answers: Option<u32>,
    /// Compare a later key exchange with itself, or never accept it, depending
    /// on the path (page "Tunnel layer", section 4); published: yes.
    pub faulty_key_cache: bool,
    /// Largest congestion window in bytes; published: 1,048,576.
    pub max_congestion_window: usize,
    /// Pause between heartbeats; published: 30 s.
    pub heartbeat: Duration,
    /// How long a closed connection is remembered; published: 10 s.
    pub time_wait: Duration,
    /// Pause between sweeps; published: 15 s.
    pub sweep: Duration,
    /// Idle time before a keepalive probe; published: 30 s.
    pub keepalive: Duration,
    /// Idle time before FIN; published: 120 s.
    pub idle_timeout: Duration,
    /// Whether any node may resolve this one; published: no.
    pub public: bool,
    /// Endpoint to register instead of the real one.
    pub advertise: Option<SocketAddr>,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            initial_sequence: 0,
            first_port: port::EPHEMERAL_FIRST,
            plaintext_copies: true,
            max_fin_answers: None,
            faulty_key_cache: true,
            max_congestion_window: 1_048_576,
            heartbeat: Duration::from_secs(30),
            time_wait: Duration::from_secs(10),
            sweep: Duration::from_secs(15),
            keepalive: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            public: false,
            advertise: None,
        }
    }
}

/// How to start a peer.
#[derive(Clone, Debug)]
pub struct Config {
    /// host:port of the registry.
    pub registry: String,
    /// The beacon, if there is one.
    pub beacon: Option<SocketAddr>,
    /// Ed25519 seed of the identity; the same seed is the same node.
    pub seed: [u8; 32],
    /// Behaviours.
    pub switches: Switches,
}

impl Config {
    /// A new identity that behaves as published.
    pub fn new(registry: &str, beacon: Option<SocketAddr>) -> Self {
        Self {
            registry: registry.to_owned(),
            beacon,
            seed: rand::random(),
            switches: Switches::default(),
        }
    }
}
