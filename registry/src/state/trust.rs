//! Who states trust in whom, and who has withdrawn it. Each pair stands twice,
//! once under either node, so that all that concerns a node lies together.

use std::collections::{BTreeMap, HashMap};

use pilot_wire::NodeId;

/// What two nodes say of each other, seen from one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides(u8);

impl Sides {
    /// Nothing is said.
    pub(super) const NONE: Self = Self(0);
    /// This one states trust.
    pub(super) const STATES: Self = Self(1);
    /// The other one states trust.
    pub(super) const STATED: Self = Self(2);
    /// Both state trust.
    pub(super) const MUTUAL: Self = Self(3);
    /// This one has ended or refused trust, and not stated it again.
    ///
    /// What a published node signs to ask for trust is also what it signs to
    /// refuse or end it, towards the peer, for ever; so after that a request
    /// alone, which the peer could bring here, states no trust until the node
    /// itself has stated it again.
    pub(super) const WITHDREW: Self = Self(4);
    /// The other one has.
    pub(super) const WITHDRAWN: Self = Self(8);

    pub(super) const fn has(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }

    pub(super) const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    pub(super) const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    pub(super) const fn without(self, less: Self) -> Self {
        Self(self.0 & !less.0)
    }

    /// The same, seen from the other.
    const fn mirrored(self) -> Self {
        Self((self.0 & 0b0101) << 1 | (self.0 & 0b1010) >> 1)
    }

    const fn statements(self) -> usize {
        (self.0 & 0b0011).count_ones() as usize
    }

    const fn withdrawals(self) -> usize {
        (self.0 & 0b1100).count_ones() as usize
    }
}

/// All pairs of which something is said.
#[derive(Debug, Default)]
pub(super) struct Trust {
    sides: BTreeMap<(NodeId, NodeId), Sides>,
    /// Pairs of which at least one side states trust.
    pub(super) pairs: usize,
    /// Of which both do.
    pub(super) mutual: usize,
    /// Sides that state trust.
    pub(super) statements: usize,
    /// Sides that have withdrawn it.
    pub(super) withdrawals: usize,
    /// How often a node says what is bounded; none of them is empty.
    said: HashMap<NodeId, Said>,
}

/// What one node says, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    /// Statements that the other has not returned.
    alone: usize,
    withdrawals: usize,
}

impl Said {
    /// What one side says, seen from it.
    const fn of(sides: Sides) -> Self {
        let alone = sides.has(Sides::STATES) && !sides.has(Sides::STATED);
        Self { alone: alone as usize, withdrawals: sides.has(Sides::WITHDREW) as usize }
    }
}

impl Trust {
    /// What is said between two, seen from `by`.
    pub(super) fn get(&self, by: NodeId, peer: NodeId) -> Sides {
        self.sides.get(&(by, peer)).copied().unwrap_or_default()
    }

    /// Sets what is said between two different nodes, seen from `by`; gives
    /// what was said before.
    pub(super) fn put(&mut self, by: NodeId, peer: NodeId, sides: Sides) -> Sides {
        let former = if sides == Sides::NONE {
            self.sides.remove(&(peer, by));
            self.sides.remove(&(by, peer))
        } else {
            self.sides.insert((peer, by), sides.mirrored());
            self.sides.insert((by, peer), sides)
        };
        let former = former.unwrap_or_default();
        self.count(by, former, sides);
        self.count(peer, former.mirrored(), sides.mirrored());
        let change = |count: &mut usize, of: fn(Sides) -> usize| {
            *count = *count + of(sides) - of(former);
        };
        change(&mut self.pairs, |s| usize::from(s.any(Sides::MUTUAL)));
        change(&mut self.mutual, |s| usize::from(s.has(Sides::MUTUAL)));
        change(&mut self.statements, Sides::statements);
        change(&mut self.withdrawals, Sides::withdrawals);
        former
    }

    fn count(&mut self, node: NodeId, former: Sides, sides: Sides) {
        let (former, now) = (Said::of(former), Said::of(sides));
        if former == now {
            return;
        }
        let said = self.said.entry(node).or_default();
        said.alone = said.alone + now.alone - former.alone;
        said.withdrawals = said.withdrawals + now.withdrawals - former.withdrawals;
        if *said == Said::default() {
            self.said.remove(&node);
        }
    }

    /// Statements of a node that the other has not returned.
    pub(super) fn alone_of(&self, node: NodeId) -> usize {
        self.said.get(&node).map_or(0, |said| said.alone)
    }

    /// Withdrawals of a node.
    pub(super) fn withdrawals_of(&self, node: NodeId) -> usize {
        self.said.get(&node).map_or(0, |said| said.withdrawals)
    }

    /// Everybody with whom `node` has to do, in order, seen from `node`.
    pub(super) fn of(&self, node: NodeId) -> impl Iterator<Item = (NodeId, Sides)> {
        let all = (node, NodeId(0))..=(node, NodeId(u32::MAX));
        self.sides.range(all).map(|((_, peer), sides)| (*peer, *sides))
    }

    /// Nodes that have to do with others, in order.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let mut last = NodeId(0);
        self.sides.keys().filter_map(move |(node, _)| {
            let new = *node != last;
            last = *node;
            new.then_some(*node)
        })
    }
}
