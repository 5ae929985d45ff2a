//! What a published peer has sent and seen, for assertions.

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `PILT` frames sent: packets in the clear.
    pub plain_sent: u64,
    /// `PILT` frames received from anybody.
    pub plain_received: u64,
    /// `PILS` frames sent.
    pub sealed_sent: u64,
    /// `PILS` frames opened.
    pub sealed_received: u64,
    /// `PILA` frames sent.
    pub auth_keys_sent: u64,
    /// `PILA` frames received, whether accepted or not.
    pub auth_keys_received: u64,
    /// `PILA` frames accepted.
    pub auth_keys_accepted: u64,
    /// Accepted ones that brought another key than the one held.
    pub rekeys: u64,
    /// `PILK` frames received.
    pub keys_received: u64,
    /// `PILP` frames sent.
    pub punches_sent: u64,
    /// `PILP` frames received.
    pub punches_received: u64,
    /// Frames sent through the beacon.
    pub relayed_sent: u64,
    /// Frames received through the beacon.
    pub relayed_received: u64,
    /// Times a peer was marked for relay.
    pub relay_marks: u64,
    /// Sealed frames whose counter was refused.
    pub replays: u64,
    /// Sealed frames that no key opened.
    pub undecryptable: u64,
    /// Sealed frames for which no key was held.
    pub keyless: u64,
    /// Opened or plain frames that held no sound packet.
    pub bad_packets: u64,
    /// FIN packets sent, answers included.
    pub fins_sent: u64,
    /// FIN packets received, answers included.
    pub fins_received: u64,
    /// RST packets sent.
    pub resets_sent: u64,
    /// RST packets received.
    pub resets_received: u64,
    /// Data segments sent, repetitions included.
    pub segments_sent: u64,
    /// Data segments sent again, by connections that have ended.
    pub retransmits: u64,
    /// Packets with a SACK list sent.
    pub sack_lists_sent: u64,
    /// Packets taken for a SACK list.
    pub sack_lists_received: u64,
    /// Segments beyond the advertised window. The published daemon would have
    /// stopped its packet loop.
    pub queue_overruns: u64,
    /// Connections reset after eight transmissions of a segment.
    pub gave_up: u64,
    /// Longest payload of a received data segment.
    pub longest_segment: usize,
    /// Largest datagram received on the tunnel socket.
    pub largest_datagram: usize,
}
