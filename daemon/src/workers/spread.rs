//! Which worker a peer, a datagram or a connection belongs to.
//!
//! The rule is the remainder of the node's number; everything else follows
//! from it, so no table is shared.

use pilot_wire::NodeId;
use pilot_wire::beacon::{DELIVER_HEADER_LEN, RELAY_DELIVER, TYPE_LIMIT};
use pilot_wire::tunnel::{COMPACT, MAGIC_AUTH_KEY, MAGIC_KEY, MAGIC_SEALED};

/// How peers are spread over workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    workers: u32,
}

impl Spread {
    /// Over `workers` workers, at least one.
    pub fn over(workers: usize) -> Self {
        Self { workers: u32::try_from(workers).unwrap_or(u32::MAX).max(1) }
    }

    /// How many workers there are.
    pub fn workers(self) -> usize {
        self.workers as usize
    }

    /// The worker of a peer.
    pub fn of_node(self, node: NodeId) -> usize {
        (node.0 % self.workers) as usize
    }

    /// The worker of a connection ID: each gives out those with its own
    /// remainder.
    pub fn of_connection(self, id: u32) -> usize {
        (id % self.workers) as usize
    }

    /// The worker that a UDP datagram is for: that of the sender it names, the
    /// first one when it names none. The kernel's program in `select` decides
    /// the same.
    pub fn of_datagram(self, datagram: &[u8]) -> usize {
        sender(datagram).map_or(0, |node| self.of_node(node))
    }
}

/// The sender that a datagram names in the clear (protocol pages "Tunnel
/// layer", section 1, and "Beacon").
fn sender(datagram: &[u8]) -> Option<NodeId> {
    let number = match datagram.first()? {
        &RELAY_DELIVER => datagram.get(1..DELIVER_HEADER_LEN)?,
        &COMPACT => datagram.get(4..8)?,
        first if *first < TYPE_LIMIT => return None,
        _ => match datagram.first_chunk()? {
            &(MAGIC_SEALED | MAGIC_KEY | MAGIC_AUTH_KEY) => datagram.get(4..8)?,
            _ => return None,
        },
    };
    Some(NodeId(u32::from_be_bytes(number.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_belong_to_the_sender_they_name() {
        let spread = Spread::over(3);
        assert_eq!(spread.of_datagram(b"PILS\0\0\0\x07rest"), 1);
        assert_eq!(spread.of_datagram(b"PILA\0\0\0\x08rest"), 2);
        assert_eq!(spread.of_datagram(b"PILK\0\0\x01\x01"), 257 % 3);
        assert_eq!(spread.of_datagram(b"\x06\0\0\0\x05PILS\0\0\0\x07"), 2, "the relay's sender");
        assert_eq!(spread.of_datagram(b"\xC1PIL\0\0\x01\0rest"), 256 % 3);
        assert_eq!(spread.of_datagram(b"\x06\0\0\0\x05\xC1\0\0\x07\0\0\0\x07"), 2);
    }

    #[test]
    fn what_names_no_sender_is_for_the_first_worker() {
        let spread = Spread::over(3);
        let datagrams: [&[u8]; 10] = [
            b"",
            b"PIL",
            b"PILS\0\0\x07",
            b"\xC1",
            b"\xC1\0\0\x07\0\0\x07",
            b"PILP\0\0\0\x07",
            b"PILT\0\0\0\x07",
            b"\x06\0\0\0",
            b"\x02\x04\x7f\0\0\x01\0\x07",
            b"\x04\x04\x7f\0\0\x01\0\x07",
        ];
        for datagram in datagrams {
            assert_eq!(spread.of_datagram(datagram), 0, "{datagram:?}");
        }
    }

    #[test]
    fn one_worker_has_everything() {
        let spread = Spread::over(0);
        assert_eq!(
            (spread.workers(), spread.of_node(NodeId(9)), spread.of_connection(9)),
            (1, 0, 0)
        );
    }
}
