//! `resolve`: asks a nameserver.

use pilot_wire::service::nameserver::{Answer as Said, Request};
use serde_json::{Value, json};

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::Spec;
use crate::{nameserver, peer};

pub(crate) const SPEC: Spec = Spec {
    name: "resolve",
    usage: "resolve <nameserver> A <name> | N <name> | S <network> <port>",
    about: "Ask a nameserver for an address (A), a network (N) or services (S)",
    returns: "nameserver, record; A: name, address; N: name, network; S: network, port, services (name, address, port)",
    flags: &[],
    positionals: (3, 4),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let record = args.at(1)?.to_uppercase();
    let request = match record.as_str() {
        "A" | "N" if args.get(3).is_some() => return Err(args.usage()),
        "A" => Request::QueryA { name: nameserver::name(args.at(2)?)? },
        "N" => Request::QueryN { name: nameserver::name(args.at(2)?)? },
        "S" => Request::QueryS {
            network: number("network", args.at(2)?)?,
            port: number("port", args.at(3)?)?,
        },
        _ => return Err(nameserver::unknown_record(args.at(1)?)),
    };
    let client = cx.client().await?;
    let server = peer::resolve(cx, &client, args.at(0)?).await?;
    let answer = nameserver::ask(&client, server, &request).await?;
    let (mut data, text) = match (&request, answer) {
        (Request::QueryA { .. }, Said::A { name, address }) => {
            (json!({"name": name, "address": address}), address.to_string())
        }
        (Request::QueryN { .. }, Said::N { name, network }) => {
            (json!({"name": name, "network": network}), network.to_string())
        }
        (Request::QueryS { network, port }, Said::S(services)) => {
            let rows: Vec<Vec<String>> = services
                .iter()
                .map(|s| vec![printable_line(&s.name), s.address.to_string(), s.port.to_string()])
                .collect();
            let text = match rows.is_empty() {
                true => "no services".to_owned(),
                false => cx.out.table(&["NAME", "ADDRESS", "PORT"], &rows),
            };
            let services: Vec<Value> = services
                .iter()
                .map(|s| json!({"name": s.name, "address": s.address, "port": s.port}))
                .collect();
            (json!({"network": network, "port": port, "services": services}), text)
        }
        _ => return Err(nameserver::unexpected(server)),
    };
    data["nameserver"] = json!(server);
    data["record"] = json!(record);
    Ok(Answer::new(data, text))
}
