//! Command lines as published, and where they are stricter.

use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn parse(text: &str) -> Result<Args, Failure> {
    let line = Line::split(words(text))?;
    match find(&line.words) {
        Lookup::Found(spec, used) => Args::parse(spec, &line.words[used..]),
        _ => panic!("no such command: {text}"),
    }
}

fn refused(text: &str) -> Failure {
    match parse(text) {
        Ok(args) => panic!("{text} was taken: {args:?}"),
        Err(failure) => failure,
    }
}

#[test]
fn json_and_socket_stand_anywhere() {
    for text in ["--json info", "info --json", "--json=true info", "info --json=1"] {
        let line = Line::split(words(text)).expect(text);
        assert_eq!((line.json, line.words), (Some(true), words("info")), "{text}");
    }
    let line = Line::split(words("--json=false info")).expect("a boolean");
    assert_eq!(line.json, Some(false));
    assert_eq!(Line::split(words("info")).expect("plain").json, None);
    for text in ["--socket /x info", "info --socket=/x"] {
        let line = Line::split(words(text)).expect(text);
        assert_eq!((line.socket.as_deref(), line.words), (Some("/x"), words("info")), "{text}");
    }
    assert!(Line::split(words("--json=maybe info")).is_err());
    assert!(Line::split(words("--socket --json info")).is_err());
    assert!(Line::split(words("--cuont 1 ping x")).is_err());
    // Behind -- nothing is a flag.
    let line = Line::split(words("handshake 2 -- --json")).expect("plain");
    assert_eq!((line.json, line.words), (None, words("handshake 2 -- --json")));
}

#[test]
fn values_in_both_forms() {
    for text in ["ping x --count 3", "ping --count=3 x", "ping --count 3 x"] {
        let args = parse(text).expect(text);
        assert_eq!(args.number::<u32>("count").expect("a number"), Some(3), "{text}");
        assert_eq!(args.get(0), Some("x"), "{text}");
    }
    let args = parse("send 2 7 --data=--json=x").expect("a value with dashes");
    assert_eq!(args.value("data"), Some("--json=x"));
    let args = parse("send 2 7 --data -").expect("one dash is a value");
    assert_eq!(args.value("data"), Some("-"));
}

#[test]
fn booleans() {
    for (text, set) in [
        ("daemon status", false),
        ("daemon status --check", true),
        ("daemon status --check=true", true),
        ("daemon status --check=", true),
        ("daemon status --check 1", true),
        ("daemon status --check=false", false),
    ] {
        assert_eq!(parse(text).expect(text).is_set("check"), set, "{text}");
    }
    assert_eq!(refused("daemon status --check=maybe").code, "invalid_argument");
}

#[test]
fn mistakes_are_named() {
    let failure = refused("ping x --cuont 3");
    assert_eq!(failure.message, "unknown flag --cuont of ping");
    assert_eq!(failure.hint.as_deref(), Some("did you mean --count?"));
    assert_eq!(refused("ping x --count").message, "--count needs a value: --count <n>");
    assert_eq!(refused("find").message, "usage: pilotctl find <hostname>");
    assert_eq!(refused("find a b").reason.as_deref(), Some("unexpected argument \"b\""));
    let args = parse("ping x --count many").expect("checked when used");
    assert_eq!(args.number::<u32>("count").expect_err("no number").code, "invalid_argument");
}

#[test]
fn durations() {
    let ms = |n| Some(Duration::from_millis(n));
    for (text, expected) in [
        ("30s", ms(30_000)),
        ("2m", ms(120_000)),
        ("7d", ms(604_800_000)),
        ("1h30m", ms(5_400_000)),
        ("1.5s", ms(1_500)),
        ("500ms", ms(500)),
        ("2000us", ms(2)),
        ("10", ms(10_000)),
        ("0.5", ms(500)),
        ("", None),
        ("s", None),
        ("-1", None),
        ("3w", None),
        ("1e300", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(duration(text), expected, "{text:?}");
    }
}

#[test]
fn the_longest_time_can_be_added_to_a_clock() {
    for text in ["ping x --timeout 1e19", "ping x --timeout=5000000000000000h"] {
        let long = parse(text).expect(text).duration("timeout", Duration::ZERO).expect(text);
        assert_eq!(long, LONGEST, "{text}");
    }
}

#[test]
fn a_short_flag_can_be_a_value() {
    let line = Line::split(words("send 2 7 --data -h")).expect("a value");
    assert_eq!((line.help, line.words), (false, words("send 2 7 --data -h")));
    for text in ["send 2 7 -h", "send 2 7 --data=x -h", "daemon status --check -h", "-h"] {
        assert!(Line::split(words(text)).expect(text).help, "{text}");
    }
}

#[test]
fn json_is_seen_on_a_wrong_line() {
    for text in ["--cuont 1 --json", "--json=1 --cuont", "--socket --json", "--x --json=true"] {
        assert_eq!(json_asked(&words(text)), Some(true), "{text}");
    }
    for text in ["--cuont 1", "--json=false --cuont", "handshake 2 -- --json"] {
        assert_eq!(json_asked(&words(text)), None, "{text}");
    }
}
