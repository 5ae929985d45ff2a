//! Precedence, and one clear line for everything that is wrong.

use super::*;

fn raw(args: &[&str], env: &[(&str, &str)]) -> Result<RawConfig, ConfigError> {
    let env = |n: &str| {
        let given = env.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned());
        given.or_else(|| (n == "HOME").then(|| "/home/u".to_owned()))
    };
    match RawConfig::load(args.iter().map(|a| (*a).to_owned()), env)? {
        Invocation::Run(raw) => Ok(raw),
        Invocation::Print(text) => panic!("{text}"),
    }
}

fn config(args: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::try_from(&raw(args, env)?)
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.yaml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

fn refused_file(text: &str) -> String {
    let (_dir, path) = file(text);
    let line = config(&["-config", &path], &[]).unwrap_err().to_string();
    assert!(line.contains("pilot.yaml") && !line.contains('\n'), "{line}");
    line
}

#[test]
fn defaults_are_local() {
    let c = config(&[], &[]).unwrap();
    assert_eq!(c.registry.as_deref(), Some("127.0.0.1:9000"));
    assert_eq!(c.beacon.as_deref(), Some("127.0.0.1:9001"));
    assert_eq!(c.listen, "127.0.0.1:0".parse().unwrap());
    assert_eq!(c.socket, PathBuf::from("/tmp/pilot.sock"));
    assert_eq!(c.identity, PathBuf::from("/home/u/.pilot/identity.key"));
    assert_eq!(c.keepalive, Duration::from_secs(30));
    assert_eq!((c.hostname, c.public), (None, None));
    assert!(!c.trust_auto_approve);
    assert_eq!(c.default_plugins.len(), DEFAULTS.len());
    assert_eq!((c.settings, c.config_file, c.webhook), (Settings::default(), None, None));
}

#[test]
fn listen_follows_where_the_others_are() {
    let listen = |args: &[&str]| config(args, &[]).unwrap().listen.to_string();
    assert_eq!(listen(&["-registry", "", "-beacon", ""]), "127.0.0.1:0");
    assert_eq!(listen(&["-registry", "localhost:1", "-beacon", "[::1]:2"]), "127.0.0.1:0");
    assert_eq!(listen(&["-registry", "192.0.2.1:1"]), "0.0.0.0:0");
    assert_eq!(listen(&["-beacon", "beacon.example:1"]), "0.0.0.0:0");
    assert_eq!(listen(&["-listen", ":4000"]), "0.0.0.0:4000");
    assert_eq!(listen(&["-listen", "[::]:4000"]), "[::]:4000");
}

#[test]
fn flag_beats_environment_beats_file() {
    let (_dir, path) = file("registry: a:1\nmax_conns_total: 7\nkeepalive: 2m\npublic: true\n");
    let c = config(&["-config", &path], &[]).unwrap();
    assert_eq!(c.registry.as_deref(), Some("a:1"));
    assert_eq!((c.max_streams, c.public), (7, Some(true)));
    assert_eq!(c.keepalive, Duration::from_secs(120));
    let env = [("PILOT_CONFIG", path.as_str()), ("PILOT_REGISTRY", "b:2"), ("PILOT_HOME", "/d")];
    let c = config(&[], &env).unwrap();
    assert_eq!((c.registry.as_deref(), c.max_streams), (Some("b:2"), 7));
    assert_eq!(c.identity, PathBuf::from("/d/identity.key"));
    let c = config(&["--registry=c:3", "-public=false", "-data", "~/x"], &env).unwrap();
    assert_eq!((c.registry.as_deref(), c.public), (Some("c:3"), Some(false)));
    assert_eq!(c.data, PathBuf::from("/home/u/x"));
}

#[test]
fn published_json_files_are_read() {
    let (_dir, path) = file(
        "{\"registry\": \"1.2.3.4:9000\", \"idle_timeout\": \"90s\", \"no-echo\": \"1\",\n\
         \"max-conns-per-port\": 12, \"keepalive\": 5, \"encrypt\": true}",
    );
    let c = config(&["--config", &path], &[]).unwrap();
    assert_eq!(c.idle_timeout, Duration::from_secs(90));
    assert_eq!(c.keepalive, Duration::from_secs(5));
    assert_eq!(c.max_streams_per_port, 12);
    assert!(!c.default_plugins.contains(&"echo") && c.default_plugins.contains(&"stdio"));
    assert_eq!(c.listen.to_string(), "0.0.0.0:0");
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line() {
    let line = refused_file("registry: a:1\n\nkeepalve: 3s\n");
    assert!(line.contains("line 3") && line.contains("did you mean keepalive?"), "{line}");
    let line = refused_file("zzzzzzzzzzzzzzzz: 3\n");
    assert!(line.contains("unknown key") && !line.contains("did you mean"), "{line}");
    let bad = [
        ("registry: a:1\nkeepalive: soon\n", "keepalive"),
        ("owner: x\npublic: maybe\n", "public"),
        ("owner: x\nmax-conns-total: -1\n", "max-conns-total"),
        ("owner: x\nmax_conns_total: 1e9\n", "max-conns-total"),
        ("owner: x\nworkers: 65\n", "workers"),
        ("owner: x\nregistry: nowhere\n", "registry"),
        ("owner: x\nlisten: a:b\n", "listen"),
        ("owner: x\nhostname: Not_A_Name\n", "hostname"),
        ("owner: x\nhostname: localhost\n", "hostname"),
        ("owner: x\nlog-level: loud\n", "log-level"),
        ("owner: x\nendpoint: h:0\n", "endpoint"),
        ("owner: x\nencrypt: false\n", "encrypt"),
        ("owner: x\nregistry-tls: true\n", "registry-tls"),
        ("owner: x\nwebhook: ftp://h/\n", "webhook"),
        ("owner: x\nno-plugins: maybe\n", "no-plugins"),
        ("owner: x\nplugins: [echo]\n", "plugins"),
        ("plugins:\n  echo: {port: 7}\n", "plugins.echo.port"),
        ("scripts:\n  hello_you!: {}\n", "scripts.hello_you!"),
        ("owner: x\ntrusted-keys: [abc]\n", "trusted-keys"),
        ("owner: x\ntime-wait: [1]\n", "time-wait"),
        ("owner: x\nidle-timeout: 100h5x\n", "idle-timeout"),
        ("owner: x\nmax-received-bytes: 5Q\n", "max-received-bytes"),
        ("owner: x\ncongestion: vegas\n", "congestion"),
        ("owner: x\nmetrics-listen: 0.0.0.0:9642\n", "metrics-listen"),
        ("owner: x\nmetrics-listen: nowhere\n", "metrics-listen"),
        ("owner: x\nmetrics-allow-remote: maybe\n", "metrics-allow-remote"),
    ];
    for (text, key) in bad {
        let line = refused_file(text);
        assert!(line.contains("line 2") && line.contains(key), "{line}");
    }
    assert!(refused_file("- a\n- b\n").contains("line 1"));
    assert!(refused_file("owner: x\nowner: y\n").contains("owner"));
    assert!(refused_file("time-wait: 1\ntime_wait: 2\n").contains("twice"));
    assert!(refused_file("owner: \"x\n").contains("line"));
    assert!(refused_file("config: other.yaml\n").contains("line 1"));
}

#[test]
fn keys_about_plugins_are_for_the_host() {
    let (dir, path) = file(
        "owner: x\nplugins:\n  echo:\n    enabled: false\n  mine:\n    ports: [2000]\n    \
         config: {greeting: hello}\nscript_dirs: [handlers]\nwebhook: https://h/x\n",
    );
    let c = config(&["-config", &path], &[]).unwrap();
    assert_eq!(c.config_file.as_deref(), Some(std::path::Path::new(&path)));
    assert!(!c.settings.plugins["echo"].enabled && c.settings.plugins["mine"].enabled);
    assert_eq!(c.settings.plugins["mine"].config["greeting"], "hello");
    assert_eq!(c.settings.script_dirs, [dir.path().join("handlers")]);
    assert_eq!((c.owner.as_str(), c.webhook.as_deref()), ("x", Some("https://h/x")));
    let line = refused_file("owner: x\nplugin: {}\n");
    assert!(line.contains("line 2") && line.contains("did you mean plugins?"), "{line}");
}

#[test]
fn what_is_wrong_elsewhere_is_named_as_well() {
    let refused = |args: &[&str]| config(args, &[]).unwrap_err().to_string();
    assert_eq!(refused(&["-socet", "x"]), "unknown flag -socet (did you mean socket?); see -help");
    assert!(refused(&["socket"]).contains("unexpected argument"));
    assert!(refused(&["-socket"]).contains("needs a value"));
    assert!(refused(&["-socket="]).contains("flag -socket is empty"));
    assert!(refused(&["-config", "/nonexistent/p.yaml"]).contains("/nonexistent/p.yaml"));
    let line = config(&[], &[("PILOT_KEEPALIVE", "x")]).unwrap_err().to_string();
    assert!(line.starts_with("environment variable PILOT_KEEPALIVE is \"x\""), "{line}");
    let line = config(&[], &[("HOME", "")]).unwrap_err().to_string();
    assert!(line.contains("\"data\"") && line.contains("HOME"), "{line}");
}

#[test]
fn durations() {
    let keepalive = |text: &str| config(&["-keepalive", text], &[]).map(|c| c.keepalive).ok();
    let millis = |n| Some(Duration::from_millis(n));
    assert_eq!(keepalive("30s"), millis(30_000));
    assert_eq!(keepalive("1m30s"), millis(90_000));
    assert_eq!(keepalive("1.5"), millis(1500));
    assert_eq!(keepalive("200ms"), millis(200));
    assert_eq!(keepalive("0"), millis(30_000));
    assert_eq!(keepalive(""), millis(30_000));
    for bad in ["s", "5x", "-3s", "1..2", "1ns", "99999999h", "5 s", "."] {
        assert_eq!(keepalive(bad), None, "{bad}");
    }
}

#[test]
fn sizes() {
    let limit =
        |text: &str| config(&["-max-received-bytes", text], &[]).map(|c| c.max_received_bytes).ok();
    assert_eq!(limit(""), Some(None));
    assert_eq!(limit("0"), Some(None));
    assert_eq!(limit("1000"), Some(Some(1000)));
    assert_eq!(limit("500M"), Some(Some(500 << 20)));
    assert_eq!(limit("2 g"), Some(Some(2 << 30)));
    for bad in ["M", "-1", "1.5G", "5MB", "99999999999T", "5\u{b5}"] {
        assert_eq!(limit(bad), None, "{bad}");
    }
}

#[test]
fn congestion_control_by_name() {
    let congestion = |args: &[&str]| config(args, &[]).map(|c| c.congestion);
    assert_eq!(congestion(&[]).unwrap(), Congestion::Cubic);
    assert_eq!(congestion(&["-congestion", ""]).unwrap(), Congestion::Cubic);
    for one in Congestion::ALL {
        assert_eq!(congestion(&["-congestion", one.name()]).unwrap(), one);
    }
    let (_dir, path) = file("congestion: bbr\n");
    assert_eq!(congestion(&["-config", &path]).unwrap(), Congestion::Bbr);
    let line = congestion(&["-congestion", "vegas"]).unwrap_err().to_string();
    assert_eq!(line, "flag -congestion is \"vegas\", expected cubic, newreno or bbr");
}

#[test]
fn metrics_stay_on_this_machine_unless_told_otherwise() {
    let listen = |args: &[&str]| config(args, &[]).map(|c| c.metrics_listen.map(|a| a.to_string()));
    assert_eq!(listen(&[]).unwrap(), None);
    for local in ["127.0.0.1:9642", "[::1]:9642", "127.3.2.1:0"] {
        assert_eq!(listen(&["-metrics-listen", local]).unwrap().as_deref(), Some(local));
    }
    for remote in ["0.0.0.0:9642", "[::]:9642", "192.0.2.1:9642"] {
        let line = listen(&["-metrics-listen", remote]).unwrap_err().to_string();
        assert!(line.starts_with("flag -metrics-listen is ") && line.contains(remote), "{line}");
        assert!(line.contains("metrics-allow-remote"), "{line}");
        let allowed = listen(&["-metrics-listen", remote, "-metrics-allow-remote"]);
        assert_eq!(allowed.unwrap().as_deref(), Some(remote));
    }
    assert!(listen(&["-metrics-listen", ":9642"]).is_err(), "that is every interface");
}

#[test]
fn the_documentation_has_every_key() {
    let text = include_str!("../../../docs/CONFIG.md");
    for key in keys::KEYS.iter().filter(|key| key.name != "config") {
        assert!(text.contains(&format!("`{}`", key.name)), "{}", key.name);
    }
}

#[test]
fn help_lists_every_key() {
    for flag in ["-h", "--help", "-help"] {
        let Ok(Invocation::Print(text)) = RawConfig::load([flag.to_owned()], |_| None) else {
            panic!()
        };
        for key in keys::KEYS {
            assert!(text.contains(key.name), "{}", key.name);
        }
    }
}

#[test]
fn networks_have_proofs_from_one_source_each() {
    let (dir, path) = file(
        "owner: x\nnetworks:\n  - lab\n  - {name: 7}\n  - name: ops\n    proofs:\n      \
         token: {file: secrets/ops}\n      oidc: {env: OIDC_TOKEN}\n      ca: {command: [sign, \
         -n, 3]}\n      word: {value: hush}\n",
    );
    let wanted = config(&["-config", &path], &[]).unwrap().networks;
    let names: Vec<_> = wanted.iter().map(|w| w.network.to_string()).collect();
    assert_eq!(names, ["lab", "7", "ops"]);
    assert_eq!(wanted[1].network, pilot_wire::registry::network::NetworkRef::Id(7));
    let proofs = &wanted[2].proofs;
    assert_eq!(proofs["token"], Proof::File(dir.path().join("secrets/ops")));
    assert_eq!(proofs["oidc"], Proof::Env("OIDC_TOKEN".into()));
    assert_eq!(proofs["ca"], Proof::Command(vec!["sign".into(), "-n".into(), "3".into()]));
    assert_eq!(proofs["word"], Proof::Value("hush".into()));
    assert!(!format!("{wanted:?}").contains("hush"), "{wanted:?}");
    assert!(config(&[], &[]).unwrap().networks.is_empty());
}

#[test]
fn what_is_wrong_with_a_network_is_named_with_its_line() {
    let bad = [
        ("owner: x\nnetworks: lab\n", "list"),
        ("networks:\n  - {proofs: {}}\n", "no name"),
        ("networks:\n  - {name: 0}\n", "1 to 65535"),
        ("networks:\n  - {name: 70000}\n", "1 to 65535"),
        ("networks:\n  - {nam: lab}\n", "did you mean name?"),
        ("networks: [lab,\n  lab]\n", "second time"),
        ("networks:\n  - {name: lab, proofs: {token: abc}}\n", "exactly one of"),
        ("networks:\n  - {name: lab, proofs: {token: {}}}\n", "exactly one of"),
        ("networks:\n  - {name: lab, proofs: {token: {env: A, file: b}}}\n", "exactly one of"),
        ("networks:\n  - {name: lab, proofs: {token: {fle: b}}}\n", "did you mean file?"),
        ("networks:\n  - {name: lab, proofs: {token: {command: cat x}}}\n", "no shell"),
        ("networks:\n  - {name: lab, proofs: {token: {env: ''}}}\n", "no text"),
    ];
    for (text, expected) in bad {
        let line = refused_file(text);
        assert!(line.contains("line 2") && line.contains(expected), "{line}");
        assert!(line.contains("networks"), "{line}");
    }
    assert!(refused_file("network: [lab]\n").contains("did you mean networks?"));
}

#[test]
fn tls_needs_the_fingerprint_of_the_certificate() {
    let hex = "ab".repeat(32);
    let colons = vec!["AB"; 32].join(":");
    let pin: Pin = hex.parse().unwrap();
    for text in [&hex, &colons] {
        let c = config(&["-registry-tls", "-registry-fingerprint", text], &[]).unwrap();
        assert_eq!(c.registry_pin, Some(pin));
    }
    assert_eq!(config(&[], &[]).unwrap().registry_pin, None);
    let line = |args: &[&str]| config(args, &[]).unwrap_err().to_string();
    assert!(line(&["-registry-tls"]).contains("prints its fingerprint"));
    assert!(line(&["-registry-fingerprint", &hex]).contains("registry-tls is not true"));
    assert!(line(&["-registry-tls", "-registry-fingerprint", "abc"]).contains("64 hex digits"));
}

#[test]
fn networks_over_plaintext_are_warned_of_or_refused() {
    let plaintext = |args: &[&str]| config(args, &[]).unwrap().plaintext;
    let far = ["-registry", "192.0.2.1:9000"];
    let refuse = ["-networks-over-plaintext", "refuse"];
    assert_eq!(plaintext(&refuse), Plaintext::Fine, "it is on this machine");
    assert_eq!(plaintext(&far), Plaintext::Warn);
    assert_eq!(plaintext(&[far, refuse].concat()), Plaintext::Refuse);
    let hex = "ab".repeat(32);
    let tls = ["-registry-tls", "-registry-fingerprint", &hex];
    assert_eq!(plaintext(&[&far[..], &refuse, &tls].concat()), Plaintext::Fine);
    let error = config(&["-networks-over-plaintext", "hope"], &[]).unwrap_err().to_string();
    assert!(error.contains("neither warn nor refuse"), "{error}");
}
