//! Delivery over TCP to a receiver that is down, slow, wrong or impolite.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilot_plugin::Delivery;
use pilot_plugin::json::{Value, json};
use sha2::{Digest, Sha256};

use super::receiver::{Receiver, Reply, ok, status};
use super::{config, event, events, settings};
use crate::worker::Worker;

/// No test waits longer.
const BOUND: Duration = Duration::from_secs(60);

pub(super) fn worker(value: Value) -> Worker {
    Worker::start(config(value.clone()), settings(value)).unwrap()
}

pub(super) async fn deliver(worker: &Worker, events: &[String]) -> Delivery {
    let mut lines = events.join("\n");
    lines.push('\n');
    tokio::time::timeout(BOUND, worker.deliver(lines)).await.unwrap()
}

/// A retry that says all of this; gives how many were accepted, and the pause.
pub(super) fn retry(delivery: Delivery, says: &[&str]) -> (usize, Option<u64>) {
    match delivery {
        Delivery::Retry { accepted, after_ms, reason } => {
            for expected in says {
                assert!(reason.contains(expected), "{reason}");
            }
            (accepted, after_ms)
        }
        other => panic!("{other:?}"),
    }
}

/// Answers with `reply` on the `at`th request, otherwise OK.
fn once(
    at: usize,
    mut reply: impl FnMut() -> Reply,
) -> impl FnMut(&super::receiver::Received) -> Reply {
    let mut count = 0;
    move |_| {
        count += 1;
        if count == at { reply() } else { ok() }
    }
}

#[tokio::test]
async fn single_events_arrive_as_published_on_one_connection() {
    let receiver = Receiver::new(|_| ok()).await;
    let worker = worker(json!({ "url": receiver.url() }));
    let sent = events(100);
    assert_eq!(deliver(&worker, &sent[..60]).await, Delivery::Ack);
    assert_eq!(deliver(&worker, &sent[60..]).await, Delivery::Ack);

    let received = receiver.received();
    assert!(received.iter().map(|r| r.body.as_slice()).eq(sent.iter().map(|s| s.as_bytes())));
    assert_eq!(receiver.connections(), 1);
    let first = &received[0];
    assert_eq!(first.line, "POST /hook HTTP/1.1");
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(first.header("host"), receiver.address.to_string());
    assert_eq!(first.header("webhook-id"), "evt_2_1");
    assert_eq!(first.header("webhook-signature"), "");
    // The published keys, and the number of the event beside them.
    let body: Value = pilot_plugin::json::from_slice(&first.body).unwrap();
    let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 5);
    for key in ["event", "node_id", "timestamp", "event_id", "data"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
}

#[tokio::test]
async fn batches_arrive_as_an_array_and_as_lines() {
    for (format, kind) in [("json-array", "application/json"), ("ndjson", "application/x-ndjson")] {
        let receiver = Receiver::new(|_| ok()).await;
        let worker = worker(json!({ "url": receiver.url(), "mode": "batch", "format": format }));
        assert_eq!(deliver(&worker, &events(500)).await, Delivery::Ack);
        let received = receiver.received();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].header("content-type"), kind);
        assert_eq!(received[0].header("webhook-id"), "evt_2_1_500");
        assert!(receiver.numbers().into_iter().eq(1..=500));
    }
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_everything_later() {
    let receiver = Receiver::new(|_| ok()).await;
    let address = receiver.address.to_string();
    let worker = worker(json!({ "url": receiver.url() }));
    assert_eq!(deliver(&worker, &events(3)).await, Delivery::Ack);
    receiver.close().await;

    let (accepted, after) = retry(deliver(&worker, &events(3)).await, &[&address]);
    assert_eq!((accepted, after), (0, None));
    let says: [&str; 2] = ["cannot connect to", &address];
    assert_eq!(retry(deliver(&worker, &events(3)).await, &says), (0, None));

    let receiver = Receiver::start(&address, None, |_| ok()).await;
    assert_eq!(deliver(&worker, &events(3)).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2, 3]);
}

#[tokio::test]
async fn a_slow_receiver_is_given_the_time_configured() {
    let receiver = Receiver::new(once(2, || Reply::Silence)).await;
    let worker = worker(json!({ "url": receiver.url(), "timeout": "300ms" }));
    let says = ["did not answer within 300ms (`timeout`)", "127.0.0.1:"];
    assert_eq!(retry(deliver(&worker, &events(3)).await, &says), (1, None));
    // What was not answered comes again, the rest only now.
    assert_eq!(deliver(&worker, &events(3)[1..]).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2, 2, 3]);
}

#[tokio::test]
async fn failing_statuses_keep_the_rest() {
    let body = "x".repeat(300);
    for (line, headers, after) in [
        ("500 Internal Server Error", vec![], None),
        ("503 Service Unavailable", vec!["retry-after: 3"], Some(3000)),
        ("429 Too Many Requests", vec!["Retry-After: 7"], Some(7000)),
        ("408 Request Timeout", vec![], None),
        ("401 Unauthorized", vec![], None),
        ("403 Forbidden", vec![], None),
        ("404 Not Found", vec![], None),
        ("410 Gone", vec![], None),
    ] {
        let answer = body.clone();
        let failing = once(3, move || status(line, &headers, &answer));
        let receiver = Receiver::new(failing).await;
        let worker = worker(json!({ "url": receiver.url() }));
        let place = receiver.address.to_string();
        let shown = format!("{line}: {}", "x".repeat(200));
        let delivery = deliver(&worker, &events(5)).await;
        if let Delivery::Retry { reason, .. } = &delivery {
            assert!(reason.ends_with(&shown), "{reason}");
        }
        assert_eq!(retry(delivery, &[&place, &shown]), (2, after));
        assert_eq!(deliver(&worker, &events(5)[2..]).await, Delivery::Ack);
        assert_eq!(receiver.numbers(), [1, 2, 3, 3, 4, 5]);
    }
}

#[tokio::test]
async fn a_date_in_retry_after_becomes_a_pause() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(900));
    let header = format!("retry-after: {date}");
    let receiver = Receiver::new(move |_| status("503 Service Unavailable", &[&header], "")).await;
    let worker = worker(json!({ "url": receiver.url() }));
    let (_, after) = retry(deliver(&worker, &events(1)).await, &["503"]);
    let after = after.unwrap();
    // The date has no milliseconds, and the machine may be slow.
    assert!((800_000..=900_000).contains(&after), "{after}");
}

#[tokio::test]
async fn a_redirect_is_shown_and_not_followed() {
    let elsewhere = Receiver::new(|_| ok()).await;
    let to = format!("location: {}?key=hidden", elsewhere.url());
    let receiver = Receiver::new(move |_| status("301 Moved Permanently", &[&to], "")).await;
    for redirects in ["never", "same-origin"] {
        let worker = worker(json!({ "url": receiver.url(), "follow-redirects": redirects }));
        let delivery = deliver(&worker, &events(2)).await;
        if let Delivery::Retry { reason, .. } = &delivery {
            assert!(!reason.contains("hidden"), "{reason}");
        }
        let says = ["301 Moved Permanently", &elsewhere.url(), "redirects are not followed"];
        assert_eq!(retry(delivery, &says), (0, None));
    }
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn redirects_to_the_same_origin_are_followed_when_allowed() {
    let receiver = Receiver::new(|request| match request.line.as_str() {
        "POST /hook HTTP/1.1" => status("307 Temporary Redirect", &["location: /a"], ""),
        "POST /a HTTP/1.1" => status("308 Permanent Redirect", &["location: /b?x=1"], ""),
        "POST /b?x=1 HTTP/1.1" => ok(),
        _ => status("308 Permanent Redirect", &["location: /loop"], ""),
    })
    .await;
    let follow = worker(json!({ "url": receiver.url(), "follow-redirects": "same-origin" }));
    assert_eq!(deliver(&follow, &events(1)).await, Delivery::Ack);
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    assert_eq!(received[0].body, received[2].body);
    assert_eq!(receiver.connections(), 1);

    let url = format!("http://{}/loop", receiver.address);
    let endless = worker(json!({ "url": url, "follow-redirects": "same-origin" }));
    assert_eq!(retry(deliver(&endless, &events(1)).await, &["308", "/loop"]), (0, None));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    for broken in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let receiver = Receiver::new(once(2, move || Reply::Last(broken.to_owned()))).await;
        let worker = worker(json!({ "url": receiver.url() }));
        let place = receiver.address.to_string();
        assert_eq!(retry(deliver(&worker, &events(3)).await, &[&place]), (1, None));
        assert_eq!(deliver(&worker, &events(3)[1..]).await, Delivery::Ack);
        assert_eq!(receiver.numbers(), [1, 2, 2, 3]);
    }
}

#[tokio::test]
async fn a_receiver_that_closes_after_each_answer_gets_each_event_once() {
    let receiver = Receiver::new(|_| {
        Reply::Last("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned())
    })
    .await;
    let worker = worker(json!({ "url": receiver.url() }));
    assert_eq!(deliver(&worker, &events(20)).await, Delivery::Ack);
    assert!(receiver.numbers().into_iter().eq(1..=20));
    assert_eq!(receiver.connections(), 20);
}

#[tokio::test]
async fn an_endless_answer_is_cut_off_and_counts() {
    let receiver = Receiver::new(|_| status("200 OK", &[], &"y".repeat(1_000_000))).await;
    let worker = worker(json!({ "url": receiver.url() }));
    assert_eq!(deliver(&worker, &events(2)).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2]);
    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn a_refused_event_is_named_and_the_rest_arrives() {
    let bad = |request: &super::receiver::Received| {
        if request.numbers().contains(&637) {
            status("422 Unprocessable Content", &[], "event 637 has no owner")
        } else {
            ok()
        }
    };
    for mode in ["batch", "single"] {
        let receiver = Receiver::new(bad).await;
        let worker = worker(json!({ "url": receiver.url(), "mode": mode }));
        let all = events(1000);
        match deliver(&worker, &all).await {
            Delivery::Reject { accepted: 636, rejected: 1, reason } => {
                assert!(reason.contains("422 Unprocessable Entity: event 637 has"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(deliver(&worker, &all[637..]).await, Delivery::Ack);
        let received = receiver.received();
        let taken = received.iter().map(|r| r.numbers()).filter(|n| !n.contains(&637));
        let taken: Vec<u64> = taken.flatten().collect();
        assert!(taken.into_iter().eq((1..=1000).filter(|n| *n != 637)), "{mode}");
        assert_eq!(receiver.connections(), 1);
    }
}

#[tokio::test]
async fn signatures_verify_and_ids_are_stable() {
    let secret = STANDARD.encode(b"0123456789abcdef01234567");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("whsec_{secret}\n")).unwrap();
    let receiver = Receiver::new(once(1, || status("500 Oops", &[], ""))).await;
    let worker = worker(json!({
        "url": receiver.url(),
        "mode": "batch",
        "secret": [{ "from-file": file }, "the old one"],
    }));
    retry(deliver(&worker, &events(10)).await, &["500"]);
    assert_eq!(deliver(&worker, &events(10)).await, Delivery::Ack);

    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    for request in &received {
        let timestamp = request.header("webhook-timestamp");
        let age = SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.parse().unwrap());
        assert!(age.elapsed().unwrap_or_default() < BOUND);
        let mut signed = format!("{}.{timestamp}.", request.header("webhook-id")).into_bytes();
        signed.extend_from_slice(&request.body);
        let expected = [&b"0123456789abcdef01234567"[..], b"the old one"]
            .map(|key| format!("v1,{}", STANDARD.encode(hmac(key, &signed))));
        assert_eq!(request.header("webhook-signature"), expected.join(" "));
    }
}

/// HMAC-SHA256 as in RFC 2104, for keys up to 64 bytes.
fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(data).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[tokio::test]
async fn a_token_file_is_read_again_after_it_was_refused_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (token, other) = (folder.path().join("token"), folder.path().join("header"));
    std::fs::write(&token, "first-token\n").unwrap();
    std::fs::write(&other, "other-value").unwrap();
    // It answers with what it was sent.
    let receiver = Receiver::new(|request| {
        let sent = request.header("authorization").to_owned();
        if sent == "Bearer second-token" {
            return ok();
        }
        status("401 Unauthorized", &[], &format!("no: {sent} {}", request.header("x-other")))
    })
    .await;
    let worker = worker(json!({
        "url": receiver.url(),
        "bearer": { "from-file": token },
        "headers": { "X-Other": { "from-file": other }, "X-Plain": "plain" },
    }));
    let delivery = deliver(&worker, &events(1)).await;
    if let Delivery::Retry { reason, .. } = &delivery {
        assert!(!reason.contains("first-token") && !reason.contains("other-value"), "{reason}");
    }
    retry(delivery, &["401 Unauthorized: no: Bearer *** ***"]);
    std::fs::remove_file(&token).unwrap();
    let place = token.display().to_string();
    retry(deliver(&worker, &events(1)).await, &["`bearer`: cannot read", &place]);
    std::fs::File::create(&token).unwrap().write_all(b"second-token").unwrap();
    assert_eq!(deliver(&worker, &events(1)).await, Delivery::Ack);
    let last = receiver.received().pop().unwrap();
    assert_eq!(last.header("x-other"), "other-value");
    assert_eq!(last.header("x-plain"), "plain");
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_receiver() {
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let receiver = Receiver::new(move |_| {
        seen.store(true, Ordering::SeqCst);
        Reply::Silence
    })
    .await;
    let worker = worker(json!({ "url": receiver.url(), "timeout": "30s" }));
    let mut delivery = Box::pin(worker.deliver(event(1)));
    let until_asked = async {
        while !asked.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        delivery = &mut delivery => panic!("{delivery:?}"),
        waited = tokio::time::timeout(BOUND, until_asked) => waited.unwrap(),
    }
    drop(delivery);
    // Joins the thread; the receiver would keep it for the whole time-out.
    let ended = tokio::task::spawn_blocking(move || drop(worker));
    tokio::time::timeout(BOUND / 3, ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_thousand_events_in_batches() {
    const BATCH: usize = 1000;
    let next = Arc::new(AtomicUsize::new(1));
    let expected = Arc::clone(&next);
    let receiver = Receiver::new(move |request| {
        for number in request.numbers() {
            assert_eq!(number, expected.fetch_add(1, Ordering::SeqCst) as u64);
        }
        ok()
    })
    .await;
    let worker = worker(json!({ "url": receiver.url(), "mode": "batch", "secret": "key" }));
    let all = events(100_000);
    let started = Instant::now();
    for batch in all.chunks(BATCH) {
        assert_eq!(deliver(&worker, batch).await, Delivery::Ack);
    }
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    println!("{rate:.0} events a second");
    assert_eq!(next.load(Ordering::SeqCst), all.len() + 1);
    assert_eq!(receiver.connections(), 1);
}
