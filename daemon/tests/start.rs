//! The program itself: how it starts without a registry, how it ends, and the
//! one line it says when it cannot start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

struct Daemon {
    child: Child,
    ready: Value,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// What it logs, line by line.
    fn log(&mut self) -> mpsc::Receiver<String> {
        let (sender, lines) = mpsc::channel();
        let log = BufReader::new(self.child.stderr.take().unwrap());
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        lines
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilot-daemon"));
        command
            // Nothing listens on port 1 of loopback.
            .args(["-registry", "127.0.0.1:1", "-beacon", "", "-log-level", "error"])
            .arg("-data")
            .arg(self.path("data"))
            .arg("-socket")
            .arg(self.path("p.sock"))
            .args(more)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let mut child = self.command(more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("no ready line: {text}");
        }
        Daemon { child, ready: serde_json::from_str(&line).unwrap() }
    }

    /// The one line of a daemon that does not start.
    fn refused(&self, more: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(more).output().unwrap();
        let line = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{line}");
        assert!(stdout.is_empty());
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("pilot-daemon: "), "{line}");
        line
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn starts_without_a_registry_and_ends_on_a_signal() {
    for signal in ["-TERM", "-INT"] {
        let place = Place::new();
        let mut daemon = place.start(&[]);
        assert_eq!(daemon.ready["ready"], "pilot-daemon");
        assert_eq!(daemon.ready["registry"], "unreachable");
        assert_eq!(daemon.ready["node_id"], Value::Null);
        assert!(daemon.ready["listen"].as_str().unwrap().starts_with("127.0.0.1:"));
        std::os::unix::net::UnixStream::connect(place.path("p.sock")).unwrap();
        daemon.signal(signal);
        assert!(daemon.child.wait().unwrap().success());
        assert!(!place.path("p.sock").exists());
        assert!(place.path("data/identity.key").exists());
    }
}

#[test]
fn keeps_its_identity_and_replaces_a_stale_socket_after_a_crash() {
    let place = Place::new();
    let mut daemon = place.start(&[]);
    let identity = std::fs::read(place.path("data/identity.key")).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(place.path("p.sock").exists(), "a killed daemon leaves its socket");
    let again = place.start(&[]);
    std::os::unix::net::UnixStream::connect(place.path("p.sock")).unwrap();
    assert_eq!(std::fs::read(place.path("data/identity.key")).unwrap(), identity);
    drop(again);
}

#[test]
fn remembers_its_number() {
    let place = Place::new();
    std::fs::create_dir(place.path("data")).unwrap();
    let state = r#"{"node_id":5,"address":"0:0000.0000.0005","hostname":"old"}"#;
    std::fs::write(place.path("data/state.json"), state).unwrap();
    let daemon = place.start(&[]);
    assert_eq!(
        (&daemon.ready["node_id"], &daemon.ready["registry"]),
        (&5.into(), &"unreachable".into())
    );
    assert_eq!(daemon.ready["address"], "0:0000.0000.0005");
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() {
    let place = Place::new();
    let _daemon = place.start(&[]);
    let line = place.refused(&[]);
    assert!(line.contains("p.sock") && line.contains("in use"), "{line}");
    let other = place.path("q.sock");
    let line = place.refused(&["-socket", other.to_str().unwrap()]);
    assert!(line.contains("identity.key") && line.contains("in use"), "{line}");
    assert!(!other.exists());
    std::os::unix::net::UnixStream::connect(place.path("p.sock")).unwrap();
}

#[test]
fn a_used_port_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = Place::new().refused(&["-listen", &address]);
    assert!(line.contains(&address) && line.contains("listen"), "{line}");
}

#[test]
fn metrics_are_served_where_asked_for() {
    let place = Place::new();
    assert_eq!(place.start(&[]).ready.get("metrics"), None, "off by default");
    let daemon = place.start(&["-metrics-listen", "127.0.0.1:0"]);
    let address = daemon.ready["metrics"].as_str().unwrap();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("/metrics").contains("\npilot_registry_up 0\n"));
    assert!(ask("/healthz").ends_with("\r\n\r\nok\n"));
    let other = Place::new();
    let line = other.refused(&["-metrics-listen", address]);
    assert!(line.contains("metrics-listen") && line.contains(address), "{line}");
    let line = other.refused(&["-metrics-listen", "0.0.0.0:0"]);
    assert!(line.contains("metrics-allow-remote"), "{line}");
}

#[test]
fn a_hangup_reloads_plugins_and_ends_nothing() {
    let place = Place::new();
    let file = place.path("pilot.yaml");
    std::fs::write(&file, "owner: me\nplugins: {}\n").unwrap();
    let path = file.to_str().unwrap();
    let mut daemon = place.start(&["-config", path, "-no-plugins", "-log-level", "info"]);
    let lines = daemon.log();
    let said = |what: &str| loop {
        let line = lines.recv_timeout(Duration::from_secs(30)).expect(what);
        if line.contains(what) {
            return;
        }
    };
    daemon.signal("-HUP");
    said("reloaded");
    std::fs::write(&file, "owner: me\nplugins:\n  echo: {port: 7}\n").unwrap();
    daemon.signal("-HUP");
    said("did you mean ports?");
    std::os::unix::net::UnixStream::connect(place.path("p.sock")).unwrap();
    daemon.signal("-TERM");
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn damaged_files_are_named_and_kept() {
    for name in ["identity.key", "state.json", "trust.json"] {
        let place = Place::new();
        drop(place.start(&[]));
        let file = place.path("data").join(name);
        std::fs::write(&file, "garbage").unwrap();
        set_mode(&file, 0o600);
        let line = place.refused(&[]);
        assert!(line.contains(name) && line.contains("damaged"), "{line}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "garbage");
        assert!(!place.path("p.sock").exists(), "a daemon that does not start leaves no socket");
    }
    let place = Place::new();
    drop(place.start(&[]));
    set_mode(&place.path("data/identity.key"), 0o644);
    assert!(place.refused(&[]).contains("chmod 600"));
}

#[test]
fn bad_places_and_keys_are_named() {
    let place = Place::new();
    std::fs::write(place.path("data"), "a file").unwrap();
    let line = place.refused(&[]);
    assert!(line.contains("data"), "{line}");

    let place = Place::new();
    let file = place.path("pilot.yaml");
    std::fs::write(&file, "owner: me\nregistri: 127.0.0.1:1\n").unwrap();
    let line = place.refused(&["-config", file.to_str().unwrap()]);
    assert!(line.contains("line 2") && line.contains("did you mean registry?"), "{line}");
    assert!(place.refused(&["-keepalive", "often"]).contains("-keepalive"));
    assert!(place.refused(&["-encrypt=false"]).contains("encrypt"));
    std::fs::write(place.path("p.sock"), "precious").unwrap();
    assert!(place.refused(&[]).contains("not a socket"));
    assert_eq!(std::fs::read_to_string(place.path("p.sock")).unwrap(), "precious");
}
