//! Whether a history of concurrent operations can be explained by some order in
//! which each took effect at one moment between its call and its return.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects",
//! 1993) with Lowe's memory of configurations that led nowhere. An operation
//! that never returned may have taken effect at any later time, or not at all.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What an object does when nobody else uses it.
pub(crate) trait Model {
    /// All there is to know of it.
    type State: Clone + Eq + Hash + Debug;
    /// What it is asked.
    type Op: Clone + Debug;
    /// What it answers.
    type Answer: Clone + Debug;

    /// The state before anything happened.
    fn start(&self) -> Self::State;

    /// The state after `op`, if `answer` is the right answer; `None` for the
    /// answer of an operation that never returned: any is right.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// One operation as its caller saw it. Times are from one clock, in any unit.
#[derive(Clone, Debug)]
pub(crate) struct Call<O, A> {
    pub(crate) called: u64,
    pub(crate) op: O,
    /// When it returned and what; none for never.
    pub(crate) returned: Option<(u64, A)>,
}

/// Searches for an order.
///
/// # Errors
/// With the longest explanation found, and the calls that nothing explains.
pub(crate) fn check<M: Model>(model: &M, history: &[Call<M::Op, M::Answer>]) -> Result<(), String> {
    let mut calls: Vec<_> = history.to_vec();
    calls.sort_by_key(|c| c.called);
    let mut search = Search {
        model,
        calls: &calls,
        seen: HashSet::new(),
        order: Vec::new(),
        longest: Vec::new(),
    };
    let taken = vec![0u64; calls.len().div_ceil(64)];
    if search.explain(taken, &model.start()) {
        return Ok(());
    }
    let longest = search.longest;
    let explained: Vec<_> = longest.iter().map(|i| format!("  {:?}", calls[*i])).collect();
    let rest: Vec<_> = calls
        .iter()
        .enumerate()
        .filter(|(i, _)| !longest.contains(i))
        .take(12)
        .map(|(_, c)| format!("  {c:?}"))
        .collect();
    let tail = explained.len().saturating_sub(12);
    Err(format!(
        "no order explains the history. The end of the longest one found:\n{}\nthen nothing fits \
         of:\n{}",
        explained[tail..].join("\n"),
        rest.join("\n")
    ))
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Op, M::Answer>],
    /// Configurations that were tried: what took effect, and the state then.
    seen: HashSet<(Vec<u64>, M::State)>,
    order: Vec<usize>,
    longest: Vec<usize>,
}

impl<M: Model> Search<'_, M> {
    /// Depth is the number of calls, so histories are kept short by their
    /// makers.
    fn explain(&mut self, taken: Vec<u64>, state: &M::State) -> bool {
        let is_taken = |i: usize| taken[i / 64] >> (i % 64) & 1 == 1;
        let open: Vec<usize> = (0..self.calls.len()).filter(|i| !is_taken(*i)).collect();
        if open.iter().all(|i| self.calls[*i].returned.is_none()) {
            return true;
        }
        if !self.seen.insert((taken.clone(), state.clone())) {
            return false;
        }
        // Who was called after another has returned cannot come before it.
        let first_return = open
            .iter()
            .filter_map(|i| self.calls[*i].returned.as_ref().map(|(at, _)| *at))
            .min()
            .unwrap_or(u64::MAX);
        for i in open {
            let call = &self.calls[i];
            if call.called > first_return {
                break;
            }
            let answer = call.returned.as_ref().map(|(_, answer)| answer);
            let Some(next) = self.model.step(state, &call.op, answer) else { continue };
            let mut with = taken.clone();
            with[i / 64] |= 1 << (i % 64);
            self.order.push(i);
            if self.order.len() > self.longest.len() {
                self.longest.clone_from(&self.order);
            }
            if self.explain(with, &next) {
                return true;
            }
            self.order.pop();
        }
        false
    }
}

/// The checker itself: a register that is read and written.
mod tests {
    use super::{Call, Model, check};

    struct Cell;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u8),
        Read,
    }

    impl Model for Cell {
        type State = u8;
        type Op = Op;
        type Answer = u8;

        fn start(&self) -> u8 {
            0
        }

        fn step(&self, state: &u8, op: &Op, answer: Option<&u8>) -> Option<u8> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read => answer.is_none_or(|a| a == state).then_some(*state),
            }
        }
    }

    fn call(called: u64, op: Op, returned: Option<(u64, u8)>) -> Call<Op, u8> {
        Call { called, op, returned }
    }

    #[test]
    fn orders_are_found_where_there_are_some() {
        let write = |at, v, end| call(at, Op::Write(v), Some((end, 0)));
        let read = |at, v, end| call(at, Op::Read, Some((end, v)));
        let good = [
            vec![write(1, 7, 2), read(3, 7, 4)],
            // It overlaps the write: either is right.
            vec![write(1, 7, 5), read(2, 0, 3), read(4, 7, 6)],
            // What never returned has taken effect late.
            vec![call(1, Op::Write(9), None), read(2, 0, 3), read(4, 9, 5)],
            // Or never.
            vec![call(1, Op::Write(9), None), read(2, 0, 3), read(4, 0, 5)],
        ];
        for history in good {
            check(&Cell, &history).unwrap();
        }
        let bad = [
            vec![write(1, 7, 2), read(3, 0, 4)],
            vec![write(1, 7, 6), read(2, 7, 3), read(4, 0, 5)],
            vec![call(5, Op::Write(9), None), read(1, 9, 2)],
        ];
        for history in bad {
            let problem = check(&Cell, &history).unwrap_err();
            assert!(problem.contains("no order explains"), "{problem}");
        }
    }
}
