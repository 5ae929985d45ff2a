//! quinn with its default transport configuration and a certificate made for
//! the run, which the client is told and trusts alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pilot_tests::bench::{Answer, Dial, Listen, Stream, Transport};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::both;

/// The name in the certificate.
const NAME: &str = "localhost";
/// No path MTU probe was sent for this long: the search has ended.
const SETTLED: Duration = Duration::from_millis(1200);
/// It takes this long at most.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Accepted streams that wait; a connection with more waits with them.
const WAITING: usize = 64;

pub(crate) struct Quinn;

impl Transport for Quinn {
    fn name(&self) -> &'static str {
        "quinn"
    }

    fn listen(&self) -> Answer<'_, (Box<dyn Listen>, String)> {
        Box::pin(async {
            let own = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
            let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
            let certificate = own.cert.der().clone();
            let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
            let endpoint = Endpoint::server(config, any())?;
            let place = format!("{}/{}", endpoint.local_addr()?, hex::encode(&certificate));
            let (sender, streams) = mpsc::channel(WAITING);
            tokio::spawn(accept(endpoint, sender));
            let listener: Box<dyn Listen> = Box::new(Listener { streams });
            Ok((listener, place))
        })
    }

    fn connect<'a>(&'a self, place: &'a str) -> Answer<'a, Arc<dyn Dial>> {
        Box::pin(async move {
            let (address, certificate) = place.split_once('/').context("no certificate")?;
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(hex::decode(certificate)?))?;
            let mut endpoint = Endpoint::client(any())?;
            endpoint.set_default_client_config(ClientConfig::with_root_certificates(roots.into())?);
            let connection = endpoint.connect(address.parse()?, NAME)?.await?;
            let client: Arc<dyn Dial> = Arc::new(Client { endpoint, connection });
            Ok(client)
        })
    }
}

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
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

    fn settled(&self) -> Answer<'_, ()> {
        Box::pin(settled(&self.connection))
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.connection.close(0u32.into(), b"");
            self.endpoint.wait_idle().await;
            Ok(())
        })
    }
}

async fn settled(connection: &Connection) -> Result<()> {
    let started = Instant::now();
    let (mut probes, mut since) = (0, Instant::now());
    while since.elapsed() < SETTLED {
        ensure!(started.elapsed() < SETTLE_LIMIT, "path MTU probes do not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = connection.stats().path.sent_plpmtud_probes;
        if now != probes {
            (probes, since) = (now, Instant::now());
        }
    }
    eprintln!("path MTU {} after {probes} probes", connection.stats().path.current_mtu);
    Ok(())
}
