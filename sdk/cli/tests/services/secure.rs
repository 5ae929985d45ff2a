//! `secure connect` against a published server and servers of ours.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use pilot_sdk::{Client, NodeId, Stream};
use pilot_wire::service::secure::{
    Binding, Decoder, Frame, KDF_PREFIX, NonceCheck, NonceSource, Role, announce, is_announced,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::User;
use crate::mock::{Behaviour, MockDaemon};

#[derive(Clone, Copy, PartialEq)]
enum Server {
    /// Knows no announcement.
    Published,
    /// Confirms what it sees.
    Ours,
    /// Was dialled by another node than the client: the handshake was passed on.
    Forwarded,
    /// Sends its first answer twice, the second time with the same nonce.
    Replays,
    /// Ends after the keys.
    Ends,
}

async fn listen(socket: &Path, port: u16, server: Server) {
    let client = Client::connect_to(socket).await.expect("connects");
    let listener = client.listen(port).await.expect("listens");
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = serve(stream, from.address.node, server).await;
            });
        }
    });
}

/// Answers each frame with `secure-echo: ` and what was in it.
async fn serve(mut stream: Stream, from: NodeId, server: Server) -> std::io::Result<()> {
    let private = PrivateKey::generate(&X25519).expect("a key");
    let mut server_key: [u8; 32] =
        private.compute_public_key().expect("a key").as_ref().try_into().expect("32 bytes");
    let mut client_key = [0; 32];
    stream.read_exact(&mut client_key).await?;
    assert!(is_announced(&client_key), "clients of ours announce");
    if server != Server::Published {
        server_key = announce(server_key);
    }
    stream.write_all(&server_key).await?;
    if server == Server::Ends {
        return Ok(());
    }
    // With the announcement in it, as a server that never looks would do.
    let key = agree(&private, UnparsedPublicKey::new(&X25519, client_key), (), |shared| {
        let key = Sha256::new().chain_update(KDF_PREFIX).chain_update(shared).finalize();
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("32 bytes")))
    })
    .expect("a secret");
    let (mut nonces, mut check) = (NonceSource::new(Role::Server), NonceCheck::new(Role::Client));
    let mut seal = |plaintext: &[u8]| {
        let nonce = nonces.next_nonce().expect("a nonce");
        let mut sealed = plaintext.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(unique, Aad::empty(), &mut sealed).expect("seals");
        Frame { nonce, sealed }.encode().expect("short")
    };
    let binding = Binding {
        client_key,
        server_key,
        client: if server == Server::Forwarded { NodeId(99) } else { from },
        server: NodeId(1),
    };
    if binding.is_due() {
        stream.write_all(&seal(&binding.confirmation(Role::Server))).await?;
    }
    let mut decoder = Decoder::default();
    let mut confirmed = !binding.is_due();
    let mut buffer = [0; 1000];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..n]);
        while let Some(Frame { nonce, mut sealed }) = decoder.next_frame().expect("a frame") {
            check.accept(&nonce).expect("in order");
            let unique = Nonce::assume_unique_for_key(nonce);
            let plaintext = key.open_in_place(unique, Aad::empty(), &mut sealed).expect("opens");
            if !confirmed {
                confirmed = true;
                if server == Server::Ours {
                    assert!(binding.is_confirmed_by(Role::Client, plaintext));
                }
                continue;
            }
            let mut answer = seal(&[b"secure-echo: ", &*plaintext].concat());
            if server == Server::Replays {
                // The counter that its confirmation had.
                answer[4 + 11] = 1;
            }
            stream.write_all(&answer).await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_through_the_channel() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    listen(&socket, 443, Server::Published).await;
    listen(&socket, 4430, Server::Ours).await;
    for (port, bound) in [("443", false), ("4430", true)] {
        let args = ["secure", "connect", "1", "--message", "hello", "--port", port];
        let number: u16 = port.parse().expect("a port");
        assert_eq!(
            user.run(&args).await.data(),
            json!({"target": "0:0000.0000.0001", "port": number, "sent": "hello",
                   "response": "secure-echo: hello", "bound": bound})
        );
    }
    // Standard input, an empty message, text for people, and the default port.
    let run = user.run_with(&["secure", "connect", "1"], "from a pipe\n").await;
    assert_eq!(run.data()["response"], "secure-echo: from a pipe");
    let run = user.run(&["--json=false", "secure", "connect", "1", "--message="]).await;
    assert_eq!(run.stdout, "secure-echo: \n");
    let args = ["secure", "connect", "1", "--message", "x", "--bound"];
    assert_eq!(user.run(&[&args[..], &["--port", "4430"]].concat()).await.data()["bound"], true);
    let error = user.run(&args).await.error();
    assert!(error["message"].as_str().expect("text").contains("does not bind"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_cannot_be_trusted() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (home, socket) = (daemon.dir(), daemon.socket());
    let user = User::new(home, &socket);
    for (port, server, reason) in [
        (4431, Server::Forwarded, "not the node that was dialled"),
        (4432, Server::Replays, "out of order"),
        (4433, Server::Ends, "not the node that was dialled"),
    ] {
        listen(&socket, port, server).await;
        let port = port.to_string();
        let args = ["secure", "connect", "1", "--message", "hello", "--port", &port];
        let error = user.run(&args).await.error();
        assert_eq!(error["code"], "connection_failed", "{error}");
        assert!(error["reason"].as_str().expect("text").contains(reason), "{error}");
    }
    let error = user.run(&["secure", "connect", "1", "--message", "x"]).await.error();
    assert_eq!(error["message"], "cannot connect to 0:0000.0000.0001 port 443");
    let error = user.run(&["secure"]).await.error();
    assert_eq!(error["hint"], "available: pilotctl secure connect");
}
