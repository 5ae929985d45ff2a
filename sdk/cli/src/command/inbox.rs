//! `inbox`: the messages that peers have sent.

use serde_json::{Value, json};

use super::received::{clear, list};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "inbox",
    usage: "inbox [--clear]",
    about: "List the messages that peers have sent",
    returns: "messages (type, from, data, bytes, received_at), total, dir; with --clear: cleared",
    flags: &[Flag::switch("clear", "delete them")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Longest text of a message in the table.
const MAX_TEXT: usize = 60;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let dir = cx.home.dir.join("inbox");
    let Some(files) = list(&dir)? else {
        return if args.is_set("clear") {
            Err(Failure::not_found("no messages"))
        } else {
            Ok(Answer::new(json!({"messages": [], "total": 0}), "no messages"))
        };
    };
    if args.is_set("clear") {
        return clear(&dir, &files);
    }
    let mut messages = Vec::new();
    for file in &files {
        // One unreadable file does not hide the others.
        let stored = std::fs::read(&file.path).ok();
        match stored.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) {
            Some(message) => messages.push(message),
            None => cx.out.remark(&format!("{} cannot be read", file.name)),
        }
    }
    let rows: Vec<_> = messages
        .iter()
        .map(|m| {
            let part = |key: &str| printable_line(m[key].as_str().unwrap_or_default());
            let mut data = part("data");
            if data.chars().count() > MAX_TEXT {
                data = data.chars().take(MAX_TEXT).chain("...".chars()).collect();
            }
            vec![part("received_at"), part("from"), part("type"), data]
        })
        .collect();
    let text = match rows.is_empty() {
        true => "no messages".to_owned(),
        false => cx.out.table(&["RECEIVED", "FROM", "TYPE", "TEXT"], &rows),
    };
    Ok(Answer::new(json!({"total": messages.len(), "messages": messages, "dir": dir}), text))
}
