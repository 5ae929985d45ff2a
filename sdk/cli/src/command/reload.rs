//! `reload`: has the daemon look at its configuration and the files of plugins
//! and scripts again.

use serde_json::Value;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "reload",
    usage: "reload",
    about: "Reload plugins, scripts and their configuration",
    returns: "plugins (name, result, generation, error), config_error if the file was refused",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let report = cx.client().await?.reload().await.map_err(|e| Failure::daemon("reload", &e))?;
    let list: &[Value] = report["plugins"].as_array().map_or(&[], Vec::as_slice);
    let failed: Vec<&str> = list
        .iter()
        .filter(|p| matches!(p["result"].as_str(), Some("kept" | "failed")))
        .filter_map(|p| p["name"].as_str())
        .collect();
    if let Some(reason) = report["config_error"].as_str() {
        return Err(Failure::invalid("the configuration was refused; what ran goes on")
            .reason(printable_line(reason))
            .data(report.clone()));
    }
    if !failed.is_empty() {
        let (names, reasons) = (failed.join(", "), reasons(list));
        return Err(Failure::internal(format!("could not be reloaded: {names}"))
            .reason(reasons)
            .hint(format!("see: pilotctl plugins {}", failed[0]))
            .data(report.clone()));
    }
    if list.is_empty() {
        return Ok(Answer::new(report, "nothing has changed"));
    }
    let rows: Vec<_> = list
        .iter()
        .map(|p| {
            let text = |key: &str| or_dash(&printable_line(p[key].as_str().unwrap_or_default()));
            vec![text("name"), text("result"), p["generation"].to_string()]
        })
        .collect();
    let text = cx.out.table(&["PLUGIN", "RESULT", "GENERATION"], &rows);
    Ok(Answer::new(report, text))
}

/// The first line of each error.
fn reasons(list: &[Value]) -> String {
    let each = list.iter().filter_map(|p| {
        let error = p["error"].as_str()?.lines().next()?;
        Some(format!("{}: {}", p["name"].as_str().unwrap_or_default(), printable_line(error)))
    });
    each.collect::<Vec<_>>().join("; ")
}
