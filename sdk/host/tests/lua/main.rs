//! Scripts, through the interface that the manager uses.

#[path = "../support/mod.rs"]
mod support;

mod api;
mod declaration;
mod docs;
mod hostile;
mod life;
mod ready;
mod tool;

use std::sync::Arc;

use pilot_host::{Instance, Limits, open_lua_source};
use serde_json::Value;
use support::{World, any_stream};

/// A running script.
pub(crate) struct Script {
    pub(crate) world: Arc<World>,
    pub(crate) instance: Arc<dyn Instance>,
}

/// Runs `source` with small limits, `config` and `granted`.
pub(crate) fn run(source: &str, config: Value, granted: &[&str]) -> Script {
    run_with(source, config, granted, limits())
}

pub(crate) fn run_with(source: &str, config: Value, granted: &[&str], limits: Limits) -> Script {
    let backend = open_lua_source("test.lua", source.as_bytes()).unwrap();
    let world = World::new();
    let instance = backend.start(&config, world.context("test", limits, granted)).unwrap();
    Script { world, instance }
}

/// Limits that hostile scripts reach soon.
pub(crate) fn limits() -> Limits {
    Limits {
        callback: std::time::Duration::from_millis(200),
        memory: 16 << 20,
        ..Limits::default()
    }
}

impl Script {
    /// What the service answers to `input` and an end.
    pub(crate) fn answer(&self, input: &str) -> String {
        let (near, far) = any_stream();
        self.instance.open(near);
        far.send(input.as_bytes().to_vec());
        far.end();
        far.receive_text()
    }
}

/// A service whose `serve` has this body.
pub(crate) fn service(body: &str) -> String {
    format!(
        "return {{ kind = \"service\", port = 2000, serve = function(stream, peer)\n{body}\nend }}"
    )
}

/// What a service with this body answers to `input`.
pub(crate) fn answer(body: &str, input: &str) -> String {
    run(&service(body), Value::Null, &[]).answer(input)
}
