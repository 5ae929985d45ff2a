//! Port 444: one message per stream, read and handed to the trust task with
//! what the tunnel and the registry say of its sender. Nothing is answered on
//! the stream.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use pilot_wire::service::handshake::{MAX_ACCEPTED, Message};
use tokio::time::timeout;

use super::handle::{Command, TrustHandle};
use crate::control::ControlHandle;
use crate::service::{LocalStream, Service};

/// Time for the whole message to arrive.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The trust handshake's service.
#[derive(Clone, Debug)]
pub struct TrustService {
    trust: TrustHandle,
    control: ControlHandle,
}

impl TrustService {
    pub(super) fn new(trust: TrustHandle, control: ControlHandle) -> Self {
        Self { trust, control }
    }

    async fn receive(self, mut stream: LocalStream) -> io::Result<()> {
        let from = stream.remote().address.node;
        let mut reader = MessageReader::default();
        let message = loop {
            let Some(bytes) = stream.read_bytes().await? else {
                return Err(invalid("the stream ended before the message did"));
            };
            if let Some(message) = reader.push(&bytes)? {
                break message;
            }
        };
        let key = self.control.key_of(from).await;
        self.trust.send(Command::Received { from, message, key }).await;
        // The sender closes first; what else it says does not matter.
        while stream.read_bytes().await?.is_some() {}
        Ok(())
    }
}

impl Service for TrustService {
    fn name(&self) -> &'static str {
        "trust"
    }

    fn port(&self) -> u16 {
        super::PORT
    }

    fn serve(&self, stream: LocalStream) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
        let service = self.clone();
        Box::pin(async move {
            // At the limit the stream is closed: it had its time.
            timeout(READ_LIMIT, service.receive(stream)).await.unwrap_or(Ok(()))
        })
    }
}

/// Gathers one JSON object from the pieces of a stream.
#[derive(Debug, Default)]
struct MessageReader {
    bytes: Vec<u8>,
}

impl MessageReader {
    /// The message, once it is whole.
    fn push(&mut self, bytes: &[u8]) -> io::Result<Option<Message>> {
        if self.bytes.len() + bytes.len() > MAX_ACCEPTED {
            return Err(invalid("the message is longer than 4096 bytes"));
        }
        self.bytes.extend_from_slice(bytes);
        let mut messages = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<Message>();
        match messages.next() {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message)),
            Some(Err(e)) if e.is_eof() => Ok(None),
            Some(Err(e)) => Err(invalid(&format!("not a handshake message: {e}"))),
        }
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &str = r#"{"type":"handshake_request","node_id":7,"justification":"} \" {"}"#;

    #[test]
    fn wrong_and_endless_messages_are_refused() {
        for bad in ["[]", "5", "x", "{\"type\":\"other\"}", "{\"type\":1}", "{} "] {
            assert!(MessageReader::default().push(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut reader = MessageReader::default();
        let endless = "{\"justification\":\"".to_owned() + &"x".repeat(1000);
        assert!(reader.push(endless.as_bytes()).unwrap().is_none());
        for _ in 0..3 {
            assert!(reader.push(&[b'x'; 1000]).unwrap().is_none());
        }
        assert!(reader.push(&[b'x'; 1000]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_message(cut in 0..MESSAGE.len(), tail in "[ x]{0,5}") {
            let mut reader = MessageReader::default();
            let text = MESSAGE.to_owned() + &tail;
            let (a, b) = text.as_bytes().split_at(cut);
            prop_assert!(reader.push(a).unwrap().is_none());
            let message = reader.push(b).unwrap().unwrap();
            prop_assert_eq!(message.node_id.0, 7);
            prop_assert_eq!(message.justification, "} \" {");
        }

        #[test]
        fn nothing_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..9)) {
            let mut reader = MessageReader::default();
            for piece in pieces {
                if reader.push(&piece).is_err() {
                    break;
                }
            }
        }
    }
}
