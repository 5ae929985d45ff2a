//! `script check` and `script run`: a script without a daemon. The network, the
//! store and the host's methods are stand-ins; HTTP is real, where it is
//! granted.
//!
//! Exit status: 0 it worked, 1 the script or its configuration is wrong, 2
//! wrong usage.

mod stand_in;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Verdict};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};

use crate::instance::{Backend, Context, Instance, Limits};
use crate::lua::open_lua;
use stand_in::StandIn;

const USAGE: &str = "usage: script check FILE [--config JSON] [--json]
       script run FILE --input TEXT|@FILE [--config JSON] [--peer ADDRESS]
                  [--grant NAME]... [--timeout SECONDS] [--json]";
/// Seconds for a run, unless told otherwise.
const TIMEOUT: f64 = 30.0;
/// The peer, unless told otherwise.
const PEER: SocketAddress =
    SocketAddress { address: Address { network: 0, node: NodeId(2) }, port: 49_152 };

/// Runs the tool on the words after `script`; gives the exit status.
pub fn main(words: Vec<String>) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("error: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // What a script logs goes where it does not mix with what it writes.
    let log = tracing_subscriber::fmt()
        .with_env_filter("warn,pilot::script=debug")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    // There may be one already, where this is not called by a program of ours.
    let _ = tracing::subscriber::set_global_default(log);
    match options.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) if options.json => {
            let code = "invalid_argument";
            eprintln!("{}", json!({"status": "error", "code": code, "message": reason}));
            ExitCode::FAILURE
        }
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq)]
struct Options {
    run: bool,
    file: String,
    config: Option<Value>,
    input: Vec<u8>,
    peer: SocketAddress,
    grants: Vec<String>,
    timeout: Duration,
    json: bool,
}

impl Options {
    fn parse(words: Vec<String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let run = match words.next().as_deref() {
            Some("check") => false,
            Some("run") => true,
            Some(other) => return Err(format!("there is no `script {other}`")),
            None => return Err("`script` needs `check` or `run`".into()),
        };
        let (mut file, mut input, mut config) = (None, None, None);
        let (mut peer, mut grants, mut seconds, mut json) = (PEER, Vec::new(), TIMEOUT, false);
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => {
                    (name.to_owned(), Some(value.to_owned()))
                }
                _ => (word, None),
            };
            if !name.starts_with("--") {
                if file.replace(name).is_some() {
                    return Err("one script at a time".into());
                }
                continue;
            }
            if name == "--json" {
                json = true;
                continue;
            }
            let known = if run {
                &["--config", "--input", "--peer", "--grant", "--timeout"][..]
            } else {
                &["--config"]
            };
            if !known.contains(&name.as_str()) {
                return Err(format!("unknown flag {name}; there are {}", known.join(", ")));
            }
            let value = match value {
                Some(value) => value,
                None => words.next().ok_or_else(|| format!("{name} needs a value"))?,
            };
            match name.as_str() {
                "--config" => {
                    let value = serde_json::from_str(&value);
                    config = Some(value.map_err(|e| format!("--config is not JSON: {e}"))?);
                }
                "--input" => input = Some(read_input(&value)?),
                "--peer" => peer = parse_peer(&value)?,
                "--grant" => grants.extend(value.split(',').map(str::to_owned)),
                _ => {
                    seconds = value
                        .parse()
                        .ok()
                        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
                        .ok_or_else(|| format!("--timeout {value:?} is no number of seconds"))?;
                }
            }
        }
        let file = file.ok_or("no script was named")?;
        if run && input.is_none() {
            return Err("`script run` needs --input: a text, or @ and the name of a file".into());
        }
        let timeout = Duration::from_secs_f64(seconds);
        let input = input.unwrap_or_default();
        Ok(Self { run, file, config, input, peer, grants, timeout, json })
    }

    fn execute(&self) -> Result<(), String> {
        let backend = open_lua(Path::new(&self.file)).map_err(|e| e.to_string())?;
        let manifest = backend.manifest();
        let config = self.config.clone().unwrap_or_else(|| Value::Object(Map::new()));
        if self.run || self.config.is_some() {
            check_config(manifest, &config)?;
        }
        if self.run {
            return self.try_it(&*backend, &config);
        }
        if self.config.is_some() {
            let world = StandIn::new();
            backend.start(&config, self.context(manifest, &world)).map_err(|e| e.to_string())?;
        }
        if self.json {
            println!("{}", json!({"status": "ok", "data": manifest}));
        } else {
            println!("{}", described(&self.file, manifest));
        }
        Ok(())
    }

    fn context(&self, manifest: &Manifest, world: &Arc<StandIn>) -> Context {
        let limits = Limits { validate: self.timeout, deliver: self.timeout, ..Limits::default() };
        Context {
            name: manifest.name.as_str().into(),
            generation: 1,
            platform: Arc::clone(world) as _,
            store: Arc::clone(world) as _,
            observer: Arc::clone(world) as _,
            limits,
            granted: self.grants.clone().into(),
        }
    }

    fn try_it(&self, backend: &dyn Backend, config: &Value) -> Result<(), String> {
        let manifest = backend.manifest();
        let world = StandIn::new();
        let instance =
            backend.start(config, self.context(manifest, &world)).map_err(|e| e.to_string())?;
        let (key, shown, text) = if let Some(service) = manifest.services.first() {
            let port = service.ports.first().copied().unwrap_or(0);
            let output = self.serve(&*instance, &world, port)?;
            let text = String::from_utf8_lossy(&output).into_owned();
            ("output", json!(text), Shown::Bytes(output))
        } else if let Some(rule) = manifest.rules.first() {
            let request = self.request(&rule.name)?;
            let verdict = block_on(instance.validate(request)).map_err(|e| e.to_string())?;
            ("verdict", json!(verdict), Shown::Line(say_verdict(&verdict)))
        } else {
            let name = manifest.sinks.first().map_or("", |sink| &sink.name);
            let batch = Batch { sink: name.into(), lines: self.events()? };
            let delivery = block_on(instance.deliver(batch)).map_err(|e| e.to_string())?;
            ("delivery", json!(delivery), Shown::Line(say_delivery(&delivery)))
        };
        if self.json {
            let mut data = Map::new();
            data.insert(key.into(), shown);
            data.insert("events".into(), json!(world.events()));
            println!("{}", json!({"status": "ok", "data": data}));
            return Ok(());
        }
        for event in world.events() {
            eprintln!("event {event}");
        }
        match text {
            Shown::Line(line) => println!("{line}"),
            Shown::Bytes(bytes) => {
                use std::io::Write as _;
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush()).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    fn serve(
        &self,
        instance: &dyn Instance,
        world: &StandIn,
        port: u16,
    ) -> Result<Vec<u8>, String> {
        let (stream, outcome) = stand_in::stream(self.peer, port, self.input.clone().into());
        instance.open(stream);
        match outcome.wait(self.timeout) {
            None => Err(format!(
                "the script did not end its stream within {} s (--timeout)",
                self.timeout.as_secs_f64()
            )),
            Some((output, None)) => Ok(output),
            Some((_, Some(reason))) => Err(world.failure(self.timeout).unwrap_or(reason)),
        }
    }

    /// The input as a join request; what it does not say is made up.
    fn request(&self, rule: &str) -> Result<JoinRequest, String> {
        let wrong = |e: serde_json::Error| format!("--input is no join request: {e}");
        let input: Map<String, Value> = if self.input.trim_ascii().is_empty() {
            Map::new()
        } else {
            serde_json::from_slice(&self.input).map_err(wrong)?
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut request = json!({
            "rule": rule,
            "network": 1,
            "network_name": "test",
            "node": self.peer.address.node,
            "address": self.peer.address,
            "public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "source": "127.0.0.1",
            "at_ms": now.map_or(0, |now| now.as_millis() as u64),
        });
        if let Value::Object(request) = &mut request {
            request.extend(input);
        }
        serde_json::from_value(request).map_err(wrong)
    }

    /// The input as events, one a line; what an event does not say is made up.
    fn events(&self) -> Result<String, String> {
        let wrong = |e: serde_json::Error| format!("--input is no list of events: {e}");
        let input = self.input.trim_ascii();
        let events: Vec<Map<String, Value>> = if input.starts_with(b"[") {
            serde_json::from_slice(input).map_err(wrong)?
        } else {
            let lines = input.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty());
            lines.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(wrong)?
        };
        let mut text = String::new();
        for (number, event) in (1u64..).zip(events) {
            let mut whole = Map::new();
            whole.insert("event".into(), json!("test.event"));
            whole.insert("node_id".into(), json!(1));
            whole.insert("timestamp".into(), json!("2026-01-01T00:00:00.000000000Z"));
            whole.insert("event_id".into(), json!(number));
            whole.extend(event);
            text.push_str(&Value::Object(whole).to_string());
            text.push('\n');
        }
        Ok(text)
    }
}

enum Shown {
    Line(String),
    Bytes(Vec<u8>),
}

fn read_input(value: &str) -> Result<Vec<u8>, String> {
    match value.strip_prefix('@') {
        Some(path) => fs::read(path).map_err(|e| format!("--input {path}: {e}")),
        None => Ok(value.as_bytes().to_vec()),
    }
}

fn parse_peer(text: &str) -> Result<SocketAddress, String> {
    if let Ok(address) = text.parse::<Address>() {
        return Ok(address.port(PEER.port));
    }
    text.parse().map_err(|e| format!("--peer: {e}"))
}

fn check_config(manifest: &Manifest, config: &Value) -> Result<(), String> {
    let Some(schema) = &manifest.config_schema else {
        return match config.as_object() {
            Some(object) if object.is_empty() => Ok(()),
            _ => Err("the script takes no configuration (it has no `config_schema`)".into()),
        };
    };
    let validator = jsonschema::validator_for(schema).map_err(|e| e.to_string())?;
    let problems: Vec<String> = validator
        .iter_errors(config)
        .map(|e| match e.instance_path().to_string().as_str() {
            "" => format!("the configuration: {e}"),
            path => format!("the configuration at {path}: {e}"),
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn described(file: &str, manifest: &Manifest) -> String {
    let kind = match (manifest.services.is_empty(), manifest.rules.is_empty()) {
        (false, _) => "service",
        (_, false) => "join rule",
        _ => "event sink",
    };
    let mut text = format!("{file}: {kind} {:?}, version {}", manifest.name, manifest.version);
    if !manifest.description.is_empty() {
        text.push_str(&format!("\n  {}", manifest.description));
    }
    for service in &manifest.services {
        let ports: Vec<String> = service.ports.iter().map(u16::to_string).collect();
        let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        let datagrams = if service.datagrams { ", datagrams as well" } else { "" };
        text.push_str(&format!("\n  ports: {ports}{datagrams}"));
    }
    if !manifest.needs.is_empty() {
        text.push_str(&format!("\n  needs: {}", manifest.needs.join(", ")));
    }
    let takes = match &manifest.config_schema {
        None => "none".to_owned(),
        Some(schema) => match schema.get("properties").and_then(Value::as_object) {
            Some(properties) => properties.keys().cloned().collect::<Vec<_>>().join(", "),
            None => "any that its schema takes".to_owned(),
        },
    };
    text.push_str(&format!("\n  configuration: {takes}"));
    text
}

fn say_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Deny { reason } => format!("deny: {reason}"),
        Verdict::Allow { tags, expires_at_ms, external_identity, uses } => {
            let mut text = "allow".to_owned();
            if !tags.is_empty() {
                text.push_str(&format!(", with tags {}", tags.join(", ")));
            }
            if let Some(at) = expires_at_ms {
                text.push_str(&format!(", until {at} ms since 1970"));
            }
            if let Some(identity) = external_identity {
                text.push_str(&format!(", as {identity}"));
            }
            if let Some(used) = uses {
                text.push_str(&format!(", using {used}"));
            }
            text
        }
    }
}

fn say_delivery(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Ack => "delivered".to_owned(),
        Delivery::Retry { accepted, after_ms, reason } => {
            let after = match after_ms {
                Some(ms) => format!("in {ms} ms"),
                None => "later".to_owned(),
            };
            format!("again {after} after {accepted} events: {reason}")
        }
        Delivery::Reject { accepted, rejected, reason } => {
            let which = if *rejected == 0 { "all".to_owned() } else { rejected.to_string() };
            format!("rejected ({which} after {accepted}): {reason}")
        }
    }
}

/// Waits for a future that needs no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}
