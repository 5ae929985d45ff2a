//! The channel itself: bytes in, plaintext out, and back. Knows no stream and
//! no time.

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::secure::{
    Binding, Decoder, Frame, FrameError, KDF_PREFIX, KEY_LEN, MAX_PLAINTEXT, NONCE_LEN, NonceCheck,
    NonceSource, Role, TAG_LEN, announce, is_announced,
};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// Why a channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the peer's key leads to no secret")]
    NoSecret,
    #[error("the peer cannot prove that nobody is in between, and `require-bound` is set")]
    Unbound,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame does not open: it was changed, or is not for this channel")]
    Sealed,
    #[error("the peer sees other ends of this channel: somebody in between passes it on")]
    Passed,
    #[error("this channel has sent all the frames it may")]
    Exhausted,
}

/// What is asked of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Frames must come in order and once.
    pub(crate) strict: bool,
    /// The peer must bind the channel to the tunnel's identities.
    pub(crate) require_bound: bool,
    /// Bytes of a frame after its length field.
    pub(crate) max_frame: usize,
}

/// The nodes at both ends, as this one knows them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) client: NodeId,
    pub(crate) server: NodeId,
}

/// A channel that a client has asked for.
pub(crate) struct Accepted {
    /// What the client is to be sent first.
    pub(crate) hello: Vec<u8>,
    pub(crate) opener: Opener,
    pub(crate) sealer: Sealer,
}

/// Answers a client's key. `secret` is random and used once; `ends` is absent
/// when this node does not know its own number, and a channel is then not
/// bound.
pub(crate) fn accept(
    client_key: [u8; KEY_LEN],
    secret: [u8; KEY_LEN],
    ends: Option<Ends>,
    rules: Rules,
) -> Result<Accepted, ChannelError> {
    let secret = StaticSecret::from(secret);
    let mut server_key = PublicKey::from(&secret).to_bytes();
    let ends = ends.filter(|_| is_announced(&client_key));
    if ends.is_some() {
        server_key = announce(server_key);
    } else if rules.require_bound {
        return Err(ChannelError::Unbound);
    }
    let key = derive(&secret, client_key)?;
    let binding =
        ends.map(|Ends { client, server }| Binding { client_key, server_key, client, server });
    let (opener, mut sealer) = halves(Role::Server, &key, binding, rules);
    let mut hello = server_key.to_vec();
    if let Some(binding) = binding {
        hello.extend(sealer.seal(&binding.confirmation(Role::Server))?);
    }
    Ok(Accepted { hello, opener, sealer })
}

/// The key of both directions.
fn derive(secret: &StaticSecret, peer: [u8; KEY_LEN]) -> Result<[u8; 32], ChannelError> {
    // The top bit, with which ours announce themselves, is ignored here.
    let shared = secret.diffie_hellman(&PublicKey::from(peer));
    if !shared.was_contributory() {
        return Err(ChannelError::NoSecret);
    }
    Ok(Sha256::new().chain_update(KDF_PREFIX).chain_update(shared.as_bytes()).finalize().into())
}

fn halves(role: Role, key: &[u8; 32], binding: Option<Binding>, rules: Rules) -> (Opener, Sealer) {
    let cipher = Aes256Gcm::new(key.into());
    let opener = Opener {
        cipher: cipher.clone(),
        decoder: Decoder::new(rules.max_frame),
        check: rules.strict.then(|| NonceCheck::new(role.peer())),
        peer: role.peer(),
        unconfirmed: binding,
    };
    (opener, Sealer { cipher, nonces: NonceSource::new(role) })
}

/// Opens what the peer sends.
pub(crate) struct Opener {
    cipher: Aes256Gcm,
    decoder: Decoder,
    check: Option<NonceCheck>,
    peer: Role,
    /// Until the peer has confirmed it.
    unconfirmed: Option<Binding>,
}

impl Opener {
    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.decoder.push(data);
    }

    /// The plaintext of the next frame, if a whole one has come.
    ///
    /// # Errors
    /// The channel must end.
    pub(crate) fn open(&mut self) -> Result<Option<Vec<u8>>, ChannelError> {
        while let Some(frame) = self.decoder.next_frame()? {
            if let Some(check) = &mut self.check {
                check.accept(&frame.nonce)?;
            }
            let opened = self.cipher.decrypt(&Nonce::from(frame.nonce), &frame.sealed[..]);
            let plaintext = opened.map_err(|_| ChannelError::Sealed)?;
            match self.unconfirmed.take() {
                Some(binding) if binding.is_confirmed_by(self.peer, &plaintext) => {}
                Some(_) => return Err(ChannelError::Passed),
                None => return Ok(Some(plaintext)),
            }
        }
        Ok(None)
    }

    /// Whether an end of the stream would cut a frame.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.decoder.is_inside()
    }
}

/// Seals what is sent to the peer.
pub(crate) struct Sealer {
    cipher: Aes256Gcm,
    nonces: NonceSource,
}

impl Sealer {
    /// The frames of `plaintext`; one, unless it is longer than a frame takes.
    ///
    /// # Errors
    /// When all nonces are used.
    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, ChannelError> {
        let mut out = Vec::with_capacity(plaintext.len() + 4 + NONCE_LEN + TAG_LEN);
        let mut rest = plaintext;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(MAX_PLAINTEXT));
            let nonce = self.nonces.next_nonce().ok_or(ChannelError::Exhausted)?;
            let sealed = self.cipher.encrypt(&Nonce::from(nonce), piece);
            let sealed = sealed.map_err(|_| ChannelError::Sealed)?;
            out.extend(Frame { nonce, sealed }.encode()?);
            if more.is_empty() {
                return Ok(out);
            }
            rest = more;
        }
    }
}

#[cfg(test)]
mod tests;
