//! The registry's own Ed25519 key: a file of one line, the seed in base64,
//! beside the store. It is locked for as long as the registry runs, so that no
//! two registries write into one folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use pilot_wire::registry::PublicKey;

/// Its name in the folder of the store.
pub const KEY_FILE: &str = "registry.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no file.
    #[error("{}: there is no key of the registry", .0.display())]
    Missing(PathBuf),
    /// Another process has it.
    #[error("{}: in use by another registry; one folder is for one registry, choose another -store", .0.display())]
    InUse(PathBuf),
    /// It cannot be read or made.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The key, and the file that stays locked.
#[derive(Debug)]
pub(crate) struct RegistryKey {
    pub(crate) signing: SigningKey,
    /// None for a key that is in memory only.
    _locked: Option<File>,
}

impl RegistryKey {
    /// A key for as long as the process lives.
    pub(crate) fn in_memory() -> io::Result<Self> {
        Ok(Self { signing: SigningKey::from_bytes(&seed()?), _locked: None })
    }

    /// Reads the key of a folder, or makes it when `make` is set.
    ///
    /// # Errors
    /// When there is none, it is in use, or it cannot be read or made.
    pub(crate) fn open(folder: &Path, make: bool) -> Result<Self, KeyError> {
        let path = folder.join(KEY_FILE);
        let unusable = |e: io::Error| KeyError::Unusable {
            path: path.clone(),
            problem: format!("{e}; check the folder and its permissions"),
        };
        if !path.exists() {
            if !make {
                return Err(KeyError::Missing(path));
            }
            create(folder, &path).map_err(unusable)?;
        }
        let file = File::open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(KeyError::InUse(path)),
            Err(std::fs::TryLockError::Error(e)) => return Err(unusable(e)),
        }
        let mode = file.metadata().map_err(unusable)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!("{}: others can read it; set its mode to 0600", path.display());
        }
        Ok(Self { signing: read(&path)?, _locked: Some(file) })
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }
}

/// The public key of the registry whose folder this is.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn public_key(folder: &Path) -> Result<PublicKey, KeyError> {
    let path = folder.join(KEY_FILE);
    if !path.exists() {
        return Err(KeyError::Missing(path));
    }
    Ok(PublicKey(read(&path)?.verifying_key().to_bytes()))
}

fn read(path: &Path) -> Result<SigningKey, KeyError> {
    let unusable = |problem| KeyError::Unusable { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    // A seed has the size and form of a public key.
    let seed = PublicKey::from_base64(text.trim_end()).ok_or_else(|| {
        unusable("it is not a key, 32 bytes in base64; restore it from a backup".to_owned())
    })?;
    Ok(SigningKey::from_bytes(&seed.0))
}

fn create(folder: &Path, path: &Path) -> io::Result<()> {
    let beside = folder.join(format!("{KEY_FILE}.new"));
    // One that was not finished is of no use.
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", PublicKey(seed()?))?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut seed)?;
    Ok(seed)
}
