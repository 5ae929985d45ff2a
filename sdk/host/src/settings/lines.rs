//! On which line of a YAML text each key stands.

use std::collections::BTreeMap;

use marked_yaml::{LoaderOptions, Node};

use super::values::normal;

/// Lines of keys, by their path. A path that is not known has the line of its
/// nearest known ancestor.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    lines: BTreeMap<Vec<String>, usize>,
    known: bool,
}

/// Lines never make a difference: an entry that moved is the same entry.
impl PartialEq for Lines {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Lines {
    /// The lines of `text`. Empty when it is YAML of a kind that has none here
    /// (anchors, tags): then everything is on line 1.
    pub fn of(text: &str) -> Self {
        let mut lines = BTreeMap::new();
        let options = LoaderOptions::default().toplevel_mapping();
        if let Ok(node) = marked_yaml::parse_yaml_with_options(0, text, options) {
            collect(&node, &mut Vec::new(), &mut lines);
        }
        Self { lines, known: true }
    }

    /// The line of `path`, from 1; none when there is no text behind it.
    pub fn line(&self, path: &[String]) -> Option<usize> {
        let path: Vec<String> = path.iter().map(|part| normal(part)).collect();
        let known = (0..=path.len()).rev().find_map(|n| self.lines.get(&path[..n]).copied());
        self.known.then(|| known.unwrap_or(1))
    }

    /// The lines below `path`, with paths that begin there.
    pub(crate) fn below(&self, path: &[String]) -> Self {
        let path: Vec<String> = path.iter().map(|part| normal(part)).collect();
        let inside = |(p, line): (&Vec<String>, &usize)| {
            p.strip_prefix(path.as_slice()).map(|rest| (rest.to_vec(), *line))
        };
        Self { lines: self.lines.iter().filter_map(inside).collect(), known: self.known }
    }
}

fn collect(node: &Node, path: &mut Vec<String>, lines: &mut BTreeMap<Vec<String>, usize>) {
    match node {
        Node::Mapping(map) => {
            for (key, value) in map.iter() {
                path.push(normal(key.as_str()));
                if let Some(mark) = key.span().start() {
                    lines.insert(path.clone(), mark.line());
                }
                collect(value, path, lines);
                path.pop();
            }
        }
        Node::Sequence(list) => {
            for (index, value) in list.iter().enumerate() {
                path.push(index.to_string());
                if let Some(mark) = value.span().start() {
                    lines.insert(path.clone(), mark.line());
                }
                collect(value, path, lines);
                path.pop();
            }
        }
        Node::Scalar(_) => {}
    }
}
