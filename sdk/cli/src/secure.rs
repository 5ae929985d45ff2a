//! The client's end of a secure channel (protocol page "Services", section 4):
//! X25519, SHA-256 and AES-256-GCM over a stream, bound to the tunnel's nodes
//! where the peer is one of ours. What is bound and how stands at
//! [`pilot_wire::service::secure`].

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use pilot_sdk::{NodeId, Stream};
use pilot_wire::service::secure::{
    Binding, Decoder, Frame, FrameError, HANDSHAKE_SECS, KDF_PREFIX, KEY_LEN, NonceCheck,
    NonceSource, Role, announce, without_announcement,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Bytes read at once.
const BUFFER: usize = 64 * 1024;

/// Why a channel does not stand, or stands no more.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The stream.
    Io(std::io::Error),
    /// The peer did not send its key in time.
    Slow,
    /// What the peer sent.
    Peer(String),
    /// This machine.
    Own(&'static str),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::Slow => write!(f, "no key within {HANDSHAKE_SECS} s"),
            Self::Peer(what) => f.write_str(what),
            Self::Own(what) => f.write_str(what),
        }
    }
}

impl From<std::io::Error> for Broken {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<FrameError> for Broken {
    fn from(e: FrameError) -> Self {
        Self::Peer(e.to_string())
    }
}

/// An open channel.
pub(crate) struct Channel {
    stream: Stream,
    keys: Keys,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Whether both ends have confirmed that they are the tunnel's ends.
    bound: bool,
}

impl Channel {
    /// Exchanges keys over `stream`, from node `own` to node `peer`, and binds
    /// the channel if the peer can.
    pub(crate) async fn open(
        mut stream: Stream,
        own: NodeId,
        peer: NodeId,
    ) -> Result<Self, Broken> {
        let private = PrivateKey::generate(&X25519)
            .map_err(|_| Broken::Own("the system gives no random numbers"))?;
        let client_key = announce(public(&private)?);
        let mut server_key = [0; KEY_LEN];
        let exchange = async {
            stream.write_all(&client_key).await?;
            stream.flush().await?;
            stream.read_exact(&mut server_key).await
        };
        match timeout(Duration::from_secs(HANDSHAKE_SECS), exchange).await {
            Ok(done) => done?,
            Err(_) => return Err(Broken::Slow),
        };
        let keys = Keys::new(&private, &server_key, Role::Client)?;
        let mut channel = Self {
            stream,
            keys,
            decoder: Decoder::default(),
            buffer: vec![0; BUFFER],
            bound: false,
        };
        let binding = Binding { client_key, server_key, client: own, server: peer };
        if binding.is_due() {
            channel.bind(&binding).await?;
        }
        Ok(channel)
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.bound
    }

    async fn bind(&mut self, binding: &Binding) -> Result<(), Broken> {
        let confirm = async {
            self.send(&binding.confirmation(Role::Client)).await?;
            self.receive().await
        };
        let said = timeout(Duration::from_secs(HANDSHAKE_SECS), confirm);
        let said = said.await.map_err(|_| Broken::Slow)??;
        if !said.is_some_and(|said| binding.is_confirmed_by(Role::Server, &said)) {
            return Err(Broken::Peer(
                "the other end of the channel is not the node that was dialled".to_owned(),
            ));
        }
        self.bound = true;
        Ok(())
    }

    /// Sends one frame.
    pub(crate) async fn send(&mut self, plaintext: &[u8]) -> Result<(), Broken> {
        let frame = self.keys.seal(plaintext)?.encode()?;
        self.stream.write_all(&frame).await?;
        Ok(self.stream.flush().await?)
    }

    /// The contents of the next frame; `None` when the peer has ended.
    pub(crate) async fn receive(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return self.keys.open(frame).map(Some);
            }
            match self.stream.read(&mut self.buffer).await? {
                0 if self.decoder.is_inside() => {
                    return Err(Broken::Peer("it ended in the middle of a frame".to_owned()));
                }
                0 => return Ok(None),
                n => self.decoder.push(&self.buffer[..n]),
            }
        }
    }
}

fn public(private: &PrivateKey) -> Result<[u8; KEY_LEN], Broken> {
    let key = private.compute_public_key().ok().and_then(|k| k.as_ref().try_into().ok());
    key.ok_or(Broken::Own("the key exchange failed"))
}

/// The channel's key, and where both directions are in their nonces.
struct Keys {
    key: LessSafeKey,
    own: NonceSource,
    peer: NonceCheck,
}

impl Keys {
    fn new(private: &PrivateKey, peer: &[u8; KEY_LEN], role: Role) -> Result<Self, Broken> {
        let peer = UnparsedPublicKey::new(&X25519, without_announcement(*peer));
        let refused = Broken::Peer("its key is not a usable X25519 key".to_owned());
        // A key that makes the secret zero is refused in here.
        let key = agree(private, peer, refused, |shared| {
            let key = Sha256::new().chain_update(KDF_PREFIX).chain_update(shared).finalize();
            UnboundKey::new(&AES_256_GCM, &key).map_err(|_| Broken::Own("the key does not fit"))
        })?;
        Ok(Self {
            key: LessSafeKey::new(key),
            own: NonceSource::new(role),
            peer: NonceCheck::new(role.peer()),
        })
    }

    fn seal(&mut self, plaintext: &[u8]) -> Result<Frame, Broken> {
        let nonce = self.own.next_nonce().ok_or(Broken::Own("all nonces are used up"))?;
        let mut sealed = plaintext.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut sealed,
            )
            .map_err(|_| Broken::Own("the frame cannot be sealed"))?;
        Ok(Frame { nonce, sealed })
    }

    fn open(&mut self, frame: Frame) -> Result<Vec<u8>, Broken> {
        let Frame { nonce, mut sealed } = frame;
        self.peer.accept(&nonce)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plaintext = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .map_err(|_| Broken::Peer("a frame of it was damaged or is not its own".to_owned()))?;
        let len = plaintext.len();
        sealed.truncate(len);
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::service::secure::is_announced;
    use serde_json::Value;

    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let text = value.as_str().expect("hex").as_bytes();
        let digit = |d: u8| char::from(d).to_digit(16).expect("hex") as u8;
        text.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    fn vector() -> Value {
        let text = include_str!("../../../tests/vectors/secure_channel.json");
        serde_json::from_str(text).expect("vectors")
    }

    fn ends(v: &Value) -> [Keys; 2] {
        let private = |key: &str| {
            PrivateKey::from_private_key(&X25519, &bytes(&v[key])).expect("a private key")
        };
        let (client, server) = (private("client_x25519_private"), private("server_x25519_private"));
        let key = |of: &PrivateKey| public(of).expect("a public key");
        assert_eq!(key(&client).to_vec(), bytes(&v["client_x25519_public"]));
        assert_eq!(key(&server).to_vec(), bytes(&v["server_x25519_public"]));
        [
            Keys::new(&client, &key(&server), Role::Client).expect("keys"),
            // The announcement changes nothing for who does not look at it.
            Keys::new(&server, &announce(key(&client)), Role::Server).expect("keys"),
        ]
    }

    #[test]
    fn frames_as_published() {
        let v = vector();
        let [mut client, mut server] = ends(&v);
        for case in v["frames"].as_array().expect("frames") {
            let (from, to) = match case["direction"].as_str() {
                Some("client-to-server") => (&mut client, &mut server),
                _ => (&mut server, &mut client),
            };
            let plaintext = bytes(&case["plaintext"]);
            let frame = from.seal(&plaintext).expect("seals");
            assert_eq!(frame.encode().expect("short"), bytes(&case["frame"]), "{case}");
            assert_eq!(to.open(frame.clone()).expect("opens"), plaintext);
            assert!(to.open(frame).is_err(), "replayed");
        }
    }

    #[test]
    fn damaged_and_reflected_frames_are_refused() {
        let [mut client, mut server] = ends(&vector());
        let mut frame = client.seal(b"hello").expect("seals");
        assert!(client.open(frame.clone()).is_err(), "reflected");
        frame.sealed[0] ^= 1;
        assert!(server.open(frame).is_err(), "damaged");
    }

    /// A plain X25519 ignores the top bit, so that a published peer computes
    /// the same secret from an announced key.
    #[test]
    fn announced_keys_make_the_same_secret() {
        let client = PrivateKey::generate(&X25519).expect("a key");
        let server = PrivateKey::generate(&X25519).expect("a key");
        let key = public(&client).expect("a key");
        assert!(!is_announced(&key));
        let shared = |key: [u8; KEY_LEN]| {
            agree(&server, UnparsedPublicKey::new(&X25519, key), (), |s| Ok(s.to_vec()))
        };
        assert_eq!(shared(key), shared(announce(key)));
        assert!(shared(key).is_ok());
    }

    #[test]
    fn a_key_that_makes_no_secret_is_refused() {
        let own = PrivateKey::generate(&X25519).expect("a key");
        assert!(Keys::new(&own, &[0; KEY_LEN], Role::Client).is_err());
        assert!(Keys::new(&own, &announce([0; KEY_LEN]), Role::Client).is_err());
    }
}
