//! A stream that is written as fast as it takes data, and read at once.

use bytes::Bytes;
use pilot_core::{CongestionControl, Read, StreamId, StreamInfo, Time};

use crate::app::connect_pair;
use crate::world::World;

const BLOCK: usize = 64 << 10;

pub(crate) struct Flow {
    left: usize,
    ends: (StreamId, StreamId),
    block: Bytes,
    /// Payload bytes that the receiver has read.
    pub(crate) received: u64,
}

impl Flow {
    /// Opens a stream from node `left` to its peer. Others wait meanwhile.
    pub(crate) fn open(world: &mut World, left: usize, kind: CongestionControl) -> Self {
        let ends = connect_pair(world, left, 1000).expect("connected");
        world.nodes[left].core.set_congestion(ends.0, kind);
        Self { left, ends, block: Bytes::from(vec![7; BLOCK]), received: 0 }
    }

    fn pump(&mut self, world: &mut World) {
        let now = world.now;
        let sender = &mut world.nodes[self.left].core;
        while sender.writable(self.ends.0) >= BLOCK {
            sender.write(self.ends.0, self.block.clone(), now).expect("open");
        }
        let receiver = &mut world.nodes[self.left + 1].core;
        while let Read::Data(data) = receiver.read(self.ends.1, 1 << 20) {
            self.received += data.len() as u64;
        }
    }

    /// What the sender knows of it.
    pub(crate) fn info(&self, world: &World) -> StreamInfo {
        let streams = world.nodes[self.left].core.streams();
        streams.into_iter().find(|s| s.id == self.ends.0).expect("open")
    }
}

/// Keeps all of them busy until `end`.
pub(crate) fn run(world: &mut World, flows: &mut [Flow], end: Time) {
    while world.now < end {
        for flow in &mut *flows {
            flow.pump(world);
        }
        for node in &mut world.nodes {
            node.events.clear();
        }
        assert!(world.step());
    }
}
