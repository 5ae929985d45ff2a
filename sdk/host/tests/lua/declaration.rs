//! What a script declares, and what is said of one that declares nonsense.

use pilot_host::{LuaError, open_lua, open_lua_source};
use pilot_plugin::{Rule, Service, Sink};
use serde_json::json;

#[test]
fn a_service_is_what_its_table_says() {
    let text =
        "return { kind = 'service', name = 'my-echo', version = '1.2', description = 'Echoes.',
        ports = { 7, 2000 }, datagrams = true, needs = { 'dial', 'http:example.com' },
        config_schema = { type = 'object', properties = { x = { type = 'number' } } },
        serve = function() end, datagram = function() end }";
    let backend = open_lua_source("echo.lua", text.as_bytes()).unwrap();
    let manifest = backend.manifest();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("my-echo", "1.2"));
    assert_eq!(manifest.description, "Echoes.");
    assert_eq!(
        manifest.services,
        [Service { name: "my-echo".into(), ports: vec![7, 2000], datagrams: true }]
    );
    assert_eq!(manifest.needs, ["dial", "http:example.com"]);
    assert_eq!(
        manifest.config_schema,
        Some(json!({"type": "object", "properties": {"x": {"type": "number"}}}))
    );
}

#[test]
fn a_name_comes_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Rate_Limit.rule.lua");
    std::fs::write(&path, "return { kind = 'rule', validate = function() end }").unwrap();
    let backend = open_lua(&path).unwrap();
    assert_eq!(backend.manifest().name, "rate-limit-rule");
    assert_eq!(backend.manifest().rules, [Rule { name: "rate-limit-rule".into() }]);
    let text = b"return { kind = 'sink', max_batch = 5, deliver = function() end }";
    let backend = open_lua_source("s.lua", text).unwrap();
    assert_eq!(backend.manifest().sinks, [Sink { name: "s".into(), max_batch: 5 }]);
    assert!(matches!(open_lua(&folder.path().join("none.lua")), Err(LuaError::Read { .. })));
}

#[test]
fn nonsense_is_refused_with_file_line_and_a_hint() {
    let serve = "serve = function() end";
    let cases: &[(&str, &str)] = &[
        ("", "test.lua: it returns nothing"),
        ("return 5", "test.lua: it returns a integer"),
        ("return {}", "test.lua: the table it returns has no `kind`"),
        (
            "return {\n kind = 'servise' }",
            "test.lua:2: there is no kind \"servise\"; did you mean \"service\"?",
        ),
        ("return {\n kind = 'thing' }", "test.lua:2: there is no kind \"thing\": it is"),
        ("return { kind = 5 }", "test.lua:1: `kind` is a text"),
        ("return { kind = 'service' }", "test.lua:1: a service needs `serve"),
        ("return { kind = 'rule' }", "test.lua:1: a rule needs `validate"),
        ("return { kind = 'sink' }", "test.lua:1: a sink needs `deliver"),
        (
            "return { kind = 'service',\n\n serv = function() end }",
            "test.lua:3: unknown key `serv`; did you mean `serve`?",
        ),
        (
            "return { kind = 'rule', validate = print,\n port = 5 }",
            "test.lua:2: unknown key `port`; a rule has: kind",
        ),
        (
            "return { kind = 'rule', validate = print, 5 }",
            "test.lua: the table it returns has a integer as key",
        ),
        (
            "return { kind = 'rule',\n validate = 'x' }",
            "test.lua:2: `validate` is a function, here it is a string",
        ),
        (
            "return { kind = 'rule', validate = print,\n name = 'My Rule' }",
            "test.lua:2: \"My Rule\" is no name",
        ),
        (
            "return { kind = 'rule', validate = print, version = 1 }",
            "test.lua:1: `version` is a text",
        ),
        (
            "return { kind = 'rule', validate = print, needs = 'dial' }",
            "test.lua:1: `needs` is a list",
        ),
        (
            "return { kind = 'rule', validate = print, config_schema = { type = 5 } }",
            "test.lua:1: `config_schema`: no JSON Schema",
        ),
        (
            "return { kind = 'rule', validate = print, config_schema = { f = print } }",
            "test.lua:1: `config_schema`: ",
        ),
        (
            "return { kind = 'service', SERVE, port = 70000 }",
            "test.lua:1: `port` is a number from 0 to 65535",
        ),
        ("return { kind = 'service', SERVE, ports = { 'a' } }", "test.lua:1: `ports` is a list"),
        ("return { kind = 'service', SERVE, ports = {} }", "test.lua:1: `ports` is a list"),
        (
            "return { kind = 'service', SERVE, port = 1, ports = { 2 } }",
            "test.lua:1: either `port` or `ports`",
        ),
        (
            "return { kind = 'service', SERVE, datagrams = true }",
            "test.lua:1: `datagrams = true` needs `datagram",
        ),
        (
            "return { kind = 'service', SERVE, datagrams = 1 }",
            "test.lua:1: `datagrams` is true or false",
        ),
        ("local x =\n\nreturn {", "test.lua:3: "),
        ("return {\n kind = 'rule'\n validate = print }", "test.lua:3: "),
        ("local x = nil\nlocal y = x.z", "test.lua:2: attempt to index nil"),
        ("while true do end", "test.lua:1: stopped after"),
        ("local s = string.rep('x', 1e9)", "test.lua: out of memory while it was loaded"),
    ];
    for (text, expected) in cases {
        let text = text.replace("SERVE", serve);
        match open_lua_source("test.lua", text.as_bytes()) {
            Ok(_) => panic!("{text} was taken"),
            Err(error) => {
                let said = error.to_string();
                assert!(said.starts_with(expected), "{text}\n  said: {said}\n  not: {expected}");
            }
        }
    }
}

#[test]
fn a_failure_while_loading_has_a_traceback() {
    let text = "local function f()\n  error('no')\nend\nlocal x = f()";
    match open_lua_source("test.lua", text.as_bytes()).err().unwrap() {
        LuaError::Failed { message, traceback } => {
            assert_eq!(message, "test.lua:2: no");
            assert!(traceback.contains("test.lua:4:"), "{traceback}");
        }
        other => panic!("{other:?}"),
    }
}
