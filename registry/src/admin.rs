//! The administration's HTTP server: listening, connections, an orderly end.
//! What is answered is the business of `route` and what is below it.
//!
//! Bounds: [`CONNECTIONS`] at a time, [`PER_SOURCE`] of one address, further
//! ones are closed at once; [`HEADER_LIMIT`] for the head of a request, also for
//! the next one on a connection that is kept; [`HEADER_BYTES`] of it; a client
//! that does not read what it asked for is cut off by `patience`.

mod access;
mod answer;
mod counts;
mod health;
mod live;
mod networks;
mod nodes;
mod page;
mod patience;
mod published;
mod query;
mod request;
mod route;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::denials::Denials;
use crate::plugins::Plugins;
use crate::push::Hub;
use crate::service::Service;
use crate::tls::Door;
use crate::writer::Writer;
use access::Failures;
use patience::Patient;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// Of these, from one address that is not this machine's.
const PER_SOURCE: usize = 64;
/// Time for the head of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(15);
/// Size of the head of a request.
const HEADER_BYTES: usize = 32 * 1024;
/// Pause after a failed accept, which is about lack of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests in flight get so long at the end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Listeners of live events at a time.
const LISTENERS: usize = 16;

/// Everything that answers come from.
pub(crate) struct Site {
    service: Arc<Service>,
    writer: Writer,
    hub: Hub,
    denials: Denials,
    plugins: Plugins,
    counts: counts::Cache,
    stats: published::Cache,
    failures: Failures,
    listeners: Arc<Semaphore>,
    page: page::Page,
    /// When a store that failed was last tried.
    probed: Mutex<Option<Instant>>,
    stop: watch::Receiver<bool>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Peer {
    source: SocketAddr,
    /// Of its certificate.
    name: Option<String>,
}

impl Site {
    /// Answers until `stop` says so.
    pub(crate) fn new(
        service: Arc<Service>,
        writer: Writer,
        hub: Hub,
        denials: Denials,
        plugins: Plugins,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            service,
            writer,
            hub,
            denials,
            plugins,
            counts: counts::Cache::default(),
            stats: published::Cache::default(),
            failures: Failures::default(),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
            page: page::Page::new(),
            probed: Mutex::default(),
            stop,
        }
    }
}

/// Serves until the site is stopped; then requests in flight are finished.
pub(crate) async fn run(listener: TcpListener, site: Site, door: Option<Arc<Door>>) {
    let mut stop = site.stop.clone();
    let site = Arc::new(site);
    let places = Arc::new(Places::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => {
                    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
                    let Some(place) = Places::take(&places, source.ip()) else {
                        tracing::debug!(%source, "connection of the administration refused: \
                            there are too many");
                        continue;
                    };
                    let serve = connection(stream, source, Arc::clone(&site), door.clone());
                    connections.spawn(async move {
                        serve.await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!("accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let end = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(END_LIMIT, end).await.is_err() {
        tracing::warn!("connections of the administration still open are cut off");
    }
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    source: SocketAddr,
    site: Arc<Site>,
    door: Option<Arc<Door>>,
) {
    // Costs latency only if it fails.
    let _ = stream.set_nodelay(true);
    let Some(door) = door else {
        return serve(stream, Peer { source, name: None }, site).await;
    };
    match door.open(stream).await {
        Ok(stream) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let leaf = certificates.and_then(<[_]>::first);
            let name = leaf.map(access::certificate_name);
            serve(stream, Peer { source, name }, site).await;
        }
        Err(refused) => {
            site.service.metrics().connections.failed_handshakes.fetch_add(1, Relaxed);
            door.log(source, &refused);
        }
    }
}

async fn serve<S>(stream: S, peer: Peer, site: Arc<Site>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stop = site.stop.clone();
    let source = peer.source;
    let service = service_fn(|request| {
        let (site, peer) = (Arc::clone(&site), peer.clone());
        async move { Ok::<_, Infallible>(route::answer(&site, &peer, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(HEADER_BYTES);
    let connection = http.serve_connection(TokioIo::new(Patient::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%source, "connection of the administration: {e}");
    }
}

/// Places for connections.
#[derive(Debug, Default)]
struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    sources: HashMap<IpAddr, usize>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
struct Place(Arc<Places>, IpAddr);

impl Places {
    fn take(places: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut taken = places.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = taken.sources.get(&source).copied().unwrap_or_default();
        if taken.all >= CONNECTIONS || (of_source >= PER_SOURCE && !source.is_loopback()) {
            return None;
        }
        taken.all += 1;
        taken.sources.insert(source, of_source + 1);
        Some(Place(Arc::clone(places), source))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(of_source) = taken.sources.get_mut(&self.1) {
            *of_source -= 1;
            if *of_source == 0 {
                taken.sources.remove(&self.1);
            }
        }
    }
}

/// Answers when the site ends.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that whoever would stop it is gone.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Whether what is sent to `addr` over plain HTTP can be read on the way.
pub(crate) fn is_exposed(addr: SocketAddr) -> bool {
    !addr.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_places() {
        let places = Arc::new(Places::default());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held: Vec<_> = (0..100).map_while(|_| Places::take(&places, one)).collect();
        assert_eq!(held.len(), PER_SOURCE);
        held.push(Places::take(&places, other).unwrap());
        let local = IpAddr::from([127, 0, 0, 1]);
        held.extend((0..CONNECTIONS).map_while(|_| Places::take(&places, local)));
        assert_eq!(held.len(), CONNECTIONS);
        assert!(Places::take(&places, other).is_none());
        drop(held);
        assert!(places.0.lock().unwrap().sources.is_empty());
    }
}
