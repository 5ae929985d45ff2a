//! Scripts that mean harm, or could as well: each is stopped, says where, and
//! leaves the host and the script's other streams alive.

use std::time::Duration;

use pilot_host::{Failure, Limits, LuaError, open_lua_source};
use pilot_plugin::{Batch, Verdict};
use serde_json::json;

use crate::support::{World, any_stream, eventually, request, wait};
use crate::{limits, run, run_with, service};

/// Name, the line at fault (from 3; line 1 and 2 are the wrapping), and code
/// that must fail with one of the words.
const BOMBS: &[(&str, &str, &str)] = &[
    ("endless loop", "while true do end", "processor time"),
    ("endless recursion", "local function f() return 1 + f() end f()", "stack overflow"),
    ("endless calls", "local function f() end\nwhile true do f() end", "processor time"),
    (
        "loop that swallows errors",
        "while true do pcall(function() while true do end end) end",
        "processor time",
    ),
    (
        "pcall within pcall",
        "local function f() pcall(f) pcall(f) while true do end end\npcall(f)\npcall(f)",
        "processor time",
    ),
    (
        "coroutines that swallow errors",
        "while true do coroutine.resume(coroutine.create(function() while true do end end)) end",
        "processor time",
    ),
    (
        "coroutine.wrap within pcall",
        "while true do pcall(coroutine.wrap(function() while true do end end)) end",
        "processor time",
    ),
    ("yields to nobody", "while true do coroutine.yield() end", "processor time"),
    (
        "a search of a text with a long pattern",
        "string.find(string.rep('a', 4000000), string.rep('a', 1000) .. 'b', 1, true)",
        "too long",
    ),
    ("an iterator without end", "for _ in function() return 1 end do end", "processor time"),
    (
        "pattern bomb",
        "string.find(string.rep('a', 40), string.rep('a?', 40) .. string.rep('a', 40) .. 'b')",
        "processor time",
    ),
    ("pattern bomb of balances", "string.find(string.rep('(', 4000000), '%b()')", "processor time"),
    (
        "a search of text times pattern",
        "string.find(string.rep('a', 4000000), string.rep('a', 2000000) .. 'b', 1, true)",
        "too long",
    ),
    (
        "a split of text times separator",
        "string.split(string.rep('a', 4000000), string.rep('a', 2000000) .. 'b')",
        "too long",
    ),
    (
        "a long class for every byte",
        "string.find(string.rep('a', 4000000), '[' .. string.rep('b', 1000000) .. ']*c')",
        "too long",
    ),
    (
        "comparator without end",
        "local t = {} for i = 1, 100 do t[i] = i end\ntable.sort(t, function() while true do end end)",
        "processor time",
    ),
    (
        "comparator that lies",
        "local t = {} for i = 1, 100 do t[i] = i end\nwhile true do pcall(table.sort, t, function() return true end) end",
        "processor time",
    ),
    (
        "sorting long texts",
        "local a, b = string.rep('x', 1000000) .. 'a', string.rep('x', 1000000) .. 'b'\nlocal t = {}\nfor i = 1, 20000 do t[i] = if i % 2 == 0 then a else b end\ntable.sort(t)",
        "processor time",
    ),
    ("moving nothing about", "table.move({}, 1, 2 ^ 31 - 1, 2)", "2^26"),
    ("a text of a gigabyte", "local s = string.rep('x', 1000000000)", "out of memory"),
    ("texts without end", "local s = 'x'\nwhile true do s = s .. s end", "out of memory"),
    ("tables without end", "local t = {}\nwhile true do t[#t + 1] = {} end", "out of memory"),
    ("a table of a billion", "local t = table.create(1000000000, 1)", "table overflow"),
    ("a buffer of a gigabyte", "local b = buffer.create(1000000000)", "out of memory"),
    (
        "memory that pcall gives back",
        "while true do pcall(string.rep, 'x', 1000000000) end",
        "processor time",
    ),
    (
        "coroutines without end",
        "local t = {}\nwhile true do t[#t + 1] = coroutine.create(function() end) end",
        "out of memory",
    ),
    ("coroutines within coroutines", "local function f() coroutine.wrap(f)() end\nf()", ""),
    ("a huge error", "error(string.rep('x', 1000000))", "xxxx"),
    ("an error that is a table", "error({})", "table"),
    ("an error that is nothing", "error()", "nil"),
    (
        "an error that cannot be told",
        "error(setmetatable({}, { __tostring = function() while true do end end }))",
        "",
    ),
    (
        "an error that fails when told",
        "error(setmetatable({}, { __tostring = function() error('again') end }))",
        "",
    ),
    (
        "a metamethod without end",
        "local t = setmetatable({}, { __index = function() while true do end end })\nlocal x = t.x",
        "processor time",
    ),
    (
        "a chain of metatables",
        "local t = {}\nfor i = 1, 200000 do t = setmetatable({}, { __index = t }) end\nlocal x = t.x",
        "",
    ),
    (
        "a deep nest as JSON",
        "local t = {} for i = 1, 100000 do t = { t } end\njson.encode(t)",
        "nested",
    ),
    ("a table in itself as JSON", "local t = {} t.t = t\njson.encode(t)", "itself"),
    (
        "a table many times over as JSON",
        "local t = { 1 } for i = 1, 64 do t = { t, t } end\njson.encode(t)",
        "more than",
    ),
    ("a deep nest from JSON", "json.decode(string.rep('[', 100000))", "not JSON"),
    ("functions without end", "while true do spawn(function() time.sleep(1000) end) end", "spawn"),
    ("results without end", "return unpack({}, 1, 10000000)", ""),
    ("a text called", "local s = 'x'\ns()", "attempt to call"),
    ("a number from a text", "return 1 + 'x'", "test.lua:3"),
    ("an index of nothing", "local t\nreturn t.x", "attempt to index nil"),
    ("a library changed", "string.find = nil", "readonly"),
    ("the metatable of texts changed", "getmetatable('').__index = {}", "readonly"),
    ("the globals cleared", "for k in pairs(_G) do _G[k] = nil end\nerror('done')", ""),
];

#[test]
fn every_bomb_is_stopped_and_told() {
    let mut wrong = Vec::new();
    for (name, code, word) in BOMBS {
        let text = service(&format!(
            "if stream:read_line() ~= 'bomb' then return stream:write('alive') end\n{code}"
        ));
        let script = run(&text, json!(null), &[]);
        let (near, far) = any_stream();
        script.instance.open(near);
        far.send("bomb\n");
        let reason = far.reset_reason();
        assert_eq!(reason, "the script failed", "{name}");
        eventually(name, || !script.world.failures().is_empty());
        let failures = script.world.failures();
        let first = failures[0].lines().next().unwrap();
        assert!(first.starts_with("test.lua:"), "{name}: {first}");
        let line = first["test.lua:".len()..].chars().next().unwrap();
        assert!(line.is_ascii_digit(), "{name} names no line: {}", failures[0]);
        if !failures[0].contains(word) {
            wrong.push(format!("{name}: not {word:?} but {first}"));
        }
        assert!(failures[0].len() < 10_000, "{name}: {} bytes", failures[0].len());
        // The host is alive, and so is the script, on both of its threads.
        for _ in 0..4 {
            assert_eq!(script.answer("hello\n"), "alive", "{name}");
        }
        let stats = script.instance.stats();
        assert!(!stats.ended, "{name}");
        assert!(stats.errors >= 1, "{name}");
        assert!(stats.last_error.unwrap().starts_with("test.lua:"), "{name}");
        assert!(stats.memory.unwrap() < 64 << 20, "{name}: {:?}", stats.memory);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_leads_out() {
    for name in [
        "os",
        "io",
        "require",
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "collectgarbage",
        "getfenv",
        "setfenv",
        "newproxy",
        "xpcall",
        "gcinfo",
        "package",
        "ffi",
        "jit",
    ] {
        let answer = crate::answer(&format!("stream:write(type({name}))"), "");
        assert_eq!(answer, "nil", "{name}");
    }
    let answer = crate::answer(
        "local names = {} for name in pairs(debug) do names[#names + 1] = name end
         stream:write(table.concat(names, ','))",
        "",
    );
    assert_eq!(answer, "traceback");
}

#[test]
fn finalizers_do_not_exist() {
    // Neither is called: there is no time at which a dead table's code runs.
    let answer = crate::answer(
        "local called = 0
         local mt = { __gc = function() called += 1 end, __close = function() called += 1 end }
         for i = 1, 20000 do setmetatable({}, mt) end
         stream:write(tostring(called))",
        "",
    );
    assert_eq!(answer, "0");
}

#[test]
fn one_that_computes_does_not_hold_up_the_other_thread() {
    let limits = Limits { callback: Duration::from_secs(600), ..limits() };
    let text =
        service("if stream:read_line() == 'spin' then while true do end end stream:write('ok')");
    let script = run_with(&text, json!(null), &[], limits);
    let (near, far) = any_stream();
    script.instance.open(near);
    far.send("spin\n");
    eventually("it runs", || {
        script.instance.stats().running.is_some_and(|(what, _)| what == "serve")
    });
    for _ in 0..10 {
        assert_eq!(script.answer("hello\n"), "ok");
    }
    eventually("its time is seen", || script.instance.stats().cpu > Duration::from_millis(50));
    // Dropping the instance stops even that; the drop of the stream shows it.
    drop(script);
    far.reset_reason();
}

#[test]
fn a_thread_that_computes_stops_when_the_instance_is_dropped() {
    let limits = Limits { callback: Duration::from_secs(600), ..limits() };
    let rule = "return { kind = 'rule', validate = function() while true do pcall(function() while true do end end) end end }";
    let script = run_with(rule, json!(null), &[], limits);
    let answer = script.instance.validate(request("test"));
    eventually("it runs", || script.instance.stats().running.is_some());
    drop(script);
    assert!(wait(answer).is_err());
}

#[test]
fn a_rule_that_fails_in_any_way_is_a_failure() {
    for (code, word) in [
        ("error('no')", "test.lua:2: no"),
        ("while true do end", "test.lua:2: stopped after 200 ms"),
        ("pcall(function() while true do end end) return true", "processor time"),
        ("local s = string.rep('x', 1e9) return true", "test.lua:2: out of memory"),
        ("return nil", "returned nothing"),
        ("return 1", "returned a integer"),
        ("return 'yes'", "returned a string"),
        ("return {}", "allow = true"),
        ("return { allow = 1 }", "allow = true"),
        ("return { allow = true, tag = {} }", "unknown key `tag`"),
        ("return { allow = true, tags = 'x' }", "`tags`"),
        ("return { allow = true, expires_at_ms = -1 }", "`expires_at_ms`"),
        ("return false, 5", "reason"),
        ("local t = nil return t.allow", "test.lua:2: attempt to index nil"),
    ] {
        let rule = format!("return {{ kind = 'rule', validate = function(request)\n{code}\nend }}");
        let script = run(&rule, json!(null), &[]);
        match wait(script.instance.validate(request("test"))) {
            Err(Failure::Failed(text)) => {
                assert!(text.contains(word), "{code}: {text}");
                assert!(text.starts_with("test.lua:"), "{code}: {text}");
                assert_eq!(script.world.failures(), [text], "{code}");
            }
            other => panic!("{code}: {other:?}"),
        }
        assert_eq!(script.instance.stats().errors, 1, "{code}");
    }
}

#[test]
fn a_rule_that_used_up_its_machine_gets_a_fresh_one() {
    let rule = "local calls = 0
return { kind = 'rule', validate = function(request)
  calls += 1
  if request.owner == 'mallory' then
    keep = {}
    while true do keep[#keep + 1] = string.rep('x', 1000) .. #keep end
  end
  return false, 'call ' .. calls
end }";
    let script = run(rule, json!(null), &[]);
    let ask = |owner: &str| {
        let mut request = request("test");
        request.owner = owner.into();
        wait(script.instance.validate(request))
    };
    assert_eq!(ask("ann"), Ok(Verdict::deny("call 1")));
    assert_eq!(ask("ann"), Ok(Verdict::deny("call 2")));
    for _ in 0..5 {
        let failure = ask("mallory").unwrap_err().to_string();
        assert!(failure.starts_with("test.lua:6: out of memory"), "{failure}");
        assert_eq!(ask("ann"), Ok(Verdict::deny("call 1")));
    }
}

#[test]
fn a_rule_that_waits_too_long_denies() {
    let rule = "return { kind = 'rule', validate = function() time.sleep(3600) return true end }";
    let limits = Limits { validate: Duration::from_millis(50), ..limits() };
    let script = run_with(rule, json!(null), &[], limits);
    let answer = wait(script.instance.validate(request("test")));
    assert_eq!(answer, Err(Failure::Timeout(Duration::from_millis(50))));
    assert!(script.world.failures()[0].starts_with("test.lua:1: `validate` gave no answer"));
}

#[test]
fn a_sink_that_fails_keeps_its_events() {
    let sink = "return { kind = 'sink', deliver = function(events)\nerror('down')\nend }";
    let script = run(sink, json!(null), &[]);
    let batch = Batch { sink: "test".into(), lines: "{\"event\":\"a\"}\n".into() };
    match wait(script.instance.deliver(batch)) {
        Err(Failure::Failed(text)) => assert!(text.starts_with("test.lua:2: down"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn events_and_lines_without_end_are_bounded() {
    let limits = Limits { events: 10, ..limits() };
    let text = service(
        "local kept = 0
         for i = 1, 100 do if emit('flood', { i = i }) then kept += 1 end print('line', i) end
         local _, reason = emit('flood')
         stream:write(kept .. ' ' .. reason)",
    );
    let script = run_with(&text, json!(null), &[], limits);
    let answer = script.answer("");
    let (kept, reason) = answer.split_once(' ').unwrap();
    let kept: usize = kept.parse().unwrap();
    assert!((10..50).contains(&kept), "{kept}");
    assert_eq!(reason, "more than 10 events a second");
    assert_eq!(script.world.events.lock().unwrap().len(), kept);
}

#[test]
fn a_file_that_never_ends_loading_is_refused() {
    let world = World::new();
    // Only the configuration makes it loop, so that it opens.
    let text = "while config.loop do end return { kind = 'rule', config_schema = {}, validate = function() return true end }";
    let backend = open_lua_source("test.lua", text.as_bytes()).unwrap();
    let limits = Limits { start: Duration::from_millis(100), ..limits() };
    let result = backend.start(&json!({"loop": true}), world.context("test", limits.clone(), &[]));
    let error = result.err().unwrap().to_string();
    assert!(error.contains("test.lua:1: stopped") || error.contains("100 ms"), "{error}");
    assert!(backend.start(&json!({}), world.context("test", limits, &[])).is_ok());
}

#[test]
fn what_is_no_source_is_refused() {
    let refused = |text: &[u8]| open_lua_source("test.lua", text).err().unwrap();
    assert!(matches!(refused(b"\x1bLua\x54"), LuaError::NotSource { .. }));
    assert!(matches!(refused(b"\x06\x03\x01"), LuaError::NotSource { .. }));
    assert!(matches!(refused(b"\x7fELF\xff\xff"), LuaError::NotSource { .. }));
    assert!(refused(b"\x06").to_string().contains("bytecode"));
    assert!(matches!(refused(&vec![b' '; 5 << 20]), LuaError::NotSource { .. }));
}
