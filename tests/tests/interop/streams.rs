//! Streams and datagrams: first contact from either side, data, the close.

use anyhow::{Result, ensure};
use pilot_tests::harness::{EchoApp, Pattern, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PORT, World, exchange, within};

const LEN: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_dials_and_4_mib_flow_each_way() -> Result<()> {
    let world = World::start().await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let near = world.daemon_dials(PORT).await?;
    let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    ensure!(far.remote().address.node == world.node, "from {}", far.remote());
    exchange(near, &far, LEN).await?;
    let counters = world.sound()?;
    ensure!(counters.undecryptable == 0 && counters.keyless == 0, "{counters:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_peer_dials_and_4_mib_flow_each_way() -> Result<()> {
    let world = World::start().await?;
    let listener = world.client.listen(PORT).await?;
    let far = world.peer_dials(PORT).await?;
    let (near, remote) = within("the daemon to accept", listener.accept()).await??;
    ensure!(remote == world.peer.address().port(far.local_port()), "from {remote}");
    exchange(near, &far, LEN).await?;
    let counters = world.sound()?;
    ensure!(counters.undecryptable == 0 && counters.keyless == 0, "{counters:?}");
    Ok(())
}

/// First contact of two that have never exchanged a frame, from either side:
/// trust was made at the registry, so that not even port 444 came before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_very_first_frame_may_come_from_either_side() -> Result<()> {
    for daemon_first in [true, false] {
        let world = World::start().await?;
        // A fresh process of the same, trusted node: no frame was exchanged.
        let World { network, daemon, client, peer, node } = world;
        let mut daemon = daemon;
        drop(client);
        daemon.start_again()?;
        daemon.joined().await?;
        let config = peer.kill().await;
        let peer = pilot_tests::peer::PublishedPeer::start_with(config).await?;
        let client = daemon.client().await?;
        let world = World { network, daemon, client, peer, node };
        if daemon_first {
            world.daemon_echo(b"first").await?;
        } else {
            world.peer_echo(b"first").await?;
        }
        let counters = world.sound()?;
        ensure!(counters.auth_keys_accepted > 0, "{counters:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_streams_at_once_in_each_direction() -> Result<()> {
    let world = World::start().await?;
    let _echo = EchoApp::start(&world.client, PORT).await?;
    let data = Pattern::new(5).bytes(100_000);
    let peer_side = async {
        let dials = (0..20).map(|_| world.peer_dials(PORT));
        let mut streams = Vec::new();
        for dial in dials {
            streams.push(dial.await?);
        }
        for stream in &streams {
            stream.write(&data).await?;
        }
        for stream in &streams {
            let back = within("an echo", stream.read_exact(data.len())).await??;
            ensure!(back == data, "an echo of the daemon's application differs");
            stream.close().await;
        }
        Ok(())
    };
    let daemon_side = async {
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(world.daemon_dials(7).await?);
        }
        for stream in &mut streams {
            // The published echo reads and writes in turn and would stop
            // reading when nobody takes what it sends.
            let (mut read, mut write) = tokio::io::split(stream);
            let mut back = vec![0; data.len()];
            let (sent, received) = within("an echo", async {
                tokio::join!(write.write_all(&data), read.read_exact(&mut back))
            })
            .await?;
            sent?;
            received?;
            ensure!(back == data, "an echo of the published peer differs");
        }
        Ok(())
    };
    let (a, b): (Result<()>, Result<()>) = tokio::join!(peer_side, daemon_side);
    a?;
    b?;
    world.sound()?;
    Ok(())
}

/// What the daemon's application wrote before it closed arrives whole, and
/// the FINs that follow are few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_loses_nothing_and_starts_no_storm() -> Result<()> {
    let world = World::start().await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let data = Pattern::new(9).bytes(512 * 1024 + 77);
    const STREAMS: u64 = 10;
    for _ in 0..STREAMS {
        let mut near = world.daemon_dials(PORT).await?;
        let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
        near.write_all(&data).await?;
        // The published FIN ends both directions, so it waits for this.
        drop(near);
        let received = within("the end at the peer", far.read_to_end()).await??;
        ensure!(received == data, "{} of {} bytes arrived", received.len(), data.len());
    }
    for _ in 0..STREAMS {
        let mut near = world.daemon_dials(PORT).await?;
        let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
        far.write(&data[..16 * 4096]).await?;
        far.close().await;
        let mut received = Vec::new();
        within("the end at the daemon", near.read_to_end(&mut received)).await??;
        ensure!(received == data[..16 * 4096], "{} bytes arrived", received.len());
    }
    // A storm would go on while other things happen.
    let before = world.sound()?;
    for _ in 0..20 {
        world.peer_echo(b"still quiet?").await?;
    }
    eventually("the last streams to be closed", async || {
        let info = world.client.info_json().await.ok()?;
        (info["connections"].as_u64()? == 0).then_some(())
    })
    .await?;
    let after = world.sound()?;
    let fins = |c: &pilot_tests::peer::Counters| c.fins_received + c.fins_sent;
    ensure!(fins(&before) <= STREAMS * 2 * 4, "{before:?}");
    ensure!(fins(&after) - fins(&before) <= 20 * 4, "{before:?} then {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_nobody_listens_on_refuse() -> Result<()> {
    let world = World::start().await?;
    let refused = world.peer.dial(world.node, 4321).await;
    ensure!(matches!(refused, Err(pilot_tests::peer::DialError::Refused)));
    let to = world.peer.address().port(4321);
    let error = within("the refusal", world.client.dial_address(to)).await?.err();
    let error = error.expect("nobody listens there").to_string();
    ensure!(error.contains("refused"), "{error}");
    world.sound()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_and_pings_go_both_ways() -> Result<()> {
    let world = World::start().await?;
    let mut inbox = world.client.datagrams();
    // Each may be lost, as datagrams are.
    let received = eventually("a datagram at the daemon", async || {
        world.peer.send_datagram(world.node, PORT, b"to the daemon").await.ok()?;
        let wait = std::time::Duration::from_millis(300);
        tokio::time::timeout(wait, inbox.recv()).await.ok()?.ok()
    })
    .await?;
    ensure!(
        received.data[..] == b"to the daemon"[..] && received.destination_port == PORT,
        "{received:?}"
    );
    ensure!(received.source.address == world.peer.address(), "{received:?}");
    let to = world.peer.address().port(PORT);
    let received = eventually("a datagram at the peer", async || {
        world.client.send_datagram_to(to, b"to the peer").await.ok()?;
        let wait = std::time::Duration::from_millis(300);
        tokio::time::timeout(wait, world.peer.datagram()).await.ok()?
    })
    .await?;
    ensure!(received.data == b"to the peer" && received.destination_port == PORT);
    ensure!(received.source.address.node == world.node, "{received:?}");
    let before = world.peer.counters().sealed_received;
    eventually("the answer to a ping", async || {
        world.peer.ping(world.node, b"payload").await.ok()?;
        (world.peer.counters().sealed_received > before).then_some(())
    })
    .await?;
    world.sound()?;
    Ok(())
}

/// A published receiver swallows a segment that looks like a SACK list, so the
/// daemon must never send one; and it must not swallow what a published
/// sender sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_looks_like_a_sack_list_is_data() -> Result<()> {
    let world = World::start().await?;
    let mut accepted = world.peer.listen(PORT).await?;
    let mut near = world.daemon_dials(PORT).await?;
    let far = within("the peer to accept", accepted.recv()).await?.expect("the peer runs");
    let list = b"SACK\x01\x00\x00\x10\x01\x00\x00\x20\x01";
    let mut texts: Vec<Vec<u8>> = vec![
        list.to_vec(),
        [&list[..], b" and more"].concat(),
        b"SACK\x04 is what I typed, and some more so that four blocks fit".to_vec(),
        b"SACK".to_vec(),
        list.repeat(1000),
    ];
    texts.push([vec![b'x'; 4096 * 2], list.repeat(400)].concat());
    for text in &texts {
        near.write_all(text).await?;
        near.flush().await?;
        let received = within("it at the peer", far.read_exact(text.len())).await??;
        ensure!(received == *text, "{:?} arrived otherwise", &text[..5]);
    }
    let counters = world.sound()?;
    ensure!(counters.sack_lists_received == 0, "{counters:?}");
    for text in &texts {
        // Exactly a list with blocks that were never sent: data all the same.
        far.write(text).await?;
        let mut received = vec![0; text.len()];
        within("it at the daemon", near.read_exact(&mut received)).await??;
        ensure!(received == *text, "{:?} arrived otherwise", &text[..5]);
    }
    Ok(())
}

/// Frames of the data exchange service as a published sender writes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_exchange_answers_published_frames() -> Result<()> {
    let world = World::start().await?;
    let stream = world.peer_dials(1001).await?;
    let file = [&b"\x00\x0areport.txt"[..], b"file body\n"].concat();
    for (kind, payload, answer) in [
        (1u32, b"hello".to_vec(), "ACK TEXT 5 bytes"),
        (4, file, "ACK FILE 10 bytes"),
        (9, b"A".to_vec(), "ACK UNKNOWN(9) 1 bytes"),
    ] {
        let len = u32::try_from(payload.len())?;
        let frame = [&kind.to_be_bytes()[..], &len.to_be_bytes(), &payload].concat();
        stream.write(&frame).await?;
        let reply = within("the answer", stream.read_exact(8 + answer.len())).await??;
        ensure!(reply[8..] == *answer.as_bytes(), "{:?}", String::from_utf8_lossy(&reply));
        ensure!(reply[..4] == 1u32.to_be_bytes());
    }
    world.sound()?;
    Ok(())
}
