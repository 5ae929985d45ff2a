//! Every example of `docs/LUA.md` is run by the tool on the input that its
//! first line says.

use std::path::PathBuf;
use std::process::Command;

fn page() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/LUA.md");
    std::fs::read_to_string(path).unwrap()
}

/// What the examples print, in their order.
const EXPECTED: &[&str] = &[
    "you said hello",
    "5\nusage: add NUMBER NUMBER\n",
    "allow, with tags staff, until ",
    "delivered\n",
    "{\"digest\":\"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\",\"text\":\"HELLO\",\"visits\":1}\n",
    "> one\n> two\n",
];

#[test]
fn the_examples_run() {
    let page = page();
    let examples: Vec<&str> =
        page.split("```lua\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(examples.len(), EXPECTED.len());
    let folder = tempfile::tempdir().unwrap();
    for (number, (example, expected)) in examples.iter().zip(EXPECTED).enumerate() {
        let option = |name: &str| {
            let line = example.lines().take(2).find_map(|line| line.strip_prefix(name))?;
            let line = line.trim();
            // A text in quotes may have line ends.
            let quoted = line.starts_with('"').then(|| serde_json::from_str(line).unwrap());
            Some(quoted.unwrap_or_else(|| line.to_owned()))
        };
        let path = folder.path().join(format!("example-{number}.lua"));
        std::fs::write(&path, example).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilot-plugin-host"));
        command.args(["script", "run"]).arg(&path);
        command.arg(format!("--input={}", option("-- run:").expect("the first line says how")));
        if let Some(config) = option("-- config:") {
            command.arg(format!("--config={config}"));
        }
        let output = command.output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{example}\n{err}");
        assert!(out.starts_with(expected), "{example}\nprinted: {out}\n{err}");
    }
}

#[test]
fn every_function_and_key_is_described() {
    let page = page();
    for word in [
        "stream:read(",
        "stream:read_line(",
        "stream:read_exactly(",
        "stream:write(",
        "stream:shutdown(",
        "stream:close(",
        "stream:reset(",
        "stream.port",
        "stream.remote",
        "json.encode(",
        "json.decode(",
        "json.array(",
        "json.null",
        "base64.encode(",
        "base64.decode(",
        "sha256(",
        "hmac_sha256(",
        "time.now(",
        "time.monotonic(",
        "time.sleep(",
        "time.date(",
        "log.error(",
        "log.warn(",
        "log.info(",
        "log.debug(",
        "print(",
        "emit(",
        "store.get(",
        "store.put(",
        "store.delete(",
        "store.keys(",
        "spawn(",
        "dial(",
        "call(",
        "http.get(",
        "http.post(",
        "http.request(",
        "config_schema",
        "max_batch",
        "datagrams",
        "`needs`",
        "retry_after",
        "accepted",
        "expires_at_ms",
        "external_identity",
        "xpcall",
    ] {
        assert!(page.contains(word), "docs/LUA.md does not describe {word}");
    }
}
