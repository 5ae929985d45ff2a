//! A byte stream that is Pilot's, plain TCP or another project's, so that all run
//! the same program.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use pilot_sdk::{Client, Listener};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// What a workload reads and writes.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A stream of any kind.
pub type Stream = Box<dyn Io>;

/// What an asynchronous method of the traits below returns.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Another project's transport, by the name that stands for it on the command
/// line.
pub trait Transport: Send + Sync {
    /// One word, the first of a place.
    fn name(&self) -> &'static str;

    /// Listens on a free port of the loopback address. The word that says where:
    /// `ADDRESS:PORT`, a slash, and what else a client has to know.
    fn listen(&self) -> Answer<'_, (Box<dyn Listen>, String)>;

    /// Connects to such a word; the address may be that of a relay.
    fn connect<'a>(&'a self, place: &'a str) -> Answer<'a, Arc<dyn Dial>>;
}

/// The accepting side of another project's transport.
pub trait Listen: Send {
    /// The next stream of any connection.
    fn accept(&mut self) -> Answer<'_, Stream>;
}

/// A connection of another project's transport.
pub trait Dial: Send + Sync {
    /// A new stream in both directions.
    fn dial(&self) -> Answer<'_, Stream>;

    /// Returns when the search for the path MTU has ended.
    fn settled(&self) -> Answer<'_, ()>;

    /// Says goodbye, so that the server is not left with what it cannot send.
    fn close(&self) -> Answer<'_, ()>;
}

/// Where to listen: `pilot SOCKET PORT`, `tcp`, or another transport's name.
pub(super) enum Acceptor {
    Pilot(Box<Listener>, Client),
    Tcp(TcpListener),
    Other(Box<dyn Listen>),
}

impl Acceptor {
    /// Listens, and says under what.
    pub(super) async fn new(args: &[&str], others: Others<'_>) -> Result<(Self, String)> {
        match args {
            ["pilot", socket, port] => {
                let client = Client::connect_to(socket).await?;
                let listener = client.listen(port.parse()?).await?;
                Ok((Self::Pilot(Box::new(listener), client), (*port).to_owned()))
            }
            ["tcp"] => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let addr = listener.local_addr()?.to_string();
                Ok((Self::Tcp(listener), addr))
            }
            [name] => {
                let (listener, place) = other(others, name)?.listen().await?;
                Ok((Self::Other(listener), place))
            }
            _ => bail!("cannot listen on {args:?}"),
        }
    }

    /// The driver, if this is Pilot.
    pub(super) fn client(&self) -> Option<Client> {
        match self {
            Self::Pilot(_, client) => Some(client.clone()),
            Self::Tcp(_) | Self::Other(_) => None,
        }
    }

    /// The next stream.
    pub(super) async fn accept(&mut self) -> Result<Stream> {
        match self {
            Self::Pilot(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.set_no_delay(true)?;
                Ok(Box::new(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Other(listener) => listener.accept().await,
        }
    }
}

/// Where to connect to: `pilot SOCKET ADDRESS:PORT`, `tcp HOST:PORT`, or another
/// transport's name and what its server said.
#[derive(Clone)]
pub(super) enum Connector {
    Pilot(Client, String),
    Tcp(String),
    Other(Arc<dyn Dial>),
}

impl Connector {
    /// Takes the place from the first words of `args` and returns the others.
    pub(super) async fn new<'a>(
        args: &'a [&'a str],
        others: Others<'_>,
    ) -> Result<(Self, &'a [&'a str])> {
        match args {
            ["pilot", socket, target, rest @ ..] => {
                let client = Client::connect_to(socket).await?;
                Ok((Self::Pilot(client, (*target).to_owned()), rest))
            }
            ["tcp", addr, rest @ ..] => Ok((Self::Tcp((*addr).to_owned()), rest)),
            [name, place, rest @ ..] => {
                Ok((Self::Other(other(others, name)?.connect(place).await?), rest))
            }
            _ => bail!("cannot connect to {args:?}"),
        }
    }

    /// The driver and the target, if this is Pilot.
    pub(super) fn pilot(&self) -> Result<(&Client, &str)> {
        match self {
            Self::Pilot(client, target) => Ok((client, target)),
            Self::Tcp(_) | Self::Other(_) => bail!("this workload needs Pilot"),
        }
    }

    /// Returns when nothing more is found out about the path. Pilot's daemons
    /// do that on their own, and whoever runs them waits for it.
    pub(super) async fn settled(&self) -> Result<()> {
        match self {
            Self::Pilot(..) | Self::Tcp(_) => Ok(()),
            Self::Other(connection) => connection.settled().await,
        }
    }

    /// Ends the connection, where the program has one of its own.
    pub(super) async fn close(&self) -> Result<()> {
        match self {
            Self::Pilot(..) | Self::Tcp(_) => Ok(()),
            Self::Other(connection) => connection.close().await,
        }
    }

    /// A new stream.
    pub(super) async fn connect(&self) -> Result<Stream> {
        match self {
            Self::Pilot(client, target) => {
                let stream = client.dial(target).await.with_context(|| format!("dial {target}"))?;
                stream.set_no_delay(true)?;
                Ok(Box::new(stream))
            }
            Self::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Other(connection) => connection.dial().await,
        }
    }
}

/// The transports besides Pilot and TCP that a program knows.
pub(super) type Others<'a> = &'a [&'a dyn Transport];

/// The transport of a name.
fn other<'a>(others: Others<'a>, name: &str) -> Result<&'a dyn Transport> {
    let found = others.iter().find(|t| t.name() == name);
    found.copied().with_context(|| format!("no transport is called {name}"))
}

/// Time that two processes of this machine can compare.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
