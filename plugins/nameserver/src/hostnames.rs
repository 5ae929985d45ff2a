//! What the registry said about hostnames, for a while. Time is an argument, in
//! Unix seconds.

use std::collections::{HashMap, VecDeque};

use pilot_plugin::wire::Address;

/// Seconds that an address is remembered.
const FOUND: u64 = 60;
/// Seconds that it is remembered that there is no such hostname.
const NOT_FOUND: u64 = 5;
/// Answers remembered; the oldest makes room for a new one.
const REMEMBERED: usize = 8192;
/// Longest hostname of a registry, in bytes.
const LONGEST: usize = 63;

#[derive(Clone, Copy, Debug)]
struct Known {
    address: Option<Address>,
    /// Forgotten from this second on.
    until: u64,
    number: u64,
}

/// Remembered answers.
#[derive(Debug, Default)]
pub(crate) struct Hostnames {
    known: HashMap<Box<str>, Known>,
    /// Names and numbers of answers in the order in which they came; one name
    /// may be in it twice.
    order: VecDeque<(Box<str>, u64)>,
    next: u64,
}

impl Hostnames {
    /// What is known of a hostname: an address, that there is none, or nothing.
    #[expect(clippy::option_option, reason = "that there is none is knowledge")]
    pub(crate) fn get(&self, name: &str, now: u64) -> Option<Option<Address>> {
        let Known { address, until, .. } = self.known.get(name)?;
        (now < *until).then_some(*address)
    }

    /// Remembers an answer of the registry.
    pub(crate) fn put(&mut self, name: &str, address: Option<Address>, now: u64) {
        let until = now.saturating_add(if address.is_some() { FOUND } else { NOT_FOUND });
        let number = self.next;
        self.next += 1;
        self.known.insert(name.into(), Known { address, until, number });
        self.order.push_back((name.into(), number));
        while self.order.len() > REMEMBERED {
            let Some((name, number)) = self.order.pop_front() else { return };
            // A newer answer has a place of its own.
            if self.known.get(&name).is_some_and(|newest| newest.number == number) {
                self.known.remove(&name);
            }
        }
    }
}

/// Whether a registry could know it: letters, digits and hyphens.
pub(crate) fn is_hostname(name: &str) -> bool {
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        "0:0000.0000.0007".parse().unwrap()
    }

    #[test]
    fn answers_are_forgotten_in_time() {
        let mut names = Hostnames::default();
        names.put("web", Some(address()), 100);
        names.put("none", None, 100);
        assert_eq!(names.get("web", 159), Some(Some(address())));
        assert_eq!(names.get("web", 160), None);
        assert_eq!(names.get("none", 104), Some(None));
        assert_eq!(names.get("none", 105), None);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut names = Hostnames::default();
        for i in 0..=REMEMBERED {
            names.put(&i.to_string(), Some(address()), 100);
        }
        assert_eq!(names.get("0", 100), None);
        assert_eq!(names.get("1", 100), Some(Some(address())));
        for _ in 0..3 * REMEMBERED {
            names.put("same", None, 101);
        }
        assert_eq!(names.get("same", 101), Some(None));
        assert!(names.known.len() <= REMEMBERED && names.order.len() <= REMEMBERED);
    }

    #[test]
    fn only_what_could_be_one_is_asked_for() {
        assert!(is_hostname("web-1") && is_hostname("Web"));
        for name in ["", "a.b", "a b", "tempé", &"a".repeat(64)] {
            assert!(!is_hostname(name), "{name}");
        }
    }
}
