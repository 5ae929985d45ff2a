//! Which keys are held with one peer, which one is sent under, and when a new
//! exchange is started.

use std::collections::VecDeque;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use pilot_wire::NodeId;
use pilot_wire::tunnel::{AUTH_KEY_LEN, AuthKey, Nonce, X25519Public, auth_challenge};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use x25519_dalek::{PublicKey, StaticSecret};

use super::session::{OpenError, Session, Shape};
use crate::time::Time;

/// Sessions held per peer; the oldest goes first.
const MAX_SESSIONS: usize = 4;
/// Retired remote keys remembered per peer; the oldest is forgotten first.
const MAX_RETIRED: usize = 32;
/// A key of ours that was made within this time answers an exchange of the
/// peer; an older one is replaced, so that neither side's key lives on.
const LOCAL_KEY_REUSE: Duration = Duration::from_secs(60);
/// A repeated key exchange is answered at most this often.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before an unanswered exchange is repeated; doubles from the third on.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(8);

struct LocalKey {
    secret: StaticSecret,
    public: X25519Public,
    born: Time,
    /// A session of it was dropped.
    spent: bool,
}

/// An exchange that this side started and the peer has not answered.
struct Outstanding {
    sent: Time,
    attempts: u32,
}

/// What became of an authenticated key exchange frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// A new session. `answer`: send ours back. `rekeyed`: there was one before.
    New { answer: bool, rekeyed: bool },
    /// The key is in use already. `answer`: the peer seems to miss ours.
    Repeated { answer: bool },
    /// The key was in use once and is so no longer, or is of low order.
    Refused,
}

#[derive(Default)]
pub(crate) struct Tunnel {
    local: Option<LocalKey>,
    sessions: VecDeque<Session>,
    /// Key of the session to send under; see [`Tunnel::sending`].
    send: Option<(X25519Public, X25519Public)>,
    /// Sending has moved to another session since last asked.
    switched: bool,
    outstanding: Option<Outstanding>,
    retired: VecDeque<X25519Public>,
    last_sent_key: Option<Time>,
}

impl Tunnel {
    pub(crate) fn is_up(&self) -> bool {
        self.send.is_some()
    }

    fn session_mut(&mut self, keys: (X25519Public, X25519Public)) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| (s.local, s.remote) == keys)
    }

    /// The session to seal under.
    pub(crate) fn sending(&mut self) -> Option<&mut Session> {
        let keys = self.send?;
        self.session_mut(keys)
    }

    /// Whether an exchange may be started, or repeated, now.
    pub(crate) fn may_start(&self, now: Time) -> bool {
        self.outstanding.as_ref().is_none_or(|o| now >= o.sent + retry_pause(o.attempts))
    }

    /// When an unanswered exchange is to be repeated.
    pub(crate) fn retry_at(&self) -> Option<Time> {
        self.outstanding.as_ref().map(|o| o.sent + retry_pause(o.attempts))
    }

    /// How often the exchange under way was sent.
    pub(crate) fn attempts(&self) -> u32 {
        self.outstanding.as_ref().map_or(0, |o| o.attempts)
    }

    /// The exchange under way may be repeated at once.
    pub(crate) fn hurry(&mut self) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.sent = Time::ZERO;
        }
    }

    /// Gives an exchange up that nobody needs any more.
    pub(crate) fn abandon(&mut self) {
        self.outstanding = None;
    }

    /// Starts or repeats an exchange with a fresh key; the frame to send.
    pub(crate) fn start(
        &mut self,
        node: NodeId,
        identity: &SigningKey,
        rng: &mut StdRng,
        now: Time,
    ) -> [u8; AUTH_KEY_LEN] {
        self.local = Some(fresh_key(rng, now));
        let attempts = self.attempts() + 1;
        self.outstanding = Some(Outstanding { sent: now, attempts });
        self.frame(node, identity, rng, now)
    }

    /// The frame that carries the current local key.
    pub(crate) fn frame(
        &mut self,
        node: NodeId,
        identity: &SigningKey,
        rng: &mut StdRng,
        now: Time,
    ) -> [u8; AUTH_KEY_LEN] {
        self.last_sent_key = Some(now);
        let key = self.local.get_or_insert_with(|| fresh_key(rng, now)).public;
        AuthKey {
            sender: node,
            key,
            identity: identity.verifying_key().to_bytes(),
            signature: identity.sign(&auth_challenge(node, &key)).to_bytes(),
        }
        .to_frame()
    }

    /// Whether `key` is one that the peer uses in a session now.
    pub(crate) fn uses(&self, key: &X25519Public) -> bool {
        self.sessions.iter().any(|s| s.remote == *key)
    }

    /// Takes the ephemeral key of an exchange frame whose signature is good.
    pub(crate) fn accept(&mut self, remote: X25519Public, rng: &mut StdRng, now: Time) -> Accepted {
        if self.retired.contains(&remote) {
            return Accepted::Refused;
        }
        let answered = self.outstanding.is_some();
        let held = self.local.as_ref().is_some_and(|l| {
            self.sessions.iter().any(|s| (s.local, s.remote) == (l.public, remote))
        });
        if held {
            let recent = self.last_sent_key.is_some_and(|t| now.since(t) < ANSWER_INTERVAL);
            return Accepted::Repeated { answer: !recent };
        }
        let usable = |l: &LocalKey| !l.spent && (answered || now.since(l.born) < LOCAL_KEY_REUSE);
        if !self.local.as_ref().is_some_and(usable) {
            self.local = Some(fresh_key(rng, now));
        }
        let Some(local) = &self.local else { return Accepted::Refused };
        let prefix = rng.random();
        let Some(session) = Session::derive(&local.secret, local.public, remote, prefix, now)
        else {
            return Accepted::Refused;
        };
        let rekeyed = !self.sessions.is_empty();
        let keys = (session.local, session.remote);
        self.insert(session);
        self.outstanding = None;
        // The peer's answer to our key says that it holds the session. As the
        // answering side, wait for a frame under it: the exchange frame may be
        // a recorded one.
        if answered || self.send.is_none() {
            self.send_under(keys);
        }
        Accepted::New { answer: !answered, rekeyed }
    }

    fn insert(&mut self, session: Session) {
        self.sessions.push_front(session);
        while self.sessions.len() > MAX_SESSIONS {
            // Never the one that is sent under: it may be the oldest while
            // recorded exchange frames are thrown at us.
            let victim = (1..self.sessions.len())
                .rev()
                .find(|&i| Some((self.sessions[i].local, self.sessions[i].remote)) != self.send);
            let Some(old) = victim.and_then(|i| self.sessions.remove(i)) else { break };
            // The list of retired keys forgets in the end. So that the same
            // pair never makes the same session again, with an empty replay
            // window, our key answers no further exchange.
            if let Some(local) = self.local.as_mut().filter(|l| l.public == old.local) {
                local.spent = true;
            }
            self.retire(old.remote);
        }
    }

    fn retire(&mut self, remote: X25519Public) {
        if self.uses(&remote) || self.retired.contains(&remote) {
            return;
        }
        if self.retired.len() == MAX_RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back(remote);
    }

    /// Opens a sealed frame in place with whichever session fits, and moves
    /// sending to a newer session that the peer has shown to hold.
    pub(crate) fn open<'a>(
        &mut self,
        nonce: Nonce,
        shape: Shape,
        body: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), OpenError> {
        let known = self.sessions.iter().position(|s| s.knows_prefix(nonce.prefix));
        let index = match known {
            Some(i) => i,
            None => self.find_by_trial(nonce, shape, body)?,
        };
        let first = !self.sessions[index].confirmed;
        let opened = self.sessions[index].open(nonce, shape, body)?;
        if first {
            self.prefer(index);
        }
        Ok(opened)
    }

    /// The whole nonce of a compact frame. A session goes on counting where the
    /// one before it stood, so a prefix not seen before starts near the highest
    /// counter of all.
    pub(crate) fn whole_nonce(&self, prefix: [u8; 4], low: u32) -> Nonce {
        let seen = self.sessions.iter().find_map(|s| s.highest(prefix));
        let highest = seen
            .or_else(|| self.sessions.iter().map(Session::highest_of_all).max())
            .unwrap_or_default();
        Nonce::near(prefix, low, highest)
    }

    /// Finds the session for a prefix not seen before. Failed opening spoils
    /// the buffer, so the tries work on a copy; a peer draws a new prefix only
    /// when keys change.
    fn find_by_trial(&self, nonce: Nonce, shape: Shape, body: &[u8]) -> Result<usize, OpenError> {
        let mut error = OpenError::Tag;
        let mut copy = Vec::with_capacity(body.len());
        for (i, session) in self.sessions.iter().enumerate() {
            copy.clear();
            copy.extend_from_slice(body);
            match session.trial(nonce, shape, &mut copy) {
                Ok(()) => return Ok(i),
                Err(OpenError::Tag) => {}
                Err(e) => error = e,
            }
        }
        Err(error)
    }

    /// The peer used session `index` for the first time.
    fn prefer(&mut self, index: usize) {
        let newer = &self.sessions[index];
        let keys = (newer.local, newer.remote);
        let newer_born = newer.born;
        let current = self.send.and_then(|k| self.session_mut(k)).map(|s| s.born);
        if current.is_none_or(|born| newer_born >= born) {
            self.send_under(keys);
        }
    }

    /// Changes the session that is sent under. Its counter goes on above those
    /// used before: a published peer moves its replay window by frames that it
    /// cannot open, and those of the old session that it gets after the change
    /// would make the first of the new one look old.
    fn send_under(&mut self, keys: (X25519Public, X25519Public)) {
        let used = self.sessions.iter().map(Session::counter).max().unwrap_or(0);
        if let Some(session) = self.session_mut(keys) {
            session.continue_above(used);
        }
        self.switched |= self.send != Some(keys);
        self.send = Some(keys);
    }

    /// Whether sending has moved to another session since the last call: what
    /// was sent before may have gone to a peer that could not open it.
    pub(crate) fn take_switched(&mut self) -> bool {
        std::mem::take(&mut self.switched)
    }

    /// Whether the session that is sent under should be replaced.
    pub(crate) fn wants_rekey(&mut self, after: Duration, frames: u64, now: Time) -> bool {
        self.sending().is_some_and(|s| {
            now.since(s.born) >= after || s.sealed() >= frames || s.prefix_collides()
        })
    }
}

fn fresh_key(rng: &mut StdRng, now: Time) -> LocalKey {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    let secret = StaticSecret::from(bytes);
    let public = PublicKey::from(&secret).to_bytes();
    LocalKey { secret, public, born: now, spent: false }
}

fn retry_pause(attempts: u32) -> Duration {
    (RETRY_FIRST * 2u32.pow(attempts.saturating_sub(3).min(8))).min(RETRY_MAX)
}

#[cfg(test)]
mod tests;
