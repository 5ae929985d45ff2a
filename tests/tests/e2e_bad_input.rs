//! Wrong settings and broken files: each program ends with one clear line that
//! names the culprit, and leaves everything as it was.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Network, command, eventually, run};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("pilot-").tempdir()?)
}

/// Runs a program that must refuse to start with one line that has all of
/// `words`.
fn refuses(name: &str, program: Command, words: &[&str]) -> Result<()> {
    let done = run(name, program, LIMIT)?;
    let said = done.stderr.trim();
    let code = done.status.code();
    ensure!(code.is_some_and(|c| c != 0), "{name} ended with {:?}: {said}", done.status);
    ensure!(!said.contains("panicked"), "{name} panicked: {said}");
    // Log lines may come before; the reason is the last line, and the only one
    // that is not a log line.
    let line = said.lines().last().with_context(|| format!("{name} says nothing"))?;
    for word in words {
        ensure!(line.contains(word), "{name} does not say {word:?}: {said}");
    }
    let not_log = |l: &&str| !l.contains(" INFO ") && !l.contains(" WARN ");
    ensure!(said.lines().filter(not_log).count() == 1, "{name} says more than one line: {said}");
    ensure!(done.stdout.is_empty(), "{name} says it is ready: {}", done.stdout);
    Ok(())
}

/// A daemon that would start if nothing were wrong.
fn daemon(home: &Path) -> Result<Command> {
    let mut daemon = command("pilot-daemon")?;
    daemon.env("PILOT_HOME", home).arg("-socket").arg(home.join("pilot.sock"));
    // Nobody listens on port 1; a daemon starts all the same.
    daemon.args(["-registry", "127.0.0.1:1", "-beacon", "", "-listen", "127.0.0.1:0"]);
    Ok(daemon)
}

fn with_config(mut program: Command, folder: &Path, text: &str) -> Result<Command> {
    let path = folder.join("settings.yaml");
    fs::write(&path, text)?;
    program.arg("-config").arg(&path);
    Ok(program)
}

#[test]
fn a_config_key_that_does_not_exist() -> Result<()> {
    let f = folder()?;
    for (name, text, near) in [
        ("pilot-daemon", "# first line\nkepalive: 30s\n", "keepalive"),
        ("pilot-registry", "# first line\nstroe: x.db\n", "store"),
        ("pilot-beacon", "# first line\nhelth: 127.0.0.1:0\n", "health"),
    ] {
        let mut program = command(name)?;
        program.env("PILOT_HOME", f.path());
        let key = text.split(['\n', ':']).nth(1).context("key")?;
        let program = with_config(program, f.path(), text)?;
        refuses(name, program, &["settings.yaml", "line 2", key, near])?;
    }
    Ok(())
}

#[test]
fn a_config_value_that_cannot_be_understood() -> Result<()> {
    let f = folder()?;
    for (name, text, key) in [
        ("pilot-daemon", "public: true\nkeepalive: soon\n", "keepalive"),
        ("pilot-daemon", "public: true\nencrypt: perhaps\n", "encrypt"),
        ("pilot-daemon", "public: true\nmax-conns-total: many\n", "max-conns-total"),
        ("pilot-registry", "log-level: info\nregister-rate: often\n", "register-rate"),
        ("pilot-beacon", "log-level: info\nbeacon-id: first\n", "beacon-id"),
    ] {
        let mut program = command(name)?;
        program.env("PILOT_HOME", f.path());
        let program = with_config(program, f.path(), text)?;
        refuses(name, program, &["settings.yaml", "line 2", key])?;
    }
    Ok(())
}

#[test]
fn flags_and_files_that_do_not_exist() -> Result<()> {
    let f = folder()?;
    for name in ["pilot-daemon", "pilot-registry", "pilot-beacon", "pilot-rendezvous"] {
        let mut program = command(name)?;
        program.env("PILOT_HOME", f.path()).args(["-log-levle", "info"]);
        refuses(name, program, &["log-levle", "log-level"])?;
        let mut program = command(name)?;
        program.env("PILOT_HOME", f.path()).args(["-config", "no-such-file.yaml"]);
        refuses(name, program, &["no-such-file.yaml"])?;
    }
    Ok(())
}

#[test]
fn a_port_that_is_used() -> Result<()> {
    let f = folder()?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let (udp_addr, tcp_addr) = (udp.local_addr()?.to_string(), tcp.local_addr()?.to_string());
    let mut program = daemon(f.path())?;
    program.args(["-listen", &udp_addr]);
    refuses("pilot-daemon", program, &[&udp_addr])?;
    let mut program = command("pilot-registry")?;
    program.args(["-addr", &tcp_addr]);
    refuses("pilot-registry", program, &[&tcp_addr])?;
    let mut program = command("pilot-beacon")?;
    program.args(["-addr", &udp_addr]);
    refuses("pilot-beacon", program, &[&udp_addr])?;
    let mut program = command("pilot-rendezvous")?;
    program.args(["-registry-addr", &tcp_addr, "-beacon-addr", "127.0.0.1:0"]);
    refuses("pilot-rendezvous", program, &[&tcp_addr])?;
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written() -> Result<()> {
    let f = folder()?;
    // A file where a folder should be: nobody can write below it, root neither.
    let file = f.path().join("not-a-folder");
    fs::write(&file, "content")?;
    let mut program = daemon(f.path())?;
    program.env("PILOT_HOME", file.join("home"));
    refuses("pilot-daemon", program, &["not-a-folder"])?;
    let mut program = command("pilot-registry")?;
    program.args(["-addr", "127.0.0.1:0", "-store"]).arg(file.join("registry.db"));
    refuses("pilot-registry", program, &["not-a-folder"])?;
    let mut program = daemon(f.path())?;
    program.arg("-socket").arg(file.join("pilot.sock"));
    refuses("pilot-daemon", program, &["not-a-folder"])?;
    let long = f.path().join("x".repeat(120));
    let mut program = daemon(f.path())?;
    program.arg("-socket").arg(&long);
    refuses("pilot-daemon", program, &["xxxx"])?;
    ensure!(fs::read_to_string(&file)? == "content", "the file was changed");
    Ok(())
}

/// Files that a daemon keeps, damaged in several ways: it refuses to start,
/// names the file, and leaves it alone.
#[test]
fn files_of_a_daemon_that_are_damaged() -> Result<()> {
    let f = folder()?;
    let other_key = "{\"private_key\":\"AAAA\",\"public_key\":\"AAAA\"}";
    let damages: [&[u8]; 5] = [b"", b"{", b"\xFF\xFE\x00", b"[1,2,3]", other_key.as_bytes()];
    for name in ["identity.key", "state.json", "trust.json"] {
        for (n, damage) in damages.iter().enumerate() {
            if *damage == other_key.as_bytes() && name != "identity.key" {
                continue;
            }
            let home = f.path().join(format!("{name}-{n}"));
            fs::create_dir(&home)?;
            let file = home.join(name);
            fs::write(&file, damage)?;
            private(&file)?;
            refuses("pilot-daemon", daemon(&home)?, &[name])
                .with_context(|| format!("{name} with {:?}", String::from_utf8_lossy(damage)))?;
            ensure!(fs::read(&file)? == *damage, "{name} was overwritten");
        }
    }
    Ok(())
}

#[test]
fn a_store_that_is_damaged() -> Result<()> {
    let f = folder()?;
    let store = f.path().join("registry.db");
    let damage = b"this is not a database, and long enough to have a header".repeat(20);
    fs::write(&store, &damage)?;
    let mut program = command("pilot-registry")?;
    program.args(["-addr", "127.0.0.1:0", "-store"]).arg(&store);
    refuses("pilot-registry", program, &["registry.db"])?;
    ensure!(fs::read(&store)? == damage, "the store was overwritten");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_another_registry_has_open() -> Result<()> {
    let mut network = Network::start()?;
    let mut program = command("pilot-registry")?;
    let store = network.folder().join("registry.db");
    program.args(["-addr", "127.0.0.1:0", "-store"]).arg(&store);
    refuses("pilot-registry", program, &["registry.db"])?;
    ensure!(network.registry().is_running(), "the first one has ended");
    network.daemon("agent-a").await?;
    Ok(())
}

#[cfg(unix)]
fn private(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_readable_by_their_owner_alone() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let network = Network::start()?;
    let (a, _b) = network.pair().await?;
    for file in ["identity.key", "trust.json", "state.json", "pilot.sock"] {
        let path = a.home.join(file);
        // What is remembered is written a little later.
        eventually(file, async || path.exists().then_some(())).await?;
        let mode = fs::metadata(&path).with_context(|| path.display().to_string())?;
        let mode = mode.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    Ok(())
}

/// What a person sees at the command line when something is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_and_daemons_that_do_not_answer() -> Result<()> {
    let network = Network::start()?;
    let (a, mut b) = network.pair().await?;
    let port = a.pilotctl_error(&["connect", "agent-b", "4321", "--message", "x"])?;
    ensure!(port["code"] == "connection_failed", "{port}");
    ensure!(port["message"].as_str().is_some_and(|m| m.contains("4321")), "{port}");

    let file = a.pilotctl_error(&["send-file", "agent-b", "/no/such/file"])?;
    ensure!(file["message"].as_str().is_some_and(|m| m.contains("/no/such/file")), "{file}");

    let address = b.address().await?;
    b.process.kill();
    let gone = a.pilotctl_raw(&["ping", &address, "--count", "1", "--timeout", "2s"])?;
    let said = format!("{}{}", gone.stdout, gone.stderr);
    ensure!(said.contains("error"), "{said}");

    let nobody = b.pilotctl_error(&["info"])?;
    ensure!(nobody["code"] == "not_running", "{nobody}");
    ensure!(
        nobody["hint"].as_str().is_some_and(|h| h.contains("pilotctl daemon start")),
        "{nobody}"
    );
    Ok(())
}
