//! Files of plugins: found by name, checked for who may write them, for their
//! hash and signature, and copied to a private place from which they are
//! opened. What was checked is what runs: the copy is made from the bytes that
//! were hashed, and hashed again.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::manager::FileKind;

/// Bytes of a library; a bigger file is refused.
const MAX_LIBRARY: u64 = 256 << 20;
/// Bytes of a script; a bigger file is refused.
const MAX_SCRIPT: u64 = 4 << 20;
/// Bytes of a file with a signature.
const MAX_SIGNATURE: u64 = 4096;
/// Folders of one plugin's files that are read at the most; more files in one
/// folder are not looked at.
const MAX_FOLDER: usize = 4096;

/// What a file must have to be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demands<'a> {
    /// SHA-256, hex.
    pub(crate) sha256: Option<&'a str>,
    /// Signature of the configuration; otherwise it is beside the file.
    pub(crate) signature: Option<&'a str>,
    /// Keys of which one must have signed it.
    pub(crate) keys: &'a [VerifyingKey],
    /// Whether it comes with Pilot: then a hash in the configuration stands for
    /// a signature.
    pub(crate) shipped: bool,
}

/// A file that was read and fits the demands.
#[derive(Debug)]
pub(crate) struct Checked {
    bytes: Vec<u8>,
    /// SHA-256 of its bytes, hex.
    pub(crate) sha256: String,
}

/// The name that a plugin has from its file: `libpilot_plugin_NAME.so`,
/// `libNAME.so`, `NAME.so` or `NAME.lua`, with `_` as `-`.
pub(crate) fn name_of(file: &Path) -> Option<(String, FileKind)> {
    let file = file.file_name()?.to_str()?;
    let (stem, kind) = match file.rsplit_once('.')? {
        (stem, "so") => {
            let stem = stem.strip_prefix("lib").unwrap_or(stem);
            (stem.strip_prefix("pilot_plugin_").unwrap_or(stem), FileKind::Library)
        }
        (stem, "lua") => (stem, FileKind::Script),
        _ => return None,
    };
    let name = stem.replace('_', "-");
    crate::settings::is_name(&name).then_some((name, kind))
}

/// Files of a kind in a folder, by name; of several with one name the first.
/// A folder that is not there has none.
///
/// # Errors
/// When it is there and cannot be read: nobody knows what it has.
pub(crate) fn in_folder(folder: &Path, kind: FileKind) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries
        .take(MAX_FOLDER)
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = paths
        .into_iter()
        .filter(|path| !path.is_dir())
        .filter_map(|path| match name_of(&path)? {
            (name, found) if found == kind => Some((name, path)),
            _ => None,
        })
        .collect();
    // `libpilot_plugin_x.so` comes before `libx.so` before `x.so`.
    files.sort_by_key(|(name, path)| (name.clone(), std::cmp::Reverse(path.as_os_str().len())));
    files.dedup_by(|later, earlier| later.0 == earlier.0);
    Ok(files)
}

/// The file of plugin `name` in the first of the folders that has one.
pub(crate) fn find(name: &str, kind: FileKind, folders: &[PathBuf]) -> Option<PathBuf> {
    let stem = name.replace('-', "_");
    let names = match kind {
        FileKind::Library => vec![
            format!("libpilot_plugin_{stem}.so"),
            format!("lib{stem}.so"),
            format!("{stem}.so"),
            format!("{name}.so"),
        ],
        FileKind::Script => vec![format!("{name}.lua"), format!("{stem}.lua")],
    };
    let mut places = folders.iter().flat_map(|f| names.iter().map(move |n| f.join(n)));
    places.find(|path| path.symlink_metadata().is_ok())
}

/// Reads the file and checks all that can be checked without opening it as a
/// library or script.
///
/// # Errors
/// A text that names the file and what to do.
pub(crate) fn check(path: &Path, kind: FileKind, demands: &Demands<'_>) -> Result<Checked, String> {
    let (file, size) = open(path, kind)?;
    let shown = path.display();
    let mut bytes = Vec::new();
    file.take(size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if bytes.len() as u64 != size {
        return Err(format!(
            "{shown} changed while it was read; it is tried again when it is done"
        ));
    }
    let sha256 = hex::encode(Sha256::digest(&bytes));
    if let Some(pin) = demands.sha256
        && pin != sha256
    {
        return Err(format!("{shown} has SHA-256 {sha256}, but the configuration wants {pin}"));
    }
    let pinned = demands.shipped && demands.sha256.is_some();
    if !demands.keys.is_empty() && !pinned {
        verify(path, &bytes, demands)?;
    }
    match kind {
        FileKind::Library => elf(&bytes).map_err(|problem| format!("{shown} {problem}"))?,
        FileKind::Script => {
            std::str::from_utf8(&bytes).map_err(|_| {
                format!("{shown} is not text in UTF-8; scripts are loaded as source only")
            })?;
        }
    }
    Ok(Checked { bytes, sha256 })
}

/// SHA-256 of an open file as it is, for telling whether it changed; none when
/// it has grown beyond what is allowed.
pub(crate) fn hash(file: File, kind: FileKind) -> Option<String> {
    let most = largest(kind);
    let mut part = file.take(most + 1);
    let sha256 = digest(&mut part).ok()?;
    (part.limit() > 0).then_some(sha256)
}

/// What the signature of a file is, in the configuration or beside it.
pub(crate) fn signature(path: &Path, configured: Option<&str>) -> Option<String> {
    if let Some(signature) = configured {
        return Some(signature.to_owned());
    }
    let mut text = String::new();
    let (file, _) = open_regular(&beside(path).canonicalize().ok()?).ok()?;
    file.take(MAX_SIGNATURE).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

fn verify(path: &Path, bytes: &[u8], demands: &Demands<'_>) -> Result<(), String> {
    let shown = path.display();
    let Some(text) = signature(path, demands.signature) else {
        let hint = if demands.shipped { ", or pin it with sha256" } else { "" };
        return Err(format!(
            "{shown} is not signed, and trusted-keys is set: put its signature into {}, or into \
             the key signature{hint}",
            beside(path).display()
        ));
    };
    let wrong = || format!("the signature of {shown} is not an Ed25519 signature in base64");
    let raw = STANDARD.decode(text).map_err(|_| wrong())?;
    let signature = Signature::from_slice(&raw).map_err(|_| wrong())?;
    if demands.keys.iter().any(|key| key.verify_strict(bytes, &signature).is_ok()) {
        return Ok(());
    }
    Err(format!("the signature of {shown} is not by one of the trusted-keys over this file"))
}

/// Opens the file at the end of `path`, following no link but those whose
/// places were checked; gives its size, too.
///
/// # Errors
/// When it, its folder, or that of a link to it can be written by others than
/// root and us, or it is no file of a sensible size.
pub(crate) fn open(path: &Path, kind: FileKind) -> Result<(File, u64), String> {
    let shown = path.display();
    let target = path.canonicalize().map_err(|e| format!("{shown} cannot be opened: {e}"))?;
    let (file, metadata) = open_regular(&target).map_err(|problem| format!("{shown} {problem}"))?;
    // Whoever can write beside this program can replace the program itself, so a
    // group that may (umask 002) is no stranger there.
    let others = if beside_program(&target) { 0o002 } else { 0o022 };
    guarded(&metadata, &target, others)?;
    // Who can write a folder on the way can put another file there.
    let link = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    for folder in [target.parent(), link.or(Some(Path::new(".")))].into_iter().flatten() {
        let metadata = std::fs::metadata(folder)
            .map_err(|error| format!("{} cannot be looked at: {error}", folder.display()))?;
        guarded(&metadata, folder, others)?;
    }
    let most = largest(kind);
    match metadata.len() {
        0 => Err(format!("{shown} is empty")),
        size if size > most => {
            Err(format!("{shown} has {size} bytes, more than the {most} that are allowed"))
        }
        size => Ok((file, size)),
    }
}

const fn largest(kind: FileKind) -> u64 {
    match kind {
        FileKind::Library => MAX_LIBRARY,
        FileKind::Script => MAX_SCRIPT,
    }
}

/// Opens a file that is no link, pipe or device; never waits for anybody.
fn open_regular(path: &Path) -> Result<(File, Metadata), String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("cannot be opened: {error}"))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(|error| format!("cannot be looked at: {error}"))?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err("is not a file".to_owned()) }
}

/// Whether a file lies in the folder of the program that runs.
fn beside_program(target: &Path) -> bool {
    let program = std::env::current_exe().and_then(|program| program.canonicalize());
    program.is_ok_and(|program| program.parent() == target.parent())
}

fn guarded(metadata: &Metadata, path: &Path, others: u32) -> Result<(), String> {
    let shown = path.display();
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != us {
        return Err(format!(
            "{shown} belongs to user {owner}; it must belong to root or to user {us}, who runs \
             this process: chown it"
        ));
    }
    if metadata.mode() & others != 0 {
        return Err(format!(
            "{shown} can be written by others (mode {:o}): chmod go-w it",
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Whether the bytes are a whole ELF library: what the dynamic linker maps must
/// be there, as a page that is not kills the process.
#[cfg(target_os = "linux")]
fn elf(bytes: &[u8]) -> Result<(), String> {
    const CLASS_64: u8 = 2;
    const LITTLE: u8 = 1;
    const DYN: u64 = 3;
    let number = |at: u64, length: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let part = bytes.get(at..at.checked_add(length)?)?;
        Some(part.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    if !bytes.starts_with(b"\x7fELF") {
        return Err("is not a shared library (no ELF header)".to_owned());
    }
    if bytes.get(4) != Some(&CLASS_64) || bytes.get(5) != Some(&LITTLE) {
        return Err("is a library for another kind of machine".to_owned());
    }
    let cut = || "is cut short: it ends before what its header promises".to_owned();
    if number(16, 2).ok_or_else(cut)? != DYN {
        return Err("is an ELF file, but not a shared library".to_owned());
    }
    let field = |at, length| number(at, length).ok_or_else(cut);
    let (programs, program_size, program_count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let (sections, section_size, section_count) = (field(40, 8)?, field(58, 2)?, field(60, 2)?);
    let fits = |offset: u64, size: u64| {
        offset.checked_add(size).is_some_and(|end| end <= bytes.len() as u64)
    };
    let whole = fits(programs, program_size * program_count)
        && fits(sections, section_size * section_count);
    if !whole {
        return Err(cut());
    }
    for index in 0..program_count {
        let header = programs + index * program_size;
        if !fits(field(header + 8, 8)?, field(header + 32, 8)?) {
            return Err(cut());
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn elf(_: &[u8]) -> Result<(), String> {
    Ok(())
}

fn digest(file: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            length => hasher.update(&part[..length]),
        }
    }
}

/// The private copies.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes the folder, for us alone, and removes what earlier runs left.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        match std::fs::symlink_metadata(folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(std::io::Error::other("it is not a folder")),
            Err(_) => DirBuilder::new().recursive(true).mode(0o700).create(folder)?,
        }
        let metadata = std::fs::symlink_metadata(folder)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(std::io::Error::other("it belongs to another user"));
        }
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            // A copy that cannot be removed is overwritten when it is needed.
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            if let Err(error) = removed {
                tracing::warn!(file = %path.display(), "an old copy cannot be removed: {error}");
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// A copy that only we can change, with a name of its own.
    ///
    /// # Errors
    /// A text that names the file.
    pub(crate) fn copy(
        &self,
        name: &str,
        kind: FileKind,
        checked: &Checked,
    ) -> Result<PathBuf, String> {
        let path = self.place(name, kind, &checked.sha256);
        if path.symlink_metadata().is_ok_and(|m| m.is_file())
            && File::open(&path).ok().and_then(|file| hash(file, kind)).as_ref()
                == Some(&checked.sha256)
        {
            return Ok(path);
        }
        let part = self.folder.join(format!("{name}-{}.part", checked.sha256));
        let write = || -> std::io::Result<String> {
            if let Some(folder) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let _ = std::fs::remove_file(&part);
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(&checked.bytes)?;
            file.sync_all()?;
            file.seek(SeekFrom::Start(0))?;
            let sha256 = digest(&mut file)?;
            if sha256 == checked.sha256 {
                std::fs::rename(&part, &path)?;
            }
            Ok(sha256)
        };
        match write() {
            Ok(sha256) if sha256 == checked.sha256 => Ok(path),
            Ok(_) => Err(format!("the copy {} is not what was written", part.display())),
            Err(error) => Err(format!("it cannot be copied to {}: {error}", path.display())),
        }
    }

    /// Removes a copy that nobody will open again. What has it open keeps it.
    pub(crate) fn forget(&self, name: &str, kind: FileKind, sha256: &str) {
        // One that is left is removed at the next start.
        let place = self.place(name, kind, sha256);
        let _ = std::fs::remove_file(&place);
        if let (FileKind::Script, Some(folder)) = (kind, place.parent()) {
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// Scripts keep their name, which their errors show.
    fn place(&self, name: &str, kind: FileKind, sha256: &str) -> PathBuf {
        match kind {
            FileKind::Library => self.folder.join(format!("{name}-{sha256}.so")),
            FileKind::Script => self.folder.join(sha256).join(format!("{name}.lua")),
        }
    }
}
