//! Echo, and streams that services dial.

use super::*;

#[test]
fn echo_gives_everything_back() {
    run_test(async {
        let (a, b) = pair().await;
        let mut client = a.client().await;
        let id = client.dial(b.at(7)).await;
        let data = pattern(8 << 20, 2);
        let hash = sha256(&data);
        let TestClient { reader, writer, .. } = &mut client;
        let sending = send_all(writer, id, &data);
        let receiving = async {
            let mut hash = Sha256::new();
            let mut got = 0;
            while got < 8 << 20 {
                let message = reader.next().await.unwrap();
                let Event::Receive { data, .. } = message.event() else { panic!() };
                got += data.len();
                hash.update(data);
            }
            <[u8; 32]>::from(hash.finalize())
        };
        let (_, got) = tokio::join!(sending, receiving);
        assert_eq!(got, hash);
    });
}

#[test]
fn a_service_can_dial_and_is_refused_like_anybody() {
    run_test(async {
        let (a, b) = pair().await;
        let mut stream = a.handle.dial(b.at(7)).await.unwrap();
        assert_eq!(stream.remote(), b.at(7));
        stream.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut got).await.unwrap(), 0);

        let refused = a.handle.dial(b.at(999)).await.err();
        assert_eq!(refused, Some(pilot_core::DialFailure::Refused.into()));
        let unknown = a.handle.dial(Address::backbone(NodeId(9)).port(7)).await.err();
        assert_eq!(unknown, Some(pilot_core::DialFailure::Unresolved.into()));
    });
}

#[test]
fn a_stranger_reaches_nothing() {
    run_test(async {
        let (a, b) = pair().await;
        a.handle.dial(b.at(7)).await.unwrap();
        b.handle.set_permission(a.id, Permission::Stranger).await;
        let mut client = a.client().await;
        client.tell(&Command::Dial { to: b.at(7) }).await;
        // Silence, not refusal: the port's existence is not told.
        let info = loop {
            let info = b.info().await;
            if info["refused"]["untrusted"].as_u64().unwrap() > 0 {
                break info;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(info["connections"], 0);
    });
}
