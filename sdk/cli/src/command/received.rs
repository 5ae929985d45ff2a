//! `received`: the files that peers have sent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes, printable_line, rfc3339};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "received",
    usage: "received [--clear]",
    about: "List the files that peers have sent",
    returns: "files (name, bytes, modified, path), total, dir; with --clear: cleared",
    flags: &[Flag::switch("clear", "delete them")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let dir = cx.home.dir.join("received");
    let Some(files) = list(&dir)? else {
        return if args.is_set("clear") {
            Err(Failure::not_found("no received files"))
        } else {
            Ok(Answer::new(json!({"files": [], "total": 0}), "no received files"))
        };
    };
    if args.is_set("clear") {
        return clear(&dir, &files);
    }
    let rows: Vec<_> = files
        .iter()
        .map(|f| vec![printable_line(&f.name), bytes(f.bytes), f.modified.clone()])
        .collect();
    let text = match rows.is_empty() {
        true => "no received files".to_owned(),
        false => format!(
            "{}\n\nin {}",
            cx.out.table(&["NAME", "SIZE", "RECEIVED"], &rows),
            dir.display()
        ),
    };
    let files: Vec<Value> = files
        .iter()
        .map(|f| json!({"name": f.name, "bytes": f.bytes, "modified": f.modified, "path": f.path}))
        .collect();
    Ok(Answer::new(json!({"total": files.len(), "files": files, "dir": dir}), text))
}

pub(super) struct Entry {
    pub(super) name: String,
    pub(super) path: PathBuf,
    bytes: u64,
    modified: String,
}

/// The whole files in a folder by name; `None` if there is no such folder.
/// What begins with a dot is still arriving.
pub(super) fn list(dir: &Path) -> Result<Option<Vec<Entry>>, Failure> {
    let failed =
        |e: std::io::Error| Failure::internal(format!("cannot read {}", dir.display())).reason(e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A file may go away meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        if !meta.is_file() || name.starts_with('.') {
            continue;
        }
        let unix = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let unix = unix.and_then(|d| i64::try_from(d.as_secs()).ok()).unwrap_or(0);
        files.push(Entry { name, path: entry.path(), bytes: meta.len(), modified: rfc3339(unix) });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(files))
}

/// Deletes these files, as published without their folder.
pub(super) fn clear(dir: &Path, files: &[Entry]) -> Result<Answer, Failure> {
    for file in files {
        if let Err(e) = fs::remove_file(&file.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(
                Failure::internal(format!("cannot delete {}", file.path.display())).reason(e)
            );
        }
    }
    let text = format!("{} deleted from {}", files.len(), dir.display());
    Ok(Answer::new(json!({ "cleared": files.len() }), text))
}
