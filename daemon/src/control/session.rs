//! How the session at the registry stands: whether there is one on the present
//! connection, and how far its news have been handled. Opening it is a matter
//! of three requests; what the news mean is not known here.

use std::sync::Arc;

use tokio::sync::watch;

/// The session. Cheap to clone, all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Session(Arc<watch::Sender<State>>);

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The connection on which it was opened or tried last; 0 for none.
    pub(crate) connection: u64,
    /// What came of it.
    pub(crate) standing: Standing,
    /// The registry's state that the numbers are of and all of which was handled;
    /// empty before the first.
    pub(crate) epoch: String,
    /// That of the open session, while its sync has not been handled.
    pub(crate) unsynced: Option<String>,
    /// Number of the last news that were handled in that epoch.
    pub(crate) since: u64,
    /// The registry has another state than when this node was last told
    /// everything: what it says of trust may be what it has lost.
    pub(crate) renewed: bool,
    /// Why the registry ended the last one, until it was acted upon.
    pub(crate) ended_by: Option<String>,
}

/// What came of opening a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// None was tried, or it has ended.
    #[default]
    None,
    /// It is being opened; news that come now are of it.
    Opening,
    /// It is open.
    Open,
    /// The registry is a published one, which has no sessions.
    Unsupported,
    /// It was refused or lost while it was opened.
    Failed,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// As it is now.
    pub(crate) fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Watches it.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Whether opening was tried on `connection`.
    pub(crate) fn was_tried(&self, connection: u64) -> bool {
        self.0.borrow().connection >= connection
    }

    /// It is about to be opened.
    pub(crate) fn begin(&self) {
        self.0.send_modify(|state| state.standing = Standing::Opening);
    }

    /// It may be tried again on the same connection.
    pub(crate) fn forget(&self) {
        self.0.send_modify(|state| (state.connection, state.standing) = (0, Standing::None));
    }

    /// It is open on `connection`. When what was missed follows, numbers go on
    /// from where they are; else they begin with the sync, once that was handled:
    /// a session that is lost before it begins where the last one was. `renewed`
    /// says that the registry's state is another than was known.
    pub(crate) fn opened(&self, connection: u64, epoch: String, resumed: bool, renewed: bool) {
        self.0.send_modify(|state| {
            state.unsynced = (!resumed).then_some(epoch);
            (state.connection, state.standing) = (connection, Standing::Open);
            state.renewed = renewed;
        });
    }

    /// There is none on `connection`.
    pub(crate) fn failed(&self, connection: u64, standing: Standing) {
        self.0.send_modify(|state| (state.connection, state.standing) = (connection, standing));
    }

    /// News of `connection` have been handled up to `seq`.
    pub(crate) fn handled(&self, connection: u64, seq: u64) {
        self.0.send_if_modified(|state| {
            if state.connection == connection && state.unsynced.is_none() {
                state.since = state.since.max(seq);
            }
            false
        });
    }

    /// The sync of the session on `connection` was handled. Returns the name of
    /// the registry's state that it was of.
    pub(crate) fn synced(&self, connection: u64) -> Option<String> {
        let mut synced = None;
        self.0.send_if_modified(|state| {
            if state.connection == connection
                && let Some(epoch) = state.unsynced.take()
            {
                synced = Some(epoch.clone());
                (state.epoch, state.since) = (epoch, 0);
            }
            false
        });
        synced
    }

    /// What the registry lost is told to it again, as of now.
    pub(crate) fn settle(&self) {
        self.0.send_if_modified(|state| {
            state.renewed = false;
            false
        });
    }

    /// The registry ended it with this code; whether it was the present one.
    pub(crate) fn ended(&self, connection: u64, code: &str) -> bool {
        self.0.send_if_modified(|state| {
            let present = state.connection == connection && state.standing == Standing::Open;
            if present {
                // So that it may be tried again on the same connection.
                (state.connection, state.standing) = (0, Standing::None);
                state.ended_by = Some(code.to_owned());
            }
            present
        })
    }

    /// Why the registry ended the last one, once.
    pub(crate) fn take_end(&self) -> Option<String> {
        let mut code = None;
        self.0.send_if_modified(|state| {
            code = state.ended_by.take();
            false
        });
        code
    }
}
