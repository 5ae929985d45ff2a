//! The part of an address after the question mark.

use std::str::FromStr;

use super::answer::Problem;

/// Keys and values, each key once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads it; only `known` keys may be in it.
    pub(super) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key)?, decoded(value)?);
            if !known.contains(&key.as_str()) {
                let known = match known {
                    [] => "none is known here".to_owned(),
                    known => format!("known here: {}", known.join(", ")),
                };
                return Err(Problem::invalid(format!("{key:?} is not known; {known}")));
            }
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(Problem::invalid(format!("{key} stands twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// The text of a key; an empty one is none.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A number.
    pub(super) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>, Problem> {
        self.text(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    Problem::invalid(format!("{key} is {text:?}, expected a number in range"))
                })
            })
            .transpose()
    }

    /// How much of a list is wanted: at most `most`, which is also meant when
    /// nothing is said unless `usual` is less.
    pub(super) fn limit(&self, usual: usize, most: usize) -> Result<usize, Problem> {
        match self.number::<usize>("limit")? {
            Some(0) => Err(Problem::invalid(format!("limit is 0, expected 1 to {most}"))),
            Some(limit) => Ok(limit.min(most)),
            None => Ok(usual),
        }
    }
}

/// Text with its percent signs resolved; a plus is a space.
pub(super) fn decoded(text: &str) -> Result<String, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).copied().collect();
                let mut byte = [0];
                hex::decode_to_slice(&digits, &mut byte).map_err(|_| {
                    Problem::invalid(format!("{text:?} has a % without two digits"))
                })?;
                byte[0]
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).map_err(|_| Problem::invalid(format!("{text:?} is no UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_or_not_sound_is_refused() {
        let known = ["a", "limit"];
        let query = Query::parse(Some("a=x%20%C3%A9+y&limit=5&"), &known).unwrap();
        assert_eq!(query.text("a"), Some("x é y"));
        assert_eq!((query.limit(10, 100), query.number("limit")), (Ok(5), Ok(Some(5))));
        assert_eq!(Query::parse(None, &known).unwrap().limit(10, 100), Ok(10));
        let many = Query::parse(Some("limit=5000"), &known).unwrap();
        assert_eq!(many.limit(10, 100), Ok(100));
        assert!(Query::parse(Some("a="), &known).unwrap().text("a").is_none());
        for bad in ["b=1", "a=%f", "a=%zz", "a=%ff", "a=1&a=2"] {
            assert!(Query::parse(Some(bad), &known).is_err(), "{bad}");
        }
        for bad in ["limit=x", "limit=0", "limit=-1"] {
            assert!(Query::parse(Some(bad), &known).unwrap().limit(1, 2).is_err(), "{bad}");
        }
    }
}
