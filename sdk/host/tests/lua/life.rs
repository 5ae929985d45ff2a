//! An instance from its start to its end: threads, draining, generations.

use std::time::Duration;

use bytes::Bytes;
use pilot_host::{Failure, Limits, StartError, open_lua_source};
use pilot_plugin::{Batch, Verdict};
use serde_json::{Value, json};

use crate::support::{World, any_stream, eventually, request, wait};
use crate::{limits, run, run_with, service};

const ECHO: &str = "while true do
  local data = stream:read()
  if not data then return end
  stream:write(data)
end";

#[test]
fn an_echo_gives_back_everything_in_order() {
    let script = run(&service(ECHO), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = Bytes::from(data.clone());
            let mut size = 1;
            while !rest.is_empty() {
                far.send_when_room(rest.split_to(size.min(rest.len())), 8);
                size = size % 100_000 + 777;
            }
            far.end();
        });
        assert!(far.receive_all() == data);
    });
    let stats = script.instance.stats();
    assert_eq!((stats.streams, stats.streams_total, stats.errors), (0, 1, 0));
    assert_eq!(stats.queue, 0);
    assert!(stats.memory.unwrap() > 0 && stats.last_error.is_none());
}

#[test]
fn streams_go_to_the_thread_with_the_fewest() {
    // Each thread has a machine of its own, and so its own counter.
    let text = "local count = 0
    return { kind = 'service', port = 1, serve = function(stream)
      count += 1
      stream:write(count .. '\\n')
      stream:read()
    end }";
    let script = run(text, Value::Null, &[]);
    let mut first = Vec::new();
    let streams: Vec<_> = (0..10)
        .map(|_| {
            let (near, far) = any_stream();
            script.instance.open(near);
            first.push(String::from_utf8(far.receive(2)).unwrap());
            far
        })
        .collect();
    first.sort();
    assert_eq!(first.concat(), "1\n1\n2\n2\n3\n3\n4\n4\n5\n5\n");
    assert_eq!(script.instance.stats().streams, 10);
    for far in &streams {
        far.end();
    }
    eventually("all are over", || script.instance.stats().streams == 0);
}

#[test]
fn draining_lets_streams_finish_and_then_ends() {
    let script = run(&service(ECHO), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    far.send("a");
    assert_eq!(far.receive(1), b"a");
    script.instance.drain(Duration::from_secs(3600));
    let (near, late) = any_stream();
    script.instance.open(near);
    assert_eq!(late.reset_reason(), "the script is ending");
    far.send("b");
    assert_eq!(far.receive(1), b"b");
    assert!(!script.instance.stats().ended);
    far.end();
    assert_eq!(far.receive_text(), "");
    eventually("it ends", || script.instance.stats().ended);
}

#[test]
fn the_drain_deadline_resets_what_is_left() {
    let script = run(&service(ECHO), Value::Null, &[]);
    let fars: Vec<_> = (0..5)
        .map(|_| {
            let (near, far) = any_stream();
            script.instance.open(near);
            far.send("a");
            far.receive(1);
            far
        })
        .collect();
    script.instance.drain(Duration::from_millis(30));
    for far in &fars {
        assert_eq!(far.reset_reason(), "the script has ended");
    }
    eventually("it ends", || script.instance.stats().ended);
    assert_eq!(script.instance.stats().streams, 0);
    assert!(script.world.failures().is_empty());
}

#[test]
fn draining_answers_what_was_asked() {
    let rule = "return { kind = 'rule', validate = function() time.sleep(0.05) return true end }";
    let script = run(rule, Value::Null, &[]);
    let answers: Vec<_> = (0..10).map(|_| script.instance.validate(request("test"))).collect();
    script.instance.drain(Duration::from_secs(3600));
    for answer in answers {
        assert_eq!(wait(answer), Ok(Verdict::allow()));
    }
    eventually("it ends", || script.instance.stats().ended);
    assert_eq!(wait(script.instance.validate(request("test"))), Err(Failure::Ended));
}

#[test]
fn dropping_an_instance_resets_its_streams() {
    let script =
        run(&service("spawn(function() time.sleep(3600) end)\nstream:read()"), Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    eventually("it runs", || script.instance.stats().calls == 1);
    drop(script);
    assert_eq!(far.reset_reason(), "the script has ended");
}

#[test]
fn generations_share_nothing_but_the_store() {
    let text = "local mine = 0
    return { kind = 'service', port = 1, serve = function(stream)
      mine += 1
      local kept = (tonumber(store.get('n')) or 0) + 1
      store.put('n', tostring(kept))
      stream:write(mine .. ' ' .. kept)
    end }";
    let backend = open_lua_source("test.lua", text.as_bytes()).unwrap();
    let world = World::new();
    for generation in 1..=3 {
        let instance = backend.start(&Value::Null, world.context("test", limits(), &[])).unwrap();
        let script = crate::Script { world: world.clone(), instance };
        assert_eq!(script.answer(""), format!("1 {generation}"));
    }
}

#[test]
fn a_script_that_refuses_its_configuration_does_not_start() {
    let text = "if config.port == 0 then error('port must not be 0') end
    return { kind = 'rule', config_schema = {}, validate = function() return true end }";
    let backend = open_lua_source("test.lua", text.as_bytes()).unwrap();
    let world = World::new();
    match backend.start(&json!({"port": 0}), world.context("test", limits(), &[])) {
        Err(StartError::Refused(text)) => {
            assert!(text.starts_with("test.lua:1: port must not be 0"), "{text}");
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn streams_and_questions_are_bounded() {
    let limits = Limits { streams: 2, ..limits() };
    let script = run_with(&service("stream:read()"), Value::Null, &[], limits);
    let (near, first) = any_stream();
    script.instance.open(near);
    let (near, _second) = any_stream();
    script.instance.open(near);
    let (near, third) = any_stream();
    script.instance.open(near);
    assert_eq!(third.reset_reason(), "the script has 2 streams already");
    first.end();
    eventually("one is over", || script.instance.stats().streams == 1);
    let (near, fourth) = any_stream();
    script.instance.open(near);
    fourth.end();
    assert_eq!(fourth.receive_text(), "");

    // The thread computes, so that what is asked stays in the queue.
    let limits = Limits { queue: 3, callback: Duration::from_secs(600), ..crate::limits() };
    let rule = "return { kind = 'rule', validate = function() while true do end end }";
    let script = run_with(rule, Value::Null, &[], limits);
    let _running = script.instance.validate(request("test"));
    eventually("it runs", || script.instance.stats().running.is_some());
    let _waiting: Vec<_> = (0..3).map(|_| script.instance.validate(request("test"))).collect();
    assert_eq!(script.instance.stats().queue, 3);
    match wait(script.instance.validate(request("test"))) {
        Err(Failure::Failed(text)) => assert_eq!(text, "3 questions wait for the script already"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_script_is_not_is_unsupported() {
    let script = run(&service(ECHO), Value::Null, &[]);
    assert_eq!(wait(script.instance.validate(request("test"))), Err(Failure::Unsupported));
    let batch = Batch { sink: "test".into(), lines: String::new() };
    assert_eq!(wait(script.instance.deliver(batch)), Err(Failure::Unsupported));
    let script = run("return { kind = 'rule', validate = print }", Value::Null, &[]);
    let (near, far) = any_stream();
    script.instance.open(near);
    assert_eq!(far.reset_reason(), "the script is no service");
}

#[test]
fn many_questions_at_once_are_all_answered() {
    let rule = "return { kind = 'rule', validate = function(r)
      if r.node % 3 == 0 then time.sleep(0.001) end
      return r.node % 2 == 0, 'node ' .. r.node
    end }";
    let script = run(rule, Value::Null, &[]);
    let answers: Vec<_> = (0..2000)
        .map(|node| {
            let mut request = request("test");
            request.node.0 = node;
            script.instance.validate(request)
        })
        .collect();
    for (node, answer) in answers.into_iter().enumerate() {
        let expected =
            if node % 2 == 0 { Verdict::allow() } else { Verdict::deny(format!("node {node}")) };
        assert_eq!(wait(answer), Ok(expected));
    }
    assert_eq!(script.instance.stats().calls, 2000);
}

#[test]
fn a_stream_that_never_waits_lets_others_have_a_turn() {
    // One thread is enough to show it: both streams are on each thread once.
    let script = run(&service(ECHO), Value::Null, &[]);
    let greedy: Vec<_> = (0..2)
        .map(|_| {
            let (near, far) = any_stream();
            script.instance.open(near);
            far
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for far in &greedy {
            scope.spawn(|| {
                let piece = Bytes::from(vec![7u8; 16 << 10]);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    far.send_when_room(piece.clone(), 64);
                    far.receive(16 << 10);
                }
            });
        }
        for _ in 0..20 {
            assert_eq!(script.answer("hello"), "hello");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(script.instance.stats().errors, 0);
}
