//! Counts of registered nodes that would take a look at all of them.

use std::collections::BTreeMap;

use super::NodeRecord;

/// How many registered nodes are of some kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    public: usize,
    task_executors: usize,
    /// Nodes by tag.
    tags: BTreeMap<Box<str>, usize>,
}

impl Census {
    /// Nodes whose endpoint anybody may see.
    pub const fn public(&self) -> usize {
        self.public
    }

    /// Nodes that execute tasks.
    pub const fn task_executors(&self) -> usize {
        self.task_executors
    }

    /// Different tags.
    pub fn unique_tags(&self) -> usize {
        self.tags.len()
    }

    /// Every tag, with how often nodes have it.
    pub fn tags(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tags.iter().map(|(tag, count)| (&**tag, *count))
    }

    pub(super) fn count(&mut self, record: &NodeRecord) {
        self.public += usize::from(record.public);
        self.task_executors += usize::from(record.task_exec);
        for tag in &record.tags {
            *self.tags.entry(tag.as_str().into()).or_default() += 1;
        }
    }

    pub(super) fn discount(&mut self, record: &NodeRecord) {
        self.public -= usize::from(record.public);
        self.task_executors -= usize::from(record.task_exec);
        for tag in &record.tags {
            if let Some(count) = self.tags.get_mut(tag.as_str()) {
                *count -= 1;
                if *count == 0 {
                    self.tags.remove(tag.as_str());
                }
            }
        }
    }
}
