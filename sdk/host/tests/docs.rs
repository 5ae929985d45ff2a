//! What `docs/PLUGINS.md` says works when it is done to the letter: the plugin
//! in it is built in a folder outside the workspace, and serves.

mod world;

use std::path::Path;
use std::process::Command;

use pilot_host::{Limits, open_native};
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
