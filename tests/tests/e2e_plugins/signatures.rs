//! `trusted-keys`: what is not signed by one of them does not run.

use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use pilot_tests::harness::{VersionPlugin, binary, install};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Pair, exchange};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_signed_is_loaded() -> Result<()> {
    let (ours, theirs) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
    let echo = fs::read(binary("libpilot_plugin_echo.so")?)?;
    let lines = format!(
        "trusted-keys: [{}]\nplugins:\n  echo:\n    sha256: {}\n",
        STANDARD.encode(ours.verifying_key().as_bytes()),
        hex::encode(Sha256::digest(&echo)),
    );
    let mut pair = Pair::start_with(&lines).await?;
    // What ships with Pilot may be pinned instead; the rest of it is refused.
    pair.still_serves().await?;
    let http = pair.serves.until_state("http", "failed").await?;
    ensure!(http["reason"].as_str().is_some_and(|r| r.contains("is not signed")), "{http}");

    let plugin = VersionPlugin::compile(pair.network.folder())?;
    let folder = pair.serves.home.join("plugins");
    let library = plugin.library("00000001")?;
    let sign = |key: &SigningKey, bytes: &[u8]| STANDARD.encode(key.sign(bytes).to_bytes());
    let says = |wanted: &'static str| {
        move |p: &Value| {
            p["state"] == "failed" && p["reason"].as_str().is_some_and(|r| r.contains(wanted))
        }
    };
    install(&folder, "libversion.so", &library)?;
    pair.serves.until_plugin("version", "not signed", says("is not signed")).await?;
    ensure!(pair.dial(4000).await.is_err(), "an unsigned plugin answers");
    for (signature, why) in [
        (sign(&theirs, &library), "not by one of the trusted-keys"),
        (sign(&ours, b"another file"), "not by one of the trusted-keys"),
        ("nonsense".to_owned(), "not an Ed25519 signature"),
    ] {
        install(&folder, "libversion.so.sig", signature.as_bytes())?;
        pair.serves.until_plugin("version", why, says(why)).await?;
    }
    install(&folder, "libversion.so.sig", sign(&ours, &library).as_bytes())?;
    ensure!(exchange(&mut pair.open(4000).await?, b"?", 8).await? == "00000001");

    // Another file under the signature of the first is refused, and that goes on.
    let second = plugin.library("00000002")?;
    install(&folder, "libversion.so", &second)?;
    let kept = |p: &Value| p["last_reload"]["result"] == "kept";
    let now = pair.serves.until_plugin("version", "refused", kept).await?;
    let why = now["last_reload"]["error"].as_str().context("no error")?;
    ensure!(
        why.contains("not by one of the trusted-keys") && why.contains("libversion.so"),
        "{why}"
    );
    ensure!(exchange(&mut pair.open(4000).await?, b"?", 8).await? == "00000001");
    // The signature may stand in the configuration.
    let signed = format!("{lines}  version:\n    signature: {}\n", sign(&ours, &second));
    pair.serves.configure(&signed)?;
    pair.serves.until_plugin("version", "the second one", |p| p["generation"] == 2).await?;
    ensure!(exchange(&mut pair.open(4000).await?, b"?", 8).await? == "00000002");

    // Scripts as well.
    let script = b"return { kind = 'service', port = 4100, serve = function(s) s:write('x') end }";
    install(&pair.serves.home.join("scripts"), "x.lua", script)?;
    pair.serves.until_plugin("x", "not signed", says("is not signed")).await?;
    install(&pair.serves.home.join("scripts"), "x.lua.sig", sign(&ours, script).as_bytes())?;
    pair.open(4100).await?;
    pair.still_serves().await
}
