//! The format read back, and clients that do not behave.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Refusal, StreamId, StreamInfo};
use pilot_wire::{Address, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use pilot_host::{FileKind, Isolation, PluginStatus, Provides, State};
use serde_json::{Value, json};

use super::text::labels;
use super::*;
use crate::node::{self, Snapshot, StreamTotals};
use crate::udp::UdpStatus;

/// The most any single step may take.
const STEP: Duration = Duration::from_secs(30);

fn run_test(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(STEP * 3, test).await.unwrap() });
}

/// A loop that answers snapshots and nothing else.
fn node_that_answers(streams: usize) -> NodeHandle {
    let (handle, mut inbox) = node::channel();
    tokio::spawn(async move {
        while let Some(order) = inbox.orders.recv().await {
            if let node::Order::Snapshot { streams: most, answer } = order {
                let _ = answer.send(snapshot(streams.min(most)));
            }
        }
    });
    handle
}

fn snapshot(streams: usize) -> Snapshot {
    let core = Core::new(Config::default(), SigningKey::from_bytes(&[1; 32]), [0; 32]);
    let mut udp = UdpStatus::default();
    udp.counters.sends = 3;
    udp.counters.segments = 120;
    Snapshot {
        uptime: Duration::from_millis(1500),
        registry_up: true,
        peers: [3, 2, 1],
        ports: 2,
        clients: 1,
        datagrams_dropped: 4,
        counters: core.counters().clone(),
        udp,
        streams: StreamTotals {
            states: BTreeMap::from([("ESTABLISHED", streams)]),
            srtts: [3, 1, 2].map(Duration::from_millis).to_vec(),
            ..StreamTotals::default()
        },
        busiest: (0..streams).map(|n| stream(u32::try_from(n).unwrap())).collect(),
    }
}

fn stream(number: u32) -> StreamInfo {
    let remote = Address::backbone(NodeId(2)).port(7);
    let mut info = StreamInfo::new(StreamId(number), 40_000, remote, "ESTABLISHED");
    info.bytes_sent = 1 << 40;
    info.srtt = Duration::from_micros(120);
    info.gso_batch = 12.5;
    info
}

/// Samples by name and labels, the way a scraper reads them; panics at what
/// the format does not allow.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = HashSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} comes twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert_eq!(name, family, "samples follow their family");
            let known = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            assert!(name.bytes().all(known) && name.starts_with("pilot_"), "{line}");
            assert!(series == name || series.ends_with("\"}"), "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite(), "{line}");
            assert_eq!(samples.insert(series.to_owned(), value), None, "{line} comes twice");
        }
    }
    assert!(text.ends_with('\n'));
    samples
}

#[test]
fn what_is_written_reads_back() {
    let samples = parse(&families::write(&snapshot(2), &[], &Value::Null));
    let at = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series}"));
    assert_eq!(at("pilot_uptime_seconds"), 1.5);
    assert_eq!(at("pilot_registry_up"), 1.0);
    assert_eq!(at("pilot_peers{kind=\"relayed\"}"), 1.0);
    assert_eq!(at("pilot_streams{state=\"ESTABLISHED\"}"), 2.0);
    assert_eq!(at("pilot_streams_srtt_seconds{quantile=\"0.99\"}"), 0.003);
    assert_eq!(at("pilot_udp_sent_datagrams_total") / at("pilot_udp_send_calls_total"), 40.0);
    let stream = "{id=\"1\",peer=\"0:0000.0000.0002\",local_port=\"40000\",remote_port=\"7\"}";
    assert_eq!(at(&format!("pilot_stream_sent_bytes_total{stream}")), (1u64 << 40) as f64);
    assert_eq!(at(&format!("pilot_stream_srtt_seconds{stream}")), 0.000_12);
    assert_eq!(at(&format!("pilot_stream_gso_batch_segments{stream}")), 12.5);
    for rule in Refusal::ALL {
        assert_eq!(at(&format!("pilot_refused_packets_total{{rule=\"{}\"}}", rule.name())), 0.0);
    }
}

#[test]
fn plugins_and_sinks_have_series() {
    let plugin = PluginStatus {
        name: "echo".into(),
        kind: FileKind::Library,
        description: String::new(),
        provides: Provides::default(),
        file: None,
        sha256: None,
        version: None,
        generation: 2,
        isolation: Isolation::None,
        state: State::OverBudget,
        reason: None,
        since_ms: 0,
        streams: 3,
        streams_total: 9,
        errors: 1,
        last_error: None,
        cpu_ms: 1500,
        calls: 4,
        queue: 5,
        memory: None,
        draining: Vec::new(),
        hung: 0,
        last_reload: None,
        sink_status: BTreeMap::new(),
    };
    let events = json!({
        "emitted": 7, "lost": 1,
        "sinks": [{"sink": "webhook", "waiting": 6, "waiting_bytes": 600, "delivered": 1}],
    });
    let samples = parse(&families::write(&snapshot(0), &[plugin], &events));
    let at = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series}"));
    assert_eq!(at("pilot_plugin_state{plugin=\"echo\",state=\"over-budget\"}"), 1.0);
    assert_eq!(at("pilot_plugin_streams{plugin=\"echo\"}"), 3.0);
    assert_eq!(at("pilot_plugin_cpu_seconds_total{plugin=\"echo\"}"), 1.5);
    assert_eq!(at("pilot_plugin_queue{plugin=\"echo\"}"), 5.0);
    assert_eq!((at("pilot_events_emitted_total"), at("pilot_events_lost_total")), (7.0, 1.0));
    assert_eq!(at("pilot_sink_waiting{sink=\"webhook\"}"), 6.0);
}

#[test]
fn nothing_open_is_no_series() {
    let mut empty = snapshot(0);
    empty.streams = StreamTotals::default();
    let samples = parse(&families::write(&empty, &[], &Value::Null));
    assert!(!samples.keys().any(|s| s.starts_with("pilot_stream_")), "{samples:?}");
    assert!(!samples.contains_key("pilot_streams_srtt_seconds{quantile=\"1\"}"));
}

#[test]
fn label_values_are_escaped() {
    assert_eq!(labels(&[("a", &"x\"y\\z\n"), ("b", &7)]), r#"{a="x\"y\\z\n",b="7"}"#);
}

async fn serve(node: NodeHandle, limits: MetricsLimits) -> SocketAddr {
    let metrics = Metrics::bind(SocketAddr::from(([127, 0, 0, 1], 0)), limits).await.unwrap();
    let address = metrics.local_addr().unwrap();
    tokio::spawn(metrics.serve(node, Plugins::default()));
    address
}

/// Sends `request` as it is; everything that comes back until the end.
async fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    hear(stream).await
}

async fn hear(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(STEP, stream.read_to_end(&mut answer));
    // A reset after the answer is an end as well.
    let _ = read.await.expect("the connection ends");
    String::from_utf8(answer).unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[test]
fn requests_and_their_answers() {
    run_test(async {
        let at = serve(node_that_answers(2), MetricsLimits::default()).await;
        let answer = ask(at, &get("/metrics")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(parse(body).contains_key("pilot_uptime_seconds"));
        assert!(ask(at, &get("/healthz")).await.ends_with("\r\n\r\nok\n"));
        let status = async |request: &str| {
            let answer = ask(at, request).await;
            answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}")).to_owned()
        };
        assert_eq!(status(&get("/")).await, "404");
        assert_eq!(status(&get("/metrics/../etc/passwd")).await, "404");
        let head = ask(at, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET"), "{head}");
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(status(post).await, "405");
        let body = "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(status(body).await, "413");
        assert_eq!(status("nonsense\r\n\r\n").await, "400");
        let long = "GET /metrics HTTP/1.1\r\nHost: x\r\nX: ".to_owned() + &"x".repeat(20_000);
        assert_eq!(status(&(long + "\r\n\r\n")).await, "431");
    });
}

#[test]
fn clients_that_send_no_request_are_cut_off_and_hold_nobody_up() {
    run_test(async {
        let limits = MetricsLimits {
            connections: 4,
            head: Duration::from_millis(200),
            ..MetricsLimits::default()
        };
        let at = serve(node_that_answers(1), limits).await;
        // Many more than there are slots, each with half a request.
        let mut idle = Vec::new();
        for _ in 0..40 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.unwrap();
            idle.push(stream);
        }
        assert!(ask(at, &get("/healthz")).await.ends_with("ok\n"));
        for stream in idle {
            assert!(!hear(stream).await.contains("200 OK"));
        }
    });
}

#[test]
fn many_scrapers_at_once_cost_one_snapshot() {
    run_test(async {
        let (handle, mut inbox) = node::channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Some(order) = inbox.orders.recv().await {
                if let node::Order::Snapshot { streams, answer } = order {
                    assert_eq!(streams, STREAMS);
                    count.fetch_add(1, SeqCst);
                    let _ = answer.send(snapshot(streams));
                }
            }
        });
        tokio::time::pause();
        let scrapes = Scrapes { node: handle, plugins: Plugins::default(), last: Mutex::default() };
        let (first, second) = tokio::join!(scrapes.text(), scrapes.text());
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.as_ptr(), second.as_ptr(), "the same text, not one like it");
        assert_eq!(asked.load(SeqCst), 1);
        let lines = first.iter().filter(|b| **b == b'\n').count();
        assert!(lines < 6000, "{lines} lines");
        tokio::time::advance(FRESH).await;
        scrapes.text().await.unwrap();
        assert_eq!(asked.load(SeqCst), 2);
    });
}

#[test]
fn a_loop_that_has_ended_is_not_healthy() {
    run_test(async {
        let (handle, inbox) = node::channel();
        drop(inbox);
        let at = serve(handle, MetricsLimits::default()).await;
        assert!(ask(at, &get("/healthz")).await.starts_with("HTTP/1.1 503 "));
        assert!(ask(at, &get("/metrics")).await.starts_with("HTTP/1.1 503 "));
    });
}

#[test]
fn a_taken_port_is_named_with_the_key() {
    run_test(async {
        let first = serve(node_that_answers(0), MetricsLimits::default()).await;
        let again = Metrics::bind(first, MetricsLimits::default()).await;
        let line = again.err().unwrap().to_string();
        assert!(
            line.starts_with("metrics-listen: ") && line.contains(&first.to_string()),
            "{line}"
        );
    });
}
