//! The pieces without I/O; delivery to a receiver is in the modules below.

mod delivery;
mod proxy;
mod receiver;
mod splitting;
mod tls;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use pilot_plugin::json::{self, json};

use crate::answer::{MAX_PAUSE, Meaning, describe, meaning};
use crate::config::Config;
use crate::format::{Format, id};
use crate::settings::Settings;
use crate::sign::Signer;
use crate::source::Redactor;
use crate::target::{Proxy, Target, bypasses};

fn config(value: json::Value) -> Config {
    json::from_value(value).unwrap()
}

/// Settings of a configuration that has no secrets in the environment.
fn settings(value: json::Value) -> Settings {
    Settings::resolve(&config(value), &|_| None).unwrap().unwrap()
}

fn refusal(value: json::Value) -> String {
    let environment = HashMap::from([("EMPTY", ""), ("TOKEN", "t0ken")]);
    let read = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    match Settings::resolve(&config(value), &read) {
        Ok(_) => panic!("it was taken"),
        Err(why) => why,
    }
}

/// Events 1 to `count` of node 2 as the host sends them.
fn events(count: usize) -> Vec<String> {
    (1..=count).map(event).collect()
}

fn event(number: usize) -> String {
    format!(
        "{{\"event\":\"conn.established\",\"node_id\":2,\
         \"timestamp\":\"2026-11-20T12:01:50.808553914Z\",\"event_id\":{number},\
         \"data\":{{\"conn_id\":{number},\"dst_port\":5000,\
         \"src_addr\":\"0:0000.0000.0001\",\"src_port\":49152}}}}"
    )
}

fn pause(value: &str, now: SystemTime) -> Option<Duration> {
    let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
    match meaning(StatusCode::TOO_MANY_REQUESTS, &headers, now) {
        Meaning::Later { after, credentials: false } => after,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_status_has_one_meaning() {
    let none = HeaderMap::new();
    for code in 100..1000 {
        let status = StatusCode::from_u16(code).unwrap();
        let later = |credentials| Meaning::Later { after: None, credentials };
        let expected = match code {
            200..=299 => Meaning::Accepted,
            307 | 308 => Meaning::Elsewhere { same_request: true },
            300..=399 => Meaning::Elsewhere { same_request: false },
            401 | 403 | 407 => later(true),
            404 | 405 | 408 | 410 | 421 | 425 | 426 | 429 => later(false),
            400..=499 => Meaning::Refused,
            _ => later(false),
        };
        assert_eq!(meaning(status, &none, SystemTime::UNIX_EPOCH), expected, "{code}");
    }
}

#[test]
fn retry_after_in_seconds_and_as_a_date() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
    assert_eq!(pause("120", now), Some(Duration::from_secs(120)));
    assert_eq!(pause(" 0 ", now), Some(Duration::ZERO));
    assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
    assert_eq!(pause("Sun, 06 Nov 1994 08:49:20 GMT", now), Some(Duration::ZERO));
    assert_eq!(pause("99999999999999999999999", now), Some(MAX_PAUSE));
    assert_eq!(pause("7200", now), Some(MAX_PAUSE));
    assert_eq!(pause("soon", now), None);
    assert_eq!(pause("-1", now), None);
    assert_eq!(pause("", now), None);
}

#[test]
fn an_answer_is_described_without_secrets() {
    let mut redact = Redactor::default();
    redact.add("t0ken");
    redact.add("t0ken-and-more");
    let headers = HeaderMap::from_iter([(
        LOCATION,
        HeaderValue::from_static("https://user:pass@b.example/x/s3cret?sig=1#y"),
    )]);
    let text = describe("a.example:443", StatusCode::FOUND, &headers, b"", &redact);
    assert_eq!(
        text,
        "a.example:443 answered 302 Found to https://b.example/x/***, and redirects are not \
         followed: correct `url`"
    );

    // The secret lies across the end of what is shown.
    let body = format!("{}\r\n\x1b[1mbad t0ken-and-more", "x".repeat(185));
    let text =
        describe("a:1", StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes(), &redact);
    assert_eq!(text, format!("a:1 answered 400 Bad Request: {} [1mbad ***", "x".repeat(185)));
    let body = "é".repeat(300);
    let text =
        describe("a:1", StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes(), &redact);
    assert_eq!(text, format!("a:1 answered 400 Bad Request: {}", "é".repeat(200)));
}

/// The signature is what the reference library of Standard Webhooks (Python,
/// `standardwebhooks`) makes of the same.
#[test]
fn a_signature_of_the_reference_library() {
    let mut signer = Signer::default();
    signer.add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw").unwrap();
    let body = br#"{"test": 2432232314}"#;
    let signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
    assert_eq!(signed, "v1,q6KMVIJHk4Gs770FfR5f591Ftx7uVJSGl5wHV1ri978=");
    // A second secret adds a signature, and the first stays as it is.
    signer.add("another, which is not base64").unwrap();
    let both = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
    let both = both.to_str().unwrap().split(' ').collect::<Vec<_>>();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], signed);
    assert_ne!(both[1], signed);
    assert_eq!(Signer::default().sign("x", 1, body), None);
    assert!(signer.add("whsec_!").unwrap_err().contains("base64"));
    assert!(signer.add("").is_err());
}

#[test]
fn bodies_and_ids() {
    let events = events(3);
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(Format::Single.encode(&events[..1]), events[0]);
    let array: Vec<json::Value> = json::from_slice(&Format::JsonArray.encode(&events)).unwrap();
    assert_eq!(array.len(), 3);
    assert_eq!(array[2]["event_id"], 3);
    assert_eq!(Format::Ndjson.encode(&events), format!("{}\n", events.join("\n")));
    assert_eq!(id(&events[1..2]), "evt_2_2");
    assert_eq!(id(&events), "evt_2_1_3");
}

#[test]
fn urls() {
    let target = Target::parse("https://hooks.example:8443/a/b?c=d").unwrap();
    assert_eq!((target.tls, target.place().as_str()), (true, "hooks.example:8443"));
    assert_eq!(
        (target.path.as_str(), &target.authority),
        ("/a/b?c=d", &"hooks.example:8443".parse().unwrap())
    );
    let target = Target::parse("http://[::1]").unwrap();
    assert_eq!((target.host.as_str(), target.port), ("::1", 80));
    assert_eq!((target.place().as_str(), target.path.as_str()), ("[::1]:80", "/"));
    for bad in ["", "hooks.example", "ftp://a/", "http://", "http://u:p@a/", "http://a b/"] {
        let why = Target::parse(bad).unwrap_err();
        assert!(bad.is_empty() || !why.contains(bad), "{why}");
    }

    let target = Target::parse("http://a.example/in").unwrap();
    assert_eq!(target.same_origin("/out?x=1#y").unwrap().path, "/out?x=1");
    assert_eq!(target.same_origin("http://A.example:80/out").unwrap().path, "/out");
    for other in ["//a.example/out", "https://a.example/", "http://a.example:81/", "out", ""] {
        assert_eq!(target.same_origin(other), None, "{other}");
    }
}

#[test]
fn proxies() {
    let proxy = Proxy::parse("http://us%40er:p%3Aw@10.0.0.1:3128/").unwrap();
    assert_eq!(proxy.place(), "10.0.0.1:3128");
    // base64 of us@er:p:w
    assert_eq!(proxy.authorization.unwrap(), "Basic dXNAZXI6cDp3");
    assert_eq!(proxy.secrets[0], "p:w");
    assert!(Proxy::parse("http://[::1]:1").unwrap().authorization.is_none());
    for bad in ["https://a:1", "http://a", "a:1", "http://u:%zz@a:1", "http://:1"] {
        assert!(Proxy::parse(bad).is_err(), "{bad}");
    }
    let list = ["localhost".to_owned(), ".corp.example".to_owned(), "[::1]".to_owned()];
    for host in ["LOCALHOST", "a.corp.example", "a.b.corp.example", "::1"] {
        assert!(bypasses(host, &list), "{host}");
    }
    for host in ["corp.example", "xcorp.example", "localhost.example", "10.0.0.1"] {
        assert!(!bypasses(host, &list), "{host}");
    }
    assert!(bypasses("anything", &["*".to_owned()]));
}

#[test]
fn configurations() {
    let resolve = |value| Settings::resolve(&config(value), &|_| None).unwrap();
    assert!(resolve(json!({})).is_none());
    assert!(resolve(json!({ "url": "" })).is_none());
    let published = resolve(json!({ "url": "http://127.0.0.1:1/" })).unwrap();
    assert_eq!(published.timeout, Duration::from_secs(5));
    assert_eq!(published.format, Format::Single);
    assert_eq!(published.headers["content-type"], "application/json");

    let read = |name: &str| (name == "TOKEN").then(|| "t0ken\n".to_owned());
    let token = json!({ "url": "http://127.0.0.1:1/", "bearer": { "from-env": "TOKEN" } });
    let settings = Settings::resolve(&config(token), &read).unwrap().unwrap();
    assert_eq!(settings.headers["authorization"], "Bearer t0ken");
    assert!(settings.headers["authorization"].is_sensitive());
    assert_eq!(settings.redact.clean("no t0ken"), "no ***");

    let slack = resolve(json!({ "url": "http://h/services/T0/B0/s3cr3ts3cr3t?k=abcdef" })).unwrap();
    let echoed = "POST /services/T0/B0/s3cr3ts3cr3t?k=abcdef: s3cr3ts3cr3t is unknown";
    assert_eq!(slack.redact.clean(echoed), "POST /services/***?***: *** is unknown");

    for (written, time) in [
        (json!("250ms"), Duration::from_millis(250)),
        (json!(7), Duration::from_secs(7)),
        (json!("7"), Duration::from_secs(7)),
        (json!("30s"), Duration::from_secs(30)),
    ] {
        let settings = resolve(json!({ "url": "http://127.0.0.1:1/", "timeout": written }));
        assert_eq!(settings.unwrap().timeout, time);
    }
    for bad in [
        json!({ "timeout": "0s" }),
        json!({ "timeout": "31s" }),
        json!({ "timeout": "1m" }),
        json!({ "timeout": "5 s" }),
        json!({ "timeout": "s" }),
        json!({ "mode": "many" }),
        json!({ "bearer": { "from-file": "a", "from-env": "b" } }),
        json!({ "tls": { "insecure": true } }),
        json!({ "uri": "http://127.0.0.1/" }),
    ] {
        assert!(json::from_value::<Config>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn a_bad_configuration_names_the_key_and_the_file_but_no_secret() {
    let url = "http://127.0.0.1:1/";
    let cases = [
        (json!({ "url": "gopher://x" }), "`url`: it must begin"),
        (
            json!({ "url": url, "bearer": { "from-env": "NONE" } }),
            "`bearer`: the environment variable NONE",
        ),
        (json!({ "url": url, "bearer": { "from-env": "EMPTY" } }), "EMPTY is empty"),
        (
            json!({ "url": url, "secret": { "from-file": "/nonexistent/s" } }),
            "`secret`: cannot read /nonexistent/s",
        ),
        (json!({ "url": url, "secret": "whsec_t0ken!" }), "`secret`: what follows"),
        (json!({ "url": url, "headers": { "a b": "x" } }), "`headers.a b`"),
        (json!({ "url": url, "headers": { "Host": "x" } }), "`headers.Host`: this header is set"),
        (json!({ "url": url, "headers": { "x-a": "t0ken\n" } }), "`headers.x-a`: the value"),
        (
            json!({ "url": url, "bearer": "a", "headers": { "Authorization": "b" } }),
            "exclude each other",
        ),
        (json!({ "url": url, "proxy": "http://u:t0ken@h" }), "`proxy`: it has no port"),
        (json!({ "url": url, "tls": {} }), "`tls` is set, but"),
        (
            json!({ "url": "https://127.0.0.1:1/", "tls": { "ca-file": "/nonexistent/ca" } }),
            "`tls.ca-file`: cannot read /nonexistent/ca",
        ),
        (
            json!({ "url": "https://127.0.0.1:1/", "tls": { "ca-file": "/dev/null" } }),
            "no certificate in /dev/null",
        ),
    ];
    for (written, expected) in cases {
        let why = refusal(written);
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("t0ken"), "{why}");
    }
}

#[test]
fn the_schema_names_every_key() {
    let schema = pilot_plugin::schemars::schema_for!(Config);
    let schema = json::to_value(&schema).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    let keys = schema["properties"].as_object().unwrap();
    for key in [
        "url",
        "mode",
        "format",
        "timeout",
        "headers",
        "bearer",
        "secret",
        "proxy",
        "no-proxy",
        "follow-redirects",
        "tls",
    ] {
        assert!(keys[key]["description"].is_string() || keys[key].is_object(), "{key}");
    }
    let timeout = json::to_string(&schema["$defs"]["Timeout"]).unwrap();
    assert!(timeout.contains("integer") && timeout.contains("string"), "{timeout}");
}
