//! How fast scripts are in this process: `cargo run --release -p pilot-host
//! --example lua_speed`. Prints; asserts nothing.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_host::{BoxFuture, Instance, Limits, open_lua_source};
use serde_json::Value;
use support::{World, any_stream, request};

const ECHO: &str = "return { kind = 'service', port = 7, serve = function(stream)
  while true do
    local data = stream:read()
    if not data then return end
    stream:write(data)
  end
end }";
const RULE: &str = "return { kind = 'rule', validate = function(request)
  return request.owner == 'ann', 'not ann'
end }";
/// How long each is measured.
const MEASURED: Duration = Duration::from_secs(3);

fn start(source: &str) -> Arc<dyn Instance> {
    let backend = open_lua_source("speed.lua", source.as_bytes()).unwrap();
    backend.start(&Value::Null, World::new().context("speed", Limits::default(), &[])).unwrap()
}

fn main() {
    for piece in [1_200, 16 << 10, 64 << 10, 128 << 10] {
        echo(piece);
    }
    for in_flight in [1, 16, 256] {
        validate(in_flight);
    }
}

fn echo(size: usize) {
    let instance = start(ECHO);
    let (near, far) = any_stream();
    instance.open(near);
    let piece = Bytes::from(vec![7u8; size]);
    let begin = Instant::now();
    let received: usize = std::thread::scope(|scope| {
        scope.spawn(|| {
            while begin.elapsed() < MEASURED {
                far.send_when_room(piece.clone(), 64);
            }
            far.end();
        });
        let mut received = 0;
        while begin.elapsed() < MEASURED {
            received += far.receive(size).len();
        }
        far.receive_all();
        received
    });
    let rate = received as f64 / begin.elapsed().as_secs_f64() / 1e6;
    let cpu = instance.stats().cpu.as_secs_f64() / received as f64 * 1e9;
    println!(
        "echo, pieces of {size:>6} bytes: {rate:>7.0} MB/s, {cpu:.2} ns of the script's thread per byte"
    );
}

fn validate(in_flight: usize) {
    let instance = start(RULE);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let begin = Instant::now();
    let mut answered = 0u64;
    runtime.block_on(async {
        let mut waiting: VecDeque<BoxFuture<_>> = VecDeque::new();
        while begin.elapsed() < MEASURED {
            while waiting.len() < in_flight {
                waiting.push_back(instance.validate(request("speed")));
            }
            // Half of them, so that those that wait come as a batch.
            for _ in 0..in_flight.div_ceil(2) {
                waiting.pop_front().unwrap().await.unwrap();
                answered += 1;
            }
        }
    });
    let rate = answered as f64 / begin.elapsed().as_secs_f64();
    println!("validate, {in_flight:>3} at a time: {rate:>8.0} a second");
}
