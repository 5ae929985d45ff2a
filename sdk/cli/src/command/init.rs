//! `init`: writes the configuration.

use serde_json::json;

use crate::args::Args;
use crate::cx::{Cx, DEFAULT_BEACON, DEFAULT_REGISTRY};
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "init",
    usage: "init [--registry <addr>] [--beacon <addr>] [--hostname <name>] [--socket <path>]",
    about: "Write the configuration",
    returns: "config_path, registry, beacon, socket, hostname",
    flags: &[
        Flag::value("registry", "addr", "host:port of the registry, default 127.0.0.1:9000"),
        Flag::value("beacon", "addr", "host:port of the beacon, default 127.0.0.1:9001"),
        Flag::value("hostname", "name", "name of this node"),
    ],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    // Keys of others are kept.
    let mut config = cx.home.config()?;
    let socket = cx.socket_flag.as_deref().unwrap_or(pilot_wire::ipc::DEFAULT_SOCKET);
    let hostname = args.value("hostname").unwrap_or_default();
    let values = [
        ("registry", args.value("registry").unwrap_or(DEFAULT_REGISTRY)),
        ("beacon", args.value("beacon").unwrap_or(DEFAULT_BEACON)),
        ("socket", socket),
        ("hostname", hostname),
    ];
    let path = cx.home.config_path();
    let mut data = json!({ "config_path": path });
    for (key, value) in values {
        data[key] = json!(value);
        if value.is_empty() {
            config.remove(key);
        } else {
            config.insert(key.to_owned(), json!(value));
        }
    }
    cx.home.save_config(&config)?;
    Ok(Answer::new(data, format!("wrote {}", path.display())))
}
