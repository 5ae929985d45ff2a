//! `plugins`: what plugins and scripts the daemon runs, and everything about
//! one of them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes, or_dash, printable, printable_line, rfc3339, seconds};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "plugins",
    usage: "plugins [name]",
    about: "List plugins and scripts, or show everything about one",
    returns: "plugins (name, kind, description, provides, file, sha256, version, generation, isolation, state, reason, since_ms, streams, streams_total, errors, last_error, cpu_ms, calls, queue, memory, draining, hung, last_reload, sink_status); with a name: these of the one",
    flags: &[],
    positionals: (0, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let client = cx.client().await?;
    match args.get(0) {
        Some(name) => {
            let data = client.plugin(name).await.map_err(|e| refused(&e))?;
            let text = details(cx, &data);
            Ok(Answer::new(data, text))
        }
        None => {
            let data = client.plugins().await.map_err(|e| refused(&e))?;
            let list: &[Value] = data["plugins"].as_array().map_or(&[], Vec::as_slice);
            let text = if list.is_empty() { "no plugins".to_owned() } else { table(cx, list) };
            Ok(Answer::new(data, text))
        }
    }
}

fn refused(error: &pilot_sdk::Error) -> Failure {
    match error.kind() {
        pilot_sdk::ErrorKind::NotFound => {
            Failure::not_found(error.to_string()).hint("see: pilotctl plugins")
        }
        _ => Failure::daemon("plugins", error),
    }
}

fn table(cx: &Cx, list: &[Value]) -> String {
    let rows: Vec<_> = list
        .iter()
        .map(|p| {
            vec![
                text(&p["name"]),
                state(cx, p),
                or_dash(&ports(p)),
                text(&p["version"]),
                p["generation"].to_string(),
                p["streams"].to_string(),
                p["errors"].to_string(),
                millis(&p["cpu_ms"]),
                p["queue"].to_string(),
            ]
        })
        .collect();
    let header =
        ["PLUGIN", "STATE", "PORTS", "VERSION", "GENERATION", "STREAMS", "ERRORS", "CPU", "QUEUE"];
    cx.out.table(&header, &rows)
}

fn details(cx: &Cx, p: &Value) -> String {
    let mut fields = vec![
        ("name", text(&p["name"])),
        ("description", text(&p["description"])),
        ("state", state(cx, p)),
        ("since", since(&p["since_ms"])),
        ("kind", text(&p["kind"])),
        ("version", text(&p["version"])),
        ("file", text(&p["file"])),
        ("sha256", text(&p["sha256"])),
        ("isolation", text(&p["isolation"])),
        ("generation", p["generation"].to_string()),
        ("services", or_dash(&services(p))),
        ("join rules", or_dash(&names(&p["provides"]["rules"]))),
        ("sinks", or_dash(&names(&p["provides"]["sinks"]))),
        ("streams", format!("{} open, {} in all", p["streams"], p["streams_total"])),
        ("errors", p["errors"].to_string()),
        ("calls", p["calls"].to_string()),
        ("cpu", millis(&p["cpu_ms"])),
        ("queue", p["queue"].to_string()),
    ];
    if let Some(memory) = p["memory"].as_u64() {
        fields.push(("memory", bytes(memory)));
    }
    for older in p["draining"].as_array().into_iter().flatten() {
        let line = format!("generation {} has {} streams", older["generation"], older["streams"]);
        fields.push(("draining", line));
    }
    if p["hung"].as_u64().is_some_and(|n| n > 0) {
        fields.push(("hung", format!("{} threads are stuck in it", p["hung"])));
    }
    let reload = &p["last_reload"];
    if reload.is_object() {
        let when = rfc3339(reload["at_ms"].as_i64().unwrap_or_default() / 1000);
        let line = format!("{} ({}) at {when}", text(&reload["result"]), text(&reload["cause"]));
        fields.push(("last reload", line));
    }
    for (sink, status) in p["sink_status"].as_object().into_iter().flatten() {
        fields.push(("sink", format!("{}: {}", printable_line(sink), summary(status))));
    }
    let mut all = cx.out.fields(&fields);
    for (title, value) in
        [("why", &p["reason"]), ("last reload", &reload["error"]), ("last error", &p["last_error"])]
    {
        if let Some(lines) = value.as_str().filter(|t| !t.is_empty()) {
            let indented = printable(lines).replace('\n', "\n  ");
            all.push_str(&format!("\n\n{}\n  {indented}", cx.out.bad(&format!("{title}:"))));
        }
    }
    all
}

/// How a sink stands, on one line.
fn summary(status: &Value) -> String {
    let number = |key: &str| status[key].as_u64();
    let mut parts = vec![text(&status["state"])];
    for (key, what) in [
        ("waiting", "waiting"),
        ("delivered", "delivered"),
        ("dropped", "dropped"),
        ("rejected", "rejected"),
    ] {
        parts.extend(number(key).map(|n| format!("{n} {what}")));
    }
    parts.extend(number("retry_in_ms").map(|ms| format!("again in {} s", ms.div_ceil(1000))));
    if let Some(error) = status["last_error"].as_str() {
        parts.push(printable_line(error));
    }
    parts.join(", ")
}

fn state(cx: &Cx, p: &Value) -> String {
    let name = text(&p["state"]);
    match name.as_str() {
        "running" => cx.out.good(&name),
        "failed" | "backing-off" | "over-budget" => cx.out.bad(&name),
        _ => name,
    }
}

fn ports(p: &Value) -> String {
    let services = p["provides"]["services"].as_array();
    let ports = services.into_iter().flatten().flat_map(|s| s["ports"].as_array()).flatten();
    ports.map(Value::to_string).collect::<Vec<_>>().join(" ")
}

fn services(p: &Value) -> String {
    let each = |s: &Value| {
        let list = s["ports"].as_array().into_iter().flatten().map(Value::to_string);
        let ports = list.collect::<Vec<_>>().join(" ");
        let datagrams = if s["datagrams"] == true { ", datagrams too" } else { "" };
        format!("{} on {}{datagrams}", text(&s["name"]), or_dash(&ports))
    };
    let list = p["provides"]["services"].as_array().into_iter().flatten();
    list.map(each).collect::<Vec<_>>().join("; ")
}

fn names(list: &Value) -> String {
    let names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    names.map(printable_line).collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> String {
    or_dash(&printable_line(value.as_str().unwrap_or_default()))
}

fn millis(value: &Value) -> String {
    format!("{:.2} s", value.as_f64().unwrap_or_default() / 1000.0)
}

/// How long ago a moment in milliseconds since 1970 was.
fn since(value: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match value.as_u64() {
        Some(ms) if ms > 0 => format!("{} ago", seconds(now.saturating_sub(ms / 1000))),
        _ => "-".to_owned(),
    }
}
