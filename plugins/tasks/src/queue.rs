//! The tasks that wait, and points that the registry has not been told of:
//! what is kept in the store. No I/O; moments are arguments.

use std::collections::VecDeque;

use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::tasks::TaskId;
use serde::{Deserialize, Serialize};

/// Changes of points that wait for the registry; one more drops the oldest.
const SCORES: usize = 4096;

/// Tasks in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    waiting: VecDeque<Waiting>,
    /// Since when the first one is the first, Unix seconds.
    since: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    id: TaskId,
    from: NodeId,
    /// Its file is being written.
    #[serde(skip)]
    begun: bool,
}

/// Why there is no room, in the words of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("Too many tasks waiting: at most {0}")]
    All(usize),
    #[error("Too many tasks of one submitter waiting: at most {0}")]
    Node(usize),
    #[error("The task is known already")]
    Known,
}

impl Queue {
    /// Takes a place for a task whose file is written next.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn begin(
        &mut self,
        id: &TaskId,
        from: NodeId,
        max: usize,
        per_node: usize,
        unix: i64,
    ) -> Result<(), Full> {
        if self.waiting.iter().any(|w| w.id == *id) {
            return Err(Full::Known);
        }
        if self.waiting.len() >= max {
            return Err(Full::All(max));
        }
        if self.waiting.iter().filter(|w| w.from == from).count() >= per_node {
            return Err(Full::Node(per_node));
        }
        if self.waiting.is_empty() {
            self.since = unix;
        }
        self.waiting.push_back(Waiting { id: id.clone(), from, begun: true });
        Ok(())
    }

    /// The file of a task is there.
    pub(crate) fn finish(&mut self, id: &TaskId) {
        if let Some(waiting) = self.waiting.iter_mut().find(|w| w.id == *id) {
            waiting.begun = false;
        }
    }

    /// Gives up a place; says whether there was one.
    pub(crate) fn remove(&mut self, id: &TaskId, unix: i64) -> bool {
        let Some(at) = self.waiting.iter().position(|w| w.id == *id) else { return false };
        self.waiting.remove(at);
        if at == 0 {
            self.since = unix;
        }
        true
    }

    /// The first task, and since when it is that.
    pub(crate) fn head(&self) -> Option<(&TaskId, i64)> {
        let first = self.waiting.front().filter(|w| !w.begun)?;
        Some((&first.id, self.since))
    }

    /// Tasks that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Points that the registry has not been told of, oldest first. `None` is this
/// node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Scores(VecDeque<(Option<NodeId>, i64)>);

impl Scores {
    pub(crate) fn push(&mut self, node: Option<NodeId>, delta: i64) {
        if self.0.len() >= SCORES {
            self.0.pop_front();
        }
        self.0.push_back((node, delta));
    }

    pub(crate) fn first(&self) -> Option<(Option<NodeId>, i64)> {
        self.0.front().copied()
    }

    pub(crate) fn pop(&mut self) {
        self.0.pop_front();
    }
}
