//! What is read, and one clear line for everything that is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::*;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new("/etc/pilot/pilot.yaml"))
}

#[test]
fn everything_is_read_and_the_rest_is_left_alone() {
    let settings = parse(
        "registry: example:9000\n\
         plugin_dirs: [plugins, /opt/plugins]\n\
         script-dirs:\n  - scripts\n\
         trusted-keys: [\"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"]\n\
         plugins:\n  \
           web:\n    \
             file: lib/web.so\n    \
             sha256: ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789\n    \
             isolation: process\n    \
             ports: {http: [80, 8080], admin: []}\n    \
             grants: [dial, \"http:example.com\"]\n    \
             limits: {streams: 3, callback: 250ms, deliver: 2m, cpu: 50%, memory: 64M, events: 7}\n    \
             events: {filter: [a]}\n    \
             config: {folder: /srv, depth: 3}\n  \
           echo:\n    ports: [7]\n\
         scripts:\n  chat_room: {enabled: false}\n",
    )
    .unwrap();
    let web = &settings.plugins["web"];
    assert_eq!(settings.plugin_dirs, [Path::new("/etc/pilot/plugins"), Path::new("/opt/plugins")]);
    assert_eq!(settings.script_dirs, [Path::new("/etc/pilot/scripts")]);
    assert_eq!(settings.trusted_keys.len(), 1);
    assert_eq!(web.file, Some(PathBuf::from("/etc/pilot/lib/web.so")));
    assert!(web.enabled && web.sha256.as_ref().is_some_and(|s| s.starts_with("abcdef")));
    assert_eq!(web.isolation, Isolation::Process);
    let ports = [("http".to_owned(), vec![80, 8080]), ("admin".to_owned(), Vec::new())];
    assert_eq!(web.ports, Some(Ports::Services(ports.into())));
    assert_eq!(web.grants, ["dial", "http:example.com"]);
    assert_eq!((web.limits.streams, web.limits.memory, web.limits.events), (3, 64 << 20, 7));
    assert_eq!(web.limits.callback, Duration::from_millis(250));
    assert_eq!(web.limits.deliver, Duration::from_secs(120));
    assert!((web.limits.cpu - 0.5).abs() < 1e-9);
    assert_eq!(
        (&web.events, &web.config),
        (&json!({ "filter": ["a"] }), &json!({ "folder": "/srv", "depth": 3 }))
    );
    assert_eq!(settings.plugins["echo"].ports, Some(Ports::Only(vec![7])));
    assert!(!settings.scripts["chat-room"].enabled);
}

#[test]
fn json_and_nothing_are_fine() {
    assert_eq!(parse("").unwrap(), Settings::default());
    assert_eq!(parse("owner: x\n").unwrap(), Settings::default());
    let settings = parse("{\"plugins\": {\"echo\": {\"limits\": {\"cpu\": 0.25}}}}").unwrap();
    assert!((settings.plugins["echo"].limits.cpu - 0.25).abs() < 1e-9);
    assert_eq!(
        parse("plugins:\nscripts:\n  a:\n").unwrap().scripts["a"],
        Entry { origin: PathBuf::from("/etc/pilot/pilot.yaml"), ..Entry::default() }
    );
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_key() {
    let entry = |line: &str| format!("plugins:\n  web:\n    enabled: true\n    {line}\n");
    let cases = [
        (entry("isolatoin: none"), 4, "plugins.web.isolatoin", "did you mean isolation?"),
        (entry("isolation: yes please"), 4, "plugins.web.isolation", "none or process"),
        (entry("limits: {steams: 3}"), 4, "plugins.web.limits.steams", "did you mean streams?"),
        (
            entry("limits:\n      streams: 3\n      callback: soon"),
            6,
            "plugins.web.limits.callback",
            "5s",
        ),
        (entry("limits: {memory: 3Q}"), 4, "plugins.web.limits.memory", "64M"),
        (entry("limits: {streams: 0}"), 4, "plugins.web.limits.streams", "from 1"),
        (entry("limits: {cpu: -1}"), 4, "plugins.web.limits.cpu", "50%"),
        (entry("ports:\n      - 7\n      - 70000"), 6, "plugins.web.ports.1", "65535"),
        (entry("ports: {http: 80}"), 4, "plugins.web.ports.http", "a list"),
        (entry("sha256: abc"), 4, "plugins.web.sha256", "64 hex digits"),
        (entry("grants: dial"), 4, "plugins.web.grants", "a list"),
        (entry("file: ''"), 4, "plugins.web.file", "a text"),
        (
            "plugins:\n  a: {}\n  Web Server: {}\n".to_owned(),
            3,
            "plugins.Web Server",
            "small letters",
        ),
        ("plugins: [web]\n".to_owned(), 1, "plugins", "not a list"),
        ("owner: x\nplugin-dirs: here\n".to_owned(), 2, "plugin-dirs", "a list"),
        ("a: 1\nplugin-dirs: []\nplugin_dirs: []\n".to_owned(), 3, "plugin_dirs", "there already"),
        ("trusted-keys: [abc]\n".to_owned(), 1, "trusted-keys.0", "32 bytes"),
        ("plugins: {a: }\nscripts:\n  a:\n".to_owned(), 3, "scripts.a", "rename"),
        ("plugins: {a: {enabled: 1}}\n".to_owned(), 1, "plugins.a.enabled", "true or false"),
    ];
    for (text, line, key, words) in cases {
        let error = parse(&text).unwrap_err();
        assert_eq!((error.line, error.key.as_str()), (Some(line), key), "{text}");
        let shown = error.to_string();
        let place = format!("/etc/pilot/pilot.yaml line {line}: key {key:?}");
        assert!(shown.contains(&place) && shown.contains(words), "{shown}");
    }
}

#[test]
fn what_is_no_yaml_has_a_line() {
    let error = parse("a: 1\nb: [1\nc: 2\n").unwrap_err();
    assert!(error.line.is_some_and(|line| line >= 2), "{error}");
    assert!(parse("- a\n").unwrap_err().to_string().contains("not a list"));
    assert!(parse("plugins: !tag {}\n").unwrap_err().to_string().contains("tag"));
    // Aliases are YAML, though they leave no lines.
    let settings = parse("x: &x {streams: 2}\nplugins: {a: {limits: *x}}\n").unwrap();
    assert_eq!(settings.plugins["a"].limits.streams, 2);
}

#[test]
fn an_entry_that_moves_is_the_same_entry() {
    let first = parse("plugins:\n  a:\n    config: {x: 1}\n").unwrap();
    let moved = parse("# a remark\n\nplugins:\n\n  a:\n    config:\n      x: 1\n").unwrap();
    assert_eq!(first, moved);
    assert_ne!(first, parse("plugins:\n  a:\n    config: {x: 2}\n").unwrap());
}

#[test]
fn what_is_set_at_run_time_goes_over_the_rest() {
    let settings = parse("plugins:\n  a: {grants: [dial], config: {x: 1, y: 2}}\n").unwrap();
    let over = json!({ "enabled": false, "config": { "y": 3 } });
    let merged = merge(&settings.plugins["a"], &over, "a").unwrap();
    assert!(!merged.enabled);
    assert_eq!(
        (merged.config, merged.grants),
        (json!({ "x": 1, "y": 3 }), vec!["dial".to_owned()])
    );
    let error = merge(&Entry::default(), &json!({ "confg": 1 }), "a").unwrap_err().to_string();
    assert!(error.contains("set at run time") && error.contains("did you mean config?"), "{error}");
}
