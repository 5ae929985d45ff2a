//! Who this node is: an Ed25519 key in a file of its own, in the published
//! format (protocol page "Services", section 1, "Storage").
//!
//! The file is made here when there is none, and never changed afterwards.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use pilot_wire::registry::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

use crate::durable;

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be looked at or read.
    #[error("identity: cannot read {}: {source}; fix its permissions or choose another file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("identity: {} is open to others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not an identity, or its two keys do not belong together.
    #[error("identity: {} is damaged ({problem}); restore it from a backup, or move it away to get a new identity and address", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A new one cannot be written.
    #[error("identity: cannot create {}: {source}; make the folder writable or choose another file", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no randomness.
    #[error("identity: the system gives no random bytes: {0}")]
    Randomness(String),
}

/// The key of this node. Debug output shows the public half only.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.public_key()).finish()
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Base64 of seed ‖ public key.
    private_key: String,
    /// Base64.
    public_key: String,
}

impl Identity {
    /// Reads the file, or makes it with a new key when there is none.
    ///
    /// # Errors
    /// When the file cannot be read, is open to others or damaged, or a new
    /// one cannot be written. Nothing is overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        if let Some(identity) = Self::load(path)? {
            return Ok(identity);
        }
        let identity = Self::generate()?;
        let create_error = |source| IdentityError::Create { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            durable::make_folder(folder).map_err(create_error)?;
        }
        match durable::create(path, &identity.to_json()) {
            Ok(()) => Ok(identity),
            // Another daemon was faster: its identity counts.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Self::load(path)?.ok_or_else(|| create_error(e))
            }
            Err(e) => Err(create_error(e)),
        }
    }

    /// A new key, kept nowhere.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let seed = random_bytes().map_err(IdentityError::Randomness)?;
        Ok(Self { key: SigningKey::from_bytes(&seed) })
    }

    /// The key that signs.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// Signs an ASCII challenge.
    pub fn sign(&self, challenge: &str) -> Signature {
        Signature(self.key.sign(challenge.as_bytes()).to_bytes())
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let read_error = |source| IdentityError::Read { path: path.to_owned(), source };
        let Some(bytes) = durable::read(path).map_err(read_error)? else { return Ok(None) };
        let mode = std::fs::metadata(path).map_err(read_error)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::TooOpen { path: path.to_owned(), mode });
        }
        let damaged = |problem| IdentityError::Damaged { path: path.to_owned(), problem };
        Self::from_json(&bytes).map(Some).map_err(damaged)
    }

    fn from_json(bytes: &[u8]) -> Result<Self, String> {
        // The text of the error could show the key; its place is enough.
        let stored: Stored = serde_json::from_slice(bytes)
            .map_err(|e| format!("not an identity at line {} column {}", e.line(), e.column()))?;
        let private = STANDARD
            .decode(&stored.private_key)
            .map_err(|_| "private_key is not base64".to_owned())?;
        let private: &[u8; 64] = private
            .as_slice()
            .try_into()
            .map_err(|_| format!("private_key has {} bytes instead of 64", private.len()))?;
        let key = SigningKey::from_keypair_bytes(private)
            .map_err(|_| "the halves of private_key do not belong together".to_owned())?;
        let identity = Self { key };
        if PublicKey::from_base64(&stored.public_key) != Some(identity.public_key()) {
            return Err("public_key does not belong to private_key".to_owned());
        }
        Ok(identity)
    }

    fn to_json(&self) -> Vec<u8> {
        let stored = Stored {
            private_key: STANDARD.encode(self.key.to_keypair_bytes()),
            public_key: self.public_key().to_string(),
        };
        let mut json = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// 32 bytes from the operating system.
///
/// # Errors
/// What the system said.
pub fn random_bytes() -> Result<[u8; 32], String> {
    use rand::TryRng as _;
    let mut bytes = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn made_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/identity.key");
        let first = Identity::load_or_create(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.public_key(), second.public_key());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let private = STANDARD.decode(json["private_key"].as_str().unwrap()).unwrap();
        assert_eq!(private.len(), 64);
        assert_eq!(private[32..], first.public_key().0);
        assert_ne!(first.public_key(), Identity::generate().unwrap().public_key());
    }

    #[test]
    fn nothing_wrong_is_used_or_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let good = String::from_utf8(Identity::generate().unwrap().to_json()).unwrap();
        let other = Identity::generate().unwrap().public_key().to_string();
        let own = Identity::from_json(good.as_bytes()).unwrap().public_key().to_string();
        let damaged = [
            String::new(),
            "garbage".into(),
            "{}".into(),
            good[..good.len() / 2].into(),
            good.replacen(&own, &other, 1),
            good.replace("private_key\": \"", "private_key\": \"AAAA"),
            r#"{"private_key":"!","public_key":"!"}"#.into(),
        ];
        for text in damaged {
            fs::write(&path, &text).unwrap();
            set_mode(&path, 0o600);
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}: {text}");
            let line = error.to_string();
            assert!(line.contains("identity.key") && line.contains("move it away"), "{line}");
            assert!(!line.contains('\n'));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, &good).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660] {
            set_mode(&path, mode);
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::TooOpen { .. }));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        set_mode(&path, 0o400);
        Identity::load_or_create(&path).unwrap();
    }

    #[test]
    fn an_unusable_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("identity.key");
        let line = Identity::load_or_create(&below).unwrap_err().to_string();
        assert!(line.contains("file/identity.key"), "{line}");
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Read { .. }), "{error}");
    }
}
