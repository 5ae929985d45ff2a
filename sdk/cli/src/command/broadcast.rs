//! `broadcast`: one datagram to every member of a network.

use pilot_sdk::{Address, Client, ErrorKind, NodeId};
use pilot_wire::registry::network::NetworkRef;
use pilot_wire::registry::{Extended, NetworkViews};
use serde_json::json;

use super::network;
use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::registry::Asker;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "broadcast",
    usage: "broadcast <network> <port> <message>",
    about: "Send a datagram to every member of a network; listen shows it",
    returns: "network, port, bytes",
    flags: &[],
    positionals: (3, 3),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let (wanted, message) = (network::named(args.at(0)?), args.at(2)?);
    let port: u16 = number("port", args.at(1)?)?;
    let client = cx.client().await?;
    let network = locate(&client, wanted).await?;
    let to = Address { network, node: NodeId::BROADCAST }.port(port);
    let failed = |e: pilot_sdk::Error| match e.kind() {
        ErrorKind::NotFound => Failure::not_found(format!("broadcast: {e}"))
            .hint("join it first: pilotctl network join, or see: pilotctl network status"),
        _ => Failure::daemon("broadcast", &e),
    };
    client.send_datagram_to(to, message.as_bytes()).await.map_err(failed)?;
    // The daemon says nothing of a datagram that it takes. Once it has answered
    // what was asked after it, it has also said why it did not take it.
    client.info_json().await.map_err(failed)?;
    if let Some(error) = client.datagram_error() {
        return Err(failed(error));
    }
    let text = format!("{} bytes to port {port} of network {network}", message.len());
    Ok(Answer::new(json!({"network": network, "port": port, "bytes": message.len()}), text))
}

/// The number of a network.
async fn locate(client: &Client, wanted: NetworkRef) -> Result<u16, Failure> {
    let name = match wanted {
        NetworkRef::Id(id) => return Ok(id),
        NetworkRef::Name(name) => name,
    };
    let mut asker = Asker::Node(client.clone());
    let (_, views) = asker.ask::<NetworkViews>("broadcast", Extended::NetworkList {}).await?;
    views.networks.into_iter().find(|n| n.name == name).map(|n| n.id).ok_or_else(|| {
        Failure::not_found(format!("there is no network {name}")).hint("see: pilotctl network list")
    })
}
