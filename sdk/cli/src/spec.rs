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
    /// One word, or two for a command of a group.
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

    /// The group, for a command of one.
    pub(crate) fn group(&self) -> Option<&'static str> {
        self.name.split_once(' ').map(|(group, _)| group)
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
    let Some(first) = words.first() else { return Lookup::Unknown("") };
    if let Some(spec) = COMMANDS.iter().find(|s| s.name == first) {
        return Lookup::Found(spec, 1);
    }
    let Some(group) = COMMANDS.iter().filter_map(|s| s.group()).find(|g| g == first) else {
        return Lookup::Unknown(first);
    };
    let Some(second) = words.get(1).filter(|w| !w.starts_with("--")) else {
        return Lookup::Group(group);
    };
    let full = format!("{group} {second}");
    match COMMANDS.iter().find(|s| s.name == full) {
        Some(spec) => Lookup::Found(spec, 2),
        None => Lookup::UnknownIn(group, second),
    }
}

/// The subcommands of a group.
pub(crate) fn members(group: &str) -> Vec<&'static str> {
    COMMANDS
        .iter()
        .filter_map(|s| s.name.split_once(' '))
        .filter(|(g, _)| *g == group)
        .map(|(_, m)| m)
        .collect()
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
