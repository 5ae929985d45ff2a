//! Every function that a script has.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use pilot_plugin::{Batch, Delivery, Verdict};
use serde_json::{Value, json};

use crate::support::{QUOTA, address, any_stream, eventually, request, wait};
use crate::{answer, run, service};

#[test]
fn read_gives_what_is_there_and_nil_at_the_end() {
    let body = "while true do
      local data, reason = stream:read(4)
      if not data then return stream:write('end ' .. tostring(reason)) end
      stream:write('[' .. data .. ']')
    end";
    assert_eq!(answer(body, "abcdefghij"), "[abcd][efgh][ij]end nil");
    assert_eq!(answer("stream:write(tostring(stream:read()))", ""), "nil");
    let large = "x".repeat(300_000);
    assert_eq!(answer("stream:write(#stream:read() .. '')", &large), "131072");
    assert_eq!(answer("stream:write(#stream:read(1000000) .. '')", &large), "262144");
    let text = answer("stream:write(select(2, pcall(stream.read, stream, 0)))", "x");
    assert!(text.contains("read(0)"), "{text}");
}

#[test]
fn small_pieces_are_put_together() {
    let script = run(&service("stream:read(1)\nstream:write(stream:read())"), Value::Null, &[]);
    let (near, far) = any_stream();
    for piece in ["a", "bc", "", "def", "g"] {
        far.send(piece.as_bytes().to_vec());
    }
    script.instance.open(near);
    assert_eq!(far.receive_text(), "bcdefg");
}

#[test]
fn read_line_takes_both_line_ends_and_a_last_line_without() {
    let body = "while true do
      local line, reason = stream:read_line()
      if not line then return stream:write('end ' .. tostring(reason)) end
      stream:write('[' .. line .. ']')
    end";
    assert_eq!(answer(body, "one\ntwo\r\n\n\r\nlast"), "[one][two][][][last]end nil");
    assert_eq!(answer(body, ""), "end nil");
    let long = "x".repeat(70_000);
    assert_eq!(answer(body, &long), "end the line is longer than 65536 bytes");
    assert_eq!(answer(body, &format!("{long}\n")), "end the line is longer than 65536 bytes");
}

#[test]
fn lines_come_in_any_pieces() {
    let script = run(
        &service("for _ = 1, 3 do stream:write('[' .. stream:read_line() .. ']') end"),
        Value::Null,
        &[],
    );
    let (near, far) = any_stream();
    script.instance.open(near);
    for piece in ["he", "llo", "\nwor", "ld\r", "\n", "three\nrest"] {
        far.send(piece.as_bytes().to_vec());
        thread::yield_now();
    }
    assert_eq!(far.receive_text(), "[hello][world][three]");
}

#[test]
fn read_exactly_waits_for_all_of_it() {
    let body = "stream:write(stream:read_exactly(3) .. '|' .. stream:read_exactly(0) .. '|')
      local data, reason = stream:read_exactly(10)
      stream:write(tostring(data) .. ' ' .. reason)";
    assert_eq!(answer(body, "abcdef"), "abc||nil the stream ended after 3 of 10 bytes");
    let text = answer("stream:write(select(2, pcall(stream.read_exactly, stream, 1e9)))", "");
    assert!(text.contains("up to 4194304 bytes"), "{text}");
}

#[test]
fn kinds_of_reading_mix() {
    let body = "local n = tonumber(stream:read_line())
      stream:write(stream:read_exactly(n) .. '|' .. stream:read_line() .. '|' .. stream:read())";
    assert_eq!(answer(body, "5\nhello, you\nrest"), "hello|, you|rest");
}

#[test]
fn write_waits_for_room() {
    // Eight times what the stream takes at once.
    let body = "local s = string.rep('0123456789abcdef', 65536)
      for _ = 1, 8 do assert(stream:write(s)) end";
    let script = run(&service(body), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    let got = far.receive_all();
    assert_eq!(got.len(), 8 << 20);
    assert!(got.chunks(16).all(|part| part == b"0123456789abcdef"));
}

#[test]
fn a_broken_stream_is_a_reason_and_no_failure() {
    let body = "local data, reason = stream:read()
      emit('read', { reason = reason })
      local ok, why = stream:write('x')
      emit('write', { ok = ok, reason = why })";
    let script = run(&service(body), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    far.break_with("connection reset by peer");
    eventually("both are told", || script.world.events.lock().unwrap().len() == 2);
    let events = script.world.events.lock().unwrap();
    assert_eq!(Value::from(events[0].1.clone()), json!({"reason": "connection reset by peer"}));
    assert_eq!(Value::from(events[1].1.clone()), json!({"reason": "connection reset by peer"}));
    assert!(script.world.failures().is_empty());
}

#[test]
fn close_shutdown_and_reset() {
    assert_eq!(answer("stream:write('a') stream:close() stream:close()", ""), "a");
    let body = "stream:write('a') stream:close()
      emit('after', { read = { stream:read() }, write = { stream:write('b') } })";
    let script = run(&service(body), Value::Null, &[]);
    assert_eq!(script.answer(""), "a");
    eventually("it is told", || script.world.events.lock().unwrap().len() == 1);

    let script =
        run(&service("stream:shutdown() emit('got', { text = stream:read() })"), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    assert_eq!(far.receive_text(), "");
    far.send("later");
    eventually("it reads on", || script.world.events.lock().unwrap().len() == 1);

    let script = run(&service("stream:reset('not like this')"), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    assert_eq!(far.reset_reason(), "not like this");
}

#[test]
fn peer_and_stream_say_who_and_where() {
    let body =
        "stream:write(json.encode({ peer = peer, port = stream.port, remote = stream.remote }))";
    let told: Value = serde_json::from_str(&answer(body, "")).unwrap();
    assert_eq!(
        told,
        json!({
            "peer": {
                "address": address(7).to_string(),
                "port": 49_152,
                "node": 7,
                "trusted": true,
                "networks": [3, 5],
                "tags": ["gpu", "lab"],
                "hostname": "seven",
                "public_key": "cGs=",
            },
            "port": 2000,
            "remote": address(7).port(49_152).to_string(),
        })
    );
}

#[test]
fn json_goes_both_ways() {
    let body = "stream:write(json.encode(json.decode(stream:read())))";
    for text in [
        "{}",
        "[]",
        "[[],{}]",
        "[1,2.5,-3,\"x\",true,false,null]",
        "{\"a\":{\"b\":[1]},\"c\":\"\u{e4}\\n\"}",
        "9007199254740992",
        "\"\"",
        "null",
        "1e300",
    ] {
        let back: Value = serde_json::from_str(&answer(body, text)).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(text).unwrap(), "{text}");
    }
    // Null in an object is an absent key, as Lua has it.
    assert_eq!(answer(body, "{\"a\":null,\"b\":1}"), "{\"b\":1}");
    assert_eq!(
        answer("stream:write(json.encode({ a = json.null, b = {}, c = json.array() }))", ""),
        "{\"a\":null,\"b\":{},\"c\":[]}"
    );
    assert_eq!(answer("stream:write(json.encode(json.array({ 1 })))", ""), "[1]");
    for (code, word) in [
        ("json.decode('{')", "not JSON"),
        ("json.decode('1 2')", "not JSON"),
        ("json.encode({ 1, a = 2 })", "both"),
        ("json.encode({ [3] = 1 })", "keys are text"),
        ("json.encode(print)", "function"),
        ("json.encode(0/0)", "no form"),
        ("json.encode('\\255')", "UTF-8"),
        ("json.encode({ stream })", "userdata"),
    ] {
        let text = answer(
            &format!(
                "local ok, err = pcall(function() {code} end) stream:write(tostring(ok) .. err)"
            ),
            "",
        );
        assert!(text.starts_with("falsetest.lua:2: "), "{code}: {text}");
        assert!(text.contains(word), "{code}: {text}");
    }
}

#[test]
fn digests_are_those_of_the_standards() {
    // FIPS 180-4 and RFC 4231, cases 1, 2 and 6.
    assert_eq!(
        answer("stream:write(sha256('abc'))", ""),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(
        answer("stream:write(hmac_sha256(string.rep('\\11', 20), 'Hi There'))", ""),
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    );
    assert_eq!(
        answer("stream:write(hmac_sha256('Jefe', 'what do ya want for nothing?'))", ""),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
    assert_eq!(
        answer(
            "stream:write(hmac_sha256(string.rep('\\170', 131), 'Test Using Larger Than Block-Size Key - Hash Key First'))",
            ""
        ),
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    );
    assert_eq!(answer("stream:write(#sha256('abc', 'raw') .. '')", ""), "32");
    assert_eq!(
        answer("stream:write(sha256('abc', 'base64'))", ""),
        "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
    );
    assert!(answer("stream:write(select(2, pcall(sha256, 'a', 'b')))", "").contains("no form"));
}

#[test]
fn base64_goes_both_ways() {
    assert_eq!(answer("stream:write(base64.encode('\\0\\255a'))", ""), "AP9h");
    assert_eq!(answer("stream:write(base64.decode('aGVsbG8='))", ""), "hello");
    let text = answer("local d, e = base64.decode('%') stream:write(tostring(d) .. ' ' .. e)", "");
    assert!(text.starts_with("nil not base64"), "{text}");
}

#[test]
fn time_has_a_clock_a_calendar_and_pauses() {
    let body = "local d = time.date(1700000000, tonumber(stream:read()))
      stream:write(table.concat({ d.year, d.month, d.day, d.hour, d.min, d.sec, d.wday, d.yday, d.iso }, ' '))";
    assert_eq!(answer(body, "0"), "2023 11 14 22 13 20 3 318 2023-11-14T22:13:20Z");
    assert_eq!(answer(body, "120"), "2023 11 15 0 13 20 4 319 2023-11-15T00:13:20+02:00");
    assert_eq!(answer(body, "-210"), "2023 11 14 18 43 20 3 318 2023-11-14T18:43:20-03:30");
    assert_eq!(answer("stream:write(time.date(0).iso)", ""), "1970-01-01T00:00:00Z");
    let body = "local a, b = time.now(), time.monotonic()
      time.sleep(0.02)
      local c, d = time.now(), time.monotonic()
      stream:write(tostring(a > 1.7e9 and c > a and d - b >= 0.02 and time.date().year >= 2023))";
    assert_eq!(answer(body, ""), "true");
    for code in [
        "time.sleep(-1)",
        "time.sleep(1e9)",
        "time.sleep(0/0)",
        "time.date(-1)",
        "time.date(0, 5000)",
    ] {
        let text = answer(&format!("stream:write(select(2, pcall(function() {code} end)))"), "");
        assert!(text.starts_with("test.lua:2: time."), "{code}: {text}");
    }
}

#[test]
fn pauses_do_not_hold_up_others() {
    let body = "if stream:read() == 'wait' then time.sleep(3600) end stream:write('ok')";
    let script = run(&service(body), Value::Null, &[]);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (near, far) = any_stream();
            script.instance.open(near);
            far.send("wait");
            far
        })
        .collect();
    assert_eq!(script.answer("now"), "ok");
    eventually("only they are left", || script.instance.stats().streams == waiting.len());
}

#[test]
fn emit_checks_and_passes_on() {
    let script = run(
        &service(
            "stream:write(tostring(emit('door.opened', { who = peer.node, list = { 1, 2 } })) .. tostring(emit('bare')))",
        ),
        Value::Null,
        &[],
    );
    assert_eq!(script.answer(""), "truetrue");
    let events = script.world.events.lock().unwrap();
    assert_eq!(events[0].0, "door.opened");
    assert_eq!(Value::from(events[0].1.clone()), json!({"who": 7, "list": [1, 2]}));
    assert_eq!(events[1].0, "bare");
    drop(events);
    for code in ["emit('')", "emit('x', { 1 })", "emit(string.rep('x', 200))", "emit()"] {
        let text = answer(&format!("stream:write(select(2, pcall(function() {code} end)))"), "");
        assert!(text.starts_with("test.lua:2: "), "{code}: {text}");
    }
}

#[test]
fn the_store_keeps_and_bounds() {
    let body = "
      assert(store.get('a') == nil)
      assert(store.put('a', '1') and store.put('ab', 'x\\0y') and store.put('b', '3'))
      assert(store.get('ab') == 'x\\0y')
      assert(table.concat(store.keys('a'), ',') == 'a,ab')
      assert(#store.keys() == 3)
      assert(store.delete('a') and store.delete('a'))
      assert(store.get('a') == nil)
      local ok, reason = store.put('big', string.rep('x', 100000))
      stream:write(tostring(ok) .. ' ' .. reason .. '|')
      ok, reason = store.put('', 'x')
      stream:write(tostring(ok) .. ' ' .. reason)";
    let text = answer(body, "");
    assert!(text.starts_with("nil the store of test would take"), "{text}");
    assert!(text.contains(&QUOTA.to_string()), "{text}");
    assert!(text.ends_with("nil a key has 1 to 256 bytes, this one 0"), "{text}");
}

#[test]
fn call_needs_its_grant() {
    let body = "local ok, a, b = pcall(call, stream:read(), { x = { 1 } })
      stream:write(json.encode({ ok = ok, a = a, b = b }))";
    let script = run(&service(body), Value::Null, &["echo", "fail", "other"]);
    let told = |input: &str| serde_json::from_str::<Value>(&script.answer(input)).unwrap();
    assert_eq!(told("echo"), json!({"ok": true, "a": {"x": [1]}}));
    assert_eq!(told("fail"), json!({"ok": true, "b": "it is broken; mend it"}));
    assert_eq!(told("other"), json!({"ok": true, "b": "there is no method \"other\" here"}));
    let refused = told("node.stop");
    assert_eq!(refused["ok"], false);
    let text = refused["a"].as_str().unwrap();
    assert!(text.contains("does not grant \"node.stop\""), "{text}");
    assert_eq!(script.world.calls.lock().unwrap().len(), 3);
    // The star grants every method.
    let script = run(&service(body), Value::Null, &["*"]);
    assert_eq!(script.answer("echo"), "{\"a\":{\"x\":[1]},\"ok\":true}");
}

#[test]
fn dial_gives_a_stream() {
    let body = "local out, reason = dial(stream:read_line())
      if not out then return stream:write('no: ' .. reason) end
      out:write('ping')
      stream:write(out:read_line() .. ' ' .. out.port .. ' ' .. out.remote)
      out:close()";
    let script = run(&service(body), Value::Null, &["dial"]);
    let (near, far) = any_stream();
    script.instance.open(near);
    far.send("friend:7\n");
    eventually("it dials", || !script.world.dialled.lock().unwrap().is_empty());
    let (to, friend) = script.world.dialled.lock().unwrap().pop().unwrap();
    assert_eq!(to, "friend:7");
    assert_eq!(friend.receive(4), b"ping");
    friend.send("pong\n");
    assert_eq!(far.receive_text(), format!("pong 0 {}", address(9).port(7)));
    assert_eq!(friend.receive_text(), "");
    assert_eq!(script.answer("nobody:7\n"), "no: nobody:7: no such host");

    let script =
        run(&service("stream:write(select(2, pcall(dial, 'friend:7')))"), Value::Null, &[]);
    assert!(script.answer("").contains("does not grant \"dial\""));
}

#[test]
fn dialled_streams_are_bounded() {
    let limits = pilot_host::Limits { streams: 3, ..crate::limits() };
    let body = "local kept, reason = {}
      for i = 1, 5 do kept[i], reason = dial('friend:7') end
      stream:write(#kept .. ' ' .. reason)";
    let script = crate::run_with(&service(body), Value::Null, &["dial"], limits);
    assert_eq!(script.answer(""), "3 3 dialled streams are open already; close some");
}

#[test]
fn spawn_runs_beside() {
    let body = "
      spawn(function(text) time.sleep(0.01) stream:write(text) stream:close() end, 'from beside')
      spawn(function() error('beside') end)
      stream:read()
      time.sleep(1)";
    let script = run(&service(body), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    assert_eq!(far.receive_text(), "from beside");
    eventually("its failure is told", || !script.world.failures().is_empty());
    assert!(script.world.failures()[0].starts_with("test.lua:4: beside"));
}

#[test]
fn coroutines_wait_for_the_host_like_everything_else() {
    let body = "
      local lines = coroutine.wrap(function()
        while true do
          local line = stream:read_line()
          if not line then return nil end
          time.sleep(0.001)
          coroutine.yield(line)
        end
      end)
      for line in lines do stream:write('[' .. line .. ']') end
      local co = coroutine.create(function(a) local b = coroutine.yield(a + 1) error('oh ' .. b) end)
      stream:write(json.encode({ { coroutine.resume(co, 1) }, { coroutine.resume(co, 5) }, { coroutine.resume(co) } }))";
    let text = answer(body, "one\ntwo\n");
    assert!(
        text.starts_with("[one][two][[true,2],[false,\"test.lua:12: oh 5\"],[false,"),
        "{text}"
    );
}

#[test]
fn errors_that_are_caught_are_texts() {
    let body = "
      local ok, err = pcall(stream.read, stream, 'many')
      stream:write(type(err) .. ' ' .. err .. '\\n')
      ok, err = pcall(error, { code = 5 })
      stream:write(type(err) .. ' ' .. err.code .. '\\n')
      stream:write(tostring(pcall(function(...) return ... end, 1)) .. '\\n')
      stream:write(select('#', pcall(function() return nil, nil end)) .. '')";
    let text = answer(body, "");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("string test.lua:3: bad argument #2 to read"), "{text}");
    assert_eq!(lines[1..], ["table 5", "true", "3"]);
}

#[test]
fn a_failure_has_file_line_and_traceback() {
    let source = "local function inner(x)
  return x.y.z
end
local function outer(x)
  local z = inner(x)
  return z
end
return { kind = 'service', port = 1, serve = function(stream)
  outer({})
  stream:write('never')
end }";
    let script = run(source, Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    far.reset_reason();
    eventually("it is told", || !script.world.failures().is_empty());
    let text = script.instance.stats().last_error.unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "test.lua:2: attempt to index nil with 'z'");
    assert!(lines[1].contains("test.lua:2:") && lines[1].contains("inner"), "{text}");
    assert!(lines[2].contains("test.lua:5:") && lines[2].contains("outer"), "{text}");
    assert!(lines[3].contains("test.lua:9:"), "{text}");
}

#[test]
fn config_is_there_and_cannot_be_changed() {
    let text = "return { kind = 'service', port = 1, config_schema = { type = 'object' },
      serve = function(stream)
        local ok = pcall(function() config.list[1] = 9 end)
        stream:write(config.name .. config.list[2] .. tostring(ok))
      end }";
    let script = run(text, json!({"name": "n", "list": [1, 2]}), &[]);
    assert_eq!(script.answer(""), "n2false");
}

#[test]
fn a_verdict_has_all_its_parts() {
    let rule = "return { kind = 'rule', validate = function(r)
      assert(r.rule == 'test' and r.network == 5 and r.network_name == 'lab' and r.node == 7)
      assert(r.public_key == 'a2V5' and r.hostname == 'seven' and r.tags[1] == 'gpu')
      assert(r.proof == nil or r.proof.token == 't')
      assert(r.source == '192.0.2.7' and r.at_ms == 1700000000000)
      if r.owner == 'ann' then return true end
      if r.owner == 'bob' then return false, 'not bob' end
      if r.owner == 'eve' then return { allow = false, reason = 'not eve' } end
      if r.owner == 'kim' then return false end
      return { allow = true, tags = { 'a', 'b' }, expires_at_ms = r.at_ms + 1, external_identity = 'x' }
    end }";
    let script = run(rule, Value::Null, &[]);
    let ask = |owner: &str, proof: Value| {
        let mut request = request("test");
        request.owner = owner.into();
        request.proof = proof;
        wait(script.instance.validate(request)).unwrap()
    };
    assert_eq!(ask("ann", json!({"token": "t"})), Verdict::allow());
    assert_eq!(ask("ann", Value::Null), Verdict::allow());
    assert_eq!(ask("bob", Value::Null), Verdict::deny("not bob"));
    assert_eq!(ask("eve", Value::Null), Verdict::deny("not eve"));
    assert_eq!(ask("kim", Value::Null), Verdict::deny("refused by the rule"));
    assert_eq!(
        ask("joe", Value::Null),
        Verdict::Allow {
            tags: vec!["a".into(), "b".into()],
            expires_at_ms: Some(1_700_000_000_001),
            external_identity: Some("x".into()),
            uses: None,
        }
    );
}

#[test]
fn a_rule_sees_what_the_network_says_and_what_is_kept() {
    let rule = "return { kind = 'rule', validate = function(r)
      if r.config == nil and r.kept == nil then return false, 'told nothing' end
      local token = r.kept.tokens[1]
      if sha256(token.salt .. r.proof) ~= token.hash then return false, 'wrong' end
      return { allow = true, tags = r.config.tags, uses = token.id }
    end }";
    let script = run(rule, Value::Null, &[]);
    let ask = |config: Value, kept: Value| {
        let mut request = request("test");
        (request.proof, request.config, request.kept) = (json!("word"), config, kept);
        wait(script.instance.validate(request)).unwrap()
    };
    assert_eq!(ask(Value::Null, Value::Null), Verdict::deny("told nothing"));
    // SHA-256 of "saltword".
    let hash = "0bdb89f3e2a6423e0aa6840d1f81e4100a631ef66eca2ae0d03fb9a4ce3b25f5";
    let kept = |hash: &str| json!({"tokens": [{"id": "t1", "salt": "salt", "hash": hash}]});
    assert_eq!(ask(json!({"tags": []}), kept("00")), Verdict::deny("wrong"));
    assert_eq!(
        ask(json!({"tags": ["a"]}), kept(hash)),
        Verdict::Allow {
            tags: vec!["a".into()],
            expires_at_ms: None,
            external_identity: None,
            uses: Some("t1".into()),
        }
    );
}

#[test]
fn a_delivery_has_all_its_parts() {
    let sink = "return { kind = 'sink', max_batch = 10, deliver = function(events)
      local e = events[1]
      assert(#events == 2 and e.event_id == 8 and e.node_id == 7 and e.timestamp == 'now')
      time.sleep(0.001)
      return json.decode(e.event)
    end }";
    let script = run(sink, Value::Null, &[]);
    let ask = |answer: Value| {
        let event = |id: u64| {
            let text = answer.to_string();
            json!({"event": text, "node_id": 7, "timestamp": "now", "event_id": id, "data": {}})
        };
        let lines = format!("{}\n{}\n", event(8), event(9));
        wait(script.instance.deliver(Batch { sink: "test".into(), lines }))
    };
    assert_eq!(ask(json!(true)), Ok(Delivery::Ack));
    assert_eq!(
        ask(json!({"retry_after": 1.5, "reason": "busy", "accepted": 1})),
        Ok(Delivery::Retry { accepted: 1, after_ms: Some(1500), reason: "busy".into() })
    );
    assert_eq!(
        ask(json!({"retry_after": true})),
        Ok(Delivery::retry("the script wants to try again"))
    );
    assert_eq!(
        ask(json!({"reject": true, "reason": "bad"})),
        Ok(Delivery::Reject { accepted: 0, rejected: 0, reason: "bad".into() })
    );
    assert_eq!(
        ask(json!({"reject": 1, "accepted": 1})),
        Ok(Delivery::Reject { accepted: 1, rejected: 1, reason: "rejected by the script".into() })
    );
    for wrong in [
        json!(false),
        json!(5),
        json!({}),
        json!({"retry_after": -1}),
        json!({"retry_after": 1, "reject": true}),
        json!({"retry": 1}),
        json!({"reject": "all"}),
    ] {
        assert!(ask(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn datagrams_reach_their_function() {
    let text = "return { kind = 'service', port = 5, datagram = function(data, peer, port)
      if data == 'bad' then error('bad one') end
      time.sleep(0.001)
      emit('datagram', { data = data, from = peer.address, port = port })
    end }";
    let script = run(text, Value::Null, &[]);
    script.instance.datagram(address(7).port(9), 5, "hello".into());
    eventually("it arrives", || !script.world.events.lock().unwrap().is_empty());
    let event = Value::from(script.world.events.lock().unwrap()[0].1.clone());
    assert_eq!(event, json!({"data": "hello", "from": address(7).to_string(), "port": 5}));
    script.instance.datagram(address(7).port(9), 5, "bad".into());
    eventually("it fails", || !script.world.failures().is_empty());
    assert!(script.world.failures()[0].starts_with("test.lua:2: bad one"));
    // It has no `serve`.
    let (near, far) = any_stream();
    script.instance.open(near);
    assert_eq!(far.reset_reason(), "this service takes datagrams only");
}

/// A web server that gives each request its answer, and tells the requests.
fn web(answers: Vec<String>) -> (u16, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        answers
            .into_iter()
            .map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut part = [0; 4096];
                loop {
                    let read = stream.read(&mut part).unwrap();
                    request.extend_from_slice(&part[..read]);
                    let text = String::from_utf8_lossy(&request).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "))
                        .map_or(0, |length| length.parse().unwrap());
                    if body.len() >= length || read == 0 {
                        break;
                    }
                }
                // A client that has seen enough may be gone.
                let _ = stream.write_all(answer.as_bytes());
                String::from_utf8(request).unwrap()
            })
            .collect()
    });
    (port, server)
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn http_asks_hosts_that_are_granted() {
    let (port, server) = web(vec![
        response("200 OK", "X-Two: a\r\nX-Two: b\r\n", "hello"),
        response("201 Created", "", ""),
        response("302 Found", "location: http://elsewhere.example/\r\n", ""),
        response("200 OK", "", &"x".repeat(9 << 20)),
        "garbage\r\n\r\n".into(),
    ]);
    let body = format!(
        "local base = 'http://127.0.0.1:{port}'
        local r = assert(http.get(base .. '/a?b=1', {{ headers = {{ ['X-Mine'] = 'yes' }} }}))
        assert(r.status == 200 and r.body == 'hello' and r.headers['x-two'] == 'a, b')
        r = assert(http.post(base .. '/p', 'the body'))
        assert(r.status == 201 and r.body == '')
        r = assert(http.request({{ method = 'PUT', url = base .. '/r', body = 'b', timeout = 5 }}))
        assert(r.status == 302 and r.headers.location == 'http://elsewhere.example/')
        local none, reason = http.get(base .. '/large')
        assert(none == nil and string.find(reason, 'length limit exceeded'), reason)
        none, reason = http.get(base .. '/garbage')
        assert(none == nil and reason, 'garbage')
        stream:write('done')"
    );
    let script = run(&service(&body), Value::Null, &["http:127.0.0.1"]);
    assert_eq!(script.answer(""), "done", "{:?}", script.world.failures());
    let requests = server.join().unwrap();
    assert!(requests[0].starts_with("GET /a?b=1 HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].to_lowercase().contains("x-mine: yes\r\n"), "{}", requests[0]);
    assert!(requests[0].contains("pilot-script/"), "{}", requests[0]);
    assert!(requests[1].starts_with("POST /p "), "{}", requests[1]);
    assert!(requests[1].ends_with("\r\n\r\nthe body"), "{}", requests[1]);
    assert!(requests[2].starts_with("PUT /r "), "{}", requests[2]);
}

#[test]
fn http_times_out() {
    // Takes the connection, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = format!(
        "local r, reason = http.get('http://127.0.0.1:{port}/', {{ timeout = 0.05 }}) stream:write(reason)"
    );
    let script = run(&service(&body), Value::Null, &[&format!("http:127.0.0.1:{port}")]);
    assert_eq!(script.answer(""), "no answer within 0.05 s");
}

#[test]
fn http_refuses_what_is_not_granted() {
    let ask = |url: &str, granted: &[&str]| {
        let body = "local ok, err, reason = pcall(http.get, stream:read(), { timeout = 5 })
            stream:write(tostring(ok) .. ' ' .. tostring(err) .. ' ' .. tostring(reason))";
        run(&service(body), Value::Null, granted).answer(url)
    };
    for (url, granted) in [
        ("http://example.com/", &[][..]),
        ("http://example.com/", &["*"]),
        ("http://example.com/", &["http:example.com:8080"]),
        ("https://example.com/", &["http:example.com:80"]),
        ("http://example.com@evil.test/", &["http:example.com"]),
        ("http://example.com.evil.test/", &["http:example.com"]),
        ("http://evil.test/?example.com", &["http:example.com"]),
        ("http://[::1]/", &["http:example.com"]),
    ] {
        let text = ask(url, granted);
        assert!(text.starts_with("false ") && text.contains("grants neither"), "{url}: {text}");
    }
    for url in ["ftp://example.com/", "/path", "file:///etc/passwd", "not a url"] {
        let text = ask(url, &["*", "http:example.com"]);
        assert!(text.starts_with("false test.lua:2: http: "), "{url}: {text}");
    }
    // Granted, and nobody there: an answer of the world, not an error.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = ask(&format!("http://LOCALHOST:{port}/"), &["http:localhost"]);
    assert!(text.starts_with("true nil "), "{text}");
}

#[test]
fn nothing_outward_works_while_the_file_is_loaded() {
    for code in [
        "emit('x')",
        "store.get('x')",
        "spawn(print)",
        "time.sleep(1)",
        "dial('a:1')",
        "call('echo')",
        "http.get('http://example.com')",
    ] {
        let text =
            format!("{code}\nreturn {{ kind = 'rule', validate = function() return true end }}");
        let error = pilot_host::open_lua_source("test.lua", text.as_bytes()).err().unwrap();
        let text = error.to_string();
        assert!(text.starts_with("test.lua:1: "), "{code}: {text}");
        assert!(text.contains("while the file is loaded"), "{code}: {text}");
    }
}
