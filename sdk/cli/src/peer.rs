//! Finding a peer by what a person wrote, and opening a stream to it.

use pilot_sdk::{Address, Client, ErrorKind, Host, Stream};

use crate::cx::Cx;
use crate::failure::Failure;

/// The address of `target`: an address, a node number, or a hostname asked
/// through the daemon.
pub(crate) async fn resolve(cx: &Cx, client: &Client, target: &str) -> Result<Address, Failure> {
    let name = match target.parse::<Host>() {
        Ok(Host::Address(address)) => return Ok(address),
        Ok(Host::Name(name)) => name,
        Err(e) => return Err(Failure::invalid(e.to_string())),
    };
    let resolved = match client.resolve(&name).await {
        Ok(resolved) => resolved,
        Err(e) if e.kind() == ErrorKind::Disconnected => {
            return Err(Failure::daemon("resolve", &e));
        }
        Err(e) => {
            return Err(Failure::not_found(format!(
                "cannot resolve {name:?} — is the hostname correct and is there mutual trust? \
                 (see: pilotctl handshake)"
            ))
            .reason(e));
        }
    };
    let address = resolved.address.parse().map_err(|e| {
        Failure::internal(format!("the daemon resolved {name:?} to no address")).reason(e)
    })?;
    cx.out.remark(&format!("resolved {name:?} → {address}"));
    Ok(address)
}

/// A stream to a port of `address`.
pub(crate) async fn dial(client: &Client, address: Address, port: u16) -> Result<Stream, Failure> {
    client.dial_address(address.port(port)).await.map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::Untrusted => {
                format!("establish trust first: pilotctl handshake {} \"reason\"", address.node)
            }
            _ => format!("check that {address} is reachable: pilotctl ping {address}"),
        };
        Failure::connection(format!("cannot connect to {address} port {port}")).reason(e).hint(hint)
    })
}

/// A failure on a stream that stood.
pub(crate) fn broken(address: Address, doing: &str, error: &std::io::Error) -> Failure {
    Failure::connection(format!("{doing} {address} failed"))
        .reason(error)
        .hint(format!("check that {address} is reachable: pilotctl ping {address}"))
}
