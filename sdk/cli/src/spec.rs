//! What a command is: its name, usage, flags and function. Parsing, help,
//! completions and `context` all come from the table in [`crate::command`].

use std::future::Future;
use std::pin::Pin;

use crate::args::Args;
use crate::command::COMMANDS;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;

/// A running command.
pub(crate) type Running<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + 'a>>;

/// One command.
pub(crate) struct Spec {
    /// One word, or more for a command of a group.
    pub(crate) name: &'static str,
    /// Name, positionals and main flags, as shown in a usage error.
    pub(crate) usage: &'static str,
    pub(crate) about: &'static str,
    /// The keys of `data`.
    pub(crate) returns: &'static str,
    pub(crate) flags: &'static [Flag],
    /// At least and at most so many.
    pub(crate) positionals: (usize, usize),
    pub(crate) run: for<'a> fn(&'a Cx, &'a Args) -> Running<'a>,
}

/// One flag of a command.
pub(crate) struct Flag {
    /// Without dashes.
    pub(crate) name: &'static str,
    /// What its value is called; none for a boolean.
    pub(crate) value: Option<&'static str>,
    pub(crate) about: &'static str,
}

impl Flag {
    pub(crate) const fn value(
        name: &'static str,
        value: &'static str,
        about: &'static str,
    ) -> Self {
        Self { name, value: Some(value), about }
    }

    pub(crate) const fn switch(name: &'static str, about: &'static str) -> Self {
        Self { name, value: None, about }
    }
}

impl Spec {
    pub(crate) fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.flags.iter().find(|f| f.name == name)
    }

    /// The words behind those of a group, for a command in it.
    pub(crate) fn within(&self, group: &str) -> Option<&'static str> {
        self.name.strip_prefix(group)?.strip_prefix(' ')
    }
}

/// What the first words of a line name.
pub(crate) enum Lookup<'a> {
    /// A command, and how many words its name has.
    Found(&'static Spec, usize),
    /// A group without a subcommand.
    Group(&'static str),
    UnknownIn(&'static str, &'a str),
    Unknown(&'a str),
}

/// Finds the command that `words` begin with.
pub(crate) fn find(words: &[String]) -> Lookup<'_> {
    let mut path = String::new();
    let mut group = None;
    for (i, word) in words.iter().enumerate() {
        if i > 0 && word.starts_with("--") {
            break;
        }
        if i > 0 {
            path.push(' ');
        }
        path.push_str(word);
        if let Some(spec) = COMMANDS.iter().find(|s| s.name == path) {
            return Lookup::Found(spec, i + 1);
        }
        match (named_group(&path), group) {
            (Some(found), _) => group = Some(found),
            (None, Some(group)) => return Lookup::UnknownIn(group, word),
            (None, None) => return Lookup::Unknown(word),
        }
    }
    group.map_or(Lookup::Unknown(""), Lookup::Group)
}

/// The name of a group, as it stands in the table.
fn named_group(path: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|s| s.within(path).is_some())?.name.get(..path.len())
}

/// The subcommands of a group, and the groups in it.
pub(crate) fn members(group: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for name in COMMANDS.iter().filter_map(|s| s.within(group)?.split(' ').next()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The known word that a mistyped one most likely means: at most two edits
/// away, or one for short words.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = if word.chars().count() <= 3 { 1 } else { 2 };
    known.map(|k| (distance(word, k), k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbours between two
/// words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_words() {
        let known = || COMMANDS.iter().map(|s| s.name);
        assert_eq!(nearest("pign", known()), Some("ping"));
        assert_eq!(nearest("conect", known()), Some("connect"));
        assert_eq!(nearest("inof", known()), Some("info"));
        assert_eq!(nearest("xyzzy", known()), None);
    }

    #[test]
    fn groups_within_groups() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(matches!(find(&words("network token list ops")), Lookup::Found(s, 3)
            if s.name == "network token list"));
        assert!(matches!(find(&words("network list")), Lookup::Found(_, 2)));
        assert!(matches!(find(&words("network")), Lookup::Group("network")));
        assert!(matches!(find(&words("network token --json")), Lookup::Group("network token")));
        assert!(matches!(
            find(&words("network token mint")),
            Lookup::UnknownIn("network token", "mint")
        ));
        assert!(matches!(find(&words("netwrk list")), Lookup::Unknown("netwrk")));
        assert_eq!(members("network token"), ["create", "list", "revoke"]);
        assert_eq!(members("network").iter().filter(|m| **m == "token").count(), 1);
    }

    #[test]
    fn the_table_is_consistent() {
        for (i, spec) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[..i].iter().all(|s| s.name != spec.name), "{} twice", spec.name);
            assert!(spec.usage.starts_with(spec.name), "{}: usage {}", spec.name, spec.usage);
            assert!(spec.positionals.0 <= spec.positionals.1, "{}", spec.name);
            for flag in spec.flags {
                assert!(!["json", "help", "version"].contains(&flag.name), "{}", spec.name);
            }
        }
    }
}
