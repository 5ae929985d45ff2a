//! iroh over a direct path on the loopback address: no relay, no address
//! lookup, no port mapping, nothing that leaves the machine.

use std::sync::Arc;

use anyhow::{Context, Result};
use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use pilot_tests::bench::{Answer, Dial, Listen, Stream, Transport};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::both;

const ALPN: &[u8] = b"pilot-bench/0";
/// Accepted streams that wait; a connection with more waits with them.
const WAITING: usize = 64;

pub(crate) struct Iroh;

impl Transport for Iroh {
    fn name(&self) -> &'static str {
        "iroh"
    }

    fn listen(&self) -> Answer<'_, (Box<dyn Listen>, String)> {
        Box::pin(async {
            let endpoint = endpoint().await?;
            let sockets = endpoint.bound_sockets();
            let address = sockets.first().context("iroh has bound no socket")?;
            let place = format!("{address}/{}", endpoint.id());
            let (sender, streams) = mpsc::channel(WAITING);
            tokio::spawn(accept(endpoint, sender));
            let listener: Box<dyn Listen> = Box::new(Listener { streams });
            Ok((listener, place))
        })
    }

    fn connect<'a>(&'a self, place: &'a str) -> Answer<'a, Arc<dyn Dial>> {
        Box::pin(async move {
            let (address, id) = place.split_once('/').context("no endpoint ID")?;
            let there = EndpointAddr::new(id.parse()?).with_ip_addr(address.parse()?);
            let endpoint = endpoint().await?;
            let connection = endpoint.connect(there, ALPN).await?;
            let client: Arc<dyn Dial> = Arc::new(Client { endpoint, connection });
            Ok(client)
        })
    }
}

async fn endpoint() -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")?
        .alpns(vec![ALPN.to_vec()]);
    Ok(builder.bind().await?)
}

async fn accept(endpoint: Endpoint, streams: Sender<Stream>) {
    while let Some(incoming) = endpoint.accept().await {
        let streams = streams.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            // Until the client goes or nobody accepts any more.
            while let Ok((send, receive)) = connection.accept_bi().await {
                if streams.send(both(receive, send)).await.is_err() {
                    return;
                }
            }
        });
    }
}

struct Listener {
    streams: Receiver<Stream>,
}

impl Listen for Listener {
    fn accept(&mut self) -> Answer<'_, Stream> {
        Box::pin(async { self.streams.recv().await.context("the endpoint is closed") })
    }
}

struct Client {
    endpoint: Endpoint,
    connection: Connection,
}

impl Dial for Client {
    fn dial(&self) -> Answer<'_, Stream> {
        Box::pin(async {
            let (send, receive) = self.connection.open_bi().await?;
            Ok(both(receive, send))
        })
    }

    /// The path is the loopback interface, and what there is to find out counts.
    fn settled(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.endpoint.close().await;
            Ok(())
        })
    }
}
