//! The file that takes events which a receiver refuses for good.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Appends `events` to the file at `path`, each with the reason; on disk when it
/// returns. A file that would grow beyond `most` bytes is first renamed to
/// `FILE.1`, in place of an earlier one.
pub(super) fn write<'a>(
    path: &Path,
    most: u64,
    sink: &str,
    (rejected_at, reason): (&str, &str),
    events: impl Iterator<Item = &'a str>,
) -> io::Result<()> {
    let json = |text: &str| serde_json::Value::from(text);
    let (sink, at, why) = (json(sink), json(rejected_at), json(reason));
    let mut text = Vec::new();
    for event in events {
        // The event is JSON already.
        writeln!(
            text,
            "{{\"sink\":{sink},\"rejected_at\":{at},\"reason\":{why},\"event\":{event}}}"
        )?;
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let length = fs::metadata(path).map_or(0, |file| file.len());
    if length > 0 && length + text.len() as u64 > most {
        fs::rename(path, rotated(path))?;
    }
    let mut file = open(path)?;
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(&text).and_then(|()| file.sync_all()) {
        // No half line stays in front of the next letter.
        let _ = file.set_len(before);
        return Err(error);
    }
    match path.parent() {
        Some(folder) if before == 0 && !folder.as_os_str().is_empty() => {
            File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}

/// Events can say who talks to whom: nobody else reads them.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}
