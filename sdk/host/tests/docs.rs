//! What `docs/PLUGINS.md` says works when it is done to the letter: the plugin
//! in it is built in a folder outside the workspace, and serves.

mod world;

use std::path::Path;
use std::process::Command;

use pilot_host::{Limits, open_native};
use pilot_plugin::Manifest;
use serde_json::json;
use world::{World, stream};

/// The fenced blocks of a language in a document.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_plugin_of_the_manual_builds_and_serves() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let manual = std::fs::read_to_string(top.join("docs/PLUGINS.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let manifest = blocks(&manual, "toml")[0].replace("PILOT/", &format!("{}/", top.display()));
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    let pieces = blocks(&manual, "rust");
    let mut source = pieces[0].to_owned();
    // The pieces that are no whole plugin must compile as well.
    for (number, piece) in pieces[1..].iter().enumerate() {
        source += &format!("\n#[allow(dead_code)]\nmod piece{number} {{\n{piece}}}\n");
    }
    std::fs::write(dir.path().join("src/lib.rs"), source).unwrap();
    // The same libraries as in the workspace: nothing needs to be fetched.
    std::fs::copy(top.join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--offline"])
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(dir.path())
        .status();
    assert!(built.unwrap().success(), "the plugin of docs/PLUGINS.md does not build");
    let backend = open_native(&dir.path().join("target/debug/libshout.so")).unwrap();
    let instance = backend.start(&json!({}), World::new().context("shout", Limits::default()));
    let (near, far) = stream(2000);
    let instance = instance.unwrap();
    instance.open(near);
    assert_eq!(far.exchange(b"hello\r\nthere").unwrap(), b"HELLO\nTHERE\n");
}

/// The shipped plugins, in the order of the reference.
const SHIPPED: [&str; 11] = [
    "control",
    "echo",
    "nameserver",
    "http",
    "secure",
    "stdio",
    "data-exchange",
    "event-stream",
    "tasks",
    "sink-webhook",
    "sink-file",
];

/// The reference of the shipped plugins is what they say of themselves. After a
/// change run with `PILOT_BLESS=1`.
#[test]
fn the_reference_of_services_is_theirs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/SERVICES.md");
    let kept = std::fs::read_to_string(&file).unwrap();
    let prose = kept.split("\n## ").next().unwrap().trim_end();
    let mut made = format!("{prose}\n");
    for name in SHIPPED {
        let backend = open_native(&world::plugin(&format!("pilot-plugin-{name}"))).unwrap();
        made += &section(backend.manifest());
    }
    if std::env::var_os("PILOT_BLESS").is_some() {
        std::fs::write(&file, &made).unwrap();
        return;
    }
    assert!(made == kept, "docs/SERVICES.md is not what the plugins say; run with PILOT_BLESS=1");
}

fn section(manifest: &Manifest) -> String {
    let ports: Vec<_> = manifest.services.iter().flat_map(|s| &s.ports).collect();
    let what = match (ports.as_slice(), manifest.sinks.is_empty()) {
        ([], false) => "sink".to_owned(),
        ([port], true) => format!("port {port}"),
        (ports, _) => format!("ports {ports:?}"),
    };
    let mut text = format!("\n## {} ({what})\n\n{}.\n", manifest.name, manifest.description);
    let schema = manifest.config_schema.clone().unwrap_or_default();
    let Some(keys) = schema["properties"].as_object().filter(|keys| !keys.is_empty()) else {
        return text + "\nIt takes no configuration.\n";
    };
    text += "\n| Key | Default | |\n|---|---|---|\n";
    for (key, about) in keys {
        let said = about["description"].as_str().unwrap_or_default();
        // What a table cannot hold.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let default = match &about["default"] {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        text += &format!("| `{key}` | {} | {said} |\n", default.replace('|', "\\|"));
    }
    text
}
