//! What each object does when one client at a time uses it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checker::Model;

/// One operation; numbers are node numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Register,
    Claim(u64),
    Unclaim(u64),
    WhoHas,
    Report(u64),
    Revoke(u64),
    Resolve(u64),
    Join(u64),
    Leave(u64),
    Members,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Refused,
    Node(u64),
    Nodes(BTreeSet<u64>),
}

impl Answer {
    /// Reads a reply; refusals must be of the kind that the operation knows.
    pub(crate) fn read(op: &Op, reply: &Value) -> Self {
        let code = reply["code"].as_str().unwrap_or_default();
        if reply["type"] == "error" {
            let known: &[&str] = match op {
                Op::Claim(_) => &["hostname_taken"],
                Op::WhoHas => &["unknown_hostname"],
                Op::Revoke(_) => &["no_trust"],
                Op::Resolve(_) => &["private"],
                Op::Join(_) => &["not_admitted", "token_gone"],
                Op::Leave(_) => &["not_member"],
                _ => &[],
            };
            assert!(known.contains(&code), "{op:?} was refused: {reply}");
            return Self::Refused;
        }
        match op {
            Op::Register | Op::WhoHas => Self::Node(reply["node_id"].as_u64().unwrap()),
            Op::Members => {
                let members = reply["members"].as_array().unwrap();
                Self::Nodes(members.iter().map(|m| m["node_id"].as_u64().unwrap()).collect())
            }
            _ => Self::Done,
        }
    }
}

/// Whether `right` is the answer, if there was one.
fn is(answer: Option<&Answer>, right: &Answer) -> bool {
    answer.is_none_or(|answer| answer == right)
}

/// One key: it gets a number once, for ever.
pub(crate) struct KeyModel;

impl Model for KeyModel {
    type State = Option<u64>;
    type Op = Op;
    type Answer = Answer;

    fn start(&self) -> Option<u64> {
        None
    }

    fn step(&self, state: &Option<u64>, _: &Op, answer: Option<&Answer>) -> Option<Option<u64>> {
        match (state, answer) {
            (Some(id), _) => is(answer, &Answer::Node(*id)).then_some(Some(*id)),
            (None, Some(Answer::Node(id))) => Some(Some(*id)),
            // It may have got any number; a later answer says which. Taking
            // that it got none explains as much.
            (None, None) => Some(None),
            (None, Some(_)) => None,
        }
    }
}

/// One hostname, whose users have no other.
pub(crate) struct NameModel;

impl Model for NameModel {
    type State = Option<u64>;
    type Op = Op;
    type Answer = Answer;

    fn start(&self) -> Option<u64> {
        None
    }

    fn step(&self, holder: &Option<u64>, op: &Op, answer: Option<&Answer>) -> Option<Option<u64>> {
        let (right, next) = match op {
            Op::Claim(node) if holder.is_none_or(|h| h == *node) => (Answer::Done, Some(*node)),
            Op::Claim(_) => (Answer::Refused, *holder),
            Op::Unclaim(node) => (Answer::Done, holder.filter(|h| h != node)),
            Op::WhoHas => (holder.map_or(Answer::Refused, Answer::Node), *holder),
            _ => return None,
        };
        is(answer, &right).then_some(next)
    }
}

/// Trust between two nodes.
pub(crate) struct TrustModel(pub(crate) [u64; 2]);

impl Model for TrustModel {
    /// Who of the two has stated it.
    type State = [bool; 2];
    type Op = Op;
    type Answer = Answer;

    fn start(&self) -> [bool; 2] {
        [false; 2]
    }

    fn step(&self, stated: &[bool; 2], op: &Op, answer: Option<&Answer>) -> Option<[bool; 2]> {
        let done = |yes| if yes { Answer::Done } else { Answer::Refused };
        let (right, next) = match op {
            Op::Report(node) => {
                let mut next = *stated;
                next[usize::from(*node == self.0[1])] = true;
                (Answer::Done, next)
            }
            Op::Revoke(node) if self.0.contains(node) => (done(stated.contains(&true)), [false; 2]),
            Op::Resolve(node) if self.0.contains(node) => (done(*stated == [true; 2]), *stated),
            _ => return None,
        };
        is(answer, &right).then_some(next)
    }
}

/// A network that a token of so many uses opens.
pub(crate) struct NetworkModel {
    pub(crate) uses: u32,
}

impl Model for NetworkModel {
    /// Uses left, members.
    type State = (u32, BTreeSet<u64>);
    type Op = Op;
    type Answer = Answer;

    fn start(&self) -> Self::State {
        (self.uses, BTreeSet::new())
    }

    fn step(&self, state: &Self::State, op: &Op, answer: Option<&Answer>) -> Option<Self::State> {
        let (mut left, mut members) = state.clone();
        let right = match op {
            Op::Join(_) if left == 0 => Answer::Refused,
            Op::Join(node) => {
                left -= 1;
                members.insert(*node);
                Answer::Done
            }
            Op::Leave(node) if members.remove(node) => Answer::Done,
            Op::Leave(_) => Answer::Refused,
            Op::Members => Answer::Nodes(members.clone()),
            _ => return None,
        };
        is(answer, &right).then_some((left, members))
    }
}
