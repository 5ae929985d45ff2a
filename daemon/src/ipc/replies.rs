//! Order of the answers to untagged requests: the published driver hands an
//! answer to the oldest waiter of its code, so answers of one code keep the
//! order of their requests, whatever finishes first.

use std::collections::VecDeque;

/// Requests of one client that wait for their answer; one beyond it is
/// answered with an error at once.
pub(crate) const MAX_WAITING: usize = 1024;

/// How a request wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// In the order of requests, by this number.
    InOrder(u64),
    /// Under the client's own tag, as soon as it is there.
    Tagged(u32),
}

struct Slot {
    number: u64,
    code: u8,
    /// The whole answer, once it is there.
    answer: Option<Vec<u8>>,
}

/// Untagged requests that wait, oldest first. At most [`MAX_WAITING`].
#[derive(Default)]
pub(crate) struct Replies {
    slots: VecDeque<Slot>,
    next: u64,
    tagged: usize,
}

impl Replies {
    /// Whether one more request may wait.
    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() + self.tagged < MAX_WAITING
    }

    /// A place for the answer with `code`; `tag` when the client gave one.
    pub(crate) fn open(&mut self, code: u8, tag: Option<u32>) -> Tag {
        if let Some(tag) = tag {
            self.tagged += 1;
            return Tag::Tagged(tag);
        }
        let number = self.next;
        self.next += 1;
        self.slots.push_back(Slot { number, code, answer: None });
        Tag::InOrder(number)
    }

    /// The answer to a tagged request went out.
    pub(crate) fn close_tagged(&mut self) {
        self.tagged = self.tagged.saturating_sub(1);
    }

    /// Puts an answer in its place; `emit` gets what may go out now.
    pub(crate) fn complete(&mut self, number: u64, answer: Vec<u8>, mut emit: impl FnMut(&[u8])) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) else { return };
        let code = slot.code;
        slot.answer = Some(answer);
        while let Some(index) = self.slots.iter().position(|slot| slot.code == code) {
            if self.slots[index].answer.is_none() {
                return;
            }
            if let Some(answer) = self.slots.remove(index).and_then(|slot| slot.answer) {
                emit(&answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_one_code_keep_their_order_and_others_do_not_wait() {
        let mut replies = Replies::default();
        let mut out = Vec::new();
        let Tag::InOrder(a) = replies.open(4, None) else { panic!() };
        let Tag::InOrder(b) = replies.open(4, None) else { panic!() };
        let Tag::InOrder(c) = replies.open(18, None) else { panic!() };
        replies.complete(b, vec![2], |m| out.push(m[0]));
        assert!(out.is_empty());
        replies.complete(c, vec![3], |m| out.push(m[0]));
        assert_eq!(out, [3]);
        replies.complete(a, vec![1], |m| out.push(m[0]));
        assert_eq!(out, [3, 1, 2]);
        replies.complete(a, vec![9], |m| out.push(m[0]));
        assert_eq!(out, [3, 1, 2]);
    }

    #[test]
    fn only_so_many_may_wait() {
        let mut replies = Replies::default();
        for i in 0..MAX_WAITING {
            assert!(replies.has_room());
            replies.open(4, (i % 2 == 0).then_some(7));
        }
        assert!(!replies.has_room());
        replies.close_tagged();
        assert!(replies.has_room());
    }
}
