//! A byte stream that is either Pilot's or plain TCP, so that both run the same
//! program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use pilot_sdk::{Client, Listener};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// What a workload reads and writes.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A stream of either kind.
pub(super) type Stream = Box<dyn Io>;

/// Where to listen: `pilot SOCKET PORT` or `tcp`.
pub(super) enum Acceptor {
    Pilot(Box<Listener>, Client),
    Tcp(TcpListener),
}

impl Acceptor {
    /// Listens, and says under what.
    pub(super) async fn new(args: &[&str]) -> Result<(Self, String)> {
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
            _ => bail!("cannot listen on {args:?}"),
        }
    }

    /// The driver, if this is Pilot.
    pub(super) fn client(&self) -> Option<Client> {
        match self {
            Self::Pilot(_, client) => Some(client.clone()),
            Self::Tcp(_) => None,
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
        }
    }
}

/// Where to connect to: `pilot SOCKET ADDRESS:PORT` or `tcp HOST:PORT`.
#[derive(Clone)]
pub(super) enum Connector {
    Pilot(Client, String),
    Tcp(String),
}

impl Connector {
    /// Takes the place from the first words of `args` and returns the others.
    pub(super) async fn new<'a>(args: &'a [&'a str]) -> Result<(Self, &'a [&'a str])> {
        match args {
            ["pilot", socket, target, rest @ ..] => {
                let client = Client::connect_to(socket).await?;
                Ok((Self::Pilot(client, (*target).to_owned()), rest))
            }
            ["tcp", addr, rest @ ..] => Ok((Self::Tcp((*addr).to_owned()), rest)),
            _ => bail!("cannot connect to {args:?}"),
        }
    }

    /// The driver and the target, if this is Pilot.
    pub(super) fn pilot(&self) -> Result<(&Client, &str)> {
        match self {
            Self::Pilot(client, target) => Ok((client, target)),
            Self::Tcp(_) => bail!("this workload needs Pilot"),
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
        }
    }
}

/// Time that two processes of this machine can compare.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
