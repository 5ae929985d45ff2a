//! Who is an administrator: whoever shows the registry's admin token. Only its
//! hash is kept. Knows nothing of requests.

use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use crate::state::Refusal;

/// What administrators are known by; by default there are none. Cheap to clone;
/// all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Admins {
    token: Arc<RwLock<Option<[u8; 32]>>>,
}

impl fmt::Debug for Admins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admins").finish_non_exhaustive()
    }
}

impl Admins {
    /// Whoever shows `token` is one.
    pub(crate) fn by_token(token: Option<&str>) -> Self {
        Self { token: Arc::new(RwLock::new(token.map(hash))) }
    }

    /// From now on whoever shows this one.
    pub(crate) fn set_token(&self, token: Option<&str>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token.map(hash);
    }

    /// The name of who shows `token`.
    ///
    /// # Errors
    /// When it is wrong, or there are no administrators.
    pub(crate) fn named(&self, token: &str) -> Result<String, Refusal> {
        match &*self.token.read().unwrap_or_else(PoisonError::into_inner) {
            Some(kept) if equal(kept, &hash(token)) => Ok("admin".to_owned()),
            _ => Err(Refusal::BadAdminToken),
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Takes the same time wherever the two differ.
pub(crate) fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_right() {
        let admins = Admins::by_token(Some("0123456789abcdef"));
        assert_eq!(admins.named("0123456789abcdef").as_deref(), Ok("admin"));
        for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef "] {
            assert_eq!(admins.named(wrong), Err(Refusal::BadAdminToken), "{wrong:?}");
        }
        admins.clone().set_token(Some("another-token-0123"));
        assert!(admins.named("0123456789abcdef").is_err());
        assert!(admins.named("another-token-0123").is_ok());
        assert!(Admins::default().named("").is_err() && Admins::default().named("x").is_err());
    }
}
