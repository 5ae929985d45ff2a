//! The plugin's own durable key-value store.

use std::rc::Rc;

use super::error::Error;
use super::instance::Shared;
use crate::abi;

/// A small key-value store that outlives restarts and reloads; all generations
/// of a plugin share it. Calls block on the disk: for small things.
#[derive(Clone)]
pub struct Store {
    pub(super) shared: Rc<Shared>,
}

impl Store {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.shared.raw.store_get(key) {
            Ok(value) => Ok(Some(value.to_vec())),
            Err(abi::NOT_FOUND) => Ok(None),
            Err(status) => Err(failed("read", key, status)),
        }
    }

    /// Sets a value; it is durable when this returns.
    ///
    /// # Errors
    /// Beyond the quota, and when the disk fails.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.shared.raw.store_put(key, value).map_err(|status| failed("write", key, status))
    }

    /// Removes a key; that there was none is no error.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.shared.raw.store_delete(key).map_err(|status| failed("delete", key, status))
    }

    /// Keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let keys =
            self.shared.raw.store_keys(prefix).map_err(|status| failed("list", prefix, status))?;
        Ok(serde_json::from_slice(&keys)?)
    }
}

fn failed(what: &str, key: &str, status: i32) -> Error {
    let why = match status {
        abi::LIMIT => "the quota of the plugin's store is reached",
        abi::INVALID => "the key is empty or too long",
        _ => "the disk failed; the log of the host says more",
    };
    Error::new(format!("store: cannot {what} {key:?}: {why}"))
}
