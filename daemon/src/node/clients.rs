//! The clients of the driver socket, and which of them a turn has touched.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::net::UnixStream;

use super::ready::{Notifier, ReadyList, Token};
use crate::ipc::client::Client;

/// The clients by number.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) all: HashMap<u64, Client>,
    /// Each at most once.
    pub(crate) dirty: Vec<u64>,
    next: u64,
}

impl Clients {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn add(&mut self, stream: UnixStream, ready: &Arc<ReadyList>) -> u64 {
        self.next += 1;
        let id = self.next;
        let notifier = Notifier::new(Arc::clone(ready), Token::Client(id));
        // So that it is read from for the first time.
        notifier.notify();
        self.all.insert(id, Client::new(id, stream, notifier));
        id
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Client> {
        self.all.remove(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Client> {
        self.all.get_mut(&id)
    }

    /// A client that will be passed data and written to at the turn's end.
    pub(crate) fn touch(&mut self, id: u64) -> Option<&mut Client> {
        let client = self.all.get_mut(&id)?;
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(id);
        }
        Some(client)
    }

    /// The same for all clients.
    pub(crate) fn touch_all(&mut self, mut each: impl FnMut(&mut Client)) {
        for (id, client) in &mut self.all {
            if !client.dirty {
                client.dirty = true;
                self.dirty.push(*id);
            }
            each(client);
        }
    }
}
