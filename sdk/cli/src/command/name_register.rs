//! `name-register`: registers a name at a nameserver.

use pilot_sdk::{Address, Client};
use pilot_wire::service::nameserver::{Answer as Said, RECORD_LIFE, Request, Service};
use serde_json::json;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;
use crate::{nameserver, peer};

pub(crate) const SPEC: Spec = Spec {
    name: "name-register",
    usage: "name-register <nameserver> A <name> [address] | N <name> <network> | S <name> <network> <port> [address]",
    about: "Register a name of this node (A), a network (N) or a service (S) at a nameserver",
    returns: "nameserver, record, name, lives_secs; A: address; N: network; S: address, network, port",
    flags: &[],
    positionals: (3, 6),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let record = args.at(1)?.to_uppercase();
    let most = match record.as_str() {
        "A" | "N" => 4,
        "S" => 6,
        _ => return Err(nameserver::unknown_record(args.at(1)?)),
    };
    if args.all().len() > most {
        return Err(args.usage());
    }
    let name = nameserver::name(args.at(2)?)?;
    let network = || number("network", args.at(3)?);
    let port = || number("port", args.at(4)?);
    // Checked before anybody is asked.
    let (network, port): (u16, u16) = match record.as_str() {
        "A" => (0, 0),
        "N" => (network()?, 0),
        _ => (network()?, port()?),
    };
    let client = cx.client().await?;
    let server = peer::resolve(cx, &client, args.at(0)?).await?;
    let request = match record.as_str() {
        "A" => Request::RegisterA { name, address: address(&client, args.get(3)).await? },
        "N" => Request::RegisterN { name, network },
        _ => {
            let address = address(&client, args.get(5)).await?;
            Request::RegisterS(Service { name, address, network, port })
        }
    };
    let mut data = match &request {
        Request::RegisterA { name, address } => json!({"name": name, "address": address}),
        Request::RegisterS(s) => {
            json!({"name": s.name, "address": s.address, "network": s.network, "port": s.port})
        }
        Request::RegisterN { name, network } => json!({"name": name, "network": network}),
        _ => json!({}),
    };
    let Said::Ok = nameserver::ask(&client, server, &request).await? else {
        return Err(nameserver::unexpected(server));
    };
    data["nameserver"] = json!(server);
    data["record"] = json!(record);
    data["lives_secs"] = json!(RECORD_LIFE.as_secs());
    let text = format!(
        "registered {} at {server} for {} minutes",
        args.at(2)?,
        RECORD_LIFE.as_secs() / 60
    );
    Ok(Answer::new(data, text))
}

/// What was written, or the own address.
async fn address(client: &Client, text: Option<&str>) -> Result<Address, Failure> {
    if let Some(text) = text {
        return text.parse().map_err(|e| Failure::invalid(format!("{e}")));
    }
    let info = client.info().await.map_err(|e| Failure::daemon("info", &e))?;
    info.address.parse().map_err(|_| {
        Failure::connection("the daemon is not registered yet, so it has no address")
            .hint("check the registry: pilotctl daemon status")
    })
}
