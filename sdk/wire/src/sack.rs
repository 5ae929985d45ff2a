//! Selective acknowledgement lists (protocol page "Transport layer", section
//! 5), in both forms: inside the payload of an ACK packet, as published, and
//! as the payload of a [`crate::packet::Protocol::StreamAck`] packet.

use crate::reader::Reader;

const MAGIC: [u8; 4] = *b"SACK";

/// The most blocks in the published form.
pub const MAX_PUBLISHED_BLOCKS: usize = 4;
/// The most blocks in the form between peers that negotiated it.
pub const MAX_BLOCKS: usize = 32;

/// Bytes held by the receiver: `left` is the first, `right` the first after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Sequence number of the first byte held.
    pub left: u32,
    /// Sequence number of the first byte after it that is not held.
    pub right: u32,
}

/// A list of at most [`MAX_BLOCKS`] blocks, held inline.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    blocks: [Block; MAX_BLOCKS],
    len: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { blocks: [Block::default(); MAX_BLOCKS], len: 0 }
    }
}

impl Blocks {
    /// Adds a block; returns false, and drops it, when the list is full.
    pub fn push(&mut self, block: Block) -> bool {
        let Some(slot) = self.blocks.get_mut(self.len) else { return false };
        *slot = block;
        self.len += 1;
        true
    }

    /// The blocks in order.
    pub fn as_slice(&self) -> &[Block] {
        &self.blocks[..self.len]
    }

    /// Reads the published form. `None` when the payload is not a SACK list
    /// but data. Bytes after the blocks do not matter.
    pub fn recognise(payload: &[u8]) -> Option<Self> {
        let mut r = Reader::new(payload);
        if r.array::<4>()? != MAGIC {
            return None;
        }
        let count = usize::from(r.u8()?);
        if !(1..=MAX_PUBLISHED_BLOCKS).contains(&count) {
            return None;
        }
        read_blocks(&mut r, count)
    }

    /// As [`Blocks::recognise`], but the list must fill the payload exactly, as
    /// every list does that a published sender makes.
    pub fn recognise_exact(payload: &[u8]) -> Option<Self> {
        let blocks = Self::recognise(payload)?;
        (payload.len() == published_len(blocks.len)).then_some(blocks)
    }

    /// Appends the published form, at most four blocks. Nothing is written for
    /// an empty list.
    pub fn encode_published(&self, out: &mut Vec<u8>) {
        let blocks = &self.as_slice()[..self.len.min(MAX_PUBLISHED_BLOCKS)];
        if blocks.is_empty() {
            return;
        }
        out.extend_from_slice(&MAGIC);
        write_blocks(blocks, out);
    }

    /// Reads the payload of a stream acknowledgement: count, blocks. An empty
    /// payload is an empty list.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut r = Reader::new(payload);
        let count = usize::from(r.u8().unwrap_or(0));
        if count > MAX_BLOCKS {
            return None;
        }
        read_blocks(&mut r, count)
    }

    /// Appends the payload of a stream acknowledgement.
    pub fn encode(&self, out: &mut Vec<u8>) {
        write_blocks(self.as_slice(), out);
    }
}

/// Whether `payload` would be taken for a SACK list by a published receiver,
/// and so must not be sent as data in one segment.
pub fn looks_like_list(payload: &[u8]) -> bool {
    Blocks::recognise(payload).is_some()
}

const fn published_len(count: usize) -> usize {
    MAGIC.len() + 1 + count * 8
}

fn read_blocks(r: &mut Reader<'_>, count: usize) -> Option<Blocks> {
    let mut blocks = Blocks::default();
    for _ in 0..count {
        blocks.push(Block { left: r.u32()?, right: r.u32()? });
    }
    Some(blocks)
}

fn write_blocks(blocks: &[Block], out: &mut Vec<u8>) {
    // At most MAX_BLOCKS, so the count fits its byte.
    out.push(u8::try_from(blocks.len()).unwrap_or(u8::MAX));
    for block in blocks {
        out.extend_from_slice(&block.left.to_be_bytes());
        out.extend_from_slice(&block.right.to_be_bytes());
    }
}
