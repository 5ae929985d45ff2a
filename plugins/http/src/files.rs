//! Files of the folder. A path is opened a component at a time, below the
//! folder's descriptor and without following links, so that nothing outside
//! can be reached, also while the folder is changed.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// Names in a list at the most.
const MAX_LIST: usize = 1000;
/// Components of a path at the most.
const MAX_DEPTH: usize = 64;
/// What a folder is answered with.
const INDEX: &str = "index.html";

/// What is at a path.
pub(crate) enum Lookup {
    File(Found),
    /// A folder whose path lacks its slash.
    Folder,
    /// Names in a folder; those of folders end with a slash.
    List(Vec<String>),
    Nothing,
}

/// An open file.
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) len: u64,
    pub(crate) modified: SystemTime,
    pub(crate) content_type: &'static str,
}

impl Found {
    /// Of size and time to the nanosecond.
    pub(crate) fn etag(&self) -> String {
        let time = self.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("\"{:x}-{:x}\"", self.len, time.as_nanos())
    }

    pub(crate) fn last_modified(&self) -> String {
        // The format ends with the year 9999.
        let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        httpdate::fmt_http_date(self.modified.clamp(UNIX_EPOCH, last))
    }
}

/// The components of a URL's path, decoded; `None` for what is never served.
pub(crate) fn parts(path: &str) -> Option<Vec<String>> {
    let parts: Option<Vec<String>> =
        path.split('/').filter(|part| !part.is_empty()).map(component).collect();
    parts.filter(|parts| parts.len() <= MAX_DEPTH)
}

fn component(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            byte => byte,
        });
    }
    let name = String::from_utf8(bytes).ok()?;
    // `.` and `..` as well.
    let served = !name.starts_with('.') && !name.contains(['/', '\0']);
    served.then_some(name)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}

/// Looks up a path below `root`; blocks. `slash` is whether the path ends with
/// one.
///
/// # Errors
/// When the system fails; that there is nothing is no error.
pub(crate) fn look(
    root: &Path,
    parts: &[String],
    slash: bool,
    listing: bool,
) -> io::Result<Lookup> {
    let mut at = File::open(root)?;
    let mut name = "";
    for part in parts {
        if !at.metadata()?.is_dir() {
            return Ok(Lookup::Nothing);
        }
        match open(&at, part)? {
            Some(next) => at = next,
            None => return Ok(Lookup::Nothing),
        }
        name = part;
    }
    let meta = at.metadata()?;
    if meta.is_file() && !slash {
        return Ok(Lookup::File(found(at, name)?));
    }
    if !meta.is_dir() {
        return Ok(Lookup::Nothing);
    }
    if !slash {
        return Ok(Lookup::Folder);
    }
    match open(&at, INDEX)? {
        Some(index) if index.metadata()?.is_file() => Ok(Lookup::File(found(index, INDEX)?)),
        _ if listing => Ok(Lookup::List(list(&at)?)),
        _ => Ok(Lookup::Nothing),
    }
}

/// Opens `name` in a folder; none if it is missing, a link, or not for us.
fn open(folder: &File, name: &str) -> io::Result<Option<File>> {
    // Without NONBLOCK a pipe would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::MLINK
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NAMETOOLONG
            | Errno::NXIO
            | Errno::INVAL,
        ) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn found(file: File, name: &str) -> io::Result<Found> {
    let meta = file.metadata()?;
    let modified = meta.modified()?;
    Ok(Found { len: meta.len(), modified, content_type: content_type(name), file })
}

fn list(folder: &File) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            kind = FileType::from_raw_mode(stat.st_mode);
        }
        match kind {
            FileType::RegularFile => names.push(name.to_owned()),
            FileType::Directory => names.push(format!("{name}/")),
            _ => continue,
        }
        if names.len() == MAX_LIST {
            break;
        }
    }
    names.sort();
    Ok(names)
}

/// By the extension; bytes when it says nothing.
fn content_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "log" | "md" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" | "map" => "application/json",
        "jsonl" | "ndjson" => "application/x-ndjson",
        "yaml" | "yml" => "application/yaml",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn world() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(root.join("a b.txt"), "text").unwrap();
        fs::write(root.join(".hidden"), "secret").unwrap();
        fs::write(root.join("sub/index.html"), "index").unwrap();
        fs::write(root.join("sub/deep/x.png"), "png").unwrap();
        symlink(dir.path().join("secret"), root.join("link")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        dir
    }

    /// What a path leads to, as text.
    fn get(dir: &tempfile::TempDir, path: &str) -> String {
        let Some(parts) = parts(path) else { return "refused".into() };
        match look(&dir.path().join("root"), &parts, path.ends_with('/'), true).unwrap() {
            Lookup::File(mut found) => {
                let mut text = String::new();
                found.file.read_to_string(&mut text).unwrap();
                assert_eq!(found.len, text.len() as u64);
                format!("{text} {}", found.content_type)
            }
            Lookup::Folder => "folder".into(),
            Lookup::List(names) => names.join(" "),
            Lookup::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn files_and_folders_are_found() {
        let dir = world();
        assert_eq!(get(&dir, "/a%20b.txt"), "text text/plain; charset=utf-8");
        assert_eq!(get(&dir, "/sub"), "folder");
        assert_eq!(get(&dir, "/sub/"), "index text/html; charset=utf-8");
        assert_eq!(get(&dir, "//sub//deep/x.png"), "png image/png");
        assert_eq!(get(&dir, "/"), "a b.txt sub/");
        assert_eq!(get(&dir, "/sub/deep/"), "x.png");
        for nothing in ["/none", "/a%20b.txt/", "/a%20b.txt/x", "/sub/none/x"] {
            assert_eq!(get(&dir, nothing), "nothing", "{nothing}");
        }
    }

    #[test]
    fn nothing_outside_is_reached() {
        let dir = world();
        for path in [
            "/../secret",
            "/%2e%2e/secret",
            "/sub/..%2f..%2fsecret",
            "/.hidden",
            "/%2Ehidden",
            "/sub/../.hidden",
            "/a%00",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
        ] {
            assert_eq!(get(&dir, path), "refused", "{path}");
        }
        for path in ["/link", "/up", "/up/", "/up/secret"] {
            assert_eq!(get(&dir, path), "nothing", "{path}");
        }
    }

    #[test]
    fn a_pipe_does_not_hold_a_thread() {
        let dir = world();
        let path = dir.path().join("root/pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert_eq!(get(&dir, "/pipe"), "nothing");
    }

    #[test]
    fn without_listing_a_folder_is_nothing() {
        let dir = world();
        let looked = look(&dir.path().join("root"), &[], true, false).unwrap();
        assert!(matches!(looked, Lookup::Nothing));
    }

    #[test]
    fn tags_change_with_the_file() {
        let dir = world();
        let root = dir.path().join("root");
        let tag = || match look(&root, &["a b.txt".into()], false, false).unwrap() {
            Lookup::File(found) => (found.etag(), found.last_modified()),
            _ => panic!("no file"),
        };
        let before = tag();
        assert_eq!(tag(), before);
        let file = File::options().write(true).open(root.join("a b.txt")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        assert_eq!(tag().1, "Thu, 01 Jan 1970 00:00:01 GMT");
        assert_ne!(tag().0, before.0);
    }

    proptest::proptest! {
        #[test]
        fn no_path_names_what_is_hidden(path in "[/.%a-f0-9\\\\]{0,40}") {
            for part in parts(&path).unwrap_or_default() {
                proptest::prop_assert!(!part.is_empty() && !part.starts_with('.'));
                proptest::prop_assert!(!part.contains('/') && !part.contains('\0'));
            }
        }
    }
}
